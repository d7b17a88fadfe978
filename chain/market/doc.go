// Package market clears a slot: it decides which buyer gets which seller's
// energy and at what price, when energy pays a fee for every wire it uses.
//
// # Words
//
// A node is a place in the network; an edge joins it to its parent and costs
// a fee per Wh in either direction. An order is a quantity of Wh at a node
// with a limit: the most a buyer pays or the least a seller takes. The grid
// is one more participant behind its own edge at the root: it sells without
// end at the retail price and buys without end at the feed-in price.
//
//	       grid
//	        │ fee
//	       root              microgrid
//	 fee ┌──┴──┐ fee
//	    t1     t2            transformers
//	 ┌──┴─┐    │
//	f1    f2   f3            feeders: sun on f1, a car on f2
//
// The car buys from f1 over two edges and from f3 over four; f1 is cheaper by
// two fees. That is how near beats far, without any rule about distance.
//
// # What is computed
//
// The fills that maximise welfare: buyers' limits minus sellers' limits (and
// the grid's prices) times Wh, minus fees. This is a min-cost flow on a tree,
// and it is solved exactly, in integers:
//
//	up    Each subtree is summarised by its curve: the marginal value of one
//	      more Wh brought in, as steps of falling value from -(all its supply)
//	      to +(all its demand). The curve of a node is the merge of its own
//	      orders' steps and its children's curves. Seen through an edge of fee
//	      c, what leaves the subtree is worth c more and what enters c less.
//	down  The root imports nothing (the grid is its child). The step at which
//	      a node's curve crosses its import is the marginal class: better
//	      orders are filled, worse ones are not, and the class itself is
//	      shared pro rata by largest remainder.
//
// Every node has one price, in the middle of what its orders allow, and at
// most a fee away from its parent's. All buyers and sellers of a node pay and
// receive that price; what the prices differ by along the flow is the fee, so
// paid = received + fees to the last nano.
//
// # Example
//
// f1 offers 1000 Wh at 80000 nano/Wh, the car on f2 wants 1500 Wh up to
// 300000, every edge costs 10000 and the grid sells at 280000 behind a fee
// of 0. The car takes all 1000 Wh of f1 and 500 Wh of the grid; with the grid
// at the margin t1 pays 290000, f2 300000, and f1 receives 280000.
//
// # Proof
//
// Nobody has to trust the solver. [Certify] proves from fills and prices
// alone, in linear time, that no better clearing exists: prices of neighbours
// differ by at most the fee of their edge and by exactly it where energy
// flows, what is filled is in the money and what is not filled is not (the
// complementary slackness of the flow's linear program).
//
// The package is pure: equal problems give equal results on every machine,
// whatever the sequence of nodes and orders.
package market
