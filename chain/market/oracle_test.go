package market

import (
	"cmp"
	"maps"
	"math"
	"math/big"
	"slices"

	"github.com/joulegate/joulegate/chain"
)

// Two oracles that share no code with the solver.
//
// bestWelfare is a textbook min-cost flow: successive shortest augmenting
// paths on the expanded network. It knows the optimum, not the tie-breaks.
//
// literal spells out the ten rules of clearing with explicit lifted step
// lists. It knows every Wh and every price, and is far too slow for use.

type arc struct {
	to, back int // node, index of the reverse arc in the list of to
	capacity int64
	cost     int64
}

type network struct{ arcs [][]arc }

func (n *network) add(from, to int, capacity, cost int64) {
	n.arcs[from] = append(n.arcs[from], arc{to, len(n.arcs[to]), capacity, cost})
	n.arcs[to] = append(n.arcs[to], arc{from, len(n.arcs[from]) - 1, 0, -cost})
}

// minCost returns the least cost of any amount of flow from s to t.
func (n *network) minCost(s, t int) int64 {
	var total int64
	for {
		dist := make([]int64, len(n.arcs))
		via := make([][2]int, len(n.arcs)) // node, arc
		for i := range dist {
			dist[i] = math.MaxInt64
		}
		dist[s] = 0
		for changed := true; changed; { // Bellman-Ford
			changed = false
			for u := range n.arcs {
				if dist[u] == math.MaxInt64 {
					continue
				}
				for i, a := range n.arcs[u] {
					if a.capacity > 0 && dist[u]+a.cost < dist[a.to] {
						dist[a.to], via[a.to], changed = dist[u]+a.cost, [2]int{u, i}, true
					}
				}
			}
		}
		if dist[t] >= 0 { // or unreachable
			return total
		}
		push := int64(math.MaxInt64)
		for v := t; v != s; v = via[v][0] {
			push = min(push, n.arcs[via[v][0]][via[v][1]].capacity)
		}
		for v := t; v != s; v = via[v][0] {
			a := &n.arcs[via[v][0]][via[v][1]]
			a.capacity -= push
			n.arcs[v][a.back].capacity += push
		}
		total += push * dist[t]
	}
}

// bestWelfare is the highest welfare of p, with prices scaled and the bias
// added to bids and taken from asks.
func bestWelfare(p Problem, scale, bias int64) int64 {
	const infinite = 1 << 40
	index := map[string]int{}
	for i, n := range p.Nodes {
		index[n.ID] = i
	}
	grid, s, t := len(p.Nodes), len(p.Nodes)+1, len(p.Nodes)+2
	n := &network{arcs: make([][]arc, len(p.Nodes)+3)}
	both := func(a, b int, fee chain.NanoPerWh) {
		n.add(a, b, infinite, scale*int64(fee))
		n.add(b, a, infinite, scale*int64(fee))
	}
	for i, node := range p.Nodes {
		if node.Parent != "" {
			both(i, index[node.Parent], node.Fee)
		} else if p.Grid != nil {
			both(i, grid, p.Grid.Fee)
		}
	}
	for _, o := range p.Orders {
		if o.Side == chain.Buy {
			n.add(index[o.Node], t, int64(o.Wh), -scale*int64(o.Limit)-bias)
		} else {
			n.add(s, index[o.Node], int64(o.Wh), scale*int64(o.Limit)-bias)
		}
	}
	if p.Grid != nil {
		n.add(s, grid, infinite, scale*int64(p.Grid.Retail))
		n.add(grid, t, infinite, -scale*int64(p.Grid.FeedIn))
	}
	return -n.minCost(s, t)
}

// literalStep is a step of known width.
type literalStep struct{ key, width int64 }

type literalCurve struct {
	supply int64
	steps  []literalStep // key falling
}

type literal struct {
	p        Problem
	children map[string][]string
	curves   map[string]literalCurve // by node id
	demand   int64
	supply   int64

	fills, prices, imports map[string]int64
}

// gridID is no id that a random problem uses. As the last child of the root
// it is appended, not sorted.
const gridID = "\xffgrid"

func newLiteral(p Problem) *literal {
	l := &literal{
		p: p, children: map[string][]string{}, curves: map[string]literalCurve{},
		fills: map[string]int64{}, prices: map[string]int64{}, imports: map[string]int64{},
	}
	var root string
	for _, n := range p.Nodes {
		if n.Parent == "" {
			root = n.ID
		} else {
			l.children[n.Parent] = append(l.children[n.Parent], n.ID)
		}
	}
	for id := range l.children {
		slices.Sort(l.children[id])
	}
	if p.Grid != nil {
		l.children[root] = append(l.children[root], gridID)
	}
	for _, o := range p.Orders {
		if o.Side == chain.Buy {
			l.demand += int64(o.Wh)
		} else {
			l.supply += int64(o.Wh)
		}
		l.fills[o.ID] = 0
	}
	l.build(root)
	l.price(root, "", 0)
	l.descend(root, 0)
	return l
}

