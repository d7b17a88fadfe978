package market

import (
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Certify proves that r clears p optimally, from r's fills and prices alone,
// in linear time and without solving anything: energy is conserved at every
// node, prices of neighbours differ by at most the fee of their edge and by
// exactly it in the direction of flow, filled orders are in the money and
// unfilled ones are not. By duality no other clearing has a higher welfare.
// It recomputes every flow and total of r and checks paid = received + fees.
//
// Several optimal clearings can exist; that r is the one [Clear] chooses is
// not part of the proof. The error names the first condition that fails.
func Certify(p Problem, r Result) error {
	var t tree
	if err := t.load(&p); err != nil {
		return err
	}
	if len(r.Prices) != len(p.Nodes) {
		return fmt.Errorf("%d prices for %d nodes", len(r.Prices), len(p.Nodes))
	}
	if len(r.Fills) != len(p.Orders) {
		return fmt.Errorf("%d fills for %d orders", len(r.Fills), len(p.Orders))
	}
	prices := make([]int64, len(t.places))
	for i, pl := range t.places {
		if pl.node < 0 {
			continue
		}
		price, ok := r.Prices[p.Nodes[pl.node].ID]
		if !ok {
			return fmt.Errorf("node %q has no price", p.Nodes[pl.node].ID)
		}
		if pl.parent >= 0 && !within(int64(price), prices[pl.parent], pl.fee) {
			return fmt.Errorf("price %d of node %q and %d of its parent differ by more than the fee %d", price, p.Nodes[pl.node].ID, prices[pl.parent], pl.fee)
		}
		prices[i] = int64(price)
	}

	var sums totals
	imports := make([]int64, len(t.places)) // net, of the subtree
	seen := make(map[string]struct{}, len(p.Orders))
	var total meter.WattHour
	for i := range p.Orders {
		o := &p.Orders[i]
		at, err := t.checkOrder(o)
		if err != nil {
			return err
		}
		if _, dup := seen[o.ID]; dup {
			return fmt.Errorf("duplicate order id %q", o.ID)
		}
		seen[o.ID] = struct{}{}
		if o.Wh > MaxEnergy-total {
			return fmt.Errorf("order %q brings the sum above %d Wh: %w", o.ID, MaxEnergy, chain.ErrOverflow)
		}
		total += o.Wh
		fill, ok := r.Fills[o.ID]
		if !ok {
			return fmt.Errorf("order %q has no fill", o.ID)
		}
		if err := inTheMoney(o, fill, chain.NanoPerWh(prices[at])); err != nil {
			return err
		}
		sums.trade(o.Side, int64(o.Limit), prices[at], int64(fill))
		if o.Side == chain.Buy {
			imports[at] += int64(fill)
		} else {
			imports[at] -= int64(fill)
		}
	}

	flows := 0
	for i := len(t.places) - 1; i > 0; i-- {
		pl := &t.places[i]
		if pl.node < 0 {
			continue
		}
		id, x := p.Nodes[pl.node].ID, imports[i]
		if err := flowPaysFee("node "+id, x, prices[i], prices[pl.parent], pl.fee); err != nil {
			return err
		}
		if r.Flows != nil && int64(r.Flows[id]) != x {
			return fmt.Errorf("flow into node %q is %d Wh, not %d", id, x, r.Flows[id])
		}
		flows++
		imports[pl.parent] += x
		sums.fees.add(pl.fee, max(x, -x))
	}
	if r.Flows != nil && len(r.Flows) != flows {
		return fmt.Errorf("%d flows for %d edges", len(r.Flows), flows)
	}

	if err := certifyGrid(p.Grid, -imports[0], prices[0], &sums); err != nil {
		return err
	}
	if i, e := max(imports[0], 0), max(-imports[0], 0); int64(r.GridImport) != i || int64(r.GridExport) != e {
		return fmt.Errorf("grid import %d and export %d Wh, not %d and %d", i, e, r.GridImport, r.GridExport)
	}
	welfare, fees, paid, received, err := sums.money()
	if err != nil {
		return err
	}
	if r.Welfare != welfare || r.Fees != fees || r.Paid != paid || r.Received != received {
		return fmt.Errorf("welfare %d, fees %d, paid %d, received %d, not %d, %d, %d, %d",
			welfare, fees, paid, received, r.Welfare, r.Fees, r.Paid, r.Received)
	}
	surplus := sums.paid
	surplus.sub(sums.received)
	surplus.sub(sums.fees)
	if surplus != (sum{}) {
		return fmt.Errorf("paid %d is not received %d plus fees %d", r.Paid, r.Received, r.Fees)
	}
	return nil
}

// certifyGrid checks the grid's net import x against the root's price and
// counts its trade.
func certifyGrid(g *Grid, x, root int64, sums *totals) error {
	if g == nil {
		if x != 0 {
			return fmt.Errorf("the neighbourhood is an island and lacks %d Wh", -x)
		}
		return nil
	}
	retail, feedIn, fee := int64(g.Retail), int64(g.FeedIn), int64(g.Fee)
	switch {
	case x < 0 && root != retail+fee:
		return fmt.Errorf("the grid delivers and the root's price is %d, not retail and fee %d", root, retail+fee)
	case x > 0 && root != feedIn-fee:
		return fmt.Errorf("the grid takes and the root's price is %d, not feed-in less fee %d", root, feedIn-fee)
	case root > retail+fee || root < feedIn-fee:
		return fmt.Errorf("the root's price %d is outside what the grid offers, %d to %d", root, feedIn-fee, retail+fee)
	}
	sums.fees.add(fee, max(x, -x))
	if x < 0 {
		sums.gridTrade(g, retail, x)
	} else {
		sums.gridTrade(g, feedIn, x)
	}
	return nil
}

// inTheMoney checks a fill against the order's limit and its node's price.
func inTheMoney(o *Order, fill meter.WattHour, price chain.NanoPerWh) error {
	better, worse := price < o.Limit, price > o.Limit // than the limit, for a buyer
	if o.Side == chain.Sell {
		better, worse = worse, better
	}
	switch {
	case fill < 0 || fill > o.Wh:
		return fmt.Errorf("order %q of %d Wh is filled with %d", o.ID, o.Wh, fill)
	case fill > 0 && worse:
		return fmt.Errorf("order %q is filled at %d, beyond its limit %d", o.ID, price, o.Limit)
	case fill < o.Wh && better:
		return fmt.Errorf("order %q lacks %d Wh at %d, within its limit %d", o.ID, o.Wh-fill, price, o.Limit)
	}
	return nil
}

// flowPaysFee checks that prices differ by the fee in the direction of x.
func flowPaysFee(what string, x, price, parent, fee int64) error {
	if x > 0 && price != parent+fee || x < 0 && price != parent-fee {
		return fmt.Errorf("%s imports %d Wh at %d, its parent's price is %d and the fee %d", what, x, price, parent, fee)
	}
	return nil
}

// within reports |a-b| <= d for prices that nobody has checked yet.
func within(a, b, d int64) bool {
	diff := uint64(a) - uint64(b)
	if a < b {
		diff = uint64(b) - uint64(a)
	}
	return diff <= uint64(d)
}
