package ledger

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/joulegate/joulegate/chain"
)

// What operators set for slots to come: the supplier's prices and the fee
// tree. Both are kept so that a slot of the past can be cleared again.

const (
	maxZoneChanges = 256 // of nodes, waiting
	maxAhead       = 1 << 20
)

// tradeTx executes the transactions of trade and of the network, and leaves
// the others to people.
func (r *run) tradeTx(st State, t chain.Tx) error {
	switch t.Kind {
	case chain.TxTariffs:
		return decoded(t, func(b chain.Tariffs) error { return r.setTariffs(st, t.Signer, b.Ranges) })
	case chain.TxZones:
		return decoded(t, func(b chain.Zones) error { return r.zones(st, t.Signer, b) })
	case chain.TxFeature:
		return decoded(t, func(b chain.FeatureBasis) error { return r.feature(st, t.Signer, b) })
	case chain.TxFirmOffer:
		return decoded(t, func(b chain.FirmOffer) error { return r.firmOffer(st, t.Signer, b) })
	case chain.TxFirmTake:
		return decoded(t, func(b chain.FirmTake) error { return r.firmTake(st, t.Signer, b) })
	case chain.TxFirmCancel:
		return decoded(t, func(b chain.FirmCancel) error { return r.firmCancel(st, t.Signer, b) })
	case chain.TxCorrection:
		return decoded(t, func(b chain.CorrectionRuling) error { return r.ruleCorrection(st, t.Signer, b) })
	}
	return r.people(st, t)
}

// setTariffs sets the prices of ranges of slots to come. What they cover of
// older ranges is cut out: ranges never overlap.
func (r *run) setTariffs(st State, signer chain.Key, ranges []chain.Tariff) error {
	if err := r.operator(signer); err != nil {
		return err
	}
	if len(ranges) == 0 || len(ranges) > chain.MaxTableRanges {
		return refuse(CodeMalformed, "%d ranges, 1..%d", len(ranges), chain.MaxTableRanges)
	}
	old := Tariffs(st)
	for _, t := range old {
		st.Delete(key(tabTariff, slotBytes(t.From)))
	}
	old = slices.DeleteFunc(old, func(t chain.Tariff) bool { return t.To < r.clock.Next-tariffMemory })
	after := max(r.slot, r.clock.Next)
	for _, t := range ranges {
		switch {
		case t.From <= after || t.To < t.From || t.To > maxSlot:
			return refuse(CodeRange, "slots %d..%d, the first free one is %d", t.From, t.To, after+1)
		case t.FeedIn < 0 || t.Retail < t.FeedIn || t.Retail > MaxPrice:
			return refuse(CodeRange, "retail %d, feed-in %d", t.Retail, t.FeedIn)
		}
		after = t.To
	}
	kept := ranges[:len(ranges):len(ranges)]
	for _, t := range old {
		for _, n := range ranges {
			if n.To < t.From || n.From > t.To {
				continue
			}
			if t.From < n.From {
				left := t
				left.To = n.From - 1
				kept = append(kept, left)
			}
			t.From = n.To + 1
		}
		if t.From <= t.To {
			kept = append(kept, t)
		}
	}
	if len(kept) > MaxTariffs {
		return refuse(CodeLimit, "%d tariff ranges, at most %d", len(kept), MaxTariffs)
	}
	for _, t := range kept {
		put(st, key(tabTariff, slotBytes(t.From)), t)
	}
	r.tariffs = nil
	return nil
}

// zone is where a node hangs and what its edge costs.
type zone struct {
	Parent string          `cbor:"1,keyasint"`
	Fee    chain.NanoPerWh `cbor:"2,keyasint"`
}

func zoneNextKey(s chain.Slot, id string) []byte { return key(tabZoneNext, slotBytes(s), []byte(id)) }

func zonePastKey(id string, since chain.Slot) []byte {
	return key(tabZonePast, []byte(id), []byte{0}, slotBytes(since))
}

