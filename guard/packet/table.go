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
	slots []slot[K, V]
}

type slot[K key, V any] struct {
	key  K
	used bool
	seen time.Duration
	val  V
}

// newTable returns a table of n entries, rounded up to a power of two.
func newTable[K key, V any](n int, seed uint64) *table[K, V] {
	sets := uint64(1) << bits.Len(uint((n-1)/ways))
	return &table[K, V]{seed: seed, mask: sets - 1, slots: make([]slot[K, V], sets*ways)}
}

func (t *table[K, V]) set(k K) []slot[K, V] {
	i := (k.hash(t.seed) & t.mask) * ways
	return t.slots[i : i+ways : i+ways]
}

// find returns k's value, or nil. It does not count as touching.
func (t *table[K, V]) find(k K) *V {
	set := t.set(k)
	for i := range set {
		if s := &set[i]; s.key == k && s.used {
			return &s.val
		}
	}
	return nil
}

// at returns k's value and touches it. If it is fresh, the value is whatever
// the entry held whose place it takes: the caller sets it.
func (t *table[K, V]) at(k K, now time.Duration) (v *V, fresh bool) {
	set := t.set(k)
	oldest := &set[0]
	for i := range set {
		s := &set[i]
		if s.key == k && s.used {
			s.seen = now
			return &s.val, false
		}
		if oldest.used && (!s.used || s.seen < oldest.seen) {
			oldest = s
		}
	}
	oldest.key, oldest.used, oldest.seen = k, true, now
	return &oldest.val, true
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
