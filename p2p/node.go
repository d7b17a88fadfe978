package p2p

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
)

// Limits. What happens beyond each is said with it.
const (
	MaxMessage  = 64 << 10 // bytes of a gossip message; larger is refused on both sides
	MaxPeers    = 128      // live peers; beyond, nobody is dialled, and who dials is refused
	MaxGuests   = 8        // live guests; further ones are refused
	MaxBook     = 1000     // peers of the address book that are dialled; the rest is ignored
	MaxRequests = 64       // requests served at once, of all peers; further ones get ErrBusy
	maxPerPeer  = 8        // requests served at once for one member, likewise
	maxPerGuest = 2        // and for one guest
	maxBlocked  = 256      // peers blocked for flooding; beyond, the block that ends first is lifted
	maxDials    = 16       // dials at once; the others wait for the next round
	maxErrText  = 256      // bytes of an error that crosses the wire
)

// Times.
const (
	RedialEvery    = 3 * time.Second  // between rounds over the address book
	GuestLifetime  = 2 * time.Minute  // a guest is disconnected after this
	BlockedFor     = 10 * time.Minute // a flooding peer is refused for this long
	RequestTimeout = 30 * time.Second // a request and its reply

	keepAlive   = 5 * time.Second
	dialTimeout = 5 * time.Second
	// higherWaits is how long the peer with the higher id leaves dialling to
	// the other one. It dials in the end: the other may be behind a NAT.
	higherWaits = 7 * time.Second
	higherEvery = 5 * RedialEvery
	// At start the rounds are quicker: neighbours that start together, after a
	// blackout, need not wait for each other's next round.
	eagerEvery  = RedialEvery / 10
	eagerRounds = 20
	// settle is how long a new member's guest connection is left alone, so
	// that the reply to its join is not cut off.
	settle = 3 * time.Second
)

// Config describes one gateway's network. Functions are called from many
// goroutines and must not block.
type Config struct {
	Key    ed25519.PrivateKey // device key: its public half is the peer id
	PSK    []byte             // 32 bytes, shared by the microgrid
	Listen []string           // multiaddrs, TCP only; empty: dials only

	// Allow reports whether id is a member. A false answer refuses the
	// connection; call Recheck after answers have changed.
	Allow func(id peer.ID) bool
	// Guest reports whether a holder of the PSK who is no member may connect
	// to reach the guest protocols. nil: never.
	Guest func(id peer.ID) bool
	// Book returns whom to be connected with and where. May include self.
	Book func() []peer.AddrInfo
	// Connected, if set, is called once per peer that became connected.
	Connected func(id peer.ID)
	// Size is the number of gateways expected, for the gossip degrees.
	// 0: the length of Book at start.
	Size int
	// MDNS, if not empty, is a service name under which gateways on the same
	// link hint their addresses to each other. A hint never admits anybody.
	MDNS string
	Log  *slog.Logger
}

// Node is one gateway on the network. All methods are safe for concurrent
// use.
type Node struct {
	cfg    Config
	log    *slog.Logger
	inner  host.Host // as libp2p made it: every protocol open to every connection
	host   host.Host // inner behind the membership gate
	ps     *pubsub.PubSub
	cancel context.CancelFunc // ends pubsub
	gate   *gate
	flood  *flood
	count  counters
	slots  *slots

	mu     sync.Mutex
	topics map[string]*topic
	hints  map[peer.ID]peer.AddrInfo // from mDNS, members only
	missed map[peer.ID]missed        // peers of the book that are not connected
	ran    bool
	closed sync.Once
}

type missed struct{ since, dialled time.Time }

