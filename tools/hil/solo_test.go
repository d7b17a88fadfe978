//go:build hil

package hil

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/tools/hil/wire"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

// solo is a gateway that has founded a microgrid and has a driver with money.
// prepare may change its configuration.
func solo(t *testing.T, cfg MachineConfig, prepare func(*config.Config)) (*site, keys.Wallet) {
	t.Helper()
	t.Parallel()
	st := neighbourhood(t, 1)
	cfg.Disk = theLab.disk(t, "data", 256)
	if cfg.Arch.Name == "" {
		cfg.Arch = ARM64
	}
	s := build(t, st, 0, cfg)
	if prepare != nil {
		prepare(&s.yaml)
	}
	s.found("--slot", "30s")
	start := time.Now()
	s.start()
	t.Logf("ready %s after it was started", time.Since(start).Round(time.Millisecond))
	return s, s.driver("anna", 50)
}

// charger is what the gateway says of its charger.
func (s *site) charger() board.Charger {
	s.t.Helper()
	all := call(s, s.client.Chargers)
	if len(all) != 1 {
		s.t.Fatalf("%d chargers", len(all))
	}
	return all[0]
}

// delivers waits until there is something to bill.
func (s *site) delivers() {
	s.t.Helper()
	s.until("energy", func(ctx context.Context) (bool, any) {
		all, err := s.client.Chargers(ctx)
		return err == nil && len(all) == 1 && all[0].SessionWh >= 5, fmt.Sprintf("%+v %v", all, err)
	})
}

// refuses fails if the charger is sold.
func (s *site) refuses(w keys.Wallet, why string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	q, err := s.client.Quote(ctx, panel.QuoteRequest{Connector: 1, Driver: w.Public(), MaxWh: 1000})
	if err != nil {
		return
	}
	if v, err := s.client.StartSession(ctx, q.Sign(w.Key)); err == nil {
		s.t.Fatalf("%s: session %s was sold", why, v.ID)
	}
}

// stop ends charging as a passer-by does.
func (s *site) stop() {
	s.t.Helper()
	call(s, func(ctx context.Context) (board.Charger, error) {
		return s.client.OrderCharger(ctx, 1, panel.ChargerOrder{Do: "stop"})
	})
	s.moves(Relay1, false)
}

// requests waits until so many more requests were seen on the line.
func (s *site) requests(n int, when string, check func()) {
	s.t.Helper()
	before := s.street.Stats(s.index).Requests
	s.until(fmt.Sprintf("%d requests %s", n, when), func(context.Context) (bool, any) {
		check()
		seen := s.street.Stats(s.index).Requests - before
		return seen > n, seen
	})
}

// stays fails if an output moves while f is true to begin with.
func (s *site) stays(line int, high bool, why string) {
	s.t.Helper()
	if _, level, err := s.m.Output(line); err != nil || level != high {
		s.t.Fatalf("%s: %s is high=%t, %v", why, lineNames[line], level, err)
	}
}

// TestCharge: from boot to an ordinary end, by the commands that a person
// types, with the guard at work. Not once is the relay closed before a session
// is paid for.
func TestCharge(t *testing.T) {
	s, _ := solo(t, MachineConfig{}, func(c *config.Config) { c.Guard.Mode = config.Default().Guard.Mode })
	s.until("reading", func(context.Context) (bool, any) {
		out := s.run("charger", "ls")
		return !strings.Contains(out, "stale"), out
	})
	s.run("account", "new", "berta")
	s.run("account", "mint", "--to", "berta", "--amount", "50", "--ref", "SEPA-B")
	s.plug()
	s.mu.Lock()
	if !s.when[Relay1].IsZero() && s.last[Relay1] {
		t.Error("the relay was closed before anybody paid")
	}
	s.mu.Unlock()
	if output, high, err := s.m.Output(Relay1); err != nil || !output || high {
		t.Errorf("before the session the relay's pin is output=%t high=%t, %v", output, high, err)
	}
	s.run("session", "start", "--wallet", "berta", "--kwh", "20", "--yes")
	s.flows()
	s.delivers()
	s.run("charger", "stop", "1")
	s.moves(Relay1, false)
	if st := s.street.State(0); st.Charging != 0 {
		t.Errorf("%+v", st)
	}
	all := ask[[]panel.Session](s, "session", "ls")
	if len(all) != 1 {
		t.Fatalf("%d sessions are listed", len(all))
	}
	if v := s.settled(all[0].ID); v.Wh == 0 || v.Paid == 0 {
		t.Errorf("nothing was billed: %+v", v)
	}
}

