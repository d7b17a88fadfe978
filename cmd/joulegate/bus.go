package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/drivers/scan"
	"github.com/joulegate/joulegate/meter/profile"
)

func newBusCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bus",
		Short: "Find out what is on a line",
	}
	cmd.AddCommand(newBusScanCmd())
	return cmd
}

// scanFlags say which line is scanned and how.
type scanFlags struct {
	rtu, tcp, rtutcp      string
	configured            string // line of the running gateway
	units, baud, framings string
	full                  bool
	timeout               time.Duration
	profiles              profilesFlag
}

// How long a device may think: one that is likely to be there, any other, and
// one that is there. Over a network the way is longer, and most gateways ask
// on behalf of others.
const (
	probeSerial  = 150 * time.Millisecond
	sweepSerial  = 50 * time.Millisecond
	probeNetwork = 500 * time.Millisecond
	patience     = 5 // times the time for a probe
)

func newBusScanCmd() *cobra.Command {
	var f scanFlags
	cmd := &cobra.Command{
		Use:   "scan (--rtu DEVICE | --tcp HOST:PORT | --rtutcp HOST:PORT | --line ID)",
		Short: "Find the devices on a line and what they are",
		Long: `Asks units and tells what answers: unit, setting, and the profile that fits with
its evidence. Where several profiles fit, all are named and none is chosen: look
at the label. Nothing is written to any device.

With --line the running gateway asks on a line that it has, at its present
setting and beside its own readings, in commissioning mode; it remembers what it
has found for the commissioning report.

On a serial line the settings and units with which devices leave the factory
come first, then all others, from 1200 to 115200 bit/s with 8N1, 8E1 and 8N2. A
bus has one setting: once something has answered, only the other units there are
asked. With --full all settings and units are tried.

How long it takes, measured on a simulated line that is as slow as a real one:
a meter as it leaves the factory and the other 246 units there 20 seconds, a
device at a setting and a unit that nobody expects (4800 8N2, unit 211) 8
minutes, --full a bit more than 9 minutes. Fewer --units take proportionally
less. Interrupt it at any time: what was found so far is printed.`,
		Example: `  joulegate bus scan --rtu /dev/ttyUSB0
  joulegate bus scan --rtu /dev/ttyUSB0 --full
  joulegate bus scan --rtu /dev/ttyUSB0 --units 1-10 --baud 9600,19200 --framing 8N1,8E1
  joulegate bus scan --tcp 192.0.2.7:502 --json
  joulegate bus scan --line rs485 --units 1-10`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.configured != "" {
				if f.rtu+f.tcp+f.rtutcp+f.baud+f.framings != "" || f.full {
					return usageError{errors.New("--line takes a line as it is configured: only --units goes with it")}
				}
				return scanConfigured(cmd, f.configured, f.units)
			}
			cfg, err := f.resolve(cmd)
			if err != nil {
				return usageError{err}
			}
			return busScan(cmd, cfg, f.line(scan.Setting{}).Name())
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.rtu, "rtu", "", "serial `DEVICE`, for example /dev/ttyUSB0")
	fl.StringVar(&f.tcp, "tcp", "", "Modbus TCP at `HOST:PORT`")
	fl.StringVar(&f.rtutcp, "rtutcp", "", "RTU frames through a serial server at `HOST:PORT`")
	fl.StringVar(&f.configured, "line", "", "`ID` of a line of the running gateway")
	fl.StringVar(&f.units, "units", "1-247", "unit ids to try, for example 1-10,50 (over TCP also 255)")
	fl.StringVar(&f.baud, "baud", "", "`SPEEDS` to try, for example 9600,19200 (default: 1200 to 115200)")
	fl.StringVar(&f.framings, "framing", "", "`FRAMINGS` to try (default: 8N1,8E1,8N2)")
	f.profiles.add(cmd)
	fl.BoolVar(&f.full, "full", false, "try every setting and unit, whatever has answered")
	fl.DurationVar(&f.timeout, "timeout", 0, "how long a device may think (default: 150ms where it is likely, 50ms elsewhere, over a network 500ms)")
	return cmd
}

func (f *scanFlags) line(s scan.Setting) *modbus.Config {
	return &modbus.Config{Device: f.rtu, TCP: f.tcp, RTUTCP: f.rtutcp, Baud: s.Baud, Framing: s.Framing, Timeout: f.timeout}
}

