package ledger

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// newWorldOf is newWorld under changed rules, with three operators: op, op2
// and op3.
func newWorldOf(t testing.TB, change func(g *chain.Genesis)) *world {
	w := newWorld(t)
	g := testGenesis(w.a, w.b, w.c)
	g.Operators = []chain.Key{w.op.key, newPerson("op2").key, newPerson("op3").key}
	change(&g)
	threshold := g.Money.Threshold
	g.Money.Threshold = 1
	cap := g.Money.DailyMintCap
	g.Money.DailyMintCap = 0
	w.st, w.nonces, w.height, w.now = NewMapState(), map[chain.Key]uint64{}, 0, t0
	if _, err := InitGenesis(w.st, g, t0-slotMs); err != nil {
		t.Fatal(err)
	}
	w.ok(w.mint(chain.AccountGrid, 1e12), w.mint(chain.AccountPromotion, 1e12), w.mint(chain.AccountRounding, 1e9), w.mint(w.driver.account(), 1e10))
	rules := RulesOf(w.st)
	rules.Threshold, rules.DailyMintCap = max(threshold, 1), cap
	put(w.st, key(tabRules), rules)
	for _, h := range []*house{w.a, w.b, w.c} {
		h.pos, h.prev, h.pages, h.imp, h.exp = chain.Position{Epoch: 1}, chain.Hash{}, map[string]uint64{}, map[string]meter.WattHour{}, map[string]meter.WattHour{}
	}
	w.ok(w.a.sign(w.a.site(firstSl-1, 0, 0)), w.b.sign(w.b.site(firstSl-1, 0, 0)), w.c.sign(w.c.site(firstSl-1, 0, 0)))
	return w
}

// joint has everybody in by approve a proposal, which the first submits.
func (w *world) joint(kind chain.TxKind, body any, by ...*person) []byte {
	w.bankRefs++
	p := chain.Proposal{Version: chain.Version, Chain: "test", ID: chain.ID{byte(w.bankRefs), 0xaa}, Expires: w.now + 60_000, Kind: kind, Body: chain.Marshal(body)}
	return w.approve(p, by...)
}

func (w *world) approve(p chain.Proposal, by ...*person) []byte {
	j := chain.Joint{Proposal: chain.Marshal(p)}
	for _, x := range by {
		j.Add(chain.Approval{Key: x.key, Sig: chain.Sign(x.priv, chain.DomainApproval, j.Proposal)})
	}
	return w.bad(by[0], chain.TxJoint, j)
}

// pass lets time go by.
func (w *world) pass(ms int64) {
	w.t.Helper()
	w.now += ms
	w.ok(w.a.sign(chain.NewRecord(chain.KindEvent, chain.Event{Code: "tick"})))
}

// took applies one transaction that must be accepted.
func (w *world) took(tx []byte) BlockOutput {
	w.t.Helper()
	if r := CheckTx(NewOverlay(w.st), tx); r.Code != CodeOK {
		w.t.Fatalf("not admitted: %s %s", r.Code, r.Info)
	}
	return w.ok(tx)
}

func TestMintingNeedsTheThresholdAndBeyondTheCapAnAuditor(t *testing.T) {
	op2, op3, auditor, thief := newPerson("op2"), newPerson("op3"), newPerson("auditor"), newPerson("thief")
	w := newWorldOf(t, func(g *chain.Genesis) {
		g.Money = chain.Money{Threshold: 2, Auditors: []chain.Key{auditor.key}, DailyMintCap: 1000}
	})
	w.pass(dayMs) // what the world began with was of another day
	to := w.driver.account()
	before := w.balance(to)
	m := chain.Mint{To: to, Amount: 600, BankRef: "first"}
	w.refused(CodeApproval, w.bad(w.op, chain.TxMint, m))
	w.refused(CodeApproval, w.joint(chain.TxMint, m, w.op))
	w.refused(CodeApproval, w.joint(chain.TxMint, m, w.op, auditor)) // an auditor is no operator
	w.refused(CodeNotAllowed, w.joint(chain.TxMint, m, thief, auditor))
	w.took(w.joint(chain.TxMint, m, op2, op3))
	equal(t, "minted", w.balance(to)-before, 600)

	m.BankRef = "second"
	w.refused(CodeApproval, w.joint(chain.TxMint, m, w.op, op2)) // 1200 in a day
	w.took(w.joint(chain.TxMint, m, w.op, op2, auditor))
	m.BankRef = "third"
	m.Amount = 1
	w.refused(CodeApproval, w.joint(chain.TxMint, m, w.op, op2))
	w.pass(dayMs)
	w.took(w.joint(chain.TxMint, m, w.op, op2))
	equal(t, "minted", w.balance(to)-before, 1201)

	// The same for burning and revoking.
	w.refused(CodeApproval, w.bad(w.op, chain.TxBurn, chain.Burn{From: to, Amount: 1, BankRef: "out"}))
	w.took(w.joint(chain.TxBurn, chain.Burn{From: to, Amount: 1, BankRef: "out"}, w.op, op3))
	w.refused(CodeApproval, w.bad(w.op, chain.TxRevoke, chain.Revoke{Device: w.c.key}))
	w.took(w.joint(chain.TxRevoke, chain.Revoke{Device: w.c.key}, w.op, op3))
}

