package ledger

import (
	"encoding/binary"
	"fmt"

	"github.com/joulegate/joulegate/chain"
)

// Pruning. Slots, fills and settled sessions would outgrow a gateway in years;
// blocks hold all that led to them. Once nothing can happen to them any more
// and the rules' time is over they leave the state, and their hash stays:
//
//	state ──entries of a slot, of a session──► gone
//	             │
//	             └─► Archive: hash = SHA-256(hash before, key, value), entry by entry
//
// Whoever kept the entries, or executes the blocks again, can prove them
// against the archive's hash, and the archive against any later app hash. It
// is block time that decides, so all gateways do it alike; whether a gateway
// also drops old blocks is its own affair and changes no hash.
const (
	defaultRetain     = 400 // days: a year's statement can be told from the state
	minRetain         = 40  // beyond the 30 days in which readings can be corrected
	maxPrunedSlots    = 4   // per block; the next goes on
	maxPrunedSessions = 64
	maxPrunedLate     = 1024
	maxPrunedFirm     = 256
	postponeMs        = 30 * dayMs // a session that is not billed, or disputed, is looked at again
	archiveSlot       = 's'
	archiveSession    = 'c'
	tabArchive        = '0' // kind, slot or day -> Archive
	tabClosed         = '1' // time in ms, session -> nothing: sessions that can be pruned by then
)

// Archive is what remains of pruned entries: of one slot, or of the sessions
// that were pruned on one UTC day, in ascending order of the time they ended.
type Archive struct {
	Hash    chain.Hash `cbor:"1,keyasint" json:"hash"` // [ArchiveHash] over the entries, in order
	Entries uint32     `cbor:"2,keyasint" json:"entries"`
}

// ArchiveHash adds an entry of the state to an archive's hash; the first hash
// is zero.
func ArchiveHash(h chain.Hash, key, value []byte) chain.Hash {
	b := make([]byte, 0, len(h)+8+len(key)+len(value))
	b = append(b, h[:]...)
	for _, part := range [][]byte{key, value} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return chain.Sum(b)
}

// ArchivedSlotKey is the key of the archive of a pruned slot, to prove it.
func ArchivedSlotKey(s chain.Slot) []byte { return key(tabArchive, []byte{archiveSlot}, slotBytes(s)) }

// ArchivedSlot returns what remains of a pruned slot.
func ArchivedSlot(st State, s chain.Slot) (Archive, bool) {
	return get[Archive](st, ArchivedSlotKey(s))
}

// ArchivedSessions returns what remains of the sessions that were pruned on a
// UTC day (days since 1970).
func ArchivedSessions(st State, day int64) (Archive, bool) {
	return get[Archive](st, key(tabArchive, []byte{archiveSession}, be64(uint64(day))))
}

// retainMs is how long entries stay in the state after they can no longer
// change: at least as long as anything can still be said about them.
func (g *Rules) retainMs() int64 {
	return max(g.RetainDays, g.DisputeDays+1) * dayMs
}

// KeptFrom returns the first slot that pruning has not come to, or not yet.
func KeptFrom(st State) chain.Slot {
	rules := RulesOf(st)
	c, _ := get[clock](st, key(tabClock))
	return chain.SlotAt(max(0, c.TimeMs-rules.retainMs()), rules.SlotSeconds)
}

func closedKey(ms int64, id chain.ID) []byte { return key(tabClosed, be64(uint64(ms)), id[:]) }

// archive moves entries out of the state under an archive's key.
func archive(st State, k []byte, keys [][]byte) {
	a, _ := get[Archive](st, k)
	for _, e := range keys {
		a.Hash = ArchiveHash(a.Hash, e, st.Get(e))
		a.Entries++
		st.Delete(e)
	}
	put(st, k, a)
}

