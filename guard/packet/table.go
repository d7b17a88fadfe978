package packet

import (
	"math/bits"
	"time"
)

// ways is how many entries share a set.
const ways = 4

// key is what a table is looked up by.
type key interface {
	comparable
	hash(seed uint64) uint64
}

// table holds at most as many entries as it was made with and allocates
// nothing after that. When a set is full, a new entry takes the place of the
// one that was not touched for longest.
type table[K key, V any] struct {
	seed  uint64
	mask  uint64
	tags  [][ways]uint32 // of each set: a part of the keys' hashes, 0 where nothing is
	slots []slot[K, V]
}

type slot[K key, V any] struct {
	key  K
	seen time.Duration
	val  V
}

// newTable returns a table of n entries, rounded up to a power of two.
func newTable[K key, V any](n int, seed uint64) *table[K, V] {
	sets := uint64(1) << bits.Len(uint((n-1)/ways))
	return &table[K, V]{seed: seed, mask: sets - 1, tags: make([][ways]uint32, sets), slots: make([]slot[K, V], sets*ways)}
}

// set returns the number of k's set, and k's tag.
func (t *table[K, V]) set(k K) (uint64, uint32) {
	h := k.hash(t.seed)
	return h & t.mask, uint32(h>>32) | 1
}

// find returns k's value, or nil. It does not count as touching.
func (t *table[K, V]) find(k K) *V {
	set, tag := t.set(k)
	for i, g := range &t.tags[set] {
		if g == tag {
			if s := &t.slots[set*ways+uint64(i)]; s.key == k {
				return &s.val
			}
		}
	}
	return nil
}

// at returns k's value and touches it. If it is fresh, the value is whatever
// the entry held whose place it takes: the caller sets it.
func (t *table[K, V]) at(k K, now time.Duration) (v *V, fresh bool) {
	set, tag := t.set(k)
	tags := &t.tags[set]
	slots := t.slots[set*ways : set*ways+ways]
	for i, g := range tags {
		if g == tag {
			if s := &slots[i]; s.key == k {
				s.seen = now
				return &s.val, false
			}
		}
	}
	oldest := 0
	for i := range slots {
		if tags[i] == 0 {
			oldest = i
			break
		}
		if slots[i].seen < slots[oldest].seen {
			oldest = i
		}
	}
	s := &slots[oldest]
	tags[oldest], s.key, s.seen = tag, k, now
	return &s.val, true
}

// distinct counts different things in a fixed number of bits (linear
// counting, Whang 1990); what falls on one bit counts once.
type distinct struct {
	bits [4]uint64
	n    uint16
}

// add takes a hash and tells whether it is new.
func (d *distinct) add(h uint64) bool {
	w, b := h>>6&3, uint64(1)<<(h&63)
	if d.bits[w]&b != 0 {
		return false
	}
	d.bits[w] |= b
	d.n++
	return true
}

// window counts events since it began; it begins anew after its span.
type window struct {
	since time.Duration
	n     uint32
}

// add counts an event and returns how many there were. began tells that this
// one is the first.
func (w *window) add(now, span time.Duration) (n uint32, began bool) {
	if w.n == 0 || now-w.since > span {
		w.since, w.n = now, 0
	}
	w.n++
	return w.n, w.n == 1
}
