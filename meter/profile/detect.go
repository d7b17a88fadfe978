package profile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Limits of a detection.
const (
	maxDetectReads = 1000
	detectBlock    = 20 // registers per read: some meters refuse more
	minLive        = 2  // zeros make sense everywhere and prove nothing
)

// Detect finds out which profile fits a device that answers, one read at a
// time. It is a step machine as Walk is:
//
//	d := NewDetect(profile.All())
//	for {
//		fn, addr, count, done := d.Next()
//		if done {
//			break
//		}
//		d.Feed(read(fn, addr, count)) // nil if refused
//	}
//	findings := d.Findings()
//
// First it looks for SunSpec's marker, then for the points by which each
// profile is recognised, and of the profiles that are left it reads everything
// and asks whether it makes sense together: the lines add up, no power without
// current, no voltage that a house does not have. Registers are read once,
// however many profiles want them.
//
// It never guesses. Several findings mean that the registers do not tell: a
// person compares with the display.
type Detect struct {
	walk       *Walk
	image      Image
	refused    map[Block]bool
	candidates []*candidate
	asked      *Block // without walk
	reads      int
}

// candidate is a profile, read with one function.
type candidate struct {
	p      *Profile
	other  bool // with the fallback function
	stage  candidateStage
	blocks []Block // left to read in this stage
	all    []Block // of the last stage
	found  Finding
	values map[key]int64
}

type candidateStage uint8

const (
	stageRules candidateStage = iota
	stageAll
	stageFits
	stageOut
)

// Finding is a profile that fits.
type Finding struct {
	Profile  *Profile
	Evidence []string // what was found, for people
	Live     int      // points with a value that makes sense and is not zero
}

// NewDetect starts a detection among profiles.
func NewDetect(profiles []*Profile) *Detect {
	d := &Detect{image: Image{}, refused: map[Block]bool{}}
	for _, p := range profiles {
		c := &candidate{p: p}
		if p.SunSpec != nil {
			if d.walk == nil {
				d.walk = NewWalk([]uint16{40000, 0, 50000})
			}
		} else {
			c.blocks = c.turn(p.ruleBlocks())
			if p.Fallback != 0 {
				o := &candidate{p: p, other: true}
				o.blocks = o.turn(p.ruleBlocks())
				d.candidates = append(d.candidates, o)
			}
		}
		d.candidates = append(d.candidates, c)
	}
	return d
}

// turn puts the fallback function into blocks.
func (c *candidate) turn(blocks []Block) []Block {
	if c.other {
		for i := range blocks {
			blocks[i].Function = c.p.Fallback
		}
	}
	return blocks
}

// ruleBlocks returns the reads of the points by which p is recognised.
func (p *Profile) ruleBlocks() []Block {
	q := *p
	q.Points = slices.DeleteFunc(slices.Clone(p.Points), func(pt Point) bool {
		return !slices.ContainsFunc(p.Detect, func(r Rule) bool { return r.Quantity == pt.Quantity && r.Phase == pt.Phase })
	})
	q.Timing.Bridge = 0 // no more than needed: others are asked for the rest
	return q.Blocks(detectBlock)
}

// Next returns the next read, or done.
func (d *Detect) Next() (fn drivers.Function, addr, count uint16, done bool) {
	if d.reads >= maxDetectReads {
		return 0, 0, 0, true
	}
	if d.walk != nil {
		if fn, addr, count, done := d.walk.Next(); !done {
			return fn, addr, count, false
		}
		d.chain()
	}
	for {
		b := d.need()
		if b == nil {
			return 0, 0, 0, true
		}
		if d.asked = b; !d.known(*b) {
			return b.Function, b.Address, b.Count, false
		}
	}
}

// known reports whether b was answered or refused already.
func (d *Detect) known(b Block) bool {
	_, ok := d.image.Read(b.Function, b.Address, b.Count)
	return ok || d.refused[Block{Function: b.Function, Address: b.Address, Count: b.Count}]
}

// Feed takes the answer to the read that Next asked for; nil if the device
// refused it or was silent. An answer of the wrong length counts as refused.
func (d *Detect) Feed(data []byte) {
	d.reads++
	if d.walk != nil {
		_, addr, count, done := d.walk.Next()
		if !done {
			if len(data) != 2*int(count) {
				data = nil
			}
			d.keep(drivers.HoldingRegisters, addr, data)
			_ = d.walk.Feed(data) // Chain tells
			return
		}
	}
	if b := d.asked; b != nil {
		if len(data) == 2*int(b.Count) {
			d.keep(b.Function, b.Address, data)
		} else {
			d.refused[Block{Function: b.Function, Address: b.Address, Count: b.Count}] = true
		}
	}
}

func (d *Detect) keep(fn drivers.Function, addr uint16, data []byte) {
	for i := range len(data) / 2 {
		d.image[Register{fn, addr + uint16(i)}] = word(data, i)
	}
}

