package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"sort"

	"github.com/joulegate/joulegate/chain"
)

const (
	nodeHash  = 0
	nodeLeaf  = 1
	nodeInner = 2
)

// maxTreeHeight bounds the state's tree: a balanced tree of this height holds
// more than any disk.
const maxTreeHeight = 64

// Entry is one entry of the state, and the height of the block that wrote it.
type Entry struct {
	Key, Value []byte
	Version    int64
}

// Reader takes a pruned tree node by node. It holds one open node per
// level, however large or deep what it is given.
type Reader struct {
	Root chain.Hash // once Done
	Done bool       // the tree is whole

	open    []openNode
	entries []Entry
	gaps    []int // before which entry something is not told
	gap     bool
}

// Read reads a whole pruned tree of at most limit entries and returns what it
// tells and its root.
func Read(b []byte, limit int) (*State, chain.Hash, error) {
	var r Reader
	if err := r.Feed(b); err != nil {
		return nil, chain.Hash{}, fmt.Errorf("tree: %w", err)
	}
	if !r.Done || r.Len() > limit {
		return nil, chain.Hash{}, fmt.Errorf("tree: whole %t, %d entries of at most %d", r.Done, r.Len(), limit)
	}
	return r.State(), r.Root, nil
}

// Len returns the number of entries so far.
func (t *Reader) Len() int { return len(t.entries) }

type openNode struct {
	height  int8
	size    int64
	version int64
	left    chain.Hash
	half    bool
}

// Feed reads some more nodes, none of them in part.
func (t *Reader) Feed(b []byte) error {
	for len(b) > 0 {
		if t.Done {
			return errors.New("nodes after the tree's end")
		}
		kind := b[0]
		b = b[1:]
		var v uint64
		var err error
		switch kind {
		case nodeHash:
			if len(b) < 32 {
				return ErrShort
			}
			t.gap = true
			h := chain.Hash(b[:32])
			b = b[32:]
			t.complete(h)
		case nodeLeaf:
			var e Entry
			if v, b, err = Uvarint(b); err != nil {
				return err
			}
			e.Version = int64(min(v, math.MaxInt64))
			if e.Key, b, err = Counted(b); err != nil {
				return err
			}
			if e.Value, b, err = Counted(b); err != nil {
				return err
			}
			if len(e.Key) == 0 || len(e.Value) == 0 {
				return errors.New("an empty key or value")
			}
			if n := len(t.entries); n > 0 && bytes.Compare(t.entries[n-1].Key, e.Key) >= 0 {
				return fmt.Errorf("entry %x is out of order", e.Key)
			}
			if t.gap {
				t.gaps = append(t.gaps, len(t.entries))
				t.gap = false
			}
			t.entries = append(t.entries, e)
			t.complete(Leaf(e.Key, e.Value, e.Version))
		case nodeInner:
			if len(b) < 1 {
				return ErrShort
			}
			n := openNode{height: int8(b[0])}
			b = b[1:]
			if v, b, err = Uvarint(b); err != nil {
				return err
			}
			n.size = int64(min(v, math.MaxInt64))
			if v, b, err = Uvarint(b); err != nil {
				return err
			}
			n.version = int64(min(v, math.MaxInt64))
			// Strictly falling heights bound the depth.
			if n.height < 1 || n.height > maxTreeHeight || len(t.open) > 0 && n.height >= t.open[len(t.open)-1].height {
				return fmt.Errorf("a node of height %d", n.height)
			}
			t.open = append(t.open, n)
		default:
			return fmt.Errorf("node of kind %d", kind)
		}
	}
	return nil
}

// complete hands a finished subtree to the node above it.
func (t *Reader) complete(h chain.Hash) {
	for len(t.open) > 0 {
		top := &t.open[len(t.open)-1]
		if !top.half {
			top.left, top.half = h, true
			return
		}
		h = Inner(top.height, top.size, top.version, top.left, h)
		t.open = t.open[:len(t.open)-1]
	}
	t.Root, t.Done = h, true
}

// Counted returns the part that has its length in front.
func Counted(b []byte) (part, rest []byte, err error) {
	n, b, err := Uvarint(b)
	if err != nil || n > uint64(len(b)) {
		return nil, nil, ErrShort
	}
	return b[:n:n], b[n:], nil
}

// State is the part of a state that a pruned tree tells. Reading what it does
// not tell is remembered in Unknown, never mistaken for "not there".
type State struct {
	entries []Entry
	gaps    []int
	Unknown []byte // first key or prefix that was asked for and is not told
}

// State returns what has been read.
func (t *Reader) State() *State {
	if t.gap {
		t.gaps = append(t.gaps, len(t.entries))
	}
	return &State{entries: t.entries, gaps: t.gaps}
}

// Span returns the entries from lo up to, without, hi; nil hi: to the end.
func (s *State) Span(lo, hi []byte) []Entry {
	from, to := s.span(lo, hi)
	return s.entries[from:to]
}

func (s *State) span(lo, hi []byte) (from, to int) {
	at := func(k []byte) int {
		return sort.Search(len(s.entries), func(i int) bool { return bytes.Compare(s.entries[i].Key, k) >= 0 })
	}
	if from, to = at(lo), len(s.entries); hi != nil {
		to = max(at(hi), from)
	}
	return from, to
}

