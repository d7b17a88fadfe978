package slave

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// UnitConfig describes one simulated device beyond its profile.
type UnitConfig struct {
	// Model picks one of a SunSpec profile's models; 0 is the first.
	Model uint16
	// Identity is the text of SunSpec model 1; empty fields get a default.
	Identity profile.Identity
	// OnWrite is called with every accepted write, before the registers
	// change, without locks: it may call Set. An error is answered with
	// exception 4 and nothing changes.
	OnWrite func(addr uint16, values []uint16) error
	// OnRequest is called with every request that can be understood, before
	// it is answered, without locks; values are what it writes from addr on.
	OnRequest func(function uint8, addr uint16, values []uint16)
}

// Unit is one simulated device. It is safe for concurrent use.
type Unit struct {
	profile   *profile.Profile
	onWrite   func(uint16, []uint16) error
	onRequest func(uint8, uint16, []uint16)
	maxBlock  uint16

	mu       sync.Mutex
	image    profile.Image
	writable map[profile.Register]bool
	coils    bool // the device has some
}

// atRest is what a device shows on a live network without load.
var atRest = []meter.Point{
	{Quantity: meter.Voltage, Phase: 1, Value: 230_000},
	{Quantity: meter.Voltage, Phase: 2, Value: 230_000},
	{Quantity: meter.Voltage, Phase: 3, Value: 230_000},
	{Quantity: meter.Frequency, Value: 50_000},
}

// NewUnit returns a device of profile p on a live network without load: its
// voltage and frequency are right, its energy registers zero.
func NewUnit(p *profile.Profile, cfg UnitConfig) (*Unit, error) {
	def := func(s *string, to string) {
		if *s == "" {
			*s = to
		}
	}
	def(&cfg.Identity.Manufacturer, "joulegate")
	def(&cfg.Identity.Model, "simulated "+string(p.Kind))
	def(&cfg.Identity.Version, "1")
	def(&cfg.Identity.Serial, "SIM-1")
	im, err := p.NewImage(cfg.Model, cfg.Identity)
	if err != nil {
		return nil, err
	}
	u := &Unit{profile: p, onWrite: cfg.OnWrite, onRequest: cfg.OnRequest, maxBlock: p.Timing.MaxBlock, image: im}
	if u.maxBlock == 0 {
		u.maxBlock = profile.MaxBlock
	}
	u.writable = map[profile.Register]bool{}
	for i := range p.Writes {
		for _, r := range p.Writes[i].Registers() {
			u.writable[r] = true
			u.coils = u.coils || r.Function == profile.Coils
		}
	}
	status, ok := p.StateCode("A")
	if !ok {
		status = 1
	}
	for _, pt := range append(atRest, meter.Point{Quantity: meter.Status, Value: status}) {
		if u.Has(pt.Quantity, pt.Phase) {
			if err := u.Set(pt); err != nil {
				return nil, err
			}
		}
	}
	return u, nil
}

// Profile returns the profile the unit was made from.
func (u *Unit) Profile() *profile.Profile { return u.profile }

// Has reports whether the device measures quantity q on phase.
func (u *Unit) Has(q meter.Quantity, phase uint8) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.profile.HasIn(u.image, q, phase)
}

// Set makes the device measure points, all at once. The error names a point
// that the profile does not have or that its registers cannot hold; then
// nothing changes.
func (u *Unit) Set(points ...meter.Point) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.profile.Encode(points, u.image)
}

// SetRegister sets one register as it is, and makes it exist.
func (u *Unit) SetRegister(fn drivers.Function, addr, value uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.image[profile.Register{Function: fn, Address: addr}] = value
}

// Register returns one register and whether it exists.
func (u *Unit) Register(fn drivers.Function, addr uint16) (uint16, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	v, ok := u.image[profile.Register{Function: fn, Address: addr}]
	return v, ok
}

// Modbus function codes (application protocol 1.1b3, 6) and exceptions (7).
const (
	fnReadCoils     = 1
	fnReadHolding   = 3
	fnReadInput     = 4
	fnWriteCoil     = 5
	fnWriteSingle   = 6
	fnWriteMultiple = 16
	exceptionBit    = 0x80

	illegalFunction = 1
	illegalAddress  = 2
	illegalValue    = 3
	deviceFailure   = 4
	deviceBusy      = 6

	maxWrite = 123
	coilOn   = 0xFF00
)

func refuse(fn, code byte) []byte { return []byte{fn | exceptionBit, code} }

// handle answers one request PDU. It never returns nil.
func (u *Unit) handle(pdu []byte) []byte {
	if len(pdu) == 0 {
		return refuse(0, illegalFunction)
	}
	switch fn := pdu[0]; {
	case fn == fnReadHolding, fn == fnReadInput:
		return u.read(pdu)
	case fn == fnReadCoils && u.coils:
		return u.readCoils(pdu)
	case fn == fnWriteCoil && u.coils, fn == fnWriteSingle, fn == fnWriteMultiple:
		return u.write(pdu)
	default:
		return refuse(fn, illegalFunction)
	}
}

