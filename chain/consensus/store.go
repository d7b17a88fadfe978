package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	dbm "github.com/cometbft/cometbft-db"
	iavldb "github.com/cosmos/iavl/db"
	"github.com/syndtr/goleveldb/leveldb/opt"
	"github.com/syndtr/goleveldb/leveldb/storage"
)

// ErrLocked is returned when another process, as a rule the running gateway,
// holds the stores.
var ErrLocked = errors.New("the ledger's stores are held by a running gateway: ask it through its control socket, or stop it")

// stores are the four databases under Home, each a goleveldb with checksums.
type stores struct {
	blocks   *lateDB // blocks and the commits that sign them
	state    *lateDB // CometBFT's own state: validators, last results
	evidence *lateDB // misbehaviour not yet in a block
	ledger   *treeDB // the application's tree
}

// storeOptions are those of every database of the ledger.
func storeOptions(readOnly bool) *opt.Options {
	return &opt.Options{
		BlockCacheCapacity:     dbBlockCache,
		WriteBuffer:            dbWriteBuffer,
		OpenFilesCacheCapacity: dbOpenFiles,
		ReadOnly:               readOnly,
		ErrorIfMissing:         readOnly,
		Strict:                 opt.DefaultStrict,
		// What is longer than the buffer would be a transaction, and goleveldb
		// keeps its write lock when one cannot begin because the disk is full
		// or failing: from then on every write hangs, and so does Close.
		DisableLargeBatchTransaction: true,
	}
}

func openStores(home string, readOnly bool) (*stores, error) {
	return openStoresIn(dataDir(home), readOnly)
}

func openStoresIn(dir string, readOnly bool) (*stores, error) {
	if readOnly {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("ledger stores: %w", err)
		}
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("ledger stores: %w", err)
	}
	if err := checkFormat(dir, readOnly); err != nil {
		return nil, err
	}
	o := func() *opt.Options { return storeOptions(readOnly) }
	if !readOnly {
		for _, name := range []string{"blockstore", "state", "evidence", "ledger"} {
			if err := clearUnborn(filepath.Join(dir, name+".db")); err != nil {
				return nil, err
			}
		}
	}
	s := &stores{}
	fail := func(name string, err error) (*stores, error) {
		err = errors.Join(openError(filepath.Join(dir, name+".db"), err), s.close())
		return nil, err
	}
	for _, d := range []struct {
		name string
		db   **lateDB
	}{{"blockstore", &s.blocks}, {"state", &s.state}, {"evidence", &s.evidence}} {
		db, err := dbm.NewGoLevelDBWithOpts(d.name, dir, o())
		if err != nil {
			return fail(d.name, err)
		}
		*d.db = &lateDB{DB: db}
	}
	db, err := iavldb.NewGoLevelDBWithOpts("ledger", dir, o())
	if err != nil {
		return fail("ledger", err)
	}
	s.ledger = &treeDB{DB: db}
	return s, nil
}

// clearUnborn removes what the power left of a database that was being made.
func clearUnborn(path string) (err error) {
	if _, err := os.Stat(path); err != nil {
		return nil // it is not there
	}
	stor, err := storage.OpenFile(path, false)
	if err != nil {
		return openError(path, err)
	}
	defer func() { err = errors.Join(err, stor.Close()) }()
	if err := unborn(stor); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return nil
}

// unborn empties a storage in which a database was begun and has no entry
// point yet, so that goleveldb makes it; by itself it takes those files for
// the rest of a database and gives up. A log or table that holds anything may
// be such a rest, and stays.
func unborn(stor storage.Storage) error {
	if _, err := stor.GetMeta(); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	files, err := stor.List(storage.TypeAll)
	if err != nil {
		return err
	}
	for _, fd := range files {
		if fd.Type != storage.TypeJournal && fd.Type != storage.TypeTable {
			continue
		}
		r, err := stor.Open(fd)
		if err != nil {
			return err
		}
		n, err := r.Seek(0, io.SeekEnd)
		if err = errors.Join(err, r.Close()); err != nil || n > 0 {
			return err
		}
	}
	for _, fd := range files {
		if err := stor.Remove(fd); err != nil {
			return err
		}
	}
	return nil
}

func openError(path string, err error) error {
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("open %s: %w", path, ErrLocked)
	}
	return fmt.Errorf("open %s: %w%s", path, err, refetch(filepath.Dir(path)))
}

// refetch says what to do about a folder that cannot be read.
func refetch(dir string) string {
	return " (the ledger can be fetched again from the neighbours: move the folder " + dir + " away)"
}

// damaged names the folder in an error of what is stored there, and says what
// to do if it is the disk's.
func damaged(home string, err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	if strings.Contains(err.Error(), "corrupt") { // CometBFT panics with formatted errors
		hint = refetch(dataDir(home))
	}
	return fmt.Errorf("%s: %w%s", dataDir(home), err, hint)
}

// scan reads every entry of every store, so that each block of each file is
// compared with its checksum, and reports the stores that cannot be read.
func (s *stores) scan(ctx context.Context) (bad []error) {
	read := func(name string, open func() (iterator, error)) {
		it, err := open()
		if err == nil {
			for ; it.Valid() && ctx.Err() == nil; it.Next() {
			}
			err = errors.Join(it.Error(), it.Close())
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("store %s: %w", name, err))
		}
	}
	for name, db := range map[string]*lateDB{"blockstore": s.blocks, "state": s.state, "evidence": s.evidence} {
		read(name, func() (iterator, error) { return db.Iterator(nil, nil) })
	}
	read("ledger", func() (iterator, error) { return s.ledger.Iterator(nil, nil) })
	return bad
}

// iterator is what the two libraries' iterators have in common.
type iterator interface {
	Valid() bool
	Next()
	Error() error
	Close() error
}

// close closes the stores that are open, the ledger state first: whatever the
// others hold beyond it is applied again by the handshake of the next start.
func (s *stores) close() error {
	var errs []error
	if s.ledger != nil {
		errs = append(errs, s.ledger.Close())
	}
	for _, d := range []*lateDB{s.evidence, s.state, s.blocks} {
		if d != nil {
			errs = append(errs, d.Close())
		}
	}
	return errors.Join(errs...)
}

// lateDB outlives its database. CometBFT's gossip routines notice that they
// should stop only at their next turn, and a read error makes them panic;
// after Close they find an empty store instead.
type lateDB struct {
	dbm.DB
	mu     sync.RWMutex
	closed bool
}

func (d *lateDB) Get(k []byte) ([]byte, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return nil, nil
	}
	return d.DB.Get(k)
}

func (d *lateDB) Has(k []byte) (bool, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return false, nil
	}
	return d.DB.Has(k)
}

// Close waits for reads under way. A second Close does nothing.
func (d *lateDB) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.DB.Close()
}
