package profile

import (
	"embed"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Limits of a profile file. Beyond them Parse returns an error.
const (
	MaxFileSize  = 64 << 10        // bytes
	MaxPoints    = 256             // per file, over all models
	MaxBlock     = 125             // registers in one read (Modbus application protocol 1.1b3, 6.3)
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

	Points  []Point  `yaml:"points,omitempty"`
	SunSpec *SunSpec `yaml:"sunspec,omitempty"` // instead of Points

	Writes  []Write          `yaml:"writes,omitempty"` // registers that take a command
	States  map[int64]string `yaml:"states,omitempty"` // status code -> IEC 61851-1 letter
	Detect  []Rule           `yaml:"detect,omitempty"`
	Sources []Source         `yaml:"sources"`

	hash     [32]byte
	reversed bool
	swapped  bool
}

// Serial is how the device leaves the factory.
type Serial struct {
	Baud    int    `yaml:"baud"`            // bit/s
	Framing string `yaml:"framing"`         // 8N1, 8E1, 8N2
	Unit    uint8  `yaml:"unit"`            // 1..247
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
}

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

	QuantityName string `yaml:"quantity"`
}

// Alt replaces a point's scale if (register at Address & Mask) is not zero, or
// if the value with the ordinary scale is larger than Above.
type Alt struct {
	Address uint16 `yaml:"address,omitempty"`
	Mask    uint16 `yaml:"mask,omitempty"`
	Above   int64  `yaml:"above,omitempty"` // in the quantity's unit
	Scale   Scale  `yaml:"scale"`
}

// Write is a register that takes a command.
type Write struct {
	Name    string `yaml:"name"` // current_limit
	Address uint16 `yaml:"address"`
	Scale   Scale  `yaml:"scale"` // as Point.Scale: value = raw x scale
	Min     int64  `yaml:"min"`   // smallest value that is not zero
	Max     int64  `yaml:"max"`
	Alt     *Alt   `yaml:"alt,omitempty"`
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

//go:embed data/*.yaml
var files embed.FS

// Suffixes of variants.
const (
	reversedSuffix = "+reversed"
	swappedSuffix  = "+swapped"
)

// All returns the built-in profiles, ordered by id. It parses them anew.
func All() []*Profile {
	entries, err := files.ReadDir("data")
	if err != nil {
		panic(err) // embedded
	}
	out := make([]*Profile, 0, len(entries))
	for _, e := range entries {
		p, err := load(strings.TrimSuffix(e.Name(), ".yaml"))
		if err != nil {
			panic(err) // embedded, and parsed by tests
		}
		out = append(out, p)
	}
	return out
}

// Get returns the built-in profile id, or its variant "id+reversed",
// "id+swapped" or "id+reversed+swapped". The error lists what there is.
func Get(id string) (*Profile, error) {
	base, isSwapped := strings.CutSuffix(id, swappedSuffix)
	base, isReversed := strings.CutSuffix(base, reversedSuffix)
	if !validID(base) {
		return nil, unknown(id)
	}
	p, err := load(base)
	if err != nil {
		return nil, unknown(id)
	}
	if isReversed {
		p = p.Reversed()
	}
	if isSwapped {
		p = p.Swapped()
	}
	return p, nil
}

func load(id string) (*Profile, error) {
	name := path.Join("data", id+".yaml")
	b, err := files.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return Parse(name, b)
}

func unknown(id string) error {
	var ids []string
	for _, p := range All() {
		ids = append(ids, p.ID)
	}
	return fmt.Errorf("unknown profile %q: there is %s", id, strings.Join(ids, ", "))
}

// Hash identifies the profile: the SHA-256 of its file, or for a variant of
// the file followed by the variant's suffix.
func (p *Profile) Hash() [32]byte { return p.hash }

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
