// Command bench measures the budgets of the design and prints them as a
// table, beside what the last committed table says.
//
//	go run ./tools/bench            all of it, about ten minutes
//	go run ./tools/bench -only rtu  rows whose id or text contains "rtu"
//	go run ./tools/bench -quick     shorter, rougher; never written
//
// A value comes from one of three places, and each row names its own:
//
//	a Go benchmark        ns/op or a metric that it reports
//	the built program     its size, for every processor it ships for
//	the running program   /proc of a gateway, or of the gateways of a demo
//
// A row without a source yet says so and names the issue that brings it; it
// never shows a number. Numbers hold for the machine they were measured on:
// table.json names it, and a comparison across machines says that it is one.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// tableFile is where the last committed values are.
const tableFile = "tools/bench/table.json"

// table is what is committed.
type table struct {
	Machine string             `json:"machine"`
	Go      string             `json:"go"`
	Date    string             `json:"date"`
	Values  map[string]float64 `json:"values"` // by row id, in the row's unit
}

func main() {
	only := flag.String("only", "", "measure rows whose id or text contains this")
	quick := flag.Bool("quick", false, "short measurements; the table is not written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *only, *quick); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, only string, quick bool) error {
	if _, err := os.Stat("go.mod"); err != nil {
		return errors.New("run it in the folder of go.mod")
	}
	last, err := load(tableFile)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "jg-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := &measurer{dir: dir, quick: quick, benches: map[string][]result{}, progress: os.Stderr}
	now := table{Machine: machine(), Go: runtime.Version(), Date: time.Now().UTC().Format(time.DateOnly), Values: map[string]float64{}}

	var done []measured
	for _, r := range rows {
		if only != "" && !strings.Contains(r.id+" "+r.what, only) {
			continue
		}
		v, err := r.source.measure(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		done = append(done, measured{r, v, err})
		if err == nil {
			now.Values[r.id] = v
		}
	}
	report(out, done, last, now)
	if only != "" || quick {
		return nil
	}
	return save(tableFile, now)
}

// measured is a row with its value, or why it has none.
type measured struct {
	row
	value float64
	err   error
}

func report(out io.Writer, done []measured, last, now table) {
	fmt.Fprintf(out, "measured on %s, %s, %s\n", now.Machine, now.Go, now.Date)
	if last.Machine != "" {
		fmt.Fprintf(out, "compared with %s, %s, %s\n", last.Machine, last.Go, last.Date)
		if last.Machine != now.Machine {
			fmt.Fprintln(out, "these are different machines: the change says little")
		}
	}
	var missing []string
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nWHAT\tBUDGET\tMEASURED\t\tBEFORE\tCHANGE")
	for _, d := range done {
		budget, verdict := "-", ""
		if d.limit != none {
			budget = d.op + " " + d.format(d.limit)
		}
		if d.err != nil {
			// The reason goes below: in a cell it would widen the table.
			missing = append(missing, fmt.Sprintf("%s: %v", d.what, d.err))
			fmt.Fprintf(w, "%s\t%s\tnot measured\t\t\t\n", d.what, budget)
			continue
		}
		if d.limit != none {
			verdict = "ok"
			if !d.holds(d.value) {
				verdict = "OVER"
			}
		}
		before, change := "", ""
		if old, ok := last.Values[d.id]; ok {
			before = d.format(old)
			if old != 0 {
				change = fmt.Sprintf("%+.0f %%", 100*(d.value-old)/old)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", d.what, budget, d.format(d.value), verdict, before, change)
	}
	w.Flush()
	if len(missing) > 0 {
		fmt.Fprintf(out, "\nNot measured:\n  %s\n", strings.Join(missing, "\n  "))
	}
}

func load(path string) (table, error) {
	var t table
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

func save(path string, t table) error {
	b, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// machine names the processor and how many of it there are.
func machine() string {
	name := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				name = strings.TrimSpace(v)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores", name, runtime.NumCPU())
}
