package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/proof"
	"github.com/joulegate/joulegate/chain/tree"
	"github.com/joulegate/joulegate/meter"
)

// History is what a gateway can prove of its ledger: blocks First to Tip and
// the state after block Tip-1. It is used by one goroutine and does not change.
type History interface {
	Range() (first, tip int64)
	// Way returns the changes of validators in the blocks before First.
	Way() ([]*chain.Checkpoint, error)
	Header(height int64) (chain.LedgerHeader, error)
	Txs(height int64) ([][]byte, error)
	// Checkpoint returns a block's votes.
	Checkpoint(height int64) (*chain.Checkpoint, error)
	State() ledger.State
	// Prove returns the branch to an entry of the state or, where there is
	// none, to its neighbours.
	Prove(key []byte) ([]tree.Branch, error)
}

// Readings are the raw readings that a gateway still has.
type Readings interface {
	// Readings returns the readings under a record's root, nil if they are
	// not here (any more).
	Readings(root chain.Hash) ([][]byte, error)
}

// Profiles are the files by which registers are decoded.
type Profiles interface {
	// Profile returns the file of a profile's id, and which variant of it
	// the id names.
	Profile(id string) (proof.Profile, bool)
}

// Query says what a bundle is about. The zero value means everything.
type Query struct {
	Session chain.ID // one session; zero: none
	FromMs  int64    // Unix ms; with ToMs a range of time
	ToMs    int64    // 0: no range
}

// Source is where a bundle is made from.
type Source struct {
	Chain       string
	Genesis     chain.Hash // of the genesis file
	SlotSeconds int64
	History     History
	Readings    Readings // nil: none
	Profiles    Profiles // nil: none
	Progress    func(block, of int64)
}

// ErrDropped is returned for what reaches back to blocks that are not here.
var ErrDropped = errors.New("blocks have been dropped here")

// dropped says from where on there are blocks.
func (s *Source) dropped() error {
	first, _ := s.History.Range()
	h, err := s.History.Header(first)
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: the first is %d of %s, slot %d", ErrDropped, first, time.Unix(0, h.Time).UTC().Format("2006-01-02 15:04:05 MST"), chain.SlotAt(h.Time/1e6, s.SlotSeconds))
}

// ErrNoSession is returned for a session that the ledger does not know.
var ErrNoSession = errors.New("the ledger knows no such session")

// WriteBundle writes what q asks for and returns the bundle's size. It holds
// the entries of the state that it proves in memory, nothing else that grows.
func WriteBundle(ctx context.Context, w io.Writer, src Source, q Query) (int64, error) {
	claim, err := src.claim(q)
	if err != nil {
		return 0, err
	}
	out, err := proof.NewWriter(w, claim)
	if err != nil {
		return 0, err
	}
	c := &collector{src: src, claim: claim, out: out}
	for _, step := range []func(context.Context) error{c.way, c.blocks, c.state, c.readings} {
		if err := step(ctx); err != nil {
			return 0, err
		}
	}
	return out.Close()
}

// claim finds the blocks and slots that belong to a query.
func (s *Source) claim(q Query) (proof.Claim, error) {
	first, tip := s.History.Range()
	c := proof.Claim{Version: proof.Version, Chain: s.Chain, Genesis: s.Genesis, First: first, To: tip - 1, Tip: tip}
	switch {
	case q.Session != (chain.ID{}):
		v, ok := ledger.SessionOf(s.History.State(), q.Session)
		if !ok {
			return c, fmt.Errorf("session %s: %w", q.Session, ErrNoSession)
		}
		if v.OpenedHeight < first {
			return c, fmt.Errorf("session %s was opened in block %d: %w", q.Session, v.OpenedHeight, s.dropped())
		}
		c.Session = q.Session
		c.First = v.OpenedHeight
		if v.ClosedHeight > 0 {
			c.To = min(v.ClosedHeight, tip-1)
		}
		c.FromSlot = max(chain.SlotAt(v.OpenedMs, s.SlotSeconds)-1, 0)
		c.ToSlot = max(v.Reported, c.FromSlot)
		return c, nil
	case q.ToMs != 0 || q.FromMs != 0:
		if q.ToMs <= q.FromMs || q.FromMs < 0 {
			return c, errors.New("the range of time ends before it begins")
		}
		c.FromSlot, c.ToSlot = chain.SlotAt(q.FromMs, s.SlotSeconds), chain.SlotAt(q.ToMs-1, s.SlotSeconds)
		from, err := s.height(q.FromMs)
		if err != nil {
			return c, err
		}
		if from == first && first > 1 { // block first-1 may belong to it
			return c, fmt.Errorf("the range begins too early: %w", s.dropped())
		}
		to, err := s.height(q.ToMs)
		if err != nil {
			return c, err
		}
		// What was measured in the range is recorded after it: up to the
		// block in which its last slot was cleared.
		for _, v := range ledger.SlotsBetween(s.History.State(), c.FromSlot, c.ToSlot) {
			to = max(to, v.Height)
		}
		c.First, c.To = min(from, tip-1), min(to, tip-1)
		return c, nil
	}
	c.All, c.FromSlot, c.ToSlot = true, 0, proof.AllSlots
	return c, nil
}

