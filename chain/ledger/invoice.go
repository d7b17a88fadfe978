package ledger

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Documents. Prices include tax and money moves to the nano; a document is
// rounded once, as a whole, to minor units, and what rounding gives or takes
// is posted to the rounding account. Numbers of a series have no gaps. There
// is a series of invoices and one of credit notes of the operator, and for each
// seller one of self-billed invoices and one of credit notes on them, which are
// made out in the seller's name.
// While the microgrid is simulated, documents have series of their own: they
// never get a number that a tax office could miss.
const (
	MaxInvoiceItems = 200 // further sessions go on the next invoice
)

// InvoiceKind is what a document is.
type InvoiceKind uint8

// Document kinds. Append only.
const (
	KindInvoice          InvoiceKind = 1 + iota // for what an account bought
	KindSelfBilled                              // for what an account sold, made out by the buyer
	KindCreditNote                              // for what was refunded, or was not bought after all
	KindSelfBilledCredit                        // for what was not sold after all, made out by the buyer
)

var invoiceKinds = [...]string{KindInvoice: "invoice", KindSelfBilled: "self_billed", KindCreditNote: "credit_note", KindSelfBilledCredit: "self_billed_credit"}

func (k InvoiceKind) String() string {
	if k == 0 || int(k) >= len(invoiceKinds) {
		return fmt.Sprintf("kind(%d)", uint8(k))
	}
	return invoiceKinds[k]
}

// SelfBilled reports whether the account is the document's seller.
func (k InvoiceKind) SelfBilled() bool { return k == KindSelfBilled || k == KindSelfBilledCredit }

// Credit reports whether the document gives back what another one billed.
func (k InvoiceKind) Credit() bool { return k == KindCreditNote || k == KindSelfBilledCredit }

// MarshalText implements encoding.TextMarshaler.
func (k InvoiceKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *InvoiceKind) UnmarshalText(b []byte) error {
	i := slices.Index(invoiceKinds[:], string(b))
	if i < 1 {
		return fmt.Errorf("unknown document kind %q", b)
	}
	*k = InvoiceKind(i)
	return nil
}

// ItemKind is what a line of a document is about.
type ItemKind uint8

// Item kinds. Append only.
const (
	ItemSession     ItemKind = 1 + iota // a car charged
	ItemBoughtLocal                     // a house's energy from neighbours
	ItemBoughtGrid                      // a house's energy from the supplier
	ItemSoldLocal                       // to neighbours
	ItemSoldGrid                        // to the supplier
	ItemRefund                          // of a session
)

var itemKinds = [...]string{
	ItemSession: "session", ItemBoughtLocal: "bought_local", ItemBoughtGrid: "bought_grid",
	ItemSoldLocal: "sold_local", ItemSoldGrid: "sold_grid", ItemRefund: "refund",
}

func (k ItemKind) String() string {
	if k == 0 || int(k) >= len(itemKinds) {
		return fmt.Sprintf("item(%d)", uint8(k))
	}
	return itemKinds[k]
}

// MarshalText implements encoding.TextMarshaler.
func (k ItemKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *ItemKind) UnmarshalText(b []byte) error {
	i := slices.Index(itemKinds[:], string(b))
	if i < 1 {
		return fmt.Errorf("unknown item kind %q", b)
	}
	*k = ItemKind(i)
	return nil
}

// InvoiceItem is one line of a document. Amounts include tax.
type InvoiceItem struct {
	Kind     ItemKind       `cbor:"1,keyasint" json:"kind"`
	Session  chain.ID       `cbor:"2,keyasint" json:"session"` // of a session or refund; else zero
	Wh       meter.WattHour `cbor:"3,keyasint" json:"wh"`
	Amount   chain.Nano     `cbor:"4,keyasint" json:"amount_nano"`
	Credit   chain.Nano     `cbor:"5,keyasint" json:"credit_nano"` // of Amount, paid (or given back) as discount credit
	TaxPPM   int64          `cbor:"6,keyasint" json:"tax_ppm"`     // of the net amount
	Taxed    bool           `cbor:"7,keyasint" json:"taxed"`       // the seller is subject to tax
	Billable bool           `cbor:"8,keyasint" json:"billable"`    // a legal basis and an approved meter
}

