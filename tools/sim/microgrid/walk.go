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

// Ingredients is everything that a walk does to the ledger; [Stats] counts
// how often each has been done.
var Ingredients = []string{
	"attested", "battery charges", "battery discharges", "begin register 0", "block repeated", "card issued", "card lost", "clock ahead",
	"clock behind", "clock says 1970", "clock years apart", "conflicting stop", "correction", "correction ruled", "dishonest gateway: wild record",
	"dispute", "dispute answered", "dispute resolved", "duplicate start", "energy after stop", "energy by departure", "equivocation", "firm cancelled",
	"firm offer", "firm offer of a car", "firm taken", "gateway invited", "gateway joined", "gateway replaced", "hostile: another microgrid's",
	"hostile: damaged", "hostile: dispute of others' session", "hostile: foreign block", "hostile: forged mint", "hostile: joins uninvited",
	"hostile: noise", "hostile: overflow", "hostile: payout of nothing", "hostile: replay", "hostile: retired operator's key", "hostile: too large",
	"invitation expired", "invoice", "joined twice", "journal lost", "lost card used", "member revoked", "meter 0 after a reboot", "meter falls",
	"meter jumps", "meter released", "meter stuck", "meter suspect", "meter swapped", "money paid in", "network fees change",
	"offline beyond the limit", "operator's key changed", "order to dim", "partition", "payment without energy", "payout asked", "payout cancelled",
	"payout paid", "price change", "reading missing", "reading repeated", "refund", "reserve", "reserve asked back", "reserve pays", "rules change",
	"session meter suspect", "session record repeated", "session record skipped", "session register -1", "session register falls",
	"session register jumps", "session stuck", "session without the ledger", "session without the ledger refused", "session without the ledger settled",
	"stop missing", "transfer", "v2g: a car feeds the grid", "v2h: a car feeds its house", "v2v session", "validator joined", "validator revoked",
}

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
	memory
	cfg  Config
	st   ledger.State
	pcg  *rand.PCG
	rnd  *rand.Rand
	used map[chain.Key]bool // signers of this block
}

// memory is all that a walk knows between two slots, in plain values, so that
// a [Walk.Checkpoint] holds all of it.
type memory struct {
	Books             *books
	Operator, Auditor *person
	Homes             []*home
	Cars              []*car
	Now               int64
	Height            int64
	Current           chain.Slot
	IDs               uint64
	Refs              int
	History           [][]byte // some accepted transactions, to be replayed
	Ended             []*charging
	Open              map[chain.ID]*charging
	Unheard           map[chain.ID]*charging // begun without the ledger
	Caps              map[chain.ID]chain.NanoPerWh
	Expected          map[chain.Slot]map[string]meter.WattHour
	Zoned             chain.Slot // of the newest change of the fee tree
	Payouts           []uint64
	Disputes          []uint64
	Firms             []chain.ID
	Waits             []chain.CorrectionRuling
	Invited           []invited
	Founded           int     // numbers of homes given out
	Heir              *person // who is to be the operator from block HeirAt on
	HeirAt            int64
	Retired           []*person // operators whose keys are not valid any more
	Count             Stats
}

// invited is a gateway that may join.
type invited struct {
	N       int // of the home
	Once    *person
	Node    string
	Fee     chain.NanoPerWh
	Votes   bool
	Expires int64 // ms
	After   int   // the home whose meters it takes over; -1: none
	Late    bool  // it lets its invitation expire
}

// item is a transaction with what its sender does when he hears its result.
type item struct {
	raw  []byte
	done func(ledger.TxResult)
}

func blank(cfg Config) *Walk {
	w := &Walk{cfg: cfg, st: cfg.State, pcg: rand.NewPCG(cfg.Seed, 1)}
	w.rnd = rand.New(w.pcg)
	if w.st == nil {
		w.st = &Store{}
	}
	w.Open, w.Unheard, w.Caps, w.Expected = map[chain.ID]*charging{}, map[chain.ID]*charging{}, map[chain.ID]chain.NanoPerWh{}, map[chain.Slot]map[string]meter.WattHour{}
	w.Count = Stats{Faults: map[string]int{}, Codes: map[string]int{}, Events: map[string]int{}}
	return w
}

