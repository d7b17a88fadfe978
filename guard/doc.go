// Package guard holds the words of the guard: what it looks at, what it
// found, and what may be done about it.
//
//	DNS questions ── domain  ─┐
//	frames        ── packet  ─┤ Finding            ┌─► journal: the finding, redacted
//	execs         ── process ─┼────────► policy ───┼─► ledger: a Record, no names
//	CPU, disk     ── load    ─┘                    └─► Reaction: block, kill, quarantine,
//	                                                   stop; all expire, all can be undone
//
// A Sensor finds, package guard/policy decides, the wiring acts. A sensor
// that cannot see says so in its Coverage: silence without coverage is not
// good news.
//
// # What leaves the device
//
// A Finding may name hosts, domains and programs of a household. It stays in
// the device's journal. On the ledger goes its Record: the rule, how grave,
// how often, how much the sensor saw and lost, and a hash of the finding with
// a random salt, so that the finding can be shown to match later and nobody
// can guess it from the hash.
//
// # What it is worth
//
// Findings are signed and linked, so that a third party can verify who said
// what and when, and that nothing was taken away since. They do not prove
// that nothing else happened.
package guard