// InvoiceView is a document. It never changes.
type InvoiceView struct {
	Kind      InvoiceKind     `cbor:"1,keyasint" json:"kind"`
	Simulated bool            `cbor:"2,keyasint" json:"simulated"`
	Number    uint64          `cbor:"3,keyasint" json:"number"`
	Account   chain.Account   `cbor:"4,keyasint" json:"account"` // the other side: who bought or sold
	IssuedMs  int64           `cbor:"5,keyasint" json:"issued_ms"`
	Height    int64           `cbor:"6,keyasint" json:"height"`
	FromMs    int64           `cbor:"7,keyasint" json:"from_ms"` // of the supplies
	ToMs      int64           `cbor:"8,keyasint" json:"to_ms"`
	Items     []InvoiceItem   `cbor:"9,keyasint" json:"items"`
	Exact     chain.Nano      `cbor:"10,keyasint" json:"exact_nano"` // items less credit
	Total     chain.Nano      `cbor:"11,keyasint" json:"total_nano"` // Exact in whole minor units; the difference is on the rounding account
	Kept      chain.Nano      `cbor:"12,keyasint" json:"kept_nano"`  // of a refund, set off against spent credit that it takes back
	Preceding uint64          `cbor:"13,keyasint" json:"preceding"`  // invoice (of a self-billed credit: the account's self-billed one) that a credit note corrects; 0: none was issued
	Reason    string          `cbor:"14,keyasint" json:"reason,omitempty"`
	Tax       chain.TaxStatus `cbor:"15,keyasint" json:"tax_status"` // of Account
	VATHash   chain.Hash      `cbor:"16,keyasint" json:"vat_hash"`
	Basis     string          `cbor:"17,keyasint" json:"basis"`
}

// ID is the document's number as people write it, unique in the microgrid.
func (v *InvoiceView) ID() string {
	s := ""
	if v.Simulated {
		s = "SIM-"
	}
	switch v.Kind {
	case KindInvoice:
		s += "INV"
	case KindCreditNote:
		s += "CN"
	case KindSelfBilledCredit:
		s += "SC-" + v.Account.String()[:10]
	default:
		s += "SB-" + v.Account.String()[:10]
	}
	return fmt.Sprintf("%s-%06d", s, v.Number)
}

// Billable reports whether every line may be billed, for real money and by
// the kilowatt-hour.
func (v *InvoiceView) Billable() bool {
	return !slices.ContainsFunc(v.Items, func(i InvoiceItem) bool { return !i.Billable })
}

// series returns the place of the document's numbers.
func (v *InvoiceView) series() (byte, chain.Account) {
	b := map[InvoiceKind]byte{KindInvoice: 'I', KindSelfBilled: 'S', KindCreditNote: 'C', KindSelfBilledCredit: 'R'}[v.Kind]
	if v.Simulated {
		b += 'a' - 'A'
	}
	if v.Kind.SelfBilled() {
		return b, v.Account
	}
	return b, chain.Account{}
}

func (v *InvoiceView) key() []byte {
	s, a := v.series()
	return key(tabInvoice, []byte{s}, a[:], be64(v.Number))
}

// document numbers and stores a document.
func (r *run) document(st State, v InvoiceView) InvoiceView {
	p := ProfileOf(st, v.Account)
	v.Simulated, v.IssuedMs, v.Height, v.Basis, v.Tax, v.VATHash = r.rules.Simulated(), r.time, r.height, r.rules.Basis, p.Tax, p.VATHash
	s, a := v.series()
	v.Number = next(st, s, a)
	put(st, v.key(), v)
	return v
}

