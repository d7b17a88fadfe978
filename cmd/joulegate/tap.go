package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board/access"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

// taps starts and stops sessions for cards and codes.
//
// A tap asks nobody for permission that is not given already: the payer has
// signed a mandate, which is in this gateway's own copy of the ledger. What is
// left to find out is whether the money is there. The ledger says so within a
// second or two. If it cannot be reached, the reserve answers: money that the
// payer has set apart on the ledger for this gateway alone, so that it is there
// whatever other gateways do meanwhile.
//
//	tap ─► mandate? ─► quote, signed by the token ─► SessionOpen on the disk
//	                        ├─ the ledger holds the money ─────────────► relay
//	                        └─ silent for tapPatience, reserve covers it ─► relay
type taps struct {
	g   *gateway
	log *slog.Logger

	mu      sync.Mutex
	started map[chain.Key]chain.ID // sessions begun here since the start, by token
	pending []pendingTap           // begun on a reserve, unknown to the ledger
}

// pendingTap is a session that the ledger has to hear of yet.
type pendingTap struct {
	Session chain.ID      `cbor:"1,keyasint"`
	Token   chain.Key     `cbor:"2,keyasint"`
	Payer   chain.Account `cbor:"3,keyasint"`
	Hold    chain.Nano    `cbor:"4,keyasint"`
	Created int64         `cbor:"5,keyasint"` // Unix ms
}

const (
	tapPatience = time.Second          // with the ledger, before a reserve answers instead
	tapLeast    = meter.WattHour(50)   // less is not worth a session
	tapReserve  = meter.WattHour(1000) // a reserve that pays for less does not limit a session
	clockSlack  = 10 * 60 * 1000       // ms that this clock may be behind the ledger's
	tapsKey     = "taps"               // in the journal's store
	maxTaps     = 256                  // pending ones; then no tap is taken without the ledger

	// blindLimit is how old the gateway's copy of the ledger may be when it
	// charges against a reserve. A payer's notice is longer by far, so what is
	// seen here is still there.
	blindLimit = ledger.OfflineNoticeMs / 2
)

// cardsSecret is the operator's key for cards, from its sealed file.
func cardsSecret(st state, create bool) (secret [32]byte, err error) {
	pass, err := passphrase()
	if err != nil {
		return secret, err
	}
	var key ed25519.PrivateKey
	if create {
		key, _, err = keys.LoadOrCreateDevice(st.cardsKey(), pass)
	} else {
		key, err = keys.LoadDevice(st.cardsKey(), pass)
	}
	if err != nil {
		return secret, fmt.Errorf("key for cards: %w", err)
	}
	return [32]byte(key.Seed()), nil
}

func (s state) cardsKey() string { return s.path("keys", "cards.key") }
func (s state) cards() string    { return s.path("keys", "cards.json") }

// newReaders makes the readers of the configuration.
func (g *gateway) newReaders() ([]*access.Reader, error) {
	if len(g.cfg.Readers) == 0 {
		return nil, nil
	}
	secret, err := cardsSecret(g.state, true)
	if err != nil {
		return nil, err
	}
	book, err := access.OpenBook(g.state.cards(), secret)
	if err != nil {
		return nil, err
	}
	t := &taps{g: g, log: g.log.With("part", "tap"), started: map[chain.Key]chain.ID{}}
	if err := t.load(); err != nil {
		return nil, err
	}
	var out []*access.Reader
	for _, r := range g.cfg.Readers {
		rd, err := access.New(access.Config{
			Device: r.Device, Socket: r.Socket, Book: book, Desk: desk{t, r}, Log: g.log.With("part", "reader", "charger", r.Charger),
		})
		if err != nil {
			return nil, err
		}
		out = append(out, rd)
	}
	return out, nil
}

func (t *taps) load() error {
	b, err := t.g.journal.Load(tapsKey)
	if err != nil || b == nil {
		return err
	}
	if err := chain.Unmarshal(b, &t.pending); err != nil {
		return fmt.Errorf("pending taps: %w", err)
	}
	for _, p := range t.pending { // the station asks again for the sessions it resumes
		t.g.station.LedgerSession(p.Session, true, "the reserve for this gateway pays")
	}
	return nil
}

// desk is where one reader's taps arrive.
type desk struct {
	*taps
	reader config.Reader
}

// terms is what the gateway's own copy of the ledger says about a token.
type terms struct {
	mandate ledger.MandateView
	known   bool
	balance chain.Nano
	retail  chain.NanoPerWh
	time    int64 // of the copy, Unix ms
}

