package microgrid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/policy"
)

// configure changes a gateway's configuration as an installer does, in the
// file.
func (g *gateway) configure(change func(*config.Config)) {
	g.t.Helper()
	b, err := os.ReadFile(g.config)
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := config.Parse(b)
	if err != nil {
		g.t.Fatal(err)
	}
	change(&c)
	if err := os.WriteFile(g.config, config.Render(c), 0o644); err != nil {
		g.t.Fatal(err)
	}
	g.run("config", "check")
}

// teach makes a stopped gateway one that has observed for a week.
func (g *gateway) teach(chainID string) {
	g.t.Helper()
	key, err := keys.LoadDevice(filepath.Join(g.state, "keys", "device.key"), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	j, err := journal.Open(filepath.Join(g.state, "journal"), journal.Config{ChainID: chainID, Key: key})
	if err != nil {
		g.t.Fatal(err)
	}
	var s struct {
		Policy policy.Saved `cbor:"1,keyasint"`
		Next   uint64       `cbor:"2,keyasint"`
	}
	s.Policy.Learned, s.Policy.Modes = map[string]time.Duration{}, map[string]guard.Mode{}
	for _, r := range guard.Rules {
		s.Policy.Learned[r.ID] = 7 * 24 * time.Hour
	}
	if err := errors.Join(j.Save("guard", chain.Marshal(s)), j.Close()); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) guard() guard.Status {
	g.t.Helper()
	return must(g, g.client.Guard)
}

// guards waits until the guard says what is wanted.
func (g *gateway) guards(limit time.Duration, what string, ok func(guard.Status) bool) (s guard.Status) {
	g.t.Helper()
	g.wait(limit, what, func(ctx context.Context) (bool, any) {
		var err error
		s, err = g.client.Guard(ctx)
		return err == nil && ok(s), fmt.Sprintf("%+v %v", s, err)
	})
	return s
}

// sees waits until a sensor of the guard sees something.
func (g *gateway) sees(sensor guard.Sensor) {
	g.t.Helper()
	g.guards(patience, "coverage of "+sensor.String(), func(s guard.Status) bool {
		return slices.ContainsFunc(s.Coverage, func(c guard.Coverage) bool { return c.Sensor == sensor && c.Level != guard.None })
	})
}

// stranger is a machine on the same network that belongs to nobody.
type stranger struct {
	t           *testing.T
	space, addr string
}

func (w *wires) stranger(addr string) *stranger {
	w.t.Helper()
	s := &stranger{w.t, w.hub + "-mallory", addr}
	ip(w.t, "netns", "add", s.space)
	w.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", s.space).Run() })
	w.in(w.hub, "link", "add", "mallory", "type", "veth", "peer", "name", "eth0", "netns", s.space)
	w.in(w.hub, "link", "set", "mallory", "master", "left", "up")
	w.in(s.space, "addr", "add", addr+"/24", "dev", "eth0")
	w.in(s.space, "link", "set", "eth0", "up")
	w.in(s.space, "link", "set", "lo", "up")
	return s
}

// there runs f with the stranger's network. The thread goes back to its own
// afterwards: gateways end with the thread that has started them.
func (s *stranger) there(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			own, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
			if err != nil {
				return err
			}
			defer own.Close()
			space, err := os.Open("/run/netns/" + s.space)
			if err != nil {
				return err
			}
			defer space.Close()
			if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			err = f()
			if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
				panic(back) // a test elsewhere would run in here
			}
			return err
		}()
		runtime.UnlockOSThread()
	}()
	return <-done
}