// resolve checks the flags.
func (f *scanFlags) resolve(cmd *cobra.Command) (cfg scan.Config, err error) {
	if n := len(f.rtu) + len(f.tcp) + len(f.rtutcp); n == 0 || n != max(len(f.rtu), len(f.tcp), len(f.rtutcp)) {
		return cfg, errors.New("say which line to scan with one of --rtu DEVICE, --tcp HOST:PORT, --rtutcp HOST:PORT and --line ID")
	}
	if f.rtu == "" && (f.baud != "" || f.framings != "") {
		return cfg, errors.New("--baud and --framing need --rtu: a network line has neither")
	}
	given := cmd.Flags().Changed("timeout")
	if !given {
		f.timeout = probeNetwork
		if f.rtu != "" {
			f.timeout = probeSerial
		}
	}
	cfg.Full, cfg.Probe, cfg.Sweep, cfg.Patient = f.full, f.timeout, f.timeout, patience*f.timeout
	if f.rtu != "" && !given {
		cfg.Sweep = sweepSerial
	}
	if f.timeout < 10*time.Millisecond || f.timeout > 10*time.Second {
		return cfg, fmt.Errorf("--timeout %s: want 10ms..10s", f.timeout)
	}
	if cfg.Units, err = unitList(f.units, f.tcp != ""); err != nil {
		return cfg, err
	}
	library, err := f.profiles.load()
	if err != nil {
		return cfg, err
	}
	cfg.Profiles = library.All()
	if f.rtu != "" {
		if cfg.Settings, err = f.settings(cfg.Profiles); err != nil {
			return cfg, err
		}
	}
	cfg.Open = func(ctx context.Context, s scan.Setting) (scan.Bus, error) { return openScanned(ctx, *f.line(s)) }
	return cfg, f.line(scan.Setting{}).Validate()
}

// settings returns what of all settings the flags leave, the likeliest first.
func (f *scanFlags) settings(profiles []*profile.Profile) (out []scan.Setting, err error) {
	all := scan.Settings(profiles)
	bauds, framings := map[int]bool{}, map[string]bool{}
	for _, s := range all {
		bauds[s.Baud], framings[s.Framing] = f.baud == "", f.framings == ""
	}
	for _, word := range strings.Split(f.baud, ",") {
		if f.baud == "" {
			break
		}
		b, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || b < 300 || b > 4_000_000 {
			return nil, fmt.Errorf("--baud %q: want speeds of 300 or more, for example 9600,19200", f.baud)
		}
		if _, usual := bauds[b]; !usual {
			for _, fr := range scan.Framings {
				all = append(all, scan.Setting{Baud: b, Framing: fr})
			}
		}
		bauds[b] = true
	}
	for _, word := range strings.Split(f.framings, ",") {
		if f.framings == "" {
			break
		}
		fr := strings.ToUpper(strings.TrimSpace(word))
		if _, ok := framings[fr]; !ok {
			return nil, fmt.Errorf("--framing %q: want of 8N1, 8E1 and 8N2", f.framings)
		}
		framings[fr] = true
	}
	for _, s := range all {
		if bauds[s.Baud] && framings[s.Framing] {
			out = append(out, s)
		}
	}
	return out, nil
}

// unitList reads "1-10,50".
func unitList(s string, tcp bool) (units []uint8, err error) {
	wrong := func() ([]uint8, error) {
		return nil, fmt.Errorf("--units %q: want ids of 1..247 (over TCP also 255), for example 1-10,50", s)
	}
	seen := [256]bool{}
	for _, part := range strings.Split(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || a < 1 || b < a || b > 247 && !(tcp && a == 255 && b == 255) {
			return wrong()
		}
		for u := a; u <= b; u++ {
			if !seen[u] {
				seen[u] = true
				units = append(units, uint8(u))
			}
		}
	}
	return units, nil
}

// scannedLine is an open line as the scanner wants it.
type scannedLine struct {
	line   *modbus.Line
	cancel context.CancelFunc
	done   chan struct{}
}

