package market

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Limits. A problem beyond one of them is refused.
const (
	// MaxDepth is the most edges between the root and a node. Time and memory
	// grow with orders times depth.
	MaxDepth = 16
	// MaxNodes and MaxOrders bound memory.
	MaxNodes  = 1 << 20
	MaxOrders = 1<<24 - 1
	// MaxPrice bounds limits, grid prices and fees, so that four times a
	// price plus the fees of a whole path fits 64 bits.
	MaxPrice chain.NanoPerWh = 1 << 56
	// MaxEnergy bounds the sum of all orders.
	MaxEnergy meter.WattHour = 1 << 60
)

// Node is a place in the network.
type Node struct {
	ID     string
	Parent string          // empty for the root
	Fee    chain.NanoPerWh // of the edge to the parent, either direction; >= 0. The root's is not used.
}

// Grid is the public supply. It buys and sells any quantity.
type Grid struct {
	Retail chain.NanoPerWh // sells at; >= FeedIn
	FeedIn chain.NanoPerWh // buys at
	Fee    chain.NanoPerWh // of the edge between the grid and the root
}

// Order is energy wanted or offered.
type Order struct {
	ID    string
	Side  chain.Side
	Wh    meter.WattHour  // >= 0
	Limit chain.NanoPerWh // most a buyer pays, least a seller takes; may be negative
	Node  string
}

// Problem is what there is to clear.
type Problem struct {
	Nodes  []Node
	Grid   *Grid // nil: no public supply, the neighbourhood is an island
	Orders []Order
}

// Result is a clearing.
type Result struct {
	Welfare  chain.Nano                 // gain over no trade; never negative
	Fills    map[string]meter.WattHour  // of every order, 0..Wh
	Prices   map[string]chain.NanoPerWh // of every node
	Fees     chain.Nano                 // use of the network
	Paid     chain.Nano                 // by buyers and, for what it buys, the grid
	Received chain.Nano                 // by sellers and, for what it sells, the grid

	GridImport, GridExport meter.WattHour // bought from, sold to the grid; one of them is 0

	// Flows is the net energy over the edge of every node but the root:
	// positive from the parent into the node.
	Flows map[string]meter.WattHour
}

// place is a node in breadth-first order: parents before children, children
// of one node side by side in the order of their ids.
type place struct {
	node         int32 // index in Problem.Nodes, -1 for the grid
	parent       int32 // place of the parent, -1 for the root
	first, after int32 // places of the children
	depth        int8
	fee          int64
}

// tree is the checked network of a problem, the grid included as the last
// child of the root.
type tree struct {
	index  map[string]int32 // node id -> index in Problem.Nodes, then -> place
	places []place          // places[0] is the root
	grid   int32            // place of the grid, 0 if there is none

	byID, next, children []int32 // scratch
}

func checkPrice(what string, p chain.NanoPerWh) error {
	if p > MaxPrice || p < -MaxPrice {
		return fmt.Errorf("%s %d nano/Wh is beyond %d: %w", what, p, MaxPrice, chain.ErrOverflow)
	}
	return nil
}

func checkFee(what string, fee chain.NanoPerWh) error {
	if fee < 0 {
		return fmt.Errorf("fee of %s is negative: %d nano/Wh", what, fee)
	}
	return checkPrice("fee of "+what, fee)
}

