package ledger

import (
	"errors"

	"github.com/joulegate/joulegate/chain"
)

// BlockInput is one decided block of the agreed order.
type BlockInput struct {
	Height int64
	TimeMs int64 // block time, Unix ms: the ledger's only clock
	Txs    [][]byte
}

// BlockOutput is what a block did.
type BlockOutput struct {
	Results    []TxResult        // one per transaction, same order
	Validators []ValidatorUpdate // to be told to the consensus engine
	Events     []Event
	Violations []Violation // transactions refused because they would break an invariant
}

// TxResult is the outcome of one transaction. Anything but CodeOK left the
// state untouched.
type TxResult struct {
	Code    Code           `json:"code"`
	Info    string         `json:"info,omitempty"`
	Refused []RecordResult `json:"refused,omitempty"` // records of an accepted gateway block that had no effect
}

// RecordResult is the refusal of one record in a gateway block. The block
// stands and its position is used: otherwise one bad record would block its
// author's chain for ever.
type RecordResult struct {
	Index int              `json:"index"`
	Kind  chain.RecordKind `json:"kind"`
	Code  Code             `json:"code"`
	Info  string           `json:"info,omitempty"`
}

// ValidatorUpdate changes the power of a consensus key; 0 removes it.
type ValidatorUpdate struct {
	Key   chain.Key `json:"key"`
	Power int64     `json:"power"`
}

// Event tells people and logs what happened; no part of the state.
type Event struct {
	Code    string `json:"code"`    // dotted, e.g. "session.closed"
	Subject string `json:"subject"` // session id, member name, slot number or account
	Detail  string `json:"detail,omitempty"`
}

// Violation is a transaction that would have broken an invariant, with its
// bytes. It has been refused; its existence is a bug in the ledger.
type Violation struct {
	Tx   []byte `json:"tx"`
	Info string `json:"info"`
}

// InitGenesis writes the state at height 0 and returns the first validators.
// genesisTimeMs is the time of the genesis document, Unix ms.
func InitGenesis(st State, g chain.Genesis, genesisTimeMs int64) ([]ValidatorUpdate, error) {
	return nil, errors.New("not yet")
}

// CheckTx judges a transaction for admission on st, an overlay that the
// caller keeps on the committed state and discards at every commit. An
// accepted transaction leaves its nonce or chain position (and, for money,
// its effect) there, so that the next one of the same signer passes too.
func CheckTx(st State, raw []byte) TxResult { return TxResult{Code: CodeMalformed, Info: "not yet"} }

// Apply executes one block: its transactions in order, then everything that
// is due at block time. On an error nothing was written and the ledger must
// halt: no transaction is to blame. A block without any effect writes
// nothing, so that an idle chain's hash stands still.
func Apply(st State, b BlockInput) (BlockOutput, error) { return BlockOutput{}, errors.New("not yet") }

// CheckInvariants checks the invariants over the whole state and returns one
// line per violation.
func CheckInvariants(st State) []string { return nil }
