package consensus

import (
	"errors"
	"fmt"

	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	cmt "github.com/cometbft/cometbft/types"

	"github.com/joulegate/joulegate/chain"
)

// Checkpoint returns the block at height as a checkpoint; 0 is the newest one.
func (e *Engine) Checkpoint(height int64) (c *chain.Checkpoint, err error) {
	defer recovered(&err)
	if height == 0 {
		height = e.blocks.Height()
	}
	return keptCheckpoint(e.blocks, e.states, e.milestones, height)
}

// CheckpointHome is Engine.Checkpoint on the stores of a gateway that does not
// run. It writes nothing; ErrLocked when the gateway runs.
func CheckpointHome(home string, height int64) (c *chain.Checkpoint, err error) {
	s, err := openStores(home, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	defer func() { err = damaged(home, err) }()
	defer recovered(&err)
	blocks := store.NewBlockStore(s.blocks)
	if height == 0 {
		height = blocks.Height()
	}
	return keptCheckpoint(blocks, sm.NewStore(s.state, sm.StoreOptions{DiscardABCIResponses: true}), milestonesOf(home), height)
}

// keptCheckpoint also finds those that outlive their blocks.
func keptCheckpoint(blocks *store.BlockStore, states sm.Store, kept milestones, height int64) (*chain.Checkpoint, error) {
	if height < blocks.Base() {
		if c := kept.lookup(height); c != nil {
			return c, nil
		}
	}
	return checkpointAt(blocks, states, height)
}

// checkpointAt reads header, votes and validators of a stored block.
func checkpointAt(blocks *store.BlockStore, states sm.Store, height int64) (*chain.Checkpoint, error) {
	meta := blocks.LoadBlockMeta(height)
	commit := blocks.LoadBlockCommit(height)
	if commit == nil {
		commit = blocks.LoadSeenCommit(height)
	}
	if meta == nil || commit == nil {
		return nil, fmt.Errorf("no signed block %d here, only %d to %d", height, blocks.Base(), blocks.Height())
	}
	set, err := validatorsOf(states, height)
	if err != nil {
		return nil, err
	}
	next, err := validatorsOf(states, height+1)
	if err != nil {
		return nil, err
	}
	return toCheckpoint(&meta.Header, commit, set, next)
}

// toCheckpoint translates what CometBFT has stored, and checks the result.
func toCheckpoint(h *cmt.Header, commit *cmt.Commit, set, next *cmt.ValidatorSet) (*chain.Checkpoint, error) {
	c := &chain.Checkpoint{
		Version: chain.CheckpointVersion, Header: toHeader(h), Set: toSet(set),
		Commit: chain.Commit{Round: int64(commit.Round), Parts: commit.BlockID.PartSetHeader.Total, Root: hashOf(commit.BlockID.PartSetHeader.Hash)},
	}
	if c.Header.Next != c.Header.Validators {
		c.Next = toSet(next)
	}
	for i, s := range commit.Signatures {
		v := chain.Vote{Index: uint16(i), Time: s.Timestamp.UnixNano(), Sig: s.Signature}
		// CometBFT's verifier accepts odd signatures that chain.Verify does
		// not; a vote of that kind is worth nothing to others.
		if s.BlockIDFlag == cmt.BlockIDFlagCommit && i < len(c.Set) && chain.Verify(c.Set[i].Key, "", c.Commit.SignBytes(&c.Header, v), v.Sig) {
			c.Commit.Votes = append(c.Commit.Votes, v)
		}
	}
	return c, c.Check()
}

func toHeader(h *cmt.Header) chain.LedgerHeader {
	out := chain.LedgerHeader{
		Protocol: h.Version.Block, App: h.Version.App, Chain: h.ChainID, Height: h.Height, Time: h.Time.UnixNano(),
		Last: chain.BlockRef{
			Hash: hashOf(h.LastBlockID.Hash), Parts: h.LastBlockID.PartSetHeader.Total, Root: hashOf(h.LastBlockID.PartSetHeader.Hash),
		},
		Votes: hashOf(h.LastCommitHash), Data: hashOf(h.DataHash), Validators: hashOf(h.ValidatorsHash), Next: hashOf(h.NextValidatorsHash),
		Params: hashOf(h.ConsensusHash), AppHash: hashOf(h.AppHash), Results: hashOf(h.LastResultsHash), Misbehavior: hashOf(h.EvidenceHash),
	}
	copy(out.Proposer[:], h.ProposerAddress)
	return out
}

func toSet(s *cmt.ValidatorSet) chain.Validators {
	out := make(chain.Validators, len(s.Validators))
	for i, v := range s.Validators {
		out[i] = chain.Validator{Key: chain.Key(v.PubKey.Bytes()), Power: v.VotingPower}
	}
	return out
}

// hashOf takes a hash that may be absent.
func hashOf(b []byte) (h chain.Hash) {
	copy(h[:], b)
	return h
}

// validatorsOf returns the validators of block height. Whose turn it is to
// propose, which CometBFT's plain LoadValidators adds in time linear in the
// height, is not exact.
func validatorsOf(states sm.Store, height int64) (*cmt.ValidatorSet, error) {
	if f, ok := states.(interface {
		LoadValidatorsFast(int64) (*cmt.ValidatorSet, error)
	}); ok {
		return f.LoadValidatorsFast(height)
	}
	return states.LoadValidators(height)
}
