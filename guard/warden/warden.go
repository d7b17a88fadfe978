// Package warden is the gateway's side of the guard. The sensors run in a
// process of their own, which the warden starts, watches and starts again:
//
//	sensors' process ──pipe──► Check ──► policy ──► sealed finding: journal
//	   │ panic, kill -9,                  │    ├──► Record: own block, ledger
//	   │ too much memory                  │    └──► Tell: MQTT, page
//	   │                                  └──► reaction: Record first, then React
//	   └──► a finding says so, coverage is none, a new one starts after a pause
//
// A reaction is on the disk, as state and as a signed record, before it is
// done; what cannot be put on record is not done. Undoing waits for nothing.
// After a restart what was in force is done again for the rest of its time.
//
// Nothing that happens in that process reaches the station: it shares no
// memory with it, the kernel takes it first when memory runs out, and a warden
// that has to wait for the journal drops findings and counts them.
package warden

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/pipe"
	"github.com/joulegate/joulegate/guard/policy"
)

// Limits.
const (
	MaxInbox  = 256  // messages between the process and the policy; then the process waits
	MaxOutbox = 64   // records waiting for a block; then they are held back and counted
	MaxRecent = 100  // findings in Status
	MaxSealed = 2048 // findings kept whole in the journal; then the oldest goes
	MaxPerDay = 1440 // records of findings on the ledger, in bursts of up to 100
	MaxPeers  = 1024 // neighbours whose heartbeat is waited for
	MaxActs   = 1024 // reactions waiting to be done: as many as can be in force, begun and undone, twice; then new ones fail

	burst     = 100
	silence   = 15 * time.Second // without a beat a process is taken for stuck
	tidyUp    = 2 * time.Second  // for a process whose gateway ends
	firstWait = time.Second      // before a process is started again; doubles
	lastWait  = 5 * time.Minute
	neverEach = 10 * time.Second // between two looks at what must not be touched
	actsIn    = 30 * time.Second // a reaction is on record and done within
	saveEach  = 10 * time.Minute // of what rules have learned, without another reason: 4 kB
	restful   = 10 * time.Minute // a process that lived so long starts again at once
)

// Store keeps small values by name, on the disk when Save returns.
type Store interface {
	Load(name string) ([]byte, error)
	Save(name string, value []byte) error
}

// Config is what a warden is made of.
type Config struct {
	Start     func() *exec.Cmd // the command of the sensors' process; what it says comes through file 3
	Setup     any              // its first frame
	Charging  func() bool      // the charger is at work; must not block
	Memory    uint64           // bytes of its own that the process may have; then it is ended
	Heartbeat time.Duration    // between statements that the guard lives
	Store     Store
	// Append puts records into an own block; it may wait.
	Append func(ctx context.Context, records []chain.Record) error
	Tell   func(guard.Finding)         // a finding that was put on record; must not block
	Silent func(peer chain.Key) string // names a neighbour whose guard is silent; empty: he is none any more
	// Past are the neighbours' blocks of before this start with their newest
	// heartbeats, in any order; Run asks once. nil: nothing is known of before.
	Past  iter.Seq[*chain.Signed]
	Modes map[string]guard.Mode // of the configuration, by rule; others observe
	// React does or undoes one thing; nil: nothing can be done here. It is
	// called by one goroutine.
	React  func(ctx context.Context, r guard.Reaction) error
	Never  func() policy.Never      // what must not be touched now; must not block; nil: nothing but what the policy spares always
	Asked  func(guard.Standing)     // a question was put; must not block; nil: nobody listens
	Unable func() map[string]string // what cannot be done here, by action, and why; nil: everything can
	Log    *slog.Logger
}