func TestAProposalIsWhatItsApproversSigned(t *testing.T) {
	op2 := newPerson("op2")
	w := newWorldOf(t, func(g *chain.Genesis) { g.Money.Threshold = 2 })
	m := chain.Mint{To: w.driver.account(), Amount: 5, BankRef: "x"}
	p := chain.Proposal{Version: chain.Version, Chain: "test", ID: chain.ID{7}, Expires: w.now + 60_000, Kind: chain.TxMint, Body: chain.Marshal(m)}

	for what, c := range map[string]struct {
		code   Code
		change func(p *chain.Proposal)
	}{
		"another microgrid": {CodeChain, func(p *chain.Proposal) { p.Chain = "other" }},
		"expired":           {CodeExpired, func(p *chain.Proposal) { p.Expires = 1 }},
		"for ever":          {CodeExpired, func(p *chain.Proposal) { p.Expires = math.MaxInt64 }},
		"version":           {CodeMalformed, func(p *chain.Proposal) { p.Version = 2 }},
		"single kind": {CodeKind, func(p *chain.Proposal) {
			p.Kind, p.Body = chain.TxTransfer, chain.Marshal(chain.Transfer{To: m.To, Amount: 1})
		}},
		"nested":     {CodeKind, func(p *chain.Proposal) { p.Kind, p.Body = chain.TxJoint, chain.Marshal(chain.Joint{}) }},
		"wrong body": {CodeMalformed, func(p *chain.Proposal) { p.Body = chain.Marshal("x") }},
	} {
		bad := p
		c.change(&bad)
		t.Log(what)
		w.refused(c.code, w.approve(bad, w.op, op2))
	}
	raw := chain.Marshal(p)
	good := func(x *person) chain.Approval {
		return chain.Approval{Key: x.key, Sig: chain.Sign(x.priv, chain.DomainApproval, raw)}
	}
	forged := chain.Approval{Key: op2.key, Sig: chain.Sign(w.op.priv, chain.DomainApproval, raw)}
	other := chain.Approval{Key: op2.key, Sig: chain.Sign(op2.priv, chain.DomainTx, raw)}
	one, two := good(w.op), good(op2)
	if string(one.Key[:]) > string(two.Key[:]) {
		one, two = two, one
	}
	for what, c := range map[string]struct {
		code      Code
		approvals []chain.Approval
	}{
		"nobody":         {CodeMalformed, nil},
		"twice one":      {CodeMalformed, []chain.Approval{one, one}},
		"out of order":   {CodeMalformed, []chain.Approval{two, one}},
		"forged":         {CodeSignature, []chain.Approval{forged}},
		"another domain": {CodeSignature, []chain.Approval{other}},
		"too many":       {CodeMalformed, make([]chain.Approval, chain.MaxApprovals+1)},
	} {
		t.Log(what)
		w.refused(c.code, w.bad(w.op, chain.TxJoint, chain.Joint{Proposal: raw, Approvals: c.approvals}))
	}
	w.refused(CodeNotAllowed, w.bad(w.driver, chain.TxJoint, chain.Joint{Proposal: raw, Approvals: []chain.Approval{one, two}}))
	w.took(w.approve(p, w.op, op2))
	w.refused(CodeDuplicate, w.approve(p, w.op, op2))
	// Nor later, when it has expired and is forgotten.
	w.pass(120_000)
	w.took(w.joint(chain.TxMint, chain.Mint{To: m.To, Amount: 1, BankRef: "y"}, w.op, op2))
	left := 0
	w.st.Iterate([]byte{tabProposal}, func(_, _ []byte) bool { left++; return true })
	equal(t, "remembered", left, 1)
	w.refused(CodeExpired, w.approve(p, w.op, op2))
}

func TestPayoutIsLockedPaidAndVisibleWhenOverdue(t *testing.T) {
	w := newWorld(t)
	a := w.driver.account()
	before := w.balance(a)
	stranger := newPerson("stranger")
	w.refused(CodeAmount, w.bad(w.driver, chain.TxPayout, chain.Payout{Amount: 0}))
	w.refused(CodeAmount, w.bad(w.driver, chain.TxPayout, chain.Payout{Amount: -1e7}))
	w.refused(CodeAmount, w.bad(w.driver, chain.TxPayout, chain.Payout{Amount: 1e7 + 1})) // no bank moves that
	w.refused(CodeFunds, w.bad(w.driver, chain.TxPayout, chain.Payout{Amount: 1e10 + 1e7}))
	w.refused(CodeFunds, w.bad(stranger, chain.TxPayout, chain.Payout{Amount: 1e7}))
	w.refused(CodeMalformed, w.bad(w.driver, chain.TxPayout, "1"))

	w.took(w.tx(w.driver, chain.TxPayout, chain.Payout{Amount: 4e9}))
	equal(t, "balance", w.balance(a), before-4e9)
	equal(t, "locked", w.balance(chain.AccountPayout), 4e9)
	w.refused(CodeAccount, w.bad(w.op, chain.TxBurn, chain.Burn{From: chain.AccountPayout, Amount: 1, BankRef: "q"}))
	w.refused(CodeNotAllowed, w.bad(stranger, chain.TxPayoutCancel, chain.PayoutCancel{Payout: 1}))
	w.refused(CodeNotAllowed, w.bad(w.op, chain.TxPayoutCancel, chain.PayoutCancel{Payout: 1}))
	w.refused(CodeUnknown, w.bad(w.driver, chain.TxPayoutCancel, chain.PayoutCancel{Payout: 2}))
	w.refused(CodeNotAllowed, w.bad(w.driver, chain.TxPayoutPaid, chain.PayoutPaid{Payout: 1, BankRef: "z"}))
	w.refused(CodeBankRef, w.bad(w.op, chain.TxPayoutPaid, chain.PayoutPaid{Payout: 1, BankRef: "ref 1"}))
	w.refused(CodeMalformed, w.bad(w.op, chain.TxPayoutPaid, chain.PayoutPaid{Payout: 1}))

	equal(t, "days", RulesOf(w.st).PayoutDays, 10)
	w.now += 10*dayMs + 1
	w.ok(w.mint(chain.AccountGrid, 1))
	w.saw("payout.overdue")
	equal(t, "overdue", OpenPayouts(w.st)[0].Overdue, true)
	equal(t, "told", StatusOf(w.st).OverduePayouts, 1)
	w.ok(w.mint(chain.AccountGrid, 1))
	if slices.ContainsFunc(w.last.Events, func(e Event) bool { return e.Code == "payout.overdue" }) {
		t.Fatal("said twice")
	}

	burned := StatusOf(w.st).Burned
	w.took(w.tx(w.op, chain.TxPayoutPaid, chain.PayoutPaid{Payout: 1, BankRef: "SEPA 1"}))
	equal(t, "at par", StatusOf(w.st).Burned-burned, 4e9)
	equal(t, "locked", w.balance(chain.AccountPayout), 0)
	w.refused(CodeState, w.bad(w.op, chain.TxPayoutPaid, chain.PayoutPaid{Payout: 1, BankRef: "SEPA 2"}))
	w.refused(CodeState, w.bad(w.driver, chain.TxPayoutCancel, chain.PayoutCancel{Payout: 1}))
	w.refused(CodeBankRef, w.mintRef("SEPA 1"))

	w.took(w.tx(w.driver, chain.TxPayout, chain.Payout{Amount: 1e9}))
	w.took(w.tx(w.driver, chain.TxPayoutCancel, chain.PayoutCancel{Payout: 2}))
	equal(t, "balance", w.balance(a), before-4e9)
	w.refused(CodeState, w.bad(w.op, chain.TxPayoutPaid, chain.PayoutPaid{Payout: 2, BankRef: "SEPA 3"}))

	// Money paid in does not expire.
	w.now += 10 * 365 * dayMs
	w.ok(w.mint(chain.AccountGrid, 1))
	equal(t, "ten years later", w.balance(a), before-4e9)
	for range maxOwnPayouts {
		w.took(w.tx(w.driver, chain.TxPayout, chain.Payout{Amount: 1e7}))
	}
	w.refused(CodeLimit, w.bad(w.driver, chain.TxPayout, chain.Payout{Amount: 1e7}))
}