func (u *Unit) read(pdu []byte) []byte {
	if len(pdu) != 5 {
		return refuse(pdu[0], illegalValue)
	}
	addr, count := binary.BigEndian.Uint16(pdu[1:]), binary.BigEndian.Uint16(pdu[3:])
	if count == 0 || count > u.maxBlock {
		return refuse(pdu[0], illegalValue)
	}
	u.requested(pdu[0], addr, nil)
	u.mu.Lock()
	data, ok := u.image.Read(drivers.Function(pdu[0]), addr, count)
	u.mu.Unlock()
	if !ok {
		return refuse(pdu[0], illegalAddress)
	}
	return append([]byte{pdu[0], byte(len(data))}, data...)
}

func (u *Unit) readCoils(pdu []byte) []byte {
	if len(pdu) != 5 {
		return refuse(pdu[0], illegalValue)
	}
	addr, count := binary.BigEndian.Uint16(pdu[1:]), binary.BigEndian.Uint16(pdu[3:])
	if count == 0 || count > 16*u.maxBlock {
		return refuse(pdu[0], illegalValue)
	}
	u.mu.Lock()
	data, ok := u.image.Read(profile.Coils, addr, count)
	u.mu.Unlock()
	if !ok {
		return refuse(pdu[0], illegalAddress)
	}
	bits := make([]byte, (count+7)/8)
	for i := range int(count) {
		if binary.BigEndian.Uint16(data[2*i:]) != 0 {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	return append([]byte{pdu[0], byte(len(bits))}, bits...)
}

func (u *Unit) write(pdu []byte) []byte {
	fn := pdu[0]
	if len(pdu) < 5 {
		return refuse(fn, illegalValue)
	}
	addr := binary.BigEndian.Uint16(pdu[1:])
	body := pdu[3:]
	if fn == fnWriteMultiple {
		count := int(binary.BigEndian.Uint16(pdu[3:]))
		if count == 0 || count > maxWrite || len(pdu) != 6+2*count || int(pdu[5]) != 2*count {
			return refuse(fn, illegalValue)
		}
		body = pdu[6:]
	} else if len(pdu) != 5 {
		return refuse(fn, illegalValue)
	}
	into := drivers.HoldingRegisters
	if fn == fnWriteCoil {
		into = profile.Coils
	}
	values := make([]uint16, len(body)/2)
	for i := range values {
		values[i] = binary.BigEndian.Uint16(body[2*i:])
		if int(addr)+i > 0xFFFF || !u.writable[profile.Register{Function: into, Address: addr + uint16(i)}] {
			return refuse(fn, illegalAddress)
		}
		if fn == fnWriteCoil && values[i] != 0 && values[i] != coilOn {
			return refuse(fn, illegalValue)
		}
	}
	if w, ok := u.profile.Write("current_limit"); ok && into == drivers.HoldingRegisters {
		// Nobody offers what IEC 61851-1 has no duty cycle for.
		if v, ok := u.Command(w.Name, addr, values); ok && !w.Takes(v) {
			return refuse(fn, illegalValue)
		}
	}
	u.requested(fn, addr, values)
	if u.onWrite != nil {
		if err := u.onWrite(addr, slices.Clone(values)); err != nil {
			return refuse(fn, deviceFailure)
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, v := range values {
		u.image[profile.Register{Function: into, Address: addr + uint16(i)}] = v
	}
	for i := range u.profile.Writes {
		w := &u.profile.Writes[i]
		if v, ok := w.Decode(addr, values, nil); ok && into == drivers.HoldingRegisters {
			w.Reflect(u.image, v)
		}
	}
	return slices.Clone(pdu[:5])
}

func (u *Unit) requested(fn byte, addr uint16, values []uint16) {
	if u.onRequest != nil {
		u.onRequest(fn, addr, slices.Clone(values))
	}
}

// Preset gives a command of the profile a value, as if it had been written
// long ago: the registers say so. It does nothing if there is no such command.
func (u *Unit) Preset(name string, value int64) error {
	w, ok := u.profile.Write(name)
	if !ok {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var raw []meter.RawBlock
	for _, b := range w.Conditions() {
		if data, ok := u.image.Read(b.Function, b.Address, b.Count); ok {
			raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: data})
		}
	}
	c, err := w.Encode(value, raw)
	if err != nil {
		return err
	}
	for i, r := range w.Registers() {
		u.image[r] = c.Values[i]
	}
	w.Reflect(u.image, value)
	return nil
}

// Command decodes a write: it returns the value in the unit of the command
// named name (for example current_limit in mA) if the write at addr sets it.
// For an OnWrite hook.
func (u *Unit) Command(name string, addr uint16, values []uint16) (int64, bool) {
	w, ok := u.profile.Write(name)
	if !ok {
		return 0, false
	}
	var raw []meter.RawBlock
	for _, b := range w.Conditions() {
		u.mu.Lock()
		data, ok := u.image.Read(b.Function, b.Address, b.Count)
		u.mu.Unlock()
		if ok {
			raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: data})
		}
	}
	return w.Decode(addr, values, raw)
}