// New makes the host and binds its listen addresses, so that an address in
// use is an error here. Nobody is let in before Run. Register topics and
// handlers between New and Run.
func New(cfg Config) (*Node, error) {
	switch {
	case len(cfg.Key) != ed25519.PrivateKeySize:
		return nil, errors.New("p2p: no device key")
	case len(cfg.PSK) != 32:
		return nil, fmt.Errorf("p2p: private network key of %d bytes, want 32", len(cfg.PSK))
	case cfg.Allow == nil:
		return nil, errors.New("p2p: no membership function")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Book == nil {
		cfg.Book = func() []peer.AddrInfo { return nil }
	}
	if cfg.Size == 0 {
		cfg.Size = len(cfg.Book())
	}
	n := &Node{
		cfg:    cfg,
		log:    cfg.Log,
		topics: map[string]*topic{},
		hints:  map[peer.ID]peer.AddrInfo{},
		missed: map[peer.ID]missed{},
		slots:  newSlots(),
	}
	n.flood = newFlood()
	n.gate = newGate(&cfg, &n.count, n.flood)

	key, err := crypto.UnmarshalEd25519PrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("p2p: device key: %w", err)
	}
	listen, err := listenAddrs(cfg.Listen)
	if err != nil {
		return nil, err
	}
	resources, err := newResources()
	if err != nil {
		return nil, fmt.Errorf("p2p: resource limits: %w", err)
	}
	n.inner, err = libp2p.New(
		libp2p.Identity(key),
		libp2p.PrivateNetwork(cfg.PSK),
		libp2p.NoListenAddrs, // bound below, one error per address
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), // else two gateways could share a port unnoticed
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, newMuxer()),
		libp2p.ConnectionGater(n.gate),
		libp2p.ResourceManager(resources),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
		libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.ForceReachabilityPublic(), // no probing of NATs: addresses are configured
		libp2p.Ping(false),               // unbounded echo for whoever is connected
		libp2p.UserAgent("joulegate"),
		libp2p.WithDialTimeout(dialTimeout),
	)
	if err != nil {
		return nil, fmt.Errorf("p2p: make host: %w", err)
	}
	n.gate.self, n.gate.nw = n.inner.ID(), n.inner.Network()
	for _, a := range listen {
		if err := n.inner.Network().Listen(a); err != nil {
			return nil, errors.Join(fmt.Errorf("p2p: listen on %s: %w; is another gateway running?", a, err), n.inner.Close())
		}
	}
	n.host = &gatedHost{Host: n.inner, allow: n.member, count: &n.count}
	n.inner.Network().Notify(&network.NotifyBundle{ConnectedF: n.connected, DisconnectedF: n.disconnected})

	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	if n.ps, err = newGossip(ctx, n); err != nil {
		return nil, errors.Join(fmt.Errorf("p2p: gossip: %w", err), n.Close())
	}
	return n, nil
}

// Host is the libp2p host, for protocols of others. Handlers set on it are
// reached by members only.
func (n *Node) Host() host.Host { return n.host }

// Addrs returns the addresses this node listens on, each with its peer id.
func (n *Node) Addrs() []string {
	var out []string
	for _, a := range n.inner.Addrs() {
		out = append(out, a.String()+"/p2p/"+n.inner.ID().String())
	}
	return out
}

// Run lets members in, keeps connected with the address book, and returns
// when ctx has ended and everything is closed. It runs once.
func (n *Node) Run(ctx context.Context) error {
	n.mu.Lock()
	again := n.ran
	n.ran = true
	n.mu.Unlock()
	if again {
		return errors.New("p2p: Run called twice")
	}
	n.gate.open.Store(true)
	var wg sync.WaitGroup
	if n.cfg.MDNS != "" {
		wg.Go(func() { n.runMDNS(ctx) })
	}
	dials := make(chan struct{}, maxDials)
	for round := 0; ; round++ {
		pause := RedialEvery
		if round < eagerRounds {
			pause = eagerEvery
		}
		n.redial(ctx, &wg, dials)
		select {
		case <-ctx.Done():
			wg.Wait()
			return n.Close()
		case <-time.After(pause):
			n.Recheck()
		}
	}
}

// Close ends a node that Run does not end: one that never ran.
func (n *Node) Close() (err error) {
	n.closed.Do(func() {
		n.gate.open.Store(false)
		n.cancel()
		err = n.inner.Close()
	})
	return err
}

// Recheck asks Allow and Guest again for every live connection and closes
// those that have lost their admission. A guest that has become a member is
// disconnected too once it is idle: it comes back as a member.
func (n *Node) Recheck() {
	now := time.Now()
	for _, id := range n.inner.Network().Peers() {
		member := n.member(id)
		since, guest := n.gate.guestSince(id)
		switch {
		case member && guest:
			if n.gate.promoted(id, now) > settle && n.slots.busy(id) == 0 {
				n.gate.forgetGuest(id)
				n.drop(id, "guest became a member")
			}
		case member:
		case guest && n.gate.guest(id) && now.Sub(since) < GuestLifetime:
		default:
			n.count.revoked.Add(1)
			n.drop(id, "not a member")
		}
	}
}

func (n *Node) member(id peer.ID) bool { return n.cfg.Allow(id) && !n.flood.blocked(id, time.Now()) }

func (n *Node) drop(id peer.ID, why string) {
	n.log.Info("peer disconnected by us", "peer", id, "reason", why)
	if err := n.inner.Network().ClosePeer(id); err != nil {
		n.log.Debug("close peer", "peer", id, "err", err)
	}
}

