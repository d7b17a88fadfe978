// Package en16931 has invoices checked by a validator that shares no code
// with the gateway: @fin.cx/einvoice from npm, pinned by package-lock.json.
package en16931

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/tools/e2e/npm"
)

var (
	account = chain.AccountOf(chain.Key{1})
	rules   = ledger.Rules{Currency: "EUR", MinorDigits: 2, SlotSeconds: 900, Basis: "licensed"}
	book    = invoice.Book{
		Issuer:  invoice.Party{Name: "Nordstadt Strom eG", Street: "Hafenstr. 1", City: "Hamburg", PostCode: "20457", Country: "DE", VATID: "DE123456789"},
		Parties: map[string]invoice.Party{account.String(): {Name: "PV & Sons <GmbH>", Street: "Weg 3", City: "Hamburg", PostCode: "20099", Country: "DE", VATID: "DE987654321"}},
	}
)

// document makes a document of any kind with random lines.
func document(t *testing.T, r *rand.Rand, n int) string {
	t.Helper()
	v := ledger.InvoiceView{
		Kind: ledger.InvoiceKind(1 + n%4), Number: uint64(n + 1), Account: account, IssuedMs: 1_800_000_000_000, FromMs: 1_797_000_000_000, ToMs: 1_799_900_000_000,
		Tax: chain.TaxStatus(n % 2), Simulated: n%5 == 0,
	}
	kinds := map[ledger.InvoiceKind][]ledger.ItemKind{
		ledger.KindInvoice:    {ledger.ItemSession, ledger.ItemBoughtLocal, ledger.ItemBoughtGrid},
		ledger.KindSelfBilled: {ledger.ItemSoldLocal, ledger.ItemSoldGrid},
		ledger.KindCreditNote: {ledger.ItemRefund, ledger.ItemBoughtGrid},

		ledger.KindSelfBilledCredit: {ledger.ItemSoldGrid},
	}[v.Kind]
	taxed := !v.Kind.SelfBilled() || v.Tax == chain.TaxBusiness
	for i := range 1 + r.Intn(6) {
		item := ledger.InvoiceItem{Kind: kinds[i%len(kinds)], Wh: meter.WattHour(r.Intn(60_000)), Amount: chain.Nano(r.Int63n(40e9)), Taxed: taxed, Billable: n%7 != 0}
		if taxed {
			item.TaxPPM = []int64{190_000, 70_000, 0}[r.Intn(3)]
		}
		if item.Kind == ledger.ItemSession || item.Kind == ledger.ItemRefund {
			item.Session = chain.ID{byte(i + 1)}
			item.Credit = chain.Nano(r.Int63n(int64(item.Amount)/2 + 1))
		}
		if item.Kind == ledger.ItemRefund {
			item.Wh = 0
		}
		if v.Kind.Credit() {
			v.Preceding = 1
		}
		v.Exact += item.Amount - item.Credit
		v.Items = append(v.Items, item)
	}
	v.Total = v.Exact - v.Exact%1e7
	d, err := invoice.New(v, rules, &book, func(chain.ID) string { return "at west" })
	if err != nil {
		t.Fatal(err)
	}
	return string(d.UBL())
}

func TestIndependentValidatorAcceptsInvoicesAndRefusesForgeries(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	var in bytes.Buffer
	var want []string // the rule that must be found broken; "": none
	add := func(xml, rule string) {
		if err := json.NewEncoder(&in).Encode(xml); err != nil {
			t.Fatal(err)
		}
		want = append(want, rule)
	}
	for n := range 60 {
		good := document(t, r, n)
		add(good, "")
		if ledger.InvoiceKind(1 + n%4).Credit() {
			continue // the validator reads credit notes, but counts only invoices
		}
		forge := func(rule, begin, end, with string) {
			i := strings.LastIndex(good, begin)
			j := i + strings.Index(good[i:], end)
			if i < 0 || j < i {
				t.Fatalf("document %d has no %s", n, begin)
			}
			add(good[:i]+begin+with+good[j:], rule)
		}
		forge("BR-CO-15", `<cbc:TaxInclusiveAmount currencyID="EUR">`, "</cbc:TaxInclusiveAmount>", "999999.99")
		forge("BR-CO-13", `<cbc:TaxExclusiveAmount currencyID="EUR">`, "</cbc:TaxExclusiveAmount>", "999999.99")
		forge("BR-CO-10", `<cbc:LineExtensionAmount currencyID="EUR">`, "</cbc:LineExtensionAmount>", "999999.99")
	}
	dec := json.NewDecoder(bytes.NewReader(npm.Run(t, "validate.mjs", &in)))
	for i, rule := range want {
		var a struct{ Errors []string }
		if err := dec.Decode(&a); err != nil {
			t.Fatal(fmt.Errorf("answer %d: %w", i, err))
		}
		if rule == "" && len(a.Errors) > 0 || rule != "" && !slices.Contains(a.Errors, rule) {
			t.Errorf("document %d: want %q broken, found %v", i, rule, a.Errors)
		}
	}
}
