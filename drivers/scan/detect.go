package scan

import (
	"fmt"
	"math"
	"slices"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// maxReads bounds the reads of one detection. Beyond it the profiles that are
// left are not tried.
const maxReads = 1024

// shortRead is the length of block that even limited devices accept: ten
// values of two registers (some Eastron SDM72).
const shortRead = 20

// Exceptions (Modbus Application Protocol V1.1b3, 7).
const (
	illegalFunction = 1
	illegalAddress  = 2
)

// Match is a profile that fits.
type Match struct {
	Profile  *profile.Profile
	Evidence []string      // what was found, for people
	Points   []meter.Point // everything the device said through the profile

	lacks bool // the device refused registers of the profile
}

// Verdict is what a detection has found.
type Verdict struct {
	// Best is the profile to use; nil if none fits or several do.
	Best *Match
	// Candidates are all profiles that fit, the likeliest first.
	Candidates []Match
	// Why says why none of several candidates is chosen; empty otherwise.
	Why string
	// Chain is what a SunSpec device says about itself; nil for others.
	Chain *profile.Chain
}

// Ambiguous reports whether several profiles fit and none is the best.
func (v *Verdict) Ambiguous() bool { return v.Best == nil && len(v.Candidates) > 0 }

// Detection finds the profiles that fit one device. It is a step machine
// without input or output:
//
//	d := NewDetection(profiles)
//	for {
//		fn, addr, count, done := d.Next()
//		if done {
//			break
//		}
//		d.Feed(read(fn, addr, count))
//	}
//	v := d.Verdict()
type Detection struct {
	known   map[profile.Block][]byte // nil: refused
	absent  map[profile.Block]bool   // refused because a register does not exist
	refused map[drivers.Function]bool
	reads   int

	walk    *profile.Walk
	chain   *profile.Chain
	suspect []*suspect
	at      int // of suspect that is being examined
	pending profile.Block
}

// suspect is a profile under examination.
type suspect struct {
	p       *profile.Profile
	short   *profile.Profile // p with the points of its rules only
	plan    []profile.Block
	split   map[profile.Block]bool // halves of refused blocks: not split again
	raw     []meter.RawBlock
	whole   bool // its rules hold: everything is read now
	out     bool
	done    bool
	matched Match
}

// NewDetection starts a detection among profiles, in order of preference.
func NewDetection(profiles []*profile.Profile) *Detection {
	d := &Detection{known: map[profile.Block][]byte{}, absent: map[profile.Block]bool{}, refused: map[drivers.Function]bool{}}
	var bases []uint16
	for _, p := range profiles {
		s := &suspect{p: p}
		if p.SunSpec != nil {
			for _, b := range p.SunSpec.Bases {
				if !slices.Contains(bases, b) {
					bases = append(bases, b)
				}
			}
		} else {
			short := *p
			short.Points = ruled(p)
			s.short, s.plan = &short, fast(short.Blocks(0))
			s.out = len(s.plan) == 0
		}
		d.suspect = append(d.suspect, s)
	}
	if len(bases) > 0 {
		d.walk = profile.NewWalk(bases)
	}
	// What fits by chance is tried last: it is not needed if something else fits.
	slices.SortStableFunc(d.suspect, func(a, b *suspect) int { return boolInt(!a.sharp()) - boolInt(!b.sharp()) })
	return d
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// ruled returns the points that the rules of p are about.
func ruled(p *profile.Profile) (points []profile.Point) {
	for i := range p.Points {
		pt := p.Points[i]
		if slices.ContainsFunc(p.Detect, func(r profile.Rule) bool { return r.Quantity == pt.Quantity && r.Phase == pt.Phase }) {
			pt.Slow = false
			points = append(points, pt)
		}
	}
	return points
}

// fast makes blocks comparable: whether they are slow does not matter here.
func fast(blocks []profile.Block) []profile.Block {
	for i := range blocks {
		blocks[i].Slow = false
	}
	return blocks
}

// Next returns the next read, or done.
func (d *Detection) Next() (fn drivers.Function, addr, count uint16, done bool) {
	for d.reads < maxReads {
		if d.walk != nil {
			fn, addr, count, over := d.walk.Next()
			if over {
				d.walked()
				continue
			}
			d.pending = profile.Block{Function: fn, Address: addr, Count: count}
			return fn, addr, count, false
		}
		if d.at == len(d.suspect) {
			break
		}
		s := d.suspect[d.at]
		s.out = s.out || !s.done && d.outdone(s)
		if s.out || s.done {
			d.at++
			continue
		}
		if b, ok := d.missing(s); ok {
			d.pending = b
			return b.Function, b.Address, b.Count, false
		}
		d.conclude(s)
	}
	return 0, 0, 0, true
}

// missing returns a block of s that is still to be read. Refused blocks are
// settled here.
func (d *Detection) missing(s *suspect) (profile.Block, bool) {
	for len(s.plan) > 0 {
		b := s.plan[0]
		data, known := d.recall(b)
		switch {
		case d.refused[b.Function]:
			data = nil
		case !known:
			return b, true
		}
		s.plan = s.plan[1:]
		switch {
		case data != nil:
			s.raw = append(s.raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: data})
		case !s.whole && s.p.Fallback != 0 && b.Function != s.p.Fallback && !d.refused[s.p.Fallback]:
			b.Function = s.p.Fallback
			s.plan = slices.Insert(s.plan, 0, b)
		case !s.whole:
			s.out = true
			return profile.Block{}, false
		case b.Count > shortRead && !s.split[b]:
			s.plan = append(s.shorter(b), s.plan...)
		default:
			s.matched.lacks = true
		}
	}
	return profile.Block{}, false
}

// recall returns what is known of b from other reads.
func (d *Detection) recall(b profile.Block) (data []byte, known bool) {
	if data, known = d.known[b]; known {
		return data, true
	}
	end := int(b.Address) + int(b.Count)
	for k, data := range d.known {
		if from := int(k.Address); k.Function == b.Function && data != nil && from <= int(b.Address) && end <= from+int(k.Count) {
			at := 2 * (int(b.Address) - from)
			return data[at : at+2*int(b.Count)], true
		}
		// Who lacks a register refuses every block that it is in.
		if from := int(k.Address); k.Function == b.Function && d.absent[k] && int(b.Address) <= from && from+int(k.Count) <= end {
			return nil, true
		}
	}
	return nil, false
}

// shorter returns blocks that read what b does in small pieces.
func (s *suspect) shorter(b profile.Block) []profile.Block {
	pieces := slices.DeleteFunc(fast(s.p.Blocks(shortRead)), func(x profile.Block) bool {
		return x.Function != b.Function || x.Address < b.Address || int(x.Address)+int(x.Count) > int(b.Address)+int(b.Count) || x == b
	})
	if s.split == nil {
		s.split = map[profile.Block]bool{}
	}
	for _, x := range pieces {
		s.split[x] = true
	}
	return pieces
}

// conclude judges s, whose plan has been read.
func (d *Detection) conclude(s *suspect) {
	if s.out {
		return
	}
	if s.whole {
		points, err := s.p.Decode(s.raw)
		if err != nil {
			s.out = true // a value of the map is none: this is another device
			return
		}
		s.done, s.matched.Points = true, points
		return
	}
	points, err := s.short.Decode(s.raw)
	if err != nil {
		s.out = true
		return
	}
	evidence, ok := s.p.Match(points)
	if !ok || blank(s.raw) || !slices.ContainsFunc(points, func(p meter.Point) bool { return p.Value != 0 }) {
		s.out = true
		return
	}
	s.matched = Match{Profile: s.p, Evidence: evidence}
	s.whole, s.plan = true, fast(s.p.Blocks(0))
	if len(s.raw) > 0 && s.p.Fallback != 0 && drivers.Function(s.raw[0].Function) == s.p.Fallback {
		for i := range s.plan {
			s.plan[i].Function = s.p.Fallback
		}
	}
	s.raw = nil
}

// blank reports whether a device has answered every register with zero, or
// with ones: that proves nothing.
func blank(raw []meter.RawBlock) bool {
	for _, b := range raw {
		for _, c := range b.Data {
			if c != raw[0].Data[0] || c != 0 && c != 0xFF {
				return false
			}
		}
	}
	return true
}

// walked plans the SunSpec profiles when the chain is known.
func (d *Detection) walked() {
	chain, err := d.walk.Chain()
	d.walk = nil
	if len(chain.Models) > 0 {
		d.chain = &chain // even a chain that is broken further on names the device
	}
	for _, s := range d.suspect {
		if s.p.SunSpec == nil {
			continue
		}
		blocks, e := s.p.ChainBlocks(chain, 0)
		if err != nil || e != nil {
			s.out = true
			continue
		}
		s.whole, s.plan = true, fast(blocks)
		s.matched = Match{Profile: s.p, Evidence: []string{
			fmt.Sprintf("SunSpec at register %d, model %s", chain.Base, modelsOf(s.p, chain)),
			fmt.Sprintf("%s %s, version %q, serial number %q", chain.Manufacturer, chain.Model, chain.Version, chain.Serial),
		}}
	}
}

// modelsOf names the models of c that p reads.
func modelsOf(p *profile.Profile, c profile.Chain) string {
	for _, m := range c.Models {
		for _, want := range p.SunSpec.Models {
			if slices.Contains(want.IDs, m.ID) {
				return fmt.Sprint(m.ID)
			}
		}
	}
	return "?"
}

// Feed takes the answer to the read that Next asked for: its registers, or
// nil and the exception code; code 0 means that the device was silent.
func (d *Detection) Feed(data []byte, code uint8) {
	d.reads++
	b := d.pending
	if len(data) != 2*int(b.Count) {
		data = nil
	}
	d.known[b] = data
	if data == nil {
		d.refused[b.Function] = d.refused[b.Function] || code == illegalFunction
		d.absent[b] = code == illegalAddress
	}
	if d.walk != nil {
		_ = d.walk.Feed(data) // its Chain tells
	}
}

// Verdict returns what fits. Before the detection is over it tells what fits
// so far.
func (d *Detection) Verdict() Verdict {
	v := Verdict{Chain: d.chain}
	for _, s := range d.suspect {
		if s.done && s.p.SunSpec != nil {
			v.Candidates = append(v.Candidates, s.matched)
		}
	}
	if len(v.Candidates) > 0 {
		// The marker and the model's id are proof; several models are parts
		// of one device.
		v.Best = &v.Candidates[0]
		return v
	}
	var below []Match
	for i, s := range d.suspect {
		if !s.done {
			continue
		}
		if slices.ContainsFunc(d.suspect, func(o *suspect) bool { return o != d.suspect[i] && o.done && covers(o.matched, s.matched) }) {
			below = append(below, s.matched)
		} else {
			v.Candidates = append(v.Candidates, s.matched)
		}
	}
	top := len(v.Candidates)
	v.Candidates = append(v.Candidates, below...)
	if a, b, ok := rivals(v.Candidates[:top]); ok {
		v.Why = dispute(a, b)
	} else if top > 0 {
		v.Best = &v.Candidates[0]
	}
	return v
}

// sharp reports whether a profile has a rule that hardly holds by chance: a
// voltage or a frequency does, a power between -100 and 100 kW does not.
func (s *suspect) sharp() bool {
	return s.p.SunSpec != nil || slices.ContainsFunc(s.p.Detect, func(r profile.Rule) bool { return r.Min > 0 && r.Max/r.Min < 2 })
}

// outdone reports whether s could fit by chance only, and something else fits
// for a reason. A vendor's other profiles may be parts of the same device.
func (d *Detection) outdone(s *suspect) bool {
	if s.sharp() {
		return false
	}
	other := false
	for _, o := range d.suspect {
		if o.done && o.sharp() {
			if o.p.Vendor == s.p.Vendor {
				return false
			}
			other = true
		}
	}
	return other
}

// rivals returns two of matches that cannot both be true. Profiles of one
// vendor for different kinds of devices can: a hybrid inverter has registers
// of its own and those of the meter that it listens to.
func rivals(matches []Match) (a, b Match, ok bool) {
	for i, a := range matches {
		for _, b := range matches[:i] {
			if a.Profile.Vendor != b.Profile.Vendor || a.Profile.Kind == b.Profile.Kind {
				return b, a, true
			}
		}
	}
	return Match{}, Match{}, false
}

func find(points []meter.Point, q meter.Quantity, phase uint8) (int64, bool) {
	for _, p := range points {
		if p.Quantity == q && p.Phase == phase {
			return p.Value, true
		}
	}
	return 0, false
}

// moving are quantities that change between two reads: equal up to drift.
var moving = []meter.Quantity{meter.Power, meter.Current, meter.Voltage, meter.Frequency, meter.ApparentPower, meter.ReactivePower, meter.PowerFactor, meter.Import, meter.Export, meter.Energy}

// agree reports whether two values of q can be one value read twice.
func agree(q meter.Quantity, a, b int64) bool {
	if a == b {
		return true
	}
	if !slices.Contains(moving, q) {
		return false
	}
	diff := math.Abs(float64(a) - float64(b))
	return diff <= 0.2*math.Max(math.Abs(float64(a)), math.Abs(float64(b)))
}

// says reports whether p is among points.
func says(points []meter.Point, p meter.Point) bool {
	v, ok := find(points, p.Quantity, p.Phase)
	return ok && agree(p.Quantity, v, p.Value)
}

// covers reports whether a is the better description of a device that fits
// both: it says all that b says, and more that the device confirms.
func covers(a, b Match) bool {
	if a.lacks && !b.lacks {
		return false
	}
	said := b.Points
	clear := b.lacks && !a.lacks // the device has all that a wants, and not all that b does
	if clear {
		said = slices.DeleteFunc(slices.Clone(said), func(p meter.Point) bool { return p.Value == 0 })
	}
	single := singlePhase(a.Points) || singlePhase(said)
	for _, p := range said {
		if says(a.Points, p) {
			continue
		}
		// What is the total to a single-phase map is line 1 to another.
		if other := (meter.Point{Quantity: p.Quantity, Phase: 1 - p.Phase, Value: p.Value}); !single || p.Phase > 1 || !says(a.Points, other) {
			return false
		}
	}
	if clear {
		return true
	}
	if len(a.Points) <= len(b.Points) {
		return false
	}
	for _, p := range a.Points {
		if _, both := find(b.Points, p.Quantity, p.Phase); both || p.Value != 0 {
			continue
		}
		// A zero may be a register that the device does not have. A line
		// without voltage and a line without energy beside a total that has
		// some speak against a.
		switch p.Quantity {
		case meter.Voltage:
			return false
		case meter.Import, meter.Export:
			if p.Phase > 0 && lonely(a.Points, p.Quantity) {
				return false
			}
		}
	}
	return true
}

func singlePhase(points []meter.Point) bool {
	return !slices.ContainsFunc(points, func(p meter.Point) bool { return p.Phase > 1 })
}

// lonely reports whether q has a total but nothing on any line.
func lonely(points []meter.Point, q meter.Quantity) bool {
	total, _ := find(points, q, 0)
	for phase := uint8(1); phase <= 3; phase++ {
		if v, _ := find(points, q, phase); v != 0 {
			return false
		}
	}
	return total != 0
}

// dispute says what two candidates disagree about.
func dispute(a, b Match) string {
	for _, p := range a.Points {
		if v, ok := find(b.Points, p.Quantity, p.Phase); ok && !says(b.Points, p) {
			return fmt.Sprintf("%s is %d as %s and %d as %s: compare with the display", p.Name(), p.Value, a.Profile.ID, v, b.Profile.ID)
		}
	}
	return fmt.Sprintf("what the device says fits %s and %s: look at its label", a.Profile.ID, b.Profile.ID)
}
