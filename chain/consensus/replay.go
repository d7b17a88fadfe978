package consensus

import (
	"context"
	"fmt"
	"time"

	cmt "github.com/cometbft/cometbft/types"

	"github.com/cometbft/cometbft/store"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Replay executes every block again from the genesis, on a plain map in
// memory, and hands fn what each did, with every movement of money and
// credit. It checks nothing: that is what Verify is for. It runs beside the
// ledger and does not stop it.
func (e *Engine) Replay(ctx context.Context, fn func(height int64, at time.Time, out ledger.BlockOutput)) error {
	return replayBlocks(ctx, e.doc, e.genesis, e.blocks, e.app.height(), fn)
}

// ReplayHome is Replay on the stores of a gateway that does not run. It
// writes nothing; ErrLocked when the gateway runs.
func ReplayHome(ctx context.Context, home, genesisFile string, fn func(height int64, at time.Time, out ledger.BlockOutput)) error {
	return atHome(home, genesisFile, func(h *resting) error {
		return replayBlocks(ctx, h.doc, h.genesis, h.blocks, h.app.height(), fn)
	})
}

func replayBlocks(ctx context.Context, doc *cmt.GenesisDoc, g chain.Genesis, blocks *store.BlockStore, height int64, fn func(int64, time.Time, ledger.BlockOutput)) (err error) {
	defer recovered(&err)
	if base := blocks.Base(); base > 1 {
		return fmt.Errorf("blocks before %d are not here, so they cannot be executed again", base)
	}
	st := ledger.NewMapState()
	if _, err := ledger.InitGenesis(st, g, doc.GenesisTime.UnixMilli()); err != nil {
		return err
	}
	for h := int64(1); h <= height; h++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := blocks.LoadBlock(h)
		if b == nil {
			return fmt.Errorf("block %d is missing", h)
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
