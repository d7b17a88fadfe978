package microgrid

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/p2p"
	"github.com/libp2p/go-libp2p/core/peer"
)

// rogue is a member gone bad: it has the network key and a member's device
// key, speaks the protocols, and keeps none of the rules.
type rogue struct {
	t     *testing.T
	node  *p2p.Node
	key   ed25519.PrivateKey
	chain string
	topic string
	lies  map[chain.Key]bool // authors of whom it says to have a million blocks
}

// The catch-up requests as they are on the wire; see package journal.
type (
	request struct {
		Version uint8     `cbor:"1,keyasint"`
		Kind    uint8     `cbor:"2,keyasint"`
		Author  chain.Key `cbor:"3,keyasint"`
		Epoch   uint32    `cbor:"4,keyasint"`
		From    uint64    `cbor:"5,keyasint"`
		Max     uint32    `cbor:"6,keyasint"`
	}
	blocks struct {
		Blocks [][]byte `cbor:"1,keyasint"`
	}
	epochHead struct {
		Epoch uint32 `cbor:"1,keyasint"`
		First uint64 `cbor:"2,keyasint"`
		Head  uint64 `cbor:"3,keyasint"`
	}
	authorHeads struct {
		Author chain.Key   `cbor:"1,keyasint"`
		Epochs []epochHead `cbor:"2,keyasint"`
	}
	heads struct {
		Authors []authorHeads `cbor:"1,keyasint"`
	}
)

const (
	askHeads = 1 + iota
	askNewest
	askRange
)

