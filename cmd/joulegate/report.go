package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/mqtt"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/circuit"
)

// brokerUser is one account of the embedded broker, in broker.json of the
// state folder: a neighbouring gateway, an installer or an observer.
type brokerUser struct {
	Name string `json:"name"`
	Role string `json:"role"` // gateway, installer, observer, utility, homeassistant
	Hash string `json:"hash"` // as mosquitto_passwd -H sha512-pbkdf2 writes it
}

func (u brokerUser) rules(prefix string) ([]mqtt.Rule, error) {
	switch u.Role {
	case "gateway":
		return mqtt.GatewayRules(u.Name, prefix), nil
	case "installer":
		return mqtt.InstallerRules(u.Name), nil
	case "observer":
		return mqtt.ObserverRules(), nil
	case "utility":
		return mqtt.UtilityRules(), nil
	case "homeassistant":
		return mqtt.HomeAssistantRules(u.Name, prefix), nil
	}
	return nil, fmt.Errorf("user %q: unknown role %q (gateway, installer, observer, utility, homeassistant)", u.Name, u.Role)
}

func (s state) brokerUsers() string       { return s.path("broker.json") }
func (s state) installerPassword() string { return s.path("wallets", "mqtt-installer.password") }
func (s state) homeAssistantPassword() string {
	return s.path("wallets", "mqtt-homeassistant.password")
}

// newMQTT connects to the configured broker or makes the embedded one.
func (g *gateway) newMQTT() (*mqtt.Service, error) {
	c := g.cfg.MQTT
	cfg := mqtt.Config{
		Gateway: g.cfg.Name, URL: c.Broker, Username: c.User, Log: g.log.With("part", "mqtt"), Metrics: g.metrics, Remote: remote{g},
		Spool: g.spool, Discovery: discovery(g.cfg, g.devices.library, g.genesis.Currency),
		Info: map[string]any{
			"version": version, "boot_id": rand.Text(), "device": g.self, "peer_id": g.net.Host().ID().String(), "chain": g.genesis.ChainID,
			"config_revision": g.settings.doc.Commit.InForce().Rev, "capabilities": []string{"state", "events", "config", "commands"},
		},
	}
	if g.cfg.Dimming.MQTT {
		cfg.Utility = func(o mqtt.LimitOrder) error {
			ctx, cancel := context.WithTimeout(context.Background(), utilityWait)
			defer cancel()
			return g.station.Dim(ctx, circuit.Message, meter.Watt(o.Limit), time.Duration(o.Seconds)*time.Second)
		}
	}
	if c.PasswordFile != "" {
		b, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("mqtt.password_file: %w", err)
		}
		cfg.Password = strings.TrimRight(string(b), "\r\n")
	}
	cfg.Discovery.Store = g.journal
	var err error
	if cfg.Once, err = mqtt.OpenOnce(g.journal); err != nil {
		return nil, err
	}
	if c.Broker != "" {
		cfg.TLS, err = clientTLS(c, cfg.Log)
	} else {
		cfg.Embedded = &mqtt.BrokerConfig{Listen: c.Listen}
		if cfg.Embedded.Users, err = loadBrokerUsers(g.state, c); err == nil {
			cfg.Embedded.TLS, err = serverTLS(c, cfg.Log)
		}
	}
	if err != nil {
		return nil, err
	}
	return mqtt.New(cfg)
}

// loadBrokerUsers reads the embedded broker's accounts. At the first start it
// makes one for the installer with a random password, and one for Home
// Assistant when that is to find the devices: there is no default.
func loadBrokerUsers(st state, c config.MQTT) ([]mqtt.User, error) {
	b, err := os.ReadFile(st.brokerUsers())
	if errors.Is(err, fs.ErrNotExist) {
		var u brokerUser
		if u, err = newBrokerUser("installer", "installer", st.installerPassword()); err != nil {
			return nil, err
		}
		if b, err = encodeList([]brokerUser{u}); err == nil {
			err = writeFile(st.brokerUsers(), b, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	list, err := readList[brokerUser](st.brokerUsers(), b, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", st.brokerUsers(), err)
	}
	if named := func(u brokerUser) bool { return u.Name == homeAssistant || u.Role == homeAssistant }; c.Discovers() && !slices.ContainsFunc(list, named) {
		u, err := newBrokerUser(homeAssistant, homeAssistant, st.homeAssistantPassword())
		if err != nil {
			return nil, err
		}
		list = append(list, u)
		if err := writeList(st.brokerUsers(), list, 0o600); err != nil {
			return nil, err
		}
	}
	prefix := c.DiscoveryPrefix
	var users []mqtt.User
	for _, u := range list {
		rules, err := u.rules(prefix)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", st.brokerUsers(), err)
		}
		users = append(users, mqtt.User{Name: u.Name, Hash: u.Hash, Rules: rules})
	}
	return users, nil
}

// newBrokerUser makes an account with a random password, which it writes to
// file.
func newBrokerUser(name, role, file string) (brokerUser, error) {
	password := rand.Text()
	hash, err := mqtt.HashPassword(password)
	if err != nil {
		return brokerUser{}, err
	}
	return brokerUser{Name: name, Role: role, Hash: hash}, writeFile(file, []byte(password+"\n"), 0o600)
}

// utilityWait bounds how long an order waits for the control loop.
const utilityWait = 5 * time.Second

// reportEvery bounds how often a state topic changes.
const reportEvery = time.Second

// report publishes what this gateway knows over MQTT until ctx ends.
func (g *gateway) report(ctx context.Context) error {
	snapshots, err := g.live.Watch(ctx)
	if err != nil {
		return err
	}
	blocks, stop, err := g.ledger.Subscribe(feedBuffer)
	if err != nil {
		return err
	}
	defer stop()
	available := map[string]bool{}
	var last time.Time
	warn := func(err error) {
		if err != nil {
			g.log.Warn("not published", "err", err)
		}
	}
	g.reportLedger(warn)
	g.reportMarket(ctx, warn)
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-snapshots:
			if !ok {
				return nil
			}
			if time.Since(last) < reportEvery {
				continue
			}
			last = time.Now()
			for _, m := range s.Meters {
				on := m.Quality == meter.Good.String() || m.Quality == meter.Suspect.String()
				if was, known := available[m.ID]; !known || was != on {
					available[m.ID] = on
					warn(g.mqtt.PublishAvailability(m.ID, on))
				}
				if !m.Time.IsZero() {
					warn(g.mqtt.PublishDevice(m.ID, deviceState(m)))
				}
			}
			for _, c := range s.Chargers {
				warn(g.mqtt.PublishSession(int(c.ID), c))
			}
		case e, ok := <-blocks:
			if !ok {
				return nil
			}
			g.reportLedger(warn)
			if slices.ContainsFunc(e.Events, func(x ledger.Event) bool { return x.Code == "slot.cleared" }) {
				g.reportMarket(ctx, warn)
			}
		}
	}
}

