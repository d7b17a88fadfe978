package invoice

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

const bookText = `
issuer: {name: Nordstadt Strom eG, street: Hafenstr. 1, city: Hamburg, post_code: "20457", country: DE, vat_id: DE123456789}
ocpi: {country_code: DE, party_id: NSE}
parties:
  %s: {name: Anna & Co <Käfer>, street: Weg 2, city: Hamburg, post_code: "20099", country: DE}
  %s: {name: PV GmbH, street: Weg 3, city: Hamburg, post_code: "20099", country: DE, vat_id: DE987654321, tax_number: 12/345/67890}
sites:
  west: {name: West, street: Weg 4, city: Hamburg, country: DEU, latitude: "53.550556", longitude: "9.993333"}
`

func account(n byte) chain.Account { return chain.AccountOf(chain.Key{n}) }

func book(t testing.TB) *Book {
	b, err := ParseBook(fmt.Appendf(nil, bookText, account(1), account(2)))
	if err != nil {
		t.Fatal(err)
	}
	return &b
}

func testRules() ledger.Rules {
	return ledger.Rules{ChainID: "test", Currency: "EUR", MinorDigits: 2, SlotSeconds: 900, Basis: "licensed"}
}

func view(kind ledger.InvoiceKind, total chain.Nano, items ...ledger.InvoiceItem) ledger.InvoiceView {
	v := ledger.InvoiceView{Kind: kind, Number: 7, Account: account(1), IssuedMs: 1_800_000_000_000, FromMs: 1_799_000_000_000, ToMs: 1_799_900_000_000, Items: items, Total: total, Basis: "licensed"}
	for _, i := range items {
		v.Exact += i.Amount - i.Credit
	}
	return v
}

func session(id byte, wh meter.WattHour, amount, credit chain.Nano, ppm int64) ledger.InvoiceItem {
	return ledger.InvoiceItem{Kind: ledger.ItemSession, Session: chain.ID{id}, Wh: wh, Amount: amount, Credit: credit, TaxPPM: ppm, Taxed: true, Billable: true}
}

func render(t testing.TB, v ledger.InvoiceView) (*Document, string) {
	t.Helper()
	d, err := New(v, testRules(), book(t), func(chain.ID) string { return "at west" })
	if err != nil {
		t.Fatal(err)
	}
	x := d.UBL()
	if bad := Validate(x); len(bad) > 0 {
		t.Fatalf("%v\n%s", bad, x)
	}
	return d, string(x)
}

func TestInvoiceOfASession(t *testing.T) {
	d, x := render(t, view(ledger.KindInvoice, 3_570_000_000, session(1, 11900, 4_070_000_000, 500_000_000, 190_000)))
	// 3.57 gross at 19 %: 3.00 net. 4.07 gross before 0.50 of credit.
	for _, want := range []string{
		"<cbc:ID>INV-000007</cbc:ID>", "<cbc:InvoiceTypeCode>380</cbc:InvoiceTypeCode>",
		`<cbc:TaxExclusiveAmount currencyID="EUR">3.00</cbc:TaxExclusiveAmount>`, `<cbc:TaxAmount currencyID="EUR">0.57</cbc:TaxAmount>`,
		`<cbc:AllowanceTotalAmount currencyID="EUR">0.42</cbc:AllowanceTotalAmount>`, `<cbc:PayableAmount currencyID="EUR">0.00</cbc:PayableAmount>`,
		`<cbc:PrepaidAmount currencyID="EUR">3.57</cbc:PrepaidAmount>`, `<cbc:InvoicedQuantity unitCode="KWH">11.900</cbc:InvoicedQuantity>`,
		"Anna &amp; Co &lt;Käfer&gt;", "<cbc:Percent>19</cbc:Percent>", "Charging at west",
	} {
		if !strings.Contains(x, want) {
			t.Errorf("no %s in\n%s", want, x)
		}
	}
	if strings.Contains(x, NotForBilling) || d.Rounding != 0 {
		t.Errorf("%+v", d)
	}
}

func TestWhatMayNotBeBilledSaysSo(t *testing.T) {
	i := session(1, 1000, 3e8, 0, 190_000)
	i.Billable = false
	_, x := render(t, view(ledger.KindInvoice, 3e8, i))
	if !strings.Contains(x, NotForBilling) {
		t.Error("an unapproved meter is not mentioned")
	}
	v := view(ledger.KindInvoice, 3e8, session(1, 1000, 3e8, 0, 190_000))
	v.Simulated = true
	d, x := render(t, v)
	if !strings.Contains(x, NotForBilling) || !strings.Contains(x, "SIM-INV-000007") || !strings.Contains(string(CSV([]*Document{d})), NotForBilling) {
		t.Error("a simulation is not mentioned")
	}
}

