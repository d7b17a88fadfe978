package chain

import (
	"errors"
	"fmt"
)

// Transaction kinds between microgrids. Append only.
const (
	TxRemote       TxKind = 70 // Remote, by operators
	TxRemoteHead   TxKind = 71 // RemoteHead, by an operator
	TxSettle       TxKind = 72 // Settlement, by an operator, on Home
	TxSettleAnswer TxKind = 73 // SettleAnswer, by an operator, on Away
	TxSettleClose  TxKind = 74 // SettleClose, by either side or an operator, on Home
)

// Remote says whom to believe about another microgrid: its validators at a
// point that the operators have looked at, its genesis or a checkpoint. From
// there on its own signatures carry trust further.
type Remote struct {
	Genesis Hash  `cbor:"1,keyasint" json:"genesis"` // of its genesis file
	Trust   Trust `cbor:"2,keyasint" json:"trust"`   // without validators: it is believed no longer
}

// RemoteHead carries trust in another microgrid to a newer block of it.
type RemoteHead struct {
	Checkpoint Checkpoint `cbor:"1,keyasint"`
}

// Limits of what one microgrid shows another in a transaction.
const (
	MaxRemoteTree    = 8 << 10   // bytes of a pruned tree
	MinSettleSpan    = 86400_000 // ms from a settlement's deadline to its expiry, at least
	MaxSettleHorizon = 90 * 86400_000
)

// RemoteProof shows an entry of another microgrid's state, or that there is
// none: a block that its validators have signed, and the branches of the state
// before it that lead to the entry (package tree has the format).
type RemoteProof struct {
	Checkpoint Checkpoint `cbor:"1,keyasint"`
	Tree       []byte     `cbor:"2,keyasint"`
}

// Settlement is what two operators agree on to settle between their ledgers.
// The one who owes locks money on his ledger (Home); the other pays the
// counter-entry on his (Away); each ledger lets the money go only when the
// other's validators have signed that the other half is there.
//
//	Home                                  Away
//	Settle: lock Amount
//	        └──────── proof: locked ────────► SettleAnswer: pay AwayAmount
//	SettleClose: pay Payee ◄─ proof: answered ──┘    (before Deadline)
//	     or: back to Payer ◄─ proof: never answered
//	after Expires: back to Payer
//
// Amounts are in each ledger's own currency. The id is random and is used
// once; both ledgers keep the same terms, so that neither can be shown others.
type Settlement struct {
	ID         ID      `cbor:"1,keyasint" json:"id"`
	Home       string  `cbor:"2,keyasint" json:"home"` // chain id
	Payer      Account `cbor:"3,keyasint" json:"payer"`
	Payee      Account `cbor:"4,keyasint" json:"payee"`
	Amount     Nano    `cbor:"5,keyasint" json:"amount_nano"`
	Away       string  `cbor:"6,keyasint" json:"away"` // chain id
	AwayPayer  Account `cbor:"7,keyasint" json:"away_payer"`
	AwayPayee  Account `cbor:"8,keyasint" json:"away_payee"`
	AwayAmount Nano    `cbor:"9,keyasint" json:"away_amount_nano"`
	Deadline   int64   `cbor:"10,keyasint" json:"deadline_ms"` // of the answer: Unix ms of Away's block time
	Expires    int64   `cbor:"11,keyasint" json:"expires_ms"`  // of the lock: Unix ms of Home's block time
}

// Check reports the first thing wrong with the terms themselves.
func (s *Settlement) Check() error {
	switch {
	case s.ID == (ID{}):
		return errors.New("settlement without an id")
	case s.Home == "" || len(s.Home) > MaxName || s.Away == "" || len(s.Away) > MaxName:
		return fmt.Errorf("settlement between chain ids of %d and %d bytes, 1..%d", len(s.Home), len(s.Away), MaxName)
	case s.Home == s.Away:
		return fmt.Errorf("settlement of %q with itself", s.Home)
	case s.Amount <= 0 || s.AwayAmount <= 0:
		return fmt.Errorf("settlement of %d against %d", s.Amount, s.AwayAmount)
	case s.Deadline <= 0 || s.Expires-MinSettleSpan < s.Deadline:
		return fmt.Errorf("settlement expires at %d, at least %d ms after its deadline %d", s.Expires, MinSettleSpan, s.Deadline)
	}
	return nil
}

// SettleAnswer pays the counter-entry of a settlement that Home has locked.
type SettleAnswer struct {
	Terms Settlement  `cbor:"1,keyasint"`
	Proof RemoteProof `cbor:"2,keyasint"` // of Home: locked
}

// SettleClose ends a locked settlement by what Away has signed.
type SettleClose struct {
	ID    ID          `cbor:"1,keyasint"`
	Away  string      `cbor:"2,keyasint"`
	Proof RemoteProof `cbor:"3,keyasint"` // of Away: answered, or not answered by the deadline
}