// newRogue takes the place of a gateway that has ended.
func newRogue(t *testing.T, of *gateway, chainID string, book []peer.AddrInfo, lies map[chain.Key]bool) *rogue {
	t.Helper()
	r := &rogue{t: t, chain: chainID, topic: "joulegate/blocks/1/" + chainID, lies: lies}
	var err error
	if r.key, err = keys.LoadDevice(filepath.Join(of.state, "keys", "device.key"), nil); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(of.state, "psk"))
	if err != nil {
		t.Fatal(err)
	}
	psk, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	r.node, err = p2p.New(p2p.Config{
		Key: r.key, PSK: psk, Listen: []string{of.multiaddr()},
		Allow: func(peer.ID) bool { return true }, Book: func() []peer.AddrInfo { return book },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.node.Subscribe(r.topic, func(context.Context, peer.ID, []byte) p2p.Verdict { return p2p.Accept }); err != nil {
		t.Fatal(err)
	}
	r.node.Handle(journal.Protocol, journal.MaxRequest, r.serve)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.node.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return r
}

// serve answers catch-up requests with lies.
func (r *rogue) serve(_ context.Context, _ peer.ID, raw []byte) ([]byte, error) {
	var q request
	if err := chain.Unmarshal(raw, &q); err != nil {
		return nil, err
	}
	if q.Kind == askHeads {
		var h heads
		for a := range r.lies {
			h.Authors = append(h.Authors, authorHeads{a, []epochHead{{1, 1, 1_000_000}}})
		}
		return chain.Marshal(h), nil
	}
	if !r.lies[q.Author] {
		return chain.Marshal(blocks{}), nil
	}
	b := r.block(q.Epoch, max(q.From, 1), "forged")
	return chain.Marshal(blocks{[][]byte{r.as(q.Author, b.Raw)}}), nil
}

// block signs a block of the rogue's own chain.
func (r *rogue) block(epoch uint32, number uint64, code string) *chain.Signed {
	b := chain.Block{Chain: r.chain, Epoch: epoch, Number: number, Time: time.Now().UnixMilli(), Records: []chain.Record{
		chain.NewRecord(chain.KindEvent, chain.Event{Code: code, Severity: 1, Subject: "x"}),
	}}
	if number > 1 {
		b.Prev = chain.Sum([]byte(code))
	}
	s, err := chain.SignBlock(b, r.key)
	if err != nil {
		panic(err)
	}
	return s
}

// as puts another author into a block; the signature is not his.
func (r *rogue) as(author chain.Key, raw []byte) []byte {
	self := keys.Public(r.key)
	return bytes.Replace(raw, self[:], author[:], 1)
}

func (r *rogue) publish(b []byte) {
	r.t.Helper()
	if err := r.node.Publish(context.Background(), r.topic, b); err != nil {
		r.t.Fatal(err)
	}
}

// ask sends a raw catch-up request.
func (r *rogue) ask(to peer.ID, req []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return r.node.Request(ctx, to, journal.Protocol, req, journal.MaxReply)
}

// TestRogueMember lets a member lie, forge, repeat and contradict itself, on
// gossip, on streams and at the ledger's door. Everything must be refused and
// counted, and the others must not be held up.
func TestRogueMember(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 3)
	north, east, south := g.gateways[0], g.gateways[1], g.gateways[2]
	north.install()
	north.create()
	north.start()
	north.wait(3*slot, "first own block", func(context.Context) (bool, any) {
		p := north.newest()["north"]
		return p.Number >= 2, p
	})
	east.install()
	east.join(north)
	south.install() // it will not vote: two of two go on without it
	south.run("grid", "join", strings.TrimSpace(north.run("grid", "invite", "--follower")))
	south.start()
	g.connected()
	north.wait(3*slot, "block of south", func(context.Context) (bool, any) {
		m := member(north, "south")
		return m.Newest.Number > 0 && m.Head.Position == m.Newest, m
	})
	south.stop()

	var book []peer.AddrInfo
	key := map[string]chain.Key{}
	for _, m := range must(north, north.client.Members) {
		key[m.Name] = m.Device
		if m.Name == "south" {
			continue
		}
		info, err := p2p.AddrInfo(m.Device, m.Addrs)
		if err != nil {
			t.Fatal(err)
		}
		book = append(book, info)
	}
	eastID, err := p2p.PeerIDOf(key["east"])
	if err != nil {
		t.Fatal(err)
	}
	began := must(north, north.client.Status).Height
	chainID := must(north, north.client.Status).Chain
	honest := []*gateway{north, east}

	// counted waits until each of the gateways has counted one more than before.
	counted := func(counter string, at []*gateway, before map[string]int64) {
		t.Helper()
		for _, gw := range at {
			gw.wait(patience, "refusal counted as "+counter, func(context.Context) (bool, any) {
				s := ask[panel.LedgerStatus](gw, "ledger", "status")
				return s.Counters[counter] > before[gw.name], s.Counters
			})
		}
	}
	count := func(counter string) map[string]int64 {
		m := map[string]int64{}
		for _, gw := range honest {
			n, known := gw.status().Counters[counter]
			if !known {
				t.Fatalf("there is no counter %s", counter)
			}
			m[gw.name] = n
		}
		return m
	}

	// It starts by telling whoever asks that it has a million blocks of
	// everybody, and serves forgeries.
	before := count("refused_invalid")
	r := newRogue(t, south, chainID, book, map[chain.Key]bool{key["north"]: true, key["east"]: true})
	for _, gw := range honest {
		gw.wait(patience, "connection with the rogue", func(ctx context.Context) (bool, any) {
			s, err := gw.client.Status(ctx)
			return err == nil && s.Peers == 2, err
		})
	}
	counted("refused_invalid", honest, before)
	time.Sleep(2 * time.Second) // until gossip knows who listens to what

	at := member(north, "south").Newest
	valid := r.block(at.Epoch, at.Number+1000, "ahead")
	flipped := bytes.Clone(valid.Raw)
	flipped[len(flipped)-1] ^= 1
	elsewhere := *r
	elsewhere.chain = "another-grid"
	_, unknown, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger := *r
	stranger.key = unknown
	old, err := r.ask(eastID, chain.Marshal(request{Version: chain.Version, Kind: askRange, Author: key["north"], Epoch: 1, From: 1, Max: 1}))
	if err != nil {
		t.Fatal(err)
	}
	var first blocks
	if err := chain.Unmarshal(old, &first); err != nil || len(first.Blocks) != 1 {
		t.Fatalf("north's first block from east: %x %v", old, err)
	}
	for _, c := range []struct {
		name, counter string
		data          []byte
		at            []*gateway
	}{
		{"flipped signature", "refused_invalid", flipped, honest},
		{"block in north's name", "refused_invalid", r.as(key["north"], r.block(1, 1_000_000, "forged").Raw), honest},
		{"noise", "refused_invalid", bytes.Repeat([]byte{0xa5}, 300), honest},
		{"oversize", "refused_oversize", bytes.Repeat([]byte{0x5a}, chain.MaxBlockBytes+1), honest},
		{"other grid", "refused_foreign", elsewhere.block(1, 1, "x").Raw, honest},
		{"no member", "ignored_strangers", stranger.block(1, 1, "x").Raw, honest},
		// East has got north's first block by a stream, not by gossip.
		{"replay", "ignored_replays", first.Blocks[0], []*gateway{east}},
		{"out of order", "out_of_order", valid.Raw, honest},
		{"contradiction", "equivocations", r.block(at.Epoch, at.Number, "contradiction").Raw, honest},
	} {
		before := count(c.counter)
		r.publish(c.data)
		counted(c.counter, c.at, before)
		t.Logf("%s: counted as %s", c.name, c.counter)
	}
	if now := member(north, "south").Newest; now != at {
		t.Errorf("north's journal took a block of the rogue: %s became %s", at, now)
	}

	// Streams: requests that make no sense get an error, and the next one is
	// served.
	for name, req := range map[string][]byte{
		"empty": {}, "noise": bytes.Repeat([]byte{0xff}, 100), "oversize": make([]byte, journal.MaxRequest+1),
		"greedy":       chain.Marshal(request{Version: chain.Version, Kind: askRange, Author: key["north"], Epoch: 1, From: 1, Max: 1 << 30}),
		"unknown kind": chain.Marshal(request{Version: chain.Version, Kind: 99}),
		"old version":  chain.Marshal(request{Version: 99, Kind: askHeads}),
	} {
		if reply, err := r.ask(eastID, req); err == nil {
			t.Errorf("%s request was answered: %x", name, reply)
		} else if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s request: no answer", name)
		}
	}
	if _, err := r.ask(eastID, chain.Marshal(request{Version: chain.Version, Kind: askHeads})); err != nil {
		t.Errorf("a good request after bad ones: %v", err)
	}

	// The ledger's door.
	submit := func(name string, raw []byte) {
		t.Helper()
		res, err := func() (panel.TxResult, error) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			return north.client.Submit(ctx, raw)
		}()
		if err == nil && res.Code == 0 {
			t.Errorf("the ledger took %s", name)
		} else {
			t.Logf("%s: %v %s", name, err, res.Info)
		}
	}
	money := north.status().Minted
	// Whoever repeats a block is told of the first time.
	if res := must(north, func(ctx context.Context) (panel.TxResult, error) { return north.client.Submit(ctx, first.Blocks[0]) }); res.Code == 0 && res.Height > began {
		t.Errorf("north's first block took effect again in block %d", res.Height)
	}
	submit("a block with a flipped signature", flipped)
	submit("a block a thousand ahead", valid.Raw)
	submit("money minted by a member", chain.SignTx(chainID, 1, chain.TxMint, chain.Mint{To: chain.AccountOf(key["south"]), Amount: 1e9, BankRef: "ROGUE"}, r.key))
	submit("noise", bytes.Repeat([]byte{0xa5}, 300))
	submit("too much", make([]byte, chain.MaxTxBytes+1))
	if now := north.status().Minted; now != money {
		t.Errorf("%d was minted, now %d", money, now)
	}

	// Nobody was held up.
	north.grow(north.status().Height + 2)
	g.agree()
	g.complete()
	for _, gw := range honest {
		if p := member(gw, "south"); p.Head.Position != at {
			t.Errorf("%s: the ledger has the rogue's chain at %s, it was at %s", gw.name, p.Head.Position, at)
		}
		for _, name := range []string{"north", "east"} {
			if p := gw.newest()[name]; p.Epoch != 1 || p.Number > 10_000 {
				t.Errorf("%s believes that %s is at block %s", gw.name, name, p)
			}
		}
		gw.books()
		gw.verify()
	}
}
