package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sort"
	"strings"

	"github.com/joulegate/joulegate/chain"
)

// State is the ordered key-value store that the ledger runs on: a Merkle tree
// on a gateway, a map in tests. It returns no errors: an implementation whose
// storage fails panics with an error, because a ledger that cannot read its state must not
// go on. Keys and values are never empty. Neither side changes a slice after
// it has been handed over.
//
// An implementation need not be safe for concurrent use.
type State interface {
	// Get returns the value of key, or nil.
	Get(key []byte) []byte
	// Set stores a value.
	Set(key, value []byte)
	// Delete removes a key; an absent one is ignored.
	Delete(key []byte)
	// Iterate calls fn for every key that starts with prefix, ascending by
	// bytes, until fn returns false. fn must not change the state.
	Iterate(prefix []byte, fn func(key, value []byte) bool)
}

// table is a map with a sorted index that is completed only when it is needed.
// A nil value marks a key as deleted.
type table struct {
	values map[string][]byte
	keys   []string // every key of values; the first sorted of them in order
	sorted int
}

func newTable() table { return table{values: map[string][]byte{}} }

func (t *table) put(key string, value []byte) {
	if _, ok := t.values[key]; !ok {
		if n := len(t.keys); t.sorted == n && (n == 0 || t.keys[n-1] < key) {
			t.sorted++
		}
		t.keys = append(t.keys, key)
	}
	t.values[key] = value
}

// remove forgets a key without a mark.
func (t *table) remove(key string) {
	if _, ok := t.values[key]; !ok {
		return
	}
	delete(t.values, key)
	t.sort()
	i := sort.SearchStrings(t.keys, key)
	t.keys = slices.Delete(t.keys, i, i+1)
	t.sorted--
}

// sort puts the keys that came since it was last called in their places.
// Among many keys a few are new: those are sorted, and merged from the back.
func (t *table) sort() {
	fresh := slices.Clone(t.keys[t.sorted:])
	slices.Sort(fresh)
	old := t.sorted
	for at := len(t.keys) - 1; len(fresh) > 0; at-- {
		if last := len(fresh) - 1; old == 0 || t.keys[old-1] < fresh[last] {
			t.keys[at], fresh = fresh[last], fresh[:last]
		} else {
			old--
			t.keys[at] = t.keys[old]
		}
	}
	t.sorted = len(t.keys)
}

// withPrefix returns the keys that start with prefix, ascending.
func (t *table) withPrefix(prefix string) []string {
	t.sort()
	lo := sort.SearchStrings(t.keys, prefix)
	hi := lo + sort.Search(len(t.keys)-lo, func(i int) bool { return !strings.HasPrefix(t.keys[lo+i], prefix) })
	return slices.Clone(t.keys[lo:hi])
}

// MapState is a State in memory, for tests and for offline work.
type MapState struct{ Overlay }

// NewMapState returns an empty state.
func NewMapState() *MapState { return &MapState{Overlay{own: newTable()}} }

// Overlay is a scratch state: it reads through to its parent and keeps writes
// to itself until Commit hands them down. A block, a transaction and a record
// each run on one, so that what is refused leaves no trace. It is not safe for
// concurrent use, not even for reading.
type Overlay struct {
	parent State // nil: bottom
	own    table
	trace  *trace // nil: movements are not noted
}

// NewOverlay returns an empty overlay on parent. The parent must not change
// while the overlay is in use.
func NewOverlay(parent State) *Overlay {
	o := &Overlay{parent: parent, own: newTable()}
	if p, ok := parent.(*Overlay); ok && p.trace != nil {
		o.trace = &trace{cause: p.trace.cause, ref: p.trace.ref}
	}
	return o
}

// Get implements State.
func (o *Overlay) Get(key []byte) []byte {
	if v, ok := o.own.values[string(key)]; ok || o.parent == nil {
		return v
	}
	return o.parent.Get(key)
}

// Set implements State.
func (o *Overlay) Set(key, value []byte) { o.own.put(string(key), bytes.Clone(value)) }

// Delete implements State.
func (o *Overlay) Delete(key []byte) {
	if o.parent == nil {
		o.own.remove(string(key))
		return
	}
	o.own.put(string(key), nil)
}

// Iterate implements State.
func (o *Overlay) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	mine := o.own.withPrefix(string(prefix))
	// own emits this overlay's keys below limit ("" = all) and reports
	// whether fn wants more.
	own := func(limit string, bounded bool) bool {
		for len(mine) > 0 && (!bounded || mine[0] < limit) {
			k := mine[0]
			mine = mine[1:]
			if v := o.own.values[k]; v != nil && !fn([]byte(k), v) {
				return false
			}
		}
		return true
	}
	more := true
	if o.parent != nil {
		o.parent.Iterate(prefix, func(key, value []byte) bool {
			if more = own(string(key), true); !more {
				return false
			}
			if len(mine) > 0 && mine[0] == string(key) {
				more = own(mine[0]+"\x00", true)
				return more
			}
			more = fn(key, value)
			return more
		})
	}
	if more {
		own("", false)
	}
}

// Commit hands what differs to the parent, ascending by key, and empties the
// overlay. A value that is as before is not written again: in a versioned
// tree that would change the hash.
func (o *Overlay) Commit() {
	o.changed(func(key, _, after []byte) {
		if after != nil {
			o.parent.Set(key, after)
		} else {
			o.parent.Delete(key)
		}
	})
	if p, ok := o.parent.(*Overlay); ok && o.trace != nil && p.trace != nil {
		p.trace.moves = append(p.trace.moves, o.trace.moves...)
	}
	o.Discard()
}

// Discard forgets every write.
func (o *Overlay) Discard() {
	o.own = newTable()
	if o.trace != nil {
		o.trace.moves = nil
	}
}

// changed calls fn for every key whose value differs from the parent's,
// ascending, with both values (nil: absent). fn must not write to the overlay.
func (o *Overlay) changed(fn func(key, before, after []byte)) {
	o.own.sort()
	for _, s := range o.own.keys {
		k := []byte(s)
		if before, after := o.parent.Get(k), o.own.values[s]; !bytes.Equal(before, after) {
			fn(k, before, after)
		}
	}
}

// unchanged reports whether Commit would change nothing.
func (o *Overlay) unchanged() bool {
	for k, after := range o.own.values { // in any order: only whether there is one
		if !bytes.Equal(o.parent.Get([]byte(k)), after) {
			return false
		}
	}
	return true
}

// StateHash returns the SHA-256 over all keys and values in order, each with
// its length in front. It compares states of any implementation; the app hash
// of a gateway is its tree's root instead.
func StateHash(st State) chain.Hash {
	h := sha256.New()
	var n [4]byte
	st.Iterate(nil, func(key, value []byte) bool {
		for _, b := range [][]byte{key, value} {
			binary.BigEndian.PutUint32(n[:], uint32(len(b)))
			h.Write(n[:])
			h.Write(b)
		}
		return true
	})
	return chain.Hash(h.Sum(nil))
}
