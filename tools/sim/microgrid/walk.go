// Package microgrid drives the ledger with a neighbourhood that lies, fails
// and is attacked, for as long as one likes, and keeps books of its own beside
// it.
//
//	homes, cars, operator ──signed blocks, transactions──► ledger.Apply ─► state
//	   │    (and faults)                                      │
//	   └── what they signed and metered ──► books ◄── movements, slots
//	                                          │
//	                                          ▼ every block: do both say the same?
//
// Everything follows from a seed: two walks with equal configurations apply
// equal blocks. There is no clock, no disk and no socket.
package microgrid

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

const (
	retail    chain.NanoPerWh = 300_000
	feedIn    chain.NanoPerWh = 80_000
	earnPPM                   = 50_000
	redeemPPM                 = 500_000
	feederFee chain.NanoPerWh = 10_000
	houseFee  chain.NanoPerWh = 5_000
)

// Config describes a walk.
type Config struct {
	Seed   uint64
	Homes  int     // 2..1000
	Cars   int     // 0..
	Faults float64 // expected faults per home and slot; 0: none, everybody is honest and well
	Full   int     // check the whole state every so many blocks; 0: never before Finish
	State  ledger.State
	Twin   ledger.State // executes the same blocks; nil: none
	// Tell is given every block before it is applied. Nil: nobody.
	Tell func(ledger.BlockInput)
}

// Stats is what a walk has done.
type Stats struct {
	Slots, Blocks, Txs, Refused, Records int
	Full                                 int // checks of the whole state
	Sessions, Closed, Interrupted        int
	TradedWh                             meter.WattHour
	Faults                               map[string]int // injected, by kind
	Codes                                map[string]int // results of transactions and records
	Events                               map[string]int
}

// Violation is a block after which something was wrong. The seed and the
// number of slots replay it.
type Violation struct {
	Block    ledger.BlockInput
	Findings []string
}

func (v *Violation) Error() string {
	return fmt.Sprintf("block %d: %s", v.Block.Height, strings.Join(v.Findings, "; "))
}

// Walk is a neighbourhood under way. Not safe for concurrent use.
type Walk struct {
	cfg      Config
	st       ledger.State
	rnd      *rand.Rand
	books    *books
	op, aud  *person
	homes    []*home
	cars     []*car
	now      int64
	height   int64
	slot     chain.Slot
	ids      uint64
	refs     int
	history  [][]byte // some accepted transactions, to be replayed
	closed   []*charging
	open     map[chain.ID]*charging
	caps     map[chain.ID]chain.NanoPerWh
	used     map[chain.Key]bool // signers of this block
	expected map[chain.Slot]map[string]meter.WattHour
	zoned    chain.Slot // of the newest change of the fee tree
	payouts  []uint64
	disputes []uint64
	firms    []chain.ID
	waits    []chain.CorrectionRuling
	stats    Stats
}

// item is a transaction with what its sender does when he hears its result.
type item struct {
	raw  []byte
	done func(ledger.TxResult)
}

