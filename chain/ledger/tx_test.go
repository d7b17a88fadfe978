package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/joulegate/joulegate/chain"
)

// bad returns a transaction with the signer's next nonce that is not to count.
func (w *world) bad(p *person, kind chain.TxKind, body any) []byte {
	return chain.SignTx("test", NextNonce(w.st, p.key), kind, body, p.priv)
}

func TestMoneyTransactions(t *testing.T) {
	w := newWorld(t)
	alice := newPerson("alice")
	to := alice.account()
	w.ok(w.tx(w.op, chain.TxMint, chain.Mint{To: to, Amount: 100, BankRef: "paid"}))
	w.refused(CodeBankRef, w.bad(w.op, chain.TxMint, chain.Mint{To: to, Amount: 100, BankRef: "paid"}))
	w.refused(CodeNotAllowed, w.bad(alice, chain.TxMint, chain.Mint{To: to, Amount: 100, BankRef: "x"}))
	w.refused(CodeAmount, w.bad(w.op, chain.TxMint, chain.Mint{To: to, Amount: 0, BankRef: "x"}))
	w.refused(CodeAmount, w.bad(w.op, chain.TxMint, chain.Mint{To: to, Amount: -5, BankRef: "x"}))
	w.refused(CodeOverflow, w.bad(w.op, chain.TxMint, chain.Mint{To: to, Amount: math.MaxInt64, BankRef: "x"}))
	w.refused(CodeAccount, w.bad(w.op, chain.TxMint, chain.Mint{To: chain.AccountReserve, Amount: 1, BankRef: "x"}))
	w.refused(CodeAccount, w.bad(w.op, chain.TxMint, chain.Mint{To: chain.Account{1, 2}, Amount: 1, BankRef: "x"}))
	w.refused(CodeAccount, w.bad(w.op, chain.TxMint, chain.Mint{To: chain.Account{0, 'x'}, Amount: 1, BankRef: "x"}))
	w.refused(CodeMalformed, w.bad(w.op, chain.TxMint, chain.Mint{To: to, Amount: 1}))
	w.refused(CodeMalformed, w.bad(w.op, chain.TxMint, "nothing like it"))
	w.refused(CodeKind, w.bad(w.op, 99, chain.Mint{To: to, Amount: 1, BankRef: "x"}))
	w.refused(CodeRules, w.bad(alice, chain.TxTransfer, chain.Transfer{To: w.driver.account(), Amount: 1}))
	w.refused(CodeFunds, w.bad(w.op, chain.TxBurn, chain.Burn{From: to, Amount: 101, BankRef: "y"}))
	w.refused(CodeBankRef, w.bad(w.op, chain.TxBurn, chain.Burn{From: to, Amount: 1, BankRef: "paid"}))
	w.ok(w.tx(w.op, chain.TxBurn, chain.Burn{From: to, Amount: 100, BankRef: "y"}))
	equal(t, "balance", w.balance(to), 0)

	n := NextNonce(w.st, w.op.key)
	m := chain.Mint{To: to, Amount: 1, BankRef: "z"}
	w.refused(CodeNonce, chain.SignTx("test", n-1, chain.TxMint, m, w.op.priv))
	w.refused(CodeNonce, chain.SignTx("test", n+1, chain.TxMint, m, w.op.priv))
	w.refused(CodeChain, chain.SignTx("other", n, chain.TxMint, m, w.op.priv))
	forged := bytes.Clone(chain.SignTx("test", n, chain.TxMint, m, w.op.priv))
	forged[len(forged)-7] ^= 4
	w.refused(CodeSignature, forged)
}

func TestTransfersWhereTheRulesAllowThem(t *testing.T) {
	w := newWorld(t)
	g := testGenesis(w.a)
	g.Transfers = true
	w.st, w.nonces = NewMapState(), map[chain.Key]uint64{}
	if _, err := InitGenesis(w.st, g, t0); err != nil {
		t.Fatal(err)
	}
	alice, bob := newPerson("alice"), newPerson("bob")
	w.ok(w.mint(alice.account(), 100), w.tx(alice, chain.TxTransfer, chain.Transfer{To: bob.account(), Amount: 30}))
	equal(t, "bob", w.balance(bob.account()), 30)
	w.refused(CodeFunds, w.bad(alice, chain.TxTransfer, chain.Transfer{To: bob.account(), Amount: 71}))
	w.refused(CodeAmount, w.bad(alice, chain.TxTransfer, chain.Transfer{To: bob.account(), Amount: -1}))
	w.refused(CodeAccount, w.bad(alice, chain.TxTransfer, chain.Transfer{To: alice.account(), Amount: 1}))
	w.refused(CodeAccount, w.bad(alice, chain.TxTransfer, chain.Transfer{To: chain.AccountGrid, Amount: 1}))
	w.refused(CodeFunds, w.bad(newPerson("nobody"), chain.TxTransfer, chain.Transfer{To: bob.account(), Amount: 1}))
}

