package p2p

import (
	"sync/atomic"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Counters counts since start, for metrics.
type Counters struct {
	Published, Accepted, Rejected, Ignored uint64 // gossip messages
	Duplicates, Throttled, Dropped         uint64 // seen before; validation queue full; peer queue full
	Refused                                uint64 // connections refused by the gate: not admitted
	Seconds                                uint64 // connections refused because there is one
	Guests                                 uint64 // guests admitted
	Revoked                                uint64 // connections closed because admission was lost
	StrangerStreams                        uint64 // streams reset because the peer is no member
	Floods                                 uint64 // peers blocked for flooding
	Dials, DialErrors                      uint64
	Requests, RequestsBusy, RequestErrors  uint64 // served
}

type counters struct {
	published, accepted, rejected, ignored atomic.Uint64
	duplicates, throttled, dropped         atomic.Uint64
	refused, seconds, guests, revoked      atomic.Uint64
	strangerStreams, floods                atomic.Uint64
	dials, dialErrors                      atomic.Uint64
	requests, requestsBusy, requestErrors  atomic.Uint64
}

// Counters returns the counts so far.
func (n *Node) Counters() Counters {
	c := &n.count
	return Counters{
		Published: c.published.Load(), Accepted: c.accepted.Load(), Rejected: c.rejected.Load(), Ignored: c.ignored.Load(),
		Duplicates: c.duplicates.Load(), Throttled: c.throttled.Load(), Dropped: c.dropped.Load(),
		Refused: c.refused.Load(), Seconds: c.seconds.Load(), Guests: c.guests.Load(), Revoked: c.revoked.Load(),
		StrangerStreams: c.strangerStreams.Load(), Floods: c.floods.Load(),
		Dials: c.dials.Load(), DialErrors: c.dialErrors.Load(),
		Requests: c.requests.Load(), RequestsBusy: c.requestsBusy.Load(), RequestErrors: c.requestErrors.Load(),
	}
}

// tracer counts what gossip drops without asking anybody.
type tracer struct{ count *counters }

func (t *tracer) DuplicateMessage(*pubsub.Message) { t.count.duplicates.Add(1) }
func (t *tracer) DropRPC(*pubsub.RPC, peer.ID)     { t.count.dropped.Add(1) }
func (t *tracer) RejectMessage(_ *pubsub.Message, why string) {
	if why == pubsub.RejectValidationQueueFull || why == pubsub.RejectValidationThrottled {
		t.count.throttled.Add(1)
	}
}

func (*tracer) OnNewOutboundStream(peer.ID, protocol.ID)             {}
func (*tracer) OnClosedOutboundStream(peer.ID)                       {}
func (*tracer) Join(string)                                          {}
func (*tracer) Leave(string)                                         {}
func (*tracer) Graft(peer.ID, string)                                {}
func (*tracer) Prune(peer.ID, string)                                {}
func (*tracer) ValidateMessage(*pubsub.Message)                      {}
func (*tracer) DeliverMessage(*pubsub.Message)                       {}
func (*tracer) ThrottlePeer(peer.ID)                                 {}
func (*tracer) RecvRPC(*pubsub.RPC)                                  {}
func (*tracer) SendRPC(*pubsub.RPC, peer.ID)                         {}
func (*tracer) SendRPCCompleted(*pubsub.RPC, peer.ID, time.Duration) {}
func (*tracer) UndeliverableMessage(*pubsub.Message)                 {}
