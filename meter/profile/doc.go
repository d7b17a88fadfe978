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
//     blocks which the device chains together; Walk finds the chain.
//
// # File
//
// Unknown fields are errors that name file and line. Numbers may be decimal or
// hexadecimal; scales are exact (1000, 0.1, "1/3"), they never pass through a
// float.
//
//	version: 1
//	id: acme-one
//	vendor: ACME
//	model: One
//	kind: meter                      # meter, inverter, wallbox
//	serial: {baud: 9600, framing: 8N1, unit: 1}
//	timing: {max_block: 80, bridge: 80}
//	points:
//	  - {quantity: voltage, phase: 1, function: 4, address: 0x0000, type: f32, scale: 1000}
//	  - {quantity: power, function: 4, address: 0x0034, type: s32, words: le, scale: 0.1, sign: export}
//	detect:
//	  - {quantity: voltage, phase: 1, min: 207000, max: 253000}
//	  - {quantity: power, min: -100000000, max: 100000000}
//	sources:
//	  - {name: "ACME One register list 1.2", confidence: A}
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
// Everything here is pure: no clock, no files, no locks. A *Profile is not
// changed after Parse and may be shared.
package profile
