package main

import (
	"fmt"
	"io"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/spf13/cobra"
)

func newInvoicePeriodsCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "periods",
		Short: "When invoices end: the calendar months of the operator's time zone",
		Long: `Invoices that issue themselves end with a billing period. The ledger knows no time
zones: periods are ranges of slots that the operator signs ahead, as he does with
tariffs. Where none is set, months of UTC stand in.`,
	}
	c.AddCommand(newPeriodsSetCmd(), newPeriodsLsCmd())
	return c
}

// localMonths returns the first slots of n calendar months and of the one
// after them: the first slot that begins in each.
func localMonths(loc *time.Location, year int, month time.Month, n int, slotSeconds int64) []chain.Slot {
	var bounds []chain.Slot
	for i := range n + 1 {
		at := time.Date(year, month+time.Month(i), 1, 0, 0, 0, 0, loc).UnixMilli()
		bounds = append(bounds, chain.SlotAt(at+slotSeconds*1000-1, slotSeconds))
	}
	return bounds
}

func newPeriodsSetCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "set",
		Short: "Set the calendar months of a time zone as billing periods (operator)",
		Long: `set works out the months of a zone, those in which the clocks change among them, and
has the operator sign them as ranges of slots. They replace the periods that are
still to come; the one that is running ends where the first new one begins.`,
		Example: "  joulegate invoice periods set --zone Europe/Berlin --from 2026-11 --months 24 --dry-run\n  joulegate invoice periods set --zone Europe/Berlin --from 2026-11 --months 24",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := cmd.Flags()
			zone, _ := f.GetString("zone")
			from, _ := f.GetString("from")
			months, _ := f.GetInt("months")
			loc, err := time.LoadLocation(zone)
			if err != nil || zone == "" {
				return usageError{fmt.Errorf("--zone %q: write it like Europe/Berlin", zone)}
			}
			first, err := time.Parse("2006-01", from)
			if err != nil {
				return usageError{fmt.Errorf("--from %q: write it like 2026-11", from)}
			}
			if months < 1 || months >= chain.MaxTableRanges {
				return usageError{fmt.Errorf("--months %d: 1..%d", months, chain.MaxTableRanges-1)}
			}
			g, err := dial(cmd)
			if err != nil {
				return err
			}
			defer g.Close()
			s, err := g.Status(cmd.Context())
			if err != nil {
				return err
			}
			bounds := localMonths(loc, first.Year(), first.Month(), months, s.SlotSeconds)
			if dry, _ := f.GetBool("dry-run"); !dry {
				name, _ := f.GetString("wallet")
				w, err := wallet(cmd, name)
				if err != nil {
					return err
				}
				if _, err := submit(cmd, g, w, chain.TxPeriods, chain.BillingPeriods{Bounds: bounds}); err != nil {
					return err
				}
			}
			return emit(cmd, bounds, func(out io.Writer) error { return printPeriods(out, bounds, s.SlotSeconds, loc) })
		},
	}
	f := c.Flags()
	f.String("zone", "", "time `ZONE` of the operator, for example Europe/Berlin")
	f.String("from", "", "first `MONTH`, for example 2026-11")
	f.Int("months", 24, "how many `MONTHS`")
	f.Bool("dry-run", false, "show the periods, sign nothing")
	_ = c.MarkFlagRequired("zone")
	_ = c.MarkFlagRequired("from")
	operatorFlag(c)
	return c
}

func newPeriodsLsCmd() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List the billing periods that are set", Args: cobra.NoArgs}
	c.Flags().String("zone", "Local", "time `ZONE` in which to show them")
	return termsQuery(c, func(w io.Writer, t panel.Terms) error {
		zone, _ := c.Flags().GetString("zone")
		loc, err := time.LoadLocation(zone)
		if err != nil {
			return usageError{fmt.Errorf("--zone %q: %w", zone, err)}
		}
		if len(t.Periods) == 0 {
			_, err := fmt.Fprintln(w, "no periods are set: invoices end with months of UTC")
			return err
		}
		return printPeriods(w, t.Periods, t.SlotSeconds, loc)
	})
}

func printPeriods(w io.Writer, bounds []chain.Slot, slotSeconds int64, loc *time.Location) error {
	const layout = "Mon 2006-01-02 15:04 MST"
	rows := [][]string{{"FROM", "TO", "SLOTS", "LENGTH"}}
	for i := range len(bounds) - 1 {
		start, end := bounds[i].Start(slotSeconds), bounds[i+1].Start(slotSeconds)
		rows = append(rows, []string{
			time.UnixMilli(start).In(loc).Format(layout), time.UnixMilli(end).In(loc).Format(layout),
			fmt.Sprintf("%d..%d", bounds[i], bounds[i+1]-1), fmt.Sprintf("%.4g h", float64(end-start)/3.6e6),
		})
	}
	return table(w, rows)
}
