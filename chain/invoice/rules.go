package invoice

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// Validate reads a UBL invoice or credit note and returns the business rules
// of EN 16931-1 that it breaks, one line each. It knows those about what must
// be there, about sums and about tax categories that this program writes; it
// is no substitute for the official rules, but it does not trust the writer:
// it reads the bytes and counts again.
func Validate(doc []byte) []string {
	root, err := readTree(doc)
	if err != nil {
		return []string{"not XML: " + err.Error()}
	}
	var broken []string
	fail := func(rule, format string, args ...any) {
		broken = append(broken, rule+": "+fmt.Sprintf(format, args...))
	}
	line, quantity := "InvoiceLine", "InvoicedQuantity"
	if root.name == "CreditNote" {
		line, quantity = "CreditNoteLine", "CreditedQuantity"
	}
	for rule, path := range map[string]string{
		"BR-01": "CustomizationID", "BR-02": "ID", "BR-03": "IssueDate", "BR-05": "DocumentCurrencyCode",
		"BR-06": "AccountingSupplierParty/Party/PartyLegalEntity/RegistrationName",
		"BR-07": "AccountingCustomerParty/Party/PartyLegalEntity/RegistrationName",
		"BR-08": "AccountingSupplierParty/Party/PostalAddress", "BR-09": "AccountingSupplierParty/Party/PostalAddress/Country/IdentificationCode",
		"BR-10": "AccountingCustomerParty/Party/PostalAddress", "BR-11": "AccountingCustomerParty/Party/PostalAddress/Country/IdentificationCode",
		"BR-12": "LegalMonetaryTotal/LineExtensionAmount", "BR-13": "LegalMonetaryTotal/TaxExclusiveAmount",
		"BR-14": "LegalMonetaryTotal/TaxInclusiveAmount", "BR-15": "LegalMonetaryTotal/PayableAmount",
		"BR-16": line, "BR-CO-18": "TaxTotal/TaxSubtotal",
	} {
		if root.find(path) == nil {
			fail(rule, "no %s", path)
		}
	}
	if c := root.text("InvoiceTypeCode") + root.text("CreditNoteTypeCode"); c != "380" && c != "381" && c != "389" && c != "261" {
		fail("BR-04", "type code %q", c)
	}
	seller := root.find("AccountingSupplierParty/Party")
	if seller != nil && seller.find("PartyIdentification/ID") == nil && seller.find("PartyLegalEntity/CompanyID") == nil && seller.find("PartyTaxScheme/CompanyID") == nil {
		fail("BR-CO-26", "the seller has no identifier")
	}

	amount := func(n *node, path string) money {
		m, err := parseMoney(n.text(path))
		if err != nil {
			fail("BR-DEC", "%s of %s: %v", path, n.name, err)
		}
		return m
	}
	type rate struct{ category, percent string }
	taxable := map[rate]money{}
	var lines money
	for _, l := range root.all(line) {
		for rule, path := range map[string]string{"BR-21": "ID", "BR-22": quantity, "BR-24": "LineExtensionAmount", "BR-25": "Item/Name", "BR-26": "Price/PriceAmount", "BR-CO-04": "Item/ClassifiedTaxCategory/ID"} {
			if l.find(path) == nil {
				fail(rule, "line %s has no %s", l.text("ID"), path)
			}
		}
		if strings.HasPrefix(l.text("Price/PriceAmount"), "-") {
			fail("BR-27", "line %s has a negative price", l.text("ID"))
		}
		n := amount(l, "LineExtensionAmount")
		lines += n
		taxable[rate{l.text("Item/ClassifiedTaxCategory/ID"), l.text("Item/ClassifiedTaxCategory/Percent")}] += n
	}
	var allowances money
	for _, a := range root.all("AllowanceCharge") {
		n := amount(a, "Amount")
		if a.text("ChargeIndicator") != "false" || a.text("AllowanceChargeReason")+a.text("AllowanceChargeReasonCode") == "" {
			fail("BR-33", "an allowance without a reason")
		}
		allowances += n
		taxable[rate{a.text("TaxCategory/ID"), a.text("TaxCategory/Percent")}] -= n
	}
	var tax money
	subtotals := root.all("TaxTotal/TaxSubtotal")
	for _, s := range subtotals {
		r := rate{s.text("TaxCategory/ID"), s.text("TaxCategory/Percent")}
		base, n := amount(s, "TaxableAmount"), amount(s, "TaxAmount")
		tax += n
		if base != taxable[r] {
			fail("BR-"+r.category+"-08", "taxable %s, lines less allowances are %s", base, taxable[r])
		}
		delete(taxable, r)
		want := money(0)
		if r.percent != "" {
			p, err := parseMoney4(r.percent)
			if err != nil {
				fail("BR-48", "rate %q", r.percent)
			}
			want = money((int64(base)*p + 500_000) / 1_000_000)
		}
		if n != want {
			fail("BR-CO-17", "tax %s on %s at %s %%, want %s", n, base, r.percent, want)
		}
		vat := root.text("AccountingSupplierParty/Party/PartyTaxScheme/CompanyID")
		switch r.category {
		case "S":
			if vat == "" {
				fail("BR-S-02", "the seller has neither VAT identifier nor tax number")
			}
			if p, _ := parseMoney4(r.percent); p <= 0 {
				fail("BR-S-05", "standard rate %q", r.percent)
			}
		case "O":
			if vat != "" || root.find("AccountingCustomerParty/Party/PartyTaxScheme/CompanyID") != nil {
				fail("BR-O-02", "a VAT identifier on a document that is not subject to tax")
			}
			if len(subtotals) > 1 {
				fail("BR-O-11", "not subject to tax beside other categories")
			}
			fallthrough
		case "E":
			if s.text("TaxCategory/TaxExemptionReason") == "" {
				fail("BR-"+r.category+"-10", "no reason why there is no tax")
			}
			if r.category == "E" && vat == "" {
				fail("BR-E-02", "the seller has neither VAT identifier nor tax number")
			}
		case "Z":
		default:
			fail("BR-47", "category %q", r.category)
		}
	}
	for r := range taxable {
		fail("BR-"+r.category+"-01", "no breakdown of category %s at %q", r.category, r.percent)
	}
	t := root.find("LegalMonetaryTotal")
	if t == nil {
		return broken
	}
	check := func(rule string, got, want money) {
		if got != want {
			fail(rule, "%s, want %s", got, want)
		}
	}
	check("BR-CO-10", amount(t, "LineExtensionAmount"), lines)
	check("BR-CO-11", amount(t, "AllowanceTotalAmount"), allowances)
	check("BR-CO-13", amount(t, "TaxExclusiveAmount"), lines-allowances)
	check("BR-CO-14", amount(root, "TaxTotal/TaxAmount"), tax)
	check("BR-CO-15", amount(t, "TaxInclusiveAmount"), lines-allowances+tax)
	check("BR-CO-16", amount(t, "PayableAmount"), lines-allowances+tax-amount(t, "PrepaidAmount")+amount(t, "PayableRoundingAmount"))
	return broken
}