// mintRef is a mint with a given reference.
func (w *world) mintRef(ref string) []byte {
	return w.bad(w.op, chain.TxMint, chain.Mint{To: chain.AccountGrid, Amount: 1, BankRef: ref})
}

// twoCharges makes a session of 3000 Wh that earns credit and one of 1000 Wh
// that spends some.
func twoCharges(w *world) (first, second SessionView) {
	w.charge(1, w.b, firstSl, 3000, true, map[*house][2]meter.WattHour{w.b: {3000, 0}})
	w.charge(2, w.b, firstSl+1, 1000, true, map[*house][2]meter.WattHour{w.b: {1000, 0}})
	return w.session(1), w.session(2)
}

func TestRefundReturnsMoneyAndCreditInProportion(t *testing.T) {
	w := newWorld(t)
	w.ok(w.mint(chain.AccountRounding, 1e9))
	_, s := twoCharges(w)
	if s.CreditRedeemed == 0 || s.CreditEarned == 0 {
		t.Fatalf("%+v", s)
	}
	driver := w.driver.account()
	bill := s.Captured
	w.refused(CodeNotAllowed, w.bad(w.driver, chain.TxRefund, chain.Refund{Session: s.ID, Amount: 1, Reason: "mine"}))
	w.refused(CodeRange, w.bad(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: bill + 1, Reason: "x"}))
	w.refused(CodeAmount, w.bad(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: -1, Reason: "x"}))
	w.refused(CodeMalformed, w.bad(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: 1}))
	w.refused(CodeSession, w.bad(w.op, chain.TxRefund, chain.Refund{Session: chain.ID{77}, Amount: 1, Reason: "x"}))

	money, credit := w.balance(driver), AccountOf(w.st, driver).Credits
	w.took(w.tx(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: bill / 2, Reason: "half"}))
	b := billOf(w.st, s.ID)
	equal(t, "credit back", b.Restored, s.CreditRedeemed/2)
	equal(t, "taken back", b.Clawed, share(s.CreditEarned, b.Money, s.Paid))
	equal(t, "credits", AccountOf(w.st, driver).Credits, credit+b.Restored-b.Clawed)
	note := Invoices(w.st, driver)[0]
	equal(t, "note", note.ID(), "SIM-CN-000001")
	equal(t, "money", w.balance(driver)-money, note.Total)
	equal(t, "exact", note.Exact, b.Money)
	if note.Total%1e7 != 0 || note.Total == note.Exact || note.Total-note.Exact > 5e6 || note.Exact-note.Total > 5e6 {
		t.Fatalf("total %d of %d", note.Total, note.Exact)
	}

	// The rest, in three steps; nothing is lost to rounding.
	for _, n := range []chain.Nano{1, 7, bill - bill/2 - 8} {
		w.took(w.tx(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: n, Reason: "rest"}))
	}
	b = billOf(w.st, s.ID)
	equal(t, "credit back", b.Restored, s.CreditRedeemed)
	equal(t, "money back", b.Money, s.Paid)
	equal(t, "taken back", b.Clawed, s.CreditEarned)
	w.refused(CodeRange, w.bad(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: 1, Reason: "more"}))
	equal(t, "notes", len(Invoices(w.st, driver)), 4)
}

func TestRestoredCreditOfAnExpiredLotLivesAgain(t *testing.T) {
	w := newWorld(t)
	first, s := twoCharges(w)
	w.at(firstSl + 120) // lots live for 100 slots
	w.ok(w.mint(chain.AccountGrid, 1))
	equal(t, "credits", AccountOf(w.st, w.driver.account()).Credits, 0)
	grid := w.balance(chain.AccountGrid)
	promotion := w.balance(chain.AccountPromotion)
	w.took(w.tx(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: s.Captured, Reason: "all"}))
	v := AccountOf(w.st, w.driver.account())
	equal(t, "credits", v.Credits, s.CreditRedeemed)
	equal(t, "of the first session", v.Lots[0].Session, first.ID)
	if v.Lots[0].Expires <= firstSl+121 {
		t.Fatalf("expires in slot %d", v.Lots[0].Expires)
	}
	// The credit earned has expired unspent: there is nothing to keep from the money but what expired.
	n := Invoices(w.st, w.driver.account())[0]
	equal(t, "kept", n.Kept, s.CreditEarned)
	equal(t, "promotion", w.balance(chain.AccountPromotion)-promotion, n.Kept)
	if w.balance(chain.AccountGrid) >= grid {
		t.Fatal("who paid?")
	}
}

