// Package policy decides what becomes of a finding: whether it is told, and
// whether anything is done about it. It is pure: time comes as a value.
//
//	            ┌──────────── coalesce ────────────┐
//	finding ───►│ first at once, then at most once │──► Tell{finding}
//	            │ per window, with the count       │
//	            └──────────────┬───────────────────┘
//	                           ▼
//	         mode of the rule: observe ─ ask ─ enforce
//	                           ▼            │
//	    never list ─ released by a person ─ limits ─ two local sources for a stop
//	                           ▼
//	     Do{question} ──Answer──► Do{reaction} ──expiry, Release──► Do{undo}
//
// # Learning
//
// Every rule observes first. It is enforced after it has observed for
// [Config].Learn, counted while its sensor saw something, so that a wrong
// clock cannot shorten it: until then a rule that the configuration wants
// enforced observes. Commit-confirm is the configuration's own: whoever locks
// himself out is let in again because the change was not confirmed.
//
// # What cannot be misused
//
// Whoever can send packets can make the guard find things. Therefore no
// finding about packets or names ever stops charging: that takes two findings
// of different sensors that look at this device itself, within
// [StopWindow], and happens at most once per [StopPause], also across
// restarts. What is on the never list, what a person has released, and what
// is no single address of somebody else is not touched by anything.
package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Limits.
const (
	MaxOpen      = 1024 // findings being coalesced; beyond it, further subjects of a rule are counted together
	MaxReactions = 256  // in force at a time; beyond it findings are only told
	MaxPerMinute = 6    // reactions and questions begun about others, and as many about this device: a flood of packets leaves room for what happens here
	MaxPerHour   = 60   //
	MaxQuestions = 32   // waiting, at most half of them about others; beyond it findings are only told
	MaxReleased  = 256  // subjects that a person has released; then the one that ends first goes
	MaxNever     = 1024 // entries of the never list
	MaxRules     = 1024 // rules with a mode of their own or being learned

	StopWindow = 10 * time.Minute // two local sources must agree within
	StopPause  = time.Hour        // between two stops of charging
	RefuseFor  = 24 * time.Hour   // a refusal lasts so long; one of a rule that enforces is renewed, on record
)

// Why a reaction is begun or ended.
const (
	Found      = "found"      // begun: a finding of an enforced rule
	Answered   = "answered"   // begun: a person said yes
	Restored   = "restored"   // begun again: it was in force when the gateway ended
	Renewed    = "renewed"    // goes on: its rule enforces still
	Expired    = "expired"    // ended: its time is over
	Released   = "released"   // ended: by a person
	NotWanted  = "mode"       // ended: the rule does not enforce any more
	Declined   = "declined"   // a question ended: a person said no
	Unanswered = "unanswered" // a question ended: nobody answered
)

// Why a reaction was not begun, for [Policy.Spared].
const (
	SparedNever     = "never_list"
	SparedReleased  = "released"
	SparedRate      = "rate"
	SparedFull      = "full"
	SparedSuspended = "suspended"
)

// refuseAgain is how long a refusal that failed is not tried again.
const refuseAgain = 10 * time.Minute

// maxElapsed bounds what a clock may claim to have passed.
const maxElapsed = 10 * 365 * 24 * time.Hour

// Others is the value of the subject under which a rule's findings are
// counted once the table is full.
const Others = "others"

// Config is what the policy is made of. The zero value of a field is its
// default.
type Config struct {
	Window time.Duration         // a finding that goes on is told again at most so often; 1 h
	Learn  time.Duration         // a rule observes so long before it is enforced; 7 days
	For    time.Duration         // a block lasts so long; 1 h
	AskFor time.Duration         // a question waits so long; 12 h
	Pause  time.Duration         // what a person released is left alone so long; 24 h
	Modes  map[string]guard.Mode // of the configuration, by rule; others observe
}

