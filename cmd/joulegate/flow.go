package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
	_ "time/tzdata" // gateways have no zone database; only people's times need one

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/market"
	"github.com/joulegate/joulegate/meter"
	"github.com/spf13/cobra"
)

// period reads --from and --to (days or times, local to --zone) and --day as
// a range of slots.
func period(cmd *cobra.Command, slotSeconds int64) (from, to chain.Slot, err error) {
	f := cmd.Flags()
	zone, _ := f.GetString("zone")
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return 0, 0, usageError{fmt.Errorf("--zone %q: %w", zone, err)}
	}
	day, _ := f.GetString("day")
	first, _ := f.GetString("from")
	last, _ := f.GetString("to")
	if day != "" {
		first, last = day, day
	}
	start, _, err := parseWhen(first, loc)
	if err != nil {
		return 0, 0, usageError{err}
	}
	_, end, err := parseWhen(last, loc)
	if err != nil {
		return 0, 0, usageError{err}
	}
	if !end.After(start) {
		return 0, 0, usageError{fmt.Errorf("the period ends at %s, before it begins at %s", end, start)}
	}
	from, to = chain.SlotAt(start.UnixMilli(), slotSeconds), chain.SlotAt(end.UnixMilli()-1, slotSeconds)
	if to-from >= panel.MaxFlowSlots {
		return 0, 0, usageError{fmt.Errorf("the period has %d slots, at most %d", to-from+1, panel.MaxFlowSlots)}
	}
	return from, to, nil
}

// parseWhen reads a day, which lasts until the next midnight of its zone
// (23 to 25 hours), or a time.
func parseWhen(s string, loc *time.Location) (start, end time.Time, err error) {
	if t, err := time.ParseInLocation(time.DateOnly, s, loc); err == nil {
		return t, time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, loc), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04", "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(layout, s, loc); err == nil {
			return t, t, nil
		}
	}
	return start, end, fmt.Errorf("%q is neither a day like 2026-03-29 nor a time like 2026-03-29T14:00", s)
}

func periodFlags(c *cobra.Command) {
	c.Flags().String("from", "", "first `DAY` or time of the period")
	c.Flags().String("to", "", "last `DAY`, or the time at which the period ends")
	c.Flags().String("zone", "Local", "time `ZONE` of days and times, for example Europe/Berlin")
}

func newFlowCmd() *cobra.Command {
	c := atFlag(&cobra.Command{
		Use:   "flow",
		Short: "Who supplied whom: in a slot, on a day, in a session",
		Long: `flow tells whose energy reached whom, in words, as a table or with --json. There
are two answers: by contract (what was traded) and by wire (which way the energy
went; --physical). Both add up to the Wh.

On the gateway itself everything is shown. With --wallet, and on other gateways,
it is what the wallet's account is part of; operators and auditors see all.`,
		Example: `  joulegate flow
  joulegate flow --day 2026-10-25 --zone Europe/Berlin --wallet anna
  joulegate flow --session 5f0c... --json
  joulegate flow --physical --slot 1983104`,
		Args: cobra.NoArgs,
	})
	periodFlags(c)
	f := c.Flags()
	f.Int64("slot", 0, "number of a `SLOT`; without it, the newest that was cleared")
	f.String("day", "", "a `DAY`, for example 2026-10-25")
	f.String("session", "", "`ID` of a session")
	f.String("wallet", "", "`WALLET` of who asks")
	f.Bool("physical", false, "which way the energy went, not who sold it")
	c.MarkFlagsMutuallyExclusive("slot", "day", "from")
	c.MarkFlagsRequiredTogether("from", "to")
	build := func(slotSeconds int64) (req panel.FlowRequest, err error) {
		if s, _ := f.GetString("session"); s != "" {
			if err := req.Session.UnmarshalText([]byte(s)); err != nil {
				return req, usageError{fmt.Errorf("--session: %w", err)}
			}
		}
		switch slot, _ := f.GetInt64("slot"); {
		case slot < 0:
			return req, usageError{fmt.Errorf("--slot %d", slot)}
		case slot > 0:
			req.From, req.To = chain.Slot(slot), chain.Slot(slot)
		case f.Changed("day") || f.Changed("from"):
			if req.From, req.To, err = period(c, slotSeconds); err != nil {
				return req, err
			}
		}
		if name, _ := f.GetString("wallet"); name != "" {
			w, err := wallet(c, name)
			if err != nil {
				return req, err
			}
			req.Sign(w.Key, time.Now())
		} else if at, _ := f.GetString("at"); at != "" {
			return req, usageError{errors.New("another gateway answers those concerned: add --wallet")}
		}
		return req, nil
	}
	return ledgerQuery(c, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Flow, error) {
		s, err := g.Status(cmd.Context())
		if err != nil {
			return panel.Flow{}, err
		}
		req, err := build(s.SlotSeconds)
		if err != nil {
			return panel.Flow{}, err
		}
		return g.Flow(cmd.Context(), req)
	}, func(l stoppedLedger, _ []string) (panel.Flow, error) {
		req, err := build(ledger.RulesOf(l).SlotSeconds)
		if err != nil {
			return panel.Flow{}, err
		}
		return flowOf(l, req)
	}, func(w io.Writer, v panel.Flow) error {
		physical, _ := f.GetBool("physical")
		return printFlow(w, v, physical)
	})
}

