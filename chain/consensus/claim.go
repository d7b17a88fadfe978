package consensus

import (
	"errors"
	"fmt"

	ics23 "github.com/cosmos/ics23/go"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/tree"
)

// Claim is what one microgrid shows another of its ledger: an entry of the
// state, proven against the app hash that the validators have signed.
//
//	genesis ──a third of its validators──► checkpoint ──ICS-23──► entry
//
// Whoever has the other microgrid's genesis file, or a checkpoint that he
// trusts, checks it without asking anybody.
type Claim struct {
	Version    uint8            `cbor:"1,keyasint"`
	Checkpoint chain.Checkpoint `cbor:"2,keyasint"` // of the block after the state
	Key        []byte           `cbor:"3,keyasint"`
	Value      []byte           `cbor:"4,keyasint"` // empty: there is no such entry
	Proof      []byte           `cbor:"5,keyasint"` // ICS-23, of existence or of absence
}

const (
	claimVersion = 1
	maxClaim     = 1 << 20 // bytes
)

// Claim proves an entry of the newest state that has been signed.
func (e *Engine) Claim(key []byte) (c Claim, err error) {
	c.Version, c.Key = claimVersion, key
	var height int64
	if c.Proof, c.Value, height, err = e.Prove(key); err != nil {
		return c, err
	}
	p, err := e.Checkpoint(height + 1)
	if err != nil {
		return c, err
	}
	c.Checkpoint = *p
	return c, nil
}

// ParseClaim decodes a claim of up to a megabyte. It proves nothing.
func ParseClaim(b []byte) (c Claim, err error) {
	if len(b) > maxClaim {
		return c, fmt.Errorf("claim of %d bytes, at most %d", len(b), maxClaim)
	}
	if err := chain.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("claim: %w", err)
	}
	if c.Version != claimVersion {
		return c, fmt.Errorf("claim of version %d, this program knows %d", c.Version, claimVersion)
	}
	if len(c.Key) == 0 {
		return c, errors.New("claim: it names no entry")
	}
	return c, nil
}

// RemoteProof says the same as the claim in the form that another ledger
// reads. It proves nothing by itself.
func (c *Claim) RemoteProof() (p chain.RemoteProof, err error) {
	defer recovered(&err)
	var proof ics23.CommitmentProof
	if err := proof.Unmarshal(c.Proof); err != nil {
		return p, fmt.Errorf("claim: %w", err)
	}
	all, err := branches(&proof)
	if err != nil {
		return p, fmt.Errorf("claim: %w", err)
	}
	if len(all) == 0 {
		return p, errors.New("claim: it proves nothing")
	}
	var told tree.Tree
	for _, b := range all {
		told.Add(b)
	}
	p.Checkpoint, p.Tree = c.Checkpoint, told.Bytes()
	return p, nil
}

// Verify checks that the claim follows from what is trusted.
func (c *Claim) Verify(t chain.Trust) error {
	if err := t.Verify(&c.Checkpoint); err != nil {
		return err
	}
	value := c.Value
	if len(value) == 0 {
		value = nil
	}
	return VerifyProof(c.Checkpoint.StateRoot(), c.Key, value, c.Proof)
}
