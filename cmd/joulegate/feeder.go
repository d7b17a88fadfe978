package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/circuit"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	feederProtocol = "/joulegate/feeder/1"
	maxFeeder      = 4 << 10 // bytes of a request or a lease
	asksPerLease   = 6       // so that some may be lost
	feederTick     = time.Second
)

// feederLink is a gateway's part on a shared feeder: it asks the leader for
// leases, and if it is the leader, answers.
type feederLink struct {
	rules  circuit.FeederRules
	leader string
	name   string

	mu    sync.Mutex
	lease circuit.LeaseState
	lead  *circuit.Feeder // nil: another gateway leads
	state circuit.FeederState
}

// newFeederLink returns nil if nobody leads.
func newFeederLink(cfg config.Config) (*feederLink, error) {
	if cfg.Feeder.Leader == "" {
		return nil, nil
	}
	lead, err := cfg.Lead()
	if err != nil {
		return nil, err
	}
	return &feederLink{
		rules: cfg.FeederRules(), leader: cfg.Feeder.Leader, name: cfg.Name,
		lease: circuit.NewLease(rand.Uint64()), lead: lead, state: circuit.NewLeader(rand.Uint64() | 1),
	}, nil
}

// caps is the station's question in each turn.
func (f *feederLink) caps(chargers []uint8, now time.Duration) (caps []meter.MilliAmpere, leased bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lease, caps, leased = circuit.Caps(f.rules, f.lease, chargers, now)
	return caps, leased
}

func (f *feederLink) ask(asks []circuit.Ask, now time.Duration) (r circuit.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lease, r = circuit.Asked(f.lease, now)
	r.Asks = asks
	return r
}

func (f *feederLink) take(l circuit.Lease, now time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lease = circuit.Leased(f.lease, l, now)
}

var errNoLease = errors.New("no lease now")

// answer is the leader's.
func (f *feederLink) answer(member string, r circuit.Request, now time.Duration) (l circuit.Lease, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lead == nil {
		return l, fmt.Errorf("gateway %s leads the feeder", f.leader)
	}
	var ok bool
	f.state, l, ok, err = f.lead.Answer(f.state, f.lead.Member(member), r, circuit.Reading{}, now)
	if err == nil && !ok {
		err = errNoLease
	}
	return l, err
}

func (f *feederLink) tick(now time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lead != nil {
		f.state = f.lead.Tick(f.state, circuit.Reading{}, now)
	}
}

// answerFeeder serves requests of members.
func (g *gateway) answerFeeder(_ context.Context, from peer.ID, req []byte) ([]byte, error) {
	if g.feeder == nil {
		return nil, errors.New("this gateway shares no feeder")
	}
	key, known := g.roster.now.Load().byPeer[from]
	if !known {
		return nil, errors.New("not a member")
	}
	var r circuit.Request
	if err := chain.Unmarshal(req, &r); err != nil {
		return nil, err
	}
	l, err := g.feeder.answer(g.roster.name(key), r, time.Since(g.started))
	if err != nil {
		return nil, err
	}
	return chain.Marshal(l), nil
}

// lease asks the leader of the feeder, again and again, until ctx ends. What
// it does not answer ends by itself.
func (g *gateway) lease(ctx context.Context) error {
	f := g.feeder
	tick := time.NewTicker(feederTick)
	defer tick.Stop()
	var last time.Duration
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Since(g.started)
		f.tick(now)
		if now-last < f.rules.Lease/asksPerLease {
			continue
		}
		last = now
		if err := g.askFeeder(ctx, f.ask(g.station.Asks(), now)); err != nil && !errors.Is(err, errNoLease) {
			g.log.Debug("no lease of the feeder", "leader", f.leader, "err", err)
		}
	}
}

func (g *gateway) askFeeder(ctx context.Context, r circuit.Request) error {
	f := g.feeder
	if f.lead != nil {
		l, err := f.answer(f.name, r, time.Since(g.started))
		if err == nil {
			f.take(l, time.Since(g.started))
		}
		return err
	}
	for _, p := range g.net.Peers() {
		if !p.Connected || p.Guest || g.roster.name(p.Key) != f.leader {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, f.rules.Lease/asksPerLease)
		defer cancel()
		b, err := g.net.Request(ctx, p.ID, feederProtocol, chain.Marshal(r), maxFeeder)
		if err != nil {
			return err
		}
		var l circuit.Lease
		if err := chain.Unmarshal(b, &l); err != nil {
			return err
		}
		f.take(l, time.Since(g.started))
		return nil
	}
	return fmt.Errorf("gateway %s is not connected", f.leader)
}
