package chain

import (
	"errors"
	"fmt"
	"time"
)

// Checkpoint is a block's header with the votes that make it final: what
// somebody needs to trust the ledger up to that block without its blocks. It
// signs the state of height Header.Height-1 by its root.
//
//	genesis ──► checkpoint ──► checkpoint ──► newest
//	   who votes   each is signed by more than two thirds of its own set, and
//	               by more than a third of the set that the one before trusted
//
// A checkpoint proves what was agreed, not that nothing else was: validators
// who have left may sign another history with old keys. Whoever verifies
// starts therefore from a checkpoint that is younger than the trusting period,
// or says that he cannot know (see [Trust.Fresh]).
type Checkpoint struct {
	Version uint8        `cbor:"1,keyasint" json:"version"`
	Header  LedgerHeader `cbor:"2,keyasint" json:"header"`
	Commit  Commit       `cbor:"3,keyasint" json:"commit"`
	Set     Validators   `cbor:"4,keyasint" json:"validators"`     // who voted on this block
	Next    Validators   `cbor:"5,keyasint" json:"next,omitempty"` // who vote on the next; empty: the same
}

// CheckpointVersion is the format version of checkpoints.
const CheckpointVersion = 1

// TrustingPeriod is how long a set of validators answers for what it signed:
// their evidence of misbehaviour counts for 14 days, and it takes time to be
// told.
const TrustingPeriod = 10 * 24 * time.Hour

// maxDrift is how far a header may be ahead of the verifier's clock.
const maxDrift = 10 * time.Minute

// What a verifier decides by.
var (
	// ErrNotTrusted: less than a third of the trusted set has signed. A
	// checkpoint between the two may bridge it.
	ErrNotTrusted = errors.New("signed by too few of the trusted validators")
	// ErrExpired: what is trusted is older than the trusting period.
	ErrExpired = errors.New("what is trusted is older than the trusting period")
)

// StateHeight is the height of the state that the checkpoint proves.
func (c *Checkpoint) StateHeight() int64 { return c.Header.Height - 1 }

// StateRoot is that state's root.
func (c *Checkpoint) StateRoot() Hash { return c.Header.AppHash }

// Time returns the block's time.
func (c *Checkpoint) Time() time.Time { return time.Unix(0, c.Header.Time).UTC() }

// NextSet returns who vote on the next block.
func (c *Checkpoint) NextSet() Validators {
	if len(c.Next) == 0 {
		return c.Set
	}
	return c.Next
}

// Check checks the checkpoint against itself: form, the sets that its header
// names, and the votes of more than two thirds. It does not tell whether the
// set deserves trust; Trust.Verify does.
func (c *Checkpoint) Check() error {
	if c.Version != CheckpointVersion {
		return fmt.Errorf("checkpoint version %d, this program knows %d", c.Version, CheckpointVersion)
	}
	if len(c.Next) > 0 {
		if err := c.Next.check(); err != nil {
			return fmt.Errorf("checkpoint: next set: %w", err)
		}
		if c.Header.Next == c.Header.Validators {
			return errors.New("checkpoint: the next set is the same and must be left out")
		}
	}
	if err := c.Commit.Verify(&c.Header, c.Set); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if c.NextSet().Hash() != c.Header.Next {
		return fmt.Errorf("checkpoint: header of height %d names other next validators", c.Header.Height)
	}
	return nil
}

// Encode returns the canonical encoding.
func (c *Checkpoint) Encode() []byte { return Marshal(c) }

// ParseCheckpoint decodes and checks a checkpoint (see Check).
func ParseCheckpoint(b []byte) (*Checkpoint, error) {
	if len(b) > MaxCheckpoint {
		return nil, fmt.Errorf("checkpoint of %d bytes, at most %d", len(b), int(MaxCheckpoint))
	}
	c := &Checkpoint{}
	if err := Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return c, c.Check()
}

// Trust is what a verifier believes: who votes on the block after Height.
type Trust struct {
	Chain  string     `cbor:"1,keyasint" json:"chain_id"`
	Height int64      `cbor:"2,keyasint" json:"height"`  // 0: the genesis
	Hash   Hash       `cbor:"3,keyasint" json:"hash"`    // of the header; zero for the genesis
	Time   int64      `cbor:"4,keyasint" json:"time_ns"` // Unix nanoseconds
	Next   Validators `cbor:"5,keyasint" json:"next"`
}

