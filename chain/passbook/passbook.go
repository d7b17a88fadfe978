// Package passbook keeps what every account's statement needs: each movement
// of money and discount credit with its block and its reason, and the balances
// after it.
//
//	            ┌ block 812 · 10:15 · −0.312 energy bought in slot 1983104 · 4.113
//	account ────┼ block 814 · 10:22 · −3.200 held for session 5f0c…        · 0.913
//	            └ block 830 · 11:02 · +2.411 released by session 5f0c…     · 3.324
//
// It is an index beside the ledger, not a part of it: the state does not hold
// movements, and no gateway must agree with another about them. It is written
// with every block before that block's state is saved, so it is never behind
// what can be asked; and it outlives the blocks, which a gateway may drop long
// before the law lets it forget (KeepYears). The ledger remains the judge: a
// statement that does not end with the balances of the state is not given out,
// and the book is made anew.
//
// A book that is missing, damaged or behind (a copy of the folder, a state
// fetched from a neighbour) fills itself from the blocks that are here. What
// happened before them cannot be told any more; a statement that would reach
// over such a gap is refused with its dates.
package passbook

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
)

const (
	// KeepYears is how long movements stay: books and vouchers have to be
	// kept for up to ten years from the end of their year.
	KeepYears = 11
	// MaxRows bounds the movements of one statement; a longer one is refused.
	MaxRows = 200_000

	format      = 1
	maxWaiting  = 1024 // blocks held back while the book is filled; the oldest go, they are in the blocks
	maxGaps     = 64   // remembered; with more, the oldest is taken to reach back to the beginning
	cacheBytes  = 1 << 20
	bufferBytes = 1 << 20
	openFiles   = 32
	retry       = 10 * time.Second // after the book could not be filled
	attempts    = 3                // after which the movements that cannot be told are given up
)

// Decisions that callers make.
var (
	// ErrFilling: the book is being filled; see Progress.
	ErrFilling = errors.New("the index of statements is being filled from the blocks")
	// ErrDamaged: the files cannot be read, or do not agree with the ledger.
	ErrDamaged = errors.New("the index of statements is damaged")
)

// GapError says that a statement would reach over movements that nobody here
// can tell any more.
type GapError struct{ From, To time.Time }

func (e *GapError) Error() string {
	since := "the beginning"
	if e.From.UnixMilli() > 0 {
		since = e.From.UTC().Format(time.DateTime + " UTC")
	}
	return fmt.Sprintf("movements from %s to %s are not known here: the blocks that held them have been dropped; ask for a statement that begins after %s",
		since, e.To.UTC().Format(time.DateTime+" UTC"), e.To.UTC().Format(time.DateTime+" UTC"))
}

// Ledger is what a book is filled from.
type Ledger interface {
	// Head returns the height and time of the newest state, and calls fn with
	// that state, which is valid during the call.
	Head(fn func(height int64, at time.Time, st ledger.State)) error
	// Replay executes blocks again, from the newest point at or before the
	// time from at which it can begin, or else the first after it: begin
	// learns which, with the state there. It goes on until fn has had the
	// newest block.
	Replay(ctx context.Context, from time.Time, begin func(height int64, at time.Time, st ledger.State) error, fn func(height int64, at time.Time, moves []ledger.Movement)) error
}

// entry is what a block did to an account. One without rows begins the book,
// or follows a gap.
type entry struct {
	_      struct{}   `cbor:",toarray"`
	Money  chain.Nano // balances after it
	Credit chain.Nano
	Rows   []row
}

type row struct {
	_      struct{} `cbor:",toarray"`
	Amount chain.Nano
	Credit bool
	Cause  string
	Ref    string
}

// span is a time, Unix ms, of which the movements are not known.
type span struct {
	_        struct{} `cbor:",toarray"`
	From, To int64    // exclusive, inclusive
}

// head is where the book stands.
type head struct {
	_      struct{} `cbor:",toarray"`
	Format uint8
	Chain  string
	Height int64
	Ms     int64
	Gaps   []span // ascending
}

var keyHead = []byte{'h'}

// Keys of entries: account, block time, height; ascending in time.
func entryKey(a chain.Account, ms, height int64) []byte {
	k := append([]byte{'e'}, a[:]...)
	k = binary.BigEndian.AppendUint64(k, uint64(ms))
	return binary.BigEndian.AppendUint64(k, uint64(height))
}

const keyLen = 1 + 20 + 8 + 8

