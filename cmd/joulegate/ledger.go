package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/spf13/cobra"
)

func newLedgerCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "ledger",
		Short: "The microgrid's shared record",
	}
	c.AddCommand(newLedgerStatusCmd(), newLedgerVerifyCmd(), newLedgerCheckpointCmd(), newLedgerTrustCmd(), newLedgerClaimCmd(), newVerifyRemoteCmd())
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
		for i, line := range attestedBy(s.Attestations) {
			rows = append(rows, []string{[]string{"attested", ""}[min(i, 1)], line})
		}
		if s.Simulated {
			rows = append(rows, []string{"basis", "simulated, not for billing"})
		}
		if s.UpdateHeight > 0 {
			rows = append(rows, []string{"UPDATE", fmt.Sprintf("this program is too old for the rules from block %d on: update joulegate before", s.UpdateHeight)})
		}
		if s.First > 1 {
			rows = append(rows, []string{"blocks", fmt.Sprintf("%d and later are here, older ones have been dropped", s.First)})
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
		if s.NewKey {
			rows = append(rows, []string{"NO VOTE", "this gateway was restored and has a new validator key; for its vote: joulegate grid replace"})
		}
		if s.Sync != "" {
			rows = append(rows, []string{"snapshot", s.Sync})
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
a running or a stopped gateway. Exits 1 on any violation.

Where old blocks have been dropped (ledger.keep_days) it begins with the
oldest state that was kept in their place, says which, and whose signatures lead
from the genesis to it. What happened before cannot be executed again here: ask
a gateway that keeps more, or a bundle that was made in time.`,
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
				fmt.Fprintf(w, "began from  %s\nblocks      %d to %d\nstate hash  %s\n", report.Start, report.FromHeight, report.Height, report.StateHash)
				if report.FromHeight > 1 {
					fmt.Fprintf(w, "not here    blocks before %d: they were not executed again\n", report.FromHeight)
				}
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

// checkpointView is what ledger checkpoint tells.
type checkpointView struct {
	Chain       string           `json:"chain_id"`
	Height      int64            `json:"height"`
	Time        time.Time        `json:"time"`
	Hash        chain.Hash       `json:"hash"`         // of the block's header
	StateHeight int64            `json:"state_height"` // whose state it proves
	StateHash   chain.Hash       `json:"state_hash"`
	Validators  chain.Validators `json:"validators"`
	Votes       int              `json:"votes"` // for the block
	Checkpoint  []byte           `json:"checkpoint"`
}

func newLedgerCheckpointCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "checkpoint",
		Short: "The validators' signatures under a block, for those who verify offline",
		Long: `A checkpoint is the header of a block with the votes of its validators. Whoever
keeps one outside of the gateway can tell later that the history has not been
replaced: 'audit verify --checkpoint FILE' and other microgrids start from it.
It proves the state after the block before.`,
		Example: "  joulegate ledger checkpoint --out street-2026-11.checkpoint\n  joulegate ledger checkpoint --height 1200 --json",
		Args:    cobra.NoArgs,
	}
	c.Flags().Int64("height", 0, "number of a `BLOCK`; without it, the newest")
	c.Flags().String("out", "", "`FILE` for the checkpoint in its canonical encoding")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		height, _ := cmd.Flags().GetInt64("height")
		if height < 0 {
			return usageError{fmt.Errorf("--height %d", height)}
		}
		p, err := checkpoint(cmd, height)
		if err != nil {
			return err
		}
		raw := p.Encode()
		out, _ := cmd.Flags().GetString("out")
		if out != "" {
			if err := writeFile(out, raw, 0o644); err != nil {
				return err
			}
		}
		v := checkpointView{
			p.Header.Chain, p.Header.Height, p.Time(), p.Header.Hash(), p.StateHeight(), p.StateRoot(), p.Set, len(p.Commit.Votes), raw,
		}
		return emit(cmd, v, func(w io.Writer) error {
			rows := [][]string{
				{"chain", v.Chain},
				{"block", fmt.Sprintf("%d at %s", v.Height, v.Time.Format(time.DateTime+" MST"))},
				{"hash", v.Hash.String()},
				{"state", fmt.Sprintf("%s after block %d", v.StateHash, v.StateHeight)},
				{"votes", fmt.Sprintf("%d of %d validators", v.Votes, len(v.Validators))},
			}
			if out != "" {
				rows = append(rows, []string{"written to", fmt.Sprintf("%s, %d bytes", out, len(raw))})
			}
			return table(w, rows)
		})
	}
	return c
}

// checkpoint asks the running gateway, or opens the stores of a stopped one.
func checkpoint(cmd *cobra.Command, height int64) (chain.Checkpoint, error) {
	c, err := dial(cmd)
	if err == nil {
		return c.Checkpoint(cmd.Context(), height)
	}
	if !errors.Is(err, errNotRunning) {
		return chain.Checkpoint{}, err
	}
	p, err := consensus.CheckpointHome(stateOf(cmd).consensus(), height)
	if err != nil {
		return chain.Checkpoint{}, err
	}
	return *p, nil
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
	return verifyReport(r), err
}

func verifyReport(r consensus.Report) panel.VerifyReport {
	return panel.VerifyReport{FromHeight: r.FromHeight, Start: r.Start, Height: r.Height, StateHash: r.StateHash, Violations: r.Violations}
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
