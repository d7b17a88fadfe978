package p2p

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// grid is a set of gateways on loopback that share membership and address
// book, as they would through the ledger.
type grid struct {
	t    *testing.T
	psk  []byte
	mu   sync.Mutex
	in   map[peer.ID]bool
	book []peer.AddrInfo
}

func newGrid(t *testing.T) *grid {
	g := &grid{t: t, psk: make([]byte, 32), in: map[peer.ID]bool{}}
	rand.Read(g.psk)
	return g
}

func (g *grid) allow(id peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.in[id]
}

func (g *grid) admit(id peer.ID, yes bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.in[id] = yes
}

func (g *grid) addresses() []peer.AddrInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]peer.AddrInfo(nil), g.book...)
}

func (g *grid) list(n *Node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.book = append(g.book, peer.AddrInfo{ID: n.inner.ID(), Addrs: n.inner.Addrs()})
}

// node makes a gateway; it is a member and in the book if member is set.
func (g *grid) node(member bool, change ...func(*Config)) *Node {
	g.t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		g.t.Fatal(err)
	}
	cfg := Config{Key: key, PSK: g.psk, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Allow: g.allow, Book: g.addresses, Size: 4}
	if os.Getenv("P2P_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(g.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for _, f := range change {
		f(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = n.Close() })
	if member {
		g.admit(n.inner.ID(), true)
		g.list(n)
	}
	return n
}

// run starts nodes and stops them with the test.
func (g *grid) run(nodes ...*Node) {
	for _, n := range nodes {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		g.t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				g.t.Errorf("Run: %v", err)
			}
		})
		eventually(g.t, "doors open", n.gate.open.Load)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func linked(a, b *Node) bool {
	return a.inner.Network().Connectedness(b.inner.ID()) == network.Connected
}

func mesh(t *testing.T, nodes ...*Node) {
	t.Helper()
	eventually(t, "everybody connected with everybody", func() bool {
		for _, a := range nodes {
			for _, b := range nodes {
				if a != b && !linked(a, b) {
					return false
				}
			}
		}
		return true
	})
}

// inbox collects what a topic's handler has accepted.
type inbox struct {
	mu   sync.Mutex
	seen map[string]int
}

func (i *inbox) judge(_ context.Context, _ peer.ID, data []byte) Verdict {
	switch {
	case bytes.HasPrefix(data, []byte("bad")):
		return Reject
	case bytes.HasPrefix(data, []byte("old")):
		return Ignore
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.seen == nil {
		i.seen = map[string]int{}
	}
	i.seen[string(data)]++
	return Accept
}

func (i *inbox) count(s string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.seen[s]
}

const blocks = "test/blocks"

func subscribe(t *testing.T, nodes ...*Node) []*inbox {
	t.Helper()
	in := make([]*inbox, len(nodes))
	for i, n := range nodes {
		in[i] = &inbox{}
		if err := n.Subscribe(blocks, in[i].judge); err != nil {
			t.Fatal(err)
		}
	}
	return in
}

// meshed waits until gossip of each node knows the others on the topic.
func meshed(t *testing.T, others int, nodes ...*Node) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, "gossip mesh", func() bool { return len(n.ps.ListPeers(blocks)) >= others })
	}
}

func TestMessageReachesFourGatewaysOnce(t *testing.T) {
	g := newGrid(t)
	nodes := []*Node{g.node(true), g.node(true), g.node(true), g.node(true)}
	in := subscribe(t, nodes...)
	g.run(nodes...)
	mesh(t, nodes...)
	meshed(t, 3, nodes...)
	big := strings.Repeat("x", MaxMessage)
	for _, m := range []string{"block 1", big} {
		if err := nodes[0].Publish(t.Context(), blocks, []byte(m)); err != nil {
			t.Fatal(err)
		}
		for _, i := range in[1:] {
			eventually(t, "delivery", func() bool { return i.count(m) == 1 })
		}
	}
	if err := nodes[0].Publish(t.Context(), blocks, make([]byte, MaxMessage+1)); err == nil {
		t.Error("a message above the limit was published")
	}
	for i, in := range in[1:] {
		if n := in.count("block 1"); n != 1 {
			t.Errorf("node %d judged the message %d times", i+1, n)
		}
	}
	for _, p := range nodes[0].Peers() {
		if want, _ := PeerIDOf(p.Key); !p.Connected || want != p.ID || p.Direction == "" || p.Since.IsZero() {
			t.Errorf("peer listed as %+v", p)
		}
	}
}