// TestEStop: from the contact outside to the relay outside, through an
// emulated processor. The meters are at a UART, not at a USB adapter.
func TestEStop(t *testing.T) {
	s, anna := solo(t, MachineConfig{UART: true}, nil)
	for range 3 {
		s.charge(anna)
		pressed := time.Now()
		if err := s.m.Input(In1, true); err != nil {
			t.Fatal(err)
		}
		t.Logf("relay off %s after the contact", s.moves(Relay1, false).Sub(pressed).Round(100*time.Microsecond))
		s.refuses(anna, "pressed")
		s.stays(Relay1, false, "pressed")
		if err := s.m.Input(In1, false); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMeterFaults: a line that is noisy is borne, one that is silent ends
// charging, and one that was unplugged comes back.
func TestMeterFaults(t *testing.T) {
	s, anna := solo(t, MachineConfig{}, func(c *config.Config) { c.Timing.StaleOff = config.Duration(10 * time.Second) })
	s.charge(anna)
	if err := s.street.SetFaults(0, slave.Faults{slave.Late: 0.02, slave.CRC: 0.05, slave.Split: 0.05}); err != nil {
		t.Fatal(err)
	}
	s.requests(100, "on a noisy line", func() { s.stays(Relay1, true, "noise") })
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
	if err := s.m.Plug(); err != nil {
		t.Fatal(err)
	}
	s.requests(10, "after the replug", func() {})
	s.moves(Relay1, true)
	s.until("charging", func(context.Context) (bool, any) {
		c := s.charger()
		return c.Session != "" && c.State == "charging", c
	})
}

// TestWeld: the contactor does not open.
func TestWeld(t *testing.T) {
	s, anna := solo(t, MachineConfig{}, nil)
	s.charge(anna)
	s.mu.Lock()
	s.welded = true
	s.mu.Unlock()
	s.stop()
	s.until("weld", func(context.Context) (bool, any) {
		c := s.charger()
		return strings.Contains(c.Fault, "weld"), c
	})
	s.refuses(anna, "welded")
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
	s.until("clearing", func(ctx context.Context) (bool, any) {
		c, err := s.client.OrderCharger(ctx, 1, panel.ChargerOrder{Do: "clear"})
		return err == nil, fmt.Sprintf("%+v %v", c, err)
	})
	s.charge(anna)
}

// TestKilled: kill -9 and a crash in mid-charge, with an armed watchdog.
func TestKilled(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"kill -9": syscall.SIGKILL, "crash": syscall.SIGABRT} {
		t.Run(name, func(t *testing.T) {
			s, anna := solo(t, MachineConfig{Watchdog: true}, func(c *config.Config) {
				c.Watchdog.Device, c.Watchdog.Timeout = "/dev/watchdog0", config.Duration(10*time.Second)
			})
			id := s.charge(anna)
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
			s.until("the session's end or its going on", func(context.Context) (bool, any) {
				v := s.session(id)
				return !v.State.Open() || s.street.State(0).Charging > 0, v
			})
		})
	}
}

// TestHang: the whole process stops; nobody closes its files.
func TestHang(t *testing.T) {
	s, anna := solo(t, MachineConfig{Watchdog: true}, func(c *config.Config) {
		c.Watchdog.Device, c.Watchdog.Timeout = "/dev/watchdog0", config.Duration(10*time.Second)
	})
	s.charge(anna)
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
	s, anna := solo(t, MachineConfig{}, nil)
	s.charge(anna)
	s.do(wire.Request{Op: wire.Fill, Name: "/data/fill"})
	s.moves(Relay1, false)
	s.do(wire.Request{Op: wire.Remove, Name: "/data/fill"})
	s.until("a state that can be verified", func(context.Context) (bool, any) {
		out, code := s.try("ledger", "verify")
		return code == 0, out
	})
}

// TestClockJump: no RTC, NTP late, somebody's hand. A step back ends nothing:
// the ledger goes on, and so does the session, though the gateway starts anew
// where the ledger was waiting for its next block. A step ahead by a day ends
// the session where a gateway is alone and its clock is the ledger's, and that
// in order: the current has gone before the relay opens, and nothing closes it
// again. In between the contact works. Booted without a clock, the ledger runs
// and nobody is sold anything until the time is told.
func TestClockJump(t *testing.T) {
	s, anna := solo(t, MachineConfig{}, func(c *config.Config) {
		c.Ledger.TimeoutCommit = config.Duration(3 * time.Second) // so that the worst moment is not missed
	})
	clock := func(at time.Time) { s.do(wire.Request{Op: wire.Clock, Number: at.UnixNano()}) }
	id := s.charge(anna)
	closed := s.count(Relay1)
	// The worst moment is the pause after a block without payments, if
	// somebody pays in it.
	s.until("block without payments", func(ctx context.Context) (bool, any) {
		v, err := s.client.LedgerStatus(ctx)
		return err == nil && len(v.Blocks) > 0 && v.Blocks[0].Txs == 0, fmt.Sprintf("%+v %v", v, err)
	})
	clock(time.Now().Add(-3 * time.Hour))
	s.driver("berta", 5)
	s.requests(50, "after a step back", func() {})
	s.flows()
	if v := s.session(id); !v.State.Open() {
		t.Errorf("a step back ended the session: %+v", v)
	}
	switch n := s.count(Relay1) - closed; n {
	case 0:
	case 2:
		s.hear(wire.Notify) // it has started anew
		t.Log("the gateway started anew after the step back")
	default:
		t.Errorf("%s moved %d times after a step back", lineNames[Relay1], n)
	}

	const ahead = 26 * time.Hour
	clock(time.Now().Add(ahead))
	pressed := time.Now()
	if err := s.m.Input(In1, true); err != nil {
		t.Fatal(err)
	}
	t.Logf("relay off %s after the contact", s.moves(Relay1, false).Sub(pressed).Round(100*time.Microsecond))
	if err := s.m.Input(In1, false); err != nil {
		t.Fatal(err)
	}
	s.requests(100, "after a step ahead", func() { s.stays(Relay1, false, "a step ahead") })
	id = s.charge(anna)
	s.stop()
	s.settled(id)

	s.fail()
	s.boot()
	clock(time.Unix(3600, 0))
	s.start()
	s.driver("carl", 5)
	s.reads()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := s.client.Quote(ctx, panel.QuoteRequest{Connector: 1, Driver: anna.Public(), MaxWh: 1000}); err == nil || !strings.Contains(err.Error(), "it is not set") {
		t.Errorf("a price is offered in 1970: %v", err)
	}
	s.stays(Relay1, false, "without a clock")
	clock(time.Now().Add(ahead))
	s.charge(anna)
}