func (c *Config) defaults() error {
	c.Window = or(c.Window, time.Hour)
	c.Learn = or(c.Learn, 7*24*time.Hour)
	c.For = or(c.For, time.Hour)
	c.AskFor = or(c.AskFor, 12*time.Hour)
	c.Pause = or(c.Pause, 24*time.Hour)
	if len(c.Modes) > MaxRules {
		return fmt.Errorf("%d rules have a mode of their own, at most %d", len(c.Modes), MaxRules)
	}
	for rule, m := range c.Modes {
		if err := CheckMode(rule, m); err != nil {
			return err
		}
	}
	return nil
}

// CheckMode says why a rule cannot have that mode.
func CheckMode(rule string, m guard.Mode) error {
	r, ok := guard.RuleOf(rule)
	switch {
	case !ok:
		return fmt.Errorf("unknown rule %q: 'joulegate guard status' lists them", rule)
	case m < guard.Observe || m > guard.Enforce:
		return fmt.Errorf("rule %s: unknown mode %d", rule, m)
	case m != guard.Observe && r.Action == guard.Nothing:
		return fmt.Errorf("rule %s is only ever observed: there is nothing to do about it", rule)
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
	Do   []guard.Reaction // in order; questions, and what ends, among them
}

// Never is what nothing is done about.
type Never struct {
	Subjects []guard.Subject // charger, inverter, broker, neighbours; of programs the agent, init, network, broker, sshd
	Nets     []netip.Prefix  // addresses
	// Quarantined is how many neighbours may be shut out at a time: less than
	// a third of those who vote, else the ledger stands still.
	Quarantined int
}

// Saved is what survives a restart. Durations count from when it was saved.
type Saved struct {
	Learned   map[string]time.Duration `json:"learned"` // by rule, while the guard ran
	Modes     map[string]guard.Mode    `json:"modes"`   // of the configuration then
	Next      uint64                   `json:"next,omitempty"`
	Active    []Lasting                `json:"active,omitempty"`
	Questions []Lasting                `json:"questions,omitempty"`
	Released  []Lasting                `json:"released,omitempty"`
	Begun     []time.Duration          `json:"begun,omitempty"`      // ago; about others
	BegunHere []time.Duration          `json:"begun_here,omitempty"` // about this device
	Stopped   time.Duration            `json:"stopped,omitempty"`    // ago, plus one; 0: never
	Suspended time.Duration            `json:"suspended,omitempty"`  // still
}

// Lasting is a reaction, and how long it goes on.
type Lasting struct {
	Reaction guard.Reaction `json:"reaction"`
	Left     time.Duration  `json:"left"`
	Age      time.Duration  `json:"age"`
}

// Policy is the state. It is not safe for concurrent use.
type Policy struct {
	c         Config
	never     Never
	now       time.Duration
	started   bool
	open      map[key]*window
	order     []key // of open, oldest first
	learned   map[string]time.Duration
	next      uint64             // number of the newest reaction
	active    []active           // reactions in force, by expiry
	questions []active           // by expiry
	released  []active           // subjects left alone, by expiry
	begun     [2][]time.Duration // about others, about this device
	local     []source           // one per sensor
	stopped   time.Duration
	stopSet   bool
	suspended time.Duration // nothing is begun before
	failed    time.Duration // a refusal is not begun again before
	spared    map[string]uint64
}

type key struct {
	rule    string
	subject guard.Subject
}

type window struct {
	finding guard.Finding // what has not been told
	since   time.Duration // when it was told last
}

type active struct {
	guard.Reaction
	since, until time.Duration
}

// insert keeps the order of expiry.
func insert(all []active, a active) []active {
	i, _ := slices.BinarySearchFunc(all, a, func(x, y active) int { return cmp.Compare(x.until, y.until) })
	return slices.Insert(all, i, a)
}

// source is the newest grave finding of a local sensor.
type source struct {
	sensor guard.Sensor
	at     time.Duration
	rule   string // that asks for a stop; empty: none does
}

// New returns a policy that goes on from what was saved, elapsed ago. The
// output begins again what is still in force, and tells which modes have
// changed.
func New(c Config, saved Saved, elapsed time.Duration) (*Policy, Output, error) {
	var out Output
	if err := c.defaults(); err != nil {
		return nil, out, err
	}
	elapsed = min(max(0, elapsed), maxElapsed) // the clock was set meanwhile
	p := &Policy{c: c, open: map[key]*window{}, learned: map[string]time.Duration{}, next: saved.Next, spared: map[string]uint64{}}
	for rule, d := range saved.Learned {
		if _, ok := guard.RuleOf(rule); ok && d > 0 && len(p.learned) < MaxRules {
			p.learned[rule] = min(d, c.Learn)
		}
	}
	for i, all := range [][]time.Duration{saved.Begun, saved.BegunHere} {
		for _, ago := range all[:min(len(all), MaxPerHour)] {
			p.begun[i] = append(p.begun[i], -min(max(0, ago), maxElapsed)-elapsed)
		}
	}
	if saved.Stopped > 0 {
		p.stopped, p.stopSet = -min(saved.Stopped-1, maxElapsed)-elapsed, true
	}
	p.suspended = min(saved.Suspended, p.c.Pause) - elapsed
	lasting := func(all []Lasting, limit int) (left []active) {
		for _, l := range all[:min(len(all), limit)] {
			left = insert(left, active{l.Reaction, -min(max(0, l.Age), maxElapsed) - elapsed, min(l.Left, maxElapsed) - elapsed})
			p.next = max(p.next, l.Reaction.ID)
		}
		return left
	}
	p.released = lasting(saved.Released, MaxReleased)
	p.questions = lasting(saved.Questions, MaxQuestions)
	for _, a := range lasting(saved.Active, MaxReactions) {
		switch {
		case a.until <= 0:
			out.Do = append(out.Do, ended(a, Expired))
		case a.Why != Answered && p.Mode(a.Rule) != guard.Enforce:
			out.Do = append(out.Do, ended(a, NotWanted))
		default:
			p.active = append(p.active, a)
			again := a.Reaction
			again.Why, again.For = Restored, a.until
			out.Do = append(out.Do, again)
		}
	}
	for _, rule := range slices.Sorted(maps.Keys(merged(c.Modes, saved.Modes))) {
		if was, is := modeOf(saved.Modes, rule), modeOf(c.Modes, rule); was != is {
			out.Tell = append(out.Tell, guard.Finding{
				Rule: guard.GuardReaction, Severity: guard.Low, Subject: guard.Subject{Kind: guard.Machine}, Count: 1,
				Evidence: map[string]string{"rule": rule, "mode": is.String(), "was": was.String()},
			})
		}
	}
	return p, out, nil
}

func merged(a, b map[string]guard.Mode) map[string]guard.Mode {
	m := maps.Clone(a)
	if m == nil {
		m = map[string]guard.Mode{}
	}
	maps.Copy(m, b)
	return m
}

func modeOf(modes map[string]guard.Mode, rule string) guard.Mode {
	if m, ok := modes[rule]; ok {
		return m
	}
	return guard.Observe
}

// Save returns what has to survive a restart.
func (p *Policy) Save() Saved {
	s := Saved{Learned: maps.Clone(p.learned), Modes: merged(nil, p.c.Modes), Next: p.next, Suspended: max(0, p.suspended-p.now)}
	lasting := func(all []active) (out []Lasting) {
		for _, a := range all {
			out = append(out, Lasting{a.Reaction, a.until - p.now, p.now - a.since})
		}
		return out
	}
	s.Active, s.Questions, s.Released = lasting(p.active), lasting(p.questions), lasting(p.released)
	for _, at := range p.begun[0] {
		s.Begun = append(s.Begun, p.now-at)
	}
	for _, at := range p.begun[1] {
		s.BegunHere = append(s.BegunHere, p.now-at)
	}
	if p.stopSet {
		s.Stopped = p.now - p.stopped + 1
	}
	return s
}

// Mode returns what a rule's mode amounts to now: one that is to be enforced
// observes until it has learned.
func (p *Policy) Mode(rule string) guard.Mode {
	m := modeOf(p.c.Modes, rule)
	if m == guard.Enforce && p.Left(rule) > 0 {
		return guard.Observe
	}
	return m
}

// Wanted returns a rule's mode of the configuration.
func (p *Policy) Wanted(rule string) guard.Mode { return modeOf(p.c.Modes, rule) }

// Learned returns how long a rule has observed.
func (p *Policy) Learned(rule string) time.Duration { return p.learned[rule] }

// Left returns how long a rule has to observe before it may be enforced.
func (p *Policy) Left(rule string) time.Duration { return max(0, p.c.Learn-p.learned[rule]) }

// MayEnforce says why a rule cannot be enforced yet.
func (p *Policy) MayEnforce(rule string) error {
	if err := CheckMode(rule, guard.Enforce); err != nil {
		return err
	}
	if left := p.Left(rule); left > 0 {
		return fmt.Errorf("rule %s has observed for %s; it can be enforced in %s", rule, p.learned[rule].Round(time.Minute), left.Round(time.Minute))
	}
	return nil
}

// Standing is what is in force or asked, and since when and until when on the
// clock of Tick.
type Standing struct {
	guard.Reaction
	Since, Until time.Duration
}

// Reactions returns what is in force, soonest to expire first.
func (p *Policy) Reactions() []Standing { return standing(p.active) }

// Questions returns what waits for an answer.
func (p *Policy) Questions() []Standing { return standing(p.questions) }

func standing(all []active) []Standing {
	out := make([]Standing, len(all))
	for i, a := range all {
		out[i] = Standing{a.Reaction, a.since, a.until}
	}
	return out
}

// Suspended returns for how long nothing is begun.
func (p *Policy) Suspended() time.Duration { return max(0, p.suspended-p.now) }

// Spared counts reactions that were not begun, by reason.
func (p *Policy) Spared() map[string]uint64 { return maps.Clone(p.spared) }

// SetNever replaces the never list. What is in force against its entries is
// undone. Beyond MaxNever entries nothing is begun at all.
func (p *Policy) SetNever(n Never) Output {
	p.never = n
	var out Output
	p.active = slices.DeleteFunc(p.active, func(a active) bool {
		if !p.isNever(a.Reaction) {
			return false
		}
		out.Do = append(out.Do, ended(a, Released))
		return true
	})
	p.questions = slices.DeleteFunc(p.questions, func(a active) bool { return p.isNever(a.Reaction) })
	return out
}

// Answer is a person's word about a question.
func (p *Policy) Answer(id uint64, yes bool) (Output, error) {
	var out Output
	i := slices.IndexFunc(p.questions, func(a active) bool { return a.ID == id })
	if i < 0 {
		return out, fmt.Errorf("no question %d waits for an answer", id)
	}
	q := p.questions[i]
	if !yes {
		p.questions = slices.Delete(p.questions, i, i+1)
		p.spare(q.Reaction)
		out.Do = append(out.Do, ended(q, Declined))
		return out, nil
	}
	r := q.Reaction
	r.Ask, r.Why, r.For = false, Answered, p.lasts(r.Action)
	if r.Action == guard.SafeStop {
		if p.stopSet && p.now-p.stopped < StopPause {
			return out, fmt.Errorf("charging was stopped %s ago; at most once in %s", (p.now - p.stopped).Round(time.Minute), StopPause)
		}
		p.stopped, p.stopSet = p.now, true
	}
	if r.For > 0 && len(p.active) >= MaxReactions || r.Action == guard.Quarantine && p.quarantined() >= p.never.Quarantined {
		return out, fmt.Errorf("no more of it: %d reactions are in force, release one first", len(p.active))
	}
	p.questions = slices.Delete(p.questions, i, i+1)
	p.hold(r)
	out.Do = append(out.Do, r)
	return out, nil
}

// Release undoes one reaction, and leaves its subject alone for Config.Pause.
func (p *Policy) Release(id uint64) (Output, error) {
	i := slices.IndexFunc(p.active, func(a active) bool { return a.ID == id })
	if i < 0 {
		return Output{}, fmt.Errorf("no reaction %d is in force", id)
	}
	a := p.active[i]
	p.active = slices.Delete(p.active, i, i+1)
	p.spare(a.Reaction)
	return Output{Do: []guard.Reaction{ended(a, Released)}}, nil
}

// ReleaseAll undoes every reaction in force, drops every question, and begins
// nothing for Config.Pause.
func (p *Policy) ReleaseAll() Output {
	var out Output
	for _, a := range p.active {
		out.Do = append(out.Do, ended(a, Released))
	}
	for _, q := range p.questions {
		out.Do = append(out.Do, ended(q, Declined))
	}
	p.active, p.questions = nil, nil
	p.suspended = p.now + p.c.Pause
	return out
}

// Resume ends the pause that ReleaseAll began, and forgets who was released.
func (p *Policy) Resume() { p.suspended, p.failed, p.released = p.now, p.now, nil }

// Failed takes back a reaction that could not be done.
func (p *Policy) Failed(id uint64) {
	p.active = slices.DeleteFunc(p.active, func(a active) bool {
		if a.ID == id && a.Action == guard.Refuse {
			p.failed = p.now + refuseAgain
		}
		return a.ID == id
	})
}

// spare leaves a subject alone for a while.
func (p *Policy) spare(r guard.Reaction) {
	if len(p.released) >= MaxReleased {
		p.released = p.released[1:]
	}
	p.released = insert(p.released, active{r, p.now, p.now + p.c.Pause})
}

func ended(a active, why string) guard.Reaction {
	r := a.Reaction
	r.Undo, r.For, r.Why = true, 0, why
	return r
}

// Tick is the passing of time up to now, which must not decrease.
func (p *Policy) Tick(now time.Duration, rules []string) Output {
	var out Output
	p.advance(now, rules)
	for len(p.active) > 0 && now >= p.active[0].until {
		a := p.active[0]
		p.active = p.active[1:]
		if a.Action == guard.Refuse && p.Mode(a.Rule) == guard.Enforce {
			a.Why, a.For = Renewed, RefuseFor
			p.active = insert(p.active, active{a.Reaction, a.since, now + a.For})
			out.Do = append(out.Do, a.Reaction)
			continue
		}
		out.Do = append(out.Do, ended(a, Expired))
	}
	for len(p.questions) > 0 && now >= p.questions[0].until {
		out.Do = append(out.Do, ended(p.questions[0], Unanswered))
		p.questions = p.questions[1:]
	}
	for len(p.released) > 0 && now >= p.released[0].until {
		p.released = p.released[1:]
	}
	if r, ok := p.refuse(); ok {
		out.Do = append(out.Do, r)
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

// refuse begins what needs no finding: a name server that can be gone past
// until somebody does is none. It is the only reaction of its kind, so that
// no flood of others uses its limits up.
func (p *Policy) refuse() (guard.Reaction, bool) {
	r := guard.Reaction{Action: guard.Refuse, Subject: guard.Subject{Kind: guard.Machine}, Rule: guard.DomainBypass, Why: Found, For: RefuseFor}
	same := func(a active) bool { return a.Action == r.Action }
	if p.Mode(r.Rule) != guard.Enforce || max(p.suspended, p.failed) > p.now || slices.ContainsFunc(p.active, same) || slices.ContainsFunc(p.released, same) || len(p.active) >= MaxReactions || p.isNever(r) {
		return r, false
	}
	p.next++
	r.ID = p.next
	p.questions = slices.DeleteFunc(p.questions, same)
	p.hold(r)
	return r, true
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
	if r, ok := p.react(f); ok { // also about one of too many subjects
		out.Do = append(out.Do, r)
	}
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
	if r, ok := p.stop(f); ok {
		out.Do = append(out.Do, r)
	}
	return out
}

// subjects are what an action can be about.
var subjects = map[guard.Action]guard.Kind{guard.Block: guard.Host, guard.Kill: guard.PID, guard.Quarantine: guard.Peer, guard.SafeStop: guard.Machine, guard.Refuse: guard.Machine}

// react decides what is done about a finding.
func (p *Policy) react(f guard.Finding) (guard.Reaction, bool) {
	rule, ok := guard.RuleOf(f.Rule)
	r := guard.Reaction{Action: rule.Action, Subject: f.Subject, Rule: f.Rule, Why: Found}
	mode := p.Mode(f.Rule)
	if !ok || mode == guard.Observe || r.Action == guard.Nothing || r.Action == guard.SafeStop || r.Action == guard.Refuse && mode == guard.Enforce || f.Subject.Kind != subjects[r.Action] {
		return r, false
	}
	if r.Action == guard.Kill {
		r.Image, r.SHA256 = f.Evidence["image"], f.Evidence["sha256"]
	}
	return p.begin(r, mode)
}

// begin numbers a reaction, or asks about it, if nothing speaks against it.
func (p *Policy) begin(r guard.Reaction, mode guard.Mode) (guard.Reaction, bool) {
	same := func(a active) bool { return a.Action == r.Action && a.Subject == r.Subject }
	ask := mode == guard.Ask
	begun, most := &p.begun[0], MaxQuestions/2
	if r.Action == guard.Kill || r.Action == guard.SafeStop || r.Action == guard.Refuse {
		begun, most = &p.begun[1], MaxQuestions
	}
	*begun = slices.DeleteFunc(*begun, func(at time.Duration) bool { return p.now-at >= time.Hour })
	minute := 0
	for _, at := range *begun {
		if p.now-at < time.Minute {
			minute++
		}
	}
	r.For = p.lasts(r.Action)
	var why string
	switch {
	case slices.ContainsFunc(p.active, same), ask && slices.ContainsFunc(p.questions, same):
		return r, false
	case p.isNever(r):
		why = SparedNever
	case p.suspended > p.now:
		why = SparedSuspended
	case slices.ContainsFunc(p.released, same):
		why = SparedReleased
	case minute >= MaxPerMinute || len(*begun) >= MaxPerHour:
		why = SparedRate
	case ask && len(p.questions) >= most, r.For > 0 && len(p.active) >= MaxReactions, r.Action == guard.Quarantine && p.quarantined() >= p.never.Quarantined:
		why = SparedFull
	}
	if why != "" {
		p.spared[why]++
		return r, false
	}
	p.next++
	r.ID = p.next
	*begun = append(*begun, p.now)
	if ask {
		r.Ask, r.For = true, p.c.AskFor
		p.questions = insert(p.questions, active{r, p.now, p.now + r.For})
		return r, true
	}
	p.questions = slices.DeleteFunc(p.questions, same) // it is done now
	p.hold(r)
	return r, true
}

// hold keeps what has to be undone.
func (p *Policy) hold(r guard.Reaction) {
	if r.For > 0 {
		p.active = insert(p.active, active{r, p.now, p.now + r.For})
	}
}

// lasts returns how long an action goes on.
func (p *Policy) lasts(a guard.Action) time.Duration {
	switch a {
	case guard.Block, guard.Quarantine:
		return p.c.For
	case guard.Refuse:
		return RefuseFor
	}
	return 0
}

func (p *Policy) quarantined() (n int) {
	for _, a := range p.active {
		if a.Action == guard.Quarantine {
			n++
		}
	}
	return n
}

// isNever tells whether nothing may be done about a reaction's subject. What
// is no address of a single other machine is never blocked, listed or not.
func (p *Policy) isNever(r guard.Reaction) bool {
	if len(p.never.Subjects)+len(p.never.Nets) > MaxNever {
		return true
	}
	if r.Action == guard.Block {
		a, err := netip.ParseAddr(r.Subject.Value)
		a = a.Unmap().WithZone("")
		if err != nil || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a == broadcast || slices.ContainsFunc(p.never.Nets, func(n netip.Prefix) bool { return n.Contains(a) }) {
			return true
		}
	}
	return slices.ContainsFunc(p.never.Subjects, func(s guard.Subject) bool {
		switch s.Kind {
		case r.Subject.Kind:
			return strings.EqualFold(s.Value, r.Subject.Value)
		case guard.Program:
			return r.Subject.Kind == guard.PID && s.Value == strings.TrimSuffix(r.Image, " (deleted)")
		}
		return false
	})
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

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
	asks := p.local[i].rule
	r, ok := p.begin(guard.Reaction{Action: guard.SafeStop, Subject: guard.Subject{Kind: guard.Machine}, Rule: asks, Why: Found}, p.Mode(asks))
	if ok && !r.Ask {
		p.stopped, p.stopSet = p.now, true
	}
	return r, ok
}
