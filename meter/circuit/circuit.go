package circuit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// Limits.
const (
	MaxCircuits = 32
	MaxChargers = 64
	MaxDepth    = 8

	// MinCurrent is the least a vehicle can be offered, IEC 61851-1.
	MinCurrent meter.MilliAmpere = 6_000

	// nominal line-to-neutral voltage, IEC 60038
	nominal meter.MilliVolt = 230_000

	// step is what limits are rounded down to, so that noise of a meter does
	// not become traffic on a bus.
	step meter.MilliAmpere = 100

	// history is how many draws of a charger are kept to match a meter's
	// moment; with fewer the least draw is taken for longer, not for less.
	history = 4
)

// Phases is a current per phase of the network: L1, L2, L3.
type Phases [3]meter.MilliAmpere

// All returns the same current on every phase.
func All(a meter.MilliAmpere) Phases { return Phases{a, a, a} }

// Add returns p + q.
func (p Phases) Add(q Phases) Phases {
	for l := range p {
		p[l] += q[l]
	}
	return p
}

// Max returns the highest phase.
func (p Phases) Max() meter.MilliAmpere { return max(p[0], p[1], p[2]) }

// Currents returns a reading's current per phase, import positive, by the
// sign of the phase's power. Where a meter gives no phase currents, they are
// computed from phase powers or, on the first of n phases each, from the total
// power. known is false if it gives none of them.
func Currents(r *meter.Reading, n int) (p Phases, known bool) {
	for l := range p {
		ph := uint8(l + 1)
		i, measured := r.Value(meter.Current, ph)
		w, powered := r.Value(meter.Power, ph)
		switch {
		case measured && powered && w < 0 && i > 0:
			i = -i
		case !measured && powered:
			i = w * 1000 / int64(nominal)
		case !measured:
			continue
		}
		p[l], known = meter.MilliAmpere(i), true
	}
	if known {
		return p, true
	}
	if i, ok := r.Value(meter.Current, 0); ok && n == 1 {
		return Phases{meter.MilliAmpere(i)}, true
	}
	w, ok := r.Power()
	if !ok || n < 1 || n > 3 {
		return p, false
	}
	for l := range n {
		p[l] = meter.MilliAmpere(int64(w) * 1000 / int64(nominal) / int64(n))
	}
	return p, true
}

// Wiring says which phase of the network (1..3) each terminal of a charger is
// connected to; 0: not connected.
type Wiring [3]uint8

// Straight is the wiring of n phases that nobody has rotated.
func Straight(n int) (w Wiring) {
	for l := range min(n, 3) {
		w[l] = uint8(l + 1)
	}
	return w
}

// ParseWiring reads "L2 L3 L1" or "L3".
func ParseWiring(s string) (w Wiring, err error) {
	f := strings.Fields(s)
	if len(f) != 1 && len(f) != 3 {
		return w, fmt.Errorf("wiring %q: name one or three phases, as in L2 L3 L1", s)
	}
	for i, name := range f {
		l := slices.Index([]string{"L1", "L2", "L3"}, name) + 1
		if l == 0 || slices.Contains(w[:], uint8(l)) {
			return w, fmt.Errorf("wiring %q: %s is no phase, or named twice", s, name)
		}
		w[i] = uint8(l)
	}
	return w, nil
}

// Count returns the number of connected terminals.
func (w Wiring) Count() (n int) {
	for _, l := range w {
		if l != 0 {
			n++
		}
	}
	return n
}

// Spread puts currents at a charger's terminals onto the network's phases.
func (w Wiring) Spread(terminals Phases) (p Phases) {
	for t, l := range w {
		if l != 0 {
			p[l-1] += terminals[t]
		}
	}
	return p
}

// first returns the wiring with only the first n terminals in use.
func (w Wiring) first(n int) Wiring {
	for t := range w {
		if n > 0 && t >= n {
			w[t] = 0
		}
	}
	return w
}

// Circuit is a cable behind a fuse.
type Circuit struct {
	ID      string
	Parent  string            // "": it is a root
	Rating  meter.MilliAmpere // per phase; 0: it does not limit
	Reserve meter.MilliAmpere // per phase, kept free for loads that nobody measures
	Power   meter.Watt        // most in sum of its chargers; 0: it does not limit
	Metered bool              // Input.Meters tells what flows through it
}

