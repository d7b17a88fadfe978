// Package meter holds the words of measurement: units, points, readings and
// their quality.
//
// A bus gives registers; a profile (package meter/profile) turns registers
// into Points; a Reading is what one device said at one moment, together with
// the registers it said it in, so that anybody can decode it again:
//
//	registers --profile--> []Point --quality--> Reading --Merkle--> record
//
// # Sign
//
// Import is positive everywhere: power that flows from the network into the
// thing behind the meter is positive, whatever the device's own convention.
// An inverter therefore shows negative power while the sun shines and counts
// its production in the export register. Profiles carry the sign switch.
//
// # Integers
//
// Every quantity is a named int64 in a unit small enough that no fraction is
// needed (mW, mWh, mA, mV, mHz). Floats exist only inside decoding of devices
// that send IEEE 754, and end there.
package meter