func openScanned(ctx context.Context, cfg modbus.Config) (*scannedLine, error) {
	line, err := modbus.New(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &scannedLine{line: line, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_ = line.Run(ctx) // ends with ctx, and only then
	}()
	return s, nil
}

// Register implements scan.Bus.
func (s *scannedLine) Register(unit uint8, timeout time.Duration) drivers.Register {
	return s.line.Device(modbus.DeviceConfig{Unit: unit, Name: fmt.Sprintf("unit %d", unit), Class: modbus.Scan, Timeout: timeout})
}

// Late implements scan.Bus.
func (s *scannedLine) Late(unit uint8) bool { return s.line.Stats().Units[unit].Late > 0 }

// Close implements scan.Bus.
func (s *scannedLine) Close() error {
	s.cancel()
	<-s.done
	return nil
}

// busScan scans, shows how far it is, and prints what it has found.
func busScan(cmd *cobra.Command, cfg scan.Config, line string) error {
	show := newProgress(cmd.ErrOrStderr())
	cfg.Progress, cfg.Found = show.progress, show.found
	result, err := scan.Run(cmd.Context(), cfg)
	show.end()
	if err != nil && len(result.Answers) == 0 {
		return fmt.Errorf("scan %s: %w", line, err)
	}
	if e := emit(cmd, newScanJSON(line, result), func(w io.Writer) error { return printScan(w, line, result) }); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("scan %s stopped after %d of %d: %w", line, result.Probes, result.Total, err)
	}
	return nil
}

// progressEvery is how often a log is told how far a scan is; a terminal is
// told at once.
const progressEvery = 10 * time.Second

// scanProgress shows how far a scan is: on a terminal in one line that
// changes, elsewhere in a line now and then.
type scanProgress struct {
	w    io.Writer
	tty  bool
	last time.Time
	line bool // a line without end is on the terminal
}

func newProgress(w io.Writer) *scanProgress {
	f, ok := w.(*os.File)
	return &scanProgress{w: w, tty: ok && terminal(f.Fd())}
}

func (s *scanProgress) progress(p scan.Progress) {
	text := fmt.Sprintf("%s unit %d: %d of %d, found %d, at most %s more", p.Setting, p.Unit, p.Done, p.Total, p.Found, p.Remaining.Round(time.Second))
	switch {
	case s.tty:
		fmt.Fprintf(s.w, "\r%-76s", text)
		s.line = true
	case time.Since(s.last) >= progressEvery:
		fmt.Fprintln(s.w, text)
		s.last = time.Now()
	}
}

func (s *scanProgress) found(a scan.Answer) {
	s.end()
	fmt.Fprintf(s.w, "found unit %d at %s: %s\n", a.Unit, a.Setting, whatIs(a))
}

func (s *scanProgress) end() {
	if s.line {
		fmt.Fprintln(s.w)
		s.line = false
	}
}

// whatIs says in a few words what has answered.
func whatIs(a scan.Answer) string {
	if best, ok := a.Best(); ok {
		return best.Profile.ID
	}
	var ids []string
	for _, f := range a.Findings {
		ids = append(ids, f.Profile.ID)
	}
	return strings.TrimSuffix(status(a)+": "+strings.Join(ids, " or "), ": ")
}

// What is known of a device that has answered.
const (
	identified = "identified"
	ambiguous  = "ambiguous" // several profiles fit: a person decides
	unknown    = "unknown"   // no profile fits
	garbled    = "garbled"   // answers cannot be understood
)

func status(a scan.Answer) string {
	_, one := a.Best()
	switch {
	case a.Garbled:
		return garbled
	case one:
		return identified
	case len(a.Findings) > 0:
		return ambiguous
	}
	return unknown
}

// lookAtLabel is what to do about an ambiguous answer.
const lookAtLabel = "several profiles fit what the registers say: look at the label, or compare with the display"

// scanJSON is a scan as scripts see it.
type scanJSON struct {
	Line     string       `json:"line"`
	Complete bool         `json:"complete"` // false: interrupted
	Full     bool         `json:"full"`     // every setting and unit was tried
	Probes   int          `json:"probes"`
	Total    int          `json:"total"`
	Noisy    []string     `json:"noisy,omitempty"` // settings at which bytes came but never an answer
	Found    []answerJSON `json:"found"`
}

