package ledger

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/market"
	"github.com/joulegate/joulegate/meter"
)

// clearSlots clears, in order, the slots that are due: everybody has reported
// or the grace is over. Slots without energy are passed over.
func (r *run) clearSlots(st State) error {
	// The first slot whose grace is not over.
	running := chain.SlotAt(r.time-r.rules.GraceSeconds*1000, r.rules.SlotSeconds)
	for range maxSlotsPerBlock {
		first, found := firstPending(st)
		if found && first < r.clock.Next {
			return fmt.Errorf("slot %d has energy to clear, the next to clear is %d", first, r.clock.Next)
		}
		if !found || first > r.clock.Next {
			next := running
			if found {
				next = min(next, first)
			}
			r.clock.Next = max(r.clock.Next, next)
		}
		s := r.clock.Next
		if !found || s != first || (s >= running && !r.allReported(st, s)) {
			return nil
		}
		if _, _, due := r.period(st); due {
			return nil // the old month is billed first
		}
		if err := r.clear(st, s); err != nil {
			return fmt.Errorf("slot %d: %w", s, err)
		}
		r.clock.Next, r.clock.Cleared = s+1, s
	}
	return nil
}

// firstPending returns the first slot with energy or contracts to clear.
func firstPending(st State) (chain.Slot, bool) {
	var first chain.Slot
	found := false
	for _, table := range []byte{tabBucket, tabLoad, tabSale, tabContract} {
		st.Iterate([]byte{table}, func(k, _ []byte) bool {
			if s := chain.Slot(binary.BigEndian.Uint64(k[1:])); !found || s < first {
				first, found = s, true
			}
			return false
		})
	}
	return first, found
}

// allReported tells whether nothing is missing of slot s: every active site,
// the grid connection, and every charging session.
func (r *run) allReported(st State, s chain.Slot) bool {
	some := false
	st.Iterate(key(tabBucket, slotBytes(s)), func(_, _ []byte) bool {
		some = true
		return false
	})
	if !some && len(contractKeys(st, s)) > 0 {
		return false // nobody is missing where nobody has ever reported
	}
	if g, ok := get[connection](st, key(tabGrid)); ok {
		if b, _ := get[bucket](st, bucketKey(s, g.Device)); !b.Connection {
			return false
		}
	}
	// It is asked in every block, so it ends at the first who is missing.
	missing := false
	st.Iterate(key(tabMember), func(k, v []byte) bool {
		device := chain.Key(k[1:])
		if b, _ := get[bucket](st, bucketKey(s, device)); !b.Reported {
			missing = must[member](k, v).Active && countersOf(st, device).Site
		}
		return !missing
	})
	if missing {
		return false
	}
	for _, id := range openSessions(st) {
		if c := session(st, id); c.State == SessionCharging && c.Reported < s {
			return false
		}
	}
	return true
}

// site is a gateway's part in the clearing of a slot.
type site struct {
	device chain.Key
	member member
	bucket bucket
	cars   meter.WattHour // of sessions behind it that trade
	sold   meter.WattHour // by cars behind it that trade
}

// orders returns what the house itself buys and sells. With import I and
// export E of the site meter, S into cars and V out of cars behind it:
//
//	buys   max(0, I - S) + max(0, V - E)     what a car gave and did not leave, the house used
//	sells  max(0, E - V) + max(0, S - I)     what a car took and did not enter, the house gave
//
// less what went from one car to the other behind the meter. Buyers and
// sellers at the house then differ by I - E, whatever the cars do.
func (at *site) orders() (buys, sells meter.WattHour) {
	imp, exp := at.bucket.Import, at.bucket.Export
	used, gave := max(0, at.sold-exp), max(0, at.cars-imp)
	through := min(used, gave)
	return max(0, imp-at.cars) + used - through, max(0, exp-at.sold) + gave - through
}