func splitKey(k []byte) (a chain.Account, ms, height int64) {
	copy(a[:], k[1:21])
	return a, int64(binary.BigEndian.Uint64(k[21:])), int64(binary.BigEndian.Uint64(k[29:]))
}

// Config is what a Book needs.
type Config struct {
	Dir      string // of its files; made if it is missing
	ChainID  string
	ReadOnly bool // do not write; a book that is missing is an error
	Log      *slog.Logger

	unsynced bool // tests, which lose no power
}

// Book is the index. Its methods are safe for concurrent use.
type Book struct {
	cfg  Config
	wake chan struct{}

	mu      sync.Mutex
	db      dbm.DB
	head    head
	filling bool
	failed  int     // attempts to fill it, in a row
	waiting []block // while filling
	done    int64   // height up to which it is filled
	goal    int64
}

type block struct {
	height int64
	ms     int64
	moves  []ledger.Movement
}

// Open opens a book. One that cannot be read, or is another ledger's, is put
// aside as Dir.damaged and begun anew; with ReadOnly it is ErrDamaged.
func Open(c Config) (*Book, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	b := &Book{cfg: c, wake: make(chan struct{}, 1)}
	err := b.open()
	if err == nil || c.ReadOnly {
		return b, err
	}
	if !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	c.Log.Warn("statements: the index is put aside and made anew", "folder", c.Dir+".damaged", "err", err)
	if err := errors.Join(os.RemoveAll(c.Dir+".damaged"), os.Rename(c.Dir, c.Dir+".damaged")); err != nil {
		return nil, fmt.Errorf("put %s aside: %w", c.Dir, err)
	}
	return b, b.open()
}

func (b *Book) open() (err error) {
	if b.cfg.ReadOnly {
		if _, err := os.Stat(b.cfg.Dir); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	} else if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("statements: %w", err)
	}
	db, err := dbm.NewGoLevelDBWithOpts("statements", b.cfg.Dir, &opt.Options{
		BlockCacheCapacity: cacheBytes, WriteBuffer: bufferBytes, OpenFilesCacheCapacity: openFiles,
		ReadOnly: b.cfg.ReadOnly, ErrorIfMissing: b.cfg.ReadOnly, Strict: opt.DefaultStrict,
		DisableLargeBatchTransaction: true, // one that cannot begin leaves goleveldb's write lock held for ever
	})
	if err != nil {
		return fmt.Errorf("open %s: %w: %w", b.cfg.Dir, ErrDamaged, err)
	}
	raw, err := db.Get(keyHead)
	h := head{Format: format, Chain: b.cfg.ChainID, Height: -1}
	if err == nil && raw != nil {
		err = chain.Unmarshal(raw, &h)
	}
	if err == nil && (h.Format != format || h.Chain != b.cfg.ChainID) {
		err = fmt.Errorf("format %d of ledger %q, want %d of %q", h.Format, h.Chain, format, b.cfg.ChainID)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w: %w", b.cfg.Dir, ErrDamaged, err), db.Close())
	}
	b.db, b.head = db, h
	return nil
}

// Close closes the files. Add does nothing after it.
func (b *Book) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.db == nil {
		return nil
	}
	err := b.db.Close()
	b.db = nil
	return err
}

// Add enters what a block did. The ledger calls it before it saves the block's
// state, in order; a block that is in the book is passed over. It never
// fails: a book that cannot be written is filled again later.
func (b *Book) Add(height int64, at time.Time, moves []ledger.Movement) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := block{height, at.UnixMilli(), moves}
	switch {
	case b.db == nil || height <= b.head.Height:
	case !b.filling && b.head.Height >= 0 && height == b.head.Height+1:
		if err := b.enter(n); err != nil {
			b.cfg.Log.Error("statements: the index cannot be written", "height", height, "err", err)
			b.fillLater(n)
		}
	default:
		b.fillLater(n)
	}
}

