package consensus

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// TestReplayTellsEveryMovement: executing the stored blocks again gives the
// balances and says why, while the ledger runs and when it does not.
func TestReplayTellsEveryMovement(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	n.submit(w.mint(0, "driver", 7))
	n.submit(w.mint(1, "driver", 5))
	check := func(replay func(fn func(int64, time.Time, ledger.BlockOutput)) error) {
		t.Helper()
		var sum chain.Nano
		if err := replay(func(_ int64, at time.Time, out ledger.BlockOutput) {
			for _, m := range out.Movements {
				if m.Account == account("driver") && m.Cause == "paid in" && !at.IsZero() {
					sum += m.Amount
				}
			}
		}); err != nil || sum != 12 {
			t.Errorf("%d paid in, %v", sum, err)
		}
	}
	fromGenesis := func(s Start) error {
		if s.Height != 0 || s.State.Get(ledger.AccountKey(account("driver"))) != nil {
			t.Errorf("begins after block %d", s.Height)
		}
		return nil
	}
	check(func(fn func(int64, time.Time, ledger.BlockOutput)) error {
		return n.eng.Replay(t.Context(), time.Time{}, fromGenesis, fn)
	})
	n.stop()
	check(func(fn func(int64, time.Time, ledger.BlockOutput)) error {
		return ReplayHome(t.Context(), n.home, w.genesis, time.Now(), fromGenesis, fn)
	})
}

// TestOldProgramStopsVoting: a gateway whose program is too old for a change
// of the rules commits the block before it, says what to do, and neither votes
// nor breaks anything after a restart.
func TestOldProgramStopsVoting(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	first := n.submit(w.mint(0, "driver", 7))
	at := first.Height + 6
	w.nonces[1]++
	r := n.submit(chain.SignTx("test-grid", w.nonces[1], chain.TxRules, chain.RulesChange{Height: at, MinVersion: ledger.RulesVersion + 1}, operator(1)))
	if r.Code != ledger.CodeOK {
		t.Fatalf("%+v", r)
	}
	for n.eng.Status().Halted == "" {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := n.eng.Submit(ctx, w.mint(0, "driver", 1))
		cancel()
		if err != nil && !errors.Is(err, ErrHalted) {
			t.Fatal(err)
		}
	}
	told := func() {
		t.Helper()
		var old *ledger.OutdatedError
		s := n.eng.Status()
		if err := n.eng.Halted(); !errors.As(err, &old) || old.Height != at || s.Height != at-1 || !strings.Contains(s.Halted, "update joulegate") {
			t.Fatalf("at height %d, %v", s.Height, err)
		}
	}
	told()
	balance := n.balance("driver")
	n.stop()
	n.start()
	told()
	if got := n.balance("driver"); got != balance || got < 7 {
		t.Errorf("balance %d, was %d", got, balance)
	}
	if err := n.eng.SubmitAsync(w.mint(0, "driver", 1)); !errors.Is(err, ErrHalted) {
		t.Errorf("submit: %v", err)
	}
}

// TestMovementsAreToldBeforeTheState: what a block moved is told in order, of
// every block, before the state of that block can be seen; and again of a
// block whose state was lost.
func TestMovementsAreToldBeforeTheState(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	var mu sync.Mutex
	var heights []int64
	paid := map[int64]chain.Nano{}
	n := w.nodes[0]
	w.change = func(_ *gateway, c *Config) {
		c.Movements = func(height int64, at time.Time, moves []ledger.Movement) {
			mu.Lock()
			defer mu.Unlock()
			if n.eng != nil && n.eng.app.height() >= height {
				t.Errorf("block %d was told after its state", height)
			}
			heights = append(heights, height)
			paid[height] = 0
			for _, m := range moves {
				if m.Account == account("driver") && !at.IsZero() {
					paid[height] += m.Amount
				}
			}
		}
	}
	n.start()
	n.submit(w.mint(0, "driver", 7))
	n.submit(w.mint(1, "driver", 5))
	last := n.eng.Status().Height
	n.stop()
	n.start()
	n.submit(w.mint(2, "driver", 3))
	mu.Lock()
	defer mu.Unlock()
	var sum chain.Nano
	for _, p := range paid {
		sum += p
	}
	if sum != 15 || heights[0] != 1 || int64(len(paid)) < last+1 {
		t.Errorf("%d paid in, blocks %v", sum, heights)
	}
	for i := range len(heights) - 1 {
		if d := heights[i+1] - heights[i]; d != 1 && d != 0 {
			t.Errorf("blocks %v", heights)
		}
	}
}
