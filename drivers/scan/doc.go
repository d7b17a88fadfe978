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
// # Order
//
// Factory unit ids are tried first, at the settings that devices leave the
// factory with; then all other units at the settings at which something has
// answered; then the rest. An interrupted scan has therefore seen what is
// likely.
//
// # Never guessed
//
// Profiles may share addresses: an EM24 may show a power factor where an EM340
// has its frequency. profile.Detect tells apart what registers tell; where they
// do not, the answer names all profiles that fit and chooses none. A person can
// read the label.
package scan
