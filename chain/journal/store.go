package journal

import (
	"encoding/binary"
	"fmt"
	"slices"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/joulegate/joulegate/chain"
)

// Keys of the database. Positions are big-endian, so that iteration is in
// the order of the chain.
//
//	m                          meta
//	s author epoch             segment
//	b author epoch number      envelope of a block
//	e author epoch number      Evidence
//	t sequence                 readingsEntry, oldest first
//	r root                     raw readings
//	k name                     saved value
var keyMeta = []byte("m")

func keySegment(a chain.Key, epoch uint32) []byte {
	return binary.BigEndian.AppendUint32(append([]byte("s"), a[:]...), epoch)
}

func keyAt(prefix byte, a chain.Key, p chain.Position) []byte {
	k := binary.BigEndian.AppendUint32(append([]byte{prefix}, a[:]...), p.Epoch)
	return binary.BigEndian.AppendUint64(k, p.Number)
}

func keyBlock(a chain.Key, p chain.Position) []byte    { return keyAt('b', a, p) }
func keyEvidence(a chain.Key, p chain.Position) []byte { return keyAt('e', a, p) }

func keyAuthor(prefix byte, a chain.Key) []byte { return append([]byte{prefix}, a[:]...) }

// prefixEnd is the first key after all that start with prefix.
func prefixEnd(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil // after everything
}

// segment is what is held of one epoch of one author: the blocks First..Head,
// linked without a gap. First = Head+1 when all have been dropped; they are
// known then and not fetched again.
type segment struct {
	Epoch uint32     `cbor:"1,keyasint"`
	First uint64     `cbor:"2,keyasint"`
	Head  uint64     `cbor:"3,keyasint"`
	Hash  chain.Hash `cbor:"4,keyasint"` // of Head
	Bytes int64      `cbor:"5,keyasint"`
	// Booked is how far the ledger was seen to hold an own epoch.
	Booked uint64 `cbor:"6,keyasint,omitempty"`
}

func (s segment) head() chain.Position { return chain.Position{Epoch: s.Epoch, Number: s.Head} }

type author struct {
	segments []segment // by epoch
	held     map[chain.Position]*chain.Signed
	evidence int
}

func (a *author) bytes() (n int64) {
	for _, s := range a.segments {
		n += s.Bytes
	}
	return n
}

// find returns the index of the epoch's segment and whether it exists.
func (a *author) find(epoch uint32) (int, bool) {
	return slices.BinarySearchFunc(a.segments, epoch, func(s segment, e uint32) int {
		switch {
		case s.Epoch < e:
			return -1
		case s.Epoch > e:
			return 1
		}
		return 0
	})
}

// newest returns the last segment.
func (a *author) newest() (segment, bool) {
	if a == nil || len(a.segments) == 0 {
		return segment{}, false
	}
	return a.segments[len(a.segments)-1], true
}

func (j *Journal) author(k chain.Key) *author {
	a := j.authors[k]
	if a == nil {
		a = &author{held: map[chain.Position]*chain.Signed{}}
		j.authors[k] = a
	}
	return a
}

// store writes one block that links to what is held, dropping old ones of a
// neighbour that exceed the limit, in one batch. Memory changes only when the
// batch has been written. The caller holds j.mu.
func (j *Journal) store(b *chain.Signed, sync bool) error {
	a := j.author(b.Author)
	segs := slices.Clone(a.segments)
	i, ok := a.find(b.Epoch)
	if !ok {
		segs = slices.Insert(segs, i, segment{Epoch: b.Epoch, First: b.Number})
	}
	batch := j.db.NewBatch()
	defer batch.Close()
	if ok && b.Number != segs[i].Head+1 { // past a hole: a segment has none
		if err := j.dropSegment(batch, b.Author, segs[i]); err != nil {
			return err
		}
		segs[i] = segment{Epoch: b.Epoch, First: b.Number}
	}
	segs[i].Head, segs[i].Hash = b.Number, b.Hash
	segs[i].Bytes += int64(len(b.Raw))
	if err := batch.Set(keyBlock(b.Author, b.Position()), b.Raw); err != nil {
		return err
	}
	if err := batch.Set(keySegment(b.Author, b.Epoch), chain.Marshal(segs[i])); err != nil {
		return err
	}
	var err error
	if b.Author != j.self {
		if segs, err = j.trim(batch, b, segs); err != nil {
			return err
		}
	}
	if sync {
		err = batch.WriteSync()
	} else {
		err = batch.Write()
	}
	if err != nil {
		return fmt.Errorf("journal: write block %s of %s: %w", b.Position(), b.Author.Short(), err)
	}
	a.segments = segs
	return nil
}

