package circuit

import (
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

func TestDimming(t *testing.T) {
	r := DimRules{PerDevice: 4_200, Total: 9_000, Silence: MaxSilence}
	r.Watched[Message] = true
	var s DimState
	now := time.Duration(0)
	in := func(d time.Duration) { now += d }
	hear := func(e DimEvent) { s = HearDim(s, e, now) }
	expect := func(perDevice meter.Watt, why, what string) {
		t.Helper()
		var l Limit
		s, l = StepDim(r, s, now)
		if l.PerDevice != perDevice || !strings.Contains(l.Why, why) || (l.Total > 0) != (perDevice > 0) {
			t.Fatalf("%s: %+v, want %d W, %q", what, l, perDevice, why)
		}
	}
	expect(4_200, "message is silent: failsafe", "before the first word of a watched source")
	hear(DimEvent{Source: Message})
	expect(0, "", "a sign of life without a limit")
	in(time.Minute)
	hear(DimEvent{Source: Message, Limit: 6_000})
	expect(6_000, "message", "an order")
	hear(DimEvent{Source: Contact, Limit: 4_200})
	expect(4_200, "contact", "the contact is lower")
	hear(DimEvent{Source: Contact})
	expect(6_000, "message", "the contact is open again")
	hear(DimEvent{Source: Ledger, Limit: 1_000, For: 10 * time.Minute})
	expect(4_200, "ledger", "nobody goes below 4.2 kW")
	in(time.Minute)
	hear(DimEvent{Source: Message})
	expect(4_200, "ledger", "one source takes back its own order only")
	for range 9 {
		in(time.Minute)
		hear(DimEvent{Source: Message})
	}
	expect(0, "", "the ledger's order has ended by itself")
	in(121 * time.Second)
	expect(4_200, "failsafe", "two minutes of silence")
	in(2*time.Hour - 5*time.Second)
	expect(4_200, "failsafe", "for two hours")
	in(10 * time.Second)
	expect(0, "", "then the gateway's own limit, which is none here")
	r.Own = 8_000
	expect(8_000, "own limit", "or 8 kW")
	hear(DimEvent{Source: Message})
	expect(0, "", "it is heard again")
	hear(DimEvent{Source: Contact, Lost: true})
	expect(4_200, "contact is silent", "a pin that cannot be read")
	hear(DimEvent{Source: Contact})
	expect(0, "", "and can be again")
}

// TestWatchedOrderDoesNotEndBySilence: an order whose time runs out while its
// source is silent must not free the chargers.
func TestWatchedOrderDoesNotEndBySilence(t *testing.T) {
	r := DimRules{PerDevice: 4_200, Silence: MaxSilence}
	r.Watched[Message] = true
	s := HearDim(DimState{}, DimEvent{Source: Message, Limit: 5_000, For: time.Minute}, 0)
	for now := time.Duration(0); now < 2*time.Hour; now += time.Second {
		var l Limit
		if s, l = StepDim(r, s, now); l.PerDevice == 0 {
			t.Fatalf("free after %s", now)
		}
	}
}

// TestLimitsOnlyLower: hearing more sources never raises what is allowed.
func TestLimitsOnlyLower(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := DimRules{PerDevice: 4_200, Silence: time.Minute, FailsafeFor: time.Duration(rapid.IntRange(0, 5).Draw(t, "hours")) * time.Hour}
		for i := range r.Watched {
			r.Watched[i] = rapid.Bool().Draw(t, "watched")
		}
		var s DimState
		now := time.Duration(0)
		open := func(l Limit) meter.Watt {
			if l.PerDevice == 0 {
				return 1e9
			}
			return l.PerDevice
		}
		for range 50 {
			now += time.Duration(rapid.IntRange(0, 3600).Draw(t, "s")) * time.Second
			var before, after Limit
			s, before = StepDim(r, s, now)
			src := Source(rapid.IntRange(0, int(sources)-1).Draw(t, "source"))
			was := s.src[src]
			s = HearDim(s, DimEvent{Source: src, Limit: meter.Watt(rapid.IntRange(1, 20_000).Draw(t, "W")), Lost: rapid.Bool().Draw(t, "lost")}, now)
			s, after = StepDim(r, s, now)
			if was.limit == 0 && !was.lost && open(after) > open(before) {
				t.Fatalf("%s says something and the limit rises from %d to %d W", src, before.PerDevice, after.PerDevice)
			}
			if after.PerDevice > 0 && after.PerDevice < r.PerDevice {
				t.Fatalf("%d W are below what a device keeps", after.PerDevice)
			}
		}
	})
}
