package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	"github.com/cometbft/cometbft/crypto/ed25519"
	cmt "github.com/cometbft/cometbft/types"
	"github.com/cosmos/iavl"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// app is the ledger as CometBFT sees it.
//
//	           ┌──────── consensus goroutine ────────┐
//	committed ─► FinalizeBlock: overlay on the working tree, root
//	           │ Commit: SaveVersion, one synced batch  ─► committed
//	           └──────────────────────────────────────┘
//	committed ─► check overlay (CheckTx), snapshots (View, Prove)
type app struct {
	abci.BaseApplication
	log     *slog.Logger
	doc     *cmt.GenesisDoc
	genesis chain.Genesis
	db      *treeDB
	tree    *iavl.MutableTree // the consensus goroutine's alone
	saved   *iavl.MutableTree // never written, only asked for saved versions
	pending *BlockEvent       // between FinalizeBlock and Commit
	moves   []ledger.Movement // of pending
	results []txOutcome       // of pending

	// committedBlock is told every block after its state is on disk; recheck
	// every transaction that a later block made invalid. They must not block.
	onCommit  func(BlockEvent, []txOutcome)
	onRecheck func(chain.Hash, ledger.TxResult)
	// onMoves is told what a block moved before its state is on disk; nil if
	// nobody wants to know.
	onMoves func(height int64, at time.Time, moves []ledger.Movement)
	// onEvents likewise is told what happened in it.
	onEvents func(height int64, at time.Time, events []ledger.Event)
	// onFailure is told that the ledger cannot go on. It returns the error
	// for CometBFT, or does not return.
	onFailure func(error) error
	guard     bool      // stop before a block that this program is too old for
	retain    *retainer // nil: everything is kept

	mu     sync.Mutex
	last   committed
	check  *ledger.Overlay // what CheckTx sees: last, plus what it accepted
	prune  sync.RWMutex    // held for reading while a snapshot is read
	pruned int64           // versions up to here are gone; the retainer's own
	closed bool
}

// committed is the newest state on disk.
type committed struct {
	height int64
	time   time.Time // zero after a start, until the next block
	hash   []byte
	tree   *iavl.ImmutableTree // nil at height 0
}

type txOutcome struct {
	hash   chain.Hash
	result ledger.TxResult
}

func newApp(db *treeDB, doc *cmt.GenesisDoc, g chain.Genesis, log *slog.Logger) (*app, error) {
	tree, err := openTree(db)
	if err != nil {
		return nil, err
	}
	a := &app{
		log: log, doc: doc, genesis: g, db: db, tree: tree, saved: newTree(db),
		onCommit:  func(BlockEvent, []txOutcome) {},
		onRecheck: func(chain.Hash, ledger.TxResult) {},
		onFailure: func(err error) error { return err },
	}
	if err := a.setCommitted(tree.Version(), time.Time{}); err != nil {
		return nil, err
	}
	return a, nil
}

// setCommitted points readers and CheckTx at a version.
func (a *app) setCommitted(height int64, at time.Time) error {
	c := committed{height: height, time: at}
	if height > 0 {
		t, err := a.saved.GetImmutable(height)
		if err != nil {
			return fmt.Errorf("load ledger state of height %d: %w", height, err)
		}
		c.tree, c.hash = t, t.Hash()
	}
	st, err := a.stateOf(c)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last, a.check = c, ledger.NewOverlay(st)
	return nil
}

// stateOf returns the state of c: the genesis, made anew, before the first
// block.
func (a *app) stateOf(c committed) (ledger.State, error) {
	if c.tree != nil {
		return frozen{c.tree}, nil
	}
	st := ledger.NewMapState()
	_, err := ledger.InitGenesis(st, a.genesis, a.doc.GenesisTime.UnixMilli())
	return st, err
}

func (a *app) height() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last.height
}

// view calls fn with the newest committed state, which stays as it is while
// fn runs. Storage that fails, and a panic of fn, become an error.
func (a *app) view(fn func(committed, ledger.State) error) (err error) {
	a.prune.RLock()
	defer a.prune.RUnlock()
	a.mu.Lock()
	c, closed := a.last, a.closed
	a.mu.Unlock()
	if closed {
		return ErrClosed
	}
	st, err := a.stateOf(c)
	if err != nil {
		return err
	}
	defer recovered(&err)
	return errors.Join(fn(c, st), a.db.check())
}

// recovered turns a panic into an error.
func recovered(err *error) {
	switch r := recover().(type) {
	case nil:
	case storeError:
		*err = r
	default:
		*err = &panicError{r, debug.Stack()}
	}
}

// panicError is a panic of the ledger's rules or of CometBFT.
type panicError struct {
	value any
	stack []byte // for the log
}