// 0.03 gross has no net at 19 %: the difference is the rounding amount.
func TestGrossWithoutANetIsRoundedOnce(t *testing.T) {
	d, x := render(t, view(ledger.KindInvoice, 3e7, session(1, 100, 30_000_000, 0, 190_000)))
	if d.Gross+d.Rounding != 3 || d.Rounding == 0 || !strings.Contains(x, "PayableRoundingAmount") {
		t.Errorf("%+v", d)
	}
}

func TestSelfBilledInvoices(t *testing.T) {
	private := view(ledger.KindSelfBilled, 123e7, ledger.InvoiceItem{Kind: ledger.ItemSoldLocal, Wh: 8000, Amount: 123e7, Billable: true})
	_, x := render(t, private)
	for _, want := range []string{">389<", ">O<", "Not subject", "<cbc:ID>" + account(1).String(), "Self-billed"} {
		if !strings.Contains(x, want) {
			t.Errorf("no %s in\n%s", want, x)
		}
	}
	if strings.Contains(x, "DE123456789") {
		t.Error("BR-O-02: the buyer's VAT id on a document that is not subject to tax")
	}
	small := private
	small.Tax, small.Account = chain.TaxSmall, account(2)
	if _, x = render(t, small); !strings.Contains(x, ">E<") || !strings.Contains(x, "DE987654321") {
		t.Error("a small business is not exempt")
	}
	business := small
	business.Tax = chain.TaxBusiness
	business.Items = []ledger.InvoiceItem{{Kind: ledger.ItemSoldGrid, Wh: 8000, Amount: 119e7, TaxPPM: 190_000, Taxed: true, Billable: true}}
	business.Total, business.Exact = 119e7, 119e7
	if d, _ := render(t, business); d.Tax != 19 || d.Seller.Name != "PV GmbH" || d.Buyer.Name != "Nordstadt Strom eG" {
		t.Errorf("%+v", d)
	}
}

func TestCreditNoteRefersToItsInvoice(t *testing.T) {
	v := view(ledger.KindCreditNote, 357e7, ledger.InvoiceItem{Kind: ledger.ItemRefund, Session: chain.ID{1}, Amount: 407e7, Credit: 5e8, TaxPPM: 190_000, Taxed: true, Billable: true})
	v.Preceding, v.Reason, v.Kept = 3, "cable was pulled", 1e7
	_, x := render(t, v)
	for _, want := range []string{"<CreditNote ", ">381<", "<cbc:ID>INV-000003</cbc:ID>", "CreditNoteLine", "cable was pulled", "0.01 EUR of it are set off", `unitCode="C62">1<`} {
		if !strings.Contains(x, want) {
			t.Errorf("no %s in\n%s", want, x)
		}
	}
}

func TestCreditNoteOfCorrectedEnergy(t *testing.T) {
	v := view(ledger.KindCreditNote, 357e6, ledger.InvoiceItem{Kind: ledger.ItemBoughtGrid, Wh: 1190, Amount: 357e6, TaxPPM: 190_000, Taxed: true, Billable: true})
	v.Preceding, v.Reason = 3, "wrong CT ratio"
	_, x := render(t, v)
	for _, want := range []string{"<CreditNote ", ">381<", "<cbc:ID>INV-000003</cbc:ID>", `<cbc:CreditedQuantity unitCode="KWH">1.190<`, "Electricity from the supplier", "wrong CT ratio"} {
		if !strings.Contains(x, want) {
			t.Errorf("no %s in\n%s", want, x)
		}
	}
	// What a seller was paid too much is corrected in his name.
	v = view(ledger.KindSelfBilledCredit, 2e7, ledger.InvoiceItem{Kind: ledger.ItemSoldGrid, Wh: 250, Amount: 2e7, Billable: true})
	v.Preceding = 4
	d, x := render(t, v)
	for _, want := range []string{"<CreditNote ", ">261<", "<cbc:ID>SB-", "-000004</cbc:ID>", "CreditedQuantity"} {
		if !strings.Contains(x, want) {
			t.Errorf("no %s in\n%s", want, x)
		}
	}
	if d.SellerID != v.Account.String() {
		t.Errorf("the seller is %q", d.SellerID)
	}
}

