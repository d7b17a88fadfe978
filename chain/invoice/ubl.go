package invoice

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"time"

	"github.com/joulegate/joulegate/chain/ledger"
)

// Names of UBL 2.1 (ISO/IEC 19845) and of EN 16931-1:2017.
const (
	nsInvoice     = "urn:oasis:names:specification:ubl:schema:xsd:Invoice-2"
	nsCreditNote  = "urn:oasis:names:specification:ubl:schema:xsd:CreditNote-2"
	nsAggregate   = "urn:oasis:names:specification:ubl:schema:xsd:CommonAggregateComponents-2"
	nsBasic       = "urn:oasis:names:specification:ubl:schema:xsd:CommonBasicComponents-2"
	customization = "urn:cen.eu:en16931:2017"
	priceDigits   = 8 // decimals of a price per kWh
)

// element is one node of the document: a tree is written rather than structs
// declared, because UBL is read in a fixed order and this is that order.
type element struct {
	name  string
	attrs []string // name, value, ...
	text  string
	sub   []element
}

func e(name string, sub ...element) element { return element{name: name, sub: sub} }

// t makes an element with text; without text it makes none.
func t(name, text string, attrs ...string) element {
	return element{name: name, text: text, attrs: attrs}
}

func (x element) empty() bool {
	if x.text != "" {
		return false
	}
	for _, s := range x.sub {
		if !s.empty() {
			return false
		}
	}
	return true
}

func (x element) write(b *bytes.Buffer, indent string) {
	if x.empty() {
		return
	}
	fmt.Fprintf(b, "%s<%s", indent, x.name)
	for i := 0; i < len(x.attrs); i += 2 {
		fmt.Fprintf(b, " %s=%q", x.attrs[i], x.attrs[i+1])
	}
	b.WriteByte('>')
	if x.sub == nil {
		_ = xml.EscapeText(b, []byte(x.text)) // a buffer does not fail
	} else {
		b.WriteByte('\n')
		for _, s := range x.sub {
			s.write(b, indent+"  ")
		}
		b.WriteString(indent)
	}
	fmt.Fprintf(b, "</%s>\n", x.name)
}

// UBL returns the document in the syntax of EN 16931-3-2 (UBL 2.1).
func (d *Document) UBL() []byte {
	credit := d.View.Kind.Credit()
	root, ns, typeName, code := "Invoice", nsInvoice, "cbc:InvoiceTypeCode", "380"
	switch d.View.Kind {
	case ledger.KindSelfBilled:
		code = "389" // UNCL 1001
	case ledger.KindCreditNote, ledger.KindSelfBilledCredit:
		root, ns, typeName, code = "CreditNote", nsCreditNote, "cbc:CreditNoteTypeCode", "381"
		if d.View.Kind.SelfBilled() {
			code = "261"
		}
	}
	x := element{name: root, attrs: []string{"xmlns", ns, "xmlns:cac", nsAggregate, "xmlns:cbc", nsBasic}}
	add := func(es ...element) { x.sub = append(x.sub, es...) }
	add(
		t("cbc:CustomizationID", customization),
		t("cbc:ID", d.View.ID()),
		t("cbc:IssueDate", d.Issued.Format(time.DateOnly)),
		t(typeName, code),
	)
	for _, n := range d.Notes {
		add(t("cbc:Note", n))
	}
	add(
		t("cbc:DocumentCurrencyCode", d.Currency),
		e("cac:InvoicePeriod", t("cbc:StartDate", d.From.Format(time.DateOnly)), t("cbc:EndDate", d.To.Add(-time.Millisecond).Format(time.DateOnly))),
		e("cac:BillingReference", e("cac:InvoiceDocumentReference", t("cbc:ID", d.Preceding))),
		e("cac:AccountingSupplierParty", party(&d.Seller, d.SellerID)),
		e("cac:AccountingCustomerParty", party(&d.Buyer, d.BuyerID)),
	)
	for _, tax := range d.Taxes {
		if tax.Allowance > 0 {
			add(e("cac:AllowanceCharge",
				t("cbc:ChargeIndicator", "false"),
				t("cbc:AllowanceChargeReasonCode", "95"), // UNCL 5189: discount
				t("cbc:AllowanceChargeReason", "Discount credit"),
				d.amount("cbc:Amount", tax.Allowance),
				d.taxCategory("cac:TaxCategory", tax.Category, tax.PPM, ""),
			))
		}
	}
	total := e("cac:TaxTotal", d.amount("cbc:TaxAmount", d.Tax))
	for _, tax := range d.Taxes {
		total.sub = append(total.sub, e("cac:TaxSubtotal",
			d.amount("cbc:TaxableAmount", tax.Taxable),
			d.amount("cbc:TaxAmount", tax.Amount),
			d.taxCategory("cac:TaxCategory", tax.Category, tax.PPM, tax.Reason),
		))
	}
	add(total)
	sum := e("cac:LegalMonetaryTotal",
		d.amount("cbc:LineExtensionAmount", d.Net),
		d.amount("cbc:TaxExclusiveAmount", d.Taxable),
		d.amount("cbc:TaxInclusiveAmount", d.Gross),
	)
	if d.Allowance > 0 {
		sum.sub = append(sum.sub, d.amount("cbc:AllowanceTotalAmount", d.Allowance))
	}
	sum.sub = append(sum.sub, d.amount("cbc:PrepaidAmount", d.Prepaid))
	if d.Rounding != 0 {
		sum.sub = append(sum.sub, d.amount("cbc:PayableRoundingAmount", d.Rounding))
	}
	sum.sub = append(sum.sub, d.amount("cbc:PayableAmount", d.Gross-d.Prepaid+d.Rounding))
	add(sum)
	line, quantity := "cac:InvoiceLine", "cbc:InvoicedQuantity"
	if credit {
		line, quantity = "cac:CreditNoteLine", "cbc:CreditedQuantity"
	}
	for _, l := range d.Lines {
		amount, unit := l.quantity()
		add(e(line,
			t("cbc:ID", l.ID),
			t(quantity, amount, "unitCode", unit),
			d.amount("cbc:LineExtensionAmount", l.Net),
			e("cac:Item", t("cbc:Name", l.Name), d.taxCategory("cac:ClassifiedTaxCategory", l.Category, l.PPM, "")),
			e("cac:Price", t("cbc:PriceAmount", d.price(&l), "currencyID", d.Currency)),
		))
	}
	b := bytes.NewBufferString(xml.Header)
	x.write(b, "")
	return b.Bytes()
}

