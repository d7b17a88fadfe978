package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cometbft/cometbft/evidence"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	cmt "github.com/cometbft/cometbft/types"
)

// retainer bounds what the ledger takes on disk. It works beside the
// consensus goroutine, which waits for none of it: it prunes old versions of
// the tree, makes a milestone twice in the time that blocks are kept, and lets
// blocks go once a milestone replaces them.
//
//	      Blocks        Blocks/2
//	├────────────────┼──────────┤ now
//	A1        A2         A3                 milestones
//	▲ oldest block   blocks before A2 go as soon as A2 is older than Blocks,
//	                 a few with each new block; then A1 goes
//
// Ages are by block time, so that a gateway that catches up after a year does
// as it would have done then.
//
// Evidence of misbehaviour must find headers and votes, and CometBFT never
// returns to those that it has spared: no block goes that could still be
// evidence.
type retainer struct {
	log        *slog.Logger
	app        *app
	blocks     *store.BlockStore
	states     sm.Store
	milestones milestones
	keep       time.Duration // of blocks; 0: for ever
	params     cmt.EvidenceParams

	wake  chan struct{}
	floor atomic.Int64 // blocks below may go; 0: none
	known []milestone  // the retainer's own
	retry time.Time    // no milestone before, after a failure
}

func newRetainer(a *app, blocks *store.BlockStore, states sm.Store, s milestones, keep time.Duration, log *slog.Logger) (*retainer, error) {
	r := &retainer{
		log: log, app: a, blocks: blocks, states: states, milestones: s, keep: keep, params: a.doc.ConsensusParams.Evidence,
		wake: make(chan struct{}, 1),
	}
	if err := s.clean(); err != nil {
		return nil, fmt.Errorf("milestones: %w", err)
	}
	var err error
	r.known, err = s.all()
	return r, err
}

// height is what Commit tells CometBFT: the first block to be kept, 0 for no
// change. Blocks go a few at a time, so that none waits for it.
func (r *retainer) height() int64 {
	base, floor := r.blocks.Base(), r.floor.Load()
	if base >= floor || !r.app.prune.TryLock() {
		return 0 // nothing to do, or somebody reads the past
	}
	r.app.prune.Unlock()
	return min(floor, max(base, 1)+maxPrunedBlocks)
}

func (r *retainer) nudge() {
	select {
	case r.wake <- struct{}{}:
	default: // it will look at the newest block anyway
	}
}

func (r *retainer) run(ctx context.Context) {
	for {
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			r.log.Error("old parts of the ledger are kept for now: they could not be replaced", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
	}
}

// step does what is due after the newest block.
func (r *retainer) step(ctx context.Context) (err error) {
	defer recovered(&err)
	err = r.versions(ctx)
	if r.keep > 0 {
		err = errors.Join(err, r.milestone(ctx))
		r.release()
	}
	return errors.Join(err, r.sweep())
}

// versions prunes the tree, in batches of a bounded size. It never waits for
// a reader: the next block will do.
func (r *retainer) versions(ctx context.Context) error {
	to := r.app.height() - KeepVersions
	if to-r.app.pruned < pruneEvery {
		return nil
	}
	for ctx.Err() == nil && r.app.pruned < to {
		done, err := r.app.pruneVersions(to)
		if err != nil || !done {
			return err
		}
	}
	return nil
}

// milestone keeps the newest state that has been signed, if it is time.
func (r *retainer) milestone(ctx context.Context) error {
	last := r.blocks.LoadBlockMeta(r.app.height())
	if last == nil || last.Header.Height < 2 || time.Now().Before(r.retry) {
		return nil
	}
	since := r.app.doc.GenesisTime
	if n := len(r.known); n > 0 {
		since = r.known[n-1].At.Time()
	}
	if last.Header.Time.Sub(since) < r.keep/2 {
		return nil
	}
	start := time.Now()
	a, err := r.make(ctx, last.Header.Height-1)
	if err != nil {
		r.retry = time.Now().Add(milestoneRetry)
		return fmt.Errorf("milestone: %w", err)
	}
	r.known = append(r.known, a)
	r.log.Info("state kept, so that blocks before it may go", "height", a.height(), "seconds", int(time.Since(start).Seconds()))
	return nil
}

// make stores the state after a block, the votes that sign it, and how trust
// comes there from the milestone before.
func (r *retainer) make(ctx context.Context, height int64) (a milestone, err error) {
	from := max(r.blocks.Base(), 1)
	if n := len(r.known); n > 0 {
		from = max(from, r.known[n-1].height())
	}
	for h := from; h <= height; h++ {
		if err := ctx.Err(); err != nil {
			return a, context.Cause(ctx)
		}
		m := r.blocks.LoadBlockMeta(h)
		if m == nil {
			return a, fmt.Errorf("block %d is missing", h)
		}
		if string(m.Header.NextValidatorsHash) == string(m.Header.ValidatorsHash) {
			continue
		}
		change, err := checkpointAt(r.blocks, r.states, h)
		if err != nil {
			return a, err
		}
		if err := r.milestones.keepChange(change); err != nil {
			return a, err
		}
	}
	// A tree of its own: an export would empty the readers' cache.
	tree, err := newTree(r.app.db).GetImmutable(height)
	if err != nil {
		return a, err
	}
	return r.milestones.make(ctx, tree, r.blocks, r.states, height)
}

// release lets the blocks go that a milestone replaces.
func (r *retainer) release() {
	last := r.blocks.LoadBlockMeta(r.app.height())
	if last == nil {
		return
	}
	for _, m := range r.known {
		h, at := m.height(), m.At.Time()
		if last.Header.Time.Sub(at) > r.keep && evidence.IsEvidenceExpired(last.Header.Height, last.Header.Time, h, at, r.params) {
			r.floor.Store(h)
		}
	}
}

// sweep drops milestones whose next block has gone.
func (r *retainer) sweep() error {
	for base := r.blocks.Base(); len(r.known) > 1 && r.known[0].height()+1 < base; r.known = r.known[1:] {
		if err := r.milestones.drop(r.known[0]); err != nil {
			return fmt.Errorf("milestones: %w", err)
		}
	}
	return nil
}
