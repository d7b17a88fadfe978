package ledger

import (
	"encoding/binary"

	"github.com/joulegate/joulegate/chain"
)

// Limits of mandates and reserves.
const (
	maxMandates = 256 // of one payer, revoked ones of the last OfflineNoticeMs included
	maxReserves = 64  // gateways at which one payer has a reserve

	// OfflineNoticeMs is how long a reserve stays where it is after its owner
	// has asked for it, and how old a session may be that is paid from it: a
	// gateway that has been cut off for longer must not charge against it.
	OfflineNoticeMs = 7 * 24 * 3600 * 1000
)

const (
	tabMandate    = 'J' // token -> MandateView
	tabMandateBy  = 'O' // payer, token -> nothing
	tabReserve    = 'W' // payer, gateway -> reserve
	tabReserveDue = 'Y' // time, payer, gateway -> nothing: when money that was asked back returns
)

// MandateView is a mandate and what has become of it.
type MandateView struct {
	Mandate   chain.Mandate `cbor:"1,keyasint" json:"mandate"`
	PayerKey  chain.Key     `cbor:"2,keyasint" json:"payer_key"`
	Payer     chain.Account `cbor:"3,keyasint" json:"payer"`
	SignedMs  int64         `cbor:"4,keyasint" json:"signed_ms"` // block time
	Used      uint32        `cbor:"5,keyasint" json:"used"`      // sessions
	Day       int64         `cbor:"6,keyasint" json:"day"`       // of Spent, days since 1970
	Spent     chain.Nano    `cbor:"7,keyasint" json:"spent_nano"`
	RevokedMs int64         `cbor:"8,keyasint,omitempty" json:"revoked_ms,omitempty"` // block time; 0: in force
}

// reserve is money set apart for one gateway. What is there is the balance of
// ReserveAccount, so that it is counted as all money is.
type reserve struct {
	Leaving chain.Nano `cbor:"1,keyasint"` // of it, asked back
	DueMs   int64      `cbor:"2,keyasint"` // when that returns
}

// ReserveView is money set apart for one gateway.
type ReserveView struct {
	Payer   chain.Account `json:"payer"`
	Gateway chain.Key     `json:"gateway"`
	Amount  chain.Nano    `json:"amount_nano"`
	Leaving chain.Nano    `json:"leaving_nano,omitempty"` // of it, asked back
	DueMs   int64         `json:"due_ms,omitempty"`       // when that returns, block time
}

// ReserveAccount is where the reserve of payer for gateway lies. Nobody has a
// key for it.
func ReserveAccount(payer chain.Account, gateway chain.Key) chain.Account {
	h := chain.Sum(append(append([]byte("joulegate/reserve/1\x00"), payer[:]...), gateway[:]...))
	var a chain.Account
	copy(a[:], h[:])
	a[0] |= 0x80
	return a
}

func mandateKey(token chain.Key) []byte { return key(tabMandate, token[:]) }
func reserveKey(payer chain.Account, gateway chain.Key) []byte {
	return key(tabReserve, payer[:], gateway[:])
}

func reserveDueKey(ms int64, payer chain.Account, gateway chain.Key) []byte {
	return key(tabReserveDue, be64(uint64(ms)), payer[:], gateway[:])
}

// MandateOf returns the mandate of a token, in force or revoked.
func MandateOf(st State, token chain.Key) (MandateView, bool) {
	return get[MandateView](st, mandateKey(token))
}

// Mandates returns the mandates that payer has signed, by token; a zero payer
// means everybody's.
func Mandates(st State, payer chain.Account) (out []MandateView) {
	if payer == (chain.Account{}) {
		return collect[MandateView](st, []byte{tabMandate})
	}
	for _, token := range tokensOf(st, payer) {
		v, _ := MandateOf(st, token)
		out = append(out, v)
	}
	return out
}

func tokensOf(st State, payer chain.Account) (out []chain.Key) {
	st.Iterate(key(tabMandateBy, payer[:]), func(k, _ []byte) bool {
		out = append(out, chain.Key(k[1+len(payer):]))
		return true
	})
	return out
}