// New founds the microgrid.
func New(cfg Config) (*Walk, error) {
	if cfg.Homes < 2 || cfg.Homes > ledger.MaxMembers {
		return nil, fmt.Errorf("%d homes, 2..%d", cfg.Homes, ledger.MaxMembers)
	}
	w := blank(cfg)
	w.Books, w.Operator, w.Auditor, w.Now, w.Current, w.Founded = newBooks(), newPerson("operator"), newPerson("auditor"), start, first, cfg.Homes
	g := chain.Genesis{
		Version: chain.Version, ChainID: chainID, SlotSeconds: slotMs / 1000, GraceSeconds: 60, Currency: "EUR", MinorDigits: 2,
		Operators: []chain.Key{w.Operator.key}, Retail: retail, FeedIn: feedIn, Nodes: []chain.Node{{ID: "root"}},
		Credit: chain.Credit{EarnPPM: earnPPM, RedeemPPM: redeemPPM, ExpirySlots: 96 * 7}, StartSeconds: 900, Basis: chain.Simulated, Transfers: true,
		Money: chain.Money{Auditors: []chain.Key{w.Auditor.key}, PayoutDays: 2, AnswerDays: 2, ResolveDays: 4},
	}
	w.Books.Edges["root"] = edge{}
	for i := range (cfg.Homes + 19) / 20 {
		id := fmt.Sprintf("f%02d", i)
		g.Nodes = append(g.Nodes, chain.Node{ID: id, Parent: "root", Fee: feederFee})
		w.Books.Edges[id] = edge{"root", feederFee}
	}
	for i := range cfg.Homes {
		h := newHome(i)
		w.Homes = append(w.Homes, h)
		g.Members = append(g.Members, chain.Founder{Member: h.member(i < ledger.MaxValidators), Node: h.Feeder, Fee: houseFee})
		w.Books.Edges[h.name] = edge{h.Feeder, houseFee}
		if i < ledger.MaxValidators {
			w.Books.Seats[h.validator()], w.Books.Voting[h.validator()] = true, true
		}
	}
	for i := range cfg.Cars {
		c := newCar(i, cfg.Homes)
		c.Rest = w.rnd.IntN(40)
		w.Cars = append(w.Cars, c)
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
	for _, c := range w.Cars {
		to[c.Driver.account()] = chain.Nano(5+w.rnd.IntN(60)) * 1e9
	}
	for _, h := range w.Homes {
		if w.rnd.IntN(3) > 0 || slices.ContainsFunc(w.Cars, func(c *car) bool { return c.home == h.N }) {
			to[h.Owner.account()] = chain.Nano(1+w.rnd.IntN(40)) * 1e9
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
		if err := w.block([]item{w.tx(w.Operator, chain.TxFeature, chain.FeatureBasis{Feature: f, On: true, Basis: "soak"}, nil)}); err != nil {
			return err
		}
	}
	// Everybody has a card, and who pays for it sets money apart for gateways
	// where it may be used without the ledger.
	steps := make([]int, len(w.Cars))
	var items []item
	for range 8 { // two cards of one payer take turns
		w.used = map[chain.Key]bool{}
		items = nil
		for i, c := range w.Cars {
			if w.used[w.payer(c).key] {
				continue
			}
			if steps[i]++; steps[i] == 1 {
				items = append(items, w.issue(c))
			} else if steps[i] < 5 {
				items = append(items, w.setApart(c, 5)...)
			}
		}
		if err := w.block(items); err != nil {
			return err
		}
	}
	items = nil
	w.Current = chain.SlotAt(w.Now, slotMs/1000)
	for _, h := range w.Homes {
		h.Dirty = 1
		items = append(items, w.plain(h.sign(w.Now, w.reading(h, w.Current-1, h.Imp, h.Exp, meter.Good)...)))
	}
	return w.block(items)
}

// Stats returns what has happened so far.
func (w *Walk) Stats() Stats { return w.Count }

// Config is what the walk follows from.
func (w *Walk) Config() Config { return w.cfg }

// State is the ledger's state, to be read only.
func (w *Walk) State() ledger.State { return w.st }

func (w *Walk) chance(p float64) bool    { return w.rnd.Float64() < p }
func pick[T any](w *Walk, from []T) T    { return from[w.rnd.IntN(len(from))] }
func (w *Walk) plain(raw []byte) item    { return item{raw: raw} }
func (w *Walk) end(s chain.Slot) int64   { return s.End(slotMs / 1000) }
func (w *Walk) begin(s chain.Slot) int64 { return s.Start(slotMs / 1000) }

// fault counts what is done to the ledger.
func (w *Walk) fault(kind string) {
	if !slices.Contains(Ingredients, kind) {
		panic(fmt.Sprintf("microgrid: %q is not among the ingredients", kind))
	}
	w.Count.Faults[kind]++
}

// tx signs with the signer's next nonce; a signer speaks once in a block.
func (w *Walk) tx(p *person, kind chain.TxKind, body any, done func()) item {
	w.used[p.key] = true
	return item{chain.SignTx(chainID, p.Nonce+1, kind, body, p.priv), func(r ledger.TxResult) {
		if r.Code != ledger.CodeOK {
			return
		}
		p.Nonce++
		if done != nil {
			done()
		}
	}}
}

func (w *Walk) mint(to chain.Account, n chain.Nano) item {
	w.Refs++
	return w.tx(w.Operator, chain.TxMint, chain.Mint{To: to, Amount: n, BankRef: fmt.Sprint("ref ", w.Refs)}, func() { w.Books.Minted += n })
}

// block applies one block and compares the ledger with the books.
func (w *Walk) block(items []item) error {
	w.Height++
	w.Now += 1000
	in := ledger.BlockInput{Height: w.Height, TimeMs: w.Now, Trace: true}
	for _, i := range items {
		in.Txs = append(in.Txs, i.raw)
	}
	if w.cfg.Tell != nil {
		w.cfg.Tell(in)
	}
	before := w.Books.Minted - w.Books.Burned
	out, err := ledger.Apply(w.st, in)
	if err != nil {
		return &Violation{in, []string{err.Error()}}
	}
	w.Count.Blocks++
	w.Count.Txs += len(items)
	var f findings
	for i, r := range out.Results {
		w.Count.Codes[r.Code.String()]++
		for _, x := range r.Refused {
			w.Count.Codes["record "+x.Code.String()]++
		}
		if r.Code != ledger.CodeOK {
			w.Count.Refused++
		} else if len(w.History) < 200 || w.chance(0.01) {
			w.remember(items[i].raw)
		}
		if items[i].done != nil {
			items[i].done(r)
		}
	}
	for _, v := range out.Violations {
		f.add("a transaction would have broken an invariant: %s (%x)", v.Info, v.Tx)
	}
	f = append(f, w.Books.post(w.st, out.Movements, before)...)
	f = append(f, w.heard(out.Events)...)
	f = append(f, w.Books.votes(out.Validators)...)
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
	if len(w.History) < 200 {
		w.History = append(w.History, raw)
		return
	}
	w.History[w.rnd.IntN(len(w.History))] = raw
}

func (w *Walk) full() bool { return w.cfg.Full > 0 && w.Count.Blocks%w.cfg.Full == 0 }

// check looks at the whole state.
func (w *Walk) check() findings {
	w.Count.Full++
	f := findings(ledger.CheckInvariants(w.st))
	return append(f, w.Books.reckon(w.st)...)
}

// heard follows the block's events: slots that cleared, sessions that ended,
// meters that moved.
func (w *Walk) heard(events []ledger.Event) (f findings) {
	rebased := map[string]bool{}
	for _, e := range events {
		w.Count.Events[e.Code]++
		switch e.Code {
		case "meter.quarantined", "meter.suspect": // two slips in a row leave a base that its meter falls below for good
			for _, h := range w.Homes {
				if h.name == e.Subject {
					w.doubt(h)
				}
			}
		case "meter.rebased":
			rebased[e.Subject] = rebased[e.Subject] || strings.HasPrefix(e.Detail, "site")
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
			w.Count.TradedWh += v.Energy.Traded
			f = append(f, w.Books.slot(&v, w.predicted(&v), w.Caps)...)
			delete(w.Expected, s)
		case "session.held", "session.refused":
			var id chain.ID
			if err := id.UnmarshalText([]byte(e.Subject)); err != nil {
				f.add("event %+v: %v", e, err)
				continue
			}
			if c := w.Unheard[id]; c != nil {
				f = append(f, w.settled(c, e.Code == "session.held")...)
			}
		case "session.closed", "session.interrupted", "session.expired":
			var id chain.ID
			if err := id.UnmarshalText([]byte(e.Subject)); err != nil {
				f.add("event %+v: %v", e, err)
				continue
			}
			s, _ := ledger.SessionOf(w.st, id)
			if c := w.Open[id]; c != nil {
				f = append(f, w.Books.session(&s, c)...)
				delete(w.Open, id)
				if c.by.at == c {
					c.by.at = nil
				}
				if s.Captured > 0 {
					w.Ended = append(w.Ended, c)
				}
			}
			switch e.Code {
			case "session.closed":
				w.Count.Closed++
			case "session.interrupted":
				w.Count.Interrupted++
			}
		case "payout.asked":
			var n uint64
			_, _ = fmt.Sscan(e.Subject, &n)
			w.Payouts = append(w.Payouts, n)
		case "dispute.opened":
			var n uint64
			_, _ = fmt.Sscan(e.Subject, &n)
			w.Disputes = append(w.Disputes, n)
		}
	}
	for _, h := range w.Homes {
		if v, ok := ledger.MeterOf(w.st, h.key, "site"); ok && v.Based {
			var q *ledger.QuarantineView
			if x, in := ledger.QuarantineOf(w.st, h.key, 0, "site"); in {
				q = &x
				w.doubt(h)
			}
			f = append(f, h.Last.step(h.name, v, rebased[h.name], q)...)
		}
	}
	return f
}

// doubt keeps from predicting a home whose meter has jumped.
func (w *Walk) doubt(h *home) {
	w.spoil(h)
	for _, orders := range w.Expected {
		delete(orders, "buy/"+h.name)
		delete(orders, "sell/"+h.name)
	}
}

// predicted is what the homes' own meters say a slot's orders are, of those
// homes whose readings were in order.
func (w *Walk) predicted(v *ledger.SlotView) map[string]meter.WattHour {
	return w.Expected[v.Slot]
}

// Finish lets everything settle and checks the whole state, and that every Wh
// of every register is booked.
func (w *Walk) Finish() error {
	for range 60 {
		for _, h := range w.Homes {
			h.Away = 0
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
		w.Now += slotMs
		if err := w.block(nil); err != nil {
			return err
		}
	}
	f := w.check()
	for _, h := range w.Homes {
		m, ok := ledger.MemberOf(w.st, h.key)
		if !ok || !h.Last.Known {
			continue
		}
		imp, exp := h.Last.SegImp+h.Last.Import-h.Last.FirstImp, h.Last.SegExp+h.Last.Export-h.Last.FirstE
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
	for id := range w.Open {
		if s, ok := ledger.SessionOf(w.st, id); ok && s.State.Open() {
			f.add("session %s holds money for ever: %s", id, s.State)
		}
	}
	if len(f) > 0 {
		return &Violation{ledger.BlockInput{Height: w.Height, TimeMs: w.Now}, f}
	}
	return nil
}
