package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board/access"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/live"
	"github.com/joulegate/joulegate/board/mqtt"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/board/update"
	"github.com/joulegate/joulegate/board/watchdog"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/passbook"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/guard/warden"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/p2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
)

// gateway is one running gateway: the parts, and which hand reaches which.
//
//	devices ─readings─► station ─records─► outbox ─► journal, net, ledger
//	   ▲ relays, limits ─┘  │ snapshots       ledger ─blocks─► feed ─► station, roster
//	                        ▼                                    └──► page, MQTT
//	                       live ─► panel, mqtt
type gateway struct {
	cfg         config.Config
	settings    *settings
	state       state
	log         *slog.Logger
	started     time.Time
	genesis     chain.Genesis
	genesisHash chain.Hash
	id          identity
	self        chain.Key

	lock          *journal.Lock // of the state folder; it ends with whoever holds this
	roster        *roster
	net           *p2p.Node
	journal       *journal.Journal
	ledger        *consensus.Engine
	passbook      *passbook.Book // what the ledger does to accounts
	feed          *feed
	outbox        *outbox
	spool         *mqtt.Spool // events until the broker has them
	telling       sync.Mutex  // of own events, by one at a time
	devices       *devices
	commissioning commissioning // whether a person is at the gateway
	trials        trials        // what he has tried
	button        drivers.Input // that begins it; nil: none
	station       *station.Station
	watch         *watchdog.Watchdog
	live          *live.Hub
	mqtt          *mqtt.Service
	panel         *panel.Server
	readers       []*access.Reader
	metrics       *prometheus.Registry
	warden        *warden.Warden // nil: the guard is off
	filter        *packetFilter  // of the guard; nil: it is off
	needed        *needed        // what the guard spares; nil: it is off
	culprits      culprits       // neighbours that the guard may shut out
	feeder        *feederLink    // nil: the feeder is not shared by a leader
	updater       *update.Updater
	renew         func()         // ends this program for another; set by run
	posted        posted         // what neighbours expect to sell
	dimmed        ledger.DimView // the ledger's order that the station has
}

// gossipTopic carries signed gateway blocks of one microgrid.
func gossipTopic(chainID string) string { return "joulegate/blocks/1/" + chainID }