// New founds the microgrid.
func New(cfg Config) (*Walk, error) {
	if cfg.Homes < 2 || cfg.Homes > ledger.MaxMembers {
		return nil, fmt.Errorf("%d homes, 2..%d", cfg.Homes, ledger.MaxMembers)
	}
	w := &Walk{
		cfg: cfg, st: cfg.State, rnd: rand.New(rand.NewPCG(cfg.Seed, 1)), books: newBooks(), op: newPerson("operator"), aud: newPerson("auditor"),
		now: start, slot: first, open: map[chain.ID]*charging{}, caps: map[chain.ID]chain.NanoPerWh{}, expected: map[chain.Slot]map[string]meter.WattHour{},
		stats: Stats{Faults: map[string]int{}, Codes: map[string]int{}, Events: map[string]int{}},
	}
	if w.st == nil {
		w.st = &Store{}
	}
	g := chain.Genesis{
		Version: chain.Version, ChainID: chainID, SlotSeconds: slotMs / 1000, GraceSeconds: 60, Currency: "EUR", MinorDigits: 2,
		Operators: []chain.Key{w.op.key}, Retail: retail, FeedIn: feedIn, Nodes: []chain.Node{{ID: "root"}},
		Credit: chain.Credit{EarnPPM: earnPPM, RedeemPPM: redeemPPM, ExpirySlots: 96 * 7}, StartSeconds: 900, Basis: chain.Simulated, Transfers: true,
		Money: chain.Money{Auditors: []chain.Key{w.aud.key}, PayoutDays: 2, AnswerDays: 2, ResolveDays: 4},
	}
	w.books.edges["root"] = edge{}
	for i := range (cfg.Homes + 19) / 20 {
		id := fmt.Sprintf("f%02d", i)
		g.Nodes = append(g.Nodes, chain.Node{ID: id, Parent: "root", Fee: feederFee})
		w.books.edges[id] = edge{"root", feederFee}
	}
	for i := range cfg.Homes {
		h := newHome(i)
		w.homes = append(w.homes, h)
		g.Members = append(g.Members, chain.Founder{Member: h.member(i < ledger.MaxValidators), Node: h.feeder, Fee: houseFee})
		w.books.edges[h.name] = edge{h.feeder, houseFee}
	}
	for i := range cfg.Cars {
		w.cars = append(w.cars, &car{person: newPerson(fmt.Sprint("driver ", i)), rest: w.rnd.IntN(40)})
	}
	for _, st := range []ledger.State{w.st, cfg.Twin} {
		if st == nil {
			continue
		}
		if _, err := ledger.InitGenesis(st, g, start-slotMs); err != nil {
			return nil, err
		}
	}
	return w, w.found()
}

// found brings in the first money and everybody's first reading.
func (w *Walk) found() error {
	to := map[chain.Account]chain.Nano{chain.AccountGrid: 1e14, chain.AccountPromotion: 1e13, chain.AccountRounding: 1e10}
	for _, c := range w.cars {
		to[c.account()] = chain.Nano(5+w.rnd.IntN(60)) * 1e9
	}
	for _, h := range w.homes {
		if w.rnd.IntN(3) > 0 {
			to[h.owner.account()] = chain.Nano(1+w.rnd.IntN(40)) * 1e9
		}
	}
	accounts := slices.SortedFunc(maps.Keys(to), func(a, b chain.Account) int { return strings.Compare(a.String(), b.String()) })
	for _, a := range accounts {
		w.used = map[chain.Key]bool{}
		if err := w.block([]item{w.mint(a, to[a])}); err != nil {
			return err
		}
	}
	for _, f := range []string{chain.FeatureFirm, chain.FeatureV2V} {
		w.used = map[chain.Key]bool{}
		if err := w.block([]item{w.tx(w.op, chain.TxFeature, chain.FeatureBasis{Feature: f, On: true, Basis: "soak"}, nil)}); err != nil {
			return err
		}
	}
	// Every third driver has a card that charges at his cost.
	w.used = map[chain.Key]bool{}
	var items []item
	for i, c := range w.cars {
		if i%3 == 0 {
			card := newPerson("card of " + c.name)
			items = append(items, w.tx(c.person, chain.TxMandate, chain.Mandate{
				Token: card.key, Kind: chain.MandateCard, PerTap: 1e11, PerDay: 1e12, Cap: 1e6, Expires: start + 400*86_400_000,
				Consent: chain.Sign(card.priv, chain.DomainMandate, chain.ConsentBytes(chainID, c.key)),
			}, func() { c.card = card }))
		}
	}
	if err := w.block(items); err != nil {
		return err
	}
	items = nil
	w.slot = chain.SlotAt(w.now, slotMs/1000)
	for _, h := range w.homes {
		h.dirty = 1
		items = append(items, w.plain(h.sign(w.now, w.reading(h, w.slot-1, h.imp, h.exp, meter.Good)...)))
	}
	return w.block(items)
}

// Stats returns what has happened so far.
func (w *Walk) Stats() Stats { return w.stats }

// State is the ledger's state, to be read only.
func (w *Walk) State() ledger.State { return w.st }

