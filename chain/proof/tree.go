package proof

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sort"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// A pruned tree is the state's IAVL tree in which whatever is not told is only
// its hash. Written in pre-order, node by node:
//
//	0  hash (32 bytes)                              something that is not told
//	1  version, key, value                          an entry
//	2  height (1 byte), size, version, left, right  an inner node
//
// Numbers are unsigned LEB128 and shortest, keys and values have their length
// in front.
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

// treeReader takes a pruned tree node by node. It holds one open node per
// level, however large or deep what it is given.
type treeReader struct {
	open    []openNode
	root    chain.Hash
	done    bool
	entries []Entry
	gaps    []int // before which entry something is not told
	gap     bool
}

type openNode struct {
	height  int8
	size    int64
	version int64
	left    chain.Hash
	half    bool
}

// feed reads the nodes of one frame.
func (t *treeReader) feed(b []byte) error {
	for len(b) > 0 {
		if t.done {
			return errors.New("nodes after the tree's end")
		}
		kind := b[0]
		b = b[1:]
		var v uint64
		var err error
		switch kind {
		case nodeHash:
			if len(b) < 32 {
				return errShort
			}
			t.gap = true
			h := chain.Hash(b[:32])
			b = b[32:]
			t.complete(h)
		case nodeLeaf:
			var e Entry
			if v, b, err = uvarint(b); err != nil {
				return err
			}
			e.Version = int64(min(v, math.MaxInt64))
			if e.Key, b, err = counted(b); err != nil {
				return err
			}
			if e.Value, b, err = counted(b); err != nil {
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
			t.complete(iavlLeaf(e.Key, e.Value, e.Version))
		case nodeInner:
			if len(b) < 1 {
				return errShort
			}
			n := openNode{height: int8(b[0])}
			b = b[1:]
			if v, b, err = uvarint(b); err != nil {
				return err
			}
			n.size = int64(min(v, math.MaxInt64))
			if v, b, err = uvarint(b); err != nil {
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
func (t *treeReader) complete(h chain.Hash) {
	for len(t.open) > 0 {
		top := &t.open[len(t.open)-1]
		if !top.half {
			top.left, top.half = h, true
			return
		}
		h = iavlInner(top.height, top.size, top.version, top.left, h)
		t.open = t.open[:len(t.open)-1]
	}
	t.root, t.done = h, true
}

func counted(b []byte) (part, rest []byte, err error) {
	n, b, err := uvarint(b)
	if err != nil || n > uint64(len(b)) {
		return nil, nil, errShort
	}
	return b[:n:n], b[n:], nil
}

// State is the part of the state that a bundle proves. Reading what it does
// not tell is remembered in Unknown, never mistaken for "not there".
type State struct {
	entries []Entry
	gaps    []int
	Unknown []byte // first key or prefix that was asked for and is not told
}

func (t *treeReader) state() *State {
	if t.gap {
		t.gaps = append(t.gaps, len(t.entries))
	}
	return &State{entries: t.entries, gaps: t.gaps}
}

// span returns the entries from lo up to, without, hi; nil hi: to the end.
func (s *State) span(lo, hi []byte) (from, to int) {
	at := func(k []byte) int {
		return sort.Search(len(s.entries), func(i int) bool { return bytes.Compare(s.entries[i].Key, k) >= 0 })
	}
	if from, to = at(lo), len(s.entries); hi != nil {
		to = max(at(hi), from)
	}
	return from, to
}

// told reports whether nothing between lo and hi is left out: from the entry
// before lo to the first at or after hi all leaves are neighbours.
func (s *State) told(lo, hi []byte) bool {
	from, to := s.span(lo, hi)
	if from < len(s.entries) && bytes.Equal(s.entries[from].Key, lo) {
		from++ // its own place is certain
	}
	i := sort.SearchInts(s.gaps, from)
	return i == len(s.gaps) || s.gaps[i] > to
}

// Version returns the height of the block that wrote an entry.
func (s *State) Version(key []byte) (int64, bool) {
	i, _ := s.span(key, nil)
	if i == len(s.entries) || !bytes.Equal(s.entries[i].Key, key) {
		return 0, false
	}
	return s.entries[i].Version, true
}

// Get implements ledger.State.
func (s *State) Get(key []byte) []byte {
	i, _ := s.span(key, nil)
	if i < len(s.entries) && bytes.Equal(s.entries[i].Key, key) {
		return s.entries[i].Value
	}
	if s.Unknown == nil && !s.told(key, append(bytes.Clone(key), 0)) {
		s.Unknown = bytes.Clone(key)
	}
	return nil
}

// Iterate implements ledger.State.
func (s *State) Iterate(prefix []byte, fn func(key, value []byte) bool) {
	end := After(prefix)
	if s.Unknown == nil && !s.told(prefix, end) {
		s.Unknown = append([]byte{}, prefix...)
	}
	from, to := s.span(prefix, end)
	for _, e := range s.entries[from:to] {
		if !fn(e.Key, e.Value) {
			return
		}
	}
}

// Set implements ledger.State; a proven state is not written.
func (s *State) Set(key, _ []byte) { panic(fmt.Sprintf("proof: write of %x", key)) }

// Delete implements ledger.State.
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

var _ ledger.State = (*State)(nil)

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
type Tree struct{ root *treeNode }

type treeNode struct {
	hash        chain.Hash // of what is not told
	entry       *Entry
	step        *Step
	left, right *treeNode
}

// Add adds a branch.
func (t *Tree) Add(b Branch) {
	at := &t.root
	for i := range b.Path {
		s := &b.Path[i]
		if *at == nil || (*at).step == nil {
			n := &treeNode{step: s}
			if other := (&treeNode{hash: s.Sibling}); s.Right {
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
	*at = &treeNode{entry: &b.Entry}
}

// frames calls fn with the tree in pre-order, in pieces of about max bytes
// that split no node.
func (t *Tree) frames(size int, fn func([]byte) error) error {
	var buf []byte
	stack := []*treeNode{t.root}
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
