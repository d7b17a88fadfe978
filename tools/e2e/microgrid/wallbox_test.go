package microgrid

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

// wallbox is a simulated KEBA with a car, on a network line of its own.
func newWallbox(t *testing.T) (addr string, box *slave.Physics) {
	t.Helper()
	p, err := profile.Get("keba-p30")
	if err != nil {
		t.Fatal(err)
	}
	if box, err = slave.NewPhysics(slave.PhysicsConfig{Profile: p, Car: 'C'}); err != nil {
		t.Fatal(err)
	}
	bus, err := slave.NewBus(slave.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Add(255, box.Unit()); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = bus.ServeTCP(ctx, ln) })
	wg.Go(func() { // time passes for it
		const dt = 100 * time.Millisecond
		tick := time.NewTicker(dt)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				if err := box.Step(now, dt); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return ln.Addr().String(), box
}

// TestWallbox charges a car at a wallbox that has neither a relay of the
// gateway nor a session meter beside it, sets its failsafe, and then takes the
// gateway away: the wallbox falls back by itself.
func TestWallbox(t *testing.T) {
	t.Parallel()
	addr, box := newWallbox(t)
	g := newGrid(t, 1)
	north := g.gateways[0]
	north.install()
	b, err := os.ReadFile(north.config)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	c.Lines = append(c.Lines, config.Line{ID: "lan", TCP: addr, Timeout: config.Duration(500 * time.Millisecond)})
	keep := c.Meters[:0]
	for _, m := range c.Meters {
		if m.Role != "charger" {
			keep = append(keep, m)
		}
	}
	c.Meters = append(keep, config.Meter{ID: "keba", Line: "lan", Unit: 255, Profile: "keba-p30", Role: "charger", Interval: config.Duration(time.Second), MaxPower: 22_000})
	c.Chargers = []config.Charger{{
		ID: 1, Meter: "keba", EVSE: config.EVSE{Line: "lan", Unit: 255, Profile: "keba-p30"}, MaxCurrent: 16_000, Phases: 3, Mode: "now",
		MaxSwitches: 20, OfflineWh: 20_000, DerateFrom: 60, MaxTemp: 75,
	}}
	c.Readers = nil
	if err := os.WriteFile(north.config, config.Render(c), 0o644); err != nil {
		t.Fatal(err)
	}
	north.run("config", "check")
	north.create()
	north.start()
	for _, to := range []string{"sys:grid", "sys:promotion"} {
		north.run("account", "mint", "--to", to, "--amount", "100", "--ref", "BANK-"+to)
	}
	anna := north.wallet("anna", "50")

	// The installer reads and sets what happens without the gateway.
	if _, errOut, code := north.try("charger", "failsafe", "1", "--set", "6A", "--timeout", "20s"); code != 1 || !strings.Contains(errOut, "not confirmed") {
		t.Errorf("set without confirmation: exit %d, %s", code, errOut)
	}
	if _, errOut, code := north.try("charger", "failsafe", "1", "--set", "3A", "--yes"); code != 2 || !strings.Contains(errOut, "6A to 32A") {
		t.Errorf("a failsafe of 3 A: exit %d, %s", code, errOut)
	}
	f := ask[panel.Failsafe](north, "charger", "failsafe", "1", "--set", "6A", "--timeout", "20s", "--yes")
	if f.Current != 6000 || f.TimeoutMs != 20_000 || f.Profile != "keba-p30" || f.BeatMs > 10_000 {
		t.Errorf("failsafe %+v", f)
	}
	if v, _ := box.Unit().Register(drivers.HoldingRegisters, 1601); v != 6000 {
		t.Errorf("the wallbox says that it falls back to %d mA", v)
	}

	q := must(north, func(ctx context.Context) (panel.Quote, error) {
		return north.client.Quote(ctx, panel.QuoteRequest{Connector: 1, Driver: anna.Public(), MaxWh: 5000})
	})
	s := must(north, func(ctx context.Context) (panel.Session, error) {
		return north.client.StartSession(ctx, q.Sign(anna.Key))
	})
	draws := func(what string, least, most int64) {
		t.Helper()
		north.wait(patience, what, func(ctx context.Context) (bool, any) {
			ma := box.Current()
			all, err := north.client.Chargers(ctx)
			return ma >= least && ma <= most, fmt.Sprintf("%d mA; %+v %v", ma, all, err)
		})
	}
	draws("car that charges", 10_000, 16_000)
	north.run("charger", "limit", "1", "8")
	draws("lower current", 6_000, 8_000)
	north.run("charger", "limit", "1", "0")
	draws("the limit taken away", 10_000, 16_000)
	north.wait(3*slot, "energy on the ledger", func(context.Context) (bool, any) {
		s = north.session(s.ID)
		return s.Wh > 0, s.SessionView
	})

	// The gateway dies without a word. The car goes on with 6 A at most.
	north.kill()
	deadline := time.Now().Add(patience)
	for box.Current() > 6_000 && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
	}
	if ma := box.Current(); ma > 6_000 || ma < 5_000 {
		t.Errorf("a minute after its gateway died the wallbox offers %d mA, its failsafe is 6000", ma)
	}
	north.start()
	north.run("session", "stop", s.ID.String())
	draws("stop", 0, 0)
	s = north.settled(s.ID)
	if s.Wh == 0 || s.Paid == 0 {
		t.Errorf("settled with %d Wh for %d", s.Wh, s.Paid)
	}
}
