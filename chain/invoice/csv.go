package invoice

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// CSV returns the documents as RFC 4180, one row per line of a document, with
// the document's totals repeated. Energy is kWh; amounts have the currency's
// decimals, except gross and credit, which are exact.
func CSV(docs []*Document) []byte {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write([]string{
		"document", "kind", "issued", "from", "to", "account", "seller", "buyer", "corrects", "remark",
		"line", "item", "session", "kwh", "gross", "discount_credit", "net", "tax_category", "tax_percent",
		"currency", "document_taxable", "document_tax", "document_total",
	})
	for _, d := range docs {
		remark := ""
		if d.View.Simulated || !d.View.Billable() {
			remark = NotForBilling
		}
		for _, l := range d.Lines {
			session := ""
			if l.Item.Session != (chain.ID{}) {
				session = l.Item.Session.String()
			}
			_ = w.Write([]string{
				d.View.ID(), d.View.Kind.String(), d.Issued.Format(time.DateOnly), d.From.Format(time.RFC3339), d.To.Format(time.RFC3339),
				d.View.Account.String(), cell(d.Seller.Name), cell(d.Buyer.Name), d.Preceding, remark,
				l.ID, l.Item.Kind.String(), session, Decimal(int64(l.Item.Wh), 3), Decimal(int64(l.Item.Amount), 9), Decimal(int64(l.Item.Credit), 9),
				Decimal(l.Net, d.Digits), l.Category, percent(l.PPM),
				d.Currency, Decimal(d.Taxable, d.Digits), Decimal(d.Tax, d.Digits), Decimal(d.Gross+d.Rounding, d.Digits),
			})
		}
	}
	w.Flush() // a buffer does not fail
	return b.Bytes()
}

// cell keeps a spreadsheet from taking a name for a formula.
func cell(s string) string {
	if s != "" && (s[0] == '=' || s[0] == '+' || s[0] == '-' || s[0] == '@' || s[0] == '\t' || s[0] == '\r') {
		return "'" + s
	}
	return s
}

// StatementRow is a movement with its block.
type StatementRow struct {
	Height  int64      `json:"height"`
	TimeMs  int64      `json:"time_ms"`
	Amount  chain.Nano `json:"amount_nano"`
	Credit  bool       `json:"credit,omitempty"` // of discount credit
	Cause   string     `json:"cause"`
	Ref     string     `json:"ref"`
	Balance chain.Nano `json:"balance_nano"` // of money, or of credit, after it
}

// Statement is an account's movements in a span of time.
type Statement struct {
	Account    chain.Account  `json:"account"`
	Currency   string         `json:"currency"`
	Simulated  bool           `json:"simulated"`
	FromMs     int64          `json:"from_ms"`
	ToMs       int64          `json:"to_ms"`
	Opening    chain.Nano     `json:"opening_nano"`
	Closing    chain.Nano     `json:"closing_nano"`
	OpenCredit chain.Nano     `json:"opening_credit_nano"`
	Credit     chain.Nano     `json:"closing_credit_nano"`
	Rows       []StatementRow `json:"movements"`
}

// Begin takes what the account held after a block, before the movements of
// the next ones are added; height 0 is the genesis. It refuses a statement that
// should begin earlier, and dates one that says no beginning.
func (s *Statement) Begin(height, timeMs int64, a ledger.AccountView) error {
	at := time.UnixMilli(timeMs).UTC()
	switch {
	case height == 0:
	case s.FromMs == 0:
		s.FromMs = timeMs + 1
	case s.FromMs <= timeMs:
		return fmt.Errorf("blocks up to %d have been dropped here: a statement can begin after %s", height, at.Format("2006-01-02 15:04:05 MST"))
	}
	s.Opening, s.Closing, s.OpenCredit, s.Credit = a.Balance, a.Balance, a.Credits, a.Credits
	return nil
}

// Add takes a block's movements. Blocks come in order.
func (s *Statement) Add(height, timeMs int64, moves []ledger.Movement) {
	for _, m := range moves {
		if m.Account != s.Account || timeMs >= s.ToMs {
			continue
		}
		sum, open := &s.Closing, &s.Opening
		if m.Credit {
			sum, open = &s.Credit, &s.OpenCredit
		}
		*sum += m.Amount
		if timeMs < s.FromMs {
			*open += m.Amount
			continue
		}
		s.Rows = append(s.Rows, StatementRow{height, timeMs, m.Amount, m.Credit, m.Cause, m.Ref, *sum})
	}
}

// CSV returns the statement as RFC 4180.
func (s *Statement) CSV() []byte {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write([]string{"block", "time", "kind", "amount", "balance", "currency", "cause", "reference"})
	for _, r := range s.Rows {
		kind := "money"
		if r.Credit {
			kind = "discount_credit"
		}
		_ = w.Write([]string{
			fmt.Sprint(r.Height), time.UnixMilli(r.TimeMs).UTC().Format(time.RFC3339), kind,
			Decimal(int64(r.Amount), 9), Decimal(int64(r.Balance), 9), s.Currency, r.Cause, cell(r.Ref),
		})
	}
	w.Flush()
	return b.Bytes()
}
