package watchdog

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers/driverstest"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/session"
	"github.com/joulegate/joulegate/meter/slot"
	"golang.org/x/sys/unix"
)

// chip behaves as a watchdog driver of Linux does: opening arms it, a missed
// time-out resets the board, and only a "V" before the end disarms it.
type chip struct {
	mu      sync.Mutex
	timeout time.Duration
	most    int // seconds that the hardware can count
	noMagic bool
	fixed   bool
	calls   []string
	fed     int
	expect  bool // a V was written
	reset   bool
	fuse    *time.Timer
}

func (c *chip) say(s string) { c.calls = append(c.calls, s) }

func (c *chip) arm() {
	if c.fuse != nil {
		c.fuse.Stop()
	}
	c.fuse = time.AfterFunc(c.timeout, func() { c.mu.Lock(); c.reset = true; c.mu.Unlock() })
}

func (c *chip) open(asked time.Duration) func() (Dog, time.Duration, error) {
	return func() (Dog, time.Duration, error) {
		c.mu.Lock()
		c.say("open")
		c.arm()
		c.mu.Unlock()
		return arm(c, "/dev/watchdog0", asked)
	}
}

func (c *chip) Info() (*unix.WatchdogInfo, error) {
	i := &unix.WatchdogInfo{Options: unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING}
	if !c.noMagic {
		i.Options |= unix.WDIOF_MAGICCLOSE
	}
	copy(i.Identity[:], "chip")
	return i, nil
}

func (c *chip) SetTimeout(s int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.say("timeout " + strconv.Itoa(s))
	switch {
	case c.fixed:
		return unix.EOPNOTSUPP
	case s > c.most:
		return unix.EINVAL
	}
	c.timeout = time.Duration(s) * time.Second
	return nil
}

func (c *chip) Timeout() (int, error) { return int(c.timeout / time.Second), nil }

func (c *chip) KeepAlive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fed++
	c.arm()
	return nil
}

func (c *chip) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.say("write " + string(b))
	c.expect = strings.Contains(string(b), "V")
	return len(b), nil
}

func (c *chip) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.say("close")
	if c.expect || c.noMagic {
		c.fuse.Stop()
	}
	return nil
}

func (c *chip) state() (fed int, reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fed, c.reset
}

// manager is systemd as a service sees it.
type manager struct {
	mu   sync.Mutex
	said []string
}

func (m *manager) notify(s string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said = append(m.said, s)
	return nil
}

func (m *manager) count(s string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.said {
		if v == s {
			n++
		}
	}
	return n
}

// scene is a watchdog with all it can tell, under fake time.
type scene struct {
	chip  *chip
	sys   *manager
	heart *driverstest.Relay
	stop  context.CancelCauseFunc
	ended chan error
}

func newScene(t *testing.T, probes ...Probe) *scene {
	t.Helper()
	s := &scene{chip: &chip{timeout: time.Minute, most: 15}, sys: &manager{}, heart: &driverstest.Relay{}, ended: make(chan error, 1)}
	w, err := New(Config{
		Probes: probes, Open: s.chip.open(12 * time.Second), Heartbeat: s.heart, Notify: s.sys.notify, SystemdEach: 9 * time.Second,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	s.stop = stop
	go func() { s.ended <- w.Run(ctx) }()
	synctest.Wait()
	return s
}

// work counts while it is on.
type work struct {
	n  atomic.Uint64
	on atomic.Bool
}

func newWork(ctx context.Context, name string) (*work, Probe) {
	w := &work{}
	w.on.Store(true)
	go func() {
		for t := time.NewTicker(25 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				if w.on.Load() {
					w.n.Add(1)
				}
			}
		}
	}()
	return w, Probe{name, w.n.Load}
}

func TestFedWhileThereIsProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		loop, p1 := newWork(ctx, "loop")
		other, p2 := newWork(ctx, "other")
		s := newScene(t, p1, p2)
		time.Sleep(time.Minute)
		synctest.Wait()
		fed, reset := s.chip.state()
		if reset || fed < 15 || s.sys.count("READY=1") != 1 || s.sys.count("WATCHDOG=1") < 15 {
			t.Fatalf("after a minute: reset %t, fed %d times, systemd heard %d", reset, fed, s.sys.count("WATCHDOG=1"))
		}
		beats := len(s.heart.Log())
		if beats < 500 || beats > 600 {
			t.Errorf("the heartbeat moved %d times in a minute", beats)
		}

		for _, w := range []*work{loop, other} { // either of them is enough
			w.on.Store(false)
			time.Sleep(2 * time.Second)
			synctest.Wait()
			fed, _ = s.chip.state()
			told, beats := s.sys.count("WATCHDOG=1"), len(s.heart.Log())
			time.Sleep(8 * time.Second)
			synctest.Wait()
			if now, _ := s.chip.state(); now != fed || s.sys.count("WATCHDOG=1") != told || len(s.heart.Log()) != beats {
				t.Fatalf("a probe stands still: fed %d more times, told %d, %d heartbeats", now-fed, s.sys.count("WATCHDOG=1")-told, len(s.heart.Log())-beats)
			}
			// It mends itself in time: all goes on.
			w.on.Store(true)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if now, reset := s.chip.state(); now == fed || reset || len(s.heart.Log()) == beats {
				t.Fatalf("progress again: fed %d more times, reset %t", now-fed, reset)
			}
		}
		// It does not: the hardware acts.
		loop.on.Store(false)
		time.Sleep(12*time.Second + time.Second)
		synctest.Wait()
		if _, reset := s.chip.state(); !reset {
			t.Fatal("the loop hangs and the board lives on")
		}
		s.stop(nil)
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestHeartbeatStopsWithinAPeriod: the relay driver behind it may count on it.
func TestHeartbeatStopsWithinAPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		loop, p := newWork(ctx, "loop")
		s := newScene(t, p)
		time.Sleep(10 * time.Second)
		loop.on.Store(false)
		synctest.Wait()
		beats := len(s.heart.Log())
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(s.heart.Log()) - beats; n > 1 {
			t.Errorf("%d heartbeats without a loop", n)
		}
		s.stop(nil)
		<-s.ended
	})
}