func TestDisputeFreezesTheAmountAndNoMore(t *testing.T) {
	auditor := newPerson("auditor")
	w := newWorldOf(t, func(g *chain.Genesis) { g.Money.Auditors = []chain.Key{auditor.key} })
	s, s2 := twoCharges(w)
	d := chain.Dispute{Session: s.ID, Amount: 2e8, Reason: "cable was pulled"}
	w.refused(CodeNotAllowed, w.bad(w.op, chain.TxDispute, d))
	w.refused(CodeAmount, w.bad(w.driver, chain.TxDispute, chain.Dispute{Session: s.ID, Reason: "x"}))
	w.refused(CodeRange, w.bad(w.driver, chain.TxDispute, chain.Dispute{Session: s.ID, Amount: s.Captured + 1, Reason: "x"}))
	w.refused(CodeMalformed, w.bad(w.driver, chain.TxDispute, chain.Dispute{Session: s.ID, Amount: 1}))
	w.refused(CodeSession, w.bad(w.driver, chain.TxDispute, chain.Dispute{Session: chain.ID{9}, Amount: 1, Reason: "x"}))

	grid, driver := w.balance(chain.AccountGrid), w.balance(w.driver.account())
	w.took(w.tx(w.driver, chain.TxDispute, d))
	equal(t, "frozen", w.balance(chain.AccountDispute), 2e8)
	equal(t, "supplier", w.balance(chain.AccountGrid), grid-2e8)
	equal(t, "driver", w.balance(w.driver.account()), driver)
	w.refused(CodeState, w.bad(w.driver, chain.TxDispute, d))
	w.refused(CodeAccount, w.bad(w.op, chain.TxBurn, chain.Burn{From: chain.AccountDispute, Amount: 1, BankRef: "q"}))

	w.refused(CodeNotAllowed, w.bad(w.driver, chain.TxAnswer, chain.Answer{Dispute: 1, Concede: 1, Reason: "me"}))
	w.refused(CodeNotAllowed, w.bad(w.a.owner, chain.TxAnswer, chain.Answer{Dispute: 1, Concede: 1, Reason: "not my charger"}))
	w.refused(CodeRange, w.bad(w.op, chain.TxAnswer, chain.Answer{Dispute: 1, Concede: 2e8 + 1, Reason: "x"}))
	w.refused(CodeUnknown, w.bad(w.op, chain.TxAnswer, chain.Answer{Dispute: 2, Reason: "x"}))
	w.took(w.tx(w.b.owner, chain.TxAnswer, chain.Answer{Dispute: 1, Concede: 1e8, Reason: "half of it"}))
	w.refused(CodeState, w.bad(w.op, chain.TxAnswer, chain.Answer{Dispute: 1, Reason: "again"}))

	res := chain.Resolve{Dispute: 1, Refund: 5e7, Reason: "seen the log"}
	w.refused(CodeApproval, w.bad(w.op, chain.TxResolve, res)) // a judge in his own cause
	w.refused(CodeNotAllowed, w.bad(w.a.owner, chain.TxResolve, res))
	w.refused(CodeNotAllowed, w.bad(w.driver, chain.TxResolve, chain.Resolve{Dispute: 1, Refund: 2e8, Reason: "mine"}))
	w.refused(CodeRange, w.bad(auditor, chain.TxResolve, chain.Resolve{Dispute: 1, Refund: 2e8 + 1, Reason: "x"}))
	w.refused(CodeMalformed, w.bad(auditor, chain.TxResolve, chain.Resolve{Dispute: 1}))
	w.took(w.tx(w.driver, chain.TxResolve, chain.Resolve{Dispute: 1, Refund: 1e8, Reason: "agreed"}))
	equal(t, "frozen", w.balance(chain.AccountDispute), 0)
	equal(t, "refunded", billOf(w.st, s.ID).Refunded, 1e8)
	equal(t, "driver", w.balance(w.driver.account()), driver+1e8)
	w.refused(CodeState, w.bad(auditor, chain.TxResolve, res))

	// The auditor decides alone.
	w.took(w.tx(w.driver, chain.TxDispute, chain.Dispute{Session: s2.ID, Amount: 1e8, Reason: "x"}))
	w.took(w.tx(auditor, chain.TxResolve, chain.Resolve{Dispute: 2, Refund: 0, Reason: "no ground"}))
	equal(t, "refunded", billOf(w.st, s2.ID).Refunded, 0)
}

func TestDisputeDeadlines(t *testing.T) {
	w := newWorld(t)
	s, s2 := twoCharges(w)
	w.took(w.tx(w.driver, chain.TxDispute, chain.Dispute{Session: s.ID, Amount: 1e8, Reason: "x"}))
	w.took(w.tx(w.driver, chain.TxDispute, chain.Dispute{Session: s2.ID, Amount: 1e8, Reason: "x"}))
	w.took(w.tx(w.op, chain.TxAnswer, chain.Answer{Dispute: 2, Reason: "no"}))
	w.now += 14*dayMs + 5000
	w.ok(w.mint(chain.AccountGrid, 1))
	w.saw("dispute.defaulted")
	v, _ := DisputeOf(w.st, 1)
	equal(t, "by rule", v.ByRule, true)
	equal(t, "refund", v.Refund, 1e8)
	equal(t, "the answered one", Disputes(w.st)[1].State, DisputeAnswered)
	w.now += 46 * dayMs
	w.ok(w.mint(chain.AccountGrid, 1))
	equal(t, "undecided", Disputes(w.st)[1].State, DisputeResolved)
	w.charge(3, w.b, chain.SlotAt(w.now, 900)+1, 1000, false, map[*house][2]meter.WattHour{w.b: {1000, 0}})
	w.pass(31 * dayMs)
	w.refused(CodeExpired, w.bad(w.driver, chain.TxDispute, chain.Dispute{Session: chain.ID{3}, Amount: 1, Reason: "late"}))
}

