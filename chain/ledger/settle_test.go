package ledger

import (
	"bytes"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/tree/treetest"
)

// newAbroad starts another microgrid, with an operator and validators of its
// own and money on the operator's account.
func newAbroad(t testing.TB, id string, now int64) *world {
	w := &world{t: t, id: id, st: NewMapState(), op: newPerson("operator of " + id), a: newHouse(id), now: now, nonces: map[chain.Key]uint64{}}
	g := testGenesis(w.a)
	g.ChainID, g.Operators = id, []chain.Key{w.op.key}
	if _, err := InitGenesis(w.st, g, now); err != nil {
		t.Fatal(err)
	}
	w.ok(w.mint(w.op.account(), 1e9))
	return w
}

// vals are who sign this microgrid's blocks.
func (w *world) vals() (s chain.Validators) {
	var houses []*house
	for _, h := range []*house{w.a, w.b, w.c} {
		if h != nil {
			houses = append(houses, h)
		}
	}
	return chain.FoundingValidators(testGenesis(houses...))
}

// believed is what another microgrid's operators may believe about this one.
func (w *world) believed() chain.Remote {
	return chain.Remote{Genesis: chain.Sum([]byte(w.id)), Trust: chain.Trust{Chain: w.id, Time: w.now * 1e6, Next: w.vals()}}
}

// checkpoint signs the block after the newest state.
func (w *world) checkpoint() chain.Checkpoint {
	set := w.vals()
	h := chain.LedgerHeader{
		Protocol: 11, App: 1, Chain: w.id, Height: w.height + 1, Time: (w.now + 1) * 1e6, Validators: set.Hash(), Next: set.Hash(),
		AppHash: treetest.Root(treetest.Entries(w.st.Iterate)),
	}
	c := chain.Checkpoint{Version: chain.CheckpointVersion, Header: h, Commit: chain.Commit{Parts: 1}, Set: set}
	for i, v := range set {
		for _, x := range []*house{w.a, w.b, w.c} {
			if x == nil {
				continue
			}
			if priv, k := seededKey("validator " + x.name); k == v.Key {
				vote := chain.Vote{Index: uint16(i), Time: h.Time}
				vote.Sig = chain.Sign(priv, "", c.Commit.SignBytes(&h, vote))
				c.Commit.Votes = append(c.Commit.Votes, vote)
			}
		}
	}
	return c
}

// shows proves an entry of the newest state, or that there is none.
func (w *world) shows(key []byte) chain.RemoteProof {
	told, _ := treetest.Prune(treetest.Entries(w.st.Iterate), [2][]byte{key, append(bytes.Clone(key), 0)})
	return chain.RemoteProof{Checkpoint: w.checkpoint(), Tree: told.Bytes()}
}

// terms are of a settlement that home locks: 300 there against 500 on away.
func terms(home, away *world, id byte) chain.Settlement {
	return chain.Settlement{
		ID: chain.ID{id}, Home: home.id, Payer: home.op.account(), Payee: away.op.account(), Amount: 300,
		Away: away.id, AwayPayer: away.op.account(), AwayPayee: home.op.account(), AwayAmount: 500,
		Deadline: home.now + 3_600_000, Expires: home.now + 3_600_000 + chain.MinSettleSpan,
	}
}

func answers(s chain.Settlement, home *world) chain.SettleAnswer {
	return chain.SettleAnswer{Terms: s, Proof: home.shows(SettlementKey(s.ID, s.Away, true))}
}

func closes(s chain.Settlement, away *world) chain.SettleClose {
	return chain.SettleClose{ID: s.ID, Away: s.Away, Proof: away.shows(SettlementKey(s.ID, s.Home, false))}
}

// between adds another microgrid to a ripe one. Of their settlements 5 is
// locked there, 6 locked here and answered there, 8 locked here.
func (r *ripe) between() {
	w := r.world
	r.far = newAbroad(r.t, "far", w.now)
	w.ok(w.mint(w.op.account(), 1e9), w.tx(w.op, chain.TxRemote, r.far.believed()))
	r.far.ok(r.far.tx(r.far.op, chain.TxRemote, w.believed()))
	r.far.ok(r.far.tx(r.far.op, chain.TxSettle, terms(r.far, w, 5)))
	w.ok(w.tx(w.op, chain.TxSettle, terms(w, r.far, 6)), w.tx(w.op, chain.TxSettle, terms(w, r.far, 8)))
	r.far.now = w.now
	v, _ := get[SettlementView](w.st, SettlementKey(chain.ID{6}, "far", true))
	r.far.ok(r.far.tx(r.far.op, chain.TxSettleAnswer, answers(v.Terms, w)))
	r.followed = r.far.checkpoint()
	w.now = r.far.now
	w.ok(w.tx(w.op, chain.TxRemoteHead, chain.RemoteHead{Checkpoint: r.followed}))
	r.far.ok(r.far.mint(r.far.op.account(), 1))
	r.far.ok(r.far.mint(r.far.op.account(), 1))
}

