package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// lockedBuffer is an output that a test reads while a command writes.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
	new chan struct{}
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.buf.Write(p)
	select {
	case b.new <- struct{}{}:
	default:
	}
	return n, err
}

// meterRoot is a root with only the commands under test.
func meterRoot(args ...string) *cobra.Command {
	root := &cobra.Command{Use: "joulegate", SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().Bool("json", false, "")
	root.PersistentFlags().String("log-level", "error", "")
	root.AddCommand(newMeterCmd(), newSimCmd())
	root.SetArgs(args)
	return root
}

func runMeter(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var out bytes.Buffer
	root := meterRoot(args...)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(ctx)
	return out.String(), err
}

// startSim starts a simulated device and returns where it is.
func startSim(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out := &lockedBuffer{new: make(chan struct{}, 1)}
	root := meterRoot(append([]string{"sim", "meter", "--json"}, args...)...)
	root.SetOut(out)
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("sim: %v", err)
		}
	})
	select {
	case <-out.new:
	case err := <-done:
		done <- nil
		t.Fatalf("sim ended: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("sim did not start")
	}
	out.mu.Lock()
	defer out.mu.Unlock()
	var v struct{ At string }
	if err := json.Unmarshal(out.buf.Bytes(), &v); err != nil {
		t.Fatalf("%q: %v", out.buf.String(), err)
	}
	return v.At
}

// What a person sets on the simulator is what meter read prints, over every
// kind of line and for every profile.
func TestMeterReadsSimulator(t *testing.T) {
	for name, c := range map[string]struct {
		profile, listen, set string
		points               map[string]int64
	}{
		"sdm630 rtu": {
			"eastron-sdm630", "", "power_mw=-1501500,import_mwh=1234500000,export_mwh=7125000,voltage_l1_mv=230100,frequency_mhz=49980",
			map[string]int64{"power_mw": -1501500, "import_mwh": 1234500000, "export_mwh": 7125000, "voltage_l1_mv": 230100, "frequency_mhz": 49980},
		},
		"sdm120 rtu":         {"eastron-sdm120", "", "power_mw=250250,import_mwh=500000", map[string]int64{"power_mw": 250250, "import_mwh": 500000}},
		"sdm120 rtutcp":      {"eastron-sdm120", "rtutcp://127.0.0.1:0", "power_mw=250250,import_mwh=500000", map[string]int64{"power_mw": 250250, "import_mwh": 500000}},
		"inverter tcp":       {"sunspec-inverter", "tcp://127.0.0.1:0", "power_mw=-3456000,export_mwh=98765000", map[string]int64{"power_mw": -3456000, "export_mwh": 98765000}},
		"meter tcp":          {"sunspec-meter", "tcp://127.0.0.1:0", "power_mw=-12000,import_mwh=1000,export_mwh=2000", map[string]int64{"power_mw": -12000, "import_mwh": 1000, "export_mwh": 2000}},
		"reversed meter tcp": {"sunspec-meter+reversed", "tcp://127.0.0.1:0", "power_mw=-12000", map[string]int64{"power_mw": -12000}},
		"wallbox rtu":        {"simpleevse", "", "current_limit_ma=16000,status_code=3", map[string]int64{"current_limit_ma": 16000, "status_code": 3, "firmware_code": 10}},
	} {
		t.Run(name, func(t *testing.T) {
			sim := []string{"--profile", c.profile, "--set", c.set, "--unit", "9"}
			read := []string{"meter", "read", "--profile", c.profile, "--unit", "9", "--json", "--count", "2", "--interval", "50ms", "--timeout", "20s"}
			if c.listen == "" {
				at := startSim(t, append(sim, "--pty", filepath.Join(t.TempDir(), "meter"))...)
				read = append(read, "--rtu", at)
			} else {
				kind, addr, _ := strings.Cut(startSim(t, append(sim, "--listen", c.listen)...), "://")
				read = append(read, "--"+kind, addr)
			}
			out, err := runMeter(t, read...)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if len(lines) != 2 {
				t.Fatalf("%d lines: %s", len(lines), out)
			}
			for _, line := range lines {
				var r struct {
					Profile string
					Unit    int
					Time    time.Time
					Quality string
					Points  map[string]int64
				}
				if err := json.Unmarshal([]byte(line), &r); err != nil {
					t.Fatal(err)
				}
				if r.Profile != c.profile || r.Unit != 9 || r.Quality != "good" || time.Since(r.Time) > time.Minute {
					t.Errorf("%s", line)
				}
				for name, want := range c.points {
					if got, ok := r.Points[name]; !ok || got != want {
						t.Errorf("%s = %d, want %d", name, got, want)
					}
				}
			}
		})
	}
}

