package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/report"
)

// reportSpan is the time that a report is about unless it is said.
const reportSpan = 30 * 24 * time.Hour

// GuardReport implements panel.Backend. It is made of what is on record, and
// of what the sensors see now.
func (b backend) GuardReport(ctx context.Context, from, to time.Time) (report.Report, error) {
	now := time.Now()
	if to.IsZero() || to.After(now) {
		to = now
	}
	if from.IsZero() {
		from = to.Add(-reportSpan)
	}
	if !from.Before(to) {
		return report.Report{}, panel.Invalid("from %s is not before to %s", from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	s, err := b.Guard(ctx)
	if err != nil {
		return report.Report{}, err
	}
	l := b.ledger.Status()
	in := report.Input{
		Made: now, From: from, To: to, Status: s,
		Gateway: report.Gateway{
			Name: b.cfg.Name, Device: b.self, Version: version, Program: programHash(), Config: revision(b.cfg).String(),
			Chain: b.genesis.ChainID, Genesis: b.genesisHash, Height: l.Height, State: l.AppHash,
		},
	}
	err = ownRecords(ctx, b.journal, chain.KindGuard, func(blk *chain.Signed, body []byte) error {
		var r guard.Record
		if err := chain.Unmarshal(body, &r); err != nil {
			return err
		}
		if at := time.UnixMilli(r.Last); !at.Before(from) && at.Before(to) {
			in.Records = append(in.Records, report.Record{Record: r, Block: blk.Position(), Hash: blk.Hash})
		}
		return nil
	})
	if err != nil {
		return report.Report{}, err
	}
	return report.Make(in), nil
}

func newGuardReportCmd() *cobra.Command {
	var out string
	c := query(&cobra.Command{
		Use:   "report",
		Short: "Say what the guard has put on record, by the requirements of standards",
		Long: `report says how much the guard saw, what it found and which signed records show
it, and which requirements of IEC 62443-4-2, ETSI EN 303 645, EN 18031, NISTIR 8259A
and the EU Cyber Resilience Act that answers. It names nobody of the household, and
is no certificate: whoever gets it checks the records in an audit bundle.

--out FILE writes a page to read and to print, or JSON if the name ends in .json.`,
		Example: `  joulegate guard report
  joulegate guard report --out report.html
  joulegate guard report --from 2026-05-01T00:00:00Z --to 2026-06-01T00:00:00Z --out may.json`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (report.Report, error) {
		from, err := timeFlag(cmd, "from")
		if err != nil {
			return report.Report{}, err
		}
		to, err := timeFlag(cmd, "to")
		if err != nil {
			return report.Report{}, err
		}
		r, err := g.GuardReport(cmd.Context(), from, to)
		if err != nil || out == "" {
			return r, err
		}
		return r, writeReport(out, r)
	}, func(w io.Writer, r report.Report) error {
		if out != "" {
			_, err := fmt.Fprintln(w, out)
			return err
		}
		return printReport(w, r)
	})
	c.Flags().String("from", "", "begin, a `TIME` such as 2026-05-01T00:00:00Z; 30 days before the end")
	c.Flags().String("to", "", "end, a `TIME`; now")
	c.Flags().StringVar(&out, "out", "", "`FILE` to write: .html or .json")
	return c
}

func writeReport(file string, r report.Report) error {
	b := r.HTML()
	switch filepath.Ext(file) {
	case ".json":
		var err error
		if b, err = json.MarshalIndent(r, "", "  "); err != nil {
			return err
		}
	case ".html", ".htm":
	default:
		return usageError{errors.New("--out: a file that ends in .html or .json")}
	}
	return os.WriteFile(file, b, 0o644)
}

func printReport(w io.Writer, r report.Report) error {
	for _, s := range r.Statement {
		fmt.Fprintln(w, s)
	}
	fmt.Fprintf(w, "\n%s to %s\n\n", r.From.Local().Format(time.DateTime), r.To.Local().Format(time.DateTime))
	rows := [][]string{{"SENSOR", "SEES NOW", "MISSED", "HEARTBEATS", "LONGEST PAUSE", ""}}
	for _, c := range r.Coverage {
		note := c.Reason
		if c.Gap {
			note = "heartbeats are missing"
		}
		rows = append(rows, []string{c.Sensor.String(), c.Level, fmt.Sprint(c.Lost), fmt.Sprint(c.Heartbeats), (time.Duration(c.LongestS) * time.Second).String(), note})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if len(r.Findings) > 0 {
		fmt.Fprintln(w)
		rows = [][]string{{"SEVERITY", "RULE", "RECORDS", "EVENTS", ""}}
		for _, f := range r.Findings {
			rows = append(rows, []string{f.Severity.String(), f.Rule, fmt.Sprint(f.Records), fmt.Sprint(f.Events), f.Title})
		}
		if err := table(w, rows); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	rows = [][]string{{"STANDARD", "CLAUSE", "ABOUT", "STATE"}}
	for _, c := range r.Clauses {
		state := string(c.State)
		if c.Records > 0 {
			state += fmt.Sprintf(", %d records", c.Records)
		}
		rows = append(rows, []string{c.Standard, c.Clause, c.About, state})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nTo check it:")
	for _, s := range r.Check {
		fmt.Fprintln(w, "  "+s)
	}
	return nil
}
