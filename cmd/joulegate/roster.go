package main

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/p2p"
	"github.com/libp2p/go-libp2p/core/peer"
)

// roster answers who is a member, from many goroutines and without waiting.
// It starts from the genesis and from what the inviting gateway said, so that
// a newcomer can be connected before its ledger has caught up, and follows
// the ledger from then on.
type roster struct {
	self  chain.Key
	start []chain.Member // genesis and address book
	now   atomic.Pointer[members]

	mu     sync.Mutex
	barred map[string]bool // names, by the guard, for a while; still members
}

// members is one immutable view of the membership.
type members struct {
	byKey  map[chain.Key]ledger.MemberView
	byPeer map[peer.ID]chain.Key
	book   []peer.AddrInfo
	invite time.Time // until then strangers may knock to join; zero: nobody is invited
}

func newRoster(self chain.Key, start []chain.Member) *roster {
	r := &roster{self: self, start: start, barred: map[string]bool{}}
	r.update(nil, nil)
	return r
}

// update takes the ledger's view.
func (r *roster) update(views []ledger.MemberView, invitations []ledger.InvitationView) {
	m := &members{byKey: map[chain.Key]ledger.MemberView{}, byPeer: map[peer.ID]chain.Key{}}
	for _, s := range r.start {
		m.byKey[s.Device] = ledger.MemberView{Member: s, Active: true}
	}
	for _, v := range views {
		m.byKey[v.Device] = v
	}
	for key, v := range m.byKey {
		if !v.Active {
			continue
		}
		id, err := p2p.PeerIDOf(key)
		if err != nil {
			continue // no curve point: nobody can hold that key
		}
		m.byPeer[id] = key
		if key == r.self || len(v.Addrs) == 0 {
			continue
		}
		if info, err := p2p.AddrInfo(key, v.Addrs); err == nil {
			m.book = append(m.book, info)
		}
	}
	slices.SortFunc(m.book, func(a, b peer.AddrInfo) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	for _, i := range invitations {
		if until := time.UnixMilli(i.Expires); !i.Used && until.After(m.invite) {
			m.invite = until
		}
	}
	r.now.Store(m)
}

// active reports whether key is an active member.
func (r *roster) active(key chain.Key) bool { return r.now.Load().byKey[key].Active }

// allow is the membership gate of the network.
func (r *roster) allow(id peer.ID) bool {
	now := r.now.Load()
	key, ok := now.byPeer[id]
	r.mu.Lock()
	defer r.mu.Unlock()
	return ok && !r.barred[now.byKey[key].Name]
}

// bar shuts a member out of the network, or lets it in again. It may be one
// that the ledger has not told of yet: after a start the guard is the earlier.
func (r *roster) bar(name string, on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on {
		r.barred[name] = true
	} else {
		delete(r.barred, name)
	}
}

// actives counts the active members.
func (r *roster) actives() int { return len(r.now.Load().byPeer) }

// guest lets a holder of the network key knock while an invitation is open.
func (r *roster) guest(peer.ID) bool { return time.Now().Before(r.now.Load().invite) }

func (r *roster) book() []peer.AddrInfo { return r.now.Load().book }

func (r *roster) name(key chain.Key) string { return r.now.Load().byKey[key].Name }
