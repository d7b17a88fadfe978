// Package profile turns registers into points, and points into registers.
//
// A profile is a data file about one device: who made it, how its serial port
// is set, how it likes to be asked, where its values lie and how its numbers
// are written. A new meter is one new file in data/, never new code.
//
//	          Blocks            bus             Decode
//	profile ---------> reads ---------> registers ---------> []meter.Point
//	                                       ^                      |
//	                                       +-------- Encode ------+   (simulators)
//
// # Words
//
//   - A register is 16 bits at a 0-based address, read with function 3
//     (holding) or 4 (input).
//   - A point is a quantity on a phase: registers, type, word order, scale to
//     the integer unit of its quantity, and sign.
//   - A block is one read. Blocks joins points that lie close together, within
//     the longest read the device accepts, and never splits a point.
//   - A SunSpec profile has no addresses. Its points are offsets inside model
//     blocks which the device chains together; Walk finds the chain, and package
//     sunspec knows whole models.
//   - A detection asks an unknown device for what each profile is recognised by:
//     see Detect.
//
// # File
//
// Unknown fields are errors that name file and line. Numbers may be decimal or
// hexadecimal; scales are exact (1000, 0.1, "1/3"), they never pass through a
// float.
//
//	version: 1
//	id: acme-one                     # and the file is acme-one.yaml
//	vendor: ACME
//	model: One
//	kind: meter                      # meter, inverter, wallbox, battery
//	experimental: true               # a fact is not settled: the note says which
//	note: What an installer should know.
//	serial: {baud: 9600, framing: 8N1, unit: 1, port: 502}
//	timing: {max_block: 80, bridge: 80, gap: 100ms, connect_delay: 1s}
//	function: 4                      # of points that name none
//	points:
//	  - {quantity: voltage, phase: 1, address: 0x0000, type: f32, scale: 1000}
//	  - {quantity: power, address: 0x0034, type: s32, words: le, scale: 0.1, sign: export}
//	detect:
//	  - {quantity: voltage, phase: 1, min: 207000, max: 253000}
//	  - {quantity: power, min: -100000000, max: 100000000}
//	sources:
//	  - {name: "ACME One register list 1.2", confidence: A}
//
// A scale leads from the register's number to the integer unit of its quantity:
// a register in tenths of a volt has scale 100, because voltage is in mV.
//
// What devices do beside that, all fields of a point unless said otherwise:
//
//	sum: [808, 809]                  # no total: these numbers are added
//	sum: [30865], less: [30867]      # two directions counted apart
//	ratios: [{address: 6}]           # transformer ratio in a register multiplies
//	shift: 8, mask: 0x7F             # some bits of a number
//	type: text, length: 5            # a status such as "C2"
//	absent: [1000]                   # raw values that mean "not available"
//	alt: {above: 100000, scale: 100} # another scale if the value would be too large,
//	alt: {address: 9, mask: 2, scale: 1, sign: import}  # or if a bit is set
//	slow: true                       # need not be read every time
//	alone: true                      # read by itself; in timing: all are
//	marks: min                       # of the file: 0x8000, 0xFFFF are not available
//	                                 # (max: 0x7FFF, 0xFFFF)
//	fallback: 3                      # of the file: the other function to try
//	identity:                        # of the file: who the device is
//	  - {field: serial, function: 3, address: 0xFC00, type: u32}
//
// # Wallboxes
//
// A status has a table to the letters of IEC 61851-1, and commands say how they
// are written. A limit is rounded down to what the registers can say, and what
// lies between 0 and min is refused.
//
//	states: {1: A, 2: B, 3: C}       # or of a text: {A: A, B1: B, C2: C}
//	writes:
//	  - {name: current_limit, address: 1000, scale: 1000, min: 6000, max: 32000}
//	  - {name: current_limit, address: 20, function: 16, scale: 60, min: 6000, max: 32000, zero: 1000, twice: true}
//	  - {name: enable, address: 400, function: 5, values: {0: 0, 1: 0xFF00}}
//	  - {name: heartbeat, address: 0x0D00, values: {1: 0x55AA}, every: 5s}
//	  - {name: failsafe_current, address: 5016, min: 6000, max: 32000, read: {address: 1600, type: u32}}
//
// 0 pauses: current_limit takes it unless it is nonzero, and enable takes it
// always; Pause lists what to write. A device also says
//
//	cables: {1: false, 5: true}      # a vehicle hangs on the cable, where the status does not tell
//	watchdog: {fed_by: heartbeat, timeout: 10s, current: 6000}
//	                                 # when it takes its master for gone, and what it offers then
//	derated: [8]                     # codes that say that heat lowers the offer
//	nonzero: true                    # of a write: takes no 0
//	optional: true                   # some models lack it: a refusal is no failure
//	setup: 0                         # written once by a master that takes over
//	every: 5s                        # written again and again, or the device falls back
//	read: {address: 9, values: {1: 0, 3: 5}}  # where it can be read back, in other numbers perhaps
//
// A driver therefore needs no knowledge of any model:
//
//	for each s in p.Setup()          write s.Write.Encode(s.Value)
//	w, _ := p.Write("current_limit") write w.Encode(16_000), then enable 1 if there is one
//	for each s in p.Pause()          write s.Write.Encode(0)
//	p.VehicleState(points)           A..F
//	w.Every                          repeat while the control loop is alive; a watchdog
//	                                 fed by request or write wants the same of any of those
//
// Read, write and read back a command: Write.Encode, Write.ReadBlock and
// Write.DecodeRead. Simulators use their inverses: Write.Decode, Reflect,
// Watchdog.Feeds.
//
// # Batteries
//
// An order is a list of commands with values; the step without one takes the
// power. See Order.
//
//	orders:
//	  charge: [{write: power_command}, {write: direction, value: 1}, {write: mode, value: 2}]
//	  release: [{write: direction, value: 0}, {write: mode, value: 0}]
//
// The SHA-256 of the file travels with every reading, so that anybody who has
// the file and the raw registers can decode them again.
//
// # Variants
//
// Vendors disagree on the sign of power for the same model (SunSpec meters of
// Fronius count import positive, SolarEdge export). Get("ID+reversed") is the
// same profile with the sign of power turned round, and with a hash of its own.
// Get("ID+swapped") is for current transformers that are mounted the wrong way
// round: it exchanges the import and export registers too.
//
// # Signed records
//
// A meter that signs a session's record itself says where: it is text, and is
// passed on byte for byte.
//
//	signed: {format: ocmf, address: 1000, length: 900, key: {address: 3000, length: 128}}
//
// # Folder
//
// Load reads a folder of files that come before the built-in profiles, so that
// a new device needs no new program.
//
// Everything here is pure: no clock, no locks, and no files but those that Load
// is handed. A *Profile is not changed after Parse and may be shared.
package profile
