package ledger

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Firm orders are promises about slots to come. Both sides put up collateral
// when they promise, for the most that they can owe; what a slot delivers
// under a contract is taken out before the rest is cleared, so that a Wh is in
// one trade only. With p what the seller gets, b = p + the fees of the way
// between them what the buyer pays, and the seller able to give s Wh of the
// contract's W, the buyer to take t:
//
//	delivered          q = min(s, t)   buyer pays b*q, seller gets p*q, network the fees
//	seller short by    d = t - q       the supplier delivers d at retail; the buyer pays b*d of
//	                                   it, the seller (retail - b)*d
//	buyer short by     d = s - q       the supplier takes d at feed-in; the buyer adds
//	                                   (p - feed_in)*d
//
// So the side that kept its word is where it would have been, to the nano. A
// meter that has not reported has delivered and taken nothing. Contracts of a
// slot are served in the order of their offers' ids, then of acceptance.
//
// Either side may be a car: one that sells, or one that charges. What a car
// takes under contracts is paid from their collateral, by the driver's own
// word, and nothing is captured from its session's hold for it.
const (
	MaxFirmOffers    = 1024 // open
	MaxFirmSlots     = 96   // of one offer
	MaxFirmContracts = 256  // of one slot
	maxFirmWh        = 1 << 30
)

// FirmParty is one side of a firm order.
type FirmParty struct {
	Account chain.Account `cbor:"1,keyasint" json:"account"`
	Device  chain.Key     `cbor:"2,keyasint" json:"device"`
	Session chain.ID      `cbor:"3,keyasint,omitzero" json:"session"` // of a car; zero: the house
	Node    string        `cbor:"4,keyasint" json:"node"`
}

// order is the party's order in a slot.
func (p *FirmParty) order(side chain.Side) string {
	switch {
	case p.Session != (chain.ID{}) && side == chain.Buy:
		return "car/" + p.Session.String()
	case p.Session != (chain.ID{}):
		return "v2v/" + p.Session.String()
	case side == chain.Sell:
		return "sell/" + p.Node
	}
	return "buy/" + p.Node
}

// FirmView is a firm offer.
type FirmView struct {
	ID     chain.ID          `cbor:"1,keyasint" json:"id"`
	Maker  FirmParty         `cbor:"2,keyasint" json:"maker"`
	Side   chain.Side        `cbor:"3,keyasint" json:"side"`
	From   chain.Slot        `cbor:"4,keyasint" json:"from_slot"`
	To     chain.Slot        `cbor:"5,keyasint" json:"to_slot"`
	Wh     meter.WattHour    `cbor:"6,keyasint" json:"wh"` // offered, per slot
	Price  chain.NanoPerWh   `cbor:"7,keyasint" json:"price_nano_per_wh"`
	Left   meter.WattHour    `cbor:"8,keyasint" json:"left_wh"`   // not taken, per slot
	Hold   chain.Nano        `cbor:"9,keyasint" json:"hold_nano"` // collateral for what is left
	Open   bool              `cbor:"10,keyasint" json:"open"`     // can still be taken
	Taken  uint32            `cbor:"11,keyasint" json:"taken"`    // times
	Retail []chain.NanoPerWh `cbor:"12,keyasint" json:"-"`        // of every slot when it was offered: bounds a seller's debt
	Height int64             `cbor:"13,keyasint" json:"height"`
}

// contract is the part of one slot that somebody has accepted.
type contract struct {
	Seller     FirmParty       `cbor:"1,keyasint"`
	Buyer      FirmParty       `cbor:"2,keyasint"`
	Wh         meter.WattHour  `cbor:"3,keyasint"`
	Price      chain.NanoPerWh `cbor:"4,keyasint"` // the seller gets
	Fee        chain.NanoPerWh `cbor:"5,keyasint"` // of the network; the buyer pays both
	Retail     chain.NanoPerWh `cbor:"6,keyasint"` // most that the seller answers for
	SellerHold chain.Nano      `cbor:"7,keyasint"`
	BuyerHold  chain.Nano      `cbor:"8,keyasint"`
}

