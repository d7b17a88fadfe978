package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sm "github.com/cometbft/cometbft/state"
	cmt "github.com/cometbft/cometbft/types"
	"github.com/cosmos/iavl"
	iavldb "github.com/cosmos/iavl/db"

	"github.com/joulegate/joulegate/chain"
)

// ask lets one gateway of a world ask another as if over the wire.
func (n *gateway) ask(ctx context.Context, req []byte) ([]byte, error) {
	eng := n.up.Load()
	if eng == nil {
		return nil, errors.New("not running")
	}
	b, err := eng.Serve(ctx, req)
	return bytes.Clone(b), err
}

// snapshots makes all gateways of a world neighbours that can be asked.
func (w *world) snapshots(behind int64) {
	w.change = func(n *gateway, c *Config) {
		c.SnapshotBehind, c.lookEvery = behind, 200*time.Millisecond
		c.Neighbours = func() (out []Neighbour) {
			for _, o := range w.nodes {
				if o != n {
					out = append(out, Neighbour{o.name, o.ask})
				}
			}
			return out
		}
	}
}

// caughtUp waits until a gateway has a snapshot and opens it again.
func (n *gateway) caughtUp() {
	n.world.t.Helper()
	select {
	case err := <-n.done:
		if !errors.Is(err, ErrSnapshot) {
			n.world.t.Fatalf("%s ended with %v, want a snapshot", n.name, err)
		}
	case <-time.After(patience):
		n.world.t.Fatalf("%s has no snapshot: %+v", n.name, n.eng.Status())
	}
	n.host.Close()
	n.start()
}

func (w *world) grow(n *gateway, blocks int64) {
	w.t.Helper()
	for to := n.eng.Status().Height + blocks; n.eng.Status().Height < to; {
		n.submit(w.mint(0, "driver", 1))
	}
}

func TestSnapshotCatchUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4)
	w.snapshots(40)
	for _, n := range w.nodes {
		n.start()
	}
	away := w.nodes[3]
	w.grow(w.nodes[0], 10)
	away.reach(10)
	was := away.eng.Status().Height
	away.stop()
	_, guard := validatorFiles(away.home)
	signed, err := os.ReadFile(guard)
	if err != nil {
		t.Fatal(err)
	}
	w.grow(w.nodes[0], 70)

	away.open() // what it signed last is not touched before it votes again
	away.run()
	away.caughtUp()
	if now, err := os.ReadFile(guard); err != nil || bytes.Equal(now, signed) && away.eng.Status().Height < was {
		t.Errorf("guard %s, was %s (%v)", now, signed, err)
	}
	began := away.eng.Status().Height
	if began <= was || began%snapshotEvery != 0 {
		t.Errorf("begins at height %d, was at %d", began, was)
	}
	top := w.nodes[0].eng.Status().Height // empty blocks may still follow
	away.reach(top)
	away.until("consensus", func(s Status) bool { return !s.CatchingUp })
	agree(t, w.nodes...)
	if away.balance("driver") != w.nodes[0].balance("driver") {
		t.Error("another balance")
	}
	if base := away.eng.blocks.Base(); base <= was {
		t.Errorf("oldest block %d: it has executed them all", base)
	}

	// What it has since can be verified, from the state that it began with.
	if r, err := away.eng.Verify(t.Context(), nil); err != nil || len(r.Violations) > 0 || r.FromHeight != began+1 || r.Height < top {
		t.Errorf("verify: %+v, %v", r, err)
	}

	// It goes on, votes, and survives a restart.
	w.nodes[2].stop()
	r := w.nodes[0].submit(w.mint(0, "driver", 1)) // three of four must vote
	away.reach(r.Height)
	w.nodes[2].start()
	away.stop()
	away.start()
	away.reach(r.Height)
	agree(t, w.nodes...)
	for _, dir := range []string{incomingDir(away.home), buildDir(away.home), readyDir(away.home), oldDir(away.home)} {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left behind", filepath.Base(dir))
		}
	}
}

