package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/ledger"
)

// feed follows the ledger's blocks and tells everybody whom they concern: the
// roster, the station, and watchers of the page.
type feed struct {
	ledger *consensus.Engine
	roster *roster
	self   chain.Key
	log    *slog.Logger

	sessions func(id chain.ID, held bool, why string) // the ledger holds money for a session of this gateway, or has ended or refused it
	open     func() []chain.ID                        // sessions that this gateway believes open
	revoked  func()                                   // the membership has changed
	block    func(consensus.BlockEvent)               // after everything else

	mu       sync.Mutex
	blocks   []panel.Block       // the newest first
	refusals map[chain.ID]string // sessions of this gateway that the ledger refused
	order    []chain.ID          // of refusals, oldest first
	watchers map[chan panel.Update]struct{}
}

const (
	feedBuffer   = 256 // blocks waiting for the feed; beyond it re-reads the state and loses only lines of the display
	feedRecent   = 32  // blocks shown
	feedRefusals = 64  // remembered; the oldest is forgotten
	feedWatchers = 64  // more are refused
	feedQueue    = 32  // updates per watcher; the oldest is dropped
	feedWords    = 8   // of one block
)

func (f *feed) run(ctx context.Context) error {
	events, stop, err := f.ledger.Subscribe(feedBuffer)
	if err != nil {
		return err
	}
	defer stop()
	f.sync()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-events:
			if !ok {
				return nil
			}
			f.take(e)
		}
	}
}

// sync brings everybody up to the present state: after start, and whenever
// membership may have changed.
func (f *feed) sync() {
	var mine []ledger.SessionView
	err := f.ledger.View(func(st ledger.State) {
		f.roster.update(ledger.Members(st), ledger.Invitations(st))
		for _, s := range ledger.Sessions(st, ledger.SessionHeld, ledger.SessionCharging) {
			if s.Gateway == f.self {
				mine = append(mine, s)
			}
		}
		// A session that this gateway believes open may have ended on the
		// ledger while it was away. One that the ledger does not know may
		// still be on its way there.
		for _, id := range f.open() {
			if s, ok := ledger.SessionOf(st, id); ok && s.State != ledger.SessionHeld && s.State != ledger.SessionCharging {
				mine = append(mine, s)
			}
		}
	})
	if err != nil {
		f.log.Error("ledger state cannot be read", "err", err)
		return
	}
	f.revoked()
	for _, s := range mine {
		f.tell(s)
	}
}

// tell tells the station what the ledger says of one of its sessions.
func (f *feed) tell(s ledger.SessionView) {
	if s.State == ledger.SessionHeld || s.State == ledger.SessionCharging {
		f.sessions(s.ID, true, "")
		return
	}
	f.sessions(s.ID, false, "the session is "+s.State.String()+" on the ledger")
}

func (f *feed) take(e consensus.BlockEvent) {
	membership := false
	rejected := 0
	for _, x := range e.Events {
		kind, _, _ := strings.Cut(x.Code, ".")
		switch {
		case kind == "member" || kind == "grid":
			membership = true
		case x.Code == "session.refused":
			f.refuse(x)
		case kind == "session":
			f.session(x)
		case x.Code == "record.refused":
			rejected++
		}
		f.log.Log(context.Background(), eventLevel(x.Code), "ledger", "event", x.Code, "subject", x.Subject, "detail", x.Detail, "height", e.Height)
	}
	if membership {
		f.sync()
	}
	b := panel.Block{Height: e.Height, Time: e.Time, Txs: e.Txs, Rejected: rejected, StateHash: e.AppHash}
	if full, err := f.ledger.Block(e.Height); err == nil {
		b.Proposer = f.proposer(full.Proposer)
		b.What = f.words(full.Txs)
	}
	f.publish(b)
	if f.block != nil {
		f.block(e)
	}
}

