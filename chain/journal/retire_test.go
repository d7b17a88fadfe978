package journal

import (
	"fmt"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/joulegate/joulegate/chain"
	"pgregory.net/rapid"
)

// TestNothingUnbookedIsLetGo: own blocks are signed, booked by a ledger that
// now and then skips the end of an epoch, and let go, while writes fail before
// or after they land and the program begins anew. What the ledger does not
// hold, and what is young, is always there; what is old and booked leaves.
func TestNothingUnbookedIsLetGo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := dbm.NewMemDB()
		now := time.UnixMilli(1_800_000_000_000)
		const keep = 10 * time.Hour
		var (
			signed  []*chain.Signed             // in order
			booked  = map[chain.Position]bool{} // by the ledger
			head    chain.Position              // the ledger's
			young   = func() time.Time { return now.Add(-keep) }
			j       *Journal
			db      *failing
			refused bool
		)
		cfg := config(1)
		cfg.Fresh = true
		cfg.Now = func() time.Time { return now }
		cfg.Known = func() chain.Position { return head }
		cfg.Retire = func() (chain.Position, time.Time) { return head, young() }
		begin := func(fail int, lands bool) {
			db = &failing{DB: mem, n: fail, lands: lands}
			var err error
			if j, err = open(db, cfg, false); err != nil {
				t.Fatal(err)
			}
			_, err = j.Recover(t.Context(), nil)
			refused = err != nil // a write failed: the gateway would end and begin anew
		}
		begin(0, false)
		if refused {
			t.Fatal("the first start was refused")
		}
		check := func() {
			for _, b := range signed {
				if booked[b.Position()] && time.UnixMilli(b.Time).Before(young()) {
					continue
				}
				if has, err := mem.Has(keyBlock(j.self, b.Position())); err != nil || !has {
					t.Fatalf("block %s is gone: booked %v, %s old", b.Position(), booked[b.Position()], now.Sub(time.UnixMilli(b.Time)))
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				if refused {
					t.Skip("it did not begin")
				}
				if blocks, err := j.Append([]chain.Record{record("x")}); err == nil {
					signed = append(signed, blocks...)
				}
			},
			"book": func(t *rapid.T) {
				// In order, as the outbox submits them; from a later epoch on,
				// if the ledger has skipped the rest of this one.
				skip := rapid.Bool().Draw(t, "skip")
				for _, b := range signed {
					p := b.Position()
					next := p == chain.Position{Epoch: head.Epoch, Number: head.Number + 1}
					if !next && (!skip || p.Epoch <= head.Epoch || p.Number != 1) {
						continue
					}
					head, booked[p] = p, true
					return
				}
			},
			"wait":   func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(1, 5).Draw(t, "hours")) * time.Hour) },
			"retire": func(*rapid.T) { _, _ = j.retire(false) },
			"fail": func(t *rapid.T) {
				db.n, db.lands = rapid.IntRange(1, 3).Draw(t, "write"), rapid.Bool().Draw(t, "lands")
			},
			"power": func(t *rapid.T) {
				begin(rapid.IntRange(0, 4).Draw(t, "fails"), rapid.Bool().Draw(t, "lands"))
			},
			"damage": func(t *rapid.T) {
				// The index is lost and derived again.
				db.n = 0
				if err := j.rebuild(); err != nil {
					t.Fatal(err)
				}
			},
			"": func(*rapid.T) { check() },
		})

		// In the end everything that may go has gone.
		begin(0, false)
		now = now.Add(keep + time.Hour)
		for more := true; more; {
			var err error
			if more, err = j.retire(false); err != nil {
				t.Fatal(err)
			}
		}
		check()
		newest, _ := j.author(j.self).newest()
		at := map[uint32]uint64{} // how far the ledger was seen to hold each epoch
		for _, s := range j.author(j.self).segments {
			at[s.Epoch] = s.Booked
		}
		for _, b := range signed {
			p := b.Position()
			has, err := mem.Has(keyBlock(j.self, p))
			if err != nil {
				t.Fatal(err)
			}
			if has && p.Number <= at[p.Epoch] && p != newest.head() {
				t.Fatalf("block %s is old and booked, and still here", p)
			}
			if has && p.Epoch == head.Epoch && booked[p] && p.Number > at[p.Epoch] {
				t.Fatalf("block %s is booked, but the journal was told only up to %d", p, at[p.Epoch])
			}
		}
	})
}

// TestRetiredChainGoesOn: a chain whose beginning was let go continues where
// it was, is served from there, and its old blocks do not come back from
// neighbours who still have them.
func TestRetiredChainGoesOn(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	var head chain.Position
	cfg := config(1)
	cfg.Fresh = true
	cfg.Now = func() time.Time { return now }
	cfg.Retire = func() (chain.Position, time.Time) { return head, now.Add(-time.Hour) }
	mem := dbm.NewMemDB()
	j, err := open(mem, cfg, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	witness := started(t, 2)
	const blocks = 2*MaxRetired + 10
	for i := range blocks {
		b, err := j.Append([]chain.Record{record(fmt.Sprint(i))})
		if err != nil {
			t.Fatal(err)
		}
		if v, err := witness.Accept(b[0].Raw); v != Accept {
			t.Fatal(err)
		}
	}
	head, now = chain.Position{Epoch: 1, Number: blocks}, now.Add(2*time.Hour)
	for i, want := range []bool{true, true, false} {
		if more, err := j.retire(false); err != nil || more != want {
			t.Fatalf("turn %d: more %v, %v", i, more, err)
		}
	}
	if n := j.Counters().Retired; n != blocks-1 {
		t.Errorf("%d of %d blocks were let go", n, blocks)
	}
	if j, err = open(mem, cfg, false); err != nil {
		t.Fatal(err)
	}
	r, err := j.Recover(t.Context(), known(witness))
	if err != nil || r.NewEpoch || r.Next != (chain.Position{Epoch: 1, Number: blocks + 1}) {
		t.Errorf("%+v, %v", r, err)
	}
	if n, err := j.Sync(t.Context(), neighbour(witness)); err != nil || n != 0 {
		t.Errorf("%d blocks came back, %v", n, err)
	}
	// A neighbour that was away for long knows only what has gone here.
	old := started(t, 3)
	all, err := witness.Range(j.self, chain.Position{}, 5)
	if err != nil || len(all) != 5 {
		t.Fatal(len(all), err)
	}
	for _, raw := range all {
		if v, err := old.Accept(raw); v != Accept {
			t.Fatal(err)
		}
	}
	if j, err = open(mem, cfg, false); err != nil {
		t.Fatal(err)
	}
	if r, err := j.Recover(t.Context(), known(old)); err != nil || r.NewEpoch {
		t.Errorf("its answer opened a new epoch: %+v, %v", r, err)
	}
	more, err := j.Append([]chain.Record{record("next")})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := witness.Accept(more[0].Raw); v != Accept || err != nil {
		t.Errorf("%s, %v", v, err)
	}
	if c := witness.Counters(); c.Equivocations != 0 {
		t.Errorf("%d equivocations", c.Equivocations)
	}
}