// chain ends the walk: SunSpec profiles whose models are there go on.
func (d *Detect) chain() {
	chain, err := d.walk.Chain()
	d.walk = nil
	for _, c := range d.candidates {
		if c.p.SunSpec == nil {
			continue
		}
		c.stage = stageOut
		if err != nil || !c.p.madeBy(chain.Manufacturer) {
			continue
		}
		if blocks, err := c.p.ChainBlocks(chain, 0); err == nil {
			c.stage, c.blocks, c.all = stageAll, blocks, blocks
			c.found.Evidence = []string{fmt.Sprintf("SunSpec at register %d, models %s, %s %s", chain.Base, modelIDs(chain), chain.Manufacturer, chain.Model)}
		}
	}
}

// madeBy reports whether a SunSpec device of that manufacturer may be of this
// profile: a vendor's own profile is for the vendor's devices only.
func (p *Profile) madeBy(manufacturer string) bool {
	return p.Vendor == "SunSpec Alliance" || strings.Contains(strings.ToLower(manufacturer), strings.ToLower(p.Vendor))
}

// need returns the next block that a candidate waits for. Candidates whose
// blocks are all known move on.
func (d *Detect) need() *Block {
	// Rules of all before everything of any: most are out after one read.
	for _, stage := range []candidateStage{stageRules, stageAll} {
		for _, c := range d.candidates {
			for c.stage == stage {
				for len(c.blocks) > 0 && d.known(c.blocks[0]) {
					if stage == stageRules && d.refused[Block{Function: c.blocks[0].Function, Address: c.blocks[0].Address, Count: c.blocks[0].Count}] {
						c.stage, c.blocks = stageOut, nil
						break
					}
					c.blocks = c.blocks[1:]
				}
				if len(c.blocks) > 0 {
					return &c.blocks[0]
				}
				if c.stage == stage {
					d.advance(c)
				}
			}
		}
	}
	return nil
}

// advance decides about a candidate whose blocks are read.
func (d *Detect) advance(c *candidate) {
	if c.stage == stageRules {
		points, err := c.p.Decode(d.raw(c.turn(c.p.ruleBlocks())))
		evidence, ok := c.p.Match(points)
		if err != nil || !ok {
			c.stage = stageOut
			return
		}
		c.found.Evidence = evidence
		c.all = c.turn(c.p.Blocks(detectBlock))
		c.stage, c.blocks = stageAll, c.all
		return
	}
	points, err := c.p.Decode(d.raw(c.all))
	if err != nil || nonsense(c.p, points) != "" {
		c.stage = stageOut
		return
	}
	c.stage, c.values = stageFits, map[key]int64{}
	for _, pt := range points {
		c.values[key{pt.Quantity, pt.Phase}] = pt.Value
		if pt.Value != 0 {
			c.found.Live++
		}
	}
	if c.found.Live < minLive {
		c.stage = stageOut
		return
	}
	c.found.Profile = c.p
	c.found.Evidence = append(c.found.Evidence, fmt.Sprintf("%d of %d points have a value that makes sense", c.found.Live, len(points)))
}

// raw returns what is known of blocks.
func (d *Detect) raw(blocks []Block) []meter.RawBlock {
	var out []meter.RawBlock
	for _, b := range blocks {
		out = append(out, d.image.block(b.Function, b.Address, b.Count)...)
	}
	return out
}

// nonsense returns why the points cannot be of one device, or "".
func nonsense(p *Profile, points []meter.Point) string {
	v := map[key]int64{}
	for _, pt := range points {
		v[key{pt.Quantity, pt.Phase}] = pt.Value
		if why := implausible(p, pt); why != "" {
			return why
		}
	}
	// The lines add up to the total, within 5 % and 50 W: they are not
	// measured at the same moment.
	total, ok := v[key{meter.Power, 0}]
	sum, lines := int64(0), 0
	for phase := uint8(1); phase <= 3; phase++ {
		power, has := v[key{meter.Power, phase}]
		if has {
			sum, lines = sum+power, lines+1
		}
		volt, hasV := v[key{meter.Voltage, phase}]
		amp, hasA := v[key{meter.Current, phase}]
		if has && hasV && hasA && abs(power) > abs(volt*amp/1000)*12/10+50_000 {
			return fmt.Sprintf("%d mW from %d mV and %d mA on line %d", power, volt, amp, phase)
		}
	}
	if ok && lines == 3 && p.Kind != Inverter && abs(total-sum) > abs(total)/20+50_000 {
		return fmt.Sprintf("the lines add up to %d mW, the total is %d mW", sum, total)
	}
	return ""
}

