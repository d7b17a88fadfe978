package consensus

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/audit"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/proof"
)

// keptSeconds is how long the tests here keep blocks; they are a second apart.
const keptSeconds = 60

// prunedLedger generates a ledger of so many blocks, in which two validators
// leave early, and keeps keptSeconds of it.
func prunedLedger(t *testing.T, blocks int) *grower {
	g := growFrom(t, testGenesis(), growing{blocks: 8, age: 8 * time.Second})
	g.keepBlocks(keptSeconds * time.Second)
	for i := range blocks {
		switch i {
		case 5, 11:
			g.block(chain.SignTx("test-grid", uint64(i/5), chain.TxRevoke, chain.Revoke{Device: public(g.devices[i].key), Reason: "moved"}, operator(1)))
		default:
			g.bank++
			g.block(chain.SignTx("test-grid", uint64(g.bank), chain.TxMint, chain.Mint{To: account("driver"), Amount: 1, BankRef: fmt.Sprint(g.bank)}, operator(0)))
		}
	}
	return g
}

// entriesOf counts what the stores hold, and the files of the milestones.
func (g *grower) entriesOf() (out [4]int) {
	count := func(it iterator, err error) (n int) {
		must(g.t, err)
		for ; it.Valid(); it.Next() {
			n++
		}
		must(g.t, it.Close())
		return n
	}
	out[0] = count(g.stores.blocks.Iterator(nil, nil))
	out[1] = count(g.stores.state.Iterator(nil, nil))
	out[2] = count(g.stores.ledger.Iterator(nil, nil))
	all, err := g.app.retain.milestones.heights("")
	must(g.t, err)
	out[3] = len(all)
	return out
}

// TestPrunedLedger: the stores stop growing, and what is left is verified,
// told and proven as before.
func TestPrunedLedger(t *testing.T) {
	t.Parallel()
	g := prunedLedger(t, 300)
	before := g.entriesOf()
	for range 300 {
		g.bank++
		g.block(chain.SignTx("test-grid", uint64(g.bank), chain.TxMint, chain.Mint{To: account("driver"), Amount: 1, BankRef: fmt.Sprint(g.bank)}, operator(0)))
	}
	after := g.entriesOf()
	t.Logf("entries of blocks, state, tree and milestones: %v, 300 blocks later %v", before, after)
	for i, name := range []string{"block store", "state store", "tree"} {
		// The state itself grows here: a bank reference is kept for ever.
		if slack := before[i]/2 + []int{0, 0, 900}[i]; after[i] > before[i]+slack {
			t.Errorf("the %s grows: %d entries, then %d", name, before[i], after[i])
		}
	}
	if after[3] > 4 {
		t.Errorf("%d states are kept", after[3])
	}
	base, tip := g.blocks.Base(), g.state.LastBlockHeight
	if kept := tip - base; base < 2 || kept < keptSeconds || kept > 2*keptSeconds {
		t.Fatalf("blocks %d to %d are here: %d, want %d to %d", base, tip, kept, keptSeconds, 2*keptSeconds)
	}
	g.close()
	genesis := filepath.Join(g.home, "genesis.json")

	t.Run("verify", func(t *testing.T) {
		r, err := VerifyHome(t.Context(), g.home, genesis, nil)
		if err != nil || len(r.Violations) > 0 || r.Height != tip || r.FromHeight <= base {
			t.Fatalf("%+v, %v", r, err)
		}
		for _, want := range []string{"of 11 validators have signed", "house00", "2 changes of validators lead there"} {
			if !strings.Contains(r.Start, want) {
				t.Errorf("it does not say %q: %s", want, r.Start)
			}
		}
	})
	t.Run("statement", func(t *testing.T) {
		var open, sum chain.Nano
		replay := func(from time.Time) (start Start) {
			t.Helper()
			sum = 0
			if err := ReplayHome(t.Context(), g.home, genesis, from, func(s Start) error {
				start, open = s, ledger.AccountOf(s.State, account("driver")).Balance
				return nil
			}, func(_ int64, _ time.Time, out ledger.BlockOutput) {
				for _, m := range out.Movements {
					if m.Account == account("driver") {
						sum += m.Amount
					}
				}
			}); err != nil {
				t.Fatal(err)
			}
			if open+sum != chain.Nano(g.bank) || open == 0 || sum == 0 {
				t.Errorf("opening %d and %d movements do not make the balance of %d", open, sum, g.bank)
			}
			return start
		}
		oldest := replay(time.Time{})
		newest := replay(g.now)
		if oldest.Height < base || newest.Height <= oldest.Height || tip-newest.Height > keptSeconds {
			t.Errorf("begins after %d and %d of %d to %d", oldest.Height, newest.Height, base, tip)
		}
	})
	t.Run("bundle", func(t *testing.T) {
		file, err := os.ReadFile(genesis)
		must(t, err)
		trusted, err := proof.ParseGenesis(file)
		must(t, err)
		must(t, HistoryHome(g.home, genesis, func(h *History) error {
			src := audit.Source{Chain: "test-grid", Genesis: chain.Sum(file), SlotSeconds: 900, History: h}
			for name, q := range map[string]audit.Query{"all": {}, "a range": {FromMs: g.now.Add(-20 * time.Second).UnixMilli(), ToMs: g.now.UnixMilli()}} {
				var b bytes.Buffer
				if _, err := audit.WriteBundle(t.Context(), &b, src, q); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				if r := proof.Verify(&b, proof.Options{Genesis: trusted, Now: g.now}); !r.OK {
					var s strings.Builder
					_ = r.WriteText(&s)
					t.Errorf("%s:\n%s", name, s.String())
				}
			}
			_, err := audit.WriteBundle(t.Context(), &bytes.Buffer{}, src, audit.Query{FromMs: g.now.Add(-time.Hour).UnixMilli(), ToMs: g.now.UnixMilli()})
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("the first is %d of 20", base)) {
				t.Errorf("a range that begins before the first block: %v", err)
			}
			return nil
		}))
	})
	t.Run("checkpoint", func(t *testing.T) {
		changes, err := milestonesOf(g.home).changes(base)
		if err != nil || len(changes) != 2 {
			t.Fatalf("%d changes of validators, %v", len(changes), err)
		}
		at := changes[0].Header.Height
		if c, err := CheckpointHome(g.home, at); err != nil || c.Header.Height != at || at >= base {
			t.Errorf("the checkpoint of the dropped block %d: %v", at, err)
		}
		if _, err := CheckpointHome(g.home, 3); err == nil || !strings.Contains(err.Error(), fmt.Sprint(base)) {
			t.Errorf("the checkpoint of a dropped block: %v", err)
		}
	})
}

