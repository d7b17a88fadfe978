// Package microgrid tests the whole product from outside: the real binary,
// one process per gateway, Modbus RTU over pseudo-terminals, relays behind
// sockets, TCP between the gateways, and the commands an installer types.
//
//	tools/sim/street (physics, in the test)
//	   pty │ pins          what a passer-by sees: relay, car
//	       ▼
//	 joulegate run ──TCP── joulegate run ...     a process each
//	       ▲
//	  control.sock ◄── joulegate grid, session, ledger ...
//
// The tests look at three things only: what the commands and the control
// socket say, what the physics shows, and what is on disk after a gateway has
// ended. Nothing of a gateway runs in the test's process.
package microgrid

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/tools/sim/house"
	"github.com/joulegate/joulegate/tools/sim/street"
	"golang.org/x/sys/unix"
)

// binary is the program under test.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests mostly wait, for slots to end and links to be mended: let
	// them wait together, however few processors there are.
	explicit := false
	flag.Visit(func(f *flag.Flag) { explicit = explicit || f.Name == "test.parallel" })
	if !explicit {
		_ = flag.Set("test.parallel", "4")
	}
	os.Exit(build(m))
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "joulegate-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "joulegate")
	c := exec.Command("go", "build", "-o", binary, "github.com/joulegate/joulegate/cmd/joulegate")
	c.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
	if out, err := c.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// patience is how long to wait for what takes seconds on an idle machine.
const patience = 60 * time.Second

// Demonstration times: everything else is as in the field.
const slot = 10 * time.Second

// grid is one microgrid and its physics.
type grid struct {
	t        *testing.T
	dir      string
	street   *street.Street
	gateways []*gateway
}

// gateway is one installation: a house, its configuration and state folder,
// and the process while it runs.
type gateway struct {
	t      *testing.T
	name   string
	index  int // of the house in the street
	house  street.House
	addr   string // of its network interface
	env    []string
	netns  string // network namespace; empty: this one
	binary string // program of its own, a copy; empty: the one under test
	alone  bool   // run: with processes of its own, and no way to see others
	config string
	state  string
	log    string

	cmd    *exec.Cmd
	done   chan struct{} // closed when the process has ended
	err    error         // why, after done
	client *panel.Client
}

var grids atomic.Int32

// newGrid builds the houses, makes sun and cars real until the test ends, and
// installs a gateway in each house. None belongs to a microgrid yet.
//
// Every gateway has a loopback address of its own, so that ports are fixed
// and nobody takes them.
func newGrid(t *testing.T, n int) *grid {
	t.Helper()
	return newStreet(t, street.Default("", 1, n).Houses...)
}

// newStreet is newGrid with other houses.
func newStreet(t *testing.T, houses ...house.HouseConfig) *grid {
	t.Helper()
	g := &grid{t: t, dir: t.TempDir()}
	var err error
	if g.street, err = street.New(street.Config{Dir: g.dir, Seed: 1, Houses: houses}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.street.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("physics: %v", err)
		}
		g.street.Close()
	})
	net := grids.Add(1)
	for i, h := range g.street.Houses() {
		gw := &gateway{
			t: t, name: h.Name, index: i, house: h, addr: fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()%128, net, i+1),
			config: filepath.Join(g.dir, h.Name+".yaml"), state: filepath.Join(g.dir, h.Name), log: filepath.Join(g.dir, h.Name+".log"),
		}
		gw.client = dialControl(gw)
		g.gateways = append(g.gateways, gw)
		t.Cleanup(gw.cleanup)
	}
	return g
}

