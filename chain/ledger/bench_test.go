package ledger

import (
	"fmt"
	"slices"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
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

// crowd is a microgrid of as many houses as there can be, on a state that
// keeps its keys in order as a gateway's tree does; the slot before firstSl
// has been reported by all.
func crowd(b *testing.B) (*world, []*house) {
	w := &world{t: b, st: NewMapState(), op: newPerson("operator"), now: t0, nonces: map[chain.Key]uint64{}}
	var houses []*house
	for i := range MaxMembers {
		houses = append(houses, newHouse(fmt.Sprint("house", i)))
	}
	g := testGenesis(houses...)
	for i := MaxValidators; i < len(g.Members); i++ {
		g.Members[i].Validator = chain.Key{}
	}
	if _, err := InitGenesis(w.st, g, t0-slotMs); err != nil {
		b.Fatal(err)
	}
	for part := range slices.Chunk(houses, 250) {
		var txs [][]byte
		for _, h := range part {
			txs = append(txs, h.sign(h.site(firstSl-1, 0, 0)), w.mint(h.owner.account(), 1e9))
		}
		w.block(txs...)
	}
	return w, houses
}

// BenchmarkReadings executes blocks of 50 readings among 1,000 houses that
// leave the slot open: what a gateway does most of the time.
func BenchmarkReadings(b *testing.B) {
	w, houses := crowd(b)
	s := firstSl
	n := 0
	for b.Loop() {
		b.StopTimer()
		if n+50 > len(houses)-1 { // the last one stays silent
			n, s = 0, s+1
			w.at(s)
			w.block() // clears
		}
		var txs [][]byte
		for _, h := range houses[n : n+50] {
			txs = append(txs, h.sign(h.site(s, 100, 0)))
		}
		n += 50
		w.height++
		w.now += 1000
		b.StartTimer()
		if _, err := Apply(w.st, BlockInput{Height: w.height, TimeMs: w.now, Txs: txs}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkClearCrowd executes the block in which the last of 1,000 houses
// reports, and the slot clears.
func BenchmarkClearCrowd(b *testing.B) {
	w, houses := crowd(b)
	s := firstSl
	w.at(s)
	for b.Loop() {
		b.StopTimer()
		s++
		w.at(s)
		var txs [][]byte
		for i, h := range houses {
			txs = append(txs, h.sign(h.site(s, meter.WattHour(100*(i%2)), meter.WattHour(90*(1-i%2)))))
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