// Accrual sums up a house's energy that has not been billed, at one tax rate.
type Accrual struct {
	Taxed    bool           `cbor:"1,keyasint" json:"taxed"`
	From     chain.Slot     `cbor:"2,keyasint" json:"from_slot"`
	To       chain.Slot     `cbor:"3,keyasint" json:"to_slot"`
	BoughtWh meter.WattHour `cbor:"4,keyasint" json:"bought_local_wh"`
	Bought   chain.Nano     `cbor:"5,keyasint" json:"bought_local_nano"`
	GridWh   meter.WattHour `cbor:"6,keyasint" json:"bought_grid_wh"`
	Grid     chain.Nano     `cbor:"7,keyasint" json:"bought_grid_nano"`
	SoldWh   meter.WattHour `cbor:"8,keyasint" json:"sold_local_wh"`
	Sold     chain.Nano     `cbor:"9,keyasint" json:"sold_local_nano"`
	FedWh    meter.WattHour `cbor:"10,keyasint" json:"sold_grid_wh"`
	Fed      chain.Nano     `cbor:"11,keyasint" json:"sold_grid_nano"`
	Approved bool           `cbor:"12,keyasint" json:"approved"` // of every slot
	TaxPPM   int64          `cbor:"13,keyasint" json:"tax_ppm"`
}

func (a *Accrual) empty() bool {
	return a.Bought|a.Grid|a.Sold|a.Fed == 0 && a.BoughtWh|a.GridWh|a.SoldWh|a.FedWh == 0
}

func accrualKey(account chain.Account, ppm int64, taxed bool) []byte {
	rate := uint64(0)
	if taxed {
		rate = uint64(ppm) + 1
	}
	return key(tabAccrual, account[:], be64(rate))
}

// accrue adds a house's energy and money of one slot to what will be billed.
// Overflow is out of reach: every term has moved through an account.
func (r *run) accrue(st State, m *member, s chain.Slot, a Accrual) {
	r.accrueTo(st, m.owner(), m.Member.Device, s, a)
}

// accrueTo is accrue for anybody whose energy a gateway's meters have counted.
func (r *run) accrueTo(st State, account chain.Account, device chain.Key, s chain.Slot, a Accrual) {
	if a.empty() {
		return
	}
	at := s.Start(r.rules.SlotSeconds)
	a.TaxPPM, a.Taxed = r.rules.TaxAt(at)
	a.Approved = r.billable(st, device, 0, at)
	k := accrualKey(account, a.TaxPPM, a.Taxed)
	sum, known := get[Accrual](st, k)
	if !known {
		sum = Accrual{Taxed: a.Taxed, TaxPPM: a.TaxPPM, From: s, To: s, Approved: true}
	}
	sum.From, sum.To, sum.Approved = min(sum.From, s), max(sum.To, s), sum.Approved && a.Approved
	sum.BoughtWh += a.BoughtWh
	sum.Bought += a.Bought
	sum.GridWh += a.GridWh
	sum.Grid += a.Grid
	sum.SoldWh += a.SoldWh
	sum.Sold += a.Sold
	sum.FedWh += a.FedWh
	sum.Fed += a.Fed
	put(st, k, sum)
}

// accrueFill bills a house's part in a cleared slot.
func (r *run) accrueFill(st State, m *member, s chain.Slot, f *FillView) {
	local := chain.Nano(f.Price) * chain.Nano(f.Local) // has been paid
	switch {
	case f.Session != chain.ID{} && f.Side == chain.Buy: // billed as a session
	case f.Session != chain.ID{}:
		r.accrueTo(st, f.Account, f.Device, s, Accrual{SoldWh: f.Local, Sold: local, FedWh: f.Grid, Fed: f.Amount - local})
	case f.Side == chain.Buy:
		r.accrue(st, m, s, Accrual{BoughtWh: f.Local, Bought: local, GridWh: f.Grid, Grid: f.Amount - local})
	default:
		r.accrue(st, m, s, Accrual{SoldWh: f.Local, Sold: local, FedWh: f.Grid, Fed: f.Amount - local})
	}
}

