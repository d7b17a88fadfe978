package main

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestPress: a hold counts once, when it has lasted, and never one that was
// there from the start.
func TestPress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p press
		now, held, fresh := time.Unix(0, 0), time.Duration(-1), false
		for i, active := range rapid.SliceOfN(rapid.Bool(), 1, 40).Draw(t, "looks") {
			for range rapid.IntRange(1, 100).Draw(t, "ticks") {
				now = now.Add(buttonEach)
				switch {
				case !active:
					held, fresh = -1, true
				case held < 0:
					held = 0
				default:
					held += buttonEach
				}
				want := active && fresh && held >= buttonHold
				if got := p.see(active, now); got != want {
					t.Fatalf("look %d: %t, want %t after %s", i, got, want, held)
				}
				if want {
					fresh = false
				}
			}
		}
	})
}
