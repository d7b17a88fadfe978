package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cometbft/cometbft/blocksync"
	cfg "github.com/cometbft/cometbft/config"
	cs "github.com/cometbft/cometbft/consensus"
	"github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/evidence"
	cmtlog "github.com/cometbft/cometbft/libs/log"
	"github.com/cometbft/cometbft/lp2p"
	"github.com/cometbft/cometbft/mempool"
	"github.com/cometbft/cometbft/node"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/privval"
	"github.com/cometbft/cometbft/proxy"
	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	cmt "github.com/cometbft/cometbft/types"
	"github.com/cometbft/cometbft/version"

	"github.com/joulegate/joulegate/chain"
)

// Decisions that callers make.
var (
	ErrFull   = errors.New("the ledger's queue is full, try again later")
	ErrHalted = errors.New("the ledger has halted")
	ErrClosed = errors.New("the ledger is closed")
	ErrReopen = errors.New("open the ledger again") // it is well, and can go on only so
)

// Engine is a running ledger of one gateway. Its methods are safe for
// concurrent use.
//
//	Open ──► opened ──Run──► running ──ctx ends──► closed
//	                            │ impossible state
//	                            ▼
//	                         halted: reads go on, nothing is committed
type Engine struct {
	log       *slog.Logger
	cfg       Config
	doc       *cmt.GenesisDoc
	genesis   chain.Genesis
	validator chain.Key

	stores     *stores
	app        *app
	conns      proxy.AppConns
	bus        *cmt.EventBus
	blocks     *store.BlockStore
	states     sm.Store
	pool       *mempool.CListMempool
	evidence   *evidence.Pool
	cons       *cs.State
	consR      *cs.Reactor
	exec       *sm.BlockExecutor
	sw         *lp2p.Switch
	keeper     *peerKeeper
	server     *server
	syncer     *syncer
	retain     *retainer
	milestones milestones
	handlers   []p2p.Reactor

	handshaking bool
	broken      bool // the start failed half-way; Run's own
	halted      atomic.Pointer[haltError]
	stop        chan struct{} // closed when the engine begins to stop
	halt        chan struct{} // closed at the first failure
	started     atomic.Bool

	hub *hub
}

type haltError struct{ err error }

// Open opens the stores, applies what was stored but not applied, and
// assembles the node. Nothing is sent or served before Run. Errors name the
// file and what to do; a store held by another process is ErrLocked.
func Open(ctx context.Context, c Config) (_ *Engine, err error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	doc, g, _, err := ReadGenesis(c.GenesisFile)
	if err != nil {
		return nil, err
	}
	if least := doc.ConsensusParams.Evidence.MaxAgeDuration * 3 / 2; c.KeepBlocks != 0 && c.KeepBlocks < least {
		return nil, fmt.Errorf("consensus: blocks kept for %v, at least %v: validators answer for what they signed for %v",
			c.KeepBlocks, least, doc.ConsensusParams.Evidence.MaxAgeDuration)
	}
	pv, err := loadValidator(c.Home)
	if err != nil {
		return nil, err
	}
	if err := adoptSnapshot(c.Home, c.Log); err != nil {
		return nil, fmt.Errorf("put a fetched state in its place: %w", err)
	}
	s, err := openStores(c.Home, false)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		log: c.Log, cfg: c, doc: doc, genesis: g, validator: chain.Key(pv.Key.PubKey.Bytes()),
		milestones: milestonesOf(c.Home), stores: s, stop: make(chan struct{}), halt: make(chan struct{}), hub: newHub(), handshaking: true,
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	defer func() { err = damaged(c.Home, err) }()
	// CometBFT panics on stores that contradict each other.
	defer recovered(&err)

	if e.app, err = newApp(s.ledger, doc, g, c.Log); err != nil {
		return nil, err
	}
	e.app.onMoves, e.app.onEvents = c.Movements, c.Events
	e.app.onCommit, e.app.onRecheck, e.app.onFailure = e.hub.committed, e.hub.refused, e.failed
	if err := e.assemble(ctx, pv); err != nil {
		return nil, err
	}
	e.server = &server{e: e, dir: outgoingDir(c.Home), limit: snapshotFor}
	e.syncer = newSyncer(e)
	e.retain, err = newRetainer(e.app, e.blocks, e.states, e.milestones, c.KeepBlocks, c.Log)
	if err != nil {
		return nil, err
	}
	e.app.retain = e.retain
	e.app.guard = true
	if err := e.app.outdated(); err != nil {
		e.setHalted(err)
	}
	// CometBFT reads these first in a goroutine of its own, where a panic
	// over a damaged store ends the process with a trace. Here it is an error.
	if h := e.blocks.Height(); h > 0 {
		e.blocks.LoadBlockExtendedCommit(h)
		e.blocks.LoadSeenCommit(h)
		e.blocks.LoadBlock(h)
	}
	e.handshaking = false
	return e, nil
}

