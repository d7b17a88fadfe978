package reflex

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"golang.org/x/sys/unix"
	periph "periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/gpio/gpiotest"
	"pgregory.net/rapid"
)

// pinSet is a set of pins that a test sees from both sides.
type pinSet struct {
	mu   sync.Mutex
	high map[string]bool
	bad  map[string]error // cannot be read or driven
}

func newPins() *pinSet { return &pinSet{high: map[string]bool{}, bad: map[string]error{}} }

func (b *pinSet) Open(d board.Pin) (periph.PinIO, error) {
	if strings.HasPrefix(d.Name, "NONE") {
		return nil, errors.New("no such line")
	}
	return &testPin{b: b, name: d.Name}, nil
}

func (b *pinSet) put(name string, high bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.high[name] = high
}

func (b *pinSet) fail(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bad[name] = err
}

func (b *pinSet) get(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.high[name]
}

type testPin struct {
	gpiotest.Pin
	b    *pinSet
	name string
}

func (p *testPin) In(periph.Pull, periph.Edge) error { return nil }
func (p *testPin) Out(l periph.Level) error {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	if err := p.b.bad[p.name]; err != nil {
		return err
	}
	p.b.high[p.name] = bool(l)
	return nil
}

func (p *testPin) Level() (periph.Level, error) {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	return periph.Level(p.b.high[p.name]), p.b.bad[p.name]
}

var (
	relay = board.Pin{Name: "RELAY1", Direction: board.Output, Polarity: board.ActiveHigh}
	stop  = board.Pin{Name: "STOP", Direction: board.Input, Polarity: board.ActiveHigh}
)

// connect runs a reflex in this process.
func connect(t testing.TB, pins Opener, lease time.Duration) (*Client, chan Trip) {
	t.Helper()
	var fds [2][2]int
	for i := range fds {
		var err error
		if fds[i], err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	page, f, err := NewPage()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	served := make(chan error, 1)
	go func() {
		served <- Serve(ServerConfig{Commands: fds[0][1], Trips: fds[1][1], Page: page, Pins: pins, Lease: lease, Log: slog.New(slog.DiscardHandler)})
		unix.Close(fds[0][1])
		unix.Close(fds[1][1])
	}()
	file := os.NewFile(uintptr(fds[1][0]), "trips")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(fds[0][0], conn, page)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	return c, make(chan Trip, 100)
}

func open(t testing.TB, c *Client, d board.Pin) periph.PinIO {
	t.Helper()
	p, err := c.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fresh keeps the lease until the test ends or stop is called.
func fresh(t testing.TB, c *Client) (stop func()) {
	end := make(chan struct{})
	done := make(chan struct{})
	c.Beat()
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(5 * time.Millisecond):
				c.Beat()
			}
		}
	}()
	var once sync.Once
	stop = func() { once.Do(func() { close(end); <-done }) }
	t.Cleanup(stop)
	return stop
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// guarded is a closed relay with a stop button.
func guarded(t *testing.T, lease time.Duration) (*pinSet, *Client, periph.PinIO, chan Trip, func()) {
	t.Helper()
	pins := newPins()
	c, trips := connect(t, pins, lease)
	r, in := open(t, c, relay), open(t, c, stop)
	if err := in.In(periph.Float, periph.NoEdge); err != nil {
		t.Fatal(err)
	}
	if err := c.Guard("RELAY1", "STOP", periph.High); err != nil {
		t.Fatal(err)
	}
	end := fresh(t, c)
	if err := r.Out(periph.High); err == nil {
		t.Fatal("closed before anybody listens to trips")
	}
	if err := c.Listen(func(tr Trip) { trips <- tr }); err != nil {
		t.Fatal(err)
	}
	if err := r.Out(periph.High); err != nil {
		t.Fatal(err)
	}
	if !pins.get("RELAY1") {
		t.Fatal("not closed")
	}
	return pins, c, r, trips, end
}

