package proof

import (
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// books keep what is needed of the records that have gone by.
type books struct {
	slotSeconds int64
	chains      map[chain.Key]*position
	order       []chain.Key
	meters      []meterRecord
	byRoot      map[chain.Hash]int // index of the record
	names       map[string]string  // one copy of each meter's name
	opens       []opened
	stops       map[chain.ID]stopped
	evidence    map[chain.RecordKind]int
	records     int
}

// position is where a gateway's own chain stands.
type position struct {
	first chain.Position
	at    chain.Position
	hash  chain.Hash
	count int
	sure  bool // some block of it took effect for certain
}

type meterRecord struct {
	author  chain.Key
	meter   string
	role    chain.Role
	quality meter.Quality
	segment uint32
	count   uint32
	epoch   uint32
	page    uint64
	slot    chain.Slot
	imp     meter.WattHour
	exp     meter.WattHour
	at      int64
	height  int64
	time    int64 // of the block, Unix ms
	root    chain.Hash
	profile chain.Hash
}

type opened struct {
	gateway chain.Key
	quote   chain.SignedQuote
}

type stopped struct {
	gateway chain.Key
	receipt chain.Hash
}

func (b *books) init(g chain.Genesis) {
	*b = books{
		slotSeconds: g.SlotSeconds, chains: map[chain.Key]*position{}, byRoot: map[chain.Hash]int{},
		names: map[string]string{}, stops: map[chain.ID]stopped{}, evidence: map[chain.RecordKind]int{},
	}
}

// take reads a transaction. Where it is not sure that it took effect, one that
// does not fit was refused.
func (b *books) take(h *chain.LedgerHeader, tx []byte, sure bool) error {
	err := b.fits(h, tx, sure)
	if !sure {
		return nil
	}
	return err
}

func (b *books) fits(h *chain.LedgerHeader, tx []byte, sure bool) error {
	e, err := chain.OpenEnvelope(tx)
	if err != nil {
		return fail(checkTxs, "block %d: %w", h.Height, err)
	}
	if e.Type != chain.EnvelopeBlock {
		if _, err := chain.OpenTx(e); err != nil {
			return fail(checkTxs, "block %d: %w", h.Height, err)
		}
		return nil
	}
	s, err := chain.OpenBlock(tx, e)
	if err != nil {
		return fail(checkGateways, "block %d: %w", h.Height, err)
	}
	if s.Chain != h.Chain {
		return fail(checkGateways, "block %s of %s was made for chain %q", s.Position(), s.Author.Short(), s.Chain)
	}
	p := b.chains[s.Author]
	switch {
	case p == nil:
		p = &position{first: s.Position()}
		b.chains[s.Author] = p
		b.order = append(b.order, s.Author)
	case s.Epoch == p.at.Epoch && (s.Number != p.at.Number+1 || s.Prev != p.hash),
		s.Epoch < p.at.Epoch, s.Epoch > p.at.Epoch && s.Number != 1:
		return fail(checkGateways, "block %s of %s follows block %s", s.Position(), s.Author.Short(), p.at)
	}
	p.at, p.hash = s.Position(), s.Hash
	p.count++
	p.sure = p.sure || sure
	for i, r := range s.Records {
		if err := b.record(h, s, r); err != nil {
			return fail(checkGateways, "block %s of %s, record %d: %w", s.Position(), s.Author.Short(), i, err)
		}
	}
	return nil
}

// record keeps what later checks need. A body that does not decode was
// refused by the ledger too, and had no effect.
func (b *books) record(h *chain.LedgerHeader, s *chain.Signed, r chain.Record) error {
	b.records++
	switch {
	case r.Kind >= chain.KindEvidence:
		if r.Kind == chain.KindEvent {
			var e chain.Event
			if err := chain.Unmarshal(r.Body, &e); err != nil {
				return fmt.Errorf("event: %w", err)
			}
		}
		b.evidence[r.Kind]++
	case r.Kind == chain.KindMeter:
		var m chain.MeterRecord
		if chain.Unmarshal(r.Body, &m) != nil || len(b.meters) >= maxRecords {
			return nil
		}
		name, ok := b.names[m.Meter]
		if !ok {
			name = m.Meter
			b.names[name] = name
		}
		if _, twice := b.byRoot[m.Root]; !twice {
			b.byRoot[m.Root] = len(b.meters)
		}
		b.meters = append(b.meters, meterRecord{
			author: s.Author, meter: name, role: m.Role, quality: m.Quality, segment: m.Segment, count: m.Count, epoch: s.Epoch, page: m.Page,
			slot: m.Slot, imp: m.Import, exp: m.Export, at: m.At, height: h.Height, time: h.Time / 1e6, root: m.Root, profile: m.Profile,
		})
	case r.Kind == chain.KindSessionOpen:
		var o chain.SessionOpen
		if chain.Unmarshal(r.Body, &o) == nil {
			b.opens = append(b.opens, opened{s.Author, o.Quote})
		}
	case r.Kind == chain.KindSessionStop:
		var o chain.SessionStop
		if chain.Unmarshal(r.Body, &o) == nil {
			if _, twice := b.stops[o.Session]; !twice {
				b.stops[o.Session] = stopped{s.Author, o.Receipt}
			}
		}
	}
	return nil
}

// Wanted is what of the state and the journal belongs to transactions.
type Wanted struct {
	Sessions []chain.ID
	Roots    []chain.Hash // of meter records, in order
}

// WantedBy reads transactions as a verifier will.
func WantedBy(txs [][]byte) (w Wanted) {
	var b books
	b.init(chain.Genesis{})
	for _, tx := range txs {
		s, err := chain.ParseBlock(tx)
		if err != nil {
			continue
		}
		for _, r := range s.Records {
			_ = b.record(&chain.LedgerHeader{}, s, r)
		}
	}
	for _, m := range b.meters {
		w.Roots = append(w.Roots, m.root)
	}
	for _, o := range b.opens {
		var q chain.Quote
		if chain.Unmarshal(o.quote.Quote, &q) == nil {
			w.Sessions = append(w.Sessions, q.ID)
		}
	}
	return w
}