// accrueFirm bills what a contract has delivered, and the supplier's part of a
// shortfall. Compensation is no supply: the contract's delivery tells it.
func (r *run) accrueFirm(st State, view *SlotView, d *FirmDelivery) {
	bought := Accrual{BoughtWh: d.Delivered, Bought: chain.Nano(d.Price+d.Fee) * chain.Nano(d.Delivered)}
	sold := Accrual{SoldWh: d.Delivered, Sold: chain.Nano(d.Price) * chain.Nano(d.Delivered)}
	if d.OwnBill == 0 && d.SellerShort > 0 {
		bought.GridWh, bought.Grid = d.SellerShort, d.BuyerPaid-bought.Bought
	}
	if d.OwnBill == 0 && d.BuyerShort > 0 {
		sold.FedWh, sold.Fed = d.BuyerShort, chain.Nano(view.FeedIn)*chain.Nano(d.BuyerShort)
	}
	r.accrueTo(st, d.Buyer.Account, d.Buyer.Device, view.Slot, bought)
	r.accrueTo(st, d.Seller.Account, d.Seller.Device, view.Slot, sold)
}

// issueInvoice bills an account's settled sessions and accrued energy.
func (r *run) issueInvoice(st State, signer chain.Key, b chain.IssueInvoice) error {
	if err := r.operator(signer); err != nil {
		return err
	}
	if err := checkAccount(b.Account); err != nil {
		return err
	}
	if b.Account.IsSystem() {
		return refuse(CodeAccount, "%s is no person's account", b.Account)
	}
	_, err := r.bill(st, b.Account)
	return err
}

// bill puts what an account has to bill on paper, and tells whether there is
// more than fits.
func (r *run) bill(st State, account chain.Account) (more bool, err error) {
	bought := InvoiceView{Kind: KindInvoice, Account: account}
	sold := InvoiceView{Kind: KindSelfBilled, Account: account}
	// A private seller or a small business charges no tax.
	taxedSeller := ProfileOf(st, account).Tax == chain.TaxBusiness

	var done [][]byte
	var house *billed // what the account's houses bought and sold is on these
	each(st, key(tabAccrual, account[:]), func(k []byte, a Accrual) bool {
		done = append(done, key(tabAccrual, k))
		if house == nil {
			house = &billed{From: a.From, To: a.To}
		}
		house.From, house.To = min(house.From, a.From), max(house.To, a.To)
		from, to := a.From.Start(r.rules.SlotSeconds), a.To.End(r.rules.SlotSeconds)
		line := func(v *InvoiceView, kind ItemKind, wh meter.WattHour, amount chain.Nano, taxed bool) {
			if wh == 0 && amount == 0 {
				return
			}
			i := InvoiceItem{Kind: kind, Wh: wh, Amount: amount, Taxed: taxed, Billable: a.Approved}
			if taxed {
				i.TaxPPM = a.TaxPPM
			}
			v.add(i, from, to)
		}
		line(&bought, ItemBoughtLocal, a.BoughtWh, a.Bought, a.Taxed)
		line(&bought, ItemBoughtGrid, a.GridWh, a.Grid, a.Taxed)
		line(&sold, ItemSoldLocal, a.SoldWh, a.Sold, a.Taxed && taxedSeller)
		line(&sold, ItemSoldGrid, a.FedWh, a.Fed, a.Taxed && taxedSeller)
		return true
	})
	prefix := todoKey(todoSession, account[:])
	st.Iterate(prefix, func(k, _ []byte) bool {
		if more = len(bought.Items) >= MaxInvoiceItems; more {
			return false
		}
		done = append(done, k)
		s := session(st, chain.ID(k[len(prefix):]))
		i := InvoiceItem{Kind: ItemSession, Session: s.ID, Wh: s.Wh - s.FirmWh, Amount: s.Captured, Credit: s.CreditRedeemed, Billable: r.billable(st, s.Gateway, s.Connector, s.OpenedMs)}
		i.TaxPPM, i.Taxed = r.rules.TaxAt(s.ClosedMs)
		bought.add(i, s.OpenedMs, s.ClosedMs)
		return true
	})
	if len(done) == 0 {
		return false, refuse(CodeUnknown, "account %s has nothing to bill", account)
	}
	for _, k := range done {
		st.Delete(k)
	}
	for _, v := range []InvoiceView{bought, sold} {
		if len(v.Items) == 0 {
			continue
		}
		if err := r.round(st, &v); err != nil {
			return false, err
		}
		v = r.document(st, v)
		if house != nil {
			r.remember(st, &v, *house)
		}
		for _, i := range v.Items {
			if i.Kind == ItemSession {
				b := billOf(st, i.Session)
				b.Invoice = v.Number
				put(st, billKey(i.Session), b)
			}
		}
		r.event("invoice.issued", v.ID(), "%d nano, account %s", v.Total, v.Account)
	}
	return more, nil
}