func TestInvoicesHaveNoGapsAndAreRoundedOnce(t *testing.T) {
	w := newWorldOf(t, func(g *chain.Genesis) {
		g.Basis = "licensed supplier"
		g.Money.Tax = []chain.TaxRate{{From: 0, PPM: 190_000}}
	})
	w.ok(w.mint(w.a.owner.account(), 1e9), w.mint(w.c.owner.account(), 1e9))
	w.charge(1, w.c, firstSl, 601, false, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.c: {701, 0}})
	s := w.session(1)
	driver := w.driver.account()
	w.refused(CodeNotAllowed, w.bad(w.driver, chain.TxInvoice, chain.IssueInvoice{Account: driver}))
	w.refused(CodeAccount, w.bad(w.op, chain.TxInvoice, chain.IssueInvoice{Account: chain.AccountGrid}))
	w.refused(CodeAccount, w.bad(w.op, chain.TxInvoice, chain.IssueInvoice{Account: chain.Account{1}}))
	w.refused(CodeUnknown, w.bad(w.op, chain.TxInvoice, chain.IssueInvoice{Account: newPerson("nobody").account()}))
	equal(t, "to bill", len(Unbilled(w.st)), 3)

	before, rounding := w.balance(driver), w.balance(chain.AccountRounding)
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: driver}))
	inv, ok := InvoiceOf(w.st, "INV-000001")
	if !ok {
		t.Fatalf("%+v", Invoices(w.st, driver))
	}
	equal(t, "exact", inv.Exact, s.Paid)
	equal(t, "total", inv.Total, halfUp(s.Paid, 1e7))
	equal(t, "driver paid in all", w.balance(driver)-before, inv.Exact-inv.Total)
	equal(t, "residue", w.balance(chain.AccountRounding)-rounding, inv.Total-inv.Exact)
	equal(t, "tax", inv.Items[0].TaxPPM, 190_000)
	equal(t, "meter", inv.Billable(), false) // nobody approved it
	w.refused(CodeUnknown, w.bad(w.op, chain.TxInvoice, chain.IssueInvoice{Account: driver}))

	// What the seller got is on his self-billed invoice, without tax: he is private.
	a := w.a.owner.account()
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: a}))
	sb := Invoices(w.st, a)[0]
	sell := w.fill(firstSl, "sell/a")
	equal(t, "sold", sb.Exact, sell.Amount)
	equal(t, "kind", sb.Kind, KindSelfBilled)
	equal(t, "number", sb.Number, 1)
	equal(t, "taxed", sb.Items[0].Taxed, false)
	if got, ok := InvoiceOf(w.st, sb.ID()); !ok || got.Account != a {
		t.Fatalf("no %s", sb.ID())
	}
	// The house beside the car bought too.
	c := w.c.owner.account()
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: c}))
	house := Invoices(w.st, c)[0]
	equal(t, "next number", house.ID(), "INV-000002")
	var wh meter.WattHour
	for _, i := range house.Items {
		wh += i.Wh
	}
	equal(t, "bought", wh, 100)
	equal(t, "left", len(Unbilled(w.st)), 0)

	// A refund refers to the invoice.
	w.took(w.tx(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: s.Captured, Reason: "x"}))
	cn, _ := InvoiceOf(w.st, "CN-000001")
	equal(t, "corrects", cn.Preceding, 1)
	equal(t, "money", cn.Exact, s.Paid)
	for _, id := range []string{"", "INV-", "INV-9", "XX-000001", "SB-zz-000001", "SIM-INV-000001", "INV-000001-"} {
		if _, ok := InvoiceOf(w.st, id); ok {
			t.Errorf("there is %q", id)
		}
	}
}

func TestBillingNeedsABasisAndAnApprovedMeter(t *testing.T) {
	w := newWorld(t)
	if why := NotBillable(w.st, w.b.key, 1, w.now); why == "" || !slices.Contains([]byte(why), 's') {
		t.Fatal("simulated and billable")
	}
	// Play money never becomes a claim.
	basis := "licensed"
	w.refused(CodeRules, w.bad(w.op, chain.TxRules, chain.RulesChange{Height: w.height + 10, Basis: &basis}))

	w = newWorldOf(t, func(g *chain.Genesis) { g.Basis = "licensed supplier" })
	ap := chain.MeterApproval{Device: w.b.key, Connector: 1, Approval: "DE-MTP 24 B 001", Until: w.now + dayMs}
	w.refused(CodeNotAllowed, w.bad(w.driver, chain.TxMeterApproval, ap))
	bad := ap
	bad.Device = chain.Key{1}
	w.refused(CodeNotMember, w.bad(w.op, chain.TxMeterApproval, bad))
	bad = ap
	bad.Until = 1
	w.refused(CodeRange, w.bad(w.op, chain.TxMeterApproval, bad))
	bad = ap
	bad.Approval = ""
	w.refused(CodeUnknown, w.bad(w.op, chain.TxMeterApproval, bad))
	w.took(w.tx(w.op, chain.TxMeterApproval, ap))
	since := w.now
	equal(t, "now", NotBillable(w.st, w.b.key, 1, since), "")
	for _, at := range []int64{since - 1, ap.Until + 1} {
		if NotBillable(w.st, w.b.key, 1, at) == "" {
			t.Errorf("billable at %d", at)
		}
	}
	if NotBillable(w.st, w.b.key, 2, since) == "" || NotBillable(w.st, w.a.key, 1, since) == "" {
		t.Error("another meter is approved too")
	}
	w.charge(1, w.b, firstSl+1, 1000, false, map[*house][2]meter.WattHour{w.b: {1000, 0}})
	w.took(w.tx(w.op, chain.TxMeterApproval, bad)) // withdrawn
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: w.driver.account()}))
	equal(t, "measured before", Invoices(w.st, w.driver.account())[0].Billable(), true)
	if NotBillable(w.st, w.b.key, 1, w.now+1) == "" {
		t.Error("withdrawn and billable")
	}
}

