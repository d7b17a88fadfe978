package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

// statement asks the running gateway, or executes the blocks of a stopped one.
func statement(cmd *cobra.Command, a chain.Account, from, to int64) (invoice.Statement, error) {
	c, err := dial(cmd)
	if err == nil {
		return c.Statement(cmd.Context(), a, from, to)
	}
	st := stateOf(cmd)
	_, g, _, missing := consensus.ReadGenesis(st.genesis())
	if !errors.Is(err, errNotRunning) || missing != nil {
		return invoice.Statement{}, err
	}
	s := newStatement(a, g.Currency, from, to)
	s.Simulated = cmp.Or(g.Basis, chain.Simulated) == chain.Simulated
	err = consensus.ReplayHome(cmd.Context(), st.consensus(), st.genesis(), beginning(s), openStatement(&s), func(height int64, at time.Time, out ledger.BlockOutput) {
		s.Add(height, at.UnixMilli(), out.Movements)
	})
	return s, err
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
