package journal

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/joulegate/joulegate/chain"
)

const grid = "test-grid"

// keyNo returns a fixed device key.
func keyNo(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func pubNo(n byte) chain.Key { return chain.Key(keyNo(n).Public().(ed25519.PublicKey)) }

func record(text string) chain.Record {
	return chain.NewRecord(chain.KindEvent, chain.Event{Code: text, Severity: 1, Subject: "test"})
}

// at is a clock that stands still.
func at(sec int64) func() time.Time { return func() time.Time { return time.Unix(sec, 0) } }

func config(n byte) Config { return Config{ChainID: grid, Key: keyNo(n), Now: at(1_000)} }

func mustOpen(t testing.TB, dir string, cfg Config) *Journal {
	t.Helper()
	j, err := Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// inMemory opens a journal without a disk under it.
func inMemory(t testing.TB, cfg Config) *Journal {
	t.Helper()
	j, err := open(dbm.NewMemDB(), cfg, false)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// started opens a fresh journal that may append.
func started(t testing.TB, n byte) *Journal {
	t.Helper()
	cfg := config(n)
	cfg.Fresh = true
	j := inMemory(t, cfg)
	if r, err := j.Recover(t.Context(), nil); err != nil || r.Next != (chain.Position{Epoch: 1, Number: 1}) {
		t.Fatalf("%+v, %v", r, err)
	}
	return j
}

func appendOne(t testing.TB, j *Journal, text string) *chain.Signed {
	t.Helper()
	blocks, err := j.Append([]chain.Record{record(text)})
	if err != nil || len(blocks) != 1 {
		t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	return blocks[0]
}

// chainOf returns n linked blocks of an author.
func chainOf(t testing.TB, author byte, epoch uint32, n int) []*chain.Signed {
	t.Helper()
	var out []*chain.Signed
	var prev chain.Hash
	for i := range n {
		out = append(out, signed(t, author, epoch, uint64(i+1), prev, "event"))
		prev = out[i].Hash
	}
	return out
}

func signed(t testing.TB, author byte, epoch uint32, number uint64, prev chain.Hash, text string) *chain.Signed {
	t.Helper()
	b, err := chain.SignBlock(chain.Block{Chain: grid, Epoch: epoch, Number: number, Prev: prev, Records: []chain.Record{record(text)}}, keyNo(author))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// neighbour lets one journal ask another directly.
func neighbour(j *Journal) Neighbour {
	return Neighbour{Name: "neighbour", Ask: j.Serve}
}

var deaf = Neighbour{Name: "deaf", Ask: func(context.Context, []byte) ([]byte, error) { return nil, errors.New("no route") }}

func TestOwnBlocksAreOnDiskBeforeTheyAreReturned(t *testing.T) {
	dir := t.TempDir()
	cfg := config(1)
	cfg.Fresh = true
	j := mustOpen(t, dir, cfg)
	if _, err := j.Append([]chain.Record{record("early")}); !errors.Is(err, ErrNotRecovered) {
		t.Fatalf("signed before asking: %v", err)
	}
	if _, err := j.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var want []*chain.Signed
	for range 5 {
		want = append(want, appendOne(t, j, "x"))
	}
	// What a kill -9 leaves: the files as they are now, the process gone.
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, copied, cfg)
	got, err := again.OwnAfter(chain.Position{}, 100)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d blocks, %v", len(got), err)
	}
	for i := range got {
		if got[i].Hash != want[i].Hash || got[i].Number != uint64(i+1) || i > 0 && got[i].Prev != got[i-1].Hash {
			t.Errorf("block %d: %+v", i, got[i])
		}
	}
	if got, err := again.OwnAfter(want[2].Position(), 1); err != nil || len(got) != 1 || got[0].Hash != want[3].Hash {
		t.Errorf("outbox after block 3: %v, %v", got, err)
	}
	if got, err := again.OwnNewest(2); err != nil || len(got) != 2 || got[0].Hash != want[4].Hash || got[1].Hash != want[3].Hash {
		t.Errorf("the newest two: %v, %v", got, err)
	}
	if got, err := again.OwnNewest(100); err != nil || len(got) != len(want) {
		t.Errorf("the newest hundred: %v, %v", got, err)
	}
}

func TestManyRecordsAreSplitIntoLinkedBlocks(t *testing.T) {
	j := started(t, 1)
	var records []chain.Record
	for range 600 {
		records = append(records, record(strings.Repeat("x", 100)))
	}
	blocks, err := j.Append(records)
	if err != nil {
		t.Fatal(err)
	}
	var got []chain.Record
	for i, b := range blocks {
		if len(b.Raw) > chain.MaxBlockBytes || i > 0 && b.Prev != blocks[i-1].Hash {
			t.Errorf("block %d: %d bytes, prev %s", i, len(b.Raw), b.Prev)
		}
		got = append(got, b.Records...)
	}
	if len(blocks) < 3 || len(got) != len(records) {
		t.Errorf("%d blocks with %d of %d records", len(blocks), len(got), len(records))
	}
	// The largest record that is accepted fits, one byte more changes nothing.
	head := j.Next()
	room := chain.MaxBlockBytes - 512
	overhead := len(chain.Marshal(record(strings.Repeat("x", 30000)))) - 30000
	if _, err := j.Append([]chain.Record{record("small"), record(strings.Repeat("x", room-overhead+1))}); err == nil || j.Next() != head {
		t.Errorf("too large: %v, next %s", err, j.Next())
	}
	if _, err := j.Append([]chain.Record{record(strings.Repeat("x", room-overhead))}); err != nil {
		t.Error(err)
	}
}

func TestFolderBelongsToOneProcessAndOneGrid(t *testing.T) {
	dir := t.TempDir()
	j := mustOpen(t, dir, config(1))
	_, err := Open(dir, config(1))
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second open: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	other := config(1)
	other.ChainID = "other"
	for _, cfg := range []Config{other, config(2)} {
		if _, err := Open(dir, cfg); err == nil || !strings.Contains(err.Error(), grid) {
			t.Errorf("foreign folder: %v", err)
		}
	}
	again := mustOpen(t, dir, config(1))
	_ = again
}

func TestRecoverDecidesWhereTheChainContinues(t *testing.T) {
	pos := func(e uint32, n uint64) chain.Position { return chain.Position{Epoch: e, Number: n} }
	// own and theirs: how many blocks of epoch 5 this journal and the
	// neighbour hold.
	for name, c := range map[string]struct {
		own, theirs int
		neighbours  func(*Journal) []Neighbour
		fresh       bool
		fork        bool
		restored    uint32
		want        chain.Position
		adopted     int
	}{
		"new device, nobody there, key made just now":   {fresh: true, want: pos(1, 1)},
		"new journal of an old key, nobody there":       {want: pos(1_000, 1)},
		"new device, neighbours know nothing":           {neighbours: known, want: pos(1, 1)},
		"from a backup, neighbours know nothing newer":  {own: 3, theirs: 3, restored: 900, neighbours: known, want: pos(1_000, 1)},
		"from a backup without a journal":               {restored: 900, neighbours: known, want: pos(1_000, 1)},
		"from a backup, with a clock before it":         {own: 3, theirs: 3, restored: 2_000, neighbours: known, want: pos(2_000, 1)},
		"restart, long after it came from a backup":     {own: 3, theirs: 3, restored: 5, neighbours: known, want: pos(5, 4)},
		"ordinary restart":                              {own: 3, theirs: 3, neighbours: known, want: pos(5, 4)},
		"neighbours are behind":                         {own: 3, theirs: 2, neighbours: known, want: pos(5, 4)},
		"neighbours have nothing":                       {own: 3, neighbours: known, want: pos(5, 4)},
		"restart, nobody answers":                       {own: 3, theirs: 3, neighbours: func(*Journal) []Neighbour { return []Neighbour{deaf} }, want: pos(1_000, 1)},
		"restored card: neighbours know more":           {own: 2, theirs: 6, neighbours: known, want: pos(1_000, 1), adopted: 4},
		"wiped card: neighbours know all":               {theirs: 6, neighbours: known, want: pos(1_000, 1), adopted: 6},
		"neighbour holds another block for a place":     {own: 3, theirs: 2, fork: true, neighbours: known, want: pos(1_000, 1)},
		"one neighbour is deaf, another one knows more": {own: 1, theirs: 2, neighbours: func(j *Journal) []Neighbour { return []Neighbour{deaf, neighbour(j)} }, want: pos(1_000, 1), adopted: 1},
	} {
		t.Run(name, func(t *testing.T) {
			all := chainOf(t, 1, 5, 6)
			theirs := all
			if c.fork {
				theirs = append(slices.Clone(all[:1]), signed(t, 1, 5, 2, all[0].Hash, "other"))
			}
			cfg := config(1)
			cfg.Fresh, cfg.Restored = c.fresh, c.restored
			j := inMemory(t, cfg)
			other := started(t, 2)
			for _, b := range all[:c.own] {
				if v, err := j.Accept(b.Raw); v != Accept {
					t.Fatal(v, err)
				}
			}
			for _, b := range theirs[:c.theirs] {
				if v, err := other.Accept(b.Raw); v != Accept {
					t.Fatal(v, err)
				}
			}
			var asked []Neighbour
			if c.neighbours != nil {
				asked = c.neighbours(other)
			}
			r, err := j.Recover(t.Context(), asked)
			if err != nil || r.Next != c.want || r.Adopted != c.adopted {
				t.Fatalf("%+v, %v, want next %s, adopted %d", r, err, c.want, c.adopted)
			}
			b := appendOne(t, j, "next")
			if b.Position() != c.want || (b.Number > 1) != (b.Prev != chain.Hash{}) {
				t.Errorf("signed %s after %s", b.Position(), b.Prev)
			}
			// The neighbour takes it: nobody is excluded, nothing equivocates.
			if c.theirs == c.own || b.Number == 1 {
				if v, err := other.Accept(b.Raw); v != Accept {
					t.Errorf("neighbour: %s, %v", v, err)
				}
			}
			if n := other.Counters().Equivocations; n != 0 {
				t.Errorf("%d equivocations", n)
			}
		})
	}
}

func known(j *Journal) []Neighbour { return []Neighbour{neighbour(j)} }

// A neighbour's word alone moves nothing; only our own signature does.
func TestRecoverBelievesSignaturesOnly(t *testing.T) {
	liars := map[string]chain.Signed{
		"another author's block": *signed(t, 3, 4_000_000_000, 1, chain.Hash{}, "x"),
	}
	forged := *signed(t, 1, 4_000_000_000, 1, chain.Hash{}, "x")
	forged.Raw = bytes.Clone(forged.Raw)
	forged.Raw[len(forged.Raw)-1] ^= 1
	liars["a forged block"] = forged
	for name, b := range liars {
		j := inMemory(t, config(1))
		r, err := j.Recover(t.Context(), []Neighbour{{Name: "liar", Ask: func(context.Context, []byte) ([]byte, error) {
			return chain.Marshal(blocksReply{[][]byte{b.Raw}}), nil
		}}})
		if err != nil || r.Answered != 0 || r.Next.Epoch != 1_000 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestOwnBlockUnknownHereOpensAnEpoch(t *testing.T) {
	j := started(t, 1)
	appendOne(t, j, "one")
	lost := signed(t, 1, 1, 3, chain.Hash{1}, "signed in a forgotten life")
	if v, _ := j.Accept(lost.Raw); v == Reject {
		t.Error("our own signature was rejected")
	}
	if b := appendOne(t, j, "next"); b.Epoch != 1_000 {
		t.Errorf("signed %s, which may exist already", b.Position())
	}
}

func TestNeighboursBlocksAreJudged(t *testing.T) {
	j := started(t, 1)
	j.cfg.Member = func(a chain.Key) bool { return a != pubNo(9) }
	b := chainOf(t, 2, 1, 8)
	other, err := chain.SignBlock(chain.Block{Chain: "other", Epoch: 1, Number: 1, Records: []chain.Record{record("x")}}, keyNo(2))
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(b[0].Raw)
	forged[len(forged)-3] ^= 1
	judge := func(what string, raw []byte, want Verdict, count func(Counters) uint64) {
		t.Helper()
		before := count(j.Counters())
		if got, err := j.Accept(raw); got != want || count(j.Counters()) != before+1 || (err == nil) != (got == Accept && what != "held") {
			t.Errorf("%s: %s (%v), counted %d", what, got, err, count(j.Counters())-before)
		}
	}
	judge("oversize", make([]byte, chain.MaxBlockBytes+1), Reject, func(c Counters) uint64 { return c.Oversize })
	judge("garbage", []byte("garbage"), Reject, func(c Counters) uint64 { return c.Invalid })
	judge("forged", forged, Reject, func(c Counters) uint64 { return c.Invalid })
	judge("other grid", other.Raw, Reject, func(c Counters) uint64 { return c.Foreign })
	judge("stranger", chainOf(t, 9, 1, 1)[0].Raw, Ignore, func(c Counters) uint64 { return c.Strangers })
	judge("first", b[0].Raw, Accept, func(c Counters) uint64 { return c.Stored })
	judge("replay", b[0].Raw, Ignore, func(c Counters) uint64 { return c.Replays })
	judge("held", b[2].Raw, Accept, func(c Counters) uint64 { return c.Held })
	judge("held twice", b[2].Raw, Ignore, func(c Counters) uint64 { return c.Replays })
	if h := j.Heads()[pubNo(2)]; h != b[0].Position() {
		t.Errorf("head %s before the gap is closed", h)
	}
	if v, err := j.Accept(b[1].Raw); v != Accept || j.Heads()[pubNo(2)] != b[2].Position() {
		t.Errorf("closing the gap: %s, %v, head %s", v, err, j.Heads()[pubNo(2)])
	}
	twin := signed(t, 2, 1, 2, b[0].Hash, "other")
	judge("equivocation", twin.Raw, Ignore, func(c Counters) uint64 { return c.Equivocations })
	broken := signed(t, 2, 1, 4, chain.Hash{7}, "links elsewhere")
	judge("fork past the head", broken.Raw, Ignore, func(c Counters) uint64 { return c.Equivocations })
	e, err := j.Evidence(pubNo(2))
	if err != nil || len(e) != 2 || !bytes.Equal(e[0].A, b[1].Raw) || !bytes.Equal(e[0].B, twin.Raw) {
		t.Errorf("evidence %d, %v", len(e), err)
	}
	if v, err := j.Accept(b[3].Raw); v != Accept {
		t.Errorf("the chain held first goes on: %s, %v", v, err)
	}
	// A new epoch is no equivocation, and a late block of the old one is
	// still taken.
	next := chainOf(t, 2, 7, 1)[0]
	judge("new epoch", next.Raw, Accept, func(c Counters) uint64 { return c.Stored })
	judge("old epoch goes on", b[4].Raw, Accept, func(c Counters) uint64 { return c.Stored })
	if h := j.Heads()[pubNo(2)]; h != next.Position() {
		t.Errorf("head %s", h)
	}
}

func TestHeldBlocksAndEvidenceAreBounded(t *testing.T) {
	j := started(t, 1)
	for i := range 3 * MaxHeld {
		_, _ = j.Accept(signed(t, 2, 1, uint64(10+i), chain.Hash{1}, "far").Raw)
	}
	if c := j.Counters(); c.Held != MaxHeld || c.Overrun != 2*MaxHeld || j.heldBytes > MaxHeldBytes {
		t.Errorf("%+v, %d bytes", c, j.heldBytes)
	}
	first := chainOf(t, 3, 1, 3*MaxEvidence)
	for _, b := range first {
		if v, err := j.Accept(b.Raw); v != Accept {
			t.Fatal(v, err)
		}
	}
	for i, b := range first {
		_, _ = j.Accept(signed(t, 3, 1, uint64(i+1), b.Prev, "twin").Raw)
	}
	if e, err := j.Evidence(pubNo(3)); err != nil || len(e) != MaxEvidence {
		t.Errorf("%d kept, %v", len(e), err)
	}
}

func TestNeighboursCopiesHaveALimitAndOwnOnesDoNot(t *testing.T) {
	dir := t.TempDir()
	cfg := config(1)
	b := chainOf(t, 2, 1, 40)
	cfg.Fresh, cfg.NeighbourBytes = true, int64(10*len(b[5].Raw))
	j := mustOpen(t, dir, cfg)
	if _, err := j.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		if v, err := j.Accept(b[i].Raw); v != Accept {
			t.Fatal(v, err)
		}
		appendOne(t, j, "own")
	}
	check := func(j *Journal) {
		t.Helper()
		raws, err := j.Range(pubNo(2), chain.Position{}, 100)
		if err != nil || len(raws) < 8 || len(raws) > 10 || !bytes.Equal(raws[len(raws)-1], b[39].Raw) {
			t.Errorf("%d of the neighbour's, %v", len(raws), err)
		}
		if own, err := j.OwnAfter(chain.Position{}, 100); err != nil || len(own) != 40 {
			t.Errorf("%d own, %v", len(own), err)
		}
		if v, _ := j.Accept(b[0].Raw); v != Ignore {
			t.Errorf("a dropped block came back: %s", v)
		}
	}
	check(j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	check(mustOpen(t, dir, cfg))
	// A latecomer begins where everybody's copies begin.
	late := started(t, 4)
	if n, err := late.Sync(t.Context(), neighbour(mustOpenAgain(t, dir, cfg))); err != nil || n < 48 || late.Counters().Gaps != 1 {
		t.Errorf("%d blocks, %v, %+v", n, err, late.Counters())
	}
	// Many epochs of one author are bounded too.
	for e := range uint32(3 * MaxEpochs) {
		if v, err := late.Accept(signed(t, 5, e+1, 1, chain.Hash{}, "x").Raw); v != Accept {
			t.Fatal(v, err)
		}
	}
	if n := len(late.authors[pubNo(5)].segments); n != MaxEpochs {
		t.Errorf("%d epochs", n)
	}
	if v, _ := late.Accept(signed(t, 5, 2, 1, chain.Hash{}, "x").Raw); v != Ignore {
		t.Errorf("a forgotten epoch came back: %s", v)
	}
}

func TestHoleIsSkippedOnlyWhenNobodyCanFillIt(t *testing.T) {
	b := chainOf(t, 2, 1, 40)
	holding := func(no byte, limit int64, blocks []*chain.Signed) *Journal {
		cfg := config(no)
		cfg.NeighbourBytes = limit
		j := inMemory(t, cfg)
		for _, b := range blocks {
			if v, err := j.Accept(b.Raw); v != Accept {
				t.Fatal(v, err)
			}
		}
		return j
	}
	trimmed := holding(3, int64(10*len(b[39].Raw)), b) // has the last ones only
	complete := holding(4, 0, b)
	for name, c := range map[string]struct {
		neighbours []Neighbour
		blocks     int
		gaps       uint64
	}{
		"nobody has it":  {[]Neighbour{neighbour(trimmed), deaf}, 10, 1},
		"another has it": {[]Neighbour{neighbour(trimmed), neighbour(complete)}, 40, 0},
	} {
		j := holding(1, 0, b[:5])
		j.cfg.Neighbours = func() []Neighbour { return c.neighbours }
		j.syncAll(t.Context())
		if c.gaps > 0 && j.Heads()[pubNo(2)] != b[4].Position() {
			t.Errorf("%s: skipped on first sight", name)
		}
		j.syncAll(t.Context())
		raws, err := j.Range(pubNo(2), chain.Position{}, 100)
		if err != nil || len(raws) != c.blocks || j.Counters().Gaps != c.gaps || j.Heads()[pubNo(2)] != b[39].Position() {
			t.Errorf("%s: %d blocks, %v, %+v", name, len(raws), err, j.Counters())
		}
		bytes := int64(0)
		for _, raw := range raws {
			bytes += int64(len(raw))
		}
		if a := j.authors[pubNo(2)]; a.bytes() != bytes {
			t.Errorf("%s: %d bytes accounted, %d held", name, a.bytes(), bytes)
		}
	}
}

func TestLedgerKnowsMoreThanTheJournal(t *testing.T) {
	cfg := config(1)
	cfg.Fresh = true
	cfg.Known = func() chain.Position { return chain.Position{Epoch: 3_000, Number: 7} }
	j := inMemory(t, cfg)
	if r, err := j.Recover(t.Context(), known(started(t, 2))); err != nil || r.Next != (chain.Position{Epoch: 3_001, Number: 1}) {
		t.Errorf("%+v, %v", r, err)
	}
}

// One neighbour is silent, one lies about an author: the rest is fetched all
// the same, and the silent one is asked last from then on.
func TestBadNeighboursDoNotStopCatchUp(t *testing.T) {
	good := started(t, 2)
	appendOne(t, good, "x")
	for _, b := range chainOf(t, 3, 1, 3) {
		if v, err := good.Accept(b.Raw); v != Accept {
			t.Fatal(v, err)
		}
	}
	var asked []string
	named := func(name string, ask func(context.Context, []byte) ([]byte, error)) Neighbour {
		return Neighbour{Name: name, Ask: func(ctx context.Context, req []byte) ([]byte, error) {
			if len(asked) == 0 || asked[len(asked)-1] != name {
				asked = append(asked, name)
			}
			return ask(ctx, req)
		}}
	}
	heads := chain.Marshal(headsReply{[]authorHeads{{pubNo(3), []epochHead{{1, 1, 3}}}}})
	liar := func(_ context.Context, req []byte) ([]byte, error) {
		var r request
		if err := chain.Unmarshal(req, &r); err != nil || r.Kind == askHeads {
			return heads, err
		}
		return chain.Marshal(blocksReply{[][]byte{signed(t, 4, 1, 1, chain.Hash{}, "not asked for").Raw}}), nil
	}
	j := started(t, 1)
	j.cfg.Neighbours = func() []Neighbour {
		return []Neighbour{named("silent", deaf.Ask), named("liar", liar), named("good", good.Serve)}
	}
	j.syncAll(t.Context())
	if h := j.Heads(); h[pubNo(2)].Number != 1 || h[pubNo(3)].Number != 3 || h[pubNo(4)].Number != 0 {
		t.Errorf("heads %v", h)
	}
	asked = nil
	j.syncAll(t.Context())
	if want := []string{"liar", "good", "silent"}; !slices.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
	if c := j.Counters(); c.SyncErrors != 3 {
		t.Errorf("%d exchanges failed, want 3", c.SyncErrors)
	}
}

// mustOpenAgain opens a copy: the folder itself is taken.
func mustOpenAgain(t *testing.T, dir string, cfg Config) *Journal {
	t.Helper()
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, copied, cfg)
}

func TestCatchUpIsCompleteAndInPieces(t *testing.T) {
	a, b := started(t, 1), started(t, 2)
	var records []chain.Record
	for range 150 {
		records = append(records, record(strings.Repeat("x", 20_000)))
	}
	if _, err := a.Append(records); err != nil { // more than one reply
		t.Fatal(err)
	}
	for range 1200 { // more than MaxRange
		appendOne(t, a, "x")
	}
	for _, blk := range chainOf(t, 3, 9, 3) {
		if v, err := a.Accept(blk.Raw); v != Accept {
			t.Fatal(v, err)
		}
	}
	appendOne(t, b, "b's own")
	asks := 0
	n, err := b.Sync(t.Context(), Neighbour{Name: "a", Ask: func(ctx context.Context, req []byte) ([]byte, error) {
		asks++
		reply, err := a.Serve(ctx, req)
		if len(req) > MaxRequest || len(reply) > MaxReply {
			t.Errorf("request of %d bytes, reply of %d", len(req), len(reply))
		}
		return reply, err
	}})
	if err != nil || n != 1353 || asks < 4 {
		t.Errorf("%d blocks in %d asks, %v", n, asks, err)
	}
	if _, err := a.Sync(t.Context(), neighbour(b)); err != nil {
		t.Error(err)
	}
	if ha, hb := a.Heads(), b.Heads(); len(ha) != 3 || ha[pubNo(1)] != hb[pubNo(1)] || ha[pubNo(2)] != hb[pubNo(2)] || ha[pubNo(3)] != hb[pubNo(3)] {
		t.Errorf("heads differ: %v, %v", ha, hb)
	}
	if n, err := b.Sync(t.Context(), neighbour(a)); n != 0 || err != nil {
		t.Errorf("nothing to fetch, got %d, %v", n, err)
	}
}

func TestRunCatchesUpWhenNudged(t *testing.T) {
	a := started(t, 1)
	appendOne(t, a, "one")
	cfg := config(2)
	stored := make(chan *chain.Signed, 10)
	reachable := make(chan struct{})
	cfg.Neighbours = func() []Neighbour {
		select {
		case <-reachable:
			return []Neighbour{deaf, neighbour(a)}
		default:
			return nil
		}
	}
	cfg.Stored = func(b *chain.Signed) { stored <- b }
	b := inMemory(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	close(reachable)
	b.Nudge()
	select {
	case s := <-stored:
		if s.Author != pubNo(1) {
			t.Errorf("stored %+v", s)
		}
	case <-time.After(time.Minute):
		t.Fatal("not fetched")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSavedValuesAndReadingsSurvive(t *testing.T) {
	dir := t.TempDir()
	cfg := config(1)
	cfg.Fresh, cfg.ReadingsBytes = true, 1000
	j := mustOpen(t, dir, cfg)
	if _, err := j.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	leaf := func(i int) [][]byte { return [][]byte{bytes.Repeat([]byte{byte(i)}, 150), {byte(i)}} }
	for i := range 20 {
		if err := j.PutReadings(chain.MerkleRoot(leaf(i)), leaf(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.PutReadings(chain.Hash{1}, leaf(1)); err == nil {
		t.Error("readings under a foreign root were taken")
	}
	if err := j.Save("session", []byte("charging")); err != nil {
		t.Fatal(err)
	}
	if err := j.Save("", nil); err == nil {
		t.Error("a value without a name was saved")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, dir, cfg)
	if v, err := j.Load("session"); err != nil || string(v) != "charging" {
		t.Errorf("%q, %v", v, err)
	}
	if v, err := j.Load("nothing"); v != nil || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	kept := 0
	for i := range 20 {
		got, err := j.Readings(chain.MerkleRoot(leaf(i)))
		if err != nil {
			t.Fatal(err)
		}
		if got != nil {
			kept++
			if len(got) != 2 || !bytes.Equal(got[0], leaf(i)[0]) || i < 14 {
				t.Errorf("reading %d: %x", i, got)
			}
		}
	}
	if kept < 5 || kept > 6 || j.readings.bytes > 1000 {
		t.Errorf("%d kept, %d bytes", kept, j.readings.bytes)
	}
	if err := j.PutReadings(chain.MerkleRoot(leaf(99)), leaf(99)); err != nil {
		t.Fatal(err)
	}
	if got, err := j.Readings(chain.MerkleRoot(leaf(99))); err != nil || got == nil {
		t.Errorf("newest: %v, %v", got, err)
	}
}

func TestDamagedFilesAreRepairedAndANewEpochFollows(t *testing.T) {
	dir := t.TempDir()
	cfg := config(1)
	cfg.Fresh = true
	j := mustOpen(t, dir, cfg)
	if _, err := j.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		appendOne(t, j, "x")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	manifests, err := filepath.Glob(filepath.Join(dir, dbName+".db", "MANIFEST-*"))
	if err != nil || len(manifests) == 0 {
		t.Fatal(manifests, err)
	}
	if err := os.WriteFile(manifests[0], []byte("not a manifest"), 0o600); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, dir, cfg)
	if c := j.Counters(); c.Repaired != 1 {
		t.Errorf("%+v", c)
	}
	own, err := j.OwnAfter(chain.Position{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range own {
		if b.Number != uint64(i+1) {
			t.Errorf("block %d is %s", i, b.Position())
		}
	}
	r, err := j.Recover(t.Context(), known(started(t, 2)))
	if err != nil || !r.NewEpoch || r.Next.Epoch != 1_000 {
		t.Errorf("%+v, %v", r, err)
	}
	appendOne(t, j, "goes on")
}

// A flipped byte inside a table is found, whichever it is: the journal does
// not open and says what to do, or what it holds is what was written.
func TestFlippedByteIsNeverServed(t *testing.T) {
	dir := t.TempDir()
	cfg := config(1)
	cfg.Fresh = true
	j := mustOpen(t, dir, cfg)
	if _, err := j.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var want [][]byte
	for range 30 {
		want = append(want, appendOne(t, j, "x").Raw)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, dir, cfg).Close(); err != nil { // turns the log into a table
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, dbName+".db", "*.ldb"))
	if err != nil || len(tables) == 0 {
		t.Fatal(tables, err)
	}
	whole, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for at := 10; at < len(whole); at += len(whole) / 20 {
		broken := bytes.Clone(whole)
		broken[at] ^= 0xff
		copied := t.TempDir()
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, dbName+".db", filepath.Base(tables[0])), broken, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(copied, cfg)
		if err != nil {
			refused++
			if !strings.Contains(err.Error(), remedy) || !strings.Contains(err.Error(), copied) {
				t.Errorf("byte %d: no remedy or folder in %q", at, err)
			}
			continue
		}
		got, err := j.OwnAfter(chain.Position{}, 100)
		for i := range got {
			if !bytes.Equal(got[i].Raw, want[got[i].Number-1]) {
				t.Errorf("byte %d: block %s is not what was written", at, got[i].Position())
			}
		}
		if err == nil && len(got) != len(want) {
			t.Errorf("byte %d: %d blocks of %d, and no error", at, len(got), len(want))
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}
	if refused == 0 {
		t.Error("no damage was noticed at start")
	}
}

func BenchmarkAccept(b *testing.B) {
	j := started(b, 1)
	blocks := chainOf(b, 2, 1, b.N)
	b.ResetTimer()
	for _, blk := range blocks {
		if v, err := j.Accept(blk.Raw); v != Accept {
			b.Fatal(v, err)
		}
	}
}

// BenchmarkAppend is bound by the disk's sync.
func BenchmarkAppend(b *testing.B) {
	cfg := config(1)
	cfg.Fresh = true
	j := mustOpen(b, b.TempDir(), cfg)
	if _, err := j.Recover(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		appendOne(b, j, "x")
	}
}
