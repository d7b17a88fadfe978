package consensus

import (
	"bytes"
	"fmt"
	"sync/atomic"

	corestore "cosmossdk.io/core/store"
	"github.com/cosmos/iavl"
	iavldb "github.com/cosmos/iavl/db"

	"github.com/joulegate/joulegate/chain/ledger"
)

// flushThreshold is beyond any block's writes: a version must be one batch,
// or a power cut in its middle would leave half of it.
const flushThreshold = 1 << 30

// openTree loads the newest version. The fast-node index stays off: it
// doubles what a block writes and answers only reads of the newest version.
func openTree(db iavldb.DB) (*iavl.MutableTree, error) {
	t := newTree(db)
	if _, err := t.Load(); err != nil {
		return nil, fmt.Errorf("load ledger state: %w", err)
	}
	return t, nil
}

// newTree returns a tree with a cache of its own. Writer and readers need one
// each: iavl's writer clears links of saved nodes that its cache shares with
// every version read through it, without a lock.
func newTree(db iavldb.DB) *iavl.MutableTree {
	return iavl.NewMutableTree(db, nodeCache, true, iavl.NewNopLogger(),
		iavl.SyncOption(true), iavl.FlushThresholdOption(flushThreshold))
}

// treeDB adapts goleveldb to what iavl needs here.
type treeDB struct {
	iavldb.DB
	failed atomic.Pointer[storeError]
}

// NewBatchWithSize ignores the size: iavl passes flushThreshold, and
// goleveldb would allocate all of it at once.
func (d *treeDB) NewBatchWithSize(int) corestore.Batch { return d.NewBatch() }

// Get remembers the first failure: iavl's iterators end early on a read error
// instead of reporting it, and a block must not be executed on half a state.
func (d *treeDB) Get(key []byte) ([]byte, error) {
	v, err := d.DB.Get(key)
	if err != nil {
		d.failed.CompareAndSwap(nil, &storeError{err})
	}
	return v, err
}

func (d *treeDB) check() error {
	if e := d.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// storeError is what reading the tree panics with: the ledger's rules are
// total functions and have no words for a failing disk. It is recovered
// where the ledger is called.
type storeError struct{ err error }

func (e storeError) Error() string { return "ledger state: " + e.err.Error() }
func (e storeError) Unwrap() error { return e.err }

// frozen is one committed version as a ledger.State that cannot be written.
// Safe for concurrent use as long as the version is not pruned.
type frozen struct{ tree *iavl.ImmutableTree }

func (f frozen) Get(key []byte) []byte {
	v, err := f.tree.Get(key)
	if err != nil {
		panic(storeError{err})
	}
	return v
}

func (f frozen) Set(key, _ []byte) {
	panic(fmt.Sprintf("consensus: write of %x to a committed state", key))
}
func (f frozen) Delete(key []byte) { f.Set(key, nil) }

func (f frozen) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	var start []byte
	if len(prefix) > 0 {
		start = prefix
	}
	it, err := f.tree.Iterator(start, prefixEnd(prefix), true)
	if err != nil {
		panic(storeError{err})
	}
	defer it.Close()
	for ; it.Valid(); it.Next() {
		if !fn(it.Key(), it.Value()) {
			return
		}
	}
	if err := it.Error(); err != nil {
		panic(storeError{err})
	}
}

// prefixEnd returns the first key after all keys with prefix p, nil for none.
func prefixEnd(p []byte) []byte {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] != 0xff {
			end := bytes.Clone(p[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}

// working is the next version as a ledger.State. The shape of an IAVL tree,
// and with it its root, depends on the order of insertions: only an overlay's
// Commit, which goes by ascending key, writes here. Values that stay the same
// are not written, so that they dirty no node.
type working struct{ tree *iavl.MutableTree }

func (w working) view() frozen          { return frozen{w.tree.ImmutableTree} }
func (w working) Get(key []byte) []byte { return w.view().Get(key) }

func (w working) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	w.view().Iterate(prefix, fn)
}

func (w working) Set(key, value []byte) {
	if bytes.Equal(w.Get(key), value) {
		return
	}
	if _, err := w.tree.Set(key, value); err != nil {
		panic(storeError{err})
	}
}

func (w working) Delete(key []byte) {
	if _, _, err := w.tree.Remove(key); err != nil {
		panic(storeError{err})
	}
}

var (
	_ ledger.State = frozen{}
	_ ledger.State = working{}
)
