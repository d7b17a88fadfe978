package warden

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/policy"
)

// hands writes down what is put on record and what is done, in order.
type hands struct {
	mu    sync.Mutex
	order []string
	fail  error
	panic bool
}

func (h *hands) note(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.order = append(h.order, s)
}

func (h *hands) did() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.order)
}

// waits returns what was done once it is n things.
func (h *hands) waits(t *testing.T, n int) []string {
	t.Helper()
	until(t, fmt.Sprintf("want %d things", n), func() bool { return len(h.did()) >= n })
	return h.did()
}

// enforcing is a warden of a gateway that has learned for seven days.
func enforcing(t *testing.T, store *memory, h *hands, modes map[string]guard.Mode, change func(*Config)) *kept {
	t.Helper()
	if store == nil {
		all := map[string]time.Duration{}
		for _, r := range guard.Rules {
			all[r.ID] = 7 * 24 * time.Hour
		}
		store = &memory{m: map[string][]byte{}}
		store.m[stateKey] = chain.Marshal(saved{Policy: policy.Saved{Learned: all, Modes: modes}})
	}
	return keepOn(t, store, "good", func(c *Config) {
		c.Modes = modes
		c.React = func(_ context.Context, r guard.Reaction) error {
			raw, _ := c.Store.Load(stateKey)
			var s saved
			if err := chain.Unmarshal(raw, &s); err != nil {
				t.Error(err)
			}
			kept := slices.ContainsFunc(s.Policy.Active, func(l policy.Lasting) bool { return l.Reaction.ID == r.ID })
			h.note(fmt.Sprintf("%s %s undo=%t why=%s kept=%t", r.Action, r.Subject.Value, r.Undo, r.Why, kept))
			if h.panic {
				panic("a hand slipped")
			}
			return h.fail
		}
		appended := c.Append
		c.Append = func(ctx context.Context, records []chain.Record) error {
			for _, r := range records {
				var g guard.Record
				if chain.Unmarshal(r.Body, &g) == nil && g.Rule == guard.GuardReaction && g.Severity > guard.Low { // a changed mode, which is low, has no place in the order
					h.note("record")
				}
			}
			return appended(ctx, records)
		}
		if change != nil {
			change(c)
		}
	})
}

var enforceARP = map[string]guard.Mode{guard.ARPSpoof: guard.Enforce}

// TestBypassIsRefusedAsItsRuleSays: after learning, while it enforces, and not
// once a person has released everything.
func TestBypassIsRefusedAsItsRuleSays(t *testing.T) {
	modes := map[string]guard.Mode{guard.DomainBypass: guard.Enforce}
	k := enforcing(t, nil, &hands{}, modes, nil)
	until(t, "it is not refused", k.bypass.Load)
	if err := k.ReleaseAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "it is refused although all was released", func() bool { return !k.bypass.Load() })
	if err := k.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "it is not refused again", k.bypass.Load)

	steps := []string{}
	for range 3 {
		f := k.tells(t, guard.GuardReaction)
		if f.Evidence["action"] == "refuse" {
			steps = append(steps, f.Evidence["step"])
		}
	}
	if want := []string{"begun", "undone", "begun"}; !slices.Equal(steps, want) {
		t.Errorf("on record is %v, want %v", steps, want)
	}

	// What cannot be put on record is not refused.
	mute := enforcing(t, nil, &hands{}, modes, func(c *Config) {
		c.Append = func(context.Context, []chain.Record) error { return errors.New("no disk") }
	})
	until(t, "it did not fail", func() bool {
		return slices.ContainsFunc(mute.Status().Findings, func(f guard.Finding) bool { return f.Evidence["failed"] != "" })
	})
	if mute.bypass.Load() {
		t.Error("it is refused without a record")
	}

	fresh := enforcing(t, &memory{m: map[string][]byte{}}, &hands{}, modes, nil) // has learned nothing
	fresh.tells(t, guard.ARPSpoof)
	if err := fresh.Resume(t.Context()); err != nil { // the loop has turned
		t.Fatal(err)
	}
	if fresh.bypass.Load() {
		t.Error("it is refused before it has learned")
	}
}

