package proof

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/tree"
)

func TestHonestBundleIsGreen(t *testing.T) {
	m := newMaker(t, "anna", "ben", "cleo", "dora")
	m.live(5)
	r := m.verify(m.bundle(nil))
	if !r.OK || len(r.Checks) != len(checkOrder)-1 { // no checkpoint was given
		t.Fatalf("%s\n%+v", red(r), r)
	}
	if r.Validators != 4 || r.Owners != 4 || r.SelfAttest || r.Unique || !strings.Contains(r.Assurance, "not proven unique") {
		t.Errorf("%+v", r)
	}
	opt := m.options()
	opt.Checkpoint = m.votes(3)
	if r := Verify(bytes.NewReader(m.bundle(nil)), opt); !r.OK || !r.Unique {
		t.Errorf("with a checkpoint: %s %s", red(r), r.Assurance)
	}
	opt.Now = opt.Now.Add(30 * 24 * time.Hour)
	if r := Verify(bytes.NewReader(m.bundle(nil)), opt); !r.OK || r.Unique {
		t.Errorf("with an old checkpoint: %s %s", red(r), r.Assurance)
	}
}

func TestOneOwnerIsSelfAttested(t *testing.T) {
	m := newMaker(t, "anna", "anna", "anna")
	m.live(3)
	if r := m.verify(m.bundle(nil)); !r.OK || !r.SelfAttest || !strings.HasPrefix(r.Assurance, "self-attested") {
		t.Errorf("%+v %s", r, red(r))
	}
}

// TestPartOfAHistory proves a range of blocks and slots, and one session.
func TestPartOfAHistory(t *testing.T) {
	m := newMaker(t, "anna", "ben", "cleo")
	m.live(6)
	tip := int64(len(m.headers))
	c := Claim{Version: Version, Chain: m.genesis.State.ChainID, Genesis: m.genesis.Hash, FromSlot: firstSlot + 1, ToSlot: firstSlot + 3, First: 5, To: 8, Tip: tip, Session: chain.ID{7}}
	var tables [][2][]byte
	for _, p := range ledger.CommonPrefixes() {
		tables = append(tables, [2][]byte{p, tree.After(p)})
	}
	k := ledger.SessionKey(c.Session)
	tables = append(tables, [2][]byte{k, append(bytes.Clone(k), 0)})
	slots := ledger.SlotRanges(c.FromSlot, c.ToSlot)
	keep := slices.Concat(tables, slots)
	good := m.claimed(c, keep, nil)
	if r := m.verify(good); !r.OK {
		t.Fatal(red(r))
	}
	wider := c
	wider.FromSlot--
	if r := m.verify(m.claimed(wider, keep, nil)); r.OK || !strings.Contains(red(r), "left out") {
		t.Errorf("a slot that is not told: %s", red(r))
	}
	if r := m.verify(m.claimed(c, slices.Concat(tables, slots[:1], slots[2:]), nil)); r.OK {
		t.Error("fills of slots were left out unnoticed")
	}
}

