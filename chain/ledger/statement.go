package ledger

import (
	"fmt"

	"github.com/joulegate/joulegate/chain"
)

// Movement is one change of an account. Movements are no part of the state:
// ten years of them would outweigh it many times, and whoever has the blocks
// can execute them again and see each.
type Movement struct {
	Account chain.Account `json:"account"`
	Amount  chain.Nano    `json:"amount_nano"`      // what came (or went, if negative)
	Credit  bool          `json:"credit,omitempty"` // of discount credit rather than money
	Cause   string        `json:"cause"`            // in words, for example "held for session"
	Ref     string        `json:"ref"`              // what Cause speaks of: a session, slot, number or bank reference
}

// trace gathers movements beside an overlay. It is committed and discarded
// with it.
type trace struct {
	moves      []Movement
	cause, ref string
}

// because tells why the movements on st that follow happen.
func because(st State, cause string, ref any) {
	if o, ok := st.(*Overlay); ok && o.trace != nil {
		o.trace.cause, o.trace.ref = cause, fmt.Sprint(ref)
	}
}

// note notes a movement if st is traced.
func note(st State, a chain.Account, amount chain.Nano, credit bool) {
	if o, ok := st.(*Overlay); ok && o.trace != nil && amount != 0 {
		o.trace.moves = append(o.trace.moves, Movement{a, amount, credit, o.trace.cause, o.trace.ref})
	}
}
