package microgrid

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/policy"
	"github.com/joulegate/joulegate/guard/report"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/p2p"
	"github.com/libp2p/go-libp2p/core/peer"
)

// secluded runs a program as the first of processes of its own, without the
// means to see those of the machine: a gateway that ends what is not listed
// must not reach the machine of the test.
func secluded(c *exec.Cmd) *exec.Cmd {
	const script = `mount --make-rprivate / && mount -t proc proc /proc && exec setpriv --bounding-set=-bpf,-perfmon,-sys_admin -- "$@"`
	return exec.Command("sh", append([]string{"-c", script, "sh"}, c.Args...)...)
}

// copyFile makes a program of a name of its own.
func copyFile(t *testing.T, from, to string, more ...byte) string {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, append(b, more...), 0o755); err != nil {
		t.Fatal(err)
	}
	return to
}

// program is one that was started beside a gateway.
type program struct{ done chan error }

// beside starts a program among the processes of a secluded gateway. It ends
// with the test.
func (g *gateway) beside(path string, args ...string) *program {
	g.t.Helper()
	c := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(g.cmd.Process.Pid), "-p", "-m", "--", path}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		g.t.Fatal(err)
	}
	p := &program{make(chan error, 1)}
	go func() { p.done <- c.Wait() }()
	g.t.Cleanup(func() { _ = c.Process.Kill() })
	return p
}

// ended says how the program has ended; nil while it runs.
func (p *program) ended() error {
	select {
	case err := <-p.done:
		p.done <- err
		if err == nil {
			return io.EOF
		}
		return err
	default:
		return nil
	}
}

// reacted counts the reactions, begun and ended, that stand in signed blocks;
// changes of modes are less severe.
func (g *gateway) reacted() (n int) {
	g.t.Helper()
	r := must(g, func(ctx context.Context) (report.Report, error) {
		return g.client.GuardReport(ctx, time.Time{}, time.Time{})
	})
	for _, e := range r.Evidence {
		if e.Rule == guard.GuardReaction && e.Severity >= guard.Medium && e.Hash != (chain.Hash{}) {
			n++
		}
	}
	return n
}

// TestGuardEndsPrograms starts programs beside a gateway that ends what is not
// on the list: the listed one lives, another of the same name and content at
// another place is ended, on record first. Nothing is ended while the rule
// still learns, nor after a person has released everything.
func TestGuardEndsPrograms(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("process namespaces need root (CAP_SYS_ADMIN)")
	}
	g := newGrid(t, 1)
	north := g.gateways[0]
	g.found()
	chainID := must(north, north.client.Status).Chain
	north.stop()

	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	listed, stranger := copyFile(t, sleep, filepath.Join(g.dir, "metering")), copyFile(t, sleep, filepath.Join(g.dir, "stranger"))
	var list strings.Builder
	for _, f := range []string{binary, listed, "/usr/bin/nsenter", "/usr/bin/setpriv", "/usr/bin/dash", "/usr/bin/mount"} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&list, "%x  %s\n", sha256.Sum256(b), f)
	}
	programs := filepath.Join(g.dir, "programs.sha256")
	if err := os.WriteFile(programs, []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	north.configure(func(c *config.Config) {
		c.Guard.Programs, c.Guard.Rules = programs, []config.GuardRule{{ID: guard.ProcessUnlisted, Mode: "enforce"}}
	})
	found := func(s guard.Status) bool {
		return slices.ContainsFunc(s.Findings, func(f guard.Finding) bool {
			return f.Rule == guard.ProcessUnlisted && f.Evidence["image"] == stranger
		})
	}
	north.alone = true

	// On the first day it is found.
	north.start()
	north.sees(guard.Process)
	early := north.beside(stranger, "300")
	north.guards(patience, "the program to be found", found)
	if err := early.ended(); err != nil {
		t.Errorf("it was ended while the rule still learns: %v", err)
	}
	north.stop()

	north.teach(chainID)
	north.start()
	north.sees(guard.Process)
	good, bad := north.beside(listed, "300"), north.beside(stranger, "300")
	s := north.guards(patience, "the program to be ended", func(s guard.Status) bool { return s.Reacted["kill"] > 0 })
	north.wait(patience, "the program's end", func(context.Context) (bool, any) { return bad.ended() != nil, fmt.Sprintf("%+v", s) })
	if out := bad.ended().Error(); !strings.Contains(out, "killed") {
		t.Errorf("the program ended with %q", out)
	}
	if err := good.ended(); err != nil {
		t.Errorf("a listed program was ended: %v", err)
	}
	if n := north.reacted(); n != 1 {
		t.Errorf("%d reactions are on record, want 1", n)
	}
	if v := must(north, north.client.Status); v.Chain != chainID {
		t.Error("the gateway fares ill")
	}

	// A person says no more of it, for a day or until he says otherwise.
	if out := north.run("guard", "release", "--all"); !strings.Contains(out, "nothing is done before") {
		t.Errorf("guard release --all says %q", out)
	}
	spared := north.beside(stranger, "301")
	north.guards(patience, "the next one to be spared", func(s guard.Status) bool { return s.Spared[policy.SparedSuspended] > 0 })
	if err := spared.ended(); err != nil {
		t.Errorf("it was ended after everything was released: %v", err)
	}
	north.run("guard", "release", "--resume")
	again := north.beside(stranger, "302")
	north.guards(patience, "the one after that to be ended", func(s guard.Status) bool { return s.Reacted["kill"] == 2 })
	north.wait(patience, "its end", func(context.Context) (bool, any) { return again.ended() != nil, north.guard() })
	if err := good.ended(); err != nil {
		t.Errorf("a listed program was ended: %v", err)
	}
}

