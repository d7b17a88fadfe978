package consensus

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corestore "cosmossdk.io/core/store"
	iavldb "github.com/cosmos/iavl/db"

	"github.com/joulegate/joulegate/chain/ledger"
)

// failingDB is a disk that stops taking writes.
type failingDB struct {
	iavldb.DB
	broken atomic.Bool
}

var errDisk = errors.New("input/output error")

func (d *failingDB) NewBatch() corestore.Batch { return failingBatch{d.DB.NewBatch(), d} }

type failingBatch struct {
	corestore.Batch
	db *failingDB
}

func (b failingBatch) WriteSync() error {
	if b.db.broken.Load() {
		return errDisk
	}
	return b.Batch.WriteSync()
}

// breakable puts a failing disk under the ledger's state.
func (n *gateway) breakable() *failingDB {
	d := &failingDB{DB: n.eng.stores.ledger.DB}
	n.eng.stores.ledger.DB = d
	// The tree made its first batch when it was opened.
	tree, err := openTree(n.eng.stores.ledger)
	if err != nil {
		n.world.t.Fatal(err)
	}
	n.eng.app.tree = tree
	return d
}

// TestHalt lets the disk fail under a ledger that votes: it halts, says why,
// keeps answering what it knows, stops cleanly, and goes on after a restart
// with a good disk.
func TestHalt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].open()
	disk := n.breakable()
	n.run()
	n.submit(w.mint(0, "driver", 7))

	disk.broken.Store(true)
	tx := w.mint(0, "driver", 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := n.eng.Submit(ctx, tx)
	if !errors.Is(err, ErrHalted) || !errors.Is(err, errDisk) {
		t.Fatalf("submit: %v, want the reason of the halt", err)
	}
	if err := n.eng.Halted(); !errors.Is(err, ErrHalted) || !errors.Is(err, errDisk) {
		t.Errorf("Halted() = %v", err)
	}
	if s := n.eng.Status(); !strings.Contains(s.Halted, errDisk.Error()) {
		t.Errorf("status %+v", s)
	}
	if err := n.eng.SubmitAsync(tx); !errors.Is(err, ErrHalted) {
		t.Errorf("submit to a halted ledger: %v", err)
	}
	if got := n.balance("driver"); got != 7 {
		t.Errorf("balance %d on a halted ledger, want the last committed 7", got)
	}
	n.stop()

	n.start()
	n.until("the interrupted block", func(Status) bool { return n.balance("driver") == 8 })
}

// TestHaltWhileSyncing does the same to a gateway that only follows. Block
// sync would end the process; see Engine.failed.
func TestHaltWhileSyncing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	first := w.nodes[0].start()
	var last Result
	for range 5 { // enough for block sync rather than a neighbour's help
		last = first.submit(w.mint(0, "driver", 1))
	}
	first.reach(last.Height + 1)

	n := w.newGateway("follower").open()
	n.breakable().broken.Store(true)
	n.run()
	n.until("halt", func(s Status) bool { return s.Halted != "" })
	if s := n.eng.Status(); !s.CatchingUp {
		t.Errorf("it did not halt in block sync: %+v", s)
	}
	if err := n.eng.Halted(); !errors.Is(err, errDisk) {
		t.Errorf("Halted() = %v", err)
	}
	n.stop()

	n.start()
	n.reach(last.Height)
	if got := n.balance("driver"); got != 5 {
		t.Errorf("balance %d", got)
	}
}

// TestSlowReader: a view that lasts does not hold up the ledger, and does not
// see it move.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	n.submit(w.mint(0, "driver", 1))
	blocks, cancel, err := n.eng.Subscribe(1) // drops all but the newest
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	var last Result
	if err := n.eng.View(func(st ledger.State) {
		key := ledger.AccountKey(account("driver"))
		before := string(st.Get(key))
		for range 3 {
			last = n.submit(w.mint(0, "driver", 1))
		}
		if string(st.Get(key)) != before {
			t.Error("the state moved under a reader")
		}
	}); err != nil {
		t.Fatal(err)
	}
	n.reach(last.Height)
	select {
	case ev := <-blocks:
		if ev.Height < last.Height-1 {
			t.Errorf("a lagging subscriber got block %d, the newest are around %d", ev.Height, last.Height)
		}
	case <-time.After(patience):
		t.Error("no event")
	}
	if err := n.eng.View(func(st ledger.State) { st.Set([]byte("x"), []byte("y")) }); err == nil {
		t.Error("a view may write")
	}
	n.stop()
	for range blocks { //nolint:revive // drain: the engine closes it
	}
}
