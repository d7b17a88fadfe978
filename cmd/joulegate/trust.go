package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/spf13/cobra"
)

func newLedgerTrustCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "trust HEIGHT HASH",
		Short: "Tell this gateway a block that you know to be the true one",
		Long: `A gateway that was away for longer than validators answer for what they signed (10
days) cannot tell the true ledger from one that former validators have forged. A
person can: read height and hash from a neighbour's 'joulegate ledger checkpoint',
over the telephone if need be, and say them here. A running gateway takes it up
within seconds, catches up from there, and never needs it again.

A block that the neighbours do not have is refused; nothing is changed then.`,
		Example: "  joulegate ledger trust 48213 9b1f0c63e1d29a4e6f0b8f1d6d0a37c5b6f2f7b2a08a3a5de2b86f3e5b7cf001",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			height, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || height < 1 {
				return usageError{fmt.Errorf("height %q: the number of a block", args[0])}
			}
			var hash chain.Hash
			if err := hash.UnmarshalText([]byte(args[1])); err != nil {
				return usageError{fmt.Errorf("hash %q: 64 hex digits", args[1])}
			}
			st := stateOf(cmd)
			_, g, _, err := consensus.ReadGenesis(st.genesis())
			if err != nil {
				return err
			}
			if err := consensus.WriteAnchor(st.consensus(), g.ChainID, height, hash); err != nil {
				return err
			}
			return emit(cmd, map[string]any{"chain_id": g.ChainID, "height": height, "hash": hash}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "this gateway trusts block %d of %s\nwatch it catch up: joulegate ledger status\n", height, g.ChainID)
				return err
			})
		},
	}
}
