package journal

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/joulegate/joulegate/chain"
	"github.com/syndtr/goleveldb/leveldb"
	leveldberrors "github.com/syndtr/goleveldb/leveldb/errors"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// Limits. What happens beyond each is said with it.
const (
	MaxRange        = 1024      // blocks of one catch-up reply; the asker asks again
	MaxReply        = 1 << 20   // bytes of a catch-up reply, likewise
	MaxRequest      = 256       // bytes of a catch-up request; larger is refused
	MaxEpochs       = 16        // epochs remembered per neighbour; the oldest is dropped
	MaxHeld         = 64        // blocks held out of order per author; further ones are ignored
	MaxHeldBytes    = 4 << 20   // of all authors together, likewise
	MaxEvidence     = 16        // equivocations kept per author; further ones are only counted
	MaxRetired      = 256       // own blocks let go at a time, in one batch; the next goes on
	MaxLeaves       = 4096      // raw readings under one root; more is an error
	MaxValue        = 1 << 20   // bytes saved under one key; more is an error
	NeighbourBytes  = 8 << 20   // default of Config.NeighbourBytes
	ReadingsBytes   = 512 << 20 // default of Config.ReadingsBytes
	maxHeadsEpochs  = 4         // newest epochs per author in an exchange of heads
	maxHeadsAuthors = 1000      // authors in an exchange of heads
)

// Verdict is the judgement on a block from outside.
type Verdict uint8

// Verdicts.
const (
	Accept Verdict = 1 + iota // new and valid: pass it on
	Reject                    // no honest neighbour sends this
	Ignore                    // known already, not yet judgeable, or evidence: do not pass it on
)

func (v Verdict) String() string { return [...]string{"none", "accept", "reject", "ignore"}[v] }

// ErrNotRecovered is returned by Append before Recover.
var ErrNotRecovered = errors.New("journal: neighbours have not been asked for the newest block yet")

// Config describes a journal. Functions are called from many goroutines and
// must not call the journal.
type Config struct {
	ChainID string
	Key     ed25519.PrivateKey // device key: author of own blocks

	// Member reports whether blocks of author are kept. nil: everybody's.
	Member func(author chain.Key) bool
	// Neighbours returns whom Run may ask at the moment.
	Neighbours func() []Neighbour
	// Stored, if set, is called after a neighbour's block has been stored, in
	// the order of each author's chain per caller of Accept.
	Stored func(b *chain.Signed)

	// Known, if set, returns the newest own position known otherwise, from
	// the ledger. Recover counts a journal that ends before it as one that
	// has forgotten.
	Known func() chain.Position

	// Fresh says that the device key was made together with this journal, so
	// that no earlier block can exist anywhere: the first epoch is 1 even if
	// no neighbour answers.
	Fresh bool

	// Restored is the Unix time, in seconds, at which the journal came from a
	// backup, 0 if it did not. Blocks that were signed between may be unknown
	// to all who answer: the next one is of an epoch that is not older.
	Restored uint32

	// Retire, if set, tells how far the ledger holds this gateway's chain and
	// the time before which own blocks that it holds need not stay here; zero:
	// they all stay. The ledger's word alone lets a block go, and only for the
	// epoch that it speaks of: one that it has skipped exists nowhere else.
	Retire func() (booked chain.Position, before time.Time)

	NeighbourBytes int64 // kept per neighbour; 0: the default
	ReadingsBytes  int64 // of raw readings kept; 0: the default

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: none
}

// Journal is safe for concurrent use. A method that has returned an error
// has changed nothing unless it says so.
type Journal struct {
	cfg    Config
	log    *slog.Logger
	self   chain.Key
	dir    string
	db     dbm.DB
	lock   *Lock
	count  counters
	nudges chan struct{}
	silent map[string]bool // neighbours by name; Run's own

	mu        sync.Mutex
	authors   map[chain.Key]*author
	heldBytes int
	next      chain.Position // of the next own block; zero before Recover
	prev      chain.Hash
	lost      bool // own blocks may be missing here
	readings  readings
	// stuck are epochs of neighbours whose next block nobody could give in
	// the last round of exchanges. The next round may begin past the hole.
	stuck map[epochOf]bool
}

type epochOf struct {
	author chain.Key
	epoch  uint32
}

// Open opens or makes the journal in dir and takes the folder. A damaged index
// is rebuilt, what is missing then comes back from neighbours; damage inside
// the blocks themselves is an error that names the folder and the remedy.
func Open(dir string, cfg Config) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	lock, err := LockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	db, repaired, err := openDB(dir)
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	j, err := open(db, cfg, repaired)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w; if it is damaged, "+remedy, dir, err), db.Close(), lock.Unlock())
	}
	j.dir, j.lock = dir, lock
	if repaired {
		j.log.Warn("journal was damaged and has been repaired; a new epoch follows", "dir", dir)
	}
	return j, nil
}