// reaches tells whether the stranger gets a connection to the page.
func (s *stranger) reaches(g *gateway) bool {
	s.t.Helper()
	reached := false
	err := s.there(func() error {
		c, err := (&net.Dialer{Timeout: 2 * time.Second}).Dial("tcp", g.addr+":8080")
		if err == nil {
			reached = true
			_ = c.Close()
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return reached
}

// scan tries many ports of a gateway, in the name of an address.
func (s *stranger) scan(g *gateway, as string) {
	s.t.Helper()
	mac := func(space string) net.HardwareAddr {
		out, err := exec.Command("ip", "netns", "exec", space, "cat", "/sys/class/net/eth0/address").Output()
		if err != nil {
			s.t.Fatal(err)
		}
		m, err := net.ParseMAC(strings.TrimSpace(string(out)))
		if err != nil {
			s.t.Fatal(err)
		}
		return m
	}
	own, to := mac(s.space), mac(g.netns)
	err := s.there(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		for port := range 120 {
			eth := &layers.Ethernet{SrcMAC: own, DstMAC: to, EthernetType: layers.EthernetTypeIPv4}
			ip4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.ParseIP(as).To4(), DstIP: net.ParseIP(g.addr).To4()}
			tcp := &layers.TCP{SrcPort: 40_000, DstPort: layers.TCPPort(1 + port), SYN: true, Window: 1024, Seq: uint32(port)}
			if err := tcp.SetNetworkLayerForChecksum(ip4); err != nil {
				return err
			}
			buf := gopacket.NewSerializeBuffer()
			if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip4, tcp); err != nil {
				return err
			}
			if err := unix.Sendto(fd, buf.Bytes(), 0, &unix.SockaddrLinklayer{Ifindex: eth0.Index}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestGuardReacts lets a stranger scan a gateway whose rules are enforced: he
// is blocked, on record, through a crash, until a person releases him. When he
// uses a neighbour's address, nobody is. Charging goes on all the time.
func TestGuardReacts(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 2)
	w := newWires(t, g)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is missing: apt-get install nftables")
	}
	north, east := g.gateways[0], g.gateways[1]
	g.found()
	chainID := must(north, north.client.Status).Chain
	mallory := w.stranger("10.83.0.66")

	// A rule that has not observed for a week is refused from afar, with the
	// reason, and has no effect when the file says so.
	enforce := []config.GuardRule{{ID: guard.TCPPortScan, Mode: "enforce"}, {ID: guard.ARPSpoof, Mode: "ask"}, {ID: guard.LoadBinary, Mode: "enforce"}}
	view := must(north, north.client.ConfigView)
	_, err := north.client.ConfigChange(t.Context(), config.Desired{Txn: "enforce", Base: view.Rev, Mode: config.Merge, ConfirmS: 60, Config: []byte(`{"guard":{"rules":[{"id":"tcp.port_scan","mode":"enforce"}]}}`)}, "test")
	if err == nil || !strings.Contains(err.Error(), "can be enforced in 168h") {
		t.Errorf("enforced on the first day: %v", err)
	}
	north.stop()
	north.configure(func(c *config.Config) {
		c.Guard.Rules, c.Guard.Interface = enforce, "eth0"
	})
	north.start()
	early := north.guards(patience, "rules", func(s guard.Status) bool { return len(s.Rules) > 0 })
	for _, r := range early.Rules {
		if r.ID == guard.TCPPortScan && (r.Mode != guard.Enforce || r.InForce != guard.Observe) {
			t.Errorf("without learning: %+v", r)
		}
	}
	north.stop()
	north.teach(chainID)
	north.start()
	g.connected()
	north.sees(guard.Packet)
	anna := north.wallet("anna", "500")
	session := g.charge(north, anna, 20_000)
	var opened atomic.Bool
	watching, unwatch := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for watching.Err() == nil {
			if !g.street.State(north.index).Relay {
				opened.Store(true)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()

	// In a neighbour's name, and in the name of the gateway itself: found, and
	// nobody is blocked.
	if !mallory.reaches(north) {
		t.Fatal("the page cannot be reached before anything was blocked")
	}
	mallory.scan(north, east.addr)
	s := north.guards(patience, "the neighbour to be spared", func(s guard.Status) bool { return s.Spared[policy.SparedNever] > 0 })
	if len(s.Reactions) > 0 {
		t.Errorf("a neighbour is blocked by packets in his name: %+v", s.Reactions)
	}

	mallory.scan(north, mallory.addr)
	s = north.guards(patience, "a block", func(s guard.Status) bool { return len(s.Reactions) == 1 && s.Reacted["block"] == 1 })
	r := s.Reactions[0]
	if r.Action != guard.Block || r.Subject.Value != mallory.addr || r.Rule != guard.TCPPortScan || time.Until(r.Until) > time.Hour {
		t.Errorf("in force is %+v", r)
	}
	rules := func() string {
		out, err := exec.Command("ip", "netns", "exec", north.netns, "nft", "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Fatalf("nft list ruleset: %v: %s", err, out)
		}
		return string(out)
	}
	if all := rules(); !regexp.MustCompile(`table inet joulegate_\w+`).MatchString(all) || !regexp.MustCompile(`10\.83\.0\.66 .*expires`).MatchString(all) {
		t.Errorf("the packet filter holds\n%s", all)
	}
	if mallory.reaches(north) {
		t.Error("the stranger still reaches the page")
	}
	g.connected()
	unwatch()
	<-watched
	if opened.Load() {
		t.Error("the relay opened while packets were sent")
	}

	// A crash, and a start like any other: what was in force is in force for
	// the rest of its time.
	north.kill()
	north.start()
	s = north.guards(patience, "the block again", func(s guard.Status) bool { return len(s.Reactions) == 1 && s.Reacted["block"] == 1 })
	if s.Reactions[0].ID != r.ID || s.Reactions[0].Until.Sub(r.Until).Abs() > 5*time.Second {
		t.Errorf("before the crash %+v, after it %+v", r, s.Reactions[0])
	}
	if mallory.reaches(north) {
		t.Error("the stranger reaches the page after a crash")
	}

	// The page tells that something is blocked, not whom.
	card, err := getIn(east, "http://"+north.addr+":8080/api/v1/guard/card")
	if err != nil || !strings.Contains(card, `"action":"block"`) || strings.Contains(card, mallory.addr) {
		t.Errorf("the page tells %s, %v", card, err)
	}

	// Released, he comes back, and is left alone for a day.
	out := north.run("guard", "release", fmt.Sprint(r.ID))
	if !strings.Contains(out, "nothing is in force") {
		t.Errorf("guard release says %q", out)
	}
	north.wait(patience, "the stranger to be let in", func(context.Context) (bool, any) { return mallory.reaches(north), rules() })
	if strings.Contains(rules(), "joulegate") {
		t.Errorf("a table stays behind:\n%s", rules())
	}
	north.sees(guard.Packet) // since the crash
	mallory.scan(north, mallory.addr)
	north.guards(patience, "the released to be spared", func(s guard.Status) bool { return s.Spared[policy.SparedReleased] > 0 })

	// Everything at once, and nothing more is begun.
	blocked := func(addr string) {
		t.Helper()
		mallory.scan(north, addr)
		north.guards(patience, "a block", func(s guard.Status) bool {
			return slices.ContainsFunc(s.Reactions, func(r guard.Standing) bool { return r.Subject.Value == addr }) && strings.Contains(rules(), addr)
		})
	}
	blocked("10.83.0.67")
	blocked("10.83.0.68")
	if out := north.run("guard", "release", "--all"); !strings.Contains(out, "nothing is done before") || strings.Contains(out, "10.83") {
		t.Errorf("guard release --all says %q", out)
	}
	north.wait(patience, "the tables' end", func(context.Context) (bool, any) { return !strings.Contains(rules(), "joulegate"), rules() })
	mallory.scan(north, "10.83.0.69")
	north.guards(patience, "the next one to be spared", func(s guard.Status) bool { return s.Spared[policy.SparedSuspended] > 0 && len(s.Reactions) == 0 })
	if out := north.run("guard", "release", "--resume"); !strings.Contains(out, "nothing is in force") {
		t.Errorf("guard release --resume says %q", out)
	}

	// Each of it stands in a signed block.
	rep := must(north, func(ctx context.Context) (v struct{ n int }, err error) {
		r, err := north.client.GuardReport(ctx, time.Time{}, time.Time{})
		for _, e := range r.Evidence {
			if e.Rule == guard.GuardReaction && e.Hash != (chain.Hash{}) {
				v.n++
			}
		}
		return v, err
	})
	if rep.n < 6 {
		t.Errorf("%d reactions are on record, want three blocks and their releases", rep.n)
	}
	file := filepath.Join(t.TempDir(), "report.html")
	north.run("guard", "report", "--out", file)
	if b, err := os.ReadFile(file); err != nil || !bytes.Contains(b, []byte("verifiable by a third party")) || bytes.Contains(b, []byte(mallory.addr)) {
		t.Errorf("the report: %v, %d bytes", err, len(b))
	}

	// The session went on after the crash, and is settled like any other.
	bill(t, g.stopSession(north, anna, session.ID))
	g.agree()

	// What a killed gateway leaves behind is removed without one.
	blocked("10.83.0.70")
	north.kill()
	north.orphans()
	if !strings.Contains(rules(), "10.83.0.70") {
		t.Errorf("a crash has released what was blocked:\n%s", rules())
	}
	if out := north.run("guard", "release", "--all"); !strings.Contains(out, "no gateway is running") || strings.Contains(rules(), "joulegate") {
		t.Errorf("guard release --all without a gateway says %q and leaves\n%s", out, rules())
	}
}

// getIn fetches a page as seen from another gateway.
func getIn(from *gateway, url string) (string, error) {
	s := &stranger{t: from.t, space: from.netns}
	var out bytes.Buffer
	err := s.there(func() error {
		res, err := (&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var c net.Conn
			err := s.there(func() (err error) { c, err = (&net.Dialer{}).DialContext(ctx, network, addr); return err })
			return c, err
		}}}).Get(url)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = out.ReadFrom(res.Body)
		return err
	})
	return out.String(), err
}

// TestGuardIsMissed freezes a gateway: its neighbour says that its guard is
// silent, and puts that on record, although it was killed itself meanwhile; when
// it wakes, it is heard again. Before, the
// sensors alone are frozen: their own gateway notices that.
func TestGuardIsMissed(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 2)
	north, east := g.gateways[0], g.gateways[1]
	for i, gw := range g.gateways {
		gw.install()
		gw.configure(func(c *config.Config) { c.Guard.Heartbeat = config.Duration(10 * time.Second) })
		if i == 0 {
			gw.create()
			gw.start()
		} else {
			gw.join(north)
		}
	}
	g.connected()
	north.sees(guard.Load)
	child := north.guard().Child.PID
	if err := unix.Kill(child, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	north.guards(patience, "frozen sensors to be replaced", func(s guard.Status) bool {
		return s.Child.PID != 0 && s.Child.PID != child && s.Child.Restarts == 1
	})
	north.sees(guard.Load)
	if f := north.guard().Findings; !slices.ContainsFunc(f, func(f guard.Finding) bool {
		return f.Rule == guard.GuardCoverage && strings.Contains(f.Evidence["reason"], "silent for")
	}) {
		t.Errorf("found %+v", f)
	}

	// The neighbour has heard it by now: its heartbeats stand in the blocks.
	east.wait(patience, "blocks of the neighbour", func(context.Context) (bool, any) {
		n := east.newest()
		return n[north.name].Number > 3, n
	})
	if err := north.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	east.kill() // it knows from its journal when it has heard the neighbour last
	east.start()
	east.guards(3*patience, "the neighbour to be missed", func(s guard.Status) bool { return slices.Contains(s.Silent, north.name) })
	if err := north.cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	east.guards(2*patience, "the neighbour to be heard again", func(s guard.Status) bool { return len(s.Silent) == 0 })
	told := must(east, func(ctx context.Context) (n int, err error) {
		r, err := east.client.GuardReport(ctx, time.Time{}, time.Time{})
		for _, e := range r.Evidence {
			if e.Rule == guard.GuardSilent {
				n++
			}
		}
		return n, err
	})
	if told != 1 {
		t.Errorf("the gap is on record %d times", told)
	}
}

// TestGuardDiesAndChargingGoesOn kills the sensors again and again, and takes
// their memory away: they start anew, later each time, and the car charges all
// the while. It has the processors of this package to itself, because a loop
// that does not get one for a second rightly opens the relay.
func TestGuardDiesAndChargingGoesOn(t *testing.T) {
	g := newGrid(t, 1)
	north := g.gateways[0]
	g.found()
	north.sees(guard.Load)
	anna := north.wallet("anna", "500")
	session := g.charge(north, anna, 20_000)
	var opened atomic.Bool
	watching, unwatch := context.WithCancel(t.Context())
	defer unwatch()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for watching.Err() == nil {
			if s := g.street.State(north.index); !s.Relay {
				opened.Store(true)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	last := 0
	for i, c := range []struct {
		wait string
		end  func(pid int) error
	}{
		{"1s", func(pid int) error { return unix.Kill(pid, unix.SIGKILL) }},
		{"2s", func(pid int) error { return unix.Kill(pid, unix.SIGABRT) }}, // what a panic ends in
		{"4s", func(pid int) error { // nothing may be allocated
			return unix.Prlimit(pid, unix.RLIMIT_DATA, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}, nil)
		}},
	} {
		if last = north.sensors(last); c.wait != "4s" { // that one is met as it starts
			north.sees(guard.Load)
			if p, err := unix.Getpriority(unix.PRIO_PROCESS, last); err != nil || p >= 20 { // 20 less the niceness
				t.Errorf("the sensors do not yield to the station: %d, %v", p, err)
			}
		}
		if err := c.end(last); err != nil {
			t.Fatal(err)
		}
		north.guards(patience, fmt.Sprintf("end %d of the sensors", i+1), func(s guard.Status) bool {
			return s.Child.Restarts == uint64(i+1) && strings.HasSuffix(s.Child.Ended, "starts again in "+c.wait)
		})
	}
	north.sensors(last)
	north.sees(guard.Load)
	unwatch()
	<-watched
	if opened.Load() {
		t.Error("the relay opened when the sensors died")
	}
	s := g.stopSession(north, anna, session.ID)
	bill(t, s)
	if s.Wh == 0 {
		t.Error("nothing was charged")
	}
}

// sensors waits for a process of the sensors other than the last, and returns
// it as soon as it is there: what is done to it then meets it as it starts.
func (g *gateway) sensors(last int) int {
	g.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", g.cmd.Process.Pid))
		if err != nil {
			g.t.Fatal(err)
		}
		for _, name := range names {
			children, err := os.ReadFile(name)
			if err != nil {
				continue // a thread that has ended
			}
			for _, c := range strings.Fields(string(children)) {
				line, err := os.ReadFile("/proc/" + c + "/cmdline")
				if pid, _ := strconv.Atoi(c); err == nil && pid != last && strings.Contains(string(line), "\x00guard\x00sensors") {
					return pid
				}
			}
		}
	}
	g.t.Fatalf("%s: no other process of the sensors than %d", g.name, last)
	return 0
}