// zones plans a change of the fee tree. Changes are planned in the order in
// which they take effect, so that the tree after all of them is the one that
// must be in order.
func (r *run) zones(st State, signer chain.Key, z chain.Zones) error {
	if err := r.operator(signer); err != nil {
		return err
	}
	pending, last := 0, chain.Slot(0)
	st.Iterate([]byte{tabZoneNext}, func(k, _ []byte) bool {
		pending++
		last = slotOf(k[1:])
		return true
	})
	now := max(r.slot, r.clock.Next)
	switch {
	case len(z.Nodes) == 0 || len(z.Nodes) > chain.MaxTableRanges:
		return refuse(CodeMalformed, "%d nodes, 1..%d", len(z.Nodes), chain.MaxTableRanges)
	case z.From <= now || z.From < last || z.From > now+maxAhead:
		return refuse(CodeRange, "from slot %d; the first free one is %d", z.From, max(now+1, last))
	case pending+len(z.Nodes) > maxZoneChanges:
		return refuse(CodeLimit, "%d changes wait, %d more", pending, len(z.Nodes))
	}
	tree := futureTree(st)
	seen := map[string]bool{}
	for _, n := range z.Nodes {
		old, known := tree[n.ID]
		if err := checkPrice("fee", n.Fee); err != nil {
			return err
		}
		switch {
		case seen[n.ID]:
			return refuse(CodeMalformed, "node %q twice", n.ID)
		case !goodName(n.ID):
			return refuse(CodeMalformed, "node %q: 1..%d of letters, digits, '.', '_', '-'", n.ID, chain.MaxName)
		case known && (old.Parent == "") != (n.Parent == "") || !known && n.Parent == "":
			return refuse(CodeNode, "node %q: the root stays the root", n.ID)
		}
		seen[n.ID] = true
		old.Parent, old.Fee = n.Parent, n.Fee
		tree[n.ID] = old
	}
	if err := checkTree(tree); err != nil {
		return err
	}
	for _, n := range z.Nodes {
		put(st, zoneNextKey(z.From, n.ID), zone{n.Parent, n.Fee})
	}
	r.event("zones.planned", fmt.Sprint(z.From), "%d nodes of the fee tree change", len(z.Nodes))
	return nil
}

// futureTree is the fee tree after every change that waits.
func futureTree(st State) map[string]node {
	tree := map[string]node{}
	each(st, key(tabNode), func(k []byte, n node) bool {
		tree[string(k)] = n
		return true
	})
	each(st, key(tabZoneNext), func(k []byte, z zone) bool {
		n := tree[string(k[8:])]
		n.Parent, n.Fee = z.Parent, z.Fee
		tree[string(k[8:])] = n
		return true
	})
	return tree
}

// checkTree reports a node without a place, and a house too deep.
func checkTree(tree map[string]node) error {
	inner := 0
	for _, id := range slices.Sorted(maps.Keys(tree)) {
		n := tree[id]
		if n.Device == (chain.Key{}) {
			inner++
		}
		depth := 0
		for at := n; at.Parent != ""; depth++ {
			p, ok := tree[at.Parent]
			switch {
			case !ok:
				return refuse(CodeNode, "no node %q in the fee tree", at.Parent)
			case p.Device != (chain.Key{}):
				return refuse(CodeNode, "node %q is a house", at.Parent)
			case depth >= maxDepth || depth == maxDepth-1 && n.Device == (chain.Key{}):
				return refuse(CodeNode, "a house below %q would be more than %d edges from the root", id, maxDepth)
			}
			at = p
		}
	}
	if inner > maxNodes {
		return refuse(CodeLimit, "%d inner nodes, at most %d", inner, maxNodes)
	}
	return nil
}

// checkFutureParent is checkParent for the tree after the changes that wait,
// in which name must still be free.
func checkFutureParent(st State, name, parent string) error {
	waits := false
	st.Iterate([]byte{tabZoneNext}, func(_, _ []byte) bool {
		waits = true
		return false
	})
	if !waits {
		return nil
	}
	tree := futureTree(st)
	if _, taken := tree[name]; taken {
		return refuse(CodeTaken, "node %q is planned", name)
	}
	tree[name] = node{Parent: parent, Device: chain.Key{1}}
	return checkTree(tree)
}

// applyZones puts the changes into effect that begin with slot s, the next to
// clear.
func applyZones(st State, s chain.Slot) {
	type change struct {
		key []byte
		zone
	}
	var due []change
	each(st, key(tabZoneNext), func(k []byte, z zone) bool {
		if slotOf(k) > s {
			return false
		}
		due = append(due, change{slices.Clone(k), z})
		return true
	})
	for _, c := range due {
		id := string(c.key[8:])
		n, known := get[node](st, nodeKey(id))
		if known {
			put(st, zonePastKey(id, n.Since), zone{n.Parent, n.Fee})
		}
		n.Parent, n.Fee, n.Since = c.Parent, c.Fee, slotOf(c.key)
		put(st, nodeKey(id), n)
		st.Delete(key(tabZoneNext, c.key))
	}
}

