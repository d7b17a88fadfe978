package market

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"math/bits"
	"slices"
	"sort"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Clear computes the exact optimum of p. It returns an error if p is not a
// tree, an order is malformed, or a total does not fit its unit.
func Clear(p Problem) (Result, error) {
	var c Clearer
	return c.Clear(p)
}

// Clearer clears one problem after another and keeps its memory in between.
// The zero value is ready. It is not safe for concurrent use.
type Clearer struct {
	tree
	sites   []site  // parallel to places
	loaded  []entry // orders with energy, as given
	entries []entry // by place, then key falling
	ids     []uint32
	fills   []meter.WattHour
	runs    []run
	a, b    []step
	members []member
}

// Solution is a [Result] without maps.
type Solution struct {
	Welfare, Fees, Paid, Received chain.Nano
	GridImport, GridExport        meter.WattHour

	Fills  []meter.WattHour  // parallel to Problem.Orders
	Prices []chain.NanoPerWh // parallel to Problem.Nodes
	Flows  []meter.WattHour  // parallel to Problem.Nodes, 0 for the root
}

// A key ranks what a Wh is worth: four times its price, so that at equal
// price a bid (+1) comes before the grid (0) and the grid before an ask (-1).
// Hence equal prices do trade, and with a neighbour before the grid. Fees
// move keys by multiples of four, so a key never changes its kind.
const (
	bid = 1
	ask = -1
)

func key(side chain.Side, limit chain.NanoPerWh) int64 {
	if side == chain.Buy {
		return 4*int64(limit) + bid
	}
	return 4*int64(limit) + ask
}

func isAsk(key int64) bool { return key&3 == ask&3 }

func price(key int64) int64 { return (key + 2) >> 2 }

// entry is an order on its way through the sort.
type entry struct {
	key   int64
	wh    int64
	at    int32 // place
	order int32 // index in Problem.Orders
}

// step is one class of a curve. It reaches from the end of the step before
// it (or the curve's start) to end, in Wh of net import.
type step struct{ key, end int64 }

// curve is the value of a subtree's net import: steps of strictly falling
// key and rising end, none empty.
type curve struct {
	start int64 // -(supply of the subtree)
	steps []step
}

// at returns the index of the step with start < x <= end, or of the first
// step if x is the curve's start. x must be within the curve.
func (c *curve) at(x int64) int {
	return sort.Search(len(c.steps), func(i int) bool { return c.steps[i].end >= x })
}

func (c *curve) startOf(i int) int64 {
	if i == 0 {
		return c.start
	}
	return c.steps[i-1].end
}

// above returns the net import when exactly the steps of a higher key than k
// are taken.
func (c *curve) above(k int64) int64 {
	return c.startOf(sort.Search(len(c.steps), func(i int) bool { return c.steps[i].key <= k }))
}

// liftedAbove is above for the curve as the parent sees it over an edge of
// that fee: split at 0, four fees up on the left, four fees down on the right.
func (c *curve) liftedAbove(k, fee int64) int64 {
	right, left := c.above(k+4*fee), c.above(k-4*fee)
	return clamp(0, right, left)
}

// lift appends the curve as the parent sees it.
func (c *curve) lift(dst []step, fee int64) []step {
	if fee == 0 {
		return append(dst, c.steps...)
	}
	i, start := 0, c.start
	for ; i < len(c.steps) && c.steps[i].end <= 0; i++ {
		start = c.steps[i].end
		dst = append(dst, step{c.steps[i].key + 4*fee, start})
	}
	if i < len(c.steps) && start < 0 { // straddles 0
		dst = append(dst, step{c.steps[i].key + 4*fee, 0})
	}
	for ; i < len(c.steps); i++ {
		dst = append(dst, step{c.steps[i].key - 4*fee, c.steps[i].end})
	}
	return dst
}

