package microgrid

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

// TestKill9InMidSession takes the power from a charger's gateway while a car
// charges. The relay must open by itself, and after the restart every Wh that
// the meters have counted must be booked once: when the gateway resumes the
// session, and when the car has left meanwhile and it has to close it by rule.
func TestKill9InMidSession(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 4)
	g.found()
	north, east := g.gateways[0], g.gateways[1]
	for _, to := range []string{"sys:grid", "sys:promotion"} {
		north.run("account", "mint", "--to", to, "--amount", "100", "--ref", "BANK-"+to)
	}
	anna := north.wallet("anna", "50")

	s := g.killInSession(east, anna, func() {})
	if s.Reason != chain.StopDriver || s.ByRule {
		t.Errorf("a session of a gateway that was away for a moment was not resumed: %+v", s.SessionView)
	}
	s = g.killInSession(east, anna, func() {
		if _, err := g.street.Unplug(east.index); err != nil {
			t.Fatal(err)
		}
	})
	if s.Reason != chain.StopUnplugged && s.Reason != chain.StopRestart {
		t.Errorf("a session whose car has left ended by %s: %+v", s.Reason, s.SessionView)
	}

	// A last slot, so that registers and ledger can be compared.
	seen := member(east, "east").LastSlot
	for _, gw := range g.gateways {
		gw.wait(2*patience, "slot reported by all", func(context.Context) (bool, any) {
			m := member(north, gw.name)
			return m.LastSlot > seen, m
		})
	}
	g.complete()
	g.agree()
	g.honest()
	for _, gw := range g.gateways {
		gw.books()
	}
	for _, gw := range g.gateways {
		gw.verify()
	}
	booked(t, g)
}

// killInSession charges a car at a gateway, kills the gateway, starts it again
// after away and returns the session settled, with its bill checked against
// the session meter.
func (g *grid) killInSession(at *gateway, w keys.Wallet, away func()) panel.Session {
	g.t.Helper()
	other := g.gateways[0]
	before := at.register(chain.RoleCharger)
	s := g.charge(at, w, 1000)
	at.wait(2*patience, "energy on the ledger", func(context.Context) (bool, any) {
		s = at.session(s.ID)
		return s.Wh > 0 && s.Seq >= 2, s.SessionView
	})

	at.kill()
	killed := time.Now()
	other.wait(patience, "open relay", func(context.Context) (bool, any) {
		st := g.street.State(at.index)
		return !st.Relay && st.Charging == 0, st
	})
	g.t.Logf("the relay was open %s after kill -9", time.Since(killed).Round(time.Millisecond))
	other.grow(other.status().Height) // the others go on
	away()
	if s = other.session(s.ID); !s.State.Open() {
		g.t.Fatalf("the session ended while its gateway was away for moments: %+v", s.SessionView)
	}
	if st := g.street.State(at.index); st.Relay {
		g.t.Fatal("the relay closed without a gateway")
	}

	at.start()
	g.connected()
	at.wait(2*patience, "resumption or end", func(context.Context) (bool, any) {
		s = at.session(s.ID)
		st := g.street.State(at.index)
		return s.State > ledger.SessionCharging || st.Relay && st.Charging > 0, fmt.Sprintf("%+v %+v", s.SessionView, st)
	})
	if s.State <= ledger.SessionCharging {
		must(at, func(ctx context.Context) (panel.Session, error) {
			return at.client.StopSession(ctx, s.ID, panel.SignStop(s.ID, w.Key))
		})
	}
	s = at.settled(s.ID)
	if g.street.State(at.index).Car != "" {
		if _, err := g.street.Unplug(at.index); err != nil {
			g.t.Fatal(err)
		}
	}
	bill(g.t, s)
	// The session meter is the truth: what it has counted is on the bill, or
	// borne by the site's owner.
	after := at.register(chain.RoleCharger)
	if s.Begin != before || s.Wh+s.ExcessWh != after-before {
		g.t.Errorf("the meter went from %d to %d Wh, the session from %d: %d Wh billed, %d Wh in excess", before, after, s.Begin, s.Wh, s.ExcessWh)
	}
	if receipt := at.run("receipt", s.ID.String(), "--ocmf"); !strings.HasPrefix(receipt, "OCMF|") {
		g.t.Errorf("receipt %q", receipt)
	}
	return s
}

// member returns how g sees the member of that name.
func member(g *gateway, name string) panel.Member {
	g.t.Helper()
	for _, m := range must(g, g.client.Members) {
		if m.Name == name {
			return m
		}
	}
	g.t.Fatalf("%s knows no member %s", g.name, name)
	return panel.Member{}
}