// Told reports whether nothing between lo and hi is left out: from the entry
// before lo to the first at or after hi all leaves are neighbours.
func (s *State) Told(lo, hi []byte) bool {
	from, to := s.span(lo, hi)
	if from < len(s.entries) && bytes.Equal(s.entries[from].Key, lo) {
		from++ // its own place is certain
	}
	i := sort.SearchInts(s.gaps, from)
	return i == len(s.gaps) || s.gaps[i] > to
}

// Len returns the number of entries.
func (s *State) Len() int { return len(s.entries) }

// Version returns the height of the block that wrote an entry.
func (s *State) Version(key []byte) (int64, bool) {
	i, _ := s.span(key, nil)
	if i == len(s.entries) || !bytes.Equal(s.entries[i].Key, key) {
		return 0, false
	}
	return s.entries[i].Version, true
}

// Get returns the value under key; nil for none.
func (s *State) Get(key []byte) []byte {
	i, _ := s.span(key, nil)
	if i < len(s.entries) && bytes.Equal(s.entries[i].Key, key) {
		return s.entries[i].Value
	}
	if s.Unknown == nil && !s.Told(key, append(bytes.Clone(key), 0)) {
		s.Unknown = bytes.Clone(key)
	}
	return nil
}

// Iterate calls fn with the entries under prefix, ascending, while it returns
// true.
func (s *State) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	end := After(prefix)
	if s.Unknown == nil && !s.Told(prefix, end) {
		s.Unknown = append([]byte{}, prefix...)
	}
	from, to := s.span(prefix, end)
	for _, e := range s.entries[from:to] {
		if !fn(e.Key, e.Value) {
			return
		}
	}
}

// Set panics: a proven state is not written.
func (s *State) Set(key, _ []byte) { panic(fmt.Sprintf("tree: write of %x", key)) }

// Delete panics.
func (s *State) Delete(key []byte) { s.Set(key, nil) }

// After returns the first key after all keys with prefix p, nil for none.
func After(p []byte) []byte {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] != 0xff {
			end := bytes.Clone(p[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}

// Branch is an entry and the way from the tree's root to it.
type Branch struct {
	Entry
	Path []Step // from the root down
}

// Step is an inner node on the way, and the hash of the child that is not.
type Step struct {
	Height        int8
	Size, Version int64
	Right         bool // the way goes right
	Sibling       chain.Hash
}

// Tree gathers branches of one state into a pruned tree.
type Tree struct{ root *node }

type node struct {
	hash        chain.Hash // of what is not told
	entry       *Entry
	step        *Step
	left, right *node
}

// Add adds a branch.
func (t *Tree) Add(b Branch) {
	at := &t.root
	for i := range b.Path {
		s := b.Path[i]
		if *at == nil || (*at).step == nil {
			n := &node{step: &s}
			if other := (&node{hash: s.Sibling}); s.Right {
				n.left = other
			} else {
				n.right = other
			}
			*at = n
		}
		if s.Right {
			at = &(*at).right
		} else {
			at = &(*at).left
		}
	}
	*at = &node{entry: &b.Entry}
}

// Frames calls fn with the tree in pre-order, in pieces of about max bytes
// that split no node.
func (t *Tree) Frames(size int, fn func([]byte) error) error {
	var buf []byte
	stack := []*node{t.root}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		switch {
		case n.entry != nil:
			e := n.entry
			buf = binary.AppendUvarint(append(buf, nodeLeaf), uint64(e.Version))
			buf = append(binary.AppendUvarint(buf, uint64(len(e.Key))), e.Key...)
			buf = append(binary.AppendUvarint(buf, uint64(len(e.Value))), e.Value...)
		case n.step != nil:
			buf = append(buf, nodeInner, byte(n.step.Height))
			buf = binary.AppendUvarint(buf, uint64(n.step.Size))
			buf = binary.AppendUvarint(buf, uint64(n.step.Version))
			stack = append(stack, n.right, n.left)
		default:
			buf = append(append(buf, nodeHash), n.hash[:]...)
		}
		if len(buf) >= size {
			if err := fn(buf); err != nil {
				return err
			}
			buf = nil
		}
	}
	if len(buf) == 0 {
		return nil
	}
	return fn(buf)
}

// Inner is the hash of an inner node of the state's tree.
func Inner(height int8, size, version int64, left, right chain.Hash) chain.Hash {
	b := make([]byte, 0, 96)
	b = binary.AppendVarint(b, int64(height))
	b = binary.AppendVarint(b, size)
	b = binary.AppendVarint(b, version)
	b = append(append(b, 32), left[:]...)
	b = append(append(b, 32), right[:]...)
	return chain.Sum(b)
}

// Leaf is the hash of an entry.
func Leaf(key, value []byte, version int64) chain.Hash {
	v := chain.Sum(value)
	b := make([]byte, 0, 64+len(key))
	b = binary.AppendVarint(b, 0)
	b = binary.AppendVarint(b, 1)
	b = binary.AppendVarint(b, version)
	b = append(binary.AppendUvarint(b, uint64(len(key))), key...)
	b = append(append(b, 32), v[:]...)
	return chain.Sum(b)
}

// ErrShort is returned for bytes that end in the middle.
var ErrShort = errors.New("ends too early")

// Uvarint reads an unsigned LEB128 in its shortest form.
func Uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n > 1 && n != (bits.Len64(v)+6)/7 {
		return 0, nil, ErrShort
	}
	return v, b[n:], nil
}

// Bytes returns the whole tree in pre-order.
func (t *Tree) Bytes() (b []byte) {
	_ = t.Frames(math.MaxInt, func(part []byte) error { b = part; return nil })
	return b
}
