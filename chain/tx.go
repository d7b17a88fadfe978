package chain

import (
	"crypto/ed25519"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// TxKind tells what a transaction's body is.
type TxKind uint16

// Transaction kinds. Append only.
const (
	TxMint     TxKind = 1 // Mint, by an operator
	TxBurn     TxKind = 2 // Burn, by an operator
	TxTransfer TxKind = 3 // Transfer, by the account's holder
	TxInvite   TxKind = 4 // Invite, by an operator
	TxJoin     TxKind = 5 // Join, signed by the invitation's one-time key
	TxRevoke   TxKind = 6 // Revoke, by an operator
	TxTariff   TxKind = 7 // Tariff, by an operator
)

// Tx is a statement by a person's key (operator, owner, driver) or by an
// invitation's one-time key. Device statements are Blocks instead.
type Tx struct {
	Version uint8           `cbor:"1,keyasint"`
	Chain   string          `cbor:"2,keyasint"`
	Signer  Key             `cbor:"3,keyasint"`
	Nonce   uint64          `cbor:"4,keyasint"` // last used by this signer + 1
	Kind    TxKind          `cbor:"5,keyasint"`
	Body    cbor.RawMessage `cbor:"6,keyasint"`
}

// SignTx returns the envelope of a transaction, ready to submit.
func SignTx(chainID string, nonce uint64, kind TxKind, body any, key ed25519.PrivateKey) []byte {
	t := Tx{Version: Version, Chain: chainID, Nonce: nonce, Kind: kind, Body: Marshal(body)}
	copy(t.Signer[:], key.Public().(ed25519.PublicKey))
	b := Marshal(t)
	return Marshal(Envelope{Type: EnvelopeTx, Body: b, Sig: Sign(key, DomainTx, b)})
}

// OpenTx checks form and signature of a transaction in an open envelope.
func OpenTx(e Envelope) (Tx, error) {
	var t Tx
	if e.Type != EnvelopeTx {
		return t, fmt.Errorf("envelope type %d, want a transaction", e.Type)
	}
	if err := Unmarshal(e.Body, &t); err != nil {
		return t, fmt.Errorf("transaction: %w", err)
	}
	if t.Version != Version {
		return t, fmt.Errorf("transaction version %d, this program knows %d", t.Version, Version)
	}
	if !Verify(t.Signer, DomainTx, e.Body, e.Sig) {
		return t, fmt.Errorf("transaction: %w", ErrSignature)
	}
	return t, nil
}

// Mint creates prepaid money against a payment in the real world.
type Mint struct {
	To      Account `cbor:"1,keyasint"`
	Amount  Nano    `cbor:"2,keyasint"` // > 0
	BankRef string  `cbor:"3,keyasint"` // unique; a second mint with it is refused; 1..64 bytes
}

// Burn destroys money of an account against a payout in the real world.
type Burn struct {
	From    Account `cbor:"1,keyasint"`
	Amount  Nano    `cbor:"2,keyasint"`
	BankRef string  `cbor:"3,keyasint"`
}

// Transfer moves money from the signer's account. Off unless the genesis
// rules allow it.
type Transfer struct {
	To     Account `cbor:"1,keyasint"`
	Amount Nano    `cbor:"2,keyasint"`
}

// Invite lets the holder of a one-time key add one gateway.
type Invite struct {
	Key       Key       `cbor:"1,keyasint"` // one-time public key
	Node      string    `cbor:"2,keyasint"` // parent node in the fee tree under which the house appears
	Fee       NanoPerWh `cbor:"3,keyasint"` // fee of the house's edge to that parent
	Validator bool      `cbor:"4,keyasint"`
	Expires   int64     `cbor:"5,keyasint"` // Unix ms of block time
}

// Join redeems an invitation. The device signs the same facts under
// DomainMember, so that nobody can enlist a key that is not his.
type Join struct {
	Member Member `cbor:"1,keyasint"`
	Sig    []byte `cbor:"2,keyasint"` // device key over Marshal(Member)
}

// Revoke ends a membership. Energy already booked stays booked.
type Revoke struct {
	Device Key    `cbor:"1,keyasint"`
	Reason string `cbor:"2,keyasint"` // <= 64 bytes, no personal data
}

// Tariff sets the supplier's prices for a range of slots, both inclusive.
type Tariff struct {
	From   Slot      `cbor:"1,keyasint" json:"from_slot"`
	To     Slot      `cbor:"2,keyasint" json:"to_slot"`
	Retail NanoPerWh `cbor:"3,keyasint" json:"retail_nano_per_wh"`
	FeedIn NanoPerWh `cbor:"4,keyasint" json:"feed_in_nano_per_wh"` // <= Retail
}

// Member is one gateway of the microgrid as the ledger knows it.
type Member struct {
	Device    Key      `cbor:"1,keyasint" json:"device"`              // block author and libp2p identity
	Name      string   `cbor:"2,keyasint" json:"name"`                // its node in the fee tree; unique; a word, not a person's name
	Owner     Key      `cbor:"3,keyasint" json:"owner"`               // a person's key: balances belong to AccountOf(Owner)
	Validator Key      `cbor:"4,keyasint" json:"validator,omitempty"` // consensus key; zero: full node
	MaxPower  int64    `cbor:"5,keyasint" json:"max_power_w"`         // W at the connection; bounds plausible energy
	Addrs     []string `cbor:"6,keyasint" json:"addrs,omitempty"`     // multiaddrs at which it listens, <= 4
}