func TestAReactionIsOnRecordBeforeItIsDone(t *testing.T) {
	h := &hands{}
	k := enforcing(t, nil, h, enforceARP, nil)
	want := []string{"record", "block 192.0.2.7 undo=false why=found kept=true"}
	if got := h.waits(t, 2); !slices.Equal(got, want) {
		t.Fatalf("did %q, want %q", got, want)
	}
	until(t, "it is not shown", func() bool { s := k.Status(); return len(s.Reactions) == 1 && s.Reacted["block"] == 1 })
	r := k.Status().Reactions[0]
	if left := time.Until(r.Until); left < 59*time.Minute || left > time.Hour {
		t.Errorf("in force for %s", left)
	}
	if err := k.Release(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	want = append(want, "record", "block 192.0.2.7 undo=true why=released kept=false")
	if got := h.waits(t, 4); !slices.Equal(got, want) {
		t.Errorf("did %q, want %q", got, want)
	}
	if err := k.Release(t.Context(), r.ID); err == nil {
		t.Error("released twice")
	}
}

func TestARestartDoesAgainWhatWasInForce(t *testing.T) {
	h := &hands{}
	k := enforcing(t, nil, h, enforceARP, nil)
	h.waits(t, 2)
	k.end()
	again := &hands{}
	second := enforcing(t, k.store, again, enforceARP, nil)
	if got := again.waits(t, 1); got[0] != "block 192.0.2.7 undo=false why=restored kept=true" {
		t.Errorf("did %q", got)
	}
	// A configuration that enforces no more ends it, on record.
	second.end()
	off := &hands{}
	enforcing(t, k.store, off, nil, nil)
	if got := off.waits(t, 2); got[0] != "record" || got[1] != "block 192.0.2.7 undo=true why=mode kept=false" {
		t.Errorf("did %q", got)
	}
}

func TestWhatCannotBePutOnRecordIsNotDone(t *testing.T) {
	h := &hands{}
	k := enforcing(t, nil, h, enforceARP, func(c *Config) {
		c.Append = func(context.Context, []chain.Record) error { return errors.New("the disk is full") }
	})
	for f := k.tells(t, guard.GuardReaction); ; f = k.tells(t, guard.GuardReaction) {
		if f.Evidence["failed"] != "" {
			if !strings.Contains(f.Evidence["failed"], "the disk is full") {
				t.Errorf("told %v", f.Evidence)
			}
			break
		}
	}
	if got := h.did(); len(got) != 0 || len(k.Status().Reactions) != 0 {
		t.Errorf("did %q, in force %v", got, k.Status().Reactions)
	}
}

func TestAReactionThatFailsIsNotInForce(t *testing.T) {
	for _, h := range []*hands{{fail: errors.New("no such table")}, {panic: true}} {
		k := enforcing(t, nil, h, enforceARP, nil)
		until(t, "it is in force although it failed", func() bool { return len(h.did()) >= 3 && len(k.Status().Reactions) == 0 })
		if got := h.did(); got[0] != "record" || got[2] != "record" {
			t.Errorf("did %q, want the failure on record too", got)
		}
		if k.Status().Reacted["block"] != 0 {
			t.Error("a failure counts as done")
		}
	}
}

func TestAPersonIsAskedAndAnswers(t *testing.T) {
	h, asked := &hands{}, make(chan guard.Standing, 9)
	k := enforcing(t, nil, h, map[string]guard.Mode{guard.ARPSpoof: guard.Ask}, func(c *Config) {
		c.Asked = func(q guard.Standing) { asked <- q }
	})
	var q guard.Standing
	select {
	case q = <-asked:
	case <-time.After(60 * time.Second):
		t.Fatal("nobody is asked")
	}
	if q.Action != guard.Block || q.Subject.Value != "192.0.2.7" || time.Until(q.Until) < 11*time.Hour {
		t.Errorf("asked %+v", q)
	}
	if err := k.Answer(t.Context(), q.ID, true); err != nil {
		t.Fatal(err)
	}
	want := []string{"record", "record", "block 192.0.2.7 undo=false why=answered kept=true"}
	if got := h.waits(t, 3); !slices.Equal(got, want) {
		t.Errorf("did %q, want %q", got, want)
	}
	if err := k.ReleaseAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := h.waits(t, 5); got[4] != "block 192.0.2.7 undo=true why=released kept=false" {
		t.Errorf("did %q", got)
	}
	until(t, "not suspended", func() bool { return !k.Status().Suspended.IsZero() })
	if err := k.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "suspended still", func() bool { return k.Status().Suspended.IsZero() })
}

// A bug in the guard's own half must not end the process of the station.
func TestAPanicIsSurvived(t *testing.T) {
	k := keep(t, "good", func(c *Config) { c.Tell = func(guard.Finding) { panic("nobody expected this") } })
	until(t, "no coverage after a panic", func() bool { return k.level(guard.Packet) == "ring" })
	if err := k.Resume(t.Context()); err != nil {
		t.Error(err)
	}
}

// What was saved by the version before is read.
func TestStateOfBefore(t *testing.T) {
	type before struct {
		Policy struct {
			Learned map[string]time.Duration `json:"learned"`
			Modes   map[string]guard.Mode    `json:"modes"`
		} `cbor:"1,keyasint"`
		Next uint64 `cbor:"2,keyasint"`
	}
	var b before
	b.Policy.Learned = map[string]time.Duration{guard.ARPSpoof: time.Hour}
	b.Policy.Modes = map[string]guard.Mode{}
	b.Next = 7
	store := &memory{m: map[string][]byte{stateKey: chain.Marshal(b)}}
	k := keepOn(t, store, "good", nil)
	until(t, "what was learned is forgotten", func() bool {
		for _, r := range k.Status().Rules {
			if r.ID == guard.ARPSpoof {
				return r.Learned >= 3600
			}
		}
		return false
	})
}