// TestEveryByteCounts changes bytes of a bundle as a forger would, with a
// digest that fits again. Every one must be found.
func TestEveryByteCounts(t *testing.T) {
	m := newMaker(t, "anna", "ben")
	m.live(3)
	good := m.bundle(nil)
	if r := m.verify(good); !r.OK {
		t.Fatal(red(r))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d bytes", seed, len(good))
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range good { // the plain change, of every byte
		if i%7 != int(seed%7) {
			continue
		}
		bad := bytes.Clone(good)
		bad[i] ^= 1 << rng.IntN(8)
		if r := m.verify(bad); r.OK {
			t.Fatalf("byte %d changed from %02x to %02x unnoticed", i, good[i], bad[i])
		}
	}
	frames := split(t, good)
	for i := range frames[0].b { // the claim, every bit of it
		for bit := range 8 {
			frames[0].b[i] ^= 1 << bit
			if r := m.verify(join(frames)); r.OK {
				t.Errorf("claim: bit %d of byte %d changed unnoticed", bit, i)
			}
			frames[0].b[i] ^= 1 << bit
		}
	}
	for n := range frames {
		for i := range frames[n].b {
			if len(frames[n].b) > 400 && rng.IntN(4) != 0 {
				continue
			}
			b := frames[n].b
			old := b[i]
			b[i] ^= 1 << rng.IntN(8)
			if r := m.verify(join(frames)); r.OK {
				t.Fatalf("frame %d of kind %d: byte %d changed from %02x to %02x unnoticed (seed %d)", n, frames[n].kind, i, old, b[i], seed)
			}
			b[i] = old
		}
	}
}

func TestDroppedRepeatedAndReorderedFrames(t *testing.T) {
	m := newMaker(t, "anna", "ben")
	m.live(4)
	good := split(t, m.bundle(nil))
	for i := range good {
		if good[i].kind == frameReadings {
			continue // readings are not claimed to be all here
		}
		drop := append(append([]rawFrame{}, good[:i]...), good[i+1:]...)
		if m.verify(join(drop)).OK {
			t.Errorf("frame %d of kind %d dropped unnoticed", i, good[i].kind)
		}
	}
	for i := range good {
		twice := append(append([]rawFrame{}, good[:i+1]...), good[i:]...)
		if m.verify(join(twice)).OK {
			t.Errorf("frame %d of kind %d repeated unnoticed", i, good[i].kind)
		}
		if i+1 < len(good) {
			swap := append([]rawFrame{}, good...)
			swap[i], swap[i+1] = swap[i+1], swap[i]
			if m.verify(join(swap)).OK {
				t.Errorf("frames %d and %d of kinds %d and %d exchanged unnoticed", i, i+1, good[i].kind, good[i+1].kind)
			}
		}
	}
}

// TestRecordsDroppedAddedOrReordered changes transactions within blocks.
func TestRecordsDroppedAddedOrReordered(t *testing.T) {
	m := newMaker(t, "anna", "ben")
	m.live(4)
	good := m.bundle(nil)
	for i, f := range split(t, good) {
		if f.kind != frameBlock {
			continue
		}
		var b Block
		if err := chain.Unmarshal(f.b, &b); err != nil {
			t.Fatal(err)
		}
		txs, _ := unpack(b.Txs)
		for n := range txs {
			for what, changed := range map[string][][]byte{
				"dropped":  append(append([][]byte{}, txs[:n]...), txs[n+1:]...),
				"repeated": append(append([][]byte{}, txs[:n+1]...), txs[n:]...),
				"moved":    append([][]byte{txs[n]}, append(append([][]byte{}, txs[:n]...), txs[n+1:]...)...),
			} {
				if what == "moved" && n == 0 {
					continue
				}
				bad := m.bundle(func(fs []rawFrame) []rawFrame {
					c := b
					c.Txs = Pack(changed)
					fs[i].b = chain.Marshal(c)
					return fs
				})
				if r := m.verify(bad); r.OK || !strings.Contains(red(r), checkTxs) {
					t.Errorf("transaction %d of block %d %s: %s", n, b.Header.Height, what, red(r))
				}
			}
		}
	}
}

// TestForkByFormerValidators lets validators who have left sign another
// history with their old keys: green for who has no checkpoint, and red for
// who has the newest.
func TestForkByFormerValidators(t *testing.T) {
	grow := func(forged bool) *maker {
		m := newMaker(t, "anna", "ben", "cleo")
		m.live(2)
		former := m.vals
		if !forged { // all are replaced
			m.next = nil
			for i := range former {
				priv, key := seeded(fmt.Sprint("newcomer", i))
				m.signers[key] = priv
				m.next = append(m.next, chain.Validator{Key: key, Power: 10})
			}
		} else {
			m.block(m.tx(chain.TxMint, chain.Mint{To: chain.AccountGrid, Amount: 1, BankRef: "forged"}))
		}
		for range 6 {
			m.block()
		}
		return m
	}
	honest, forged := grow(false), grow(true)
	newest := honest.votes(int64(len(honest.headers)) - 1)
	if r := forged.verify(forged.bundle(nil)); !r.OK || r.Unique || !strings.Contains(r.Assurance, "not proven unique") {
		t.Fatalf("without a checkpoint nobody can tell, and it must say so: %s %s", r.Assurance, red(r))
	}
	opt := honest.options()
	opt.Checkpoint = newest
	if r := Verify(bytes.NewReader(forged.bundle(nil)), opt); r.OK || !strings.Contains(red(r), "another history") {
		t.Errorf("forged history with the newest checkpoint: %s", red(r))
	}
	r := Verify(bytes.NewReader(honest.bundle(nil)), opt)
	if !r.OK && !strings.Contains(red(r), checkCheckpoint) && !r.Unique {
		t.Errorf("honest history: %s", red(r))
	}
	if !r.Unique || !r.OK {
		t.Errorf("honest history: %s %s", r.Assurance, red(r))
	}
}

// TestSwappedValidators replaces the set under the last block.
func TestSwappedValidators(t *testing.T) {
	m := newMaker(t, "anna", "ben")
	m.live(2)
	other := newMaker(t, "mallory")
	other.file, other.genesis = m.file, m.genesis
	priv, key := seeded("mallory's validator")
	other.signers[key] = priv
	bad := m.bundle(func(fs []rawFrame) []rawFrame {
		for i, f := range fs {
			if f.kind == frameCheckpoint {
				c := m.votes(int64(len(m.headers)))
				c.Set = chain.Validators{{Key: key, Power: 10}}
				vote := chain.Vote{Time: c.Header.Time + 1}
				vote.Sig = chain.Sign(priv, "", c.Commit.SignBytes(&c.Header, vote))
				c.Commit.Votes = []chain.Vote{vote}
				fs[i].b = c.Encode()
			}
		}
		return fs
	})
	if r := m.verify(bad); r.OK || !strings.Contains(red(r), checkSignatures) {
		t.Errorf("swapped validators: %s", red(r))
	}
}

// TestDishonestMajority signs a state in which a sum is wrong: the validators
// agree, arithmetic does not.
func TestDishonestMajority(t *testing.T) {
	for what, change := range map[string]func(m *maker){
		"a session's captures": func(m *maker) {
			s, _ := ledger.SessionOf(m.st, chain.ID{7})
			s.Captured += 5
			s.Released -= 5
			s.Paid += 5
			m.st.Set(ledger.SessionKey(s.ID), rewrite(s))
		},
		"a fill's amount": func(m *maker) {
			v, _ := ledger.SlotOf(m.st, firstSlot+1)
			v.Fills[0].Amount++
			m.st.Set(ledger.FillKey(v.Slot, v.Fills[0].ID), rewrite(v.Fills[0]))
		},
		"a house's energy": func(m *maker) {
			v, _ := ledger.SlotOf(m.st, firstSlot+1)
			for i := range v.Prices {
				if v.Prices[i].Import > 0 {
					v.Prices[i].Import++
				}
			}
			v.Fills = nil
			m.st.Set(ledger.SlotKey(v.Slot), rewrite(v))
		},
		"a slot's clearing": func(m *maker) {
			v, _ := ledger.SlotOf(m.st, firstSlot+1)
			v.Paid++
			v.Received++
			m.st.Set(ledger.SlotKey(v.Slot), rewrite(v))
		},
		"a slot that is gone": func(m *maker) { m.st.Delete(ledger.SlotKey(firstSlot + 1)) },
	} {
		m := newMaker(t, "anna", "ben")
		m.live(4)
		change(m)
		m.block()
		r := m.verify(m.bundle(nil))
		if r.OK {
			t.Errorf("%s: unnoticed", what)
		}
		t.Logf("%s: %s", what, red(r))
	}
}

// rewrite encodes an entry as the ledger does.
func rewrite(v any) []byte {
	type entry struct {
		_       struct{} `cbor:",toarray"`
		Version uint8
		Value   any
	}
	return chain.Marshal(entry{Version: 1, Value: v})
}

// TestHostileBundles are refused quickly and in little memory.
func TestHostileBundles(t *testing.T) {
	m := newMaker(t, "anna")
	m.live(2)
	frames := split(t, m.bundle(nil))
	upTo := func(kind byte) []rawFrame {
		for i, f := range frames {
			if f.kind == kind {
				return append([]rawFrame{}, frames[:i]...)
			}
		}
		t.Fatal("no such frame")
		return nil
	}
	huge := func(kind byte) []byte {
		b := []byte(Magic)
		b = append(b, kind)
		return binary.BigEndian.AppendUint32(b, 1<<32-1)
	}
	lying := append([]byte(Magic), frameClaim, 0, 0x3f, 0xff, 0xff)
	deep := bytes.Repeat([]byte{2, 64, 1, 1}, 1<<18)
	fall := []byte{}
	for h := byte(64); h > 0; h-- {
		fall = append(fall, 2, h, 1, 1)
	}
	long := append([]byte{1, 1}, binary.AppendUvarint(nil, 1<<62)...)
	nested := append(bytes.Repeat([]byte{0x81}, 1<<20), 0)
	many := append([]byte{0x9b}, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff)
	cases := map[string]io.Reader{
		"a frame of 4 GB":            bytes.NewReader(huge(frameClaim)),
		"a length without bytes":     bytes.NewReader(lying),
		"no bundle":                  strings.NewReader("PK\x03\x04 and so on"),
		"nothing":                    strings.NewReader(""),
		"a tree without end":         bytes.NewReader(join(append(upTo(frameState), rawFrame{frameState, deep}))),
		"a tree of one branch":       bytes.NewReader(join(append(upTo(frameState), rawFrame{frameState, append(fall, 0)}))),
		"a key of 2^62 bytes":        bytes.NewReader(join(append(upTo(frameState), rawFrame{frameState, long}))),
		"deeply nested CBOR":         bytes.NewReader(join([]rawFrame{{frameClaim, nested}})),
		"an array of 2^40":           bytes.NewReader(join([]rawFrame{{frameClaim, many}})),
		"a block of nested CBOR":     bytes.NewReader(join(append(upTo(frameBlock), rawFrame{frameBlock, nested}))),
		"the same block, for ever":   io.MultiReader(bytes.NewReader(append([]byte(Magic), bytesOf(frames[0])...)), &endless{b: bytesOf(frames[1])}),
		"readings of nothing, again": bytes.NewReader(join(append(append([]rawFrame{}, frames...), rawFrame{frameReadings, chain.Marshal(Readings{})}))),
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(256 << 20))
	for what, r := range cases {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		rep := Verify(r, m.options())
		runtime.ReadMemStats(&after)
		if rep.OK {
			t.Errorf("%s: green", what)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
			t.Errorf("%s: allocated %d MB", what, n>>20)
		}
	}
}

type endless struct {
	b []byte
	i int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.b[e.i:])
	e.i = (e.i + n) % len(e.b)
	return n, nil
}

