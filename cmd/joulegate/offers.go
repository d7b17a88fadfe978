package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter/circuit"
	"github.com/joulegate/joulegate/meter/plan"
)

const (
	planAhead  = 48 * time.Hour // how far offers are put before the station
	maxPosted  = ledger.MaxMembers
	offersEach = time.Minute     // a look at least so often, and after blocks
	offersRest = 2 * time.Second // not more often
)

// posted are the expectations that gateways have posted: their newest offers
// to sell, as they pass by in blocks. They bind a price, not a quantity.
type posted struct {
	mu    sync.Mutex
	offer map[chain.Key]chain.Offer
}

// take remembers the offers of a block of the ledger.
func (p *posted) take(txs [][]byte) {
	for _, raw := range txs {
		e, err := chain.OpenEnvelope(raw)
		if err != nil || e.Type != chain.EnvelopeBlock {
			continue
		}
		var b chain.Block
		if chain.Unmarshal(e.Body, &b) != nil {
			continue
		}
		for _, r := range b.Records {
			var o chain.Offer
			if r.Kind != chain.KindOffer || chain.Unmarshal(r.Body, &o) != nil {
				continue
			}
			p.mu.Lock()
			switch {
			case o.Side != chain.Sell || o.Wh <= 0:
				delete(p.offer, b.Author)
			case len(p.offer) < maxPosted:
				p.offer[b.Author] = o
			}
			p.mu.Unlock()
		}
	}
}

func (p *posted) all() map[chain.Key]chain.Offer {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[chain.Key]chain.Offer, len(p.offer))
	for k, o := range p.offer {
		out[k] = o
	}
	return out
}

// planSlots tells what a car at house self can buy from now on: the supplier's
// tariff without limit, what neighbours have promised firmly and is not taken,
// and what they expect to have, each at its price and the network's fee.
//
// An expectation stands until its author posts another one, but nobody knows
// the sun of tomorrow: it counts for its own slots, the running and the next.
func planSlots(st ledger.State, self chain.Key, expected map[chain.Key]chain.Offer, now time.Time) (slots []plan.Slot) {
	rules := ledger.RulesOf(st)
	me, known := ledger.MemberOf(st, self)
	if rules.SlotSeconds <= 0 || !known {
		return nil
	}
	first := chain.SlotAt(now.UnixMilli(), rules.SlotSeconds)
	count := min(plan.MaxSlots, int(planAhead/time.Second)/int(rules.SlotSeconds))
	firm := ledger.FirmOffers(st, false)
	tariffs := ledger.Tariffs(st)
	for s := first; s < first+chain.Slot(count); s++ {
		v := plan.Slot{Start: s.Start(rules.SlotSeconds), End: s.End(rules.SlotSeconds)}
		retail, feedIn := rules.Retail, rules.FeedIn
		for len(tariffs) > 0 && tariffs[0].To < s {
			tariffs = tariffs[1:]
		}
		if len(tariffs) > 0 && tariffs[0].From <= s {
			retail, feedIn = tariffs[0].Retail, tariffs[0].FeedIn
		}
		v.Tiers = append(v.Tiers, plan.Tier{Price: retail, Wh: plan.Unlimited})
		add := func(node string, price chain.NanoPerWh, t plan.Tier) {
			fee, err := ledger.PathFee(st, node, me.Name, s)
			if t.Price = price + fee; err == nil && t.Price <= retail && len(v.Tiers) < plan.MaxTiers {
				t.Local = true
				v.Tiers = append(v.Tiers, t)
			}
		}
		for _, f := range firm {
			if f.Side == chain.Sell && f.Open && f.Left > 0 && s >= f.From && s <= f.To && f.Maker.Device != self {
				add(f.Maker.Node, f.Price, plan.Tier{Wh: f.Left})
			}
		}
		for author, o := range expected {
			if m, ok := ledger.MemberOf(st, author); ok && m.Active && author != self && s >= o.From && s <= max(o.To, first+1) {
				add(m.Name, max(o.Limit, feedIn), plan.Tier{Wh: o.Wh})
			}
		}
		slots = append(slots, v)
	}
	return slots
}

// version names the content of an offer list.
func versionOf(slots []plan.Slot) uint64 {
	h := fnv.New64a()
	for _, s := range slots {
		var sum uint64 // of tiers, in any order
		for _, t := range s.Tiers {
			sum += (uint64(t.Price)*0x9E3779B97F4A7C15 ^ uint64(t.Wh)) * 0xBF58476D1CE4E5B9
		}
		for _, v := range []uint64{uint64(s.Start), sum} {
			var b [8]byte
			for i := range b {
				b[i] = byte(v >> (8 * i))
			}
			h.Write(b[:])
		}
	}
	return h.Sum64()
}

// dutiesOf is what cars here have promised firmly, from the running slot on.
func dutiesOf(st ledger.State, self chain.Key, now time.Time) (out []station.Duty) {
	first := chain.SlotAt(now.UnixMilli(), ledger.RulesOf(st).SlotSeconds)
	for _, d := range ledger.FirmDuties(st, self, first, first+ledger.MaxFirmSlots) {
		out = append(out, station.Duty{Session: d.Session, Contract: fmt.Sprintf("%s/%d", d.Offer, d.Number), Slot: d.Slot, Wh: d.Wh})
	}
	return out
}

// plans keeps the station informed of what can be bought and of orders to dim
// that the ledger holds, until ctx ends.
func (g *gateway) plans(ctx context.Context) error {
	blocks, stop, err := g.ledger.Subscribe(feedBuffer)
	if err != nil {
		return err
	}
	defer stop()
	due := time.NewTimer(0)
	defer due.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-due.C:
			last = time.Now()
			g.look(ctx)
			due.Reset(offersEach)
		case e, ok := <-blocks:
			if !ok {
				return nil
			}
			if full, err := g.ledger.Block(e.Height); err == nil {
				g.posted.take(full.Txs)
			}
			due.Reset(max(0, offersRest-time.Since(last)))
		}
	}
}

// look reads the ledger once.
func (g *gateway) look(ctx context.Context) {
	var slots []plan.Slot
	var dim ledger.DimView
	var duties []station.Duty
	var at int64
	expected := g.posted.all()
	err := g.ledger.View(func(st ledger.State) {
		if len(g.cfg.Chargers) > 0 {
			slots = planSlots(st, g.self, expected, time.Now())
			duties = dutiesOf(st, g.self, time.Now())
		}
		at = ledger.StatusOf(st).TimeMs
		dim, _ = ledger.DimOf(st, g.self, at)
	})
	if err != nil {
		return // the ledger says why
	}
	g.station.Offers(slots, versionOf(slots))
	g.station.Duties(duties)
	if g.cfg.Dimming.Ledger && dim != g.dimmed {
		// The ledger's own clock: what the wall clock does moves no limit.
		left := time.Duration(max(0, dim.Until-at)) * time.Millisecond
		if err := g.station.Dim(ctx, circuit.Ledger, dim.Limit, left); err == nil {
			g.dimmed = dim
		}
	}
}
