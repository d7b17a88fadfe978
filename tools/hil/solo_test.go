//go:build hil

package hil

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/tools/hil/wire"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

// solo is a gateway that has founded a microgrid and has a driver with money.
// prepare may change its configuration.
func solo(t *testing.T, cfg MachineConfig, prepare func(*config.Config)) *site {
	t.Helper()
	t.Parallel()
	st, _ := neighbourhood(t, 1)
	cfg.Disk = theLab.disk(t, "data", 256)
	if cfg.Arch.Name == "" {
		cfg.Arch = ARM64
	}
	s := build(t, st, 0, cfg)
	if prepare != nil {
		prepare(&s.yaml)
	}
	s.found()
	s.run("account", "new", "anna")
	start := time.Now()
	s.start()
	t.Logf("ready %s after it was started", time.Since(start).Round(time.Millisecond))
	s.run("account", "mint", "--to", "anna", "--amount", "50", "--ref", "SEPA-0")
	return s
}

// charger is what the gateway says of its charger.
func (s *site) charger() board.Charger {
	s.t.Helper()
	all := ask[[]board.Charger](s, "charger", "ls")
	if len(all) != 1 {
		s.t.Fatalf("%d chargers", len(all))
	}
	return all[0]
}

// stays fails if an output moves while f is true to begin with.
func (s *site) stays(line int, high bool, why string) {
	s.t.Helper()
	if _, level, err := s.m.Output(line); err != nil || level != high {
		s.t.Fatalf("%s: %s is high=%t, %v", why, lineNames[line], level, err)
	}
}

// TestCharge: from boot to an ordinary end. Not once is the relay closed
// before a session is paid for.
func TestCharge(t *testing.T) {
	s := solo(t, MachineConfig{}, nil)
	s.until("reading", func() (bool, any) {
		out := s.run("charger", "ls")
		return !strings.Contains(out, "stale"), out
	})
	s.mu.Lock()
	if !s.when[Relay1].IsZero() && s.last[Relay1] {
		t.Error("the relay was closed before anybody paid")
	}
	s.mu.Unlock()
	if output, high, err := s.m.Output(Relay1); err != nil || !output || high {
		t.Errorf("before the session the relay's pin is output=%t high=%t, %v", output, high, err)
	}
	s.charge()
	s.run("charger", "stop", "1")
	s.moves(Relay1, false)
	if st := s.street.State(0); st.Charging != 0 {
		t.Errorf("%+v", st)
	}
	s.until("settlement", func() (bool, any) {
		all := ask[[]panel.Session](s, "session", "ls")
		return len(all) == 1 && !all[0].State.Open(), all
	})
}

