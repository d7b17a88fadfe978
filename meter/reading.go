package meter

import (
	"fmt"
	"time"
)

// Point is one measured value. Phase is 0 for a total and 1..3 for a line.
type Point struct {
	Quantity Quantity `cbor:"1,keyasint"`
	Phase    uint8    `cbor:"2,keyasint,omitempty"`
	Value    int64    `cbor:"3,keyasint"`
}

// Name is the point's key in JSON: quantity[_lN]_unit, e.g. "voltage_l1_mv".
func (p Point) Name() string { return PointName(p.Quantity, p.Phase) }

// PointName is the JSON key of a quantity on a phase (0 = total).
func PointName(q Quantity, phase uint8) string {
	if phase == 0 {
		return q.String() + "_" + q.Unit()
	}
	return fmt.Sprintf("%s_l%d_%s", q, phase, q.Unit())
}

// Quality says how far a reading may be used. Only Good may be signed as
// energy and billed; everything else is recorded as what it is.
type Quality uint8

// Qualities, worst last.
const (
	Good      Quality = 1 + iota // decoded, fresh, plausible
	Estimated                    // computed, not measured
	Suspect                      // decoded, but implausible or after a line fault
	Stale                        // the last value of a device that is silent now
)

// String returns the word used in JSON.
func (q Quality) String() string {
	switch q {
	case Good:
		return "good"
	case Estimated:
		return "estimated"
	case Suspect:
		return "suspect"
	case Stale:
		return "stale"
	}
	return fmt.Sprintf("quality(%d)", uint8(q))
}

// MarshalText implements encoding.TextMarshaler.
func (q Quality) MarshalText() ([]byte, error) { return []byte(q.String()), nil }

// RawBlock is one register block exactly as the device sent it.
type RawBlock struct {
	Function uint8  `cbor:"1,keyasint"` // Modbus function code, 3 or 4
	Address  uint16 `cbor:"2,keyasint"` // PDU address of the first register
	Data     []byte `cbor:"3,keyasint"` // big-endian registers
}

// Reading is what one device said in one poll. It is a value: nobody changes
// it after the poller has handed it on.
type Reading struct {
	Device      string     `cbor:"1,keyasint"`            // id from the configuration
	Profile     string     `cbor:"2,keyasint"`            // profile id
	ProfileHash [32]byte   `cbor:"3,keyasint"`            // SHA-256 of the profile's bytes
	Unit        uint8      `cbor:"4,keyasint"`            // Modbus unit id
	Page        uint64     `cbor:"5,keyasint"`            // +1 per reading of this device
	Wall        int64      `cbor:"6,keyasint"`            // Unix milliseconds, wall clock
	Quality     Quality    `cbor:"7,keyasint"`            //
	Reason      string     `cbor:"8,keyasint,omitempty"`  // why it is not good
	Points      []Point    `cbor:"9,keyasint,omitempty"`  // in profile order
	Raw         []RawBlock `cbor:"10,keyasint,omitempty"` // as read

	// Mono is the monotonic time of the poll since process start. It orders
	// and ages readings; it means nothing on another machine.
	Mono time.Duration `cbor:"-"`
}

// Value returns the point (q, phase) and whether the reading has it.
func (r *Reading) Value(q Quantity, phase uint8) (int64, bool) {
	for i := range r.Points {
		if r.Points[i].Quantity == q && r.Points[i].Phase == phase {
			return r.Points[i].Value, true
		}
	}
	return 0, false
}

// Power returns total active power, import positive.
func (r *Reading) Power() (MilliWatt, bool) {
	v, ok := r.Value(Power, 0)
	return MilliWatt(v), ok
}

// Import returns the import register.
func (r *Reading) Import() (MilliWattHour, bool) {
	v, ok := r.Value(Import, 0)
	return MilliWattHour(v), ok
}

// Export returns the export register.
func (r *Reading) Export() (MilliWattHour, bool) {
	v, ok := r.Value(Export, 0)
	return MilliWattHour(v), ok
}
