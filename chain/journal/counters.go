package journal

import "sync/atomic"

// Counters counts since start, for metrics.
type Counters struct {
	Appended      uint64 // own blocks signed and written
	Stored        uint64 // blocks from outside stored when they came
	Fetched       uint64 // blocks stored by catch-up
	Oversize      uint64 // refused: too large
	Invalid       uint64 // refused: form or signature
	Foreign       uint64 // refused: another grid's chain
	Strangers     uint64 // ignored: author is no member
	Replays       uint64 // ignored: known
	Held, Overrun uint64 // out of order: held; ignored because too many are held
	Gaps          uint64 // chains begun past their start, whose older part nobody has
	Equivocations uint64
	Dropped       uint64 // neighbours' blocks dropped for space, or before a hole
	Retired       uint64 // own blocks let go: old, and on the ledger
	Epochs        uint64 // epochs opened
	WriteErrors   uint64
	Repaired      uint64 // damage found and repaired at start
	Served        uint64 // catch-up requests answered
	SyncErrors    uint64 // exchanges that failed
}

type counters struct {
	appended, stored, fetched, oversize, invalid, foreign, strangers, replays, held, heldFull atomic.Uint64
	gaps, equivocations, dropped, retired, epochs, writeErrors, repaired, served, syncErrors  atomic.Uint64
}

// Counters returns the counts so far.
func (j *Journal) Counters() Counters {
	c := &j.count
	return Counters{
		Appended: c.appended.Load(), Stored: c.stored.Load(), Fetched: c.fetched.Load(),
		Oversize: c.oversize.Load(), Invalid: c.invalid.Load(), Foreign: c.foreign.Load(), Strangers: c.strangers.Load(),
		Replays: c.replays.Load(), Held: c.held.Load(), Overrun: c.heldFull.Load(), Gaps: c.gaps.Load(),
		Equivocations: c.equivocations.Load(), Dropped: c.dropped.Load(), Retired: c.retired.Load(), Epochs: c.epochs.Load(),
		WriteErrors: c.writeErrors.Load(), Repaired: c.repaired.Load(), Served: c.served.Load(), SyncErrors: c.syncErrors.Load(),
	}
}
