package domain

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"iter"
	"math"
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

// Set holds names in less than 6 bytes each. It answers from 38 bits of a
// keyed hash beside those that choose the bucket: at a million names one
// question in 10^10 is answered wrongly with yes, and never one with no. That
// will do for blocking, not for allowing. It is immutable and safe for
// concurrent use.
//
//	hash ── high bits ──► bucket, a cache line: 12 × (38 bits of hash, 2 of Scope), reach
//	                         └─ full: the next ones, up to reach
//
// A question costs one line of memory per suffix of its name, and those are
// fetched at the same time.
type Set struct {
	seed    maphash.Seed
	n       int
	homes   uint64 // buckets that hashes choose; more follow for what is displaced
	fewest  int    // labels of the shortest name
	buckets []bucket
}

type bucket [64]byte // entries, little-endian; at reachAt how many buckets further its own may lie

const (
	entryBytes = 5
	perBucket  = 12
	reachAt    = perBucket * entryBytes
	fill       = 109 // entries in ten buckets: 5.9 bytes a name
	scopeBits  = 2
	entryMask  = 1<<(8*entryBytes) - 1
	printMask  = entryMask &^ (1<<scopeBits - 1)
)

// Len returns how many rules the set holds.
func (s *Set) Len() int { return s.n }

// Bytes returns the memory that the set takes.
func (s *Set) Bytes() int { return len(s.buckets) * len(bucket{}) }

// Lookup returns the rule about name, which must be canonical: the suffix of
// name that is listed and with which scope. The longest suffix wins.
func (s *Set) Lookup(name string) (suffix string, scope Scope, ok bool) {
	if s == nil || s.n == 0 {
		return "", 0, false
	}
	// Suffixes are hashed and their buckets touched before the first one is
	// looked through, so that memory is waited for once and not per suffix.
	const ahead = 8
	var look [ahead]struct {
		hash  uint64
		at    uint8
		reach uint8
	}
	labels := strings.Count(name, ".") + 1
	want, at := Self, 0
	for labels >= s.fewest {
		n := 0
		for ; n < ahead && labels >= s.fewest; n++ {
			l := &look[n]
			l.hash, l.at = maphash.String(s.seed, name[at:]), uint8(at)
			l.reach = s.buckets[s.home(l.hash)][reachAt]
			if labels--; labels == 0 {
				n++
				break
			}
			at += strings.IndexByte(name[at:], '.') + 1
		}
		for i := range look[:n] {
			l := &look[i]
			if scope := s.find(l.hash, int(l.reach)); scope&want != 0 {
				return name[l.at:], scope, true
			}
			want = Subs
		}
	}
	return "", 0, false
}

// home is the bucket that a hash chooses. It grows with the hash.
func (s *Set) home(hash uint64) uint64 {
	h, _ := bits.Mul64(hash, s.homes)
	return h
}

func (s *Set) find(hash uint64, reach int) Scope {
	first := int(s.home(hash))
	print := hash & printMask
	for i := range s.buckets[first : first+reach+1] {
		b := &s.buckets[first+i]
		for e := 0; e < reachAt; e += entryBytes {
			if v := binary.LittleEndian.Uint64(b[e:]); v&printMask == print && v&(1<<scopeBits-1) != 0 {
				return Scope(v & (1<<scopeBits - 1))
			}
		}
	}
	return 0
}

// builder collects names for a Set.
type builder struct {
	seed   maphash.Seed
	hashes []uint64 // the last two bits are the scope
	fewest int
}

func newBuilder() *builder { return &builder{seed: maphash.MakeSeed(), fewest: maxName} }

func (b *builder) add(name string, scope Scope) {
	b.hashes = append(b.hashes, maphash.String(b.seed, name)&^(1<<scopeBits-1)|uint64(scope))
	b.fewest = min(b.fewest, strings.Count(name, ".")+1)
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
	s := &Set{seed: b.seed, n: n, homes: uint64(n*10/fill + 1), fewest: b.fewest}
	// Sorted hashes choose ascending buckets: each takes the next free place
	// at or after its own.
	slots := 0
	for _, h := range merged {
		slots = max(slots, int(s.home(h))*perBucket) + 1
	}
	s.buckets = make([]bucket, max(int(s.homes), (slots+perBucket-1)/perBucket))
	slot := 0
	for _, h := range merged {
		home := int(s.home(h))
		slot = max(slot, home*perBucket)
		at, e := slot/perBucket, s.buckets[slot/perBucket][slot%perBucket*entryBytes:]
		v := h & entryMask
		e[0], e[1], e[2], e[3], e[4] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32)
		if at-home > math.MaxUint8 {
			panic(fmt.Sprintf("domain: a name of bucket %d lies in %d: the hash does not spread", home, at))
		}
		s.buckets[home][reachAt] = max(s.buckets[home][reachAt], uint8(at-home))
		slot++
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
