package packet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/guard"
)

// namespace is a goroutine with a network of its own, joined by a pair of
// virtual interfaces: what is sent on out arrives on in.
type namespace struct{ calls chan func() }

const (
	vethIn  = "jgin"
	vethOut = "jgout"
)

// newNamespace skips without the privilege to make one.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip (iproute2) is not installed")
	}
	n := &namespace{make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and its network too
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range n.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Skipf("needs the privilege to make a network namespace: %v", err)
	}
	t.Cleanup(func() { close(n.calls) })
	n.do(func() {
		for _, args := range []string{
			"link add " + vethIn + " type veth peer name " + vethOut,
			"link set " + vethIn + " up", "link set " + vethOut + " up",
		} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Errorf("ip %s: %v: %s", args, err, out)
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return n
}

// do runs f in the namespace.
func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.calls <- func() { defer close(done); f() }
	<-done
}

// enter makes the calling thread a member; call it on a goroutine that ends
// with its thread.
func (n *namespace) enter(t testing.TB) {
	runtime.LockOSThread()
	var fd int
	var err error
	n.do(func() { fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
	}
	if err != nil {
		t.Errorf("enter the namespace: %v", err)
	}
}

// sender sends frames on an interface of the namespace.
func (n *namespace) sender(t testing.TB, name string) (send func(frame []byte) error) {
	t.Helper()
	fd := -1
	n.do(func() {
		ifi, err := net.InterfaceByName(name)
		if err == nil {
			if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err == nil {
				_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
				err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	return func(frame []byte) error {
		_, err := unix.Write(fd, frame)
		for errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) {
			runtime.Gosched()
			_, err = unix.Write(fd, frame)
		}
		return err
	}
}

// watched is a sensor at work in a namespace.
type watched struct {
	*Sensor
	mu     sync.Mutex
	found  []guard.Finding
	cancel context.CancelFunc
	done   chan struct{}
	cpu    time.Duration // of its thread
}

func (n *namespace) watch(t testing.TB, c Config) *watched {
	t.Helper()
	w := &watched{done: make(chan struct{})}
	start := time.Now()
	c.Report = func(f guard.Finding) { w.mu.Lock(); defer w.mu.Unlock(); w.found = append(w.found, f) }
	c.Now = func() time.Duration { return time.Since(start) }
	c.Log = slog.New(slog.DiscardHandler)
	var err error
	if w.Sensor, err = New(c); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(w.done)
		n.enter(t)
		before := threadTime(t)
		if err := w.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		w.cpu = threadTime(t) - before
	}()
	t.Cleanup(w.stop)
	w.until(t, "it looks", func() bool { return w.Coverage().Level != guard.None })
	return w
}

func (w *watched) stop() { w.cancel(); <-w.done }

func (w *watched) rules() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var s []string
	for _, f := range w.found {
		s = append(s, fmt.Sprintf("%s x%d", f.Rule, f.Count))
	}
	return strings.Join(s, ", ")
}

func (w *watched) until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s; coverage %+v, found %s", what, w.Coverage(), w.rules())
		}
	}
}

func TestSensorOnARealInterface(t *testing.T) {
	for _, plain := range []bool{false, true} {
		level := Ring
		if plain {
			level = Plain
		}
		t.Run(level, func(t *testing.T) {
			n := newNamespace(t)
			w := n.watch(t, Config{Interface: vethIn, plain: plain, Charger: charging{}})
			if c := w.Coverage(); c.Level != level || (c.Reason != "") != plain {
				t.Fatalf("coverage %+v", c)
			}
			send := n.sender(t, vethOut)
			for _, frame := range [][]byte{
				tcpFrame(t, stranger, 40000, inverter, 502, ack, 1, modbusADU(1, writeRegister, 0, 1, 0, 1)),
				tcpFrame(t, gateway6, 40000, "2001:db8::1", 502, ack, 1, modbusADU(1, writeRegister, 0, 1, 0, 1)),
				dhcpFrame(t, macOf(router), router, 2, 1),
				dhcpFrame(t, macOf(stranger), stranger, 2, 1),
				arpFrame(t, 2, router, macOf(router)),
				arpFrame(t, 2, router, macOf(stranger)),
			} {
				if err := send(frame); err != nil {
					t.Fatal(err)
				}
			}
			want := "modbus.write_unauthorised x1, modbus.write_unauthorised x1, dhcp.rogue_server x1, arp.spoof x1"
			w.until(t, "all is found", func() bool { return w.rules() == want })
			if f := w.found[0]; f.Severity != guard.Critical || time.Since(f.First).Abs() > time.Minute {
				t.Errorf("%+v", f)
			}
			w.until(t, "all is counted", func() bool { return w.Coverage().Seen >= 6 })
			w.stop()
			if c := w.Coverage(); c.Lost != 0 {
				t.Errorf("coverage %+v", c)
			}
		})
	}
}

