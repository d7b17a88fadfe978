package ledger

import (
	"fmt"
	"testing"

	"github.com/joulegate/joulegate/chain"
)

// BenchmarkApplyBurst executes blocks of 800 signed gateway blocks, a second's
// worth of the burst budget.
func BenchmarkApplyBurst(b *testing.B) {
	w := newWorld(b)
	for b.Loop() {
		b.StopTimer()
		txs := make([][]byte, 800)
		for i := range txs {
			txs[i] = w.a.sign(sunny)
		}
		w.height++
		w.now += 1000
		b.StartTimer()
		if _, err := Apply(w.st, BlockInput{Height: w.height, TimeMs: w.now, Txs: txs}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(800*float64(b.N)/b.Elapsed().Seconds(), "tx/s")
}

// BenchmarkClearSlot executes the block in which the last of 100 houses
// reports, and the slot clears.
func BenchmarkClearSlot(b *testing.B) {
	w := newWorld(b)
	houses := []*house{w.a, w.b, w.c}
	for i := range 97 {
		h, once := newHouse(fmt.Sprint("house", i)), newPerson(fmt.Sprint("one-time ", i))
		w.ok(w.tx(w.op, chain.TxInvite, chain.Invite{Key: once.key, Node: "f1", Fee: 1000, Expires: w.now + 1e6}), signJoin(h, once))
		w.ok(h.sign(h.site(firstSl-1, 0, 0)), w.mint(h.owner.account(), 1e9))
		houses = append(houses, h)
	}
	s := firstSl
	w.at(s)
	for b.Loop() {
		b.StopTimer()
		s++
		w.at(s)
		var txs [][]byte
		for i, h := range houses {
			if i%2 == 0 {
				txs = append(txs, h.sign(h.site(s, 100, 0)))
			} else {
				txs = append(txs, h.sign(h.site(s, 0, 90)))
			}
		}
		w.height++
		w.now += 1000
		if _, err := Apply(w.st, BlockInput{Height: w.height, TimeMs: w.now, Txs: txs[1:]}); err != nil {
			b.Fatal(err)
		}
		w.height++
		b.StartTimer()
		if _, err := Apply(w.st, BlockInput{Height: w.height, TimeMs: w.now + 500, Txs: txs[:1]}); err != nil {
			b.Fatal(err)
		}
	}
}
