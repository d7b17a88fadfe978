package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	cmt "github.com/cometbft/cometbft/types"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

func TestAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	blocks, cancel, err := n.eng.Subscribe(64)
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()

	tx := w.mint(0, "driver", 5_000)
	r := n.submit(tx)
	if got := n.balance("driver"); got != 5_000 {
		t.Errorf("balance %d after a mint of 5000", got)
	}
	if again := n.submit(tx); again.Height != r.Height {
		t.Errorf("the same bytes again: height %d, first %d", again.Height, r.Height)
	}
	if got := n.balance("driver"); got != 5_000 {
		t.Errorf("balance %d after a retry", got)
	}
	for ev := range blocks {
		if ev.Height == r.Height {
			if ev.Txs != 1 {
				t.Errorf("event of block %d tells %d transactions", ev.Height, ev.Txs)
			}
			break
		}
	}
	b, err := n.eng.Block(r.Height)
	if err != nil || len(b.Txs) != 1 || !bytes.Equal(b.Txs[0], tx) {
		t.Errorf("block %d does not hold the transaction: %v", r.Height, err)
	}

	// Refusals are results, not errors.
	bad := chain.SignTx("test-grid", 77, chain.TxMint, chain.Mint{To: account("driver"), Amount: 1, BankRef: "x"}, operator(1))
	if r, err := n.eng.Submit(t.Context(), bad); err != nil || r.Code != ledger.CodeNonce || r.Height != 0 {
		t.Errorf("wrong nonce: %+v, %v", r, err)
	}
	var rej *Rejected
	if err := n.eng.SubmitAsync(bad); !errors.As(err, &rej) || rej.Code != ledger.CodeNonce {
		t.Errorf("wrong nonce: %v", err)
	}
	if r, err := n.eng.Submit(t.Context(), make([]byte, chain.MaxTxBytes+1)); err != nil || r.Code != ledger.CodeTooLarge {
		t.Errorf("oversize: %+v, %v", r, err)
	}

	// The proof block signs the state; then it is provable.
	n.reach(r.Height + 1)
	checkLight(t, n.eng, r.Height+1)
	checkProof(t, n.eng, ledger.AccountKey(account("driver")), ledger.AccountKey(account("nobody")))

	s := n.eng.Status()
	if s.CatchingUp || !s.Voting || len(s.Validators) != 1 || s.Halted != "" || s.ChainID != "test-grid" {
		t.Errorf("status %+v", s)
	}
	if _, err := VerifyHome(t.Context(), n.home, w.genesis, nil); !errors.Is(err, ErrLocked) {
		t.Errorf("verification beside a running gateway: %v, want ErrLocked", err)
	}
	if rep, err := n.eng.Verify(t.Context(), nil); err != nil || len(rep.Violations) != 0 || rep.Height < r.Height {
		t.Errorf("verify: %+v, %v", rep, err)
	}
	n.stop()
	if _, err := n.eng.Submit(context.Background(), w.mint(0, "driver", 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("submit to a closed ledger: %v", err)
	}
	w.nonces[0]--

	// What was committed is there after a restart.
	rep, err := VerifyHome(t.Context(), n.home, w.genesis, nil)
	if err != nil || len(rep.Violations) != 0 || rep.FromHeight != 1 || rep.Height < r.Height {
		t.Errorf("verify a stopped gateway: %+v, %v", rep, err)
	}
	n.start()
	if got := n.eng.Status(); got.Height < s.Height || n.balance("driver") != 5_000 {
		t.Errorf("after a restart: height %d (was %d), balance %d", got.Height, s.Height, n.balance("driver"))
	}
	n.submit(w.mint(0, "driver", 1))
	if got := n.balance("driver"); got != 5_001 {
		t.Errorf("balance %d", got)
	}
}

