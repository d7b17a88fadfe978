package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/passbook"
	"github.com/spf13/cobra"
)

// movements is the ledger as the passbook sees it.
type movements struct{ *consensus.Engine }

func (m movements) Head(fn func(height int64, at time.Time, st ledger.State)) error {
	return m.ViewAt(func(height int64, st ledger.State) { fn(height, time.UnixMilli(ledger.StatusOf(st).TimeMs), st) })
}

func (m movements) Replay(ctx context.Context, from time.Time, begin func(int64, time.Time, ledger.State) error, fn func(int64, time.Time, []ledger.Movement)) error {
	return m.Engine.Replay(ctx, from, func(s consensus.Start) error { return begin(s.Height, s.Time, s.State) },
		func(height int64, at time.Time, out ledger.BlockOutput) { fn(height, at, out.Movements) })
}

const (
	tellAfter    = 2 * time.Second // after which a command tells how far it is
	progressStep = time.Second     // between two lines about it
)

// told tells how far a long work is, to people, on stderr.
type told struct {
	w     io.Writer
	start time.Time
	told  time.Time
}

func newTold(cmd *cobra.Command) *told { return &told{w: cmd.ErrOrStderr(), start: time.Now()} }

func (p *told) say(format string, args ...any) {
	if now := time.Now(); now.Sub(p.start) >= tellAfter && now.Sub(p.told) >= progressStep {
		p.told = now
		fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// statement asks the running gateway, or reads the passbook of a stopped one;
// without a passbook it executes the blocks again.
func statement(cmd *cobra.Command, a chain.Account, from, to int64) (invoice.Statement, error) {
	ctx := cmd.Context()
	progress := newTold(cmd)
	c, err := dial(cmd)
	for err == nil {
		s, err := c.Statement(ctx, a, from, to)
		e := (*panel.Error)(nil)
		if !errors.As(err, &e) || e.Code != panel.CodeFilling {
			return s, err
		}
		progress.say("%s", e.Message)
		select {
		case <-ctx.Done():
			return s, context.Cause(ctx)
		case <-time.After(progressStep / 4):
		}
	}
	st := stateOf(cmd)
	_, g, _, missing := consensus.ReadGenesis(st.genesis())
	if !errors.Is(err, errNotRunning) || missing != nil {
		return invoice.Statement{}, err
	}
	s := newStatement(a, g.Currency, from, to)
	var top int64
	failed := passbook.ErrDamaged
	if err := consensus.ViewHome(st.consensus(), st.genesis(), func(height int64, _ time.Time, _ chain.Hash, now ledger.State) {
		rules := ledger.RulesOf(now)
		s.Simulated, top = rules.Simulated(), height
		book, err := passbook.Open(passbook.Config{Dir: st.path("statements"), ChainID: g.ChainID, ReadOnly: true})
		if err == nil {
			err = errors.Join(book.Statement(&s, height, ledger.BalanceOf(now, a)), book.Close())
		}
		failed = err
	}); err != nil {
		return s, err
	}
	if !errors.Is(failed, passbook.ErrDamaged) && !errors.Is(failed, passbook.ErrFilling) {
		return s, failed
	}
	again := newStatement(a, g.Currency, from, to)
	again.Simulated = s.Simulated
	progress = newTold(cmd)
	err = consensus.ReplayHome(ctx, st.consensus(), st.genesis(), beginning(again), openStatement(&again), func(height int64, at time.Time, out ledger.BlockOutput) {
		again.Add(height, at.UnixMilli(), out.Movements)
		progress.say("there is no index of statements: executing the blocks again, %d of %d", height, top)
	})
	return again, err
}

// beginning is the time of which a statement must know the state.
func beginning(s invoice.Statement) time.Time {
	if s.FromMs == 0 {
		return time.Time{}
	}
	return time.UnixMilli(s.FromMs)
}

// openStatement begins a statement where the blocks do.
func openStatement(s *invoice.Statement) func(consensus.Start) error {
	return func(b consensus.Start) error {
		if err := s.Begin(b.Height, b.Time.UnixMilli(), ledger.AccountOf(b.State, s.Account)); err != nil {
			return panel.NotFound("%v", err)
		}
		return nil
	}
}

func newSalt() (salt [16]byte) {
	rand.Read(salt[:])
	return salt
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