// TestNothingIsReadyBeforeProof: a service that was started is not one that
// works.
func TestNothingIsReadyBeforeProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Uint64
		s := newScene(t, Probe{"loop", n.Load})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if fed, _ := s.chip.state(); fed != 1 || s.sys.count("READY=1") != 0 || len(s.heart.Log()) != 0 { // once, when it was armed
			t.Errorf("without proof: fed %d times, ready %d, %d heartbeats", fed, s.sys.count("READY=1"), len(s.heart.Log()))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, reset := s.chip.state(); !reset {
			t.Error("a loop that never ran does not reset the board")
		}
		s.stop(nil)
		<-s.ended
	})
}

func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name  string
		cause error
		noV   bool
		reset bool
	}{
		{"orderly", nil, false, false},
		{"the loop failed", errors.New("panic"), false, true},
		{"orderly, without magic close", nil, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				_, p := newWork(ctx, "loop")
				s := newScene(t, p)
				s.chip.noMagic = c.noV
				time.Sleep(5 * time.Second)
				s.stop(c.cause)
				if err := <-s.ended; err != nil {
					t.Fatal(err)
				}
				if closed, _ := s.heart.Closed(); closed {
					t.Error("the heartbeat rests high")
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if _, reset := s.chip.state(); reset != c.reset {
					t.Errorf("reset %t after %s", reset, s.chip.calls)
				}
			})
		})
	}
}

func TestArm(t *testing.T) {
	for _, c := range []struct {
		name string
		chip *chip
		want string // error, or calls
		has  time.Duration
	}{
		{"as asked", &chip{most: 15}, "open timeout 12", 12 * time.Second},
		{"too long for the hardware", &chip{most: 10}, "chip does not do 12 s", 0},
		{"a fixed time-out", &chip{timeout: 20 * time.Second, fixed: true}, "open timeout 12", 20 * time.Second},
		{"a fixed time-out that is far from it", &chip{timeout: time.Minute, fixed: true}, "chip counts 60 s, asked were 12", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.chip.timeout == 0 {
				c.chip.timeout = time.Minute
			}
			dog, has, err := c.chip.open(12 * time.Second)()
			got := strings.Join(c.chip.calls, " ")
			if err != nil {
				// A wrong configuration must not reset the board for ever.
				if !strings.HasSuffix(got, "write V close") {
					t.Errorf("left armed: %s", got)
				}
				got = err.Error()
			} else {
				defer dog.Close(true)
			}
			if !strings.Contains(got, c.want) || has != c.has {
				t.Errorf("%s, %s; want %s, %s", got, has, c.want, c.has)
			}
		})
	}
	if _, _, err := Device(filepath.Join(t.TempDir(), "watchdog0"), time.Second)(); err == nil || !strings.Contains(err.Error(), "load its driver") {
		t.Errorf("no device: %v", err)
	}
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Device(plain, time.Second)(); err == nil || !strings.Contains(err.Error(), plain) {
		t.Errorf("not a watchdog: %v", err)
	}
	if _, err := New(Config{Log: slog.Default()}); err == nil {
		t.Error("a watchdog without a probe")
	}
}

