package poll

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// Limits are what is plausible for one device.
type Limits struct {
	// MaxPower is the most the connection can carry in either direction.
	// It bounds power, and energy per time. 0: DefaultMaxPower.
	MaxPower meter.MilliWatt
	// Voltage line to neutral and frequency must lie in these ranges, or be
	// zero: a line without supply, an inverter at night.
	MinVoltage, MaxVoltage     meter.MilliVolt
	MinFrequency, MaxFrequency meter.MilliHertz
	// StaleAfter is the age at which values without successor become Stale.
	StaleAfter time.Duration
	// ZeroHold is how long a meter whose energy registers are all zero from
	// the first reading on is doubted.
	ZeroHold time.Duration
	// Evidence is how much energy has to flow before registers are compared
	// with power; 0: DefaultEvidence. Less than 0: they are not, for a device
	// whose power is not that of its registers.
	Evidence meter.MilliWattHour
}

// Defaults: a 3 x 63 A house connection on a 50 Hz network with the ranges of
// EN 50160 (voltage +-15 %, frequency +4 % -6 %), and the 10 s after which
// charging on a silent grid meter is cut back.
const (
	DefaultMaxPower     meter.MilliWatt  = 44_000_000
	DefaultMinVoltage   meter.MilliVolt  = 195_500
	DefaultMaxVoltage   meter.MilliVolt  = 264_500
	DefaultMinFrequency meter.MilliHertz = 47_000
	DefaultMaxFrequency meter.MilliHertz = 52_000
	DefaultStaleAfter                    = 10 * time.Second
	DefaultZeroHold                      = 10 * time.Second
)

// WithDefaults returns l with every zero field replaced by its default.
func (l Limits) WithDefaults() Limits {
	set(&l.MaxPower, DefaultMaxPower)
	set(&l.MinVoltage, DefaultMinVoltage)
	set(&l.MaxVoltage, DefaultMaxVoltage)
	set(&l.MinFrequency, DefaultMinFrequency)
	set(&l.MaxFrequency, DefaultMaxFrequency)
	set(&l.StaleAfter, DefaultStaleAfter)
	set(&l.ZeroHold, DefaultZeroHold)
	set(&l.Evidence, DefaultEvidence)
	return l
}