// trim adds to batch what keeps the author within its limits: oldest first,
// never the block just written.
func (j *Journal) trim(batch dbm.Batch, b *chain.Signed, segs []segment) ([]segment, error) {
	for len(segs) > MaxEpochs {
		if err := j.dropSegment(batch, b.Author, segs[0]); err != nil {
			return nil, err
		}
		segs = segs[1:]
	}
	total := (&author{segments: segs}).bytes()
	for i := range segs {
		s := &segs[i]
		changed := false
		for total > j.cfg.NeighbourBytes && s.First <= s.Head && (chain.Position{Epoch: s.Epoch, Number: s.First}) != b.Position() {
			key := keyBlock(b.Author, chain.Position{Epoch: s.Epoch, Number: s.First})
			raw, err := j.db.Get(key)
			if err != nil {
				return nil, err
			}
			if err := batch.Delete(key); err != nil {
				return nil, err
			}
			total -= int64(len(raw))
			s.Bytes -= int64(len(raw))
			s.First++
			changed = true
			j.count.dropped.Add(1)
		}
		if changed {
			if err := batch.Set(keySegment(b.Author, s.Epoch), chain.Marshal(*s)); err != nil {
				return nil, err
			}
		}
	}
	return segs, nil
}

func (j *Journal) dropSegment(batch dbm.Batch, a chain.Key, s segment) error {
	for n := s.First; n <= s.Head; n++ {
		if err := batch.Delete(keyBlock(a, chain.Position{Epoch: s.Epoch, Number: n})); err != nil {
			return err
		}
		j.count.dropped.Add(1)
	}
	return batch.Delete(keySegment(a, s.Epoch))
}

