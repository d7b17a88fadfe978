package chain

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Limits of encoded objects, in bytes. Larger input is refused unread.
const (
	MaxBlockBytes = 32 << 10 // a gateway block, which is also a ledger transaction
	MaxTxBytes    = 32 << 10 // any ledger transaction
	MaxRecords    = 256      // records in one block
	MaxName       = 32       // bytes of a meter, node or member name
)

// Version is the format version of blocks, transactions and records written
// by this code.
const Version = 1

// ErrNotCanonical is returned for bytes that decode but are not the one
// canonical encoding of what they decode to.
var ErrNotCanonical = errors.New("not the canonical encoding")

// ErrSignature is returned for well-formed bytes that their stated author,
// signer or driver did not sign.
var ErrSignature = errors.New("the signature does not verify under the stated key")

var encMode, decMode = modes()

func modes() (cbor.EncMode, cbor.DecMode) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   8,
		MaxArrayElements:  4096,
		MaxMapPairs:       64,
		UTF8:              cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return enc, dec
}

// Marshal returns the canonical encoding (RFC 8949 section 4.2.1, core
// deterministic CBOR) of v. It panics on a type that cannot be encoded: that
// is a programming error, never input.
func Marshal(v any) []byte {
	b, err := encMode.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("chain: marshal %T: %v", v, err))
	}
	return b
}

// Unmarshal decodes canonical bytes into v and returns ErrNotCanonical when
// encoding v again gives other bytes.
func Unmarshal(b []byte, v any) error {
	if err := decMode.Unmarshal(b, v); err != nil {
		return err
	}
	again, err := encMode.Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, b) {
		return ErrNotCanonical
	}
	return nil
}

// Domains separate signatures by purpose, so that a signature over one kind
// of object is never valid for another.
const (
	DomainBlock   = "joulegate/block/1\x00"
	DomainTx      = "joulegate/tx/1\x00"
	DomainQuote   = "joulegate/quote/1\x00"
	DomainMember  = "joulegate/member/1\x00"  // device key's consent to membership
	DomainReceipt = "joulegate/receipt/1\x00" // device key over the P-256 receipt key
	domainAccount = "joulegate/account/1\x00"
)

// Sign signs body under domain.
func Sign(key ed25519.PrivateKey, domain string, body []byte) []byte {
	return ed25519.Sign(key, append([]byte(domain), body...))
}

// Verify reports whether sig is key's signature over body under domain. It
// is the only Ed25519 verifier for anything that gateways must agree on:
// implementations differ on small-order points.
func Verify(key Key, domain string, body, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize &&
		ed25519.Verify(ed25519.PublicKey(key[:]), append([]byte(domain), body...), sig)
}

// Sum returns the SHA-256 of b.
func Sum(b []byte) Hash { return sha256.Sum256(b) }

// EnvelopeType tells what an Envelope carries.
type EnvelopeType uint8

// Envelope types. Append only.
const (
	EnvelopeBlock EnvelopeType = 1 // body is a Block, signed by its author
	EnvelopeTx    EnvelopeType = 2 // body is a Tx, signed by its signer
)

// Envelope is the one signed container: on gossip, in journals, and as a
// ledger transaction. Its encoding is the CBOR array [type, body, sig].
type Envelope struct {
	_    struct{} `cbor:",toarray"`
	Type EnvelopeType
	Body []byte
	Sig  []byte
}

// OpenEnvelope decodes the outer container only: no signature is checked.
func OpenEnvelope(raw []byte) (Envelope, error) {
	var e Envelope
	if len(raw) > MaxTxBytes {
		return e, fmt.Errorf("%d bytes, at most %d", len(raw), MaxTxBytes)
	}
	if err := Unmarshal(raw, &e); err != nil {
		return Envelope{}, fmt.Errorf("envelope: %w", err)
	}
	if len(e.Sig) != ed25519.SignatureSize {
		return Envelope{}, fmt.Errorf("envelope: signature of %d bytes, want %d", len(e.Sig), ed25519.SignatureSize)
	}
	return e, nil
}
