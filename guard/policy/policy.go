// Package policy decides what becomes of a finding: whether it is told, and
// whether anything is done about it. It is pure: time comes as a value.
//
//	            ┌──────────── coalesce ────────────┐
//	finding ───►│ first at once, then at most once │──► Tell{finding}
//	            │ per window, with the count       │
//	            └──────────────┬───────────────────┘
//	                           ▼
//	         mode of the rule: observe ─ ask ─ enforce
//	                           ▼
//	    never list ─ rate limit ─ two local sources for a stop ──► Do{reaction}
//	                                                         expiry ──► Do{undo}
//
// # Learning
//
// Every rule observes first. It can be enforced after it has observed for
// [Config].Learn, counted while the guard ran, so that a wrong clock cannot
// shorten it. Enforcing is by commit-confirm: a rule that is switched on goes
// back to what it was unless it is confirmed in time, so that whoever locks
// himself out is let in again.
//
// # What cannot be misused
//
// Whoever can send packets can make the guard find things. Therefore no
// finding about packets or names ever stops charging: that takes two findings
// of different sensors that look at this device itself, within
// [StopWindow], and happens at most once per [StopPause]. Hosts and programs
// on the never list are not blocked or killed by anything.
package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Limits.
const (
	MaxOpen      = 1024 // findings being coalesced; beyond it, further subjects of a rule are counted together
	MaxReactions = 256  // in force at a time; beyond it findings are only told
	MaxPerHour   = 60   // reactions begun
	MaxNever     = 256  // entries of the never list
	MaxRules     = 1024 // rules with a mode of their own or being learned

	StopWindow = 10 * time.Minute // two local sources must agree within
	StopPause  = time.Hour        // between two stops of charging
)

// Others is the value of the subject under which a rule's findings are
// counted once the table is full.
const Others = "others"

// Config is what the policy is made of. The zero value of a field is its
// default.
type Config struct {
	Window  time.Duration   // a finding that goes on is told again at most so often; 1 h
	Learn   time.Duration   // a rule observes so long before it may be enforced; 7 days
	Confirm time.Duration   // a change of mode must be confirmed within; 5 min
	For     time.Duration   // a block lasts so long; 1 h
	Never   []guard.Subject // never blocked, killed or quarantined: charger, inverter, broker, neighbours, and of programs the agent, init, network, broker, sshd
}

func (c *Config) defaults() error {
	c.Window = or(c.Window, time.Hour)
	c.Learn = or(c.Learn, 7*24*time.Hour)
	c.Confirm = or(c.Confirm, 5*time.Minute)
	c.For = or(c.For, time.Hour)
	if len(c.Never) > MaxNever {
		return fmt.Errorf("never list of %d entries, at most %d", len(c.Never), MaxNever)
	}
	return nil
}

func or(v, def time.Duration) time.Duration {
	if v == 0 {
		return def
	}
	return v
}

// Output is what has to be done with what a step decided.
type Output struct {
	Tell []guard.Finding  // to the journal, and as Records to the ledger
	Do   []guard.Reaction // in order
}

// Saved is what survives a restart.
type Saved struct {
	Learned map[string]time.Duration `json:"learned"` // by rule, while the guard ran
	Modes   map[string]guard.Mode    `json:"modes"`   // confirmed ones other than observe
}

// Policy is the state. It is not safe for concurrent use.
type Policy struct {
	c       Config
	now     time.Duration
	started bool
	open    map[key]*window
	order   []key // of open, oldest first
	learned map[string]time.Duration
	modes   map[string]guard.Mode
	pending map[string]change
	active  []active // reactions in force, by expiry
	begun   []time.Duration
	local   []source // one per sensor
	stopped time.Duration
	stopSet bool
}

type key struct {
	rule    string
	subject guard.Subject
}

type window struct {
	finding guard.Finding // what has not been told
	since   time.Duration // when it was told last
}

type change struct {
	was   guard.Mode
	until time.Duration
}

type active struct {
	guard.Reaction
	until time.Duration
}

// source is the newest grave finding of a local sensor.
type source struct {
	sensor guard.Sensor
	at     time.Duration
	rule   string // that asks for a stop; empty: none does
}

// New returns a policy that goes on from what was saved.
func New(c Config, saved Saved) (*Policy, error) {
	if err := c.defaults(); err != nil {
		return nil, err
	}
	p := &Policy{c: c, open: map[key]*window{}, learned: map[string]time.Duration{}, modes: map[string]guard.Mode{}, pending: map[string]change{}}
	for rule, d := range saved.Learned {
		if _, ok := guard.RuleOf(rule); ok && d > 0 && len(p.learned) < MaxRules {
			p.learned[rule] = d
		}
	}
	for rule, m := range saved.Modes {
		if _, ok := guard.RuleOf(rule); ok && (m == guard.Ask || m == guard.Enforce) && len(p.modes) < MaxRules {
			p.modes[rule] = m
		}
	}
	return p, nil
}