func (d *Document) amount(name string, n int64) element {
	return t(name, Decimal(n, d.Digits), "currencyID", d.Currency)
}

func (d *Document) taxCategory(name, category string, ppm int64, reason string) element {
	rate := percent(ppm)
	if category == "O" { // BR-O-05
		rate = ""
	}
	return e(name, t("cbc:ID", category), t("cbc:Percent", rate), t("cbc:TaxExemptionReason", reason), e("cac:TaxScheme", t("cbc:ID", "VAT")))
}

func party(p *Party, id string) element {
	return e("cac:Party",
		e("cac:PartyIdentification", t("cbc:ID", id)),
		e("cac:PostalAddress",
			t("cbc:StreetName", p.Street), t("cbc:CityName", p.City), t("cbc:PostalZone", p.PostCode),
			e("cac:Country", t("cbc:IdentificationCode", p.Country))),
		e("cac:PartyTaxScheme", t("cbc:CompanyID", p.VATID), schemeIf(p.VATID, "VAT")),
		e("cac:PartyTaxScheme", t("cbc:CompanyID", p.TaxNumber), schemeIf(p.TaxNumber, "FC")),
		e("cac:PartyLegalEntity", t("cbc:RegistrationName", p.Name)),
		e("cac:Contact", t("cbc:ElectronicMail", p.Email)),
	)
}

func schemeIf(present, scheme string) element {
	if present == "" {
		return element{}
	}
	return e("cac:TaxScheme", t("cbc:ID", scheme))
}

// quantity is kilowatt-hours (UN/ECE Rec 20: KWH), or one (C62) where no
// energy belongs to the amount.
func (l *Line) quantity() (amount, unit string) {
	if l.Item.Wh <= 0 {
		return "1", "C62"
	}
	return Decimal(int64(l.Item.Wh), 3), "KWH"
}

// price is the net price of one unit, BT-146.
func (d *Document) price(l *Line) string {
	scale := int64(1)
	for range priceDigits - d.Digits {
		scale *= 10
	}
	if l.Item.Wh <= 0 || l.Net > 1<<62/scale/1000 {
		return Decimal(l.Net, d.Digits)
	}
	n, wh := l.Net*scale, int64(l.Item.Wh)
	// n*1000/wh without leaving 63 bits.
	q, r := n/wh, n%wh
	return Decimal(q*1000+(r*1000+wh/2)/wh, priceDigits)
}
