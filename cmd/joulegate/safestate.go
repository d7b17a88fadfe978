package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/drivers/gpio"
	"github.com/spf13/cobra"
)

// newSafeStateCmd is what systemd runs after the gateway has ended, however
// it ended. It needs nothing that a broken gateway may have broken: no state
// folder, no network, no ledger, and without a readable configuration it goes
// by the board that the device tree names.
func newSafeStateCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "safe-state",
		Short: "Open every relay of the board and do nothing else",
		Long: `Drives every output of the configured board to the level that leaves its relay
open, reads it back, and gives it free. For ExecStopPost= of the service: a
kernel may leave an output as it was when the program that drove it is killed.

Prints a line per output. Exit code 1 if one that the configuration uses could
not be made safe, for example because a running gateway owns it.`,
		Example: "  joulegate safe-state\n  joulegate safe-state --config ./joulegate.yaml --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, _ := cmd.Flags().GetString("config")
			cfg, err := loadConfig(path)
			if err != nil {
				id, ok := detectedBoard()
				if !ok {
					return fmt.Errorf("%w; nor does this computer say which board it is", err)
				}
				// An unreadable configuration must not keep a relay closed.
				fmt.Fprintf(cmd.ErrOrStderr(), "joulegate: %v; going by the board, %s\n", err, id)
				cfg = config.Config{Board: id}
			}
			p, openErr := openPins(cfg)
			if openErr != nil {
				return openErr
			}
			done := safeState(p, cfg.Outputs())
			closeErr := p.close()
			failed := err != nil || closeErr != nil
			for _, d := range done {
				failed = failed || d.Error != "" && d.Used
			}
			if err := emit(cmd, map[string]any{"board": cfg.Board, "ok": !failed, "outputs": done}, func(w io.Writer) error {
				rows := [][]string{{"OUTPUT", "STATE", ""}}
				for _, d := range done {
					rows = append(rows, []string{d.Pin, d.State, d.Error})
				}
				if len(done) == 0 {
					_, err := fmt.Fprintf(w, "board %s has no outputs\n", cfg.Board)
					return err
				}
				return table(w, rows)
			}); err != nil {
				return err
			}
			switch {
			case closeErr != nil:
				return closeErr
			case failed:
				return errSilent
			}
			return nil
		},
	}
}

// safeOutput is what became of one output.
type safeOutput struct {
	Pin   string `json:"pin"`
	State string `json:"state"` // safe, held or failed
	Used  bool   `json:"used"`  // by the configuration
	Error string `json:"error,omitempty"`
}

// safeState takes every output to its safe level. One that fails does not
// keep the next one energised.
func safeState(o *pins, used []string) []safeOutput {
	out := []safeOutput{}
	for _, d := range o.board.Pins {
		if d.Direction != board.Output {
			continue
		}
		s := safeOutput{Pin: d.Name, State: "safe", Used: slices.Contains(used, d.Name)}
		if err := makeSafe(o, d); err != nil {
			s.State, s.Error = "failed", err.Error()
		}
		out = append(out, s)
	}
	return out
}

func makeSafe(o gpio.Opener, d board.Pin) error {
	r, err := gpio.NewRelay(o, d)
	if err != nil {
		return err
	}
	closed, err := r.Closed()
	if err == nil && closed {
		err = fmt.Errorf("relay %s: told to open, it reads closed", d.Name)
	}
	return err
}
