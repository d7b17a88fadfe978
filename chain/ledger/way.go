package ledger

import "github.com/joulegate/joulegate/chain"

// PathFee is what a Wh pays for the network between two nodes in slot s, as
// the fee tree is planned now.
func PathFee(st State, from, to string, s chain.Slot) (chain.NanoPerWh, error) {
	return pathFee(st, from, to, s)
}