// Warden keeps the guard. Methods are safe for concurrent use.
type Warden struct {
	c       Config
	policy  *policy.Policy
	inbox   chan pipe.Message
	ended   chan string // why the process ended
	outbox  chan []chain.Record
	peers   chan beat
	acts    chan act
	acted   chan result
	orders  chan func()
	reports chan guard.Finding
	began   policy.Output // what Run has to do first
	started time.Time

	// Of the loop.
	tokens, filled float64 // of MaxPerDay
	next           uint64  // sealed findings so far
	due            time.Duration
	heard          map[chain.Key]*neighbour
	rules          []string
	sigma          chain.Hash // of the rules about programs

	spent time.Duration // of a processor, by sensors' processes that have ended; of keep

	held   atomic.Uint64
	reload atomic.Uint64 // how often Reload was called
	bypass atomic.Bool   // what goes past the name server is refused
	exempt atomic.Pointer[[]netip.Prefix]

	mu     sync.Mutex
	status guard.Status
	cover  map[guard.Sensor]guard.Coverage
}

type beat struct {
	peer  chain.Key
	every time.Duration
	said  time.Time // by the neighbour's clock
}

// act is a reaction and its evidence.
type act struct {
	guard.Reaction
	record *guard.Record // nil: it was put on record when it began
}

type result struct {
	guard.Reaction
	err error
}

type neighbour struct {
	at, every time.Duration
	said      time.Time // by his clock
	silent    bool
}

// late is how long a neighbour may be silent.
func (n *neighbour) late() time.Duration { return 2*n.every + time.Minute }

const (
	stateKey  = "guard"
	sealedKey = "guard.sealed."
)

type saved struct {
	Policy policy.Saved `cbor:"1,keyasint"`
	Next   uint64       `cbor:"2,keyasint"`
	At     int64        `cbor:"3,keyasint,omitempty"` // Unix ms when it was saved
}

// New returns a warden that goes on from what was saved.
func New(c Config) (*Warden, error) {
	var s saved
	raw, err := c.Store.Load(stateKey)
	if err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	if raw != nil {
		if err := chain.Unmarshal(raw, &s); err != nil {
			c.Log.Warn("what the guard has learned is damaged; it learns anew", "err", err)
			s = saved{}
		}
	}
	elapsed := time.Duration(0)
	if s.At > 0 {
		elapsed = time.Since(time.UnixMilli(s.At))
	}
	p, out, err := policy.New(policy.Config{Modes: c.Modes}, s.Policy, elapsed)
	if err != nil {
		return nil, err
	}
	w := &Warden{
		c: c, policy: p, began: out, next: s.Next, started: time.Now(), tokens: burst,
		inbox: make(chan pipe.Message, MaxInbox), ended: make(chan string, 1), outbox: make(chan []chain.Record, MaxOutbox), peers: make(chan beat, MaxInbox),
		acts: make(chan act, MaxActs), acted: make(chan result, MaxActs), orders: make(chan func()), reports: make(chan guard.Finding, MaxInbox),
		heard: map[chain.Key]*neighbour{}, cover: map[guard.Sensor]guard.Coverage{},
	}
	for _, r := range guard.Rules {
		w.rules = append(w.rules, r.ID)
	}
	w.status = guard.Status{Mode: guard.Observe.String(), RuleSet: ruleSet(chain.Hash{}), Findings: []guard.Finding{}, Told: map[string]uint64{}, Silent: []string{}, Reacted: map[string]uint64{}}
	for _, id := range slices.Sorted(maps.Keys(c.Modes)) { // of rule files
		if !slices.Contains(w.rules, id) {
			w.rules = append(w.rules, id)
		}
	}
	w.blind("not started")
	return w, nil
}

// blind sets every sensor's coverage to none.
func (w *Warden) blind(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := guard.Domain; s <= guard.Load; s++ {
		c := w.cover[s]
		if c.Level != guard.None {
			c.Since = time.Now()
		}
		c.Sensor, c.Level, c.Reason = s, guard.None, why
		w.cover[s] = c
	}
	w.status.Names = nil
}

// Status says what the guard is at.
func (w *Warden) Status() guard.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Findings, s.Silent, s.Told, s.Reacted = slices.Clone(s.Findings), slices.Clone(s.Silent), maps.Clone(s.Told), maps.Clone(s.Reacted)
	s.Coverage = slices.SortedFunc(maps.Values(w.cover), func(a, b guard.Coverage) int { return cmp.Compare(a.Sensor, b.Sensor) })
	s.HeldBack = w.held.Load()
	return s
}

