package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

// scanBus serves units until the test ends; serve is one of the bus's Serve
// methods bound to a line.
func scanBus(t *testing.T, cfg slave.Config, units map[uint8]*slave.Unit, serve func(context.Context, *slave.Bus) error) {
	t.Helper()
	bus, err := slave.NewBus(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for id, u := range units {
		if err := bus.Add(id, u); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = serve(ctx, bus)
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// scanUnit is a device on a live network with load on all its lines.
func scanUnit(t *testing.T, id string) *slave.Unit {
	t.Helper()
	p, err := profile.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	u, err := slave.NewUnit(p, slave.UnitConfig{})
	if err != nil {
		t.Fatal(err)
	}
	points := []meter.Point{
		{Quantity: meter.Power, Value: 900_000},
		{Quantity: meter.Current, Value: 4_200},
		{Quantity: meter.Import, Value: 1_200_000_000},
		{Quantity: meter.PowerFactor, Value: 930},
		{Quantity: meter.Frequency, Value: 50_000},
	}
	for phase := uint8(1); phase <= 3; phase++ {
		points = append(points,
			meter.Point{Quantity: meter.Voltage, Phase: phase, Value: 230_000}, meter.Point{Quantity: meter.Current, Phase: phase, Value: 1_400},
			meter.Point{Quantity: meter.Power, Phase: phase, Value: 300_000}, meter.Point{Quantity: meter.PowerFactor, Phase: phase, Value: 930},
			meter.Point{Quantity: meter.Import, Phase: phase, Value: 400_000_000})
	}
	for _, pt := range points {
		if p.Has(pt.Quantity, pt.Phase) {
			_ = u.Set(pt) // another model of the profile may have it
		}
	}
	return u
}

func ptyBus(t *testing.T, cfg slave.Config, units map[uint8]*slave.Unit) string {
	t.Helper()
	pty, err := slave.OpenPTY("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pty.Close() })
	scanBus(t, cfg, units, func(ctx context.Context, b *slave.Bus) error { return b.ServePTY(ctx, pty) })
	return pty.Name()
}

func tcpBus(t *testing.T, units map[uint8]*slave.Unit) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scanBus(t, slave.Config{}, units, func(ctx context.Context, b *slave.Bus) error { return b.ServeTCP(ctx, ln) })
	return ln.Addr().String()
}

// busRoot runs the command and returns what it prints.
func busRoot(ctx context.Context, t *testing.T, args ...string) (out scanJSON, progress string, err error) {
	t.Helper()
	root := &cobra.Command{Use: "joulegate", SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().Bool("json", false, "")
	root.AddCommand(newBusCmd())
	root.SetArgs(append([]string{"bus", "scan", "--json"}, args...))
	var stdout, stderr bytes.Buffer
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	err = root.ExecuteContext(ctx)
	if stdout.Len() > 0 {
		dec := json.NewDecoder(&stdout)
		dec.DisallowUnknownFields()
		if e := dec.Decode(&out); e != nil || dec.More() {
			t.Fatalf("not one document: %v", e)
		}
	}
	return out, stderr.String(), err
}

// A bus with three devices at a speed that only one of them has from the
// factory: each is found once, at that speed and stop bits, and named.
func TestBusScanSerial(t *testing.T) {
	at := ptyBus(t, slave.Config{Baud: 19200, StopBits: 2}, map[uint8]*slave.Unit{
		1: scanUnit(t, "eastron-sdm630"), 7: scanUnit(t, "carlogavazzi-em24"), 9: scanUnit(t, "sunspec-inverter"),
	})
	got, progress, err := busRoot(t.Context(), t, "--rtu", at, "--units", "1-10", "--baud", "9600,19200", "--timeout", "60ms")
	if err != nil {
		t.Fatal(err)
	}
	if !got.Complete || got.Total != 60 || got.Line != at || len(got.Found) != 3 {
		t.Fatalf("%+v\n%s", got, progress)
	}
	for i, want := range []struct {
		unit    uint8
		profile string
	}{{1, "eastron-sdm630"}, {7, "carlogavazzi-em24"}, {9, "sunspec-inverter"}} {
		a := got.Found[i]
		if a.Unit != want.unit || a.Baud != 19200 || a.Framing != "8N2" {
			t.Errorf("unit %d at %d %s", a.Unit, a.Baud, a.Framing)
		}
		if a.Status != "identified" || a.Profile != want.profile || len(a.Evidence) < 2 {
			t.Errorf("unit %d is %s %s %v: %+v", a.Unit, a.Status, a.Profile, a.Evidence, a.Candidates)
		}
	}
	if id := got.Found[2].Identity; id == nil || id.Serial == "" {
		t.Errorf("identity %+v", id)
	}
	if !strings.Contains(progress, "found unit 7 at 19200 8N2: carlogavazzi-em24") || !strings.Contains(progress, "of 60, found") {
		t.Errorf("progress:\n%s", progress)
	}
}

// Where something answers the others are not tried, unless all are asked for.
func TestBusScanFull(t *testing.T) {
	at := ptyBus(t, slave.Config{Baud: 9600}, map[uint8]*slave.Unit{2: scanUnit(t, "eastron-sdm630")})
	for _, full := range []bool{false, true} {
		args := []string{"--rtu", at, "--units", "1-3", "--baud", "9600,19200,115200", "--timeout", "30ms"}
		if full {
			args = append(args, "--full")
		}
		got, progress, err := busRoot(t.Context(), t, args...)
		if err != nil || !got.Complete || got.Full != full || (got.Probes == got.Total) != full || got.Total != 27 || len(got.Found) != 1 || got.Found[0].Unit != 2 {
			t.Errorf("full %v: %v %+v", full, err, got)
		}
		if !strings.Contains(progress, "at most ") {
			t.Errorf("nobody says how long it will take:\n%s", progress)
		}
	}
}

// The PRO380 and the WAGO 879 have one map: both are named, none is chosen.
func TestBusScanAmbiguous(t *testing.T) {
	at := tcpBus(t, map[uint8]*slave.Unit{5: scanUnit(t, "wago-879-30x0")})
	got, _, err := busRoot(t.Context(), t, "--tcp", at, "--units", "4-6", "--timeout", "100ms")
	if err != nil || len(got.Found) != 1 {
		t.Fatalf("%v %+v", err, got)
	}
	a := got.Found[0]
	var ids []string
	for _, c := range a.Candidates {
		ids = append(ids, c.Profile)
	}
	if a.Unit != 5 || a.Status != "ambiguous" || a.Profile != "" || !slices.Contains(ids, "wago-879-30x0") || !slices.Contains(ids, "inepro-pro380") {
		t.Fatalf("%+v", a)
	}
}

// Nobody answers: one document, nothing found, no error.
func TestBusScanSilence(t *testing.T) {
	got, _, err := busRoot(t.Context(), t, "--rtu", ptyBus(t, slave.Config{}, nil), "--units", "1-3", "--baud", "9600", "--framing", "8N1", "--timeout", "20ms")
	if err != nil || !got.Complete || got.Found == nil || len(got.Found) != 0 || got.Probes != 3 {
		t.Fatalf("%v %+v", err, got)
	}
}

// Every answer carries another unit's address: that is nobody's answer.
func TestBusScanWrongUnit(t *testing.T) {
	at := ptyBus(t, slave.Config{Faults: slave.Faults{slave.WrongUnit: 1}}, map[uint8]*slave.Unit{2: scanUnit(t, "eastron-sdm630")})
	got, _, err := busRoot(t.Context(), t, "--rtu", at, "--units", "1-4", "--baud", "9600", "--framing", "8N1", "--timeout", "30ms")
	if err != nil || !got.Complete {
		t.Fatalf("%v %+v", err, got)
	}
	for _, a := range got.Found {
		if a.Status == "identified" {
			t.Errorf("%+v", a)
		}
	}
}

// A broken checksum every time: something is there, and it is not understood.
func TestBusScanGarbled(t *testing.T) {
	at := ptyBus(t, slave.Config{Faults: slave.Faults{slave.CRC: 1}}, map[uint8]*slave.Unit{2: scanUnit(t, "eastron-sdm630")})
	got, _, err := busRoot(t.Context(), t, "--rtu", at, "--units", "1-3", "--baud", "9600", "--framing", "8N1", "--timeout", "50ms")
	if err != nil || len(got.Found) != 1 || got.Found[0].Unit != 2 || got.Found[0].Status != "garbled" {
		t.Fatalf("%v %+v", err, got)
	}
}

// A slow device is heard while its neighbours are asked, and asked again.
func TestBusScanSlowDevice(t *testing.T) {
	at := ptyBus(t, slave.Config{Turnaround: 60 * time.Millisecond}, map[uint8]*slave.Unit{2: scanUnit(t, "eastron-sdm630")})
	got, _, err := busRoot(t.Context(), t, "--rtu", at, "--units", "1-6", "--baud", "9600", "--framing", "8N1", "--timeout", "40ms")
	if err != nil || len(got.Found) != 1 || got.Found[0].Unit != 2 || !got.Found[0].Slow || got.Found[0].Profile != "eastron-sdm630" {
		t.Fatalf("%v %+v", err, got)
	}
}

// Interrupted: what was found so far is printed, and said to be incomplete.
func TestBusScanInterrupted(t *testing.T) {
	at := ptyBus(t, slave.Config{}, map[uint8]*slave.Unit{1: scanUnit(t, "eastron-sdm630")})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	root := &cobra.Command{Use: "joulegate"}
	root.PersistentFlags().Bool("json", false, "")
	root.AddCommand(newBusCmd())
	root.SetArgs([]string{"bus", "scan", "--json", "--rtu", at, "--timeout", "100ms"})
	stderr := &lockedBuffer{new: make(chan struct{}, 1)}
	var stdout bytes.Buffer
	root.SetOut(&stdout)
	root.SetErr(stderr)
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	for seen := false; !seen; {
		select {
		case <-stderr.new:
			stderr.mu.Lock()
			seen = strings.Contains(stderr.buf.String(), "found unit 1")
			stderr.mu.Unlock()
		case err := <-done:
			t.Fatalf("ended: %v", err)
		case <-time.After(30 * time.Second):
			t.Fatal("nothing found")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var got scanJSON
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil || got.Complete || len(got.Found) != 1 || got.Found[0].Profile != "eastron-sdm630" {
		t.Fatalf("%v %+v", err, got)
	}
}

func TestBusScanErrors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	_ = ln.Close()
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no line":          {nil, "--rtu DEVICE"},
		"two lines":        {[]string{"--rtu", "/dev/x", "--tcp", "a:1"}, "one of"},
		"unit 0":           {[]string{"--tcp", "a:1", "--units", "0-3"}, "1..247"},
		"unit 300":         {[]string{"--tcp", "a:1", "--units", "300"}, "1..247"},
		"unit 255 serial":  {[]string{"--rtu", "/dev/x", "--units", "255"}, "1..247"},
		"backwards":        {[]string{"--tcp", "a:1", "--units", "9-3"}, "1..247"},
		"speed on network": {[]string{"--tcp", "a:1", "--baud", "9600"}, "need --rtu"},
		"framing":          {[]string{"--rtu", "/dev/x", "--framing", "7E1"}, "8N1, 8E1 and 8N2"},
		"absent adapter":   {[]string{"--rtu", "/dev/joulegate-absent"}, "plugged in"},
		"absent host":      {[]string{"--tcp", closed, "--timeout", "50ms"}, "refused"},
	} {
		if _, _, err := busRoot(t.Context(), t, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
