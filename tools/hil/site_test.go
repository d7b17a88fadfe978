//go:build hil

package hil

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/tools/hil/wire"
	"github.com/joulegate/joulegate/tools/sim/house"
	"github.com/joulegate/joulegate/tools/sim/street"
)

const (
	agent   = "joulegate"
	program = "/bin/joulegate"
	cfgFile = "/data/joulegate.yaml"
	state   = "/data/state"
)

// edge is a change of an output, seen from outside.
type edge struct {
	line int
	high bool
	at   time.Time
}

// site is a house whose gateway is an emulated machine. The relay of that
// machine moves the contactor of the house, and the contactor its auxiliary
// contact.
type site struct {
	t      *testing.T
	m      *Machine
	street *street.Street
	index  int
	cfg    MachineConfig
	yaml   config.Config

	edges chan edge

	mu     sync.Mutex
	welded bool // the contactor does not open any more
	last   [8]bool
	when   [8]time.Time
	moved  chan struct{} // closed and made anew with each edge
}

// neighbourhood makes n houses whose lines are connections.
func neighbourhood(t *testing.T, n int) (*street.Street, []string) {
	t.Helper()
	lines := make([]net.Listener, 0, n)
	cfg := street.Default(t.TempDir(), 1, n)
	cfg.Listen = func(string) (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		lines = append(lines, l)
		return l, err
	}
	st, err := street.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- st.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("physics: %v", err)
		}
		st.Close()
	})
	addrs := make([]string, n)
	for i, l := range lines {
		addrs[i] = l.Addr().String()
	}
	return st, addrs
}

// build installs a gateway for house i of a street, and boots it.
func build(t *testing.T, st *street.Street, i int, cfg MachineConfig) *site {
	t.Helper()
	s := &site{t: t, street: st, index: i, edges: make(chan edge, 1024), moved: make(chan struct{})}
	h := st.Houses()[i]
	cfg.USB, cfg.Name = h.Line, h.Name
	cfg.OnOutput = func(line int, high bool, at time.Time) { s.edges <- edge{line, high, at} }
	s.cfg = cfg
	s.yaml = s.configure(h)
	s.boot()
	return s
}

// boot boots the machine, and does what the hands of the house do.
func (s *site) boot() {
	s.t.Helper()
	s.m = theLab.boot(s.t, s.cfg)
	m := s.m
	go func() {
		for {
			select {
			case e := <-s.edges:
				s.mu.Lock()
				s.last[e.line], s.when[e.line] = e.high, e.at
				close(s.moved)
				s.moved = make(chan struct{})
				stuck := s.welded && !e.high
				s.mu.Unlock()
				if e.line == Relay1 && !stuck {
					s.street.SetRelay(s.index, e.high)
					_ = m.Input(In2, e.high) // the machine may have gone
				}
			case <-m.Done():
				return
			}
		}
	}()
}

// configure is what an installer would write for house h.
func (s *site) configure(h street.House) config.Config {
	c := config.Default()
	c.Name = h.Name
	c.Board = "qemu-virt"
	c.Lines = []config.Line{{ID: "rs485", Device: "/dev/ttyUSB0", Baud: street.Baud, Framing: "8N1", Timeout: config.Duration(500 * time.Millisecond)}}
	c.Meters = nil
	var evse config.EVSE
	for _, d := range h.Devices {
		m := config.Meter{ID: d.ID, Line: "rs485", Unit: d.Unit, Profile: d.Profile, Role: d.Role.String(), Interval: config.Duration(time.Second), MaxPower: 43_000}
		switch d.Role {
		case 0:
			evse = config.EVSE{Line: "rs485", Unit: d.Unit, Profile: d.Profile}
			continue
		case chain.RoleConnection:
			m.MaxPower = 400_000
		case chain.RoleCharger:
			c.Chargers = []config.Charger{{
				ID: 1, Meter: d.ID, Relay: "RELAY1", EStop: "IN1", Feedback: "IN2", MaxCurrent: 16_000, Phases: h.Phases, Mode: "now", MaxSwitches: 120,
			}}
		}
		c.Meters = append(c.Meters, m)
	}
	if len(c.Chargers) > 0 {
		c.Chargers[0].EVSE = evse
	}
	c.MQTT.Listen, c.Panel.Listen = "127.0.0.1:1883", "127.0.0.1:8080"
	c.P2P.Listen = []string{"/ip4/127.0.0.1/tcp/4470"}
	second := config.Duration(time.Second)
	t := &c.Timing
	t.MinOff, t.HoldLimit, t.StartLimit, t.FullAfter, t.ResumeLimit, t.StartSpread = 2*second, 60*second, 120*second, 60*second, 120*second, 0
	return c
}