// assemble builds the node from CometBFT's exported parts. node.NewNode
// cannot be used: it makes its own host, QUIC only and open to strangers.
func (e *Engine) assemble(ctx context.Context, pv *privval.FilePV) error {
	k := e.cfg.comet()
	lg := newCometLog(e.log, func(reason string) { e.setHalted(errors.New(reason)) })
	mod := func(name string) cmtlog.Logger { return lg.With("module", name) }

	e.blocks = store.NewBlockStore(e.stores.blocks)
	e.states = sm.NewStore(e.stores.state, sm.StoreOptions{DiscardABCIResponses: true})
	state, doc, err := node.LoadStateFromDBOrGenesisDocProvider(e.stores.state, func() (*cmt.GenesisDoc, error) { return e.doc, nil })
	if err != nil {
		return fmt.Errorf("ledger state: %w", err)
	}
	if err := sameGenesis(e.doc, doc); err != nil {
		return err
	}
	e.conns = proxy.NewAppConns(proxy.NewConnSyncLocalClientCreator(e.app), proxy.NopMetrics())
	e.conns.SetLogger(mod("proxy"))
	if err := e.conns.Start(); err != nil {
		return err
	}
	e.bus = cmt.NewEventBus()
	e.bus.SetLogger(mod("events"))
	if err := e.bus.Start(); err != nil {
		return err
	}
	h := cs.NewHandshaker(e.states, state, e.blocks, doc)
	h.SetLogger(mod("handshake"))
	h.SetEventBus(e.bus)
	if err := h.HandshakeWithContext(ctx, e.conns); err != nil {
		return fmt.Errorf("replay of stored blocks: %w", err)
	}
	if n := h.NBlocks(); n > 0 {
		e.log.Info("applied stored blocks", "blocks", n, "height", e.blocks.Height())
	}
	if state, err = e.states.Load(); err != nil {
		return err
	}

	self := pv.Key.Address
	alone := state.Validators.Size() == 1 && state.Validators.HasAddress(self)
	e.pool = mempool.NewCListMempool(k.Mempool, e.conns.Mempool(), state.LastBlockHeight,
		mempool.WithPreCheck(sm.TxPreCheck(state)), mempool.WithPostCheck(sm.TxPostCheck(state)))
	e.pool.SetLogger(mod("mempool"))
	e.pool.EnableTxsAvailable()
	poolR := mempool.NewReactor(k.Mempool, e.pool, !alone)
	poolR.SetLogger(mod("mempool"))

	if e.evidence, err = evidence.NewPool(e.stores.evidence, e.states, e.blocks); err != nil {
		return err
	}
	e.evidence.SetLogger(mod("evidence"))
	evR := evidence.NewReactor(e.evidence)
	evR.SetLogger(mod("evidence"))

	exec := sm.NewBlockExecutor(e.states, mod("state"), e.conns.Consensus(), e.pool, e.evidence, e.blocks,
		sm.BlockExecutorWithBlockTimeTolerance(k.Consensus.BlockTimeTolerance))
	e.exec = exec
	began := int64(0) // after a snapshot there is no block yet
	if e.blocks.Height() == 0 {
		began = state.LastBlockHeight
	}
	syncR := blocksync.NewReactor(!alone, k.BlockSync.AdaptiveSync, state.Copy(), exec, e.blocks, self, began, blocksync.NopMetrics())
	syncR.SetLogger(mod("blocksync"))
	e.cons = cs.NewState(k.Consensus, state.Copy(), exec, e.blocks, e.pool, e.evidence, cs.OfflineStateSyncHeight(began))
	e.cons.SetLogger(mod("consensus"))
	e.cons.SetPrivValidator(pv)
	e.consR = cs.NewReactor(e.cons, !alone)
	e.consR.SetLogger(mod("consensus"))
	e.consR.SetEventBus(e.bus)
	// CometBFT's state sync is left out: it restores only into an empty
	// application, before anything is proven, asks for light blocks over RPC,
	// and dereferences nil when a peer offers a snapshot of too many chunks.
	e.handlers = []p2p.Reactor{poolR, syncR, e.consR, evR}
	return e.network(k, state, mod("p2p"))
}

