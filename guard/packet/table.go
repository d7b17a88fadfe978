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
	slots []slot[V] // of one set after the other
}

// slot is an entry. Half of its key's digest says which it is, the other half
// its set; it stands beside what it is looked up for, so that both are one line
// of memory.
type slot[V any] struct {
	key  uint64 // 0: nothing is here
	seen time.Duration
	val  V
}

// newTable returns a table of n entries, rounded up to a power of two.
func newTable[V any](n int, seed uint64) *table[V] {
	sets := uint64(1) << bits.Len(uint((n-1)/ways))
	return &table[V]{seed: seed, mask: sets - 1, slots: make([]slot[V], sets*ways)}
}

// find returns the value of a key, or nil. It does not count as touching.
func (t *table[V]) find(k digest) *V {
	set := t.set(k)
	for i := range set {
		if set[i].key == k.b {
			return &set[i].val
		}
	}
	return nil
}

// at returns the value of a key and touches it. If it is fresh, the value is
// whatever the entry held whose place it takes: the caller sets it.
func (t *table[V]) at(k digest, now time.Duration) (v *V, fresh bool) {
	i, fresh := t.place(k)
	s := &t.slots[i]
	s.seen = now
	return &s.val, fresh
}

// place is at for who keeps the place of a key, a number below that of the
// entries, for its next use; it is to be touched then.
func (t *table[V]) place(k digest) (at int, fresh bool) {
	first, set := int(k.a&t.mask)*ways, t.set(k)
	for i := range set {
		if set[i].key == k.b {
			return first + i, false
		}
	}
	oldest := 0
	for i := range set {
		if set[i].key == 0 {
			oldest = i
			break
		}
		if set[i].seen < set[oldest].seen {
			oldest = i
		}
	}
	set[oldest].key = k.b
	return first + oldest, true
}

// set is where a key may be.
func (t *table[V]) set(k digest) *[ways]slot[V] {
	return (*[ways]slot[V])(t.slots[(k.a&t.mask)*ways:])
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