// A newcomer joins a microgrid whose members have dropped the first blocks.
func TestSnapshotWithoutBlocks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.snapshots(SnapshotBehind)
	old := w.nodes[0].start()
	w.grow(old, snapshotEvery+8)
	state, err := old.eng.states.Load()
	if err != nil {
		t.Fatal(err)
	}
	if n, _, err := old.eng.blocks.PruneBlocks(20, state); err != nil || n == 0 {
		t.Fatalf("%d blocks pruned, %v", n, err)
	}
	newcomer := w.newGateway("newcomer").start()
	newcomer.caughtUp()
	r := old.submit(w.mint(0, "driver", 1))
	newcomer.reach(r.Height)
	agree(t, old, newcomer)
	newcomer.stop()
	rep, err := VerifyHome(t.Context(), newcomer.home, w.genesis, nil)
	if err != nil || len(rep.Violations) > 0 || rep.FromHeight != snapshotEvery+1 || rep.Height < r.Height {
		t.Errorf("verify: %+v, %v", rep, err)
	}
}

// source is a microgrid of one with blocks enough for a snapshot, and a
// gateway that has none of them.
func source(t *testing.T, age time.Duration) (from, to *gateway, ask func(req []byte) ([]byte, error)) {
	t.Helper()
	w := newWorld(t, 1)
	g := testGenesis()
	from = w.nodes[0]
	g.Members = []chain.Founder{{Member: from.member, Node: "root"}}
	if _, err := WriteGenesis(w.genesis, g, time.Now().Add(-age)); err != nil {
		t.Fatal(err)
	}
	from.start()
	w.grow(from, snapshotEvery+4)
	to = w.newGateway("newcomer")
	to.open()
	t.Cleanup(func() {
		to.host.Close()
		if err := to.eng.Close(); err != nil {
			t.Error(err)
		}
	})
	to.eng.cfg.SnapshotBehind = 10
	return from, to, func(req []byte) ([]byte, error) { return from.eng.Serve(t.Context(), req) }
}

// neighbour answers the requests of a kind as change says.
func neighbour(name string, ask func([]byte) ([]byte, error), kind uint8, change func([]byte) []byte) Neighbour {
	return Neighbour{name, func(_ context.Context, req []byte) ([]byte, error) {
		b, err := ask(req)
		var r syncRequest
		if err == nil && change != nil && chain.Unmarshal(req[1:], &r) == nil && r.Kind == kind {
			b = change(bytes.Clone(b))
		}
		return b, err
	}}
}

