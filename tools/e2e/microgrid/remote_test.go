package microgrid

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// TestTwoMicrogridsSettle founds two microgrids that know nothing of each
// other, and settles between their operators by typing commands and handing
// files over.
func TestTwoMicrogridsSettle(t *testing.T) {
	g := newGrid(t, 2)
	home, away := g.gateways[0], g.gateways[1]
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	chainOf := map[*gateway]string{}
	operator := map[*gateway]string{}
	for _, gw := range g.gateways {
		gw.install()
		gw.create()
		gw.start()
		gw.run("account", "mint", "--to", "operator", "--amount", "100", "--ref", "BANK-1")
		chainOf[gw] = must(gw, gw.client.Status).Chain
		operator[gw] = ask[panel.Rules](gw, "grid", "rules", "show").Operators[0].String()
	}
	balance := func(gw *gateway, key string) chain.Nano {
		t.Helper()
		var k chain.Key
		if err := k.UnmarshalText([]byte(key)); err != nil {
			t.Fatal(err)
		}
		for _, a := range ask[[]panel.Account](gw, "account", "ls") {
			if a.Account == chain.AccountOf(k) {
				return a.Balance
			}
		}
		return 0
	}
	other := map[*gateway]*gateway{home: away, away: home}
	refuse := func(gw *gateway, why string, args ...string) {
		t.Helper()
		if _, errOut, code := gw.try(args...); code != 1 || !strings.Contains(errOut, why) {
			t.Errorf("%s: exit %d, %q, want %q", strings.Join(args, " "), code, errOut, why)
		}
	}
	for gw, from := range other {
		genesis, point := file(chainOf[from]+".json"), file(chainOf[from]+".checkpoint")
		b, err := os.ReadFile(filepath.Join(from.state, "genesis.json"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, genesis, string(b))
		from.run("ledger", "checkpoint", "--out", point)
		gw.run("remote", "trust", genesis, "--checkpoint", point)
	}
	refuse(home, "is this microgrid", "remote", "trust", file(chainOf[home]+".json"))

	// Settled: 12.50 here against 11 there.
	settle := func(name, within string) chain.Settlement {
		t.Helper()
		return ask[chain.Settlement](home, "remote", "settle", "--with", chainOf[away], "--payee", operator[away], "--amount", "12.50", "--for", "11", "--within", within, "--out", file(name))
	}
	claim := func(gw *gateway, s chain.Settlement, name string) string {
		t.Helper()
		id, with := s.ID.String(), chainOf[other[gw]]
		gw.wait(patience, "the settlement in a signed state", func(context.Context) (bool, any) {
			gw.run("ledger", "claim", "--settlement", id, "--with", with, "--out", file(name))
			c := ask[struct {
				Settlement *ledger.SettlementView
			}](other[gw], "ledger", "verify-remote", file(name), "--trust", file(chainOf[gw]+".json"), "--settlement", id, "--with", with)
			return c.Settlement != nil, "absent"
		})
		return file(name)
	}
	s := settle("terms.json", "1h")
	locked := claim(home, s, "locked.claim")
	away.run("remote", "answer", file("terms.json"), "--proof", locked)
	refuse(away, "duplicate", "remote", "answer", file("terms.json"), "--proof", locked)
	answered := claim(away, s, "answered.claim")
	// The payee shows it himself, with his own key on the other's gateway.
	home.run("remote", "close", s.ID.String(), "--with", chainOf[away], "--proof", answered, "--wallet", filepath.Join(away.state, "wallets", "operator.key"))
	refuse(home, "is paid", "remote", "close", s.ID.String(), "--with", chainOf[away], "--proof", answered)
	for _, v := range []struct {
		at   *gateway
		of   *gateway
		want chain.Nano
	}{{home, home, 87_500_000_000}, {home, away, 12_500_000_000}, {away, away, 89_000_000_000}, {away, home, 11_000_000_000}} {
		if n := balance(v.at, operator[v.of]); n != v.want {
			t.Errorf("on %s the operator of %s has %d, want %d", chainOf[v.at], chainOf[v.of], n, v.want)
		}
	}

	// Nobody answers: the other side's signed silence returns the money.
	late := settle("late.json", "15s")
	unanswered := func() []string {
		away.run("ledger", "claim", "--settlement", late.ID.String(), "--with", chainOf[home], "--out", file("silence.claim"))
		return []string{"remote", "close", late.ID.String(), "--with", chainOf[away], "--proof", file("silence.claim")}
	}
	refuse(home, "has not answered", unanswered()...)
	home.wait(patience, "the money back", func(context.Context) (bool, any) {
		_, errOut, code := home.try(unanswered()...)
		if code != 0 {
			time.Sleep(time.Second)
		}
		return code == 0, errOut
	})
	r := ask[panel.Remotes](home, "remote", "ls")
	states := map[chain.ID]string{}
	for _, v := range r.Settlements {
		states[v.Terms.ID] = v.State.String()
	}
	if states[s.ID] != "paid" || states[late.ID] != "refunded" || len(r.Remotes) != 1 || !r.Remotes[0].Fresh {
		t.Errorf("remote ls: %+v", r)
	}
	if n := balance(home, operator[home]); n != 87_500_000_000 {
		t.Errorf("after the refund the payer has %d", n)
	}
	for _, gw := range g.gateways {
		if v := gw.verify(); len(v.Violations) > 0 {
			t.Errorf("%s: %v", gw.name, v.Violations)
		}
	}
}
