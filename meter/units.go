package meter

import "fmt"

// Units of measurement. All are signed 64-bit integers; import is positive.
type (
	// Watt is active power in W.
	Watt int64
	// MilliWatt is active power in mW.
	MilliWatt int64
	// WattHour is active energy in Wh, the unit of trade and of the ledger.
	WattHour int64
	// MilliWattHour is active energy in mWh, the unit of registers as read.
	MilliWattHour int64
	// MilliAmpere is current in mA.
	MilliAmpere int64
	// MilliVolt is voltage in mV.
	MilliVolt int64
	// MilliHertz is frequency in mHz.
	MilliHertz int64
)

// WattHours returns e in Wh, rounded towards minus infinity, so that the
// differences of a growing register always add up to the whole.
func (e MilliWattHour) WattHours() WattHour { return WattHour(floorDiv(int64(e), 1000)) }

// Watts returns p in W, rounded towards minus infinity.
func (p MilliWatt) Watts() Watt { return Watt(floorDiv(int64(p), 1000)) }

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// Quantity names what a point measures. The order is part of the canonical
// encoding: append only.
type Quantity uint8

// Quantities that profiles can map. The unit is part of the quantity.
const (
	Power         Quantity = 1 + iota // mW, active, import positive
	Import                            // mWh, cumulative register
	Export                            // mWh, cumulative register
	Voltage                           // mV, line to neutral
	Current                           // mA
	Frequency                         // mHz
	ApparentPower                     // mVA
	ReactivePower                     // mvar
	PowerFactor                       // 1/1000
	Energy                            // mWh, sum register without direction
	CurrentLimit                      // mA, what an EVSE was told to offer
	Status                            // code of the device's own state table
	Firmware                          // code
	BatteryPower                      // mW, charging positive
	StateOfCharge                     // 1/1000
	SessionEnergy                     // mWh since the vehicle was connected
	Temperature                       // 1/1000 degree Celsius
	Fault                             // code of the device's own table, 0: none
	Cable                             // code of the device's own table
	PhaseSequence                     // code: negative for L1 L3 L2, otherwise L1 L2 L3
)

var quantities = [...]struct{ name, unit string }{
	Power:         {"power", "mw"},
	Import:        {"import", "mwh"},
	Export:        {"export", "mwh"},
	Voltage:       {"voltage", "mv"},
	Current:       {"current", "ma"},
	Frequency:     {"frequency", "mhz"},
	ApparentPower: {"apparent_power", "mva"},
	ReactivePower: {"reactive_power", "mvar"},
	PowerFactor:   {"power_factor", "permille"},
	Energy:        {"energy", "mwh"},
	CurrentLimit:  {"current_limit", "ma"},
	Status:        {"status", "code"},
	Firmware:      {"firmware", "code"},
	BatteryPower:  {"battery_power", "mw"},
	StateOfCharge: {"state_of_charge", "permille"},
	SessionEnergy: {"session_energy", "mwh"},
	Temperature:   {"temperature", "mdegc"},
	Fault:         {"fault", "code"},
	Cable:         {"cable", "code"},
	PhaseSequence: {"phase_sequence", "code"},
}

// Valid reports whether q is one of the quantities above.
func (q Quantity) Valid() bool { return q >= Power && int(q) < len(quantities) }

// String returns the quantity's word without unit, for example "power".
func (q Quantity) String() string {
	if !q.Valid() {
		return fmt.Sprintf("quantity(%d)", uint8(q))
	}
	return quantities[q].name
}

// Unit returns the lower-case unit suffix of q, for example "mw".
func (q Quantity) Unit() string {
	if !q.Valid() {
		return "?"
	}
	return quantities[q].unit
}

// ParseQuantity is the inverse of Quantity.String.
func ParseQuantity(s string) (Quantity, error) {
	for q := Power; int(q) < len(quantities); q++ {
		if quantities[q].name == s {
			return q, nil
		}
	}
	return 0, fmt.Errorf("unknown quantity %q", s)
}