// FirmDelivery is what became of a contract in one slot.
type FirmDelivery struct {
	Offer        chain.ID        `cbor:"1,keyasint" json:"offer"`
	Number       uint32          `cbor:"2,keyasint" json:"number"`
	Seller       FirmParty       `cbor:"3,keyasint" json:"seller"`
	Buyer        FirmParty       `cbor:"4,keyasint" json:"buyer"`
	Wh           meter.WattHour  `cbor:"5,keyasint" json:"wh"` // contracted
	Delivered    meter.WattHour  `cbor:"6,keyasint" json:"delivered_wh"`
	SellerShort  meter.WattHour  `cbor:"7,keyasint" json:"seller_short_wh"`
	BuyerShort   meter.WattHour  `cbor:"8,keyasint" json:"buyer_short_wh"`
	Price        chain.NanoPerWh `cbor:"9,keyasint" json:"price_nano_per_wh"` // the seller gets
	Fee          chain.NanoPerWh `cbor:"10,keyasint" json:"fee_nano_per_wh"`
	Compensation chain.Nano      `cbor:"11,keyasint" json:"compensation_nano"`               // by who was short
	BuyerPaid    chain.Nano      `cbor:"12,keyasint" json:"buyer_paid_nano"`                 // in all, compensation included
	SellerGot    chain.Nano      `cbor:"13,keyasint" json:"seller_got_nano"`                 // in all; negative: paid
	OwnBill      meter.WattHour  `cbor:"14,keyasint,omitempty" json:"own_bill_wh,omitempty"` // of a shortfall, left to the supplier's own bill
}

func firmKey(id chain.ID) []byte { return key(tabFirm, []byte{'v'}, id[:]) }
func firmOpenKey(s chain.Slot, id chain.ID) []byte {
	return key(tabFirm, []byte{'o'}, slotBytes(s), id[:])
}

func firmClosedKey(s chain.Slot, id chain.ID) []byte {
	return key(tabFirm, []byte{'x'}, slotBytes(s), id[:])
}

func contractKey(s chain.Slot, offer chain.ID, n uint32) []byte {
	return key(tabContract, slotBytes(s), offer[:], binary.BigEndian.AppendUint32(nil, n))
}

// party checks that signer may promise for a house or a car.
func (r *run) party(st State, signer, device chain.Key, id chain.ID, side chain.Side) (FirmParty, error) {
	p := FirmParty{Account: chain.AccountOf(signer), Device: device, Session: id}
	m, ok := get[member](st, MemberKey(device))
	switch {
	case side != chain.Buy && side != chain.Sell:
		return p, refuse(CodeMalformed, "side %d", side)
	case !ok || !m.Active:
		return p, refuse(CodeNotMember, "%s is no active member", device.Short())
	case id == chain.ID{}:
		if m.Member.Owner != signer {
			return p, refuse(CodeNotAllowed, "%s does not own %s", signer.Short(), m.Member.Name)
		}
	default:
		s, ok := SessionOf(st, id)
		switch {
		case !ok || s.Gateway != device:
			return p, refuse(CodeSession, "no session %s at %s", id, m.Member.Name)
		case s.DriverKey != signer:
			return p, refuse(CodeNotAllowed, "session %s is another driver's", id)
		case s.State >= SessionMetered:
			return p, refuse(CodeState, "session %s is %s", id, s.State)
		case side == chain.Sell && s.SellWh == 0:
			return p, refuse(CodeState, "session %s does not sell", id)
		case side == chain.Buy && s.MaxWh == 0:
			return p, refuse(CodeState, "session %s does not charge", id)
		}
	}
	p.Node = m.Member.Name
	return p, nil
}

// firmHold is the collateral for wh at a price; never negative.
func firmHold(price chain.NanoPerWh, wh meter.WattHour) (chain.Nano, error) {
	n, err := chain.Cost(max(price, 0), wh)
	if err != nil {
		return 0, refuse(CodeOverflow, "%d Wh at %d nano/Wh", wh, price)
	}
	return n, nil
}

// makerHold is the collateral for wh in every slot of the offer.
func (f *FirmView) makerHold(wh meter.WattHour) (chain.Nano, error) {
	var sum chain.Nano
	for _, retail := range f.Retail {
		price := f.Price
		if f.Side == chain.Sell {
			price = retail - f.Price
		}
		n, err := firmHold(price, wh)
		if err == nil {
			sum, err = chain.AddNano(sum, n)
		}
		if err != nil {
			return 0, refuse(CodeOverflow, "collateral for %d Wh", wh)
		}
	}
	return sum, nil
}

