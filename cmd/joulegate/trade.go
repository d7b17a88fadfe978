package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

func (b backend) Flow(_ context.Context, req panel.FlowRequest) (f panel.Flow, err error) {
	return viewed(b, func(st ledger.State) (panel.Flow, error) { return flowOf(st, req) })
}

func (b backend) Allocation(_ context.Context, from, to chain.Slot) (ledger.Allocation, error) {
	return viewed(b, func(st ledger.State) (ledger.Allocation, error) { return allocationOf(st, from, to) })
}

func (b backend) SlotProof(_ context.Context, slot chain.Slot) (panel.SlotProof, error) {
	return viewed(b, func(st ledger.State) (panel.SlotProof, error) { return proofOf(st, slot) })
}

func (b backend) Terms(context.Context) (panel.Terms, error) { return view(b, termsOf) }

// byDeparture puts into the quote what the driver needs when he leaves: its
// energy before the slot in which he does.
func byDeparture(req panel.QuoteRequest, slotSeconds int64, now time.Time) (func(*chain.Quote), error) {
	if req.By.IsZero() {
		return func(*chain.Quote) {}, nil
	}
	by := chain.SlotAt(req.By.UnixMilli(), slotSeconds)
	if by <= chain.SlotAt(now.UnixMilli(), slotSeconds) {
		return nil, panel.Invalid("the departure is in this slot: leave it out to charge at once")
	}
	return func(q *chain.Quote) { q.By, q.Want = by, q.MaxWh }, nil
}

// selling puts into the quote what the vehicle may give, for no less than the
// charger's own limit.
func (b backend) selling(req panel.QuoteRequest) func(*chain.Quote) {
	return func(q *chain.Quote) {
		if q.SellWh, q.SellLimit = req.SellWh, req.SellLimit; req.SellWh <= 0 {
			return
		}
		for _, h := range b.cfg.Chargers {
			if h.ID == req.Connector {
				q.SellLimit = max(q.SellLimit, h.Discharge.SellLimit)
			}
		}
	}
}

func (b backend) Correct(ctx context.Context, c chain.MeterCorrection) error {
	if c.Import == 0 && c.Export == 0 || c.Reason == "" || c.ID == (chain.ID{}) {
		return panel.Invalid("a correction needs an id, a reason, and energy that is not 0")
	}
	if time.Since(time.UnixMilli(c.Slot.End(b.genesis.SlotSeconds))) > 30*24*time.Hour {
		return panel.Refused("slot %d is more than 30 days ago", c.Slot)
	}
	return b.outbox.Append(ctx, []chain.Record{chain.NewRecord(chain.KindMeterCorrection, c)})
}

// viewed is view for a reader that can fail.
func viewed[T any](b backend, f func(st ledger.State) (T, error)) (v T, err error) {
	if failed := b.ledger.View(func(st ledger.State) { v, err = f(st) }); failed != nil {
		return v, failed
	}
	return v, err
}

// flowOf tells who supplied whom, as far as the asker may know.
func flowOf(st ledger.State, req panel.FlowRequest) (panel.Flow, error) {
	rules := ledger.RulesOf(st)
	names := namesOf(st)
	if req.From == 0 && req.To == 0 {
		req.From = ledger.StatusOf(st).LastCleared
		req.To = req.From
		if req.Session != (chain.ID{}) {
			s, ok := ledger.SessionOf(st, req.Session)
			if !ok {
				return panel.Flow{}, panel.NotFound("no session %s", req.Session)
			}
			end := s.ClosedMs
			if s.State.Open() {
				end = s.LastMs
			}
			// Slots are cleared a while after their end: none is after that.
			req.From, req.To = chain.SlotAt(s.OpenedMs, rules.SlotSeconds), chain.SlotAt(end, rules.SlotSeconds)
			req.From = max(req.From, req.To-panel.MaxFlowSlots+1)
		}
	}
	var viewer *chain.Account
	if req.Key != (chain.Key{}) && !slices.Contains(rules.Operators, req.Key) && !slices.Contains(rules.Auditors, req.Key) {
		a := chain.AccountOf(req.Key)
		viewer = &a
	}
	if err := kept(st, req.From, req.To); err != nil {
		return panel.Flow{}, err
	}
	flows, err := ledger.FlowsBetween(st, req.From, req.To)
	if err != nil {
		return panel.Flow{}, err
	}
	sessions := map[chain.ID]string{}
	for _, x := range flows {
		for party := range x.Parties {
			kind, rest, _ := strings.Cut(party, "/")
			var id chain.ID
			if (kind == "car" || kind == "v2v") && id.UnmarshalText([]byte(rest)) == nil {
				if s, ok := ledger.SessionOf(st, id); ok {
					sessions[id] = names[s.Gateway]
				}
			}
		}
	}
	f := panel.NewFlow(flows, req.Session, viewer, sessions)
	f.From, f.To, f.SlotSeconds = req.From, req.To, rules.SlotSeconds
	return f, nil
}

func allocationOf(st ledger.State, from, to chain.Slot) (ledger.Allocation, error) {
	if err := kept(st, from, to); err != nil {
		return ledger.Allocation{}, err
	}
	return ledger.AllocationOf(st, from, to), nil
}

// kept refuses a period of which a part has left the ledger's state: an answer
// without it would look complete.
func kept(st ledger.State, from, to chain.Slot) error {
	rules := ledger.RulesOf(st)
	first := ledger.KeptFrom(st)
	for s := from; s <= to && s < first; s++ {
		if _, gone := ledger.ArchivedSlot(st, s); gone {
			return panel.NotFound("slots before %d (%s) are older than the %d days that the ledger keeps at hand: ask from a later one; allocations exported at the time and audit bundles still tell of them",
				first, time.UnixMilli(first.Start(rules.SlotSeconds)).UTC().Format(time.DateTime+" UTC"), rules.RetainDays)
		}
	}
	return nil
}

// proofOf reconstructs a slot's clearing and checks it.
func proofOf(st ledger.State, slot chain.Slot) (panel.SlotProof, error) {
	if slot == 0 {
		slot = ledger.StatusOf(st).LastCleared
	}
	if err := kept(st, slot, slot); err != nil {
		return panel.SlotProof{}, err
	}
	p, r, err := ledger.ProblemOf(st, slot)
	if err != nil {
		return panel.SlotProof{}, panel.NotFound("%v", err)
	}
	out := panel.SlotProof{Slot: slot, Proven: true, Problem: p, Result: r}
	if err := ledger.CertifySlot(st, slot); err != nil {
		out.Proven, out.Why = false, err.Error()
	}
	return out, nil
}

func termsOf(st ledger.State) panel.Terms {
	rules := ledger.RulesOf(st)
	return panel.Terms{
		SlotSeconds: rules.SlotSeconds, Slot: ledger.StatusOf(st).Slot, Retail: rules.Retail, FeedIn: rules.FeedIn,
		Tariffs: orEmpty(ledger.Tariffs(st)), Periods: orEmpty(ledger.Bounds(st)), Zones: orEmpty(ledger.ZonesOf(st)), Firm: orEmpty(ledger.FirmOffers(st, false)),
		Features:    []ledger.FeatureView{ledger.FeatureOf(st, chain.FeatureFirm), ledger.FeatureOf(st, chain.FeatureV2V)},
		Corrections: orEmpty(ledger.CorrectionsOf(st, chain.Key{})),
	}
}

// orEmpty keeps null out of JSON.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
