package consensus

import (
	"bytes"
	"testing"

	iavldb "github.com/cosmos/iavl/db"

	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/tools/sim/microgrid"
)

// The same faulty neighbourhood leads to the same state on a tree as on a
// map, and to the same root on two trees, whichever of them the books are
// compared with.
func TestWalkOnTheTree(t *testing.T) {
	var roots [2][]byte
	var states [2]ledger.State
	for i := range roots {
		tree, err := openTree(&treeDB{DB: iavldb.NewMemDB()})
		if err != nil {
			t.Fatal(err)
		}
		cfg := microgrid.Config{Seed: 11, Homes: 8, Cars: 8, Faults: 0.05, Full: 8, State: working{tree}, Twin: ledger.NewMapState()}
		if i == 1 {
			cfg.State, cfg.Twin = &microgrid.Store{}, working{tree}
		}
		cfg.Tell = func(b ledger.BlockInput) {
			// The root depends on what was saved together.
			if b.Height%5 == 0 {
				if _, _, err := tree.SaveVersion(); err != nil {
					t.Fatal(err)
				}
			}
		}
		w, err := microgrid.New(cfg)
		for s := 0; err == nil && s < 24; s++ {
			err = w.Slot()
		}
		if err == nil {
			err = w.Finish()
		}
		if err != nil {
			t.Fatal(err)
		}
		if s := w.Stats(); s.Refused == 0 || s.TradedWh == 0 || s.Events["meter.late"] == 0 {
			t.Fatalf("the walk exercised too little: %+v", s)
		}
		roots[i], states[i] = tree.WorkingHash(), w.State()
	}
	if !bytes.Equal(roots[0], roots[1]) {
		t.Fatalf("roots %x and %x", roots[0], roots[1])
	}
	if a, b := ledger.StateHash(states[0]), ledger.StateHash(states[1]); a != b {
		t.Fatalf("states %s and %s", a, b)
	}
}