// install writes the configuration: what init proposes, with this house's
// devices.
func (g *gateway) install() {
	g.t.Helper()
	g.run("init", "--name", g.name)
	b, err := os.ReadFile(g.config)
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := config.Parse(b)
	if err != nil {
		g.t.Fatalf("what init wrote does not load: %v", err)
	}
	c.Board = "simulated"
	c.Lines = []config.Line{{ID: "rs485", Device: g.house.Line, Baud: street.Baud, Framing: "8N1", Timeout: config.Duration(300 * time.Millisecond)}}
	c.Meters = nil
	var evse config.EVSE
	for _, d := range g.house.Devices {
		m := config.Meter{ID: d.ID, Line: "rs485", Unit: d.Unit, Profile: d.Profile, Role: d.Role.String(), Interval: config.Duration(time.Second), MaxPower: 43_000}
		switch d.Role {
		case 0:
			evse = config.EVSE{Line: "rs485", Unit: d.Unit, Profile: d.Profile}
			continue
		case chain.RoleConnection:
			m.MaxPower = 400_000
		case chain.RoleCharger:
			c.Chargers = []config.Charger{{ID: 1, Meter: d.ID, Relay: street.Relay, MaxCurrent: 16_000, Phases: g.house.Phases, Mode: "market", MaxSwitches: 120}}
			if d.Wallbox {
				c.Chargers[0].Relay, evse = "", config.EVSE{Line: "rs485", Unit: d.Unit, Profile: d.Profile}
			}
		}
		c.Meters = append(c.Meters, m)
	}
	if len(c.Chargers) > 0 {
		c.Chargers[0].EVSE = evse
		c.Readers = []config.Reader{{Charger: 1, Socket: g.readerSocket(), MaxWh: 5000}}
	}
	c.Pins.Socket = g.house.Pins
	c.P2P.Listen = []string{g.multiaddr()}
	c.Panel.Listen = g.addr + ":8080"
	if c.MQTT.Listen = g.addr + ":1883"; g.netns != "" {
		c.MQTT.Listen = "127.0.0.1:1883" // passwords do not travel in the clear
	}
	second := config.Duration(time.Second)
	t := &c.Timing
	t.MinOff, t.HoldLimit, t.StartLimit, t.FullAfter, t.ResumeLimit = 2*second, 30*second, 60*second, 20*second, 60*second
	if err := os.WriteFile(g.config, config.Render(c), 0o644); err != nil {
		g.t.Fatal(err)
	}
	g.run("config", "check")
}

func (g *gateway) multiaddr() string { return "/ip4/" + g.addr + "/tcp/4470" }

// create founds the microgrid of a test, and returns the gateway's key.
func (g *gateway) create() chain.Key {
	g.t.Helper()
	v := ask[struct{ Device chain.Key }](g, "grid", "create", "--slot", slot.String(), "--grace", "4s", "--start-limit", "1m", "--earn", "5",
		"--tree", "feeder1:root:0.01", "--tree", "feeder2:root:0.01", "--node", "feeder1", "--fee", "0.002")
	return v.Device
}

// join makes g a member by a token of from, and starts it.
func (g *gateway) join(from *gateway) {
	g.t.Helper()
	token := strings.TrimSpace(from.run("grid", "invite", "--node", fmt.Sprintf("feeder%d", 1+g.index%2), "--fee", "0.002"))
	g.run("grid", "join", token)
	g.start()
}

// found installs all gateways, founds the microgrid with the first, lets the
// others join one by one, and waits until all are connected with all.
func (g *grid) found() {
	g.t.Helper()
	for i, gw := range g.gateways {
		gw.install()
		if i == 0 {
			gw.create()
			gw.start()
		} else {
			gw.join(g.gateways[0])
		}
	}
	g.connected()
}

// connected waits until all running gateways are connected with each other
// and know each other as members.
func (g *grid) connected() {
	g.t.Helper()
	live := g.running()
	for _, gw := range live {
		gw.wait(patience, fmt.Sprintf("%d neighbours", len(live)-1), func(ctx context.Context) (bool, any) {
			s, err := gw.client.Status(ctx)
			return err == nil && s.Peers == len(live)-1 && s.Members >= len(live), fmt.Sprintf("%+v %v", s, err)
		})
	}
}

func (g *grid) running() (live []*gateway) {
	for _, gw := range g.gateways {
		if gw.cmd != nil {
			live = append(live, gw)
		}
	}
	return live
}

// command makes a command line of the program for this gateway.
func (g *gateway) command(args ...string) *exec.Cmd {
	program := cmp.Or(g.binary, binary)
	args = append(args, "--config", g.config, "--state", g.state)
	if g.netns != "" {
		return exec.Command("ip", append([]string{"netns", "exec", g.netns, program}, args...)...)
	}
	return exec.Command(program, args...)
}

