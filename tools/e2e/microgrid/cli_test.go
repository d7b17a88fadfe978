package microgrid

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// TestTwoGatewaysFromTheCommandLine does with two gateways what an installer,
// an operator and a driver do, by typing commands only.
func TestTwoGatewaysFromTheCommandLine(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 2)
	north, east := g.gateways[0], g.gateways[1]

	// The installer.
	north.install()
	north.create()
	north.start()
	east.install()
	east.join(north)
	g.connected()

	for _, gw := range g.gateways {
		members := ask[[]panel.Member](gw, "grid", "members")
		if len(members) != 2 {
			t.Fatalf("%s sees %d members", gw.name, len(members))
		}
		for _, m := range members {
			if !m.Active || m.Power <= 0 || m.Self != (m.Name == gw.name) || m.Self == m.Connected {
				t.Errorf("%s sees member %+v", gw.name, m)
			}
		}
		peers := ask[[]panel.Peer](gw, "peer", "ls")
		if len(peers) != 1 || peers[0].Name == gw.name {
			t.Errorf("%s is connected with %+v", gw.name, peers)
		}
	}

	// The operator.
	for _, to := range []string{"sys:grid", "sys:promotion", "owner"} {
		north.run("account", "mint", "--to", to, "--amount", "100", "--ref", "BANK-"+to)
	}
	north.run("account", "new", "anna")
	north.run("account", "mint", "--to", "anna", "--amount", "50", "--ref", "BANK-anna")
	if _, errOut, code := north.try("account", "mint", "--to", "anna", "--amount", "50", "--ref", "BANK-anna"); code != 1 || !strings.Contains(errOut, "BANK-anna") && !strings.Contains(errOut, "reference") {
		t.Errorf("one bank payment was minted twice: exit %d, %q", code, errOut)
	}

	// The driver, at the house that has no sun of its own.
	anna := filepath.Join(north.state, "wallets", "anna.key")
	session := func(more ...string) panel.Session {
		t.Helper()
		if err := g.street.PlugIn(east.index, car("anna")); err != nil {
			t.Fatal(err)
		}
		args := append([]string{"--wallet", anna, "--kwh", "0.2"}, more...)
		if words := east.run(append([]string{"session", "quote"}, args...)...); !strings.Contains(words, "at most 0.30") {
			t.Errorf("the quote does not tell the price: %q", words)
		}
		s := ask[panel.Session](east, append([]string{"session", "start", "--yes"}, args...)...)
		g.flows(east)
		time.Sleep(slot + slot/2) // so that energy falls into two slots
		east.run("session", "stop", s.ID.String())
		east.settled(s.ID)
		if st := g.street.State(east.index); st.Relay || st.Charging > 0 {
			t.Errorf("a settled session draws current: %+v", st)
		}
		if _, err := g.street.Unplug(east.index); err != nil {
			t.Fatal(err)
		}
		north.settled(s.ID)
		return ask[panel.Session](north, "session", "show", s.ID.String()) // the neighbour's view
	}
	first := session()
	bill(t, first)
	if first.State != ledger.SessionClosed || first.Wh <= 0 || first.LocalWh <= 0 || first.CreditEarned <= 0 || first.CreditRedeemed != 0 {
		t.Errorf("first session: %+v", first.SessionView)
	}
	second := session("--redeem")
	bill(t, second)
	if second.CreditRedeemed != first.CreditEarned && second.CreditRedeemed != second.Captured/2 {
		t.Errorf("second session redeemed %d; the first earned %d, half the bill is %d", second.CreditRedeemed, first.CreditEarned, second.Captured/2)
	}

	// The receipt verifies, and is the one that the ledger names.
	receipt := strings.TrimSpace(east.run("receipt", first.ID.String(), "--ocmf"))
	if !strings.HasPrefix(receipt, "OCMF|") || strings.Contains(receipt, "\n") {
		t.Fatalf("receipt %q", receipt)
	}
	payload := strings.Split(receipt, "|")[1]
	if chain.Sum([]byte(payload)) != first.Receipt {
		t.Errorf("the ledger names receipt %s, the gateway printed %s", first.Receipt, chain.Sum([]byte(payload)))
	}
	xml := east.run("receipt", first.ID.String(), "--xml")
	if !strings.Contains(xml, receipt) && !strings.Contains(xml, strings.ReplaceAll(receipt, `"`, "&#34;")) {
		t.Errorf("XML receipt %q", xml)
	}

	money(t, north, anna, first)

	// Anybody who asks.
	m := ask[panel.Market](north, "market", "status")
	if m.Last == nil || len(m.Houses) != 2 || m.Why == "" {
		t.Errorf("market status: %+v", m)
	}
	if table := north.run("market", "status"); !strings.Contains(table, "east") {
		t.Errorf("market status shows no houses: %q", table)
	}
	g.agree()
	g.honest()
	for _, gw := range g.gateways {
		gw.books()
		gw.verify()
	}

	// Whoever stands before the charger, and whoever asks later.
	for args, why := range map[string]string{
		"charger limit 1 32": "rated 16000 mA", "charger limit 1 3": "at least 6000 mA", "charger start 1": "needs a hold",
		"charger stop 1": "no session", "charger clear 1": "no fault", "charger stop 7": "no charger 7",
	} {
		if out, errOut, code := east.try(strings.Fields(args)...); code != 1 || !strings.Contains(errOut, why) {
			t.Errorf("%s: exit %d, %q, %q; want %q", args, code, out, errOut, why)
		}
	}
	limited := ask[board.Charger](east, "charger", "limit", "1", "7.5")
	if all := ask[[]board.Charger](east, "charger", "ls"); len(all) != 1 || all[0].ID != limited.ID || all[0].Actuator != "relay" || all[0].Why == "" {
		t.Errorf("charger ls: %+v", all)
	}
	told := ask[[]panel.Event](east, "journal", "events")
	switched := map[string]int{}
	for _, e := range told {
		switched[e.Code]++
		if e.Detail != chain.Sum([]byte(e.Text)) || e.Block.Number == 0 || !strings.Contains(e.Text, "config ") {
			t.Errorf("event %+v", e)
		}
	}
	if switched["charger.closed"] < 2 || switched["charger.opened"] != switched["charger.closed"] || switched["gateway.started"] != 1 {
		t.Errorf("two sessions left these events: %v", switched)
	}

	// The same of stopped gateways.
	for _, gw := range g.gateways {
		gw.stop()
	}
	if _, errOut, code := north.try("grid", "members"); code != 1 || !strings.Contains(errOut, "joulegate run") {
		t.Errorf("grid members of a stopped gateway: exit %d, %q", code, errOut)
	}
	if again := ask[[]panel.Event](east, "journal", "events"); len(again) < len(told) || again[0] != told[0] {
		t.Errorf("a stopped gateway tells %d events, running it told %d", len(again), len(told))
	}
	reports := []panel.VerifyReport{north.verify(), east.verify()}
	var read panel.LedgerStatus
	if err := json.Unmarshal([]byte(north.run("ledger", "status", "--json")), &read); err != nil {
		t.Fatal(err)
	}
	if read.Height != reports[0].Height || read.StateHash != reports[0].StateHash {
		t.Errorf("ledger status of a stopped gateway says %d %s, its blocks %d %s", read.Height, read.StateHash, reports[0].Height, reports[0].StateHash)
	}
	var accounts []panel.Account
	if err := json.Unmarshal([]byte(north.run("account", "ls", "--json")), &accounts); err != nil || len(accounts) < 4 {
		t.Errorf("account ls of a stopped gateway: %d accounts, %v", len(accounts), err)
	}
	if reports[0].Height == reports[1].Height && reports[0].StateHash != reports[1].StateHash {
		t.Errorf("stopped gateways disagree: %+v", reports)
	}
	if _, err := os.Stat(filepath.Join(north.state, "control.sock")); err == nil {
		t.Error("a stopped gateway leaves its control socket")
	}
}
