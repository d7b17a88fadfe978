package consensus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtjson "github.com/cometbft/cometbft/libs/json"
	cmt "github.com/cometbft/cometbft/types"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// maxGenesisBytes bounds a genesis file: 1,000 members with addresses.
const maxGenesisBytes = 4 << 20

// NewGenesis returns the genesis document of a microgrid: g as the state at
// height 0 and its founding members' validator keys as the first validators,
// all of one power. Members with a zero validator key are full nodes.
// genesisTime is the time of the first block and must not lie in the future.
func NewGenesis(g chain.Genesis, genesisTime time.Time) (*cmt.GenesisDoc, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	state, err := json.Marshal(g)
	if err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	p := cmt.DefaultConsensusParams()
	p.Block.MaxBytes = MaxBlockBytes
	p.Evidence.MaxBytes = 64 << 10
	p.Evidence.MaxAgeDuration = 14 * 24 * time.Hour
	p.Version.App = chain.Version
	doc := &cmt.GenesisDoc{
		GenesisTime:     genesisTime.UTC().Truncate(time.Millisecond),
		ChainID:         g.ChainID,
		InitialHeight:   1,
		ConsensusParams: p,
		AppState:        state,
	}
	if doc.Validators, err = founders(g); err != nil {
		return nil, err
	}
	if err := doc.ValidateAndComplete(); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	return doc, nil
}

func founders(g chain.Genesis) ([]cmt.GenesisValidator, error) {
	var vals []cmt.GenesisValidator
	seen := map[chain.Key]string{}
	for _, m := range g.Members {
		if m.Validator == (chain.Key{}) {
			continue
		}
		if other, dup := seen[m.Validator]; dup {
			return nil, fmt.Errorf("genesis: members %q and %q have one validator key %s", other, m.Name, m.Validator.Short())
		}
		seen[m.Validator] = m.Name
		pub := ed25519.PubKey(m.Validator[:])
		vals = append(vals, cmt.GenesisValidator{Address: pub.Address(), PubKey: pub, Power: chain.ValidatorPower, Name: m.Name})
	}
	if len(vals) == 0 {
		return nil, errors.New("genesis: no member has a validator key, so nobody could sign a block")
	}
	return vals, nil
}

// WriteGenesis writes the genesis file at path, readable by all, atomically.
func WriteGenesis(path string, g chain.Genesis, genesisTime time.Time) (chain.Hash, error) {
	doc, err := NewGenesis(g, genesisTime)
	if err != nil {
		return chain.Hash{}, err
	}
	b, err := cmtjson.MarshalIndent(doc, "", "  ")
	if err != nil {
		return chain.Hash{}, fmt.Errorf("genesis: %w", err)
	}
	b = append(b, '\n')
	if _, _, _, err := ParseGenesis(b); err != nil {
		return chain.Hash{}, fmt.Errorf("genesis does not read back: %w", err)
	}
	if err := writeFile(path, b); err != nil {
		return chain.Hash{}, fmt.Errorf("write %s: %w", path, err)
	}
	return chain.Sum(b), nil
}

func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when the rename succeeded
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// ReadGenesis reads and checks a genesis file. The hash is the SHA-256 of its
// bytes: what an invitation token carries and an auditor trusts.
func ReadGenesis(path string) (*cmt.GenesisDoc, chain.Genesis, chain.Hash, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, chain.Genesis{}, chain.Hash{}, fmt.Errorf("genesis: %w", err)
	}
	doc, g, h, err := ParseGenesis(b)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return doc, g, h, err
}

// ParseGenesis is ReadGenesis on bytes, for a genesis that came over the wire.
func ParseGenesis(b []byte) (*cmt.GenesisDoc, chain.Genesis, chain.Hash, error) {
	doc, g, err := parseGenesis(b)
	if err != nil {
		return nil, chain.Genesis{}, chain.Hash{}, err
	}
	return doc, g, chain.Sum(b), nil
}

func parseGenesis(b []byte) (*cmt.GenesisDoc, chain.Genesis, error) {
	var g chain.Genesis
	if len(b) > maxGenesisBytes {
		return nil, g, fmt.Errorf("genesis of %d bytes, at most %d", len(b), maxGenesisBytes)
	}
	// CometBFT's decoder ignores what it does not know; a misspelt key must
	// not silently become a default.
	var keys struct {
		GenesisTime     json.RawMessage `json:"genesis_time"`
		ChainID         json.RawMessage `json:"chain_id"`
		InitialHeight   json.RawMessage `json:"initial_height"`
		ConsensusParams json.RawMessage `json:"consensus_params"`
		Validators      json.RawMessage `json:"validators"`
		AppHash         json.RawMessage `json:"app_hash"`
		AppState        json.RawMessage `json:"app_state"`
	}
	if err := strictJSON(b, &keys); err != nil {
		return nil, g, fmt.Errorf("genesis: %w", err)
	}
	if err := strictJSON(keys.AppState, &g); err != nil {
		return nil, g, fmt.Errorf("genesis: app_state: %w", err)
	}
	if err := g.Check(); err != nil {
		return nil, g, err
	}
	doc, err := cmt.GenesisDocFromJSON(b)
	if err != nil {
		return nil, g, fmt.Errorf("genesis: %w", err)
	}
	want, err := founders(g)
	if err != nil {
		return nil, g, err
	}
	switch {
	case len(keys.GenesisTime) == 0 || doc.GenesisTime.Unix() <= 0:
		return nil, g, errors.New("genesis: no genesis_time")
	case doc.ChainID != g.ChainID:
		return nil, g, fmt.Errorf("genesis: chain_id %q, but its app_state says %q", doc.ChainID, g.ChainID)
	case doc.InitialHeight != 1:
		return nil, g, fmt.Errorf("genesis: initial_height %d, must be 1", doc.InitialHeight)
	case len(doc.AppHash) != 0:
		return nil, g, errors.New("genesis: app_hash must be empty, the ledger computes it")
	case doc.ConsensusParams.Version.App != chain.Version:
		return nil, g, fmt.Errorf("genesis: protocol version %d, this program knows %d", doc.ConsensusParams.Version.App, chain.Version)
	case doc.ConsensusParams.Block.MaxBytes < 2*chain.MaxTxBytes || doc.ConsensusParams.Block.MaxBytes > 16<<20:
		return nil, g, fmt.Errorf("genesis: block max_bytes %d, %d to %d", doc.ConsensusParams.Block.MaxBytes, 2*chain.MaxTxBytes, 16<<20)
	case len(doc.Validators) != len(want):
		return nil, g, fmt.Errorf("genesis: %d validators, but %d members with a validator key", len(doc.Validators), len(want))
	}
	for i, v := range doc.Validators {
		if v.PubKey == nil || !bytes.Equal(v.PubKey.Bytes(), want[i].PubKey.Bytes()) || v.Power != chain.ValidatorPower {
			return nil, g, fmt.Errorf("genesis: validator %d is not member %q with power %d", i, want[i].Name, chain.ValidatorPower)
		}
	}
	if _, err := ledger.InitGenesis(ledger.NewMapState(), g, doc.GenesisTime.UnixMilli()); err != nil {
		return nil, g, err
	}
	return doc, g, nil
}

func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if s := (*json.SyntaxError)(nil); errors.As(err, &s) {
			return fmt.Errorf("line %d: %w", 1+bytes.Count(b[:min(int(s.Offset), len(b))], []byte("\n")), err)
		}
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("data after the end of the document")
	}
	return nil
}

// sameJSON compares two documents regardless of white space.
func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