// Whatever the amounts, rates and credits are: sums are exact, nothing is
// negative, and what the ledger says was paid is what the document says.
func TestDocumentsAlwaysAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var items []ledger.InvoiceItem
		var exact chain.Nano
		for n := range rapid.IntRange(1, 12).Draw(t, "items") {
			i := session(byte(n), meter.WattHour(rapid.Int64Range(0, 80_000).Draw(t, "wh")), chain.Nano(rapid.Int64Range(0, 50e9).Draw(t, "amount")), 0,
				rapid.SampledFrom([]int64{0, 70_000, 190_000, 255_000, 81_000}).Draw(t, "ppm"))
			i.Credit = chain.Nano(rapid.Int64Range(0, int64(i.Amount)).Draw(t, "credit"))
			i.Taxed = rapid.Bool().Draw(t, "taxed")
			exact += i.Amount - i.Credit
			items = append(items, i)
		}
		total := exact - exact%1e7
		if rapid.Bool().Draw(t, "up") {
			total += 1e7
		}
		d, err := New(view(ledger.KindInvoice, total, items...), testRules(), book(nil), func(chain.ID) string { return "" })
		if err != nil {
			t.Fatal(err)
		}
		if bad := Validate(d.UBL()); len(bad) > 0 {
			t.Fatalf("%v\n%s", bad, d.UBL())
		}
		if d.Gross+d.Rounding != int64(total/1e7) || d.Rounding > int64(len(d.Taxes)) || d.Rounding < -int64(len(d.Taxes)) {
			t.Fatalf("%+v", d)
		}
		if slices.ContainsFunc(d.Lines, func(l Line) bool { return l.Net < 0 }) {
			t.Fatal("a negative line")
		}
	})
}

// The validator finds what is wrong, rule by rule.
func TestValidateFinds(t *testing.T) {
	_, good := render(t, view(ledger.KindInvoice, 3_570_000_000, session(1, 11900, 4_070_000_000, 500_000_000, 190_000)))
	for rule, c := range map[string][2]string{
		"BR-02":    {"<cbc:ID>INV-000007</cbc:ID>", ""},
		"BR-04":    {">380<", ">999<"},
		"BR-05":    {"<cbc:DocumentCurrencyCode>EUR</cbc:DocumentCurrencyCode>", ""},
		"BR-11":    {"<cbc:IdentificationCode>DE</cbc:IdentificationCode>", ""},
		"BR-27":    {`<cbc:PriceAmount currencyID="EUR">`, `<cbc:PriceAmount currencyID="EUR">-`},
		"BR-CO-10": {"3.42</cbc:LineExtensionAmount>\n    <cbc:TaxExcl", "3.41</cbc:LineExtensionAmount>\n    <cbc:TaxExcl"},
		"BR-CO-15": {">3.57</cbc:TaxInclusiveAmount>", ">3.58</cbc:TaxInclusiveAmount>"},
		"BR-CO-16": {">0.00</cbc:PayableAmount>", ">0.01</cbc:PayableAmount>"},
		"BR-CO-17": {">0.57</cbc:TaxAmount>", ">0.56</cbc:TaxAmount>"},
		"BR-S-02":  {"<cbc:CompanyID>DE123456789</cbc:CompanyID>", ""},
		"BR-DEC":   {">3.57</cbc:PrepaidAmount>", ">3.570</cbc:PrepaidAmount>"},
		"BR-S-08":  {">3.00</cbc:TaxableAmount>", ">2.99</cbc:TaxableAmount>"},
	} {
		bad := strings.ReplaceAll(good, c[0], c[1])
		if bad == good {
			t.Fatalf("%s: %s is not in the document", rule, c[0])
		}
		if found := Validate([]byte(bad)); !slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, rule) }) {
			t.Errorf("%s is not found: %v", rule, found)
		}
	}
}