func bytesOf(f rawFrame) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{f.kind}, uint32(len(f.b))), f.b...)
}

func FuzzVerify(f *testing.F) {
	m := newMaker(f, "anna")
	m.live(2)
	good := m.bundle(nil)
	f.Add(good)
	f.Add([]byte(Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r := m.verify(b); r.OK && !bytes.Equal(b, good) {
			t.Errorf("%d other bytes are green", len(b))
		}
	})
}

// FuzzFrames mends the digest, so that the fuzzer reaches what is behind it.
func FuzzFrames(f *testing.F) {
	m := newMaker(f, "anna")
	m.live(2)
	frames := split(f, m.bundle(nil))
	for i, fr := range frames {
		f.Add(i, fr.kind, fr.b)
	}
	f.Fuzz(func(t *testing.T, i int, kind byte, b []byte) {
		if i < 0 || i >= len(frames) || len(b) > MaxFrame {
			return
		}
		changed := append([]rawFrame{}, frames...)
		same := changed[i].kind == kind && bytes.Equal(changed[i].b, b)
		changed[i] = rawFrame{kind, b}
		if r := m.verify(join(changed)); r.OK && !same {
			t.Errorf("frame %d changed unnoticed", i)
		}
	})
}

func FuzzInspect(f *testing.F) {
	m := newMaker(f, "anna")
	m.live(1)
	f.Add(m.bundle(nil))
	f.Add([]byte(Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Inspect(bytes.NewReader(b)); err == nil {
			_ = c.String()
		}
	})
}

// What a bundle lacks is said in words, by who writes it and by who checks it.
func TestAbsentReadingsAreTold(t *testing.T) {
	m := newMaker(t, "anna", "ben")
	m.live(2)
	records := len(m.readings)
	m.readings = m.readings[1:]
	b := m.bundle(nil)
	c, err := Inspect(bytes.NewReader(b))
	if err != nil || c.Records != records || c.Readings != records-1 || !strings.Contains(c.String(), "ABSENT: the raw readings of 1 records") {
		t.Errorf("%+v, %v: %s", c, err, c.String())
	}
	r := m.verify(b)
	i := slices.IndexFunc(r.Checks, func(c Check) bool { return c.Name == checkReadings })
	if !r.OK || !strings.Contains(r.Checks[i].Detail, "of 1 records the raw readings are ABSENT") {
		t.Errorf("%+v", r)
	}
}
