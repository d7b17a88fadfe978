package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/p2p"
)

// backend answers the page and the commands. It holds no state of its own.
type backend struct{ *gateway }

// view reads the ledger's last committed state.
func view[T any](b backend, f func(st ledger.State) T) (v T, err error) {
	err = b.ledger.View(func(st ledger.State) { v = f(st) })
	return v, err
}

func (b backend) Status(context.Context) (panel.Status, error) {
	s := b.ledger.Status()
	members, err := view(b, ledger.Members)
	if err != nil {
		return panel.Status{}, err
	}
	active := 0
	for _, m := range members {
		if m.Active {
			active++
		}
	}
	return panel.Status{
		Gateway: b.cfg.Name, Version: version, Device: b.self, Chain: b.genesis.ChainID, Currency: b.genesis.Currency,
		SlotSeconds: b.genesis.SlotSeconds, Started: b.started, Height: s.Height, StateHash: s.AppHash, BlockTime: s.BlockTime,
		Peers: len(b.connected()), Members: active, Broker: b.mqtt.Addr(), Basis: b.genesis.Basis,
	}, nil
}

func (b backend) Watch(ctx context.Context) (<-chan panel.Update, error) {
	snapshots, err := b.live.Watch(ctx)
	if err != nil {
		return nil, panel.Unavailable("%v", err)
	}
	blocks, unsubscribe, err := b.feed.watch()
	if err != nil {
		return nil, panel.Unavailable("%v", err)
	}
	out := make(chan panel.Update)
	go func() {
		defer close(out)
		defer unsubscribe()
		for {
			var u panel.Update
			select {
			case <-ctx.Done():
				return
			case s, ok := <-snapshots:
				if !ok {
					return
				}
				u = panel.Update{Event: panel.UpdateSnapshot, Data: s}
			case x, ok := <-blocks:
				if !ok {
					return
				}
				u = x
			}
			select {
			case out <- u:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (b backend) LedgerStatus(context.Context) (panel.LedgerStatus, error) {
	s := b.ledger.Status()
	st, err := view(b, func(st ledger.State) panel.LedgerStatus { return statusOf(st, s.Height, s.BlockTime, s.AppHash) })
	if err != nil {
		return st, err
	}
	j, n := b.journal.Counters(), b.net.Counters()
	st.First, st.Validator, st.Waiting, st.Blocks, st.Halted, st.CatchingUp = s.First, s.Voting, s.Mempool, b.feed.recent(), s.Halted, s.CatchingUp
	st.Sync = s.Sync.String()
	if m, ok := b.roster.now.Load().byKey[b.self]; ok {
		st.NewKey = m.Validator != (chain.Key{}) && m.Validator != s.Validator
	}
	st.Counters = map[string]int64{
		"blocks_appended": int64(j.Appended), "blocks_stored": int64(j.Stored), "blocks_fetched": int64(j.Fetched),
		"refused_oversize": int64(j.Oversize), "refused_invalid": int64(j.Invalid), "refused_foreign": int64(j.Foreign),
		"ignored_strangers": int64(j.Strangers), "ignored_replays": int64(j.Replays), "out_of_order": int64(j.Held),
		"equivocations": int64(j.Equivocations), "refused_connections": int64(n.Refused),
	}
	return st, nil
}

func (b backend) LedgerVerify(ctx context.Context, progress func(panel.VerifyProgress)) (panel.VerifyReport, error) {
	r, err := b.ledger.Verify(ctx, func(h, to int64) { progress(panel.VerifyProgress{Height: h, To: to}) })
	return verifyReport(r), err
}

func (b backend) Claim(_ context.Context, key []byte) ([]byte, error) {
	c, err := b.ledger.Claim(key)
	if err != nil {
		return nil, err
	}
	return chain.Marshal(c), nil
}

func (b backend) Checkpoint(_ context.Context, height int64) (chain.Checkpoint, error) {
	if s := b.ledger.Status(); height > s.Height {
		return chain.Checkpoint{}, panel.NotFound("no block %d yet: the ledger is at %d", height, s.Height)
	}
	c, err := b.ledger.Checkpoint(height)
	if err != nil {
		return chain.Checkpoint{}, err
	}
	return *c, nil
}

func (b backend) StateHash(_ context.Context, height int64) (panel.StateHash, error) {
	s := b.ledger.Status()
	if height == 0 {
		return panel.StateHash{Height: s.Height, StateHash: s.AppHash}, nil
	}
	if height > s.Height {
		return panel.StateHash{}, panel.NotFound("no block %d yet: the ledger is at %d", height, s.Height)
	}
	h, err := b.ledger.AppHashAt(height)
	return panel.StateHash{Height: height, StateHash: h}, err
}

func (b backend) Genesis(context.Context) ([]byte, error) { return os.ReadFile(b.state.genesis()) }

func (b backend) Submit(ctx context.Context, envelope []byte) (panel.TxResult, error) {
	r, err := b.ledger.Submit(ctx, envelope)
	if errors.Is(err, consensus.ErrFull) || errors.Is(err, consensus.ErrHalted) {
		return panel.TxResult{}, panel.Unavailable("%v", err)
	}
	info := r.Info
	if r.Code != ledger.CodeOK {
		info = strings.TrimSuffix(r.Code.String()+": "+r.Info, ": ")
	}
	return panel.TxResult{Code: uint32(r.Code), Info: info, Height: r.Height, Hash: chain.Sum(envelope)}, err
}

func (b backend) Nonce(_ context.Context, signer chain.Key) (uint64, error) {
	return view(b, func(st ledger.State) uint64 { return ledger.NextNonce(st, signer) })
}

func (b backend) Accounts(context.Context) ([]panel.Account, error) { return view(b, accountsOf) }

func (b backend) Account(_ context.Context, id chain.Account) (panel.Account, error) {
	return view(b, func(st ledger.State) panel.Account {
		return panel.Account{AccountView: ledger.AccountOf(st, id), Name: ownersOf(st)[id]}
	})
}

func (b backend) Members(context.Context) ([]panel.Member, error) {
	views, err := view(b, ledger.Members)
	if err != nil {
		return nil, err
	}
	connected, heads := b.connected(), b.journal.Heads()
	out := make([]panel.Member, 0, len(views))
	for _, m := range views {
		_, on := connected[m.Device]
		out = append(out, panel.Member{MemberView: m, Self: m.Device == b.self, Connected: on, Newest: heads[m.Device]})
	}
	return out, nil
}

// connected returns the members that are connected now.
func (b backend) connected() map[chain.Key]p2p.PeerInfo {
	m := map[chain.Key]p2p.PeerInfo{}
	for _, p := range b.net.Peers() {
		if p.Connected && !p.Guest {
			m[p.Key] = p
		}
	}
	return m
}

func (b backend) Peers(context.Context) ([]panel.Peer, error) {
	out := []panel.Peer{}
	for _, p := range b.net.Peers() {
		if !p.Connected {
			continue
		}
		out = append(out, panel.Peer{
			Device: p.Key, Name: b.roster.name(p.Key), Addr: strings.Join(p.Addrs, ", "), Since: p.Since, Direction: p.Direction,
		})
	}
	return out, nil
}

func (b backend) Meters(context.Context) ([]board.Meter, error) {
	s, ok := b.live.Latest()
	if !ok {
		return nil, panel.Unavailable("no snapshot yet")
	}
	return s.Meters, nil
}

func (b backend) ConfirmMeter(ctx context.Context, id string) error {
	for _, r := range b.devices.readers {
		if r.Device() != id {
			continue
		}
		if err := b.station.SwapMeter(ctx, id); err != nil {
			return refused(err)
		}
		r.Rebase()
		b.saveMeters()
		return nil
	}
	return panel.NotFound("this gateway has no meter %q", id)
}

func (b backend) Market(context.Context) (panel.Market, error) { return view(b, marketOf) }

func (b backend) Energy(context.Context) (ledger.Energy, error) { return view(b, ledger.EnergyOf) }

func (b backend) Sessions(context.Context) ([]panel.Session, error) { return view(b, sessionsOf) }

func (b backend) Session(_ context.Context, id chain.ID) (s panel.Session, err error) {
	failed := b.ledger.View(func(st ledger.State) { s, err = sessionOf(st, id) })
	if snap, ok := b.live.Latest(); ok && s.Gateway == b.self && s.State.Open() {
		for _, c := range snap.Chargers {
			if c.Session == id.String() {
				s.Plan = c.Plan
			}
		}
	}
	return s, errors.Join(failed, err)
}

func (b backend) Quote(ctx context.Context, req panel.QuoteRequest) (panel.Quote, error) {
	var retail chain.NanoPerWh
	var credit chain.Nano
	var last []ledger.SlotView
	var why string
	err := b.ledger.View(func(st ledger.State) {
		why = ledger.NotBillable(st, b.self, req.Connector, time.Now().UnixMilli())
		retail, _ = ledger.TariffAt(st, chain.SlotAt(time.Now().UnixMilli(), b.genesis.SlotSeconds))
		credit = ledger.AccountOf(st, chain.AccountOf(req.Driver)).Credits
		last = ledger.RecentSlots(st, 1)
	})
	if err != nil {
		return panel.Quote{}, err
	}
	departure, err := byDeparture(req, b.genesis.SlotSeconds, time.Now())
	if err != nil {
		return panel.Quote{}, err
	}
	q, err := b.station.Quote(ctx, req.Connector, req.Driver, req.MaxWh, retail, req.Redeem, departure, b.selling(req))
	if err != nil {
		return panel.Quote{}, refused(err)
	}
	cur := b.genesis.Currency
	planned, forecast, err := b.planOf(ctx, req, q)
	if err != nil {
		return panel.Quote{}, err
	}
	words := []string{
		fmt.Sprintf("at most %s %s per kWh, however the tariff changes; what neighbours sell is cheaper", money(chain.Nano(q.Cap)*1000), cur),
		fmt.Sprintf("for at most %s; %s %s are held now, what is not used returns at the end", kWh(q.MaxWh), money(q.Hold), cur),
		"valid until " + time.UnixMilli(q.Expires).Format(time.DateTime),
	}
	for _, s := range last {
		for _, p := range s.Prices {
			if p.Node == b.cfg.Name && s.Energy.Traded > 0 {
				words = append(words, fmt.Sprintf("in the last slot neighbours' energy cost %s %s per kWh here", money(chain.Nano(p.Price)*1000), cur))
			}
		}
	}
	words = append(words, forecast...)
	if q.SellWh > 0 {
		words = append(words, fmt.Sprintf("the car may give up to %s, for %s or more; its owner's floor is kept", kWh(q.SellWh), perKWh(q.SellLimit)))
	}
	if req.Redeem {
		words = append(words, fmt.Sprintf("discount credit of %s %s is spent on it, at most %s of the bill", money(credit), cur, percent(b.genesis.Credit.RedeemPPM)))
	}
	if why != "" {
		words = append(words, "not for billing: "+why)
	}
	return panel.Quote{
		Bytes: chain.Marshal(q), ID: q.ID, Gateway: q.Gateway, Driver: q.Driver, Expires: time.UnixMilli(q.Expires),
		MaxWh: q.MaxWh, Cap: q.Cap, Hold: q.Hold, Redeem: q.Redeem, Plan: planned, Words: words,
	}, nil
}

func percent(ppm int64) string { return money(chain.Nano(ppm)*1e5) + " %" }

// refused makes the station's refusals presentable: each names its limit.
func refused(err error) error {
	var r *station.Refusal
	if !errors.As(err, &r) {
		return err
	}
	status := http.StatusConflict
	if r.Code == station.UnknownCharger || r.Code == station.UnknownMeter {
		status = http.StatusNotFound
	}
	return &panel.Error{Status: status, Code: r.Code, Message: r.Text}
}

func (b backend) StartSession(ctx context.Context, q chain.SignedQuote) (panel.Session, error) {
	quote, err := q.Open()
	if err != nil {
		return panel.Session{}, panel.Invalid("%v", err)
	}
	if err := b.station.Start(ctx, q); err != nil {
		return panel.Session{}, refused(err)
	}
	// The record is on the disk; the ledger decides about the hold.
	blocks, stop, err := b.ledger.Subscribe(16)
	if err != nil {
		return panel.Session{}, err
	}
	defer stop()
	for {
		if s, err := b.Session(ctx, quote.ID); err == nil {
			return s, nil
		}
		if why, ok := b.feed.refusal(quote.ID); ok {
			return panel.Session{}, panel.Refused("the ledger does not hold the money: %s", why)
		}
		select {
		case <-ctx.Done():
			return panel.Session{}, panel.Unavailable("the ledger has not answered yet; the session starts when it does: joulegate session show %s", quote.ID)
		case <-time.After(time.Second): // the refusal may come by another way than a block
		case <-blocks:
		}
	}
}

func (b backend) StopSession(ctx context.Context, id chain.ID, _ panel.StopOrder) (panel.Session, error) {
	s, err := b.Session(ctx, id)
	if err != nil {
		return s, err
	}
	if s.Gateway != b.self {
		return s, panel.Refused("session %s is at gateway %s: stop it there", id, s.GatewayName)
	}
	if !s.State.Open() {
		return s, nil // a second stop has no effect
	}
	if err := b.station.Stop(ctx, id, chain.StopDriver); err != nil {
		return s, refused(err)
	}
	return b.Session(ctx, id)
}

func (b backend) Receipt(ctx context.Context, id chain.ID, format string) ([]byte, error) {
	if format == "html" {
		return b.slip(ctx, id)
	}
	r, err := os.ReadFile(b.receiptPath(id, format))
	if errors.Is(err, fs.ErrNotExist) && format == "native" {
		return nil, panel.NotFound("the meter of session %s has signed no record of its own, or it could not be read when charging ended", id)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, panel.NotFound("no receipt of session %s here: it is made when charging ends, by the gateway of the charger", id)
	}
	return r, err
}

func (b backend) Invite(ctx context.Context, req panel.InviteRequest) (panel.Invitation, error) {
	pass, err := passphrase()
	if err != nil {
		return panel.Invitation{}, err
	}
	path, _ := keys.WalletPath(b.state.wallets(), "operator")
	operator, err := keys.LoadWallet(path, pass)
	if errors.Is(err, fs.ErrNotExist) {
		return panel.Invitation{}, panel.Refused("this gateway has no operator wallet (%s): invite from the one that founded the microgrid", path)
	}
	if err != nil {
		return panel.Invitation{}, err
	}
	if req.Valid <= 0 || req.Valid > 30*24*time.Hour {
		return panel.Invitation{}, panel.Invalid("an invitation is valid for up to 720h, not %s", req.Valid)
	}
	psk, err := readPSK(b.state)
	if err != nil {
		return panel.Invitation{}, err
	}
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	expires := time.Now().Add(req.Valid)
	body := chain.Invite{Key: keys.Public(ed25519.NewKeyFromSeed(seed)), Node: req.Node, Fee: req.Fee, Validator: req.Validator, Expires: expires.UnixMilli()}
	r, err := panel.Order(ctx, b, operator.Key, chain.TxInvite, body)
	if err != nil {
		return panel.Invitation{}, err
	}
	if r.Code != 0 {
		return panel.Invitation{}, panel.Refused("the ledger refused the invitation: %s", r.Info)
	}
	b.feed.sync() // the newcomer may knock before the feed has heard of it
	tok := chain.Token{ChainID: b.genesis.ChainID, Genesis: b.genesisHash, PSK: psk, Peer: b.self, Addrs: b.addrs(), Seed: seed}
	if c, err := b.ledger.Checkpoint(0); err == nil {
		hash := c.Header.Hash()
		tok.Height, tok.Block = c.Header.Height, hash[:]
	}
	return panel.Invitation{Token: tok.String(), Expires: expires}, nil
}

// addrs returns where neighbours reach this gateway: what its membership
// says, or what it listens on.
func (b backend) addrs() []string {
	if m := b.roster.now.Load().byKey[b.self]; len(m.Addrs) > 0 {
		return m.Addrs
	}
	return b.net.Addrs()
}