func set[T ~int64](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// MaxRegisters is how many energy registers of a device are watched: import,
// export and sum, total and per line.
const MaxRegisters = 12

// maxUpdate is how rarely a meter may bring its registers up to date: energy of
// that long may appear at once.
const maxUpdate = time.Minute

// State is what is remembered of one device. The zero value has seen nothing.
type State struct {
	Page      uint64     // of the last reading
	Registers []Register // energy registers seen so far, at most MaxRegisters
	Pinned    Identity   // who the device is; a field is pinned when first told
	Balances  [2]Balance // of the import and the export register
	Excess    int        // readings in a row with more power than voltage and current carry
	Last      meter.Reading
	Failures  int           // polls in a row without an answer
	RetryAt   time.Duration // monotonic; not before this after a failure
}

// Register is the base of one energy register: the last value that may be
// billed.
type Register struct {
	Quantity meter.Quantity
	Phase    uint8
	Value    meter.MilliWattHour
	Changed  time.Duration // monotonic time at which it took this value
	Seen     time.Duration // monotonic time at which it last showed it in a good reading
	// Confirmed: a later reading agreed with it.
	Confirmed bool
}

// Outcome is one poll: values, or an error.
type Outcome struct {
	Now  time.Duration // monotonic
	Wall int64         // Unix milliseconds
	// Points and Digits (the step of each point) as decoded, and the registers
	// they came from.
	Points []meter.Point
	Digits []int64
	Raw    []meter.RawBlock
	// Identity is who the device is now, as far as it is known.
	Identity Identity
	// Doubt is why the line itself distrusts the answer; empty if it does not.
	Doubt string
}

// Step takes the answer to a poll. It returns the next state and the reading,
// without device, profile and unit, which the caller knows.
func Step(s State, l Limits, o Outcome) (State, meter.Reading) {
	if len(o.Digits) != len(o.Points) {
		panic(fmt.Sprintf("poll: %d points with %d digits", len(o.Points), len(o.Digits)))
	}
	s.Failures, s.RetryAt = 0, 0
	s.Page++
	r := meter.Reading{Page: s.Page, Wall: o.Wall, Mono: o.Now, Quality: meter.Good, Points: o.Points, Raw: o.Raw}
	doubts := []string{o.Doubt, s.Pinned.differs(o.Identity), implausible(l, o.Points)}
	if doubts[1] == "" {
		s.Pinned = s.Pinned.pin(o.Identity)
	}
	if phase := excess(o.Points); phase == 0 {
		s.Excess = 0
	} else if s.Excess++; s.Excess >= maxExcess {
		s.Excess = maxExcess
		doubts = append(doubts, fmt.Sprintf("line %d has more power than voltage times current: do their transformer ratios differ?", phase))
	}
	r.Reason = cmp.Or(doubts...)
	good, tentative, reason := gate(s.Registers, l, o)
	switch {
	case r.Reason != "":
		// A reading that is doubted for any reason moves no base.
		s.Balances = suspended(s.Balances)
	case reason != "":
		r.Reason, s.Registers, s.Balances = reason, tentative, suspended(s.Balances)
	default:
		if s.Balances, r.Reason = balance(s.Balances, l, s.Last, o); r.Reason == "" {
			s.Registers = good
		}
	}
	if r.Reason != "" {
		r.Quality = meter.Suspect
	}
	s.Last = r
	return s, r
}

// implausible returns why the momentary values cannot be true, or "".
func implausible(l Limits, points []meter.Point) string {
	for _, p := range points {
		if p.Value == 0 {
			continue
		}
		var lo, hi int64
		switch p.Quantity {
		case meter.Power:
			lo, hi = -int64(l.MaxPower), int64(l.MaxPower)
		case meter.Voltage:
			lo, hi = int64(l.MinVoltage), int64(l.MaxVoltage)
		case meter.Frequency:
			lo, hi = int64(l.MinFrequency), int64(l.MaxFrequency)
		default:
			continue
		}
		if p.Value < lo || p.Value > hi {
			return fmt.Sprintf("%s = %d is outside %d..%d", p.Name(), p.Value, lo, hi)
		}
	}
	return ""
}

func isEnergy(q meter.Quantity) bool {
	return q == meter.Import || q == meter.Export || q == meter.Energy
}

// gate compares the energy registers with their bases. All or nothing: unless
// every register continues its base, there is a reason and no confirmed base
// moves. It returns the next bases if the reading is good, and if it is not:
// those that nothing has confirmed yet follow what the meter says.
func gate(bases []Register, l Limits, o Outcome) (good, tentative []Register, reason string) {
	complain := func(format string, args ...any) {
		if reason == "" {
			reason = fmt.Sprintf(format, args...)
		}
	}
	good, tentative = slices.Clone(bases), slices.Clone(bases)
	seen := make([]bool, len(bases))
	blank := true // no register has counted yet
	for i, p := range o.Points {
		if !isEnergy(p.Quantity) {
			continue
		}
		v := meter.MilliWattHour(p.Value)
		blank = blank && v == 0
		if v < 0 {
			complain("%s = %d is negative", p.Name(), v)
		}
		first := Register{p.Quantity, p.Phase, v, o.Now, o.Now, false}
		j := slices.IndexFunc(bases, func(r Register) bool { return r.Quantity == p.Quantity && r.Phase == p.Phase })
		if j < 0 {
			if len(good) == MaxRegisters {
				complain("%s: more than %d energy registers", p.Name(), MaxRegisters)
				continue
			}
			good, tentative = append(good, first), append(tentative, first)
			continue
		}
		seen[j] = true
		b := bases[j]
		elapsed := o.Now - max(b.Changed, b.Seen-maxUpdate)
		allowed := addSat(energy(l.MaxPower, elapsed), o.Digits[i])
		switch {
		case v == b.Value:
			good[j].Seen, good[j].Confirmed = o.Now, true
		case v > b.Value && int64(v-b.Value) <= allowed:
			good[j] = Register{p.Quantity, p.Phase, v, o.Now, o.Now, true}
		case !b.Confirmed:
			complain("%s = %d contradicts the first reading %d", p.Name(), v, b.Value)
			tentative[j] = first
		case v == 0:
			complain("%s is 0 after %d: the meter has restarted or was reset", p.Name(), b.Value)
		case v < b.Value:
			complain("%s went back from %d to %d", p.Name(), b.Value, v)
		default:
			complain("%s jumped from %d to %d, at most %d was possible in %s", p.Name(), b.Value, v, allowed, elapsed)
		}
	}
	for j, b := range bases {
		if !seen[j] && everyTime(b) {
			complain("%s is not a number", meter.PointName(b.Quantity, b.Phase))
		}
	}
	if since, unsure := blankSince(tentative); blank && unsure && o.Now-since < l.ZeroHold {
		complain("all energy registers are 0: a meter that has just started shows that too, doubted for %s", l.ZeroHold)
	}
	return good, slices.DeleteFunc(tentative, func(r Register) bool { return r.Value < 0 }), reason
}

// everyTime reports whether a register is part of every poll: totals are,
// registers per line and sums may be slow.
func everyTime(r Register) bool { return r.Phase == 0 && r.Quantity != meter.Energy }

// blankSince reports since when a meter whose count nothing has confirmed
// shows zero.
func blankSince(bases []Register) (since time.Duration, unsure bool) {
	for _, b := range bases {
		if b.Value == 0 && !b.Confirmed {
			since, unsure = max(since, b.Changed), true
		}
	}
	return since, unsure
}

// energy returns what power carries in d, in mWh, rounded up, at least 0 and
// at most the largest integer.
func energy(power meter.MilliWatt, d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	const hour = int64(time.Hour / time.Millisecond)
	ms := int64(d/time.Millisecond) + 1
	if p := int64(power); p > (1<<62)/ms {
		return 1 << 62
	}
	return int64(power)*ms/hour + 1
}

func addSat(a, b int64) int64 {
	if b > (1<<62)-a {
		return 1 << 62
	}
	return a + b
}

// Fail takes a poll without an answer. It returns the next state, in which
// RetryAt says when to ask again.
func Fail(s State, now time.Duration) State {
	s.Failures++
	s.RetryAt = now + Backoff(s.Failures)
	return s
}

// First and last pause after a failure.
const (
	MinBackoff = 1 * time.Second
	MaxBackoff = 60 * time.Second
)

// Backoff returns the pause after the n-th failure in a row: 1, 2, 4 .. 60 s.
func Backoff(n int) time.Duration {
	if n < 1 {
		return 0
	}
	d := MinBackoff
	for range min(n-1, 6) {
		d *= 2
	}
	return min(d, MaxBackoff)
}

// Age returns a Stale reading if the last values are older than l.StaleAfter,
// or if there never were any; start is when polling began. The reading keeps
// the time of its values. It counts as a page.
func Age(s State, l Limits, now, start time.Duration, wall int64) (State, meter.Reading, bool) {
	since := start
	if s.Last.Quality != 0 {
		since = max(since, s.Last.Mono)
	}
	if now-since < l.StaleAfter {
		return s, meter.Reading{}, false
	}
	s.Page++
	r := s.Last
	r.Raw = nil
	if r.Quality == 0 {
		r.Mono, r.Wall = now, wall
	}
	r.Page, r.Quality = s.Page, meter.Stale
	r.Reason = fmt.Sprintf("no answer for %s", (now - since).Round(time.Second))
	return s, r, true
}

// Resume returns the state with which polling goes on after a restart: the page,
// the bases and the identity that were stored, and how long ago that was.
// Monotonic times start anew at zero.
func Resume(page uint64, bases []Register, pinned Identity, away time.Duration) State {
	s := State{Page: page, Registers: slices.Clone(bases), Pinned: pinned}
	for i := range s.Registers {
		s.Registers[i].Changed, s.Registers[i].Seen = -away, -away
	}
	return s
}

// Rebase forgets the energy bases and who the device is: a person has
// confirmed that its registers may start anew (another meter, a reset) or that
// it is another one.
func Rebase(s State) State {
	s.Registers, s.Pinned, s.Balances, s.Excess = nil, Identity{}, [2]Balance{}, 0
	return s
}

// SmallestBlock is the shortest read worth trying on a device that refuses
// long ones.
const SmallestBlock = 4

// Shrink returns the next smaller block length to try after a device refused
// n registers (exception 2 or 3), and whether there is one.
func Shrink(n uint16) (uint16, bool) {
	if n <= SmallestBlock {
		return n, false
	}
	return max(n/2, SmallestBlock), true
}