// zoneAt returns the place of a node in a slot of the past or the future.
func zoneAt(st State, id string, s chain.Slot) (zone, bool) {
	n, ok := get[node](st, nodeKey(id))
	z := zone{n.Parent, n.Fee}
	if ok && s < n.Since {
		ok = false
		each(st, key(tabZonePast, []byte(id), []byte{0}), func(k []byte, past zone) bool {
			if slotOf(k[len(id)+1:]) > s {
				return false
			}
			z, ok = past, true
			return true
		})
		return z, ok
	}
	each(st, key(tabZoneNext), func(k []byte, next zone) bool {
		if slotOf(k) > s {
			return false
		}
		if string(k[8:]) == id {
			z, ok = next, true
		}
		return true
	})
	return z, ok
}

// pathFee is what a Wh pays between two nodes in slot s.
func pathFee(st State, a, b string, s chain.Slot) (chain.NanoPerWh, error) {
	type step struct {
		id  string
		fee chain.NanoPerWh // from the start up to here
	}
	up := func(id string) (path []step) {
		var fee chain.NanoPerWh
		for id != "" {
			path = append(path, step{id, fee})
			z, ok := zoneAt(st, id, s)
			if !ok || len(path) > maxDepth+1 {
				return nil
			}
			fee += z.Fee
			id = z.Parent
		}
		return path
	}
	from := up(a)
	for _, x := range up(b) {
		if i := slices.IndexFunc(from, func(y step) bool { return y.id == x.id }); i >= 0 {
			return from[i].fee + x.fee, nil
		}
	}
	return 0, refuse(CodeNode, "no way from %q to %q in slot %d", a, b, s)
}

// ZoneView is a node of the fee tree and what is planned for it.
type ZoneView struct {
	chain.Node
	House bool       `json:"house,omitempty"`
	Since chain.Slot `json:"since_slot,omitempty"` // 0: genesis, or when the house joined
	Next  []NextZone `json:"next,omitempty"`
}

// NextZone is a change that waits.
type NextZone struct {
	From   chain.Slot      `json:"from_slot"`
	Parent string          `json:"parent"`
	Fee    chain.NanoPerWh `json:"fee"`
}

// ZonesOf returns the fee tree with the changes that wait, ascending by id.
func ZonesOf(st State) []ZoneView {
	next := map[string][]NextZone{}
	each(st, key(tabZoneNext), func(k []byte, z zone) bool {
		next[string(k[8:])] = append(next[string(k[8:])], NextZone{slotOf(k), z.Parent, z.Fee})
		return true
	})
	var all []ZoneView
	each(st, key(tabNode), func(k []byte, n node) bool {
		id := string(k)
		all = append(all, ZoneView{chain.Node{ID: id, Parent: n.Parent, Fee: n.Fee}, n.Device != chain.Key{}, n.Since, next[id]})
		delete(next, id)
		return true
	})
	for id, n := range next { // to come
		all = append(all, ZoneView{Node: chain.Node{ID: id}, Next: n})
	}
	slices.SortFunc(all, func(a, b ZoneView) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// FeatureView tells on which basis a feature is used.
type FeatureView struct {
	Feature string `cbor:"-" json:"feature"`
	On      bool   `cbor:"1,keyasint" json:"on"`
	Basis   string `cbor:"2,keyasint" json:"basis"`
	Height  int64  `cbor:"3,keyasint" json:"height"`
}

func (r *run) feature(st State, signer chain.Key, f chain.FeatureBasis) error {
	if err := r.operator(signer); err != nil {
		return err
	}
	switch {
	case f.Feature != chain.FeatureFirm && f.Feature != chain.FeatureV2V:
		return refuse(CodeMalformed, "feature %q: %s, %s", f.Feature, chain.FeatureFirm, chain.FeatureV2V)
	case len(f.Basis) > maxText || (f.On && f.Basis == ""):
		return refuse(CodeMalformed, "basis of %d bytes, 1..%d", len(f.Basis), maxText)
	}
	put(st, key(tabFeature, []byte(f.Feature)), FeatureView{On: f.On, Basis: f.Basis, Height: r.height})
	r.event("feature.switched", f.Feature, "on: %t, %s", f.On, f.Basis)
	return nil
}

// FeatureOf tells whether a feature may be used, and since when and why.
func FeatureOf(st State, feature string) FeatureView {
	f, _ := get[FeatureView](st, key(tabFeature, []byte(feature)))
	f.Feature = feature
	return f
}

// needFeature returns a refusal while the feature is off.
func needFeature(st State, feature string) error {
	if !FeatureOf(st, feature).On {
		return refuse(CodeRules, "%s is off: no operator has recorded on which basis it is used", feature)
	}
	return nil
}