// island returns the prices between which the subtree would neither import
// nor export: the class that ends the import side and the one that begins it.
func (c *curve) island() (lo, hi int64) {
	lo, hi = -unbounded, unbounded
	if i := c.at(0); i < len(c.steps) {
		if c.startOf(i) < 0 {
			hi = price(c.steps[i].key)
		}
		if c.steps[i].end == 0 {
			i++
		}
		if i < len(c.steps) {
			lo = price(c.steps[i].key)
		}
	}
	return lo, hi
}

// site is what clearing knows about a place.
type site struct {
	curve
	first, after int32 // own orders in entries
	x            int64 // net import of the subtree
	price        int64
}

// run is a curve in scratch memory.
type run struct {
	start    int64
	from, to int
}

// member takes part in the sharing of a class: an order, or a child.
type member struct {
	width, share int64
	rest         uint64
	order        int32 // index in Problem.Orders, -1 for a child
	child        int32 // place; its x is what it imports when none of the class is taken
}

// Clear is Solve with the result by id.
func (c *Clearer) Clear(p Problem) (Result, error) {
	s, err := c.Solve(p)
	if err != nil {
		return Result{}, err
	}
	r := Result{
		Welfare: s.Welfare, Fees: s.Fees, Paid: s.Paid, Received: s.Received,
		GridImport: s.GridImport, GridExport: s.GridExport,
		Fills:  make(map[string]meter.WattHour, len(p.Orders)),
		Prices: make(map[string]chain.NanoPerWh, len(p.Nodes)),
		Flows:  make(map[string]meter.WattHour, len(p.Nodes)),
	}
	for i := range p.Orders {
		r.Fills[p.Orders[i].ID] = s.Fills[i]
	}
	for i := range p.Nodes {
		r.Prices[p.Nodes[i].ID] = s.Prices[i]
		if p.Nodes[i].Parent != "" {
			r.Flows[p.Nodes[i].ID] = s.Flows[i]
		}
	}
	return r, nil
}

// Solve computes the exact optimum of p. The solution's Fills are the
// Clearer's memory: they are valid until its next use.
func (c *Clearer) Solve(p Problem) (Solution, error) {
	if err := c.load(&p); err != nil {
		return Solution{}, err
	}
	c.up()
	c.down(&p)
	return c.solution(&p)
}

// load checks the problem and sorts its orders by place and key.
func (c *Clearer) load(p *Problem) error {
	if err := c.tree.load(p); err != nil {
		return err
	}
	if len(p.Orders) > MaxOrders {
		return fmt.Errorf("%d orders, the limit is %d", len(p.Orders), MaxOrders)
	}
	c.sites = resize(c.sites, len(c.places))
	for i := range c.sites {
		s := &c.sites[i]
		*s = site{curve: curve{steps: s.steps[:0]}}
	}
	if err := c.distinct(p.Orders); err != nil {
		return err
	}
	c.loaded = slices.Grow(c.loaded[:0], len(p.Orders))
	var demand, supply meter.WattHour
	for i := range p.Orders {
		o := &p.Orders[i]
		at, err := c.checkOrder(o)
		if err != nil {
			return err
		}
		if o.Wh > MaxEnergy-demand-supply {
			return fmt.Errorf("order %q brings the sum above %d Wh: %w", o.ID, MaxEnergy, chain.ErrOverflow)
		}
		if o.Wh == 0 {
			continue
		}
		s := &c.sites[at]
		if o.Side == chain.Buy {
			demand += o.Wh
		} else {
			supply += o.Wh
			s.start -= int64(o.Wh)
		}
		s.after++
		c.loaded = append(c.loaded, entry{key(o.Side, o.Limit), int64(o.Wh), at, int32(i)})
	}

	c.entries = resize(c.entries, len(c.loaded))
	var first int32
	for i := range c.sites {
		s := &c.sites[i]
		s.first, s.after, first = first, first, first+s.after
	}
	for _, e := range c.loaded {
		s := &c.sites[e.at]
		c.entries[s.after] = e
		s.after++
	}
	for i := range c.sites {
		s := &c.sites[i]
		slices.SortFunc(c.entries[s.first:s.after], func(a, b entry) int { return cmp.Compare(b.key, a.key) })
		x := s.start
		for _, e := range c.entries[s.first:s.after] {
			x += e.wh
			if last := len(s.steps) - 1; last >= 0 && s.steps[last].key == e.key {
				s.steps[last].end = x
			} else {
				s.steps = append(s.steps, step{e.key, x})
			}
		}
	}
	if c.grid != 0 {
		// One Wh more than can ever be wanted keeps the grid's price the
		// marginal one while it delivers or takes.
		g := &c.sites[c.grid]
		g.start = -int64(demand + 1)
		g.steps = append(g.steps, step{4 * int64(p.Grid.Retail), 0})
		if p.Grid.FeedIn == p.Grid.Retail {
			g.steps[0].end = int64(supply + 1)
		} else {
			g.steps = append(g.steps, step{4 * int64(p.Grid.FeedIn), int64(supply + 1)})
		}
	}
	return nil
}

