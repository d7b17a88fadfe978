package microgrid

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// spacePrefix starts the name of every network namespace made here; the
// process id of the test follows, so that leftovers of dead runs are known.
const spacePrefix = "jge2e-"

var spaces atomic.Int32

// wires is the cabling of a street: a namespace with two switches, joined by
// one cable that can be cut.
//
//	north  east       south  west        a namespace each, 10.83.0.n
//	   │    │            │    │
//	  [ left ]──cable──[ right ]          switches, in the hub's namespace
//
// A cut takes no socket down: packets just stop arriving.
type wires struct {
	t   *testing.T
	hub string
}

// newWires lays the cables of all gateways of g, the first two at the left,
// or skips the test where that is not permitted.
func newWires(t *testing.T, g *grid) *wires {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip is missing: apt-get install iproute2")
	}
	sweep(t)
	w := &wires{t: t, hub: fmt.Sprintf("%s%d-%d", spacePrefix, os.Getpid(), spaces.Add(1))}
	if out, err := exec.Command("ip", "netns", "add", w.hub).CombinedOutput(); err != nil {
		t.Skipf("network namespaces are not permitted here (CAP_SYS_ADMIN): ip netns add: %s", strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", w.hub).Run() })
	for _, b := range []string{"left", "right"} {
		w.in(w.hub, "link", "add", b, "type", "bridge")
		w.in(w.hub, "link", "set", b, "up")
	}
	w.in(w.hub, "link", "add", "cable", "type", "veth", "peer", "name", "elbac")
	w.in(w.hub, "link", "set", "cable", "master", "left", "up")
	w.in(w.hub, "link", "set", "elbac", "master", "right", "up")
	for i, gw := range g.gateways {
		gw.netns = fmt.Sprintf("%s-%s", w.hub, gw.name)
		gw.addr = fmt.Sprintf("10.83.0.%d", i+1)
		ip(t, "netns", "add", gw.netns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", gw.netns).Run() })
		w.in(w.hub, "link", "add", gw.name, "type", "veth", "peer", "name", "eth0", "netns", gw.netns)
		w.in(w.hub, "link", "set", gw.name, "master", map[bool]string{true: "left", false: "right"}[i < 2], "up")
		w.in(gw.netns, "addr", "add", gw.addr+"/24", "dev", "eth0")
		w.in(gw.netns, "link", "set", "eth0", "up")
		w.in(gw.netns, "link", "set", "lo", "up")
		t.Cleanup(gw.cleanup) // before its namespace goes
	}
	return w
}

// sweep removes namespaces of earlier runs that died without cleaning up.
func sweep(t *testing.T) {
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Logf("ip netns list: %v", err)
		return
	}
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest, ours := strings.CutPrefix(name, spacePrefix)
		text, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(text)
		if !ours || err != nil || syscall.Kill(pid, 0) == nil {
			continue // not ours, or its test still runs
		}
		if err := exec.Command("ip", "netns", "del", name).Run(); err == nil {
			t.Logf("removed namespace %s, left by a dead test", name)
		}
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (w *wires) in(space string, args ...string) {
	w.t.Helper()
	ip(w.t, append([]string{"-n", space}, args...)...)
}

func (w *wires) cut()  { w.t.Helper(); w.in(w.hub, "link", "set", "cable", "down") }
func (w *wires) mend() { w.t.Helper(); w.in(w.hub, "link", "set", "cable", "up") }

// TestCutInNamespaces cuts two of four gateways off for three minutes, by
// pulling the cable between two switches.
func TestCutInNamespaces(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 4)
	w := newWires(t, g)
	g.found()
	cutAndMend(t, g, w, 180*time.Second)
}

// TestLateJoinThenCut lets a fifth gateway join a running microgrid and then
// cuts the street for longer than libp2p remembers the addresses of peers it
// has lost: about a minute. Who has joined late is in nobody's genesis, so
// only the ledger can tell how to reach it.
func TestLateJoinThenCut(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 5)
	w := newWires(t, g)
	late := g.gateways[4]
	g.gateways = g.gateways[:4]
	g.found()
	north := g.gateways[0]
	north.grow(north.status().Height + 5)
	g.gateways = append(g.gateways, late)
	late.install()
	late.join(north)
	g.connected()
	g.agree()
	cutAndMend(t, g, w, 80*time.Second)
}

// mendLimit is how long after a heal the issue of the microgrid allows until
// the first block.
const mendLimit = 15 * time.Second

// cutAndMend cuts for so long and mends. A car charges meanwhile: neither
// metering nor charging may need the neighbours.
func cutAndMend(t *testing.T, g *grid, w *wires, long time.Duration) {
	t.Helper()
	north, east := g.gateways[0], g.gateways[1]
	anna := north.wallet("anna", "500")
	s := g.charge(east, anna, 10_000)
	east.wait(3*slot, "energy on the ledger", func(context.Context) (bool, any) {
		s = east.session(s.ID)
		return s.Wh > 0, s.SessionView
	})

	w.cut()
	time.Sleep(5 * time.Second) // a block that was agreed on may still be written
	frozen := map[string]int64{}
	own := map[string]chain.Position{}
	for _, gw := range g.gateways {
		frozen[gw.name] = gw.status().Height
		own[gw.name] = gw.newest()[gw.name]
	}
	began := s.Wh
	time.Sleep(long - 5*time.Second)
	var height int64
	for _, gw := range g.gateways {
		if h := gw.status().Height; h != frozen[gw.name] {
			t.Errorf("%s went from block %d to %d while nobody had a majority", gw.name, frozen[gw.name], h)
		}
		height = max(height, frozen[gw.name])
		if now := gw.newest()[gw.name]; now.Epoch != own[gw.name].Epoch || now.Number < own[gw.name].Number+uint64((long-5*time.Second-2*slot)/slot) {
			t.Errorf("%s stopped recording: its chain went from %s to %s in %s", gw.name, own[gw.name], now, long)
		}
	}
	g.flows(east)

	w.mend()
	healed := time.Now()
	var met time.Duration
	for first := time.Duration(0); first == 0 || met == 0; time.Sleep(50 * time.Millisecond) {
		since := time.Since(healed)
		whole := true
		for _, gw := range g.gateways {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			st, err := gw.client.Status(ctx)
			cancel()
			if err != nil {
				t.Fatalf("%s: %v", gw.name, err)
			}
			if whole = whole && st.Peers == len(g.gateways)-1; st.Height > height && first == 0 {
				first = since
				t.Logf("first new block %s after the heal", since.Round(10*time.Millisecond))
			}
		}
		if whole && met == 0 {
			met = since
			t.Logf("everybody connected with everybody %s after the heal", since.Round(10*time.Millisecond))
		}
		if since > patience {
			t.Fatalf("a minute after the heal: first block after %s, connected after %s", first, met)
		}
		if (first == 0 || met == 0) && since > mendLimit && since < mendLimit+time.Second {
			t.Errorf("%s after the heal: first block after %s, connected after %s", since, first, met)
			time.Sleep(time.Second)
		}
	}

	g.agree()
	g.complete()
	s = g.stopSession(east, anna, s.ID)
	bill(t, s)
	if s.Wh <= began {
		t.Errorf("%d Wh before the cut, %d Wh billed after it", began, s.Wh)
	}
	g.complete()
	g.agree()
	g.honest()
	for _, gw := range g.gateways {
		gw.books()
	}
	for _, gw := range g.gateways {
		gw.verify()
	}
	booked(t, g)
}