func (w *Walk) chance(p float64) bool    { return w.rnd.Float64() < p }
func (w *Walk) fault(kind string)        { w.stats.Faults[kind]++ }
func pick[T any](w *Walk, from []T) T    { return from[w.rnd.IntN(len(from))] }
func (w *Walk) plain(raw []byte) item    { return item{raw: raw} }
func (w *Walk) end(s chain.Slot) int64   { return s.End(slotMs / 1000) }
func (w *Walk) begin(s chain.Slot) int64 { return s.Start(slotMs / 1000) }

// tx signs with the signer's next nonce; a signer speaks once in a block.
func (w *Walk) tx(p *person, kind chain.TxKind, body any, done func()) item {
	w.used[p.key] = true
	return item{chain.SignTx(chainID, p.nonce+1, kind, body, p.priv), func(r ledger.TxResult) {
		if r.Code != ledger.CodeOK {
			return
		}
		p.nonce++
		if done != nil {
			done()
		}
	}}
}

func (w *Walk) mint(to chain.Account, n chain.Nano) item {
	w.refs++
	return w.tx(w.op, chain.TxMint, chain.Mint{To: to, Amount: n, BankRef: fmt.Sprint("ref ", w.refs)}, func() { w.books.minted += n })
}

// block applies one block and compares the ledger with the books.
func (w *Walk) block(items []item) error {
	w.height++
	w.now += 1000
	in := ledger.BlockInput{Height: w.height, TimeMs: w.now, Trace: true}
	for _, i := range items {
		in.Txs = append(in.Txs, i.raw)
	}
	if w.cfg.Tell != nil {
		w.cfg.Tell(in)
	}
	before := w.books.minted - w.books.burned
	out, err := ledger.Apply(w.st, in)
	if err != nil {
		return &Violation{in, []string{err.Error()}}
	}
	w.stats.Blocks++
	w.stats.Txs += len(items)
	var f findings
	for i, r := range out.Results {
		w.stats.Codes[r.Code.String()]++
		for _, x := range r.Refused {
			w.stats.Codes["record "+x.Code.String()]++
		}
		if r.Code != ledger.CodeOK {
			w.stats.Refused++
		} else if len(w.history) < 200 || w.chance(0.01) {
			w.remember(items[i].raw)
		}
		if items[i].done != nil {
			items[i].done(r)
		}
	}
	for _, v := range out.Violations {
		f.add("a transaction would have broken an invariant: %s (%x)", v.Info, v.Tx)
	}
	f = append(f, w.books.post(w.st, out.Movements, before)...)
	f = append(f, w.heard(out.Events)...)
	if w.cfg.Twin != nil {
		again, err := ledger.Apply(w.cfg.Twin, ledger.BlockInput{Height: in.Height, TimeMs: in.TimeMs, Txs: in.Txs})
		switch {
		case err != nil:
			f.add("the twin: %v", err)
		case len(again.Results) != len(out.Results):
			f.add("the twin has %d results, %d", len(again.Results), len(out.Results))
		case w.full():
			if a, b := ledger.StateHash(w.st), ledger.StateHash(w.cfg.Twin); a != b {
				f.add("the same blocks lead to %s and %s", a, b)
			}
		}
	}
	if w.full() {
		f = append(f, w.check()...)
	}
	if len(f) > 0 {
		return &Violation{in, f}
	}
	return nil
}

func (w *Walk) remember(raw []byte) {
	if len(w.history) < 200 {
		w.history = append(w.history, raw)
		return
	}
	w.history[w.rnd.IntN(len(w.history))] = raw
}

func (w *Walk) full() bool { return w.cfg.Full > 0 && w.stats.Blocks%w.cfg.Full == 0 }

// check looks at the whole state.
func (w *Walk) check() findings {
	w.stats.Full++
	f := findings(ledger.CheckInvariants(w.st))
	return append(f, w.books.reckon(w.st)...)
}