// each calls f for every key with prefix until it returns an error.
func (j *Journal) each(prefix []byte, f func(key, value []byte) error) error {
	it, err := j.db.Iterator(prefix, prefixEnd(prefix))
	if err != nil {
		return err
	}
	defer it.Close()
	for ; it.Valid(); it.Next() {
		if err := f(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	return it.Error()
}

func (j *Journal) loadSegments() error {
	err := j.each([]byte("s"), func(key, value []byte) error {
		var s segment
		if len(key) != 37 {
			return fmt.Errorf("segment %x: a key of %d bytes, want 37", key, len(key))
		}
		if err := chain.Unmarshal(value, &s); err != nil {
			return fmt.Errorf("segment %x: %w", key, err)
		}
		a := j.author(chain.Key(key[1:33]))
		a.segments = append(a.segments, s) // keys are sorted by epoch
		return nil
	})
	if err != nil {
		return err
	}
	return j.each([]byte("e"), func(key, _ []byte) error {
		if len(key) == 45 {
			j.author(chain.Key(key[1:33])).evidence++
		}
		return nil
	})
}

// tailsMatch reports whether every segment's last block is there and is the
// one that the segment names.
func (j *Journal) tailsMatch() bool {
	for k, a := range j.authors {
		for _, s := range a.segments {
			if s.First > s.Head {
				continue
			}
			raw, err := j.db.Get(keyBlock(k, s.head()))
			if err != nil || raw == nil {
				return false
			}
			// The hash is enough: what has this hash was verified before.
			if e, err := chain.OpenEnvelope(raw); err != nil || chain.Sum(e.Body) != s.Hash {
				return false
			}
		}
	}
	return true
}

// rebuild derives the segments from the blocks that are readable, keeping of
// each epoch the longest run that starts with its first readable block.
// What follows a gap is deleted: neighbours have it, or nobody does.
func (j *Journal) rebuild() error {
	batch := j.db.NewBatch()
	defer batch.Close()
	booked := map[uint32]uint64{}
	if a := j.authors[j.self]; a != nil {
		for _, s := range a.segments {
			booked[s.Epoch] = s.Booked
		}
	}
	for k, a := range j.authors {
		for _, s := range a.segments {
			if err := batch.Delete(keySegment(k, s.Epoch)); err != nil {
				return err
			}
		}
		a.segments = nil
	}
	err := j.each([]byte("b"), func(key, raw []byte) error {
		b, err := chain.ParseBlock(slices.Clone(raw))
		if err != nil || !slices.Equal(keyBlock(b.Author, b.Position()), key) {
			return batch.Delete(slices.Clone(key))
		}
		a := j.author(b.Author)
		i, ok := a.find(b.Epoch)
		switch {
		case !ok:
			a.segments = slices.Insert(a.segments, i, segment{Epoch: b.Epoch, First: b.Number})
		case a.segments[i].Head+1 != b.Number || a.segments[i].Hash != b.Prev:
			return batch.Delete(slices.Clone(key))
		}
		s := &a.segments[i]
		s.Head, s.Hash, s.Bytes = b.Number, b.Hash, s.Bytes+int64(len(raw))
		return nil
	})
	if err != nil {
		return err
	}
	for k, a := range j.authors {
		for i := range a.segments {
			s := &a.segments[i]
			if k == j.self {
				s.Booked = booked[s.Epoch]
			}
			if err := batch.Set(keySegment(k, s.Epoch), chain.Marshal(*s)); err != nil {
				return err
			}
		}
	}
	return batch.WriteSync()
}

// Heads returns the newest position held of each author, own included.
func (j *Journal) Heads() map[chain.Key]chain.Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := map[chain.Key]chain.Position{}
	for k, a := range j.authors {
		if s, ok := a.newest(); ok {
			out[k] = s.head()
		}
	}
	return out
}

// Range returns envelopes of an author's blocks from a position on, in order
// and across epochs, at most limit and at most MaxReply bytes.
func (j *Journal) Range(a chain.Key, from chain.Position, limit int) ([][]byte, error) {
	return j.scan(keyBlock(a, from), prefixEnd(keyAuthor('b', a)), limit)
}

func (j *Journal) scan(start, end []byte, limit int) ([][]byte, error) {
	it, err := j.db.Iterator(start, end)
	if err != nil {
		return nil, fmt.Errorf("journal: read blocks: %w", err)
	}
	defer it.Close()
	var out [][]byte
	for size := 0; it.Valid() && len(out) < limit; it.Next() {
		raw := it.Value()
		if size += len(raw) + 8; size > MaxReply-64 {
			break
		}
		out = append(out, slices.Clone(raw))
	}
	if err := it.Error(); err != nil {
		return nil, fmt.Errorf("journal: read blocks: %w", err)
	}
	return out, nil
}

// Block returns one block, or nil when it is not held.
func (j *Journal) Block(a chain.Key, p chain.Position) (*chain.Signed, error) {
	raw, err := j.db.Get(keyBlock(a, p))
	if err != nil || raw == nil {
		return nil, err
	}
	return chain.ParseBlock(raw)
}

// OwnAfter returns own blocks after a position, in order and across epochs,
// at most limit: the outbox of whoever submits them to the ledger. The
// position of the last one submitted is the cursor.
func (j *Journal) OwnAfter(p chain.Position, limit int) ([]*chain.Signed, error) {
	p.Number++
	raws, err := j.Range(j.self, p, limit)
	if err != nil {
		return nil, err
	}
	out := make([]*chain.Signed, len(raws))
	for i, raw := range raws {
		if out[i], err = chain.ParseBlock(raw); err != nil {
			return nil, fmt.Errorf("journal: own block on disk: %w", err)
		}
	}
	return out, nil
}

// OwnNewest returns the newest own blocks across epochs, at most limit, the
// newest first.
func (j *Journal) OwnNewest(limit int) ([]*chain.Signed, error) {
	start := keyAuthor('b', j.self)
	it, err := j.db.ReverseIterator(start, prefixEnd(start))
	if err != nil {
		return nil, fmt.Errorf("journal: read own blocks: %w", err)
	}
	defer it.Close()
	var out []*chain.Signed
	for ; it.Valid() && len(out) < limit; it.Next() {
		b, err := chain.ParseBlock(slices.Clone(it.Value()))
		if err != nil {
			return nil, fmt.Errorf("journal: own block on disk: %w", err)
		}
		out = append(out, b)
	}
	if err := it.Error(); err != nil {
		return nil, fmt.Errorf("journal: read own blocks: %w", err)
	}
	return out, nil
}

// Evidence is a proof of equivocation: two blocks that one author signed and
// that cannot both be in its chain.
type Evidence struct {
	A []byte `cbor:"1,keyasint"` // held first
	B []byte `cbor:"2,keyasint"`
}

// Evidence returns the equivocations kept against an author.
func (j *Journal) Evidence(a chain.Key) ([]Evidence, error) {
	var out []Evidence
	err := j.each(keyAuthor('e', a), func(_, value []byte) error {
		var e Evidence
		if err := chain.Unmarshal(value, &e); err != nil {
			return fmt.Errorf("journal: evidence: %w", err)
		}
		out = append(out, e)
		return nil
	})
	return out, err
}