// Charger is a charging point at the end of a circuit.
type Charger struct {
	ID      uint8
	Circuit string
	Wiring  Wiring
	// MaxCurrent per phase, at least MinCurrent.
	MaxCurrent meter.MilliAmpere
}

// Rules are the times of the sharing.
type Rules struct {
	StaleAfter  time.Duration // an older reading of a meter does not count
	RaiseDelay  time.Duration // room must last so long; at least two intervals of every meter
	ResumeDelay time.Duration // and so long before one that was cut off for lack of room starts again
	Turnaround  time.Duration // from a lower limit until the vehicle obeys (IEC 61851-1 gives it 5 s)
	Turn        time.Duration // how long a charger is served before it may have to wait
}

// DefaultRules suit meters that are read once a second.
func DefaultRules() Rules {
	return Rules{StaleAfter: 10 * time.Second, RaiseDelay: 5 * time.Second, ResumeDelay: time.Minute, Turnaround: 6 * time.Second, Turn: 15 * time.Minute}
}

// Tree is the installation. It does not change after New.
type Tree struct {
	rules    Rules
	circuits []Circuit
	chargers []Charger
	above    [][]int // per charger: circuits from its own up to the root
	parents  []int   // per circuit; -1: root
}

// New checks and compiles an installation.
func New(r Rules, circuits []Circuit, chargers []Charger) (*Tree, error) {
	if len(circuits) > MaxCircuits || len(chargers) > MaxChargers {
		return nil, fmt.Errorf("%d circuits and %d chargers, at most %d and %d", len(circuits), len(chargers), MaxCircuits, MaxChargers)
	}
	t := &Tree{rules: r, circuits: slices.Clone(circuits), chargers: slices.Clone(chargers)}
	for i, c := range circuits {
		switch {
		case c.ID == "" || t.Circuit(c.ID) != i:
			return nil, fmt.Errorf("circuit %q: the name is missing or used twice", c.ID)
		case c.Rating < 0 || c.Reserve < 0 || c.Power < 0:
			return nil, fmt.Errorf("circuit %s: rating %d mA, reserve %d mA, power %d W: none may be negative", c.ID, c.Rating, c.Reserve, c.Power)
		case c.Parent != "" && t.Circuit(c.Parent) < 0:
			return nil, fmt.Errorf("circuit %s: there is no circuit %q above it", c.ID, c.Parent)
		}
		t.parents = append(t.parents, t.Circuit(c.Parent))
	}
	for i, h := range chargers {
		switch {
		case t.Charger(h.ID) != i:
			return nil, fmt.Errorf("charger %d is there twice", h.ID)
		case h.MaxCurrent < MinCurrent:
			return nil, fmt.Errorf("charger %d: %d mA, at least %d (IEC 61851-1)", h.ID, h.MaxCurrent, MinCurrent)
		case h.Wiring.Count() == 0:
			return nil, fmt.Errorf("charger %d is wired to no phase", h.ID)
		case h.Circuit != "" && t.Circuit(h.Circuit) < 0:
			return nil, fmt.Errorf("charger %d: there is no circuit %q", h.ID, h.Circuit)
		}
		var up []int
		for c := t.Circuit(h.Circuit); c >= 0; c = t.parents[c] {
			if up = append(up, c); len(up) > MaxDepth {
				return nil, fmt.Errorf("circuit %s: more than %d levels, or a ring", h.Circuit, MaxDepth)
			}
		}
		t.above = append(t.above, up)
	}
	return t, nil
}

// Circuit returns the index of a circuit, or -1.
func (t *Tree) Circuit(id string) int {
	return slices.IndexFunc(t.circuits, func(c Circuit) bool { return c.ID == id && id != "" })
}

// Charger returns the index of a charger, or -1.
func (t *Tree) Charger(id uint8) int {
	return slices.IndexFunc(t.chargers, func(h Charger) bool { return h.ID == id })
}