func (r *run) firmOffer(st State, signer chain.Key, o chain.FirmOffer) error {
	if err := needFeature(st, chain.FeatureFirm); err != nil {
		return err
	}
	maker, err := r.party(st, signer, o.Device, o.Session, o.Side)
	if err != nil {
		return err
	}
	if err := checkPrice("price", o.Price); err != nil {
		return err
	}
	open := 0
	st.Iterate(key(tabFirm, []byte{'o'}), func(_, _ []byte) bool {
		open++
		return true
	})
	now := max(r.slot, r.clock.Next)
	switch {
	case o.ID == chain.ID{} || st.Get(firmKey(o.ID)) != nil:
		return refuse(CodeTaken, "offer %s exists", o.ID)
	case o.From <= now || o.To < o.From || o.To-o.From >= MaxFirmSlots || o.To > now+maxAhead:
		return refuse(CodeRange, "slots %d..%d: at most %d, from %d on", o.From, o.To, MaxFirmSlots, now+1)
	case o.Wh < 1 || o.Wh > maxFirmWh:
		return refuse(CodeRange, "%d Wh, 1..%d", o.Wh, maxFirmWh)
	case open >= MaxFirmOffers:
		return refuse(CodeLimit, "%d firm offers are open", open)
	}
	f := FirmView{ID: o.ID, Maker: maker, Side: o.Side, From: o.From, To: o.To, Wh: o.Wh, Price: o.Price, Left: o.Wh, Open: true, Height: r.height}
	for s := o.From; s <= o.To; s++ {
		retail, feedIn := r.prices(st, s)
		if o.Side == chain.Sell && o.Price > retail || o.Side == chain.Buy && o.Price < feedIn {
			return refuse(CodeRange, "price %d in slot %d, where the supplier asks %d and pays %d", o.Price, s, retail, feedIn)
		}
		f.Retail = append(f.Retail, retail)
	}
	if f.Hold, err = f.makerHold(f.Left); err != nil {
		return err
	}
	because(st, "collateral of firm offer", f.ID)
	if err := move(st, maker.Account, chain.AccountCollateral, f.Hold); err != nil {
		return err
	}
	put(st, firmKey(f.ID), f)
	put(st, firmOpenKey(f.From, f.ID), true)
	r.event("firm.offered", f.ID.String(), "%s %d Wh in slots %d..%d at %d nano/Wh, %d nano held", f.Side, f.Wh, f.From, f.To, f.Price, f.Hold)
	return nil
}

func (r *run) firmTake(st State, signer chain.Key, t chain.FirmTake) error {
	if err := needFeature(st, chain.FeatureFirm); err != nil {
		return err
	}
	f, ok := get[FirmView](st, firmKey(t.Offer))
	if !ok || !f.Open {
		return refuse(CodeState, "offer %s is not open", t.Offer)
	}
	taker, err := r.party(st, signer, t.Device, t.Session, chain.Buy+chain.Sell-f.Side)
	if err != nil {
		return err
	}
	switch {
	case taker.Account == f.Maker.Account || taker.Device == f.Maker.Device && taker.Session == f.Maker.Session:
		return refuse(CodeNotAllowed, "offer %s is one's own", f.ID)
	case f.From <= max(r.slot, r.clock.Next):
		return refuse(CodeExpired, "offer %s begins with slot %d", f.ID, f.From)
	case t.Wh < 1 || t.Wh > f.Left:
		return refuse(CodeRange, "%d Wh of %d left", t.Wh, f.Left)
	}
	before, err := f.makerHold(t.Wh)
	if err != nil {
		return err
	}
	f.Taken++
	var maker, mine chain.Nano // collateral in contracts
	for s := f.From; s <= f.To; s++ {
		c := contract{Seller: f.Maker, Buyer: taker, Wh: t.Wh, Price: f.Price, Retail: f.Retail[s-f.From]}
		if c.Fee, err = pathFee(st, f.Maker.Node, taker.Node, s); err != nil {
			return err
		}
		if f.Side == chain.Buy {
			c.Seller, c.Buyer, c.Price = taker, f.Maker, f.Price-c.Fee
		}
		retail, feedIn := r.prices(st, s)
		if c.Price+c.Fee > min(retail, c.Retail) || c.Price < feedIn {
			return refuse(CodeRange, "slot %d: the seller would get %d, the buyer pay %d; the supplier pays %d and asks %d", s, c.Price, c.Price+c.Fee, feedIn, retail)
		}
		// Neither overflows more than the maker's, which is for the same energy.
		if c.SellerHold, err = firmHold(c.Retail-c.Price-c.Fee, c.Wh); err != nil {
			return err
		}
		if c.BuyerHold, err = firmHold(c.Price+c.Fee, c.Wh); err != nil {
			return err
		}
		a, b := c.SellerHold, c.BuyerHold
		if f.Side == chain.Buy {
			a, b = b, a
		}
		maker += a
		if mine, err = chain.AddNano(mine, b); err != nil {
			return refuse(CodeOverflow, "collateral for %d Wh", t.Wh)
		}
		count := 0
		st.Iterate(key(tabContract, slotBytes(s)), func(_, _ []byte) bool {
			count++
			return true
		})
		if count >= MaxFirmContracts {
			return refuse(CodeLimit, "slot %d has %d contracts", s, count)
		}
		put(st, contractKey(s, f.ID, f.Taken), c)
	}
	because(st, "collateral of firm offer", f.ID)
	if err := move(st, taker.Account, chain.AccountCollateral, mine); err != nil {
		return err
	}
	// A far seller answers for less: the buyer pays part of the way to retail.
	if err := move(st, chain.AccountCollateral, f.Maker.Account, before-maker); err != nil {
		return err
	}
	f.Left -= t.Wh
	f.Hold -= before
	r.event("firm.taken", f.ID.String(), "%d Wh per slot, %d left", t.Wh, f.Left)
	if f.Left == 0 {
		f.Open = false
		st.Delete(firmOpenKey(f.From, f.ID))
		put(st, firmClosedKey(f.To, f.ID), true)
	}
	put(st, firmKey(f.ID), f)
	return nil
}

