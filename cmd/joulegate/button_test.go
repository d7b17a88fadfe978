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

// TestPressUnseen: a button that cannot be read for a moment has to be held
// for the whole time anew, and not to be let go.
func TestPressUnseen(t *testing.T) {
	var p press
	now := time.Unix(0, 0)
	p.see(false, now)
	hold := func(d time.Duration) (counted bool) {
		for end := now.Add(d); now.Before(end); {
			now = now.Add(buttonEach)
			counted = p.see(true, now) || counted
		}
		return counted
	}
	if hold(buttonHold - 2*buttonEach) {
		t.Error("counted too early")
	}
	p.unseen()
	if hold(buttonHold - 2*buttonEach) {
		t.Error("what was held before the button could not be read counts")
	}
	if !hold(4 * buttonEach) {
		t.Error("whoever holds on is not heard")
	}
	var q press
	q.unseen()
	p = q
	if hold(2 * buttonHold) {
		t.Error("a button that was held from the start counts")
	}
}
