package chain

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

// Block is one link of a gateway's own chain.
type Block struct {
	Version uint8    `cbor:"1,keyasint"`
	Chain   string   `cbor:"2,keyasint"` // chain id of the genesis: no replay between microgrids
	Author  Key      `cbor:"3,keyasint"` // device key
	Epoch   uint32   `cbor:"4,keyasint"` // see the package comment
	Number  uint64   `cbor:"5,keyasint"` // 1, 2, 3, ... within the epoch
	Prev    Hash     `cbor:"6,keyasint"` // hash of the previous block's body; of epoch e > 1, number 1: zero
	Time    int64    `cbor:"7,keyasint"` // author's wall clock, Unix ms; informative, never trusted
	Records []Record `cbor:"8,keyasint"`
}

// Signed is a verified block with the bytes it came in. It is immutable.
type Signed struct {
	Block
	Hash Hash   // SHA-256 of the body: the block's name and the next block's Prev
	Raw  []byte // the whole envelope
}

// ID identifies a position in a gateway's chain.
type Position struct {
	Epoch  uint32 `cbor:"1,keyasint" json:"epoch"`
	Number uint64 `cbor:"2,keyasint" json:"number"`
}

// Position returns the block's place in its author's chain.
func (b *Block) Position() Position { return Position{b.Epoch, b.Number} }

// Less orders positions by epoch, then number.
func (p Position) Less(q Position) bool {
	if p.Epoch != q.Epoch {
		return p.Epoch < q.Epoch
	}
	return p.Number < q.Number
}

func (p Position) String() string { return fmt.Sprintf("%d/%d", p.Epoch, p.Number) }

// SignBlock signs b with the author's key and returns it ready to journal.
func SignBlock(b Block, key ed25519.PrivateKey) (*Signed, error) {
	b.Version = Version
	copy(b.Author[:], key.Public().(ed25519.PublicKey))
	if err := b.check(); err != nil {
		return nil, err
	}
	body := Marshal(b)
	raw := Marshal(Envelope{Type: EnvelopeBlock, Body: body, Sig: Sign(key, DomainBlock, body)})
	if len(raw) > MaxBlockBytes {
		return nil, fmt.Errorf("block of %d bytes, at most %d", len(raw), MaxBlockBytes)
	}
	return &Signed{Block: b, Hash: Sum(body), Raw: raw}, nil
}

// ParseBlock decodes an envelope that holds a block and checks its form and
// signature. Whether it links to anything is the caller's to judge.
func ParseBlock(raw []byte) (*Signed, error) {
	e, err := OpenEnvelope(raw)
	if err != nil {
		return nil, err
	}
	if e.Type != EnvelopeBlock {
		return nil, fmt.Errorf("envelope type %d, want a block", e.Type)
	}
	return OpenBlock(raw, e)
}

// OpenBlock is ParseBlock for an envelope that is already open.
func OpenBlock(raw []byte, e Envelope) (*Signed, error) {
	s := &Signed{Hash: Sum(e.Body), Raw: raw}
	if err := Unmarshal(e.Body, &s.Block); err != nil {
		return nil, fmt.Errorf("block: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if !Verify(s.Author, DomainBlock, e.Body, e.Sig) {
		return nil, fmt.Errorf("block: %w", ErrSignature)
	}
	return s, nil
}

func (b *Block) check() error {
	switch {
	case b.Version != Version:
		return fmt.Errorf("block version %d, this program knows %d", b.Version, Version)
	case b.Epoch == 0 || b.Number == 0:
		return fmt.Errorf("block position %s: epoch and number start at 1", b.Position())
	case len(b.Records) == 0 || len(b.Records) > MaxRecords:
		return fmt.Errorf("block with %d records, 1..%d", len(b.Records), MaxRecords)
	case len(b.Chain) == 0 || len(b.Chain) > MaxName:
		return fmt.Errorf("block with a chain id of %d bytes", len(b.Chain))
	case b.Number == 1 && b.Prev != (Hash{}):
		return errors.New("block: the first of an epoch has no previous")
	}
	return nil
}

// RecordKind tells what a record's body is. Kinds below KindEvidence change
// ledger state and must be known to every gateway; kinds from KindEvidence on
// are carried and linked, and ignored by the ledger.
type RecordKind uint16

// Record kinds. Append only.
const (
	KindOffer        RecordKind = 1 // Offer
	KindMeter        RecordKind = 2 // MeterRecord
	KindSessionOpen  RecordKind = 3 // SessionOpen
	KindSessionMeter RecordKind = 4 // SessionMeter
	KindSessionStop  RecordKind = 5 // SessionStop

	KindEvidence RecordKind = 0x8000
	KindEvent    RecordKind = 0x8001 // Event
	KindGuard    RecordKind = 0x8010 // guard.Record
)

// Record is one statement in a gateway block.
type Record struct {
	Kind RecordKind      `cbor:"1,keyasint"`
	Body cbor.RawMessage `cbor:"2,keyasint"`
}

// NewRecord encodes body under its kind.
func NewRecord(kind RecordKind, body any) Record { return Record{Kind: kind, Body: Marshal(body)} }