func signJoin(h *house, oneTime *person) []byte {
	m := h.member()
	return chain.SignTx("test", 1, chain.TxJoin, chain.Join{Member: m, Sig: chain.Sign(h.priv, chain.DomainMember, chain.Marshal(m))}, oneTime.priv)
}

func TestJoinByInvitationAndRevoke(t *testing.T) {
	w := newWorld(t)
	once, twice := newPerson("one-time"), newPerson("another one-time")
	invite := chain.Invite{Key: once.key, Node: "f2", Fee: 7_000, Validator: true, Expires: w.now + 3_600_000}
	w.refused(CodeNotAllowed, w.bad(w.a.owner, chain.TxInvite, invite))
	bad := invite
	bad.Node = "nowhere"
	w.refused(CodeNode, w.bad(w.op, chain.TxInvite, bad))
	bad.Node = "a"
	w.refused(CodeNode, w.bad(w.op, chain.TxInvite, bad))
	bad = invite
	bad.Expires = t0
	w.refused(CodeInvitation, w.bad(w.op, chain.TxInvite, bad))
	w.refused(CodeInvitation, signJoin(newHouse("d"), once))
	w.ok(w.tx(w.op, chain.TxInvite, invite))
	w.refused(CodeTaken, w.bad(w.op, chain.TxInvite, invite))

	d := newHouse("d")
	stolen := chain.SignTx("test", 1, chain.TxJoin, chain.Join{Member: d.member(), Sig: chain.Sign(w.a.priv, chain.DomainMember, chain.Marshal(d.member()))}, once.priv)
	w.refused(CodeSignature, stolen)
	impostor := newHouse("d")
	impostor.name = "a"
	w.refused(CodeTaken, signJoin(impostor, once))
	w.refused(CodeTaken, signJoin(w.b, once))

	out := w.ok(signJoin(d, once))
	if len(out.Validators) != 1 || out.Validators[0].Power != votingPower || out.Validators[0].Key != d.member().Validator {
		t.Fatalf("validators %+v", out.Validators)
	}
	equal(t, "nonce", NextNonce(w.st, once.key), 2)
	w.refused(CodeInvitation, chain.SignTx("test", 2, chain.TxJoin, chain.Join{Member: newHouse("e").member(), Sig: chain.Sign(newHouse("e").priv, chain.DomainMember, chain.Marshal(newHouse("e").member()))}, once.priv))
	v, _ := MemberOf(w.st, d.key)
	equal(t, "node", v.Node, "f2")
	equal(t, "power", v.Power, votingPower)
	w.ok(d.sign(d.site(firstSl, 0, 0)))

	// A full node: no voting power.
	plain := chain.Invite{Key: twice.key, Node: "root", Expires: w.now + 3_600_000}
	out = w.ok(w.tx(w.op, chain.TxInvite, plain), signJoin(newHouse("e"), twice))
	equal(t, "updates", len(out.Validators), 0)

	// A session at the charger of a member that is revoked ends by rule.
	before := w.balance(w.driver.account())
	w.ok(d.sign(signQuote(w.quote(d, w.driver, 1, 1, 5000), w.driver), sessionMeter(1, 1, firstSl, 5, w.now)))
	w.refused(CodeNotAllowed, w.bad(w.a.owner, chain.TxRevoke, chain.Revoke{Device: d.key}))
	out = w.ok(w.tx(w.op, chain.TxRevoke, chain.Revoke{Device: d.key, Reason: "moved out"}))
	if len(out.Validators) != 1 || out.Validators[0].Power != 0 {
		t.Fatalf("validators %+v", out.Validators)
	}
	equal(t, "state", w.session(1).State, SessionInterrupted)
	equal(t, "balance", w.balance(w.driver.account()), before)
	w.refused(CodeNotMember, d.sign(sunny))
	w.refused(CodeNotMember, w.bad(w.op, chain.TxRevoke, chain.Revoke{Device: d.key}))
	equal(t, "members", StatusOf(w.st).Members, 4)

	w.ok(w.tx(w.op, chain.TxRevoke, chain.Revoke{Device: w.a.key}), w.tx(w.op, chain.TxRevoke, chain.Revoke{Device: w.b.key}))
	w.refused(CodeLastValidator, w.bad(w.op, chain.TxRevoke, chain.Revoke{Device: w.c.key}))

	late := newPerson("late one-time")
	w.nonces[w.op.key] = NextNonce(w.st, w.op.key) - 1
	w.ok(w.tx(w.op, chain.TxInvite, chain.Invite{Key: late.key, Node: "root", Expires: w.now + 5000}))
	w.now += 10_000
	w.ok(w.mint(chain.AccountGrid, 1)) // block time moves on
	w.refused(CodeInvitation, signJoin(newHouse("f"), late))
}