// clear clears one slot: firm contracts first, then local trades, then the
// supplier.
func (r *run) clear(st State, s chain.Slot) error {
	applyZones(st, s)
	retail, feedIn := r.prices(st, s)
	view := SlotView{Slot: s, Previous: r.clock.Cleared, Height: r.height, TimeMs: r.time, Retail: retail, FeedIn: feedIn}

	var sites []*site // ascending by device
	byDevice := map[chain.Key]*site{}
	each(st, key(tabBucket, slotBytes(s)), func(k []byte, b bucket) bool {
		at := &site{device: chain.Key(k[8:]), bucket: b}
		sites = append(sites, at)
		byDevice[at.device] = at
		return true
	})
	for _, at := range sites {
		st.Delete(bucketKey(s, at.device))
	}
	houses := map[chain.Key]bool{} // whose nodes are in the tree: not those that are gone
	for _, m := range collect[member](st, key(tabMember)) {
		at := byDevice[m.Member.Device]
		houses[m.Member.Device] = m.Active || at != nil
		if at != nil {
			at.member = m
		}
		if m.Active && (at == nil || !at.bucket.Reported) && countersOf(st, m.Member.Device).Site {
			view.Missing++
		}
	}

	fills, err := r.cars(st, &view, byDevice)
	if err != nil {
		return err
	}
	for _, at := range sites {
		if !at.bucket.Reported {
			continue
		}
		view.Reported++
		owner, name := at.member.owner(), at.member.Member.Name
		buys, sells := at.orders()
		if buys > 0 {
			fills = append(fills, FillView{ID: "buy/" + name, Device: at.device, Account: owner, Side: chain.Buy, Node: name, Limit: r.limit(st, at.device, chain.Buy, s, retail, feedIn), Wh: buys, GridAt: retail})
		}
		if sells > 0 {
			fills = append(fills, FillView{ID: "sell/" + name, Device: at.device, Account: owner, Side: chain.Sell, Node: name, Limit: r.limit(st, at.device, chain.Sell, s, retail, feedIn), Wh: sells, GridAt: feedIn})
		}
	}
	slices.SortFunc(fills, func(a, b FillView) int { return cmp.Compare(a.ID, b.ID) })

	contracts, err := r.deliver(st, &view, fills)
	if err != nil {
		return err
	}
	// What owners can still commit to, at retail; the rest is on their
	// suppliers' own bills.
	budget := map[chain.Account]chain.Nano{}
	for i := range fills {
		f := &fills[i]
		if f.Side != chain.Buy || f.Session != (chain.ID{}) {
			continue
		}
		left, ok := budget[f.Account]
		if !ok {
			left = balance(st, f.Account)
		}
		if cost, err := chain.Cost(retail, f.rest()); err == nil && cost <= left {
			left -= cost
		} else {
			f.Supplier = f.rest()
		}
		budget[f.Account] = left
	}
	nodes := treeNow(st, houses)
	if err := r.trade(st, &view, nodes, fills); err != nil {
		return err
	}
	if err := earned(st, fills, contracts); err != nil {
		return err
	}
	r.balance(st, &view, sites)
	if err := certificates(st, &view, nodes, sites, fills, contracts, r.rules.storage()); err != nil {
		return err
	}
	if err := r.loss(st, &view, sites); err != nil {
		return err
	}
	if err := total(st, view.Energy); err != nil {
		return err
	}
	for _, f := range fills {
		put(st, FillKey(s, f.ID), f)
		if at := byDevice[f.Device]; at != nil {
			r.accrueFill(st, &at.member, s, &f)
		}
	}
	put(st, SlotKey(s), view)
	if err := r.settleLate(st, s); err != nil {
		return err
	}
	r.event("slot.cleared", fmt.Sprint(s), "%d sites, %d missing, %d Wh traded, fees %d nano", view.Reported, view.Missing, view.Energy.Traded, view.Fees)
	return nil
}

