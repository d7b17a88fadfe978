package consensus

import (
	"context"
	"fmt"
	"time"

	"github.com/cometbft/cometbft/store"
	cmt "github.com/cometbft/cometbft/types"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Start is where a replay begins: the state before the first block that is
// executed. Height 0 is the genesis.
type Start struct {
	Height int64
	Time   time.Time // of block Height
	State  ledger.State
}

// Replay executes blocks again, on a plain map in memory, and hands fn what
// each did, with every movement of money and credit. It begins with the
// newest state that was kept before the time from, the genesis if there is
// none; begin, which is called once and may refuse, learns which. Where the
// blocks of that time have been dropped, that is later than from. Replay
// checks nothing of the blocks: that is what Verify is for. It runs beside
// the ledger and does not stop it.
func (e *Engine) Replay(ctx context.Context, from time.Time, begin func(Start) error, fn func(height int64, at time.Time, out ledger.BlockOutput)) error {
	return replayBlocks(ctx, e.doc, e.genesis, e.blocks, e.milestones, e.app.height(), from, begin, fn)
}

// ReplayHome is Replay on the stores of a gateway that does not run. It
// writes nothing; ErrLocked when the gateway runs.
func ReplayHome(ctx context.Context, home, genesisFile string, from time.Time, begin func(Start) error, fn func(height int64, at time.Time, out ledger.BlockOutput)) error {
	return atHome(home, genesisFile, func(h *resting) error {
		return replayBlocks(ctx, h.doc, h.genesis, h.blocks, milestonesOf(home), h.app.height(), from, begin, fn)
	})
}

func replayBlocks(ctx context.Context, doc *cmt.GenesisDoc, g chain.Genesis, blocks *store.BlockStore, kept milestones, height int64,
	from time.Time, begin func(Start) error, fn func(int64, time.Time, ledger.BlockOutput),
) (err error) {
	defer recovered(&err)
	st := ledger.NewMapState()
	start := Start{Time: doc.GenesisTime, State: st}
	a, err := kept.before(max(blocks.Base(), 1), from)
	switch {
	case err == nil && (blocks.Base() > 1 || a.At.Time().Before(from)):
		if err := a.entries(ctx, st.Set); err != nil {
			return err
		}
		start.Height, start.Time = a.height(), a.At.Time()
	case blocks.Base() > 1:
		return err
	default:
		if _, err := ledger.InitGenesis(st, g, doc.GenesisTime.UnixMilli()); err != nil {
			return err
		}
	}
	if err := begin(start); err != nil {
		return err
	}
	for h := start.Height + 1; h <= height; h++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := blocks.LoadBlock(h)
		if b == nil {
			return fmt.Errorf("block %d is not here (any more): ask again", h)
		}
		in := ledger.BlockInput{Height: h, TimeMs: b.Time.UnixMilli(), Trace: true}
		for _, tx := range b.Txs {
			in.Txs = append(in.Txs, tx)
		}
		out, err := ledger.Apply(st, in)
		if err != nil {
			return fmt.Errorf("block %d: %w", h, err)
		}
		fn(h, b.Time, out)
	}
	return nil
}
