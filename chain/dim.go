package chain

// TxDim is the transaction kind of Dim.
const TxDim TxKind = 60

// Dim is a network operator's order, by an operator of the microgrid: below a
// node of the fee tree every charger takes at most Limit until the time given.
// A gateway follows it if its installer has configured that; it never raises
// what anything else allows. The newest order of a node replaces the one
// before.
type Dim struct {
	Node   string `cbor:"1,keyasint"` // a house, an inner node, or the root for all
	Limit  int64  `cbor:"2,keyasint"` // W for each charger; 0 takes the order back
	Until  int64  `cbor:"3,keyasint"` // Unix ms of block time, at most a week ahead; not used with 0
	Reason string `cbor:"4,keyasint"` // 1..64 bytes, no personal data
}
