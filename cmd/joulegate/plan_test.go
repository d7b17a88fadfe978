package main

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter/discharge"
	"github.com/joulegate/joulegate/meter/plan"
	"github.com/spf13/cobra"
)

func TestDeparture(t *testing.T) {
	now := time.Date(2026, 5, 1, 21, 30, 0, 0, time.UTC)
	for s, want := range map[string]string{"07:00": "2026-05-02 07:00", "22:15": "2026-05-01 22:15", "21:30": "2026-05-02 21:30", "2026-05-03 06:00": "2026-05-03 06:00"} {
		if got, err := departure(s, now); err != nil || got.Format("2006-01-02 15:04") != want {
			t.Errorf("%s: %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"seven", "25:00", "2026-05-01 21:00", "2026-06-01 07:00"} {
		if got, err := departure(s, now); err == nil {
			t.Errorf("%s is %s", s, got)
		}
	}
}

func testKey(name string) (ed25519.PrivateKey, chain.Key) {
	seed := chain.Sum([]byte(name))
	k := ed25519.NewKeyFromSeed(seed[:])
	return k, chain.Key(k.Public().(ed25519.PublicKey))
}

// TestPlanSlots tells a car what it can buy: tariff, and neighbours' surplus
// with the fee of the way, but not its own house's and nothing dearer than the
// supplier.
func TestPlanSlots(t *testing.T) {
	member := func(name string) chain.Member {
		_, dev := testKey("device " + name)
		_, val := testKey("validator " + name)
		_, own := testKey("owner " + name)
		return chain.Member{Device: dev, Name: name, Owner: own, Validator: val, MaxPower: 20_000}
	}
	_, operator := testKey("operator")
	a, b, c := member("a"), member("b"), member("c")
	g := chain.Genesis{
		Version: chain.Version, ChainID: "test", SlotSeconds: 900, GraceSeconds: 60, Currency: "EUR", MinorDigits: 2,
		Operators: []chain.Key{operator}, Retail: 300_000, FeedIn: 80_000,
		Nodes:   []chain.Node{{ID: "root"}, {ID: "f1", Parent: "root", Fee: 10_000}, {ID: "f2", Parent: "root", Fee: 10_000}},
		Members: []chain.Founder{{Member: a, Node: "f1", Fee: 5_000}, {Member: b, Node: "f1", Fee: 5_000}, {Member: c, Node: "f2", Fee: 5_000}},
		Credit:  chain.Credit{}, StartSeconds: 300, Basis: "simulated",
	}
	st := ledger.NewMapState()
	now := time.UnixMilli(1_800_000_000_000)
	if _, err := ledger.InitGenesis(st, g, now.UnixMilli()); err != nil {
		t.Fatal(err)
	}
	first := chain.SlotAt(now.UnixMilli(), 900)
	slots := planSlots(st, a.Device, map[chain.Key]chain.Offer{
		a.Device: {From: first, To: first, Side: chain.Sell, Limit: 90_000, Wh: 100},
		b.Device: {From: first, To: first, Side: chain.Sell, Limit: 100_000, Wh: 200},
		c.Device: {From: first + 1, To: first + 1, Side: chain.Sell, Limit: 295_000, Wh: 300},
	}, now)
	if len(slots) != 192 || slots[0].Start != now.UnixMilli() {
		t.Fatalf("%d slots from %d", len(slots), slots[0].Start)
	}
	near := plan.Tier{Price: 110_000, Wh: 200, Local: true}
	for i, want := range []int{2, 2, 1} {
		if s := slots[i]; len(s.Tiers) != want || s.Tiers[0] != (plan.Tier{Price: 300_000, Wh: plan.Unlimited}) || (want == 2 && s.Tiers[1] != near) {
			t.Errorf("slot %d: %+v", i, s.Tiers)
		}
	}
	changed := planSlots(st, a.Device, nil, now)
	if versionOf(slots) == versionOf(changed) {
		t.Error("the version does not follow the content")
	}
}

// TestVouch switches phases only on a statement that counts.
func TestVouch(t *testing.T) {
	key, installer := testKey("installer")
	_, self := testKey("gateway")
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	file := filepath.Join(t.TempDir(), "statement")
	sign := func(s board.Statement) {
		s.Issued, s.Expires = at, at.AddDate(1, 0, 0)
		b, err := board.SignStatement(s, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config.Config{Installers: []string{installer.String()}, Chargers: []config.Charger{{ID: 1, PhaseSwitch: true, Statement: file}}}
	look := func(now time.Time) (bool, vouched) {
		c := make([]station.Charger, 1)
		v := vouch(cfg, self, now, c)
		return c[0].Switch.Allowed, v[0]
	}
	if ok, v := look(at); ok || v.severity != 2 {
		t.Errorf("without the file: %t %+v", ok, v)
	}
	sign(board.Statement{Gateway: self, Charger: 1, PhaseSwitch: true})
	if ok, v := look(at.Add(time.Hour)); !ok || v.severity != 1 || !strings.Contains(v.text, "statement ") {
		t.Errorf("%t %+v", ok, v)
	}
	if ok, v := look(at.AddDate(1, 0, 1)); ok || !strings.Contains(v.text, "expired") {
		t.Errorf("expired: %t %+v", ok, v)
	}
	sign(board.Statement{Gateway: self, Charger: 2, PhaseSwitch: true})
	if ok, v := look(at.Add(time.Hour)); ok || !strings.Contains(v.text, "for charger 2") {
		t.Errorf("of another charger: %t %+v", ok, v)
	}
}

// TestVouchForDischarging lets energy be taken out only while the statement is
// valid, and no more than it says.
func TestVouchForDischarging(t *testing.T) {
	key, installer := testKey("installer")
	_, self := testKey("gateway")
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	file := filepath.Join(t.TempDir(), "statement")
	s := board.Statement{Gateway: self, Charger: 1, PhaseSwitch: true, Issued: at, Expires: at.AddDate(1, 0, 0)}
	cfg := config.Config{Installers: []string{installer.String()}, Chargers: []config.Charger{{ID: 1, Discharge: config.Discharge{Enabled: true}, Statement: file}}}
	look := func(now time.Time) (*station.Discharge, vouched) {
		b, err := board.SignStatement(s, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c := []station.Charger{{Discharge: &station.Discharge{Rules: discharge.Rules{MaxPower: 11_000, MinPower: 500}}}}
		v := vouch(cfg, self, now, c)
		return c[0].Discharge, v[0]
	}
	if d, v := look(at.Add(time.Hour)); d.Permit != nil || v.severity != 2 || !strings.Contains(v.text, "does not allow discharging") {
		t.Errorf("of phases: %+v", v)
	}
	s.Discharge, s.MaxPower, s.GridProtection, s.Approval = true, 7000, "certificate 12-345", "file 0815"
	d, v := look(at.Add(time.Hour))
	if d.Permit == nil || v.severity != 1 || d.Rules.MaxPower != 7000 {
		t.Fatalf("%+v %+v", d.Rules, v)
	}
	if err := d.Permit(at.AddDate(0, 11, 0)); err != nil {
		t.Error(err)
	}
	if err := d.Permit(at.AddDate(1, 0, 1)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired while running: %v", err)
	}
	if d, _ := look(at.AddDate(1, 0, 1)); d.Permit != nil {
		t.Error("expired at the start")
	}
}

// TestSellOrder reads what a car gives.
func TestSellOrder(t *testing.T) {
	parse := func(args ...string) (panel.QuoteRequest, error) {
		c := &cobra.Command{}
		quoteFlags(c)
		if err := c.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		return sellOrder(c)
	}
	if r, err := parse("--sell-kwh", "7.5", "--sell-price", "0.15"); err != nil || r.SellWh != 7500 || r.SellLimit != 150_000 {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := parse(); err != nil || r.SellWh != 0 {
		t.Errorf("%+v %v", r, err)
	}
	for _, bad := range [][]string{{"--sell-price", "0.15"}, {"--sell-kwh", "0"}, {"--sell-kwh", "-1"}, {"--sell-kwh", "x"}, {"--sell-kwh", "1", "--sell-price", "-1"}} {
		if _, err := parse(bad...); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