// ReserveOf returns what payer has set apart for gateway.
func ReserveOf(st State, payer chain.Account, gateway chain.Key) ReserveView {
	v, _ := get[reserve](st, reserveKey(payer, gateway))
	return ReserveView{Payer: payer, Gateway: gateway, Amount: balance(st, ReserveAccount(payer, gateway)), Leaving: v.Leaving, DueMs: v.DueMs}
}

// Reserves returns what payer has set apart, by gateway.
func Reserves(st State, payer chain.Account) (out []ReserveView) {
	st.Iterate(key(tabReserve, payer[:]), func(k, _ []byte) bool {
		out = append(out, ReserveOf(st, payer, chain.Key(k[1+len(payer):])))
		return true
	})
	return out
}

// mandates executes the statements about mandates; ok is false for others.
func (r *run) mandates(st State, t chain.Tx) (ok bool, err error) {
	switch t.Kind {
	case chain.TxMandate:
		return true, decoded(t, func(b chain.Mandate) error { return r.mandate(st, t.Signer, b) })
	case chain.TxMandateRevoke:
		return true, decoded(t, func(b chain.MandateRevoke) error { return r.revokeMandate(st, t.Signer, b) })
	case chain.TxOffline:
		return true, decoded(t, func(b chain.Offline) error { return r.offline(st, t.Signer, b) })
	}
	return false, nil
}

// mandate registers a token, or changes the terms of one of the same payer's.
func (r *run) mandate(st State, signer chain.Key, m chain.Mandate) error {
	payer := chain.AccountOf(signer)
	was, known := MandateOf(st, m.Token)
	switch {
	case m.Kind < chain.MandateCard || m.Kind > chain.MandateOwner:
		return refuse(CodeMalformed, "mandate kind %d", m.Kind)
	case m.Token == (chain.Key{}) || m.Token == signer:
		return refuse(CodeMalformed, "a token is a key of its own")
	case m.PerTap <= 0 || m.PerDay < m.PerTap:
		return refuse(CodeAmount, "%d per tap and %d per day: want 0 < per tap <= per day", m.PerTap, m.PerDay)
	case m.Cap <= 0 || m.Cap > MaxPrice:
		return refuse(CodeRange, "price %d nano/Wh, 1..%d", m.Cap, MaxPrice)
	case m.Expires <= r.time:
		return refuse(CodeExpired, "expires at %d, before block time %d", m.Expires, r.time)
	case known && was.Payer != payer:
		return refuse(CodeTaken, "another payer has a mandate for this token")
	case !chain.Verify(m.Token, chain.DomainMandate, chain.ConsentBytes(r.rules.ChainID, signer), m.Consent):
		return refuse(CodeSignature, "the token did not consent to this payer")
	}
	if !known {
		if st.Get(AccountKey(payer)) == nil {
			return refuse(CodeAccount, "%s has no account to pay from", payer)
		}
		if _, wallet := get[chain.Nano](st, AccountKey(chain.AccountOf(m.Token))); wallet {
			return refuse(CodeTaken, "the token is a key with an account of its own")
		}
		tokens := tokensOf(st, payer)
		left := len(tokens)
		for _, token := range tokens {
			if v, _ := MandateOf(st, token); r.over(&v) {
				st.Delete(mandateKey(token))
				st.Delete(key(tabMandateBy, payer[:], token[:]))
				left--
			}
		}
		if left >= maxMandates {
			return refuse(CodeLimit, "%d mandates", left)
		}
	}
	// Terms change; what was used stays used.
	v := MandateView{Mandate: m, PayerKey: signer, Payer: payer, SignedMs: r.time, Used: was.Used, Day: was.Day, Spent: was.Spent}
	put(st, mandateKey(m.Token), v)
	put(st, key(tabMandateBy, payer[:], m.Token[:]), true)
	r.event("mandate.signed", m.Token.String(), "%s: %d nano per tap, %d per day, at most %d nano/Wh", m.Kind, m.PerTap, m.PerDay, m.Cap)
	return nil
}

