package consensus

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	cs "github.com/cometbft/cometbft/consensus"
	cmtlog "github.com/cometbft/cometbft/libs/log"
	"github.com/cometbft/cometbft/mempool"
	"github.com/cometbft/cometbft/proxy"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	cmt "github.com/cometbft/cometbft/types"
	iavldb "github.com/cosmos/iavl/db"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Report is the outcome of a verification.
type Report struct {
	FromHeight int64      `json:"from_height"` // first block that was executed
	Start      string     `json:"start"`       // what that began from, and who vouches for it, in words
	Height     int64      `json:"height"`      // last block that was executed and found right
	StateHash  chain.Hash `json:"state_hash"`  // root that it led to
	Violations []string   `json:"violations"`  // empty: all is right
}

// Verify reads every entry of the stores, so that their checksums are checked,
// and executes every block again that is here, on a state in memory, exactly as
// a gateway that joins today would: signatures, links, results and app hash of
// each header are checked, and what is on disk is compared with what comes out,
// entry by entry. It begins with the genesis or, where the first blocks have
// been dropped, with the oldest state that was kept for them, once the way of
// the validators' signatures from the genesis to that state's root has been
// checked. progress, which may be nil, is told now and then how far it is.
//
// What is wrong is a line in Violations; an error means that the verification
// itself could not run. It reads beside a running ledger and does not stop it.
func (e *Engine) Verify(ctx context.Context, progress func(height, of int64)) (Report, error) {
	var r Report
	err := e.app.view(func(c committed, st ledger.State) error {
		var err error
		v := verification{e.doc, e.genesis, e.stores, e.blocks, e.states, e.milestones, begunWithSnapshot(e.cfg.Home), progress}
		r, err = v.run(ctx, c, c.height, st)
		return err
	})
	// What cannot be read is a finding, not a failure.
	if bad := (storeError{}); errors.As(err, &bad) {
		r.Violations, err = append(r.Violations, fmt.Sprintf("store ledger: %v", damaged(e.cfg.Home, bad.err))), nil
	}
	return r, err
}

// ViewHome calls fn with the last committed state of a gateway that does not
// run, the height and time of its block (zero before the first), and the
// state's root. It writes nothing; ErrLocked when the gateway runs.
func ViewHome(home, genesisFile string, fn func(height int64, at time.Time, root chain.Hash, st ledger.State)) error {
	return atHome(home, genesisFile, func(h *resting) error {
		return h.app.view(func(c committed, st ledger.State) error {
			if c.height == 0 {
				return fmt.Errorf("%s: the ledger has no block yet; start the gateway", dataDir(home))
			}
			at := c.time
			if meta := h.blocks.LoadBlockMeta(c.height); meta != nil {
				at = meta.Header.Time
			}
			fn(c.height, at, chain.Hash(c.hash), st)
			return nil
		})
	})
}

// resting is what a gateway that does not run has on disk.
type resting struct {
	doc     *cmt.GenesisDoc
	genesis chain.Genesis
	app     *app
	blocks  *store.BlockStore
}

// atHome opens a gateway's stores for reading only and calls fn.
func atHome(home, genesisFile string, fn func(*resting) error) (err error) {
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
	return fn(&resting{doc, g, a, store.NewBlockStore(s.blocks)})
}

// VerifyHome is Verify on the stores of a gateway that does not run. It
// writes nothing; ErrLocked when the gateway runs.
func VerifyHome(ctx context.Context, home, genesisFile string, progress func(height, of int64)) (r Report, err error) {
	doc, g, _, err := ReadGenesis(genesisFile)
	if err != nil {
		return r, err
	}
	s, err := openStores(home, true)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	defer func() {
		// Stores that do not even open are a finding, not a failure.
		if p := recover(); p != nil {
			r.Violations = append(r.Violations, fmt.Sprintf("stores of %s: %v", dataDir(home), p))
		}
	}()
	r.Violations = []string{}
	a, err := newApp(s.ledger, doc, g, slog.New(slog.DiscardHandler))
	if err != nil {
		r.Violations = append(r.Violations, err.Error())
		return r, nil
	}
	blocks := store.NewBlockStore(s.blocks)
	// view's own error is a read failure: again a finding.
	var fatal error
	if verr := a.view(func(c committed, st ledger.State) error {
		v := verification{doc, g, s, blocks, sm.NewStore(s.state, sm.StoreOptions{DiscardABCIResponses: true}), milestonesOf(home), begunWithSnapshot(home), progress}
		r, fatal = v.run(ctx, c, blocks.Height(), st)
		return nil
	}); verr != nil {
		r.Violations = append(r.Violations, verr.Error())
	}
	return r, fatal
}

