package ledger

import (
	"crypto/ed25519"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

const (
	slotMs  = 900_000
	t0      = 1_800_000_000_000 // a slot's start
	firstSl = chain.Slot(t0 / slotMs)
)

// seededKey derives a key pair from a name.
func seededKey(name string) (ed25519.PrivateKey, chain.Key) {
	seed := chain.Sum([]byte(name))
	priv := ed25519.NewKeyFromSeed(seed[:])
	return priv, chain.Key(priv.Public().(ed25519.PublicKey))
}

// person signs transactions and quotes.
type person struct {
	priv ed25519.PrivateKey
	key  chain.Key
}

func newPerson(name string) *person {
	priv, k := seededKey("person " + name)
	return &person{priv, k}
}

func (p *person) account() chain.Account { return chain.AccountOf(p.key) }

// house is a gateway's side: its chain, its meters.
type house struct {
	name     string
	priv     ed25519.PrivateKey
	key      chain.Key
	owner    *person
	pos      chain.Position
	prev     chain.Hash
	pages    map[string]uint64
	imp, exp map[string]meter.WattHour
	sent     [][]byte
}

func newHouse(name string) *house {
	priv, k := seededKey("device " + name)
	return &house{
		name: name, priv: priv, key: k, owner: newPerson("owner " + name), pos: chain.Position{Epoch: 1},
		pages: map[string]uint64{}, imp: map[string]meter.WattHour{}, exp: map[string]meter.WattHour{},
	}
}

func (h *house) member() chain.Member {
	_, val := seededKey("validator " + h.name)
	return chain.Member{Device: h.key, Name: h.name, Owner: h.owner.key, Validator: val, MaxPower: 20_000, Addrs: []string{"/ip4/192.0.2.1/tcp/4001"}}
}

// sign appends a block to the house's chain.
func (h *house) sign(records ...chain.Record) []byte {
	h.pos.Number++
	s, err := chain.SignBlock(chain.Block{Chain: "test", Epoch: h.pos.Epoch, Number: h.pos.Number, Prev: h.prev, Time: t0, Records: records}, h.priv)
	if err != nil {
		panic(err)
	}
	h.prev = s.Hash
	h.sent = append(h.sent, s.Raw)
	return s.Raw
}

// measure adds energy to a meter's registers and states them at a slot's end.
func (h *house) measure(id string, role chain.Role, s chain.Slot, imp, exp meter.WattHour) chain.Record {
	h.imp[id] += imp
	h.exp[id] += exp
	return h.state(id, role, s, h.imp[id], h.exp[id], meter.Good)
}

func (h *house) state(id string, role chain.Role, s chain.Slot, imp, exp meter.WattHour, q meter.Quality) chain.Record {
	h.pages[id]++
	return chain.NewRecord(chain.KindMeter, chain.MeterRecord{
		Slot: s, Meter: id, Role: role, Page: h.pages[id], Import: imp, Export: exp, Quality: q, At: s.End(900), Count: 1,
	})
}

func (h *house) site(s chain.Slot, imp, exp meter.WattHour) chain.Record {
	return h.measure("site", chain.RoleSite, s, imp, exp)
}

// world is a microgrid under test.
//
//	root -- f1 -- a, b
//	     \- f2 -- c
type world struct {
	t        testing.TB
	id       string // chain id; only "test" has gateways that sign
	st       State
	twin     plainState // a second replica, if not nil
	op       *person
	a, b, c  *house
	driver   *person
	height   int64
	now      int64
	last     BlockOutput
	nonces   map[chain.Key]uint64
	bankRefs int
	keep     bool         // keep the blocks
	blocks   []BlockInput // that were kept
}

func testGenesis(houses ...*house) chain.Genesis {
	g := chain.Genesis{
		Version: chain.Version, ChainID: "test", SlotSeconds: 900, GraceSeconds: 60, Currency: "EUR", MinorDigits: 2,
		Operators: []chain.Key{newPerson("operator").key}, Retail: 300_000, FeedIn: 80_000,
		Nodes:  []chain.Node{{ID: "root"}, {ID: "f1", Parent: "root", Fee: 10_000}, {ID: "f2", Parent: "root", Fee: 10_000}},
		Credit: chain.Credit{EarnPPM: 50_000, RedeemPPM: 500_000, ExpirySlots: 100}, StartSeconds: 300, Basis: "simulated",
	}
	for i, h := range houses {
		node := "f1"
		if i == 2 {
			node = "f2"
		}
		g.Members = append(g.Members, chain.Founder{Member: h.member(), Node: node, Fee: 5_000})
	}
	return g
}

// newWorld starts a microgrid of three houses whose meters have reported the
// slot before, with money for the supplier, for credits and for the driver.
func newWorld(t testing.TB) *world {
	w := &world{t: t, id: "test", st: NewMapState(), op: newPerson("operator"), a: newHouse("a"), b: newHouse("b"), c: newHouse("c"), driver: newPerson("driver"), now: t0, nonces: map[chain.Key]uint64{}}
	if _, err := InitGenesis(w.st, testGenesis(w.a, w.b, w.c), t0-slotMs); err != nil {
		t.Fatal(err)
	}
	w.ok(w.mint(chain.AccountGrid, 1e12), w.mint(chain.AccountPromotion, 1e12), w.mint(w.driver.account(), 1e10))
	w.ok(w.a.sign(w.a.site(firstSl-1, 0, 0)), w.b.sign(w.b.site(firstSl-1, 0, 0)), w.c.sign(w.c.site(firstSl-1, 0, 0)))
	return w
}

// block applies one block, a second after the last, and checks everything.
func (w *world) block(txs ...[]byte) BlockOutput {
	w.t.Helper()
	w.height++
	w.now += 1000
	in := BlockInput{Height: w.height, TimeMs: w.now, Txs: txs}
	if w.keep {
		w.blocks = append(w.blocks, in)
	}
	out, err := Apply(w.st, in)
	if err != nil {
		w.t.Fatalf("block %d: %v", w.height, err)
	}
	if bad := CheckInvariants(w.st); len(bad) > 0 || len(out.Violations) > 0 {
		w.t.Fatalf("block %d: %v %v", w.height, bad, out.Violations)
	}
	if w.twin != nil {
		again, err := Apply(w.twin, BlockInput{Height: w.height, TimeMs: w.now, Txs: txs})
		if a, b := StateHash(w.st), StateHash(w.twin); err != nil || a != b {
			w.t.Fatalf("block %d: replicas have %s and %s (%v)", w.height, a, b, err)
		}
		if !reflect.DeepEqual(again, out) {
			w.t.Fatalf("block %d: replicas did %+v and %+v", w.height, out, again)
		}
	}
	w.last = out
	return out
}

// ok applies a block all of whose transactions and records must be accepted.
func (w *world) ok(txs ...[]byte) BlockOutput {
	w.t.Helper()
	out := w.block(txs...)
	for i, r := range out.Results {
		if r.Code != CodeOK || len(r.Refused) > 0 {
			w.t.Fatalf("block %d tx %d: %s %s %v", w.height, i, r.Code, r.Info, r.Refused)
		}
	}
	return out
}

// refused applies one transaction that must be refused with code, at
// admission and at execution, and must change nothing.
func (w *world) refused(code Code, tx []byte) {
	w.t.Helper()
	before := StateHash(w.st)
	if got := CheckTx(NewOverlay(w.st), tx).Code; got != code {
		w.t.Fatalf("admitted with %s, want %s", got, code)
	}
	if got := w.block(tx).Results[0]; got.Code != code {
		w.t.Fatalf("executed with %s (%s), want %s", got.Code, got.Info, code)
	}
	if StateHash(w.st) != before {
		w.t.Fatalf("refused with %s, and the state changed", code)
	}
}

// refusedRecord applies a block of one record that must be refused.
func (w *world) refusedRecord(code Code, h *house, rec chain.Record) {
	w.t.Helper()
	res := w.block(h.sign(rec)).Results[0]
	if res.Code != CodeOK || len(res.Refused) != 1 || res.Refused[0].Code != code {
		w.t.Fatalf("got %+v, want a record refused with %s", res, code)
	}
}

// at moves the clock to just after a slot's end.
func (w *world) at(s chain.Slot) { w.now = max(w.now, s.End(900)) }

func (w *world) tx(p *person, kind chain.TxKind, body any) []byte {
	w.nonces[p.key]++
	return chain.SignTx(w.id, w.nonces[p.key], kind, body, p.priv)
}

func (w *world) mint(to chain.Account, n chain.Nano) []byte {
	w.bankRefs++
	return w.tx(w.op, chain.TxMint, chain.Mint{To: to, Amount: n, BankRef: fmt.Sprint("ref ", w.bankRefs)})
}

func (w *world) quote(h *house, p *person, id byte, connector uint8, wh meter.WattHour) chain.Quote {
	q := chain.Quote{
		Version: chain.Version, Chain: "test", ID: chain.ID{id}, Gateway: h.key, Connector: connector, Driver: p.key,
		Created: w.now, Expires: w.now + 300_000, MaxWh: wh, Cap: 400_000, Hold: 400_000 * chain.Nano(wh),
	}
	return q
}

func signQuote(q chain.Quote, p *person) chain.Record {
	b := chain.Marshal(q)
	return chain.NewRecord(chain.KindSessionOpen, chain.SessionOpen{Quote: chain.SignedQuote{Quote: b, Sig: chain.Sign(p.priv, chain.DomainQuote, b)}})
}

func sessionMeter(id byte, seq uint32, s chain.Slot, reg meter.WattHour, at int64) chain.Record {
	return chain.NewRecord(chain.KindSessionMeter, chain.SessionMeter{Session: chain.ID{id}, Seq: seq, Slot: s, Register: reg, Quality: meter.Good, At: at})
}

func sessionStop(id byte, seq uint32, s chain.Slot, reg meter.WattHour, at int64) chain.Record {
	return chain.NewRecord(chain.KindSessionStop, chain.SessionStop{Session: chain.ID{id}, Seq: seq, Slot: s, Register: reg, Quality: meter.Good, At: at, Reason: chain.StopDriver, Receipt: chain.Hash{id}})
}

func (w *world) session(id byte) SessionView {
	w.t.Helper()
	s, ok := SessionOf(w.st, chain.ID{id})
	if !ok {
		w.t.Fatalf("no session %d", id)
	}
	return s
}

func (w *world) slot(s chain.Slot) SlotView {
	w.t.Helper()
	v, ok := SlotOf(w.st, s)
	if !ok {
		w.t.Fatalf("slot %d is not cleared: %+v", s, StatusOf(w.st))
	}
	return v
}

func (w *world) fill(s chain.Slot, id string) FillView {
	w.t.Helper()
	v := w.slot(s)
	i := slices.IndexFunc(v.Fills, func(f FillView) bool { return f.ID == id })
	if i < 0 {
		w.t.Fatalf("slot %d has no fill %s: %+v", s, id, v.Fills)
	}
	return v.Fills[i]
}

func (w *world) balance(a chain.Account) chain.Nano { return balance(w.st, a) }

// saw checks that the last block told of an event.
func (w *world) saw(code string) {
	w.t.Helper()
	if !slices.ContainsFunc(w.last.Events, func(e Event) bool { return e.Code == code }) {
		w.t.Fatalf("no event %s in %+v", code, w.last.Events)
	}
}

func equal[T comparable](t interface {
	Helper()
	Fatalf(string, ...any)
}, what string, got, want T,
) {
	t.Helper()
	if got != want {
		t.Fatalf("%s is %v, want %v", what, got, want)
	}
}

func mentions(lines []string, words ...string) bool {
	return slices.ContainsFunc(lines, func(l string) bool {
		for _, w := range words {
			if !strings.Contains(l, w) {
				return false
			}
		}
		return true
	})
}
