package ledger

import (
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

// mandate returns terms for token that its key has consented to: 2,000 Wh at
// 400,000 nano/Wh per tap, and twice that per day.
func (w *world) mandate(token, payer *person) chain.Mandate {
	return chain.Mandate{
		Token: token.key, Kind: chain.MandateCard, PerTap: 8e8, PerDay: 16e8, Cap: 400_000, Expires: w.now + 30*24*3600_000,
		Consent: chain.Sign(token.priv, chain.DomainMandate, chain.ConsentBytes("test", payer.key)),
	}
}

// tap returns a quote of 2,000 Wh that the token's key has signed.
func (w *world) tap(h *house, token *person, id, connector byte) (chain.Quote, chain.Record) {
	q := w.quote(h, token, id, connector, 2000)
	return q, signQuote(q, token)
}

func TestCardPaysFromItsDriver(t *testing.T) {
	w := newWorld(t)
	card := newPerson("card")
	before := w.balance(w.driver.account())
	_, tap := w.tap(w.b, card, 1, 1)
	w.refusedRecord(CodeFunds, w.b, tap) // a key without mandate has no money
	w.ok(w.tx(w.driver, chain.TxMandate, w.mandate(card, w.driver)))
	w.saw("mandate.signed")

	_, tap = w.tap(w.b, card, 2, 1)
	w.ok(w.b.sign(tap))
	s := w.session(2)
	equal(t, "driver", s.Driver, w.driver.account())
	equal(t, "token", s.DriverKey, card.key)
	equal(t, "hold", before-w.balance(w.driver.account()), 8e8)
	w.ok(w.b.sign(sessionMeter(2, 1, firstSl, 1000, w.now)))
	w.at(firstSl)
	w.ok(w.a.sign(w.a.site(firstSl, 0, 0)), w.c.sign(w.c.site(firstSl, 0, 0)), w.b.sign(w.b.site(firstSl, 500, 0), sessionStop(2, 2, firstSl, 1500, w.now)))
	s = w.session(2)
	equal(t, "state", s.State, SessionClosed)
	equal(t, "balance", before-w.balance(w.driver.account()), s.Paid)
	v, _ := MandateOf(w.st, card.key)
	equal(t, "used", v.Used, 1)
	equal(t, "spent of the day", v.Spent, s.Captured)
	equal(t, "credit is the driver's", AccountOf(w.st, w.driver.account()).Credits, s.CreditEarned)
}

func TestMandateLimits(t *testing.T) {
	w := newWorld(t)
	card, other := newPerson("card"), newPerson("other")
	m := w.mandate(card, w.driver)
	bad := func(code Code, change func(*chain.Mandate)) {
		t.Helper()
		b := m
		change(&b)
		w.nonces[w.driver.key]++
		tx := chain.SignTx("test", w.nonces[w.driver.key], chain.TxMandate, b, w.driver.priv)
		w.refused(code, tx)
		w.nonces[w.driver.key]--
	}
	bad(CodeSignature, func(b *chain.Mandate) { b.Consent = nil })
	bad(CodeSignature, func(b *chain.Mandate) { b.Token = other.key })
	bad(CodeMalformed, func(b *chain.Mandate) { b.Token = w.driver.key })
	bad(CodeMalformed, func(b *chain.Mandate) { b.Kind = 9 })
	bad(CodeAmount, func(b *chain.Mandate) { b.PerTap = 0 })
	bad(CodeAmount, func(b *chain.Mandate) { b.PerDay = b.PerTap - 1 })
	bad(CodeRange, func(b *chain.Mandate) { b.Cap = MaxPrice + 1 })
	bad(CodeExpired, func(b *chain.Mandate) { b.Expires = t0 })

	stranger := newPerson("stranger") // has never had money
	w.nonces[stranger.key]++
	w.refused(CodeAccount, chain.SignTx("test", w.nonces[stranger.key], chain.TxMandate, w.mandate(card, stranger), stranger.priv))
	w.nonces[stranger.key]--

	m.Gateway = w.b.key
	w.ok(w.tx(w.driver, chain.TxMandate, m))
	// Nobody else can take the token, nor a wallet with money be made one.
	w.ok(w.mint(other.account(), 1e9))
	theirs := w.mandate(card, other)
	w.nonces[other.key]++
	w.refused(CodeTaken, chain.SignTx("test", w.nonces[other.key], chain.TxMandate, theirs, other.priv))
	w.nonces[other.key]--
	w.nonces[w.driver.key]++
	w.refused(CodeTaken, chain.SignTx("test", w.nonces[w.driver.key], chain.TxMandate, w.mandate(other, w.driver), w.driver.priv))
	w.nonces[w.driver.key]--

	_, tap := w.tap(w.a, card, 1, 1)
	w.refusedRecord(CodeNotAllowed, w.a, tap) // another gateway
	q := w.quote(w.b, card, 1, 1, 2001)
	w.refusedRecord(CodeLimit, w.b, signQuote(q, card)) // more than per tap
	q = w.quote(w.b, card, 1, 1, 1000)
	q.Cap, q.Hold = 500_000, 500_000*1000
	w.refusedRecord(CodeRange, w.b, signQuote(q, card)) // dearer
	q, _ = w.tap(w.b, card, 1, 1)
	w.refusedRecord(CodeSignature, w.b, signQuote(q, other)) // another card

	_, tap = w.tap(w.b, card, 1, 1)
	w.ok(w.b.sign(tap))
	_, tap = w.tap(w.b, card, 2, 2)
	w.ok(w.b.sign(tap))
	_, tap = w.tap(w.b, card, 3, 3)
	w.refusedRecord(CodeLimit, w.b, tap) // more than per day
	w.now += 24 * 3600_000
	_, tap = w.tap(w.b, card, 3, 3)
	w.ok(w.b.sign(tap)) // a new day

	w.nonces[other.key]++
	w.refused(CodeNotAllowed, chain.SignTx("test", w.nonces[other.key], chain.TxMandateRevoke, chain.MandateRevoke{Token: card.key}, other.priv))
	w.nonces[other.key]--
	w.ok(w.tx(w.driver, chain.TxMandateRevoke, chain.MandateRevoke{Token: card.key}))
	_, tap = w.tap(w.b, card, 4, 4)
	w.refusedRecord(CodeNotAllowed, w.b, tap)
	equal(t, "the open session", w.session(3).State, SessionHeld) // goes on
	// The same payer may sign it again.
	w.ok(w.tx(w.driver, chain.TxMandate, w.mandate(card, w.driver)))
	_, tap = w.tap(w.b, card, 4, 4)
	w.ok(w.b.sign(tap))
}

func TestOneTimeCode(t *testing.T) {
	w := newWorld(t)
	code := newPerson("code")
	m := w.mandate(code, w.driver)
	m.Kind, m.Uses = chain.MandateCode, 1
	w.ok(w.tx(w.driver, chain.TxMandate, m))
	_, tap := w.tap(w.b, code, 1, 1)
	w.ok(w.b.sign(tap))
	w.ok(w.b.sign(tap)) // said again, the same session
	_, tap = w.tap(w.b, code, 2, 2)
	w.refusedRecord(CodeLimit, w.b, tap)
}

// A gateway that was cut off for hours reports a session that it paid from the
// reserve: all its energy is billed, and the rest of the hold is back in the
// reserve.
func TestSessionWithoutTheLedger(t *testing.T) {
	w := newWorld(t)
	card := newPerson("card")
	w.ok(w.tx(w.driver, chain.TxMandate, w.mandate(card, w.driver)), w.tx(w.driver, chain.TxOffline, chain.Offline{Gateway: w.b.key, Amount: 2e9}))
	left := w.balance(w.driver.account())
	q, tap := w.tap(w.b, card, 1, 1)
	began := w.now
	w.now += 3 * 3600_000 // the quote is over by far
	other := w.quote(w.b, w.driver, 9, 2, 1000)
	other.Created, other.Expires = began, q.Expires
	w.refusedRecord(CodeExpired, w.b, signQuote(other, w.driver)) // a driver without reserve
	w.ok(w.b.sign(tap))
	s := w.session(1)
	equal(t, "purse", s.Purse, ReserveAccount(w.driver.account(), w.b.key))
	equal(t, "reserve", ReserveOf(w.st, w.driver.account(), w.b.key).Amount, 2e9-8e8)
	sl := chain.SlotAt(began, 900)
	w.ok(w.b.sign(sessionMeter(1, 1, sl, 1000, began+2000), sessionMeter(1, 2, sl, 1700, sl.End(900)), sessionStop(1, 3, sl+1, 2500, sl.End(900)+800_000)))
	s = w.session(1)
	equal(t, "state", s.State, SessionClosed)
	equal(t, "billed", s.Wh, 1500)
	equal(t, "paid", s.Paid, 1500*300_000)
	equal(t, "reserve", ReserveOf(w.st, w.driver.account(), w.b.key).Amount, 2e9-s.Paid)
	equal(t, "driver", w.balance(w.driver.account()), left)
}

func TestReserveIsThereForOneGateway(t *testing.T) {
	w := newWorld(t)
	card := newPerson("card")
	w.ok(w.tx(w.driver, chain.TxMandate, w.mandate(card, w.driver)), w.tx(w.driver, chain.TxOffline, chain.Offline{Gateway: w.b.key, Amount: 1e9}))
	q, _ := w.tap(w.b, card, 1, 1)
	w.now = q.Expires + 1000
	at := func(h *house, id byte, created int64) chain.Record {
		q := w.quote(h, card, id, id, 2000)
		q.Created, q.Expires = created, created+300_000
		return signQuote(q, card)
	}
	w.refusedRecord(CodeExpired, w.a, at(w.a, 2, q.Created)) // another gateway's reserve
	w.refusedRecord(CodeExpired, w.b, at(w.b, 2, q.Created-OfflineNoticeMs))
	// Revoked meanwhile: what began before is paid, what began after is not.
	w.ok(w.tx(w.driver, chain.TxMandateRevoke, chain.MandateRevoke{Token: card.key}))
	revoked := w.now
	w.now += 600_000
	w.refusedRecord(CodeNotAllowed, w.b, at(w.b, 2, revoked+1000))
	w.ok(w.b.sign(at(w.b, 2, q.Created)))
	w.refusedRecord(CodeNotAllowed, w.b, at(w.b, 3, q.Created)) // 2e8 are left
}

func TestReserveReturnsAfterItsNotice(t *testing.T) {
	w := newWorld(t)
	before := w.balance(w.driver.account())
	offline := func(h *house, n chain.Nano) []byte {
		return w.tx(w.driver, chain.TxOffline, chain.Offline{Gateway: h.key, Amount: n})
	}
	refused := func(code Code, b chain.Offline) {
		t.Helper()
		w.nonces[w.driver.key]++
		w.refused(code, chain.SignTx("test", w.nonces[w.driver.key], chain.TxOffline, b, w.driver.priv))
		w.nonces[w.driver.key]--
	}
	refused(CodeAmount, chain.Offline{Gateway: w.b.key})
	refused(CodeNotMember, chain.Offline{Gateway: w.driver.key, Amount: 1})
	refused(CodeFunds, chain.Offline{Gateway: w.b.key, Amount: before + 1})
	refused(CodeFunds, chain.Offline{Gateway: w.b.key, Amount: -1})
	refused(CodeFunds, chain.Offline{Gateway: w.b.key, Amount: -1 << 63})
	w.ok(offline(w.b, 3e9), offline(w.c, 1e9))
	equal(t, "balance", w.balance(w.driver.account()), before-4e9)
	w.ok(offline(w.b, -1e9))
	refused(CodeFunds, chain.Offline{Gateway: w.b.key, Amount: -3e9})
	w.now += OfflineNoticeMs - 10_000
	w.block()
	equal(t, "before the notice ends", w.balance(w.driver.account()), before-4e9)
	w.now += 20_000
	w.block()
	equal(t, "after", w.balance(w.driver.account()), before-3e9)
	equal(t, "left", ReserveOf(w.st, w.driver.account(), w.b.key), ReserveView{Payer: w.driver.account(), Gateway: w.b.key, Amount: 2e9})
	w.ok(offline(w.b, -2e9))
	w.now += OfflineNoticeMs + 1000
	w.block()
	equal(t, "reserves", len(Reserves(w.st, w.driver.account())), 1)
	equal(t, "balance", w.balance(w.driver.account()), before-1e9)
}

// What is left of a session returns to its payer when the reserve is gone.
func TestReserveIsGivenBackDuringASession(t *testing.T) {
	w := newWorld(t)
	card := newPerson("card")
	m := w.mandate(card, w.driver)
	w.ok(w.tx(w.driver, chain.TxMandate, m), w.tx(w.driver, chain.TxOffline, chain.Offline{Gateway: w.b.key, Amount: 9e8}))
	had := w.balance(w.driver.account()) + 9e8
	w.ok(w.tx(w.driver, chain.TxOffline, chain.Offline{Gateway: w.b.key, Amount: -1e8}))
	w.now += OfflineNoticeMs - 200_000
	began := w.now
	w.now += 190_000
	q := w.quote(w.b, card, 1, 1, 2000)
	q.Created, q.Expires = began, began+1000
	w.ok(w.b.sign(signQuote(q, card), sessionMeter(1, 1, chain.SlotAt(began, 900), 1000, began)))
	w.now += 20_000
	w.block()
	equal(t, "reserves", len(Reserves(w.st, w.driver.account())), 0)
	w.ok(w.b.sign(sessionStop(1, 2, chain.SlotAt(began, 900), 1000, w.now)))
	w.now += 3 * slotMs
	w.block()
	equal(t, "state", w.session(1).State, SessionClosed)
	equal(t, "the driver's money", w.balance(w.driver.account()), had)
}

// Whatever a driver does with reserves, gateways can never charge more against
// them than he has, and no money is made or lost.
func TestReservesNeverExceedTheBalance(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		card := newPerson("card")
		m := w.mandate(card, w.driver)
		m.PerTap, m.PerDay = 4e9, 1e15
		w.ok(w.tx(w.driver, chain.TxMandate, m))
		total := func() (sum chain.Nano) {
			sum = w.balance(w.driver.account())
			for _, v := range Reserves(w.st, w.driver.account()) {
				sum += v.Amount
			}
			for _, s := range Sessions(w.st) {
				if s.Driver == w.driver.account() {
					sum += s.remaining()
				}
			}
			return sum
		}
		had := total()
		houses := []*house{w.a, w.b, w.c}
		for i := range rapid.IntRange(1, 30).Draw(rt, "steps") {
			h := rapid.SampledFrom(houses).Draw(rt, "house")
			w.now += rapid.Int64Range(0, 3*24*3600_000).Draw(rt, "pause")
			if rapid.Bool().Draw(rt, "session") {
				q := w.quote(h, card, byte(i+1), 1, meter.WattHour(rapid.IntRange(1, 10_000).Draw(rt, "wh")))
				q.Created -= rapid.Int64Range(0, 2*OfflineNoticeMs).Draw(rt, "ago")
				q.Expires = q.Created + 300_000
				w.block(h.sign(signQuote(q, card)))
			} else {
				n := rapid.Int64Range(-5e9, 5e9).Draw(rt, "amount")
				if r := w.block(w.tx(w.driver, chain.TxOffline, chain.Offline{Gateway: h.key, Amount: chain.Nano(n)})); r.Results[0].Code != CodeOK {
					w.nonces[w.driver.key]--
				}
			}
			var limits chain.Nano
			for _, h := range houses {
				limits += ReserveOf(w.st, w.driver.account(), h.key).Amount
			}
			if limits < 0 || limits > had {
				rt.Fatalf("gateways may charge %d offline, the driver has %d", limits, had)
			}
			if got := total(); got != had {
				rt.Fatalf("the driver had %d, now %d", had, got)
			}
		}
	})
}

// The invariant finds a limit that nothing dates or covers.
func TestReserveInvariant(t *testing.T) {
	w := newWorld(t)
	w.ok(w.tx(w.driver, chain.TxOffline, chain.Offline{Gateway: w.b.key, Amount: 5e8}))
	if f := CheckInvariants(w.st); len(f) > 0 {
		t.Fatalf("%v", f)
	}
	for _, v := range []reserve{{Leaving: 1, DueMs: w.now + 1}, {Leaving: -1}} {
		bad := NewOverlay(w.st)
		put(bad, reserveKey(w.driver.account(), w.b.key), v)
		if len(CheckInvariants(bad)) == 0 {
			t.Errorf("nothing is wrong with %+v", v)
		}
	}
}
