package packet

import (
	"math/bits"
	"time"
)

// ways is how many entries share a set.
const ways = 4

// digest stands for a key: 128 bits of its hash under a secret seed, so that
// two keys do not meet, by chance or on purpose.
type digest struct{ a, b uint64 }

// table holds at most as many entries as it was made with and allocates
// nothing after that. When a set is full, a new entry takes the place of the
// one that was not touched for longest.
type table[V any] struct {
	seed  uint64
	mask  uint64
	keys  [][ways]digest // of each set, one cache line; zero where nothing is
	slots []slot[V]
}

type slot[V any] struct {
	seen time.Duration
	val  V
}

// newTable returns a table of n entries, rounded up to a power of two.
func newTable[V any](n int, seed uint64) *table[V] {
	sets := uint64(1) << bits.Len(uint((n-1)/ways))
	return &table[V]{seed: seed, mask: sets - 1, keys: make([][ways]digest, sets), slots: make([]slot[V], sets*ways)}
}

// find returns the value of a key, or nil. It does not count as touching.
func (t *table[V]) find(k digest) *V {
	set := k.a & t.mask
	for i := range &t.keys[set] {
		if t.keys[set][i] == k {
			return &t.slots[set*ways+uint64(i)].val
		}
	}
	return nil
}

// at returns the value of a key and touches it. If it is fresh, the value is
// whatever the entry held whose place it takes: the caller sets it.
func (t *table[V]) at(k digest, now time.Duration) (v *V, fresh bool) {
	s, fresh := t.slot(k)
	s.seen = now
	return &s.val, fresh
}

// slot is at for who keeps the place of a key for its next use; it is to be
// touched then.
func (t *table[V]) slot(k digest) (s *slot[V], fresh bool) {
	set := k.a & t.mask
	keys := &t.keys[set]
	for i := range keys {
		if keys[i] == k {
			return &t.slots[set*ways+uint64(i)], false
		}
	}
	slots := t.slots[set*ways : set*ways+ways]
	oldest := 0
	for i := range keys {
		if keys[i] == (digest{}) {
			oldest = i
			break
		}
		if slots[i].seen < slots[oldest].seen {
			oldest = i
		}
	}
	keys[oldest] = k
	return &slots[oldest], true
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