func (v *InvoiceView) add(i InvoiceItem, from, to int64) {
	if len(v.Items) == 0 {
		v.FromMs, v.ToMs = from, to
	}
	v.FromMs, v.ToMs = min(v.FromMs, from), max(v.ToMs, to)
	v.Items = append(v.Items, i)
	v.Exact += i.Amount - i.Credit // sums of what has moved through an account
}

// round rounds a document's total and posts the residue. Who pays it, the
// account or the rounding account, pays half a minor unit at most; if the
// balance does not cover that, the total is rounded the other way.
func (r *run) round(st State, v *InvoiceView) error {
	unit := chain.MinorUnit(r.rules.MinorDigits)
	v.Total = halfUp(v.Exact, unit)
	owes := v.Total - v.Exact // to the rounding account
	if v.Kind == KindSelfBilled || v.Kind == KindCreditNote {
		owes = -owes // it receives the total
	}
	if owes > balance(st, v.Account) || -owes > balance(st, chain.AccountRounding) {
		if v.Total > v.Exact {
			v.Total -= unit
		} else {
			v.Total += unit
		}
		if owes > 0 {
			owes -= unit
		} else {
			owes += unit
		}
	}
	because(st, "rounding of", v.Kind)
	from, to := v.Account, chain.AccountRounding
	if owes < 0 {
		from, to, owes = to, from, -owes
	}
	if err := move(st, from, to, owes); err != nil {
		return refuse(CodeFunds, "%s lacks %d nano of rounding: mint a few units of money to %s", from, owes, chain.AccountRounding)
	}
	return nil
}

// MeterApprovalView is an approval and since when it holds.
type MeterApprovalView struct {
	chain.MeterApproval
	FromMs int64 `cbor:"30,keyasint" json:"from_ms"`
}

func approvalKey(device chain.Key, connector uint8) []byte {
	return key(tabApproval, device[:], []byte{connector})
}

func (r *run) meterApproval(st State, by authority, a chain.MeterApproval) error {
	if err := r.operators(by); err != nil {
		return err
	}
	k := approvalKey(a.Device, a.Connector)
	old, known := get[MeterApprovalView](st, k)
	switch {
	case st.Get(MemberKey(a.Device)) == nil:
		return refuse(CodeNotMember, "%s is no member", a.Device.Short())
	case len(a.Approval) > maxText:
		return refuse(CodeMalformed, "approval of %d bytes, at most %d", len(a.Approval), maxText)
	case a.Approval == "" && !known:
		return refuse(CodeUnknown, "there is no approval to withdraw")
	case a.Approval != "" && (a.Until <= r.time || a.Until > r.time+maxRulesDays*10*dayMs):
		return refuse(CodeRange, "approved until %d, block time is %d", a.Until, r.time)
	}
	v := MeterApprovalView{MeterApproval: a, FromMs: r.time}
	switch {
	case a.Approval == "":
		v = old // what was measured before it was withdrawn stays billable
		v.Until = min(v.Until, r.time)
	case known && old.Until >= r.time:
		v.FromMs = old.FromMs
	}
	put(st, k, v)
	r.event("meter.approved", a.Device.String(), "connector %d until %d: %s", v.Connector, v.Until, v.Approval)
	return nil
}

// billable reports whether a meter's kilowatt-hours at a moment may be billed.
func (r *run) billable(st State, device chain.Key, connector uint8, ms int64) bool {
	return notBillable(st, &r.rules, device, connector, ms) == ""
}