// height returns the first block at or after a time, at most the last.
func (s *Source) height(ms int64) (int64, error) {
	lo, hi := s.History.Range()
	for lo < hi {
		mid := lo + (hi-lo)/2
		h, err := s.History.Header(mid)
		if err != nil {
			return 0, err
		}
		if h.Time/1e6 < ms {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, nil
}

// collector writes one bundle.
type collector struct {
	src      Source
	claim    proof.Claim
	out      *proof.Writer
	sessions []chain.ID
	roots    []chain.Hash
}

// way writes how trust comes from the genesis to the first block: every
// change of validators before it.
func (c *collector) way(ctx context.Context) error {
	before, err := c.src.History.Way()
	if err != nil {
		return err
	}
	for _, p := range before {
		if err := c.out.Checkpoint(p); err != nil {
			return err
		}
	}
	first, _ := c.src.History.Range()
	for h := first; h < c.claim.First; h++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		hd, err := c.src.History.Header(h)
		if err != nil {
			return err
		}
		if hd.Next != hd.Validators {
			if err := c.votes(h); err != nil {
				return err
			}
		}
		c.progress(h)
	}
	return nil
}

func (c *collector) votes(h int64) error {
	p, err := c.src.History.Checkpoint(h)
	if err != nil {
		return err
	}
	return c.out.Checkpoint(p)
}

func (c *collector) progress(h int64) {
	if c.src.Progress != nil && h%64 == 0 {
		c.src.Progress(h, c.claim.Tip)
	}
}

func (c *collector) blocks(ctx context.Context) error {
	for h := c.claim.First; h <= c.claim.Tip; h++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		hd, err := c.src.History.Header(h)
		if err != nil {
			return err
		}
		b := proof.Block{Header: hd}
		if h <= c.claim.To {
			txs, err := c.src.History.Txs(h)
			if err != nil {
				return err
			}
			b.Txs = proof.Pack(txs)
			want := proof.WantedBy(txs)
			c.sessions = append(c.sessions, want.Sessions...)
			c.roots = append(c.roots, want.Roots...)
		}
		if err := c.out.Block(b); err != nil {
			return err
		}
		if hd.Next != hd.Validators || h == c.claim.Tip {
			if err := c.votes(h); err != nil {
				return err
			}
		}
		c.progress(h)
	}
	return nil
}

// state proves the entries that the claim names.
func (c *collector) state(ctx context.Context) error {
	var told tree.Tree
	prove := func(k []byte) error {
		branches, err := c.src.History.Prove(k)
		for _, b := range branches {
			told.Add(b)
		}
		return errors.Join(err, ctx.Err())
	}
	span := func(lo, hi []byte) error {
		var keys [][]byte
		c.each(lo, hi, func(k []byte) { keys = append(keys, k) })
		for _, k := range keys {
			if err := prove(k); err != nil {
				return err
			}
		}
		// The ends of the range, or the neighbours around them.
		err := prove(lo)
		if hi != nil {
			err = errors.Join(err, prove(hi))
		}
		return err
	}
	if c.claim.All {
		if err := span([]byte{0}, nil); err != nil {
			return err
		}
		return c.out.State(&told)
	}
	for _, p := range ledger.CommonPrefixes() {
		if err := span(p, tree.After(p)); err != nil {
			return err
		}
	}
	for _, r := range ledger.SlotRanges(c.claim.FromSlot, c.claim.ToSlot) {
		if err := span(r[0], r[1]); err != nil {
			return err
		}
	}
	ids := c.sessions
	if c.claim.Session != (chain.ID{}) {
		ids = append(ids, c.claim.Session)
	}
	for _, id := range ids {
		if err := errors.Join(prove(ledger.SessionKey(id)), prove(ledger.BillKey(id))); err != nil {
			return err
		}
	}
	return c.out.State(&told)
}

// each calls fn for the keys from lo up to, without, hi.
func (c *collector) each(lo, hi []byte, fn func(k []byte)) {
	// The tables' first byte, and what of the rest lo and hi share, narrow
	// the walk.
	n := 0
	for n < len(lo) && n < len(hi) && lo[n] == hi[n] {
		n++
	}
	c.src.History.State().Iterate(lo[:n], func(k, _ []byte) bool {
		if hi != nil && bytes.Compare(k, hi) >= 0 {
			return false
		}
		if bytes.Compare(k, lo) >= 0 {
			fn(bytes.Clone(k))
		}
		return true
	})
}

// readings writes the raw readings that are still here, after the profiles
// that decode them.
func (c *collector) readings(ctx context.Context) error {
	if c.src.Readings == nil {
		return nil
	}
	profiles := map[string]bool{}
	var found []chain.Hash
	seen := map[chain.Hash]bool{}
	for _, root := range c.roots {
		if seen[root] {
			continue
		}
		seen[root] = true
		leaves, err := c.src.Readings.Readings(root)
		if err != nil {
			return err
		}
		if len(leaves) == 0 {
			continue
		}
		found = append(found, root)
		for _, l := range leaves {
			var r meter.Reading
			if err := chain.Unmarshal(l, &r); err != nil {
				return fmt.Errorf("reading under %s: %w", root, err)
			}
			if c.src.Profiles == nil || profiles[r.Profile] || len(r.Raw) == 0 {
				continue
			}
			profiles[r.Profile] = true
			if p, ok := c.src.Profiles.Profile(r.Profile); ok && p.Hash() == chain.Hash(r.ProfileHash) {
				if err := c.out.Profile(p); err != nil {
					return err
				}
			}
		}
	}
	for _, root := range found {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		leaves, err := c.src.Readings.Readings(root)
		if err != nil {
			return err
		}
		if len(leaves) == 0 {
			continue // dropped meanwhile, to make room
		}
		if err := c.out.Readings(proof.Readings{Root: root, Leaves: leaves}); err != nil {
			return err
		}
	}
	return nil
}
