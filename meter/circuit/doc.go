// Package circuit shares what fuses, feeders and the utility allow among the
// chargers below them. It is pure: Step takes state, measurements and the
// monotonic time, and returns what each charger may be offered.
//
//	feeder 63 A ─┬─ house fuse 35 A [meter] ─┬─ the house itself: base load
//	             │                           └─ garage 20 A ─┬─ charger 1, wired L1 L2 L3
//	             │                                           └─ charger 2, wired L2 L3 L1
//	             └─ other gateways: a fixed share, or a lease (see Leader)
//
// # Per phase
//
// Every circuit has a rating per phase, and a charger loads the phases it is
// wired to: electricians rotate them, so terminal 1 of charger 2 is L2 above.
// A sum over phases is never compared with a fuse.
//
// # Base load
//
// A metered circuit carries its chargers and whatever else there is. The rest
// is the meter's current less the least that each charger has drawn since the
// moment of the meter's reading: readings of two meters are never of one
// moment, and to take too little for the chargers errs on the side of the
// fuse. Export gives no extra room, because a cloud is faster than a meter.
//
// # Shares
//
// All who can be served get at least MinCurrent (IEC 61851-1 has nothing
// between 0 and 6 A), and above it equal parts (max-min fairness). When not
// all can, they take turns of Rules.Turn, the one that had least time first.
//
// # Order of changes
//
// A limit falls at once. It rises only when there has been room for
// Rules.RaiseDelay, and never into current that another charger may still
// draw: for Rules.Turnaround after it was lowered, a charger counts with what
// it was offered before. A load step in the house therefore exceeds a rating
// for no longer than
//
//	interval of the meter + age at which its reading arrives + Turnaround
//
// # The utility
//
// Order (StepDim) follows dimming by a contact, by message or by the ledger:
// the lowest that is in force counts, and none can raise anything. A source
// that is watched and falls silent is taken as dimmed for two hours at least
// (EEBUS failsafe), then the gateway's own limit holds until it is heard.
package circuit