// Check checks the form of what is to be trusted.
func (t *Trust) Check() error {
	switch {
	case t.Chain == "" || len(t.Chain) > MaxName:
		return fmt.Errorf("trust in a chain id of %d bytes, 1..%d", len(t.Chain), MaxName)
	case t.Height < 0 || t.Time <= 0 || (t.Height == 0) != (t.Hash == Hash{}):
		return fmt.Errorf("trust at height %d, time %d, block %s", t.Height, t.Time, t.Hash)
	}
	return t.Next.check()
}

// TrustGenesis is where every verification can begin. created is the genesis
// file's genesis_time.
func TrustGenesis(g Genesis, created time.Time) Trust {
	return Trust{Chain: g.ChainID, Time: created.UnixNano(), Next: FoundingValidators(g)}
}

// Trust returns what follows from a checkpoint that is trusted.
func (c *Checkpoint) Trust() Trust {
	return Trust{Chain: c.Header.Chain, Height: c.Header.Height, Hash: c.Header.Hash(), Time: c.Header.Time, Next: c.NextSet()}
}

// Fresh reports whether the trusted set still answers for what it signs at
// the time now.
func (t Trust) Fresh(now time.Time) bool { return now.Before(time.Unix(0, t.Time).Add(TrustingPeriod)) }

// Verify checks that c follows from what is trusted: the next block by exactly
// the set that t names, a later one if more than a third of that set has
// signed it as well (CometBFT's light client, skipping verification). Another
// header at the trusted height is refused, and so is one before it.
//
// It says nothing about the age of what is trusted: a verifier that has a
// clock asks Fresh first, and what a chain of checkpoints says with old trust
// it calls not proven to be unique.
func (t Trust) Verify(c *Checkpoint) error {
	if err := c.Check(); err != nil {
		return err
	}
	h := &c.Header
	switch {
	case h.Chain != t.Chain:
		return fmt.Errorf("checkpoint of chain %q, this is %q", h.Chain, t.Chain)
	case h.Height < t.Height:
		return fmt.Errorf("checkpoint of height %d, before the trusted height %d", h.Height, t.Height)
	case h.Height == t.Height:
		if h.Hash() != t.Hash {
			return fmt.Errorf("checkpoint of height %d is of block %s, the trusted one is %s: two histories were signed", h.Height, h.Hash(), t.Hash)
		}
		return nil
	case h.Height > 1 && h.Time <= t.Time:
		return fmt.Errorf("checkpoint of height %d is not later than the trusted height %d", h.Height, t.Height)
	case h.Height == t.Height+1:
		if h.Validators != t.Next.Hash() || t.Height > 0 && h.Last.Hash != t.Hash {
			return fmt.Errorf("checkpoint of height %d: %w", h.Height, ErrNotTrusted)
		}
		return nil
	}
	voted, _, err := c.Commit.signed(h, c.Set)
	if err != nil {
		return err
	}
	power := int64(0)
	for _, v := range t.Next {
		if voted[v.Key] {
			power += v.Power
		}
	}
	if 3*power <= t.Next.Power() {
		return fmt.Errorf("checkpoint of height %d has %d of %d of the power trusted at height %d: %w", h.Height, power, t.Next.Power(), t.Height, ErrNotTrusted)
	}
	return nil
}

// VerifyAt is Verify for a verifier with a clock: trust must be fresh
// (ErrExpired otherwise) and the checkpoint not from the future.
func (t Trust) VerifyAt(c *Checkpoint, now time.Time) error {
	if !t.Fresh(now) {
		return fmt.Errorf("%w: height %d of %s", ErrExpired, t.Height, time.Unix(0, t.Time).UTC().Format(time.RFC3339))
	}
	if c.Time().After(now.Add(maxDrift)) {
		return fmt.Errorf("checkpoint of %s is in the future", c.Time().Format(time.RFC3339))
	}
	return t.Verify(c)
}