// Save returns what has to survive a restart. A change of mode that is not
// confirmed does not.
func (p *Policy) Save() Saved {
	s := Saved{Learned: maps.Clone(p.learned), Modes: maps.Clone(p.modes)}
	for rule, c := range p.pending {
		set(s.Modes, rule, c.was)
	}
	return s
}

func set(modes map[string]guard.Mode, rule string, m guard.Mode) {
	if m == guard.Observe {
		delete(modes, rule)
		return
	}
	modes[rule] = m
}

// Mode returns a rule's mode.
func (p *Policy) Mode(rule string) guard.Mode {
	if m, ok := p.modes[rule]; ok {
		return m
	}
	return guard.Observe
}

// Learned returns how long a rule has observed.
func (p *Policy) Learned(rule string) time.Duration { return p.learned[rule] }

// Reactions returns what is in force, soonest to expire first.
func (p *Policy) Reactions() []guard.Reaction {
	all := make([]guard.Reaction, len(p.active))
	for i, a := range p.active {
		all[i] = a.Reaction
		all[i].For = a.until - p.now
	}
	return all
}

// SetMode changes a rule's mode. Enforcing needs learning to be over and
// takes effect at once, for Config.Confirm; then it is taken back unless
// Confirm was called. Other modes need no confirmation.
func (p *Policy) SetMode(rule string, m guard.Mode) error {
	r, ok := guard.RuleOf(rule)
	switch {
	case !ok:
		return fmt.Errorf("unknown rule %q: 'joulegate guard status' lists them", rule)
	case m < guard.Observe || m > guard.Enforce:
		return fmt.Errorf("rule %s: unknown mode %d", rule, m)
	case len(p.modes) >= MaxRules && p.Mode(rule) == guard.Observe:
		return fmt.Errorf("rule %s: %d rules have a mode of their own, at most %d", rule, len(p.modes), MaxRules)
	}
	if m != guard.Enforce {
		delete(p.pending, rule)
		set(p.modes, rule, m)
		return nil
	}
	if r.Action == guard.Nothing {
		return fmt.Errorf("rule %s is only ever observed: there is nothing to enforce", rule)
	}
	if left := p.c.Learn - p.learned[rule]; left > 0 {
		return fmt.Errorf("rule %s has observed for %s; it can be enforced in %s", rule, p.learned[rule].Round(time.Minute), left.Round(time.Minute))
	}
	if p.Mode(rule) == guard.Enforce {
		return nil
	}
	p.pending[rule] = change{p.Mode(rule), p.now + p.c.Confirm}
	p.modes[rule] = guard.Enforce
	return nil
}

// Confirm keeps a rule's new mode.
func (p *Policy) Confirm(rule string) error {
	if _, ok := p.pending[rule]; !ok {
		return fmt.Errorf("rule %s: no change waits for confirmation", rule)
	}
	delete(p.pending, rule)
	return nil
}

// Release undoes every reaction in force and sets every rule that enforces
// to observe.
func (p *Policy) Release() Output {
	var out Output
	for _, a := range p.active {
		out.Do = append(out.Do, undo(a))
	}
	p.active = nil
	p.pending = map[string]change{}
	maps.DeleteFunc(p.modes, func(_ string, m guard.Mode) bool { return m == guard.Enforce })
	return out
}

func undo(a active) guard.Reaction {
	r := a.Reaction
	r.Undo, r.For = true, 0
	return r
}

// Tick is the passing of time up to now, which must not decrease.
func (p *Policy) Tick(now time.Duration, rules []string) Output {
	var out Output
	p.advance(now, rules)
	for rule, c := range p.pending {
		if now >= c.until {
			set(p.modes, rule, c.was)
			delete(p.pending, rule)
		}
	}
	for len(p.active) > 0 && now >= p.active[0].until {
		out.Do = append(out.Do, undo(p.active[0]))
		p.active = p.active[1:]
	}
	// Oldest first: a window that has ended tells what it counted, or goes.
	keep := p.order[:0]
	for _, k := range p.order {
		w := p.open[k]
		switch {
		case now-w.since < p.c.Window:
			keep = append(keep, k)
		case w.finding.Count > 0:
			out.Tell = append(out.Tell, w.finding)
			w.finding.Count, w.since = 0, now
			keep = append(keep, k)
		default:
			delete(p.open, k)
		}
	}
	p.order = keep
	return out
}

// advance counts the learning of the rules whose sensors see something.
func (p *Policy) advance(now time.Duration, rules []string) {
	if now < p.now && p.started {
		panic(fmt.Sprintf("policy: time went from %s back to %s", p.now, now))
	}
	if p.started {
		for _, rule := range rules {
			if d, ok := p.learned[rule]; ok || len(p.learned) < MaxRules {
				p.learned[rule] = min(d+now-p.now, p.c.Learn)
			}
		}
	}
	p.now, p.started = now, true
}