// A neighbour that lies about anything gets nothing in, and the next honest
// one is believed.
func TestHostileSnapshots(t *testing.T) {
	t.Parallel()
	from, to, ask := source(t, time.Minute)
	before := listing(t, to.home)
	manifest := func(change func(*snapshotManifest)) func([]byte) []byte {
		return func(b []byte) []byte {
			m, err := parseManifest(b)
			if err != nil {
				t.Error(err)
				return nil
			}
			change(m)
			return m.encode()
		}
	}
	forger := keyFrom("forger")
	for name, n := range map[string]Neighbour{
		"a changed byte":      neighbour("h", ask, askManifest, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }),
		"a cut manifest":      neighbour("h", ask, askManifest, func(b []byte) []byte { return b[:len(b)-1] }),
		"an empty manifest":   neighbour("h", ask, askManifest, func([]byte) []byte { return nil }),
		"a newer format":      neighbour("h", ask, askManifest, func(b []byte) []byte { b[0]++; return b }),
		"too long a manifest": neighbour("h", ask, askManifest, func([]byte) []byte { return make([]byte, MaxSyncReply+1) }),
		"a huge tree":         neighbour("h", ask, askManifest, manifest(func(m *snapshotManifest) { m.Size = 1 << 40 })),
		"too many nodes":      neighbour("h", ask, askManifest, manifest(func(m *snapshotManifest) { m.Nodes++ })),
		"another turn":        neighbour("h", ask, askManifest, manifest(func(m *snapshotManifest) { m.Turns[1].Priorities[0]++ })),
		"no turns":            neighbour("h", ask, askManifest, manifest(func(m *snapshotManifest) { m.Turns = nil })),
		"a missing vote":      neighbour("h", ask, askManifest, manifest(func(m *snapshotManifest) { m.Next.Commit.Votes = nil })),
		"another root":        neighbour("h", ask, askManifest, manifest(func(m *snapshotManifest) { m.Next.Header.AppHash[0]++ })),
		"another height":      neighbour("h", ask, askManifest, manifest(func(m *snapshotManifest) { m.At, m.Next = m.Next, m.At })),
		"forged validators": neighbour("h", ask, askManifest, manifest(func(m *snapshotManifest) {
			for _, c := range []*chain.Checkpoint{&m.At, &m.Next} {
				c.Set[0].Key = public(forger)
				c.Header.Validators, c.Header.Next = c.Set.Hash(), c.Set.Hash()
				c.Header.Proposer = c.Set[0].Address()
				if c == &m.Next {
					c.Header.Last.Hash = m.At.Header.Hash()
					c.Header.AppHash = chain.Sum([]byte("rich"))
				}
				v := &c.Commit.Votes[0]
				v.Sig = chain.Sign(forger, "", c.Commit.SignBytes(&c.Header, *v))
			}
		})),
		"a changed chunk": neighbour("h", ask, askChunk, func(b []byte) []byte { b[7] ^= 1; return b }),
		"a cut chunk":     neighbour("h", ask, askChunk, func(b []byte) []byte { return b[:len(b)/2] }),
		"a tree of its own": {"h", func(ctx context.Context, req []byte) ([]byte, error) {
			var r syncRequest
			_ = chain.Unmarshal(req[1:], &r)
			b, err := ask(append([]byte{SnapshotVersion}, chain.Marshal(syncRequest{Kind: r.Kind, Height: r.Height, Index: r.Index})...))
			tree, terr := ask(append([]byte{SnapshotVersion}, chain.Marshal(syncRequest{Kind: askChunk, Height: r.Height})...))
			switch {
			case r.Kind == askChunk && err == nil:
				return forgeTree(b), nil
			case r.Kind == askManifest && err == nil && terr == nil:
				m, _ := parseManifest(b)
				f := forgeTree(tree)
				m.Size, m.Chunks = int64(len(f)), []chain.Hash{chain.Sum(f)}
				return m.encode(), nil
			}
			return b, err
		}},
		"heights that are not": {"h", func(_ context.Context, req []byte) ([]byte, error) {
			var r syncRequest
			if chain.Unmarshal(req[1:], &r) == nil && r.Kind == askLedger {
				return chain.Marshal(peerLedger{Height: 1 << 40, Base: 1 << 39, Snapshot: 1 << 40}), nil
			}
			return ask(req)
		}},
	} {
		to.eng.cfg.Neighbours = func() []Neighbour { return []Neighbour{n} }
		s := newSyncer(to.eng)
		ready, err := s.look(t.Context())
		if ready || err == nil {
			t.Errorf("%s: ready %t, %v", name, ready, err)
		}
		if name != "heights that are not" && len(s.aside) != 1 && name != "too long a manifest" {
			t.Errorf("%s: the neighbour may go on (%v)", name, err)
		}
		_ = os.RemoveAll(incomingDir(to.home)) // of no meaning until the next try
		if now := listing(t, to.home); now != before {
			t.Errorf("%s: changed\n%s\nto\n%s", name, before, now)
		}
	}
	// Between hostile ones an honest one is found.
	bad := neighbour("bad", ask, askChunk, func(b []byte) []byte { b[7] ^= 1; return b })
	to.eng.cfg.Neighbours = func() []Neighbour { return []Neighbour{bad, neighbour("honest", ask, 0, nil)} }
	if ready, err := to.eng.syncer.look(t.Context()); !ready || err != nil {
		t.Fatalf("ready %t, %v", ready, err)
	}
	to.host.Close()
	if err := to.eng.Close(); err != nil {
		t.Fatal(err)
	}
	to.open()
	h := to.eng.Status().Height
	if h%snapshotEvery != 0 || h == 0 {
		t.Fatalf("height %d", h)
	}
	// Every entry is there, and nothing else; the next block can be executed.
	want, err := from.eng.app.version(h)
	if err != nil {
		t.Fatal(err)
	}
	got, err := to.eng.app.version(h)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := entries(want), entries(got); a != b || a == "" {
		t.Errorf("state\n%s\nwant\n%s", b, a)
	}
	state, err := to.eng.states.Load()
	if err != nil {
		t.Fatal(err)
	}
	for next := h + 1; next <= from.eng.blocks.Height(); next++ {
		b := from.eng.blocks.LoadBlock(next)
		if state, err = to.exec(state, b); err != nil {
			t.Fatalf("block %d: %v", next, err)
		}
	}
	s, err := from.eng.states.Load()
	// Since when sets and parameters are these is told from here on.
	s.LastHeightValidatorsChanged, s.LastHeightConsensusParamsChanged = state.LastHeightValidatorsChanged, state.LastHeightConsensusParamsChanged
	if err != nil || !s.Equals(state) {
		t.Errorf("CometBFT's state (%v)\n%+v\nwant\n%+v", err, state, s)
	}
}