func TestInvalidMessagesAreRefusedCountedAndNotPassedOn(t *testing.T) {
	t.Parallel()
	g := newGrid(t)
	// A line a - b - c: what b refuses c never sees.
	a, b, c := g.node(true), g.node(true), g.node(true)
	line := func(x, y *Node) func(peer.ID) bool {
		return func(id peer.ID) bool { return id == x.inner.ID() || id == y.inner.ID() }
	}
	a.cfg.Allow, a.gate.allow = line(a, b), line(a, b)
	c.cfg.Allow, c.gate.allow = line(c, b), line(c, b)
	in := subscribe(t, a, b, c)
	g.run(a, b, c)
	eventually(t, "line", func() bool { return linked(a, b) && linked(b, c) })
	meshed(t, 1, a, c)
	meshed(t, 2, b)
	// A peer passes on to those in its mesh, which a heartbeat builds.
	n := 0
	eventually(t, "good message at the end of the line", func() bool {
		n++
		if err := a.Publish(t.Context(), blocks, fmt.Appendf(nil, "warm %d", n)); err != nil {
			t.Fatal(err)
		}
		return in[2].count(fmt.Sprintf("warm %d", max(1, n-5))) == 1
	})
	for _, m := range []string{"bad signature", "old block", "good"} {
		if err := a.Publish(t.Context(), blocks, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "good message at the end of the line", func() bool { return in[2].count("good") == 1 })
	eventually(t, "counts", func() bool {
		k := b.Counters()
		return k.Rejected == 1 && k.Ignored == 1
	})
	if k := c.Counters(); k.Rejected+k.Ignored != 0 {
		t.Errorf("refused messages were passed on: %+v", k)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	g := newGrid(t)
	a := g.node(true)
	g.run(a)
	t.Run("without the private network key", func(t *testing.T) {
		other := make([]byte, 32)
		n := g.node(false, func(c *Config) { c.PSK = other })
		g.admit(n.inner.ID(), true) // even a member
		g.run(n)
		if err := n.Connect(t.Context(), peer.AddrInfo{ID: a.inner.ID(), Addrs: a.inner.Addrs()}); err == nil {
			t.Error("connected")
		}
	})
	t.Run("not a member", func(t *testing.T) {
		before := a.Counters().Refused
		n := g.node(false)
		g.run(n)
		// The refusal comes after the handshake: the dialler may see the
		// connection come and go.
		_ = n.Connect(t.Context(), peer.AddrInfo{ID: a.inner.ID(), Addrs: a.inner.Addrs()})
		eventually(t, "refusal counted", func() bool { return a.Counters().Refused > before && !linked(n, a) })
		if linked(a, n) {
			t.Error("connected")
		}
	})
}

func TestRevokedMemberIsDisconnected(t *testing.T) {
	t.Parallel()
	g := newGrid(t)
	a, b := g.node(true), g.node(true)
	g.run(a, b)
	mesh(t, a, b)
	g.admit(b.inner.ID(), false)
	a.Recheck()
	eventually(t, "disconnect", func() bool { return !linked(a, b) })
	if a.Counters().Revoked == 0 {
		t.Error("not counted")
	}
	g.admit(b.inner.ID(), true)
	mesh(t, a, b)
}

// A guest reaches the join protocol and nothing else, and becomes a member
// without a restart.
func TestGuestReachesOnlyGuestProtocols(t *testing.T) {
	t.Parallel()
	g := newGrid(t)
	var open atomic.Bool
	open.Store(true)
	host := g.node(true, func(c *Config) { c.Guest = func(peer.ID) bool { return open.Load() } })
	in := subscribe(t, host)
	host.HandleGuest("/test/join/1", 100, func(_ context.Context, from peer.ID, req []byte) ([]byte, error) {
		g.admit(from, true)
		return append([]byte("welcome "), req...), nil
	})
	host.Handle("/test/secret/1", 100, func(context.Context, peer.ID, []byte) ([]byte, error) { return []byte("secret"), nil })
	host.Host().SetStreamHandler("/test/consensus/1", func(s network.Stream) { _, _ = s.Write([]byte("vote")); _ = s.Close() })

	guest := g.node(false)
	subscribe(t, guest)
	// The guest trusts the gateway whose address is in its invitation.
	g.run(host, guest)
	info, err := AddrInfo(must(KeyOf(host.inner.ID())), host.Addrs())
	if err != nil {
		t.Fatal(err)
	}
	if err := guest.Connect(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Request(t.Context(), info.ID, "/test/secret/1", nil, 100); err == nil {
		t.Error("a guest reached a member protocol")
	}
	if s, err := guest.inner.NewStream(t.Context(), info.ID, "/test/consensus/1"); err == nil {
		if n, err := s.Read(make([]byte, 10)); err == nil && n > 0 {
			t.Error("a guest reached a protocol on Host()")
		}
	}
	if k := host.Counters(); k.StrangerStreams < 2 || k.Guests != 1 {
		t.Errorf("counters %+v", k)
	}
	got, err := guest.Request(t.Context(), info.ID, "/test/join/1", []byte("bob"), 100)
	if err != nil || string(got) != "welcome bob" {
		t.Fatalf("join: %q, %v", got, err)
	}
	g.list(guest) // the ledger now lists it
	meshed(t, 1, host, guest)
	eventually(t, "gossip from the new member", func() bool {
		_ = guest.Publish(t.Context(), blocks, []byte("first block"))
		return in[0].count("first block") == 1
	})
	eventually(t, "member protocol", func() bool {
		got, err := guest.Request(t.Context(), info.ID, "/test/secret/1", nil, 100)
		return err == nil && string(got) == "secret"
	})
}

func TestFlooderIsBlocked(t *testing.T) {
	t.Parallel()
	g := newGrid(t)
	a, spammer := g.node(true), g.node(true)
	in := subscribe(t, a, spammer)
	g.run(a, spammer)
	mesh(t, a, spammer)
	meshed(t, 1, a, spammer)
	for i := 0; a.Counters().Floods == 0; i++ {
		if i > 200_000 {
			t.Fatal("never blocked")
		}
		_ = spammer.Publish(t.Context(), blocks, fmt.Appendf(nil, "message %d", i))
		if i%64 == 0 {
			time.Sleep(time.Millisecond) // let the queue drain: what is dropped at the sender is no flood
		}
	}
	eventually(t, "disconnect", func() bool { return !linked(a, spammer) })
	refused := a.Counters().Refused
	eventually(t, "refused when it comes back", func() bool {
		_ = spammer.Connect(t.Context(), peer.AddrInfo{ID: a.inner.ID(), Addrs: a.inner.Addrs()})
		return a.Counters().Refused > refused
	})
	// The others go on.
	c := g.node(true)
	subscribe(t, c)
	g.run(c)
	mesh(t, a, c)
	meshed(t, 1, a)
	eventually(t, "message of an honest member", func() bool {
		_ = c.Publish(t.Context(), blocks, []byte("honest"))
		return in[0].count("honest") == 1
	})
}

func TestRequests(t *testing.T) {
	g := newGrid(t)
	a, b := g.node(true), g.node(true)
	busy, release := make(chan struct{}, maxPerPeer), make(chan struct{})
	a.Handle("/test/1", 1000, func(ctx context.Context, from peer.ID, req []byte) ([]byte, error) {
		switch string(req) {
		case "who":
			k, err := KeyOf(from)
			return k[:], err
		case "fail":
			return nil, errors.New(strings.Repeat("no ", 1000))
		case "wait":
			busy <- struct{}{}
			<-release
			return nil, nil
		}
		return bytes.Repeat(req, 2), nil
	})
	g.run(a, b)
	mesh(t, a, b)
	ask := func(req []byte, max int) ([]byte, error) {
		return b.Request(t.Context(), a.inner.ID(), "/test/1", req, max)
	}
	if got, err := ask([]byte("who"), 32); err != nil || [32]byte(got) != must(KeyOf(b.inner.ID())) {
		t.Errorf("who: %x, %v", got, err)
	}
	if got, err := ask(make([]byte, 1000), 2000); err != nil || len(got) != 2000 {
		t.Errorf("largest: %d bytes, %v", len(got), err)
	}
	if _, err := ask(make([]byte, 1001), 4000); err == nil {
		t.Error("a request above the limit was answered")
	}
	if _, err := ask(make([]byte, 1000), 1999); err == nil {
		t.Error("a reply above the limit was taken")
	}
	var remote *RemoteError
	if _, err := ask([]byte("fail"), 10); !errors.As(err, &remote) || len(remote.Text) > maxErrText {
		t.Errorf("remote error: %v", err)
	}
	if _, err := b.Request(t.Context(), a.inner.ID(), "/test/other", nil, 10); err == nil {
		t.Error("an unknown protocol was answered")
	}
	var wg sync.WaitGroup
	for range maxPerPeer {
		wg.Go(func() { _, _ = ask([]byte("wait"), 10) })
	}
	for range maxPerPeer {
		<-busy
	}
	if _, err := ask([]byte("who"), 32); !errors.Is(err, ErrBusy) {
		t.Errorf("one too many: %v", err)
	}
	close(release)
	wg.Wait()
	eventually(t, "free again", func() bool { _, err := ask([]byte("who"), 32); return err == nil })
}

func TestRestartedGatewayIsReachedAgain(t *testing.T) {
	t.Parallel()
	g := newGrid(t)
	a := g.node(true)
	g.run(a)
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	b := g.node(true, func(c *Config) { c.Key = key })
	listen := b.inner.Addrs()[0].String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	mesh(t, a, b)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, "loss noticed", func() bool { return !linked(a, b) })
	again := g.node(false, func(c *Config) { c.Key, c.Listen = key, []string{listen} })
	g.run(again)
	mesh(t, a, again)
}

// When a cut link heals, dials of both sides may succeed at once: the one of
// the higher id gives way. A dial of the lower id is always let in, because
// the connection we believe in may be dead.
func TestSecondConnectionOfThePairIsRefused(t *testing.T) {
	g := newGrid(t)
	a, b := g.node(true), g.node(true)
	if a.inner.ID() > b.inner.ID() {
		a, b = b, a
	}
	g.run(a, b)
	mesh(t, a, b)
	for _, c := range []struct {
		at, from *Node
		dir      network.Direction
		want     bool
	}{
		{a, b, network.DirInbound, false},
		{b, a, network.DirOutbound, false},
		{b, a, network.DirInbound, true},
		{a, b, network.DirOutbound, true},
	} {
		if got := c.at.gate.InterceptSecured(c.dir, c.from.inner.ID(), nil); got != c.want {
			t.Errorf("lower %v, %v: admitted %v", c.at == a, c.dir, got)
		}
	}
	if a.Counters().Seconds != 1 || b.Counters().Seconds != 1 || a.Counters().Refused != 0 {
		t.Errorf("%+v, %+v", a.Counters(), b.Counters())
	}
}

func TestHintConnectsMembersAndAdmitsNobody(t *testing.T) {
	t.Parallel()
	g := newGrid(t)
	empty := func(c *Config) { c.Book = nil }
	a, b, stranger := g.node(true, empty), g.node(true, empty), g.node(false, empty)
	g.run(a, b, stranger)
	for _, n := range []*Node{b, stranger} {
		for _, at := range []*Node{a, b} {
			hinter{at}.HandlePeerFound(peer.AddrInfo{ID: n.inner.ID(), Addrs: n.inner.Addrs()})
		}
	}
	hinter{b}.HandlePeerFound(peer.AddrInfo{ID: a.inner.ID(), Addrs: a.inner.Addrs()})
	mesh(t, a, b)
	if len(a.hints) != 1 || linked(a, stranger) {
		t.Errorf("%d hints kept, stranger linked %v", len(a.hints), linked(a, stranger))
	}
}

func TestConfigErrorsNameTheCause(t *testing.T) {
	g := newGrid(t)
	n := g.node(true)
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	good := Config{Key: key, PSK: g.psk, Allow: g.allow}
	for want, change := range map[string]func(*Config){
		"another gateway": func(c *Config) { c.Listen = []string{n.inner.Addrs()[0].String()} },
		"listen address":  func(c *Config) { c.Listen = []string{"localhost:1234"} },
		"want 32":         func(c *Config) { c.PSK = c.PSK[:31] },
		"device key":      func(c *Config) { c.Key = nil },
		"membership":      func(c *Config) { c.Allow = nil },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	if _, err := AddrInfo([32]byte{1}, []string{"/ip4/127.0.0.1/tcp/1/p2p/" + n.inner.ID().String()}); err == nil {
		t.Error("an address of another peer was taken")
	}
}

// A street behind one NAT has one address.
func TestManyGatewaysShareAnAddress(t *testing.T) {
	r, err := newResources()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, addr := range []string{"/ip4/192.0.2.7/tcp/4000", "/ip6/2001:db8::7/tcp/4000"} {
		a, err := ma.NewMultiaddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		for i := range MaxPeers / 2 {
			c, err := r.OpenConnection(network.DirInbound, true, a)
			if err != nil {
				t.Fatalf("connection %d from %s: %v", i+1, addr, err)
			}
			defer c.Done()
		}
	}
}

func TestGuestsLeaveRoomForMembers(t *testing.T) {
	if MaxGuests*maxPerGuest > MaxRequests/2 {
		t.Error("guests can occupy most of the request slots")
	}
	s := newSlots()
	for range maxPerGuest {
		if !s.take("guest", maxPerGuest) {
			t.Fatal("refused early")
		}
	}
	if s.take("guest", maxPerGuest) {
		t.Error("a guest has more than its share")
	}
	s.free("guest")
	if !s.take("guest", maxPerGuest) {
		t.Error("a freed slot is not given again")
	}
}

func TestGossipDegreesAreValidForEverySize(t *testing.T) {
	for n := range 61 {
		p := degrees(n)
		if p.Dout >= p.Dlo || p.Dout >= (p.D+1)/2 || p.Dlo > p.D || p.D > p.Dhi || p.Dscore > p.Dhi {
			t.Errorf("%d gateways: %+v", n, p)
		}
	}
}

func FuzzReadReply(f *testing.F) {
	f.Add([]byte{statusOK, 0, 0, 0, 1, 'x'})
	f.Add([]byte{statusFail, 0, 0, 0, 2, 'n', 'o'})
	f.Add([]byte{statusBusy, 0, 0, 0, 0})
	f.Add([]byte{statusOK, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := readReply(bytes.NewReader(raw), 100)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeReply(&again, statusOK, got); err != nil || len(got) > 100 || !bytes.HasPrefix(raw, again.Bytes()) {
			t.Errorf("%x read as %x", raw, got)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
