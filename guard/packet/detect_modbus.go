package packet

import (
	"encoding/binary"
	"math/bits"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Thresholds of the Modbus rules.
const (
	stormExceptions = 5 // from devices to one client, within
	stormSpan       = time.Minute
	scanFunctions   = 8  // different ones asked of one device, or
	scanUnits       = 32 // different units, within
	scanSpan        = 10 * time.Minute
)

// modbusDetector judges requests by who sends them and what they ask for.
type modbusDetector struct {
	writers map[Addr]bool
	asked   *table[asked]
	refused *table[refused]
}

// asked is what one client asked of one server.
type asked struct {
	since     time.Duration
	functions [2]uint64
	units     [4]uint64
	told      *note
}

// refused counts the exceptions that a client was given.
type refused struct {
	window
	all, told uint64
}

func newModbus(r Rules) *modbusDetector {
	d := &modbusDetector{writers: map[Addr]bool{}, asked: newTable[asked](1024>>r.shrink, r.Seed), refused: newTable[refused](1024>>r.shrink, r.Seed)}
	for _, w := range r.Writers {
		d.writers[addrOf(w)] = true
	}
	return d
}

func (*modbusDetector) name() string { return "modbus" }
func (*modbusDetector) wants() kind  { return isModbus }

func (d *modbusDetector) step(e *Event, out *sink) {
	a := &e.modbus
	if a.wrong == "" {
		a.wrong = malformed(a)
	}
	if a.wrong != "" {
		out.find(e, guard.ModbusProtocolViolation, guard.Medium, host(e.src), 1).text("why", a.wrong).addr("to", e.dst)
	}
	if len(a.pdu) == 0 {
		return
	}
	if !a.request {
		if a.pdu[0]&0x80 != 0 {
			d.refuse(e, out)
		}
		return
	}
	function := a.pdu[0]
	if writes(function) && !d.writers[e.src] {
		v := guard.High
		if e.Charging { // what is written can change what the charger is fed with
			v = guard.Critical
		}
		n := out.find(e, guard.ModbusWriteUnauthorised, v, host(e.src), 1)
		if n.evince {
			n.addr("device", e.dst).num("unit", uint64(a.unit)).num("function", uint64(function))
			if at, ok := register(a.pdu); ok {
				n.num("register", uint64(at))
			}
			if e.Charging {
				n.text("charging", "yes")
			}
		}
	}
	if what, v := unneeded(a.pdu); what != "" {
		out.find(e, guard.ModbusIllegalFunction, v, host(e.src), 1).
			addr("device", e.dst).num("unit", uint64(a.unit)).num("function", uint64(function)).text("means", what)
	}
	d.scan(e, out)
}

// scan finds clients that try functions or units. Whoever may write may also
// look around: a gateway finds its devices so.
func (d *modbusDetector) scan(e *Event, out *sink) {
	a := &e.modbus
	x, fresh := d.asked.at(pair{a: e.src, b: e.dst}.hash(d.asked.seed), e.At)
	if fresh || e.At-x.since > scanSpan {
		*x = asked{since: e.At}
	}
	function, unit := uint64(1)<<(a.pdu[0]&63), uint64(1)<<(a.unit&63)
	if x.functions[a.pdu[0]>>6&1]&function != 0 && x.units[a.unit>>6]&unit != 0 || d.writers[e.src] {
		return // nothing new
	}
	x.functions[a.pdu[0]>>6&1] |= function
	x.units[a.unit>>6] |= unit
	functions, units := 0, 0
	for _, w := range x.functions {
		functions += bits.OnesCount64(w)
	}
	for _, w := range x.units {
		units += bits.OnesCount64(w)
	}
	if functions < scanFunctions && units < scanUnits {
		return
	}
	if x.told == nil {
		x.told = out.find(e, guard.ModbusFunctionScan, guard.High, host(e.src), 1).addr("device", e.dst)
	}
	out.again(e, x.told).num("functions", uint64(functions)).num("units", uint64(units))
}

// refuse counts an exception. A storm counts all that the client was given
// before, too.
func (d *modbusDetector) refuse(e *Event, out *sink) {
	x, fresh := d.refused.at(e.dst.hash(d.refused.seed), e.At)
	if fresh {
		*x = refused{}
	}
	x.all++
	if n, _ := x.add(e.At, stormSpan); n < stormExceptions {
		return
	}
	n := out.find(e, guard.ModbusExceptionStorm, guard.Medium, host(e.dst), x.all-x.told).
		addr("device", e.src).num("unit", uint64(e.modbus.unit)).num("function", uint64(e.modbus.pdu[0]&0x7f))
	if len(e.modbus.pdu) > 1 {
		n.num("code", uint64(e.modbus.pdu[1]))
	}
	x.told = x.all
}

// Function codes (MODBUS Application Protocol V1.1b3, 5.1).
const (
	readCoils       = 1
	readDiscrete    = 2
	readHolding     = 3
	readInput       = 4
	writeCoil       = 5
	writeRegister   = 6
	diagnostics     = 8
	writeCoils      = 15
	writeRegisters  = 16
	reportServer    = 17
	writeFile       = 21
	maskWrite       = 22
	readWrite       = 23
	encapsulated    = 43
	unity           = 90 // Schneider's programming of controllers
	identify        = 14 // of encapsulated: read device identification
	restartComms    = 1  // of diagnostics
	forceListenOnly = 4
)

func writes(function uint8) bool {
	switch function {
	case writeCoil, writeRegister, writeCoils, writeRegisters, writeFile, maskWrite, readWrite:
		return true
	}
	return false
}

// register returns the first register that a write changes.
func register(pdu []byte) (uint16, bool) {
	switch {
	case pdu[0] == readWrite && len(pdu) >= 7:
		return binary.BigEndian.Uint16(pdu[5:]), true
	case pdu[0] != readWrite && pdu[0] != writeFile && len(pdu) >= 3:
		return binary.BigEndian.Uint16(pdu[1:]), true
	}
	return 0, false
}

// unneeded says what a request means that no meter, inverter or wallbox has a
// use for.
func unneeded(pdu []byte) (string, guard.Severity) {
	switch f := pdu[0]; f {
	case readCoils, readDiscrete, readHolding, readInput, writeCoil, writeRegister, writeCoils, writeRegisters, reportServer, maskWrite, readWrite:
		return "", 0
	case encapsulated:
		if len(pdu) > 1 && pdu[1] == identify {
			return "", 0
		}
		return "encapsulated transport", guard.Medium
	case diagnostics:
		if len(pdu) >= 3 {
			switch binary.BigEndian.Uint16(pdu[1:]) {
			case restartComms:
				return "restart the device's communication", guard.High
			case forceListenOnly:
				return "make the device silent", guard.High
			}
		}
		return "diagnostics", guard.Medium
	case 7, 11, 12:
		return "serial line diagnostics", guard.Medium
	case 20, writeFile:
		return "file records", guard.Medium
	case 24:
		return "queue", guard.Medium
	case unity:
		return "programming of a controller", guard.High
	}
	return "not a public function", guard.Medium
}

// malformed says what the standard forbids about a message, or nothing
// (MODBUS Application Protocol V1.1b3, 6 and 7).
func malformed(a *adu) string {
	p := a.pdu
	if len(p) == 0 {
		return ""
	}
	word := func(i int) int { return int(binary.BigEndian.Uint16(p[i:])) }
	if !a.request {
		if p[0]&0x80 != 0 && len(p) != 2 {
			return "an exception has one code"
		}
		return ""
	}
	quantity := func(most int) string {
		switch {
		case len(p) != 5:
			return "length does not fit the function"
		case word(3) == 0 || word(3) > most:
			return "quantity out of range"
		}
		return ""
	}
	// counted checks values that follow their quantity and byte count.
	counted := func(at, most, perValueBits int) string {
		switch {
		case len(p) < at+3 || len(p) != at+3+int(p[at+2]):
			return "length does not fit the function"
		case word(at) == 0 || word(at) > most:
			return "quantity out of range"
		case int(p[at+2]) != (word(at)*perValueBits+7)/8:
			return "byte count does not fit the quantity"
		}
		return ""
	}
	switch p[0] {
	case 0:
		return "function 0"
	case readCoils, readDiscrete:
		return quantity(2000)
	case readHolding, readInput:
		return quantity(125)
	case writeCoil:
		if len(p) != 5 {
			return "length does not fit the function"
		}
		if v := word(3); v != 0 && v != 0xff00 {
			return "a coil is 0000 or FF00"
		}
	case writeRegister:
		if len(p) != 5 {
			return "length does not fit the function"
		}
	case writeCoils:
		return counted(3, 1968, 1)
	case writeRegisters:
		return counted(3, 123, 16)
	case maskWrite:
		if len(p) != 7 {
			return "length does not fit the function"
		}
	case readWrite:
		return counted(7, 121, 16)
	}
	if p[0] >= 0x80 {
		return "a request with an exception's function"
	}
	return ""
}
