//go:build hil

package hil

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
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
	addr   string // on the LAN; without one that of its loopback

	dir      string        // on the host
	client   *panel.Client // of the control socket
	operator keys.Wallet   // of the founder

	edges   chan edge
	watched chan struct{} // closed when nobody looks at the pins any more

	mu     sync.Mutex
	welded bool // the contactor does not open any more
	last   [8]bool
	when   [8]time.Time
	edged  [8]int        // how often
	moved  chan struct{} // closed and made anew with each edge
}

// neighbourhood makes n houses whose lines are connections.
func neighbourhood(t *testing.T, n int) *street.Street {
	t.Helper()
	cfg := street.Default(t.TempDir(), 1, n)
	cfg.Listen = func(name string) (net.Listener, error) { return theLab.line(t, name) }
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
	return st
}

// build installs a gateway for house i of a street, and boots it.
func build(t *testing.T, st *street.Street, i int, cfg MachineConfig) *site {
	t.Helper()
	h := st.Houses()[i]
	s := &site{t: t, street: st, index: i, addr: "127.0.0.1", dir: t.TempDir(), edges: make(chan edge, 1024), moved: make(chan struct{})}
	if cfg.LAN != "" {
		s.addr = fmt.Sprintf("10.83.0.%d", i+1)
	}
	s.client = panel.Dial(s.control())
	t.Cleanup(s.client.Close)
	cfg.Line, cfg.Name, cfg.MAC = h.Line, h.Name, [6]byte{2, 0, 0, 0, 0, byte(i + 1)}
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
	if err := m.Forward(s.control(), state+"/control.sock", limit); err != nil {
		s.t.Fatal(err)
	}
	if s.cfg.LAN != "" {
		s.do(wire.Request{Op: wire.Address, Name: "eth0", Args: []string{s.addr}, Number: 24})
	}
	s.watched = make(chan struct{})
	go func() {
		defer close(s.watched)
		for {
			select {
			case e := <-s.edges:
				s.mu.Lock()
				s.last[e.line], s.when[e.line] = e.high, e.at
				s.edged[e.line]++
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

// fail lets the power fail: the machine ends, and the relay drops.
func (s *site) fail() {
	s.t.Helper()
	s.m.Kill()
	<-s.watched
	for len(s.edges) > 0 {
		<-s.edges // of a machine that is no more
	}
	s.mu.Lock()
	clear(s.last[:])
	s.mu.Unlock()
	if len(s.yaml.Chargers) > 0 {
		s.street.SetRelay(s.index, false)
	}
}

// control is where the control socket of the gateway is reached on the host.
func (s *site) control() string { return filepath.Join(s.dir, "control.sock") }

// configure is what an installer would write for house h.
func (s *site) configure(h street.House) config.Config {
	c := config.Default()
	c.Name = h.Name
	c.Board = "qemu-virt"
	device := "/dev/ttyUSB0"
	if s.cfg.UART {
		device = "/dev/ttyS0"
	}
	c.Lines = []config.Line{{ID: "rs485", Device: device, Baud: street.Baud, Framing: "8N1", Timeout: config.Duration(500 * time.Millisecond)}}
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
	c.P2P.Listen = []string{"/ip4/" + s.addr + "/tcp/4470"}
	// An emulated processor has better things to do than to guard itself.
	c.Guard.Mode = "off"
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

// call asks the control socket.
func call[T any](s *site, f func(ctx context.Context) (T, error)) T {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	v, err := f(ctx)
	if err != nil {
		s.t.Fatalf("%s: %v", s.cfg.Name, err)
	}
	return v
}

// found writes the configuration and founds a microgrid. The operator takes
// his wallet with him.
func (s *site) found(args ...string) {
	s.t.Helper()
	s.install()
	s.run(append([]string{"grid", "create", "--grace", "8s", "--start-limit", "2m"}, args...)...)
	w, err := keys.WalletPath(s.dir, "operator")
	if err == nil {
		err = os.WriteFile(w, s.do(wire.Request{Op: wire.Get, Name: state + "/wallets/operator.key"}).Out, 0o600)
	}
	if err == nil {
		s.operator, err = keys.LoadWallet(w, nil)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// driver makes a wallet of somebody who has paid so many euro in.
func (s *site) driver(name string, euro int) keys.Wallet {
	s.t.Helper()
	w, _, err := keys.LoadOrCreateWallet(s.dir, name, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.until("money", func(ctx context.Context) (bool, any) {
		// Whoever was not told in time asks again: a reference counts once.
		err := s.mint(ctx, w, euro, "SEPA-"+name)
		a, _ := s.client.Account(ctx, w.Account())
		return a.Balance == chain.Nano(euro)*1e9, err
	})
	return w
}

// mint pays money in, and returns when the ledger has it.
func (s *site) mint(ctx context.Context, to keys.Wallet, euro int, ref string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := panel.Order(ctx, s.client, s.operator.Key, chain.TxMint, chain.Mint{To: to.Account(), Amount: chain.Nano(euro) * 1e9, BankRef: ref})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("mint: %s", r.Info)
	}
	return err
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

// count says how often an output has moved.
func (s *site) count(line int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.edged[line]
}

// pause is left between two questions: the processor that is asked has other
// things to do as well.
const pause = 200 * time.Millisecond

// until asks again and again.
func (s *site) until(what string, f func(ctx context.Context) (bool, any)) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	for {
		one, stop := context.WithTimeout(ctx, limit/5) // one question is not all there is to ask
		ok, got := f(one)
		stop()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("%s: no %s within %s: %+v", s.cfg.Name, what, limit, got)
		case <-s.m.Done():
			s.t.Fatalf("%s ended before %s", s.cfg.Name, what)
		case <-time.After(pause):
		}
	}
}

// reads waits until all meters answer.
func (s *site) reads() {
	s.t.Helper()
	s.until("good meters", func(ctx context.Context) (bool, any) {
		all, err := s.client.Meters(ctx)
		ok := err == nil && len(all) > 0
		for _, m := range all {
			ok = ok && m.Quality == "good"
		}
		return ok, fmt.Sprintf("%+v %v", all, err)
	})
}

// plug brings a car with an empty battery.
func (s *site) plug() {
	s.t.Helper()
	if s.street.State(s.index).Car != "" {
		if _, err := s.street.Unplug(s.index); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.street.PlugIn(s.index, house.Car{Name: "car", Capacity: 60_000, Charge: 10_000, Target: 50_000, MaxCurrent: 16_000, Phases: 3}); err != nil {
		s.t.Fatal(err)
	}
}

// charge plugs a car in, pays for it, and waits until current flows. Where
// machines share processors, a control loop may stall at the wrong moment and
// end the session: there the driver pays again.
func (s *site) charge(w keys.Wallet) chain.ID {
	s.t.Helper()
	s.plug()
	for {
		var v panel.Session
		s.until("session", func(ctx context.Context) (bool, any) {
			q, err := s.client.Quote(ctx, panel.QuoteRequest{Connector: 1, Driver: w.Public(), MaxWh: 20_000})
			if err == nil {
				v, err = s.client.StartSession(ctx, q.Sign(w.Key))
			}
			return err == nil, err
		})
		if s.cfg.LAN == "" || s.begins(v.ID) {
			s.flows()
			return v.ID
		}
		s.t.Logf("%s: session %s ended before it began", s.cfg.Name, v.ID)
	}
}

// begins waits until current flows, or the session has ended.
func (s *site) begins(id chain.ID) (flows bool) {
	s.t.Helper()
	s.until("a session that begins or ends", func(ctx context.Context) (bool, any) {
		v, err := s.client.Session(ctx, id)
		flows = s.street.State(s.index).Charging > 0
		return flows || err == nil && !v.State.Open(), fmt.Sprintf("%+v %v", v, err)
	})
	return flows
}

// flows waits until the relay is closed, and current flows.
func (s *site) flows() {
	s.t.Helper()
	s.moves(Relay1, true)
	s.until("current", func(context.Context) (bool, any) {
		st := s.street.State(s.index)
		return st.Charging > 0, st
	})
}

// session asks about a session.
func (s *site) session(id chain.ID) panel.Session {
	s.t.Helper()
	return call(s, func(ctx context.Context) (panel.Session, error) { return s.client.Session(ctx, id) })
}

// settled waits until the ledger has settled a session.
func (s *site) settled(id chain.ID) (v panel.Session) {
	s.t.Helper()
	s.until("settlement", func(ctx context.Context) (bool, any) {
		var err error
		v, err = s.client.Session(ctx, id)
		return err == nil && !v.State.Open(), fmt.Sprintf("%+v %v", v, err)
	})
	return v
}