// Reload has the sensors' process read the lists of names anew, and returns
// the number under which Status tells how that goes.
func (w *Warden) Reload() uint64 { return w.reload.Add(1) }

// steer is what the process is told now, once a second. Told is what it knows
// of the exempt.
func (w *Warden) steer(told *[]netip.Prefix) pipe.Order {
	o := pipe.Order{Charging: w.c.Charging(), Reload: w.reload.Load(), Bypass: w.bypass.Load()}
	if all := w.exempt.Load(); all != nil && !slices.Equal(*all, *told) {
		o.Exempt, *told = *all, *all
	}
	return o
}

// spare asks what must not be touched, for the policy and for what leaves
// this machine.
func (w *Warden) spare() policy.Output {
	n := w.c.Never()
	nets := n.Nets[:min(len(n.Nets), pipe.MaxExempt)]
	w.exempt.Store(&nets)
	return w.policy.SetNever(n)
}

// Heard takes a neighbour's block. It never blocks: a heartbeat that does not
// fit is followed by another one.
func (w *Warden) Heard(b *chain.Signed) {
	if h, ok := heartbeatOf(b); ok {
		select {
		case w.peers <- h:
		default:
		}
	}
}

// heartbeatOf finds a heartbeat in a block.
func heartbeatOf(b *chain.Signed) (beat, bool) {
	for _, r := range b.Records {
		var g guard.Record
		if r.Kind == chain.KindGuard && chain.Unmarshal(r.Body, &g) == nil && g.Rule == guard.GuardHeartbeat && g.Every > 0 {
			return beat{b.Author, time.Duration(g.Every) * time.Second, time.UnixMilli(g.First)}, true
		}
	}
	return beat{}, false
}

// HasHeartbeat reports whether a block says that its author's guard lives.
func HasHeartbeat(b *chain.Signed) bool { _, ok := heartbeatOf(b); return ok }

// hear takes a heartbeat of ago. One that comes later than the one before it
// has promised tells of a gap, also when this gateway was off meanwhile: both
// carry the time at which they were said.
func (w *Warden) hear(b beat, ago time.Duration) {
	was := w.heard[b.peer]
	if was == nil && len(w.heard) >= MaxPeers || was != nil && !b.said.After(was.said) {
		return // it was fetched again
	}
	w.heard[b.peer] = &neighbour{at: w.now() - max(0, ago), every: b.every, said: b.said}
	if was == nil || was.silent || was.said.IsZero() {
		return
	}
	if gap := b.said.Sub(was.said); gap > was.late() {
		w.missed(b.peer, was, gap, b.said)
	}
}

// missed puts on record that a neighbour's guard was not heard when it should.
func (w *Warden) missed(peer chain.Key, n *neighbour, gap time.Duration, until time.Time) {
	name := w.c.Silent(peer)
	if name == "" {
		return
	}
	f := guard.Finding{
		Rule: guard.GuardSilent, Severity: guard.Medium, Subject: guard.Subject{Kind: guard.Peer, Value: name}, Count: 1, First: time.Now(), Last: time.Now(),
		Evidence: map[string]string{"every": n.every.String(), "silent_for": gap.Round(time.Second).String()},
	}
	if !until.IsZero() {
		f.Evidence["heard_again"] = until.UTC().Format(time.RFC3339)
	}
	w.find(f)
}

// Run keeps the guard until ctx ends.
func (w *Warden) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { w.keep(ctx) })
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case r := <-w.outbox:
				if err := w.c.Append(ctx, r); err != nil && ctx.Err() == nil {
					w.held.Add(uint64(len(r)))
					w.c.Log.Warn("evidence is not on record", "err", err)
				}
			}
		}
	})
	wg.Go(func() { w.react(ctx) })
	if w.c.Never != nil {
		w.do(w.spare())
	}
	w.do(w.began)
	w.remember()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var due times
	for w.turn(ctx, tick.C, &due) {
	}
	w.save()
	wg.Wait()
	return nil
}