// network puts the node on the application's host.
func (e *Engine) network(k *cfg.Config, state sm.State, lg cmtlog.Logger) error {
	key := ed25519.GenPrivKey() // of the throw-away host below; nobody sees it
	pc := *k.P2P
	pc.ListenAddress = "127.0.0.1:0"
	// lp2p.Host has private fields that only NewHost sets, and NewHost makes
	// a host of its own. That one is closed again and ours put in its place.
	lh, err := lp2p.NewHost(&pc, key, lg)
	if err != nil {
		return fmt.Errorf("libp2p: %w", err)
	}
	if err := lh.Host.Close(); err != nil {
		return fmt.Errorf("libp2p: %w", err)
	}
	lh.Host = borrow(e.cfg.Host)
	info := p2p.DefaultNodeInfo{
		ProtocolVersion: p2p.NewProtocolVersion(version.P2PProtocol, state.Version.Consensus.Block, state.Version.Consensus.App),
		DefaultNodeID:   p2p.ID(e.cfg.Host.ID().String()),
		Network:         e.doc.ChainID,
		Version:         version.TMCoreSemVer,
		ListenAddr:      pc.ListenAddress,
	}
	names := []string{"MEMPOOL", "BLOCKSYNC", "CONSENSUS", "EVIDENCE"} // CometBFT looks them up
	var rs []lp2p.SwitchReactor
	for i, r := range e.handlers {
		rs = append(rs, lp2p.SwitchReactor{Name: names[i], Reactor: r})
	}
	if e.sw, err = lp2p.NewSwitch(info, lh, rs, p2p.NopMetrics(), lg); err != nil {
		return fmt.Errorf("libp2p: %w", err)
	}
	e.keeper = &peerKeeper{
		host: e.cfg.Host, set: e.sw.Peers().(*lp2p.PeerSet), reactors: e.handlers, known: e.cfg.Peers, log: e.log,
	}
	return nil
}

// sameGenesis compares the document with the one the stores were made with.
func sameGenesis(file, stored *cmt.GenesisDoc) error {
	if file.ChainID != stored.ChainID || string(file.ValidatorHash()) != string(stored.ValidatorHash()) ||
		!file.GenesisTime.Equal(stored.GenesisTime) || !sameJSON(file.AppState, stored.AppState) {
		return fmt.Errorf("the stores belong to another genesis (%s of %s); the file is %s of %s",
			stored.ChainID, stored.GenesisTime.Format(time.RFC3339), file.ChainID, file.GenesisTime.Format(time.RFC3339))
	}
	return nil
}