const dbName = "blocks"

// storeOptions are the database's. What is longer than the write buffer would
// be a transaction, and goleveldb keeps its write lock when one cannot begin
// because the disk is full or failing: every later write would hang.
func storeOptions() *opt.Options { return &opt.Options{DisableLargeBatchTransaction: true} }

// remedy is what a person does about damage that checksums have found and
// that cannot be mended.
const remedy = "move the folder away and start again: neighbours give back what they have"

func openDB(dir string) (db dbm.DB, repaired bool, err error) {
	path := filepath.Join(dir, dbName+".db")
	db, err = dbm.NewGoLevelDBWithOpts(dbName, dir, storeOptions())
	if leveldberrors.IsCorrupted(err) {
		var raw *leveldb.DB
		if raw, err = leveldb.RecoverFile(path, storeOptions()); err == nil {
			if err = raw.Close(); err == nil {
				repaired = true
				db, err = dbm.NewGoLevelDBWithOpts(dbName, dir, storeOptions())
			}
		}
	}
	if err != nil {
		return nil, false, fmt.Errorf("open journal %s: %w; if it is damaged, "+remedy, path, err)
	}
	return db, repaired, nil
}

// open reads the journal's tables from an open database.
func open(db dbm.DB, cfg Config, damaged bool) (*Journal, error) {
	switch {
	case len(cfg.Key) != ed25519.PrivateKeySize:
		return nil, errors.New("no device key")
	case cfg.ChainID == "" || len(cfg.ChainID) > chain.MaxName:
		return nil, fmt.Errorf("chain id of %d bytes, 1..%d", len(cfg.ChainID), chain.MaxName)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Member == nil {
		cfg.Member = func(chain.Key) bool { return true }
	}
	if cfg.Neighbours == nil {
		cfg.Neighbours = func() []Neighbour { return nil }
	}
	if cfg.Known == nil {
		cfg.Known = func() chain.Position { return chain.Position{} }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.NeighbourBytes == 0 {
		cfg.NeighbourBytes = NeighbourBytes
	}
	if cfg.ReadingsBytes == 0 {
		cfg.ReadingsBytes = ReadingsBytes
	}
	j := &Journal{
		cfg: cfg, log: cfg.Log, db: db, lost: damaged,
		self:    chain.Key(cfg.Key.Public().(ed25519.PublicKey)),
		authors: map[chain.Key]*author{},
		nudges:  make(chan struct{}, 1),
		stuck:   map[epochOf]bool{},
	}
	if err := j.checkMeta(); err != nil {
		return nil, err
	}
	if err := j.loadSegments(); err != nil {
		return nil, err
	}
	if damaged || !j.tailsMatch() {
		j.lost = true
		j.count.repaired.Add(1)
		if err := j.rebuild(); err != nil {
			return nil, err
		}
	}
	return j, j.loadReadings()
}

// meta names what the journal is, so that a folder of another grid or another
// device is refused instead of mixed in.
type meta struct {
	Version uint8     `cbor:"1,keyasint"`
	ChainID string    `cbor:"2,keyasint"`
	Author  chain.Key `cbor:"3,keyasint"`
}

func (j *Journal) checkMeta() error {
	want := meta{chain.Version, j.cfg.ChainID, j.self}
	raw, err := j.db.Get(keyMeta)
	if err != nil {
		return err
	}
	if raw == nil {
		return j.db.SetSync(keyMeta, chain.Marshal(want))
	}
	var have meta
	if err := chain.Unmarshal(raw, &have); err != nil {
		return fmt.Errorf("its description: %w", err)
	}
	if have.Version > want.Version {
		return fmt.Errorf("it is of format %d, this program knows %d: update joulegate, or go back to the program that wrote it", have.Version, want.Version)
	}
	if have != want {
		return fmt.Errorf("it belongs to grid %q, device %s, format %d, not to grid %q, device %s, format %d",
			have.ChainID, have.Author.Short(), have.Version, want.ChainID, want.Author.Short(), want.Version)
	}
	return nil
}

// Run exchanges heads with every neighbour each SyncEvery and after Nudge,
// fetches what is missing, and lets old own blocks go, until ctx ends.
func (j *Journal) Run(ctx context.Context) error {
	tick := time.NewTicker(SyncEvery)
	defer tick.Stop()
	for {
		j.syncAll(ctx)
		for more := true; more && ctx.Err() == nil; {
			var err error
			if more, err = j.retire(false); err != nil {
				j.log.Error("old own blocks are kept for now", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-j.nudges:
		}
	}
}

// Nudge asks Run for an exchange now: a neighbour has connected.
func (j *Journal) Nudge() {
	select {
	case j.nudges <- struct{}{}:
	default: // one is due already
	}
}

// Close releases the folder. Nothing may be called after it.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.db.Close()
	if j.lock != nil {
		err = errors.Join(err, j.lock.Unlock())
	}
	return err
}