// times says when what happens now and then is due.
type times struct{ save, never time.Duration }

// turn waits for one thing and deals with it. A panic in the guard must not
// end the station, which runs in the same process: it is said, and the guard
// goes on with the next thing.
func (w *Warden) turn(ctx context.Context, tick <-chan time.Time, due *times) (more bool) {
	defer func() {
		if p := recover(); p != nil {
			w.c.Log.Error("guard", "panic", p, "stack", string(debug.Stack()))
			more = ctx.Err() == nil
		}
	}()
	select {
	case <-ctx.Done():
		return false
	case m := <-w.inbox:
		w.take(m)
	case f := <-w.reports:
		w.find(f)
	case order := <-w.orders:
		order()
	case r := <-w.acted:
		w.outcome(r)
	case why := <-w.ended:
		w.blind(why)
		w.find(guard.Finding{Rule: guard.GuardCoverage, Severity: guard.Medium, Subject: guard.Subject{Kind: guard.Machine}, Count: 1, First: time.Now(), Last: time.Now(), Evidence: map[string]string{"level": guard.None, "reason": why}})
	case b := <-w.peers:
		w.hear(b, 0) // what was fetched late is heard now: whoever is silent will be so for longer
	case <-tick:
		now := w.now()
		if w.c.Never != nil && now >= due.never {
			due.never = now + neverEach
			w.do(w.spare())
		}
		w.do(w.policy.Tick(now, w.seeing()))
		w.neighbours(now)
		if w.c.Heartbeat > 0 && now >= w.due {
			w.due = now + w.c.Heartbeat
			w.heartbeat()
		}
		if now >= due.save {
			due.save = now + saveEach
			w.save()
		}
		w.show()
	}
	return true
}

// remember takes the heartbeats of before this start, so that a neighbour who
// fell silent while this gateway was off is missed.
func (w *Warden) remember() {
	if w.c.Past == nil {
		return
	}
	for b := range w.c.Past {
		if h, ok := heartbeatOf(b); ok {
			w.hear(h, time.Since(h.said))
		}
	}
}

func (w *Warden) now() time.Duration { return time.Since(w.started) }

func (w *Warden) save() {
	if err := w.c.Store.Save(stateKey, chain.Marshal(saved{w.policy.Save(), w.next, time.Now().UnixMilli()})); err != nil {
		w.c.Log.Warn("what the guard has learned is not saved", "err", err)
	}
}

// seeing returns the rules whose sensor sees something: only these learn.
func (w *Warden) seeing() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.rules), func(id string) bool {
		r, _ := guard.RuleOf(id)
		return w.cover[r.Sensor].Level == guard.None
	})
}

// take takes a message that was checked.
func (w *Warden) take(m pipe.Message) {
	switch {
	case m.Finding != nil:
		w.find(*m.Finding)
	case m.Beat != nil:
		w.mu.Lock()
		for _, c := range m.Beat.Coverage {
			w.cover[c.Sensor] = c
		}
		w.status.Names = m.Beat.Names
		if m.Beat.Rules != w.sigma {
			w.sigma = m.Beat.Rules
			w.status.RuleSet = ruleSet(w.sigma)
		}
		w.mu.Unlock()
	}
}

// ruleSet is the hash of the rules in force: those of the guard by name, those
// about programs by the files that they came from.
func ruleSet(programs chain.Hash) chain.Hash {
	var ids []string
	for _, r := range guard.Rules {
		ids = append(ids, r.ID)
	}
	if programs != (chain.Hash{}) {
		ids = append(ids, programs.String())
	}
	return chain.Sum(chain.Marshal(ids))
}

func (w *Warden) find(f guard.Finding) { w.do(w.policy.Find(f, w.now())) }