func (r *ripe) terms(id byte) chain.Settlement { return terms(r.world, r.far, id) }

func (r *ripe) answer(id byte) chain.SettleAnswer {
	s := terms(r.far, r.world, id)
	if v, ok := get[SettlementView](r.far.st, SettlementKey(s.ID, "test", true)); ok {
		s = v.Terms
	}
	return answers(s, r.far)
}

func (r *ripe) closes(id byte) chain.SettleClose {
	return closes(chain.Settlement{ID: chain.ID{id}, Home: "test", Away: "far"}, r.far)
}

// pair is two microgrids that believe each other.
func pair(t *testing.T) (home, away *world) {
	home, away = newAbroad(t, "home", t0), newAbroad(t, "away", t0)
	home.ok(home.tx(home.op, chain.TxRemote, away.believed()))
	away.ok(away.tx(away.op, chain.TxRemote, home.believed()))
	return home, away
}

func TestSettlementBetweenTwoLedgers(t *testing.T) {
	home, away := pair(t)
	s := terms(home, away, 1)
	home.ok(home.tx(home.op, chain.TxSettle, s))
	home.saw("settlement.locked")
	equal(t, "locked", home.balance(chain.AccountSettlement), 300)
	// Before the other side has paid there is nothing to show.
	home.refused(CodeState, chain.SignTx("home", NextNonce(home.st, home.op.key), chain.TxSettleClose, closes(s, away), home.op.priv))

	away.ok(away.tx(away.op, chain.TxSettleAnswer, answers(s, home)))
	equal(t, "home's operator on away", away.balance(home.op.account()), 500)
	equal(t, "away's operator on away", away.balance(away.op.account()), 1e9-500)

	// The payee closes it himself: he is no operator of home.
	home.now = away.now
	home.ok(home.tx(away.op, chain.TxSettleClose, closes(s, away)))
	home.saw("settlement.paid")
	equal(t, "away's operator on home", home.balance(away.op.account()), 300)
	equal(t, "locked", home.balance(chain.AccountSettlement), 0)
	equal(t, "home's operator on home", home.balance(home.op.account()), 1e9-300)

	// Neither half can be used again.
	home.refused(CodeState, chain.SignTx("home", NextNonce(home.st, away.op.key), chain.TxSettleClose, closes(s, away), away.op.priv))
	home.refused(CodeDuplicate, chain.SignTx("home", NextNonce(home.st, home.op.key), chain.TxSettle, s, home.op.priv))
	away.refused(CodeDuplicate, chain.SignTx("away", NextNonce(away.st, away.op.key), chain.TxSettleAnswer, answers(s, home), away.op.priv))

	// Long after, both forget it.
	for _, w := range []*world{home, away} {
		equal(t, "kept", len(Settlements(w.st)), 1)
		w.now = s.Expires + 402*dayMs
		w.block()
		equal(t, "kept", len(Settlements(w.st)), 0)
	}
}

func TestSettlementReturns(t *testing.T) {
	t.Run("proven unanswered", func(t *testing.T) {
		home, away := pair(t)
		s := terms(home, away, 1)
		home.ok(home.tx(home.op, chain.TxSettle, s))
		home.now = s.Deadline
		home.ok(home.mint(home.op.account(), 1))
		away.now = s.Deadline - 2000
		away.ok(away.mint(away.op.account(), 1))
		close := func() []byte {
			return chain.SignTx("home", NextNonce(home.st, home.op.key), chain.TxSettleClose, closes(s, away), home.op.priv)
		}
		home.refused(CodeState, close()) // away's block is a second too early
		away.ok(away.mint(away.op.account(), 1))
		away.refused(CodeExpired, chain.SignTx("away", NextNonce(away.st, away.op.key), chain.TxSettleAnswer, answers(s, home), away.op.priv))
		home.ok(close())
		home.saw("settlement.refunded")
		equal(t, "home's operator", home.balance(home.op.account()), 1e9+1)
	})
	t.Run("expired", func(t *testing.T) {
		home, away := pair(t)
		s := terms(home, away, 1)
		home.ok(home.tx(home.op, chain.TxSettle, s))
		home.now = s.Expires - 2000
		home.block()
		equal(t, "locked", home.balance(chain.AccountSettlement), 300)
		home.block()
		home.saw("settlement.refunded")
		equal(t, "home's operator", home.balance(home.op.account()), 1e9)
	})
}