func TestEnergyBookedBeforeRevocationStaysBooked(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(w.b.owner.account(), 1e9))
	w.at(firstSl)
	w.ok(w.a.sign(w.a.site(firstSl, 0, 500)), w.b.sign(w.b.site(firstSl, 500, 0)), w.tx(w.op, chain.TxRevoke, chain.Revoke{Device: w.a.key}))
	w.now += 61_000
	w.block()
	equal(t, "sold", w.fill(firstSl, "sell/a").Local, 500)
	// From the next slot on the house is no longer in the tree.
	w.at(firstSl + 1)
	w.ok(w.b.sign(w.b.site(firstSl+1, 10, 0)), w.c.sign(w.c.site(firstSl+1, 0, 0)))
	v := w.slot(firstSl + 1)
	equal(t, "missing", v.Missing, 0)
	equal(t, "priced", slices.ContainsFunc(v.Prices, func(p PriceView) bool { return p.Node == "a" }), false)
}

func TestAtMostThirteenValidators(t *testing.T) {
	w := newWorld(t)
	for i := range 12 {
		once := newPerson(fmt.Sprint("one-time ", i))
		w.ok(w.tx(w.op, chain.TxInvite, chain.Invite{Key: once.key, Node: "f1", Validator: true, Expires: w.now + 1e6}), signJoin(newHouse(fmt.Sprint("house", i)), once))
	}
	s := StatusOf(w.st)
	equal(t, "members", s.Members, 15)
	equal(t, "validators", s.Validators, MaxValidators)
}

func TestTariffRangesNeverOverlap(t *testing.T) {
	w := newWorld(t)
	f := firstSl + 10
	set := func(from, to chain.Slot, retail chain.NanoPerWh) {
		w.ok(w.tx(w.op, chain.TxTariff, chain.Tariff{From: from, To: to, Retail: retail, FeedIn: 1}))
	}
	set(f, f+9, 100)
	set(f+3, f+5, 200) // cuts a hole
	set(f+8, f+12, 300)
	set(f-2, f, 400)
	for i, want := range []chain.NanoPerWh{300_000, 400, 400, 400, 100, 100, 200, 200, 200, 100, 100, 300, 300, 300, 300, 300, 300_000} {
		got, _ := TariffAt(w.st, f-3+chain.Slot(i))
		equal(t, fmt.Sprint("retail in slot ", i-3), got, want)
	}
	set(f-5, f+50, 500)
	equal(t, "ranges", len(Tariffs(w.st)), 1)
	w.refused(CodeRange, w.bad(w.op, chain.TxTariff, chain.Tariff{From: firstSl, To: f, Retail: 1}))
	w.refused(CodeRange, w.bad(w.op, chain.TxTariff, chain.Tariff{From: f, To: f - 1, Retail: 1}))
	w.refused(CodeRange, w.bad(w.op, chain.TxTariff, chain.Tariff{From: f, To: f, Retail: 1, FeedIn: 2}))
	w.refused(CodeRange, w.bad(w.op, chain.TxTariff, chain.Tariff{From: f, To: f, Retail: MaxPrice + 1}))
	w.refused(CodeNotAllowed, w.bad(w.driver, chain.TxTariff, chain.Tariff{From: f, To: f, Retail: 1}))
}

