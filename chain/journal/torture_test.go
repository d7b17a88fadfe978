package journal

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/tools/sim/powercut"
	"github.com/syndtr/goleveldb/leveldb"
	leveldberrors "github.com/syndtr/goleveldb/leveldb/errors"
)

var (
	cuts = flag.Int("journal.cuts", 300, "power cuts in TestPowerCuts")
	seed = flag.Uint64("journal.seed", 0, "repeats a run of TestPowerCuts; 0: a new one")
)

// onDisk opens the database as openDB does, on a disk that may lose its
// power. Its buffers are small, so that files are begun, merged and removed
// all the time.
func onDisk(d *powercut.Disk) (db dbm.DB, repaired bool, err error) {
	o := storeOptions()
	o.WriteBuffer, o.CompactionTableSize, o.CompactionTotalSize, o.OpenFilesCacheCapacity = 8<<10, 8<<10, 32<<10, 8
	raw, err := leveldb.Open(d, o)
	if leveldberrors.IsCorrupted(err) {
		repaired = true
		raw, err = leveldb.Recover(d, o)
	}
	if err != nil {
		return nil, false, err
	}
	g := &dbm.GoLevelDB{} // has no constructor for a database that is open
	*(**leveldb.DB)(unsafe.Pointer(g)) = raw
	return g, repaired, nil
}

// TestPowerCuts cuts the power again and again in the middle of whatever the
// journal is doing. What was acknowledged is there afterwards, nothing is
// served that was not signed, and no place is signed twice, even on a disk
// whose syncs are lies: then the neighbours know better.
func TestPowerCuts(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	for _, mode := range []powercut.Mode{powercut.Torn, powercut.Mixed, powercut.Lying} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			t.Logf("repeat with -journal.seed %d -journal.cuts %d", *seed, *cuts)
			s := &torture{t: t, rng: rand.New(rand.NewPCG(*seed, uint64(mode))), mode: mode}
			for s.done < *cuts/3 && !t.Failed() {
				s.gateway()
			}
			t.Logf("%d cuts, %d blocks acknowledged, %d repairs, %d times begun anew", s.done, s.blocks, s.repairs, s.anew)
			if s.blocks < s.done/4 {
				t.Error("hardly anything was acknowledged between the cuts")
			}
		})
	}
}

type torture struct {
	t       *testing.T
	rng     *rand.Rand
	mode    powercut.Mode
	done    int
	blocks  int
	repairs int
	anew    int
}

// promise is what a gateway was told is on disk.
type promise struct {
	blocks map[chain.Position]chain.Hash
	saved  string
	trying string                // saved without an answer
	leaves map[chain.Hash]string // root -> first leaf
}

func newPromise() promise {
	return promise{blocks: map[chain.Position]chain.Hash{}, leaves: map[chain.Hash]string{}}
}

// gateway lives through a few dozen cuts with one disk.
func (s *torture) gateway() {
	t := s.t
	disk := powercut.New(s.mode, s.rng.Uint64())
	cfg := config(1)
	cfg.Fresh = true
	witness := started(t, 2)
	told := newPromise()
	ever := map[chain.Position]chain.Hash{} // acknowledged by any disk
	for range 25 {
		disk.CutAfter(s.rng.IntN(60))
		s.life(disk, cfg, witness, &told, ever)
		s.done++
		disk = disk.Restart()
		if len(ever) > 0 {
			cfg.Fresh = false
		}
		if !s.check(disk, cfg, &told) {
			// A disk that lies may leave nothing that can be opened. The
			// remedy is the one that the error names.
			s.anew++
			disk = powercut.New(s.mode, s.rng.Uint64())
			told = newPromise()
		}
		if e, err := witness.Evidence(pubNo(1)); err != nil || len(e) > 0 {
			t.Errorf("cut %d: the neighbour has %d proofs of a place signed twice, %v", s.done, len(e), err)
		}
		if t.Failed() {
			return
		}
	}
}