// checkProof proves what key holds and that absent holds nothing, against the
// app hash in the header that validators signed.
func checkProof(t *testing.T, e *Engine, key, absent []byte) {
	t.Helper()
	proof, value, height, err := e.Prove(key)
	if err != nil || value == nil {
		t.Fatalf("prove: %x, %v", value, err)
	}
	b, err := e.Block(height + 1)
	if err != nil {
		t.Fatal(err)
	}
	root := b.AppHash
	if err := VerifyProof(root, key, value, proof); err != nil {
		t.Error(err)
	}
	wrong := append(bytes.Clone(value[:len(value)-1]), value[len(value)-1]^1)
	for name, bad := range map[string]error{
		"another value": VerifyProof(root, key, wrong, proof),
		"another key":   VerifyProof(root, absent, value, proof),
		"absence":       VerifyProof(root, key, nil, proof),
		"another root":  VerifyProof(chain.Sum(root[:]), key, value, proof),
		"cut proof":     VerifyProof(root, key, value, proof[:len(proof)/2]),
	} {
		if bad == nil {
			t.Errorf("proof accepted for %s", name)
		}
	}
	proof, value, _, err = e.Prove(absent)
	if err != nil || value != nil {
		t.Fatalf("prove absence: %x, %v", value, err)
	}
	if err := VerifyProof(root, absent, nil, proof); err != nil {
		t.Errorf("absence: %v", err)
	}
	if VerifyProof(root, absent, []byte{1}, proof) == nil {
		t.Error("proof of absence accepted for a value")
	}
}

// checkLight checks a light block as somebody would who has only the genesis.
func checkLight(t *testing.T, e *Engine, height int64) {
	t.Helper()
	raw, err := e.LightBlock(height)
	if err != nil {
		t.Fatal(err)
	}
	var p cmtproto.LightBlock
	if err := p.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	l, err := cmt.LightBlockFromProto(&p)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.ValidateBasic("test-grid"); err != nil {
		t.Error(err)
	}
	if err := l.ValidatorSet.VerifyCommitLight("test-grid", l.Commit.BlockID, height, l.Commit); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(l.ValidatorSet.Hash(), e.doc.ValidatorHash()) {
		t.Error("not the validators of the genesis")
	}
}

func TestFour(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4)
	for _, n := range w.nodes {
		n.start()
	}
	var total chain.Nano
	for i, n := range w.nodes {
		n.submit(w.mint(i, "driver", 100))
		total += 100
	}
	last := w.nodes[0].submit(w.mint(0, "driver", 1))
	total++
	for _, n := range w.nodes {
		n.reach(last.Height)
		if got := n.balance("driver"); got != total {
			t.Errorf("%s: balance %d, want %d", n.name, got, total)
		}
	}
	agree(t, w.nodes...)

	// One of four down: the others go on.
	down := w.nodes[3]
	down.stop()
	for i := range 3 {
		last = w.nodes[i].submit(w.mint(i, "driver", 1))
	}
	// It comes back and catches up.
	down.start()
	down.reach(last.Height)
	down.until("consensus", func(s Status) bool { return !s.CatchingUp })

	// A lost connection: both sides forget the peer and find it again.
	for _, n := range w.nodes[1:] {
		if err := w.nodes[0].host.Network().ClosePeer(n.host.ID()); err != nil {
			t.Fatal(err)
		}
	}
	last = w.nodes[0].submit(w.mint(0, "driver", 1))
	for _, n := range w.nodes {
		n.reach(last.Height)
		n.until("three peers", func(s Status) bool { return s.Peers == 3 })
	}

	// A gateway that is not in the genesis follows as a full node, ...
	late := w.newGateway("house5")
	late.start()
	late.reach(last.Height)
	if s := late.eng.Status(); s.Voting {
		t.Error("a full node claims to vote")
	}
	// ... is admitted as a validator, ...
	last = w.nodes[1].submit(w.invite(4, late))
	late.reach(last.Height) // before that it would not know its invitation
	last = late.submit(late.join())
	late.until("vote", func(s Status) bool { return s.Voting && len(s.Validators) == 5 })
	late.until("consensus", func(s Status) bool { return !s.CatchingUp })
	// ... and its vote counts: with it four of five are enough.
	w.nodes[0].stop()
	for i := range 3 {
		last = w.nodes[1+i].submit(w.mint(1+i, "driver", 1))
	}
	// It survives a lost connection like a founder.
	if err := late.host.Network().ClosePeer(w.nodes[1].host.ID()); err != nil {
		t.Fatal(err)
	}
	last = late.submit(w.mint(5, "driver", 1))
	rest := w.nodes[1:]
	for _, n := range rest {
		n.reach(last.Height)
	}
	agree(t, rest...)
	if rep, err := late.eng.Verify(t.Context(), nil); err != nil || len(rep.Violations) != 0 {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

// invite lets n join as a validator; join redeems it.
func (w *world) invite(op int, n *gateway) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nonces[op]++
	return chain.SignTx("test-grid", w.nonces[op], chain.TxInvite, chain.Invite{
		Key: public(keyFrom("once " + n.name)), Node: "root", Validator: true, Expires: 1 << 62,
	}, operator(op))
}