func (l *literal) fee(id string) int64 {
	if id == gridID {
		return int64(l.p.Grid.Fee)
	}
	for _, n := range l.p.Nodes {
		if n.ID == id {
			return int64(n.Fee)
		}
	}
	panic(id)
}

func orderKey(o Order) int64 {
	if o.Side == chain.Buy {
		return 4*int64(o.Limit) + 1
	}
	return 4*int64(o.Limit) - 1
}

func (l *literal) build(id string) {
	widths := map[int64]int64{}
	var c literalCurve
	if id == gridID {
		widths[4*int64(l.p.Grid.Retail)] += l.demand + 1
		widths[4*int64(l.p.Grid.FeedIn)] += l.supply + 1
		c.supply = l.demand + 1
	}
	for _, o := range l.p.Orders {
		if o.Node == id && o.Wh > 0 {
			widths[orderKey(o)] += int64(o.Wh)
			if o.Side == chain.Sell {
				c.supply += int64(o.Wh)
			}
		}
	}
	for _, ch := range l.children[id] {
		l.build(ch)
		c.supply += l.curves[ch].supply
		for _, s := range l.curves[ch].lift(l.fee(ch)) {
			widths[s.key] += s.width
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(widths), func(a, b int64) int { return cmp.Compare(b, a) }) {
		c.steps = append(c.steps, literalStep{k, widths[k]})
	}
	l.curves[id] = c
}

func (c literalCurve) lift(fee int64) []literalStep {
	var out []literalStep
	x := -c.supply
	for _, s := range c.steps {
		left := min(s.width, max(0, -x))
		if fee == 0 {
			left = s.width
		}
		if left > 0 {
			out = append(out, literalStep{s.key + 4*fee, left})
		}
		if left < s.width {
			out = append(out, literalStep{s.key - 4*fee, s.width - left})
		}
		x += s.width
	}
	return out
}

// price sets the prices of id and everything below.
func (l *literal) price(id, parent string, fee int64) {
	c := l.curves[id]
	var lo, hi *int64
	x := -c.supply
	for _, s := range c.steps {
		p := int64(math.Floor(float64(s.key+2) / 4))
		if x < 0 {
			hi = &p
		}
		x += s.width
		if x > 0 && lo == nil {
			lo = &p
		}
	}
	pp := l.prices[parent]
	var m int64
	switch {
	case lo != nil && hi != nil:
		m = *lo + (*hi-*lo)/2
	case parent == "" && lo != nil:
		m = *lo
	case parent == "" && hi != nil:
		m = *hi
	case parent != "":
		m = pp
		if lo != nil {
			m = max(m, *lo)
		}
		if hi != nil {
			m = min(m, *hi)
		}
	}
	if parent != "" {
		m = min(max(m, pp-fee), pp+fee)
	}
	l.prices[id] = m
	for _, ch := range l.children[id] {
		l.price(ch, id, l.fee(ch))
	}
}

// descend fills the subtree of id, which imports x.
func (l *literal) descend(id string, x int64) {
	l.imports[id] = x
	c := l.curves[id]
	k, taken, width := int64(math.MaxInt64), int64(0), int64(0)
	start := -c.supply
	for _, s := range c.steps {
		if start < x && x <= start+s.width {
			k, taken, width = s.key, x-start, s.width
		}
		start += s.width
	}
	asks := (k%4+4)%4 == 3

	type member struct {
		order, child string
		w, got       int64
		rest         *big.Int
	}
	var members []*member
	into := map[string]int64{} // imports of children
	for _, o := range l.p.Orders {
		if o.Node != id || o.Wh == 0 {
			continue
		}
		switch key := orderKey(o); {
		case key > k && o.Side == chain.Buy, key < k && o.Side == chain.Sell:
			l.fills[o.ID] = int64(o.Wh)
		case key == k:
			members = append(members, &member{order: o.ID, w: int64(o.Wh)})
		}
	}
	slices.SortFunc(members, func(a, b *member) int { return cmp.Compare(a.order, b.order) })
	for _, ch := range l.children[id] {
		into[ch] = -l.curves[ch].supply
		for _, s := range l.curves[ch].lift(l.fee(ch)) {
			if s.key > k {
				into[ch] += s.width
			} else if s.key == k {
				members = append(members, &member{child: ch, w: s.width})
			}
		}
	}
	filled := taken
	if asks {
		filled = width - taken
	}
	left := filled
	for _, m := range members {
		q, r := new(big.Int).QuoRem(new(big.Int).Mul(big.NewInt(m.w), big.NewInt(filled)), big.NewInt(width), new(big.Int))
		m.got, m.rest = q.Int64(), r
		left -= m.got
	}
	byRest := slices.Clone(members)
	slices.SortStableFunc(byRest, func(a, b *member) int { return b.rest.Cmp(a.rest) })
	for i := range left {
		byRest[i].got++
	}
	for _, m := range members {
		switch {
		case m.child == "":
			l.fills[m.order] = m.got
		case asks:
			into[m.child] += m.w - m.got
		default:
			into[m.child] += m.got
		}
	}
	for ch, x := range into {
		if ch == gridID {
			l.imports[ch] = x
			continue
		}
		l.descend(ch, x)
	}
}
