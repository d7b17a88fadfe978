package consensus

import (
	"errors"
	"fmt"

	"github.com/cosmos/iavl"
	ics23 "github.com/cosmos/ics23/go"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Prove returns the value of key in the state after the last block whose root
// the validators have signed, the height of that state, and an ICS-23 proof:
// of existence, or of absence if value is nil. The root is in the header of
// height+1 (see LightBlock).
func (e *Engine) Prove(key []byte) (proof, value []byte, height int64, err error) {
	err = e.app.view(func(c committed, _ ledger.State) error {
		height = min(c.height, e.blocks.Height()-1)
		if height < 1 {
			return errors.New("no state has been signed yet")
		}
		t := c.tree
		if height < c.height {
			if t, err = e.app.version(height); err != nil {
				return err
			}
		}
		proof, value, err = prove(t, key)
		return err
	})
	return proof, value, height, err
}

func prove(t *iavl.ImmutableTree, key []byte) (proof, value []byte, err error) {
	if value, err = t.Get(key); err != nil {
		return nil, nil, err
	}
	p, err := t.GetProof(key)
	if err != nil {
		return nil, nil, fmt.Errorf("prove %x: %w", key, err)
	}
	proof, err = p.Marshal()
	return proof, value, err
}

// VerifyProof checks that a state with this root holds value under key or,
// for a nil value, holds nothing there. It trusts nothing but root.
func VerifyProof(root chain.Hash, key, value, proof []byte) (err error) {
	// The library dereferences what a hostile proof leaves out.
	defer recovered(&err)
	var p ics23.CommitmentProof
	if err := p.Unmarshal(proof); err != nil {
		return fmt.Errorf("proof: %w", err)
	}
	if p.GetExist() == nil && p.GetNonexist() == nil {
		return errors.New("proof: neither of existence nor of absence") // batches are not made here
	}
	ok := false
	if value == nil {
		ok = ics23.VerifyNonMembership(ics23.IavlSpec, root[:], &p, key)
	} else {
		ok = ics23.VerifyMembership(ics23.IavlSpec, root[:], &p, key, value)
	}
	if !ok {
		return fmt.Errorf("proof does not lead from %x to root %s", key, root)
	}
	return nil
}
