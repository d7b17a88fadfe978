package market

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// intn draws 0 <= i < n. Random problems come from a seeded source or from
// rapid, which can shrink them.
type intn func(n int) int

// randomProblem draws a small tree with few distinct prices, so that ties,
// zero fees and zero energies are common.
func randomProblem(draw intn) Problem {
	n := 1 + draw(8)
	spread := 1 + draw(40)
	var p Problem
	for _, i := range shuffled(n, draw) { // ids independent of the shape
		id := fmt.Sprint("n", i)
		if len(p.Nodes) == 0 {
			p.Nodes = append(p.Nodes, Node{ID: id, Fee: chain.NanoPerWh(draw(3))})
			continue
		}
		p.Nodes = append(p.Nodes, Node{ID: id, Parent: p.Nodes[draw(len(p.Nodes))].ID, Fee: chain.NanoPerWh(draw(6))})
	}
	for _, i := range shuffled(draw(16), draw) {
		p.Orders = append(p.Orders, Order{
			ID: fmt.Sprint("o", i), Side: chain.Side(1 + draw(2)), Wh: meter.WattHour(draw(25)),
			Limit: chain.NanoPerWh(draw(spread) - 5), Node: p.Nodes[draw(n)].ID,
		})
	}
	if draw(3) > 0 {
		feedIn := draw(20) - 5
		p.Grid = &Grid{FeedIn: chain.NanoPerWh(feedIn), Retail: chain.NanoPerWh(feedIn + draw(30)), Fee: chain.NanoPerWh(draw(4))}
	}
	for i, j := range shuffled(n, draw) { // parents need not come first
		p.Nodes[i], p.Nodes[j] = p.Nodes[j], p.Nodes[i]
	}
	return p
}

func shuffled(n int, draw intn) []int {
	s := make([]int, n)
	for i := range s {
		j := draw(i + 1)
		s[i], s[j] = s[j], i
	}
	return s
}

// biased is the welfare with the solver's tie-break, in quarters of a nano:
// two for every Wh from neighbour to neighbour, one for every Wh with the grid.
func biased(p Problem, r Result) int64 {
	total := 4 * int64(r.Welfare)
	for _, o := range p.Orders {
		total += int64(r.Fills[o.ID])
	}
	return total
}

// problems is how many random trees are compared; a soak takes millions.
var problems = flag.Int("market.problems", 20_000, "random problems against the min-cost-flow oracle")

func TestAgainstOracles(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var c Clearer
	for i := range *problems {
		p := randomProblem(r.IntN)
		got, err := c.Clear(p)
		if err != nil {
			t.Fatalf("seed %d, problem %d: %v\n%s", seed, i, err, show(p))
		}
		fail := func(what string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, problem %d: %s\n%s\n%+v", seed, i, fmt.Sprintf(what, args...), show(p), got)
		}
		if again, err := ParseProblem([]byte(show(p))); err != nil || !reflect.DeepEqual(p, again) {
			fail("does not survive JSON: %v", err)
		}
		if err := Certify(p, got); err != nil {
			fail("certificate: %v", err)
		}
		best := bestWelfare(p, 1, 0)
		if int64(got.Welfare) != best {
			fail("welfare %d, min-cost flow has %d", got.Welfare, best)
		}
		if b, want := biased(p, got), bestWelfare(p, 4, 1); b != want {
			fail("welfare with tie-break %d, min-cost flow has %d", b, want)
		}

		l := newLiteral(p)
		for id, want := range l.fills {
			if int64(got.Fills[id]) != want {
				fail("fill of %s is %d, the rules say %d", id, got.Fills[id], want)
			}
		}
		for id, flow := range got.Flows {
			if int64(flow) != l.imports[id] {
				fail("flow into %s is %d, the rules say %d", id, flow, l.imports[id])
			}
		}
		for id, price := range got.Prices {
			if int64(price) != l.prices[id] {
				fail("price of %s is %d, the rules say %d", id, price, l.prices[id])
			}
		}

		perturb(t, r, p, got, best)
	}
}

