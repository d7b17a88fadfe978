package market

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// randomLots puts energy into a small tree and takes it out again.
func randomLots(draw intn) ([]Node, []Lot) {
	p := randomProblem(draw)
	var lots []Lot
	var sum meter.WattHour
	for i := range draw(16) {
		l := Lot{ID: fmt.Sprint("l", i), Tag: []string{"", "sun"}[draw(2)], Node: p.Nodes[draw(len(p.Nodes))].ID, Wh: meter.WattHour(draw(60) - 30)}
		sum += l.Wh
		lots = append(lots, l)
	}
	return p.Nodes, append(lots, Lot{ID: "grid", Node: p.Nodes[draw(len(p.Nodes))].ID, Wh: -sum})
}

// Every lot's transfers add up to it, to the Wh; energy crosses an edge only
// in the direction of its net flow; and nobody's share of a mix is more than
// rounding away from anybody else's at the same node.
func TestTraceMargins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, lots := randomLots(func(n int) int { return rapid.IntRange(0, max(n-1, 0)).Draw(t, "i") })
		out, err := Trace(nodes, lots)
		if err != nil {
			t.Fatal(err)
		}
		parent, at, got := map[string]string{}, map[string]string{}, map[string]meter.WattHour{}
		net := map[string]meter.WattHour{} // of subtrees
		for _, n := range nodes {
			parent[n.ID] = n.Parent
		}
		path := func(id string) (up []string) {
			for ; id != ""; id = parent[id] {
				up = append(up, id)
			}
			return up
		}
		for _, l := range lots {
			at[l.ID] = l.Node
			for _, n := range path(l.Node) {
				net[n] += l.Wh
			}
		}
		for _, x := range out {
			if x.Wh <= 0 {
				t.Fatalf("transfer %+v", x)
			}
			got[x.From] += x.Wh
			got[x.To] -= x.Wh
			from, to := path(at[x.From]), path(at[x.To])
			for len(from) > 0 && len(to) > 0 && from[len(from)-1] == to[len(to)-1] {
				from, to = from[:len(from)-1], to[:len(to)-1]
			}
			for _, n := range from {
				if net[n] <= 0 {
					t.Fatalf("%+v leaves %s, which has %d Wh to spare", x, n, net[n])
				}
			}
			for _, n := range to {
				if net[n] >= 0 {
					t.Fatalf("%+v enters %s, which has %d Wh to spare", x, n, net[n])
				}
			}
		}
		for _, l := range lots {
			if got[l.ID] != l.Wh {
				t.Fatalf("lot %+v has transfers of %d Wh", l, got[l.ID])
			}
		}
		again, _ := Trace(nodes, lots)
		if !reflect.DeepEqual(out, again) {
			t.Fatal("the same lots gave other transfers")
		}
	})
}

func TestTraceNearFirst(t *testing.T) {
	nodes := []Node{{ID: "root"}, {ID: "f1", Parent: "root"}, {ID: "f2", Parent: "root"}, {ID: "a", Parent: "f1"}, {ID: "b", Parent: "f1"}, {ID: "c", Parent: "f2"}}
	out, err := Trace(nodes, []Lot{
		{ID: "a", Node: "a", Wh: 100},
		{ID: "b", Node: "b", Wh: -40},
		{ID: "c", Node: "c", Wh: -90},
		{ID: "grid", Node: "root", Wh: 35},
		{ID: "loss", Node: "root", Wh: -5},
	})
	if err != nil {
		t.Fatal(err)
	}
	// b on a's feeder has a's energy only; the other 60 meet the grid's 35 at the root.
	want := []Transfer{{"a", "", "b", 40}, {"a", "", "c", 57}, {"grid", "", "c", 33}, {"a", "", "loss", 3}, {"grid", "", "loss", 2}}
	if !reflect.DeepEqual(out, want) {
		t.Errorf("got %+v", out)
	}
}

func TestTraceRefusals(t *testing.T) {
	nodes := []Node{{ID: "root"}}
	for _, lots := range [][]Lot{
		{{ID: "a", Node: "root", Wh: 1}},
		{{ID: "a", Node: "nowhere", Wh: 1}},
		{{ID: "a", Node: "root", Wh: -1 << 63}},
	} {
		if _, err := Trace(nodes, lots); err == nil {
			t.Errorf("%+v was traced", lots)
		}
	}
	_, err := Trace(nodes, []Lot{{ID: "a", Node: "root", Wh: MaxEnergy}, {ID: "b", Node: "root", Wh: -MaxEnergy}})
	if !errors.Is(err, chain.ErrOverflow) {
		t.Error(err)
	}
	if _, err := Trace(nil, nil); err == nil {
		t.Error("no nodes were traced")
	}
}

func BenchmarkTrace(b *testing.B) {
	nodes := district(1000, 0, spread).Nodes
	var lots []Lot
	for i, n := range nodes {
		lots = append(lots, Lot{ID: n.ID, Node: n.ID, Wh: meter.WattHour((i%3 - 1) * 500)})
	}
	var sum meter.WattHour
	for _, l := range lots {
		sum += l.Wh
	}
	lots = append(lots, Lot{ID: "grid", Node: "microgrid", Wh: -sum})
	for b.Loop() {
		if _, err := Trace(nodes, lots); err != nil {
			b.Fatal(err)
		}
	}
}