// cars makes the orders of the charging sessions of a slot.
func (r *run) cars(st State, view *SlotView, sites map[chain.Key]*site) ([]FillView, error) {
	var fills []FillView
	for _, l := range loads(st, tabLoad, view.Slot) {
		st.Delete(l.key)
		c := session(st, l.id)
		c.PendingWh -= l.wh
		if at := sites[c.Gateway]; at != nil && at.bucket.Reported && !at.bucket.Late {
			at.cars += l.wh
			fills = append(fills, FillView{
				ID: "car/" + c.ID.String(), Device: c.Gateway, Session: c.ID, Account: c.Driver, Side: chain.Buy,
				Node: at.member.Member.Name, Limit: min(c.Cap, view.Retail), Wh: l.wh, GridAt: min(c.Cap, view.Retail),
			})
		} else {
			// Without the house's reading nobody knows where it came from.
			m, _ := get[member](st, MemberKey(c.Gateway))
			if err := r.sellBySite(st, &m, &c, view.Slot, l.wh); err != nil {
				return nil, err
			}
		}
		putSession(st, &c)
	}
	for _, l := range loads(st, tabSale, view.Slot) {
		st.Delete(l.key)
		c := session(st, l.id)
		c.PendingSold -= l.wh
		if at := sites[c.Gateway]; at != nil && at.bucket.Reported && !at.bucket.Late {
			at.sold += l.wh
			fills = append(fills, FillView{
				ID: "v2v/" + c.ID.String(), Device: c.Gateway, Session: c.ID, Account: c.Driver, Side: chain.Sell,
				Node: at.member.Member.Name, Limit: max(c.SellLimit, view.FeedIn), Wh: l.wh, GridAt: view.FeedIn,
			})
		} else {
			m, _ := get[member](st, MemberKey(c.Gateway))
			if err := r.buyBySite(st, &m, &c, view.Slot, l.wh); err != nil {
				return nil, err
			}
		}
		putSession(st, &c)
	}
	return fills, nil
}

// load is a car's energy of a slot, in one direction.
type load struct {
	key []byte
	id  chain.ID
	wh  meter.WattHour
}

// loads returns a slot's loads in one direction, ascending by session.
func loads(st State, table byte, s chain.Slot) (all []load) {
	each(st, key(table, slotBytes(s)), func(k []byte, wh meter.WattHour) bool {
		all = append(all, load{key(table, k), chain.ID(k[8:]), wh})
		return true
	})
	return all
}

// earned tells the sessions that sell what their energy has brought.
func earned(st State, fills []FillView, contracts []FirmDelivery) error {
	tell := func(id chain.ID, n chain.Nano) (err error) {
		s := session(st, id)
		if s.Earned, err = chain.AddNano(s.Earned, n); err != nil {
			return fmt.Errorf("session %s earned %d and %d: %w", id, s.Earned, n, err)
		}
		putSession(st, &s)
		return nil
	}
	for _, f := range fills {
		if f.Side == chain.Sell && f.Session != (chain.ID{}) {
			if err := tell(f.Session, f.Amount); err != nil {
				return err
			}
		}
	}
	for _, d := range contracts {
		if d.Seller.Session != (chain.ID{}) {
			if err := tell(d.Seller.Session, d.SellerGot); err != nil {
				return err
			}
		}
	}
	return nil
}

// limit is the standing limit of a side in slot s, within what the supplier
// offers. Without an offer it is the supplier's price.
func (r *run) limit(st State, device chain.Key, side chain.Side, s chain.Slot, retail, feedIn chain.NanoPerWh) chain.NanoPerWh {
	limit := retail
	if side == chain.Sell {
		limit = feedIn
	}
	switch l, ok := get[standingLimit](st, limitKey(device, side)); {
	case ok && s >= l.From:
		limit = l.Limit
	case ok && l.Set:
		limit = l.Before
	}
	if side == chain.Sell {
		return max(limit, feedIn)
	}
	return min(limit, retail)
}