func TestContactOpens(t *testing.T) {
	for name, press := range map[string]func(*pinSet){
		"pressed":        func(b *pinSet) { b.put("STOP", true) },
		"cannot be read": func(b *pinSet) { b.fail("STOP", errors.New("wire cut")) },
	} {
		t.Run(name, func(t *testing.T) {
			pins, _, r, trips, _ := guarded(t, 5*time.Second)
			press(pins)
			if tr := <-trips; tr != (Trip{"RELAY1", "STOP"}) {
				t.Errorf("%+v", tr)
			}
			if pins.get("RELAY1") {
				t.Fatal("told of a trip, and the relay is closed")
			}
			if err := r.Out(periph.High); err == nil || pins.get("RELAY1") {
				t.Fatalf("closed while the contact is active: %v", err)
			}
			pins.fail("STOP", nil)
			pins.put("STOP", false)
			eventually(t, "closes again when told to", func() bool { return r.Out(periph.High) == nil })
		})
	}
}

// TestLease: whatever happens to the gateway that no connection tells.
func TestLease(t *testing.T) {
	pins, c, r, trips, end := guarded(t, 200*time.Millisecond)
	end()
	if tr := <-trips; tr != (Trip{Output: "RELAY1"}) || pins.get("RELAY1") {
		t.Fatalf("%+v, closed %t", tr, pins.get("RELAY1"))
	}
	if err := r.Out(periph.High); err == nil || pins.get("RELAY1") {
		t.Fatalf("closed without a lease: %v", err)
	}
	c.Beat()
	if err := r.Out(periph.High); err != nil {
		t.Fatal(err)
	}
	// A time that has not come yet is nobody's.
	c.page.store(wordLease, now()+uint64(time.Hour))
	<-trips
	if pins.get("RELAY1") {
		t.Error("closed on a lease from the future")
	}
}

func TestHangUpOpens(t *testing.T) {
	pins, c, r, _, _ := guarded(t, 5*time.Second)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "open", func() bool { return !pins.get("RELAY1") })
	if err := r.Out(periph.High); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	eventually(t, "levels that are not known", func() bool {
		_, err := r.(Leveler).Level()
		return err != nil
	})
}

// TestUntoldTrip: a command that crosses a trip on its way does not close.
func TestUntoldTrip(t *testing.T) {
	pins := newPins()
	c, _ := connect(t, pins, 5*time.Second)
	r := open(t, c, relay)
	open(t, c, stop)
	if err := c.Guard("RELAY1", "STOP", periph.High); err != nil {
		t.Fatal(err)
	}
	fresh(t, c)
	hold, told := make(chan struct{}), make(chan struct{})
	if err := c.Listen(func(Trip) { close(told); <-hold }); err != nil {
		t.Fatal(err)
	}
	if err := r.Out(periph.High); err != nil {
		t.Fatal(err)
	}
	pins.put("STOP", true)
	<-told
	pins.put("STOP", false)
	time.Sleep(3 * Every) // let go long since
	if err := r.Out(periph.High); err == nil || pins.get("RELAY1") {
		t.Fatalf("closed by somebody who does not know why it opened: %v", err)
	}
	close(hold)
	eventually(t, "closes when it is known", func() bool { return r.Out(periph.High) == nil })
}

// TestObeysAtLast: an output that fails to open is told again.
func TestObeysAtLast(t *testing.T) {
	pins, _, _, trips, _ := guarded(t, 5*time.Second)
	pins.fail("RELAY1", errors.New("stuck"))
	pins.put("STOP", true)
	<-trips
	pins.fail("RELAY1", nil)
	eventually(t, "open", func() bool { return !pins.get("RELAY1") })
}

