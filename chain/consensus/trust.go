package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/joulegate/joulegate/chain"
)

// Anchor is a block that a person vouches for: what an invitation says, or
// what somebody has read out from a neighbour's `ledger checkpoint`. A gateway
// that knows no recent block begins to trust from there.
type Anchor struct {
	Version int        `json:"version"`
	Chain   string     `json:"chain_id"`
	Height  int64      `json:"height"`
	Hash    chain.Hash `json:"hash"` // of the block's header
}

const anchorVersion = 1

// errNoTrust: the anchor's block could not be had from anybody.
var errNoTrust = errors.New("the trusted block is not known to the neighbours")

func trustFile(home string) string { return filepath.Join(home, "trust.json") }

// WriteAnchor makes a gateway trust a block. It takes effect at once, also in
// a gateway that runs.
func WriteAnchor(home, chainID string, height int64, hash chain.Hash) error {
	if height < 1 || hash == (chain.Hash{}) {
		return fmt.Errorf("trust in block %d with hash %s", height, hash)
	}
	b, err := json.MarshalIndent(Anchor{anchorVersion, chainID, height, hash}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	return writeFile(trustFile(home), append(b, '\n'))
}

// readAnchor returns the anchor of a gateway, zero if there is none.
func readAnchor(home, chainID string) (a Anchor, err error) {
	b, err := readSome(trustFile(home), 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("%s: %w; say again what to trust with 'joulegate ledger trust HEIGHT HASH'", trustFile(home), err)
	}
	switch {
	case a.Version != anchorVersion:
		return a, fmt.Errorf("%s has format %d, this program knows %d: update joulegate", trustFile(home), a.Version, anchorVersion)
	case a.Chain != chainID || a.Height < 1:
		return a, fmt.Errorf("%s: block %d of chain %q, this is %q", trustFile(home), a.Height, a.Chain, chainID)
	}
	return a, nil
}

// trusted returns the newest block that this gateway trusts: its own last one,
// one that a person vouched for, or the genesis.
func (e *Engine) trusted(ctx context.Context, s *syncer, from []Neighbour) (chain.Trust, error) {
	t := chain.TrustGenesis(e.genesis, e.doc.GenesisTime)
	if h := e.blocks.Height(); h > 0 {
		c, err := e.Checkpoint(h)
		if err != nil {
			return t, err
		}
		t = c.Trust()
	}
	a, err := readAnchor(e.cfg.Home, e.doc.ChainID)
	if err != nil || a.Height <= t.Height {
		return t, err
	}
	c, err := s.votes(ctx, a.Height, from)
	if err != nil {
		return t, fmt.Errorf("%w: %w", errNoTrust, err)
	}
	if c.Header.Chain != a.Chain || c.Header.Hash() != a.Hash {
		return t, fmt.Errorf("%w: block %d is %s with them, this gateway was told %s", errNoTrust, a.Height, c.Header.Hash(), a.Hash)
	}
	return c.Trust(), nil
}