// TestGuardStopsCharging exchanges the program's file while a car charges. Of
// that alone nothing comes; when a second sensor of this machine finds
// something grave too, the session ends as any other does, and is settled. It
// happens once.
func TestGuardStopsCharging(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 1)
	north := g.gateways[0]
	north.binary = copyFile(t, binary, filepath.Join(g.dir, "joulegate"))
	g.found()
	chainID := must(north, north.client.Status).Chain
	north.stop()
	north.configure(func(c *config.Config) {
		c.Guard.Rules = []config.GuardRule{{ID: guard.LoadBinary, Mode: "enforce"}}
	})
	north.teach(chainID)
	north.start()
	north.sees(guard.Load)
	north.sees(guard.Process)
	anna := north.wallet("anna", "500")
	session := g.charge(north, anna, 20_000)

	// What a machine finds of programs stops nothing.
	memory := func() {
		t.Helper()
		fd, err := unix.MemfdCreate("e2e", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "e2e")
		defer f.Close()
		b, err := os.ReadFile("/usr/bin/true")
		if err == nil {
			_, err = f.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)).Run(); err != nil {
			t.Fatal(err)
		}
	}
	memory()
	north.guards(patience, "a program without a file", func(s guard.Status) bool {
		return slices.ContainsFunc(s.Findings, func(f guard.Finding) bool { return f.Rule == guard.ProcessMemfd })
	})
	if s := north.guard(); s.Reacted["safe_stop"] > 0 || !g.street.State(north.index).Relay {
		t.Fatalf("one source has stopped charging: %+v", s)
	}

	flowed := make(chan meter.MilliWatt, 1)
	go func() { // what flows when the relay opens
		last := meter.MilliWatt(-1)
		for deadline := time.Now().Add(3 * patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			st := g.street.State(north.index)
			if !st.Relay {
				break
			}
			last = st.Charging
		}
		flowed <- last
	}()
	exchanged := copyFile(t, binary, north.binary+".new", 0)
	if err := os.Rename(exchanged, north.binary); err != nil {
		t.Fatal(err)
	}
	north.guards(patience, "the stop", func(s guard.Status) bool { return s.Reacted["safe_stop"] == 1 })
	g.opens(north, patience)
	if p := <-flowed; p != 0 {
		t.Errorf("the relay opened with %d mW flowing: that was no ordinary ramp-down", p)
	}
	s := north.settled(session.ID)
	bill(t, s)
	if s.Wh == 0 || s.Reason != chain.StopOperator {
		t.Errorf("%d Wh, ended by %s", s.Wh, s.Reason)
	}
	if n := north.reacted(); n != 1 {
		t.Errorf("%d reactions are on record, want 1", n)
	}

	// Whoever goes on finding such things does not keep cars from charging.
	if _, err := g.street.Unplug(north.index); err != nil {
		t.Fatal(err)
	}
	north.wait(patience, "the car's departure", func(context.Context) (bool, any) {
		st := g.street.State(north.index)
		return !st.Relay && st.Car == "", st
	})
	next := g.charge(north, anna, 20_000)
	memory()
	north.grow(must(north, north.client.Status).Height + 2)
	if s := north.guard(); s.Reacted["safe_stop"] != 1 || !g.street.State(north.index).Relay {
		t.Errorf("charging was stopped twice: %+v", s)
	}
	bill(t, g.stopSession(north, anna, next.ID))
}