func TestRefusals(t *testing.T) {
	pins := newPins()
	c, _ := connect(t, pins, time.Second)
	r, in := open(t, c, relay), open(t, c, stop)
	if _, err := c.Open(board.Pin{Name: "NONE", Direction: board.Input}); err == nil || !strings.Contains(err.Error(), "no such line") {
		t.Errorf("%v", err)
	}
	if _, err := c.Open(board.Pin{Name: "X"}); err == nil {
		t.Error("a pin without direction")
	}
	if err := in.Out(periph.High); err == nil {
		t.Error("an input was driven")
	}
	if err := r.In(periph.Float, periph.NoEdge); err == nil {
		t.Error("an output was made an input")
	}
	if c.Guard("STOP", "RELAY1", periph.High) == nil || c.Guard("RELAY1", "RELAY1", periph.High) == nil || c.Guard("RELAY1", "none", periph.High) == nil {
		t.Error("a guard that is none")
	}
	if _, err := c.do(frame{kind: 99}); err == nil {
		t.Error("an unknown request")
	}
	for i := 2; i < MaxPins; i++ {
		open(t, c, board.Pin{Name: fmt.Sprint("IN", i), Direction: board.Input})
	}
	if _, err := c.Open(board.Pin{Name: "ONE MORE", Direction: board.Input}); err == nil {
		t.Error("more pins than there are")
	}
}

// TestNeverClosesByItself: whatever is said, pressed, forgotten or broken, in
// any order, the relay is closed only after a command to close that knew of
// every trip, with a fresh lease and the contact at rest.
func TestNeverClosesByItself(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		page, f, err := NewPage()
		if err != nil {
			rt.Fatal(err)
		}
		f.Close()
		defer page.Close()
		pins := newPins()
		s := &server{cfg: ServerConfig{Page: page, Pins: pins, Lease: time.Hour, Commands: -1, Trips: -1, Log: slog.New(slog.DiscardHandler)}, out: make([]byte, 0, maxFrame)}
		for _, d := range []board.Pin{relay, stop} {
			text, err := encodePin(d)
			if err != nil {
				rt.Fatal(err)
			}
			if _, err := s.openPin(text); err != nil {
				rt.Fatal(err)
			}
		}
		var a frame
		if err := s.obey(frame{kind: opGuard, pin: 0, other: 1, level: true}, &a); err != nil {
			rt.Fatal(err)
		}
		pressed, broken, leased := false, false, false
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			was := pins.get("RELAY1")
			closes := false
			switch rapid.IntRange(0, 6).Draw(rt, "what") {
			case 0:
				pressed = rapid.Bool().Draw(rt, "pressed")
				pins.put("STOP", pressed)
			case 1:
				broken = rapid.Bool().Draw(rt, "broken")
				if pins.fail("STOP", nil); broken {
					pins.fail("STOP", errors.New("cut"))
				}
			case 2:
				if leased = rapid.Bool().Draw(rt, "leased"); leased {
					page.store(wordLease, now())
				} else {
					page.store(wordLease, 0)
				}
			case 3:
				s.look()
				if pins.get("RELAY1") && (pressed || broken || !leased) {
					rt.Fatal("closed after a look that should have opened it")
				}
			case 4:
				known := s.pins[0].trips + uint64(rapid.IntRange(-1, 1).Draw(rt, "known"))
				closes = s.listening && leased && !pressed && !broken && known == s.pins[0].trips
				err := s.obey(frame{kind: opOut, pin: 0, level: true, trips: known}, &a)
				if (err == nil) != closes {
					rt.Fatalf("told to close: %v, want it to be possible: %t", err, closes)
				}
			case 5:
				_ = s.obey(frame{kind: opOut, pin: 0}, &a)
			case 6:
				b := rapid.SliceOfN(rapid.Byte(), headBytes, headBytes+8).Draw(rt, "noise")
				if b[3] &= 1; b[0] == opOut && b[1] == 0 {
					b[3] = 0 // what a command to close does is known from above
				}
				if f, err := parseFrame(b); err == nil && f.kind != opOpen && f.kind != opGuard {
					_ = s.obey(f, &a)
				}
			}
			if pins.get("RELAY1") && !was && !closes {
				rt.Fatal("closed, and nobody said so")
			}
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(frame{kind: opOut, pin: 1, level: true, seq: 7, trips: 3}.append(nil))
	text, _ := encodePin(relay)
	f.Add(frame{kind: opOpen, text: text}.append(nil))
	f.Add([]byte("RELAY1 closed, please"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := parseFrame(b)
		if err != nil {
			return
		}
		if string(fr.append(nil)) != string(b) {
			t.Fatalf("%x is not what it means", b)
		}
		page, file, err := NewPage()
		if err != nil {
			t.Fatal(err)
		}
		defer page.Close()
		file.Close()
		pins := newPins()
		s := &server{cfg: ServerConfig{Page: page, Pins: pins, Lease: time.Hour, Commands: -1, Trips: -1, Log: slog.New(slog.DiscardHandler)}, out: make([]byte, 0, maxFrame)}
		if _, err := s.openPin(text); err != nil {
			t.Fatal(err)
		}
		var a frame
		_ = s.obey(fr, &a)
		s.look()
		if pins.get("RELAY1") {
			t.Fatalf("%x closed the relay of a gateway that has not begun", b)
		}
	})
}

