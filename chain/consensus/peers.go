package consensus

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	cs "github.com/cometbft/cometbft/consensus"
	"github.com/cometbft/cometbft/lp2p"
	"github.com/cometbft/cometbft/p2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
)

// borrowedHost lends the application's host to CometBFT, whose switch closes
// network and peerstore when it stops. Here these are somebody else's.
//
// What CometBFT notes about a peer is kept here too. A peerstore forgets
// peers that have gone, after a minute and when the host closes, while a vote
// of theirs may still wait to be counted; and about a listed peer without
// notes consensus panics, in a goroutine that nobody recovers.
type borrowedHost struct {
	host.Host
	notes *notes
}

func borrow(h host.Host) borrowedHost {
	return borrowedHost{h, newNotes(func(p peer.ID) bool { return h.Network().Connectedness(p) == network.Connected })}
}

func (b borrowedHost) Network() network.Network { return borrowedNetwork{b.Host.Network()} }
func (b borrowedHost) Peerstore() peerstore.Peerstore {
	return borrowedPeerstore{b.Host.Peerstore(), b.notes}
}

type borrowedNetwork struct{ network.Network }

func (borrowedNetwork) Close() error { return nil }

type borrowedPeerstore struct {
	peerstore.Peerstore
	notes *notes
}

func (borrowedPeerstore) Close() error { return nil }

func (b borrowedPeerstore) Put(p peer.ID, key string, value any) error {
	b.notes.put(p, key, value)
	return nil
}

func (b borrowedPeerstore) Get(p peer.ID, key string) (any, error) {
	if v, ok := b.notes.get(p, key); ok {
		return v, nil
	}
	return nil, peerstore.ErrNotFound
}

// notes are what CometBFT keeps about peers. Safe for concurrent use.
type notes struct {
	mu   sync.RWMutex
	of   map[peer.ID]map[string]any
	live func(peer.ID) bool
}

func newNotes(live func(peer.ID) bool) *notes {
	return &notes{of: map[peer.ID]map[string]any{}, live: live}
}

func (n *notes) get(p peer.ID, key string) (any, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	v, ok := n.of[p][key]
	return v, ok
}

func (n *notes) put(p peer.ID, key string, value any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of[p] == nil {
		if len(n.of) >= maxNoted {
			maps.DeleteFunc(n.of, func(p peer.ID, _ map[string]any) bool { return !n.live(p) })
		}
		n.of[p] = map[string]any{}
	}
	n.of[p][key] = value
}

// peerKeeper makes CometBFT's list of peers follow the connections of the
// host. CometBFT v0.40.0 does it only halfway: it learns of a lost connection
// when a send fails, and dials again with pauses of up to five minutes. After a cut of minutes it stays stuck with
// hollow peers.
//
//	connected and speaks consensus ──► added, fresh state
//	connection lost                ──► removed
//	listed but not connected       ──► dialled every few seconds
//
// The list of known addresses is not CometBFT's bootstrap map (read without a
// lock, fixed at start) but Config.Peers, so that members who join later are
// peers like all others.
type peerKeeper struct {
	host     host.Host
	set      *lp2p.PeerSet
	reactors []p2p.Reactor
	known    func() []peer.AddrInfo // may be nil
	log      *slog.Logger
}

var consensusProtocol = lp2p.ProtocolID(cs.StateChannel)

// run returns when ctx has ended and its dials have too.
func (k *peerKeeper) run(ctx context.Context) error {
	sub, err := k.host.EventBus().Subscribe([]any{
		new(event.EvtPeerConnectednessChanged), new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated),
	}, eventbus.BufSize(256))
	if err != nil {
		return err
	}
	defer sub.Close()
	tick := time.NewTicker(redialEvery)
	defer tick.Stop()
	var dials sync.WaitGroup
	defer dials.Wait()

	k.reconcile()
	k.redial(ctx, &dials)
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-sub.Out():
			switch e := e.(type) {
			case event.EvtPeerConnectednessChanged:
				// Even when it is connected again by now: a peer that
				// restarted knows nothing of what it was sent before.
				if e.Connectedness != network.Connected {
					k.remove(e.Peer, "connection lost")
				}
				k.follow(e.Peer)
			case event.EvtPeerIdentificationCompleted:
				k.follow(e.Peer)
			case event.EvtPeerProtocolsUpdated:
				k.follow(e.Peer)
			}
		case <-tick.C:
			k.reconcile()
			k.redial(ctx, &dials)
		}
	}
}

