package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	rs := parse(`goos: linux
BenchmarkClear/10k-2         	     300	   3937000 ns/op	  12 B/op
BenchmarkFinality4           	     400	  50000000 ns/op	       420.5 p50-ms	       801 p95-ms
BenchmarkRTUPaced/three-9600-2  10  1 ns/op  97.2 %wire
PASS
`)
	if len(rs) != 3 || rs[0].name != "BenchmarkClear/10k" || rs[0].metrics["ns/op"] != 3937000 ||
		rs[1].metrics["p95-ms"] != 801 || rs[2].name != "BenchmarkRTUPaced/three-9600" || rs[2].metrics["%wire"] != 97.2 {
		t.Errorf("%+v", rs)
	}
}

// TestWorstCounts: of several sub-benchmarks the worst is told, and a row
// about one of them takes that one only.
func TestWorstCounts(t *testing.T) {
	m := &measurer{benches: map[string][]result{
		"p BenchmarkX": {{"BenchmarkX/b/2", map[string]float64{"%wire": 97}}, {"BenchmarkX/b", map[string]float64{"%wire": 91}}, {"BenchmarkX/other", map[string]float64{"%wire": 50}}},
		"p BenchmarkY": {{"BenchmarkY", map[string]float64{"ns/op": 2e6}}, {"BenchmarkYZ", map[string]float64{"ns/op": 9e6}}},
	}}
	if v, err := (bench{pkg: "p", name: "BenchmarkX", metric: "%wire", of: "X/b", worst: lowest}).measure(t.Context(), m); v != 91 || err != nil {
		t.Errorf("%v %v, want 91", v, err)
	}
	if v, err := (bench{pkg: "p", name: "BenchmarkY", metric: "ns/op", scale: 1e-6}).measure(t.Context(), m); v != 2 || err != nil {
		t.Errorf("%v %v, want 2", v, err)
	}
	if _, err := (bench{pkg: "p", name: "BenchmarkY", metric: "tx/s"}).measure(t.Context(), m); err == nil {
		t.Error("a metric that nobody reports has a value")
	}
}

func TestReportSaysOverAndWhyNot(t *testing.T) {
	var b strings.Builder
	r := func(id, op string, limit float64) row {
		return row{id: id, what: "row " + id, op: op, limit: limit, unit: "ms", digits: 1}
	}
	report(&b, []measured{
		{r("good", "<=", 5), 4, nil},
		{r("bad", "<=", 5), 6, nil},
		{r("low", ">=", 90), 89.9, nil},
		{r("info", "<=", none), 7, nil},
		{r("none", "<=", 1), 0, errors.New(`comes with "Guard"`)},
	}, table{Machine: "a", Values: map[string]float64{"good": 8, "bad": 3}}, table{Machine: "b"})
	got := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{
		"row good <= 5.0 ms 4.0 ms ok 8.0 ms -50 %", "row bad <= 5.0 ms 6.0 ms OVER 3.0 ms +100 %", "row low >= 90.0 ms 89.9 ms OVER",
		"row info - 7.0 ms", "row none <= 1.0 ms not measured", `Not measured: row none: comes with "Guard"`, "different machines",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report does not say %q:\n%s", want, b.String())
		}
	}
}

// TestReadProc compares with a process whose use is known.
func TestReadProc(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	err := until(t.Context(), 30*time.Second, func() bool {
		s, err := readProc(cmd.Process.Pid, "VmRSS:")
		return err == nil && s.rss > 1e5 && s.cpu >= 0.1
	})
	if err != nil {
		t.Errorf("a busy shell shows no use: %v", err)
	}
	if _, err := readProc(1<<30, "VmRSS:"); err == nil {
		t.Error("a process that does not exist has a use")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if until(ctx, time.Hour, func() bool { return false }) == nil {
		t.Error("until outlives its context")
	}
}

// TestRows: ids are unique and the committed table knows no other.
func TestRows(t *testing.T) {
	ids := map[string]bool{}
	for _, r := range rows {
		if ids[r.id] || r.what == "" || (r.op != "<=" && r.op != ">=") || r.source == nil {
			t.Errorf("row %q is used twice or incomplete", r.id)
		}
		ids[r.id] = true
	}
	last, err := load("table.json")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for id := range last.Values {
		if !ids[id] {
			t.Errorf("the committed table has %q, which is no row", id)
		}
	}
}
