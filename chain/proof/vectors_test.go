package proof

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

var update = flag.Bool("update", false, "write testdata/vectors anew")

// vector is a published bundle and what a verifier must say of it.
type vector struct {
	File       string `json:"file"`
	What       string `json:"what"`
	Checkpoint string `json:"checkpoint,omitempty"`
	OK         bool   `json:"ok"`
	Red        string `json:"red,omitempty"` // the check that fails
	SelfAttest bool   `json:"self_attested,omitempty"`
	Unique     bool   `json:"proven_unique,omitempty"`
}

const vectorsDir = "testdata/vectors"

// makeVectors makes the published bundles. They depend on nothing but this
// code.
func makeVectors(t *testing.T) (map[string][]byte, []vector) {
	files := map[string][]byte{}
	var list []vector
	add := func(v vector, b []byte) {
		files[v.File] = b
		list = append(list, v)
	}
	m := newMaker(t, "anna", "ben")
	m.live(3)
	files["genesis.json"] = m.file
	files["newest.checkpoint"] = m.votes(int64(len(m.headers)) - 1).Encode()
	good := m.bundle(nil)
	add(vector{File: "good.jgb", What: "two gateways of two owners, three slots, a session", OK: true}, good)
	add(vector{File: "good-checkpoint.jgb", What: "the same, for a verifier who holds the newest checkpoint", Checkpoint: "newest.checkpoint", OK: true, Unique: true}, good)

	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	add(vector{File: "bit.jgb", What: "one bit of the digest changed", Red: checkFile}, flipped)
	add(vector{File: "cut.jgb", What: "the end is missing", Red: checkFile}, good[:len(good)-40])

	edit := func(kind byte, nth int, fn func(b []byte) []byte) []byte {
		return m.bundle(func(fs []rawFrame) []rawFrame {
			for i := range fs {
				if fs[i].kind != kind {
					continue
				}
				if nth--; nth < 0 {
					fs[i].b = fn(fs[i].b)
					break
				}
			}
			return fs
		})
	}
	block := func(nth int, fn func(*Block)) []byte {
		return edit(frameBlock, nth, func(raw []byte) []byte {
			var b Block
			if err := chain.Unmarshal(raw, &b); err != nil {
				t.Fatal(err)
			}
			fn(&b)
			return chain.Marshal(b)
		})
	}
	add(vector{File: "dropped-record.jgb", What: "a gateway's block is left out of a ledger block", Red: checkTxs}, block(3, func(b *Block) {
		txs, _ := unpack(b.Txs)
		b.Txs = Pack(txs[1:])
	}))
	add(vector{File: "time.jgb", What: "a block's time is changed", Red: checkBlocks}, block(3, func(b *Block) { b.Header.Time += 1e9 }))
	add(vector{File: "dropped-block.jgb", What: "a block is left out", Red: checkBlocks}, m.bundle(func(fs []rawFrame) []rawFrame {
		return append(append([]rawFrame{}, fs[:4]...), fs[5:]...)
	}))
	add(vector{File: "state.jgb", What: "an entry of the state is changed", Red: checkState}, edit(frameState, 0, func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		return b
	}))

	lie := newMaker(t, "anna", "ben")
	lie.live(3)
	s, _ := ledger.SessionOf(lie.st, chain.ID{7})
	s.Captured, s.Released, s.Paid = s.Captured+5, s.Released-5, s.Paid+5
	lie.st.Set(ledger.SessionKey(s.ID), rewrite(s))
	lie.block()
	add(vector{File: "wrong-sum.jgb", What: "all validators have signed a session that captured more than its slots", Red: checkSessions}, lie.bundle(nil))

	locked := newMaker(t, "anna", "ben")
	locked.live(1)
	locked.settles()
	add(vector{File: "settlement.jgb", What: "money is locked for another microgrid", OK: true}, locked.bundle(nil))

	fork := newMaker(t, "anna", "ben")
	fork.live(2)
	for range 4 {
		fork.block()
	}
	add(vector{File: "fork.jgb", What: "another history, signed with the same keys", OK: true}, fork.bundle(nil))
	add(vector{File: "fork-checkpoint.jgb", What: "the same, for a verifier who holds the newest checkpoint", Checkpoint: "newest.checkpoint", Red: checkCheckpoint}, fork.bundle(nil))
	return files, list
}

// TestVectors checks the published bundles, and that they are the ones that
// this code makes. -update writes them anew.
func TestVectors(t *testing.T) {
	files, list := makeVectors(t)
	index, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	files["vectors.json"] = append(index, '\n')
	for name, b := range files {
		path := filepath.Join(vectorsDir, name)
		if *update {
			if err := os.MkdirAll(vectorsDir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, b) {
			t.Fatalf("%s is not what the generator makes (%v): go test ./chain/proof -run TestVectors -update", path, err)
		}
	}
	g, err := ParseGenesis(files["genesis.json"])
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		opt := Options{Genesis: g, Now: time.UnixMilli(t0).Add(24 * time.Hour)}
		if v.Checkpoint != "" {
			if opt.Checkpoint, err = chain.ParseCheckpoint(files[v.Checkpoint]); err != nil {
				t.Fatal(err)
			}
		}
		r := Verify(bytes.NewReader(files[v.File]), opt)
		if r.OK != v.OK || r.SelfAttest != v.SelfAttest || r.Unique != v.Unique || v.Red != "" && !strings.HasPrefix(red(r), v.Red+": ") {
			t.Errorf("%s: %+v, want %+v\n%s", v.File, r.OK, v, red(r))
		}
	}
}