// booked ends all gateways and compares what the ledger has booked for each
// site with the site meter's registers in that gateway's own journal: the
// last less the first is what was metered, whatever happened in between.
func booked(t *testing.T, g *grid) {
	t.Helper()
	type total struct{ imported, exported meter.WattHour }
	onLedger := map[string]total{}
	heads := map[string]chain.Position{}
	north := g.gateways[0]
	north.wait(patience, "moment at which the ledger has all blocks", func(context.Context) (bool, any) {
		for _, gw := range g.gateways {
			m := member(north, gw.name)
			if own := gw.newest()[gw.name]; m.Head.Position != own {
				return false, fmt.Sprintf("%s: ledger %s, journal %s", gw.name, m.Head.Position, own)
			}
			onLedger[gw.name], heads[gw.name] = total{m.Import, m.Export}, m.Head.Position
		}
		return true, nil
	})
	chainID := must(north, north.client.Status).Chain
	for _, gw := range g.running() {
		gw.stop()
	}
	for _, gw := range g.gateways {
		var first, last *chain.MeterRecord
		var page uint64
		var body []byte // of that page
		gw.journal(chainID, func(b *chain.Signed) {
			if heads[gw.name].Less(b.Position()) {
				return // signed while it was ending
			}
			for _, r := range b.Records {
				var m chain.MeterRecord
				if r.Kind != chain.KindMeter {
					continue
				}
				if err := chain.Unmarshal(r.Body, &m); err != nil {
					t.Fatalf("%s block %s: %v", gw.name, b.Position(), err)
				}
				if m.Role != chain.RoleSite {
					continue
				}
				if m.Page == page && bytes.Equal(r.Body, body) {
					continue // signed once more after a crash, to be sure: it changes nothing
				}
				if m.Page != page+1 {
					t.Errorf("%s block %s: page %d of the site meter after page %d", gw.name, b.Position(), m.Page, page)
				}
				page, body = m.Page, r.Body
				if m.Quality != meter.Good {
					continue
				}
				if first == nil {
					first = &m
				}
				last = &m
			}
		})
		if first == nil {
			t.Errorf("%s: no good record of the site meter", gw.name)
			continue
		}
		metered := total{last.Import - first.Import, last.Export - first.Export}
		if metered != onLedger[gw.name] {
			t.Errorf("%s: the site meter counted %+v, the ledger has booked %+v", gw.name, metered, onLedger[gw.name])
		}
	}
}

// journal reads the own blocks of a gateway that has ended.
func (g *gateway) journal(chainID string, f func(*chain.Signed)) {
	g.t.Helper()
	key, err := keys.LoadDevice(filepath.Join(g.state, "keys", "device.key"), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	j, err := journal.Open(filepath.Join(g.state, "journal"), journal.Config{ChainID: chainID, Key: key})
	if err != nil {
		g.t.Fatal(err)
	}
	defer j.Close()
	var at chain.Position
	for {
		blocks, err := j.OwnAfter(at, 256)
		if err != nil {
			g.t.Fatal(err)
		}
		if len(blocks) == 0 {
			return
		}
		for _, b := range blocks {
			f(b)
			at = b.Position()
		}
	}
}

// TestOneOfFourDown kills one gateway of four for a while. The others must go
// on selling and settling; it must find back without signing anything twice.
func TestOneOfFourDown(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 4)
	g.found()
	north, east, south := g.gateways[0], g.gateways[1], g.gateways[2]
	anna := north.wallet("anna", "50")
	south.wait(2*patience, "own blocks", func(context.Context) (bool, any) {
		m := member(south, "south")
		return m.Newest.Number >= 2 && m.Head.Position.Number >= 2, m
	})

	south.kill()
	height := north.status().Height
	s := g.charge(east, anna, 500)
	east.wait(2*patience, "energy on the ledger", func(context.Context) (bool, any) {
		s = east.session(s.ID)
		return s.Wh > 0, s.SessionView
	})
	s = g.stopSession(east, anna, s.ID)
	bill(t, s)
	if s.Wh <= 0 {
		t.Errorf("nothing was charged: %+v", s.SessionView)
	}
	north.grow(height + 2)
	g.agree() // the three
	left := member(north, "south").Newest

	south.start()
	g.connected()
	g.agree() // all four, at the height that the others had
	south.wait(2*patience, fmt.Sprintf("own chain after %s", left), func(context.Context) (bool, any) {
		m := member(north, "south")
		return left.Less(m.Newest) && left.Less(m.Head.Position), m
	})
	if now := member(north, "south").Newest; now.Epoch != left.Epoch {
		t.Errorf("south's neighbours had its newest block %s, yet it opened epoch %d", left, now.Epoch)
	}
	g.complete()
	g.agree()
	g.honest()
	for _, gw := range g.gateways {
		gw.verify()
	}
	booked(t, g)
}