// heard follows the block's events: slots that cleared, sessions that ended,
// meters that moved.
func (w *Walk) heard(events []ledger.Event) (f findings) {
	rebased := map[string]bool{}
	for _, e := range events {
		w.stats.Events[e.Code]++
		switch e.Code {
		case "meter.quarantined", "meter.suspect": // two slips in a row leave a base that its meter falls below for good
			for _, h := range w.homes {
				if h.name == e.Subject {
					w.doubt(h)
				}
			}
		case "meter.rebased":
			rebased[e.Subject] = true
		case "slot.cleared":
			var n int64
			if _, err := fmt.Sscan(e.Subject, &n); err != nil {
				f.add("event %+v: %v", e, err)
				continue
			}
			s := chain.Slot(n)
			v, ok := ledger.SlotOf(w.st, s)
			if !ok {
				f.add("slot %d has cleared and is not there", s)
				continue
			}
			w.stats.TradedWh += v.Energy.Traded
			f = append(f, w.books.slot(&v, w.predicted(&v), w.caps)...)
			delete(w.expected, s)
		case "session.closed", "session.interrupted", "session.expired":
			var id chain.ID
			if err := id.UnmarshalText([]byte(e.Subject)); err != nil {
				f.add("event %+v: %v", e, err)
				continue
			}
			s, _ := ledger.SessionOf(w.st, id)
			if c := w.open[id]; c != nil {
				f = append(f, w.books.session(&s, c)...)
				delete(w.open, id)
				if c.by.at == c {
					c.by.at = nil
				}
				if s.Captured > 0 {
					w.closed = append(w.closed, c)
				}
			}
			switch e.Code {
			case "session.closed":
				w.stats.Closed++
			case "session.interrupted":
				w.stats.Interrupted++
			}
		case "payout.asked":
			var n uint64
			_, _ = fmt.Sscan(e.Subject, &n)
			w.payouts = append(w.payouts, n)
		case "dispute.opened":
			var n uint64
			_, _ = fmt.Sscan(e.Subject, &n)
			w.disputes = append(w.disputes, n)
		}
	}
	for _, h := range w.homes {
		if v, ok := ledger.MeterOf(w.st, h.key, "site"); ok && v.Based {
			var q *ledger.QuarantineView
			if x, in := ledger.QuarantineOf(w.st, h.key, 0, "site"); in {
				q = &x
				w.doubt(h)
			}
			f = append(f, h.last.step(h.name, v, rebased[h.name], q)...)
		}
	}
	return f
}

// doubt keeps from predicting a home whose meter has jumped.
func (w *Walk) doubt(h *home) {
	w.spoil(h)
	for _, orders := range w.expected {
		delete(orders, "buy/"+h.name)
		delete(orders, "sell/"+h.name)
	}
}

// predicted is what the homes' own meters say a slot's orders are, of those
// homes whose readings were in order.
func (w *Walk) predicted(v *ledger.SlotView) map[string]meter.WattHour {
	return w.expected[v.Slot]
}

// Finish lets everything settle and checks the whole state, and that every Wh
// of every register is booked.
func (w *Walk) Finish() error {
	for range 60 {
		for _, h := range w.homes {
			h.away = 0
		}
		items := w.flush()
		if len(items) == 0 {
			break
		}
		if err := w.block(items); err != nil {
			return err
		}
	}
	for range 8 {
		w.now += slotMs
		if err := w.block(nil); err != nil {
			return err
		}
	}
	f := w.check()
	for _, h := range w.homes {
		m, ok := ledger.MemberOf(w.st, h.key)
		if !ok || !h.last.Known {
			continue
		}
		imp, exp := h.last.SegImp+h.last.Import-h.last.FirstImp, h.last.SegExp+h.last.Export-h.last.FirstE
		for _, c := range ledger.CorrectionsOf(w.st, h.key) {
			if c.State == ledger.CorrectionBooked {
				imp += c.Import
				exp += c.Export
			}
		}
		if m.Import != imp || m.Export != exp {
			f.add("%s: %d and %d Wh booked, its registers moved by %d and %d", h.name, m.Import, m.Export, imp, exp)
		}
	}
	for id := range w.open {
		if s, ok := ledger.SessionOf(w.st, id); ok && s.State.Open() {
			f.add("session %s holds money for ever: %s", id, s.State)
		}
	}
	if len(f) > 0 {
		return &Violation{ledger.BlockInput{Height: w.height, TimeMs: w.now}, f}
	}
	return nil
}
