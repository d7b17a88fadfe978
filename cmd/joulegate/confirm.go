package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newMeterConfirmCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "confirm ID",
		Short: "Take another device at a meter's place as the right one",
		Long: `A meter that is suddenly another device (serial number, address, transformer ratio)
or whose registers went back is suspect: what it says is recorded and not billed.
If it was exchanged on purpose, say so here. It counts from its next reading on,
in a new segment; both segments stay on record.`,
		Example: "  joulegate meter confirm house",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := dial(cmd)
			if err != nil {
				return err
			}
			defer g.Close()
			if err := g.ConfirmMeter(cmd.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s counts again from its next reading on\n", args[0])
			return nil
		},
	}
}
