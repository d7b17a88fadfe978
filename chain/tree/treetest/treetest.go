// Package treetest makes trees for tests.
package treetest

import (
	"bytes"
	"math/bits"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/tree"
)

// Entries returns everything under a state in order, as of version 1.
func Entries(iterate func(prefix []byte, fn func(k, v []byte) bool)) (all []tree.Entry) {
	iterate(nil, func(k, v []byte) bool {
		all = append(all, tree.Entry{Key: bytes.Clone(k), Value: bytes.Clone(v), Version: 1})
		return true
	})
	return all
}

type node struct {
	step        tree.Step
	left, right *node // nil: a leaf
	hash        chain.Hash
}

// Root returns the root of a balanced tree over entries.
func Root(all []tree.Entry) chain.Hash { return build(all).hash }

// Prune makes a balanced tree over entries and returns its root, and the tree
// in which what lies in no range (first key, key after the last; nil: to the
// end) is only hashes, but for the neighbours of each range.
func Prune(all []tree.Entry, ranges ...[2][]byte) (*tree.Tree, chain.Hash) {
	told := make([]bool, len(all))
	at := func(k []byte) (i int) {
		for i < len(all) && bytes.Compare(all[i].Key, k) < 0 {
			i++
		}
		return i
	}
	for _, r := range ranges {
		lo, hi := at(r[0]), len(all)
		if r[1] != nil {
			hi = at(r[1])
		}
		for i := max(lo-1, 0); i <= min(hi, len(all)-1); i++ {
			told[i] = true
		}
	}
	root := build(all)
	out := &tree.Tree{}
	var path []tree.Step
	var walk func(n *node, lo, hi int)
	walk = func(n *node, lo, hi int) {
		if n.left == nil {
			if told[lo] {
				out.Add(tree.Branch{Entry: all[lo], Path: path})
			}
			return
		}
		mid := (lo + hi) / 2
		down := func(child *node, right bool, sibling *node, lo, hi int) {
			s := n.step
			s.Right, s.Sibling = right, sibling.hash
			path = append(path, s)
			walk(child, lo, hi)
			path = path[:len(path)-1]
		}
		down(n.left, false, n.right, lo, mid)
		down(n.right, true, n.left, mid, hi)
	}
	walk(root, 0, len(all))
	return out, root.hash
}

func build(all []tree.Entry) *node {
	if len(all) == 1 {
		return &node{hash: tree.Leaf(all[0].Key, all[0].Value, all[0].Version)}
	}
	mid := len(all) / 2
	n := &node{left: build(all[:mid]), right: build(all[mid:])}
	n.step = tree.Step{Height: int8(bits.Len(uint(len(all) - 1))), Size: int64(len(all)), Version: 1}
	n.hash = tree.Inner(n.step.Height, n.step.Size, n.step.Version, n.left.hash, n.right.hash)
	return n
}