// Nobody younger than the trusting period is believed without a person.
func TestExpiredTrust(t *testing.T) {
	t.Parallel()
	from, to, ask := source(t, 30*24*time.Hour)
	to.eng.cfg.Neighbours = func() []Neighbour { return []Neighbour{neighbour("n", ask, 0, nil)} }
	if ready, err := to.eng.syncer.look(t.Context()); ready || !errors.Is(err, chain.ErrExpired) {
		t.Fatalf("ready %t, %v", ready, err)
	}
	c, err := from.eng.Checkpoint(5)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteAnchor(to.home, "test-grid", 5, chain.Sum([]byte("another"))); err != nil {
		t.Fatal(err)
	}
	if ready, err := to.eng.syncer.look(t.Context()); ready || !errors.Is(err, errNoTrust) {
		t.Fatalf("a wrong hash: ready %t, %v", ready, err)
	}
	if err := WriteAnchor(to.home, "test-grid", 5, c.Header.Hash()); err != nil {
		t.Fatal(err)
	}
	if ready, err := to.eng.syncer.look(t.Context()); !ready || err != nil {
		t.Fatalf("ready %t, %v", ready, err)
	}
}

// A validator that has signed beyond a snapshot never begins there, and a
// power cut between the renames is mended.
func TestAdoptSnapshot(t *testing.T) {
	t.Parallel()
	write := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		signed, data, old, ready string
		want                     string
	}{
		"nothing":             {"0", "before", "", "", "before"},
		"a snapshot":          {"7", "before", "", "64\n", "after"},
		"a cut between":       {"7", "", "before", "64\n", "after"},
		"a cut at the end":    {"7", "after", "before", "", "after"},
		"signed beyond":       {"66", "before", "", "64\n", "before"},
		"signed its next one": {"65", "before", "", "64\n", "after"},
	} {
		home := t.TempDir()
		if _, err := InitValidator(home); err != nil {
			t.Fatal(err)
		}
		_, guard := validatorFiles(home)
		write(guard, `{"height":"`+c.signed+`","round":0,"step":3}`)
		for dir, text := range map[string]string{dataDir(home): c.data, oldDir(home): c.old} {
			if text != "" {
				write(filepath.Join(dir, "what"), text)
			}
		}
		if c.ready != "" {
			write(filepath.Join(readyDir(home), "what"), "after")
			write(filepath.Join(readyDir(home), snapshotMark), c.ready)
		}
		write(filepath.Join(buildDir(home), "half"), "")
		key, err := os.ReadFile(guard)
		if err != nil {
			t.Fatal(err)
		}
		if err := adoptSnapshot(home, testLog(t, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got, err := os.ReadFile(filepath.Join(dataDir(home), "what"))
		if string(got) != c.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if now, _ := os.ReadFile(guard); !bytes.Equal(now, key) {
			t.Errorf("%s: the guard has changed", name)
		}
		for _, dir := range []string{oldDir(home), readyDir(home), buildDir(home)} {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s: %s is left", name, filepath.Base(dir))
			}
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	at := func(height, base, snapshot int64) offer { return offer{have: peerLedger{height, base, snapshot}} }
	for name, c := range map[string]struct {
		own    int64
		offers []offer
		want   int64
	}{
		"alone":                    {100, nil, 0},
		"level":                    {100, []offer{at(101, 1, 96)}, 0},
		"a little behind":          {100, []offer{at(900, 1, 896)}, 0},
		"far behind":               {100, []offer{at(5000, 1, 4992)}, 4992},
		"pruned everywhere":        {100, []offer{at(900, 200, 896), at(901, 102, 896)}, 896},
		"pruned here and there":    {100, []offer{at(900, 200, 896), at(901, 101, 896)}, 0},
		"new in a pruned grid":     {0, []offer{at(300, 2, 288)}, 288},
		"new in a young grid":      {0, []offer{at(300, 1, 288)}, 0},
		"no snapshot to be had":    {100, []offer{at(5000, 200, 0)}, 0},
		"ahead of all":             {5000, []offer{at(900, 200, 896)}, 0},
		"pruned, no snapshot left": {100, []offer{at(130, 120, 96)}, 0},
	} {
		if got, why := choose(c.own, SnapshotBehind, c.offers); got != c.want || (got > 0) != (why != "") {
			t.Errorf("%s: %d (%s), want %d", name, got, why, c.want)
		}
	}
}

func FuzzSnapshotManifest(f *testing.F) {
	b, err := os.ReadFile("testdata/snapshot-1/manifest")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		if !bytes.Equal(m.encode(), b) {
			t.Fatal("not the only encoding")
		}
		if _, err := m.sets(); err != nil {
			t.Fatalf("checked, but %v", err)
		}
		m.commit()
	})
}