// over reports whether a mandate ended so long ago that no session can be paid
// under it any more.
func (r *run) over(v *MandateView) bool {
	end := v.Mandate.Expires
	if v.RevokedMs != 0 {
		end = min(end, v.RevokedMs)
	}
	return end < r.time-OfflineNoticeMs
}

func (r *run) revokeMandate(st State, signer chain.Key, b chain.MandateRevoke) error {
	v, ok := MandateOf(st, b.Token)
	switch {
	case !ok:
		return refuse(CodeUnknown, "no mandate for token %s", b.Token.Short())
	case v.Payer != chain.AccountOf(signer):
		return refuse(CodeNotAllowed, "the mandate is another payer's")
	case v.RevokedMs != 0:
		return refuse(CodeState, "the mandate was revoked at %d", v.RevokedMs)
	}
	v.RevokedMs = r.time
	put(st, mandateKey(b.Token), v)
	r.event("mandate.revoked", b.Token.String(), "%d sessions were opened under it", v.Used)
	return nil
}

// offline moves money into a reserve, or asks it back.
func (r *run) offline(st State, signer chain.Key, b chain.Offline) error {
	payer := chain.AccountOf(signer)
	if b.Amount == 0 {
		return refuse(CodeAmount, "amount 0")
	}
	purse, k := ReserveAccount(payer, b.Gateway), reserveKey(payer, b.Gateway)
	v, known := get[reserve](st, k)
	if b.Amount > 0 {
		if m, ok := get[member](st, MemberKey(b.Gateway)); !ok || !m.Active {
			return refuse(CodeNotMember, "%s is no active member", b.Gateway.Short())
		}
		if !known && len(Reserves(st, payer)) >= maxReserves {
			return refuse(CodeLimit, "%d reserves", maxReserves)
		}
		put(st, k, v)
		r.event("reserve.added", payer.String(), "%d nano for gateway %s", b.Amount, b.Gateway.Short())
		because(st, "set apart for gateway", b.Gateway)
		return move(st, payer, purse, b.Amount)
	}
	want, err := chain.AddNano(v.Leaving, -b.Amount)
	if err != nil || b.Amount == -b.Amount || want > balance(st, purse) {
		return refuse(CodeFunds, "the reserve is %d, %d of it are asked back already", balance(st, purse), v.Leaving)
	}
	if v.Leaving > 0 {
		st.Delete(reserveDueKey(v.DueMs, payer, b.Gateway))
	}
	v.Leaving, v.DueMs = want, r.time+OfflineNoticeMs
	put(st, k, v)
	put(st, reserveDueKey(v.DueMs, payer, b.Gateway), true)
	r.event("reserve.leaving", payer.String(), "%d nano return from gateway %s at %d", want, b.Gateway.Short(), v.DueMs)
	return nil
}

// returnReserves gives back what was asked back a notice ago.
func (r *run) returnReserves(st State) error {
	var due [][]byte
	st.Iterate([]byte{tabReserveDue}, func(k, _ []byte) bool {
		if int64(binary.BigEndian.Uint64(k[1:9])) > r.time || len(due) == maxExpiriesPerBlock {
			return false
		}
		due = append(due, k)
		return true
	})
	for _, k := range due {
		payer, gateway := chain.Account(k[9:29]), chain.Key(k[29:])
		rk := reserveKey(payer, gateway)
		v, _ := get[reserve](st, rk)
		purse := ReserveAccount(payer, gateway)
		amount := min(v.Leaving, balance(st, purse)) // sessions may have used some
		st.Delete(k)
		if balance(st, purse) == amount {
			st.Delete(rk)
		} else {
			put(st, rk, reserve{})
		}
		because(st, "returned from gateway", gateway)
		if err := move(st, purse, payer, amount); err != nil {
			return err
		}
		r.event("reserve.returned", payer.String(), "%d nano from gateway %s", amount, gateway.Short())
	}
	return nil
}

// purse is who pays for a session, and out of which account.
type purse struct {
	driver  chain.Account // whose session it is
	from    chain.Account // where the hold is taken from, and what is left returns to
	offline bool          // from is a reserve: the session began without the ledger
}

