package microgrid

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/joulegate/joulegate/chain/ledger"
)

var seed = flag.Uint64("microgrid.seed", 0, "seed of the walk; 0: a few fixed ones")

// A day of a small neighbourhood in which everything goes wrong, with the
// whole state checked after every block, and a second replica on another
// store.
func TestWalk(t *testing.T) {
	seeds := []uint64{1, 2, 3}
	if *seed != 0 {
		seeds = []uint64{*seed}
	}
	all := map[string]int{}
	for _, s := range seeds {
		t.Run(fmt.Sprint("seed=", s), func(t *testing.T) {
			w := walk(t, Config{Seed: s, Homes: 12, Cars: 28, Faults: 0.05, Full: 8, Twin: ledger.NewMapState()}, 112)
			st := w.Stats()
			t.Logf("%+v", st)
			if st.Closed < 10 || st.TradedWh == 0 || st.Interrupted == 0 || len(st.Faults) < 40 {
				t.Fatalf("the walk exercised too little")
			}
			for f, n := range st.Faults {
				all[f] += n
			}
			for _, e := range []string{"meter.quarantined", "meter.released", "zones.planned", "rules.changed", "mandate.signed"} {
				if st.Events[e] == 0 && *seed == 0 {
					t.Errorf("never %s", e)
				}
			}
		})
	}
	for _, f := range Ingredients {
		if all[f] == 0 && *seed == 0 {
			t.Errorf("never: %s", f)
		}
	}
}

// Without faults nothing is late, doubted or refused.
func TestHonestWalk(t *testing.T) {
	w := walk(t, Config{Seed: 5, Homes: 20, Cars: 5, Full: 16}, 24)
	for _, e := range []string{"meter.late", "meter.suspect", "session.late", "session.suspect"} {
		if n := w.Stats().Events[e]; n > 0 {
			t.Errorf("%d times %s", n, e)
		}
	}
}

func walk(t *testing.T, cfg Config, slots int) *Walk {
	t.Helper()
	w, err := New(cfg)
	for i := 0; err == nil && i < slots; i++ {
		err = w.Slot()
	}
	if err == nil {
		err = w.Finish()
	}
	if v := (*Violation)(nil); errors.As(err, &v) {
		path := filepath.Join(os.TempDir(), fmt.Sprintf("soak-%d-block-%d.json", cfg.Seed, v.Block.Height))
		t.Logf("the block is in %s (%v)", path, Save(path, cfg, v))
	}
	if err != nil {
		t.Fatalf("replay with -microgrid.seed=%d: %v", cfg.Seed, err)
	}
	return w
}

// A walk that is written down, forgotten and resumed goes on as if nothing
// had been.
func TestResume(t *testing.T) {
	cfg := Config{Seed: 3, Homes: 15, Cars: 12, Faults: 0.03, Full: 16}
	straight := lived(t, cfg, 40)
	half := lived(t, cfg, 20)
	var written bytes.Buffer
	if err := half.Checkpoint(&written); err != nil {
		t.Fatal(err)
	}
	saved := written.Bytes()
	cfg.Twin = ledger.NewMapState()
	resumed, err := Resume(Config{Twin: cfg.Twin}, bytes.NewReader(saved))
	for range 20 {
		if err == nil {
			err = resumed.Slot()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if a, b := ledger.StateHash(straight.State()), ledger.StateHash(resumed.State()); a != b {
		t.Fatalf("straight on leads to %s, with a break to %s", a, b)
	}
	if a, b := straight.Stats(), resumed.Stats(); !reflect.DeepEqual(a, b) {
		t.Fatalf("straight on %+v, with a break %+v", a, b)
	}
	if err := resumed.Finish(); err != nil {
		t.Fatal(err)
	}

	cfg.Twin = nil
	for _, n := range []int{0, 10, len(saved) / 2, len(saved) - 1} {
		if _, err := Resume(cfg, bytes.NewReader(saved[:n])); err == nil {
			t.Errorf("%d of %d bytes are taken for a checkpoint", n, len(saved))
		}
	}
	saved[len(saved)-100] ^= 1
	if _, err := Resume(cfg, bytes.NewReader(saved)); err == nil {
		t.Error("a changed bit goes unnoticed")
	}
}

func lived(t *testing.T, cfg Config, slots int) *Walk {
	t.Helper()
	w, err := New(cfg)
	for i := 0; err == nil && i < slots; i++ {
		err = w.Slot()
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}