// verification is what a ledger is verified from.
type verification struct {
	doc        *cmt.GenesisDoc
	genesis    chain.Genesis
	stores     *stores
	blocks     *store.BlockStore
	states     sm.Store
	milestones milestones
	snapshot   bool // the stores began with one
	progress   func(height, of int64)
}

func begunWithSnapshot(home string) bool {
	_, err := os.Stat(filepath.Join(dataDir(home), snapshotMark))
	return err == nil
}

// run executes the blocks up to height and compares the state at have.height.
func (v *verification) run(ctx context.Context, have committed, height int64, st ledger.State) (Report, error) {
	r := Report{FromHeight: 1, Start: "the genesis", Violations: []string{}}
	found := func(format string, args ...any) { r.Violations = append(r.Violations, fmt.Sprintf(format, args...)) }
	for _, err := range v.stores.scan(ctx) {
		found("%v", err)
	}
	if height < have.height {
		found("state of height %d, but blocks only up to %d", have.height, height)
	}
	var x *replay
	var err error
	base := v.blocks.Base()
	if base == 0 { // a snapshot came, and no block since
		base = have.height + 1
	}
	if base > 1 {
		a, missing := v.milestones.from(base)
		if missing != nil {
			found("%v", missing)
			return r, nil
		}
		r.FromHeight, r.Height, r.StateHash = a.height()+1, a.height(), a.Next.StateRoot()
		if r.Start, err = v.vouched(a, st); err == nil {
			x, err = v.replayFrom(ctx, a)
		}
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		} else if err != nil {
			found("%v", err)
			return r, nil // what follows rests on it
		}
	} else if x, err = newReplay(v.doc, v.genesis); err != nil {
		return r, err
	}
	// States that are kept wait for the time when a replay begins with them.
	later, err := v.milestones.all()
	for _, a := range later {
		if err == nil && a.height() >= r.FromHeight {
			err = a.check(ctx)
		}
	}
	if err != nil && ctx.Err() == nil {
		found("%v", err)
	}
	defer x.stop()
	x.app.onCommit = func(ev BlockEvent, _ []txOutcome) {
		for _, v := range ev.Violations {
			found("block %d: a transaction would have broken an invariant: %s", ev.Height, v.Info)
		}
	}
	for h := r.FromHeight; h <= height; h++ {
		if err := ctx.Err(); err != nil {
			return r, context.Cause(ctx)
		}
		if err := x.apply(v.blocks, h); err != nil {
			found("block %d: %v", h, err)
			return r, nil // what follows rests on it
		}
		r.Height, r.StateHash = h, chain.Hash(x.state.AppHash)
		if h == have.height {
			if !bytes.Equal(have.hash, x.state.AppHash) {
				found("state of height %d: root %x, the blocks lead to %x", h, have.hash, x.state.AppHash)
			}
			x.compare(st, func(format string, args ...any) { found("state of height %d: "+format, append([]any{h}, args...)...) })
		}
		if v.progress != nil && (h%64 == 0 || h == height) {
			v.progress(h, height)
		}
	}
	if height >= r.FromHeight {
		if err := x.signed(v.blocks, height); err != nil {
			found("block %d: %v", height, err)
		}
	}
	if err := x.app.view(func(_ committed, st ledger.State) error {
		for _, v := range ledger.CheckInvariants(st) {
			found("state of height %d: %s", r.Height, v)
		}
		return nil
	}); err != nil {
		return r, err
	}
	return r, nil
}

// vouched checks that the validators' signatures lead from the genesis to the
// block that signs a milestone's root, and says who signed.
func (v *verification) vouched(a milestone, st ledger.State) (string, error) {
	changes, err := v.milestones.changes(a.height())
	if err != nil {
		return "", err
	}
	way := fmt.Sprintf("%d changes of validators lead there from the genesis", len(changes))
	trust := chain.TrustGenesis(v.genesis, v.doc.GenesisTime)
	for _, c := range append(changes, &a.Next) {
		err := trust.Verify(c)
		if errors.Is(err, chain.ErrNotTrusted) && v.snapshot {
			way = "this gateway began with a snapshot: it checked then how trust comes there, and cannot show it again"
			break
		}
		if err != nil {
			return "", fmt.Errorf("the way from the genesis to the state of height %d: %w", a.height(), err)
		}
		trust = c.Trust()
	}
	names := map[chain.Key]string{}
	for _, m := range ledger.Members(st) {
		names[m.Validator] = m.Name
	}
	var signers []string
	for _, vote := range a.Next.Commit.Votes {
		key := a.Next.Set[vote.Index].Key
		signers = append(signers, cmp.Or(names[key], key.Short()))
	}
	return fmt.Sprintf("the state after block %d of %s: %d of %d validators have signed its root in block %d (%s); %s",
		a.height(), a.At.Time().Format(time.DateOnly), len(signers), len(a.Next.Set), a.height()+1, strings.Join(signers, ", "), way), nil
}

