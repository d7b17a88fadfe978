package main

import (
	"context"
	"errors"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/passbook"
)

func (b backend) Rules(context.Context) (panel.Rules, error) {
	height := b.ledger.Status().Height
	return view(b, func(st ledger.State) panel.Rules { return rulesOf(st, height) })
}

func (b backend) Remotes(context.Context) (panel.Remotes, error) {
	return view(b, func(st ledger.State) panel.Remotes { return remotesOf(st) })
}

func (b backend) Payouts(_ context.Context, open bool) ([]ledger.PayoutView, error) {
	return view(b, func(st ledger.State) []ledger.PayoutView { return payoutsOf(st, open) })
}

func (b backend) Disputes(context.Context) ([]ledger.DisputeView, error) {
	return view(b, func(st ledger.State) []ledger.DisputeView {
		return append([]ledger.DisputeView{}, ledger.Disputes(st)...)
	})
}

func (b backend) Invoices(_ context.Context, a chain.Account) ([]panel.Invoice, error) {
	return view(b, func(st ledger.State) []panel.Invoice { return invoicesOf(st, a) })
}

func (b backend) Invoice(_ context.Context, id string) (v panel.Invoice, err error) {
	failed := b.ledger.View(func(st ledger.State) { v, err = invoiceOf(st, id) })
	return v, errors.Join(failed, err)
}

func (b backend) Unbilled(context.Context) ([]chain.Account, error) {
	return view(b, ledger.Unbilled)
}

func (b backend) Statement(_ context.Context, a chain.Account, from, to int64) (invoice.Statement, error) {
	s := newStatement(a, b.genesis.Currency, from, to)
	var err error
	failed := b.ledger.ViewAt(func(height int64, st ledger.State) {
		rules := ledger.RulesOf(st)
		s.Simulated = rules.Simulated()
		err = b.passbook.Statement(&s, height, ledger.BalanceOf(st, a))
	})
	if gap := (*passbook.GapError)(nil); errors.As(err, &gap) {
		err = panel.NotFound("%v", err)
	} else if errors.Is(err, passbook.ErrFilling) {
		err = panel.Filling(b.passbook.Progress())
	} else if errors.Is(err, passbook.ErrDamaged) {
		err = panel.Unavailable("%v", err)
	} else if err != nil {
		err = panel.Invalid("%v", err)
	}
	return s, errors.Join(failed, err)
}

func newStatement(a chain.Account, currency string, from, to int64) invoice.Statement {
	return invoice.Statement{Account: a, Currency: currency, FromMs: from, ToMs: to, Rows: []invoice.StatementRow{}}
}