// do puts on record what the policy tells, and what it does before it is done.
func (w *Warden) do(o policy.Output) {
	for _, f := range o.Tell {
		if f.First.IsZero() {
			f.First, f.Last = time.Now(), time.Now()
		}
		w.record(f)
	}
	if len(o.Do) == 0 {
		return
	}
	w.save() // a restart goes on with it
	for _, r := range o.Do {
		a := act{Reaction: r}
		if r.Why != policy.Restored {
			a.record = w.witness(r, "")
		}
		select {
		case w.acts <- a:
		default:
			w.outcome(result{r, fmt.Errorf("%d reactions wait already", MaxActs)})
		}
	}
	w.show()
	if w.c.Asked == nil {
		return
	}
	for _, q := range w.Status().Questions {
		if slices.ContainsFunc(o.Do, func(r guard.Reaction) bool { return r.ID == q.ID && r.Ask && !r.Undo }) {
			w.c.Asked(q)
		}
	}
}

// react puts reactions on record and does them, one after the other.
func (w *Warden) react(ctx context.Context) {
	for {
		var a act
		select {
		case <-ctx.Done():
			return
		case a = <-w.acts:
		}
		r := result{a.Reaction, w.act(ctx, a)}
		select {
		case w.acted <- r:
		case <-ctx.Done():
			return
		}
	}
}