func (r *run) firmCancel(st State, signer chain.Key, c chain.FirmCancel) error {
	f, ok := get[FirmView](st, firmKey(c.Offer))
	switch {
	case !ok || !f.Open:
		return refuse(CodeState, "offer %s is not open", c.Offer)
	case f.Maker.Account != chain.AccountOf(signer):
		return refuse(CodeNotAllowed, "offer %s is another's", c.Offer)
	}
	return r.closeFirm(st, f)
}

// closeFirm returns the collateral for what nobody has taken.
func (r *run) closeFirm(st State, f FirmView) error {
	because(st, "returned by firm offer", f.ID)
	if err := move(st, chain.AccountCollateral, f.Maker.Account, f.Hold); err != nil {
		return err
	}
	r.event("firm.closed", f.ID.String(), "%d Wh per slot not taken, %d nano returned", f.Left, f.Hold)
	f.Hold, f.Open = 0, false
	st.Delete(firmOpenKey(f.From, f.ID))
	put(st, firmClosedKey(f.To, f.ID), true)
	put(st, firmKey(f.ID), f)
	return nil
}

// closeFirms closes the offers whose first slot has begun, or whose car has
// gone.
func (r *run) closeFirms(st State) error {
	var due []FirmView
	st.Iterate(key(tabFirm, []byte{'o'}), func(k, _ []byte) bool {
		f, _ := get[FirmView](st, firmKey(chain.ID(k[10:])))
		gone := false
		if f.Maker.Session != (chain.ID{}) {
			s, _ := SessionOf(st, f.Maker.Session)
			gone = s.State >= SessionMetered
		}
		if f.From <= r.slot || gone {
			due = append(due, f)
		}
		return true
	})
	for _, f := range due {
		if err := r.closeFirm(st, f); err != nil {
			return err
		}
	}
	return nil
}

// deliver settles the contracts of a slot against its fills, before the rest
// is cleared: what they use up is in Firm, FirmGrid and Supplier of a fill.
func (r *run) deliver(st State, view *SlotView, fills []FillView) ([]FirmDelivery, error) {
	var out []FirmDelivery
	var keys [][]byte
	index := map[string]*FillView{}
	for i := range fills {
		index[fills[i].ID] = &fills[i]
	}
	for _, k := range contractKeys(st, view.Slot) {
		keys = append(keys, k)
		c, _ := get[contract](st, k)
		d := FirmDelivery{
			Offer: chain.ID(k[9:25]), Number: binary.BigEndian.Uint32(k[25:]), Seller: c.Seller, Buyer: c.Buyer,
			Wh: c.Wh, Price: c.Price, Fee: c.Fee,
		}
		because(st, "contract of firm offer", d.Offer)
		if err := r.settleContract(st, view, &c, &d, index[c.Seller.order(chain.Sell)], index[c.Buyer.order(chain.Buy)]); err != nil {
			return nil, err
		}
		out = append(out, d)
		r.accrueFirm(st, view, &d)
		r.event("firm.delivered", d.Offer.String(), "slot %d: %d Wh of %d, seller short %d, buyer short %d, compensation %d nano", view.Slot, d.Delivered, d.Wh, d.SellerShort, d.BuyerShort, d.Compensation)
	}
	for i, k := range keys {
		st.Delete(k)
		put(st, key(tabDelivery, k[1:]), out[i])
	}
	return out, nil
}