// distinct reports an id that two orders share. It is a hash table with linear
// probing; a map of a million ids takes as long as all the rest. A slot is 0 or
// an order's number from 1 and, above it, eight more bits of its hash.
//
// Hashes are taken a batch ahead of their slots: then the processor fetches
// many slots of the table, which is larger than its cache, at the same time.
func (c *Clearer) distinct(orders []Order) error {
	mask := uint64(1)<<bits.Len(uint(2*len(orders))) - 1
	c.ids = resize(c.ids, int(mask)+1)
	clear(c.ids)
	var hashes [32]uint64
	for from := 0; from < len(orders); from += len(hashes) {
		batch := orders[from:min(from+len(hashes), len(orders))]
		seen := uint32(0)
		for j := range batch {
			h := maphash.String(seed, batch[j].ID)
			hashes[j] = h
			seen |= c.ids[h&mask]
		}
		_ = seen
		for j := range batch {
			h := hashes[j]
			tag := uint32(h>>56) << 24
			at := h & mask
			for ; c.ids[at] != 0; at = (at + 1) & mask {
				if slot := c.ids[at]; slot>>24 == tag>>24 && orders[slot&MaxOrders-1].ID == batch[j].ID {
					return fmt.Errorf("duplicate order id %q", batch[j].ID)
				}
			}
			c.ids[at] = tag | uint32(from+j+1)
		}
	}
	return nil
}

// seed only spreads ids over a table: no result depends on it, and nobody can
// choose ids that collide.
var seed = maphash.MakeSeed()

// up merges the curves of the children into their parents'.
func (c *Clearer) up() {
	for i := len(c.places) - 1; i >= 0; i-- {
		pl, s := &c.places[i], &c.sites[i]
		if pl.first == pl.after {
			continue
		}
		c.a = append(c.a[:0], s.steps...)
		c.runs = append(c.runs[:0], run{s.start, 0, len(c.a)})
		for ch := pl.first; ch < pl.after; ch++ {
			child := &c.sites[ch]
			if len(child.steps) == 0 {
				continue
			}
			from := len(c.a)
			c.a = child.lift(c.a, c.places[ch].fee)
			c.runs = append(c.runs, run{child.start, from, len(c.a)})
		}
		for len(c.runs) > 1 {
			c.b = c.b[:0]
			merged := c.runs[:0]
			for j := 0; j < len(c.runs); j += 2 {
				x := c.runs[j]
				from := len(c.b)
				if j+1 == len(c.runs) {
					c.b = append(c.b, c.a[x.from:x.to]...)
				} else {
					y := c.runs[j+1]
					c.b = merge(c.b, curve{x.start, c.a[x.from:x.to]}, curve{y.start, c.a[y.from:y.to]})
					x.start += y.start
				}
				merged = append(merged, run{x.start, from, len(c.b)})
			}
			c.runs = merged
			c.a, c.b = c.b, c.a
		}
		s.start = c.runs[0].start
		s.steps = append(s.steps[:0], c.a...)
	}
}

