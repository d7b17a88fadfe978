package main

import (
	"testing"
	"time"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/poll"
)

// TestAway: what a meter counted while the gateway was off is judged by how
// long that was, and a clock that does not know makes no meter suspect.
func TestAway(t *testing.T) {
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	limits := poll.Limits{}.WithDefaults()
	says := func(now time.Duration, wh int64) poll.Outcome {
		return poll.Outcome{Now: now, Points: []meter.Point{{Quantity: meter.Import, Value: wh * 1000}}, Digits: []int64{1}}
	}
	state, _ := poll.Step(poll.State{}, limits, says(0, 5_000_000))
	state, r := poll.Step(state, limits, says(time.Second, 5_000_000))
	if r.Quality != meter.Good {
		t.Fatal(r.Reason)
	}
	for _, c := range []struct {
		name string
		now  time.Time
		wh   int64 // counted meanwhile
		want meter.Quality
	}{
		{"five hours", at.Add(5 * time.Hour), 12_000, meter.Good},
		{"a minute", at.Add(time.Minute), 12_000, meter.Suspect},
		{"no clock", time.Unix(3600, 0), 12_000, meter.Good},
		{"a clock that is an hour late", at.Add(-time.Hour), 12_000, meter.Good},
		{"no clock, and a wild register", time.Unix(3600, 0), 900_000_000, meter.Suspect},
	} {
		again := poll.Resume(state.Page, state.Registers, state.Pinned, awaySince(at, c.now))
		if _, r := poll.Step(again, limits, says(time.Second, 5_000_000+c.wh)); r.Quality != c.want {
			t.Errorf("%s: %s (%s)", c.name, r.Quality, r.Reason)
		}
	}
}
