package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/spf13/cobra"
)

func newLedgerCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "ledger",
		Short: "The microgrid's shared record",
	}
	c.AddCommand(newLedgerStatusCmd(), newLedgerVerifyCmd())
	return c
}

func newLedgerStatusCmd() *cobra.Command {
	return ledgerQuery(&cobra.Command{
		Use:     "status",
		Short:   "Height, state hash and what the ledger holds",
		Example: "  joulegate ledger status --json",
		Args:    cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.LedgerStatus, error) {
		return g.LedgerStatus(cmd.Context())
	}, func(l stoppedLedger, _ []string) (panel.LedgerStatus, error) {
		return statusOf(l, l.height, l.at, l.root), nil
	}, func(w io.Writer, s panel.LedgerStatus) error {
		rows := [][]string{
			{"chain", s.ChainID},
			{"height", fmt.Sprintf("%d at %s", s.Height, time.UnixMilli(s.TimeMs).Format(time.DateTime))},
			{"state hash", s.StateHash.String()},
			{"members", fmt.Sprintf("%d, %d of them validators", s.Members, s.Validators)},
			{"open sessions", strconv.Itoa(s.OpenSessions)},
			{"money", fmt.Sprintf("%s minted, %s burned", money(s.Minted), money(s.Burned))},
			{"discount credit", money(s.Credits) + " outstanding, fully backed"},
			{"payouts", fmt.Sprintf("%d wait, %d of them overdue", s.OpenPayouts, s.OverduePayouts)},
			{"disputes", fmt.Sprintf("%d open", s.OpenDisputes)},
			{"meters", fmt.Sprintf("%d have jumped and bill nothing; see: joulegate dispute quarantine", s.Quarantined)},
		}
		if s.Simulated {
			rows = append(rows, []string{"basis", "simulated, not for billing"})
		}
		if s.UpdateHeight > 0 {
			rows = append(rows, []string{"UPDATE", fmt.Sprintf("this program is too old for the rules from block %d on: update joulegate before", s.UpdateHeight)})
		}
		if s.Counters == nil { // from the stores
			rows = append(rows, []string{"this gateway", "does not run"})
		} else {
			rows = append(rows,
				[]string{"this gateway", map[bool]string{true: "votes", false: "follows"}[s.Validator]},
				[]string{"waiting", fmt.Sprintf("%d transactions", s.Waiting)})
		}
		if s.CatchingUp {
			rows = append(rows, []string{"catching up", "with the neighbours"})
		}
		if s.Halted != "" {
			rows = append(rows, []string{"HALTED", s.Halted})
		}
		return table(w, rows)
	})
}

func newLedgerVerifyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Execute every block again and compare",
		Long: `Executes every block from genesis on a fresh state, checks the invariants after
each, and compares every state hash with the one the validators signed. Works on
a running or a stopped gateway. Exits 1 on any violation.`,
		Example: "  joulegate ledger verify\n  joulegate ledger verify --state /mnt/old-card --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			progress := progressLine(cmd)
			report, err := verifyLedger(cmd, func(height, to int64) {
				progress(fmt.Sprintf("verified %d of %d blocks", height, to))
			})
			progress("")
			if err != nil {
				return err
			}
			if report.Violations == nil {
				report.Violations = []string{}
			}
			err = emit(cmd, report, func(w io.Writer) error {
				fmt.Fprintf(w, "blocks      %d to %d\nstate hash  %s\n", report.FromHeight, report.Height, report.StateHash)
				for _, v := range report.Violations {
					fmt.Fprintln(w, "VIOLATION  ", v)
				}
				if len(report.Violations) == 0 {
					fmt.Fprintln(w, "every block leads to the signed state, no violation")
				}
				return nil
			})
			if err == nil && len(report.Violations) > 0 {
				err = errSilent
			}
			return err
		},
	}
}