// TestPrunedTampered changes what a pruned ledger rests on.
func TestPrunedTampered(t *testing.T) {
	t.Parallel()
	g := prunedLedger(t, 260)
	genesis, kept := filepath.Join(g.home, "genesis.json"), milestonesOf(g.home)
	first, err := kept.from(g.blocks.Base())
	must(t, err)
	all, err := kept.all()
	must(t, err)
	changes, err := kept.heights(endChange)
	must(t, err)
	g.close()
	edit := func(f func(b []byte) []byte) func(string) error {
		return func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, f(b), 0o600)
		}
	}
	newest := all[len(all)-1].dir
	for name, c := range map[string]struct {
		path   string
		tamper func(string) error
	}{
		"a byte of the state":         {filepath.Join(first.dir, packedFile), edit(func(b []byte) []byte { b[len(b)/2] ^= 1; return b })},
		"the state cut short":         {filepath.Join(first.dir, packedFile), edit(func(b []byte) []byte { return b[:len(b)*2/3] })},
		"the state of another height": {filepath.Join(first.dir, packedFile), edit(func([]byte) []byte { b, _ := os.ReadFile(filepath.Join(newest, packedFile)); return b })},
		"a byte of a later state":     {filepath.Join(newest, packedFile), edit(func(b []byte) []byte { b[len(b)-9] ^= 1; return b })},
		"the state is gone":           {filepath.Join(first.dir, packedFile), os.Remove},
		"its votes":                   {filepath.Join(first.dir, manifestFile), edit(func(b []byte) []byte { b[len(b)/4] ^= 1; return b })},
		"a change of validators":      {kept.path(changes[0]) + endChange, edit(func(b []byte) []byte { b[len(b)/2] ^= 1; return b })},
	} {
		t.Run(name, func(t *testing.T) {
			was, err := os.ReadFile(c.path)
			must(t, err)
			must(t, c.tamper(c.path))
			r, err := VerifyHome(t.Context(), g.home, genesis, nil)
			if err != nil || len(r.Violations) == 0 {
				t.Errorf("not found: %+v, %v", r, err)
			}
			t.Logf("%v", r.Violations)
			must(t, os.WriteFile(c.path, was, 0o600))
		})
	}
	if r, err := VerifyHome(t.Context(), g.home, genesis, nil); err != nil || len(r.Violations) > 0 {
		t.Errorf("as it was: %+v, %v", r, err)
	}
}