func printFlow(w io.Writer, v panel.Flow, physical bool) error {
	start, end := time.UnixMilli(v.From.Start(v.SlotSeconds)), time.UnixMilli(v.To.End(v.SlotSeconds))
	slots := "1 slot"
	if v.Slots != 1 {
		slots = fmt.Sprintf("%d slots", v.Slots)
	}
	fmt.Fprintf(w, "%s to %s: %s with energy\n", start.Format(time.DateTime), end.Format(time.DateTime), slots)
	if v.Scope != "all" {
		fmt.Fprintln(w, "what account", v.Scope, "is part of")
	}
	lines := v.Contractual
	if physical {
		lines = v.Physical
	} else {
		for _, s := range v.Words {
			fmt.Fprintln(w, s)
		}
	}
	if len(lines) == 0 {
		_, err := fmt.Fprintln(w, "no energy went from one to another")
		return err
	}
	rows := [][]string{{"FROM", "TO", "HOW", "ENERGY", "CERTIFIED"}}
	for _, l := range lines {
		rows = append(rows, []string{l.FromName, l.ToName, l.Kind, kWh(l.Wh), kWh(l.Certified)})
	}
	return table(w, rows)
}

func newMarketAllocationCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "allocation",
		Short: "Quarter-hour energy per metering point, for supplier and network operator",
		Long: `allocation divides every metering point's energy into what neighbours supplied and
what is the supplier's, per quarter of an hour, and compares the sum of all with
the meter at the grid connection. --out writes the rows as CSV (--checks the
comparison), --json prints both.`,
		Example: "  joulegate market allocation --from 2026-10-01 --to 2026-10-31 --zone Europe/Berlin --out october.csv --checks october-checks.csv",
		Args:    cobra.NoArgs,
	}
	periodFlags(c)
	c.Flags().String("out", "", "CSV `FILE` for the rows")
	c.Flags().String("checks", "", "CSV `FILE` for the comparison with the grid connection")
	_ = c.MarkFlagRequired("from")
	_ = c.MarkFlagRequired("to")
	return ledgerQuery(c, func(cmd *cobra.Command, g *panel.Client, _ []string) (ledger.Allocation, error) {
		s, err := g.Status(cmd.Context())
		if err != nil {
			return ledger.Allocation{}, err
		}
		from, to, err := period(cmd, s.SlotSeconds)
		if err != nil {
			return ledger.Allocation{}, err
		}
		a, err := g.Allocation(cmd.Context(), from, to)
		if err == nil {
			err = writeAllocation(cmd, a)
		}
		return a, err
	}, func(l stoppedLedger, _ []string) (ledger.Allocation, error) {
		from, to, err := period(c, ledger.RulesOf(l).SlotSeconds)
		if err != nil {
			return ledger.Allocation{}, err
		}
		a, err := allocationOf(l, from, to)
		if err == nil {
			err = writeAllocation(c, a)
		}
		return a, err
	}, func(w io.Writer, a ledger.Allocation) error {
		var points, connection meter.WattHour
		missing := 0
		for _, x := range a.Checks {
			points += x.Points
			connection += x.Connection
			missing += x.Missing
		}
		fmt.Fprintf(w, "%s to %s UTC, every %d s\n", utc(a.FromMs), utc(a.ToMs), a.Seconds)
		if err := table(w, [][]string{
			{"metering points took in all", kWh(points)},
			{"the grid connection measured", kWh(connection)},
			{"mismatch when slots were settled (losses, timing)", kWh(a.Mismatch)},
			{"mismatch with what came late or was corrected", kWh(a.Mismatch + a.Late)},
			{"readings that came too late", strconv.Itoa(missing)},
			{"slots to audit", strconv.Itoa(len(a.Outstanding))},
		}); err != nil {
			return err
		}
		rows := [][]string{{"POINT", "IMPORT", "EXPORT", "FROM NEIGHBOURS", "TO NEIGHBOURS", "FROM SUPPLIER", "TO SUPPLIER", "LATE", "CORRECTED"}}
		for _, r := range sumRows(a.Rows) {
			rows = append(rows, []string{r.Point, kWh(r.Import), kWh(r.Export), kWh(r.LocalIn), kWh(r.LocalOut), kWh(r.SupplierIn), kWh(r.SupplierOut), kWh(r.LateImport) + " / " + kWh(r.LateExport), kWh(r.FixImport) + " / " + kWh(r.FixExport)})
		}
		return table(w, rows)
	})
}