// prune takes out of the state what is older than the rules retain, a little
// in each block.
func (r *run) prune(st State) {
	before := r.time - r.rules.retainMs()
	var slots []chain.Slot
	st.Iterate([]byte{tabSlot}, func(k, _ []byte) bool {
		s := slotOf(k[1:])
		if s.End(r.rules.SlotSeconds) > before || len(slots) == maxPrunedSlots {
			return false
		}
		slots = append(slots, s)
		return true
	})
	for _, s := range slots {
		keys := [][]byte{SlotKey(s)}
		for _, table := range []byte{tabFill, tabDelivery, tabLateEnergy} {
			st.Iterate(key(table, slotBytes(s)), func(k, _ []byte) bool {
				keys = append(keys, k)
				return true
			})
		}
		for _, d := range FirmDeliveries(st, s) {
			k := firmKey(d.Offer)
			if f, ok := get[FirmView](st, k); ok && !f.Open && f.To == s {
				keys = append(keys, k)
			}
		}
		archive(st, ArchivedSlotKey(s), unique(keys))
	}

	var late [][]byte
	st.Iterate([]byte{tabLateEnergy}, func(k, _ []byte) bool {
		if slotOf(k[1:]).End(r.rules.SlotSeconds) > before || len(late) == maxPrunedLate {
			return false
		}
		late = append(late, k)
		return true
	})
	for _, k := range late {
		st.Delete(k)
	}

	// Offers leave with their last delivery. Here go those that had none.
	var firm [][]byte
	st.Iterate(key(tabFirm, []byte{'x'}), func(k, _ []byte) bool {
		s := slotOf(k[2:])
		if s.End(r.rules.SlotSeconds) > before || st.Get(SlotKey(s)) != nil || len(firm) == maxPrunedFirm {
			return false
		}
		firm = append(firm, k)
		return true
	})
	for _, k := range firm {
		st.Delete(k)
		st.Delete(firmKey(chain.ID(k[10:])))
	}

	type closed struct {
		key []byte
		id  chain.ID
	}
	var sessions []closed
	st.Iterate([]byte{tabClosed}, func(k, _ []byte) bool {
		if int64(binary.BigEndian.Uint64(k[1:9])) > before || len(sessions) == maxPrunedSessions {
			return false
		}
		sessions = append(sessions, closed{k, chain.ID(k[9:])})
		return true
	})
	for _, c := range sessions {
		st.Delete(c.key)
		s := session(st, c.id)
		b := billOf(st, c.id)
		if st.Get(todoKey(todoSession, s.Driver[:], s.ID[:])) != nil || undecided(st, b.Dispute) || undecided(st, s.MeterDispute) {
			put(st, closedKey(int64(binary.BigEndian.Uint64(c.key[1:9]))+postponeMs, c.id), true)
			continue
		}
		keys := [][]byte{SessionKey(c.id)}
		if st.Get(billKey(c.id)) != nil {
			keys = append(keys, billKey(c.id))
		}
		archive(st, key(tabArchive, []byte{archiveSession}, be64(uint64(r.time/dayMs))), keys)
	}
	if n := len(slots) + len(sessions); n > 0 {
		r.event("state.pruned", fmt.Sprint(r.height), "%d slots, %d sessions older than %d days", len(slots), len(sessions), r.rules.retainMs()/dayMs)
	}
}

// undecided reports whether there is such a dispute and it goes on.
func undecided(st State, n uint64) bool {
	d, ok := DisputeOf(st, n)
	return ok && d.State != DisputeResolved
}

// unique drops repeated keys; one offer can have several deliveries in a slot.
func unique(keys [][]byte) [][]byte {
	seen := map[string]bool{}
	out := keys[:0]
	for _, k := range keys {
		if !seen[string(k)] {
			seen[string(k)] = true
			out = append(out, k)
		}
	}
	return out
}

// mayRemove reports whether an entry is old enough to leave the state.
func mayRemove(st State, k, value []byte) bool {
	rules := RulesOf(st)
	c, _ := get[clock](st, key(tabClock))
	before := c.TimeMs - rules.retainMs()
	switch k[0] {
	case tabSlot, tabFill, tabDelivery:
		s := slotOf(k[1:])
		_, archived := ArchivedSlot(st, s)
		return archived && s.End(rules.SlotSeconds) <= before
	case tabSession:
		s := must[SessionView](k, value)
		return !s.State.Open() && s.ClosedMs <= before
	}
	return false
}