// trade clears the fills' energy between neighbours, has the supplier take
// the rest, and moves the money. It completes view and fills.
//
// That the clearing is optimal is proven from what it writes: see
// [CertifySlot], which every block runs on the slots that it has cleared.
func (r *run) trade(st State, view *SlotView, nodes []market.Node, fills []FillView) error {
	p := market.Problem{Nodes: nodes}
	for _, f := range fills {
		if f.Supplier == 0 {
			p.Orders = append(p.Orders, market.Order{ID: f.ID, Side: f.Side, Wh: f.rest(), Limit: f.Limit, Node: f.Node})
		}
	}
	res, err := market.Clear(p)
	if err != nil {
		return err
	}
	view.Paid, view.Received, view.Fees = res.Paid, res.Received, res.Fees
	for _, n := range p.Nodes {
		view.Prices = append(view.Prices, PriceView{Node: n.ID, Price: res.Prices[n.ID], Flow: res.Flows[n.ID]})
	}

	// Buyers pay neighbours through the network account, which keeps the fees.
	for i := range fills {
		if f := &fills[i]; f.Supplier == 0 {
			f.Local, f.Price = res.Fills[f.ID], res.Prices[f.Node]
		}
		because(st, "energy bought in slot", view.Slot)
		if err := r.settleBuyer(st, view, &fills[i]); err != nil {
			return err
		}
	}
	because(st, "energy sold in slot", view.Slot)
	for i := range fills {
		if err := r.settleSeller(st, &fills[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) settleBuyer(st State, view *SlotView, f *FillView) error {
	if f.Side != chain.Buy {
		return nil
	}
	c := countersOf(st, f.Device)
	if f.Supplier > 0 {
		c.SupplierImport += f.Supplier
		put(st, key(tabCounters, f.Device[:]), c)
		return nil
	}
	f.Grid = f.rest() - f.Local
	local, err := chain.Cost(f.Price, f.Local)
	if err != nil {
		return err
	}
	rest, err := chain.Cost(f.GridAt, f.Grid)
	if err != nil {
		return err
	}
	f.Amount = local + rest
	view.Energy.Traded += f.Local
	if f.Session == (chain.ID{}) {
		c.BoughtLocal += f.Local
		put(st, key(tabCounters, f.Device[:]), c)
		if err := move(st, f.Account, chain.AccountNetwork, local); err != nil {
			return err
		}
		return move(st, f.Account, chain.AccountGrid, rest)
	}
	s := session(st, f.Session)
	if err := capture(st, &s, chain.AccountNetwork, local); err != nil {
		return err
	}
	if err := capture(st, &s, chain.AccountGrid, rest); err != nil {
		return err
	}
	s.LocalWh += f.Local
	putSession(st, &s)
	return nil
}

func (r *run) settleSeller(st State, f *FillView) error {
	if f.Side != chain.Sell {
		return nil
	}
	local, err := chain.Cost(f.Price, f.Local)
	if err != nil {
		return err
	}
	if err := move(st, chain.AccountNetwork, f.Account, local); err != nil {
		return err
	}
	f.Amount = local
	c := countersOf(st, f.Device)
	c.SoldLocal += f.Local
	rest := f.rest() - f.Local
	if pay(st, chain.AccountGrid, f.Account, f.GridAt, rest) {
		f.Grid = rest
		f.Amount += chain.Nano(f.GridAt) * chain.Nano(rest) // pay has checked the product
	} else {
		f.Supplier = rest
		c.SupplierExport += rest
	}
	put(st, key(tabCounters, f.Device[:]), c)
	return nil
}

// balance completes the slot's energy balance and the members' counters.
//
// A house without a production meter has produced what it exported, and
// neither its battery nor a car gave. Once a
// meter stands at the grid connection it says what the microgrid imports and
// exports, and what is missing inside is loss; before that, the sites' sum
// stands for it and there is none.
func (r *run) balance(st State, view *SlotView, sites []*site) {
	e := &view.Energy
	prices := map[string]*PriceView{}
	for i := range view.Prices {
		prices[view.Prices[i].Node] = &view.Prices[i]
	}
	var imp, exp meter.WattHour
	for _, at := range sites {
		b := &at.bucket
		c := countersOf(st, at.device)
		if !c.Production {
			b.Produced = max(0, b.Export-b.Discharged-at.sold)
		}
		if p, ok := prices[at.member.Member.Name]; ok {
			p.Import, p.Export, p.Produced, p.Charged, p.Discharged = b.Import, b.Export, b.Produced, b.Charged, b.Discharged
		}
		c.Import += b.Import
		c.Export += b.Export
		c.Produced += b.Produced
		put(st, key(tabCounters, at.device[:]), c)
		imp += b.Import
		exp += b.Export
		e.Produced += b.Produced
		e.GridImport += b.GridImport
		e.GridExport += b.GridExport
	}
	e.Consumed = e.Produced + imp - exp
	if g, ok := get[connection](st, key(tabGrid)); ok && view.Slot >= g.From {
		e.Loss = exp + e.GridImport - imp - e.GridExport
		return
	}
	e.GridImport, e.GridExport = max(imp-exp, 0), max(exp-imp, 0)
}