type charging struct{}

func (charging) Charging() bool { return true }

// TestSensorWhoseInterfaceGoesAway says so, and goes on when it is back.
func TestSensorWhoseInterfaceGoesAway(t *testing.T) {
	n := newNamespace(t)
	w := n.watch(t, Config{Interface: vethIn})
	n.do(func() { exec.Command("ip", "link", "del", vethIn).Run() })
	w.until(t, "it says that it is blind", func() bool { c := w.Coverage(); return c.Level == guard.None && c.Reason != "" })
	w.stop() // ends while it waits
}

// TestSensorWithoutPrivilege reports no coverage, the reason and the remedy,
// and Run ends when asked.
func TestSensorWithoutPrivilege(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a capability up")
	}
	logged := make(chan struct{}, 16)
	s, err := New(Config{Interface: "lo", Report: func(guard.Finding) {}, Now: func() time.Duration { return 0 }, Log: slog.New(signal(logged))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		var hdr unix.CapUserHeader
		var data [2]unix.CapUserData
		hdr.Version = unix.LINUX_CAPABILITY_VERSION_3
		err := unix.Capget(&hdr, &data[0])
		data[0].Effective &^= 1 << unix.CAP_NET_RAW
		if err == nil {
			err = unix.Capset(&hdr, &data[0])
		}
		if err == nil {
			err = s.Run(ctx)
		}
		done <- err
	}()
	<-logged
	c := s.Coverage()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if c.Level != guard.None || !strings.Contains(c.Reason, "CAP_NET_RAW") || !strings.Contains(c.Reason, "setcap") {
		t.Errorf("coverage %+v", c)
	}
}

// signal is a log that tells that something was logged.
type signal chan struct{}

func (signal) Enabled(context.Context, slog.Level) bool    { return true }
func (s signal) Handle(context.Context, slog.Record) error { s <- struct{}{}; return nil }
func (s signal) WithAttrs([]slog.Attr) slog.Handler        { return s }
func (s signal) WithGroup(string) slog.Handler             { return s }

// TestKernelFilter: what no detector looks at does not arrive, and long
// frames arrive cut, with their length known.
func TestKernelFilter(t *testing.T) {
	n := newNamespace(t)
	w := n.watch(t, Config{Interface: vethIn})
	w.stop()
	base := w.Coverage().Seen // what the kernel says by itself
	w = n.watch(t, Config{Interface: vethIn, Network: Network{ModbusPorts: []uint16{502, 1502}}})
	send := n.sender(t, vethOut)
	lldp := append(append([]byte{}, arpFrame(t, 2, router, macOf(router))...), make([]byte, 40)...)
	lldp[12], lldp[13] = 0x88, 0xcc
	for range 1000 {
		if err := send(lldp); err != nil {
			t.Fatal(err)
		}
	}
	if err := send(tcpFrame(t, stranger, 40000, inverter, 1502, ack, 1, modbusADU(1, writeRegister, 0, 1, 0, 1))); err != nil {
		t.Fatal(err)
	}
	w.until(t, "the write is found", func() bool { return strings.Contains(w.rules(), guard.ModbusWriteUnauthorised) })
	w.stop()
	if seen := w.Coverage().Seen; seen > base+200 {
		t.Errorf("%d frames arrived", seen)
	}
}

// BenchmarkRing sends 100,000 frames a second for b.N frames and tells what
// one costs the sensor, and the share that was lost.
func BenchmarkRing(b *testing.B) {
	n := newNamespace(b)
	w := n.watch(b, Config{Interface: vethIn})
	send := n.sender(b, vethOut)
	var frames [][]byte
	for i := range 64 {
		c := fmt.Sprintf("192.168.1.%d", 10+i)
		frames = append(frames, tcpFrame(b, c, 40000, gateway, 443, ack, 1, make([]byte, 100)), udpFrame(b, gateway, 5000, c, 5001, make([]byte, 60)))
	}
	const rate = 100_000
	before := w.Coverage().Seen
	b.ResetTimer()
	start := time.Now()
	for i := range b.N {
		if err := send(frames[i%len(frames)]); err != nil {
			b.Fatal(err)
		}
		if i%100 == 99 {
			for due := start.Add(time.Duration(i) * time.Second / rate); time.Now().Before(due); {
				runtime.Gosched()
			}
		}
	}
	took := time.Since(start)
	b.StopTimer()
	time.Sleep(300 * time.Millisecond) // the last block is handed over
	w.stop()
	c := w.Coverage()
	got := float64(c.Seen - before)
	b.ReportMetric(float64(w.cpu.Nanoseconds())/max(got, 1), "cpu-ns")
	b.ReportMetric(100*float64(c.Lost)/float64(b.N), "%lost")
	b.ReportMetric(float64(b.N)/took.Seconds(), "frames/s")
}