// perturb changes one number of a certified result, or replaces the fills by
// others with matching flows and totals, and expects the certificate to fail
// unless what it certifies still is the optimum.
func perturb(t *testing.T, r *rand.Rand, p Problem, good Result, best int64) {
	t.Helper()
	bad := good
	bad.Fills, bad.Prices, bad.Flows = maps.Clone(good.Fills), maps.Clone(good.Prices), maps.Clone(good.Flows)
	delta := int64(1 - 2*r.IntN(2))
	what := ""
	switch kind := r.IntN(9); {
	case kind == 0 && len(p.Orders) > 0:
		id := p.Orders[r.IntN(len(p.Orders))].ID
		bad.Fills[id] += meter.WattHour(delta)
		what = "fill of " + id
	case kind == 1 && len(p.Nodes) > 1:
		for id := range bad.Flows {
			bad.Flows[id] += meter.WattHour(delta)
			what = "flow of " + id
			break
		}
	case kind == 2:
		bad.Welfare += chain.Nano(delta)
		what = "welfare"
	case kind == 3:
		bad.Paid += chain.Nano(delta)
		bad.Received += chain.Nano(delta)
		what = "paid and received"
	case kind == 4:
		bad.Fees += chain.Nano(delta)
		what = "fees"
	case kind == 5:
		bad.GridImport += meter.WattHour(delta)
		what = "grid import"
	case kind == 6: // a price alone may move within what the orders allow, if nobody trades there
		node := p.Nodes[r.IntN(len(p.Nodes))].ID
		bad.Prices[node] += chain.NanoPerWh(delta)
		for _, o := range p.Orders {
			if o.Node == node && good.Fills[o.ID] > 0 {
				what = "price of " + node
			}
		}
	default: // other fills, coherent in themselves
		for _, o := range p.Orders {
			if r.IntN(3) == 0 {
				bad.Fills[o.ID] = meter.WattHour(r.Int64N(int64(o.Wh) + 1))
			}
		}
		settle(p, &bad)
		if Certify(p, bad) == nil && int64(bad.Welfare) != best {
			t.Fatalf("a clearing of welfare %d is certified, the best has %d\n%s\n%+v", bad.Welfare, best, show(p), bad)
		}
		return
	}
	if what != "" && Certify(p, bad) == nil {
		t.Fatalf("certified with a wrong %s\n%s\n%+v", what, show(p), bad)
	}
}

// settle recomputes flows and totals from fills and prices.
func settle(p Problem, r *Result) {
	net := map[string]meter.WattHour{}
	r.Welfare, r.Fees, r.Paid, r.Received, r.GridImport, r.GridExport = 0, 0, 0, 0, 0, 0
	for _, o := range p.Orders {
		money := chain.Nano(r.Prices[o.Node]) * chain.Nano(r.Fills[o.ID])
		value := chain.Nano(o.Limit) * chain.Nano(r.Fills[o.ID])
		if o.Side == chain.Buy {
			r.Paid, r.Welfare = r.Paid+money, r.Welfare+value
		} else {
			r.Received, r.Welfare = r.Received+money, r.Welfare-value
		}
		for at := o.Node; at != ""; at = parentOf(p, at) {
			if o.Side == chain.Buy {
				net[at] += r.Fills[o.ID]
			} else {
				net[at] -= r.Fills[o.ID]
			}
		}
	}
	for _, n := range p.Nodes {
		switch x := net[n.ID]; {
		case n.Parent != "":
			r.Flows[n.ID] = x
			r.Fees += chain.Nano(n.Fee) * chain.Nano(max(x, -x))
		case p.Grid != nil && x > 0:
			r.GridImport = x
			r.Fees += chain.Nano(p.Grid.Fee) * chain.Nano(x)
			r.Received += chain.Nano(p.Grid.Retail) * chain.Nano(x)
			r.Welfare -= chain.Nano(p.Grid.Retail) * chain.Nano(x)
		case p.Grid != nil && x < 0:
			r.GridExport = -x
			r.Fees += chain.Nano(p.Grid.Fee) * chain.Nano(-x)
			r.Paid += chain.Nano(p.Grid.FeedIn) * chain.Nano(-x)
			r.Welfare += chain.Nano(p.Grid.FeedIn) * chain.Nano(-x)
		}
	}
	r.Welfare -= r.Fees
}

func parentOf(p Problem, id string) string {
	i := slices.IndexFunc(p.Nodes, func(n Node) bool { return n.ID == id })
	return p.Nodes[i].Parent
}