// newGateway builds a gateway and takes everything that can be in use:
// folders, addresses, lines, pins. Nothing moves before run.
func newGateway(ctx context.Context, set *settings, st state, log *slog.Logger) (_ *gateway, err error) {
	cfg := set.cfg
	g := &gateway{cfg: cfg, settings: set, state: st, log: log, started: time.Now(), live: live.New(), posted: posted{offer: map[chain.Key]chain.Offer{}}, metrics: prometheus.NewRegistry()}
	var opened []func()
	defer func() {
		if err != nil {
			for i := len(opened) - 1; i >= 0; i-- {
				opened[i]()
			}
		}
	}()
	g.metrics.MustRegister(gatewayMetrics{g}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	// Who we are, and which microgrid this is.
	doc, genesis, hash, err := consensus.ReadGenesis(st.genesis())
	if g.genesis, g.genesisHash = genesis, hash; errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: found a microgrid with 'joulegate grid create' or join one with 'joulegate grid join TOKEN'", st.genesis())
	} else if err != nil {
		return nil, err
	}
	if g.lock, err = journal.LockDir(string(st)); err != nil {
		return nil, err
	}
	opened = append(opened, func() { _ = g.lock.Unlock() })
	if g.id, err = loadIdentity(st); err != nil {
		return nil, err
	}
	g.self = keys.Public(g.id.device)
	psk, err := readPSK(st)
	if err != nil {
		return nil, err
	}
	book, err := readBook(st)
	if err != nil {
		return nil, err
	}
	for _, f := range g.genesis.Members {
		book = append(book, f.Member)
	}
	g.roster = newRoster(g.self, book)

	// The network carries gossip, catch-up and the ledger's votes.
	g.net, err = p2p.New(p2p.Config{
		Key: g.id.device, PSK: psk, Listen: cfg.P2P.Listen, Allow: g.roster.allow, Guest: g.roster.guest, Book: g.roster.book,
		Connected: func(peer.ID) { g.journal.Nudge() }, MDNS: mdnsName(cfg, g.genesis.ChainID), Log: log.With("part", "p2p"),
	})
	if err != nil {
		return nil, err
	}
	opened = append(opened, func() { g.net.Close() })

	// The journal: own blocks first on the disk, neighbours' copies beside.
	if err := os.MkdirAll(st.receipts(), 0o700); err != nil {
		return nil, err
	}
	restored, err := st.restoredAt()
	if err != nil {
		return nil, err
	}
	g.journal, err = journal.Open(st.journal(), journal.Config{
		ChainID: g.genesis.ChainID, Key: g.id.device, Member: g.roster.active, Neighbours: g.neighbours,
		Known: g.knownPosition, Retire: g.retired, Stored: g.neighbourBlock, Fresh: freshDevice(st), Restored: restored, Log: log.With("part", "journal"),
	})
	if err != nil {
		return nil, err
	}
	opened = append(opened, func() { g.journal.Close() })
	if g.spool, err = mqtt.OpenSpool(g.journal, fmt.Sprint(restored), time.Now()); err != nil {
		return nil, err
	}
	if g.warden, err = g.newWarden(); err != nil {
		return nil, err
	}

	// The ledger, on the same host, and the book of what it does to accounts.
	g.passbook, err = passbook.Open(passbook.Config{Dir: st.path("statements"), ChainID: g.genesis.ChainID, Log: log.With("part", "statements")})
	if err != nil {
		return nil, err
	}
	opened = append(opened, func() { g.passbook.Close() })
	g.ledger, err = consensus.Open(ctx, consensus.Config{
		Home: st.consensus(), GenesisFile: st.genesis(), Host: g.net.Host(),
		Neighbours: g.ledgers, SnapshotBehind: cfg.Ledger.SnapshotBehind, Pause: g.uncharged, Movements: g.passbook.Add, Events: g.ledgerEvents,
		KeepBlocks: time.Duration(cfg.Ledger.KeepDays) * 24 * time.Hour,
		Timing:     consensus.Timing{Commit: cfg.Ledger.TimeoutCommit.D()}, Log: log.With("part", "ledger"),
	})
	if err != nil {
		return nil, err
	}
	opened = append(opened, func() { g.ledger.Close() })

	topic := gossipTopic(g.genesis.ChainID)
	if err := g.net.Subscribe(topic, g.gossip); err != nil {
		return nil, err
	}
	g.net.Handle(journal.Protocol, journal.MaxRequest, func(ctx context.Context, _ peer.ID, req []byte) ([]byte, error) {
		return g.journal.Serve(ctx, req)
	})
	g.net.Handle(consensus.SyncProtocol, consensus.MaxSyncRequest, func(ctx context.Context, _ peer.ID, req []byte) ([]byte, error) {
		return g.ledger.Serve(ctx, req)
	})
	g.net.Handle(feederProtocol, maxFeeder, g.answerFeeder)
	g.net.HandleGuest(joinProtocol, chain.MaxTxBytes, g.admit)
	g.outbox = &outbox{self: g.self, topic: topic, stored: g.ownEvents, journal: g.journal, net: g.net, ledger: g.ledger, log: log.With("part", "outbox"), wake: make(chan struct{}, 1), open: make(chan struct{})}

	// Meters, pins and the loop that owns them.
	if g.devices, err = openDevices(cfg, log); err != nil {
		return nil, err
	}
	opened = append(opened, g.devices.close)
	sc, err := station.FromConfig(cfg)
	if err != nil {
		return nil, err
	}
	sc.ChainID, sc.Device, sc.SlotSeconds = g.genesis.ChainID, g.self, g.genesis.SlotSeconds
	sc.Outbox, sc.Store, sc.Publisher, sc.Receipt = g.outbox, stationStore{g.journal}, g.live, g.receipt
	sc.Now, sc.Log = func() time.Duration { return time.Since(g.started) }, log.With("part", "station")
	sc.Verified = g.devices.reflex.verified
	sc.By, sc.PowerReturned, sc.Founded = actor(cfg), powerReturned(), doc.GenesisTime.Add(-clockLeeway)
	if err := g.devices.addChargers(cfg, sc.Chargers); err != nil {
		return nil, err
	}
	g.feeder, err = newFeederLink(cfg)
	if err != nil {
		return nil, err
	}
	if g.feeder != nil {
		sc.Lease = g.feeder.caps
	}
	statements := vouch(cfg, g.self, time.Now(), sc.Chargers)
	if in := cfg.Dimming.Pin; in != "" {
		if sc.DimContact, err = openPin(g.devices.pins, in, inputPin); err != nil {
			return nil, fmt.Errorf("dimming.pin: %w", err)
		}
	}
	if in := cfg.Button; in != "" {
		if g.button, err = openPin(g.devices.pins, in, inputPin); err != nil {
			return nil, fmt.Errorf("commission_button: %w", err)
		}
	}
	if g.station, err = station.New(sc); err != nil {
		return nil, err
	}
	if g.watch, err = newWatchdog(cfg, g.devices.pins, g.station, log.With("part", "watchdog")); err != nil {
		return nil, err
	}
	if err := g.devices.reflex.guard(g.devices.pins, g.station); err != nil {
		return nil, err
	}
	for _, v := range statements {
		g.station.Note("charger.statement", v.severity, v.charger, v.text)
	}
	deliver := func(r meter.Reading) { g.station.Reading(r) }
	g.openTrials()
	g.commissionByFile(bootFiles)
	if err := g.devices.addMeters(cfg, g.started, g.resumeMeters(), deliver, log.With("part", "meter")); err != nil {
		return nil, err
	}

	g.outbox.online = g.station.LedgerOnline

	// Whoever follows the ledger.
	g.feed = &feed{
		ledger: g.ledger, roster: g.roster, self: g.self, log: log.With("part", "feed"),
		sessions: g.station.LedgerSession, open: g.station.Sessions, revoked: g.net.Recheck, block: func(consensus.BlockEvent) { g.outbox.nudge() },
		refusals: map[chain.ID]string{}, watchers: map[chan panel.Update]struct{}{},
	}

	if g.updater, err = g.newUpdater(set.at); err != nil {
		return nil, err
	}

	// People: cards and codes, MQTT, the page, the commands.
	if g.readers, err = g.newReaders(); err != nil {
		return nil, err
	}
	if g.mqtt, err = g.newMQTT(); err != nil {
		return nil, err
	}
	opened = append(opened, g.mqtt.Close)
	if err := g.writeLabel(); err != nil {
		return nil, fmt.Errorf("label: %w", err)
	}
	page, err := pageKey(st)
	if err != nil {
		return nil, err
	}
	g.panel, err = panel.New(panel.Config{
		Backend: backend{g}, Settings: set, SettingsKey: page, Listen: cfg.Panel.Listen, Hosts: []string{hostOf(g.self) + ".local"}, Socket: st.control(), Log: log.With("part", "panel"), Metrics: g.metrics, Verifier: verifierPage(),
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// run serves until ctx ends or a part that the gateway cannot do without
// fails. It stops the station first, because people come first, and the
// ledger and the stores last, because they must hold what the actuators did.
func (g *gateway) run(ctx context.Context) error {
	ctx, reconfigure := context.WithCancelCause(ctx)
	defer reconfigure(nil)
	g.follow(reconfigure)
	g.renew = func() { reconfigure(errUpdated) }
	// More goroutines may run at once than there are processors, so that the
	// kernel decides who waits and not Go: it wakes those who have slept, as
	// the control loop has, before those who are always busy. Three for each
	// were best of 1.5 to 8; the collector waits for all of them.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 3*runtime.NumCPU())))
	// Each layer has its own context, cancelled when the layer above is done.
	stores, stopStores := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStores()
	lower, lowerCtx := errgroup.WithContext(stores)
	// The network carries the ledger's votes: it ends after the ledger.
	network, stopNetwork := context.WithCancel(context.WithoutCancel(stores))
	defer stopNetwork()
	lower.Go(func() error { return quiet(lowerCtx, g.net.Run(network)) })
	lower.Go(func() error { return quiet(lowerCtx, g.journal.Run(lowerCtx)) })
	lower.Go(func() error {
		defer stopNetwork()
		err := g.ledger.Run(lowerCtx)
		if errors.Is(err, consensus.ErrReopen) { // the next start does
			g.log.Warn("the gateway starts anew", "why", err)
			reconfigure(err)
			<-lowerCtx.Done()
			return nil
		}
		return quiet(lowerCtx, err)
	})
	lower.Go(func() error { return g.passbook.Run(lowerCtx, movements{g.ledger}) })
	lower.Go(func() error { return quiet(lowerCtx, followed(g.feed.run(lowerCtx))) })
	lower.Go(func() error {
		// Nothing is signed before the neighbours have been asked.
		if err := g.recover(lowerCtx); err != nil {
			return err
		}
		return quiet(lowerCtx, g.outbox.run(lowerCtx))
	})

	control, stopControl := context.WithCancel(ctx)
	defer stopControl()
	context.AfterFunc(lowerCtx, stopControl) // a failed store stops the actuators too
	upper, upperCtx := errgroup.WithContext(control)
	bus, stopBus := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBus()
	busDone := make(chan error, 1)
	go func() { busDone <- g.devices.run(bus) }()
	// Those who watch are fed until the station has ended, because it still
	// has relays to open, and learn how it ended.
	watch, stopWatch := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWatch(nil)
	context.AfterFunc(upperCtx, func() {
		if startsAnew(context.Cause(ctx)) { // the process goes on
			g.watch.Renewing()
		} else {
			g.watch.Stopping()
		}
	})
	upper.Go(func() error { return g.watch.Run(watch) })
	upper.Go(func() error {
		// The station's last act needs the bus: it offers 0 A and reads the
		// final register.
		defer stopBus()
		err := quiet(upperCtx, g.station.Run(upperCtx))
		stopWatch(err)
		return err
	})
	upper.Go(func() error { g.station.Note("gateway.started", 1, g.cfg.Name, provenance(g.cfg)); return nil })
	upper.Go(func() error {
		select {
		case err := <-g.devices.reflex.lost:
			return err
		case <-upperCtx.Done():
			return nil
		}
	})
	upper.Go(func() error { return quiet(upperCtx, g.panel.Run(upperCtx)) })
	for _, r := range g.readers {
		upper.Go(func() error { return runReader(upperCtx, r, g.log) })
	}
	upper.Go(func() error { return quiet(upperCtx, g.mqtt.Run(upperCtx)) })
	upper.Go(func() error { return followed(g.report(upperCtx)) })
	upper.Go(func() error { return g.settings.watch(upperCtx) })
	upper.Go(func() error { return g.updater.Run(upperCtx) })
	upper.Go(func() error { return quiet(upperCtx, g.runGuard(upperCtx)) })
	upper.Go(func() error { return g.watchTrials(upperCtx) })
	upper.Go(func() error { return quiet(upperCtx, g.announce(upperCtx)) })
	if g.button != nil {
		upper.Go(func() error { return g.watchButton(upperCtx, g.button) })
	}
	upper.Go(func() error { return followed(g.offer(upperCtx)) })
	upper.Go(func() error { return followed(g.plans(upperCtx)) })
	if g.feeder != nil {
		upper.Go(func() error { return g.lease(upperCtx) })
	}

	err := upper.Wait()
	stopBus()
	err = errors.Join(err, <-busDone)
	g.saveMeters()
	stopStores()
	err = errors.Join(err, lower.Wait())
	g.devices.close()
	err = errors.Join(err, g.passbook.Close(), g.journal.Close(), g.net.Close(), g.lock.Unlock())
	if cause := context.Cause(ctx); err == nil && startsAnew(cause) {
		return cause
	}
	return err
}

// startsAnew reports whether a gateway has ended to begin again.
func startsAnew(err error) bool {
	return errors.Is(err, errReconfigured) || errors.Is(err, errUpdated) || errors.Is(err, consensus.ErrReopen)
}

// followed drops the error of a part that ended because the ledger did: the
// ledger says why.
func followed(err error) error {
	if errors.Is(err, consensus.ErrClosed) {
		return nil
	}
	return err
}

// recoverWait is how long a starting gateway waits for neighbours before it
// opens a new epoch.
const recoverWait = 8 * time.Second

// recover asks the neighbours for this gateway's own newest block and decides
// where its chain continues.
func (g *gateway) recover(ctx context.Context) error {
	others := len(g.roster.book())
	deadline := time.Now().Add(recoverWait)
	for len(g.neighbours()) < others && time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	r, err := g.journal.Recover(ctx, g.neighbours())
	if err != nil {
		return quiet(ctx, err)
	}
	if err := usedDevice(g.state); err != nil {
		return err
	}
	close(g.outbox.open)
	g.log.Info("own chain continues", "block", r.Next, "neighbours", r.Answered, "adopted", r.Adopted, "new_epoch", r.NewEpoch)
	return nil
}

// knownPosition is where the ledger saw this gateway's chain last.
func (g *gateway) knownPosition() (p chain.Position) {
	_ = g.ledger.View(func(st ledger.State) {
		if h, ok := ledger.HeadOf(st, g.self); ok {
			p = h.Position
		}
	})
	return p
}

// retired tells the journal how far the ledger holds this gateway's chain and
// which own blocks need not stay, by the ledger's clock.
func (g *gateway) retired() (booked chain.Position, before time.Time) {
	if g.ledger == nil { // the journal is opened first
		return booked, before
	}
	s := g.ledger.Status()
	if days := g.cfg.Ledger.JournalDays; days > 0 && s.Height > 0 {
		before = s.BlockTime.AddDate(0, 0, -int(days))
	}
	return g.knownPosition(), before
}

// neighbours returns the connected members' journals.
func (g *gateway) neighbours() []journal.Neighbour {
	var out []journal.Neighbour
	for _, p := range g.net.Peers() {
		if !p.Connected || p.Guest {
			continue
		}
		id := p.ID
		out = append(out, journal.Neighbour{Name: g.roster.name(p.Key), Ask: func(ctx context.Context, req []byte) ([]byte, error) {
			return g.net.Request(ctx, id, journal.Protocol, req, journal.MaxReply)
		}})
	}
	return out
}

// ledgers returns the connected members' ledgers.
func (g *gateway) ledgers() []consensus.Neighbour {
	var out []consensus.Neighbour
	for _, p := range g.net.Peers() {
		if !p.Connected || p.Guest {
			continue
		}
		id := p.ID
		out = append(out, consensus.Neighbour{Name: g.roster.name(p.Key), Ask: func(ctx context.Context, req []byte) ([]byte, error) {
			return g.net.Request(ctx, id, consensus.SyncProtocol, req, consensus.MaxSyncReply)
		}})
	}
	return out
}

// uncharged returns when no car is being charged: to begin again opens the
// relays.
func (g *gateway) uncharged(ctx context.Context) {
	for len(g.station.Sessions()) > 0 {
		g.log.Info("the gateway starts anew once no session is open", "sessions", len(g.station.Sessions()))
		select {
		case <-ctx.Done():
			return
		case <-time.After(chargedEvery):
		}
	}
}

const chargedEvery = 20 * time.Second

// gossip judges a block that a neighbour passed on.
func (g *gateway) gossip(_ context.Context, from peer.ID, data []byte) p2p.Verdict {
	v, err := g.journal.Accept(data)
	if err != nil {
		g.log.Debug("gossip", "peer", from, "verdict", v, "why", err)
		if v == journal.Reject {
			g.blame(from, err)
		}
	}
	switch v {
	case journal.Accept:
		return p2p.Accept
	case journal.Reject:
		return p2p.Reject
	}
	return p2p.Ignore
}

// stationStore keeps the station's crash state in the journal's store.
type stationStore struct{ *journal.Journal }

const stationKey = "station"

func (s stationStore) Load() ([]byte, error) { return s.Journal.Load(stationKey) }
func (s stationStore) Save(b []byte) error   { return s.Journal.Save(stationKey, b) }

// isMember reports whether the ledger knows this gateway as active.
func (g *gateway) isMember() (ok bool) {
	_ = g.ledger.View(func(st ledger.State) {
		m, found := ledger.MemberOf(st, g.self)
		ok = found && m.Active
	})
	return ok
}

func mdnsName(cfg config.Config, chainID string) string {
	if !cfg.P2P.MDNS {
		return ""
	}
	return "_joulegate-" + chainID + "._udp"
}

// pageKey is what sign-ins on the page are made with.
func pageKey(st state) ([]byte, error) {
	pass, err := passphrase()
	if err != nil {
		return nil, err
	}
	k, _, err := keys.LoadOrCreateDevice(st.path("keys", "page.key"), pass)
	if err != nil {
		return nil, fmt.Errorf("key of the page: %w", err)
	}
	return k.Seed(), nil
}
