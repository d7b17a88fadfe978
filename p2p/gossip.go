package p2p

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Verdict is the judgement on a gossiped message.
type Verdict uint8

// Verdicts.
const (
	Accept Verdict = 1 + iota // valid: pass it on
	Reject                    // no honest peer sends this: drop it and charge the sender
	Ignore                    // not ours to judge, or known already: drop it, blame nobody
)

// maxTopics bounds the topics of one node.
const maxTopics = 16

// Handler judges a message that peer from handed to us; from need not be its
// author. It keeps data. It is called concurrently, also for messages that
// arrive out of order, and its cost is the network's cost: it should check
// and store, and leave work to others.
type Handler func(ctx context.Context, from peer.ID, data []byte) Verdict

type topic struct {
	t      *pubsub.Topic
	cancel pubsub.RelayCancelFunc
}

// degrees returns gossip parameters for a network of n gateways: everybody
// with everybody while that is cheap, a mesh of a few neighbours beyond.
func degrees(n int) pubsub.GossipSubParams {
	p := pubsub.DefaultGossipSubParams()
	switch {
	case n <= 6:
		p.D, p.Dlo, p.Dhi, p.Dscore, p.Dout = 5, 5, 6, 3, 1
	case n <= 20:
		p.D, p.Dlo, p.Dhi, p.Dscore, p.Dout = 4, 3, 6, 3, 1
	default:
		p.D, p.Dlo, p.Dhi, p.Dscore, p.Dout = 6, 4, 12, 4, 2
	}
	return p
}

func newGossip(ctx context.Context, n *Node) (*pubsub.PubSub, error) {
	return pubsub.NewGossipSub(ctx, n.host,
		// What is carried is signed already; a second signature per message
		// costs a kilobyte and nearly half of the CPU.
		pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign),
		pubsub.WithNoAuthor(),
		pubsub.WithMessageIdFn(messageID),
		pubsub.WithMaxMessageSize(MaxMessage+4<<10), // the frame around the message
		pubsub.WithGossipSubParams(degrees(n.cfg.Size)),
		pubsub.WithFloodPublish(n.cfg.Size <= 8),
		pubsub.WithSeenMessagesTTL(120*time.Second),
		pubsub.WithValidateQueueSize(256),
		pubsub.WithPeerOutboundQueueSize(128),
		pubsub.WithPeerFilter(func(id peer.ID, _ string) bool { return n.member(id) }),
		pubsub.WithSubscriptionFilter(topicFilter{n}),
		pubsub.WithAppSpecificRpcInspector(n.inspect),
		pubsub.WithRawTracer(&tracer{count: &n.count}),
		pubsub.WithLogger(slog.New(slog.DiscardHandler)), // it logs hostile input at error level
	)
}

func messageID(m *pb.Message) string {
	h := sha256.New()
	h.Write([]byte(m.GetTopic()))
	h.Write([]byte{0})
	h.Write(m.GetData())
	return string(h.Sum(nil))
}

// Subscribe judges every new message of a topic with f and passes on what f
// accepts. Call it before Run.
func (n *Node) Subscribe(name string, f Handler) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.ran:
		return errors.New("p2p: Subscribe after Run")
	case n.topics[name] != nil:
		return fmt.Errorf("p2p: topic %s has a handler", name)
	case len(n.topics) >= maxTopics:
		return fmt.Errorf("p2p: more than %d topics", maxTopics)
	}
	t := &topic{}
	n.topics[name] = t
	validate := func(ctx context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		if from == n.inner.ID() {
			return pubsub.ValidationAccept
		}
		if len(m.Data) > MaxMessage {
			n.count.rejected.Add(1)
			n.charge(from, costReject)
			return pubsub.ValidationReject
		}
		switch v := f(ctx, from, m.Data); v {
		case Accept:
			n.count.accepted.Add(1)
			return pubsub.ValidationAccept
		case Reject:
			n.count.rejected.Add(1)
			n.charge(from, costReject)
			return pubsub.ValidationReject
		case Ignore:
			n.count.ignored.Add(1)
			return pubsub.ValidationIgnore
		default:
			panic(fmt.Sprintf("p2p: topic %s: verdict %d", name, v))
		}
	}
	if err := n.ps.RegisterTopicValidator(name, validate); err != nil {
		return fmt.Errorf("p2p: topic %s: %w", name, err)
	}
	n.mu.Unlock() // Join asks the subscription filter, which takes the lock
	defer n.mu.Lock()
	var err error
	if t.t, err = n.ps.Join(name); err != nil {
		return fmt.Errorf("p2p: join topic %s: %w", name, err)
	}
	// The validator is the consumer: relaying joins the mesh without a second
	// queue of delivered messages.
	if t.cancel, err = t.t.Relay(); err != nil {
		return fmt.Errorf("p2p: relay topic %s: %w", name, err)
	}
	return nil
}

// Publish gossips data on a topic that has been subscribed to. It returns
// when the message is queued for the neighbours, of whom there may be none.
func (n *Node) Publish(ctx context.Context, name string, data []byte) error {
	if len(data) > MaxMessage {
		return fmt.Errorf("p2p: message of %d bytes, at most %d", len(data), MaxMessage)
	}
	n.mu.Lock()
	t := n.topics[name]
	n.mu.Unlock()
	if t == nil || t.t == nil {
		return fmt.Errorf("p2p: publish on %s: not subscribed", name)
	}
	if err := t.t.Publish(ctx, data); err != nil {
		return fmt.Errorf("p2p: publish on %s: %w", name, err)
	}
	n.count.published.Add(1)
	return nil
}

// topicFilter keeps other people's topics out of our tables.
type topicFilter struct{ n *Node }

func (f topicFilter) CanSubscribe(name string) bool {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	return f.n.topics[name] != nil
}

func (f topicFilter) FilterIncomingSubscriptions(_ peer.ID, subs []*pb.RPC_SubOpts) ([]*pb.RPC_SubOpts, error) {
	if len(subs) > 4*maxTopics {
		return nil, pubsub.ErrTooManySubscriptions
	}
	return pubsub.FilterSubscriptions(subs, f.CanSubscribe), nil
}