// verifyLedger asks the running gateway, or opens the stores of a stopped one.
func verifyLedger(cmd *cobra.Command, progress func(height, to int64)) (panel.VerifyReport, error) {
	c, err := dial(cmd)
	if err == nil {
		return c.LedgerVerify(cmd.Context(), func(p panel.VerifyProgress) { progress(p.Height, p.To) })
	}
	if !errors.Is(err, errNotRunning) {
		return panel.VerifyReport{}, err
	}
	st := stateOf(cmd)
	r, err := consensus.VerifyHome(cmd.Context(), st.consensus(), st.genesis(), progress)
	return panel.VerifyReport{FromHeight: r.FromHeight, Height: r.Height, StateHash: r.StateHash, Violations: r.Violations}, err
}

func newMarketCmd() *cobra.Command {
	c := &cobra.Command{Use: "market", Short: "Prices and trades between neighbours"}
	c.AddCommand(newMarketClearCmd(), newMarketStatusCmd(), newMarketCertifyCmd(), newMarketProblemCmd(), newMarketAllocationCmd(),
		newMarketTariffCmd(), newMarketZonesCmd(), newMarketFirmCmd(), newMarketFeatureCmd(), newMarketCorrectionCmd())
	return c
}

func newMarketStatusCmd() *cobra.Command {
	return ledgerQuery(atFlag(&cobra.Command{
		Use:   "status",
		Short: "The last cleared slot: who bought, who sold, at which price and why",
		Args:  cobra.NoArgs,
	}), func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Market, error) {
		return g.Market(cmd.Context())
	}, func(l stoppedLedger, _ []string) (panel.Market, error) { return marketOf(l), nil }, func(w io.Writer, m panel.Market) error {
		if m.Last != nil {
			start := time.UnixMilli(m.Last.Slot.Start(m.SlotSeconds))
			fmt.Fprintf(w, "slot %d, %s, %d s; tariff %s retail, %s feed-in\n", m.Last.Slot, start.Format(time.DateTime), m.SlotSeconds, perKWh(m.Last.Retail), perKWh(m.Last.FeedIn))
		}
		fmt.Fprintln(w, m.Why)
		rows := [][]string{{"HOUSE", "PRICE", "BOUGHT", "SOLD", "CHARGED", "FROM GRID", "TO GRID"}}
		for _, h := range m.Houses {
			rows = append(rows, []string{h.Name, perKWh(h.Price), kWh(h.Bought), kWh(h.Sold), kWh(h.Charged), kWh(h.Import), kWh(h.Export)})
		}
		return table(w, rows)
	})
}

func newPeerCmd() *cobra.Command {
	c := &cobra.Command{Use: "peer", Short: "Connections to the neighbours"}
	c.AddCommand(query(&cobra.Command{
		Use:   "ls",
		Short: "List live connections",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) ([]panel.Peer, error) {
		return g.Peers(cmd.Context())
	}, func(w io.Writer, peers []panel.Peer) error {
		rows := [][]string{{"NAME", "DEVICE", "ADDRESS", "SINCE", "DIALLED"}}
		for _, p := range peers {
			rows = append(rows, []string{p.Name, p.Device.Short(), p.Addr, p.Since.Format(time.DateTime), map[string]string{"in": "by it", "out": "by us"}[p.Direction]})
		}
		return table(w, rows)
	}))
	return c
}

// progressLine returns a function that shows one line on stderr and
// overwrites it with the next; "" clears it. It is silent when stderr is no
// terminal.
func progressLine(cmd *cobra.Command) func(string) {
	if f, ok := cmd.ErrOrStderr().(interface{ Fd() uintptr }); !ok || !terminal(f.Fd()) {
		return func(string) {}
	}
	last := time.Time{}
	return func(s string) {
		if s != "" && time.Since(last) < 100*time.Millisecond {
			return
		}
		last = time.Now()
		fmt.Fprintf(cmd.ErrOrStderr(), "\r\x1b[K%s", s)
	}
}
