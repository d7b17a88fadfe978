// Package scan finds the devices on a line that nobody has a plan of.
//
//	Plan: settings x units          Detection (pure)
//	      v                               v
//	[ Scanner ] -- probe --> unit  -- reads --> profile, evidence
//	      |                     \- silence: next unit
//	   Progress, Answer
//
// A probe is the shortest read there is. Any answer to it, a refusal too,
// means that somebody is there; Detection then reads what the profiles say
// about themselves and keeps those whose every rule holds.
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
// Two profiles may both fit. If one says everything that the other does, with
// equal values, and more that the device confirms, it is the better
// description: an SDM630 fits the profile of the single-phase SDM120, too. In
// every other case the answer is ambiguous: all candidates are named and none
// is chosen. An EM24 may show a power factor where an EM340 has its frequency,
// and a person can read the label.
package scan