func TestChargeDetailRecords(t *testing.T) {
	s := ledger.SessionView{ID: chain.ID{1}, Driver: account(1), Gateway: chain.Key{9}, Connector: 1, Wh: 11900, OpenedMs: 1_799_000_000_000, RegisterMs: 1_799_003_600_000}
	find := func(id chain.ID) (ledger.SessionView, bool) { return s, id == s.ID }
	name := func(chain.Key) string { return "west" }
	v := view(ledger.KindInvoice, 357e7, session(1, 11900, 407e7, 5e8, 190_000), ledger.InvoiceItem{Kind: ledger.ItemBoughtGrid, Wh: 5, Amount: 1})
	cdrs, err := CDRs(v, testRules(), book(t), find, name)
	if err != nil || len(cdrs) != 1 {
		t.Fatalf("%v %v", cdrs, err)
	}
	b, _ := json.Marshal(cdrs[0])
	for _, want := range []string{
		`"total_energy":11.900`, `"total_time":1.0000`, `"excl_vat":3.0000`, `"incl_vat":3.5700`, `"country":"DEU"`, `"evse_id":"DE*NSE*E09000000*1"`,
		`"start_date_time":"2027-01-03T18:13:20Z"`, `"type":"ENERGY"`, `"invoice_reference_id":"INV-000007"`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	cn := view(ledger.KindCreditNote, 357e7, ledger.InvoiceItem{Kind: ledger.ItemRefund, Session: s.ID, Amount: 357e7, TaxPPM: 190_000, Taxed: true})
	cdrs, err = CDRs(cn, testRules(), book(t), find, name)
	if err != nil || !cdrs[0].Credit || cdrs[0].CreditReferenceID != s.ID.String() || cdrs[0].TotalCost.InclVAT != "-3.5700" || cdrs[0].Remark != NotForBilling {
		t.Fatalf("%+v %v", cdrs, err)
	}
	if _, err := CDRs(v, testRules(), &Book{}, find, name); err == nil {
		t.Error("a CDR of nobody")
	}
	if _, err := CDRs(v, testRules(), book(t), find, func(chain.Key) string { return "nowhere" }); err == nil {
		t.Error("a CDR of nowhere")
	}
}

func TestBookIsChecked(t *testing.T) {
	for what, text := range map[string]string{
		"unknown key": "issuer: {title: x}", "not an account": "parties: {anna: {name: x}}", "system account": "parties: {'sys:grid': {name: x}}",
		"salt": fmt.Sprintf("parties: {%s: {name: x, vat_salt: zz}}", account(1)),
	} {
		if _, err := ParseBook([]byte(text)); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	v := view(ledger.KindInvoice, 1e7, session(1, 1, 1e7, 0, 190_000))
	v.Account = account(3)
	if _, err := New(v, testRules(), book(t), func(chain.ID) string { return "" }); err == nil || !strings.Contains(err.Error(), "nobody is entered") {
		t.Errorf("%v", err)
	}
	v.Account, v.VATHash = account(2), chain.VATHash([16]byte{1}, "DE1")
	if _, err := New(v, testRules(), book(t), func(chain.ID) string { return "" }); err == nil {
		t.Error("another VAT id than the ledger's")
	}
	noTax := book(t)
	noTax.Issuer.VATID = ""
	v = view(ledger.KindInvoice, 1e7, session(1, 1, 1e7, 0, 190_000))
	if _, err := New(v, testRules(), noTax, func(chain.ID) string { return "" }); err == nil {
		t.Error("BR-S-02: tax charged by a seller without a VAT id")
	}
}

func TestStatementOpensAndCloses(t *testing.T) {
	s := Statement{Account: account(1), Currency: "EUR", FromMs: 20, ToMs: 40}
	m := func(n chain.Nano, credit bool) ledger.Movement {
		return ledger.Movement{Account: account(1), Amount: n, Credit: credit, Cause: "paid in", Ref: "=1+1"}
	}
	s.Add(1, 10, []ledger.Movement{m(100, false), m(7, true)})
	s.Add(2, 20, []ledger.Movement{m(-30, false), {Account: account(2), Amount: 9}})
	s.Add(3, 39, []ledger.Movement{m(5, false), m(-2, true)})
	s.Add(4, 40, []ledger.Movement{m(1000, false)})
	if s.Opening != 100 || s.Closing != 75 || s.OpenCredit != 7 || s.Credit != 5 || len(s.Rows) != 3 || s.Rows[1].Balance != 75 {
		t.Fatalf("%+v", s)
	}
	if c := string(s.CSV()); !strings.Contains(c, "'=1+1") || strings.Count(c, "\n") != 4 {
		t.Error(c)
	}
}

func FuzzParseBook(f *testing.F) {
	f.Add(fmt.Appendf(nil, bookText, account(1), account(2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := ParseBook(b); err == nil {
			for id := range k.Parties {
				if len(id) != 40 {
					t.Fatalf("account %q", id)
				}
			}
		}
	})
}

func FuzzValidate(f *testing.F) {
	d, err := New(view(ledger.KindInvoice, 3e8, session(1, 1000, 3e8, 0, 190_000)), testRules(), book(f), func(chain.ID) string { return "" })
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d.UBL())
	f.Add([]byte("<a><b/></a>"))
	f.Fuzz(func(_ *testing.T, b []byte) { Validate(b) })
}

// Dates are the operator's, and a month ends with its last day.
func TestDatesAreLocal(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	b := book(t)
	b.Location = berlin
	v := view(ledger.KindInvoice, 3e8, session(1, 1000, 3e8, 0, 190_000))
	v.FromMs, v.ToMs = time.Date(2026, 10, 1, 0, 0, 0, 0, berlin).UnixMilli(), time.Date(2026, 11, 1, 0, 0, 0, 0, berlin).UnixMilli()
	v.IssuedMs = v.ToMs
	d, err := New(v, testRules(), b, func(chain.ID) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	x := string(d.UBL())
	for _, want := range []string{"<cbc:IssueDate>2026-11-01<", "<cbc:StartDate>2026-10-01<", "<cbc:EndDate>2026-10-31<"} {
		if !strings.Contains(x, want) {
			t.Errorf("no %s in\n%s", want, x)
		}
	}
	if c := string(CSV([]*Document{d})); !strings.Contains(c, "2026-10-01T00:00:00+02:00,2026-11-01T00:00:00+01:00") {
		t.Error(c)
	}
}
