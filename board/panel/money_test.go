package panel

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
)

// books is a gateway with one payout, one dispute and one document.
type books struct {
	fake
	from, to int64
}

func (*books) Rules(context.Context) (Rules, error) {
	return Rules{Rules: ledger.Rules{Threshold: 2}, Height: 9, Knows: 1}, nil
}

func (*books) Remotes(context.Context) (Remotes, error) { return Remotes{}, nil }

func (*books) Payouts(_ context.Context, open bool) ([]ledger.PayoutView, error) {
	all := []ledger.PayoutView{{Number: 1, State: ledger.PayoutPaid, Account: accountA}, {Number: 2, State: ledger.PayoutAsked, Overdue: true, Account: accountA}}
	if open {
		all = all[1:]
	}
	return all, nil
}

func (*books) Disputes(context.Context) ([]ledger.DisputeView, error) {
	return []ledger.DisputeView{{Number: 1, State: ledger.DisputeOpen, Driver: accountA, Amount: 5}}, nil
}

func (*books) Invoices(_ context.Context, a chain.Account) ([]Invoice, error) {
	return []Invoice{NewInvoice(ledger.InvoiceView{Kind: ledger.KindInvoice, Number: 3, Account: a, Simulated: true})}, nil
}

func (*books) Invoice(_ context.Context, id string) (Invoice, error) {
	return Invoice{}, NotFound("no document %q", id)
}

func (*books) Unbilled(context.Context) ([]chain.Account, error) {
	return []chain.Account{accountA}, nil
}

func (b *books) Statement(_ context.Context, a chain.Account, from, to int64) (invoice.Statement, error) {
	b.from, b.to = from, to
	return invoice.Statement{Account: a, Closing: 7}, nil
}

var accountA = chain.AccountOf(chain.Key{1})

// What people did with their money is told on the control socket only; what
// waits for the operator, to everybody.
func TestMoneyOverBothDoors(t *testing.T) {
	b := &books{}
	s, err := New(Config{Backend: b})
	if err != nil {
		t.Fatal(err)
	}
	control, public := httptest.NewServer(s.Handler(true)), httptest.NewServer(s.Handler(false))
	defer control.Close()
	defer public.Close()
	for _, path := range []string{"/invoices", "/invoices/unbilled", "/invoices/INV-000001", "/accounts/" + accountA.String() + "/statement?from=0&to=1"} {
		res, err := http.Get(public.URL + Prefix + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: a browser gets %s", path, res.Status)
		}
	}
	for _, url := range []string{control.URL, public.URL} {
		c := &Client{url + Prefix, http.DefaultClient}
		if r, err := c.Rules(t.Context()); err != nil || r.Threshold != 2 || r.Height != 9 {
			t.Errorf("%+v %v", r, err)
		}
		if p, err := c.Payouts(t.Context(), true); err != nil || len(p) != 1 || !p[0].Overdue || p[0].State != ledger.PayoutAsked {
			t.Errorf("%+v %v", p, err)
		}
		if d, err := c.Disputes(t.Context()); err != nil || len(d) != 1 || d[0].State != ledger.DisputeOpen {
			t.Errorf("%+v %v", d, err)
		}
	}
	c := &Client{control.URL + Prefix, http.DefaultClient}
	if v, err := c.Invoices(t.Context(), accountA); err != nil || v[0].ID != "SIM-INV-000003" || v[0].Account != accountA || v[0].Billable {
		t.Errorf("%+v %v", v, err)
	}
	if _, err := c.Invoice(t.Context(), "INV-9/../x"); err == nil {
		t.Error("a document that does not exist")
	}
	if u, err := c.Unbilled(t.Context()); err != nil || u[0] != accountA {
		t.Errorf("%v %v", u, err)
	}
	if st, err := c.Statement(t.Context(), accountA, 5, 9); err != nil || st.Closing != 7 || b.from != 5 || b.to != 9 {
		t.Errorf("%+v %v", st, err)
	}
	if _, err := c.Statement(t.Context(), accountA, 9, 5); err == nil {
		t.Error("a statement that ends before it begins")
	}
}