// money is hundredths; documents in currencies of other digits are read in
// these too, where they fit.
type money int64

func (m money) String() string { return Decimal(int64(m), 2) }

// parseMoney reads at most two decimals (BR-DEC-*). Nothing is zero.
func parseMoney(s string) (money, error) {
	n, err := fixed(s, 2)
	return money(n), err
}

// parseMoney4 reads a percentage as parts per million.
func parseMoney4(s string) (int64, error) { return fixed(s, 4) }

func fixed(s string, digits int) (int64, error) {
	if s == "" {
		return 0, nil
	}
	whole, frac, _ := strings.Cut(s, ".")
	if len(frac) > digits {
		return 0, fmt.Errorf("%q has more than %d decimals", s, digits)
	}
	n, err := strconv.ParseInt(whole+frac+strings.Repeat("0", digits-len(frac)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no amount", s)
	}
	return n, nil
}

// node is an element of a document that was read, by its local name.
type node struct {
	name  string
	chars string
	sub   []*node
}

func readTree(doc []byte) (*node, error) {
	d := xml.NewDecoder(bytes.NewReader(doc))
	top := &node{}
	stack := []*node{top}
	for {
		tok, err := d.RawToken()
		if tok == nil {
			if len(stack) == 1 && len(top.sub) == 1 {
				return top.sub[0], nil
			}
			return nil, fmt.Errorf("ends early: %w", err)
		}
		at := stack[len(stack)-1]
		switch x := tok.(type) {
		case xml.StartElement:
			if len(stack) > 16 {
				return nil, fmt.Errorf("nested deeper than 16")
			}
			n := &node{name: x.Name.Local}
			at.sub = append(at.sub, n)
			stack = append(stack, n)
		case xml.EndElement:
			if x.Name.Local != at.name || len(stack) == 1 {
				return nil, fmt.Errorf("</%s> ends <%s>", x.Name.Local, at.name)
			}
			stack = stack[:len(stack)-1]
		case xml.CharData:
			at.chars += string(x)
		}
	}
}

// all returns the elements at a path of local names.
func (n *node) all(path string) []*node {
	head, rest, more := strings.Cut(path, "/")
	var out []*node
	for _, s := range n.sub {
		if s.name == head {
			if more {
				out = append(out, s.all(rest)...)
			} else {
				out = append(out, s)
			}
		}
	}
	return out
}

func (n *node) find(path string) *node {
	if all := n.all(path); len(all) > 0 {
		return all[0]
	}
	return nil
}

func (n *node) text(path string) string {
	if f := n.find(path); f != nil {
		return strings.TrimSpace(f.chars)
	}
	return ""
}