// life runs a gateway until the power fails.
func (s *torture) life(disk *powercut.Disk, cfg Config, witness *Journal, told *promise, ever map[chain.Position]chain.Hash) {
	db, repaired, err := onDisk(disk)
	if err != nil {
		return
	}
	defer db.Close()
	j, err := open(db, cfg, repaired)
	if err != nil {
		return
	}
	others := []Neighbour{{Name: "witness", Ask: witness.Serve}}
	if _, err := j.Recover(s.t.Context(), others); err != nil {
		return
	}
	for i := 0; !disk.Off() && i < 200; i++ {
		switch s.rng.IntN(4) {
		case 0:
			v := fmt.Sprintf("%d of %d", i, s.done)
			told.trying = v
			if j.Save("state", []byte(v)) == nil {
				told.saved = v
			}
		case 1:
			leaves := [][]byte{fmt.Append(nil, s.done, " ", i), make([]byte, s.rng.IntN(2000)+1)}
			root := chain.MerkleRoot(leaves)
			if j.PutReadings(root, leaves) == nil {
				told.leaves[root] = string(leaves[0])
			}
		default:
			blocks, err := j.Append([]chain.Record{record(fmt.Sprintf("%d of %d", i, s.done))})
			if err != nil {
				continue
			}
			for _, b := range blocks {
				if h, twice := ever[b.Position()]; twice && h != b.Hash {
					s.t.Errorf("cut %d: %s was signed twice", s.done, b.Position())
				}
				s.blocks++
				ever[b.Position()], told.blocks[b.Position()] = b.Hash, b.Hash
				// A block that reached the disk unacknowledged was never sent.
				v, err := witness.Accept(b.Raw)
				if err != nil {
					_, err = witness.Sync(s.t.Context(), neighbour(j))
				}
				if v == Reject || err != nil {
					s.t.Errorf("cut %d: the neighbour says %s of %s: %v", s.done, v, b.Position(), err)
				}
			}
		}
	}
}

// check opens what the cut has left and compares it with what was promised.
// It returns false if there is nothing to go on with, which only a disk that
// lies may do.
func (s *torture) check(disk *powercut.Disk, cfg Config, told *promise) bool {
	t, honest := s.t, s.mode != powercut.Lying
	db, repaired, err := onDisk(disk)
	if err == nil {
		defer db.Close()
		if repaired {
			s.repairs++
		}
		var j *Journal
		if j, err = open(db, cfg, repaired); err == nil {
			return s.compare(j, told, honest)
		}
	}
	if honest {
		t.Errorf("cut %d: %v", s.done, err)
	}
	return false
}

func (s *torture) compare(j *Journal, told *promise, honest bool) bool {
	t := s.t
	here := map[chain.Position]chain.Hash{}
	for at := (chain.Position{}); ; {
		list, err := j.OwnAfter(at, 64)
		if err != nil {
			if honest {
				t.Errorf("cut %d: own blocks after %s: %v", s.done, at, err)
			}
			return false
		}
		if len(list) == 0 {
			break
		}
		for _, b := range list {
			if e, err := chain.OpenEnvelope(b.Raw); err != nil {
				t.Errorf("cut %d: serves %s, which nobody has signed: %v", s.done, b.Position(), err)
			} else if again, err := chain.OpenBlock(b.Raw, e); err != nil || again.Hash != b.Hash {
				t.Errorf("cut %d: serves %s, which is no block: %v", s.done, b.Position(), err)
			}
			if h, ok := told.blocks[b.Position()]; ok && h != b.Hash {
				t.Errorf("cut %d: serves another block at %s", s.done, b.Position())
			}
			here[b.Position()] = b.Hash
			at = b.Position()
		}
	}
	for p := range told.blocks {
		if _, ok := here[p]; !ok {
			if honest {
				t.Errorf("cut %d: %s was acknowledged and is gone", s.done, p)
			}
			delete(told.blocks, p)
		}
	}
	v, err := j.Load("state")
	switch {
	case honest && err != nil:
		t.Errorf("cut %d: saved state: %v", s.done, err)
	case honest && string(v) != told.saved && string(v) != told.trying:
		t.Errorf("cut %d: saved %q, or on the way %q, and found %q", s.done, told.saved, told.trying, v)
	}
	told.saved = string(v)
	for root, first := range told.leaves {
		leaves, err := j.Readings(root)
		if err == nil && len(leaves) > 0 && (string(leaves[0]) != first || chain.MerkleRoot(leaves) != root) {
			t.Errorf("cut %d: serves readings that are not under their root", s.done)
		}
		if err != nil || len(leaves) == 0 {
			if honest {
				t.Errorf("cut %d: acknowledged readings are gone: %v", s.done, err)
			}
			delete(told.leaves, root)
		}
	}
	return true
}
