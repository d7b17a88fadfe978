package main

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/circuit"
)

// TestFeederLink shares 40 A between two gateways: the member has its share
// until the leader answers, then what the leader can give, and its share again
// after the leader has fallen silent.
func TestFeederLink(t *testing.T) {
	feeder := func(name string) *feederLink {
		cfg := config.Config{Name: name, Feeder: config.Feeder{Share: 10_000, Leader: "north", Lease: config.Duration(30 * time.Second)}}
		cfg.Timing.StaleAfter = config.Duration(10 * time.Second)
		if name == "north" {
			one := []config.FeederCharger{{ID: 1, MaxCurrent: 32_000, Wiring: "L1 L2 L3"}}
			cfg.Feeder.Rating = 40_000
			cfg.Feeder.Members = []config.FeederMember{{Gateway: "north", Share: 10_000, Chargers: one}, {Gateway: "south", Share: 10_000, Chargers: one}}
		}
		f, err := newFeederLink(cfg)
		if err != nil || f == nil {
			t.Fatal(f, err)
		}
		return f
	}
	north, south := feeder("north"), feeder("south")
	if f, err := newFeederLink(config.Config{Name: "west"}); f != nil || err != nil {
		t.Fatalf("without a leader: %v, %v", f, err)
	}
	if _, err := south.answer("north", circuit.Request{}, 0); err == nil {
		t.Error("one that does not lead answers")
	}
	if _, err := north.answer("west", circuit.Request{}, 0); err == nil {
		t.Error("a stranger is answered")
	}
	wants := map[*feederLink]meter.MilliAmpere{north: 32_000, south: 32_000}
	most := meter.MilliAmpere(0)
	var caps []meter.MilliAmpere
	var leased bool
	step := func(now time.Duration, up bool) {
		north.tick(now)
		var sum meter.MilliAmpere
		for _, f := range []*feederLink{north, south} {
			if caps, leased = f.caps([]uint8{1}, now); leased {
				sum += min(caps[0], wants[f])
			} else {
				sum += 10_000
			}
		}
		if most = max(most, sum); sum > 40_000 {
			t.Fatalf("%s: %d mA", now, sum)
		}
		if now%(5*time.Second) != 0 || !up {
			return
		}
		for _, f := range []*feederLink{north, south} {
			// Through the encoding of the wire.
			var r circuit.Request
			if err := chain.Unmarshal(chain.Marshal(f.ask([]circuit.Ask{{ID: 1, Want: wants[f]}}, now)), &r); err != nil {
				t.Fatal(err)
			}
			l, err := north.answer(f.name, r, now)
			if err == nil {
				var got circuit.Lease
				if err = chain.Unmarshal(chain.Marshal(l), &got); err == nil {
					f.take(got, now)
				}
			}
			if err != nil && !errors.Is(err, errNoLease) {
				t.Fatal(err)
			}
		}
	}
	now := time.Duration(0)
	for ; now < 5*time.Minute; now += time.Second {
		step(now, true)
	}
	if !leased || !slices.Equal(caps, []meter.MilliAmpere{20_000}) {
		t.Fatalf("both want all: %v %t", caps, leased)
	}
	wants[north] = 8_000
	for ; now < 10*time.Minute; now += time.Second {
		step(now, true)
	}
	if !leased || !slices.Equal(caps, []meter.MilliAmpere{32_000}) {
		t.Fatalf("the leader wants little: %v %t", caps, leased)
	}
	for ; now < 12*time.Minute; now += time.Second {
		step(now, false)
	}
	if leased {
		t.Fatalf("the leader is silent: %v", caps)
	}
	if most < 39_000 {
		t.Errorf("never more than %d of 40000 mA in use", most)
	}
}