func (g *gateway) reportLedger(warn func(error)) {
	s := g.ledger.Status()
	warn(g.mqtt.PublishLedger(panel.StateHash{Height: s.Height, StateHash: s.AppHash}))
}

// marketState is the market's summary; the price is the one at this gateway's
// own node, in the last slot that was cleared.
type marketState struct {
	panel.Market
	Price *chain.NanoPerWh `json:"price_nano_per_wh,omitempty"`
}

func (g *gateway) reportMarket(ctx context.Context, warn func(error)) {
	m, err := (backend{g}).Market(ctx)
	if err != nil {
		return // the ledger has ended
	}
	m.History = nil // a summary
	s := marketState{Market: m}
	for _, h := range m.Houses {
		if h.Name == g.roster.name(g.self) {
			s.Price = &h.Price
		}
	}
	warn(g.mqtt.PublishMarket(s))
}

func deviceState(m board.Meter) mqtt.DeviceState {
	st := mqtt.DeviceState{Time: m.Time.UTC(), Quality: m.Quality}
	set := func(dst **int64, name string, v int64) {
		if _, ok := m.Points[name]; ok {
			*dst = &v
		}
	}
	set(&st.PowerW, meter.PointName(meter.Power, 0), int64(m.PowerW))
	set(&st.ImportWh, meter.PointName(meter.Import, 0), int64(m.Import))
	set(&st.ExportWh, meter.PointName(meter.Export, 0), int64(m.Export))
	return st
}

// offerDelay lets a slot's offer travel in the block of the meter records.
const offerDelay = 700 * time.Millisecond

// offer keeps the books of a slot's end: it saves where the meters stand and
// posts what this site expects in the coming slot, once a slot, until
// ctx ends. It binds the price only: clearing is on metered energy.
func (g *gateway) offer(ctx context.Context) error {
	var lastSide chain.Side
	var lastWh meter.WattHour
	for {
		now := time.Now()
		next := chain.SlotAt(now.UnixMilli(), g.genesis.SlotSeconds)
		at := time.UnixMilli(next.End(g.genesis.SlotSeconds)).Add(offerDelay)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(at.Sub(now)):
		}
		g.saveMeters()
		o, ok := g.expect(next + 1)
		if !ok || o.Side == lastSide && nearly(o.Wh, lastWh) {
			continue // the offer that stands says the same
		}
		if err := g.outbox.Append(ctx, []chain.Record{chain.NewRecord(chain.KindOffer, o)}); err != nil {
			g.log.Debug("offer not posted", "err", err)
			continue
		}
		lastSide, lastWh = o.Side, o.Wh
	}
}

// nearly reports whether b differs from a by less than a tenth.
func nearly(a, b meter.WattHour) bool { return max(a-b, b-a)*10 < max(a, b, 1) }

// expect extrapolates the site's present power over slot s.
func (g *gateway) expect(s chain.Slot) (chain.Offer, bool) {
	snap, ok := g.live.Latest()
	if !ok {
		return chain.Offer{}, false
	}
	for _, m := range snap.Meters {
		if m.Role != chain.RoleSite.String() || m.Quality != meter.Good.String() {
			continue
		}
		o := chain.Offer{From: s, To: s, Side: chain.Buy, Wh: meter.WattHour(int64(m.PowerW) * g.genesis.SlotSeconds / 3600)}
		var retail, feedIn chain.NanoPerWh
		if g.ledger.View(func(st ledger.State) { retail, feedIn = ledger.TariffAt(st, s) }) != nil {
			return o, false
		}
		o.Limit = retail
		if l := g.cfg.Market.BuyLimit; l != nil {
			o.Limit = *l
		}
		if o.Wh < 0 {
			o.Side, o.Wh, o.Limit = chain.Sell, -o.Wh, feedIn
			if l := g.cfg.Market.SellLimit; l != nil {
				o.Limit = *l
			}
		}
		return o, true
	}
	return chain.Offer{}, false
}