// try runs a command to its end.
func (g *gateway) try(args ...string) (stdout, stderr string, code int) {
	g.t.Helper()
	c := g.command(args...)
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	if err := c.Start(); err != nil {
		g.t.Fatal(err)
	}
	stop := time.AfterFunc(2*patience, func() { _ = c.Process.Signal(syscall.SIGQUIT) }) // shows where it hangs
	defer stop.Stop()
	_ = c.Wait()
	return out.String(), errOut.String(), c.ProcessState.ExitCode()
}

// run is try for a command that must succeed.
func (g *gateway) run(args ...string) string {
	g.t.Helper()
	out, errOut, code := g.try(args...)
	if code != 0 {
		g.t.Fatalf("%s: joulegate %s: exit %d\n%s%s", g.name, strings.Join(args, " "), code, out, errOut)
	}
	return out
}

// ask runs a command with --json and decodes its one document.
func ask[T any](g *gateway, args ...string) (v T) {
	g.t.Helper()
	out := g.run(append(args, "--json")...)
	d := json.NewDecoder(strings.NewReader(out))
	if err := d.Decode(&v); err != nil {
		g.t.Fatalf("joulegate %s: %v in %q", strings.Join(args, " "), err, out)
	}
	if d.More() {
		g.t.Fatalf("joulegate %s printed more than one document: %q", strings.Join(args, " "), out)
	}
	return v
}

// start runs the gateway and waits until it answers.
func (g *gateway) start() {
	g.t.Helper()
	f, err := os.OpenFile(g.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	c := g.command("run")
	var flags uintptr
	if g.alone {
		c, flags = secluded(c), unix.CLONE_NEWPID|unix.CLONE_NEWNS
	}
	c.Env = append(append(os.Environ(), g.env...), strings.TrimRight(g.mark(), "\x00"))
	c.Stdout, c.Stderr = f, f
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: flags}
	if err := c.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.cmd, g.done = c, make(chan struct{})
	go func(done chan struct{}) {
		g.err = c.Wait()
		close(done)
	}(g.done)
	g.wait(patience, "answer", ready(g))
}

func dialControl(g *gateway) *panel.Client { return panel.Dial(filepath.Join(g.state, "control.sock")) }

// ready reports whether the gateway answers on its control socket.
func ready(g *gateway) func(ctx context.Context) (bool, any) {
	return func(ctx context.Context) (bool, any) {
		_, err := g.client.Status(ctx)
		return err == nil, err
	}
}

// kill ends the process as a power cut would.
func (g *gateway) kill() {
	g.t.Helper()
	if err := g.cmd.Process.Kill(); err != nil {
		g.t.Fatal(err)
	}
	<-g.done
	g.cmd = nil
	g.client.Close()
}

// stop ends it as systemd would.
func (g *gateway) stop() {
	g.t.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.t.Fatal(err)
	}
	select {
	case <-g.done:
	case <-time.After(patience):
		_ = g.cmd.Process.Kill()
		<-g.done
		g.t.Errorf("%s did not end within %s of SIGTERM", g.name, patience)
	}
	if g.err != nil {
		g.t.Errorf("%s ended with %v after SIGTERM", g.name, g.err)
	}
	g.cmd = nil
	g.client.Close()
}

// cleanup ends what a failed test left, and shows what it said.
func (g *gateway) cleanup() {
	if g.cmd != nil {
		_ = g.cmd.Process.Kill()
		<-g.done
		g.cmd = nil
	}
	g.orphans()
	g.client.Close()
	b, err := os.ReadFile(g.log)
	_ = os.Remove(g.log) // said once
	if err == nil && g.t.Failed() {
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		from := max(0, len(lines)-30)
		if i := slices.IndexFunc(lines, func(l string) bool {
			return strings.HasPrefix(l, "panic: ") || strings.HasPrefix(l, "fatal error: ")
		}); i >= 0 { // the trace behind it may be long
			from = min(from, max(0, i-10))
			lines = lines[:min(len(lines), i+30)]
		}
		g.t.Logf("%s said at the end:\n%s", g.name, strings.Join(lines[min(from, len(lines)):], "\n"))
	}
}

// orphans waits until those whom a killed gateway has left behind have ended
// by themselves: they see that it is gone, and write what they have learned.
func (g *gateway) orphans() {
	g.t.Helper()
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range environs {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(g.mark())) {
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 {
				g.t.Errorf("%s: its child %d is still alive after %s: %v", g.name, pid, patience, err)
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
		}
		unix.Close(fd)
	}
}

