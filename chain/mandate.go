package chain

import "errors"

// Transaction kinds of mandates. Append only.
const (
	TxMandate       TxKind = 50 // Mandate, by who pays
	TxMandateRevoke TxKind = 51 // MandateRevoke, by who pays
	TxOffline       TxKind = 52 // Offline, by who pays
)

// DomainMandate is what a token's key signs under: its consent to be paid for.
const DomainMandate = "joulegate/mandate/1\x00"

// Mandate lets the holder of a token charge at the signer's cost, again and
// again, within limits. A token is a key pair of its own: a card's, which a
// gateway finds by the card; a printed code's, which is the code; a car's on
// its owner's list. A quote that a token's key has signed opens a session whose
// hold is taken from the signer's account.
//
// What identifies (the card) is thereby kept apart from what authorises (this
// statement), and neither says who the person is.
type Mandate struct {
	Token   Key         `cbor:"1,keyasint" json:"token"` // public half
	Kind    MandateKind `cbor:"2,keyasint" json:"kind"`
	PerTap  Nano        `cbor:"3,keyasint" json:"per_tap_nano"`              // most that one session holds, > 0
	PerDay  Nano        `cbor:"4,keyasint" json:"per_day_nano"`              // most within a day of block time, UTC, >= PerTap
	Cap     NanoPerWh   `cbor:"5,keyasint" json:"cap_nano_per_wh"`           // no session at a higher price, > 0
	Uses    uint32      `cbor:"6,keyasint,omitempty" json:"uses"`            // sessions in all; 0: any number
	Expires int64       `cbor:"7,keyasint" json:"expires_ms"`                // Unix ms of block time
	Gateway Key         `cbor:"8,keyasint,omitzero" json:"gateway,omitzero"` // only there; zero: anywhere
	Consent []byte      `cbor:"9,keyasint" json:"-"`                         // Consent: nobody can take over a key that is not his
}

// MandateKind says what a token is, for people.
type MandateKind uint8

// Kinds of mandates. Append only.
const (
	MandateCard  MandateKind = 1 // a card
	MandateCode  MandateKind = 2 // a printed code
	MandateOwner MandateKind = 3 // a car or card on its owner's free list: the owner pays
)

func (k MandateKind) String() string {
	switch k {
	case MandateCard:
		return "card"
	case MandateCode:
		return "code"
	case MandateOwner:
		return "owner"
	}
	return "unknown"
}

// MarshalText implements encoding.TextMarshaler.
func (k MandateKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *MandateKind) UnmarshalText(b []byte) error {
	for v := MandateCard; v <= MandateOwner; v++ {
		if v.String() == string(b) {
			*k = v
			return nil
		}
	}
	return errMandateKind
}

var errMandateKind = errors.New("unknown kind of mandate (card, code, owner)")

// ConsentBytes is what a token's key signs under DomainMandate so that payer
// can pay for it in the microgrid chainID.
func ConsentBytes(chainID string, payer Key) []byte {
	return Marshal(struct {
		_     struct{} `cbor:",toarray"`
		Chain string
		Payer Key
	}{Chain: chainID, Payer: payer})
}

// MandateRevoke ends a mandate. Sessions that are open go on.
type MandateRevoke struct {
	Token Key `cbor:"1,keyasint"`
}

// Offline moves money of the signer into a reserve that one gateway may charge
// against while it cannot reach the ledger, under the signer's mandates. The
// money of a reserve is nobody else's to spend, so what a driver owes at all
// gateways together never exceeds what he has.
//
// A negative amount asks money back. It returns after a notice, because the
// gateway may be charging against it at this moment without having heard.
type Offline struct {
	Gateway Key  `cbor:"1,keyasint"`
	Amount  Nano `cbor:"2,keyasint"` // not 0
}