type answerJSON struct {
	Unit         uint8              `json:"unit"`
	AnyUnit      bool               `json:"any_unit,omitempty"`
	Baud         int                `json:"baud,omitempty"` // 0: a network line
	Framing      string             `json:"framing,omitempty"`
	Status       string             `json:"status"`
	Profile      string             `json:"profile"` // empty unless identified
	Confidence   profile.Confidence `json:"confidence,omitempty"`
	Experimental bool               `json:"experimental,omitempty"` // facts are not settled: compare with the display
	Evidence     []string           `json:"evidence"`
	Candidates   []candidateJSON    `json:"candidates"` // all that fit, the likeliest first
	Identity     *identityJSON      `json:"identity,omitempty"`
	Slow         bool               `json:"slow,omitempty"`
	Cut          bool               `json:"cut,omitempty"` // it fell silent before all profiles were tried
}

type candidateJSON struct {
	Profile      string             `json:"profile"`
	Confidence   profile.Confidence `json:"confidence"`
	Experimental bool               `json:"experimental,omitempty"`
	Evidence     []string           `json:"evidence"`
}

type identityJSON struct {
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Version      string `json:"version"`
	Serial       string `json:"serial"`
}

func newScanJSON(line string, r scan.Result) scanJSON {
	out := scanJSON{Line: line, Complete: r.Complete, Full: r.Full, Probes: r.Probes, Total: r.Total, Found: []answerJSON{}}
	for _, s := range r.Noisy {
		out.Noisy = append(out.Noisy, s.String())
	}
	for _, a := range r.Answers {
		j := answerJSON{
			Unit: a.Unit, AnyUnit: a.AnyUnit, Baud: a.Setting.Baud, Framing: a.Setting.Framing, Status: status(a),
			Evidence: []string{}, Candidates: []candidateJSON{}, Slow: a.Slow, Cut: a.Cut,
		}
		for _, f := range a.Findings {
			j.Candidates = append(j.Candidates, candidateJSON{f.Profile.ID, f.Profile.Confidence(), f.Profile.Experimental, f.Evidence})
		}
		if j.Status == identified {
			best := j.Candidates[0]
			j.Profile, j.Confidence, j.Experimental, j.Evidence = best.Profile, best.Confidence, best.Experimental, best.Evidence
		}
		if c := a.Chain; c != nil {
			j.Identity = &identityJSON{c.Manufacturer, c.Model, c.Version, c.Serial}
		}
		out.Found = append(out.Found, j)
	}
	return out
}

func printScan(w io.Writer, line string, r scan.Result) error {
	rows := [][]string{{"UNIT", "SETTING", "PROFILE", "EVIDENCE"}}
	for _, a := range r.Answers {
		unit := strconv.Itoa(int(a.Unit))
		if a.AnyUnit {
			unit = "any"
		}
		row := []string{unit, a.Setting.String(), whatIs(a), ""}
		switch status(a) {
		case garbled:
			row[3] = "answers cannot be understood: two devices with one unit id? wrong framing? wiring?"
		case identified:
			row[3] = strings.Join(a.Findings[0].Evidence, "; ")
			if a.Findings[0].Profile.Experimental {
				row[3] += "; experimental: compare with the display"
			}
		case ambiguous:
			row[3] = lookAtLabel
		default:
			row[3] = "no profile fits"
		}
		if a.Cut {
			row[3] += "; it fell silent before all profiles were tried"
		}
		rows = append(rows, row)
	}
	if len(r.Answers) > 0 {
		if err := table(w, rows); err != nil {
			return err
		}
	}
	var err error
	for _, s := range r.Noisy {
		if _, err := fmt.Fprintf(w, "at %s bytes came but never an answer: does another master talk on %s, or a device with another speed?\n", s, line); err != nil {
			return err
		}
	}
	switch {
	case !r.Complete:
		_, err = fmt.Fprintf(w, "interrupted after %d of %d: what has not been tried may still be there\n", r.Probes, r.Total)
	case !r.Full && len(r.Answers) > 0:
		_, err = fmt.Fprintf(w, "a bus has one setting, so the others were not tried after this one: --full tries all\n")
	case len(r.Answers) == 0:
		_, err = fmt.Fprintf(w, "nothing answers on %s: is the bus powered, are A and B exchanged, is another master on it?\n", line)
	}
	return err
}