func contractKeys(st State, s chain.Slot) (keys [][]byte) {
	st.Iterate(key(tabContract, slotBytes(s)), func(k, _ []byte) bool {
		keys = append(keys, slices.Clone(k))
		return true
	})
	return keys
}

// settleContract pays out both holds of a contract to the last nano.
func (r *run) settleContract(st State, view *SlotView, c *contract, d *FirmDelivery, seller, buyer *FillView) error {
	give, take := min(c.Wh, unbound(seller)), min(c.Wh, unbound(buyer))
	d.Delivered = min(give, take)
	d.SellerShort, d.BuyerShort = take-d.Delivered, give-d.Delivered
	cost := func(p chain.NanoPerWh, wh meter.WattHour) chain.Nano { return chain.Nano(max(p, 0)) * chain.Nano(wh) } // within the holds
	sellerLeft, buyerLeft := c.SellerHold, c.BuyerHold
	out := func(left *chain.Nano, to chain.Account, n chain.Nano) error {
		if *left -= n; *left < 0 {
			return fmt.Errorf("contract of offer %s: collateral is short by %d", d.Offer, -*left)
		}
		return move(st, chain.AccountCollateral, to, n)
	}

	// Delivered.
	if err := out(&buyerLeft, c.Seller.Account, cost(c.Price, d.Delivered)); err != nil {
		return err
	}
	if err := out(&buyerLeft, chain.AccountNetwork, cost(c.Fee, d.Delivered)); err != nil {
		return err
	}
	d.SellerGot += cost(c.Price, d.Delivered)
	d.BuyerPaid += cost(c.Price+c.Fee, d.Delivered)
	if d.Delivered > 0 {
		seller.Firm += d.Delivered
		buyer.Firm += d.Delivered
		view.Energy.Traded += d.Delivered
		view.FirmWh += d.Delivered
		count := func(f *FillView, fn func(*counters)) {
			n := countersOf(st, f.Device)
			fn(&n)
			put(st, key(tabCounters, f.Device[:]), n)
		}
		count(seller, func(n *counters) { n.SoldLocal += d.Delivered; n.FirmSold += d.Delivered })
		count(buyer, func(n *counters) { n.BoughtLocal += d.Delivered; n.FirmBought += d.Delivered })
	}

	if wh := d.SellerShort; wh > 0 {
		b := c.Price + c.Fee
		answer := min(view.Retail, c.Retail)
		d.Compensation = cost(answer-b, wh)
		switch {
		case view.Retail <= c.Retail || pay(st, c.Buyer.Account, chain.AccountGrid, view.Retail-c.Retail, wh):
			own := cost(min(b, answer), wh)
			if err := out(&buyerLeft, chain.AccountGrid, own); err != nil {
				return err
			}
			if err := out(&sellerLeft, chain.AccountGrid, d.Compensation); err != nil {
				return err
			}
			buyer.FirmGrid += wh
			d.BuyerPaid += own + cost(view.Retail-c.Retail, wh)
		default:
			// The tariff rose after the contract and the buyer has no money
			// for the difference: his supplier bills him, the seller's part
			// is his. A car's hold pays, as for all that it takes.
			if err := out(&sellerLeft, c.Buyer.Account, d.Compensation); err != nil {
				return err
			}
			d.OwnBill = wh
			d.BuyerPaid -= d.Compensation
			if c.Buyer.Session != (chain.ID{}) {
				break
			}
			buyer.FirmOwn += wh
			n := countersOf(st, buyer.Device)
			n.SupplierImport += wh
			put(st, key(tabCounters, buyer.Device[:]), n)
		}
		d.SellerGot -= d.Compensation
	}
	if wh := d.BuyerShort; wh > 0 {
		d.Compensation = cost(c.Price-view.FeedIn, wh)
		if err := out(&buyerLeft, c.Seller.Account, d.Compensation); err != nil {
			return err
		}
		d.BuyerPaid += d.Compensation
		d.SellerGot += d.Compensation
		if pay(st, chain.AccountGrid, c.Seller.Account, view.FeedIn, wh) {
			seller.FirmGrid += wh
			d.SellerGot += cost(view.FeedIn, wh)
		} else {
			seller.FirmOwn += wh
			d.OwnBill = wh
			n := countersOf(st, seller.Device)
			n.SupplierExport += wh
			put(st, key(tabCounters, seller.Device[:]), n)
		}
	}
	if c.Buyer.Session != (chain.ID{}) {
		b := session(st, c.Buyer.Session)
		b.LocalWh += d.Delivered
		b.FirmWh += d.Delivered
		if d.SellerShort > d.OwnBill {
			b.FirmWh += d.SellerShort
		}
		b.FirmPaid += d.BuyerPaid
		putSession(st, &b)
	}
	if err := out(&buyerLeft, c.Buyer.Account, buyerLeft); err != nil {
		return err
	}
	return out(&sellerLeft, c.Seller.Account, sellerLeft)
}