// replay is a ledger in memory that executes blocks.
type replay struct {
	app    *app
	conns  proxy.AppConns
	states sm.Store
	exec   *sm.BlockExecutor
	state  sm.State
	lastID cmt.BlockID
	first  int64 // block that it executes
}

// open makes the parts that both ways of beginning need.
func (x *replay) open(doc *cmt.GenesisDoc, g chain.Genesis, db *treeDB) (err error) {
	x.states = sm.NewStore(dbm.NewMemDB(), sm.StoreOptions{DiscardABCIResponses: true})
	if x.app, err = newApp(db, doc, g, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	x.conns = proxy.NewAppConns(proxy.NewLocalClientCreator(x.app), proxy.NopMetrics())
	if err := x.conns.Start(); err != nil {
		return err
	}
	x.exec = sm.NewBlockExecutor(x.states, cmtlog.NewNopLogger(), x.conns.Consensus(), &mempool.NopMempool{}, sm.EmptyEvidencePool{}, store.NewBlockStore(dbm.NewMemDB()))
	return nil
}

// replayFrom begins with the state of a milestone.
func (v *verification) replayFrom(ctx context.Context, a milestone) (_ *replay, err error) {
	defer recovered(&err)
	db := &treeDB{DB: iavldb.NewMemDB()}
	if err := a.load(ctx, db); err != nil {
		return nil, err
	}
	next := v.blocks.LoadBlockMeta(a.height() + 1)
	if next == nil || chain.Hash(next.Header.Hash()) != a.Next.Header.Hash() {
		return nil, fmt.Errorf("block %d is not the one that signs the state of height %d", a.height()+1, a.height())
	}
	x := &replay{first: a.height() + 1}
	if err := x.open(v.doc, v.genesis, db); err != nil {
		return nil, err
	}
	if x.state, err = a.state(v.doc); err != nil {
		return nil, err
	}
	return x, x.states.Bootstrap(x.state)
}

func newReplay(doc *cmt.GenesisDoc, g chain.Genesis) (_ *replay, err error) {
	defer recovered(&err)
	x := &replay{first: 1}
	if err := x.open(doc, g, &treeDB{DB: iavldb.NewMemDB()}); err != nil {
		return nil, err
	}
	if x.state, err = x.states.LoadFromDBOrGenesisDoc(doc); err != nil {
		return nil, err
	}
	empty := store.NewBlockStore(dbm.NewMemDB())
	if err := cs.NewHandshaker(x.states, x.state, empty, doc).Handshake(x.conns); err != nil {
		return nil, err
	}
	x.state, err = x.states.Load()
	return x, err
}

func (x *replay) stop() { _ = x.conns.Stop() }

// apply checks block h against all before it and executes it.
func (x *replay) apply(blocks *store.BlockStore, h int64) (err error) {
	defer recovered(&err)
	b, meta := blocks.LoadBlock(h), blocks.LoadBlockMeta(h)
	if b == nil || meta == nil {
		return errors.New("missing")
	}
	parts, err := b.MakePartSet(cmt.BlockPartSizeBytes)
	if err != nil {
		return err
	}
	x.lastID = cmt.BlockID{Hash: b.Hash(), PartSetHeader: parts.Header()}
	if !meta.BlockID.Equals(x.lastID) {
		return fmt.Errorf("its content has hash %X, it is filed under %X", x.lastID.Hash, meta.BlockID.Hash)
	}
	if x.state, err = x.exec.ApplyBlock(x.state, x.lastID, b); err != nil {
		return err
	}
	if h%1000 == 0 {
		if from := max(h-1000, x.first+1); from < h-1 { // the first ones are what later ones refer to
			return x.states.PruneStates(from, h-1, h-1)
		}
	}
	return nil
}

// signed checks the signatures under the last block, which no later block
// carries yet.
func (x *replay) signed(blocks *store.BlockStore, h int64) (err error) {
	defer recovered(&err)
	c := blocks.LoadSeenCommit(h)
	if c == nil {
		return errors.New("its signatures are missing")
	}
	return x.state.LastValidators.VerifyCommit(x.state.ChainID, x.lastID, h, c)
}

// compare reports the first entry in which st differs from the state that the
// blocks lead to.
func (x *replay) compare(st ledger.State, found func(format string, args ...any)) {
	err := x.app.view(func(_ committed, want ledger.State) error {
		same := true
		differ := func(a, b ledger.State, what string) {
			a.Iterate(nil, func(k, v []byte) bool {
				if o := b.Get(k); same && !bytes.Equal(o, v) {
					same = false
					found("entry %x %s", k, what)
				}
				return same
			})
		}
		differ(want, st, "is missing or not what the blocks lead to")
		differ(st, want, "is not what the blocks lead to")
		return nil
	})
	if err != nil {
		found("%v", err)
	}
}
