// Package identify finds out which meter measures what: a person switches a
// known load on and off, and the meter whose power follows is the one.
//
//	load      ____________----------__________-----------________
//	grid  L1  ~~~~~~~~~~~~^^^^^^^^^^~~~~~~~~~~^^^^^^^^^^^~~~~~~~~  +2 kW: here, right
//	grid  L2  ~~^^~~~~~~~~~~~~~~~~~~~~~^^^^~~~~~~~~~~~~~~~~~~~~~~  a hob of its own will
//	heat  L1  ~~~~~~~~~~~~__________~~~~~~~~~~___________~~~~~~~~  -2 kW: here, reversed
//	          off         on        off       on         off
//
// A channel (a meter's total, or one of its lines) has moved if its power
// stepped the same way at every switch, on and off, by more than it wanders
// between them. One switch proves nothing: kettles and clouds do the same. A
// step in the other direction is a current transformer that is mounted the
// wrong way round. Half a step backwards at full current is one that sits on
// another line than the voltage beside it: the angle between two lines is 120
// degrees, and its cosine -1/2.
//
// Everything here is pure; samples and switches are values with a time.
package identify

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// Limits of a record. Beyond them the oldest samples are forgotten, and no
// more switches are taken.
const (
	MaxSamples  = 65536
	MaxSwitches = 64
)

// Sample is what one meter said at one moment.
type Sample struct {
	Meter  string
	At     time.Duration // monotonic
	Points []meter.Point
}

// Switch is one turn of the load.
type Switch struct {
	At time.Duration
	On bool
}

// Record is what was observed. The zero value is empty.
type Record struct {
	Samples  []Sample
	Switches []Switch
}

// Add appends a sample.
func (r *Record) Add(s Sample) {
	if len(r.Samples) >= MaxSamples {
		r.Samples = slices.Delete(r.Samples, 0, MaxSamples/4)
	}
	r.Samples = append(r.Samples, s)
}

// Turn appends a switch. It is an error to turn a load on that is on.
func (r *Record) Turn(s Switch) error {
	if n := len(r.Switches); n > 0 && (r.Switches[n-1].On == s.On || r.Switches[n-1].At > s.At) {
		return fmt.Errorf("switch %d: on %v at %s after on %v at %s", n+1, s.On, s.At, r.Switches[n-1].On, r.Switches[n-1].At)
	}
	if len(r.Switches) >= MaxSwitches {
		return fmt.Errorf("more than %d switches", MaxSwitches)
	}
	r.Switches = append(r.Switches, s)
	return nil
}

// Limits say what counts as a step.
type Limits struct {
	// Load is the power of what is switched. 0: not known, any step of
	// MinStep and more counts.
	Load meter.MilliWatt
	// Settle is for how long after a switch readings are not used: meters
	// average, and people press keys late. 0: DefaultSettle.
	Settle time.Duration
	// Late is for how long before a switch readings are not used, because
	// the person may have been early. 0: DefaultLate.
	Late time.Duration
}

// Defaults.
const (
	DefaultSettle                 = 2500 * time.Millisecond
	DefaultLate                   = 500 * time.Millisecond
	MinStep       meter.MilliWatt = 150_000
)

// Wiring is how a line's current transformer is mounted.
type Wiring uint8

// Wirings.
const (
	Right    Wiring = 1 + iota
	Reversed        // the wrong way round
	Crossed         // on another line than the voltage that it is multiplied with
)

func (w Wiring) String() string {
	switch w {
	case Right:
		return "right"
	case Reversed:
		return "reversed"
	case Crossed:
		return "crossed"
	}
	return fmt.Sprintf("wiring(%d)", uint8(w))
}

// MarshalText implements encoding.TextMarshaler.
func (w Wiring) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (w *Wiring) UnmarshalText(b []byte) error {
	for _, x := range []Wiring{Right, Reversed, Crossed} {
		if string(b) == x.String() {
			*w = x
			return nil
		}
	}
	return fmt.Errorf("unknown wiring %q", b)
}

// Line is a channel that has moved; Phase 0 is the total of a meter that tells
// no lines.
type Line struct {
	Phase  uint8
	Step   meter.MilliWatt // when the load is switched on; import positive
	Wiring Wiring
}

// Finding is a meter that has moved.
type Finding struct {
	Meter string
	Step  meter.MilliWatt // of the total
	Lines []Line
}

// Report is what a record proves.
type Report struct {
	// Moved are the meters that follow the load, the closest to it first.
	// Several may: a load behind a sub-meter moves the grid meter, too.
	Moved []Finding
	// Still are the meters that do not.
	Still []string
	// Unsure are the meters that have said too little.
	Unsure []string
}

// minSteps is how many switches a channel must have followed, at least one of
// them on and one off.
const minSteps = 2

// Decide says which meters followed the switches of r.
func Decide(r Record, l Limits) Report {
	l.Settle, l.Late = cmp.Or(l.Settle, DefaultSettle), cmp.Or(l.Late, DefaultLate)
	var names []string
	for _, s := range r.Samples {
		if !slices.Contains(names, s.Meter) {
			names = append(names, s.Meter)
		}
	}
	slices.Sort(names)
	var rep Report
	for _, name := range names {
		f, verdict := examine(r, l, name)
		switch verdict {
		case moved:
			rep.Moved = append(rep.Moved, f)
		case still:
			rep.Still = append(rep.Still, name)
		default:
			rep.Unsure = append(rep.Unsure, name)
		}
	}
	far := func(f Finding) meter.MilliWatt { return abs(abs(f.Step) - l.Load) }
	slices.SortStableFunc(rep.Moved, func(a, b Finding) int { return cmp.Compare(far(a), far(b)) })
	return rep
}