// Reading is what the meter of a circuit says.
type Reading struct {
	Good    bool
	Current Phases // import positive
	At      time.Duration
}

// Demand is what a charger could use and does use.
type Demand struct {
	// Want is the most it could use now per phase: by its mode, its hold, a
	// person's limit. Below MinCurrent it wants nothing.
	Want meter.MilliAmpere
	// Phases in use, if it has been switched to fewer than are wired; 0: all.
	Phases int
	// Draw is the current at its terminals at time DrawAt; DrawKnown false
	// counts as nothing, which makes base loads look larger.
	Draw      Phases
	DrawKnown bool
	DrawAt    time.Duration
	Voltage   meter.MilliVolt // measured, line to neutral; 0: nominal
	// Surplus takes part in Input.Pool only.
	Surplus bool
	// Cap is a limit from elsewhere, for example a feeder's lease; -1: none.
	Cap meter.MilliAmpere
}

// Input is what is known at the moment of a step. Meters is by circuit and
// Demands by charger, in the order of New.
type Input struct {
	Meters  []Reading
	Demands []Demand
	// Other is current that other gateways may draw from a circuit; nil: none.
	Other []Phases
	// Leased circuits are limited by the Cap of each demand in place of their
	// own rating; nil: none.
	Leased []bool
	// Dim is what the utility allows.
	Dim Limit
	// Pool is the power that those with Demand.Surplus share above their
	// minimum; who of them may be on is decided before.
	Pool meter.Watt
}

// Grant is what a charger may be offered.
type Grant struct {
	Limit meter.MilliAmpere // 0 or MinCurrent and more
	Why   string            // what keeps it from more; "": nothing but its own wish
}

// State is what the sharing remembers. The zero value is the start.
type State struct {
	loads   []load
	at      time.Duration
	stepped bool
}

// load is a charger's past.
type load struct {
	limit    meter.MilliAmpere // granted
	before   meter.MilliAmpere // highest in force within the last Turnaround
	loweredT time.Duration     // when it fell from before
	cand     meter.MilliAmpere // least target since candT
	candT    time.Duration
	timing   bool
	cut      bool          // it is off for lack of room
	onT      time.Duration // since when it is served
	served   time.Duration // in all, on the clock of those who want
	wanted   bool
	draws    [history]draw // newest first
	n        int
}

type draw struct {
	at      time.Duration
	current Phases // on the network's phases
}

// room is a constraint: sum of weight[i] * current of charger i <= left.
type room struct {
	left   int64
	weight []int64
	why    string
	soft   bool // binds above the minimum only
}

// Step shares at monotonic time now, which never decreases.
func Step(t *Tree, s State, in Input, now time.Duration) (State, []Grant) {
	if len(in.Meters) != len(t.circuits) || len(in.Demands) != len(t.chargers) || (in.Other != nil && len(in.Other) != len(t.circuits)) {
		panic(fmt.Sprintf("circuit: %d meters for %d circuits, %d demands for %d chargers", len(in.Meters), len(t.circuits), len(in.Demands), len(t.chargers)))
	}
	if s.stepped && now < s.at {
		panic(fmt.Sprintf("circuit: time went from %s back to %s", s.at, now))
	}
	w := sharing{t: t, in: in, now: now, past: s.at, wires: make([]Wiring, len(t.chargers)), why: make([]string, len(t.chargers))}
	w.loads = slices.Clone(s.loads)
	if w.loads == nil {
		w.loads, w.past = make([]load, len(t.chargers)), now
	}
	w.remember()
	w.rooms()
	w.ceilings()
	w.admit()
	w.fill()
	w.apply()
	out := make([]Grant, len(t.chargers))
	for i, l := range w.loads {
		out[i] = Grant{l.limit, w.why[i]}
	}
	return State{w.loads, now, true}, out
}

type sharing struct {
	t      *Tree
	in     Input
	now    time.Duration
	past   time.Duration // of the step before
	loads  []load
	wires  []Wiring
	hard   []room
	blind  []bool // a meter above this charger is stale
	top    []meter.MilliAmpere
	target []meter.MilliAmpere
	why    []string
}