// TestMilestoneInterrupted: a state that was not written to its end is no reason
// to drop a block, and is made anew.
func TestMilestoneInterrupted(t *testing.T) {
	t.Parallel()
	g := growFrom(t, testGenesis(), growing{blocks: 8, age: 8 * time.Second})
	g.keepBlocks(keptSeconds * time.Second)
	r := g.app.retain
	for range keptSeconds/2 - 2 {
		g.block()
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	must(t, os.MkdirAll(r.milestones.dir, 0o700))
	if _, err := r.make(stopped, g.state.LastBlockHeight-1); err == nil {
		t.Fatal("a state was kept though the program was ending")
	}
	// Power was lost before the votes were written, and in the middle of a file.
	half := r.milestones.path(7) + endNew
	must(t, os.MkdirAll(half, 0o700))
	must(t, os.WriteFile(filepath.Join(half, packedFile), []byte("half"), 0o600))
	g.keepBlocks(keptSeconds * time.Second)
	if left, err := os.ReadDir(r.milestones.dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	if all, err := r.milestones.all(); err != nil || len(all) > 0 {
		t.Fatalf("%d milestones, %v", len(all), err)
	}
	for range 4 * keptSeconds {
		g.block()
	}
	if g.blocks.Base() < 2 {
		t.Error("no block was dropped")
	}
	g.close()
	if rep, err := VerifyHome(t.Context(), g.home, filepath.Join(g.home, "genesis.json"), nil); err != nil || len(rep.Violations) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// TestKeepsWhatEvidenceNeeds: blocks that misbehaviour could be proven with
// stay, however short the time is that blocks are kept.
func TestKeepsWhatEvidenceNeeds(t *testing.T) {
	t.Parallel()
	g := growFrom(t, testGenesis(), growing{blocks: 100, age: 100 * time.Second})
	g.keepBlocks(20 * time.Second)
	for range 260 {
		g.block()
		if kept := g.state.LastBlockHeight - g.blocks.Base(); g.blocks.Base() > 1 && kept < 100 {
			t.Fatalf("at height %d only %d blocks are here", g.state.LastBlockHeight, kept)
		}
	}
	if g.blocks.Base() < 2 {
		t.Error("no block was dropped")
	}
	// CometBFT spares headers of young blocks for ever: none must be left.
	it, err := g.stores.blocks.Iterator(nil, nil)
	must(t, err)
	defer it.Close()
	for ; it.Valid(); it.Next() {
		var h int64
		if n, _ := fmt.Sscanf(string(it.Key()), "H:%d", &h); n == 1 && h < g.blocks.Base() {
			t.Errorf("the header of block %d was left behind", h)
		}
	}
	g.close()
}

// TestReadersHoldTheRest: nothing is pruned under somebody who reads.
func TestReadersHoldTheRest(t *testing.T) {
	t.Parallel()
	g := growFrom(t, testGenesis(), growing{blocks: 4, age: 4 * time.Second})
	g.keepBlocks(10 * time.Second)
	for range 60 {
		g.block()
	}
	base := g.blocks.Base()
	must(t, g.app.view(func(committed, ledger.State) error {
		for range 40 {
			g.block()
		}
		if got := g.blocks.Base(); got != base {
			t.Errorf("blocks %d to %d were dropped under a reader", base, got)
		}
		return nil
	}))
	g.block()
	if g.blocks.Base() <= base {
		t.Error("nothing was dropped afterwards")
	}
	g.close()
}

// TestKilledWhilePruning kills a gateway at any time while it keeps states and
// drops blocks. What was committed is there, and everything that is left can
// be verified.
func TestKilledWhilePruning(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	shortEvidence(t, w.genesis, 10, 100*time.Millisecond)
	n := w.nodes[0]
	var committed uint64
	from := int64(0)
	for round := range 6 {
		child(t, n.home, w.genesis, -1, 40+7*round, &committed, crashKeep+"=300ms")
		r, err := VerifyHome(t.Context(), n.home, w.genesis, nil)
		if err != nil || len(r.Violations) > 0 {
			t.Fatalf("round %d: %+v, %v", round, r, err)
		}
		if r.FromHeight < from || r.Height < int64(committed) {
			t.Fatalf("round %d: verified %d to %d, before from %d; %d transactions were committed", round, r.FromHeight, r.Height, from, committed)
		}
		from = r.FromHeight
	}
	if from == 1 {
		t.Error("no block was dropped")
	}
	n.open()
	if next := nextNonce(n.eng); next <= committed || n.balance("driver") != chain.Nano(next-1) {
		t.Errorf("%d transactions were committed, %d are there, balance %d", committed, next-1, n.balance("driver"))
	}
	n.run().stop()
}

// TestPrunedNetwork: four validators drop blocks while they agree. One that
// was away catches up from them and votes again, and each can be verified.
func TestPrunedNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4)
	w.keep = time.Second
	shortEvidence(t, w.genesis, 24, 500*time.Millisecond)
	for _, n := range w.nodes {
		n.start()
	}
	first := func() int64 {
		low := w.nodes[0].eng.Status().First
		for _, n := range w.nodes {
			low = min(low, n.eng.Status().First)
		}
		return low
	}
	paid := chain.Nano(0)
	pay := func(by *gateway) {
		t.Helper()
		by.submit(w.mint(0, "driver", 1))
		paid++
	}
	// Until all have dropped blocks, twice.
	limit := time.Now().Add(patience)
	for begin := int64(0); begin == 0 || first() <= begin; {
		if begin == 0 && first() > 1 {
			begin = first()
		}
		pay(w.nodes[0])
		if time.Now().After(limit) {
			t.Fatalf("the blocks from %d on are still here", first())
		}
	}
	away := w.nodes[3]
	away.stop()
	for range 3 {
		pay(w.nodes[0])
	}
	away.start()
	away.reach(w.nodes[0].eng.Status().Height)
	// Three of four must vote: now the one that was away is needed.
	w.nodes[1].stop()
	for range 3 {
		pay(away)
	}
	w.nodes[1].start()
	top := w.nodes[0].eng.Status().Height
	for _, n := range w.nodes {
		n.reach(top)
		if got := n.balance("driver"); got != paid {
			t.Errorf("%s: balance %d of %d", n.name, got, paid)
		}
	}
	agree(t, w.nodes...)
	if _, err := away.eng.Block(1); err == nil || !strings.Contains(err.Error(), "block 1 has been dropped: blocks are kept from") {
		t.Errorf("block 1: %v", err)
	}
	for _, n := range w.nodes {
		if r, err := n.eng.Verify(t.Context(), nil); err != nil || len(r.Violations) > 0 || r.FromHeight == 1 {
			t.Errorf("%s, running: %+v, %v", n.name, r, err)
		}
		n.stop()
		if r, err := VerifyHome(t.Context(), n.home, w.genesis, nil); err != nil || len(r.Violations) > 0 || !strings.Contains(r.Start, "of 4 validators have signed") {
			t.Errorf("%s: %+v, %v", n.name, r, err)
		}
	}
}

// TestKeepBlocksChecked: less than validators answer for is refused.
func TestKeepBlocksChecked(t *testing.T) {
	w := newWorld(t, 1)
	h := newHost(keyFrom("device house1"), "/ip4/127.0.0.1/tcp/0")
	defer h.Close()
	_, err := Open(t.Context(), Config{Home: w.nodes[0].home, GenesisFile: w.genesis, Host: h, KeepBlocks: MinKeepBlocks - time.Second})
	if err == nil || !strings.Contains(err.Error(), "at least 504h0m0s") {
		t.Error(err)
	}
}

// FuzzMilestone reads packed trees that somebody else has written.
func FuzzMilestone(f *testing.F) {
	g := growFrom(f, testGenesis(), growing{})
	for range 4 {
		g.block()
	}
	tree, err := newTree(g.app.db).GetImmutable(2)
	must(f, err)
	m, err := milestonesOf(g.home).make(context.Background(), tree, g.blocks, g.states, 2)
	must(f, err)
	g.close()
	good, err := os.ReadFile(filepath.Join(m.dir, packedFile))
	must(f, err)
	f.Add(good)
	f.Add(good[:len(good)/2])
	m.dir = f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		must(t, os.WriteFile(filepath.Join(m.dir, packedFile), raw, 0o600))
		n := int64(0)
		if err := m.entries(t.Context(), func(_, _ []byte) { n++ }); err == nil && n != tree.Size() {
			t.Errorf("%d entries of %d were accepted", n, tree.Size())
		}
	})
}