// People see units that they use.
func TestMeterReadTable(t *testing.T) {
	_, addr, _ := strings.Cut(startSim(t, "--profile", "sunspec-inverter", "--listen", "tcp://127.0.0.1:0", "--set", "power_mw=-45000"), "://")
	out, err := runMeter(t, "meter", "read", "--profile", "sunspec-inverter", "--tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"sunspec-inverter unit 1", "good", "-45.000", "345.678000", "kWh", "voltage L1"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// A wallbox's status is shown in its own words and in those of the standard.
func TestMeterReadShowsState(t *testing.T) {
	for id, want := range map[string]string{"alfen-eve": "C2", "webasto-next": "3"} {
		p, err := profile.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		code, _ := p.StateCode("C")
		_, addr, _ := strings.Cut(startSim(t, "--profile", id, "--listen", "tcp://127.0.0.1:0", "--set", fmt.Sprintf("status_code=%d", code)), "://")
		out, err := runMeter(t, "meter", "read", "--profile", id, "--tcp", addr)
		if err != nil || !regexp.MustCompile(`status +`+want+` +is C of IEC 61851-1`).MatchString(out) {
			t.Errorf("%s: %v\n%s", id, err, out)
		}
	}
}

// Faults on the line never become values.
func TestMeterReadsThroughFaults(t *testing.T) {
	at := startSim(t, "--profile", "eastron-sdm630", "--pty", filepath.Join(t.TempDir(), "meter"), "--set", "power_mw=1500000",
		"--fault", "crc:0.1", "--fault", "exception:0.1,split:0.2", "--seed", "3")
	out, err := runMeter(t, "meter", "read", "--profile", "eastron-sdm630", "--rtu", at, "--json", "--count", "3", "--interval", "20ms", "--timeout", "25s")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out, `"power_mw":1500000`); n != 3 {
		t.Errorf("%d of 3 readings have the right power:\n%s", n, out)
	}
}

// Wrong usage names the flag and what is possible; it is told from failure.
func TestMeterUsage(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"meter read --tcp 127.0.0.1:502", "--profile"},
		{"meter read --profile nope --tcp 127.0.0.1:502", "eastron-sdm630"},
		{"meter read --profile eastron-sdm630", "one of --rtu"},
		{"meter read --profile eastron-sdm630 --tcp 127.0.0.1:502 --rtu /dev/ttyUSB0", "one of --rtu"},
		{"meter read --profile eastron-sdm630 --tcp 127.0.0.1:502 --unit 0", "1..247"},
		{"meter read --profile eastron-sdm630 --rtu /dev/ttyUSB0 --unit 300", "1..247"},
		{"meter read --profile eastron-sdm630 --rtu /dev/ttyUSB0 --unit 255", "1..247"},
		{"meter read --profile eastron-sdm630 --rtu /dev/ttyUSB0 --framing 7N1", "8N1, 8E1"},
		{"meter read --profile eastron-sdm630 --rtu /dev/ttyUSB0 --baud 0", "300"},
		{"meter read --profile eastron-sdm630 --tcp 127.0.0.1:502 --baud 9600", "--rtu"},
		{"meter read --profile eastron-sdm630 --tcp 127.0.0.1", "host:port"},
		{"meter read --profile eastron-sdm630 --tcp 127.0.0.1:502 --count -1", "--count"},
		{"meter read --profile eastron-sdm630 --tcp 127.0.0.1:502 --interval 0", "--interval"},
		{"meter read --profile eastron-sdm630 --tcp 127.0.0.1:502 extra", "extra"},
		{"meter read --profile keba-p30 --rtu /dev/ttyUSB0 --unit 1", "--baud is needed"},
		{"meter read --profile keba-p30 --rtu /dev/ttyUSB0 --baud 9600", "--unit is needed"},
		{"sim meter --profile keba-p30 --listen rtutcp://127.0.0.1:0", "--unit is needed"},
		{"meter profiles nope", "eastron-sdm630"},
		{"sim meter --profile eastron-sdm630", "--pty"},
		{"sim meter --profile eastron-sdm630 --listen udp://127.0.0.1:1", "tcp://"},
		{"sim meter --profile eastron-sdm630 --listen tcp://127.0.0.1:0 --fault lost:1", "late"},
		{"sim meter --profile eastron-sdm630 --listen tcp://127.0.0.1:0 --fault late:2", "0..1"},
		{"sim meter --profile eastron-sdm630 --listen tcp://127.0.0.1:0 --unit 0", "1..247"},
		{"sim meter --profile eastron-sdm630 --listen tcp://127.0.0.1:0 --set power=1", "power_mw"},
		{"sim meter --profile eastron-sdm120 --listen tcp://127.0.0.1:0 --set voltage_l3_mv=1", "no such point"},
		{"sim meter --profile sunspec-meter --listen tcp://127.0.0.1:0 --model 7", "no model 7"},
	} {
		_, err := runMeter(t, strings.Fields(c.args)...)
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want wrong usage that mentions %q", c.args, err, c.want)
		}
	}
}

