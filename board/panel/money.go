package panel

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Money is the part of Backend about rules, payouts, disputes and documents.
type Money interface {
	Rules(ctx context.Context) (Rules, error)
	// Payouts returns all payouts, or with open only those that wait.
	Payouts(ctx context.Context, open bool) ([]ledger.PayoutView, error)
	Disputes(ctx context.Context) ([]ledger.DisputeView, error)
	Remotes(ctx context.Context) (Remotes, error)
	// Invoices returns the documents of an account, or all with the zero
	// account.
	Invoices(ctx context.Context, id chain.Account) ([]Invoice, error)
	Invoice(ctx context.Context, id string) (Invoice, error)
	// Unbilled returns the accounts that have something to bill.
	Unbilled(ctx context.Context) ([]chain.Account, error)
	// Statement returns an account's movements from Unix ms to before Unix ms,
	// [Filling] while their index is not complete. It needs the control socket.
	Statement(ctx context.Context, id chain.Account, from, to int64) (invoice.Statement, error)
}

// Rules are the rules in force and those to come.
type Rules struct {
	ledger.Rules
	Pending   []chain.RulesChange        `json:"pending"`
	Height    int64                      `json:"height"`          // of the newest block
	Knows     uint32                     `json:"program_version"` // newest rules version that this gateway's program knows
	Approvals []ledger.MeterApprovalView `json:"meter_approvals"`
	// Quarantined are the meters that have jumped and bill nothing until
	// somebody has released them.
	Quarantined []ledger.QuarantineView `json:"quarantined_meters"`
	// Attestations are what auditors have said, expired ones included as long
	// as the ledger keeps them, newest first.
	Attestations []ledger.AttestationView `json:"attestations"`
}

// Remotes are the microgrids that this one believes, and what it settles with
// them.
type Remotes struct {
	Remotes     []ledger.RemoteView     `json:"remotes"`
	Settlements []ledger.SettlementView `json:"settlements"`
}

// Invoice is a document of the ledger.
type Invoice struct {
	ID       string `json:"id"`
	Billable bool   `json:"billable"` // false: not for billing
	ledger.InvoiceView
}

// NewInvoice names a document.
func NewInvoice(v ledger.InvoiceView) Invoice {
	return Invoice{ID: v.ID(), Billable: v.Billable() && !v.Simulated, InvoiceView: v}
}

// NewSession completes a session with what became of its bill.
func NewSession(st ledger.State, v ledger.SessionView, gateway string) Session {
	b := ledger.BillOf(st, v.ID)
	return Session{
		SessionView: v, GatewayName: gateway, Refunded: b.Refunded, Dispute: b.Dispute, Invoice: b.Invoice,
		NotBillable: ledger.NotBillable(st, v.Gateway, v.Connector, v.OpenedMs),
	}
}

// moneyRoutes registers the API about money. Documents and statements show
// what a person did when: they are served on the control socket only.
func moneyRoutes(handle func(pattern string, h func(r *http.Request) (any, error)), b Backend, control bool) {
	handle("GET /rules", func(r *http.Request) (any, error) { return b.Rules(r.Context()) })
	handle("GET /payouts", func(r *http.Request) (any, error) {
		return b.Payouts(r.Context(), r.URL.Query().Get("open") == "true")
	})
	handle("GET /disputes", func(r *http.Request) (any, error) { return b.Disputes(r.Context()) })
	if !control {
		return
	}
	handle("GET /remotes", func(r *http.Request) (any, error) { return b.Remotes(r.Context()) })
	account := func(r *http.Request, s string) (a chain.Account, err error) {
		if err := a.UnmarshalText([]byte(s)); err != nil {
			return a, Invalid("%v", err)
		}
		return a, nil
	}
	handle("GET /invoices", func(r *http.Request) (any, error) {
		var a chain.Account
		if s := r.URL.Query().Get("account"); s != "" {
			var err error
			if a, err = account(r, s); err != nil {
				return nil, err
			}
		}
		return b.Invoices(r.Context(), a)
	})
	handle("GET /invoices/unbilled", func(r *http.Request) (any, error) { return b.Unbilled(r.Context()) })
	handle("GET /invoices/{id}", func(r *http.Request) (any, error) { return b.Invoice(r.Context(), r.PathValue("id")) })
	handle("GET /accounts/{id}/statement", func(r *http.Request) (any, error) {
		a, err := account(r, r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		from, err1 := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
		to, err2 := strconv.ParseInt(r.URL.Query().Get("to"), 10, 64)
		if err1 != nil || err2 != nil || from > to {
			return nil, Invalid("a statement has from and to, Unix ms")
		}
		return b.Statement(r.Context(), a, from, to)
	})
}

// Rules implements Backend.
func (c *Client) Rules(ctx context.Context) (Rules, error) { return get[Rules](ctx, c, "/rules") }

// Payouts implements Backend.
func (c *Client) Payouts(ctx context.Context, open bool) ([]ledger.PayoutView, error) {
	return get[[]ledger.PayoutView](ctx, c, "/payouts?open="+strconv.FormatBool(open))
}

// Disputes implements Backend.
func (c *Client) Disputes(ctx context.Context) ([]ledger.DisputeView, error) {
	return get[[]ledger.DisputeView](ctx, c, "/disputes")
}

// Remotes implements Backend. Only the control socket offers it.
func (c *Client) Remotes(ctx context.Context) (Remotes, error) {
	return get[Remotes](ctx, c, "/remotes")
}

// Invoices implements Backend. Only the control socket offers it.
func (c *Client) Invoices(ctx context.Context, id chain.Account) ([]Invoice, error) {
	q := ""
	if id != (chain.Account{}) {
		q = "?account=" + url.QueryEscape(id.String())
	}
	return get[[]Invoice](ctx, c, "/invoices"+q)
}

// Invoice implements Backend. Only the control socket offers it.
func (c *Client) Invoice(ctx context.Context, id string) (Invoice, error) {
	return get[Invoice](ctx, c, "/invoices/"+url.PathEscape(id))
}

// Unbilled implements Backend. Only the control socket offers it.
func (c *Client) Unbilled(ctx context.Context) ([]chain.Account, error) {
	return get[[]chain.Account](ctx, c, "/invoices/unbilled")
}

// Statement implements Backend. Only the control socket offers it.
func (c *Client) Statement(ctx context.Context, id chain.Account, from, to int64) (invoice.Statement, error) {
	return get[invoice.Statement](ctx, c, "/accounts/"+url.PathEscape(id.String())+"/statement?from="+strconv.FormatInt(from, 10)+"&to="+strconv.FormatInt(to, 10))
}