// reconcile mends what an event missed.
func (k *peerKeeper) reconcile() {
	var gone []peer.ID
	k.set.ForEach(func(p p2p.Peer) {
		if id, err := peer.Decode(string(p.ID())); err == nil && k.host.Network().Connectedness(id) != network.Connected {
			gone = append(gone, id)
		}
	})
	for _, id := range gone { // not under the set's lock
		k.remove(id, "not connected")
	}
	for _, id := range k.host.Network().Peers() {
		k.follow(id)
	}
}

// follow adds a peer that is connected and speaks consensus.
func (k *peerKeeper) follow(id peer.ID) {
	if k.set.Has(p2p.ID(id.String())) || k.host.Network().Connectedness(id) != network.Connected {
		return
	}
	if ps, err := k.host.Peerstore().SupportsProtocols(id, consensusProtocol); err != nil || len(ps) == 0 {
		return
	}
	info := peer.AddrInfo{ID: id}
	for _, c := range k.host.Network().ConnsToPeer(id) {
		info.Addrs = append(info.Addrs, c.RemoteMultiaddr())
	}
	_, err := k.set.Add(info, lp2p.PeerAddOptions{
		Unconditional: true,
		OnBeforeStart: func(p *lp2p.Peer) {
			for _, r := range k.reactors {
				r.InitPeer(p)
			}
		},
		OnAfterStart: func(p *lp2p.Peer) {
			for _, r := range k.reactors {
				r.AddPeer(p)
			}
		},
		OnStartFailed: k.dropped,
	})
	switch {
	case err == nil:
		k.log.Debug("consensus peer added", "peer", id)
	case !errors.Is(err, lp2p.ErrPeerExists):
		k.log.Warn("consensus peer not added", "peer", id, "err", err)
	}
}

func (k *peerKeeper) dropped(p *lp2p.Peer, reason any) {
	for _, r := range k.reactors {
		r.RemovePeer(p, reason)
	}
}

func (k *peerKeeper) remove(id peer.ID, reason string) {
	key := p2p.ID(id.String())
	if !k.set.Has(key) {
		return
	}
	// An error means that CometBFT removed it at the same moment.
	if err := k.set.Remove(key, lp2p.PeerRemovalOptions{Reason: reason, OnAfterStop: k.dropped}); err == nil {
		k.log.Debug("consensus peer removed", "peer", id, "reason", reason)
	}
}

// redial dials the listed peers that are not connected. Of two peers the one
// with the lower id dials; the other does only if it never hears from it.
func (k *peerKeeper) redial(ctx context.Context, dials *sync.WaitGroup) {
	if k.known == nil {
		return
	}
	for _, info := range k.known() {
		if info.ID == k.host.ID() || len(info.Addrs) == 0 || k.host.Network().Connectedness(info.ID) == network.Connected {
			continue
		}
		wait := time.Duration(0)
		if k.host.ID() > info.ID {
			wait = redialEvery / 2
		}
		dials.Go(func() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			ctx, cancel := context.WithTimeout(ctx, redialEvery)
			defer cancel()
			// Direct dials ignore the host's back-off, which grows to
			// minutes while a link is cut.
			ctx = network.WithForceDirectDial(ctx, "member")
			if err := k.host.Connect(ctx, info); err != nil {
				k.log.Debug("dial failed", "peer", info.ID, "err", err)
			}
		})
	}
}