// Run serves until ctx ends and then stops, in this order: those who wait,
// peers and consensus, readers, state, blocks. It returns when all that writes
// or answers has ended; gossip routines of CometBFT that sleep notice within
// two seconds and find empty stores. A halted ledger keeps running for those
// who read it.
func (e *Engine) Run(ctx context.Context) (err error) {
	if !e.started.CompareAndSwap(false, true) {
		return errors.New("consensus: Run called twice")
	}
	defer func() { err = errors.Join(err, e.close()) }()
	if behind := time.Until(e.doc.GenesisTime); behind > 0 {
		// CometBFT's node would wait. The clock may never be set, or be set a
		// second later, and block time runs on from the genesis time anyway.
		e.log.Warn("the clock is before the microgrid's founding: set it", "founded", e.doc.GenesisTime, "behind", behind.Round(time.Second))
	}
	if e.Halted() != nil {
		<-ctx.Done() // it serves those who read
		return nil
	}
	if err := e.startSwitch(); err != nil {
		e.broken = true
		return damaged(e.cfg.Home, err)
	}
	e.log.Info("ledger runs", "height", e.app.height(), "chain", e.doc.ChainID, "validator", e.validator.Short())
	beside, stopBeside := context.WithCancel(ctx)
	var others sync.WaitGroup
	// A snapshot that is ready ends what runs here; the next Open begins with
	// it. So does a clock that was set back at a bad moment.
	ctx, ready := context.WithCancelCause(ctx)
	defer ready(nil)
	late := make(chan error, 1)
	others.Go(func() {
		err := (&repeater{
			cons: e.cons, consR: e.consR, set: e.keeper.set,
			pause: cmp.Or(e.cfg.pauseLimit, e.cfg.Timing.withDefaults().Commit+pauseGrace),
		}).run(beside)
		ready(err)
		late <- err
	})
	others.Go(func() { e.retain.run(beside) })
	defer func() {
		stopBeside()
		others.Wait()
		err = errors.Join(err, <-late)
	}()
	syncing := make(chan error, 1)
	go func() {
		err := e.syncer.run(ctx)
		ready(err)
		syncing <- err
	}()
	err = e.keeper.run(ctx)
	ready(err)
	return errors.Join(err, <-syncing)
}

// startSwitch starts the reactors. CometBFT panics when its log of votes
// cannot be read or repaired.
func (e *Engine) startSwitch() (err error) {
	defer recovered(&err)
	if err := e.sw.Start(); err != nil {
		return fmt.Errorf("start consensus: %w", err)
	}
	return nil
}

// failed handles a block that could not be executed or saved. What CometBFT
// does with an error depends on who asked: the handshake returns it,
// consensus recovers from its panic and stops, but block sync would end the
// process. That goroutine waits here for the end instead.
func (e *Engine) failed(err error) error {
	if e.handshaking {
		return err
	}
	e.setHalted(err)
	if e.consR.WaitSync() {
		<-e.stop
		runtime.Goexit()
	}
	return err
}

func (e *Engine) setHalted(err error) {
	if e.halted.CompareAndSwap(nil, &haltError{err}) {
		l := e.log
		if p := (*panicError)(nil); errors.As(err, &p) {
			l = l.With("stack", string(p.stack))
		}
		l.Error("THE LEDGER HAS HALTED: nothing is committed until it is repaired and restarted; charging stays under local control", "err", err)
		close(e.halt)
	}
}

// Halted returns why the ledger stopped, or nil. The error wraps ErrHalted.
func (e *Engine) Halted() error {
	if h := e.halted.Load(); h != nil {
		return fmt.Errorf("%w: %w", ErrHalted, h.err)
	}
	return nil
}

// Close gives back what Open took, when Run is not going to be called. After
// Run it does nothing.
func (e *Engine) Close() error {
	if !e.started.CompareAndSwap(false, true) {
		return nil // Run closes
	}
	return e.close()
}

// close stops what runs and closes the stores.
func (e *Engine) close() error {
	close(e.stop) // first: whoever waits for a block, or for the end, lets go
	e.hub.close()
	var errs []error
	if e.sw != nil && e.sw.IsRunning() {
		for _, r := range e.handlers {
			for _, d := range r.GetChannels() {
				e.cfg.Host.RemoveStreamHandler(lp2p.ProtocolID(d.ID))
			}
		}
		if e.broken {
			// CometBFT would wait for routines that the failed start has
			// never begun. The process is about to end.
			go func() { _ = e.sw.Stop() }()
		} else {
			errs = append(errs, e.sw.Stop())
		}
	}
	if e.bus != nil && e.bus.IsRunning() {
		errs = append(errs, e.bus.Stop())
	}
	if e.conns != nil && e.conns.IsRunning() {
		errs = append(errs, e.conns.Stop())
	}
	if e.app != nil {
		e.app.close()
	}
	return errors.Join(append(errs, e.stores.close())...)
}