// TestGuardShutsOut lets a member hand on what no honest gateway makes: it is
// not talked to for an hour, on record, while it stays a member. A person lets
// it in again.
func TestGuardShutsOut(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 4)
	north, south := g.gateways[0], g.gateways[3]
	for i, gw := range g.gateways {
		gw.install()
		switch {
		case i == 0:
			gw.create()
			gw.start()
		case gw == south: // it will not vote
			gw.run("grid", "join", strings.TrimSpace(north.run("grid", "invite", "--follower")))
			gw.start()
		default:
			gw.join(north)
		}
	}
	g.connected()
	chainID := must(north, north.client.Status).Chain
	var book []peer.AddrInfo
	for _, m := range must(north, north.client.Members) {
		if m.Name == south.name {
			continue
		}
		info, err := p2p.AddrInfo(m.Device, m.Addrs)
		if err != nil {
			t.Fatal(err)
		}
		book = append(book, info)
	}
	south.stop()
	north.stop()
	north.configure(func(c *config.Config) {
		c.Guard.Rules = []config.GuardRule{{ID: guard.PeerInvalid, Mode: "enforce"}}
	})
	north.teach(chainID)
	north.start()
	north.sees(guard.Packet)
	g.connected()

	r := newRogue(t, south, chainID, book, nil)
	links := func(gw *gateway, want int) {
		t.Helper()
		gw.wait(patience, fmt.Sprintf("%d neighbours", want), func(ctx context.Context) (bool, any) {
			s, err := gw.client.Status(ctx)
			return err == nil && s.Peers == want, fmt.Sprintf("%+v %v", s, err)
		})
	}
	links(north, 3)
	time.Sleep(2 * time.Second) // until gossip knows who listens to what
	for i := range 3 {
		forged := r.block(1, uint64(1_000_000+i), "forged").Raw
		forged[len(forged)-1] ^= 1
		r.publish(forged)
	}
	s := north.guards(patience, "quarantine", func(s guard.Status) bool { return len(s.Reactions) == 1 && s.Reacted["quarantine"] == 1 })
	q := s.Reactions[0]
	if q.Action != guard.Quarantine || q.Subject != (guard.Subject{Kind: guard.Peer, Value: south.name}) || time.Until(q.Until) > time.Hour {
		t.Errorf("in force is %+v", q)
	}
	links(north, 2)
	if m := member(north, south.name); !m.Active {
		t.Errorf("it is no member any more: %+v", m)
	}
	links(g.gateways[1], 3) // who only observes talks to it still
	north.grow(must(north, north.client.Status).Height + 1)
	links(north, 2)
	if out := north.run("guard", "status"); !strings.Contains(out, "quarantine") {
		t.Errorf("guard status says %q", out)
	}

	// A restart keeps the door shut.
	north.stop()
	north.start()
	north.guards(patience, "quarantine again", func(s guard.Status) bool {
		return len(s.Reactions) == 1 && s.Reactions[0].ID == q.ID && s.Reacted["quarantine"] == 1
	})
	links(north, 2)

	north.run("guard", "release", "--all")
	links(north, 3)
	if n := north.reacted(); n != 2 {
		t.Errorf("%d reactions are on record, want begin and end", n)
	}
	g.agree()
}

// TestGuardAsksAboutNames lets a gateway send something past its own name
// server: it asks first, refuses after a yes, and passes it again when a person
// has released everything.
func TestGuardAsksAboutNames(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 1)
	w := newWires(t, g)
	north := g.gateways[0]
	north.install()
	north.configure(func(c *config.Config) {
		c.Guard.Interface = "eth0"
		c.Guard.DNS = config.DNS{Listen: []string{"127.0.0.1:53"}, Upstreams: []string{"udp://10.83.0.250"}, Bypass: "observe"}
		c.Guard.Rules = []config.GuardRule{{ID: guard.DomainBypass, Mode: "ask"}}
	})
	w.in(north.netns, "route", "add", "default", "via", "10.83.0.254")
	w.in(north.netns, "neigh", "add", "10.83.0.254", "lladdr", "02:00:00:00:00:fe", "dev", "eth0")
	north.create()
	north.start()
	state := func(s guard.Status) string {
		if s.Names == nil {
			return ""
		}
		return s.Names.Bypass.State
	}
	north.guards(patience, "a look at what goes past", func(s guard.Status) bool { return state(s) == "observe" })

	passes := func() bool {
		t.Helper()
		var sent error
		err := (&stranger{t: t, space: north.netns}).there(func() error {
			c, err := net.Dial("udp", "198.51.100.53:53")
			if err != nil {
				return err
			}
			defer c.Close()
			_, sent = c.Write([]byte("a question for somebody else"))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return sent == nil
	}
	if !passes() {
		t.Fatal("it is refused before anything was asked")
	}
	s := north.guards(patience, "a question", func(s guard.Status) bool { return len(s.Questions) == 1 })
	if q := s.Questions[0]; q.Action != guard.Refuse || q.Rule != guard.DomainBypass || state(s) != "observe" {
		t.Errorf("asked is %+v while %s", q, state(s))
	}
	if !passes() {
		t.Error("it is refused before the answer")
	}
	if out := north.run("guard", "answer", fmt.Sprint(s.Questions[0].ID), "yes"); !strings.Contains(out, "refuse") {
		t.Errorf("guard answer says %q", out)
	}
	north.guards(patience, "the refusal", func(s guard.Status) bool { return state(s) == "enforce" && s.Reacted["refuse"] == 1 })
	if passes() {
		t.Error("it passes after the answer")
	}
	if n := north.reacted(); n != 2 {
		t.Errorf("%d steps are on record, want question and refusal", n)
	}
	north.run("guard", "release", "--all")
	north.guards(patience, "the refusal's end", func(s guard.Status) bool { return state(s) == "observe" && len(s.Reactions) == 0 })
	if !passes() {
		t.Error("it is refused after everything was released")
	}
}
