package ledger

import "github.com/joulegate/joulegate/chain"

// What an auditor asks of a state. A bundle carries these ranges whole, so
// that nothing in them can be left out.

// CommonPrefixes are the tables that tell rules, members, meters, the fee tree
// and who has attested them.
func CommonPrefixes() [][]byte {
	return [][]byte{
		{tabMeter},
		{tabHead},
		{tabFeature},
		{tabMember},
		{tabNode},
		{tabTariff},
		{tabCounters},
		{tabValidator},
		{tabZoneNext},
		{tabZonePast},
		{tabEnergy},
		{tabGrid},
		{tabClock},
		{tabMoney},
		{tabRules},
		{tabPending},
		{tabAttestation},
	}
}

// SlotRanges are the entries of slots from..to, both inclusive, as pairs of a
// first key and the key after the last.
func SlotRanges(from, to chain.Slot) [][2][]byte {
	var out [][2][]byte
	for _, t := range []byte{tabSlot, tabFill, tabDelivery} {
		out = append(out, [2][]byte{key(t, slotBytes(from)), key(t, slotBytes(to+1))})
	}
	return out
}

// SessionPrefix is the table of sessions; a session's bill is under BillKey.
func SessionPrefix() []byte { return []byte{tabSession} }

// BillKey is the key of what became of a settled session's bill.
func BillKey(id chain.ID) []byte { return billKey(id) }

// RulesKey is the key of the rules in force.
func RulesKey() []byte { return key(tabRules) }
