package domain

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"slices"
	"strings"
)

// Scope says which names a rule is about. The values are bits.
type Scope uint8

// Scopes.
const (
	Self Scope = 1 << iota // the name itself
	Subs                   // the names below it
	Tree = Self | Subs
)

// MaxNames of one set.
const MaxNames = 16 << 20

// Set holds names in 5 to 6 bytes each. It answers from 38 bits of a keyed
// hash beside the bucket's: at a million names one question in 10^10 is
// answered wrongly with yes, and never one with no. That will do for blocking,
// not for allowing. It is immutable and safe for concurrent use.
//
//	hash ── high bits ──► bucket ──► eight entries of 38 bits of hash, 2 bits of Scope
type Set struct {
	seed  maphash.Seed
	shift uint     // hash >> shift is the bucket
	start []uint32 // of each bucket's entries; one more at the end
	entry []byte   // 5 bytes each, little-endian
	n     int
}

const (
	entryBytes = 5
	perBucket  = 8 // on average
	scopeBits  = 2
	mask       = 1<<(8*entryBytes) - 1<<scopeBits
)

// Len returns how many rules the set holds.
func (s *Set) Len() int { return s.n }

// Bytes returns the memory that the set takes.
func (s *Set) Bytes() int { return len(s.entry) + 4*len(s.start) }

// Lookup returns the rule about name, which must be canonical: the suffix of
// name that is listed and with which scope. The longest suffix wins.
func (s *Set) Lookup(name string) (suffix string, scope Scope, ok bool) {
	if s == nil || s.n == 0 {
		return "", 0, false
	}
	for want, rest := Self, name; ; want = Subs {
		if scope = s.find(rest); scope&want != 0 {
			return rest, scope, true
		}
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return "", 0, false
		}
		rest = rest[i+1:]
	}
}

func (s *Set) find(name string) Scope {
	h := maphash.String(s.seed, name)
	b := h >> s.shift
	print := h & mask
	for i, end := int(s.start[b])*entryBytes, int(s.start[b+1])*entryBytes; i < end; i += entryBytes {
		e := s.entry[i : i+entryBytes : i+entryBytes]
		v := uint64(e[0]) | uint64(e[1])<<8 | uint64(e[2])<<16 | uint64(e[3])<<24 | uint64(e[4])<<32
		if v&mask == print {
			return Scope(v &^ mask)
		}
	}
	return 0
}

// builder collects names for a Set.
type builder struct {
	seed   maphash.Seed
	hashes []uint64 // the last two bits are the scope
}

func newBuilder() *builder { return &builder{seed: maphash.MakeSeed()} }

func (b *builder) add(name string, scope Scope) {
	b.hashes = append(b.hashes, maphash.String(b.seed, name)&^(1<<scopeBits-1)|uint64(scope))
}

// build makes the set. The builder is used up: its memory is sorted in place.
func (b *builder) build() *Set {
	slices.Sort(b.hashes)
	// The same name in two scopes is one entry with both.
	merged := b.hashes[:0]
	for h := range groups(b.hashes) {
		merged = append(merged, h)
	}
	n := len(merged)
	buckets := max(1, bits.Len(uint(n/perBucket)))
	s := &Set{seed: b.seed, shift: 64 - uint(buckets), n: n}
	s.start = make([]uint32, 1<<buckets+1)
	s.entry = make([]byte, n*entryBytes)
	for i, h := range merged {
		s.start[h>>s.shift+1]++
		v := h & (1<<(8*entryBytes) - 1)
		e := s.entry[i*entryBytes:]
		e[0], e[1], e[2], e[3], e[4] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32)
	}
	for i := 1; i < len(s.start); i++ {
		s.start[i] += s.start[i-1]
	}
	b.hashes = nil
	return s
}

// groups yields sorted hashes with the scopes of equal ones joined.
func groups(sorted []uint64) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for i := 0; i < len(sorted); {
			h := sorted[i]
			for i++; i < len(sorted) && sorted[i]&^(1<<scopeBits-1) == h&^(1<<scopeBits-1); i++ {
				h |= sorted[i]
			}
			if !yield(h) {
				return
			}
		}
	}
}
