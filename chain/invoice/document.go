package invoice

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Document is an invoice, self-billed invoice or credit note as EN 16931
// counts. Amounts are minor units of the currency (cents).
type Document struct {
	View      ledger.InvoiceView
	Currency  string
	Digits    int // decimals of an amount
	Issued    time.Time
	From, To  time.Time // To is exclusive
	Seller    Party
	Buyer     Party
	SellerID  string // BT-29
	BuyerID   string // BT-46
	Preceding string // BT-25
	Notes     []string
	Lines     []Line
	Taxes     []Tax // one per category and rate, with its allowance

	Net       int64 // BT-106, of the lines
	Allowance int64 // BT-107
	Taxable   int64 // BT-109
	Tax       int64 // BT-110
	Gross     int64 // BT-112
	Prepaid   int64 // BT-113
	Rounding  int64 // BT-114
}

// Line is one line of a document.
type Line struct {
	ID       string
	Name     string
	Item     ledger.InvoiceItem
	Net      int64  // BT-131
	Category string // BT-151
	PPM      int64  // BT-152
}

// Tax is a VAT breakdown, BG-23, and the document allowance of its category.
type Tax struct {
	Category  string // S, Z, E or O (UNCL 5305)
	PPM       int64
	Taxable   int64
	Amount    int64
	Allowance int64  // discount credit, net
	Reason    string // why no tax is charged
}

// NotForBilling is the word that every form of a document carries which must
// not be paid, or be taken for a proof in money matters.
const NotForBilling = "NOT FOR BILLING"

// New counts a document. The session function tells a session's charger as
// people call it; an unknown one may be empty.
func New(v ledger.InvoiceView, rules ledger.Rules, book *Book, session func(chain.ID) string) (*Document, error) {
	zone := book.Location
	if zone == nil {
		zone = time.UTC
	}
	d := &Document{
		View: v, Currency: rules.Currency, Digits: rules.MinorDigits,
		Issued: time.UnixMilli(v.IssuedMs).In(zone), From: time.UnixMilli(v.FromMs).In(zone), To: time.UnixMilli(v.ToMs).In(zone),
	}
	party, err := book.party(v.Account, v.VATHash)
	if err != nil {
		return nil, err
	}
	d.Seller, d.Buyer, d.BuyerID = book.Issuer, party, v.Account.String()
	if v.Kind.SelfBilled() {
		d.Seller, d.Buyer, d.SellerID, d.BuyerID = party, book.Issuer, v.Account.String(), ""
		d.Notes = append(d.Notes, "Self-billed: made out by the buyer in the seller's name.")
	}
	if v.Preceding != 0 {
		p := ledger.InvoiceView{Kind: ledger.KindInvoice, Simulated: v.Simulated, Account: v.Account, Number: v.Preceding}
		if v.Kind.SelfBilled() {
			p.Kind = ledger.KindSelfBilled
		}
		d.Preceding = p.ID()
	}
	if v.Simulated {
		d.Notes = append(d.Notes, NotForBilling+": simulated. Nobody has recorded a legal basis for selling energy here.")
	} else if !v.Billable() {
		d.Notes = append(d.Notes, NotForBilling+": a meter behind it is not approved for billing by the kilowatt-hour.")
	}
	if v.Reason != "" {
		d.Notes = append(d.Notes, "Reason: "+v.Reason)
	}
	if v.Kept > 0 {
		d.Notes = append(d.Notes, fmt.Sprintf("%s %s of it are set off against discount credit that was earned with this bill and has been spent.", Decimal(int64(v.Kept/chain.MinorUnit(d.Digits)), d.Digits), d.Currency))
	}
	d.count(session)
	if err := d.parties(); err != nil {
		return nil, err
	}
	return d, nil
}

// parties drops what the categories forbid and demands what they need.
func (d *Document) parties() error {
	for _, p := range []struct {
		what string
		*Party
	}{{"seller", &d.Seller}, {"buyer", &d.Buyer}} {
		if p.Name == "" || p.City == "" || len(p.Country) != 2 {
			return fmt.Errorf("the %s %q needs name, city and country (two letters) in the parties file", p.what, p.Name)
		}
	}
	switch d.Taxes[0].Category {
	case "O": // BR-O-02: no VAT identifiers at all
		d.Seller.VATID, d.Buyer.VATID = "", ""
		if d.SellerID == "" { // BR-CO-26
			d.SellerID = cmp.Or(d.Seller.TaxNumber, d.Seller.Email, d.Seller.Name)
		}
	default:
		if d.Seller.VATID == "" && d.Seller.TaxNumber == "" { // BR-S-02
			return fmt.Errorf("the seller %q needs vat_id or tax_number in the parties file", d.Seller.Name)
		}
		if d.Seller.VATID == "" && d.SellerID == "" {
			d.SellerID = d.Seller.TaxNumber
		}
	}
	return nil
}

