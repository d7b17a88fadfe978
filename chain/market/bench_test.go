package market

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// district is a network of n nodes as they are built: one microgrid, ten
// transformers, ten feeders each, the rest houses on the feeders.
func district(n, orders int, limits func(r *rand.Rand, side chain.Side) chain.NanoPerWh) Problem {
	r := rand.New(rand.NewPCG(1, uint64(orders)))
	p := Problem{
		Nodes: []Node{{ID: "microgrid"}},
		Grid:  &Grid{Retail: 300_000, FeedIn: 80_000, Fee: 30_000},
	}
	for len(p.Nodes) < n {
		i := len(p.Nodes)
		node := Node{ID: fmt.Sprintf("n%07d", i), Parent: "microgrid", Fee: 20_000}
		switch {
		case i > 110:
			node.Parent, node.Fee = p.Nodes[11+i%100].ID, 5_000
		case i > 10:
			node.Parent, node.Fee = p.Nodes[1+i%10].ID, 10_000
		}
		p.Nodes = append(p.Nodes, node)
	}
	for i := range orders {
		side := chain.Side(1 + r.IntN(2))
		p.Orders = append(p.Orders, Order{
			ID: fmt.Sprintf("o%08d", i), Side: side, Wh: meter.WattHour(r.IntN(3000)),
			Limit: limits(r, side), Node: p.Nodes[r.IntN(n)].ID,
		})
	}
	return p
}

// spread draws limits between feed-in and retail: nearly all different, which
// is the worst case.
func spread(r *rand.Rand, _ chain.Side) chain.NanoPerWh {
	return chain.NanoPerWh(80_000 + r.IntN(220_000))
}

// handsFree is what people who never log in have: every buyer's limit is
// retail, every seller's feed-in, and each class is shared pro rata.
func handsFree(_ *rand.Rand, side chain.Side) chain.NanoPerWh {
	if side == chain.Buy {
		return 400_000
	}
	return 80_000
}

// BenchmarkClear clears orders on 1,000 nodes, from problem to
// solution, one core if run with -cpu 1.
func BenchmarkClear(b *testing.B) {
	for _, kind := range []struct {
		name   string
		limits func(*rand.Rand, chain.Side) chain.NanoPerWh
	}{{"", spread}, {"handsfree-", handsFree}} {
		for _, size := range []struct {
			name   string
			orders int
		}{{"10k", 10_000}, {"100k", 100_000}, {"1M", 1_000_000}} {
			b.Run(kind.name+size.name, func(b *testing.B) {
				p := district(1000, size.orders, kind.limits)
				var c Clearer
				for b.Loop() {
					if _, err := c.Solve(p); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkCertify(b *testing.B) {
	p := district(1000, 100_000, spread)
	r, err := Clear(p)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := Certify(p, r); err != nil {
			b.Fatal(err)
		}
	}
}
