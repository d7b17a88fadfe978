package ledger

import (
	"cmp"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Limits of orders to dim.
const (
	MaxDims   = 256 // in force
	maxDimMs  = 7 * dayMs
	maxDimmed = 1_000_000 // W
)

// DimView is an order to dim.
type DimView struct {
	Node   string     `cbor:"1,keyasint" json:"node"`
	Limit  meter.Watt `cbor:"2,keyasint" json:"limit_w"` // for each charger
	Until  int64      `cbor:"3,keyasint" json:"until_ms"`
	Reason string     `cbor:"4,keyasint" json:"reason"`
	Height int64      `cbor:"5,keyasint" json:"height"`
	SetMs  int64      `cbor:"6,keyasint" json:"set_ms"` // block time
	By     chain.Key  `cbor:"7,keyasint" json:"by"`
}

// dim sets or takes back the order of a node. Orders that have ended are
// forgotten with the next one.
func (r *run) dim(st State, signer chain.Key, d chain.Dim) error {
	if err := r.operator(signer); err != nil {
		return err
	}
	if st.Get(nodeKey(d.Node)) == nil {
		return refuse(CodeNode, "no node %q", d.Node)
	}
	switch {
	case len(d.Reason) == 0 || len(d.Reason) > maxText:
		return refuse(CodeMalformed, "a reason of %d bytes, 1..%d", len(d.Reason), maxText)
	case d.Limit < 0 || d.Limit > maxDimmed:
		return refuse(CodeRange, "%d W, 0..%d", d.Limit, maxDimmed)
	case d.Limit > 0 && (d.Until <= r.time || d.Until > r.time+maxDimMs):
		return refuse(CodeRange, "until %d, block time is %d and a week the most", d.Until, r.time)
	}
	var dead [][]byte
	count := 0
	each(st, key(tabDim), func(k []byte, v DimView) bool {
		if v.Until <= r.time || v.Node == d.Node {
			dead = append(dead, key(tabDim, k))
		} else {
			count++
		}
		return true
	})
	for _, k := range dead {
		st.Delete(k)
	}
	if d.Limit == 0 {
		r.event("utility.released", d.Node, "%s", d.Reason)
		return nil
	}
	if count >= MaxDims {
		return refuse(CodeLimit, "%d orders are in force", count)
	}
	put(st, key(tabDim, []byte(d.Node)), DimView{d.Node, meter.Watt(d.Limit), d.Until, d.Reason, r.height, r.time, signer})
	r.event("utility.dimmed", d.Node, "%d W until %d: %s", d.Limit, d.Until, d.Reason)
	return nil
}

// Dims returns the orders to dim that have not been replaced, ascending by
// node. Some may have ended.
func Dims(st State) []DimView {
	var all []DimView
	each(st, key(tabDim), func(_ []byte, v DimView) bool {
		all = append(all, v)
		return true
	})
	slices.SortFunc(all, func(a, b DimView) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// DimOf returns the lowest order in force at time ms for a gateway, of its own
// node or of any above it; ok false: there is none.
func DimOf(st State, device chain.Key, ms int64) (v DimView, ok bool) {
	m, _ := get[member](st, MemberKey(device))
	for id, depth := m.Member.Name, 0; id != "" && depth <= maxDepth; depth++ {
		if d, set := get[DimView](st, key(tabDim, []byte(id))); set && d.Until > ms && (!ok || d.Limit < v.Limit) {
			v, ok = d, true
		}
		n, _ := get[node](st, nodeKey(id))
		id = n.Parent
	}
	return v, ok
}