// TestEStop: from the contact outside to the relay outside, through an
// emulated processor.
func TestEStop(t *testing.T) {
	s := solo(t, MachineConfig{}, nil)
	for range 3 {
		s.charge()
		pressed := time.Now()
		if err := s.m.Input(In1, true); err != nil {
			t.Fatal(err)
		}
		t.Logf("relay off %s after the contact", s.moves(Relay1, false).Sub(pressed).Round(100*time.Microsecond))
		if out, code := s.try("session", "start", "--wallet", "anna", "--kwh", "1", "--yes"); code == 0 {
			t.Fatalf("charges with the button pressed: %s", out)
		}
		s.stays(Relay1, false, "pressed")
		if err := s.m.Input(In1, false); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMeterFaults: a line that is noisy is borne, one that is silent ends
// charging, and one that was unplugged comes back.
func TestMeterFaults(t *testing.T) {
	s := solo(t, MachineConfig{}, nil)
	s.charge()
	before := s.street.Stats(0).Requests
	if err := s.street.SetFaults(0, slave.Faults{slave.Late: 0.02, slave.CRC: 0.05, slave.Split: 0.05}); err != nil {
		t.Fatal(err)
	}
	s.until("100 requests on a noisy line", func() (bool, any) {
		n := s.street.Stats(0).Requests - before
		s.stays(Relay1, true, "noise")
		return n > 100, n
	})
	if err := s.street.SetFaults(0, slave.Faults{slave.Silence: 1}); err != nil {
		t.Fatal(err)
	}
	silent := time.Now()
	t.Logf("relay off %s after the last answer", s.moves(Relay1, false).Sub(silent).Round(time.Millisecond))
	if err := s.street.SetFaults(0, nil); err != nil {
		t.Fatal(err)
	}
	s.moves(Relay1, true) // the session goes on

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := s.m.Unplug(ctx); err != nil {
		t.Fatal(err)
	}
	gone := time.Now()
	t.Logf("relay off %s after the adapter was unplugged", s.moves(Relay1, false).Sub(gone).Round(time.Millisecond))
	before = s.street.Stats(0).Requests
	if err := s.m.Plug(); err != nil {
		t.Fatal(err)
	}
	s.until("requests after the replug", func() (bool, any) {
		n := s.street.Stats(0).Requests - before
		return n > 10, n
	})
	s.moves(Relay1, true)
	if c := s.charger(); c.Session == "" || c.State != "charging" {
		t.Errorf("after the replug: %+v", c)
	}
}

// TestWeld: the contactor does not open.
func TestWeld(t *testing.T) {
	s := solo(t, MachineConfig{}, nil)
	s.charge()
	s.mu.Lock()
	s.welded = true
	s.mu.Unlock()
	s.run("charger", "stop", "1")
	s.moves(Relay1, false)
	s.until("weld", func() (bool, any) {
		c := s.charger()
		return strings.Contains(c.Fault, "weld"), c
	})
	if out, code := s.try("session", "start", "--wallet", "anna", "--kwh", "1", "--yes"); code == 0 {
		t.Fatalf("a welded charger was sold: %s", out)
	}
	// Repaired, and still nobody charges before a person has said so.
	s.mu.Lock()
	s.welded = false
	s.mu.Unlock()
	s.street.SetRelay(0, false)
	if err := s.m.Input(In2, false); err != nil {
		t.Fatal(err)
	}
	if c := s.charger(); !strings.Contains(c.Fault, "weld") {
		t.Errorf("the fault cleared itself: %+v", c)
	}
	s.until("clearing", func() (bool, any) {
		out, code := s.try("charger", "clear", "1")
		return code == 0, out
	})
	s.charge()
}

// TestKilled: kill -9 and a crash in mid-charge, with an armed watchdog.
func TestKilled(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"kill -9": syscall.SIGKILL, "crash": syscall.SIGABRT} {
		t.Run(name, func(t *testing.T) {
			s := solo(t, MachineConfig{Watchdog: true}, func(c *config.Config) {
				c.Watchdog.Device, c.Watchdog.Timeout = "/dev/watchdog0", config.Duration(10*time.Second)
			})
			id := s.charge()
			killed := time.Now()
			s.signal(int(sig))
			t.Logf("relay off %s after %v", s.moves(Relay1, false).Sub(killed).Round(time.Millisecond), sig)
			s.hear(wire.Exit) // and safe-state has run
			s.stays(Relay1, false, "after safe-state")
			// The watchdog was left armed: a gateway that does not come back resets the board.
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			if _, err := s.m.AwaitEvent(ctx, "WATCHDOG"); err != nil {
				t.Fatal(err)
			}
			t.Logf("watchdog %s after", time.Since(killed).Round(time.Millisecond))
			s.start()
			s.until("the session's end or its going on", func() (bool, any) {
				for _, v := range ask[[]panel.Session](s, "session", "ls") {
					if v.ID == id {
						return !v.State.Open() || s.street.State(0).Charging > 0, v
					}
				}
				return false, "no such session"
			})
		})
	}
}

// TestHang: the whole process stops; nobody closes its files.
func TestHang(t *testing.T) {
	s := solo(t, MachineConfig{Watchdog: true}, func(c *config.Config) {
		c.Watchdog.Device, c.Watchdog.Timeout = "/dev/watchdog0", config.Duration(10*time.Second)
	})
	s.charge()
	stopped := time.Now()
	s.signal(int(syscall.SIGSTOP))
	t.Logf("relay off %s after the process was stopped", s.moves(Relay1, false).Sub(stopped).Round(time.Millisecond))
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := s.m.AwaitEvent(ctx, "WATCHDOG"); err != nil {
		t.Fatal(err)
	}
	t.Logf("watchdog %s after", time.Since(stopped).Round(time.Millisecond))
}

// TestDiskFull: what cannot be recorded is not delivered.
func TestDiskFull(t *testing.T) {
	s := solo(t, MachineConfig{}, nil)
	s.charge()
	s.do(wire.Request{Op: wire.Fill, Name: "/data/fill"})
	s.moves(Relay1, false)
	s.do(wire.Request{Op: wire.Remove, Name: "/data/fill"})
	s.until("a state that can be verified", func() (bool, any) {
		out, code := s.try("ledger", "verify")
		return code == 0, out
	})
}

// TestClockJump: no RTC, NTP late, somebody's hand. A step back changes
// nothing. A step ahead by a day ends the session where a gateway is alone and
// its clock is the ledger's, and that in order: the current has gone before
// the relay opens, and nothing closes it again. In between the contact works.
func TestClockJump(t *testing.T) {
	s := solo(t, MachineConfig{}, nil)
	s.charge()
	s.do(wire.Request{Op: wire.Clock, Number: time.Now().Add(-3 * time.Hour).UnixNano()})
	before := s.street.Stats(0).Requests
	s.until("100 requests after a step back", func() (bool, any) {
		s.stays(Relay1, true, "a step back")
		n := s.street.Stats(0).Requests - before
		return n > 100, n
	})
	s.do(wire.Request{Op: wire.Clock, Number: time.Now().Add(26 * time.Hour).UnixNano()})
	pressed := time.Now()
	if err := s.m.Input(In1, true); err != nil {
		t.Fatal(err)
	}
	t.Logf("relay off %s after the contact", s.moves(Relay1, false).Sub(pressed).Round(100*time.Microsecond))
	if err := s.m.Input(In1, false); err != nil {
		t.Fatal(err)
	}
	before = s.street.Stats(0).Requests
	s.until("100 requests after a step ahead", func() (bool, any) {
		s.stays(Relay1, false, "a step ahead")
		n := s.street.Stats(0).Requests - before
		return n > 100, n
	})
	s.charge()
}

// cuts is how often the power fails, over all machines that it fails for.
const (
	cuts        = 50
	cutMachines = 2
)

// TestPowerCut: the machine is killed while it writes, again and again. What
// somebody was told to be done is there afterwards.
func TestPowerCut(t *testing.T) {
	for n := range cutMachines {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			s := solo(t, MachineConfig{}, nil)
			paid := 50 // euro that anna was told to have
			for cut := range cuts / cutMachines {
				// One more euro, acknowledged or not when the power fails.
				maybe := 0
				ctx, stop := context.WithCancel(t.Context())
				acknowledged := make(chan bool, 1)
				go func() {
					a, err := s.m.Do(ctx, wire.Request{Op: wire.Run, Number: int64(limit), Args: []string{
						program, "--config", cfgFile, "--state", state, "account", "mint", "--to", "anna", "--amount", "1", "--ref", fmt.Sprint("CUT-", cut),
					}})
					acknowledged <- err == nil && a.Code == 0
				}()
				select {
				case ok := <-acknowledged:
					if !ok {
						t.Fatal("a payment was refused")
					}
					paid++
				case <-time.After(time.Duration(rng.Int64N(int64(3 * time.Second)))): // mid-write
					maybe = 1
				}
				s.m.Kill()
				stop()
				s.boot()
				s.start()
				var got int
				s.until("account", func() (bool, any) {
					got = 0 // hers is the only account
					for _, a := range ask[[]panel.Account](s, "account", "ls") {
						got += int(a.Balance / 1_000_000_000)
					}
					return got >= paid, got
				})
				if got > paid+maybe {
					t.Fatalf("cut %d: %d euro, %d were paid in", cut, got, paid)
				}
				paid = got
			}
			if out, code := s.try("ledger", "verify"); code != 0 {
				t.Errorf("after %d cuts: %s", cuts/cutMachines, out)
			}
		})
	}
}