func FuzzSnapshotTree(f *testing.F) {
	b, err := os.ReadFile("testdata/snapshot-1/tree")
	if err != nil {
		f.Fatal(err)
	}
	m, err := readSnapshot("testdata/snapshot-1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add([]byte{0, 1, 1, 'a', 1, 'b', 0, 1, 1, 'c', 0, 1, 1})
	f.Add(binary.AppendUvarint([]byte{0, 1}, 1<<62))
	f.Fuzz(func(t *testing.T, in []byte) {
		err := m.verifyTree(bytes.NewReader(in))
		if err == nil && !bytes.Equal(in, b) {
			t.Fatal("another tree has the signed root")
		}
		// Whatever can be read can be built, with the root that was computed.
		r := newTreeReader(bytes.NewReader(in), m.height())
		for err = nil; err == nil; {
			_, err = r.next()
		}
		root, rerr := r.root()
		if !errors.Is(err, io.EOF) || rerr != nil {
			return
		}
		x := *m
		x.Next.Header.AppHash = root
		if err := x.importTree(&treeDB{DB: iavldb.NewMemDB()}, bytes.NewReader(in)); err != nil {
			t.Fatalf("read, but not built: %v", err)
		}
	})
}

func FuzzSyncRequest(f *testing.F) {
	f.Add(append([]byte{SnapshotVersion}, chain.Marshal(syncRequest{Kind: askManifest, Height: 32})...))
	f.Add(append([]byte{SnapshotVersion}, chain.Marshal(syncRequest{Kind: askChunk, Height: 32, Index: 1})...))
	w := newWorld(f, 1)
	n := w.nodes[0].start()
	f.Fuzz(func(t *testing.T, req []byte) {
		if b, err := n.eng.Serve(t.Context(), req); err == nil && len(b) > MaxSyncReply {
			t.Fatalf("reply of %d bytes", len(b))
		}
	})
}

// listing names what is in a folder, but for the databases' own files, which
// an open database may write at any time.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	if err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() && filepath.Ext(p) == ".db" {
			out = append(out, p)
			return fs.SkipDir
		}
		if err == nil && !e.IsDir() {
			b, rerr := os.ReadFile(p)
			out = append(out, fmt.Sprintf("%s %s", p, chain.Sum(b)))
			err = rerr
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

func entries(tree *iavl.ImmutableTree) string {
	var b strings.Builder
	frozen{tree}.Iterate(nil, func(k, v []byte) bool { fmt.Fprintf(&b, "%x %x\n", k, v); return true })
	return b.String()
}

// forgeTree gives the first entry another value.
func forgeTree(b []byte) []byte {
	_, v := binary.Uvarint(b[1:])
	key, k := binary.Uvarint(b[1+v:])
	at := 1 + v + k + int(key) + 1
	out := bytes.Clone(b)
	out[at] ^= 1
	return out
}

// exec executes a block as block sync does.
func (n *gateway) exec(state sm.State, b *cmt.Block) (sm.State, error) {
	parts, err := b.MakePartSet(cmt.BlockPartSizeBytes)
	if err != nil {
		return state, err
	}
	return n.eng.exec.ApplyBlock(state, cmt.BlockID{Hash: b.Hash(), PartSetHeader: parts.Header()}, b)
}

// What format 1 has written can be read. JOULEGATE_FIXTURE=1 writes it anew,
// for another version.
func TestSnapshotFixture(t *testing.T) {
	t.Parallel()
	dir := "testdata/snapshot-1"
	if os.Getenv("JOULEGATE_FIXTURE") != "" {
		from, _, _ := source(t, time.Minute)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := makeSnapshot(from.eng.app, from.eng.blocks, from.eng.states, snapshotEvery, dir); err != nil {
			t.Fatal(err)
		}
	}
	m, err := readSnapshot(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, treeFile))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.importTree(&treeDB{DB: iavldb.NewMemDB()}, f); err != nil {
		t.Error(err)
	}
}