// remember takes new draws, and forgets limits that have taken effect.
func (w *sharing) remember() {
	for i := range w.loads {
		l, d := &w.loads[i], &w.in.Demands[i]
		w.wires[i] = w.t.chargers[i].Wiring.first(d.Phases)
		if d.DrawKnown && (l.n == 0 || d.DrawAt > l.draws[0].at) {
			copy(l.draws[1:], l.draws[:history-1])
			// All terminals: a vehicle that has not obeyed a switch to one
			// phase still loads three.
			l.draws[0] = draw{d.DrawAt, w.t.chargers[i].Wiring.Spread(d.Draw)}
			l.n = min(l.n+1, history)
		}
		if l.limit >= MinCurrent {
			l.served += w.now - w.past
		}
		if w.now-l.loweredT >= w.t.rules.Turnaround {
			l.before = l.limit
		}
	}
	// Whoever begins to want does not bring time in which nobody competed.
	least, any := time.Duration(0), false
	for i := range w.loads {
		if l := &w.loads[i]; l.wanted && w.in.Demands[i].Want >= MinCurrent && (!any || l.served < least) {
			least, any = l.served, true
		}
	}
	for i := range w.loads {
		l, wants := &w.loads[i], w.in.Demands[i].Want >= MinCurrent
		if wants && !l.wanted {
			l.served = max(l.served, least)
		}
		l.wanted = wants
	}
}

// drawn returns the least that charger i can have drawn at the moment of a
// reading, per phase, and never more than it was offered: what a vehicle takes
// beyond its offer is a load like any other.
func (w *sharing) drawn(i int, at time.Duration) Phases {
	l := &w.loads[i]
	var p Phases
	if l.n == 0 || at-l.draws[0].at > w.t.rules.RaiseDelay {
		return p
	}
	for k := range l.n {
		for ph := range p {
			if k == 0 || l.draws[k].current[ph] < p[ph] {
				p[ph] = l.draws[k].current[ph]
			}
		}
		if l.draws[k].at <= at {
			break
		}
		if k == l.n-1 {
			return Phases{} // everything known of it is younger
		}
	}
	for ph := range p {
		p[ph] = min(max(0, p[ph]), max(l.limit, l.before))
	}
	return p
}

// rooms builds the constraints of all circuits.
func (w *sharing) rooms() {
	n := len(w.t.chargers)
	w.blind = make([]bool, n)
	for c, circuit := range w.t.circuits {
		r := w.in.Meters[c]
		known := !circuit.Metered || (r.Good && w.now-r.At <= w.t.rules.StaleAfter)
		var below []int
		for i := range n {
			if slices.Contains(w.t.above[i], c) {
				below = append(below, i)
				w.blind[i] = w.blind[i] || !known
			}
		}
		if circuit.Power > 0 {
			w.hard = append(w.hard, w.power(below, circuit.Power, "the power limit of circuit "+circuit.ID, false))
		}
		if circuit.Rating == 0 || (w.in.Leased != nil && w.in.Leased[c]) {
			continue
		}
		var base Phases
		if circuit.Metered && known {
			base = r.Current
			for _, i := range below {
				d := w.drawn(i, r.At)
				for ph := range base {
					base[ph] -= d[ph]
				}
			}
		}
		for ph := range base {
			left := circuit.Rating - circuit.Reserve - max(0, base[ph])
			if w.in.Other != nil {
				left -= w.in.Other[c][ph]
			}
			q := room{left: int64(max(0, left)), weight: make([]int64, n), why: fmt.Sprintf("the fuse of circuit %s on L%d", circuit.ID, ph+1)}
			for _, i := range below {
				if slices.Contains(w.wires[i][:], uint8(ph+1)) {
					q.weight[i] = 1
				}
			}
			w.hard = append(w.hard, q)
		}
	}
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	if w.in.Dim.Total > 0 {
		w.hard = append(w.hard, w.power(all, w.in.Dim.Total, "the utility's limit for all", false))
	}
	var sunny []int
	for i, d := range w.in.Demands {
		if d.Surplus {
			sunny = append(sunny, i)
		}
	}
	if len(sunny) > 0 {
		w.hard = append(w.hard, w.power(sunny, w.in.Pool, "the surplus", true))
	}
}

