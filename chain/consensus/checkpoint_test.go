package consensus

import (
	"fmt"
	"testing"
	"time"

	"github.com/cometbft/cometbft/crypto"
	cmtversion "github.com/cometbft/cometbft/proto/tendermint/version"
	cmt "github.com/cometbft/cometbft/types"
	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/chain"
)

// Hashes and sign bytes that package chain makes by itself are CometBFT's.
func TestHeaderAsCometBFT(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hash := func(name string) []byte { return crypto.Sha256([]byte(rapid.String().Draw(t, name))) }
		set, _ := cmt.RandValidatorSet(rapid.IntRange(1, 13).Draw(t, "validators"), rapid.Int64Range(1, 1e6).Draw(t, "power"))
		h := cmt.Header{
			Version: cmtversion.Consensus{Block: rapid.Uint64().Draw(t, "block"), App: rapid.Uint64().Draw(t, "app")},
			ChainID: rapid.StringMatching(`[a-z-]{1,32}`).Draw(t, "chain"), Height: rapid.Int64Range(1, 1<<62).Draw(t, "height"),
			Time:           time.Unix(rapid.Int64Range(1, 4e9).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC(),
			LastCommitHash: hash("votes"), DataHash: hash("data"), ValidatorsHash: set.Hash(), NextValidatorsHash: hash("next"),
			ConsensusHash: hash("params"), AppHash: hash("app"), LastResultsHash: hash("results"), EvidenceHash: hash("evidence"),
			ProposerAddress: set.Validators[0].Address,
		}
		if rapid.Bool().Draw(t, "has previous") {
			h.LastBlockID = cmt.BlockID{Hash: hash("last"), PartSetHeader: cmt.PartSetHeader{Total: rapid.Uint32().Draw(t, "parts"), Hash: hash("root")}}
		}
		mine := toHeader(&h)
		if got := mine.Hash(); string(got[:]) != string(h.Hash()) {
			t.Fatalf("hash of %+v: %s, CometBFT says %s", h, got, h.Hash())
		}
		if got := toSet(set).Hash(); string(got[:]) != string(set.Hash()) {
			t.Fatalf("hash of the set: %s, CometBFT says %X", got, set.Hash())
		}
		id := cmt.BlockID{Hash: h.Hash(), PartSetHeader: cmt.PartSetHeader{Total: rapid.Uint32Range(1, 1e6).Draw(t, "total"), Hash: hash("part")}}
		at := time.Unix(rapid.Int64Range(1, 4e9).Draw(t, "vote s"), rapid.Int64Range(0, 999_999_999).Draw(t, "vote ns")).UTC()
		theirs := cmt.Commit{
			Height: h.Height, Round: rapid.Int32Range(0, 1e6).Draw(t, "round"), BlockID: id,
			Signatures: []cmt.CommitSig{{BlockIDFlag: cmt.BlockIDFlagCommit, ValidatorAddress: set.Validators[0].Address, Timestamp: at}},
		}
		c := chain.Commit{Round: int64(theirs.Round), Parts: id.PartSetHeader.Total, Root: hashOf(id.PartSetHeader.Hash)}
		want := theirs.VoteSignBytes(h.ChainID, 0)
		if got := c.SignBytes(&mine, chain.Vote{Time: at.UnixNano()}); string(got) != string(want) {
			t.Fatalf("sign bytes %x, CometBFT says %x", got, want)
		}
	})
}

// Checkpoints of a living ledger lead from the genesis to the newest block.
func TestCheckpointsOfLedger(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	for i := range 3 {
		n.submit(w.mint(0, fmt.Sprint("driver", i), 1))
	}
	n.reach(4)
	trust := chain.TrustGenesis(n.eng.genesis, n.eng.doc.GenesisTime)
	top := n.eng.Status().Height
	for h := int64(1); h <= top; h++ {
		c, err := n.eng.Checkpoint(h)
		if err != nil {
			t.Fatal(err)
		}
		c, err = chain.ParseCheckpoint(c.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if err := trust.VerifyAt(c, time.Now()); err != nil {
			t.Errorf("height %d: %v", h, err)
		}
		if root, err := n.eng.AppHashAt(h - 1); h > 1 && (err != nil || root != c.StateRoot()) {
			t.Errorf("height %d proves state %s, the ledger has %s (%v)", h, c.StateRoot(), root, err)
		}
		if h%2 == 1 { // also over a gap
			trust = c.Trust()
		}
	}
	if _, err := n.eng.Checkpoint(top + 100); err == nil {
		t.Error("a checkpoint of a block that does not exist")
	}
}