func (t *taps) terms(token chain.Key) (v terms, err error) {
	err = t.g.ledger.View(func(st ledger.State) {
		if v.mandate, v.known = ledger.MandateOf(st, token); !v.known {
			return
		}
		v.balance = ledger.AccountOf(st, v.mandate.Payer).Balance
		v.retail, _ = ledger.TariffAt(st, chain.SlotAt(time.Now().UnixMilli(), t.g.genesis.SlotSeconds))
		v.time = ledger.StatusOf(st).TimeMs
	})
	return v, err
}

// Tap implements access.Desk: a second tap of the same token stops.
func (d desk) Tap(ctx context.Context, key ed25519.PrivateKey) (string, error) {
	token := keys.Public(key)
	if id, ok := d.open(token); ok {
		if err := d.g.station.Stop(ctx, id, chain.StopDriver); err != nil {
			return "", err
		}
		return "stopped " + id.String(), nil
	}
	v, err := d.terms(token)
	if err != nil {
		return "", err
	}
	if !v.known {
		return "", errors.New("nobody pays for this card or code: its payer has to sign a mandate")
	}
	now := time.Now()
	if err := v.mandate.Allows(&chain.Quote{Gateway: d.g.self, Cap: v.retail}, now.UnixMilli()); err != nil {
		return "", err // before anything is counted: this says why
	}
	d.mu.Lock()
	free, err := d.free(v.mandate.Payer)
	d.mu.Unlock()
	if err != nil {
		return "", err
	}
	blind := d.mayGoBlind(v, now) && free >= chain.Nano(v.retail)*chain.Nano(tapReserve)
	online := d.g.quorum()
	money := v.balance
	switch {
	case blind:
		money = free // never more, so that it can answer at any time
	case !online:
		return "", errors.New("the ledger cannot be reached, and no reserve is set apart for this gateway")
	}
	wh := min(d.reader.MaxWh, meter.WattHour(min(d.allowance(v, now), money)/chain.Nano(max(v.retail, 1))))
	if wh < tapLeast {
		return "", fmt.Errorf("the balance or the mandate's cap of today is used up: it pays for %d Wh", max(wh, 0))
	}
	q, err := d.g.station.Quote(ctx, d.reader.Charger, token, wh, v.retail, false)
	if err != nil {
		return "", err
	}
	if err := v.mandate.Allows(&q, q.Created); err != nil {
		return "", err
	}
	b := chain.Marshal(q)
	if err := d.g.station.Start(ctx, chain.SignedQuote{Quote: b, Sig: chain.Sign(key, chain.DomainQuote, b)}); err != nil {
		return "", err
	}
	d.mu.Lock()
	d.started[token] = q.ID
	d.mu.Unlock()
	if online {
		held, err := d.held(ctx, q.ID, blind)
		if err != nil || held {
			return "started " + q.ID.String(), err
		}
	}
	if err := d.vouch(v.mandate.Payer, &q); err != nil {
		return "", errors.Join(err, d.g.station.Stop(ctx, q.ID, chain.StopOperator))
	}
	return "started " + q.ID.String() + " without the ledger", nil
}

// open returns the session of a token that is open at this gateway.
func (t *taps) open(token chain.Key) (chain.ID, bool) {
	sessions := t.g.station.Sessions()
	t.mu.Lock()
	id, ok := t.started[token]
	for k, v := range t.started {
		if !slices.Contains(sessions, v) {
			delete(t.started, k)
		}
	}
	for _, p := range t.pending {
		if !ok && p.Token == token {
			id, ok = p.Session, true
		}
	}
	t.mu.Unlock()
	if ok && slices.Contains(sessions, id) {
		return id, true
	}
	ok = false
	_ = t.g.ledger.View(func(st ledger.State) { // begun before a restart
		for _, s := range sessions {
			if v, known := ledger.SessionOf(st, s); known && v.DriverKey == token {
				id, ok = s, true
			}
		}
	})
	return id, ok
}

// mayGoBlind reports whether a session under this mandate may begin without
// the ledger.
func (t *taps) mayGoBlind(v terms, now time.Time) bool {
	m := &v.mandate.Mandate
	// A code that can be used so many times may be used elsewhere just now.
	counted := m.Uses != 0 && m.Gateway != t.g.self
	// Without the time the session would be dated where no reserve pays.
	age := now.UnixMilli() - v.time
	return !counted && age > -clockSlack && age < blindLimit
}