func (p *panicError) Error() string { return fmt.Sprint(p.value) }

// Info tells CometBFT which block is applied; it replays the later ones.
func (a *app) Info(context.Context, *abci.RequestInfo) (*abci.ResponseInfo, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &abci.ResponseInfo{
		AppVersion: chain.Version, LastBlockHeight: a.last.height, LastBlockAppHash: a.last.hash,
	}, nil
}

// InitChain returns root and validators of the genesis state. Nothing is
// saved: version 1 will hold the genesis and the first block.
func (a *app) InitChain(_ context.Context, req *abci.RequestInitChain) (res *abci.ResponseInitChain, err error) {
	defer recovered(&err)
	a.tree.Rollback()
	ups, err := a.initTree()
	if err != nil {
		return nil, fmt.Errorf("genesis state: %w", err)
	}
	vals := updates(ups)
	if len(vals) != len(req.Validators) {
		return nil, fmt.Errorf("genesis state has %d validators, its document %d", len(vals), len(req.Validators))
	}
	return &abci.ResponseInitChain{Validators: vals, AppHash: a.tree.WorkingHash()}, nil
}

func (a *app) initTree() ([]ledger.ValidatorUpdate, error) {
	o := ledger.NewOverlay(working{a.tree})
	ups, err := ledger.InitGenesis(o, a.genesis, a.doc.GenesisTime.UnixMilli())
	if err == nil {
		o.Commit()
	}
	return ups, err
}

func updates(ups []ledger.ValidatorUpdate) []abci.ValidatorUpdate {
	vals := make([]abci.ValidatorUpdate, len(ups))
	for i, u := range ups {
		vals[i] = abci.UpdateValidator(u.Key[:], u.Power, ed25519.KeyType)
	}
	return vals
}

// CheckTx judges a transaction for the mempool, on the committed state and
// what was accepted before it.
func (a *app) CheckTx(_ context.Context, req *abci.RequestCheckTx) (*abci.ResponseCheckTx, error) {
	r := a.checkTx(req.Tx)
	if req.Type == abci.CheckTxType_Recheck && r.Code != ledger.CodeOK {
		a.onRecheck(chain.Sum(req.Tx), r)
	}
	return &abci.ResponseCheckTx{Code: uint32(r.Code), Info: r.Info}, nil
}

func (a *app) checkTx(tx []byte) (r ledger.TxResult) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() {
		// A transaction that makes the rules panic is refused here and
		// reported, so that it cannot come into a block by this gateway.
		if p := recover(); p != nil {
			a.log.Error("check of a transaction panicked", "panic", p, "tx", chain.Sum(tx), "stack", string(debug.Stack()))
			r = ledger.TxResult{Code: ledger.CodeMalformed, Info: "internal error"}
		}
	}()
	if len(tx) > chain.MaxTxBytes {
		return ledger.TxResult{Code: ledger.CodeTooLarge, Info: fmt.Sprintf("%d bytes, at most %d", len(tx), chain.MaxTxBytes)}
	}
	return ledger.CheckTx(a.check, tx)
}

// FinalizeBlock executes a decided block on scratch and returns its root.
func (a *app) FinalizeBlock(_ context.Context, req *abci.RequestFinalizeBlock) (*abci.ResponseFinalizeBlock, error) {
	res, err := a.execute(req)
	if err != nil {
		return nil, a.onFailure(fmt.Errorf("block %d: %w", req.Height, err))
	}
	return res, nil
}

func (a *app) execute(req *abci.RequestFinalizeBlock) (res *abci.ResponseFinalizeBlock, err error) {
	defer recovered(&err)
	// A block that was executed but not committed leaves its writes behind.
	a.tree.Rollback()
	a.pending = nil
	if req.Height != a.tree.Version()+1 {
		return nil, fmt.Errorf("the state is at height %d", a.tree.Version())
	}
	if a.tree.Version() == 0 {
		if _, err := a.initTree(); err != nil {
			return nil, fmt.Errorf("genesis state: %w", err)
		}
	}
	o := ledger.NewOverlay(working{a.tree})
	out, err := ledger.Apply(o, ledger.BlockInput{Height: req.Height, TimeMs: req.Time.UnixMilli(), Txs: req.Txs, Trace: a.onMoves != nil})
	if err != nil {
		return nil, err
	}
	if len(out.Results) != len(req.Txs) {
		return nil, fmt.Errorf("%d results for %d transactions", len(out.Results), len(req.Txs))
	}
	o.Commit()
	hash := a.tree.WorkingHash()
	if err := a.db.check(); err != nil {
		return nil, err
	}

	a.pending = &BlockEvent{
		Height: req.Height, Time: req.Time, AppHash: chain.Hash(hash), Txs: len(req.Txs),
		Events: out.Events, Violations: out.Violations, Misbehaviour: misbehaviour(req.Misbehavior),
	}
	a.moves = out.Movements
	a.results = make([]txOutcome, len(req.Txs))
	res = &abci.ResponseFinalizeBlock{ValidatorUpdates: updates(out.Validators), AppHash: hash, TxResults: make([]*abci.ExecTxResult, len(req.Txs))}
	for i, r := range out.Results {
		a.results[i] = txOutcome{chain.Sum(req.Txs[i]), r}
		res.TxResults[i] = &abci.ExecTxResult{Code: uint32(r.Code), Info: r.Info}
	}
	return res, nil
}