// implausible returns why one point cannot be, or "". Zero is plausible: a
// line without supply, a meter that has counted nothing.
func implausible(p *Profile, pt meter.Point) string {
	lo, hi := int64(0), int64(0)
	switch pt.Quantity {
	case meter.Voltage:
		lo, hi = 90_000, 290_000
	case meter.Frequency:
		lo, hi = 45_000, 65_000
	case meter.Power, meter.ApparentPower, meter.ReactivePower, meter.BatteryPower:
		lo, hi = -1_000_000_000, 1_000_000_000
	case meter.Current:
		lo, hi = -2_000_000, 2_000_000
	case meter.PowerFactor:
		lo, hi = -1010, 1010
	case meter.Import, meter.Export, meter.Energy, meter.SessionEnergy:
		lo, hi = 0, 1_000_000_000_000_000 // 1 TWh
	case meter.StateOfCharge:
		lo, hi = 0, 1000
	case meter.Temperature:
		lo, hi = -60_000, 150_000
	case meter.CurrentLimit:
		lo, hi = 0, 100_000
	case meter.Status:
		if _, ok := p.States[pt.Value]; len(p.States) > 0 && !ok {
			return fmt.Sprintf("status %d is not in the table", pt.Value)
		}
		return ""
	default:
		return ""
	}
	if pt.Value != 0 && (pt.Value < lo || pt.Value > hi) {
		return fmt.Sprintf("%s = %d", pt.Name(), pt.Value)
	}
	return ""
}

func abs(v int64) int64 { return max(v, -v) }

// Findings returns the profiles that fit, the best first: none if the device
// is unknown, one if the registers tell, several if they do not. It is to be
// called when the detection is over.
//
// Of two profiles that read the same of what is billed and controlled, the one
// with more live points is the answer. Two that read different values are both
// answers: which is right, registers cannot say. What fits by chance does not
// stand against what fits for a reason.
func (d *Detect) Findings() []Finding {
	var fit []*candidate
	for _, c := range d.candidates {
		if c.stage == stageFits {
			fit = append(fit, c)
		}
	}
	slices.SortStableFunc(fit, func(a, b *candidate) int {
		own := func(c *candidate) int { return boolInt(c.p.SunSpec != nil && c.p.Vendor == "SunSpec Alliance") }
		return cmp.Or(cmp.Compare(b.found.Live, a.found.Live), cmp.Compare(own(a), own(b)))
	})
	var out []Finding
	for i, c := range fit {
		if slices.ContainsFunc(fit[:i], func(better *candidate) bool { return better.covers(c) }) {
			continue
		}
		out = append(out, c.found)
	}
	return telling(out)
}

// telling drops what fits by chance if something else fits for a reason. Other
// profiles of the vendor that has a reason stay: they are parts of one device.
func telling(all []Finding) []Finding {
	sharp := func(vendor string, other bool) bool {
		return slices.ContainsFunc(all, func(f Finding) bool { return f.Profile.sharp() && (f.Profile.Vendor != vendor) == other })
	}
	return slices.DeleteFunc(slices.Clone(all), func(f Finding) bool {
		return sharp(f.Profile.Vendor, true) && !sharp(f.Profile.Vendor, false)
	})
}

// sharp reports whether what p is recognised by is hardly found by chance. A
// voltage or a frequency in its place is a reason, as SunSpec's marker is; a
// power between -100 and 100 kW, which is all that some profiles can be
// recognised by, is found in any other map now and then.
func (p *Profile) sharp() bool {
	return p.SunSpec != nil || slices.ContainsFunc(p.Detect, func(r Rule) bool { return r.Min > 0 && r.Max/r.Min < 2 })
}

// covers reports whether c says everything that o does, and more, or the same
// as the profile of the device's own vendor.
func (c *candidate) covers(o *candidate) bool {
	if c.p.SunSpec != nil && o.p.SunSpec != nil && c.p.Vendor != o.p.Vendor {
		return true // the device names its vendor, who knows the sign
	}
	return c.found.Live > o.found.Live && (c.agrees(o) || c.contains(o))
}

// agrees reports whether c reads the same as o of what is billed and
// controlled.
func (c *candidate) agrees(o *candidate) bool {
	for _, q := range []meter.Quantity{meter.Power, meter.Import, meter.Export, meter.Energy, meter.Status} {
		a, ok := c.values[key{q, 0}]
		if b, has := o.values[key{q, 0}]; has && (!ok || a != b) {
			return false
		}
	}
	return true
}

// contains reports whether every number of o is one of c as well, whatever
// they call it: the total of a meter for one line is the first line of its
// sibling for three.
func (c *candidate) contains(o *candidate) bool {
	if c.p.SunSpec != nil || o.p.SunSpec != nil || c.other != o.other {
		return false
	}
	return !slices.ContainsFunc(o.p.Points, func(x Point) bool {
		_, live := o.values[key{x.Quantity, x.Phase}]
		return live && !slices.ContainsFunc(c.p.Points, func(y Point) bool {
			return x.Quantity == y.Quantity && x.Function == y.Function && x.Address == y.Address && x.Type == y.Type && x.Words == y.Words && x.Scale == y.Scale
		})
	})
}
