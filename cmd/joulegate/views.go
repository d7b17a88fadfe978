package main

import (
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// What a running gateway and the stores of a stopped one say alike: the
// ledger's state in the form of the API.

func accountsOf(st ledger.State) []panel.Account {
	owners := ownersOf(st)
	out := []panel.Account{}
	for _, a := range ledger.Accounts(st) {
		out = append(out, panel.Account{AccountView: a, Name: owners[a.Account]})
	}
	return out
}

// ownersOf names accounts by the members whose owners hold them.
func ownersOf(st ledger.State) map[chain.Account]string {
	m := map[chain.Account]string{}
	for _, x := range ledger.Members(st) {
		m[chain.AccountOf(x.Owner)] = x.Name
	}
	return m
}

func namesOf(st ledger.State) map[chain.Key]string {
	m := map[chain.Key]string{}
	for _, x := range ledger.Members(st) {
		m[x.Device] = x.Name
	}
	return m
}

func sessionsOf(st ledger.State) []panel.Session {
	names := namesOf(st)
	out := []panel.Session{}
	for _, s := range ledger.Sessions(st) {
		out = append(out, panel.NewSession(st, s, names[s.Gateway]))
	}
	return out
}

func sessionOf(st ledger.State, id chain.ID) (panel.Session, error) {
	s, ok := ledger.SessionOf(st, id)
	if !ok {
		return panel.Session{}, panel.NotFound("no session %s", id)
	}
	return panel.NewSession(st, s, namesOf(st)[s.Gateway]), nil
}

func marketOf(st ledger.State) panel.Market {
	return panel.NewMarket(ledger.RulesOf(st), ledger.Members(st), ledger.RecentSlots(st, panel.MaxHistory))
}

func rulesOf(st ledger.State, height int64) panel.Rules {
	return panel.Rules{
		Rules: ledger.RulesOf(st), Pending: append([]chain.RulesChange{}, ledger.PendingRules(st)...), Height: height,
		Knows: ledger.RulesVersion, Approvals: append([]ledger.MeterApprovalView{}, ledger.MeterApprovals(st)...),
		Quarantined: append([]ledger.QuarantineView{}, ledger.Quarantines(st)...), Attestations: ledger.Attestations(st),
	}
}

func payoutsOf(st ledger.State, open bool) []ledger.PayoutView {
	if open {
		return append([]ledger.PayoutView{}, ledger.OpenPayouts(st)...)
	}
	return append([]ledger.PayoutView{}, ledger.Payouts(st)...)
}

func invoicesOf(st ledger.State, a chain.Account) []panel.Invoice {
	out := []panel.Invoice{}
	for _, v := range ledger.Invoices(st, a) {
		out = append(out, panel.NewInvoice(v))
	}
	return out
}

func invoiceOf(st ledger.State, id string) (panel.Invoice, error) {
	v, ok := ledger.InvoiceOf(st, id)
	if !ok {
		return panel.Invoice{}, panel.NotFound("no document %q; see: joulegate invoice ls", id)
	}
	return panel.NewInvoice(v), nil
}

// statusOf is the ledger's summary; height, at and root are the last block's.
func statusOf(st ledger.State, height int64, at time.Time, root chain.Hash) panel.LedgerStatus {
	s := ledger.StatusOf(st)
	s.Height = height
	if !at.IsZero() {
		s.TimeMs = at.UnixMilli()
	}
	return panel.LedgerStatus{Status: s, StateHash: root, Blocks: []panel.Block{}}
}
