package microgrid

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
)

// money does what driver, operators and auditor do about money after a
// session, by typing commands only.
func money(t *testing.T, gw *gateway, anna string, s panel.Session) {
	t.Helper()
	account := s.Driver.String()
	refuse := func(why string, args ...string) {
		t.Helper()
		if _, errOut, code := gw.try(args...); code != 1 || !strings.Contains(errOut, why) {
			t.Errorf("%s: exit %d, %q, want %q", strings.Join(args, " "), code, errOut, why)
		}
	}
	units := func(n chain.Nano) string { return fmt.Sprintf("%d.%09d", n/1e9, n%1e9) }

	// Money back.
	gw.run("account", "payout", "--wallet", anna, "--amount", "10.50")
	refuse("whole multiples", "account", "payout", "--wallet", anna, "--amount", "0.001")
	if table := gw.run("account", "ls"); !strings.Contains(table, "sys:payout") || !strings.Contains(table, "10.50") {
		t.Errorf("a payout that waits does not show: %q", table)
	}
	if st := gw.status(); st.OpenPayouts != 1 || !st.Simulated {
		t.Errorf("status %+v", st.Status)
	}
	gw.run("account", "payout", "paid", "1", "--ref", "OUT-1")
	refuse("payout 1 is paid", "account", "payout", "--wallet", anna, "--cancel", "1")
	refuse("bank_ref", "account", "mint", "--to", "anna", "--amount", "1", "--ref", "OUT-1")

	// A contested bill.
	gw.run("dispute", "open", s.ID.String(), "--wallet", anna, "--amount", units(s.Captured/2), "--reason", "cable was pulled")
	gw.run("dispute", "answer", "1", "--amount", units(s.Captured/4), "--reason", "half of it")
	gw.run("dispute", "resolve", "1", "--wallet", anna, "--amount", units(s.Captured/4), "--reason", "agreed")
	gw.run("account", "refund", s.ID.String(), "--amount", units(s.Captured/4), "--reason", "goodwill")
	if got := ask[panel.Session](gw, "session", "show", s.ID.String()); got.Refunded != s.Captured/4*2 || got.Dispute != 1 || got.NotBillable == "" {
		t.Errorf("after a dispute and a refund: %+v", got)
	}
	if text := gw.run("receipt", s.ID.String(), "--text"); !strings.Contains(text, "NOT FOR BILLING") || !strings.Contains(text, "earned for next time") {
		t.Errorf("receipt in words: %q", text)
	}

	// Paper.
	gw.run("account", "mint", "--to", "sys:rounding", "--amount", "1", "--ref", "BANK-rounding")
	gw.run("invoice", "issue", "--all")
	docs := ask[[]panel.Invoice](gw, "invoice", "ls", account)
	i := slices.IndexFunc(docs, func(v panel.Invoice) bool { return v.Kind == ledger.KindInvoice })
	if i < 0 || docs[i].Billable || len(docs) != 3 {
		t.Fatalf("documents of the driver: %+v", docs)
	}
	id := docs[i].ID
	parties := filepath.Join(t.TempDir(), "parties.yaml")
	write(t, parties, fmt.Sprintf(`
issuer: {name: Nordstadt Strom eG, city: Hamburg, country: DE}
ocpi: {country_code: DE, party_id: NSE}
parties: {%s: {name: Anna, city: Hamburg, country: DE}}
sites: {%s: {street: Weg 4, city: Hamburg, country: DEU, latitude: "53.550600", longitude: "9.993300"}}
`, account, s.GatewayName))
	refuse("not for billing", "invoice", "export", id, "--parties", parties)
	if bad := invoice.Validate([]byte(gw.run("invoice", "export", id, "--parties", parties, "--not-for-billing"))); len(bad) > 0 {
		t.Errorf("%s breaks EN 16931: %v", id, bad)
	}
	var cdrs []invoice.CDR
	if err := json.Unmarshal([]byte(gw.run("invoice", "export", id, "--parties", parties, "--not-for-billing", "--format", "cdr")), &cdrs); err != nil || len(cdrs) == 0 || cdrs[0].Remark != invoice.NotForBilling {
		t.Errorf("charge detail records %+v, %v", cdrs, err)
	}

	// Every movement, to the nano.
	st := ask[invoice.Statement](gw, "account", "statement", account)
	now := ask[[]panel.Account](gw, "account", "ls")
	a := now[slices.IndexFunc(now, func(a panel.Account) bool { return a.Account == s.Driver })]
	if st.Closing != a.Balance || st.Credit != a.Credits || len(st.Rows) < 6 {
		t.Errorf("the statement ends with %d and %d credit, the account has %d and %d", st.Closing, st.Credit, a.Balance, a.Credits)
	}

	// Two operators and an auditor from a block on.
	key := func(name string) string {
		return ask[struct{ Key string }](gw, "account", "new", name).Key
	}
	second, auditor := key("operator2"), key("auditor")
	rules := ask[panel.Rules](gw, "grid", "rules", "show")
	gw.run("grid", "rules", "propose", "--height", "+6", "--operators", rules.Operators[0].String()+","+second, "--threshold", "2", "--auditors", auditor, "--daily-mint-cap", "5")
	gw.run("account", "mint", "--to", "sys:grid", "--amount", "1", "--ref", "BANK-last")
	for ask[panel.Rules](gw, "grid", "rules", "show").Threshold != 2 {
		gw.run("account", "payout", "--wallet", anna, "--amount", "0.01")
		gw.run("account", "payout", "--wallet", anna, "--cancel", fmt.Sprint(ask[[]ledger.PayoutView](gw, "account", "payout", "ls")[0].Number))
	}
	mint := []string{"account", "mint", "--to", "sys:grid", "--amount", "1", "--ref", "BANK-two"}
	refuse("cosign", mint...)
	draft := filepath.Join(t.TempDir(), "mint.json")
	gw.run(append(mint, "--draft", draft)...)
	if out := gw.run("account", "cosign", draft, "--wallet", "operator2", "--yes"); !strings.Contains(out, "auditor") {
		t.Errorf("beyond the cap without an auditor: %q", out)
	}
	gw.run("account", "cosign", draft, "--key", "auditor", "--yes")
	refuse("duplicate", "account", "cosign", draft, "--key", "auditor", "--yes")
}
