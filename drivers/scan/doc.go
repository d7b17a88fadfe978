// Package scan finds the devices on a line that nobody has a plan of.
//
//	settings x units                    profile.Detect
//	      v                                   v
//	[ scan ] -- probe --> unit -- answer -- reads --> Findings
//	    |                  \- silence: next unit
//	Progress, Answer
//
// A probe is the shortest read there is. Any answer to it, a refusal too,
// means that somebody is there, and a detection finds out who.
//
// # Order and speed
//
// Settings with which devices leave the factory are tried first, and at each
// the units that have it from the factory; then all factory units at all
// settings; then the rest. A bus has one setting: once something has answered,
// only the other units there are left to ask, unless Config.Full says to go on.
// An interrupted scan has therefore seen what is likely.
//
// Most of the time is spent on waiting for nobody, so it is short: what the
// frames take at that speed, and Config.Sweep to think. A device that thinks
// longer is heard while its neighbours are asked, and asked again with
// patience; so is one whose late answer has collided with the next request.
//
// Bytes that are no answer are a device with another framing, which is tried at
// once, or of another speed: after three units in a row the setting is left.
//
// # Never guessed
//
// Profiles may share addresses: an EM24 may show a power factor where an EM340
// has its frequency. profile.Detect tells apart what registers tell; where they
// do not, the answer names all profiles that fit and chooses none. A person can
// read the label.
package scan