// load checks nodes and grid and lays them out.
func (t *tree) load(p *Problem) error {
	n := len(p.Nodes)
	if n > MaxNodes {
		return fmt.Errorf("%d nodes, the limit is %d", n, MaxNodes)
	}
	if t.index == nil {
		t.index = make(map[string]int32, n)
	}
	clear(t.index)
	root := int32(-1)
	for i := range p.Nodes {
		node := &p.Nodes[i]
		if node.ID == "" {
			return fmt.Errorf("node number %d has no id", i+1)
		}
		if _, dup := t.index[node.ID]; dup {
			return fmt.Errorf("duplicate node id %q", node.ID)
		}
		t.index[node.ID] = int32(i)
		if err := checkFee(fmt.Sprintf("node %q", node.ID), node.Fee); err != nil {
			return err
		}
		if node.Parent == "" {
			if root >= 0 {
				return fmt.Errorf("several roots: nodes %q and %q have no parent", p.Nodes[root].ID, node.ID)
			}
			root = int32(i)
		}
	}
	if n == 0 {
		return errors.New("no nodes")
	}
	if root < 0 {
		return errors.New("no root: every node has a parent, so there is a cycle")
	}

	// Children of every node, in the order of their ids.
	t.byID = t.byID[:0]
	t.next = slices.Grow(t.next[:0], n+1)[:n+1] // where the children of a node start, in t.children
	clear(t.next)
	for i := range p.Nodes {
		if int32(i) == root {
			continue
		}
		parent, ok := t.index[p.Nodes[i].Parent]
		if !ok {
			return fmt.Errorf("node %q has the unknown parent %q", p.Nodes[i].ID, p.Nodes[i].Parent)
		}
		t.byID = append(t.byID, int32(i))
		t.next[parent+1]++
	}
	for i := range n {
		t.next[i+1] += t.next[i]
	}
	slices.SortFunc(t.byID, func(a, b int32) int { return cmp.Compare(p.Nodes[a].ID, p.Nodes[b].ID) })
	t.children = slices.Grow(t.children[:0], n)[:n-1]
	fill := slices.Clone(t.next)
	for _, i := range t.byID {
		parent := t.index[p.Nodes[i].Parent]
		t.children[fill[parent]] = i
		fill[parent]++
	}

	t.grid = 0
	t.places = append(t.places[:0], place{node: root, parent: -1})
	for at := 0; at < len(t.places); at++ {
		i := t.places[at].node
		if i < 0 {
			t.places[at].first, t.places[at].after = int32(len(t.places)), int32(len(t.places))
			continue
		}
		t.index[p.Nodes[i].ID] = int32(at)
		first := int32(len(t.places))
		depth := t.places[at].depth + 1
		for _, c := range t.children[t.next[i]:t.next[i+1]] {
			if depth > MaxDepth {
				return fmt.Errorf("node %q is more than %d edges from the root", p.Nodes[c].ID, MaxDepth)
			}
			t.places = append(t.places, place{node: c, parent: int32(at), depth: depth, fee: int64(p.Nodes[c].Fee)})
		}
		if at == 0 && p.Grid != nil {
			t.grid = int32(len(t.places))
			t.places = append(t.places, place{node: -1, parent: 0, depth: depth, fee: int64(p.Grid.Fee)})
		}
		t.places[at].first, t.places[at].after = first, int32(len(t.places))
	}
	if reached := len(t.places); (t.grid == 0 && reached < n) || (t.grid != 0 && reached < n+1) {
		return t.cycle(p)
	}
	if g := p.Grid; g != nil {
		if g.Retail < g.FeedIn {
			return fmt.Errorf("grid: retail %d is below feed-in %d", g.Retail, g.FeedIn)
		}
		if err := errors.Join(checkFee("the grid", g.Fee), checkPrice("grid: retail", g.Retail), checkPrice("grid: feed-in", g.FeedIn)); err != nil {
			return err
		}
	}
	return nil
}

// cycle names a node that the root does not reach.
func (t *tree) cycle(p *Problem) error {
	reached := make([]bool, len(p.Nodes))
	for _, pl := range t.places {
		if pl.node >= 0 {
			reached[pl.node] = true
		}
	}
	return fmt.Errorf("node %q is on or below a cycle", p.Nodes[slices.Index(reached, false)].ID)
}

// checkOrder returns the place of o.
func (t *tree) checkOrder(o *Order) (int32, error) {
	at, ok := t.index[o.Node]
	switch {
	case o.ID == "":
		return 0, errors.New("an order has no id")
	case !ok:
		return 0, fmt.Errorf("order %q is at the unknown node %q", o.ID, o.Node)
	case o.Side != chain.Buy && o.Side != chain.Sell:
		return 0, fmt.Errorf("order %q: %v is neither buy nor sell", o.ID, o.Side)
	case o.Wh < 0:
		return 0, fmt.Errorf("order %q has negative energy: %d Wh", o.ID, o.Wh)
	case o.Limit > MaxPrice || o.Limit < -MaxPrice:
		return 0, fmt.Errorf("order %q: %w", o.ID, checkPrice("limit", o.Limit))
	}
	return at, nil
}

const unbounded = math.MaxInt64 // a price interval's missing end, with its sign