func (s *site) do(r wire.Request) wire.Message {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	a, err := s.m.Do(ctx, r)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *site) try(args ...string) (string, int) {
	s.t.Helper()
	return try(s.t, s.m, append([]string{program, "--config", cfgFile, "--state", state}, args...)...)
}

func (s *site) run(args ...string) string {
	s.t.Helper()
	out, code := s.try(args...)
	if code != 0 {
		s.t.Fatalf("joulegate %s: exit %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// ask runs a command with --json.
func ask[T any](s *site, args ...string) (v T) {
	s.t.Helper()
	out := s.run(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		s.t.Fatalf("%v: %v in %s", args, err, out)
	}
	return v
}

// found writes the configuration and founds a microgrid.
func (s *site) found(args ...string) {
	s.t.Helper()
	s.install()
	s.run(append([]string{"grid", "create", "--slot", "30s", "--grace", "8s", "--start-limit", "2m"}, args...)...)
}

func (s *site) install() {
	s.do(wire.Request{Op: wire.Put, Name: cfgFile, Data: config.Render(s.yaml), Number: 0o644})
}

// start starts the gateway as its unit does, and waits until systemd would
// call it ready.
func (s *site) start() {
	s.t.Helper()
	s.do(wire.Request{
		Op: wire.Start, Name: agent, Args: []string{program, "--config", cfgFile, "--state", state, "run"},
		Post: []string{program, "--config", cfgFile, "--state", state, "safe-state"},
	})
	s.hear(wire.Notify)
}

func (s *site) hear(event string) wire.Message {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	e, err := s.m.AwaitGuest(ctx, event, agent)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *site) signal(n int) {
	s.t.Helper()
	s.do(wire.Request{Op: wire.Signal, Name: agent, Number: int64(n)})
}

// moves waits until an output is at a level, and says since when.
func (s *site) moves(line int, high bool) time.Time {
	s.t.Helper()
	late := time.After(limit)
	for {
		s.mu.Lock()
		is, when, moved := s.last[line], s.when[line], s.moved
		s.mu.Unlock()
		if is == high {
			// What was seen by its edge is read from the register, too.
			if _, level, err := s.m.Output(line); err != nil || level != high {
				s.t.Fatalf("%s moved, and its register says %t, %v", lineNames[line], level, err)
			}
			return when
		}
		select {
		case <-moved:
		case <-late:
			s.t.Fatalf("%s is not high=%t after %s", lineNames[line], high, limit)
		}
	}
}

// until asks again and again, and waits for the guest's answers and no time.
func (s *site) until(what string, f func() (bool, any)) {
	s.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		ok, got := f()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: no %s within %s: %+v", s.cfg.Name, what, limit, got)
		}
	}
}

// charge plugs a car in, pays for it, and waits until current flows.
func (s *site) charge() chain.ID {
	s.t.Helper()
	if s.street.State(s.index).Car != "" {
		if _, err := s.street.Unplug(s.index); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.street.PlugIn(s.index, house.Car{Name: "car", Capacity: 60_000, Charge: 10_000, Target: 50_000, MaxCurrent: 16_000, Phases: 3}); err != nil {
		s.t.Fatal(err)
	}
	s.until("price", func() (bool, any) {
		out, code := s.try("session", "start", "--wallet", "anna", "--kwh", "20", "--yes")
		return code == 0, out
	})
	s.moves(Relay1, true)
	s.until("current", func() (bool, any) {
		st := s.street.State(s.index)
		return st.Charging > 0, st
	})
	all := ask[[]panel.Session](s, "session", "ls")
	if len(all) == 0 {
		s.t.Fatal("no session is listed")
	}
	return all[len(all)-1].ID
}
