package microgrid

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
)

// charging returns a gateway whose car draws current. prepare may change the
// gateway before it is installed, and its configuration after.
func charging(t *testing.T, prepare func(g *gateway, c *config.Config)) (*grid, *gateway) {
	t.Helper()
	g := newGrid(t, 1)
	at := g.gateways[0]
	at.install()
	b, err := os.ReadFile(at.config)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	c.Watchdog.Heartbeat = "HEART1"
	prepare(at, &c)
	if err := os.WriteFile(at.config, config.Render(c), 0o644); err != nil {
		t.Fatal(err)
	}
	at.create()
	if g.street.State(at.index).Relay {
		t.Fatal("the relay is closed before the gateway was ever started")
	}
	at.start()
	if g.street.State(at.index).Relay {
		t.Fatal("the relay is closed after the start")
	}
	g.charge(at, at.wallet("anna", "50"), 5000)
	return g, at
}

// opens waits until the relay is open and nothing flows, however the gateway
// fares, and says how long that took.
func (g *grid) opens(at *gateway, limit time.Duration) {
	g.t.Helper()
	start := time.Now()
	for {
		st := g.street.State(at.index)
		if !st.Relay && st.Charging == 0 {
			g.t.Logf("open after %s", time.Since(start).Round(time.Millisecond))
			return
		}
		if time.Since(start) > limit {
			g.t.Fatalf("closed after %s: %+v", limit, st)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestCrash: a panic that nobody caught, or what systemd sends to a service
// that it takes for hung. The simulated board has the resistor that pulls a
// relay open when nobody drives it; how real ones differ is in docs/RELAYS.md.
func TestCrash(t *testing.T) {
	t.Parallel()
	g, at := charging(t, func(*gateway, *config.Config) {})
	if err := at.cmd.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	g.opens(at, 10*time.Second)
	<-at.done
	at.cmd = nil
	if b, _ := os.ReadFile(at.log); !bytes.Contains(b, []byte("SIGABRT")) {
		t.Error("it did not crash")
	}
	// ExecStopPost finds nothing to do and says so.
	got := ask[struct {
		OK      bool `json:"ok"`
		Outputs []struct{ Pin, State string }
	}](at, "safe-state")
	if !got.OK || len(got.Outputs) != 3 || got.Outputs[0].Pin != "RELAY1" || got.Outputs[0].State != "safe" {
		t.Errorf("%+v", got)
	}
}

// TestReflexDies: the process that holds the pins is killed. The gateway does
// not go on without it.
func TestReflexDies(t *testing.T) {
	t.Parallel()
	g, at := charging(t, func(*gateway, *config.Config) {})
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", at.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var children []string
	for _, f := range threads { // it was started by any of them
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range strings.Fields(string(b)) {
			if b, err := os.ReadFile("/proc/" + pid + "/cmdline"); err != nil || bytes.HasPrefix(b, []byte("joulegate\x00reflex\x00")) {
				children = append(children, pid)
			}
		}
	}
	for _, c := range children {
		if pid, err := strconv.Atoi(c); err != nil || syscall.Kill(pid, syscall.SIGKILL) != nil {
			t.Fatalf("child %q: %v", c, err)
		}
	}
	if len(children) != 1 {
		t.Fatalf("children %v, want the reflex", children)
	}
	g.opens(at, 10*time.Second)
	<-at.done
	at.cmd = nil
	if b, _ := os.ReadFile(at.log); !bytes.Contains(b, []byte("the process that holds the pins has ended")) {
		t.Errorf("it does not say why it ended:\n%s", b)
	}
}

// TestHang stops the process in its tracks: every goroutine hangs, and its
// sockets stay open. The reflex must open the relay, systemd must hear of it by
// hearing nothing, and safe-state must do over the head of the process what a
// reflex might not have done.
func TestHang(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "jg-notify-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	hears := func(limit time.Duration) (string, error) {
		b := make([]byte, 256)
		systemd.SetReadDeadline(time.Now().Add(limit))
		n, err := systemd.Read(b)
		return string(b[:n]), err
	}
	g, at := charging(t, func(g *gateway, _ *config.Config) {
		g.env = []string{"NOTIFY_SOCKET=" + systemd.LocalAddr().String(), "WATCHDOG_USEC=3000000"}
	})
	for _, want := range []string{"WATCHDOG_USEC=3000000", "READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if s, err := hears(patience); err != nil || s != want {
			t.Fatalf("systemd heard %q, want %s, %v", s, want, err)
		}
	}
	if err := at.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	g.opens(at, 5*time.Second)
	for { // what was said before
		if s, err := hears(3 * time.Second); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil || s != "WATCHDOG=1" {
			t.Fatalf("systemd heard %q, %v", s, err)
		}
	}
	if out, _, code := at.try("safe-state"); code != 0 || !strings.Contains(out, "RELAY1") {
		t.Errorf("safe-state: exit %d\n%s", code, out)
	}
	g.opens(at, 5*time.Second)
	at.kill() // SIGKILL ends a stopped process too
	g.opens(at, 5*time.Second)
}

// TestBusHang: meters and charge controller fall silent at once.
func TestBusHang(t *testing.T) {
	t.Parallel()
	second := config.Duration(time.Second)
	g, at := charging(t, func(_ *gateway, c *config.Config) { c.Timing.StaleAfter, c.Timing.StaleOff = 4*second, 2*second })
	g.street.Silence(at.index)
	g.opens(at, patience)
	if at.status().Height == 0 {
		t.Error("the gateway does not answer without its bus")
	}
	at.stop()
}

// TestFullDisk: records cannot be written, so nothing may be delivered.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("a file system that can be filled needs root (CAP_SYS_ADMIN)")
	}
	g, at := charging(t, func(g *gateway, _ *config.Config) {
		g.state += "-disk"
		g.client.Close()
		g.client = dialControl(g)
		if err := os.MkdirAll(g.state, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", g.state, "tmpfs", 0, "size=128m"); err != nil {
			t.Skipf("a file system that can be filled is not permitted here (CAP_SYS_ADMIN): %v", err)
		}
		t.Cleanup(func() {
			g.cleanup()
			if err := syscall.Unmount(g.state, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	})
	f, err := os.Create(filepath.Join(at.state, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(f, zero{})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	f.Close()
	g.opens(at, patience+2*slot)
}

// zero never ends.
type zero struct{}

func (zero) Read(b []byte) (int, error) { return len(b), nil }
