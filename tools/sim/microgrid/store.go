package microgrid

import (
	"cmp"
	"slices"
	"strings"
)

// Store is a ledger.State in memory for many entries: sorted runs of keys by
// their first bytes, so that a write moves little. Not safe for concurrent use.
type Store struct {
	runs []*run // ascending by head, none empty
	size int64
}

// head is how many bytes of a key choose its run: the table and, in most
// tables, the slot.
const head = 9

type run struct {
	head    string
	entries []entry // ascending by key
}

type entry struct {
	key   string
	value []byte
}

func headOf(key string) string { return key[:min(len(key), head)] }

func (s *Store) find(head string) (int, bool) {
	return slices.BinarySearchFunc(s.runs, head, func(r *run, h string) int { return strings.Compare(r.head, h) })
}

func (r *run) find(key string) (int, bool) {
	return slices.BinarySearchFunc(r.entries, key, func(e entry, k string) int { return cmp.Compare(e.key, k) })
}

// Get implements ledger.State.
func (s *Store) Get(key []byte) []byte {
	k := string(key)
	i, ok := s.find(headOf(k))
	if !ok {
		return nil
	}
	if j, ok := s.runs[i].find(k); ok {
		return s.runs[i].entries[j].value
	}
	return nil
}

// Set implements ledger.State.
func (s *Store) Set(key, value []byte) {
	k := string(key)
	i, ok := s.find(headOf(k))
	if !ok {
		s.runs = slices.Insert(s.runs, i, &run{head: headOf(k)})
	}
	r := s.runs[i]
	j, ok := r.find(k)
	if ok {
		s.size += int64(len(value) - len(r.entries[j].value))
		r.entries[j].value = slices.Clone(value)
		return
	}
	s.size += int64(len(k) + len(value))
	r.entries = slices.Insert(r.entries, j, entry{k, slices.Clone(value)})
}

// Delete implements ledger.State.
func (s *Store) Delete(key []byte) {
	k := string(key)
	i, ok := s.find(headOf(k))
	if !ok {
		return
	}
	r := s.runs[i]
	if j, ok := r.find(k); ok {
		s.size -= int64(len(k) + len(r.entries[j].value))
		r.entries = slices.Delete(r.entries, j, j+1)
	}
	if len(r.entries) == 0 {
		s.runs = slices.Delete(s.runs, i, i+1)
	}
}

// Iterate implements ledger.State.
func (s *Store) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	p := string(prefix)
	i, _ := s.find(headOf(p))
	for ; i < len(s.runs); i++ {
		r := s.runs[i]
		if h := r.head; !strings.HasPrefix(h, p) && !strings.HasPrefix(p, h) {
			if h > p {
				return
			}
			continue
		}
		j, _ := r.find(p)
		for ; j < len(r.entries); j++ {
			e := r.entries[j]
			if !strings.HasPrefix(e.key, p) {
				break
			}
			if !fn([]byte(e.key), e.value) {
				return
			}
		}
	}
}

// Bytes is the length of all keys and values.
func (s *Store) Bytes() int64 { return s.size }