// allowance is what the mandate lets one more session hold today.
func (t *taps) allowance(v terms, now time.Time) chain.Nano {
	const day = 24 * 3600 * 1000
	today := now.UnixMilli() / day
	left := v.mandate.Mandate.PerDay
	if v.mandate.Day == today {
		left -= v.mandate.Spent
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.pending {
		if p.Token == v.mandate.Mandate.Token && p.Created/day == today {
			left -= p.Hold
		}
	}
	return min(v.mandate.Mandate.PerTap, left)
}

// free is what is left of a payer's reserve here. It forgets pending sessions
// that the ledger has heard of, or will not take any more, at the same look at
// the ledger that tells the reserve: none is counted twice or not at all. mu is
// held.
func (t *taps) free(payer chain.Account) (left chain.Nano, err error) {
	now := time.Now().UnixMilli()
	err = t.g.ledger.View(func(st ledger.State) {
		t.pending = slices.DeleteFunc(t.pending, func(p pendingTap) bool {
			_, known := ledger.SessionOf(st, p.Session)
			_, refused := t.g.feed.refusal(p.Session)
			return known || refused || now-p.Created > ledger.OfflineNoticeMs
		})
		left = ledger.ReserveOf(st, payer, t.g.self).Amount
	})
	for _, p := range t.pending {
		if p.Payer == payer {
			left -= p.Hold
		}
	}
	return left, err
}

// held waits until the ledger holds the money of a session, or refuses.
// It returns false after tapPatience if a reserve can answer instead.
func (t *taps) held(ctx context.Context, id chain.ID, reserve bool) (bool, error) {
	blocks, stop, err := t.g.ledger.Subscribe(16)
	if err != nil {
		return false, err
	}
	defer stop()
	patience := time.NewTimer(tapPatience)
	defer patience.Stop()
	for {
		var known bool
		if err := t.g.ledger.View(func(st ledger.State) { _, known = ledger.SessionOf(st, id) }); err != nil || known {
			return known, err
		}
		if why, ok := t.g.feed.refusal(id); ok {
			return false, fmt.Errorf("the ledger does not hold the money: %s", why)
		}
		select {
		case <-ctx.Done():
			return false, errors.New("the ledger has not answered yet; charging starts when it does")
		case <-patience.C:
			if reserve {
				return false, nil
			}
		case <-blocks:
		case <-time.After(time.Second): // the refusal may come by another way than a block
		}
	}
}

// vouch lets a session begin on the payer's reserve. What it takes of it is on
// the disk first.
func (t *taps) vouch(payer chain.Account, q *chain.Quote) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	free, err := t.free(payer)
	switch {
	case err != nil:
		return err
	case free < q.Hold:
		return fmt.Errorf("the ledger cannot be reached, and the reserve at this gateway is %s %s", money(max(free, 0)), t.g.genesis.Currency)
	case len(t.pending) >= maxTaps:
		return fmt.Errorf("%d sessions wait for the ledger, the limit", len(t.pending))
	}
	pending := append(slices.Clip(t.pending), pendingTap{Session: q.ID, Token: q.Driver, Payer: payer, Hold: q.Hold, Created: q.Created})
	if err := t.g.journal.Save(tapsKey, chain.Marshal(pending)); err != nil {
		return err
	}
	t.pending = pending
	t.g.station.LedgerSession(q.ID, true, "the reserve for this gateway pays")
	t.g.station.Note("session.offline", 2, q.ID.String(), "began without the ledger, on the payer's reserve")
	return nil
}

// quorum reports whether this gateway sees enough validators for the ledger to
// go on: more than two thirds of the votes.
func (g *gateway) quorum() bool {
	st := g.ledger.Status()
	if st.Halted != "" || st.CatchingUp {
		return false
	}
	up := map[chain.Key]bool{g.self: true}
	for _, p := range g.net.Peers() {
		up[p.Key] = up[p.Key] || p.Connected && !p.Guest
	}
	device := map[chain.Key]chain.Key{}
	_ = g.ledger.View(func(s ledger.State) {
		for _, m := range ledger.Members(s) {
			device[m.Validator] = m.Device
		}
	})
	var votes, all int64
	for _, v := range st.Validators {
		if all += v.Power; up[device[v.Key]] {
			votes += v.Power
		}
	}
	return 3*votes > 2*all
}

// runReader serves one reader. A reader that cannot be served is no reason to
// stop a gateway.
func runReader(ctx context.Context, r *access.Reader, log *slog.Logger) error {
	if err := r.Run(ctx); ctx.Err() == nil {
		log.Error("a card reader cannot be served", "err", err)
	}
	return nil
}
