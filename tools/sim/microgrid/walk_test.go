package microgrid

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/joulegate/joulegate/chain/ledger"
)

var seed = flag.Uint64("microgrid.seed", 0, "seed of the walk; 0: a few fixed ones")

// A day of a small neighbourhood in which everything goes wrong, with the
// whole state checked after every block, and a second replica on another
// store.
func TestWalk(t *testing.T) {
	seeds := []uint64{1, 2}
	if *seed != 0 {
		seeds = []uint64{*seed}
	}
	for _, s := range seeds {
		t.Run(fmt.Sprint("seed=", s), func(t *testing.T) {
			w := walk(t, Config{Seed: s, Homes: 12, Cars: 16, Faults: 0.03, Full: 4, Twin: ledger.NewMapState()}, 64)
			st := w.Stats()
			t.Logf("%+v", st)
			if st.Closed < 10 || st.TradedWh == 0 || st.Interrupted == 0 || len(st.Faults) < 40 {
				t.Fatalf("the walk exercised too little")
			}
			for _, e := range []string{"meter.quarantined", "meter.released", "zones.planned", "rules.changed", "mandate.signed"} {
				if st.Events[e] == 0 && *seed == 0 {
					t.Errorf("never %s", e)
				}
			}
		})
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