// TestSystemd talks to a socket as systemd's.
func TestSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "600000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	var n atomic.Uint64
	w, err := New(Config{Probes: []Probe{{"loop", func() uint64 { return n.Add(1) }}}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	var heard []string
	hear := func() {
		b := make([]byte, 256)
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		k, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		heard = append(heard, string(b[:k]))
	}
	for range 4 {
		hear()
	}
	w.Renewing()
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	w.Stopping()
	for heard[len(heard)-1] != "STOPPING=1" {
		hear()
	}
	heard = slices.Compact(heard)
	if want := []string{"WATCHDOG_USEC=600000", "READY=1", "WATCHDOG=1", "WATCHDOG_USEC=60000000", "WATCHDOG=1", "STOPPING=1"}; !slices.Equal(heard, want) {
		t.Errorf("systemd heard %s, want %s", heard, want)
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if _, err := New(Config{Probes: []Probe{{}}, Log: slog.Default()}); err == nil {
		t.Error("a WatchdogSec that cannot be read is ignored")
	}
}

// hook is a stop button that can hang the loop which reads it.
type hook struct{ block atomic.Pointer[chan struct{}] }

func (h *hook) Active() (bool, error) {
	if c := h.block.Load(); c != nil {
		<-*c
	}
	return false, nil
}

type nowhere struct{}

func (nowhere) Append(context.Context, []chain.Record) error    { return nil }
func (nowhere) Keep(slot.Leaves) error                          { return nil }
func (nowhere) Unsent(r []chain.Record) ([]chain.Record, error) { return r, nil }
func (nowhere) Load() ([]byte, error)                           { return nil, nil }
func (nowhere) Save([]byte) error                               { return nil }
func (nowhere) Publish(board.Snapshot)                          {}

// TestRealLoop hangs the station's own loop, and then leaves it a relay that
// does not open: in both cases nobody outside may believe that all is well.
func TestRealLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		relay, button, origin := &driverstest.Relay{}, &hook{}, time.Now()
		st, err := station.New(station.Config{
			Name: "north", SlotSeconds: 900, Tick: 25 * time.Millisecond, Watchdog: time.Second, QuoteLife: time.Minute,
			Meters:   []station.Meter{{ID: "car", Role: chain.RoleCharger, Interval: time.Second}},
			Chargers: []station.Charger{{ID: 1, Meter: "car", Relay: relay, EStop: button, Session: session.Rules{MaxCurrent: 16_000, Phases: 3, LoopLimit: time.Second}}},
			Outbox:   nowhere{}, Store: nowhere{}, Publisher: nowhere{},
			Receipt: func(station.Receipt) (chain.Hash, error) { return chain.Hash{}, nil },
			Now:     func() time.Duration { return time.Since(origin) }, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		loop := make(chan error, 1)
		go func() { loop <- st.Run(ctx) }()
		s := newScene(t, Probe{"control loop", st.Progress})
		quiet := func(what string) {
			t.Helper()
			time.Sleep(5 * time.Second) // the loop's own patience, and the output's
			synctest.Wait()
			fed, _ := s.chip.state()
			told, beats := s.sys.count("WATCHDOG=1"), len(s.heart.Log())
			time.Sleep(6 * time.Second)
			synctest.Wait()
			if now, _ := s.chip.state(); now != fed || s.sys.count("WATCHDOG=1") != told || len(s.heart.Log()) != beats {
				t.Fatalf("%s: fed %d times, systemd told %d times, %d heartbeats", what, now-fed, s.sys.count("WATCHDOG=1")-told, len(s.heart.Log())-beats)
			}
		}
		well := func() {
			t.Helper()
			fed, _ := s.chip.state()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if now, _ := s.chip.state(); now == fed {
				t.Fatal("all is well and nobody is fed")
			}
		}
		well()
		block := make(chan struct{})
		button.block.Store(&block)
		quiet("the loop hangs")
		button.block.Store(nil)
		close(block)
		well()
		relay.Weld(true)
		quiet("an output that has to be open reads closed")
		relay.Weld(false)
		well()
		st.Reading(meter.Reading{Device: "car"}) // unrelated work is not proof
		cancel()
		if err := <-loop; err != nil {
			t.Fatal(err)
		}
		s.stop(nil)
		if err := <-s.ended; err != nil {
			t.Fatal(err)
		}
	})
}
