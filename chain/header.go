package chain

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// LedgerHeader is the header of a block of the ledger. Its hash, over which
// the validators vote, is CometBFT's: the Merkle root of the fields below in
// their order, each in protobuf (cometbft v0.40.0, types/block.go).
//
// AppHash is the root of the state BEFORE the block: the header of height h
// signs the state of height h-1.
type LedgerHeader struct {
	Protocol    uint64   `cbor:"1,keyasint" json:"protocol"` // of CometBFT's blocks
	App         uint64   `cbor:"2,keyasint" json:"app"`      // of the ledger's rules
	Chain       string   `cbor:"3,keyasint" json:"chain_id"`
	Height      int64    `cbor:"4,keyasint" json:"height"`
	Time        int64    `cbor:"5,keyasint" json:"time_ns"`      // Unix nanoseconds
	Last        BlockRef `cbor:"6,keyasint" json:"last"`         // the block before; of height 1: zero
	Votes       Hash     `cbor:"7,keyasint" json:"votes"`        // under the block before
	Data        Hash     `cbor:"8,keyasint" json:"data"`         // transactions
	Validators  Hash     `cbor:"9,keyasint" json:"validators"`   // who vote on this block
	Next        Hash     `cbor:"10,keyasint" json:"next"`        // who vote on the next
	Params      Hash     `cbor:"11,keyasint" json:"params"`      // CometBFT's consensus parameters
	AppHash     Hash     `cbor:"12,keyasint" json:"app_hash"`    // of the state before this block
	Results     Hash     `cbor:"13,keyasint" json:"results"`     // of the block before
	Misbehavior Hash     `cbor:"14,keyasint" json:"misbehavior"` // evidence in this block
	Proposer    Address  `cbor:"15,keyasint" json:"proposer"`
}

// BlockRef names a block of the ledger as votes do: by the hash of its header
// and by the parts in which it is sent.
type BlockRef struct {
	Hash  Hash   `cbor:"1,keyasint" json:"hash"`
	Parts uint32 `cbor:"2,keyasint" json:"parts"`
	Root  Hash   `cbor:"3,keyasint" json:"root"` // Merkle root of the parts
}

// Hash returns the header's hash, which is the block's name.
func (h *LedgerHeader) Hash() Hash {
	var version, id proto
	version.uint(1, h.Protocol)
	version.uint(2, h.App)
	h.Last.encode(&id)
	return MerkleRoot([][]byte{
		version, wrap([]byte(h.Chain)), varint(h.Height), stamp(h.Time), id,
		wrap(h.Votes[:]), wrap(h.Data[:]), wrap(h.Validators[:]), wrap(h.Next[:]), wrap(h.Params[:]),
		wrap(h.AppHash[:]), wrap(h.Results[:]), wrap(h.Misbehavior[:]), wrap(h.Proposer[:]),
	})
}

func (h *LedgerHeader) check() error {
	switch {
	case h.Chain == "" || len(h.Chain) > MaxName:
		return fmt.Errorf("header with a chain id of %d bytes, 1..%d", len(h.Chain), MaxName)
	case h.Height < 1:
		return fmt.Errorf("header of height %d", h.Height)
	case h.Time <= 0:
		return fmt.Errorf("header of height %d with time %d", h.Height, h.Time)
	}
	return nil
}

// Validator is a consensus key and its weight.
type Validator struct {
	Key   Key   `cbor:"1,keyasint" json:"key"`
	Power int64 `cbor:"2,keyasint" json:"power"`
}

// Address is CometBFT's short name of a validator's key. Its text form is 40
// hex digits.
type Address [20]byte

func (a Address) String() string { return hex.EncodeToString(a[:]) }

// MarshalText implements encoding.TextMarshaler (hex).
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Address) UnmarshalText(b []byte) error { return unhex("address", a[:], b) }

// Address returns the key's short name.
func (v Validator) Address() Address {
	h := Sum(v.Key[:])
	return Address(h[:20])
}

// ValidatorPower is every validator's weight: one gateway, one vote.
const ValidatorPower = 10

// Limits of what is signed by validators.
const (
	MaxSetValidators = 256  // of one set; a larger one is refused
	maxSetPower      = 1e15 // all together; no sum below can overflow
	MaxCheckpoint    = 64e3 // bytes of a checkpoint; a larger one is refused unread
	maxVoteRound     = 1e9  // of agreement on one block
)

// Validators is a set in its agreed order: by power descending, then by
// address.
type Validators []Validator

// FoundingValidators returns the validators of block 1.
func FoundingValidators(g Genesis) Validators {
	var s Validators
	for _, m := range g.Members {
		if m.Validator != (Key{}) {
			s = append(s, Validator{m.Validator, ValidatorPower})
		}
	}
	slices.SortFunc(s, func(a, b Validator) int {
		if a.Power != b.Power {
			return int(b.Power - a.Power)
		}
		x, y := a.Address(), b.Address()
		return slices.Compare(x[:], y[:])
	})
	return s
}

// Hash returns what headers call the set by.
func (s Validators) Hash() Hash {
	leaves := make([][]byte, len(s))
	for i, v := range s {
		var key, p proto
		key.bytes(1, v.Key[:]) // Ed25519
		p.bytes(1, key)
		p.uint(2, uint64(v.Power))
		leaves[i] = p
	}
	return MerkleRoot(leaves)
}

// Power returns the weight of all together. The set has been checked.
func (s Validators) Power() (sum int64) {
	for _, v := range s {
		sum += v.Power
	}
	return sum
}