// What one microgrid shows is believed only as far as its own validators have
// signed it, about the very settlement.
func TestSettlementProofs(t *testing.T) {
	home, away := pair(t)
	third := newAbroad(t, "third", t0)
	for _, w := range []*world{home, away} {
		w.ok(w.tx(w.op, chain.TxRemote, third.believed()))
	}
	s := terms(home, away, 1)
	home.ok(home.tx(home.op, chain.TxSettle, s))
	answer := func(code Code, change func(a *chain.SettleAnswer)) {
		t.Helper()
		a := answers(s, home)
		change(&a)
		away.refused(code, chain.SignTx("away", NextNonce(away.st, away.op.key), chain.TxSettleAnswer, a, away.op.priv))
	}
	answer(CodeProof, func(a *chain.SettleAnswer) { a.Terms.Amount = 301 })
	answer(CodeProof, func(a *chain.SettleAnswer) { a.Terms.AwayAmount = 1 })
	answer(CodeProof, func(a *chain.SettleAnswer) { a.Terms.AwayPayee = newPerson("thief").account() })
	answer(CodeProof, func(a *chain.SettleAnswer) { a.Terms.ID = chain.ID{2} })
	answer(CodeAccount, func(a *chain.SettleAnswer) { a.Terms.AwayPayee = chain.AccountGrid })
	answer(CodeChain, func(a *chain.SettleAnswer) { a.Terms.Home, a.Terms.Away = "away", "home" })
	answer(CodeMalformed, func(a *chain.SettleAnswer) { a.Terms.Home = "away" })
	answer(CodeChain, func(a *chain.SettleAnswer) { a.Terms.Home = "third" })
	answer(CodeChain, func(a *chain.SettleAnswer) { a.Proof = third.shows(SettlementKey(s.ID, "away", true)) })
	answer(CodeProof, func(a *chain.SettleAnswer) { a.Proof = home.shows(RulesKey()) })
	answer(CodeProof, func(a *chain.SettleAnswer) { a.Proof.Checkpoint.Commit.Votes[0].Sig[0] ^= 1 })
	answer(CodeProof, func(a *chain.SettleAnswer) {
		// Home's state under third's signatures.
		forged := *third
		forged.id, forged.st, forged.height = "home", home.st, home.height
		a.Proof = forged.shows(SettlementKey(s.ID, "away", true))
	})
	for i := range answers(s, home).Proof.Tree {
		a := answers(s, home)
		a.Proof.Tree[i] ^= 1
		if res := CheckTx(NewOverlay(away.st), chain.SignTx("away", NextNonce(away.st, away.op.key), chain.TxSettleAnswer, a, away.op.priv)); res.Code == CodeOK {
			t.Fatalf("bit of byte %d of the proof was changed unnoticed", i)
		}
	}

	// The counter-entry of another settlement only shows that this one has none.
	away.ok(away.tx(away.op, chain.TxSettleAnswer, answers(s, home)))
	s2 := terms(home, away, 2)
	home.ok(home.tx(home.op, chain.TxSettle, s2))
	c := closes(s, away)
	c.ID = s2.ID
	home.refused(CodeState, chain.SignTx("home", NextNonce(home.st, home.op.key), chain.TxSettleClose, c, home.op.priv))
	equal(t, "locked", home.balance(chain.AccountSettlement), 600)
}

// Trust that nobody has renewed ends; operators renew it, others cannot.
func TestTrustInAnotherMicrogridEnds(t *testing.T) {
	home, away := pair(t)
	period := chain.TrustingPeriod / time.Millisecond
	for range 3 { // each checkpoint carries it further
		home.now += int64(period) - 60_000
		away.now = home.now
		away.ok(away.mint(away.op.account(), 1))
		away.ok(away.mint(away.op.account(), 1))
		home.now = away.now
		home.ok(home.tx(home.op, chain.TxRemoteHead, chain.RemoteHead{Checkpoint: away.checkpoint()}))
	}
	equal(t, "fresh", Remotes(home.st)[0].Fresh, true)
	home.now += int64(period) + 60_000
	away.now = home.now
	home.ok(home.mint(home.op.account(), 1))
	away.ok(away.mint(away.op.account(), 1))
	away.ok(away.mint(away.op.account(), 1))
	equal(t, "fresh", Remotes(home.st)[0].Fresh, false)
	home.now = away.now
	home.refused(CodeExpired, chain.SignTx("home", NextNonce(home.st, home.op.key), chain.TxRemoteHead, chain.RemoteHead{Checkpoint: away.checkpoint()}, home.op.priv))
	p := away.checkpoint()
	home.ok(home.tx(home.op, chain.TxRemote, chain.Remote{Genesis: chain.Sum([]byte("away")), Trust: p.Trust()}))
	equal(t, "fresh", Remotes(home.st)[0].Fresh, true)
	home.ok(home.tx(home.op, chain.TxRemote, chain.Remote{Trust: chain.Trust{Chain: "away"}}))
	equal(t, "believed", len(Remotes(home.st)), 0)
}