// power is a constraint on watts at nominal voltage: 1 W is 1e6 mA*mV.
func (w *sharing) power(of []int, p meter.Watt, why string, soft bool) room {
	q := room{left: int64(max(0, p)) * 1_000_000, weight: make([]int64, len(w.t.chargers)), why: why, soft: soft}
	for _, i := range of {
		q.weight[i] = int64(nominal) * int64(w.wires[i].Count())
	}
	return q
}

// ceilings finds what each charger could have if it were alone.
func (w *sharing) ceilings() {
	w.top = make([]meter.MilliAmpere, len(w.loads))
	for i, h := range w.t.chargers {
		d := w.in.Demands[i]
		top, why := d.Want, ""
		lower := func(a meter.MilliAmpere, reason string) {
			if a < top {
				top, why = a, reason
			}
		}
		lower(h.MaxCurrent, "the charger's rating")
		if d.Cap >= 0 {
			lower(d.Cap, "the feeder's share")
		}
		if p := w.in.Dim.PerDevice; p > 0 {
			lower(amperes(p, w.wires[i].Count(), d.Voltage), "the utility's limit")
		}
		if w.blind[i] {
			// The session's own rule ends it soon: 6 A, then off.
			least := meter.MilliAmpere(0)
			if w.loads[i].limit >= MinCurrent {
				least = MinCurrent
			}
			lower(least, "no reading from the meter of its circuit")
		}
		w.top[i], w.why[i] = top, why
	}
}

// amperes turns a utility's watts into a current on n phases. The pilot has no
// finer word than 6 A: where 6 A fit at nominal voltage, a voltage above it
// does not turn them away.
func amperes(p meter.Watt, n int, v meter.MilliVolt) meter.MilliAmpere {
	at := func(v meter.MilliVolt) meter.MilliAmpere {
		return meter.MilliAmpere(int64(p) * 1_000_000 / (int64(v) * int64(n)))
	}
	a := at(max(v, nominal))
	if a < MinCurrent && at(nominal) >= MinCurrent {
		return MinCurrent
	}
	return a
}

// admit chooses who is served, and gives each of them the minimum.
func (w *sharing) admit() {
	w.target = make([]meter.MilliAmpere, len(w.loads))
	var order []int
	for i := range w.loads {
		if w.top[i] >= MinCurrent {
			order = append(order, i)
		}
	}
	protected := func(i int) bool {
		l := &w.loads[i]
		return l.limit >= MinCurrent && w.now-l.onT < w.t.rules.Turn
	}
	slices.SortStableFunc(order, func(a, b int) int {
		pa, pb := protected(a), protected(b)
		switch {
		case pa != pb && pa:
			return -1
		case pa != pb:
			return 1
		case w.loads[a].served != w.loads[b].served:
			return int(min(1, max(-1, w.loads[a].served-w.loads[b].served)))
		}
		return a - b
	})
	for _, i := range order {
		short := -1
		for k := range w.hard {
			if q := &w.hard[k]; !q.soft && q.weight[i]*int64(MinCurrent) > q.left {
				short = k
				break
			}
		}
		if short >= 0 {
			w.why[i] = w.hard[short].why
			continue
		}
		w.target[i] = MinCurrent
		for k := range w.hard {
			w.hard[k].left -= w.hard[k].weight[i] * int64(MinCurrent)
		}
	}
	for k := range w.hard {
		w.hard[k].left = max(0, w.hard[k].left) // a soft one may be overdrawn
	}
}