// category places an item. Next to taxed lines an untaxed one is exempt:
// BR-O-11 lets "not subject to tax" stand only alone.
func (d *Document) category(i ledger.InvoiceItem) (string, int64) {
	mixed := slices.ContainsFunc(d.View.Items, func(x ledger.InvoiceItem) bool { return x.Taxed })
	switch {
	case i.Taxed && i.TaxPPM > 0:
		return "S", i.TaxPPM
	case i.Taxed:
		return "Z", 0
	case mixed, d.View.Kind.SelfBilled() && d.View.Tax == chain.TaxSmall:
		return "E", 0
	}
	return "O", 0
}

// count goes from the ledger's gross to EN 16931's net; see the package
// comment.
func (d *Document) count(session func(chain.ID) string) {
	type group struct {
		category      string
		ppm           int64
		gross, credit chain.Nano
		lines         []int
	}
	var groups []*group
	for n, i := range d.View.Items {
		c, ppm := d.category(i)
		at := slices.IndexFunc(groups, func(g *group) bool { return g.category == c && g.ppm == ppm })
		if at < 0 {
			at = len(groups)
			groups = append(groups, &group{category: c, ppm: ppm})
		}
		g := groups[at]
		g.gross += i.Amount
		g.credit += i.Credit
		g.lines = append(g.lines, n)
		d.Lines = append(d.Lines, Line{ID: fmt.Sprint(n + 1), Name: d.name(i, session), Item: i, Category: c, PPM: ppm})
	}
	unit := int64(chain.MinorUnit(d.Digits))
	total := int64(d.View.Total) / unit
	weights := make([]int64, len(groups))
	for i, g := range groups {
		weights[i] = int64(g.gross - g.credit)
	}
	for i, gross := range shares(total, weights) {
		g := groups[i]
		t := Tax{Category: g.category, PPM: g.ppm, Taxable: ratio(gross, 1_000_000, 1_000_000+g.ppm)}
		t.Amount = ratio(t.Taxable, g.ppm, 1_000_000)
		t.Allowance = (ratio(int64(g.credit), 1_000_000, 1_000_000+g.ppm) + unit/2) / unit
		t.Reason = map[string]string{"E": "Exempt from value added tax", "O": "Not subject to value added tax"}[g.category]
		w := make([]int64, len(g.lines))
		for k, n := range g.lines {
			w[k] = int64(d.View.Items[n].Amount)
		}
		for k, net := range shares(t.Taxable+t.Allowance, w) {
			d.Lines[g.lines[k]].Net = net
		}
		d.Net += t.Taxable + t.Allowance
		d.Allowance += t.Allowance
		d.Taxable += t.Taxable
		d.Tax += t.Amount
		d.Taxes = append(d.Taxes, t)
	}
	d.Gross = d.Taxable + d.Tax
	d.Prepaid = total
	d.Rounding = total - d.Gross
}

func (d *Document) name(i ledger.InvoiceItem, session func(chain.ID) string) string {
	switch i.Kind {
	case ledger.ItemSession:
		return strings.TrimSpace("Charging " + session(i.Session))
	case ledger.ItemRefund:
		return strings.TrimSpace("Refund of charging " + session(i.Session))
	case ledger.ItemBoughtLocal:
		return "Electricity from neighbours"
	case ledger.ItemBoughtGrid:
		return "Electricity from the supplier"
	case ledger.ItemSoldLocal:
		return "Electricity sold to neighbours"
	}
	return "Electricity sold to the supplier"
}

// ratio returns n*num/den rounded to the nearest, half up, for n >= 0 and
// 0 <= num <= den.
func ratio(n, num, den int64) int64 {
	hi, lo := bits.Mul64(uint64(n), uint64(num))
	lo, carry := bits.Add64(lo, uint64(den)/2, 0)
	q, _ := bits.Div64(hi+carry, lo, uint64(den))
	return int64(q)
}

// shares splits total over weights by largest remainder, ties to the first.
// Without any weight the first gets all.
func shares(total int64, weights []int64) []int64 {
	var sum int64
	for _, w := range weights {
		sum += w
	}
	out := make([]int64, len(weights))
	if sum == 0 {
		out[0] = total
		return out
	}
	rest := make([]uint64, len(weights))
	left := total
	for i, w := range weights {
		hi, lo := bits.Mul64(uint64(total), uint64(w))
		q, r := bits.Div64(hi, lo, uint64(sum))
		out[i], rest[i] = int64(q), r
		left -= out[i]
	}
	order := make([]int, len(weights))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rest[b], rest[a]) })
	for _, i := range order[:left] {
		out[i]++
	}
	return out
}

// Decimal writes an amount of minor units with its decimals: 1234, 2 is
// "12.34".
func Decimal(n int64, digits int) string {
	sign := ""
	u := uint64(n)
	if n < 0 {
		sign, u = "-", -u
	}
	s := fmt.Sprintf("%0*d", digits+1, u)
	if digits == 0 {
		return sign + s
	}
	return sign + s[:len(s)-digits] + "." + s[len(s)-digits:]
}

// percent writes parts per million as a percentage without needless zeros.
func percent(ppm int64) string {
	s := Decimal(ppm, 4)
	return strings.TrimRight(strings.TrimRight(s, "0"), ".")
}