// mark is in the environment of a gateway, and of whom it starts.
func (g *gateway) mark() string { return "GATEWAY_UNDER_TEST=" + g.state + "\x00" }

// wait polls until f is content, and fails the test with f's last word if it
// is not within limit or the gateway's process ends.
func (g *gateway) wait(limit time.Duration, what string, f func(ctx context.Context) (bool, any)) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		ok, detail := f(ctx)
		if ok {
			return
		}
		select {
		case <-g.done:
			g.t.Fatalf("%s ended while the test waited for %s: %v", g.name, what, g.err)
		case <-ctx.Done():
			g.t.Fatalf("%s: no %s within %s: %v", g.name, what, limit, detail)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// must calls the control socket.
func must[T any](g *gateway, f func(ctx context.Context) (T, error)) T {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	v, err := f(ctx)
	if err != nil {
		g.t.Fatalf("%s: %v", g.name, err)
	}
	return v
}

func (g *gateway) status() panel.LedgerStatus {
	g.t.Helper()
	return must(g, g.client.LedgerStatus)
}

// grow waits until the ledger is past height.
func (g *gateway) grow(height int64) {
	g.t.Helper()
	g.wait(patience, fmt.Sprintf("block after %d", height), func(ctx context.Context) (bool, any) {
		s, err := g.client.Status(ctx)
		return err == nil && s.Height > height, fmt.Sprint(s.Height, err)
	})
}

// agree waits until all running gateways have reached the height that any of
// them had, and compares their states there.
func (g *grid) agree() {
	g.t.Helper()
	var height int64
	for _, gw := range g.running() {
		height = max(height, gw.status().Height)
	}
	var first panel.StateHash
	for i, gw := range g.running() {
		gw.grow(height - 1)
		h := must(gw, func(ctx context.Context) (panel.StateHash, error) { return gw.client.StateHash(ctx, height) })
		if i == 0 {
			first = h
		}
		if h != first {
			g.t.Errorf("at height %d %s has state %s, %s has %s", height, g.running()[0].name, first.StateHash, gw.name, h.StateHash)
		}
	}
}

// verify executes every block again and checks that no money was made or
// lost.
func (g *gateway) verify() panel.VerifyReport {
	g.t.Helper()
	r := ask[panel.VerifyReport](g, "ledger", "verify")
	if len(r.Violations) > 0 || r.FromHeight != 1 || r.Height < 1 {
		g.t.Errorf("%s: verified %d to %d: %v", g.name, r.FromHeight, r.Height, r.Violations)
	}
	return r
}

// books checks that accounts and holds are worth what was minted and not
// burned, and that nobody is in debt.
func (g *gateway) books() {
	g.t.Helper()
	for { // a moment between blocks
		before := g.status()
		var sum chain.Nano
		for _, a := range must(g, g.client.Accounts) {
			if a.Balance < 0 || a.Held < 0 {
				g.t.Errorf("%s: account %s has %d, held %d", g.name, a.Account, a.Balance, a.Held)
			}
			sum += a.Balance + a.Held
		}
		if after := g.status(); after.StateHash != before.StateHash {
			continue
		}
		if sum != before.Minted-before.Burned {
			g.t.Errorf("%s: accounts and holds are worth %d, minted %d, burned %d", g.name, sum, before.Minted, before.Burned)
		}
		return
	}
}

// honest checks that nobody has signed two blocks at one place.
func (g *grid) honest() {
	g.t.Helper()
	for _, gw := range g.running() {
		if n := gw.status().Counters["equivocations"]; n != 0 {
			g.t.Errorf("%s counted %d equivocations", gw.name, n)
		}
	}
}

// newest returns the newest block of every member that g's journal has.
func (g *gateway) newest() map[string]chain.Position {
	g.t.Helper()
	out := map[string]chain.Position{}
	for _, m := range must(g, g.client.Members) {
		out[m.Name] = m.Newest
	}
	return out
}

// complete waits until every journal holds what every author has signed.
func (g *grid) complete() {
	g.t.Helper()
	want := map[string]chain.Position{}
	for _, author := range g.running() {
		want[author.name] = author.newest()[author.name]
	}
	for _, gw := range g.running() {
		gw.wait(2*patience, fmt.Sprintf("journal with %v", want), func(context.Context) (bool, any) {
			have := gw.newest()
			for name, p := range want {
				if have[name].Less(p) {
					return false, have
				}
			}
			return true, nil
		})
	}
}

// wallet makes a driver with prepaid money at gateway g, the operator's.
func (g *gateway) wallet(name, amount string) keys.Wallet {
	g.t.Helper()
	g.run("account", "new", name)
	g.run("account", "mint", "--to", name, "--amount", amount, "--ref", "TEST-"+name)
	path, err := keys.WalletPath(filepath.Join(g.state, "wallets"), name)
	if err != nil {
		g.t.Fatal(err)
	}
	w, err := keys.LoadWallet(path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return w
}

// car is one that takes whatever it is offered.
func car(name string) house.Car {
	return house.Car{Name: name, Capacity: 58_000, Charge: 21_000, Target: 50_000, MaxCurrent: 16_000, Phases: 3}
}

// charge plugs a car in at gateway g, starts a session and waits until
// current flows.
func (g *grid) charge(at *gateway, w keys.Wallet, maxWh meter.WattHour) panel.Session {
	g.t.Helper()
	if err := g.street.PlugIn(at.index, car(w.Name)); err != nil {
		g.t.Fatal(err)
	}
	q := must(at, func(ctx context.Context) (panel.Quote, error) {
		return at.client.Quote(ctx, panel.QuoteRequest{Connector: 1, Driver: w.Public(), MaxWh: maxWh})
	})
	s := must(at, func(ctx context.Context) (panel.Session, error) { return at.client.StartSession(ctx, q.Sign(w.Key)) })
	g.flows(at)
	return s
}

// flows waits until the car at gateway g draws current.
func (g *grid) flows(at *gateway) {
	g.t.Helper()
	at.wait(patience, "current", func(context.Context) (bool, any) {
		s := g.street.State(at.index)
		return s.Relay && s.Charging > 0, s
	})
}

// session asks g about a session.
func (g *gateway) session(id chain.ID) panel.Session {
	g.t.Helper()
	return must(g, func(ctx context.Context) (panel.Session, error) { return g.client.Session(ctx, id) })
}

// settled waits until the ledger has settled a session, and returns it.
func (g *gateway) settled(id chain.ID) (s panel.Session) {
	g.t.Helper()
	g.wait(2*patience, "settlement", func(context.Context) (bool, any) {
		s = g.session(id)
		return !s.State.Open(), fmt.Sprintf("%+v", s)
	})
	return s
}

// register returns what the meter of a role shows, as the gateway reads it.
func (g *gateway) register(role chain.Role) meter.WattHour {
	g.t.Helper()
	for _, m := range must(g, g.client.Meters) {
		if m.Role == role.String() {
			return m.Import
		}
	}
	g.t.Fatalf("%s has no meter %s", g.name, role)
	return 0
}

// stopSession ends a session and unplugs the car.
func (g *grid) stopSession(at *gateway, w keys.Wallet, id chain.ID) panel.Session {
	g.t.Helper()
	must(at, func(ctx context.Context) (panel.Session, error) {
		return at.client.StopSession(ctx, id, panel.SignStop(id, w.Key))
	})
	s := at.settled(id)
	if _, err := g.street.Unplug(at.index); err != nil {
		g.t.Fatal(err)
	}
	return s
}

// bill checks that a settled session adds up.
func bill(t *testing.T, s panel.Session) {
	t.Helper()
	if s.Wh != s.Register-s.Begin {
		t.Errorf("session %s: %d Wh billed, register went from %d to %d", s.ID, s.Wh, s.Begin, s.Register)
	}
	if s.Captured+s.Released != s.Hold || s.Paid+s.CreditRedeemed != s.Captured || s.PendingWh != 0 {
		t.Errorf("session %s does not add up: %+v", s.ID, s.SessionView)
	}
	if s.Captured > chain.Nano(s.Cap)*chain.Nano(s.Wh) {
		t.Errorf("session %s: %d captured for %d Wh at no more than %d", s.ID, s.Captured, s.Wh, s.Cap)
	}
	if !slices.Contains([]ledger.SessionState{ledger.SessionClosed, ledger.SessionInterrupted}, s.State) {
		t.Errorf("session %s is %s", s.ID, s.State)
	}
}