func (n *gateway) join() []byte {
	return chain.SignTx("test-grid", 1, chain.TxJoin, chain.Join{
		Member: n.member, Sig: chain.Sign(n.key, chain.DomainMember, chain.Marshal(n.member)),
	}, keyFrom("once "+n.name))
}

// TestDoubleSigner: proof that a validator signed two blocks of one height
// gets into a block and is told.
func TestDoubleSigner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	at := n.submit(w.mint(0, "driver", 1)).Height
	pv, err := loadValidator(n.home)
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.eng.Block(at)
	if err != nil {
		t.Fatal(err)
	}
	n.reach(at + 1) // a height can be judged once the next is known
	ev, err := cmt.NewMockDuplicateVoteEvidenceWithValidator(at, b.Time, cmt.NewMockPVWithParams(pv.Key.PrivKey, false, false), "test-grid")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.eng.evidence.AddEvidence(ev); err != nil {
		t.Fatal(err)
	}
	blocks, cancel, err := n.eng.Subscribe(64)
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	n.submit(w.mint(0, "driver", 1))
	select {
	case got := <-blocks:
		if len(got.Misbehaviour) != 1 || got.Misbehaviour[0].Kind != "DUPLICATE_VOTE" || got.Misbehaviour[0].Height != at ||
			got.Misbehaviour[0].Validator != fmt.Sprintf("%x", []byte(pv.Key.Address)) {
			t.Errorf("%+v", got)
		}
	case <-time.After(patience):
		t.Error("no block")
	}
}

// TestNothingStays: after Run has returned no goroutine of it or of CometBFT
// lives on for long, and the host is its owner's again.
func TestNothingStays(t *testing.T) { // not parallel: it looks at all goroutines
	w := newWorld(t, 2)
	for _, n := range w.nodes {
		n.start()
	}
	w.nodes[1].submit(w.mint(0, "driver", 1))
	for _, n := range w.nodes {
		n.cancel()
		if err := <-n.done; err != nil {
			t.Error(err)
		}
		n.cancel = nil
		defer n.host.Close()
	}
	if err := w.nodes[0].host.Connect(t.Context(), w.nodes[1].addr); err != nil {
		t.Errorf("the host no longer works: %v", err)
	}
	for _, p := range w.nodes[0].host.Mux().Protocols() {
		if strings.Contains(string(p), "/channel/") {
			t.Errorf("stream handler %s is still there", p)
		}
	}
	buf := make([]byte, 4<<20)
	for limit := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		all := string(buf[:runtime.Stack(buf, true)])
		var left []string
		for g := range strings.SplitSeq(all, "\n\n") {
			if strings.Contains(g, "libs/autofile") {
				continue // of CometBFT's log of votes, which it never closes: two, idle, per engine
			}
			if strings.Contains(g, "cometbft/cometbft/") || strings.Contains(g, "consensus.(*Engine)") || strings.Contains(g, "consensus.(*peerKeeper)") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%d goroutines stay:\n%s", len(left), strings.Join(left, "\n\n"))
		}
	}
}

// TestReadWhileBlocksCommit reads whole states while later ones are made. The
// race detector sees if they share what the writer changes.
func TestReadWhileBlocksCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	n.submit(w.mint(0, "driver", 1))
	done := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(done)
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := n.eng.View(func(st ledger.State) {
					st.Iterate(nil, func(key, value []byte) bool {
						if got := st.Get(key); !bytes.Equal(got, value) {
							t.Errorf("%x is %x, then %x in one state", key, value, got)
						}
						return true
					})
				}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 20 {
		n.submit(w.mint(i%operators, fmt.Sprintf("driver %d", i), 1))
	}
}
