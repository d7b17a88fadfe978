package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// source is where a row's value comes from.
type source interface {
	measure(ctx context.Context, m *measurer) (float64, error)
}

// measurer shares what several rows need.
type measurer struct {
	dir      string
	quick    bool
	progress io.Writer
	benches  map[string][]result
	samples  map[scene]sample
	failed   map[scene]error
	binary   string

	blocked       []string // names of the servers' list
	servers       map[string]answering
	serversFailed map[string]error
}

func (m *measurer) say(format string, args ...any) { fmt.Fprintf(m.progress, format+"\n", args...) }

// bench takes a metric of a Go benchmark. With worst, its sub-benchmarks
// count, those whose name contains of, and the worst is told.
type bench struct {
	pkg, name, metric string
	scale             float64 // 0: 1
	time              string  // -benchtime
	of                string
	worst             func(a, b float64) float64
}

func lowest(a, b float64) float64 { return min(a, b) }

func highest(a, b float64) float64 { return max(a, b) }

func (s bench) measure(ctx context.Context, m *measurer) (float64, error) {
	key := s.pkg + " " + s.name
	results, ok := m.benches[key]
	if !ok {
		var err error
		if results, err = m.gobench(ctx, s); err != nil {
			return 0, err
		}
		m.benches[key] = results
	}
	value, found := 0.0, false
	for _, r := range results {
		v, ok := r.metrics[s.metric]
		switch {
		case !ok || (s.worst == nil && r.name != s.name) || !strings.Contains(r.name, s.of):
		case !found:
			value, found = v, true
		default:
			value = s.worst(value, v)
		}
	}
	if !found {
		return 0, fmt.Errorf("no benchmark %s in %s reports %s", s.name, s.pkg, s.metric)
	}
	if s.scale != 0 {
		value *= s.scale
	}
	return value, nil
}

func (m *measurer) gobench(ctx context.Context, s bench) ([]result, error) {
	var parts []string
	for p := range strings.SplitSeq(s.name, "/") {
		p = "^" + p
		if s.worst == nil {
			p += "$"
		}
		parts = append(parts, p)
	}
	args := []string{"test", "-run", "^$", "-bench", strings.Join(parts, "/"), "-timeout", "20m"}
	switch {
	case s.time != "":
		args = append(args, "-benchtime", s.time)
	case m.quick:
		args = append(args, "-benchtime", "100ms")
	}
	m.say("bench: %s %s", s.pkg, s.name)
	out, err := command(ctx, "go", append(args, s.pkg)...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.pkg, err)
	}
	return parse(out), nil
}

// result is one line that a benchmark printed.
type result struct {
	name    string // without the processor count
	metrics map[string]float64
}

var benchLine = regexp.MustCompile(`^(Benchmark\S*?)(?:-\d+)?\s+\d+\s+(.*)$`)

// parse reads the output of go test -bench (go doc testing, "Benchmarks").
func parse(out string) []result {
	var rs []result
	for line := range strings.Lines(out) {
		m := benchLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		r := result{m[1], map[string]float64{}}
		f := strings.Fields(m[2])
		for i := 0; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				r.metrics[f[i+1]] = v
			}
		}
		rs = append(rs, r)
	}
	return rs
}

// test takes a number, or a duration in seconds, that a test logs.
type test struct {
	pkg, name, pattern string
}

func (s test) measure(ctx context.Context, m *measurer) (float64, error) {
	m.say("bench: %s %s", s.pkg, s.name)
	out, err := command(ctx, "go", "test", "-count=1", "-v", "-timeout", "20m", "-run", "^("+s.name+")$", s.pkg)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.pkg, err)
	}
	found := regexp.MustCompile(s.pattern).FindStringSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("no test %s in %s told it", s.name, s.pkg)
	}
	if n, err := strconv.ParseFloat(found[1], 64); err == nil {
		return n, nil
	}
	d, err := time.ParseDuration(found[1])
	return d.Seconds(), err
}

// size builds the program for a processor, as it is shipped.
type size struct{ arch, arm string }

func (s size) measure(ctx context.Context, m *measurer) (float64, error) {
	path := filepath.Join(m.dir, "joulegate-"+s.arch+s.arm)
	if err := m.build(ctx, path, s.arch, s.arm); err != nil {
		return 0, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return float64(fi.Size()) / 1e6, nil
}

func (m *measurer) build(ctx context.Context, path, arch, arm string) error {
	m.say("bench: build for linux/%s%s", arch, arm)
	flags, err := os.ReadFile(".ci/buildflags")
	if err != nil {
		return fmt.Errorf("flags of what is shipped: %w", err)
	}
	args := append([]string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOARM=" + arm, "go", "build"}, strings.Fields(string(flags))...)
	if _, err := command(ctx, "env", append(args, "-ldflags", "-s -w", "-o", path, "./cmd/joulegate")...); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	return nil
}

// command returns what a program prints, or an error with its last line.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 10 * time.Second
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	if err := cmd.Run(); err != nil {
		return "", errors.New(complaint(both.String(), err))
	}
	return both.String(), nil
}

// complaint picks the line that says what went wrong.
func complaint(out string, err error) string {
	line := err.Error()
	for l := range strings.Lines(out) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "#") && !strings.HasPrefix(l, "FAIL") && !strings.HasPrefix(l, "ok ") && !strings.HasPrefix(l, "exit status") {
			line = l
			if strings.Contains(l, ".go:") {
				break
			}
		}
	}
	return line
}
