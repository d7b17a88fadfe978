package market_test

import (
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/market"
)

// The neighbourhood of the package comment: sun on f1, a car on f2.
func ExampleClear() {
	p := market.Problem{
		Nodes: []market.Node{
			{ID: "root"},
			{ID: "t1", Parent: "root", Fee: 10_000},
			{ID: "t2", Parent: "root", Fee: 10_000},
			{ID: "f1", Parent: "t1", Fee: 10_000},
			{ID: "f2", Parent: "t1", Fee: 10_000},
			{ID: "f3", Parent: "t2", Fee: 10_000},
		},
		Grid: &market.Grid{Retail: 280_000, FeedIn: 80_000},
		Orders: []market.Order{
			{ID: "sun", Side: chain.Sell, Wh: 1000, Limit: 80_000, Node: "f1"},
			{ID: "car", Side: chain.Buy, Wh: 1500, Limit: 300_000, Node: "f2"},
		},
	}
	r, err := market.Clear(p)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("sun sells %d Wh at %d\n", r.Fills["sun"], r.Prices["f1"])
	fmt.Printf("car buys %d Wh at %d, %d of them from the grid\n", r.Fills["car"], r.Prices["f2"], r.GridImport)
	fmt.Printf("paid %d = received %d + fees %d\n", r.Paid, r.Received, r.Fees)
	fmt.Println("certificate:", market.Certify(p, r))
	// Output:
	// sun sells 1000 Wh at 280000
	// car buys 1500 Wh at 300000, 500 of them from the grid
	// paid 450000000 = received 420000000 + fees 30000000
	// certificate: <nil>
}