func misbehaviour(ms []abci.Misbehavior) []Misbehaviour {
	var out []Misbehaviour
	for _, m := range ms {
		out = append(out, Misbehaviour{
			Kind: m.Type.String(), Validator: fmt.Sprintf("%x", m.Validator.Address), Height: m.Height, Time: m.Time,
		})
	}
	return out
}

// Commit saves the executed block: height, root and state in one synced
// batch.
func (a *app) Commit(context.Context, *abci.RequestCommit) (*abci.ResponseCommit, error) {
	if err := a.save(); err != nil {
		return nil, a.onFailure(fmt.Errorf("save state: %w", err))
	}
	// Before it votes on a block of which it could not even tell the result.
	if err := a.outdated(); err != nil {
		return nil, a.onFailure(err)
	}
	res := &abci.ResponseCommit{}
	if a.retain != nil {
		res.RetainHeight = a.retain.height()
		a.retain.nudge()
	}
	return res, nil
}

func (a *app) save() (err error) {
	defer recovered(&err)
	ev := a.pending
	if ev == nil {
		panic("consensus: Commit without FinalizeBlock")
	}
	if a.onMoves != nil {
		a.onMoves(ev.Height, ev.Time, a.moves)
	}
	if a.onEvents != nil {
		a.onEvents(ev.Height, ev.Time, ev.Events)
	}
	hash, version, err := a.tree.SaveVersion()
	if err != nil {
		return err
	}
	if version != ev.Height || !bytes.Equal(hash, ev.AppHash[:]) {
		panic(fmt.Sprintf("consensus: saved version %d with root %x, executed block %d with root %s", version, hash, ev.Height, ev.AppHash))
	}
	if err := a.setCommitted(version, ev.Time); err != nil {
		return err
	}
	a.pending, a.moves = nil, nil
	for _, m := range ev.Misbehaviour {
		a.log.Error("validator misbehaved", "height", ev.Height, "kind", m.Kind, "validator", m.Validator, "at", m.Height)
	}
	for _, v := range ev.Violations {
		a.log.Error("transaction refused: it would break an invariant", "height", ev.Height, "info", v.Info, "tx", chain.Sum(v.Tx))
	}
	a.onCommit(*ev, a.results)
	return nil
}

// outdated returns an error if the next block has rules that this program is
// too old for.
func (a *app) outdated() (err error) {
	if !a.guard {
		return nil
	}
	a.mu.Lock()
	c := a.last
	a.mu.Unlock()
	defer recovered(&err)
	st, err := a.stateOf(c) // without the lock of readers: no block waits for pruning
	if err != nil {
		return err
	}
	return errors.Join(ledger.Outdated(st, c.height+1), a.db.check())
}

// pruneVersions drops a bounded number of old versions, up to a height, in one
// synced batch. It does nothing, and says so, while somebody reads. The tree
// is one of its own: what nothing newer refers to is nothing that the writer
// or a reader of recent versions could touch.
func (a *app) pruneVersions(to int64) (done bool, err error) {
	if !a.prune.TryLock() {
		return false, nil
	}
	defer a.prune.Unlock()
	t, err := openTree(a.db)
	if err != nil {
		return false, err
	}
	have := t.AvailableVersions()
	if len(have) == 0 {
		return false, nil
	}
	to = min(to, int64(have[0])+maxPruned-1)
	if int64(have[0]) <= to {
		if err := t.DeleteVersionsTo(to); err != nil {
			return false, fmt.Errorf("prune versions of the ledger state: %w", err)
		}
	}
	a.pruned = to
	return true, nil
}

// close ends readers. The tree's database is closed by its owner.
func (a *app) close() {
	a.prune.Lock()
	defer a.prune.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
}

// version returns an older state. Called under a.prune.
func (a *app) version(height int64) (*iavl.ImmutableTree, error) {
	t, err := a.saved.GetImmutable(height)
	if err != nil {
		return nil, fmt.Errorf("state of height %d: %w", height, err)
	}
	return t, nil
}
