package domain

import (
	"strings"
	"sync"
	"time"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/policy"
)

// Limits of what is reported. A house asks for the same blocked names all day
// long, and whoever may ask can ask for as many as he likes.
const (
	maxNamed  = 64        // names of a rule that are told apart within tellAgain
	tellAgain = time.Hour // a name that goes on is reported again
)

// tally counts equal findings together before anybody hears of them.
type tally struct {
	report func(guard.Finding)
	now    func() time.Duration

	mu   sync.Mutex
	open map[string]*ruleTally
}

type ruleTally struct {
	names map[string]*sum
	since time.Duration // of the oldest name, at most
}

type sum struct {
	n     uint64 // not reported yet
	first time.Time
	told  time.Duration
}

func newTally(report func(guard.Finding), now func() time.Duration) *tally {
	return &tally{report: report, now: now, open: map[string]*ruleTally{}}
}

// find counts. Evidence is asked for only when it is reported, and the name is
// kept only as a copy.
func (t *tally) find(rule string, severity guard.Severity, name string, evidence func() map[string]string) {
	now := t.now()
	t.mu.Lock()
	r := t.open[rule]
	if r == nil {
		r = &ruleTally{names: map[string]*sum{}, since: now}
		t.open[rule] = r
	}
	c := r.names[name]
	if c == nil && len(r.names) >= maxNamed {
		if now-r.since >= tellAgain {
			r.forget(now)
		}
		if len(r.names) >= maxNamed {
			name = policy.Others
			c = r.names[name] // one more than maxNamed
		}
	}
	if c == nil {
		c = &sum{told: now - tellAgain}
		r.names[strings.Clone(name)] = c
	}
	c.n++
	if c.n == 1 {
		c.first = time.Now()
	}
	if now-c.told < tellAgain {
		t.mu.Unlock()
		return
	}
	f := guard.Finding{Rule: rule, Severity: severity, Subject: guard.Subject{Kind: guard.Name, Value: strings.Clone(name)}, Count: c.n, First: c.first, Last: time.Now(), Evidence: map[string]string{}}
	c.n, c.told = 0, now
	t.mu.Unlock()
	if name != policy.Others {
		f.Evidence = evidence()
	}
	t.report(f)
}

// forget drops the names that were reported long ago. What they counted since
// is less than one report.
func (r *ruleTally) forget(now time.Duration) {
	r.since = now
	for name, c := range r.names {
		if now-c.told >= tellAgain {
			delete(r.names, name)
		} else {
			r.since = min(r.since, c.told)
		}
	}
}