// fill raises all who are served by equal steps until something binds.
func (w *sharing) fill() {
	open := make([]bool, len(w.target))
	for i := range open {
		open[i] = w.target[i] > 0
	}
	for {
		rise, any := int64(-1), false
		for i, o := range open {
			if o {
				any = true
				if d := int64(w.top[i] - w.target[i]); rise < 0 || d < rise {
					rise = d
				}
			}
		}
		if !any {
			return
		}
		for k := range w.hard {
			var sum int64
			for i, o := range open {
				if o {
					sum += w.hard[k].weight[i]
				}
			}
			if sum > 0 {
				rise = min(rise, w.hard[k].left/sum)
			}
		}
		for i, o := range open {
			if o {
				w.target[i] += meter.MilliAmpere(rise)
				for k := range w.hard {
					w.hard[k].left -= w.hard[k].weight[i] * rise
				}
			}
		}
		// Close those at their ceiling, and those below a full constraint.
		for k := range w.hard {
			var sum int64
			for i, o := range open {
				if o {
					sum += w.hard[k].weight[i]
				}
			}
			if sum == 0 || w.hard[k].left >= sum {
				continue
			}
			for i := range open {
				if open[i] && w.hard[k].weight[i] > 0 {
					open[i] = false
					if w.target[i] < w.top[i] {
						w.why[i] = w.hard[k].why
					}
				}
			}
		}
		for i := range open {
			open[i] = open[i] && w.target[i] < w.top[i]
		}
	}
}

// apply lowers at once and raises with patience, into room that nobody else
// may still be using.
func (w *sharing) apply() {
	turn := false // somebody takes another's place
	for i := range w.loads {
		turn = turn || (w.target[i] >= MinCurrent && w.loads[i].limit == 0 && !w.loads[i].cut)
	}
	for i := range w.loads {
		l := &w.loads[i]
		w.target[i] -= w.target[i] % step
		if t := w.target[i]; t < l.limit {
			if w.now-l.loweredT >= w.t.rules.Turnaround {
				l.before = l.limit
			}
			l.before = max(l.before, l.limit)
			l.cut = t == 0 && w.top[i] >= MinCurrent && !turn
			l.limit, l.loweredT, l.timing = t, w.now, false
		}
		if w.top[i] < MinCurrent && w.in.Demands[i].Want < MinCurrent {
			l.cut = false
		}
	}
	// After every fall is known: what is committed on each constraint.
	free := make([]int64, len(w.hard))
	for k := range w.hard {
		free[k] = w.hard[k].left
		for i := range w.loads {
			free[k] += w.hard[k].weight[i] * int64(w.target[i]-w.committed(i)) // rounding stays unused
		}
	}
	for i := range w.loads {
		l, t := &w.loads[i], w.target[i]
		if t <= l.limit {
			l.timing = false
			continue
		}
		if !l.timing {
			l.timing, l.cand, l.candT = true, t, w.now
		}
		l.cand = min(l.cand, t)
		wait := w.t.rules.RaiseDelay
		switch {
		case l.limit == 0 && l.cut:
			wait = w.t.rules.ResumeDelay
		case l.limit == 0 && !w.shared(i):
			wait = 0 // nobody's draw blurs the base load
		}
		if w.now-l.candT < wait {
			if w.why[i] == "" || l.limit == 0 {
				w.why[i] = "waiting for the room to last"
			}
			continue
		}
		to, held := l.cand, w.committed(i)
		for k := range w.hard {
			if wt := w.hard[k].weight[i]; wt > 0 && !w.hard[k].soft {
				to = min(to, held+meter.MilliAmpere(max(0, free[k])/wt))
			}
		}
		to -= to % step
		if to < MinCurrent || to <= l.limit {
			w.why[i] = "waiting for others to draw less"
			continue
		}
		for k := range w.hard {
			free[k] -= w.hard[k].weight[i] * int64(max(0, to-held))
		}
		if l.limit == 0 {
			l.onT = w.now
		}
		if to < t {
			w.why[i] = "waiting for the room to last"
		}
		l.limit, l.cut, l.cand, l.candT = to, false, t, w.now
	}
}

// shared tells whether another charger below a fuse of charger i may draw.
func (w *sharing) shared(i int) bool {
	for k := range w.hard {
		for j := range w.loads {
			if j != i && w.hard[k].weight[i] > 0 && w.hard[k].weight[j] > 0 && w.committed(j) > 0 {
				return true
			}
		}
	}
	return false
}

// committed is what charger i may draw at this moment.
func (w *sharing) committed(i int) meter.MilliAmpere {
	l := &w.loads[i]
	if w.now-l.loweredT < w.t.rules.Turnaround {
		return max(l.limit, l.before)
	}
	return l.limit
}