func (w *Warden) act(ctx context.Context, a act) (err error) {
	defer func() {
		if p := recover(); p != nil {
			w.c.Log.Error("guard", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, actsIn)
	defer cancel()
	var unrecorded error
	if a.record != nil {
		if err := w.c.Append(ctx, []chain.Record{chain.NewRecord(chain.KindGuard, *a.record)}); err != nil {
			unrecorded = fmt.Errorf("it cannot be put on record: %w", err)
		}
	}
	switch {
	case a.Ask:
		return unrecorded
	case a.Undo:
		ctx = context.WithoutCancel(ctx)
	case unrecorded != nil:
		return unrecorded
	}
	switch {
	case a.Action == guard.Refuse: // the sensors' process does it
		w.bypass.Store(!a.Undo)
		return unrecorded
	case a.Undo:
	case w.c.React == nil:
		return errors.New("this gateway does nothing about findings")
	}
	if w.c.React != nil {
		err = w.c.React(ctx, a.Reaction)
	}
	return errors.Join(unrecorded, err)
}

// outcome takes what became of a reaction.
func (w *Warden) outcome(r result) {
	if r.err != nil {
		w.c.Log.Warn("guard", "reaction", r.ID, "action", r.Action, "subject", r.Subject, "undo", r.Undo, "err", r.err)
		if !r.Undo && !r.Ask {
			w.policy.Failed(r.ID)
			w.save()
		}
		if record := w.witness(r.Reaction, r.err.Error()); record != nil {
			w.put(*record)
		}
	} else if !r.Undo && !r.Ask {
		w.mu.Lock()
		w.status.Reacted[r.Action.String()]++
		w.mu.Unlock()
	}
	w.show()
}

// witness seals what is done about a finding, and returns its Record. The
// policy's limits bound how many there are.
func (w *Warden) witness(r guard.Reaction, failed string) *guard.Record {
	f := guard.Finding{Rule: guard.GuardReaction, Severity: guard.Medium, Subject: r.Subject, Count: 1, First: time.Now(), Last: time.Now(), Evidence: map[string]string{
		"id": strconv.FormatUint(r.ID, 10), "action": r.Action.String(), "rule": r.Rule, "why": r.Why,
	}}
	if r.Action == guard.SafeStop {
		f.Severity = guard.High
	}
	for k, v := range map[string]string{"image": r.Image, "sha256": r.SHA256, "failed": failed} {
		if v != "" {
			f.Evidence[k] = v
		}
	}
	switch {
	case r.Ask && !r.Undo:
		f.Evidence["step"] = "asked"
	case r.Ask:
		f.Evidence["step"] = "question ended"
	case r.Undo:
		f.Evidence["step"] = "undone"
	default:
		f.Evidence["step"] = "begun"
	}
	if r.For > 0 {
		f.Evidence["for"] = r.For.Round(time.Second).String()
	}
	f.Cut()
	return w.seal(f, w.see(f, guard.Load))
}

// show refreshes what Status says of the policy.
func (w *Warden) show() {
	var rules []guard.RuleState
	for _, id := range w.rules {
		if r, ok := guard.RuleOf(id); ok && r.Action != guard.Nothing {
			rules = append(rules, guard.RuleState{ID: id, Mode: w.policy.Wanted(id), InForce: w.policy.Mode(id), Learned: int64(w.policy.Learned(id) / time.Second), Left: int64(w.policy.Left(id) / time.Second)})
		}
	}
	at := func(d time.Duration) time.Time { return w.started.Add(d) }
	standing := func(all []policy.Standing) []guard.Standing {
		out := make([]guard.Standing, len(all))
		for i, s := range all {
			out[i] = guard.Standing{Reaction: s.Reaction, Since: at(s.Since), Until: at(s.Until)}
		}
		return out
	}
	reactions, questions, spared := standing(w.policy.Reactions()), standing(w.policy.Questions()), w.policy.Spared()
	var suspended time.Time
	if d := w.policy.Suspended(); d > 0 {
		suspended = time.Now().Add(d).Round(time.Second)
	}
	var unable map[string]string
	if w.c.Unable != nil {
		unable = w.c.Unable()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Rules, w.status.Reactions, w.status.Questions, w.status.Spared, w.status.Suspended, w.status.Unable = rules, reactions, questions, spared, suspended, unable
}

// order runs f in the loop.
func (w *Warden) order(ctx context.Context, f func() (policy.Output, error)) error {
	done := make(chan error, 1)
	select {
	case w.orders <- func() {
		o, err := f()
		if err == nil {
			w.do(o)
			w.save()
			w.show()
		}
		done <- err
	}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Answer is a person's word about a question.
func (w *Warden) Answer(ctx context.Context, id uint64, yes bool) error {
	return w.order(ctx, func() (policy.Output, error) { return w.policy.Answer(id, yes) })
}

// Release undoes one reaction.
func (w *Warden) Release(ctx context.Context, id uint64) error {
	return w.order(ctx, func() (policy.Output, error) { return w.policy.Release(id) })
}

// ReleaseAll undoes everything, and begins nothing for a day.
func (w *Warden) ReleaseAll(ctx context.Context) error {
	return w.order(ctx, func() (policy.Output, error) { return w.policy.ReleaseAll(), nil })
}

// Resume ends what ReleaseAll began.
func (w *Warden) Resume(ctx context.Context) error {
	return w.order(ctx, func() (policy.Output, error) { w.policy.Resume(); return policy.Output{}, nil })
}

// MayEnforce says why a rule cannot be enforced yet.
func (w *Warden) MayEnforce(ctx context.Context, rule string) error {
	return w.order(ctx, func() (policy.Output, error) { return policy.Output{}, w.policy.MayEnforce(rule) })
}

// Report takes a finding of the gateway itself. It never blocks: one that does
// not fit is counted with those held back.
func (w *Warden) Report(f guard.Finding) {
	select {
	case w.reports <- f:
	default:
		w.held.Add(1)
	}
}

// record seals a finding, keeps it, and puts its Record, which names nobody,
// into an own block. What is only informative stays on the device.
func (w *Warden) record(f guard.Finding) {
	rule, ok := guard.RuleOf(f.Rule)
	if !ok {
		return
	}
	if rule.Sensor == guard.Process { // command lines, once more: what is signed cannot be taken back
		for k, v := range f.Evidence {
			f.Evidence[k] = guard.Redact(v)
		}
	}
	cov := w.see(f, rule.Sensor)
	if f.Severity == guard.Info {
		return
	}
	if !w.mayRecord() {
		w.held.Add(1)
		return
	}
	w.put(*w.seal(f, cov))
}

// see shows a finding, and returns what its sensor sees.
func (w *Warden) see(f guard.Finding, by guard.Sensor) guard.Coverage {
	w.mu.Lock()
	w.status.Findings = slices.Insert(forgetOne(w.status.Findings), 0, f)
	cov := w.cover[by]
	w.mu.Unlock()
	cov.Sensor = by
	subject := f.Subject
	if subject.Kind == guard.Name {
		subject.Value = "" // logs go elsewhere; the finding itself does not
	}
	w.c.Log.Warn("guard", "rule", f.Rule, "severity", f.Severity, "subject", subject, "count", f.Count)
	w.c.Tell(f)
	return cov
}

// seal keeps a finding and returns its Record.
func (w *Warden) seal(f guard.Finding, cov guard.Coverage) *guard.Record {
	sealed := guard.Sealed{Finding: f}
	rand.Read(sealed.Salt[:])
	if err := w.c.Store.Save(sealedKey+strconv.FormatUint(w.next%MaxSealed, 10), chain.Marshal(sealed)); err != nil {
		w.c.Log.Warn("a finding is not kept", "err", err)
	}
	w.next++
	return &guard.Record{Rule: f.Rule, Severity: f.Severity, Sensor: cov.Sensor, Count: f.Count, First: f.First.UnixMilli(), Last: f.Last.UnixMilli(), RuleSet: w.status.RuleSet, Level: cov.Level, Lost: cov.Lost, Detail: sealed.Hash()}
}

// forgetOne makes room for a finding. Blocked names are the first to go, so
// that they do not hide what matters.
func forgetOne(all []guard.Finding) []guard.Finding {
	if len(all) < MaxRecent {
		return all
	}
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Severity == guard.Info {
			return slices.Delete(all, i, i+1)
		}
	}
	return all[:MaxRecent-1]
}

// mayRecord keeps an attacker from filling everybody's disks with evidence.
func (w *Warden) mayRecord() bool {
	now := w.now().Seconds()
	w.tokens = min(burst, w.tokens+(now-w.filled)*MaxPerDay/86400)
	w.filled = now
	if w.tokens < 1 {
		return false
	}
	w.tokens--
	return true
}

func (w *Warden) put(records ...guard.Record) {
	out := make([]chain.Record, len(records))
	for i, r := range records {
		r.RuleSet = w.status.RuleSet
		out[i] = chain.NewRecord(chain.KindGuard, r)
	}
	select {
	case w.outbox <- out:
		w.mu.Lock()
		for _, r := range records {
			w.status.Told[r.Rule]++ // at most as many as there are rules of our own and of rule files
		}
		w.mu.Unlock()
	default:
		w.held.Add(uint64(len(out)))
	}
}

// heartbeat says of every sensor that it lives, or why not.
func (w *Warden) heartbeat() {
	at := time.Now()
	var out []guard.Record
	for _, c := range w.Status().Coverage {
		out = append(out, guard.Record{
			Rule: guard.GuardHeartbeat, Severity: guard.Info, Sensor: c.Sensor, Count: 1, First: at.UnixMilli(), Last: at.UnixMilli(),
			Level: c.Level, Lost: c.Lost, Every: uint32(max(1, w.c.Heartbeat/time.Second)),
		})
	}
	w.put(out...)
	w.mu.Lock()
	w.status.Heartbeat = at
	w.mu.Unlock()
}

// neighbours notices those whose heartbeat has not come twice.
func (w *Warden) neighbours(now time.Duration) {
	var silent []string
	for peer, n := range w.heard {
		if now-n.at <= n.late() {
			continue
		}
		name := w.c.Silent(peer)
		if name == "" {
			delete(w.heard, peer)
			continue
		}
		silent = append(silent, name)
		if !n.silent {
			n.silent = true
			w.missed(peer, n, now-n.at, time.Time{})
		}
	}
	slices.Sort(silent)
	w.mu.Lock()
	w.status.Silent = append([]string{}, silent...)
	w.mu.Unlock()
}

// keep starts the process again whenever it has ended.
func (w *Warden) keep(ctx context.Context) {
	wait := firstWait
	for ctx.Err() == nil {
		began := time.Now()
		err := w.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > restful {
			wait = firstWait
		}
		why := fmt.Sprintf("the process of the sensors ended: %v; it starts again in %s", err, wait)
		w.mu.Lock()
		w.status.Child = guard.Child{Restarts: w.status.Child.Restarts + 1, Ended: why, CPU: w.spent.Seconds()}
		w.mu.Unlock()
		w.c.Log.Error("guard", "err", why)
		select {
		case w.ended <- why:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, lastWait)
	}
}

// once runs the process until it ends, says what it must not, is silent, or
// takes too much memory.
func (w *Warden) once(ctx context.Context) (err error) {
	r, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := w.c.Start()
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	orders, err := cmd.StdinPipe() // it ends when this closes, also because the gateway has died
	if err == nil {
		err = cmd.Start()
	}
	theirs.Close()
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.status.Child.PID, w.status.Child.Since = cmd.Process.Pid, time.Now()
	w.mu.Unlock()
	beats, read := make(chan struct{}, 1), make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for {
			m, err := pipe.ReadMessage(r)
			if err != nil {
				read <- err
				return
			}
			if m.Beat != nil {
				select {
				case beats <- struct{}{}:
				default:
				}
			}
			select {
			case w.inbox <- m:
			case <-stop:
				read <- nil
				return
			}
		}
	}()
	wrote := make(chan struct{})
	go func() { // a process that does not read must not hold the watch up
		defer close(wrote)
		var exempt []netip.Prefix // as told
		say := func(v any) bool { return pipe.Write(orders, v) == nil }
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for ok := say(w.c.Setup); ok; ok = say(w.steer(&exempt)) {
			select {
			case <-t.C:
			case <-stop:
				return
			}
		}
	}()
	err = w.watch(ctx, cmd.Process.Pid, beats, read)
	close(stop)
	orders.Close()
	if ctx.Err() == nil {
		_ = cmd.Process.Kill()
	} else { // it may take away what it has put into the packet filter
		defer time.AfterFunc(tidyUp, func() { _ = cmd.Process.Kill() }).Stop()
	}
	ended := cmd.Wait()
	r.Close()
	w.spent += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	<-wrote
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return cmp.Or(ended, err, errors.New("it left"))
	case ended != nil:
		return fmt.Errorf("%w; %w", err, ended)
	}
	return err
}

func (w *Warden) watch(ctx context.Context, pid int, beats <-chan struct{}, read <-chan error) error {
	t := time.NewTicker(250 * time.Millisecond)
	defer t.Stop()
	last := time.Now()
	var share share
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-read:
			return err
		case <-beats:
			last = time.Now()
		case <-t.C:
			if time.Since(last) > silence {
				return fmt.Errorf("silent for %s", silence)
			}
			own := ownMemory(pid)
			w.mu.Lock()
			w.status.Child.MemoryMB = own >> 20
			if turn%64 == 0 { // every 16 s
				used := ownTime(pid)
				w.status.Child.CPU, w.status.Child.Percent = (w.spent + used).Seconds(), share.add(time.Now(), used)
			}
			w.mu.Unlock()
			if own > w.c.Memory {
				return fmt.Errorf("it took %d MB of memory, at most %d", own>>20, w.c.Memory>>20)
			}
		}
	}
}

// share tells how much of a core is used, over the last minutes.
type share struct {
	at   [20]time.Time // a ring: five minutes of looks every 16 s
	used [20]time.Duration
	n    int
}

func (s *share) add(now time.Time, used time.Duration) (percent float64) {
	i := s.n % len(s.at)
	first := 0
	if s.n >= len(s.at) {
		first = i // the oldest, which is read before it is replaced
	}
	if s.n > 0 && now.After(s.at[first]) {
		percent = 100 * float64(used-s.used[first]) / float64(now.Sub(s.at[first]))
	}
	s.at[i], s.used[i] = now, used
	s.n++
	return percent
}

// ownTime is what a process has used of processors: fields 14 and 15 of its
// stat, in hundredths of a second on every Linux that Go runs on.
func ownTime(pid int) time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// ownMemory is the resident memory that a process shares with nobody.
func ownMemory(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	f := strings.Fields(string(b))
	if err != nil || len(f) < 3 {
		return 0
	}
	resident, _ := strconv.ParseUint(f[1], 10, 64)
	shared, _ := strconv.ParseUint(f[2], 10, 64)
	return (resident - min(shared, resident)) * uint64(os.Getpagesize())
}
