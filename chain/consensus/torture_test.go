package consensus

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	iavldb "github.com/cosmos/iavl/db"
	"github.com/joulegate/joulegate/tools/sim/powercut"
	"github.com/syndtr/goleveldb/leveldb"
)

var (
	cuts = flag.Int("ledger.cuts", 300, "power cuts in TestPowerCuts")
	seed = flag.Uint64("ledger.seed", 0, "repeats a run of TestPowerCuts; 0: a new one")
)

// onDisk opens the store of the state as openStores does, on a disk that may
// lose its power. Its buffers are small, so that files are begun, merged and
// removed all the time.
func onDisk(d *powercut.Disk) (*treeDB, func(), error) {
	if err := unborn(d); err != nil {
		return nil, nil, err
	}
	o := storeOptions(false)
	o.WriteBuffer, o.CompactionTableSize, o.CompactionTotalSize = 16<<10, 16<<10, 64<<10
	raw, err := leveldb.Open(d, o)
	if err != nil {
		return nil, nil, err
	}
	g := &iavldb.GoLevelDB{} // has no constructor for a database that is open
	*(**leveldb.DB)(unsafe.Pointer(g)) = raw
	return &treeDB{DB: g}, func() { _ = raw.Close() }, nil
}

// committedState is a state as it was committed.
type committedState struct {
	root    []byte
	entries map[string]string
}

// TestPowerCuts cuts the power again and again while blocks are committed and
// old versions are dropped. The newest version that was acknowledged is there
// afterwards, whole and with the same root. A disk whose syncs are lies may
// lose versions, but what is read is what was committed, or an error.
func TestPowerCuts(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	for _, mode := range []powercut.Mode{powercut.Torn, powercut.Mixed, powercut.Lying} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			t.Logf("repeat with -ledger.seed %d -ledger.cuts %d", *seed, *cuts)
			s := &torture{t: t, rng: rand.New(rand.NewPCG(*seed, uint64(mode))), mode: mode}
			for s.done < *cuts/3 && !t.Failed() {
				s.ledger()
			}
			t.Logf("%d cuts, %d versions acknowledged, %d times begun anew", s.done, s.versions, s.anew)
			if s.versions < s.done/4 {
				t.Error("hardly anything was acknowledged between the cuts")
			}
		})
	}
}

type torture struct {
	t        *testing.T
	rng      *rand.Rand
	mode     powercut.Mode
	done     int
	versions int
	anew     int
}

// ledger lives through a few dozen cuts with one disk.
func (s *torture) ledger() {
	disk := powercut.New(s.mode, s.rng.Uint64())
	all := map[int64]committedState{0: {entries: map[string]string{}}}
	acked := int64(0)
	for range 25 {
		disk.CutAfter(s.rng.IntN(80))
		acked = s.commits(disk, all, acked)
		s.done++
		disk = disk.Restart()
		found, err := s.check(disk, all)
		switch {
		case s.mode == powercut.Lying && err != nil, s.mode == powercut.Lying && found == 0:
			s.anew++
			return // the ledger is fetched again from the neighbours
		case err != nil:
			s.t.Errorf("cut %d: %v", s.done, err)
		case found < acked && s.mode != powercut.Lying:
			s.t.Errorf("cut %d: version %d was acknowledged, %d is there", s.done, acked, found)
		}
		if s.t.Failed() {
			return
		}
		acked = found
	}
}

// commits commits versions until the power fails, and returns the newest one
// that was acknowledged.
func (s *torture) commits(disk *powercut.Disk, all map[int64]committedState, acked int64) int64 {
	db, closeDB, err := onDisk(disk)
	if err != nil {
		return acked
	}
	defer closeDB()
	tree, err := openTree(db)
	if err != nil {
		return acked
	}
	for i := 0; !disk.Off() && i < 100; i++ {
		v := tree.Version() + 1
		entries := maps.Clone(all[tree.Version()].entries)
		for range 1 + s.rng.IntN(20) {
			k := fmt.Sprint("key ", s.rng.IntN(200))
			if s.rng.IntN(4) == 0 {
				if _, _, err := tree.Remove([]byte(k)); err != nil {
					return acked
				}
				delete(entries, k)
				continue
			}
			value := binary.BigEndian.AppendUint64(make([]byte, s.rng.IntN(100)), s.rng.Uint64())
			if _, err := tree.Set([]byte(k), value); err != nil {
				return acked
			}
			entries[k] = string(value)
		}
		all[v] = committedState{tree.WorkingHash(), entries} // may land without being acknowledged
		root, got, err := tree.SaveVersion()
		if err != nil {
			return acked
		}
		if got != v || !bytes.Equal(root, all[v].root) {
			s.t.Errorf("cut %d: saved version %d as %d", s.done, v, got)
		}
		acked = v
		s.versions++
		if v > 4 && s.rng.IntN(2) == 0 {
			_ = tree.DeleteVersionsTo(v - 4) // as Commit does; may fail with the disk
		}
	}
	return acked
}

// check reads everything that the cut has left.
func (s *torture) check(disk *powercut.Disk, all map[int64]committedState) (found int64, err error) {
	db, closeDB, err := onDisk(disk)
	if err != nil {
		return 0, err
	}
	defer closeDB()
	defer func() {
		if p := recover(); p != nil { // iavl's word for a node that is not there
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	tree, err := openTree(db)
	if err != nil {
		return 0, err
	}
	found = tree.Version()
	want, known := all[found]
	if !known {
		return 0, fmt.Errorf("version %d was never committed", found)
	}
	if root := tree.Hash(); found > 0 && !bytes.Equal(root, want.root) {
		return 0, fmt.Errorf("version %d has another root", found)
	}
	n := 0
	if _, err := tree.Iterate(func(k, v []byte) bool {
		if want.entries[string(k)] != string(v) {
			s.t.Errorf("cut %d: version %d serves another value of %q", s.done, found, k)
		}
		n++
		return false
	}); err != nil {
		return 0, err
	}
	if err := db.check(); err != nil {
		return 0, err
	}
	if n != len(want.entries) {
		return 0, fmt.Errorf("version %d has %d entries, %d were committed", found, n, len(want.entries))
	}
	return found, nil
}

// TestFailingDiskHangsNobody: a change that is longer than the write buffer
// fails with the disk, and so do the next one and the end; none waits.
func TestFailingDiskHangsNobody(t *testing.T) {
	disk := powercut.New(powercut.Torn, 1)
	db, closeDB, err := onDisk(disk)
	if err != nil {
		t.Fatal(err)
	}
	write := func(value []byte) error {
		b := db.NewBatch()
		defer b.Close()
		if err := b.Set([]byte("key"), value); err != nil {
			return err
		}
		return b.WriteSync()
	}
	if err := write([]byte("the buffer is not empty")); err != nil {
		t.Fatal(err)
	}
	disk.CutAfter(0)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 2 {
			if write(make([]byte, 64<<10)) == nil {
				t.Error("a write is acknowledged that went nowhere")
			}
		}
		closeDB()
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the store hangs")
	}
}
