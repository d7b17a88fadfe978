package journal

import (
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// retire notes how far the ledger holds own blocks, and lets the oldest go
// that are booked and old, in one synced batch. It reports whether there may
// be more. What is noted for the newest epoch goes to the disk with the next
// own block, or at once with flush.
func (j *Journal) retire(flush bool) (more bool, err error) {
	if j.cfg.Retire == nil {
		return false, nil
	}
	booked, before := j.cfg.Retire()
	j.mu.Lock()
	defer j.mu.Unlock()
	a := j.authors[j.self]
	if a == nil || len(a.segments) == 0 {
		return false, nil
	}
	segs := slices.Clone(a.segments)
	write := map[int]bool{}
	if i, ok := a.find(booked.Epoch); ok {
		// What is not here is not ours to judge: the ledger can be ahead of a
		// journal that has forgotten.
		if n := min(booked.Number, segs[i].Head); n > segs[i].Booked {
			segs[i].Booked = n
			if flush || i < len(segs)-1 {
				write[i] = true
			}
		}
	}
	batch := j.db.NewBatch()
	defer batch.Close()
	gone := 0
	for i := range segs {
		s := &segs[i]
		last := s.Booked
		if i == len(segs)-1 {
			last = min(last, s.Head-1) // the newest block stays
		}
		for !before.IsZero() && s.First <= last && gone < MaxRetired {
			p := chain.Position{Epoch: s.Epoch, Number: s.First}
			b, err := j.Block(j.self, p)
			if err != nil || b == nil {
				return false, fmt.Errorf("journal: read own block %s: %w", p, err)
			}
			if !time.UnixMilli(b.Time).Before(before) {
				break
			}
			if err := batch.Delete(keyBlock(j.self, p)); err != nil {
				return false, err
			}
			s.Bytes -= int64(len(b.Raw))
			s.First++
			gone++
			write[i] = true
		}
	}
	for i := range write {
		if err := batch.Set(keySegment(j.self, segs[i].Epoch), chain.Marshal(segs[i])); err != nil {
			return false, err
		}
	}
	if len(write) > 0 {
		if err := batch.WriteSync(); err != nil {
			j.count.writeErrors.Add(1)
			return false, fmt.Errorf("journal: let own blocks go: %w", err)
		}
	}
	a.segments = segs
	j.count.retired.Add(uint64(gone))
	return gone == MaxRetired, nil
}
