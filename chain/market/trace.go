package market

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Lot is energy that a party puts into the network at a node (Wh > 0) or
// takes from it (Wh < 0). The tag tells kinds of one party's energy apart.
type Lot struct {
	ID   string
	Tag  string
	Node string
	Wh   meter.WattHour
}

// Transfer is energy traced from one lot to another.
type Transfer struct {
	From, Tag string // of the lot that supplies
	To        string // ID of the lot that takes
	Wh        meter.WattHour
}

// Trace tells whose energy reached whom: at every node, what flows in is
// mixed, and everybody who takes from it gets a share of the mix (proportional
// sharing). What a subtree needs it takes first from itself; only its surplus
// or its need crosses its edge.
//
// Lots must add up to zero: the public grid, and what was lost, are lots too.
// Shares are whole Wh: takers are served one after another, each by largest
// remainder over what the suppliers still have. So every lot's transfers add
// up to exactly that lot. The result is ascending by To, From and Tag.
func Trace(nodes []Node, lots []Lot) ([]Transfer, error) {
	var t tree
	if err := t.load(&Problem{Nodes: nodes}); err != nil {
		return nil, err
	}
	tr := tracer{tree: t, lots: lots, net: make([]int64, len(t.places)), mix: make([][]part, len(t.places)), takers: make([][]int32, len(t.places))}
	if err := tr.load(); err != nil {
		return nil, err
	}
	for i := len(t.places) - 1; i >= 0; i-- {
		if tr.net[i] >= 0 { // everything that flows in comes from below
			tr.pool(int32(i))
		}
	}
	for i := range t.places {
		if tr.net[i] < 0 { // the parent has given its part
			tr.pool(int32(i))
		}
	}
	slices.SortFunc(tr.out, func(a, b Transfer) int {
		return cmp.Or(cmp.Compare(a.To, b.To), cmp.Compare(a.From, b.From), cmp.Compare(a.Tag, b.Tag))
	})
	return tr.out, nil
}

// part is energy of one lot in a mix.
type part struct {
	lot  int32
	wh   int64
	rest uint64 // scratch of share
	give int64
}

type tracer struct {
	tree
	lots   []Lot
	net    []int64   // surplus of the subtree
	mix    [][]part  // what flows into a node
	takers [][]int32 // lots that take there, by id
	order  []int32
	out    []Transfer
}

func (t *tracer) load() error {
	if len(t.lots) > MaxOrders {
		return fmt.Errorf("%d lots, the limit is %d", len(t.lots), MaxOrders)
	}
	var total meter.WattHour
	for i, l := range t.lots {
		at, ok := t.index[l.Node]
		if !ok {
			return fmt.Errorf("lot %q is at the unknown node %q", l.ID, l.Node)
		}
		if l.Wh < -MaxEnergy || l.Wh > MaxEnergy || max(l.Wh, -l.Wh) > MaxEnergy-total {
			return fmt.Errorf("lot %q brings the sum above %d Wh: %w", l.ID, MaxEnergy, chain.ErrOverflow)
		}
		total += max(l.Wh, -l.Wh)
		switch {
		case l.Wh > 0:
			t.mix[at] = append(t.mix[at], part{lot: int32(i), wh: int64(l.Wh)})
		case l.Wh < 0:
			t.takers[at] = append(t.takers[at], int32(i))
		}
		t.net[at] += int64(l.Wh)
	}
	for i := len(t.places) - 1; i > 0; i-- {
		t.net[t.places[i].parent] += t.net[i]
	}
	if t.net[0] != 0 {
		return fmt.Errorf("what is supplied and what is taken differ by %d Wh", t.net[0])
	}
	return nil
}

// pool shares what flows into a place: to its own takers, to children that
// need energy, and the surplus to the parent.
func (t *tracer) pool(at int32) {
	byID := func(a, b int32) int {
		return cmp.Or(cmp.Compare(t.lots[a].ID, t.lots[b].ID), cmp.Compare(t.lots[a].Tag, t.lots[b].Tag), cmp.Compare(a, b))
	}
	mix := t.mix[at]
	slices.SortFunc(mix, func(a, b part) int { return byID(a.lot, b.lot) })
	slices.SortFunc(t.takers[at], byID)
	var sum int64
	for _, p := range mix {
		sum += p.wh
	}
	for _, l := range t.takers[at] {
		t.share(mix, &sum, -int64(t.lots[l].Wh), func(p part) {
			from := t.lots[p.lot]
			t.out = append(t.out, Transfer{from.ID, from.Tag, t.lots[l].ID, meter.WattHour(p.give)})
		})
	}
	pass := func(to int32, wh int64) {
		t.share(mix, &sum, wh, func(p part) { t.mix[to] = append(t.mix[to], part{lot: p.lot, wh: p.give}) })
	}
	pl := t.places[at]
	for ch := pl.first; ch < pl.after; ch++ {
		if t.net[ch] < 0 {
			pass(ch, -t.net[ch])
		}
	}
	if t.net[at] > 0 {
		pass(pl.parent, t.net[at])
	}
	if sum != 0 {
		panic(fmt.Sprintf("market: %d Wh are left at place %d", sum, at))
	}
	t.mix[at] = nil
}

// share takes wh out of a mix of sum Wh, proportionally and by largest
// remainder, and hands every part of it to give.
func (t *tracer) share(mix []part, sum *int64, wh int64, give func(part)) {
	if wh > *sum {
		panic(fmt.Sprintf("market: %d Wh wanted of %d", wh, *sum))
	}
	left := wh
	t.order = t.order[:0]
	for i := range mix {
		p := &mix[i]
		if p.give, p.rest = 0, 0; *sum > 0 {
			hi, lo := bits.Mul64(uint64(p.wh), uint64(wh))
			q, r := bits.Div64(hi, lo, uint64(*sum))
			p.give, p.rest = int64(q), r
		}
		if left -= p.give; p.rest > 0 {
			t.order = append(t.order, int32(i))
		}
	}
	if left > 0 {
		slices.SortFunc(t.order, func(a, b int32) int { return cmp.Or(cmp.Compare(mix[b].rest, mix[a].rest), cmp.Compare(a, b)) })
		for _, i := range t.order[:left] {
			mix[i].give++
		}
	}
	for i := range mix {
		if p := &mix[i]; p.give > 0 {
			p.wh -= p.give
			give(*p)
		}
	}
	*sum -= wh
}