// TestKilled: a gateway in its own process, stopped or killed, loses its relay
// within the lease; a killed reflex is noticed.
func TestKilled(t *testing.T) {
	if d := os.Getenv("REFLEX_TEST_GATEWAY"); d != "" {
		beGateway(d)
		return
	}
	if d := os.Getenv("REFLEX_TEST_REFLEX"); d != "" {
		if err := ServeStarted(ServerConfig{Pins: filePins(d), Lease: 300 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
		return
	}
	for name, sig := range map[string]unix.Signal{"stopped": unix.SIGSTOP, "killed": unix.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command("/proc/self/exe", "-test.run", "^TestKilled$")
			cmd.Env = append(os.Environ(), "REFLEX_TEST_GATEWAY="+dir)
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				b, _ := os.ReadFile(filepath.Join(dir, "pid"))
				if pid, err := strconv.Atoi(string(b)); err == nil {
					eventually(t, "the reflex has ended", func() bool { return unix.Kill(pid, 0) != nil })
				}
			}()
			at := func() string { b, _ := os.ReadFile(filepath.Join(dir, "RELAY1")); return string(b) }
			eventually(t, "closed", func() bool { return at() == "1" })
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			eventually(t, "open", func() bool { return at() == "0" })
		})
	}
}

func beGateway(dir string) {
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestKilled$")
	cmd.Env = append(os.Environ(), "REFLEX_TEST_GATEWAY=", "REFLEX_TEST_REFLEX="+dir)
	p, err := Start(cmd)
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(p.cmd.Process.Pid)), 0o600); err != nil {
		panic(err)
	}
	r, err := p.Open(relay)
	if err != nil {
		panic(err)
	}
	if err := p.Listen(func(Trip) {}); err != nil {
		panic(err)
	}
	p.Beat()
	if err := r.Out(periph.High); err != nil {
		panic(err)
	}
	for {
		p.Beat()
		time.Sleep(5 * time.Millisecond)
	}
}

// filePins are outputs that a test sees as files.
type filePins string

func (d filePins) Open(p board.Pin) (periph.PinIO, error) {
	return &filePin{path: filepath.Join(string(d), p.Name)}, nil
}

type filePin struct {
	gpiotest.Pin
	path string
}

func (p *filePin) Out(l periph.Level) error {
	s := "0"
	if l {
		s = "1"
	}
	if err := os.WriteFile(p.path+".new", []byte(s), 0o600); err != nil {
		return err
	}
	return os.Rename(p.path+".new", p.path)
}

// TestReflexKilled: the gateway learns that its reflex has gone.
func TestReflexKilled(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestKilled$")
	cmd.Env = append(os.Environ(), "REFLEX_TEST_REFLEX="+t.TempDir())
	p, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, p.Client, relay)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.Ended()
	<-p.Gone()
	if err := r.Out(periph.High); !errors.Is(err, ErrGone) {
		t.Errorf("%v", err)
	}
	_ = p.Close()
}
