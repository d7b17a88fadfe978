package main

import (
	"fmt"
	"io"
	"os"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/audit"
	"github.com/spf13/cobra"
)

// slipReport is what audit receipt tells.
type slipReport struct {
	audit.Slip
	audit.Content
	// History is "same" or "DIFFERENT" by a checkpoint of the printed block.
	History string `json:"history,omitempty"`
}

func newAuditReceiptCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "receipt FILE",
		Short: "Check what the QR code of a printed receipt holds, offline",
		Long: `FILE holds the text of the QR code; - reads it from standard input. Checks the
gateway's signature and that of the receipt inside. With a checkpoint of the
block that is printed on it, it also says whether the receipt and the checkpoint
come from one history. That the microgrid knows the gateway is not on the paper:
compare with 'grid members', or check a bundle. Exits 1 unless every check holds.`,
		Example: "  joulegate audit receipt scanned.txt\n  joulegate audit receipt scanned.txt --checkpoint block-1200.checkpoint",
		Args:    cobra.ExactArgs(1),
	}
	file := c.Flags().String("checkpoint", "", "`FILE` with a checkpoint of the printed block")
	c.RunE = func(cmd *cobra.Command, args []string) (err error) {
		in := cmd.InOrStdin()
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		b, err := io.ReadAll(io.LimitReader(in, 64<<10))
		if err != nil {
			return err
		}
		var r slipReport
		if r.Slip, r.Content, err = audit.ParseSlip(string(b)); err != nil {
			return err
		}
		if *file != "" {
			if r.History, err = sameHistory(*file, r.Slip); err != nil {
				return err
			}
		}
		err = emit(cmd, r, func(w io.Writer) error {
			rows := [][]string{
				{"receipt", r.Number + ", both signatures hold"},
				{"chain", r.Chain},
				{"gateway", r.Device.String()},
				{"meter", r.Meter},
				{"begin", string(r.Begin.KWh) + " kWh at " + r.Begin.At},
				{"end", string(r.End.KWh) + " kWh at " + r.End.At},
				{"it says", r.Content.Text},
				{"printed at", fmt.Sprintf("block %d, app hash %s", r.Height, r.State)},
			}
			if r.History != "" {
				rows = append(rows, []string{"history", r.History})
			}
			return table(w, rows)
		})
		if err == nil && r.History != "" && r.History != "same" {
			err = errSilent
		}
		return err
	}
	return c
}

// sameHistory compares a receipt with a checkpoint.
func sameHistory(path string, s audit.Slip) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("--checkpoint: %w", err)
	}
	p, err := chain.ParseCheckpoint(b)
	if err == nil {
		err = p.Check()
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("--checkpoint %s: %w", path, err)
	case p.Header.Chain != s.Chain:
		return "", fmt.Errorf("--checkpoint %s is of %q, the receipt of %q", path, p.Header.Chain, s.Chain)
	case p.Header.Height != s.Height:
		return "", fmt.Errorf("--checkpoint %s is of block %d, the receipt names block %d; see: joulegate ledger checkpoint --height %d", path, p.Header.Height, s.Height, s.Height)
	case p.Header.AppHash != s.State:
		return "DIFFERENT: the receipt and the checkpoint come from two histories", nil
	}
	return "same", nil
}