// A device that is not there is an error that names it and what to check.
func TestMeterSilent(t *testing.T) {
	at := startSim(t, "--profile", "eastron-sdm630", "--pty", filepath.Join(t.TempDir(), "meter"))
	_, err := runMeter(t, "meter", "read", "--profile", "eastron-sdm630", "--rtu", at, "--unit", "2", "--timeout", "900ms")
	if err == nil || !strings.Contains(err.Error(), at) || !strings.Contains(err.Error(), "unit 2") {
		t.Errorf("silent unit: %v", err)
	}
	missing := filepath.Join(t.TempDir(), "ttyUSB9")
	if _, err = runMeter(t, "meter", "read", "--profile", "eastron-sdm630", "--rtu", missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing device: %v", err)
	}
	_, addr, _ := strings.Cut(startSim(t, "--profile", "simpleevse", "--listen", "tcp://127.0.0.1:0"), "://")
	if _, err = runMeter(t, "meter", "read", "--profile", "sunspec-meter", "--tcp", addr, "--timeout", "2s"); err == nil || !strings.Contains(err.Error(), "SunS") {
		t.Errorf("no SunSpec device: %v", err)
	}
}

// The simulator serves every profile, and what it serves is read: each device
// over the line that it has.
func TestEveryProfileIsServed(t *testing.T) {
	for _, p := range profile.All() {
		t.Run(p.ID, func(t *testing.T) {
			t.Parallel()
			kind, addr, _ := strings.Cut(startSim(t, "--profile", p.ID, "--listen", "tcp://127.0.0.1:0"), "://")
			out, err := runMeter(t, "meter", "read", "--profile", p.ID, "--"+kind, addr, "--json", "--timeout", "25s")
			if err != nil {
				t.Fatal(err)
			}
			if p.Experimental != strings.Contains(out, "experimental") {
				t.Errorf("experimental is %v: %s", p.Experimental, out)
			}
			var r struct {
				Quality string
				Points  map[string]int64
			}
			if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &r); err != nil {
				t.Fatal(err)
			}
			var points []meter.Point
			for name, v := range r.Points {
				pt, err := parsePointName(name)
				if err != nil {
					t.Fatal(err)
				}
				pt.Value = v
				points = append(points, pt)
			}
			if evidence, ok := p.Match(points); !ok || r.Quality != "good" {
				t.Errorf("%s, not recognised: %v", r.Quality, evidence)
			}
		})
	}
}

// Profiles of one's own come before the built-in ones, for reading and for
// simulating; a wrong one is named with its line.
func TestOwnProfiles(t *testing.T) {
	dir := t.TempDir()
	own, err := os.ReadFile("../../meter/profile/data/eastron-sdm120.yaml")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("eastron-sdm120.yaml", strings.Replace(string(own), "address: 0x000C", "address: 0x0050", 1))
	write("acme-9.yaml", strings.Replace(string(own), "id: eastron-sdm120", "id: acme-9", 1))
	_, addr, _ := strings.Cut(startSim(t, "--profiles", dir, "--profile", "eastron-sdm120", "--listen", "tcp://127.0.0.1:0", "--set", "power_mw=250250"), "://")
	out, err := runMeter(t, "meter", "read", "--profiles", dir, "--profile", "eastron-sdm120", "--tcp", addr, "--json", "--timeout", "25s")
	if err != nil || !strings.Contains(out, `"power_mw":250250`) {
		t.Errorf("%v: %s", err, out)
	}
	if out, err = runMeter(t, "meter", "profiles", "--profiles", dir); err != nil || strings.Count(out, "own file") != 2 || !strings.Contains(out, "acme-9") {
		t.Errorf("%v:\n%s", err, out)
	}
	for text, want := range map[string]string{"version: 1\nsped: 3\n": `acme-9.yaml:2: unknown field "sped"`, string(own): `acme-9.yaml:2: id: "eastron-sdm120"`} {
		write("acme-9.yaml", text)
		if _, err = runMeter(t, "meter", "profiles", "--profiles", dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err = runMeter(t, "meter", "profiles", "--profiles", filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "want a folder") {
		t.Errorf("no folder: %v", err)
	}
}

func TestMeterProfiles(t *testing.T) {
	out, err := runMeter(t, "meter", "profiles")
	if err != nil || !strings.Contains(out, "eastron-sdm630") || !strings.Contains(out, "9600 8N1 unit 1") || !strings.Contains(out, "port 502 unit 255") || !strings.Contains(out, "C, experimental") {
		t.Errorf("%v\n%s", err, out)
	}
	for id, want := range map[string][]string{
		"keba-p30":        {"failsafe_timeout", "function 6, 5018", "evcc charger keba-modbus", "cable 5 or 7"},
		"sma-meter":       {"sum of [30865] less [30867]"},
		"sunspec-battery": {"points of models [802]", "state_of_charge_permille"},
	} {
		out, err := runMeter(t, "meter", "profiles", id)
		for _, s := range want {
			if err != nil || !strings.Contains(out, s) {
				t.Errorf("%s: %v, no %q in\n%s", id, err, s, out)
			}
		}
	}
	out, err = runMeter(t, "meter", "profiles", "--json")
	var list []struct{ ID, Hash string }
	if e := json.Unmarshal([]byte(out), &list); err != nil || e != nil || len(list) < 5 || len(list[0].Hash) != 64 {
		t.Errorf("%v %v\n%s", err, e, out)
	}
}