// merge appends the sum of two curves: all steps in the order of their keys,
// equal keys as one step. Where a and b have been taken up to x and y, the
// sum has been taken up to x+y.
func merge(dst []step, a, b curve) []step {
	x, y := a.start, b.start
	as, bs := a.steps, b.steps
	for len(as) > 0 && len(bs) > 0 {
		ka, kb := as[0].key, bs[0].key
		if ka >= kb {
			x, as = as[0].end, as[1:]
		}
		if kb >= ka {
			y, bs = bs[0].end, bs[1:]
		}
		dst = append(dst, step{max(ka, kb), x + y})
	}
	for _, s := range as {
		dst = append(dst, step{s.key, s.end + y})
	}
	for _, s := range bs {
		dst = append(dst, step{s.key, x + s.end})
	}
	return dst
}

// down hands imports and prices from the root to the leaves and fills orders.
func (c *Clearer) down(p *Problem) {
	c.fills = resize(c.fills, len(p.Orders))
	clear(c.fills)
	for i := range c.places {
		pl, s := &c.places[i], &c.sites[i]
		s.price = c.priceOf(pl, s)
		if int32(i) == c.grid && c.grid != 0 || len(s.steps) == 0 {
			continue
		}
		at := s.at(s.x)
		k, taken, width := s.steps[at].key, s.x-s.startOf(at), s.steps[at].end-s.startOf(at)

		own := c.entries[s.first:s.after]
		class := sort.Search(len(own), func(i int) bool { return own[i].key <= k })
		c.members = c.members[:0]
		for j, e := range own {
			switch {
			case j < class && !isAsk(e.key), j >= class && e.key < k && isAsk(e.key):
				c.fills[e.order] = meter.WattHour(e.wh)
			case e.key == k:
				c.members = append(c.members, member{width: e.wh, order: e.order})
			}
		}
		for ch := pl.first; ch < pl.after; ch++ {
			child, fee := &c.sites[ch], c.places[ch].fee
			child.x = child.liftedAbove(k, fee)
			if w := child.liftedAbove(k-1, fee) - child.x; w > 0 {
				c.members = append(c.members, member{width: w, order: -1, child: ch})
			}
		}

		filled := taken
		if isAsk(k) {
			filled = width - taken
		}
		c.share(p, filled, width)
		for _, m := range c.members {
			switch {
			case m.order >= 0:
				c.fills[m.order] = meter.WattHour(m.share)
			case isAsk(k):
				c.sites[m.child].x += m.width - m.share
			default:
				c.sites[m.child].x += m.share
			}
		}
	}
}

// priceOf returns the price of a place whose parent has its price already:
// the middle of what would keep it an island, as far as the edge allows.
func (c *Clearer) priceOf(pl *place, s *site) int64 {
	lo, hi := s.island()
	if lo > hi {
		panic(fmt.Sprintf("market: island price between %d and %d", lo, hi))
	}
	bounded := lo > -unbounded && hi < unbounded
	if pl.parent < 0 {
		switch {
		case bounded:
			return lo + (hi-lo)/2
		case lo > -unbounded:
			return lo
		case hi < unbounded:
			return hi
		}
		return 0
	}
	parent := c.sites[pl.parent].price
	mid := clamp(parent, lo, hi)
	if bounded {
		mid = lo + (hi-lo)/2
	}
	return clamp(mid, parent-pl.fee, parent+pl.fee)
}