func eventLevel(code string) slog.Level {
	switch code {
	case "block.equivocation", "ledger.violation":
		return slog.LevelError
	case "record.refused", "meter.suspect", "meter.quarantined", "session.suspect", "session.refused", "session.ended_by_rule", "session.excess",
		"payout.overdue", "dispute.opened", "dispute.defaulted", "rules.proposed", "rules.changed", "rules.dropped":
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (f *feed) session(x ledger.Event) {
	var id chain.ID
	if id.UnmarshalText([]byte(x.Subject)) != nil {
		return
	}
	var s ledger.SessionView
	var ok bool
	if f.ledger.View(func(st ledger.State) { s, ok = ledger.SessionOf(st, id) }) != nil || !ok || s.Gateway != f.self {
		return
	}
	f.tell(s)
}

func (f *feed) refuse(x ledger.Event) {
	var id chain.ID
	if id.UnmarshalText([]byte(x.Subject)) != nil {
		return
	}
	f.mu.Lock()
	if _, known := f.refusals[id]; !known {
		f.refusals[id] = x.Detail
		f.order = append(f.order, id)
		if len(f.order) > feedRefusals {
			delete(f.refusals, f.order[0])
			f.order = f.order[1:]
		}
	}
	f.mu.Unlock()
	f.sessions(id, false, x.Detail)
}

// refusal returns why the ledger refused a session.
func (f *feed) refusal(id chain.ID) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.refusals[id]
	return s, ok
}

// proposer names the member whose validator address a block carries.
func (f *feed) proposer(addr string) string {
	for _, m := range f.roster.now.Load().byKey {
		sum := sha256.Sum256(m.Validator[:])
		if strings.EqualFold(hex.EncodeToString(sum[:20]), addr) {
			return m.Name
		}
	}
	return ""
}

// words tells a block's transactions.
func (f *feed) words(txs [][]byte) (out []string) {
	for i, raw := range txs {
		if len(out) == feedWords-1 && i < len(txs)-1 {
			return append(out, fmt.Sprintf("and %d more", len(txs)-i))
		}
		e, err := chain.OpenEnvelope(raw)
		if err != nil {
			out = append(out, "an unreadable transaction")
			continue
		}
		switch e.Type {
		case chain.EnvelopeBlock:
			var b chain.Block
			if chain.Unmarshal(e.Body, &b) == nil {
				out = append(out, f.roster.name(b.Author)+": "+strings.Join(kinds(b.Records), ", "))
			}
		case chain.EnvelopeTx:
			var t chain.Tx
			if chain.Unmarshal(e.Body, &t) == nil {
				out = append(out, txWord(t.Kind))
			}
		}
	}
	return out
}

var recordWords = map[chain.RecordKind]string{
	chain.KindOffer: "offer", chain.KindMeter: "meter reading", chain.KindSessionOpen: "session opened",
	chain.KindSessionMeter: "energy charged", chain.KindSessionStop: "session stopped", chain.KindMeterCorrection: "meter corrected", chain.KindEvent: "event",
}

// kinds counts records by kind, in words, in the order of appearance.
func kinds(records []chain.Record) []string {
	count := map[string]int{}
	var order []string
	for _, r := range records {
		w := recordWords[r.Kind]
		if w == "" {
			w = fmt.Sprintf("record of kind %d", r.Kind)
		}
		if count[w]++; count[w] == 1 {
			order = append(order, w)
		}
	}
	for i, w := range order {
		if n := count[w]; n > 1 {
			order[i] = fmt.Sprintf("%d x %s", n, w)
		}
	}
	return order
}

func txWord(k chain.TxKind) string {
	words := map[chain.TxKind]string{
		chain.TxMint: "operator: money minted", chain.TxBurn: "operator: money burned", chain.TxTransfer: "transfer", chain.TxInvite: "operator: invitation",
		chain.TxJoin: "a gateway joined", chain.TxRevoke: "operator: membership revoked", chain.TxReplace: "operator: a gateway's vote for its new validator key", chain.TxTariff: "operator: tariff", chain.TxDim: "operator: order to dim",
		chain.TxMandate: "mandate signed", chain.TxMandateRevoke: "mandate revoked", chain.TxOffline: "reserve for a gateway",
		chain.TxJoint: "several people agreed", chain.TxRules: "operator: rules", chain.TxPayout: "payout asked", chain.TxPayoutPaid: "operator: payout paid",
		chain.TxPayoutCancel: "payout cancelled", chain.TxRefund: "operator: refund", chain.TxDispute: "bill disputed", chain.TxAnswer: "dispute answered",
		chain.TxResolve: "dispute resolved", chain.TxInvoice: "operator: invoice", chain.TxPeriods: "operator: billing periods", chain.TxProfile: "profile", chain.TxMeterApproval: "operator: meter approved", chain.TxMeterRelease: "meter released", chain.TxAttest: "auditor: attestation",
		chain.TxTariffs: "operator: tariff table", chain.TxZones: "operator: network fees", chain.TxFeature: "operator: a feature switched",
		chain.TxFirmOffer: "firm offer", chain.TxFirmTake: "firm offer accepted", chain.TxFirmCancel: "firm offer withdrawn", chain.TxCorrection: "operator: a correction decided",
	}
	if w := words[k]; w != "" {
		return w
	}
	return fmt.Sprintf("transaction of kind %d", k)
}

func (f *feed) publish(b panel.Block) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocks = slices.Insert(f.blocks, 0, b)
	f.blocks = f.blocks[:min(len(f.blocks), feedRecent)]
	for w := range f.watchers {
		send(w, panel.Update{Event: panel.UpdateBlock, Data: b})
	}
}

// send drops the oldest update of a slow watcher.
func send(w chan panel.Update, u panel.Update) {
	for {
		select {
		case w <- u:
			return
		default:
		}
		select {
		case <-w:
		default:
		}
	}
}

func (f *feed) recent() []panel.Block {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]panel.Block{}, f.blocks...)
}

var errWatchers = errors.New("too many watchers")

// watch returns updates, beginning with the newest block.
func (f *feed) watch() (<-chan panel.Update, func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.watchers) >= feedWatchers {
		return nil, nil, errWatchers
	}
	w := make(chan panel.Update, feedQueue)
	if len(f.blocks) > 0 {
		w <- panel.Update{Event: panel.UpdateBlock, Data: f.blocks[0]}
	}
	f.watchers[w] = struct{}{}
	return w, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, w)
	}, nil
}