// purse finds the purse for a quote, and counts the session under its mandate.
// opened is the session's time of opening.
func (r *run) purse(st State, q *chain.Quote, opened int64) (purse, error) {
	v, mandated := MandateOf(st, q.Driver)
	if !mandated {
		p := purse{driver: chain.AccountOf(q.Driver)}
		p.from = p.driver
		return p, r.covers(st, p.from, q)
	}
	p := purse{driver: v.Payer, from: v.Payer}
	err := v.allows(q, r.time)
	if err == nil {
		err = r.covers(st, p.from, q)
	}
	if err != nil {
		// Without the ledger it may have begun when all was well: then the
		// reserve for this gateway pays.
		began := min(q.Created, r.time)
		p.from, p.offline = ReserveAccount(v.Payer, q.Gateway), true
		if began < r.time-OfflineNoticeMs || v.allows(q, began) != nil || balance(st, p.from) < q.Hold {
			return p, err
		}
	}
	if day := opened / dayMs; day != v.Day {
		v.Day, v.Spent = day, 0
	}
	if spent, err := chain.AddNano(v.Spent, q.Hold); err != nil || spent > v.Mandate.PerDay && !p.offline {
		return p, refuse(CodeLimit, "mandate: %d held or spent today, %d more are above %d per day", v.Spent, q.Hold, v.Mandate.PerDay)
	}
	v.Used++
	v.Spent += q.Hold
	put(st, mandateKey(q.Driver), v)
	return p, nil
}

// covers refuses a quote that is over, or that the account cannot hold.
func (r *run) covers(st State, from chain.Account, q *chain.Quote) error {
	switch {
	case q.Expires < r.time:
		return refuse(CodeExpired, "quote %s expired at %d", q.ID, q.Expires)
	case balance(st, from) < q.Hold:
		return refuse(CodeFunds, "account %s has %d, the hold is %d", from, balance(st, from), q.Hold)
	}
	return nil
}

// Allows says why the mandate does not allow a quote at Unix time ms, or nil.
// A gateway asks it before it asks the ledger.
func (v *MandateView) Allows(q *chain.Quote, ms int64) error { return v.allows(q, ms) }

func (v *MandateView) allows(q *chain.Quote, ms int64) error {
	m := &v.Mandate
	switch {
	case v.RevokedMs != 0 && ms >= v.RevokedMs:
		return refuse(CodeNotAllowed, "the mandate was revoked")
	case ms > m.Expires:
		return refuse(CodeExpired, "the mandate expired at %d", m.Expires)
	case m.Gateway != (chain.Key{}) && m.Gateway != q.Gateway:
		return refuse(CodeNotAllowed, "the mandate is for gateway %s", m.Gateway.Short())
	case q.Hold > m.PerTap:
		return refuse(CodeLimit, "the hold is %d, the mandate allows %d per tap", q.Hold, m.PerTap)
	case q.Cap > m.Cap:
		return refuse(CodeRange, "the price is %d nano/Wh, the mandate allows %d", q.Cap, m.Cap)
	case m.Uses != 0 && v.Used >= m.Uses:
		return refuse(CodeLimit, "the mandate was for %d sessions", m.Uses)
	}
	return nil
}

// settled counts what was not used of a session back into its day.
func (r *run) settled(st State, s *SessionView) {
	v, ok := MandateOf(st, s.DriverKey)
	if !ok || v.Day != s.OpenedMs/dayMs {
		return
	}
	v.Spent = max(v.Spent-s.Released, 0)
	put(st, mandateKey(s.DriverKey), v)
}

// purse is where what is left of the hold returns to: where it came from, but
// not to a reserve that was given back meanwhile.
func (s *SessionView) purse(st State) chain.Account {
	if s.Purse == (chain.Account{}) || st.Get(reserveKey(s.Driver, s.Gateway)) == nil {
		return s.Driver
	}
	return s.Purse
}

// since is the earliest time that the session's records can be of.
func (s *SessionView) since() int64 {
	if s.QuotedMs != 0 {
		return s.QuotedMs
	}
	return s.OpenedMs
}
