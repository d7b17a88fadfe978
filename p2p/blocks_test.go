package p2p_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/p2p"
	"github.com/libp2p/go-libp2p/core/peer"
)

// site is a gateway's network and journal, wired as the gateway wires them.
type site struct {
	t    *testing.T
	key  ed25519.PrivateKey
	node *p2p.Node
	j    *journal.Journal
}

const topic = "joulegate/blocks"

// street is who is a member and where, as the ledger would tell.
type street struct {
	mu   sync.Mutex
	book []peer.AddrInfo
}

func (s *street) addresses() []peer.AddrInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]peer.AddrInfo(nil), s.book...)
}

func (s *street) allow(id peer.ID) bool {
	for _, a := range s.addresses() {
		if a.ID == id {
			return true
		}
	}
	return false
}

func (s *street) join(t *testing.T, n byte) *site {
	t.Helper()
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	x := &site{t: t, key: ed25519.NewKeyFromSeed(seed)}
	var err error
	x.j, err = journal.Open(t.TempDir(), journal.Config{
		ChainID: "street", Key: x.key, Fresh: true,
		Neighbours: func() []journal.Neighbour { return x.neighbours() },
	})
	if err != nil {
		t.Fatal(err)
	}
	x.node, err = p2p.New(p2p.Config{
		Key: x.key, PSK: make([]byte, 32), Listen: []string{"/ip4/127.0.0.1/tcp/0"},
		Allow: s.allow, Book: s.addresses, Size: 4,
		Connected: func(peer.ID) { x.j.Nudge() },
	})
	if err != nil {
		t.Fatal(err)
	}
	err = x.node.Subscribe(topic, func(_ context.Context, _ peer.ID, data []byte) p2p.Verdict {
		v, _ := x.j.Accept(data)
		return p2p.Verdict(v)
	})
	if err != nil {
		t.Fatal(err)
	}
	x.node.Handle(journal.Protocol, journal.MaxRequest, func(ctx context.Context, _ peer.ID, req []byte) ([]byte, error) {
		return x.j.Serve(ctx, req)
	})
	s.mu.Lock()
	s.book = append(s.book, peer.AddrInfo{ID: x.node.Host().ID(), Addrs: x.node.Host().Addrs()})
	s.mu.Unlock()

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{x.node.Run, x.j.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := x.j.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func (x *site) neighbours() (out []journal.Neighbour) {
	for _, p := range x.node.Peers() {
		if !p.Connected {
			continue
		}
		out = append(out, journal.Neighbour{Name: p.ID.String(), Ask: func(ctx context.Context, req []byte) ([]byte, error) {
			return x.node.Request(ctx, p.ID, journal.Protocol, req, journal.MaxReply)
		}})
	}
	return out
}

func (x *site) author() chain.Key { return chain.Key(x.key.Public().(ed25519.PublicKey)) }

func (x *site) post(text string) *chain.Signed {
	x.t.Helper()
	blocks, err := x.j.Append([]chain.Record{chain.NewRecord(chain.KindEvent, chain.Event{Code: text, Severity: 1})})
	if err != nil {
		x.t.Fatal(err)
	}
	if err := x.node.Publish(x.t.Context(), topic, blocks[0].Raw); err != nil {
		x.t.Fatal(err)
	}
	return blocks[0]
}

func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

// Four gateways journal and gossip; each ends up with every block of all. A
// fifth that comes later gets the past by streams. A forged block stays out.
func TestEveryGatewayHoldsEveryBlock(t *testing.T) {
	t.Parallel()
	s := &street{}
	var sites []*site
	for i := range 4 {
		sites = append(sites, s.join(t, byte(i+1)))
	}
	wait(t, "everybody connected", func() bool {
		for _, x := range sites {
			if len(x.neighbours()) != 3 {
				return false
			}
		}
		return true
	})
	for _, x := range sites {
		r, err := x.j.Recover(t.Context(), x.neighbours())
		if err != nil || r.Answered != 3 || r.Next != (chain.Position{Epoch: 1, Number: 1}) {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	const n = 10
	for i := range n {
		for _, x := range sites {
			x.post(fmt.Sprint("event ", i))
		}
	}
	for _, x := range sites {
		wait(t, "all blocks at all sites", func() bool { return holds(x, sites, n) })
	}

	forged := sites[0].post("honest").Raw
	forged = append([]byte(nil), forged...)
	forged[len(forged)-1] ^= 1
	if err := sites[0].node.Publish(t.Context(), topic, forged); err != nil {
		t.Fatal(err)
	}
	wait(t, "forgery refused and counted", func() bool {
		return sites[1].node.Counters().Rejected == 1 && sites[1].j.Counters().Invalid == 1
	})

	late := s.join(t, 9)
	wait(t, "the past at the latecomer", func() bool { return holds(late, sites, n) })
	if c := late.j.Counters(); c.Fetched < 4*n {
		t.Errorf("%+v", c)
	}
	// Wiped and restarted, it gets its own blocks back before it signs.
	wait(t, "latecomer connected", func() bool { return len(late.neighbours()) == 4 })
	if _, err := late.j.Recover(t.Context(), late.neighbours()); err != nil {
		t.Fatal(err)
	}
	mine := late.post("mine")
	wait(t, "the latecomer's block elsewhere", func() bool { return sites[2].j.Heads()[late.author()] == mine.Position() })
	wiped, err := journal.Open(t.TempDir(), journal.Config{ChainID: "street", Key: late.key})
	if err != nil {
		t.Fatal(err)
	}
	defer wiped.Close()
	r, err := wiped.Recover(t.Context(), late.neighbours())
	if err != nil || r.Adopted != 1 || !r.NewEpoch {
		t.Errorf("%+v, %v", r, err)
	}
}

// holds reports whether x has n blocks of each of sites.
func holds(x *site, sites []*site, n uint64) bool {
	heads := x.j.Heads()
	for _, y := range sites {
		if heads[y.author()].Number < n {
			return false
		}
	}
	return true
}
