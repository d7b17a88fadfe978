package microgrid

import (
	"fmt"
	"strings"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

// books are kept beside the ledger, in double entry and by other code: what
// the people who signed know, and what the ledger says has moved, must lead to
// the same balances that the ledger's state has.
type books struct {
	Accounts       map[chain.Account]chain.Nano
	Credit         map[chain.Account]chain.Nano
	Holds          map[string]chain.Nano // by session
	Minted, Burned chain.Nano            // by transactions that were accepted

	Edges   map[string]edge // of the fee tree
	Plans   []plan          // of the fee tree, ascending by slot
	Tariffs map[chain.Slot][2]chain.NanoPerWh
	Cleared map[chain.Slot]bool

	Seats  map[chain.Key]bool // consensus keys that should vote, by who joined and left
	Voting map[chain.Key]bool // that do, by what the engine was told
}

type edge struct {
	Parent string
	Fee    chain.NanoPerWh
}

// plan is a change of the fee tree that waits for its slot.
type plan struct {
	From chain.Slot
	Node string
	Edge edge
}

func newBooks() *books {
	return &books{
		Accounts: map[chain.Account]chain.Nano{}, Credit: map[chain.Account]chain.Nano{}, Holds: map[string]chain.Nano{},
		Edges: map[string]edge{}, Tariffs: map[chain.Slot][2]chain.NanoPerWh{}, Cleared: map[chain.Slot]bool{}, Seats: map[chain.Key]bool{}, Voting: map[chain.Key]bool{},
	}
}

// findings gathers what is wrong, one line each.
type findings []string

func (f *findings) add(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }

// post enters a block's movements and compares what they touch. before is
// minted less burned before the block.
func (b *books) post(st ledger.State, moves []ledger.Movement, before chain.Nano) (f findings) {
	var sum, held chain.Nano
	touched, sessions := map[chain.Account]bool{}, map[string]bool{}
	for _, m := range moves {
		if m.Credit {
			b.Credit[m.Account] += m.Amount
			continue
		}
		b.Accounts[m.Account] += m.Amount
		sum += m.Amount
		touched[m.Account] = true
		switch m.Cause {
		case "held for session", "energy of session", "released by session", "frozen of session":
			b.Holds[m.Ref] -= m.Amount
			held -= m.Amount
			sessions[m.Ref] = true
		}
	}
	// 1. Money is neither made nor lost: what moved is what came in or went out.
	if want := b.Minted - b.Burned - before; sum+held != want {
		f.add("movements make %d and holds %d, accepted mints less burns %d", sum, held, want)
	}
	for a := range touched {
		n, ok := balanceOf(st, a)
		if b.Accounts[a] != n {
			f.add("account %s: the books have %d, the ledger %d (%t)", a, b.Accounts[a], n, ok)
		}
		// 3. Nobody owes.
		if n < 0 {
			f.add("account %s has %d", a, n)
		}
	}
	for ref := range sessions {
		var id chain.ID
		if err := id.UnmarshalText([]byte(ref)); err != nil {
			f.add("movement of session %q: %v", ref, err)
			continue
		}
		s, _ := ledger.SessionOf(st, id)
		left := s.Hold - s.Captured - s.Released - s.Disputed
		if b.Holds[ref] != left || left < 0 || (!s.State.Open() && left != 0) {
			f.add("session %s is %s: the books hold %d, the ledger %d of %d", ref, s.State, b.Holds[ref], left, s.Hold)
		}
		if !s.State.Open() {
			delete(b.Holds, ref)
		}
	}
	return f
}

func balanceOf(st ledger.State, a chain.Account) (chain.Nano, bool) {
	v := st.Get(ledger.AccountKey(a))
	if v == nil {
		return 0, false
	}
	n, err := ledger.ParseBalance(v)
	return n, err == nil
}

// reckon compares everything: all accounts, all credit, all holds.
func (b *books) reckon(st ledger.State) (f findings) {
	var sum, lots chain.Nano
	pledged, _ := balanceOf(st, chain.AccountCollateral) // told as what its owners hold
	if sum = pledged; pledged != b.Accounts[chain.AccountCollateral] {
		f.add("collateral: the books have %d, the ledger %d", b.Accounts[chain.AccountCollateral], pledged)
	}
	for _, v := range ledger.Accounts(st) {
		if v.Balance != b.Accounts[v.Account] {
			f.add("account %s: the books have %d, the ledger %d", v.Account, b.Accounts[v.Account], v.Balance)
		}
		if v.Credits != b.Credit[v.Account] {
			f.add("account %s: the books have %d of credit, the ledger %d", v.Account, b.Credit[v.Account], v.Credits)
		}
		sum += v.Balance
		lots += v.Credits
	}
	for _, n := range b.Holds {
		sum += n
	}
	if n := ledger.StatusOf(st).Validators; n != len(b.Voting) {
		f.add("the ledger has %d validators, the engine was told of %d", n, len(b.Voting))
	}
	// 1 and 2.
	if sum != b.Minted-b.Burned {
		f.add("accounts and holds have %d, minted %d less burned %d", sum, b.Minted, b.Burned)
	}
	if n, _ := balanceOf(st, chain.AccountReserve); n != lots {
		f.add("credit of %d is out, its reserve has %d", lots, n)
	}
	return f
}

// slot audits a cleared slot against the fee tree and the tariffs that the
// walk itself has set, and against the energy that it has metered (buys and
// sells by order, where known).
func (b *books) slot(v *ledger.SlotView, metered map[string]meter.WattHour, caps map[chain.ID]chain.NanoPerWh) (f findings) {
	if b.Cleared[v.Slot] {
		f.add("slot %d was cleared twice", v.Slot)
	}
	b.Cleared[v.Slot] = true
	for len(b.Plans) > 0 && b.Plans[0].From <= v.Slot {
		b.Edges[b.Plans[0].Node] = b.Plans[0].Edge
		b.Plans = b.Plans[1:]
	}
	want := b.Tariffs[v.Slot]
	if want == ([2]chain.NanoPerWh{}) {
		want = [2]chain.NanoPerWh{retail, feedIn}
	}
	if v.Retail != want[0] || v.FeedIn != want[1] {
		f.add("slot %d: cleared at %d and %d, the supplier said %v", v.Slot, v.Retail, v.FeedIn, want)
	}
	net := map[string]meter.WattHour{} // local energy into a node's subtree
	price := map[string]chain.NanoPerWh{}
	for _, p := range v.Prices {
		price[p.Node] = p.Price
	}
	seen := map[string]bool{}
	var bought, sold, given, cancelled meter.WattHour
	var paid, received, fees chain.Nano
	for _, x := range v.Fills {
		if seen[x.ID] {
			f.add("slot %d: two fills %s", v.Slot, x.ID)
		}
		seen[x.ID] = true
		if wh, ok := metered[x.ID]; ok && wh != x.Wh {
			f.add("slot %d: %s is %d Wh, metered were %d", v.Slot, x.ID, x.Wh, wh)
		}
		if x.Price != price[x.Node] && x.Local > 0 {
			f.add("slot %d: %s trades at %d, its node's price is %d", v.Slot, x.ID, x.Price, price[x.Node])
		}
		if got := chain.Nano(x.Price)*chain.Nano(x.Local) + chain.Nano(x.GridAt)*chain.Nano(x.Grid); got != x.Amount {
			f.add("slot %d: %s settles %d for %d", v.Slot, x.ID, x.Amount, got)
		}
		if x.Certified > x.Local+x.Firm {
			f.add("slot %d: %s has certificates for %d Wh of %d", v.Slot, x.ID, x.Certified, x.Local+x.Firm)
		}
		left := x.Wh - x.Local - x.Grid - x.Supplier - x.Firm - x.FirmGrid - x.FirmOwn
		if left != 0 || min(x.Local, x.Grid, x.Supplier, x.Firm, x.FirmGrid, x.FirmOwn) < 0 {
			f.add("slot %d: %s of %d Wh leaves %d", v.Slot, x.ID, x.Wh, left)
		}
		// 4. Limits: the supplier's prices, and what a driver was promised.
		inMarket := x.Supplier == 0 || x.Side == chain.Sell
		open := inMarket && x.Grid+x.Supplier > 0
		if x.Side == chain.Buy {
			bought += x.Local + x.Firm
			paid += chain.Nano(x.Price) * chain.Nano(x.Local)
			cancelled += x.Certified
			net[x.Node] += x.Local
			if x.Local > 0 && (x.Price > v.Retail || x.Price > x.Limit) {
				f.add("slot %d: %s buys at %d, retail %d, limit %d", v.Slot, x.ID, x.Price, v.Retail, x.Limit)
			}
			if top, ok := caps[x.Session]; ok && x.Session != (chain.ID{}) && (x.Local > 0 && x.Price > top || x.Grid > 0 && x.GridAt > top) {
				f.add("slot %d: %s pays %d or %d, promised were %d", v.Slot, x.ID, x.Price, x.GridAt, top)
			}
			if open && x.Limit > price[x.Node] {
				f.add("slot %d: %s would pay %d, the price is %d, and goes without", v.Slot, x.ID, x.Limit, price[x.Node])
			}
		} else {
			sold += x.Local + x.Firm
			received += chain.Nano(x.Price) * chain.Nano(x.Local)
			given += x.Certified
			net[x.Node] -= x.Local
			if x.Local > 0 && (x.Price < v.FeedIn || x.Price < x.Limit) {
				f.add("slot %d: %s sells at %d, feed-in %d, limit %d", v.Slot, x.ID, x.Price, v.FeedIn, x.Limit)
			}
			if open && x.Limit < price[x.Node] {
				f.add("slot %d: %s would take %d, the price is %d, and keeps it", v.Slot, x.ID, x.Limit, price[x.Node])
			}
		}
	}
	for id, wh := range metered {
		if wh > 0 && !seen[id] {
			f.add("slot %d: no fill for %d Wh of %s", v.Slot, wh, id)
		}
	}
	// 5. Every Wh that is bought is sold, once, with at most one certificate.
	if bought != sold || bought != v.Energy.Traded || given != cancelled {
		f.add("slot %d: %d Wh bought, %d sold, %d traded; certificates %d given, %d cancelled", v.Slot, bought, sold, v.Energy.Traded, given, cancelled)
	}
	e := v.Energy
	if e.Produced+e.GridImport != e.Consumed+e.GridExport+e.Loss {
		f.add("slot %d: energy %+v", v.Slot, e)
	}
	// Flows up the tree, their fees, and the proof that nobody could do better.
	for _, depth := range []int{2, 1} {
		for _, p := range v.Prices {
			if at, ok := b.Edges[p.Node]; ok && b.depth(p.Node) == depth && at.Parent != "" {
				net[at.Parent] += net[p.Node]
			}
		}
	}
	for _, p := range v.Prices {
		at, ok := b.Edges[p.Node]
		if !ok {
			f.add("slot %d: node %s is not in the walk's tree", v.Slot, p.Node)
			continue
		}
		if at.Parent == "" {
			if net[p.Node] != 0 {
				f.add("slot %d: %d Wh of local energy leave the root", v.Slot, net[p.Node])
			}
			continue
		}
		flow := net[p.Node]
		if flow != p.Flow {
			f.add("slot %d: %d Wh flow into %s, the ledger says %d", v.Slot, flow, p.Node, p.Flow)
		}
		fees += chain.Nano(at.Fee) * chain.Nano(max(flow, -flow))
		d := p.Price - price[at.Parent]
		if max(d, -d) > at.Fee || flow > 0 && d != at.Fee || flow < 0 && d != -at.Fee {
			f.add("slot %d: prices %d at %s and %d at %s, fee %d, flow %d", v.Slot, p.Price, p.Node, price[at.Parent], at.Parent, at.Fee, flow)
		}
	}
	if paid != v.Paid || received != v.Received || fees != v.Fees || paid != received+fees {
		f.add("slot %d: paid %d, received %d, fees %d; the ledger says %d, %d, %d", v.Slot, paid, received, fees, v.Paid, v.Received, v.Fees)
	}
	return f
}

func (b *books) depth(node string) (n int) {
	for at := b.Edges[node]; at.Parent != ""; at = b.Edges[at.Parent] {
		n++
	}
	return n
}

// meter checks 6 for one meter: pages and registers never run back, and no
// more energy than the connection carries.
//
// In quarantine a register moves as it likes: of a jump what the connection
// can have carried is booked, and what is counted from there on waits.
func (t *MeterTruth) step(name string, v ledger.MeterView, rebased bool, q *ledger.QuarantineView) (f findings) {
	defer func() {
		t.Waits = reg{}
		if q != nil {
			t.Waits = reg{q.Import, q.Export}
		}
		t.Jumped = q != nil
	}()
	if q != nil && t.Known {
		limit := meter.WattHour(maxPower*((max(v.AtMs-t.AtMs, 0)+999)/1000)/3600 + 1)
		imp, exp := v.Import-t.Import, v.Export-t.Export
		switch {
		case !t.Jumped:
			if max(imp, exp) <= limit || q.CapImport != min(imp, limit) || q.CapExport != min(exp, limit) {
				f.add("%s: %d and %d Wh, at most %d: in quarantine with %+v", name, imp, exp, limit, *q)
			}
			t.SegImp += q.CapImport
			t.SegExp += q.CapExport
		case min(imp, exp) >= 0 && max(imp, exp) <= limit && v.Segment == t.Segment && !rebased && (q.Import != t.Waits.Imp+imp || q.Export != t.Waits.Exp+exp):
			f.add("%s: %d and %d Wh in quarantine, %d and %d waited, now %d and %d", name, imp, exp, t.Waits.Imp, t.Waits.Exp, q.Import, q.Export)
		}
		t.SegImp += t.Import - t.FirstImp
		t.SegExp += t.Export - t.FirstE
		t.FirstImp, t.FirstE = v.Import, v.Export
		t.Page, t.Epoch, t.Segment, t.Import, t.Export, t.AtMs = v.Page, v.Epoch, v.Segment, v.Import, v.Export, v.AtMs
		return f
	}
	if q == nil && t.Jumped { // released: what has waited is booked
		t.SegImp += t.Waits.Imp
		t.SegExp += t.Waits.Exp
	}
	defer func() {
		t.Known = true
		t.Page, t.Epoch, t.Segment, t.Import, t.Export, t.AtMs = v.Page, v.Epoch, v.Segment, v.Import, v.Export, v.AtMs
	}()
	if !t.Known {
		t.FirstImp, t.FirstE = v.Import, v.Export
		return nil
	}
	if v.Epoch < t.Epoch || v.Epoch == t.Epoch && v.Page < t.Page || v.Segment < t.Segment {
		f.add("%s: page %d/%d segment %d after %d/%d segment %d", name, v.Epoch, v.Page, v.Segment, t.Epoch, t.Page, t.Segment)
	}
	if v.Segment != t.Segment || rebased {
		if v.Import == t.Import && v.Export == t.Export {
			return f // the new segment has no base yet
		}
		t.SegImp += t.Import - t.FirstImp
		t.SegExp += t.Export - t.FirstE
		t.FirstImp, t.FirstE = v.Import, v.Export
		return f
	}
	imp, exp := v.Import-t.Import, v.Export-t.Export
	limit := meter.WattHour(maxPower*((max(v.AtMs-t.AtMs, 0)+999)/1000)/3600 + 1)
	if min(imp, exp) < 0 || max(imp, exp) > limit {
		f.add("%s: %d and %d Wh in %d ms, at most %d", name, imp, exp, v.AtMs-t.AtMs, limit)
	}
	return f
}

// session checks a session that has ended.
func (b *books) session(s *ledger.SessionView, c *charging) (f findings) {
	if s.Hold != c.Quote.Hold || s.Captured+s.Released+s.Disputed != s.Hold || s.Disputed < 0 || s.Captured < 0 || s.Released < 0 {
		f.add("session %s: held %d, captured %d, released %d; quoted %d", s.ID, s.Hold, s.Captured, s.Released, c.Quote.Hold)
	}
	if s.Wh < 0 || s.Wh > c.Quote.MaxWh || s.Captured > chain.Nano(s.Cap)*chain.Nano(s.Wh) {
		f.add("session %s: %d Wh of %d for %d at %d", s.ID, s.Wh, c.Quote.MaxWh, s.Captured, s.Cap)
	}
	if s.CreditRedeemed > chain.PPM(s.Captured, redeemPPM) || s.Paid+s.CreditRedeemed != s.Captured || s.CreditEarned > chain.PPM(s.Paid, earnPPM) {
		f.add("session %s: bill %d, credit %d, paid %d, earned %d", s.ID, s.Captured, s.CreditRedeemed, s.Paid, s.CreditEarned)
	}
	if !c.Quote.Redeem && s.CreditRedeemed != 0 {
		f.add("session %s spent credit unasked", s.ID)
	}
	if c.Clean && !s.ByRule && s.State == ledger.SessionClosed {
		if delivered := min(c.Reg-c.Begin, c.Quote.MaxWh); s.Wh != delivered {
			f.add("session %s: %d Wh billed, %d delivered", s.ID, s.Wh, delivered)
		}
	}
	return f
}

func (f findings) String() string { return strings.Join(f, "\n") }
