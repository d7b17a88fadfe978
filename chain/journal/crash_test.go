package journal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/joulegate/joulegate/chain"
	"pgregory.net/rapid"
)

// failing is a database whose n-th batch write fails, before or after it
// lands.
type failing struct {
	dbm.DB
	n      int
	lands  bool
	synced int // batches written through to the disk
}

var errDisk = errors.New("input/output error")

func (f *failing) NewBatch() dbm.Batch { return &failingBatch{f.DB.NewBatch(), f} }

type failingBatch struct {
	dbm.Batch
	f *failing
}

func (b *failingBatch) write(do func() error) error {
	if b.f.n--; b.f.n != 0 {
		return do()
	}
	if b.f.lands {
		if err := do(); err != nil {
			return err
		}
	}
	return errDisk
}

func (b *failingBatch) Write() error     { return b.write(b.Batch.Write) }
func (b *failingBatch) WriteSync() error { b.f.synced++; return b.write(b.Batch.WriteSync) }

// Whatever write fails, and whether or not it landed: no place is ever signed
// twice, what was acknowledged is there after a restart, and the neighbour
// sees no equivocation.
func TestFailedWriteNeverLeadsToEquivocation(t *testing.T) {
	for _, lands := range []bool{false, true} {
		for n := 1; n <= 5; n++ {
			t.Run(fmt.Sprintf("write %d lands %v", n, lands), func(t *testing.T) {
				mem := dbm.NewMemDB()
				cfg := config(1)
				cfg.Fresh = true
				db := &failing{DB: mem, n: n, lands: lands}
				j, err := open(db, cfg, false)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := j.Recover(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
				witness := started(t, 2)
				acknowledged := map[chain.Position]chain.Hash{}
				failed := 0
				do := func(j *Journal) {
					before, synced := j.Next(), db.synced
					blocks, err := j.Append([]chain.Record{record("a"), record("b")})
					if err != nil {
						failed++
						if now := j.Next(); now.Epoch <= before.Epoch || now.Number != 1 {
							t.Errorf("after a failed write at %s comes %s", before, now)
						}
						return
					}
					if j.db == dbm.DB(db) && db.synced != synced+1 {
						t.Error("returned before it was synced")
					}
					for _, b := range blocks {
						if _, twice := acknowledged[b.Position()]; twice {
							t.Errorf("%s signed twice", b.Position())
						}
						acknowledged[b.Position()] = b.Hash
						if v, err := witness.Accept(b.Raw); v != Accept {
							t.Errorf("witness: %s, %v", v, err)
						}
					}
				}
				for range 6 {
					do(j)
				}
				if failed != 1 {
					t.Fatalf("%d writes failed", failed)
				}
				again, err := open(mem, cfg, false)
				if err != nil {
					t.Fatal(err)
				}
				onDisk, err := again.OwnAfter(chain.Position{}, 100)
				if err != nil {
					t.Fatal(err)
				}
				for _, b := range onDisk {
					delete(acknowledged, b.Position())
				}
				if len(acknowledged) != 0 {
					t.Errorf("acknowledged and lost: %v", acknowledged)
				}
				if _, err := again.Recover(t.Context(), known(witness)); err != nil {
					t.Fatal(err)
				}
				if _, err := witness.Sync(t.Context(), neighbour(again)); err != nil {
					t.Error(err)
				}
				do(again)
				if c := witness.Counters(); c.Equivocations != 0 {
					t.Errorf("%d equivocations", c.Equivocations)
				}
			})
		}
	}
}

func TestFailedWriteOfANeighboursBlockChangesNothing(t *testing.T) {
	for _, lands := range []bool{false, true} {
		mem := dbm.NewMemDB()
		j, err := open(&failing{DB: mem, n: 3, lands: lands}, config(1), false)
		if err != nil {
			t.Fatal(err)
		}
		b := chainOf(t, 2, 1, 5)
		for i := range 2 {
			if v, err := j.Accept(b[i].Raw); v != Accept {
				t.Fatal(v, err)
			}
		}
		if v, err := j.Accept(b[2].Raw); v != Ignore || !errors.Is(err, errDisk) {
			t.Errorf("%s, %v", v, err)
		}
		if h := j.Heads()[pubNo(2)]; h != b[1].Position() {
			t.Errorf("head %s", h)
		}
		for _, blk := range b[2:] {
			if v, err := j.Accept(blk.Raw); v != Accept {
				t.Errorf("afterwards: %s, %v", v, err)
			}
		}
	}
}

// Killed at any moment, the process leaves every block that it has
// announced, and its successor signs no place twice.
func TestKilledGatewayLosesNothingItAnnounced(t *testing.T) {
	if dir := os.Getenv("JOURNAL_APPEND_IN"); dir != "" {
		appendForever(dir)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	announced := map[string]string{} // position -> hash
	for round := range 6 {
		cmd := exec.Command(self, "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "JOURNAL_APPEND_IN="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var position, hash string
			if _, err := fmt.Sscan(lines.Text(), &position, &hash); err != nil {
				t.Fatalf("child said %q", lines.Text())
			}
			if other, twice := announced[position]; twice && other != hash {
				t.Fatalf("%s was signed twice", position)
			}
			announced[position] = hash
			if n == 3+7*round {
				if err := cmd.Process.Kill(); err != nil { // and read what it still said
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		j, err := Open(dir, config(1))
		if err != nil {
			t.Fatal(err)
		}
		own, err := j.OwnAfter(chain.Position{}, MaxRange)
		if err != nil {
			t.Fatal(err)
		}
		held := map[string]string{}
		for _, b := range own {
			held[b.Position().String()] = b.Hash.String()
		}
		for p, hash := range announced {
			if held[p] != hash {
				t.Errorf("round %d: %s was announced and is %q on disk", round, p, held[p])
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(announced) < 6*4 {
		t.Errorf("only %d blocks announced", len(announced))
	}
}

// appendForever is the process that is killed.
func appendForever(dir string) {
	cfg := config(1)
	cfg.Fresh, cfg.Now = true, time.Now
	j, err := Open(dir, cfg)
	if err == nil {
		_, err = j.Recover(context.Background(), nil)
	}
	for i := 0; err == nil; i++ {
		var blocks []*chain.Signed
		if blocks, err = j.Append([]chain.Record{record(fmt.Sprint("event ", i))}); err == nil {
			fmt.Println(blocks[0].Position(), blocks[0].Hash)
		}
	}
	fmt.Println("failed:", err)
	os.Exit(1)
}

// Power fails while the log is being written: of the database's log file any
// prefix may be left.
func TestTornTailLeavesAPrefixOfTheChain(t *testing.T) {
	dir := t.TempDir()
	cfg := config(1)
	cfg.Fresh = true
	j := mustOpen(t, dir, cfg)
	if _, err := j.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	const n = 20
	for i := range n {
		appendOne(t, j, fmt.Sprint("event ", i))
	}
	image := t.TempDir()
	if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(image, dbName+".db", "*.log"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	whole, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	longest := 0
	for cut := len(whole); cut > 0; cut -= max(1, len(whole)/30) {
		torn := t.TempDir()
		if err := os.CopyFS(torn, os.DirFS(image)); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(torn, dbName+".db", filepath.Base(logs[0])), int64(cut)); err != nil {
			t.Fatal(err)
		}
		j, err := Open(torn, cfg)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		own, err := j.OwnAfter(chain.Position{}, 100)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range own {
			if b.Position() != (chain.Position{Epoch: 1, Number: uint64(i + 1)}) {
				t.Fatalf("cut at %d: block %d is %s", cut, i, b.Position())
			}
		}
		longest = max(longest, len(own))
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if longest != n {
		t.Errorf("the whole log gave %d of %d blocks", longest, n)
	}
}

// Whatever arrives in whatever order, forged, repeated, oversize or from
// strangers: what is held is a prefix of each honest author's chain, and with
// a catch-up from someone complete it is all of it.
func TestAcceptHoldsOnlyHonestChains(t *testing.T) {
	type author struct {
		no     byte
		blocks []*chain.Signed
	}
	var honest []author
	complete := started(t, 100)
	for _, no := range []byte{2, 3} {
		a := author{no: no}
		for _, epoch := range []uint32{1, 4} {
			a.blocks = append(a.blocks, chainOf(t, no, epoch, 8)...)
		}
		for _, b := range a.blocks {
			if v, err := complete.Accept(b.Raw); v != Accept {
				t.Fatal(v, err)
			}
		}
		honest = append(honest, a)
	}
	stranger := chainOf(t, 66, 1, 8)
	rapid.Check(t, func(rt *rapid.T) {
		cfg := config(1)
		cfg.Member = func(k chain.Key) bool { return k != pubNo(66) }
		var stored []*chain.Signed
		cfg.Stored = func(b *chain.Signed) { stored = append(stored, b) }
		j, err := open(dbm.NewMemDB(), cfg, false)
		if err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 120).Draw(rt, "arrivals") {
			a := honest[rapid.IntRange(0, 1).Draw(rt, "author")]
			b := a.blocks[rapid.IntRange(0, len(a.blocks)-1).Draw(rt, "block")]
			switch rapid.IntRange(0, 9).Draw(rt, "what") {
			case 0:
				raw := append([]byte(nil), b.Raw...)
				raw[rapid.IntRange(0, len(raw)-1).Draw(rt, "byte")] ^= byte(rapid.IntRange(1, 255).Draw(rt, "flip"))
				if v, _ := j.Accept(raw); v != Reject {
					rt.Fatalf("a changed byte: %s", v)
				}
			case 1:
				if v, _ := j.Accept(stranger[b.Number-1].Raw); v != Ignore {
					rt.Fatalf("stranger: %s", v)
				}
			case 2:
				if v, _ := j.Accept(append(b.Raw[:len(b.Raw):len(b.Raw)], make([]byte, chain.MaxBlockBytes)...)); v != Reject {
					rt.Fatalf("oversize: %s", v)
				}
			default:
				if v, err := j.Accept(b.Raw); v == Reject {
					rt.Fatalf("honest block %s: %v", b.Position(), err)
				}
			}
		}
		check := func() {
			if len(j.authors[pubNo(66)].segmentsOrNone()) != 0 {
				rt.Fatal("a stranger's block is held")
			}
			for _, a := range honest {
				raws, err := j.Range(pubNo(a.no), chain.Position{}, 100)
				if err != nil {
					rt.Fatal(err)
				}
				last := map[uint32]uint64{}
				for _, raw := range raws {
					b, err := chain.ParseBlock(raw)
					if err != nil || b.Number != last[b.Epoch]+1 {
						rt.Fatalf("held %v after %v: %v", b.Position(), last, err)
					}
					last[b.Epoch] = b.Number
				}
			}
		}
		check()
		if _, err := j.Sync(t.Context(), neighbour(complete)); err != nil {
			rt.Fatal(err)
		}
		check()
		for _, a := range honest {
			if h, want := j.Heads()[pubNo(a.no)], a.blocks[15].Position(); h != want {
				rt.Fatalf("author %d: head %s after catch-up, want %s", a.no, h, want)
			}
		}
		if len(stored) != 32 {
			rt.Fatalf("told of %d blocks, 32 are held", len(stored))
		}
		if c := j.Counters(); c.Equivocations != 0 {
			rt.Fatalf("honest authors accused: %+v", c)
		}
	})
}

func (a *author) segmentsOrNone() []segment {
	if a == nil {
		return nil
	}
	return a.segments
}

func FuzzAccept(f *testing.F) {
	b := chainOf(f, 2, 1, 2)
	f.Add(b[0].Raw)
	f.Add(b[1].Raw)
	f.Add(signed(f, 1, 1, 1, chain.Hash{}, "own").Raw)
	f.Add([]byte{0x83, 1, 0x40, 0x40})
	f.Fuzz(func(t *testing.T, raw []byte) {
		j, err := open(dbm.NewMemDB(), config(1), false)
		if err != nil {
			t.Fatal(err)
		}
		v, err := j.Accept(raw)
		if v != Accept && v != Reject && v != Ignore || v == Reject && (err == nil || len(j.Heads()) != 0) {
			t.Errorf("%s, %v, heads %v", v, err, j.Heads())
		}
	})
}

func FuzzServe(f *testing.F) {
	db := dbm.NewMemDB()
	j, err := open(db, config(1), false)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range chainOf(f, 2, 1, 5) {
		if v, err := j.Accept(b.Raw); v != Accept {
			f.Fatal(v, err)
		}
	}
	for _, kind := range []uint8{askHeads, askNewest, askRange, 9} {
		f.Add(chain.Marshal(request{Version: chain.Version, Kind: kind, Author: pubNo(2), Epoch: 1, From: 1, Max: 2}))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if reply, err := j.Serve(t.Context(), raw); err == nil && len(reply) > MaxReply {
			t.Errorf("reply of %d bytes", len(reply))
		}
	})
}

// A neighbour answers whatever it likes.
func FuzzSyncReply(f *testing.F) {
	b := chainOf(f, 2, 1, 2)
	heads := chain.Marshal(headsReply{[]authorHeads{{pubNo(2), []epochHead{{1, 1, 2}}}}})
	f.Add(heads, chain.Marshal(blocksReply{[][]byte{b[0].Raw, b[1].Raw}}))
	f.Add(heads, chain.Marshal(blocksReply{[][]byte{b[1].Raw}}))
	f.Add(chain.Marshal(headsReply{[]authorHeads{{pubNo(2), []epochHead{{1, 1 << 63, 1<<64 - 1}}}}}), []byte{})
	f.Fuzz(func(t *testing.T, heads, blocks []byte) {
		j, err := open(dbm.NewMemDB(), config(1), false)
		if err != nil {
			t.Fatal(err)
		}
		asks := 0
		n, _ := j.Sync(t.Context(), Neighbour{Name: "fuzz", Ask: func(context.Context, []byte) ([]byte, error) {
			if asks++; asks == 1 {
				return heads, nil
			}
			return blocks, nil
		}})
		if n > 2 || asks > 1+maxHeadsEpochs*maxHeadsAuthors+n {
			t.Errorf("stored %d blocks in %d asks", n, asks)
		}
	})
}