// share divides filled Wh among the members of a class of that width: the
// floor of each one's proportion, and the Wh left over to the largest
// remainders; equal remainders by order id, then child.
func (c *Clearer) share(p *Problem, filled, width int64) {
	if filled == 0 {
		return
	}
	left := filled
	for i := range c.members {
		m := &c.members[i]
		if filled == width {
			m.share = m.width
		} else {
			hi, lo := bits.Mul64(uint64(m.width), uint64(filled))
			q, r := bits.Div64(hi, lo, uint64(width))
			m.share, m.rest = int64(q), r
		}
		left -= m.share
	}
	if left < 0 || left > 0 && left >= int64(len(c.members)) {
		panic(fmt.Sprintf("market: %d Wh of %d left over among %d members", left, filled, len(c.members)))
	}
	if left == 0 {
		return
	}
	// Children were added in the order of their ids.
	slices.SortFunc(c.members, func(a, b member) int {
		switch {
		case a.rest != b.rest:
			return cmp.Compare(b.rest, a.rest)
		case a.order >= 0 && b.order >= 0:
			return cmp.Compare(p.Orders[a.order].ID, p.Orders[b.order].ID)
		case a.order < 0 && b.order < 0:
			return cmp.Compare(a.child, b.child)
		}
		return cmp.Compare(b.order, a.order) // the order before the child
	})
	for i := range c.members[:left] {
		c.members[i].share++
	}
}

// solution adds up.
func (c *Clearer) solution(p *Problem) (Solution, error) {
	r := Solution{
		Fills:  c.fills,
		Prices: make([]chain.NanoPerWh, len(p.Nodes)),
		Flows:  make([]meter.WattHour, len(p.Nodes)),
	}
	var t totals
	for _, e := range c.loaded {
		o := &p.Orders[e.order]
		t.trade(o.Side, int64(o.Limit), c.sites[e.at].price, int64(c.fills[e.order]))
	}
	for i := range c.places {
		pl, s := &c.places[i], &c.sites[i]
		if pl.node < 0 {
			t.gridTrade(p.Grid, s.price, s.x)
			r.GridImport, r.GridExport = meter.WattHour(max(-s.x, 0)), meter.WattHour(max(s.x, 0))
		} else {
			r.Prices[pl.node], r.Flows[pl.node] = chain.NanoPerWh(s.price), meter.WattHour(s.x)
		}
		if pl.parent >= 0 {
			t.fees.add(pl.fee, max(s.x, -s.x))
		}
	}
	var err error
	r.Welfare, r.Fees, r.Paid, r.Received, err = t.money()
	return r, err
}

// totals are the sums of a clearing.
type totals struct{ value, paid, received, fees sum }

func (t *totals) trade(side chain.Side, limit, price, wh int64) {
	if side == chain.Buy {
		t.value.add(limit, wh)
		t.paid.add(price, wh)
	} else {
		t.value.add(limit, -wh)
		t.received.add(price, wh)
	}
}

// gridTrade counts the grid's net import x at its own price.
func (t *totals) gridTrade(g *Grid, price, x int64) {
	if x < 0 {
		t.trade(chain.Sell, int64(g.Retail), price, -x)
	} else {
		t.trade(chain.Buy, int64(g.FeedIn), price, x)
	}
}

// money returns the totals, welfare first.
func (t *totals) money() (welfare, fees, paid, received chain.Nano, err error) {
	value := t.value
	value.sub(t.fees)
	for _, total := range []struct {
		what string
		sum  sum
		dst  *chain.Nano
	}{{"welfare", value, &welfare}, {"fees", t.fees, &fees}, {"paid", t.paid, &paid}, {"received", t.received, &received}} {
		if *total.dst, err = total.sum.nano(); err != nil {
			return 0, 0, 0, 0, fmt.Errorf("%s: %w", total.what, err)
		}
	}
	return welfare, fees, paid, received, nil
}

func clamp(x, lo, hi int64) int64 { return min(max(x, lo), hi) }

func resize[T any](s []T, n int) []T { return slices.Grow(s[:0], n)[:n] }
