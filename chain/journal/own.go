package journal

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/joulegate/joulegate/chain"
)

// Recovered tells what Recover found.
type Recovered struct {
	Answered int            // neighbours that answered
	Adopted  int            // own blocks that came back from neighbours
	NewEpoch bool           // why: see the package comment
	Next     chain.Position // of the next own block
}

// Recover asks neighbours for this gateway's newest block and decides where
// its chain continues. It must be called once after every start, with those
// neighbours that could be reached; Append refuses until then. Without
// neighbours it succeeds too, in a new epoch.
func (j *Journal) Recover(ctx context.Context, neighbours []Neighbour) (Recovered, error) {
	type answer struct {
		from   Neighbour
		newest *chain.Signed // nil: knows none
	}
	var (
		mu      sync.Mutex
		answers []answer
		wg      sync.WaitGroup
	)
	gate := make(chan struct{}, 8)
	for _, n := range neighbours {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			b, err := j.askNewest(ctx, n)
			if err != nil {
				j.log.Warn("neighbour did not tell our newest block", "peer", n.Name, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answers = append(answers, answer{n, b})
		})
	}
	wg.Wait()

	// Before a new epoch begins: of the old one nobody will speak any more.
	if _, err := j.retire(true); err != nil {
		return Recovered{}, err
	}
	r := Recovered{Answered: len(answers)}
	before, _ := j.ownHead()
	var newest *chain.Signed
	for _, a := range answers {
		if a.newest == nil {
			continue
		}
		if newest == nil || newest.Position().Less(a.newest.Position()) {
			newest = a.newest
		}
		if before.head().Less(a.newest.Position()) {
			n, err := j.syncAuthor(ctx, a.from, j.self, nil)
			r.Adopted += n
			if err != nil {
				j.log.Warn("own blocks not fetched", "peer", a.from.Name, "err", err)
			}
		}
	}

	j.mu.Lock()
	defer j.mu.Unlock()
	head, some := j.authors[j.self].newest()
	behind := newest != nil && before.head().Less(newest.Position())
	elsewhere := j.cfg.Known()
	j.lost = j.lost || before.head().Less(elsewhere) || before.Epoch < j.cfg.Restored
	// A block that neighbours hold where another one is held here was signed
	// by a journal that this one does not know.
	forked := false
	for _, a := range answers {
		if a.newest != nil && !behind {
			forked = forked || j.contradicts(a.newest)
		}
	}
	switch {
	case !some && newest == nil && !j.lost && (len(answers) > 0 || j.cfg.Fresh):
		j.next, j.prev = chain.Position{Epoch: 1, Number: 1}, chain.Hash{}
	case len(answers) == 0, j.lost, behind, forked:
		last := max(head.Epoch, elsewhere.Epoch)
		if r := j.cfg.Restored; r > 0 {
			last = max(last, r-1)
		}
		if newest != nil {
			last = max(last, newest.Epoch)
		}
		j.openEpoch(last)
		r.NewEpoch = true
	default:
		j.next, j.prev = chain.Position{Epoch: head.Epoch, Number: head.Head + 1}, head.Hash
	}
	j.lost = false
	r.Next = j.next
	j.log.Info("journal recovered", "answered", r.Answered, "adopted", r.Adopted, "new_epoch", r.NewEpoch, "next", r.Next.String())
	return r, nil
}

func (j *Journal) ownHead() (segment, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.authors[j.self].newest()
}

// contradicts reports whether another block than b is held at b's place. Of
// one that was let go nobody can tell. The caller holds j.mu.
func (j *Journal) contradicts(b *chain.Signed) bool {
	if a := j.authors[j.self]; a != nil {
		if i, ok := a.find(b.Epoch); ok && b.Number < a.segments[i].First {
			return false
		}
	}
	have, err := j.Block(b.Author, b.Position())
	return err != nil || have == nil || have.Hash != b.Hash
}

// openEpoch moves to an epoch that no block has used: later than last, and
// not earlier than the clock.
func (j *Journal) openEpoch(last uint32) {
	epoch := last + 1
	if now := j.cfg.Now().Unix(); now > int64(epoch) && now < 1<<32 {
		epoch = uint32(now)
	}
	j.next, j.prev = chain.Position{Epoch: epoch, Number: 1}, chain.Hash{}
	j.count.epochs.Add(1)
}

// Next returns the position of the next own block, zero before Recover.
func (j *Journal) Next() chain.Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.next
}

// Append signs records into own blocks, one if they fit, and returns them
// when they are on the disk: all or none. On an error the same records may be
// appended again; they will be in a new epoch, because a failed write may have
// landed all the same.
func (j *Journal) Append(records []chain.Record) ([]*chain.Signed, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.next == (chain.Position{}) {
		return nil, ErrNotRecovered
	}
	if j.lost {
		head, _ := j.authors[j.self].newest()
		j.openEpoch(max(head.Epoch, j.next.Epoch))
		j.lost = false
	}
	groups, err := split(records)
	if err != nil {
		return nil, err
	}
	now := j.cfg.Now().UnixMilli()
	next, prev := j.next, j.prev
	blocks := make([]*chain.Signed, len(groups))
	for i, g := range groups {
		b, err := chain.SignBlock(chain.Block{
			Chain: j.cfg.ChainID, Epoch: next.Epoch, Number: next.Number, Prev: prev, Time: now, Records: g,
		}, j.cfg.Key)
		if err != nil {
			return nil, fmt.Errorf("journal: sign block %s: %w", next, err)
		}
		blocks[i], prev = b, b.Hash
		next.Number++
	}
	if err := j.writeOwn(blocks); err != nil {
		j.count.writeErrors.Add(1)
		j.openEpoch(next.Epoch)
		return nil, err
	}
	j.next, j.prev = next, prev
	j.count.appended.Add(uint64(len(blocks)))
	return blocks, nil
}

// writeOwn writes all blocks in one synced batch.
func (j *Journal) writeOwn(blocks []*chain.Signed) error {
	a := j.author(j.self)
	first, last := blocks[0], blocks[len(blocks)-1]
	i, ok := a.find(first.Epoch)
	s := segment{Epoch: first.Epoch, First: first.Number}
	if ok {
		s = a.segments[i]
	}
	s.Head, s.Hash = last.Number, last.Hash
	batch := j.db.NewBatch()
	defer batch.Close()
	for _, b := range blocks {
		s.Bytes += int64(len(b.Raw))
		if err := batch.Set(keyBlock(j.self, b.Position()), b.Raw); err != nil {
			return err
		}
	}
	if err := batch.Set(keySegment(j.self, s.Epoch), chain.Marshal(s)); err != nil {
		return err
	}
	if err := batch.WriteSync(); err != nil {
		return fmt.Errorf("journal: write own block %s: %w", first.Position(), err)
	}
	a.set(s)
	return nil
}

// split groups records into blocks that are small enough.
func split(records []chain.Record) ([][]chain.Record, error) {
	if len(records) == 0 {
		return nil, errors.New("journal: append nothing")
	}
	const room = chain.MaxBlockBytes - 512 // header, signature, framing
	var groups [][]chain.Record
	size := 0
	for i, r := range records {
		n := len(chain.Marshal(r))
		if n > room {
			return nil, fmt.Errorf("journal: record %d of kind %d has %d bytes, at most %d fit a block", i, r.Kind, n, room)
		}
		if len(groups) == 0 || size+n > room || len(groups[len(groups)-1]) == chain.MaxRecords {
			groups, size = append(groups, nil), 0
		}
		last := len(groups) - 1
		groups[last] = append(groups[last], r)
		size += n
	}
	return groups, nil
}
