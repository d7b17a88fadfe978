package p2p

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// gate decides who may be connected. It is libp2p's connmgr.ConnectionGater.
type gate struct {
	self  peer.ID
	nw    network.Network // set before anybody is let in
	allow func(peer.ID) bool
	guest func(peer.ID) bool
	count *counters
	open  atomic.Bool // false until Run: registrations come before peers
	flood *flood

	mu     sync.Mutex
	guests map[peer.ID]guest // live, at most MaxGuests
}

type guest struct {
	since    time.Time
	promoted time.Time // when it was first seen to be a member
}

func newGate(cfg *Config, count *counters, flood *flood) *gate {
	g := &gate{allow: cfg.Allow, guest: cfg.Guest, count: count, flood: flood, guests: map[peer.ID]guest{}}
	if g.guest == nil {
		g.guest = func(peer.ID) bool { return false }
	}
	return g
}

func (g *gate) InterceptPeerDial(id peer.ID) bool {
	return g.allow(id) && !g.flood.blocked(id, time.Now())
}

func (g *gate) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool { return g.open.Load() }

// InterceptSecured runs when Noise has proven who the peer is.
func (g *gate) InterceptSecured(dir network.Direction, id peer.ID, _ network.ConnMultiaddrs) bool {
	switch {
	case g.second(dir, id):
		g.count.seconds.Add(1)
		return false
	case g.flood.blocked(id, time.Now()):
	case g.allow(id):
		if len(g.nw.Peers()) < MaxPeers+MaxGuests || g.nw.Connectedness(id) == network.Connected {
			return true
		}
	case g.guest(id) && g.admitGuest(id):
		return true
	}
	g.count.refused.Add(1)
	return false
}

// second reports whether this would be a second connection that both have
// dialled: the one dialled by the lower id stays. A connection that it dials
// anew is always taken, the old one may be dead.
func (g *gate) second(dir network.Direction, id peer.ID) bool {
	dialledByHigher := g.self > id
	if dir == network.DirInbound {
		dialledByHigher = id > g.self
	}
	return dialledByHigher && g.nw.Connectedness(id) == network.Connected
}

func (g *gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

func (g *gate) admitGuest(id peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.guests[id]; ok {
		return true
	}
	if len(g.guests) >= MaxGuests {
		// A guest whose upgrade failed after Noise leaves no disconnect
		// behind: make room by age.
		for old, v := range g.guests {
			if time.Since(v.since) > GuestLifetime {
				delete(g.guests, old)
			}
		}
		if len(g.guests) >= MaxGuests {
			return false
		}
	}
	g.guests[id] = guest{since: time.Now()}
	g.count.guests.Add(1)
	return true
}

func (g *gate) guestSince(id peer.ID) (time.Time, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v, ok := g.guests[id]
	return v.since, ok
}

// promoted returns for how long the guest has been a member.
func (g *gate) promoted(id peer.ID, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.guests[id]
	if v.promoted.IsZero() {
		v.promoted = now
		g.guests[id] = v
	}
	return now.Sub(v.promoted)
}

func (g *gate) forgetGuest(id peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.guests, id)
}

// gatedHost resets the streams of everybody who is not a member, whoever set
// the handler.
type gatedHost struct {
	host.Host
	allow func(peer.ID) bool
	count *counters
}

func (h *gatedHost) wrap(f network.StreamHandler) network.StreamHandler {
	return func(s network.Stream) {
		if !h.allow(s.Conn().RemotePeer()) {
			h.count.strangerStreams.Add(1)
			_ = s.Reset()
			return
		}
		f(s)
	}
}

func (h *gatedHost) SetStreamHandler(id protocol.ID, f network.StreamHandler) {
	h.Host.SetStreamHandler(id, h.wrap(f))
}

func (h *gatedHost) SetStreamHandlerMatch(id protocol.ID, m func(protocol.ID) bool, f network.StreamHandler) {
	h.Host.SetStreamHandlerMatch(id, m, h.wrap(f))
}
