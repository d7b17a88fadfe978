package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/spf13/cobra"
)

func newGridDimCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "dim NODE",
		Short: "Order chargers to take less for a while (operator)",
		Long: `Puts an order on the ledger: below a node of the fee tree every charger takes at
most so many watts until the time is over. Gateways follow it whose installer
has set dimming.ledger; it only ever lowers, and never below what the law leaves
to a charger. --limit 0 takes the order back. For one gateway: charger dim.`,
		Example: `  joulegate grid dim f1 --limit 4200 --for 2h --reason "transformer 7"
  joulegate grid dim f1 --limit 0 --reason "over"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f := cmd.Flags()
			limit, _ := f.GetInt64("limit")
			d, _ := f.GetDuration("for")
			reason, _ := f.GetString("reason")
			if limit < 0 || limit > 0 && d <= 0 {
				return usageError{errors.New("--limit is a number of watts, and one above 0 needs --for")}
			}
			name, _ := f.GetString("wallet")
			w, err := wallet(cmd, name)
			if err != nil {
				return err
			}
			cl, err := dial(cmd)
			if err != nil {
				return err
			}
			body := chain.Dim{Node: args[0], Limit: limit, Reason: reason}
			if limit > 0 {
				body.Until = time.Now().Add(d).UnixMilli()
			}
			r, err := submit(cmd, cl, w, chain.TxDim, body)
			if err != nil {
				return err
			}
			return emit(cmd, r, func(out io.Writer) error {
				_, err := fmt.Fprintf(out, "ordered in block %d\n", r.Height)
				return err
			})
		},
	}
	c.Flags().Int64("limit", 0, "most that each charger takes, in `WATTS`; 0 takes the order back")
	c.Flags().Duration("for", 0, "how long, at most 168h")
	c.Flags().String("reason", "", "a few words, no personal data")
	c.Flags().String("wallet", "operator", "operator's `WALLET`: a file, or a name in the state folder")
	_ = c.MarkFlagRequired("limit")
	_ = c.MarkFlagRequired("reason")
	return c
}
