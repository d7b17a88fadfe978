package microgrid

import (
	"bytes"
	"slices"
	"strings"
)

// Store is a ledger.State in memory for many entries: a map to find one, and
// for iteration sorted runs of keys by their first bytes, so that a new key
// moves little. Not safe for concurrent use.
type Store struct {
	entries map[string]*entry
	runs    []*run // ascending by head, none empty
	size    int64
}

// head is how many bytes of a key choose its run: the table and, in most
// tables, the slot.
const head = 9

type run struct {
	head    string
	entries []*entry // ascending by key
}

type entry struct{ key, value []byte }

func headOf(key []byte) string { return string(key[:min(len(key), head)]) }

func (s *Store) find(head string) (int, bool) {
	return slices.BinarySearchFunc(s.runs, head, func(r *run, h string) int { return strings.Compare(r.head, h) })
}

func (r *run) find(key []byte) (int, bool) {
	return slices.BinarySearchFunc(r.entries, key, func(e *entry, k []byte) int { return bytes.Compare(e.key, k) })
}

// Get implements ledger.State.
func (s *Store) Get(key []byte) []byte {
	if e := s.entries[string(key)]; e != nil {
		return e.value
	}
	return nil
}

// Set implements ledger.State.
func (s *Store) Set(key, value []byte) {
	if e := s.entries[string(key)]; e != nil {
		s.size += int64(len(value) - len(e.value))
		e.value = bytes.Clone(value)
		return
	}
	if s.entries == nil {
		s.entries = map[string]*entry{}
	}
	e := &entry{bytes.Clone(key), bytes.Clone(value)}
	s.entries[string(key)] = e
	s.size += int64(len(key) + len(value))
	i, ok := s.find(headOf(key))
	if !ok {
		s.runs = slices.Insert(s.runs, i, &run{head: headOf(key)})
	}
	r := s.runs[i]
	j, _ := r.find(key)
	r.entries = slices.Insert(r.entries, j, e)
}

// Delete implements ledger.State.
func (s *Store) Delete(key []byte) {
	e := s.entries[string(key)]
	if e == nil {
		return
	}
	delete(s.entries, string(key))
	s.size -= int64(len(e.key) + len(e.value))
	i, _ := s.find(headOf(key))
	r := s.runs[i]
	j, _ := r.find(key)
	if r.entries = slices.Delete(r.entries, j, j+1); len(r.entries) == 0 {
		s.runs = slices.Delete(s.runs, i, i+1)
	}
}

// Iterate implements ledger.State.
func (s *Store) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	p := string(prefix)
	i, _ := s.find(headOf(prefix))
	for ; i < len(s.runs); i++ {
		r := s.runs[i]
		if h := r.head; !strings.HasPrefix(h, p) && !strings.HasPrefix(p, h) {
			if h > p {
				return
			}
			continue
		}
		j, _ := r.find(prefix)
		for ; j < len(r.entries); j++ {
			e := r.entries[j]
			if !bytes.HasPrefix(e.key, prefix) {
				break
			}
			if !fn(e.key, e.value) {
				return
			}
		}
	}
}

// Bytes is the length of all keys and values.
func (s *Store) Bytes() int64 { return s.size }