// redial starts a dial to every peer of the book that is not connected and
// whose turn it is.
func (n *Node) redial(ctx context.Context, wg *sync.WaitGroup, dials chan struct{}) {
	now := time.Now()
	book := n.book()
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.missed {
		if _, ok := book[id]; !ok {
			delete(n.missed, id)
		}
	}
	room := MaxPeers - len(n.inner.Network().Peers())
	for id, info := range book {
		if n.inner.Network().Connectedness(id) == network.Connected {
			delete(n.missed, id)
			continue
		}
		m, known := n.missed[id]
		if !known {
			m.since = now
			n.missed[id] = m
		}
		if n.inner.ID() > id && (now.Sub(m.since) < higherWaits || now.Sub(m.dialled) < higherEvery) {
			continue
		}
		if room--; room < 0 {
			return
		}
		select {
		case dials <- struct{}{}:
		default:
			return // the map's order is random: nobody starves
		}
		m.dialled = now
		n.missed[id] = m
		wg.Go(func() {
			defer func() { <-dials }()
			n.dial(ctx, info)
		})
	}
}

func (n *Node) dial(ctx context.Context, info peer.AddrInfo) {
	if s, ok := n.inner.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(info.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	n.count.dials.Add(1)
	if err := n.inner.Connect(ctx, info); err != nil {
		n.count.dialErrors.Add(1)
		n.log.Debug("dial failed", "peer", info.ID, "err", err)
	}
}

// book merges the configured book with hints, without self and non-members.
func (n *Node) book() map[peer.ID]peer.AddrInfo {
	out := map[peer.ID]peer.AddrInfo{}
	add := func(info peer.AddrInfo) {
		if info.ID == n.inner.ID() || len(out) >= MaxBook || !n.member(info.ID) {
			return
		}
		have := out[info.ID]
		out[info.ID] = peer.AddrInfo{ID: info.ID, Addrs: slices.Concat(have.Addrs, info.Addrs)}
	}
	for _, info := range n.cfg.Book() {
		if len(info.Addrs) > 0 {
			add(info)
		}
	}
	n.mu.Lock()
	hints := slices.Collect(maps.Values(n.hints))
	n.mu.Unlock()
	for _, info := range hints {
		add(info)
	}
	return out
}

func (n *Node) connected(_ network.Network, c network.Conn) {
	id := c.RemotePeer()
	if n.cfg.Connected != nil && len(n.inner.Network().ConnsToPeer(id)) == 1 {
		go n.cfg.Connected(id) // the notifier must not wait
	}
	n.log.Info("peer connected", "peer", id, "addr", c.RemoteMultiaddr(), "direction", c.Stat().Direction)
}

func (n *Node) disconnected(nw network.Network, c network.Conn) {
	id := c.RemotePeer()
	if nw.Connectedness(id) == network.Connected {
		return
	}
	n.gate.forgetGuest(id)
	n.log.Info("peer gone", "peer", id)
}

func listenAddrs(in []string) ([]ma.Multiaddr, error) {
	var out []ma.Multiaddr
	for _, s := range in {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("p2p: listen address %q: %w", s, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// newMuxer is yamux with a keep-alive short enough that a dead link is seen
// in under ten seconds.
func newMuxer() *yamux.Transport {
	c := *yamux.DefaultTransport.Config()
	c.EnableKeepAlive = true
	c.KeepAliveInterval = keepAlive
	c.ConnectionWriteTimeout = keepAlive
	return (*yamux.Transport)(&c)
}

// newResources overrides the limits that assume the open internet: eight
// connections per address would refuse a street of gateways behind one NAT.
// What holds strangers off here is the private network key.
func newResources() (network.ResourceManager, error) {
	const conns = MaxPeers + MaxGuests + 2*maxDials
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: conns, ConnsInbound: conns, ConnsOutbound: conns, FD: conns,
			Streams: 64 * conns, StreamsInbound: 32 * conns, StreamsOutbound: 32 * conns,
			Memory: 256 << 20,
		},
		Transient: rcmgr.ResourceLimits{
			Conns: conns, ConnsInbound: conns, ConnsOutbound: conns, FD: conns,
			Streams: 4 * conns, StreamsInbound: 2 * conns, StreamsOutbound: 2 * conns,
			Memory: 64 << 20,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: 4, ConnsInbound: 4, ConnsOutbound: 4, FD: 4,
			Streams: 256, StreamsInbound: 128, StreamsOutbound: 128,
			Memory: 64 << 20,
		},
	}.Build(rcmgr.DefaultLimits.AutoScale())
	perAddress := func(bits int) []rcmgr.ConnLimitPerSubnet {
		return []rcmgr.ConnLimitPerSubnet{{PrefixLength: bits, ConnCount: conns}}
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithLimitPerSubnet(perAddress(32), perAddress(56)),
		rcmgr.WithNetworkPrefixLimit([]rcmgr.NetworkPrefixLimit{}, []rcmgr.NetworkPrefixLimit{}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{GlobalLimit: rate.Limit{RPS: conns, Burst: 4 * conns}}),
	)
}
