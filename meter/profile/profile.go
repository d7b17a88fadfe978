package profile

import (
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Limits of a profile file. Beyond them Parse returns an error.
const (
	MaxFileSize  = 64 << 10        // bytes
	MaxPoints    = 256             // per file, over all models
	MaxBlock     = 125             // registers in one read (Modbus application protocol 1.1b3, 6.3)
	maxTerms     = 8               // registers that add up to a sum, or multiply a point
	maxText      = 8               // registers of a text
	maxTiming    = 1 * time.Minute // any delay
	maxScale     = 1e12            // numerator and denominator of a scale
	maxTextBytes = 400             // any text
)

// Kind says what a device is for.
type Kind string

// Kinds of devices.
const (
	Meter    Kind = "meter"
	Inverter Kind = "inverter"
	Wallbox  Kind = "wallbox"
	Battery  Kind = "battery"
)

// Confidence grades what a profile was made from.
type Confidence string

// Grades of confidence.
const (
	ConfidenceA Confidence = "A" // two or more independent sources agree
	ConfidenceB Confidence = "B" // one solid source
	ConfidenceC Confidence = "C" // sources disagree: probe before trusting
)

// Profile describes one device.
type Profile struct {
	Version      int    `yaml:"version"`
	ID           string `yaml:"id"`
	Vendor       string `yaml:"vendor"`
	Model        string `yaml:"model"`
	Kind         Kind   `yaml:"kind"`
	Experimental bool   `yaml:"experimental,omitempty"` // facts are not settled: say so when used
	Note         string `yaml:"note,omitempty"`         // what an installer should know

	Serial Serial `yaml:"serial,omitempty"`
	Timing Timing `yaml:"timing,omitempty"`

	Function drivers.Function `yaml:"function,omitempty"` // of points that name none
	Words    WordOrder        `yaml:"words,omitempty"`    // of points and writes that name none
	Marks    Marks            `yaml:"marks,omitempty"`    // raw values that mean "not available"
	// Fallback is the other function with which some units want the same
	// registers to be read. Decode takes either.
	Fallback drivers.Function `yaml:"fallback,omitempty"`

	Points  []Point  `yaml:"points,omitempty"`
	SunSpec *SunSpec `yaml:"sunspec,omitempty"` // instead of Points

	Identity []IdentityPoint `yaml:"identity,omitempty"` // who the device is
	Writes   []Write         `yaml:"writes,omitempty"`   // registers that take a command
	Signed   *Signed         `yaml:"signed,omitempty"`   // records that the meter signs itself
	// States maps status codes to IEC 61851-1 letters. A status that is text
	// has the code that Code returns.
	States map[int64]string `yaml:"-"`
	// Cables says of codes of a Cable point whether a vehicle hangs on the
	// cable, for wallboxes whose status does not. See VehicleState.
	Cables map[int64]bool `yaml:"cables,omitempty"`
	// Derated are status codes that say that less is offered than was asked
	// for, because of heat.
	Derated  []int64   `yaml:"derated,omitempty"`
	Watchdog *Watchdog `yaml:"watchdog,omitempty"` // what happens when the master is gone
	// Orders are what a battery can be told, by name: charge, discharge,
	// release. See Order.
	Orders  map[string][]Step `yaml:"orders,omitempty"`
	Detect  []Rule            `yaml:"detect,omitempty"`
	Sources []Source          `yaml:"sources"`

	StateNames map[string]string `yaml:"states,omitempty"` // as written

	hash     [32]byte
	source   []byte // the file
	reversed bool
	swapped  bool
}

// Serial is how the device leaves the factory. A device without serial port
// has no speed and no framing.
type Serial struct {
	Baud    int    `yaml:"baud"`            // bit/s
	Framing string `yaml:"framing"`         // 8N1, 8E1, 8N2
	Unit    uint8  `yaml:"unit"`            // 1..247; 255 on a device without units that has a port
	Bauds   []int  `yaml:"bauds,omitempty"` // all the device can be set to
	Port    uint16 `yaml:"port,omitempty"`  // usual TCP port, 0 if it has none
}

// Timing is how the device likes to be asked. Zero means no constraint.
type Timing struct {
	ConnectDelay   time.Duration `yaml:"connect_delay,omitempty"`    // silence after connecting
	Gap            time.Duration `yaml:"gap,omitempty"`              // between requests
	SlaveChangeGap time.Duration `yaml:"slave_change_gap,omitempty"` // after another unit was addressed
	Timeout        time.Duration `yaml:"timeout,omitempty"`          // longest answer
	MaxBlock       uint16        `yaml:"max_block,omitempty"`        // registers per read, default 125
	// Bridge is how many unmapped registers may be read along to join two
	// points in one block. Zero: only adjacent points are joined, because a
	// strict device refuses a block with a hole in it.
	Bridge uint16 `yaml:"bridge,omitempty"`
	Alone  bool   `yaml:"alone,omitempty"` // every number is read by itself
}

// Marks names a convention of raw values that mean "not available".
type Marks string

// Conventions.
const (
	// MarkMin: signed 0x8000.., unsigned 0xFFFF.. (SunSpec, SMA).
	MarkMin Marks = "min"
	// MarkMax: signed 0x7FFF.., unsigned 0xFFFF.. (ABB).
	MarkMax Marks = "max"
)

// Point is one value of the register map.
type Point struct {
	Quantity meter.Quantity   `yaml:"-"`
	Phase    uint8            `yaml:"phase,omitempty"` // 0 total, 1..3 line
	Function drivers.Function `yaml:"function,omitempty"`
	Address  uint16           `yaml:"address"` // of the first register; in a model: its offset from the ID register
	Type     Type             `yaml:"type"`
	Words    WordOrder        `yaml:"words,omitempty"` // default be
	Scale    Scale            `yaml:"scale,omitempty"` // raw x scale = integer unit, default 1
	Sign     Sign             `yaml:"sign,omitempty"`  // what positive means to the device, default import
	Name     string           `yaml:"name,omitempty"`  // the source's own name of it
	Alone    bool             `yaml:"alone,omitempty"` // read by itself
	Slow     bool             `yaml:"slow,omitempty"`  // need not be read every time

	// Factor is the address of a SunSpec scale factor: a signed exponent of
	// ten that the device sends in the same block and may change at any time.
	Factor *uint16 `yaml:"factor,omitempty"`
	// Absent lists raw values that mean "not available". IEEE NaN and the
	// SunSpec not-implemented values need no mention.
	Absent []uint64 `yaml:"absent,omitempty"`
	// Alt is another scale under a condition, for firmware that changed it.
	Alt *Alt `yaml:"alt,omitempty"`

	// Sum and Less replace Address: the value is the sum of the numbers at
	// Sum minus the sum of those at Less, for devices that have no total or
	// count two directions apart. Each may be the number of another point.
	Sum  []uint16 `yaml:"sum,omitempty"`
	Less []uint16 `yaml:"less,omitempty"`
	// Ratios are registers that multiply the value: ratios of transformers.
	Ratios []Ratio `yaml:"ratios,omitempty"`
	// Shift and Mask cut the value out of an unsigned number: first shifted
	// right, then masked. Mask 0 takes all.
	Shift uint8  `yaml:"shift,omitempty"`
	Mask  uint32 `yaml:"mask,omitempty"`
	// Length is that of a text, in registers.
	Length uint16 `yaml:"length,omitempty"`

	QuantityName string `yaml:"quantity"`
}

// Ratio is an unsigned register that multiplies a value.
type Ratio struct {
	Address uint16 `yaml:"address"`
	Scale   Scale  `yaml:"scale,omitempty"` // register x scale = ratio
}

// Alt replaces a point's scale if (register at Address & Mask) is not zero, or
// if the value with the ordinary scale is larger than Above.
type Alt struct {
	Address uint16 `yaml:"address,omitempty"`
	Mask    uint16 `yaml:"mask,omitempty"`
	Above   int64  `yaml:"above,omitempty"` // in the quantity's unit
	Scale   Scale  `yaml:"scale"`
	Sign    Sign   `yaml:"sign,omitempty"` // only under a mask, default as the point's
	// Since says from which firmware on the bits under Mask mean anything.
	Since *Since `yaml:"since,omitempty"`
}

// Since is the register that tells the firmware, and its least value.
type Since struct {
	Address uint16 `yaml:"address"`
	Least   uint16 `yaml:"least"`
}

// registers returns the addresses that decide whether a applies.
func (a *Alt) registers() []uint16 {
	switch {
	case a == nil || a.Mask == 0:
		return nil
	case a.Since == nil:
		return []uint16{a.Address}
	}
	return []uint16{a.Address, a.Since.Address}
}

// Write is a register that takes a command.
type Write struct {
	Name     string    `yaml:"name"`               // one of the words in writeUnits
	Function uint8     `yaml:"function,omitempty"` // 5, 6 or 16; default 6 for one register and 16 for more
	Address  uint16    `yaml:"address"`
	Type     Type      `yaml:"type,omitempty"` // default u16
	Words    WordOrder `yaml:"words,omitempty"`
	Scale    Scale     `yaml:"scale,omitempty"` // as Point.Scale: value = raw x scale
	Sign     Sign      `yaml:"sign,omitempty"`  // as Point.Sign
	Min      int64     `yaml:"min,omitempty"`   // smallest value that is not zero
	Max      int64     `yaml:"max,omitempty"`
	Alt      *Alt      `yaml:"alt,omitempty"`
	// Values lists all values that there are, with their raw numbers,
	// instead of Min, Max and Scale.
	Values map[int64]uint32 `yaml:"values,omitempty"`
	Zero   *uint32          `yaml:"zero,omitempty"` // raw number that means 0, default 0
	// Every is how often the value must be written, or the device falls back
	// by itself. 0: once is enough.
	Every time.Duration `yaml:"every,omitempty"`
	Twice bool          `yaml:"twice,omitempty"` // the first write may get lost
	// Nonzero: the command takes no 0. A wallbox of which that is true of the
	// current is paused with enable.
	Nonzero bool `yaml:"nonzero,omitempty"`
	// Optional: some models lack it. A refusal is no failure.
	Optional bool `yaml:"optional,omitempty"`
	// Setup is the value that a master writes once when it takes over.
	Setup *int64    `yaml:"setup,omitempty"`
	Read  *Readback `yaml:"read,omitempty"` // where the device says what is set
}

// Readback is where the value of a command can be read.
type Readback struct {
	Function drivers.Function `yaml:"function,omitempty"` // default 3
	Address  uint16           `yaml:"address"`
	Type     Type             `yaml:"type,omitempty"`  // default as written
	Scale    Scale            `yaml:"scale,omitempty"` // default as written
	// Values are as Write.Values, where other numbers are read than written.
	Values map[int64]uint32 `yaml:"values,omitempty"`
}

// writeUnits are the commands that there are and what their values count.
var writeUnits = map[string]string{
	"current_limit":    "mA",   // to offer to the vehicle; 0 pauses
	"enable":           "",     // 0 or 1
	"failsafe_current": "mA",   // offered when the master is gone
	"failsafe_timeout": "ms",   // silence after which the master is gone
	"heartbeat":        "",     // says that the master is there
	"phases":           "",     // 1 or 3
	"lock":             "",     // 1 locks
	"standby":          "",     // 1 allows
	"mode":             "code", // the device's own
	"phase_control":    "",     // 1: the master switches phases
	"power_limit":      "mW",
	"power_command":    "mW", // of a battery: see Order
	"direction":        "",   // 1 charges, -1 discharges, 0 stops
	"command_timeout":  "ms", // after which a power command ends
}

// Rule is one plausible point of a detection: its value lies in [Min, Max].
type Rule struct {
	QuantityName string `yaml:"quantity"`
	Phase        uint8  `yaml:"phase,omitempty"`
	Min          int64  `yaml:"min"`
	Max          int64  `yaml:"max"`

	Quantity meter.Quantity `yaml:"-"`
}

// Source says where the facts of a profile come from.
type Source struct {
	Name       string     `yaml:"name"`
	Confidence Confidence `yaml:"confidence"`
}

// SunSpec is a register map whose place is found by walking the device's
// model chain. See Walk.
type SunSpec struct {
	Bases  []uint16       `yaml:"bases"`
	Models []SunSpecModel `yaml:"models"` // the first that the device has is read
}

// SunSpecModel maps the points of one or several models with equal layout.
// Addresses and factors count from the model's ID register.
type SunSpecModel struct {
	IDs    []uint16 `yaml:"ids"`
	Length uint16   `yaml:"length"` // L of the official model; the device's own is believed
	Points []Point  `yaml:"points"`
	// Factors are usual exponents by address. Only simulators use them.
	Factors map[uint16]int16 `yaml:"factors,omitempty"`
}

// Hash identifies the profile: the SHA-256 of its file, or for a variant of
// the file followed by the variant's suffix.
func (p *Profile) Hash() [32]byte { return p.hash }

// Source returns the file that the profile was parsed from, and which variant
// of it this is. The file must not be changed.
func (p *Profile) Source() (file []byte, reversed, swapped bool) {
	return p.source, p.reversed, p.swapped
}

// Confidence is the best grade of the sources.
func (p *Profile) Confidence() Confidence {
	best := ConfidenceC
	for _, s := range p.Sources {
		best = min(best, s.Confidence)
	}
	return best
}

// Block is one read.
type Block struct {
	Function drivers.Function
	Address  uint16
	Count    uint16 // registers
	Slow     bool   // need not be read every time
}