// unbound is the energy of a fill that no contract has used; nil has none.
func unbound(f *FillView) meter.WattHour {
	if f == nil {
		return 0
	}
	return f.rest()
}

// rest is the energy of a fill that is not under contracts.
func (f *FillView) rest() meter.WattHour { return f.Wh - f.Firm - f.FirmGrid - f.FirmOwn }

// collateral is what firm orders hold, by account.
func collateral(st State) map[chain.Account]chain.Nano {
	held := map[chain.Account]chain.Nano{}
	each(st, key(tabFirm, []byte{'o'}), func(k []byte, _ bool) bool {
		f, _ := get[FirmView](st, firmKey(chain.ID(k[9:])))
		held[f.Maker.Account] += f.Hold
		return true
	})
	each(st, key(tabContract), func(_ []byte, c contract) bool {
		held[c.Seller.Account] += c.SellerHold
		held[c.Buyer.Account] += c.BuyerHold
		return true
	})
	return held
}

// FirmOffers returns firm offers: the open ones, or all.
func FirmOffers(st State, all bool) []FirmView {
	var out []FirmView
	if all {
		out = collect[FirmView](st, key(tabFirm, []byte{'v'}))
	} else {
		each(st, key(tabFirm, []byte{'o'}), func(k []byte, _ bool) bool {
			f, _ := get[FirmView](st, firmKey(chain.ID(k[9:])))
			out = append(out, f)
			return true
		})
	}
	slices.SortStableFunc(out, func(a, b FirmView) int { return cmp.Compare(a.From, b.From) })
	return out
}

// FirmDeliveries returns what became of the contracts of a cleared slot.
func FirmDeliveries(st State, s chain.Slot) []FirmDelivery {
	return collect[FirmDelivery](st, key(tabDelivery, slotBytes(s)))
}

// checkFirm checks that the collateral account holds what the orders say.
func (f *faults) firm(st State) {
	var sum chain.Nano
	for _, n := range collateral(st) {
		sum += n
	}
	if n := balance(st, chain.AccountCollateral); sum != n {
		f.add("firm orders hold %d, the collateral account has %d", sum, n)
	}
}

// FirmDuty is what a car has promised for one slot under one contract.
type FirmDuty struct {
	Session chain.ID
	Offer   chain.ID
	Number  uint32
	Slot    chain.Slot
	Wh      meter.WattHour
}

// FirmDuties returns what cars at a gateway have promised for slots from..to,
// in the order in which a slot's contracts are served.
func FirmDuties(st State, device chain.Key, from, to chain.Slot) (out []FirmDuty) {
	for s := from; s <= to; s++ {
		for _, k := range contractKeys(st, s) {
			c, _ := get[contract](st, k)
			if c.Seller.Device != device || c.Seller.Session == (chain.ID{}) {
				continue
			}
			n := len(k) - 4
			out = append(out, FirmDuty{c.Seller.Session, chain.ID(k[n-len(chain.ID{}) : n]), binary.BigEndian.Uint32(k[n:]), s, c.Wh})
		}
	}
	return out
}