func TestGenesisIsChecked(t *testing.T) {
	for what, spoil := range map[string]func(*chain.Genesis){
		"no root":        func(g *chain.Genesis) { g.Nodes[0].Parent = "f1" },
		"two roots":      func(g *chain.Genesis) { g.Nodes[1].Parent = "" },
		"unknown parent": func(g *chain.Genesis) { g.Nodes[1].Parent = "f9" },
		"cycle":          func(g *chain.Genesis) { g.Nodes[1].Parent, g.Nodes[2].Parent = "f2", "f1" },
		"negative fee":   func(g *chain.Genesis) { g.Nodes[1].Fee = -1 },
		"same name":      func(g *chain.Genesis) { g.Members[1].Name = "a" },
		"same device":    func(g *chain.Genesis) { g.Members[1].Device = g.Members[0].Device },
		"no power":       func(g *chain.Genesis) { g.Members[1].MaxPower = 0 },
		"no validator":   func(g *chain.Genesis) { g.Members = g.Members[:1]; g.Members[0].Validator = chain.Key{} },
		"bad name":       func(g *chain.Genesis) { g.Members[0].Name = "Müller" },
		"no operator":    func(g *chain.Genesis) { g.Operators = nil },
	} {
		g := testGenesis(newHouse("a"), newHouse("b"))
		spoil(&g)
		st := NewMapState()
		if _, err := InitGenesis(st, g, t0); err == nil {
			t.Errorf("%s: accepted", what)
		}
		equal(t, what+": state", StateHash(st), StateHash(NewMapState()))
	}
	up, err := InitGenesis(NewMapState(), testGenesis(newHouse("a"), newHouse("b")), t0)
	if err != nil || len(up) != 2 || up[0].Power != votingPower {
		t.Fatalf("%v %v", up, err)
	}
}

// A transaction that makes or loses money is refused and reported, whatever
// it was meant to do; nothing of it remains.
func TestBrokenInvariantIsRefusedAndReported(t *testing.T) {
	w := newWorld(t)
	before := StateHash(w.st)
	for what, spoil := range map[string]func(State) error{
		"makes money":    func(st State) error { return add(st, w.driver.account(), 1) },
		"loses money":    func(st State) error { return add(st, w.driver.account(), -1) },
		"overdraws":      func(st State) error { put(st, AccountKey(w.driver.account()), chain.Nano(-1)); return nil },
		"makes credit":   func(st State) error { put(st, lotKey(w.driver.account(), 9), lot{Amount: 5}); return nil },
		"drains reserve": func(st State) error { return move(st, chain.AccountPromotion, chain.AccountReserve, 5) },
		"forgets a mint": func(st State) error { put(st, key(tabMoney), supply{Minted: 5}); return nil },
		"internal error": func(State) error { return errors.New("impossible") },
		"panics": func(st State) error {
			st.Set(AccountKey(w.driver.account()), []byte{1})
			balance(st, w.driver.account())
			return nil
		},
		"indexes beyond": func(st State) error { _ = st.Get(AccountKey(w.driver.account()))[1000]; return nil },
		"loses a capture": func(st State) error {
			putSession(st, &SessionView{ID: chain.ID{9}, State: SessionClosed, Hold: 5})
			return nil
		},
	} {
		r := newRun(w.st, w.height+1, w.now)
		err := r.attempt(w.st, []byte("tx"), spoil)
		if res := result(err); res.Code != CodeInvariant || len(r.broken) != 1 || string(r.broken[0].Tx) != "tx" {
			t.Errorf("%s: %v, reported %v", what, res, r.broken)
		}
		equal(t, what+": state", StateHash(w.st), before)
	}
}

// With a bug in the rules, the transactions that meet it are refused and
// reported with their bytes, those around them go through, and the ledger goes
// on; an honest replica without the bug has another state, which its app hash
// shows.
func TestABugIsBlamedOnItsTransactions(t *testing.T) {
	w := newWorld(t)
	alice, bob := newPerson("alice"), newPerson("bob")
	good, bad, after := w.mint(alice.account(), 10), w.mint(bob.account(), 20), w.a.sign(sunny)
	for what, bug := range map[string]func(st State) error{
		"money from nowhere": func(st State) error { return add(st, w.driver.account(), 1) },
		"money lost":         func(st State) error { return add(st, chain.AccountGrid, -1) },
		"credit unbacked":    func(st State) error { put(st, lotKey(w.driver.account(), 9), lot{Amount: 5}); return nil },
		"division by zero":   func(st State) error { _ = len(st.Get(key(tabRules))) / len(st.Get(key('~'))); return nil },
		"nil":                func(State) error { var p *SessionView; p.Wh++; return nil },
		"impossible state":   func(State) error { panic("ledger: impossible") },
	} {
		st := NewOverlay(w.st)
		out, err := Apply(st, BlockInput{Height: w.height + 1, TimeMs: w.now + 1000, Txs: [][]byte{good, bad, after}, bug: func(st State, raw []byte) error {
			if bytes.Equal(raw, bad) {
				return bug(st)
			}
			return nil
		}})
		if err != nil {
			t.Fatalf("%s: the ledger halts: %v", what, err)
		}
		equal(t, what+": before", out.Results[0].Code, CodeOK)
		equal(t, what+": blamed", out.Results[1].Code, CodeInvariant)
		equal(t, what+": after", out.Results[2].Code, CodeOK)
		if len(out.Violations) != 1 || !bytes.Equal(out.Violations[0].Tx, bad) {
			t.Fatalf("%s: reported %+v", what, out.Violations)
		}
		equal(t, what+": bob", balance(st, bob.account()), 0)
		equal(t, what+": alice", balance(st, alice.account()), 10)
		if f := CheckInvariants(st); len(f) > 0 {
			t.Fatalf("%s: %v", what, f)
		}
	}
}