func TestProfile(t *testing.T) {
	w := newWorld(t)
	w.refused(CodeUnknown, w.bad(newPerson("nobody"), chain.TxProfile, chain.Profile{}))
	w.refused(CodeMalformed, w.bad(w.driver, chain.TxProfile, chain.Profile{Tax: 3}))
	w.refused(CodeMalformed, w.bad(w.driver, chain.TxProfile, chain.Profile{Tax: chain.TaxBusiness}))
	w.took(w.tx(w.driver, chain.TxProfile, chain.Profile{Tax: chain.TaxBusiness, VATHash: chain.VATHash([16]byte{1}, "de 123"), Redeem: true}))
	equal(t, "redeem", ProfileOf(w.st, w.driver.account()).Redeem, true)
	if chain.VATHash([16]byte{1}, "DE123") != ProfileOf(w.st, w.driver.account()).VATHash {
		t.Error("a VAT id is not the same with spaces")
	}
}

func ptr[T any](v T) *T { return &v }

func TestRulesChangeAtTheirHeight(t *testing.T) {
	op2 := newPerson("op2")
	w := newWorldOf(t, func(g *chain.Genesis) { g.Money.Threshold = 2 })
	propose := func(c chain.RulesChange) []byte { return w.joint(chain.TxRules, c, w.op, op2) }
	w.refused(CodeApproval, w.bad(w.op, chain.TxRules, chain.RulesChange{Height: w.height + 9, Transfers: ptr(true)}))
	for what, c := range map[string]chain.RulesChange{
		"this block":  {Height: w.height + 1},
		"far away":    {Height: math.MaxInt64},
		"grace":       {Height: w.height + 99, Grace: ptr(int64(0))},
		"threshold":   {Height: w.height + 99, Threshold: ptr(int64(4))},
		"no operator": {Height: w.height + 99, Threshold: ptr(int64(0))},
		"cap":         {Height: w.height + 99, DailyMintCap: ptr(chain.Nano(5))},
		"earn":        {Height: w.height + 99, EarnPPM: ptr(int64(1_000_001))},
		"feed-in":     {Height: w.height + 99, FeedIn: ptr(chain.NanoPerWh(400_000))},
		"tax":         {Height: w.height + 99, Tax: &chain.TaxRate{From: 5, PPM: 1}},
		"tax rate":    {Height: w.height + 99, Tax: &chain.TaxRate{From: w.now + dayMs, PPM: -1}},
		"payout days": {Height: w.height + 99, PayoutDays: ptr(int64(-1))},
		"days":        {Height: w.height + 99, AnswerDays: ptr(int64(100))},
		"retention":   {Height: w.height + 99, RetainDays: ptr(int64(1))},
	} {
		t.Log(what)
		w.refused(CodeRange, propose(c))
	}
	w.refused(CodeTaken, propose(chain.RulesChange{Height: w.height + 99, Operators: []chain.Key{w.op.key, w.op.key}}))
	at := w.height + 10
	w.took(propose(chain.RulesChange{Height: at, Transfers: ptr(true), Threshold: ptr(int64(1)), Retail: ptr(chain.NanoPerWh(310_000))}))
	w.took(propose(chain.RulesChange{Height: at, Operators: []chain.Key{w.op.key}}))
	// Beyond the change only one operator is left.
	w.refused(CodeRange, propose(chain.RulesChange{Height: at + 1, Threshold: ptr(int64(2))}))
	equal(t, "pending", len(PendingRules(w.st)), 2)
	alice := newPerson("alice")
	w.took(w.joint(chain.TxMint, chain.Mint{To: alice.account(), Amount: 10, BankRef: "a"}, w.op, op2))
	for w.height < at-1 {
		w.refused(CodeRules, w.bad(alice, chain.TxTransfer, chain.Transfer{To: w.driver.account(), Amount: 1}))
	}
	out := w.block(w.bad(alice, chain.TxTransfer, chain.Transfer{To: w.driver.account(), Amount: 1}))
	equal(t, "at its height", out.Results[0].Code, CodeOK)
	r := RulesOf(w.st)
	equal(t, "operators", len(r.Operators), 1)
	equal(t, "retail", r.Retail, 310_000)
	equal(t, "pending", len(PendingRules(w.st)), 0)
	w.refused(CodeNotAllowed, w.bad(op2, chain.TxMint, chain.Mint{To: alice.account(), Amount: 10, BankRef: "b"}))
	w.took(w.bad(w.op, chain.TxMint, chain.Mint{To: alice.account(), Amount: 10, BankRef: "b"}))
}

// A program that is too old for a change of the rules says so before the
// height and does not execute that block.
func TestOldProgramStopsBeforeNewRules(t *testing.T) {
	w := newWorld(t)
	at := w.height + 4
	w.took(w.tx(w.op, chain.TxRules, chain.RulesChange{Height: at, MinVersion: RulesVersion + 1}))
	equal(t, "update needed at", StatusOf(w.st).UpdateHeight, at)
	for w.height < at-1 {
		if err := Outdated(w.st, w.height+1); err != nil {
			t.Fatalf("before block %d: %v", w.height+1, err)
		}
		w.ok(w.mint(chain.AccountGrid, 1))
	}
	var old *OutdatedError
	if err := Outdated(w.st, at); !errors.As(err, &old) || old.Height != at || old.Version != RulesVersion+1 {
		t.Fatalf("before block %d: %v", at, err)
	}
	before := StateHash(w.st)
	if _, err := Apply(w.st, BlockInput{Height: at, TimeMs: w.now + 1, Txs: [][]byte{w.mint(chain.AccountGrid, 1)}}); !errors.As(err, &old) {
		t.Fatalf("executed: %v", err)
	}
	equal(t, "state", StateHash(w.st), before)
}