// Find takes a finding at time now. The severity that counts is the
// finding's.
func (p *Policy) Find(f guard.Finding, now time.Duration) Output {
	p.advance(now, nil)
	f.Cut()
	f.Count = max(f.Count, 1)
	var out Output
	k := key{f.Rule, f.Subject}
	w, ok := p.open[k]
	if !ok && len(p.open) >= MaxOpen {
		f.Subject = guard.Subject{Kind: f.Subject.Kind, Value: Others}
		f.Evidence = map[string]string{}
		k.subject = f.Subject
		w, ok = p.open[k]
	}
	switch {
	case !ok:
		p.open[k] = &window{since: now, finding: guard.Finding{Rule: f.Rule}}
		p.order = append(p.order, k)
		out.Tell = append(out.Tell, f)
	case w.finding.Count == 0:
		w.finding = f
	default:
		w.finding.Count += f.Count
		w.finding.Last = f.Last
		w.finding.Severity = max(w.finding.Severity, f.Severity)
	}
	if r, ok := p.react(f); ok {
		out.Do = append(out.Do, r)
	}
	if r, ok := p.stop(f); ok {
		out.Do = append(out.Do, r)
	}
	return out
}

// react decides what is done about a finding.
func (p *Policy) react(f guard.Finding) (guard.Reaction, bool) {
	rule, ok := guard.RuleOf(f.Rule)
	r := guard.Reaction{Action: rule.Action, Subject: f.Subject, Rule: f.Rule}
	mode := p.Mode(f.Rule)
	if !ok || mode == guard.Observe || r.Action == guard.Nothing || f.Subject.Value == Others || p.never(f) {
		return r, false
	}
	switch r.Action {
	case guard.SafeStop: // see stop
		return r, false
	case guard.Kill:
		if f.Subject.Kind != guard.PID {
			return r, false
		}
	default:
		r.For = p.c.For
	}
	if p.inForce(r) || !p.mayBegin(r) {
		return r, false
	}
	if r.Ask = mode == guard.Ask; !r.Ask && r.For > 0 {
		a := active{r, p.now + r.For}
		i, _ := slices.BinarySearchFunc(p.active, a, func(x, y active) int { return cmp.Compare(x.until, y.until) })
		p.active = slices.Insert(p.active, i, a)
	}
	return r, true
}

// never tells whether the subject is on the never list. A process is known
// by the program that its finding names.
func (p *Policy) never(f guard.Finding) bool {
	return slices.ContainsFunc(p.c.Never, func(s guard.Subject) bool {
		switch s.Kind {
		case f.Subject.Kind:
			return strings.EqualFold(s.Value, f.Subject.Value)
		case guard.Program:
			return f.Subject.Kind == guard.PID && s.Value == f.Evidence["image"]
		}
		return false
	})
}

func (p *Policy) inForce(r guard.Reaction) bool {
	return slices.ContainsFunc(p.active, func(a active) bool { return a.Action == r.Action && a.Subject == r.Subject })
}

// mayBegin keeps to the limits of what is begun and of what is in force.
func (p *Policy) mayBegin(r guard.Reaction) bool {
	p.begun = slices.DeleteFunc(p.begun, func(at time.Duration) bool { return p.now-at >= time.Hour })
	if len(p.begun) >= MaxPerHour || r.For > 0 && len(p.active) >= MaxReactions {
		return false
	}
	p.begun = append(p.begun, p.now)
	return true
}

// stop decides whether charging ends: a rule asks for it, and another sensor
// of this device found something grave too.
func (p *Policy) stop(f guard.Finding) (guard.Reaction, bool) {
	rule, ok := guard.RuleOf(f.Rule)
	if !ok || !rule.Sensor.Local() || f.Severity < guard.High {
		return guard.Reaction{}, false
	}
	s := source{sensor: rule.Sensor, at: p.now}
	if rule.Action == guard.SafeStop && p.Mode(f.Rule) != guard.Observe {
		s.rule = f.Rule
	}
	p.local = slices.DeleteFunc(p.local, func(was source) bool {
		if was.sensor == s.sensor && p.now-was.at <= StopWindow && s.rule == "" {
			s.rule = was.rule
		}
		return was.sensor == s.sensor || p.now-was.at > StopWindow
	})
	p.local = append(p.local, s)
	i := slices.IndexFunc(p.local, func(s source) bool { return s.rule != "" })
	if len(p.local) < 2 || i < 0 || p.stopSet && p.now-p.stopped < StopPause {
		return guard.Reaction{}, false
	}
	p.stopped, p.stopSet = p.now, true
	asks := p.local[i].rule
	return guard.Reaction{Action: guard.SafeStop, Subject: guard.Subject{Kind: guard.Machine}, Rule: asks, Ask: p.Mode(asks) == guard.Ask}, true
}