func utc(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05Z") }

// sumRows adds up the rows of every metering point.
func sumRows(rows []ledger.AllocationRow) []ledger.AllocationRow {
	var out []ledger.AllocationRow
	at := map[string]int{}
	for _, r := range rows {
		i, ok := at[r.Point]
		if !ok {
			i = len(out)
			at[r.Point] = i
			out = append(out, ledger.AllocationRow{Point: r.Point, Device: r.Device})
		}
		o := &out[i]
		for _, p := range []struct{ sum, n *meter.WattHour }{
			{&o.Import, &r.Import},
			{&o.Export, &r.Export},
			{&o.LocalIn, &r.LocalIn},
			{&o.LocalOut, &r.LocalOut},
			{&o.SupplierIn, &r.SupplierIn},
			{&o.SupplierOut, &r.SupplierOut},
			{&o.LateImport, &r.LateImport},
			{&o.LateExport, &r.LateExport},
			{&o.FixImport, &r.FixImport},
			{&o.FixExport, &r.FixExport},
		} {
			*p.sum += *p.n
		}
	}
	return out
}

// writeAllocation writes the files that were asked for.
func writeAllocation(cmd *cobra.Command, a ledger.Allocation) error {
	n := func(e meter.WattHour) string { return strconv.FormatInt(int64(e), 10) }
	rows := [][]string{{"start_utc", "metering_point", "device", "import_wh", "export_wh", "local_in_wh", "local_out_wh", "supplier_in_wh", "supplier_out_wh", "on_bill_wh", "behind_wh", "correction_import_wh", "correction_export_wh", "late_import_wh", "late_export_wh"}}
	for _, r := range a.Rows {
		rows = append(rows, []string{
			utc(r.StartMs), r.Point, r.Device.String(), n(r.Import), n(r.Export), n(r.LocalIn), n(r.LocalOut),
			n(r.SupplierIn), n(r.SupplierOut), n(r.OnBill), n(r.Behind), n(r.FixImport), n(r.FixExport), n(r.LateImport), n(r.LateExport),
		})
	}
	checks := [][]string{{"start_utc", "points_net_wh", "connection_net_wh", "mismatch_wh", "late_mismatch_wh", "missing", "audit"}}
	for _, c := range a.Checks {
		checks = append(checks, []string{utc(c.StartMs), n(c.Points), n(c.Connection), n(c.Mismatch), n(c.Late), strconv.Itoa(c.Missing), strconv.FormatBool(c.Audit)})
	}
	for flag, records := range map[string][][]string{"out": rows, "checks": checks} {
		path, _ := cmd.Flags().GetString(flag)
		if path == "" {
			continue
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		if err := errors.Join(csv.NewWriter(f).WriteAll(records), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}

// newMarketProofCmd makes certify, which says whether a slot's clearing is
// optimal, and problem, which prints what there was to clear.
func newMarketProofCmd(use, short, long, example string, human func(w io.Writer, p panel.SlotProof) error) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: cobra.NoArgs}
	c.Flags().Int64("slot", 0, "number of a `SLOT`; without it, the newest that was cleared")
	slot := func() chain.Slot {
		n, _ := c.Flags().GetInt64("slot")
		return chain.Slot(n)
	}
	proven := true
	ledgerQuery(c, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.SlotProof, error) {
		p, err := g.SlotProof(cmd.Context(), slot())
		if err == nil { // the answer is checked, not believed
			if failed := market.Certify(p.Problem, p.Result); failed != nil {
				p.Proven, p.Why = false, failed.Error()
			}
			proven = p.Proven
		}
		return p, err
	}, func(l stoppedLedger, _ []string) (panel.SlotProof, error) {
		p, err := proofOf(l, slot())
		proven = p.Proven || err != nil
		return p, err
	}, human)
	ask := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := ask(cmd, args); err != nil || proven {
			return err
		}
		return errSilent
	}
	return c
}

func newMarketCertifyCmd() *cobra.Command {
	return newMarketProofCmd("certify", "Prove that a slot was cleared optimally",
		`certify reconstructs from the ledger what a slot had to clear and what came of it,
and proves by its fills and prices alone that no better clearing exists. It exits 1
if there is no such proof. ledger verify does this for every slot.`,
		"  joulegate market certify --slot 1983104", func(w io.Writer, p panel.SlotProof) error {
			if !p.Proven {
				_, err := fmt.Fprintf(w, "slot %d: NOT PROVEN: %s\n", p.Slot, p.Why)
				return err
			}
			_, err := fmt.Fprintf(w, "slot %d: optimal, %d orders on %d nodes, welfare %s, paid %s = received %s + fees %s\n",
				p.Slot, len(p.Problem.Orders), len(p.Problem.Nodes), money(p.Result.Welfare), money(p.Result.Paid), money(p.Result.Received), money(p.Result.Fees))
			return err
		})
}

func newMarketProblemCmd() *cobra.Command {
	return newMarketProofCmd("problem", "What a slot had to clear, as market clear reads it",
		"problem prints the nodes, fees and orders of a cleared slot, so that anybody can clear it again.",
		"  joulegate market problem --slot 1983104 | joulegate market clear", func(w io.Writer, p panel.SlotProof) error {
			b, err := p.Problem.MarshalJSON()
			if err == nil {
				_, err = fmt.Fprintf(w, "%s\n", b)
			}
			return err
		})
}