// Every kind refuses what every kind must refuse, at admission and at
// execution, with its code and without a trace.
func TestEveryMoneyKindRefuses(t *testing.T) {
	w := newWorld(t)
	s, _ := twoCharges(w)
	w.took(w.tx(w.driver, chain.TxPayout, chain.Payout{Amount: 1e7}))
	op2 := newPerson("op2")
	for kind, body := range map[chain.TxKind]any{
		chain.TxJoint:         chain.Joint{Proposal: chain.Marshal(chain.Proposal{Version: 1, Chain: "test", Kind: chain.TxMint, Body: chain.Marshal(1)})},
		chain.TxRules:         chain.RulesChange{Height: w.height + 50, Transfers: ptr(true)},
		chain.TxPayout:        chain.Payout{Amount: 1e7},
		chain.TxPayoutPaid:    chain.PayoutPaid{Payout: 1, BankRef: "p"},
		chain.TxPayoutCancel:  chain.PayoutCancel{Payout: 1},
		chain.TxRefund:        chain.Refund{Session: s.ID, Amount: 5, Reason: "r"},
		chain.TxDispute:       chain.Dispute{Session: s.ID, Amount: 5, Reason: "r"},
		chain.TxAnswer:        chain.Answer{Dispute: 1, Reason: "r"},
		chain.TxResolve:       chain.Resolve{Dispute: 1, Reason: "r"},
		chain.TxInvoice:       chain.IssueInvoice{Account: w.driver.account()},
		chain.TxProfile:       chain.Profile{},
		chain.TxMeterApproval: chain.MeterApproval{Device: w.b.key, Approval: "x", Until: w.now + dayMs},
		chain.TxMint:          chain.Mint{To: w.driver.account(), Amount: 1, BankRef: "m"},
		chain.TxBurn:          chain.Burn{From: w.driver.account(), Amount: 1, BankRef: "b"},
	} {
		for _, signer := range []*person{w.op, w.driver} {
			n := NextNonce(w.st, signer.key)
			sign := func(chainID string, nonce uint64, body any) []byte {
				return chain.SignTx(chainID, nonce, kind, body, signer.priv)
			}
			t.Log(kind)
			w.refused(CodeChain, sign("other", n, body))
			w.refused(CodeNonce, sign("test", n-1, body))
			w.refused(CodeNonce, sign("test", n+1, body))
			w.refused(CodeMalformed, sign("test", n, "not its body"))
			w.refused(CodeMalformed, sign("test", n, map[string]int{"x": 1}))
			w.refused(CodeTooLarge, sign("test", n, make([]byte, chain.MaxTxBytes)))
			forged := sign("test", n, body)
			forged[len(forged)-3] ^= 1
			w.refused(CodeSignature, forged)
			// The same bytes under another's name.
			stolen := chain.SignTx("test", NextNonce(w.st, op2.key), kind, body, op2.priv)
			if r := CheckTx(NewOverlay(w.st), stolen); r.Code == CodeOK {
				t.Fatalf("kind %d: a stranger's is admitted", kind)
			}
		}
	}
	// Overflow, wherever a number goes into the sum of money.
	w.refused(CodeOverflow, w.bad(w.op, chain.TxMint, chain.Mint{To: chain.AccountGrid, Amount: math.MaxInt64, BankRef: "o"}))
	w.refused(CodeFunds, w.bad(w.driver, chain.TxPayout, chain.Payout{Amount: 9e18}))
	w.refused(CodeRange, w.bad(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: math.MaxInt64, Reason: "r"}))
	w.refused(CodeRange, w.bad(w.driver, chain.TxDispute, chain.Dispute{Session: s.ID, Amount: math.MaxInt64, Reason: "r"}))
	w.refused(CodeAmount, w.bad(w.op, chain.TxRefund, chain.Refund{Session: s.ID, Amount: math.MinInt64, Reason: "r"}))
}