func notBillable(st State, rules *Rules, device chain.Key, connector uint8, ms int64) string {
	if rules.Simulated() {
		return "simulated: nobody has recorded a legal basis for selling energy here"
	}
	a, ok := get[MeterApprovalView](st, approvalKey(device, connector))
	switch {
	case !ok:
		return "the meter is not approved for billing by the kilowatt-hour"
	case ms < a.FromMs || ms > a.Until:
		return "the meter's approval does not cover this time"
	}
	return ""
}

// NotBillable tells why what a charging point (0: a house's meter) counts at
// a moment (Unix ms) is not for billing, or "".
func NotBillable(st State, device chain.Key, connector uint8, ms int64) string {
	rules := RulesOf(st)
	return notBillable(st, &rules, device, connector, ms)
}

// MeterApprovals returns all approvals, ascending by device and connector.
func MeterApprovals(st State) []MeterApprovalView {
	return collect[MeterApprovalView](st, key(tabApproval))
}

func (r *run) profile(st State, signer chain.Key, p chain.Profile) error {
	a := chain.AccountOf(signer)
	switch {
	case st.Get(AccountKey(a)) == nil:
		return refuse(CodeUnknown, "account %s has never held money", a)
	case p.Tax > chain.TaxSmall:
		return refuse(CodeMalformed, "tax status %d", p.Tax)
	case p.Tax == chain.TaxBusiness && p.VATHash == chain.Hash{}:
		return refuse(CodeMalformed, "a business has a VAT id")
	}
	put(st, key(tabProfile, a[:]), p)
	return nil
}

// ProfileOf returns what an account's holder has told of himself; private
// without anything told.
func ProfileOf(st State, a chain.Account) chain.Profile {
	p, _ := get[chain.Profile](st, key(tabProfile, a[:]))
	return p
}

// Invoices returns the documents of an account, or all with the zero account,
// in the order in which they were issued.
func Invoices(st State, a chain.Account) []InvoiceView {
	var all []InvoiceView
	each(st, key(tabInvoice), func(_ []byte, v InvoiceView) bool {
		if a == (chain.Account{}) || v.Account == a {
			all = append(all, v)
		}
		return true
	})
	slices.SortStableFunc(all, func(x, y InvoiceView) int { return int(x.Height - y.Height) })
	return all
}

// InvoiceOf returns the document with that ID.
func InvoiceOf(st State, id string) (v InvoiceView, found bool) {
	// All that the ID leaves open is the end of a seller's account.
	rest, simulated := strings.CutPrefix(id, "SIM-")
	word, rest, _ := strings.Cut(rest, "-")
	v = InvoiceView{Kind: map[string]InvoiceKind{"INV": KindInvoice, "CN": KindCreditNote, "SB": KindSelfBilled, "SC": KindSelfBilledCredit}[word], Simulated: simulated}
	if v.Kind == 0 {
		return v, false
	}
	s, _ := v.series()
	prefix := key(tabInvoice, []byte{s})
	if v.Kind.SelfBilled() {
		seller, _, _ := strings.Cut(rest, "-")
		part, err := hex.DecodeString(seller)
		if err != nil || len(part) != 5 {
			return v, false
		}
		prefix = append(prefix, part...)
	} else {
		n, err := strconv.ParseUint(rest, 10, 64)
		if err != nil {
			return v, false
		}
		prefix = append(append(prefix, make([]byte, len(v.Account))...), be64(n)...)
	}
	each(st, prefix, func(_ []byte, at InvoiceView) bool {
		if at.ID() == id {
			v, found = at, true
		}
		return !found
	})
	return v, found
}

// Unbilled returns the accounts that have something to bill, ascending.
func Unbilled(st State) []chain.Account {
	seen := map[chain.Account]bool{}
	st.Iterate(key(tabAccrual), func(k, _ []byte) bool { seen[chain.Account(k[1:21])] = true; return true })
	st.Iterate(todoKey(todoSession), func(k, _ []byte) bool { seen[chain.Account(k[2:22])] = true; return true })
	all := make([]chain.Account, 0, len(seen))
	for a := range seen {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b chain.Account) int { return bytes.Compare(a[:], b[:]) })
	return all
}