// show writes p in the form that market clear reads.
func show(p Problem) string {
	var w problemJSON
	for _, n := range p.Nodes {
		w.Nodes = append(w.Nodes, nodeJSON(n))
	}
	if p.Grid != nil {
		g := gridJSON(*p.Grid)
		w.Grid = &g
	}
	for _, o := range p.Orders {
		w.Orders = append(w.Orders, orderJSON{ID: o.ID, Side: o.Side.String(), Wh: o.Wh, Limit: o.Limit, Node: o.Node})
	}
	b, err := json.Marshal(w)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(n int) int { return rapid.IntRange(0, max(n-1, 0)).Draw(t, "i") }
		p := randomProblem(draw)
		r, err := Clear(p)
		if err != nil {
			t.Fatal(err)
		}
		again := r
		again.Fills, again.Prices, again.Flows = maps.Clone(r.Fills), maps.Clone(r.Prices), maps.Clone(r.Flows)
		settle(p, &again)
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("flows or totals do not follow from fills and prices:\n%+v\n%+v", r, again)
		}
		if r.Paid != r.Received+r.Fees {
			t.Fatalf("paid %d, received %d, fees %d", r.Paid, r.Received, r.Fees)
		}
		if r.Welfare < 0 {
			t.Fatalf("welfare %d", r.Welfare)
		}
		type class struct {
			node  string
			side  chain.Side
			limit chain.NanoPerWh
		}
		classes := map[class][]Order{}
		balance := r.GridImport - r.GridExport
		for _, o := range p.Orders {
			fill, price := r.Fills[o.ID], r.Prices[o.Node]
			if fill < 0 || fill > o.Wh {
				t.Fatalf("%+v filled with %d", o, fill)
			}
			if o.Side == chain.Buy {
				balance -= fill
			} else {
				balance += fill
			}
			if fill > 0 && (o.Side == chain.Buy && price > o.Limit || o.Side == chain.Sell && price < o.Limit) {
				t.Fatalf("%+v trades at %d", o, price)
			}
			c := class{o.Node, o.Side, o.Limit}
			for _, peer := range classes[c] { // pro rata: filled fractions differ by less than one Wh each
				d := int64(fill)*int64(peer.Wh) - int64(r.Fills[peer.ID])*int64(o.Wh)
				if max(d, -d) >= int64(peer.Wh+o.Wh) && d != 0 {
					t.Fatalf("%+v got %d and %+v got %d", o, fill, peer, r.Fills[peer.ID])
				}
			}
			classes[c] = append(classes[c], o)
		}
		if balance != 0 {
			t.Fatalf("%d Wh are nobody's", balance)
		}

		q := Problem{Grid: p.Grid}
		for _, i := range shuffled(len(p.Nodes), draw) {
			q.Nodes = append(q.Nodes, p.Nodes[i])
		}
		for _, i := range shuffled(len(p.Orders), draw) {
			q.Orders = append(q.Orders, p.Orders[i])
		}
		if other, err := Clear(q); err != nil || !reflect.DeepEqual(r, other) {
			t.Fatalf("the sequence of nodes and orders matters (%v):\n%+v\n%+v", err, r, other)
		}
	})
}