func TestGenesisMoneyRules(t *testing.T) {
	for what, spoil := range map[string]func(*chain.Genesis){
		"currency":      func(g *chain.Genesis) { g.Currency = "XYZ" },
		"digits":        func(g *chain.Genesis) { g.Currency, g.MinorDigits = "JPY", 2 },
		"threshold":     func(g *chain.Genesis) { g.Money.Threshold = 2 },
		"cap":           func(g *chain.Genesis) { g.Money.DailyMintCap = 1 },
		"same key":      func(g *chain.Genesis) { g.Money.Auditors = g.Operators },
		"negative days": func(g *chain.Genesis) { g.Money.PayoutDays = -1 },
		"tax order":     func(g *chain.Genesis) { g.Money.Tax = []chain.TaxRate{{From: 2}, {From: 1}} },
	} {
		g := testGenesis(newHouse("a"))
		spoil(&g)
		if _, err := InitGenesis(NewMapState(), g, t0); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	for code, digits := range map[string]int{"EUR": 2, "KRW": 0, "KWD": 3, "JPY": 0, "CLF": 4} {
		if got, ok := chain.MinorDigits(code); !ok || got != digits {
			t.Errorf("%s has %d digits, %t", code, got, ok)
		}
	}
	equal(t, "cent", chain.MinorUnit(2), 1e7)
}

// The movements of a block explain every balance and every lot to the nano,
// and tracing changes nothing else.
func TestMovementsExplainEveryBalance(t *testing.T) {
	traced := NewMapState()
	if _, err := InitGenesis(traced, testGenesis(newHouse("a"), newHouse("b"), newHouse("c")), t0-slotMs); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, id: "test", st: NewMapState(), op: newPerson("operator"), a: newHouse("a"), b: newHouse("b"), c: newHouse("c"), driver: newPerson("driver"), now: t0, nonces: map[chain.Key]uint64{}, keep: true}
	if _, err := InitGenesis(w.st, testGenesis(w.a, w.b, w.c), t0-slotMs); err != nil {
		t.Fatal(err)
	}
	w.ok(w.mint(chain.AccountGrid, 1e12), w.mint(chain.AccountPromotion, 1e12), w.mint(chain.AccountRounding, 1e9), w.mint(w.driver.account(), 1e10), w.mint(w.c.owner.account(), 1e9))
	w.ok(w.a.sign(w.a.site(firstSl-1, 0, 0)), w.b.sign(w.b.site(firstSl-1, 0, 0)), w.c.sign(w.c.site(firstSl-1, 0, 0)))
	w.charge(1, w.c, firstSl, 600, true, map[*house][2]meter.WattHour{w.a: {0, 1000}, w.c: {700, 0}})
	w.charge(2, w.b, firstSl+1, 500, true, map[*house][2]meter.WattHour{w.b: {500, 0}})
	s := w.session(2)
	w.took(w.tx(w.driver, chain.TxPayout, chain.Payout{Amount: 1e9}))
	w.took(w.tx(w.op, chain.TxPayoutPaid, chain.PayoutPaid{Payout: 1, BankRef: "out"}))
	w.took(w.tx(w.driver, chain.TxDispute, chain.Dispute{Session: s.ID, Amount: s.Captured, Reason: "x"}))
	w.took(w.tx(w.op, chain.TxResolve, chain.Resolve{Dispute: 1, Refund: s.Captured, Reason: "x"}))
	w.took(w.tx(w.op, chain.TxInvoice, chain.IssueInvoice{Account: w.driver.account()}))
	w.refused(CodeFunds, w.bad(w.driver, chain.TxPayout, chain.Payout{Amount: 1e15}))
	w.at(firstSl + 130)
	w.pass(1)

	money, credit := map[chain.Account]chain.Nano{}, map[chain.Account]chain.Nano{}
	causes := map[string]bool{}
	for _, b := range w.blocks {
		b.Trace = true
		out, err := Apply(traced, b)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range out.Movements {
			if causes[m.Cause] = true; m.Cause == "" || m.Ref == "" {
				t.Errorf("block %d: a movement without a cause: %+v", b.Height, m)
			}
			if m.Credit {
				credit[m.Account] += m.Amount
			} else {
				money[m.Account] += m.Amount
			}
		}
	}
	equal(t, "state", StateHash(traced), StateHash(w.st))
	for _, a := range Accounts(traced) {
		equal(t, "money of "+a.Account.String(), money[a.Account], a.Balance)
		equal(t, "credit of "+a.Account.String(), credit[a.Account], a.Credits)
	}
	for _, c := range []string{
		"paid in", "held for session", "energy of session", "energy sold in slot", "energy bought in slot", "discount credit of session",
		"released by session", "payout asked", "payout paid", "frozen by dispute", "thawed by dispute", "refund", "rounding of", "credit expired",
	} {
		if !causes[c] {
			t.Errorf("nothing moved by %q", c)
		}
	}
}

// Who pays by card says once that he wants to spend his credit.
func TestCreditIsSpentByItselfIfTheDriverWishes(t *testing.T) {
	w := newWorld(t)
	w.charge(1, w.b, firstSl, 3000, false, map[*house][2]meter.WattHour{w.b: {3000, 0}})
	card := newPerson("card")
	w.ok(w.tx(w.driver, chain.TxMandate, w.mandate(card, w.driver)), w.tx(w.driver, chain.TxProfile, chain.Profile{Redeem: true}))
	_, tap := w.tap(w.b, card, 2, 1)
	w.ok(w.b.sign(tap, sessionMeter(2, 1, firstSl+1, 1000, w.now)))
	w.at(firstSl + 1)
	w.ok(w.a.sign(w.a.site(firstSl+1, 0, 0)), w.c.sign(w.c.site(firstSl+1, 0, 0)), w.b.sign(w.b.site(firstSl+1, 500, 0), sessionStop(2, 2, firstSl+1, 1500, w.now)))
	if s := w.session(2); s.CreditRedeemed == 0 || s.CreditRedeemed > s.Captured/2 {
		t.Fatalf("%+v", s)
	}
	// The driver, not the card, can contest it.
	w.refused(CodeNotAllowed, w.bad(card, chain.TxDispute, chain.Dispute{Session: chain.ID{2}, Amount: 1, Reason: "x"}))
	w.took(w.tx(w.driver, chain.TxDispute, chain.Dispute{Session: chain.ID{2}, Amount: 1, Reason: "x"}))
}

// Credit is no cash: it is neither paid out nor transferred, and what the
// promotion pool does not fund is not earned.
func TestCreditIsFundedAndNoCash(t *testing.T) {
	w := newWorldOf(t, func(g *chain.Genesis) { g.Transfers = true })
	w.charge(1, w.b, firstSl, 3000, false, map[*house][2]meter.WattHour{w.b: {3000, 0}})
	v := AccountOf(w.st, w.driver.account())
	all := v.Balance / 1e7 * 1e7
	w.refused(CodeFunds, w.bad(w.driver, chain.TxPayout, chain.Payout{Amount: all + 1e7}))
	w.refused(CodeFunds, w.bad(w.driver, chain.TxTransfer, chain.Transfer{To: newPerson("x").account(), Amount: v.Balance + 1}))
	w.took(w.tx(w.driver, chain.TxTransfer, chain.Transfer{To: newPerson("x").account(), Amount: 1e7}))
	equal(t, "credit", AccountOf(w.st, w.driver.account()).Credits, v.Credits)
	w.refused(CodeAccount, w.bad(w.op, chain.TxBurn, chain.Burn{From: chain.AccountReserve, Amount: 1, BankRef: "q"}))

	// An empty pool earns nobody anything, and breaks nothing.
	w.took(w.tx(w.op, chain.TxBurn, chain.Burn{From: chain.AccountPromotion, Amount: w.balance(chain.AccountPromotion) - 7, BankRef: "pool"}))
	w.charge(2, w.b, firstSl+1, 1000, false, map[*house][2]meter.WattHour{w.b: {1000, 0}})
	equal(t, "earned", w.session(2).CreditEarned, 7)
	equal(t, "pool", w.balance(chain.AccountPromotion), 0)
}
