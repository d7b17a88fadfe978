package tree_test

import (
	"bytes"
	"testing"

	"github.com/joulegate/joulegate/chain/tree"
	"github.com/joulegate/joulegate/chain/tree/treetest"
)

func entries(keys string) (all []tree.Entry) {
	for _, k := range []byte(keys) {
		all = append(all, tree.Entry{Key: []byte{k}, Value: []byte{k, k}, Version: 1})
	}
	return all
}

// What is told is found, what is not there is proven absent between
// neighbours, and what is only a hash is neither.
func TestPrunedTreeTellsAbsenceFromIgnorance(t *testing.T) {
	all := entries("acegikm")
	told, root := treetest.Prune(all, [2][]byte{[]byte("d"), []byte("d\x00")})
	if want := treetest.Root(all); root != want {
		t.Fatalf("root %s, want %s", root, want)
	}
	st, got, err := tree.Read(told.Bytes(), 10)
	if err != nil || got != root {
		t.Fatalf("root %s, want %s: %v", got, root, err)
	}
	if v := st.Get([]byte("c")); string(v) != "cc" || st.Unknown != nil {
		t.Errorf("c is %q, unknown %q", v, st.Unknown)
	}
	if v := st.Get([]byte("d")); v != nil || st.Unknown != nil {
		t.Errorf("d is %q, unknown %q: its absence is proven", v, st.Unknown)
	}
	if v := st.Get([]byte("i")); v != nil || string(st.Unknown) != "i" {
		t.Errorf("i is %q, unknown %q: it is not told", v, st.Unknown)
	}
	for i := range told.Bytes() {
		b := bytes.Clone(told.Bytes())
		b[i] ^= 1
		if _, got, err := tree.Read(b, 10); err == nil && got == root {
			t.Errorf("byte %d was changed unnoticed", i)
		}
	}
	if _, _, err := tree.Read(told.Bytes(), 1); err == nil {
		t.Error("more entries than allowed")
	}
}

func FuzzRead(f *testing.F) {
	all := entries("acegikmoqsuwy")
	told, root := treetest.Prune(all, [2][]byte{[]byte("f"), []byte("n")})
	f.Add(told.Bytes())
	f.Add([]byte{2, 64, 1, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		st, got, err := tree.Read(b, 100)
		if err != nil || got != root {
			return
		}
		st.Iterate(nil, func(k, v []byte) bool {
			if len(v) != 2 || v[0] != k[0] {
				t.Fatalf("%x holds %x under the same root", k, v)
			}
			return true
		})
	})
}