type verdict uint8

const (
	unsure verdict = iota
	still
	moved
)

// examine judges one meter.
func examine(r Record, l Limits, name string) (Finding, verdict) {
	total, any := follow(r, l, name, meter.Power, 0)
	f := Finding{Meter: name, Step: meter.MilliWatt(total.size)}
	gross := abs(meter.MilliWatt(total.size)) // what moved, whatever its direction
	moves := total.moves(l, 1)
	lines, sum := meter.MilliWatt(0), meter.MilliWatt(0)
	for phase := uint8(1); phase <= 3; phase++ {
		s, ok := follow(r, l, name, meter.Power, phase)
		any = any || ok
		if !ok || !s.moves(l, 3) {
			continue
		}
		step := meter.MilliWatt(s.size)
		line := Line{phase, step, Right}
		if step < 0 {
			line.Wiring = Reversed
			if crossed(r, l, name, phase, step) {
				line.Wiring = Crossed
			}
		}
		f.Lines = append(f.Lines, line)
		lines, sum = lines+abs(step), sum+step
	}
	switch {
	case !any:
		return f, unsure
	case len(f.Lines) > 0:
		gross = lines
		if !moves {
			f.Step = sum
		}
	case !moves:
		return f, still
	default:
		w := Right
		if total.size < 0 {
			w = Reversed
		}
		f.Lines = []Line{{0, f.Step, w}}
	}
	if l.Load > 0 && (gross < l.Load*2/5 || gross > l.Load*8/5) {
		return f, still // it follows, but it is something else
	}
	return f, moved
}

// steps is how a channel behaved at all switches.
type steps struct {
	size   int64 // median step when on, signed
	least  int64 // smallest step in the direction of size
	wander int64 // largest spread between switches
	n      int
	both   bool // a switch on and one off are among them
}

// moves reports whether the channel follows a load of which it sees at least a
// share-th part.
func (s steps) moves(l Limits, share meter.MilliWatt) bool {
	need := int64(MinStep)
	if l.Load > 0 {
		need = max(int64(l.Load/5/share), 20_000)
	}
	return s.n >= minSteps && s.both && s.least >= need && s.least > 2*s.wander
}

// follow measures the steps of one channel. ok is false if it said too little.
func follow(r Record, l Limits, name string, q meter.Quantity, phase uint8) (s steps, ok bool) {
	var sizes []int64
	on, off := false, false
	for i, sw := range r.Switches {
		from, to := time.Duration(-1<<62), time.Duration(1<<62)
		if i > 0 {
			from = r.Switches[i-1].At + l.Settle
		}
		if i+1 < len(r.Switches) {
			to = r.Switches[i+1].At - l.Late
		}
		before, spread1, ok1 := level(r, name, q, phase, from, sw.At-l.Late)
		after, spread2, ok2 := level(r, name, q, phase, sw.At+l.Settle, to)
		if !ok1 || !ok2 {
			continue
		}
		step := after - before
		if !sw.On {
			step = -step
		}
		sizes = append(sizes, step)
		s.wander = max(s.wander, spread1, spread2)
		on, off = on || sw.On, off || !sw.On
	}
	s.n, s.both = len(sizes), on && off
	if s.n < minSteps || !s.both {
		return s, false
	}
	s.size = median(sizes)
	s.least = int64(1) << 62
	for _, x := range sizes {
		if s.size < 0 {
			x = -x
		}
		s.least = min(s.least, x)
	}
	return s, true
}

// minLevel is how many readings between two switches make a level.
const minLevel = 2

// level returns the median of a channel between two times, and the median
// distance from it.
func level(r Record, name string, q meter.Quantity, phase uint8, from, to time.Duration) (mid, spread int64, ok bool) {
	var values []int64
	for _, s := range r.Samples {
		if s.Meter != name || s.At < from || s.At > to {
			continue
		}
		for _, p := range s.Points {
			if p.Quantity == q && p.Phase == phase {
				values = append(values, max(min(p.Value, 1<<50), -1<<50)) // keeps differences in range
			}
		}
	}
	if len(values) < minLevel {
		return 0, 0, false
	}
	mid = median(values)
	for i, v := range values {
		values[i] = max(v-mid, mid-v)
	}
	return mid, median(values), true
}

// crossed reports whether the current on a line stepped as much as the load
// wants, while its power went back by half of that: the cosine of 120 degrees.
func crossed(r Record, l Limits, name string, phase uint8, power meter.MilliWatt) bool {
	amps, ok1 := follow(r, l, name, meter.Current, phase)
	if !ok1 || len(r.Switches) == 0 {
		return false
	}
	volts, _, ok2 := level(r, name, meter.Voltage, phase, r.Switches[0].At-time.Hour, r.Switches[len(r.Switches)-1].At+time.Hour)
	if !ok2 || volts > 1<<30 || max(amps.size, -amps.size) > 1<<30 {
		return false
	}
	apparent := meter.MilliWatt(abs(volts*amps.size) / 1000)
	return abs(power) > apparent/3 && abs(power) < apparent*2/3
}

func median(values []int64) int64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return v[(n-1)/2]/2 + v[n/2]/2 + (v[(n-1)/2]%2+v[n/2]%2)/2
}

func abs[T ~int64](v T) T { return max(v, -v) }
