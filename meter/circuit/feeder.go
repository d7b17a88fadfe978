package circuit

import (
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// MaxMembers is how many gateways may share one feeder.
const MaxMembers = 32

// FeederRules are the times of a feeder that several gateways share.
type FeederRules struct {
	Rules
	// Lease is how long an allotment is valid from the moment it was asked
	// for; ask several times as often.
	Lease time.Duration
}

// grace is how long a gateway without a lease waits before it takes its
// failsafe share: the leader needs it to bring the others down.
func (r FeederRules) grace() time.Duration { return r.Lease + r.Turnaround }

// Member is a gateway behind the feeder.
type Member struct {
	Name     string
	Failsafe meter.MilliAmpere // per phase, for all its chargers, while nobody leads
	Chargers []Charger         // Circuit is not used; ID is unique per member
}

// Feeder is what the leader knows: a rating, and who hangs on it. It does not
// change after NewFeeder.
//
// A member asks for its chargers and is answered with a lease, a current for
// each of them. It obeys a lease until Lease after the moment it asked; then
// it pauses for Lease + Turnaround and takes its failsafe share.
//
//	member  ask ────────► lease obeyed ───────────► pause ──────────► failsafe
//	          └► leader     └ Lease after the ask     └ grace later
//
// No clocks are compared, and messages may come late or never:
//
//   - What a lease allows counts as drawn until Lease + Turnaround after the
//     leader's answer, which is later than the member's question.
//   - The leader keeps a failsafe share free unless it knows that the member is
//     not about to take it. It knows by echoes: a request names the newest
//     lease that the member holds, and that lease names what the request it
//     answered had named. The question behind a lease was therefore asked after
//     the leader had sent the lease named in it.
//
// The failsafe shares of all fit the rating together.
type Feeder struct {
	rules   FeederRules
	tree    *Tree
	members []Member
	first   []int // index of a member's first charger in the tree
}

// NewFeeder checks a feeder of that rating per phase. metered says that
// FeederInput.Meter tells what flows through it; otherwise reserve is kept
// free for what is no charger.
func NewFeeder(r FeederRules, rating, reserve meter.MilliAmpere, metered bool, members []Member) (*Feeder, error) {
	if len(members) == 0 || len(members) > MaxMembers {
		return nil, fmt.Errorf("a feeder of %d gateways, want 1 to %d", len(members), MaxMembers)
	}
	if r.Lease <= 0 {
		return nil, fmt.Errorf("a lease of %s", r.Lease)
	}
	f := &Feeder{rules: r, members: slices.Clone(members)}
	var all []Charger
	var sum meter.MilliAmpere
	for i, m := range members {
		if f.Member(m.Name) != i || m.Failsafe < 0 {
			return nil, fmt.Errorf("feeder: gateway %q is there twice, or has a failsafe share of %d mA", m.Name, m.Failsafe)
		}
		sum += m.Failsafe
		f.first = append(f.first, len(all))
		for k, h := range m.Chargers {
			if slices.IndexFunc(m.Chargers, func(o Charger) bool { return o.ID == h.ID }) != k {
				return nil, fmt.Errorf("feeder: gateway %s has charger %d twice", m.Name, h.ID)
			}
			h.ID, h.Circuit = uint8(len(all)+1), "feeder"
			all = append(all, h)
		}
	}
	if rating <= 0 || sum > rating-reserve {
		return nil, fmt.Errorf("feeder: failsafe shares of %d mA in sum, %d less %d mA are there", sum, rating, reserve)
	}
	// A member learns of a lower limit with its next lease at the latest.
	inner := r.Rules
	inner.Turnaround += r.Lease
	var err error
	f.tree, err = New(inner, []Circuit{{ID: "feeder", Rating: rating, Reserve: reserve, Metered: metered}}, all)
	return f, err
}

// Member returns the index of a member, or -1.
func (f *Feeder) Member(name string) int {
	return slices.IndexFunc(f.members, func(m Member) bool { return m.Name == name })
}

// Ask is what a member says of one charger.
type Ask struct {
	ID     uint8             `cbor:"1,keyasint"`
	Want   meter.MilliAmpere `cbor:"2,keyasint"`
	Phases int               `cbor:"3,keyasint"` // in use; 0: all that are wired
	Draw   Phases            `cbor:"4,keyasint"` // at its terminals
	Age    time.Duration     `cbor:"5,keyasint"` // of Draw
}

// Request is a member's message to the leader.
type Request struct {
	Seq  uint64 `cbor:"1,keyasint"`
	Held Echo   `cbor:"2,keyasint"` // of the newest lease received
	Asks []Ask  `cbor:"3,keyasint"`
}

// Echo names a lease to the leader that gave it. The zero value names none.
type Echo struct {
	Leader uint64        `cbor:"1,keyasint"` // run of the leader's program
	Sent   time.Duration `cbor:"2,keyasint"` // on its clock
	Asked  time.Duration `cbor:"3,keyasint"` // the lease was asked for after this
}

// Allotment is the limit of one charger.
type Allotment struct {
	ID    uint8             `cbor:"1,keyasint"`
	Limit meter.MilliAmpere `cbor:"2,keyasint"`
}

// Lease answers a request.
type Lease struct {
	Seq    uint64        `cbor:"1,keyasint"`
	For    time.Duration `cbor:"2,keyasint"`
	Limits []Allotment   `cbor:"3,keyasint"`
	Echo   Echo          `cbor:"4,keyasint"`
}

// FeederState is the leader's memory. Nobody gets a lease from a new one until
// those of the time before have ended.
type FeederState struct {
	id      uint64
	share   State
	demands []Demand
	members []membership
	started bool
	startT  time.Duration
}

// NewLeader returns the state of a leader that has just started; id is random
// and not 0.
func NewLeader(id uint64) FeederState { return FeederState{id: id} }

type membership struct {
	until  time.Duration // its last lease may be obeyed
	safe   time.Duration // it does not take its failsafe share for grace after this
	ever   bool
	freedT time.Duration // when it was found to obey leases
}

// kept tells whether the member's failsafe share must be kept free.
func (v *membership) kept(r FeederRules, now time.Duration) bool {
	return !v.ever || now >= v.safe || now-v.freedT < r.Turnaround
}

// Tick moves the leader's state on; meter is the feeder's, if it has one. Call
// it at least once a second.
func (f *Feeder) Tick(s FeederState, m Reading, now time.Duration) FeederState {
	s, _ = f.step(s, m, now)
	return s
}

func (f *Feeder) step(s FeederState, m Reading, now time.Duration) (FeederState, []Grant) {
	n := len(f.tree.chargers)
	if !s.started {
		s.started, s.startT = true, now
		s.demands, s.members = make([]Demand, n), make([]membership, len(f.members))
	} else {
		s.demands, s.members = slices.Clone(s.demands), slices.Clone(s.members)
	}
	var other Phases
	for i := range s.members {
		v := &s.members[i]
		if now >= v.until {
			for k := range f.members[i].Chargers {
				s.demands[f.first[i]+k].Want = 0
			}
		}
		if v.kept(f.rules, now) {
			other = other.Add(All(f.members[i].Failsafe))
		}
	}
	in := Input{Meters: []Reading{m}, Demands: s.demands, Other: []Phases{other}}
	var g []Grant
	s.share, g = Step(f.tree, s.share, in, now)
	return s, g
}

// Answer takes a member's request and returns its lease, or ok false: it gets
// none now, because the leader has just started. An
// error means that the request is malformed; it changes nothing.
func (f *Feeder) Answer(s FeederState, member int, r Request, m Reading, now time.Duration) (_ FeederState, _ Lease, ok bool, err error) {
	if member < 0 || member >= len(f.members) {
		return s, Lease{}, false, fmt.Errorf("feeder: no member %d", member)
	}
	mine := f.members[member].Chargers
	for _, a := range r.Asks {
		if !slices.ContainsFunc(mine, func(h Charger) bool { return h.ID == a.ID }) {
			return s, Lease{}, false, fmt.Errorf("feeder: gateway %s has no charger %d here", f.members[member].Name, a.ID)
		}
		if a.Want < 0 || a.Want > 100_000 || a.Phases < 0 || a.Phases > 3 || a.Age < 0 || a.Age > time.Hour {
			return s, Lease{}, false, fmt.Errorf("feeder: gateway %s asks %+v", f.members[member].Name, a)
		}
	}
	s, _ = f.step(s, m, now)
	if now-s.startT < f.rules.grace() {
		return s, Lease{}, false, nil
	}
	v := &s.members[member]
	echo := Echo{Leader: s.id, Sent: now, Asked: -1}
	if h := r.Held; h.Leader == s.id && h.Sent <= now {
		echo.Asked = h.Sent
		if safe := h.Asked + f.rules.Lease; h.Asked >= 0 && h.Asked <= now && safe > v.safe {
			if v.kept(f.rules, now) && now < safe && (!v.ever || now >= v.safe) {
				v.freedT = now
			}
			v.ever, v.safe = true, safe
		}
	}
	v.until = now + f.rules.Lease
	for _, a := range r.Asks {
		k := slices.IndexFunc(mine, func(h Charger) bool { return h.ID == a.ID })
		d := &s.demands[f.first[member]+k]
		*d = Demand{Want: a.Want, Phases: a.Phases, Draw: a.Draw, DrawKnown: true, DrawAt: max(d.DrawAt, now-a.Age), Cap: -1}
	}
	s, grants := f.step(s, m, now)
	l := Lease{Seq: r.Seq, For: f.rules.Lease, Echo: echo}
	for k, h := range mine {
		l.Limits = append(l.Limits, Allotment{h.ID, grants[f.first[member]+k].Limit})
	}
	return s, l, true, nil
}

// LeaseState is a member's memory.
type LeaseState struct {
	seq     uint64
	sent    time.Duration // of request seq
	waiting bool
	limits  []Allotment
	echo    Echo
	held    bool
	until   time.Duration // end of the lease, or of any from before the start
	started bool
}

// NewLease returns the state of a member that has just started; seq is random,
// so that no answer to an earlier run of the program fits.
func NewLease(seq uint64) LeaseState { return LeaseState{seq: seq} }

// Asked returns the next request, without its Asks.
func Asked(s LeaseState, now time.Duration) (LeaseState, Request) {
	s.seq++
	s.sent, s.waiting = now, true
	return s, Request{Seq: s.seq, Held: s.echo}
}

// Leased takes an answer. One to another request than the last is ignored.
func Leased(s LeaseState, l Lease, now time.Duration) LeaseState {
	if !s.waiting || l.Seq != s.seq || l.For <= 0 || l.For > time.Hour || now-s.sent >= l.For || len(l.Limits) > MaxChargers {
		return s
	}
	s.waiting, s.held, s.started = false, true, true
	s.limits, s.until, s.echo = slices.Clone(l.Limits), s.sent+l.For, l.Echo
	return s
}

// Caps says what holds now: with leased true the limit of each charger (0 for
// one that the lease does not name, and for all in the pause after it), otherwise the failsafe share, which is
// the rating of the circuit that stands for the feeder.
func Caps(r FeederRules, s LeaseState, chargers []uint8, now time.Duration) (_ LeaseState, caps []meter.MilliAmpere, leased bool) {
	if !s.started {
		// A lease of the time before the start may still run at the leader.
		s.started, s.until = true, now+r.Lease
	}
	if now-s.until >= r.grace() {
		return s, nil, false
	}
	caps = make([]meter.MilliAmpere, len(chargers))
	if s.held && now < s.until {
		for i, id := range chargers {
			if k := slices.IndexFunc(s.limits, func(a Allotment) bool { return a.ID == id }); k >= 0 {
				caps[i] = max(0, s.limits[k].Limit)
			}
		}
	}
	return s, caps, true
}