// TestLargeNumbers runs the certificate on problems whose products need 128
// bits on the way.
func TestLargeNumbers(t *testing.T) {
	const wh = 1 << 50
	p := Problem{
		Nodes: []Node{{ID: "r"}, {ID: "a", Parent: "r", Fee: 1}, {ID: "b", Parent: "r"}},
		Orders: []Order{
			{"s", chain.Sell, wh, 3, "a"},
			{"b1", chain.Buy, wh, 5, "b"},
			{"b2", chain.Buy, wh / 2, 5, "b"},
			{"b3", chain.Buy, wh/2 + 1, 5, "b"},
		},
	}
	r, err := Clear(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := Certify(p, r); err != nil {
		t.Fatal(err)
	}
	// wh of 2*wh+1 wanted: shares are just below a half, a quarter, a quarter.
	want := map[string]meter.WattHour{"s": wh, "b1": wh / 2, "b2": wh / 4, "b3": wh / 4}
	if !reflect.DeepEqual(r.Fills, want) {
		t.Errorf("fills %v, want %v", r.Fills, want)
	}
	for i := range p.Orders {
		p.Orders[i].Limit += MaxPrice / 2
	}
	if _, err := Clear(p); !errors.Is(err, chain.ErrOverflow) {
		t.Errorf("money beyond 64 bits: %v", err)
	}
}

func TestGolden(t *testing.T) {
	tests := []struct{ name, problem, want string }{
		{
			// The neighbour behind 2+2 beats the grid at 30: the sun keeps 26, the car pays 30.
			name: "neighbour first, rest from the grid",
			problem: `{"nodes":[{"id":"root","parent":"","fee":0},{"id":"car","parent":"root","fee":2},{"id":"sun","parent":"root","fee":2}],
				"grid":{"retail":28,"feed_in":8,"fee":0},
				"orders":[{"id":"b","side":"buy","wh":1500,"limit":40,"node":"car"},{"id":"s","side":"sell","wh":1000,"limit":8,"node":"sun"}]}`,
			want: `{"welfare":33000,"fills":{"b":1500,"s":1000},"prices":{"car":30,"root":28,"sun":26},"fees":5000,"paid":45000,"received":40000,"grid":{"import_wh":500,"export_wh":0}}`,
		},
		{
			// Two equal buyers on one feeder: the near seller serves both, 3 Wh of 2+2: one left over, to the first id.
			name: "pro rata, the odd Wh to the first id",
			problem: `{"nodes":[{"id":"f","parent":"","fee":0}],"grid":null,
				"orders":[{"id":"y","side":"buy","wh":2,"limit":10,"node":"f"},{"id":"x","side":"buy","wh":2,"limit":10,"node":"f"},{"id":"s","side":"sell","wh":3,"limit":4,"node":"f"}]}`,
			want: `{"welfare":18,"fills":{"s":3,"x":2,"y":1},"prices":{"f":10},"fees":0,"paid":30,"received":30,"grid":{"import_wh":0,"export_wh":0}}`,
		},
		{
			name: "equal prices trade, in the middle",
			problem: `{"nodes":[{"id":"f","parent":"","fee":0}],"grid":null,
				"orders":[{"id":"b","side":"buy","wh":5,"limit":10,"node":"f"},{"id":"s","side":"sell","wh":5,"limit":10,"node":"f"}]}`,
			want: `{"welfare":0,"fills":{"b":5,"s":5},"prices":{"f":10},"fees":0,"paid":50,"received":50,"grid":{"import_wh":0,"export_wh":0}}`,
		},
		{
			name: "the fee is more than the gain: nobody trades, each node has its own price",
			problem: `{"nodes":[{"id":"root","parent":"","fee":0},{"id":"a","parent":"root","fee":3},{"id":"b","parent":"root","fee":3}],"grid":null,
				"orders":[{"id":"buy","side":"buy","wh":5,"limit":10,"node":"a"},{"id":"sell","side":"sell","wh":5,"limit":5,"node":"b"}]}`,
			want: `{"welfare":0,"fills":{"buy":0,"sell":0},"prices":{"a":10,"b":5,"root":7},"fees":0,"paid":0,"received":0,"grid":{"import_wh":0,"export_wh":0}}`,
		},
		{
			// Too much sun: nobody takes it at 0, the grid pays -3, and the seller would rather pay 5 than switch off.
			name: "negative prices",
			problem: `{"nodes":[{"id":"root","parent":"","fee":0}],"grid":{"retail":20,"feed_in":-3,"fee":1},
				"orders":[{"id":"s","side":"sell","wh":10,"limit":-5,"node":"root"},{"id":"b","side":"buy","wh":4,"limit":0,"node":"root"}]}`,
			want: `{"welfare":26,"fills":{"b":4,"s":10},"prices":{"root":-4},"fees":6,"paid":-34,"received":-40,"grid":{"import_wh":0,"export_wh":6}}`,
		},
		{
			name:    "no orders",
			problem: `{"nodes":[{"id":"root","parent":"","fee":0},{"id":"a","parent":"root","fee":1}],"grid":{"retail":30,"feed_in":9,"fee":0},"orders":[]}`,
			want:    `{"welfare":0,"fills":{},"prices":{"a":19,"root":19},"fees":0,"paid":0,"received":0,"grid":{"import_wh":0,"export_wh":0}}`,
		},
		{
			name:    "an island without orders",
			problem: `{"nodes":[{"id":"root","parent":"","fee":0}],"grid":null,"orders":[{"id":"z","side":"buy","wh":0,"limit":9,"node":"root"}]}`,
			want:    `{"welfare":0,"fills":{"z":0},"prices":{"root":0},"fees":0,"paid":0,"received":0,"grid":{"import_wh":0,"export_wh":0}}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParseProblem([]byte(tt.problem))
			if err != nil {
				t.Fatal(err)
			}
			r, err := Clear(p)
			if err != nil {
				t.Fatal(err)
			}
			if err := Certify(p, r); err != nil {
				t.Error(err)
			}
			got, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// valid is a problem that the tests of refusals break.
func valid() Problem {
	return Problem{
		Nodes:  []Node{{ID: "r"}, {ID: "a", Parent: "r", Fee: 1}, {ID: "b", Parent: "a", Fee: 1}},
		Grid:   &Grid{Retail: 30, FeedIn: 8},
		Orders: []Order{{"b1", chain.Buy, 5, 20, "a"}, {"s1", chain.Sell, 5, 10, "b"}},
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name, want string
		overflow   bool
		edit       func(p *Problem)
	}{
		{name: "no nodes", want: "no nodes", edit: func(p *Problem) { p.Nodes = nil }},
		{name: "node without id", want: "node number 2 has no id", edit: func(p *Problem) { p.Nodes[1].ID = "" }},
		{name: "duplicate node", want: `duplicate node id "a"`, edit: func(p *Problem) { p.Nodes[2].ID = "a" }},
		{name: "several roots", want: `nodes "r" and "b" have no parent`, edit: func(p *Problem) { p.Nodes[2].Parent = "" }},
		{name: "all in a cycle", want: "cycle", edit: func(p *Problem) { p.Nodes[0].Parent = "b" }},
		{name: "cycle beside the root", want: `"a" is on or below a cycle`, edit: func(p *Problem) { p.Nodes[1].Parent = "b" }},
		{name: "own parent", want: `"b" is on or below a cycle`, edit: func(p *Problem) { p.Nodes[2].Parent = "b" }},
		{name: "unknown parent", want: `unknown parent "x"`, edit: func(p *Problem) { p.Nodes[2].Parent = "x" }},
		{name: "negative fee", want: `fee of node "a" is negative`, edit: func(p *Problem) { p.Nodes[1].Fee = -1 }},
		{name: "fee", want: `fee of node "a"`, overflow: true, edit: func(p *Problem) { p.Nodes[1].Fee = MaxPrice + 1 }},
		{name: "retail below feed-in", want: "retail 7 is below feed-in 8", edit: func(p *Problem) { p.Grid.Retail = 7 }},
		{name: "negative grid fee", want: "fee of the grid", edit: func(p *Problem) { p.Grid.Fee = -1 }},
		{name: "retail", want: "retail", overflow: true, edit: func(p *Problem) { p.Grid.Retail = MaxPrice + 1 }},
		{name: "feed-in", want: "feed-in", overflow: true, edit: func(p *Problem) { p.Grid.FeedIn = -MaxPrice - 1 }},
		{name: "order without id", want: "no id", edit: func(p *Problem) { p.Orders[0].ID = "" }},
		{name: "duplicate order", want: `duplicate order id "b1"`, edit: func(p *Problem) { p.Orders[1].ID = "b1" }},
		{name: "duplicate order of 0 Wh", want: `duplicate order id "b1"`, edit: func(p *Problem) { p.Orders[1].ID, p.Orders[1].Wh = "b1", 0 }},
		{name: "unknown node", want: `unknown node "x"`, edit: func(p *Problem) { p.Orders[0].Node = "x" }},
		{name: "order at the grid", want: "unknown node", edit: func(p *Problem) { p.Orders[0].Node = "" }},
		{name: "side", want: "neither buy nor sell", edit: func(p *Problem) { p.Orders[0].Side = 3 }},
		{name: "negative energy", want: "negative energy", edit: func(p *Problem) { p.Orders[0].Wh = -1 }},
		{name: "limit", want: "limit", overflow: true, edit: func(p *Problem) { p.Orders[0].Limit = -MaxPrice - 1 }},
		{name: "energy", want: `order "s1"`, overflow: true, edit: func(p *Problem) { p.Orders[0].Wh, p.Orders[1].Wh = MaxEnergy/2+1, MaxEnergy/2 }},
		{name: "money", want: "welfare", overflow: true, edit: func(p *Problem) {
			p.Orders[0].Wh, p.Orders[1].Wh, p.Orders[0].Limit = 1<<30, 1<<30, 1<<40
		}},
		{name: "depth", want: "more than 16 edges", edit: func(p *Problem) {
			for i := range 15 {
				p.Nodes = append(p.Nodes, Node{ID: fmt.Sprint("d", i), Parent: p.Nodes[len(p.Nodes)-1].ID})
			}
		}},
	}
	if _, err := Clear(valid()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := valid()
			tt.edit(&p)
			r, err := Clear(p)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if errors.Is(err, chain.ErrOverflow) != tt.overflow {
				t.Errorf("error %v, overflow wanted: %v", err, tt.overflow)
			}
			if !reflect.DeepEqual(r, Result{}) {
				t.Errorf("an error with a result: %+v", r)
			}
			if Certify(p, r) == nil {
				t.Error("certified")
			}
		})
	}
}

func TestDeepestTree(t *testing.T) {
	p := Problem{Nodes: []Node{{ID: "0"}}, Orders: []Order{{"s", chain.Sell, 7, 10, "0"}}}
	for i := 1; i <= MaxDepth; i++ {
		p.Nodes = append(p.Nodes, Node{ID: fmt.Sprint(i), Parent: fmt.Sprint(i - 1), Fee: MaxPrice / 1024})
	}
	p.Orders = append(p.Orders, Order{"b", chain.Buy, 7, MaxPrice, fmt.Sprint(MaxDepth)})
	r, err := Clear(p)
	if err != nil || r.Fills["b"] != 7 {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := Certify(p, r); err != nil {
		t.Fatal(err)
	}
}

func TestParseProblemRefusals(t *testing.T) {
	for in, want := range map[string]string{
		``:                                      "empty input",
		"{\n\"nodes\":[],\n\"nods\":[]}":        "nods",
		"{\n\n}\n{}":                            "line 4: more than one",
		"{\"nodes\":[\n{\"id\":1}]}":            "line 2",
		"{\"nodes\":[\n\n}":                     "line 3",
		`{"orders":[{"id":"a","side":"hold"}]}`: `unknown side "hold"`,
		`{"orders":[{"id":"a","side":"buy","wh":1.5}]}`:                 "1.5",
		`{"orders":[{"id":"a","side":"buy","wh":9223372036854775808}]}`: "9223372036854775808",
		`{"orders":[{"id":"a","side":"buy","wh":1,"price":3}]}`:         "price",
		`{"grid":{"retail":1,"feedin":1}}`:                              "feedin",
		`[]`:                                                            "line 1",
	} {
		if _, err := ParseProblem([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", in, err, want)
		}
	}
}

func FuzzClear(f *testing.F) {
	f.Add([]byte(`{"nodes":[{"id":"root","parent":"","fee":0},{"id":"f1","parent":"root","fee":20000}],"grid":{"retail":300000,"feed_in":80000,"fee":0},"orders":[{"id":"b1","side":"buy","wh":500,"limit":210000,"node":"f1"}]}`))
	f.Add([]byte(`{"nodes":[{"id":"r"},{"id":"a","parent":"r","fee":72057594037927936}],"grid":null,"orders":[{"id":"b","side":"buy","wh":576460752303423488,"limit":72057594037927936,"node":"r"},{"id":"s","side":"sell","wh":576460752303423488,"limit":-72057594037927936,"node":"a"}]}`))
	f.Add([]byte(`{"nodes":[{"id":"r"},{"id":"a","parent":"b"},{"id":"b","parent":"a"}],"grid":{"retail":5,"feed_in":5,"fee":0},"orders":[]}`))
	r := rand.New(rand.NewPCG(1, 2))
	for range 4 {
		f.Add([]byte(show(randomProblem(r.IntN))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProblem(b)
		if err != nil {
			return
		}
		result, err := Clear(p)
		if err != nil {
			return
		}
		if err := Certify(p, result); err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(result); err != nil {
			t.Fatal(err)
		}
	})
}