func (s Validators) check() error {
	if len(s) == 0 || len(s) > MaxSetValidators {
		return fmt.Errorf("%d validators, 1..%d", len(s), MaxSetValidators)
	}
	seen := make(map[Key]bool, len(s))
	sum := int64(0)
	for _, v := range s {
		if v.Power <= 0 || v.Power > maxSetPower || sum+v.Power > maxSetPower {
			return fmt.Errorf("validator %s with power %d", v.Key.Short(), v.Power)
		}
		if seen[v.Key] {
			return fmt.Errorf("validator %s twice", v.Key.Short())
		}
		seen[v.Key] = true
		sum += v.Power
	}
	return nil
}

// Commit is what makes a block final: votes for it of more than two thirds of
// the power.
type Commit struct {
	Round int64  `cbor:"1,keyasint" json:"round"`
	Parts uint32 `cbor:"2,keyasint" json:"parts"`
	Root  Hash   `cbor:"3,keyasint" json:"root"`
	Votes []Vote `cbor:"4,keyasint" json:"votes"` // by ascending index; those for nothing or another block are left out
}

// Vote is one validator's signature over a block.
type Vote struct {
	Index uint16 `cbor:"1,keyasint" json:"index"`   // in the set
	Time  int64  `cbor:"2,keyasint" json:"time_ns"` // Unix nanoseconds
	Sig   []byte `cbor:"3,keyasint" json:"sig"`
}

const precommit = 2 // CometBFT's SignedMsgType

// SignBytes returns what the validator of a vote has signed: CometBFT's
// canonical vote, in protobuf with its length in front.
func (c *Commit) SignBytes(h *LedgerHeader, v Vote) []byte {
	var id, vote, out proto
	ref := BlockRef{h.Hash(), c.Parts, c.Root}
	ref.encode(&id)
	vote.uint(1, precommit)
	vote.fixed64(2, h.Height)
	vote.fixed64(3, c.Round)
	vote.bytes(4, id)
	vote.bytes(5, stamp(v.Time))
	vote.bytes(6, []byte(h.Chain))
	out = binary.AppendUvarint(out, uint64(len(vote)))
	return append(out, vote...)
}

// signed checks every vote and returns the keys that voted and their power.
func (c *Commit) signed(h *LedgerHeader, set Validators) (keys map[Key]bool, power int64, err error) {
	if c.Round < 0 || c.Round > maxVoteRound || c.Parts == 0 || len(c.Votes) > len(set) {
		return nil, 0, fmt.Errorf("commit of round %d, %d parts, %d votes of %d validators", c.Round, c.Parts, len(c.Votes), len(set))
	}
	keys = make(map[Key]bool, len(c.Votes))
	last := -1
	for _, v := range c.Votes {
		if int(v.Index) <= last || int(v.Index) >= len(set) {
			return nil, 0, fmt.Errorf("vote of validator %d after %d, of %d", v.Index, last, len(set))
		}
		last = int(v.Index)
		by := set[v.Index]
		// No domain: CometBFT's sign bytes begin with the type of message and
		// end with the chain.
		if !Verify(by.Key, "", c.SignBytes(h, v), v.Sig) {
			return nil, 0, fmt.Errorf("vote of validator %s: %w", by.Key.Short(), ErrSignature)
		}
		keys[by.Key] = true
		power += by.Power
	}
	return keys, power, nil
}

// Verify checks that more than two thirds of the set have signed the header.
func (c *Commit) Verify(h *LedgerHeader, set Validators) error {
	if err := errors.Join(h.check(), set.check()); err != nil {
		return err
	}
	if set.Hash() != h.Validators {
		return fmt.Errorf("header of height %d names other validators", h.Height)
	}
	_, power, err := c.signed(h, set)
	if err == nil && 3*power <= 2*set.Power() {
		err = fmt.Errorf("block %d is signed by %d of %d of the power, more than two thirds are needed", h.Height, power, set.Power())
	}
	return err
}

// proto appends protobuf fields as CometBFT writes them: ascending, without
// those that are zero unless said otherwise.
type proto []byte

func (p *proto) tag(field, wire int) { *p = append(*p, byte(field<<3|wire)) }

func (p *proto) uint(field int, v uint64) {
	if v != 0 {
		p.tag(field, 0)
		*p = binary.AppendUvarint(*p, v)
	}
}

func (p *proto) fixed64(field int, v int64) {
	if v != 0 {
		p.tag(field, 1)
		*p = binary.LittleEndian.AppendUint64(*p, uint64(v))
	}
}

// bytes writes a field that is there even if it is empty.
func (p *proto) bytes(field int, b []byte) {
	p.tag(field, 2)
	*p = binary.AppendUvarint(*p, uint64(len(b)))
	*p = append(*p, b...)
}

// encode writes the reference; of no block, it has an empty hash.
func (r *BlockRef) encode(p *proto) {
	var parts proto
	parts.uint(1, uint64(r.Parts))
	if r.Root != (Hash{}) {
		parts.bytes(2, r.Root[:])
	}
	if r.Hash != (Hash{}) {
		p.bytes(1, r.Hash[:])
	}
	p.bytes(2, parts)
}

// wrap and varint are protobuf's StringValue, BytesValue and Int64Value.
func wrap(b []byte) (p proto) { p.bytes(1, b); return p }

func varint(v int64) (p proto) { p.uint(1, uint64(v)); return p }

// stamp is protobuf's Timestamp.
func stamp(ns int64) (p proto) {
	t := time.Unix(0, ns)
	p.uint(1, uint64(t.Unix()))
	p.uint(2, uint64(t.Nanosecond()))
	return p
}
