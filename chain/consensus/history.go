package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	"github.com/cosmos/iavl"
	ics23 "github.com/cosmos/ics23/go"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/tree"
)

// History is what a gateway can prove: signed blocks from the first that is
// here to a tip, the state that the last of them signs, after the block
// before, and the changes of validators before the first. It is valid while
// the function runs that it was handed to, and used by one goroutine.
type History struct {
	first, tip int64
	state      ledger.State

	blocks *store.BlockStore
	states sm.Store
	tree   *iavl.ImmutableTree
	kept   milestones
}

// History calls fn with what is here now. Blocks go on meanwhile.
func (e *Engine) History(fn func(*History) error) error {
	return history(e.app, e.blocks, e.states, e.milestones, fn)
}

// HistoryHome is History on the stores of a gateway that does not run. It
// writes nothing; ErrLocked when the gateway runs.
func HistoryHome(home, genesisFile string, fn func(*History) error) (err error) {
	doc, g, _, err := ReadGenesis(genesisFile)
	if err != nil {
		return err
	}
	s, err := openStores(home, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	defer recovered(&err)
	a, err := newApp(s.ledger, doc, g, slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("%s: %w", dataDir(home), err)
	}
	return history(a, store.NewBlockStore(s.blocks), sm.NewStore(s.state, sm.StoreOptions{DiscardABCIResponses: true}), milestonesOf(home), fn)
}

func history(a *app, blocks *store.BlockStore, states sm.Store, kept milestones, fn func(*History) error) error {
	return a.view(func(c committed, _ ledger.State) error {
		h := &History{first: max(blocks.Base(), 1), tip: min(blocks.Height(), c.height+1), blocks: blocks, states: states, tree: c.tree, kept: kept}
		if h.tip <= h.first {
			return errors.New("no state has been signed yet: the ledger needs two blocks")
		}
		if h.tip-1 < c.height {
			t, err := a.version(h.tip - 1)
			if err != nil {
				return err
			}
			h.tree = t
		}
		h.state = frozen{h.tree}
		return fn(h)
	})
}

// Range returns the first block and the last.
func (h *History) Range() (first, tip int64) { return h.first, h.tip }

// State is the state after the block before the last.
func (h *History) State() ledger.State { return h.state }

// Header returns the header of a block.
func (h *History) Header(height int64) (out chain.LedgerHeader, err error) {
	defer recovered(&err)
	m := h.blocks.LoadBlockMeta(height)
	if m == nil {
		return out, fmt.Errorf("block %d is not here, only %d to %d", height, h.first, h.tip)
	}
	return toHeader(&m.Header), nil
}

// Txs returns the transactions of a block.
func (h *History) Txs(height int64) (txs [][]byte, err error) {
	defer recovered(&err)
	b := h.blocks.LoadBlock(height)
	if b == nil {
		return nil, fmt.Errorf("block %d is not here, only %d to %d", height, h.first, h.tip)
	}
	for _, tx := range b.Txs {
		txs = append(txs, tx)
	}
	return txs, nil
}

// Checkpoint returns a block's votes and who cast them.
func (h *History) Checkpoint(height int64) (c *chain.Checkpoint, err error) {
	defer recovered(&err)
	return checkpointAt(h.blocks, h.states, height)
}

// Way returns the changes of validators in the blocks before the first, in
// order: how trust comes from the genesis to what is here.
func (h *History) Way() ([]*chain.Checkpoint, error) { return h.kept.changes(h.first - 1) }

// Prove returns the branch to key or, if the state has no such entry, the
// branches to its neighbours, which prove that.
func (h *History) Prove(key []byte) (out []tree.Branch, err error) {
	defer recovered(&err)
	p, err := h.tree.GetProof(key)
	if err != nil {
		return nil, fmt.Errorf("prove %x: %w", key, err)
	}
	if out, err = branches(p); err != nil {
		return nil, fmt.Errorf("prove %x: %w", key, err)
	}
	return out, nil
}

// branches reads iavl's proof of existence, or of absence between neighbours.
func branches(p *ics23.CommitmentProof) (out []tree.Branch, err error) {
	existing := []*ics23.ExistenceProof{p.GetExist()}
	if n := p.GetNonexist(); n != nil {
		existing = []*ics23.ExistenceProof{n.Left, n.Right}
	}
	for _, e := range existing {
		if e == nil {
			continue
		}
		b, err := branch(e)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// branch reads iavl's proof of existence: its operations hold the nodes'
// height, size and version as they are hashed.
func branch(e *ics23.ExistenceProof) (b tree.Branch, err error) {
	b.Key, b.Value = e.Key, e.Value
	leaf, rest, err := varints(e.Leaf.Prefix)
	if err != nil || len(rest) != 0 {
		return b, fmt.Errorf("leaf %x", e.Leaf.Prefix)
	}
	b.Version = leaf[2]
	b.Path = make([]tree.Step, len(e.Path))
	for i, op := range e.Path {
		n, rest, err := varints(op.Prefix)
		if err != nil {
			return b, err
		}
		s := tree.Step{Height: int8(n[0]), Size: n[1], Version: n[2]}
		switch { // prefix and suffix have a length before each hash
		case len(rest) == 1 && len(op.Suffix) == 33:
			s.Sibling = chain.Hash(op.Suffix[1:])
		case len(rest) == 34 && len(op.Suffix) == 0:
			s.Right, s.Sibling = true, chain.Hash(rest[1:33])
		default:
			return b, fmt.Errorf("inner node %x, %x", op.Prefix, op.Suffix)
		}
		b.Path[len(e.Path)-1-i] = s
	}
	return b, nil
}

func varints(b []byte) (v [3]int64, rest []byte, err error) {
	for i := range v {
		n := 0
		if v[i], n = binary.Varint(b); n <= 0 {
			return v, nil, fmt.Errorf("operation %x", b)
		}
		b = b[n:]
	}
	return v, b, nil
}
