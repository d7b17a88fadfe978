package slave_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

func unit(t testing.TB, id string, cfg slave.UnitConfig, points ...meter.Point) *slave.Unit {
	t.Helper()
	p, err := profile.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	u, err := slave.NewUnit(p, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Set(points...); err != nil {
		t.Fatal(err)
	}
	return u
}

func bus(t testing.TB, cfg slave.Config, units map[uint8]*slave.Unit) *slave.Bus {
	t.Helper()
	b, err := slave.NewBus(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for a, u := range units {
		if err := b.Add(a, u); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// background runs serve until the test ends, and waits for it.
func background(t testing.TB, serve func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		if err := serve(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func openPTY(t testing.TB) *slave.PTY {
	t.Helper()
	p, err := slave.OpenPTY(filepath.Join(t.TempDir(), "meter"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

var truth = []meter.Point{
	{Quantity: meter.Voltage, Phase: 1, Value: 230_100},
	{Quantity: meter.Current, Phase: 1, Value: 6_525},
	{Quantity: meter.Power, Value: -1_501_500},
	{Quantity: meter.Frequency, Value: 49_980},
	{Quantity: meter.Import, Value: 1_234_500_000},
	{Quantity: meter.Export, Value: 7_125_000},
}

// mbpoll runs Debian's independent Modbus master and returns what it read.
func mbpoll(t *testing.T, args ...string) (map[int]string, string) {
	t.Helper()
	path, err := exec.LookPath("mbpoll")
	if err != nil {
		t.Fatal("mbpoll is not installed: apt-get install mbpoll")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, append([]string{"-0", "-1", "-q"}, args...)...).CombinedOutput()
	t.Logf("mbpoll %s (%v)\n%s", strings.Join(args, " "), err, out)
	values := map[int]string{}
	for _, m := range regexp.MustCompile(`(?m)^\[(\d+)\]:\s+(\S+)`).FindAllSubmatch(out, -1) {
		n, _ := strconv.Atoi(string(m[1]))
		values[n] = string(m[2])
	}
	return values, string(out)
}

// An independent master reads our simulated SDM630, to the digit, on every
// kind of line it speaks.
func TestIndependentMasterReads(t *testing.T) {
	units := func() map[uint8]*slave.Unit {
		return map[uint8]*slave.Unit{7: unit(t, "eastron-sdm630", slave.UnitConfig{}, truth...)}
	}
	tcp := listen(t)
	pty := openPTY(t)
	serial := bus(t, slave.Config{Baud: 19200}, units())
	background(t, func(ctx context.Context) error { return bus(t, slave.Config{}, units()).ServeTCP(ctx, tcp) })
	background(t, func(ctx context.Context) error { return serial.ServePTY(ctx, pty) })

	_, port, _ := net.SplitHostPort(tcp.Addr().String())
	for name, line := range map[string][]string{
		"tcp": {"-m", "tcp", "-p", port, "127.0.0.1"},
		"rtu": {"-m", "rtu", "-b", "19200", "-P", "none", pty.Name()},
	} {
		t.Run(name, func(t *testing.T) {
			for addr, want := range map[int]string{0x00: "230.1", 0x06: "6.525", 0x34: "-1501.5", 0x46: "49.98", 0x48: "1234.5", 0x4A: "7.125"} {
				got, _ := mbpoll(t, append([]string{"-a", "7", "-t", "3:float", "-B", "-r", strconv.Itoa(addr)}, line...)...)
				if got[addr] != want {
					t.Errorf("register 0x%02X: %q, want %s", addr, got[addr], want)
				}
			}
			// Another unit is silent (rtu) or absent, and a hole is refused.
			if _, out := mbpoll(t, append([]string{"-a", "8", "-o", "0.1", "-t", "3:float", "-B", "-r", "0"}, line[:len(line)-1]...)...); strings.Contains(out, "230") {
				t.Errorf("unit 8 answered: %s", out)
			}
			if _, out := mbpoll(t, append([]string{"-a", "7", "-t", "3", "-r", "1000"}, line...)...); !strings.Contains(out, "Illegal data address") {
				t.Errorf("register 1000: %s", out)
			}
		})
	}
	t.Run("wrong speed", func(t *testing.T) {
		got, _ := mbpoll(t, "-m", "rtu", "-b", "9600", "-P", "none", "-o", "0.2", "-a", "7", "-t", "3:float", "-B", "-r", "0", pty.Name())
		if len(got) != 0 || serial.Stats().Mismatch == 0 {
			t.Errorf("answered at the wrong speed: %v, %+v", got, serial.Stats())
		}
	})
}

// An independent master sees a SunSpec chain and scale factors, and commands a
// charger.
func TestIndependentMasterSunSpecAndWrites(t *testing.T) {
	var commanded []int64
	var evse *slave.Unit
	evse = unit(t, "simpleevse", slave.UnitConfig{OnWrite: func(addr uint16, values []uint16) error {
		ma, ok := evse.Command("current_limit", addr, values)
		if !ok {
			return errors.New("not a limit")
		}
		commanded = append(commanded, ma)
		return evse.Set(meter.Point{Quantity: meter.CurrentLimit, Value: ma})
	}})
	pv := unit(t, "sunspec-inverter", slave.UnitConfig{}, meter.Point{Quantity: meter.Power, Value: -3_456_000}, meter.Point{Quantity: meter.Frequency, Value: 50_020})
	ln := listen(t)
	b := bus(t, slave.Config{}, map[uint8]*slave.Unit{1: pv, 2: evse})
	background(t, func(ctx context.Context) error { return b.ServeTCP(ctx, ln) })
	_, port, _ := net.SplitHostPort(ln.Addr().String())

	got, _ := mbpoll(t, "-m", "tcp", "-p", port, "-a", "1", "-t", "4", "-r", "40000", "-c", "4", "127.0.0.1")
	if want := map[int]string{40000: "21365", 40001: "28243", 40002: "1", 40003: "66"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("chain starts %v, want %v", got, want)
	}
	const m103 = 40000 + 2 + 68
	got, _ = mbpoll(t, "-m", "tcp", "-p", port, "-a", "1", "-t", "4", "-r", strconv.Itoa(m103), "-c", "18", "127.0.0.1")
	for off, want := range map[int]string{0: "103", 1: "50", 14: "3456", 15: "0", 16: "5002", 17: "65534"} {
		if got[m103+off] != want {
			t.Errorf("model 103 offset %d: %q, want %s", off, got[m103+off], want)
		}
	}

	mbpoll(t, "-m", "tcp", "-p", port, "-a", "2", "-t", "4", "-r", "1000", "127.0.0.1", "16")
	if fmt.Sprint(commanded) != "[16000]" {
		t.Errorf("charger was told %v mA, want [16000]", commanded)
	}
	if v, _ := evse.Register(drivers.HoldingRegisters, 1001); v != 16 {
		t.Errorf("register 1001 is %d, want 16", v)
	}
	if _, out := mbpoll(t, "-m", "tcp", "-p", port, "-a", "2", "-t", "4", "-r", "1002", "127.0.0.1", "3"); !strings.Contains(out, "Illegal data address") {
		t.Errorf("writing the status: %s", out)
	}
}

func crc(b []byte) []byte {
	c := uint16(0xFFFF)
	for _, x := range b {
		c ^= uint16(x)
		for range 8 {
			odd := c & 1
			c >>= 1
			if odd == 1 {
				c ^= 0xA001
			}
		}
	}
	return binary.LittleEndian.AppendUint16(bytes.Clone(b), c)
}

// Each fault does on the wire what its name says.
func TestFaults(t *testing.T) {
	request := crc([]byte{1, 4, 0, 0x34, 0, 2})
	answer := crc([]byte{1, 4, 4, 0x44, 0xBB, 0x80, 0})
	for fault, check := range map[slave.Fault]func(got []byte, took time.Duration) bool{
		"": func(got []byte, _ time.Duration) bool { return bytes.Equal(got, answer) },
		slave.Late: func(got []byte, took time.Duration) bool {
			return bytes.Equal(got, answer) && took > 90*time.Millisecond
		},
		slave.CRC: func(got []byte, _ time.Duration) bool { return len(got) == len(answer) && !bytes.Equal(got, answer) },
		slave.Split: func(got []byte, took time.Duration) bool {
			return bytes.Equal(got, answer) && took >= 15*time.Millisecond
		},
		slave.Exception: func(got []byte, _ time.Duration) bool { return bytes.Equal(got, crc([]byte{1, 0x84, 6})) },
		slave.Silence:   func(got []byte, _ time.Duration) bool { return len(got) == 0 },
		slave.Echo: func(got []byte, _ time.Duration) bool {
			return bytes.Equal(got, append(bytes.Clone(request), answer...))
		},
		slave.WrongUnit: func(got []byte, _ time.Duration) bool {
			return bytes.Equal(got, crc([]byte{2, 4, 4, 0x44, 0xBB, 0x80, 0}))
		},
	} {
		t.Run(string(fault), func(t *testing.T) {
			cfg := slave.Config{Late: 100 * time.Millisecond}
			if fault != "" {
				cfg.Faults = slave.Faults{fault: 1}
			}
			u := unit(t, "eastron-sdm630", slave.UnitConfig{}, meter.Point{Quantity: meter.Power, Value: 1_500_000})
			ln := listen(t)
			b := bus(t, cfg, map[uint8]*slave.Unit{1: u})
			background(t, func(ctx context.Context) error { return b.ServeRTUTCP(ctx, ln) })
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			began := time.Now()
			if _, err := c.Write(request); err != nil {
				t.Fatal(err)
			}
			var got []byte
			var took time.Duration
			buf := make([]byte, 256)
			wait := 5 * time.Second // for the first byte
			if fault == slave.Silence {
				wait = 300 * time.Millisecond
			}
			for {
				_ = c.SetReadDeadline(time.Now().Add(wait))
				n, err := c.Read(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got, took, wait = append(got, buf[:n]...), time.Since(began), 300*time.Millisecond
			}
			if !check(got, took) {
				t.Errorf("got % X after %s", got, took)
			}
		})
	}
}

// Requests that no master should send are refused, ignored or survived; the
// next good one is answered.
func TestBadRequests(t *testing.T) {
	u := unit(t, "eastron-sdm630", slave.UnitConfig{}, truth...)
	b := bus(t, slave.Config{}, map[uint8]*slave.Unit{1: u})
	for _, c := range []struct {
		pdu  []byte
		want string
	}{
		{[]byte{4, 0, 0, 0, 81}, "84 03"}, // more than the meter's 80
		{[]byte{4, 0, 0, 0, 0}, "84 03"},
		{[]byte{4, 0xFF, 0xFF, 0, 2}, "84 02"},
		{[]byte{4, 0, 0}, "84 03"},
		{[]byte{3, 0, 0, 0, 1}, "83 02"}, // input registers only
		{[]byte{1, 0, 0, 0, 1}, "81 01"},
		{[]byte{6, 0, 0, 0, 1}, "86 02"},
		{[]byte{16, 0, 0, 0, 2, 4, 0}, "90 03"},
		{nil, "80 01"},
	} {
		if got := fmt.Sprintf("% X", b.Handle(1, c.pdu)); got != c.want {
			t.Errorf("request % X: %s, want %s", c.pdu, got, c.want)
		}
	}
	if b.Handle(9, []byte{4, 0, 0, 0, 2}) != nil {
		t.Error("unit 9 does not exist but answers")
	}
	for _, a := range []uint8{0, 248, 1} {
		if err := b.Add(a, u); err == nil {
			t.Errorf("unit %d was added", a)
		}
	}
	for _, s := range []string{"late", "late:", "late:2", "late:-1", "late:NaN", "lost:0.1", ""} {
		if _, _, err := slave.ParseFault(s); err == nil {
			t.Errorf("fault %q was accepted", s)
		}
	}
	if _, err := slave.NewBus(slave.Config{Faults: slave.Faults{slave.Late: 0.6, slave.CRC: 0.6}}); err == nil {
		t.Error("rates above 1 were accepted")
	}
}

// A paced line is never faster than the wire that it stands for.
func TestPacedLine(t *testing.T) {
	pty := openPTY(t)
	b := bus(t, slave.Config{Baud: 9600, Paced: true, Turnaround: 10 * time.Millisecond}, map[uint8]*slave.Unit{1: unit(t, "eastron-sdm630", slave.UnitConfig{}, truth...)})
	background(t, func(ctx context.Context) error { return b.ServePTY(ctx, pty) })
	// The slave side stays open at 9600 8N1, as OpenPTY has set it.
	f, err := os.OpenFile(pty.Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	began := time.Now()
	if _, err := f.Write(crc([]byte{1, 4, 0, 0, 0, 76})); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 3+2*76+2)
	if _, err := io.ReadFull(f, answer); err != nil {
		t.Fatal(err)
	}
	const char = 10 * time.Second / 9600
	if wire := (8+157)*char + 7*char/2 + 10*time.Millisecond; time.Since(began) < wire {
		t.Errorf("76 registers took %s, the wire needs %s", time.Since(began), wire)
	}
}

func TestPTYLink(t *testing.T) {
	link := filepath.Join(t.TempDir(), "meter")
	first, err := slave.OpenPTY(link)
	if err != nil {
		t.Fatal(err)
	}
	second, err := slave.OpenPTY(link) // replaces the link
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(link); err != nil {
		t.Fatalf("closing the first terminal removed the second's link: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(link); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the link is still there: %v", err)
	}
	if err := os.WriteFile(link, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := slave.OpenPTY(link); err == nil {
		t.Fatal("an ordinary file was replaced")
	}
}

// What was commanded is read where the device says it.
func TestReadback(t *testing.T) {
	b := bus(t, slave.Config{}, map[uint8]*slave.Unit{255: unit(t, "keba-p30", slave.UnitConfig{})})
	for _, c := range []struct{ request, want []byte }{
		{[]byte{6, 0x13, 0x98, 0x1F, 0x40}, []byte{6, 0x13, 0x98, 0x1F, 0x40}}, // failsafe current 8 A
		{[]byte{3, 0x06, 0x40, 0, 2}, []byte{3, 4, 0, 0, 0x1F, 0x40}},
		{[]byte{6, 0x13, 0x9A, 0, 30}, []byte{6, 0x13, 0x9A, 0, 30}}, // failsafe time-out 30 s
		{[]byte{3, 0x06, 0x42, 0, 2}, []byte{3, 4, 0, 0, 0, 30}},
	} {
		if got := b.Handle(255, c.request); !bytes.Equal(got, c.want) {
			t.Errorf("request % x: % x, want % x", c.request, got, c.want)
		}
	}
}

// Coils exist on devices that take commands there, and keep what is written.
func TestCoils(t *testing.T) {
	b := bus(t, slave.Config{}, map[uint8]*slave.Unit{180: unit(t, "phoenix-em-cp-pp-eth", slave.UnitConfig{})})
	for _, c := range []struct{ request, want []byte }{
		{[]byte{1, 1, 0x90, 0, 1}, []byte{1, 1, 0}},
		{[]byte{5, 1, 0x90, 0xFF, 0}, []byte{5, 1, 0x90, 0xFF, 0}},
		{[]byte{1, 1, 0x90, 0, 1}, []byte{1, 1, 1}},
		{[]byte{5, 1, 0x90, 0x12, 0}, []byte{0x85, 3}},
		{[]byte{5, 1, 0x91, 0xFF, 0}, []byte{0x85, 2}},
		{[]byte{1, 1, 0x90, 0, 2}, []byte{0x81, 2}},
	} {
		if got := b.Handle(180, c.request); !bytes.Equal(got, c.want) {
			t.Errorf("request % x: % x, want % x", c.request, got, c.want)
		}
	}
}

// The same master reads what profiles of other word orders, types and functions
// put into registers.
func TestIndependentMasterReadsOtherProfiles(t *testing.T) {
	for _, c := range []struct {
		profile string
		truth   []meter.Point
		reads   map[string]map[int]string // mbpoll's type and word order -> register -> value
	}{
		{
			"carlogavazzi-em340",
			[]meter.Point{{Quantity: meter.Voltage, Phase: 1, Value: 230_500}, {Quantity: meter.Power, Value: -1_501_500}, {Quantity: meter.Import, Value: 1_234_500_000}},
			map[string]map[int]string{"3:int": {0x00: "2305", 0x28: "-15015", 0x34: "12345"}},
		},
		{
			"abb-a-b-series",
			[]meter.Point{{Quantity: meter.Voltage, Phase: 1, Value: 230_500}, {Quantity: meter.Power, Value: -1_501_500}},
			map[string]map[int]string{"4:int -B": {0x5B00: "2305", 0x5B14: "-150150"}},
		},
		{
			"inepro-pro380",
			[]meter.Point{{Quantity: meter.Power, Value: 1_501_500}, {Quantity: meter.Import, Value: 1_234_500_000}},
			map[string]map[int]string{"4:float -B": {0x5012: "1.5015", 0x600C: "1234.5"}},
		},
		{
			"victron-gx-acload",
			[]meter.Point{{Quantity: meter.Power, Value: 4_500_000}},
			map[string]map[int]string{"4:int -B": {3924: "1500", 3926: "1500", 3928: "1500"}},
		},
		{
			"phoenix-em-cp-pp-eth",
			[]meter.Point{{Quantity: meter.Status, Value: 'C'}},
			map[string]map[int]string{"3:hex": {100: "0x4300"}, "0": {400: "0"}},
		},
	} {
		t.Run(c.profile, func(t *testing.T) {
			ln := listen(t)
			b := bus(t, slave.Config{}, map[uint8]*slave.Unit{7: unit(t, c.profile, slave.UnitConfig{}, c.truth...)})
			background(t, func(ctx context.Context) error { return b.ServeTCP(ctx, ln) })
			_, port, _ := net.SplitHostPort(ln.Addr().String())
			for kind, want := range c.reads {
				for addr, v := range want {
					args := append([]string{"-m", "tcp", "-p", port, "-a", "7", "-r", strconv.Itoa(addr), "-t"}, strings.Fields(kind)...)
					if got, out := mbpoll(t, append(args, "127.0.0.1")...); got[addr] != v {
						t.Errorf("register %d as %s: %q, want %s\n%s", addr, kind, got[addr], v, out)
					}
				}
			}
		})
	}
}
