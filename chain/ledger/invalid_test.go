package ledger

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// kindsOf returns the constants of a type in package chain by name, so that a
// kind that is added later without its row here fails.
func kindsOf(t *testing.T, typ string) map[string]uint16 {
	t.Helper()
	kinds := map[string]uint16{}
	for _, f := range shipped(t, "..") {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				if id, ok := v.Type.(*ast.Ident); !ok || id.Name != typ {
					continue
				}
				n, err := strconv.ParseUint(v.Values[0].(*ast.BasicLit).Value, 0, 16)
				if err != nil {
					t.Fatalf("%s: %v", v.Names[0].Name, err)
				}
				kinds[v.Names[0].Name] = uint16(n)
			}
		}
	}
	if len(kinds) == 0 {
		t.Fatalf("no constants of type %s", typ)
	}
	return kinds
}

// shipped parses the files of a folder that ship.
func shipped(t *testing.T, dir string) (files []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// ripe is a microgrid in which something of everything exists: settled
// sessions (1, 2), a car that sells (3), an open payout and dispute, a firm
// offer, a correction that waits, an invitation, a mandate and a reserve.
type ripe struct {
	*world
	once, stranger, auditor, token, spare *person
	newcomer                              *house
	followed                              chain.Checkpoint
	far                                   *world // another microgrid that has locked (5) and answered (6)
}

func newRipe(t testing.TB) *ripe {
	r := &ripe{once: newPerson("one-time"), stranger: newPerson("stranger"), auditor: newPerson("auditor"), token: newPerson("token"), spare: newPerson("spare token"), newcomer: newHouse("d")}
	r.world = newWorldOf(t, func(g *chain.Genesis) { g.Transfers, g.Money.Auditors = true, []chain.Key{r.auditor.key} })
	w := r.world
	w.ok(w.mint(w.a.owner.account(), 1e10))
	w.ok(w.tx(w.op, chain.TxMint, chain.Mint{To: w.c.owner.account(), Amount: 1e10, BankRef: "used"}))
	w.on(chain.FeatureFirm)
	w.on(chain.FeatureV2V)
	w.charge(1, w.b, firstSl, 500, false, map[*house][2]meter.WattHour{w.b: {500, 0}})
	w.charge(2, w.b, firstSl+1, 400, false, map[*house][2]meter.WattHour{w.b: {400, 0}})
	sells := w.quote(w.c, w.driver, 3, 1, 100)
	sells.SellWh = 1000
	w.ok(w.c.sign(signQuote(sells, w.driver), sessionMeter(3, 1, firstSl+2, 10, w.now)))
	w.ok(w.tx(w.driver, chain.TxPayout, chain.Payout{Amount: 1e9}), w.tx(w.driver, chain.TxDispute, chain.Dispute{Session: chain.ID{2}, Amount: 1e7, Reason: "x"}))
	w.ok(w.b.sign(chain.NewRecord(chain.KindMeterCorrection, chain.MeterCorrection{ID: chain.ID{1}, Slot: firstSl, Import: -5, Reason: "x"})))
	w.ok(w.tx(w.c.owner, chain.TxFirmOffer, chain.FirmOffer{ID: chain.ID{9}, Device: w.c.key, Side: chain.Sell, From: firstSl + 50, To: firstSl + 50, Wh: 100, Price: 120_000}))
	w.ok(w.tx(w.op, chain.TxInvite, chain.Invite{Key: r.once.key, Node: "f2", Expires: w.now + 1e8}))
	w.ok(w.a.sign(w.a.site(firstSl+2, 1, 0)))
	w.ok(w.a.sign(w.a.site(firstSl+3, 1e6, 0))) // jumps
	w.ok(w.tx(w.driver, chain.TxMandate, w.ownMandate(r.token)), w.tx(w.driver, chain.TxOffline, chain.Offline{Gateway: w.a.key, Amount: 1e8}))
	r.between()
	return r
}

func (w *world) ownMandate(token *person) chain.Mandate { return w.mandate(token, w.driver) }

// flaw is a way in which a statement can be wrong.
type flaw string

const (
	negative flaw = "negative"
	overflow flaw = "overflow"
	unknown  flaw = "unknown"     // an account, session, member, ... that does not exist
	state    flaw = "state"       // it exists and is not in a state for it
	notYours flaw = "not yours"   // by somebody who may not
	form     flaw = "out of form" // a field beyond what it may be
)

var flaws = []flaw{negative, overflow, unknown, state, notYours, form}

// try is one wrong statement of a kind and the code that refuses it.
type try struct {
	body any     // nil: the valid one
	by   *person // nil: who may
	code Code
}

// txRow tells of a kind: a statement that is accepted, and one for every flaw
// or the reason why there is none.
type txRow struct {
	by   func(r *ripe) *person
	body func(r *ripe) any
	bad  func(r *ripe) map[flaw]try
	none map[flaw]string
}

func operator(r *ripe) *person  { return r.op }
func theDriver(r *ripe) *person { return r.driver }

const long = "a text that is longer than the sixty-four bytes which a reason may have"

var txRows = map[chain.TxKind]txRow{
	chain.TxMint: {
		operator, func(r *ripe) any { return chain.Mint{To: r.driver.account(), Amount: 5, BankRef: "new"} },
		func(r *ripe) map[flaw]try {
			m := chain.Mint{To: r.driver.account(), Amount: 5, BankRef: "new"}
			return map[flaw]try{
				negative: {with(m, func(m *chain.Mint) { m.Amount = -5 }), nil, CodeAmount},
				overflow: {with(m, func(m *chain.Mint) { m.Amount = math.MaxInt64 }), nil, CodeOverflow},
				unknown:  {with(m, func(m *chain.Mint) { m.To = chain.Account{1} }), nil, CodeAccount},
				state:    {with(m, func(m *chain.Mint) { m.BankRef = "used" }), nil, CodeBankRef},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {with(m, func(m *chain.Mint) { m.BankRef = long }), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxBurn: {
		operator, func(r *ripe) any { return chain.Burn{From: r.driver.account(), Amount: 5, BankRef: "new"} },
		func(r *ripe) map[flaw]try {
			b := chain.Burn{From: r.driver.account(), Amount: 5, BankRef: "new"}
			return map[flaw]try{
				negative: {with(b, func(b *chain.Burn) { b.Amount = -5 }), nil, CodeAmount},
				overflow: {with(b, func(b *chain.Burn) { b.Amount = math.MaxInt64 }), nil, CodeFunds},
				unknown:  {with(b, func(b *chain.Burn) { b.From = r.stranger.account() }), nil, CodeFunds},
				state:    {with(b, func(b *chain.Burn) { b.From = chain.AccountReserve }), nil, CodeAccount},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {with(b, func(b *chain.Burn) { b.BankRef = "" }), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxTransfer: {
		theDriver, func(r *ripe) any { return chain.Transfer{To: r.stranger.account(), Amount: 5} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {chain.Transfer{To: r.stranger.account(), Amount: -5}, nil, CodeAmount},
				overflow: {chain.Transfer{To: r.stranger.account(), Amount: math.MaxInt64}, nil, CodeFunds},
				unknown:  {chain.Transfer{To: chain.Account{2}, Amount: 5}, nil, CodeAccount},
				state:    {chain.Transfer{To: chain.AccountGrid, Amount: 5}, nil, CodeAccount},
				notYours: {nil, r.spare, CodeFunds}, // everybody spends from his own account
				form:     {chain.Transfer{To: r.driver.account(), Amount: 5}, nil, CodeAccount},
			}
		}, nil,
	},
	chain.TxInvite: {
		operator, func(r *ripe) any { return chain.Invite{Key: r.spare.key, Node: "f1", Fee: 5, Expires: r.now + 1e7} },
		func(r *ripe) map[flaw]try {
			i := chain.Invite{Key: r.spare.key, Node: "f1", Fee: 5, Expires: r.now + 1e7}
			return map[flaw]try{
				negative: {with(i, func(i *chain.Invite) { i.Fee = -1 }), nil, CodeRange},
				overflow: {with(i, func(i *chain.Invite) { i.Fee = math.MaxInt64 }), nil, CodeRange},
				unknown:  {with(i, func(i *chain.Invite) { i.Node = "nowhere" }), nil, CodeNode},
				state:    {with(i, func(i *chain.Invite) { i.Key = r.once.key }), nil, CodeTaken},
				notYours: {nil, r.a.owner, CodeNotAllowed},
				form:     {with(i, func(i *chain.Invite) { i.Key = chain.Key{} }), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxJoin: {
		func(r *ripe) *person { return r.once }, func(r *ripe) any { return joinOf(r.newcomer, nil) },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {joinOf(r.newcomer, func(m *chain.Member) { m.MaxPower = -1 }), nil, CodeRange},
				overflow: {joinOf(r.newcomer, func(m *chain.Member) { m.MaxPower = math.MaxInt64 }), nil, CodeRange},
				unknown:  {nil, r.spare, CodeInvitation},
				state:    {joinOf(r.newcomer, func(m *chain.Member) { m.Name = "a" }), nil, CodeTaken},
				notYours: {chain.Join{Member: r.newcomer.member(), Sig: chain.Sign(r.a.priv, chain.DomainMember, chain.Marshal(r.newcomer.member()))}, nil, CodeSignature},
				form:     {joinOf(r.newcomer, func(m *chain.Member) { m.Name = "Müller" }), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxRevoke: {
		operator, func(r *ripe) any { return chain.Revoke{Device: r.a.key} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				unknown:  {chain.Revoke{Device: r.newcomer.key}, nil, CodeNotMember},
				notYours: {nil, r.a.owner, CodeNotAllowed},
				form:     {chain.Revoke{Device: r.a.key, Reason: long}, nil, CodeMalformed},
			}
		},
		map[flaw]string{negative: "no number", overflow: "no number", state: "who is revoked is no member: unknown"},
	},
	chain.TxReplace: {
		operator, func(r *ripe) any { return chain.SignReplace("test", r.a.member().Validator, chain.Key{7}, r.a.priv) },
		func(r *ripe) map[flaw]try {
			old := r.a.member().Validator
			return map[flaw]try{
				unknown:  {chain.SignReplace("test", old, chain.Key{7}, r.newcomer.priv), nil, CodeNotMember},
				notYours: {nil, r.a.owner, CodeNotAllowed},
				state:    {chain.SignReplace("test", chain.Key{8}, chain.Key{7}, r.a.priv), nil, CodeTaken},
				form:     {chain.SignReplace("test", old, chain.Key{}, r.a.priv), nil, CodeMalformed},
			}
		},
		map[flaw]string{negative: "no number", overflow: "no number"},
	},
	chain.TxTariff: {
		operator, func(r *ripe) any { return chain.Tariff{From: firstSl + 90, To: firstSl + 91, Retail: 2, FeedIn: 1} },
		func(r *ripe) map[flaw]try {
			t := chain.Tariff{From: firstSl + 90, To: firstSl + 91, Retail: 2, FeedIn: 1}
			return map[flaw]try{
				negative: {with(t, func(t *chain.Tariff) { t.FeedIn = -1 }), nil, CodeRange},
				overflow: {with(t, func(t *chain.Tariff) { t.Retail = math.MaxInt64 }), nil, CodeRange},
				state:    {with(t, func(t *chain.Tariff) { t.From = firstSl }), nil, CodeRange},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {with(t, func(t *chain.Tariff) { t.FeedIn = 3 }), nil, CodeRange},
			}
		},
		map[flaw]string{unknown: "names nothing"},
	},
	chain.TxPeriods: {
		operator, func(r *ripe) any { return chain.BillingPeriods{Bounds: []chain.Slot{firstSl + 90, firstSl + 180}} },
		func(r *ripe) map[flaw]try {
			of := func(s ...chain.Slot) any { return chain.BillingPeriods{Bounds: s} }
			return map[flaw]try{
				negative: {of(-5, firstSl+90), nil, CodeRange},
				overflow: {of(firstSl+90, math.MaxInt64), nil, CodeRange},
				state:    {of(firstSl, firstSl+90), nil, CodeRange},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {of(firstSl + 90), nil, CodeMalformed},
			}
		},
		map[flaw]string{unknown: "names nothing"},
	},
	chain.TxTariffs: {
		operator, func(r *ripe) any {
			return chain.Tariffs{Ranges: []chain.Tariff{{From: firstSl + 90, To: firstSl + 91, Retail: 2}}}
		},
		func(r *ripe) map[flaw]try {
			of := func(ts ...chain.Tariff) any { return chain.Tariffs{Ranges: ts} }
			return map[flaw]try{
				negative: {of(chain.Tariff{From: firstSl + 90, To: firstSl + 91, Retail: -2, FeedIn: -3}), nil, CodeRange},
				overflow: {of(chain.Tariff{From: firstSl + 90, To: math.MaxInt64, Retail: 2}), nil, CodeRange},
				state:    {of(chain.Tariff{From: firstSl, To: firstSl, Retail: 2}), nil, CodeRange},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {of(make([]chain.Tariff, chain.MaxTableRanges+1)...), nil, CodeMalformed},
			}
		},
		map[flaw]string{unknown: "names nothing"},
	},
	chain.TxZones: {
		operator, func(r *ripe) any {
			return chain.Zones{From: firstSl + 90, Nodes: []chain.Node{{ID: "f1", Parent: "root", Fee: 7}}}
		},
		func(r *ripe) map[flaw]try {
			of := func(n ...chain.Node) any { return chain.Zones{From: firstSl + 90, Nodes: n} }
			return map[flaw]try{
				negative: {of(chain.Node{ID: "f1", Parent: "root", Fee: -7}), nil, CodeRange},
				overflow: {of(chain.Node{ID: "f1", Parent: "root", Fee: math.MaxInt64}), nil, CodeRange},
				unknown:  {of(chain.Node{ID: "f1", Parent: "nowhere"}), nil, CodeNode},
				state:    {chain.Zones{From: firstSl, Nodes: []chain.Node{{ID: "f1", Parent: "root"}}}, nil, CodeRange},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {of(), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxFeature: {
		operator, func(r *ripe) any { return chain.FeatureBasis{Feature: chain.FeatureV2V, On: false} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				unknown:  {chain.FeatureBasis{Feature: "teleport", On: true, Basis: "x"}, nil, CodeMalformed},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {chain.FeatureBasis{Feature: chain.FeatureV2V, On: true}, nil, CodeMalformed},
			}
		},
		map[flaw]string{negative: "no number", overflow: "no number", state: "may be said again"},
	},
	chain.TxFirmOffer: {
		func(r *ripe) *person { return r.a.owner }, func(r *ripe) any { return r.firm() },
		func(r *ripe) map[flaw]try {
			f := r.firm()
			return map[flaw]try{
				negative: {with(f, func(f *chain.FirmOffer) { f.Wh = -1 }), nil, CodeRange},
				overflow: {with(f, func(f *chain.FirmOffer) { f.Wh = math.MaxInt64 }), nil, CodeRange},
				unknown:  {with(f, func(f *chain.FirmOffer) { f.Device = r.newcomer.key }), nil, CodeNotMember},
				state:    {with(f, func(f *chain.FirmOffer) { f.ID = chain.ID{9} }), nil, CodeTaken},
				notYours: {nil, r.b.owner, CodeNotAllowed},
				form:     {with(f, func(f *chain.FirmOffer) { f.Side = 7 }), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxFirmTake: {
		func(r *ripe) *person { return r.a.owner }, func(r *ripe) any { return chain.FirmTake{Offer: chain.ID{9}, Device: r.a.key, Wh: 10} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {chain.FirmTake{Offer: chain.ID{9}, Device: r.a.key, Wh: -10}, nil, CodeRange},
				overflow: {chain.FirmTake{Offer: chain.ID{9}, Device: r.a.key, Wh: math.MaxInt64}, nil, CodeRange},
				unknown:  {chain.FirmTake{Offer: chain.ID{8}, Device: r.a.key, Wh: 10}, nil, CodeState},
				state:    {chain.FirmTake{Offer: chain.ID{9}, Device: r.c.key, Wh: 10}, r.c.owner, CodeNotAllowed},
				notYours: {nil, r.b.owner, CodeNotAllowed},
				form:     {chain.FirmTake{Offer: chain.ID{9}, Device: r.a.key, Wh: 101}, nil, CodeRange},
			}
		}, nil,
	},
	chain.TxFirmCancel: {
		func(r *ripe) *person { return r.c.owner }, func(r *ripe) any { return chain.FirmCancel{Offer: chain.ID{9}} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{unknown: {chain.FirmCancel{Offer: chain.ID{8}}, nil, CodeState}, notYours: {nil, r.a.owner, CodeNotAllowed}}
		},
		map[flaw]string{negative: "no number", overflow: "no number", state: "what is closed is not open: unknown", form: "an id only"},
	},
	chain.TxCorrection: {
		operator, func(r *ripe) any { return chain.CorrectionRuling{Device: r.b.key, Slot: firstSl, ID: chain.ID{1}} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {chain.CorrectionRuling{Device: r.b.key, Slot: -1, ID: chain.ID{1}}, nil, CodeState},
				unknown:  {chain.CorrectionRuling{Device: r.b.key, Slot: firstSl, ID: chain.ID{2}}, nil, CodeState},
				notYours: {nil, r.b.owner, CodeNotAllowed},
			}
		},
		map[flaw]string{overflow: "a slot names an entry or does not", state: "what is ruled does not wait: unknown", form: "keys only"},
	},
	chain.TxJoint: {
		operator, func(r *ripe) any { return r.jointOf(nil) },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {r.jointOf(func(p *chain.Proposal) {
					p.Body = chain.Marshal(chain.Mint{To: r.driver.account(), Amount: -1, BankRef: "j"})
				}), nil, CodeAmount},
				overflow: {r.jointOf(func(p *chain.Proposal) { p.Expires = math.MaxInt64 }), nil, CodeExpired},
				unknown:  {r.jointOf(func(p *chain.Proposal) { p.Kind = 999 }), nil, CodeKind},
				state:    {r.jointOf(func(p *chain.Proposal) { p.Expires = 1 }), nil, CodeExpired},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {chain.Joint{Proposal: []byte{1}, Approvals: []chain.Approval{{Key: r.op.key}}}, nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxRules: {
		operator, func(r *ripe) any { return chain.RulesChange{Height: r.height + 50, EarnPPM: ptr(int64(1))} },
		func(r *ripe) map[flaw]try {
			h := r.height + 50
			return map[flaw]try{
				negative: {chain.RulesChange{Height: h, Grace: ptr(int64(-1))}, nil, CodeRange},
				overflow: {chain.RulesChange{Height: math.MaxInt64}, nil, CodeRange},
				state:    {chain.RulesChange{Height: 1}, nil, CodeRange},
				notYours: {nil, r.a.owner, CodeNotAllowed},
				form:     {chain.RulesChange{Height: h, Threshold: ptr(int64(99))}, nil, CodeRange},
			}
		},
		map[flaw]string{unknown: "names nothing"},
	},
	chain.TxPayout: {
		theDriver, func(r *ripe) any { return chain.Payout{Amount: 1e9} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {chain.Payout{Amount: -1e9}, nil, CodeAmount},
				overflow: {chain.Payout{Amount: 9_000_000_000_000_000_000}, nil, CodeFunds},
				unknown:  {chain.Payout{Amount: 1e9}, r.stranger, CodeFunds},
				form:     {chain.Payout{Amount: 1}, nil, CodeAmount},
			}
		},
		map[flaw]string{state: "an account has no state", notYours: "everybody asks for his own: unknown"},
	},
	chain.TxPayoutPaid: {
		operator, func(r *ripe) any { return chain.PayoutPaid{Payout: 1, BankRef: "out"} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				overflow: {chain.PayoutPaid{Payout: math.MaxUint64, BankRef: "out"}, nil, CodeUnknown},
				unknown:  {chain.PayoutPaid{Payout: 7, BankRef: "out"}, nil, CodeUnknown},
				state:    {chain.PayoutPaid{Payout: 1, BankRef: "used"}, nil, CodeBankRef},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {chain.PayoutPaid{Payout: 1}, nil, CodeMalformed},
			}
		},
		map[flaw]string{negative: "no signed number"},
	},
	chain.TxPayoutCancel: {
		theDriver, func(r *ripe) any { return chain.PayoutCancel{Payout: 1} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				overflow: {chain.PayoutCancel{Payout: math.MaxUint64}, nil, CodeUnknown},
				unknown:  {chain.PayoutCancel{Payout: 7}, nil, CodeUnknown},
				notYours: {nil, r.a.owner, CodeNotAllowed},
			}
		},
		map[flaw]string{negative: "no signed number", state: "see TestPayoutIsLockedPaidAndVisibleWhenOverdue", form: "a number only"},
	},
	chain.TxRefund: {
		operator, func(r *ripe) any { return chain.Refund{Session: chain.ID{1}, Amount: 1e7, Reason: "x"} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {chain.Refund{Session: chain.ID{1}, Amount: -1, Reason: "x"}, nil, CodeAmount},
				overflow: {chain.Refund{Session: chain.ID{1}, Amount: math.MaxInt64, Reason: "x"}, nil, CodeRange},
				unknown:  {chain.Refund{Session: chain.ID{99}, Amount: 1, Reason: "x"}, nil, CodeSession},
				state:    {chain.Refund{Session: chain.ID{3}, Amount: 1, Reason: "x"}, nil, CodeState},
				notYours: {nil, r.b.owner, CodeNotAllowed},
				form:     {chain.Refund{Session: chain.ID{1}, Amount: 1}, nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxDispute: {
		theDriver, func(r *ripe) any { return chain.Dispute{Session: chain.ID{1}, Amount: 1e7, Reason: "x"} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {chain.Dispute{Session: chain.ID{1}, Amount: -1, Reason: "x"}, nil, CodeAmount},
				overflow: {chain.Dispute{Session: chain.ID{1}, Amount: math.MaxInt64, Reason: "x"}, nil, CodeRange},
				unknown:  {chain.Dispute{Session: chain.ID{99}, Amount: 1, Reason: "x"}, nil, CodeSession},
				state:    {chain.Dispute{Session: chain.ID{2}, Amount: 1, Reason: "x"}, nil, CodeState},
				notYours: {nil, r.stranger, CodeNotAllowed},
				form:     {chain.Dispute{Session: chain.ID{1}, Amount: 1, Reason: long}, nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxAnswer: {
		operator, func(r *ripe) any { return chain.Answer{Dispute: 1, Concede: 5, Reason: "x"} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {chain.Answer{Dispute: 1, Concede: -5, Reason: "x"}, nil, CodeRange},
				overflow: {chain.Answer{Dispute: 1, Concede: math.MaxInt64, Reason: "x"}, nil, CodeRange},
				unknown:  {chain.Answer{Dispute: 9, Reason: "x"}, nil, CodeUnknown},
				notYours: {nil, r.stranger, CodeNotAllowed},
				form:     {chain.Answer{Dispute: 1}, nil, CodeMalformed},
			}
		},
		map[flaw]string{state: "see TestDisputeFreezesTheAmountAndNoMore"},
	},
	chain.TxResolve: {
		func(r *ripe) *person { return r.auditor }, func(r *ripe) any { return chain.Resolve{Dispute: 1, Refund: 5, Reason: "x"} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {chain.Resolve{Dispute: 1, Refund: -5, Reason: "x"}, nil, CodeRange},
				overflow: {chain.Resolve{Dispute: 1, Refund: math.MaxInt64, Reason: "x"}, nil, CodeRange},
				unknown:  {chain.Resolve{Dispute: 9, Refund: 5, Reason: "x"}, nil, CodeUnknown},
				state:    {chain.Resolve{Dispute: 1, Refund: 5, Reason: "x"}, r.op, CodeApproval},
				notYours: {nil, r.stranger, CodeNotAllowed},
				form:     {chain.Resolve{Dispute: 1, Refund: 5}, nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxInvoice: {
		operator, func(r *ripe) any { return chain.IssueInvoice{Account: r.driver.account()} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				unknown:  {chain.IssueInvoice{Account: r.stranger.account()}, nil, CodeUnknown},
				state:    {chain.IssueInvoice{Account: chain.AccountGrid}, nil, CodeAccount},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {chain.IssueInvoice{Account: chain.Account{3}}, nil, CodeAccount},
			}
		},
		map[flaw]string{negative: "no number", overflow: "no number"},
	},
	chain.TxProfile: {
		theDriver, func(r *ripe) any { return chain.Profile{Redeem: true} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{form: {chain.Profile{Tax: 99}, nil, CodeMalformed}, state: {chain.Profile{Tax: chain.TaxBusiness}, nil, CodeMalformed}}
		},
		map[flaw]string{negative: "no number", overflow: "no number", unknown: "of the signer's account, whatever it is", notYours: "of the signer's account"},
	},
	chain.TxMeterApproval: {
		operator, func(r *ripe) any {
			return chain.MeterApproval{Device: r.b.key, Connector: 1, Approval: "x", Until: r.now + dayMs}
		},
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				unknown:  {chain.MeterApproval{Device: r.newcomer.key, Approval: "x", Until: r.now + dayMs}, nil, CodeNotMember},
				notYours: {nil, r.b.owner, CodeNotAllowed},
				form:     {chain.MeterApproval{Device: r.b.key, Approval: long, Until: r.now + dayMs}, nil, CodeMalformed},
				negative: {chain.MeterApproval{Device: r.b.key, Approval: "x", Until: -1}, nil, CodeRange},
			}
		},
		map[flaw]string{overflow: "a date", state: "may be said again"},
	},
	chain.TxMeterRelease: {
		operator, func(r *ripe) any {
			return chain.MeterRelease{Device: r.a.key, Meter: "site", Reason: "x"}
		},
		func(r *ripe) map[flaw]try {
			release := func(change func(*chain.MeterRelease)) any {
				b := chain.MeterRelease{Device: r.a.key, Meter: "site", Reason: "x"}
				change(&b)
				return b
			}
			return map[flaw]try{
				unknown:  {release(func(b *chain.MeterRelease) { b.Device = r.newcomer.key }), nil, CodeUnknown},
				state:    {release(func(b *chain.MeterRelease) { b.Meter = "" }), nil, CodeUnknown},
				notYours: {nil, r.a.owner, CodeNotAllowed},
				form:     {release(func(b *chain.MeterRelease) { b.Reason = long }), nil, CodeMalformed},
				negative: {release(func(b *chain.MeterRelease) { b.Import = -1 << 40 }), nil, CodeRange},
				overflow: {release(func(b *chain.MeterRelease) { b.Export = math.MaxInt64 }), nil, CodeRange},
			}
		},
		nil,
	},
	chain.TxAttest: {
		func(r *ripe) *person { return r.auditor },
		func(r *ripe) any {
			return chain.Attestation{Scope: "metering", From: 0, To: r.now, Expires: r.now + dayMs}
		},
		func(r *ripe) map[flaw]try {
			a := chain.Attestation{Scope: "metering", From: 0, To: r.now, Expires: r.now + dayMs}
			return map[flaw]try{
				negative: {with(a, func(a *chain.Attestation) { a.From = -1 }), nil, CodeRange},
				overflow: {with(a, func(a *chain.Attestation) { a.Expires = math.MaxInt64 }), nil, CodeRange},
				unknown:  {with(a, func(a *chain.Attestation) { a.Expires = 0 }), nil, CodeUnknown},
				state:    {with(a, func(a *chain.Attestation) { a.To = r.now + dayMs }), nil, CodeRange},
				notYours: {nil, r.op, CodeNotAllowed},
				form:     {with(a, func(a *chain.Attestation) { a.Scope = "\u202egniretem" }), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxMandate: {
		theDriver, func(r *ripe) any { return r.ownMandate(r.spare) },
		func(r *ripe) map[flaw]try {
			m := r.ownMandate(r.spare)
			return map[flaw]try{
				negative: {with(m, func(m *chain.Mandate) { m.PerTap = -1 }), nil, CodeAmount},
				overflow: {with(m, func(m *chain.Mandate) { m.Cap = math.MaxInt64 }), nil, CodeRange},
				unknown:  {with(m, func(m *chain.Mandate) { m.Token = chain.Key{} }), nil, CodeMalformed},
				state:    {with(m, func(m *chain.Mandate) { m.Expires = 1 }), nil, CodeExpired},
				notYours: {nil, r.stranger, CodeSignature}, // the token consented to another payer
				form:     {with(m, func(m *chain.Mandate) { m.Kind = 99 }), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxMandateRevoke: {
		theDriver, func(r *ripe) any { return chain.MandateRevoke{Token: r.token.key} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{unknown: {chain.MandateRevoke{Token: r.spare.key}, nil, CodeUnknown}, notYours: {nil, r.stranger, CodeNotAllowed}}
		},
		map[flaw]string{negative: "no number", overflow: "no number", state: "may be said again", form: "a key only"},
	},
	chain.TxOffline: {
		theDriver, func(r *ripe) any { return chain.Offline{Gateway: r.a.key, Amount: 5} },
		func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {chain.Offline{Gateway: r.a.key, Amount: -2e8}, nil, CodeFunds},
				overflow: {chain.Offline{Gateway: r.a.key, Amount: math.MaxInt64}, nil, CodeFunds},
				unknown:  {chain.Offline{Gateway: r.newcomer.key, Amount: 5}, nil, CodeNotMember},
				notYours: {nil, r.stranger, CodeFunds}, // everybody sets his own money apart
				form:     {chain.Offline{Gateway: r.a.key}, nil, CodeAmount},
				state:    {chain.Offline{Gateway: r.b.key, Amount: -5}, nil, CodeFunds},
			}
		}, nil,
	},
	chain.TxRemote: {
		operator, func(r *ripe) any { return newAbroad(r.t, "third", r.now).believed() },
		func(r *ripe) map[flaw]try {
			b := newAbroad(r.t, "third", r.now).believed()
			return map[flaw]try{
				negative: {with(b, func(b *chain.Remote) { b.Trust.Height = -1 }), nil, CodeMalformed},
				overflow: {with(b, func(b *chain.Remote) { b.Trust.Time = math.MaxInt64 }), nil, CodeRange},
				unknown:  {with(b, func(b *chain.Remote) { b.Trust.Next = nil }), nil, CodeUnknown},
				state:    {with(b, func(b *chain.Remote) { b.Trust.Chain = "far" }), nil, CodeTaken}, // of another genesis
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {with(b, func(b *chain.Remote) { b.Trust.Chain = "test" }), nil, CodeChain},
			}
		}, nil,
	},
	chain.TxRemoteHead: {
		operator, func(r *ripe) any { return chain.RemoteHead{Checkpoint: r.far.checkpoint()} },
		func(r *ripe) map[flaw]try {
			h := chain.RemoteHead{Checkpoint: r.far.checkpoint()}
			return map[flaw]try{
				overflow: {with(h, func(h *chain.RemoteHead) { h.Checkpoint.Header.Time = math.MaxInt64 }), nil, CodeRange},
				unknown:  {chain.RemoteHead{Checkpoint: newAbroad(r.t, "third", r.now).checkpoint()}, nil, CodeUnknown},
				state:    {chain.RemoteHead{Checkpoint: r.followed}, nil, CodeDuplicate},
				notYours: {nil, r.driver, CodeNotAllowed},
				form:     {with(h, func(h *chain.RemoteHead) { h.Checkpoint.Header.AppHash[0] ^= 1 }), nil, CodeProof},
			}
		},
		map[flaw]string{negative: "what its validators have not signed: out of form"},
	},
	chain.TxSettle: {
		operator, func(r *ripe) any { return r.terms(7) },
		func(r *ripe) map[flaw]try {
			s := r.terms(7)
			return map[flaw]try{
				negative: {with(s, func(s *chain.Settlement) { s.Amount = -5 }), nil, CodeMalformed},
				overflow: {with(s, func(s *chain.Settlement) { s.Amount = math.MaxInt64 }), nil, CodeFunds},
				unknown:  {with(s, func(s *chain.Settlement) { s.Away = "third" }), nil, CodeUnknown},
				state:    {r.terms(6), nil, CodeDuplicate},
				notYours: {with(s, func(s *chain.Settlement) { s.Payer = r.driver.account() }), nil, CodeNotAllowed},
				form:     {with(s, func(s *chain.Settlement) { s.Expires = s.Deadline }), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxSettleAnswer: {
		operator, func(r *ripe) any { return r.answer(5) },
		func(r *ripe) map[flaw]try {
			a := r.answer(5)
			return map[flaw]try{
				negative: {with(a, func(a *chain.SettleAnswer) { a.Terms.AwayAmount = -5 }), nil, CodeMalformed},
				overflow: {with(a, func(a *chain.SettleAnswer) { a.Terms.AwayAmount = math.MaxInt64 }), nil, CodeProof}, // other terms
				unknown:  {r.answer(9), nil, CodeProof},
				state:    {with(a, func(a *chain.SettleAnswer) { a.Terms.Deadline = 1 }), nil, CodeExpired},
				notYours: {with(a, func(a *chain.SettleAnswer) { a.Terms.AwayPayer = r.driver.account() }), nil, CodeNotAllowed},
				form:     {with(a, func(a *chain.SettleAnswer) { a.Proof.Tree = a.Proof.Tree[1:] }), nil, CodeMalformed},
			}
		}, nil,
	},
	chain.TxSettleClose: {
		operator, func(r *ripe) any { return r.closes(6) },
		func(r *ripe) map[flaw]try {
			c := r.closes(6)
			return map[flaw]try{
				unknown:  {with(c, func(c *chain.SettleClose) { c.ID = chain.ID{99} }), nil, CodeUnknown},
				state:    {r.closes(8), nil, CodeState}, // it may still be answered
				notYours: {nil, r.stranger, CodeNotAllowed},
				form:     {with(c, func(c *chain.SettleClose) { c.Proof.Tree = make([]byte, chain.MaxRemoteTree+1) }), nil, CodeTooLarge},
			}
		},
		map[flaw]string{negative: "no number", overflow: "no number"},
	},
	chain.TxDim: {
		operator, func(r *ripe) any { return chain.Dim{Node: "f1", Limit: 4200, Until: r.now + 1e6, Reason: "x"} },
		func(r *ripe) map[flaw]try {
			d := chain.Dim{Node: "f1", Limit: 4200, Until: r.now + 1e6, Reason: "x"}
			return map[flaw]try{
				negative: {with(d, func(d *chain.Dim) { d.Limit = -1 }), nil, CodeRange},
				overflow: {with(d, func(d *chain.Dim) { d.Until = math.MaxInt64 }), nil, CodeRange},
				unknown:  {with(d, func(d *chain.Dim) { d.Node = "nowhere" }), nil, CodeNode},
				state:    {with(d, func(d *chain.Dim) { d.Until = 1 }), nil, CodeRange},
				notYours: {nil, r.a.owner, CodeNotAllowed},
				form:     {with(d, func(d *chain.Dim) { d.Reason = long }), nil, CodeMalformed},
			}
		}, nil,
	},
}

// with returns a changed copy.
func with[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

func joinOf(h *house, change func(*chain.Member)) chain.Join {
	m := h.member()
	if change != nil {
		change(&m)
	}
	return chain.Join{Member: m, Sig: chain.Sign(h.priv, chain.DomainMember, chain.Marshal(m))}
}

func (r *ripe) firm() chain.FirmOffer {
	return chain.FirmOffer{ID: chain.ID{10}, Device: r.a.key, Side: chain.Sell, From: firstSl + 60, To: firstSl + 61, Wh: 10, Price: 120_000}
}

func (r *ripe) jointOf(change func(*chain.Proposal)) chain.Joint {
	p := chain.Proposal{Version: chain.Version, Chain: "test", ID: chain.ID{0xaa}, Expires: r.now + 60_000, Kind: chain.TxMint, Body: chain.Marshal(chain.Mint{To: r.driver.account(), Amount: 1, BankRef: "j"})}
	if change != nil {
		change(&p)
	}
	j := chain.Joint{Proposal: chain.Marshal(p)}
	j.Add(chain.Approval{Key: r.op.key, Sig: chain.Sign(r.op.priv, chain.DomainApproval, j.Proposal)})
	return j
}

// Every kind of transaction is refused with a stable code, at admission and at
// execution, and changes nothing, in every way in which it can be wrong.
func TestEveryTransactionKindRefuses(t *testing.T) {
	kinds := kindsOf(t, "TxKind")
	for name, n := range kinds {
		if _, ok := txRows[chain.TxKind(n)]; !ok {
			t.Errorf("chain.%s has no row here", name)
		}
	}
	for name, n := range kinds {
		kind, row := chain.TxKind(n), txRows[chain.TxKind(n)]
		if row.by == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			r := newRipe(t)
			by, body := row.by(r), row.body(r)
			nonce := NextNonce(r.st, by.key)
			good := chain.SignTx("test", nonce, kind, body, by.priv)
			if res := CheckTx(NewOverlay(r.st), good); res.Code != CodeOK {
				t.Fatalf("the valid one is refused with %s: %s", res.Code, res.Info)
			}
			forged := bytes.Clone(good)
			forged[len(forged)-3] ^= 8
			r.refused(CodeSignature, forged)
			r.refused(CodeNonce, chain.SignTx("test", nonce-1, kind, body, by.priv))
			r.refused(CodeNonce, chain.SignTx("test", nonce+1, kind, body, by.priv))
			r.refused(CodeNonce, chain.SignTx("test", math.MaxUint64, kind, body, by.priv))
			r.refused(CodeChain, chain.SignTx("other", nonce, kind, body, by.priv))
			r.refused(CodeMalformed, chain.SignTx("test", nonce, kind, "no body", by.priv))
			r.refused(CodeMalformed, good[:len(good)-1])
			r.refused(CodeTooLarge, chain.SignTx("test", nonce, kind, make([]byte, chain.MaxTxBytes), by.priv))
			bad := row.bad(r)
			for _, f := range flaws {
				b, ok := bad[f]
				if why := row.none[f]; ok == (why != "") {
					t.Errorf("%s: want a wrong statement or the reason why there is none", f)
				}
				if !ok {
					continue
				}
				who, what := b.by, b.body
				if who == nil {
					who = by
				}
				if what == nil {
					what = body
				}
				t.Log(f)
				r.refused(b.code, chain.SignTx("test", NextNonce(r.st, who.key), kind, what, who.priv))
			}
			r.ok(good)
			r.refused(CodeNonce, good) // replay
		})
	}
}

// recordRow tells of a kind of record.
type recordRow struct {
	body     func(r *ripe) (*house, any)
	bad      func(r *ripe) map[flaw]try // by is not used
	none     map[flaw]string
	evidence bool
}

var recordRows = map[chain.RecordKind]recordRow{
	chain.KindOffer: {
		body: func(r *ripe) (*house, any) {
			return r.a, chain.Offer{From: firstSl, To: firstSl + 9, Side: chain.Sell, Limit: 90_000, Wh: 5}
		},
		bad: func(*ripe) map[flaw]try {
			o := chain.Offer{From: firstSl, To: firstSl + 9, Side: chain.Sell, Limit: 90_000, Wh: 5}
			return map[flaw]try{
				negative: {with(o, func(o *chain.Offer) { o.Wh = -5 }), nil, CodeRange},
				overflow: {with(o, func(o *chain.Offer) { o.Limit = math.MaxInt64 }), nil, CodeRange},
				form:     {with(o, func(o *chain.Offer) { o.Side = 3 }), nil, CodeMalformed},
				state:    {with(o, func(o *chain.Offer) { o.To = firstSl - 9 }), nil, CodeRange},
			}
		},
		none: map[flaw]string{unknown: "of the author's own house", notYours: "of the author's own house"},
	},
	chain.KindMeter: {
		body: func(r *ripe) (*house, any) { return r.a, r.page(nil) },
		bad: func(r *ripe) map[flaw]try {
			return map[flaw]try{
				state:    {r.page(func(m *chain.MeterRecord) { m.Page++ }), nil, CodeSequence},
				notYours: {r.page(func(m *chain.MeterRecord) { m.Role = chain.RoleConnection }), nil, CodeRole},
				form:     {r.page(func(m *chain.MeterRecord) { m.Meter = "no word!" }), nil, CodeMalformed},
			}
		},
		none: map[flaw]string{negative: "taken and doubted: rollback.yaml", overflow: "taken and doubted: jump-site.yaml", unknown: "a new name is a new meter"},
	},
	chain.KindSessionOpen: {
		body: func(r *ripe) (*house, any) { return r.a, r.opens(r.driver, nil) },
		bad: func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {r.opens(r.driver, func(q *chain.Quote) { q.MaxWh = -5 }), nil, CodeMalformed},
				overflow: {r.opens(r.driver, func(q *chain.Quote) { q.MaxWh = math.MaxInt64 }), nil, CodeMalformed},
				unknown:  {r.opens(r.stranger, func(q *chain.Quote) { q.Driver = r.stranger.key }), nil, CodeFunds},
				state:    {r.opens(r.driver, func(q *chain.Quote) { q.ID = chain.ID{1} }), nil, CodeTaken},
				notYours: {r.opens(r.driver, func(q *chain.Quote) { q.Gateway = r.b.key }), nil, CodeNotAllowed},
				form:     {r.opens(r.stranger, nil), nil, CodeSignature},
			}
		},
	},
	chain.KindSessionMeter: {
		body: func(r *ripe) (*house, any) {
			return r.c, chain.SessionMeter{Session: chain.ID{3}, Seq: 2, Slot: firstSl + 2, Register: 10, Quality: 1, At: r.now}
		},
		bad: func(r *ripe) map[flaw]try {
			m := chain.SessionMeter{Session: chain.ID{3}, Seq: 2, Slot: firstSl + 2, Register: 10, Quality: 1, At: r.now}
			return map[flaw]try{
				unknown:  {with(m, func(m *chain.SessionMeter) { m.Session = chain.ID{99} }), nil, CodeSession},
				notYours: {with(m, func(m *chain.SessionMeter) { m.Session = chain.ID{1} }), nil, CodeSession}, // b's
				state:    {with(m, func(m *chain.SessionMeter) { m.Seq = 9 }), nil, CodeSequence},
				form:     {with(m, func(m *chain.SessionMeter) { m.Quality = 99 }), nil, CodeMalformed},
			}
		},
		none: map[flaw]string{negative: "taken and doubted: rollback.yaml", overflow: "taken and doubted: jump.yaml"},
	},
	chain.KindSessionStop: {
		body: func(r *ripe) (*house, any) { return r.c, r.stops(nil) },
		bad: func(r *ripe) map[flaw]try {
			return map[flaw]try{
				unknown:  {r.stops(func(m *chain.SessionStop) { m.Session = chain.ID{99} }), nil, CodeSession},
				notYours: {r.stops(func(m *chain.SessionStop) { m.Session = chain.ID{1} }), nil, CodeSession},
				state:    {r.stops(func(m *chain.SessionStop) { m.Seq = 9 }), nil, CodeSequence},
				form:     {r.stops(func(m *chain.SessionStop) { m.Reason = 99 }), nil, CodeMalformed},
			}
		},
		none: map[flaw]string{negative: "taken and doubted: rollback.yaml", overflow: "taken and doubted: jump.yaml"},
	},
	chain.KindMeterCorrection: {
		body: func(r *ripe) (*house, any) { return r.b, r.corrects(nil) },
		bad: func(r *ripe) map[flaw]try {
			return map[flaw]try{
				negative: {r.corrects(func(c *chain.MeterCorrection) { c.Import = -5000 }), nil, CodeRange},
				overflow: {r.corrects(func(c *chain.MeterCorrection) { c.Import = math.MaxInt64 }), nil, CodeRange},
				unknown:  {r.corrects(func(c *chain.MeterCorrection) { c.Slot = 5 }), nil, CodeState},
				state:    {r.corrects(func(c *chain.MeterCorrection) { c.ID = chain.ID{1} }), nil, CodeDuplicate},
				form:     {r.corrects(func(c *chain.MeterCorrection) { c.Reason = "" }), nil, CodeMalformed},
			}
		},
		none: map[flaw]string{notYours: "of the author's own meter"},
	},
	chain.KindEvidence: {evidence: true},
	chain.KindEvent:    {evidence: true},
	chain.KindGuard:    {evidence: true},
}

func (r *ripe) page(change func(*chain.MeterRecord)) chain.MeterRecord {
	m := chain.MeterRecord{Slot: firstSl + 2, Meter: "site", Role: chain.RoleSite, Page: r.a.pages["site"] + 1, Quality: 1, At: r.now, Count: 1}
	if change != nil {
		change(&m)
	}
	return m
}

func (r *ripe) opens(by *person, change func(*chain.Quote)) chain.SessionOpen {
	q := r.quote(r.a, r.driver, 7, 1, 100)
	if change != nil {
		change(&q)
	}
	b := chain.Marshal(q)
	return chain.SessionOpen{Quote: chain.SignedQuote{Quote: b, Sig: chain.Sign(by.priv, chain.DomainQuote, b)}}
}

func (r *ripe) stops(change func(*chain.SessionStop)) chain.SessionStop {
	s := chain.SessionStop{Session: chain.ID{3}, Seq: 2, Slot: firstSl + 2, Register: 10, Quality: 1, At: r.now, Reason: chain.StopDriver}
	if change != nil {
		change(&s)
	}
	return s
}

func (r *ripe) corrects(change func(*chain.MeterCorrection)) chain.MeterCorrection {
	c := chain.MeterCorrection{ID: chain.ID{2}, Slot: firstSl, Import: 5, Reason: "x"}
	if change != nil {
		change(&c)
	}
	return c
}

// Every kind of record in a gateway's block: the block is refused at admission
// and execution for what is wrong with the block; a wrong record is refused
// when it is executed, and but for its author's place in its chain the state
// stays as it was.
func TestEveryRecordKindRefuses(t *testing.T) {
	kinds := kindsOf(t, "RecordKind")
	for name, n := range kinds {
		if _, ok := recordRows[chain.RecordKind(n)]; !ok {
			t.Errorf("chain.%s has no row here", name)
		}
	}
	for name, n := range kinds {
		kind, row := chain.RecordKind(n), recordRows[chain.RecordKind(n)]
		t.Run(name, func(t *testing.T) {
			r := newRipe(t)
			if row.evidence {
				before := r.ledgerless(r.a)
				r.ok(r.a.sign(chain.NewRecord(kind, []byte("anything"))))
				equal(t, "state", r.ledgerless(r.a), before)
				return
			}
			h, body := row.body(r)
			block := func(h house, chainID string) []byte {
				h.pos.Number++
				s, err := chain.SignBlock(chain.Block{Chain: chainID, Epoch: h.pos.Epoch, Number: h.pos.Number, Prev: h.prev, Records: []chain.Record{chain.NewRecord(kind, body)}}, h.priv)
				if err != nil {
					t.Fatal(err)
				}
				return s.Raw
			}
			good := block(*h, "test")
			forged := bytes.Clone(good)
			forged[len(forged)-3] ^= 8
			r.refused(CodeSignature, forged)
			r.refused(CodeChain, block(*h, "other"))
			ahead, stranger := *h, *r.newcomer
			ahead.pos.Number++
			r.refused(CodeGap, block(ahead, "test"))
			r.refused(CodeNotMember, block(stranger, "test"))
			r.refused(CodeMalformed, good[:len(good)-1])
			r.refused(CodeTooLarge, append(bytes.Clone(good), make([]byte, chain.MaxTxBytes)...))

			before := r.ledgerless(h)
			r.refusedRecord(CodeMalformed, h, chain.NewRecord(kind, "no body"))
			equal(t, "state", r.ledgerless(h), before)
			bad := row.bad(r)
			for _, f := range flaws {
				b, ok := bad[f]
				if why := row.none[f]; ok == (why != "") {
					t.Errorf("%s: want a wrong record or the reason why there is none", f)
				}
				if !ok {
					continue
				}
				t.Log(f)
				r.refusedRecord(b.code, h, chain.NewRecord(kind, b.body))
				equal(t, string(f)+": state", r.ledgerless(h), before)
			}
			raw := h.sign(chain.NewRecord(kind, body))
			r.ok(raw)
			r.refused(CodeDuplicate, raw)
		})
	}
}

// ledgerless is the state's hash without h's place in its own chain and the
// ledger's clock.
func (w *world) ledgerless(h *house) chain.Hash {
	st := NewMapState()
	w.st.Iterate(nil, func(k, v []byte) bool {
		if k[0] != tabClock && k[0] != tabHead && !(k[0] == tabPast && bytes.HasPrefix(k[1:], h.key[:])) {
			st.Set(k, v)
		}
		return true
	})
	return StateHash(st)
}

// Two tables under one byte would read each other's entries.
func TestEveryTableHasItsOwnByte(t *testing.T) {
	owner := map[string]string{}
	for _, f := range shipped(t, ".") {
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(v.Names[0].Name, "tab") || len(v.Values) == 0 {
				return true
			}
			if lit, ok := v.Values[0].(*ast.BasicLit); ok {
				if other := owner[lit.Value]; other != "" {
					t.Errorf("%s and %s are both %s", v.Names[0].Name, other, lit.Value)
				}
				owner[lit.Value] = v.Names[0].Name
			}
			return true
		})
	}
	if len(owner) < 40 {
		t.Fatalf("only %d tables found", len(owner))
	}
}

// Codes are told apart by their words, and no number is used twice.
func TestCodesHaveWords(t *testing.T) {
	var words []string
	for c, w := range codes {
		if w == "" {
			continue
		}
		if slices.Contains(words, w) {
			t.Errorf("code %d: %q is taken", c, w)
		}
		words = append(words, w)
		if got := fmt.Sprint(Code(c)); got != w {
			t.Errorf("code %d prints %q", c, got)
		}
	}
}
