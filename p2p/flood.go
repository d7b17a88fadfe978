package p2p

import (
	"errors"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Every peer has a bucket of tokens. A frame costs one, and one more for each
// message, control entry and 4 kB in it; a message that no honest peer sends
// costs costReject. A bucket holds the block of every member at the end of a
// slot (MaxBook), twice.
const (
	bucketSize = 2000
	bucketRate = 200 // tokens per second
	costReject = 50
	idBytes    = 32 // of a message id
)

var errFlood = errors.New("p2p: peer floods")

// flood measures what peers send and blocks who sends too much. Scoring
// alone would not do: the frames of a graylisted peer are still decrypted and
// decoded, at more than a core.
type flood struct {
	mu      sync.Mutex
	buckets map[peer.ID]*bucket
	until   map[peer.ID]time.Time
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newFlood() *flood {
	return &flood{buckets: map[peer.ID]*bucket{}, until: map[peer.ID]time.Time{}}
}

// take charges cost to id. It returns false when the bucket is empty, and
// newly is true for the first time that this blocks the peer.
func (f *flood) take(id peer.ID, cost int, now time.Time) (ok, newly bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Before(f.until[id]) {
		return false, false
	}
	b := f.buckets[id]
	if b == nil {
		b = &bucket{tokens: bucketSize, at: now}
		f.forgetFull(now)
		f.buckets[id] = b
	}
	b.tokens = min(bucketSize, b.tokens+now.Sub(b.at).Seconds()*bucketRate) - float64(cost)
	b.at = now
	if b.tokens >= 0 {
		return true, false
	}
	delete(f.buckets, id)
	if len(f.until) >= maxBlocked {
		f.liftFirst()
	}
	f.until[id] = now.Add(BlockedFor)
	return false, true
}

// forgetFull keeps the table as small as the set of busy peers: a bucket
// that has filled up again says nothing.
func (f *flood) forgetFull(now time.Time) {
	if len(f.buckets) < 2*MaxPeers {
		return
	}
	for id, b := range f.buckets {
		if b.tokens+now.Sub(b.at).Seconds()*bucketRate >= bucketSize {
			delete(f.buckets, id)
		}
	}
}

func (f *flood) liftFirst() {
	var first peer.ID
	for id, t := range f.until {
		if first == "" || t.Before(f.until[first]) {
			first = id
		}
	}
	delete(f.until, first)
}

func (f *flood) blocked(id peer.ID, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.until[id]
	if ok && !now.Before(t) {
		delete(f.until, id)
		return false
	}
	return ok
}

// inspect sees every gossip frame before it is handled.
func (n *Node) inspect(from peer.ID, rpc *pubsub.RPC) error {
	cost, bytes := 1+len(rpc.GetPublish())+len(rpc.GetSubscriptions()), 0
	for _, m := range rpc.GetPublish() {
		bytes += len(m.GetData())
	}
	if c := rpc.GetControl(); c != nil {
		cost += len(c.GetIhave()) + len(c.GetIwant()) + len(c.GetGraft()) + len(c.GetPrune()) + len(c.GetIdontwant())
		for _, have := range c.GetIhave() {
			bytes += idBytes * len(have.GetMessageIDs())
		}
		for _, want := range c.GetIwant() {
			bytes += idBytes * len(want.GetMessageIDs())
		}
	}
	cost += bytes / 4096
	if !n.charge(from, cost) {
		return errFlood
	}
	return nil
}

// charge takes tokens from a peer and disconnects it when it has none left.
func (n *Node) charge(id peer.ID, cost int) bool {
	ok, newly := n.flood.take(id, cost, time.Now())
	if newly {
		n.count.floods.Add(1)
		n.log.Warn("peer floods: blocked", "peer", id, "for", BlockedFor)
		go n.drop(id, "flood") // gossip's own loop must not wait for the close
	}
	return ok
}