// A State that fails is nobody's fault: the ledger stops.
func TestFailingStateHaltsTheLedger(t *testing.T) {
	w := newWorld(t)
	broken := errors.New("disk")
	defer func() {
		if p := recover(); p != any(broken) {
			t.Fatalf("recovered %v", p)
		}
	}()
	_, _ = Apply(failing{w.st, broken}, BlockInput{Height: w.height + 1, TimeMs: w.now + 1, Txs: [][]byte{w.mint(w.driver.account(), 1)}})
	t.Fatal("the ledger went on")
}

type failing struct {
	State
	err error
}

func (f failing) Get(k []byte) []byte {
	if k[0] == tabNonce {
		panic(f.err)
	}
	return f.State.Get(k)
}

// Damage that no transaction did is found after the block, and halts.
func TestDamagedStateHaltsTheLedger(t *testing.T) {
	w := newWorld(t)
	put(w.st, AccountKey(w.driver.account()), chain.Nano(7))
	if bad := CheckInvariants(w.st); !mentions(bad, "minted") {
		t.Fatalf("not found: %v", bad)
	}
	before := StateHash(w.st)
	_, err := Apply(w.st, BlockInput{Height: w.height + 1, TimeMs: w.now + 1, Txs: [][]byte{w.mint(w.driver.account(), 1)}})
	if err == nil {
		t.Fatal("the ledger went on")
	}
	equal(t, "state", StateHash(w.st), before)
}

// A gateway that was restored votes with a new key once operators agree; the
// request works once, and not for the old key again.
func TestReplaceValidator(t *testing.T) {
	w := newWorld(t)
	old := w.a.member().Validator
	ask := chain.SignReplace("test", old, chain.Key{7}, w.a.priv)
	stolen := ask
	stolen.New = chain.Key{9}
	w.refused(CodeSignature, w.bad(w.op, chain.TxReplace, stolen))
	w.refused(CodeSignature, w.bad(w.op, chain.TxReplace, chain.SignReplace("another", old, chain.Key{7}, w.a.priv)))
	w.refused(CodeTaken, w.bad(w.op, chain.TxReplace, chain.SignReplace("test", old, w.b.member().Validator, w.a.priv)))
	w.refused(CodeTaken, w.bad(w.op, chain.TxReplace, chain.SignReplace("test", old, old, w.a.priv)))

	out := w.ok(w.tx(w.op, chain.TxReplace, ask))
	power := map[chain.Key]int64{}
	for _, u := range out.Validators {
		power[u.Key] = u.Power
	}
	if gone, had := power[old]; len(power) != 2 || !had || gone != 0 || power[chain.Key{7}] != votingPower {
		t.Fatalf("validators %+v", out.Validators)
	}
	m, _ := MemberOf(w.st, w.a.key)
	if m.Validator != (chain.Key{7}) || m.Power != votingPower {
		t.Errorf("member %+v", m)
	}
	w.refused(CodeTaken, w.bad(w.op, chain.TxReplace, ask)) // once
	back := chain.SignReplace("test", chain.Key{7}, chain.Key{8}, w.a.priv)
	w.ok(w.tx(w.op, chain.TxReplace, back))
	w.refused(CodeTaken, w.bad(w.op, chain.TxReplace, ask))

	// Of the only validator too: it must sign the block itself, though.
	w.ok(w.tx(w.op, chain.TxRevoke, chain.Revoke{Device: w.b.key}), w.tx(w.op, chain.TxRevoke, chain.Revoke{Device: w.c.key}))
	w.ok(w.tx(w.op, chain.TxReplace, chain.SignReplace("test", chain.Key{8}, chain.Key{9}, w.a.priv)))
}