// fillLater holds a block back until the book has been filled up to it.
func (b *Book) fillLater(n block) {
	if len(b.waiting) == maxWaiting {
		b.waiting = b.waiting[1:]
	}
	b.waiting = append(b.waiting, n)
	b.filling, b.goal = true, n.height
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// enter writes a block, whole or not at all.
func (b *Book) enter(n block) error {
	type key struct {
		credit     bool
		cause, ref string
	}
	type sum struct {
		rows []row
		at   map[key]int
	}
	sums := map[chain.Account]*sum{}
	var order []chain.Account
	for _, m := range n.moves {
		s := sums[m.Account]
		if s == nil {
			s = &sum{at: map[key]int{}}
			sums[m.Account] = s
			order = append(order, m.Account)
		}
		// A slot's clearing moves a system account once for every house: of
		// those, one row tells one reason. People see every movement.
		k := key{m.Credit, m.Cause, m.Ref}
		i, ok := s.at[k]
		if !ok || !m.Account.IsSystem() {
			i = len(s.rows)
			s.at[k] = i
			s.rows = append(s.rows, row{Credit: m.Credit, Cause: m.Cause, Ref: m.Ref})
		}
		s.rows[i].Amount += m.Amount
	}
	batch := b.db.NewBatch()
	defer batch.Close()
	for _, a := range order {
		last, _, err := b.last(a, math.MaxInt64)
		if err != nil {
			return err
		}
		e := entry{Money: last.Money, Credit: last.Credit}
		for _, r := range sums[a].rows {
			if r.Amount == 0 {
				continue
			}
			if r.Credit {
				e.Credit += r.Amount
			} else {
				e.Money += r.Amount
			}
			e.Rows = append(e.Rows, r)
		}
		if len(e.Rows) > 0 {
			if err := batch.Set(entryKey(a, n.ms, n.height), chain.Marshal(e)); err != nil {
				return err
			}
		}
	}
	h := b.head
	h.Height, h.Ms = n.height, n.ms
	return b.write(batch, h)
}

func (b *Book) write(batch dbm.Batch, h head) error {
	if err := batch.Set(keyHead, chain.Marshal(h)); err != nil {
		return err
	}
	write := batch.WriteSync
	if b.cfg.unsynced {
		write = batch.Write
	}
	if err := write(); err != nil {
		return err
	}
	b.head = h
	return nil
}

// last returns an account's newest entry before a time (Unix ms), a zero one
// if there is none, and its time.
func (b *Book) last(a chain.Account, before int64) (e entry, ms int64, err error) {
	err = b.scan(entryKey(a, 0, 0), entryKey(a, before, 0), true, func(_ chain.Account, at, _ int64, found entry) bool {
		e, ms = found, at
		return false
	})
	return e, ms, err
}

// scan calls fn for the entries from start to before end.
func (b *Book) scan(start, end []byte, backward bool, fn func(a chain.Account, ms, height int64, e entry) bool) error {
	open := b.db.Iterator
	if backward {
		open = b.db.ReverseIterator
	}
	it, err := open(start, end)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer it.Close()
	for ; it.Valid(); it.Next() {
		var e entry
		k := it.Key()
		if len(k) != keyLen {
			return fmt.Errorf("%w: key %x", ErrDamaged, k)
		}
		if err := chain.Unmarshal(it.Value(), &e); err != nil {
			return fmt.Errorf("%w: entry %x: %w", ErrDamaged, k, err)
		}
		a, ms, height := splitKey(k)
		if !fn(a, ms, height, e) {
			return nil
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// accounts returns every account that is in the book.
func (b *Book) accounts() (all []chain.Account, err error) {
	for at := []byte{'e'}; ; {
		var next *chain.Account
		if err := b.scan(at, []byte{'f'}, false, func(a chain.Account, _, _ int64, _ entry) bool {
			next = &a
			return false
		}); err != nil || next == nil {
			return all, err
		}
		all = append(all, *next)
		at = entryKey(*next, math.MaxInt64, math.MaxInt64)
	}
}

// begin enters the balances of a state in place of the movements up to it that
// are not in the book.
func (b *Book) begin(height int64, at time.Time, st ledger.State) error {
	if b.db == nil {
		return ErrDamaged
	}
	ms := at.UnixMilli()
	h := b.head
	known, err := b.accounts()
	if err != nil {
		return err
	}
	now := map[chain.Account]entry{}
	for _, a := range known {
		now[a] = entry{}
	}
	for _, a := range ledger.Balances(st) {
		now[a.Account] = entry{Money: a.Balance, Credit: a.Credits}
	}
	batch := b.db.NewBatch()
	defer batch.Close()
	if height > 0 {
		for a, e := range now {
			if err := batch.Set(entryKey(a, ms, height), chain.Marshal(e)); err != nil {
				return err
			}
		}
		if h.Gaps = append(h.Gaps, span{From: h.Ms, To: ms}); len(h.Gaps) > maxGaps {
			h.Gaps[1].From = 0
			h.Gaps = h.Gaps[1:]
		}
		b.cfg.Log.Warn("statements: earlier movements are not known here", "from", time.UnixMilli(h.Ms).UTC(), "to", at.UTC())
	}
	h.Height, h.Ms = height, ms
	return b.write(batch, h)
}

// Run fills the book whenever it is behind, and drops what nobody has to keep
// any more, until ctx ends.
func (b *Book) Run(ctx context.Context, l Ledger) error {
	b.mu.Lock()
	b.filling = true // until it has been compared
	b.mu.Unlock()
	daily := time.NewTicker(24 * time.Hour)
	defer daily.Stop()
	for {
		var again <-chan time.Time
		if err := b.fill(ctx, l); err != nil && ctx.Err() == nil {
			b.cfg.Log.Error("statements: the index is not complete", "err", err, "again", retry)
			again = time.After(retry)
		}
		if err := b.forget(); err != nil {
			b.cfg.Log.Error("statements: old movements stay", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		case <-daily.C:
		case <-again:
		}
	}
}

// fill brings the book up to the ledger.
func (b *Book) fill(ctx context.Context, l Ledger) error {
	b.mu.Lock()
	if b.db == nil && b.filling { // it could not be made anew
		if err := b.open(); err != nil {
			b.mu.Unlock()
			return err
		}
	}
	behind, from := b.filling, b.head
	b.mu.Unlock()
	if !behind {
		return nil
	}
	var height int64
	if err := l.Head(func(h int64, _ time.Time, _ ledger.State) { height = h }); err != nil {
		return err
	}
	b.mu.Lock()
	b.goal = max(b.goal, height)
	b.mu.Unlock()
	if from.Height < height {
		start := time.Now()
		b.cfg.Log.Info("statements: filling the index", "from", from.Height, "to", height)
		since := time.UnixMilli(from.Ms)
		if from.Height < 0 {
			since = time.Time{}
		}
		var failed error
		err := l.Replay(ctx, since, func(h int64, at time.Time, st ledger.State) error {
			if h <= from.Height {
				return nil
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.begin(h, at, st)
		}, func(h int64, at time.Time, moves []ledger.Movement) {
			if failed == nil {
				failed = b.put(block{h, at.UnixMilli(), moves})
			}
		})
		if err = errors.Join(err, failed); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if b.failed++; b.failed < attempts {
				return err
			}
			// The blocks are not here, or not all: begin with what there is now.
			b.cfg.Log.Warn("statements: blocks cannot be executed again", "err", err)
			var begun error
			if err := l.Head(func(h int64, at time.Time, st ledger.State) {
				b.mu.Lock()
				defer b.mu.Unlock()
				if h > b.head.Height {
					begun = b.begin(h, at, st)
				}
			}); err != nil || begun != nil {
				return errors.Join(err, begun)
			}
		}
		b.cfg.Log.Info("statements: the index is filled", "took", time.Since(start).Round(time.Millisecond))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.db == nil {
		return nil
	}
	for _, n := range b.waiting {
		if n.height <= b.head.Height {
			continue
		}
		if n.height != b.head.Height+1 {
			return fmt.Errorf("block %d follows block %d", n.height, b.head.Height)
		}
		if err := b.enter(n); err != nil {
			return err
		}
	}
	b.waiting, b.filling, b.failed = nil, false, 0
	return nil
}

// put enters a block that was executed again.
func (b *Book) put(n block) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = n.height
	b.goal = max(b.goal, n.height)
	if b.db == nil || n.height <= b.head.Height {
		return nil
	}
	if b.head.Height >= 0 && n.height != b.head.Height+1 {
		return fmt.Errorf("block %d follows block %d", n.height, b.head.Height)
	}
	return b.enter(n)
}

// Progress tells how far the book is filled; done == of: it is.
func (b *Book) Progress() (done, of int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.filling {
		return b.head.Height, b.head.Height
	}
	return min(max(b.done, b.head.Height, 0), b.goal), b.goal + 1
}

// Statement fills in what happened to s.Account from s.FromMs (0: as far back
// as can be told without a gap; then it is set) to before s.ToMs, as of a state of the ledger at a height, in which it has the balances
// now. ErrFilling while the book is behind that; a *GapError where movements
// are not known; ErrDamaged, and the book is made anew, if its balances are
// not the ledger's.
func (b *Book) Statement(s *invoice.Statement, height int64, now ledger.AccountView) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.db == nil || b.filling || b.head.Height < height {
		return ErrFilling
	}
	s.FromMs = max(s.FromMs, 0)
	beginning := s.FromMs == 0 // means from where it can be told
	for _, g := range b.head.Gaps {
		if beginning && s.ToMs > g.To+1 {
			s.FromMs = g.To + 1
		}
		if s.FromMs <= g.To && s.ToMs > g.From+1 {
			return &GapError{time.UnixMilli(max(g.From, 0)), time.UnixMilli(g.To)}
		}
	}
	open, _, err := b.last(s.Account, s.FromMs)
	if err != nil {
		return b.damaged(err)
	}
	s.Opening, s.OpenCredit = open.Money, open.Credit
	s.Closing, s.Credit = open.Money, open.Credit
	s.Rows = []invoice.StatementRow{}
	many := false
	if err := b.scan(entryKey(s.Account, s.FromMs, 0), entryKey(s.Account, s.ToMs, 0), false, func(_ chain.Account, ms, h int64, e entry) bool {
		if h > height {
			return false
		}
		if many = len(s.Rows)+len(e.Rows) > MaxRows; many {
			return false
		}
		for _, r := range e.Rows {
			sum := &s.Closing
			if r.Credit {
				sum = &s.Credit
			}
			*sum += r.Amount
			s.Rows = append(s.Rows, invoice.StatementRow{Height: h, TimeMs: ms, Amount: r.Amount, Credit: r.Credit, Cause: r.Cause, Ref: r.Ref, Balance: *sum})
		}
		if s.Closing != e.Money || s.Credit != e.Credit {
			err = fmt.Errorf("%w: block %d leaves account %s with %d and %d, its entry says %d and %d", ErrDamaged, h, s.Account, s.Closing, s.Credit, e.Money, e.Credit)
			return false
		}
		return true
	}); err != nil {
		return b.damaged(err)
	}
	var end entry // of the book, at height
	if err == nil {
		err = b.scan(entryKey(s.Account, 0, 0), entryKey(s.Account, math.MaxInt64, 0), true, func(_ chain.Account, _, h int64, e entry) bool {
			if end = e; h > height {
				end = entry{}
			}
			return h > height
		})
	}
	switch {
	case err != nil:
		return b.damaged(err)
	case many:
		return fmt.Errorf("more than %d movements: ask for a shorter time", MaxRows)
	case end.Money != now.Balance || end.Credit != now.Credits:
		return b.damaged(fmt.Errorf("%w: it ends with %d and %d for account %s, the ledger with %d and %d", ErrDamaged, end.Money, end.Credit, s.Account, now.Balance, now.Credits))
	}
	return nil
}

// damaged has the book made anew.
func (b *Book) damaged(err error) error {
	if b.cfg.ReadOnly || !errors.Is(err, ErrDamaged) {
		return err
	}
	b.cfg.Log.Error("statements: the index is made anew", "err", err)
	if cerr := b.db.Close(); cerr != nil {
		b.cfg.Log.Warn("statements: close", "err", cerr)
	}
	b.db, b.head, b.done = nil, head{}, 0
	aside := b.cfg.Dir + ".damaged"
	if e := errors.Join(os.RemoveAll(aside), os.Rename(b.cfg.Dir, aside)); e != nil {
		return errors.Join(err, e)
	}
	if e := b.open(); e != nil {
		return errors.Join(err, e)
	}
	b.filling = true
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return fmt.Errorf("%w; it is being made anew from the blocks, ask again", err)
}

// forget drops what is older than KeepYears before the newest block. An
// account's newest entry of that time stays, as its opening balance.
func (b *Book) forget() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.db == nil || b.head.Height < 0 {
		return nil
	}
	cut := time.UnixMilli(b.head.Ms).AddDate(-KeepYears, 0, 0).UnixMilli()
	if cut <= 0 {
		return nil
	}
	all, err := b.accounts()
	if err != nil {
		return err
	}
	batch := b.db.NewBatch()
	defer batch.Close()
	h, dropped := b.head, false
	for _, a := range all {
		var previous []byte
		if err := b.scan(entryKey(a, 0, 0), entryKey(a, cut, 0), false, func(a chain.Account, ms, height int64, e entry) bool {
			if previous != nil {
				err = batch.Delete(previous)
				dropped = true
			}
			previous = bytes.Clone(entryKey(a, ms, height))
			if len(e.Rows) > 0 && err == nil {
				e.Rows = nil
				err = batch.Set(previous, chain.Marshal(e))
				dropped = true
			}
			return err == nil
		}); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
	if !dropped {
		return nil
	}
	for len(h.Gaps) > 0 && h.Gaps[0].To < cut {
		h.Gaps = h.Gaps[1:]
	}
	h.Gaps = append([]span{{To: cut - 1}}, h.Gaps...)
	return b.write(batch, h)
}
