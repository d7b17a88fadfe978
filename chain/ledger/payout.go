package ledger

import (
	"encoding/binary"
	"fmt"

	"github.com/joulegate/joulegate/chain"
)

// Payouts. The holder's money is locked when he asks and leaves the ledger
// when the operator states the bank's reference. Paid-in money never expires,
// and is paid out at par.
//
//	           ┌─cancel (holder)──► CANCELLED, back on the balance
//	ASKED ─────┤
//	(overdue)  └─paid (operators)─► PAID, out of the ledger
const (
	maxOpenPayouts = 4096 // together; further ones wait until some are paid
	maxOwnPayouts  = 8    // open ones of one account
)

// PayoutState is where a payout stands.
type PayoutState uint8

// Payout states. Append only.
const (
	PayoutAsked PayoutState = 1 + iota
	PayoutPaid
	PayoutCancelled
)

var payoutStates = [...]string{PayoutAsked: "asked", PayoutPaid: "paid", PayoutCancelled: "cancelled"}

func (s PayoutState) String() string {
	if s == 0 || int(s) >= len(payoutStates) {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return payoutStates[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s PayoutState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *PayoutState) UnmarshalText(b []byte) error {
	for i := range payoutStates {
		if i > 0 && payoutStates[i] == string(b) {
			*s = PayoutState(i)
			return nil
		}
	}
	return fmt.Errorf("unknown payout state %q", b)
}

// PayoutView is one payout.
type PayoutView struct {
	Number  uint64        `cbor:"1,keyasint" json:"number"`
	State   PayoutState   `cbor:"2,keyasint" json:"state"`
	Account chain.Account `cbor:"3,keyasint" json:"account"`
	Amount  chain.Nano    `cbor:"4,keyasint" json:"amount_nano"`
	AskedMs int64         `cbor:"5,keyasint" json:"asked_ms"` // block time
	DueMs   int64         `cbor:"6,keyasint" json:"due_ms"`   // to be paid by then
	DoneMs  int64         `cbor:"7,keyasint" json:"done_ms,omitempty"`
	Overdue bool          `cbor:"8,keyasint" json:"overdue"`  // was not paid in time; stays true
	BankRef chain.Hash    `cbor:"9,keyasint" json:"bank_ref"` // SHA-256 of the reference
}

// locked is the money that the payout keeps on its account.
func (v *PayoutView) locked() chain.Nano {
	if v.State != PayoutAsked {
		return 0
	}
	return v.Amount
}

// Kinds of what is not done yet: the byte after tabTodo.
const (
	todoPayout  = 'p' // number
	todoDispute = 'd' // number
	todoSession = 's' // account, session: settled and not billed
)

func payoutKey(n uint64) []byte { return key(tabPayout, be64(n)) }
func todoKey(kind byte, what ...[]byte) []byte {
	return key(tabTodo, append([][]byte{{kind}}, what...)...)
}

// todo returns the numbers of one kind that are not done yet, ascending.
func todo(st State, kind byte) []uint64 {
	var all []uint64
	st.Iterate(todoKey(kind), func(k, _ []byte) bool {
		all = append(all, binary.BigEndian.Uint64(k[2:]))
		return true
	})
	return all
}

// next returns the next number of a series that has no gaps.
func next(st State, series byte, of chain.Account) uint64 {
	k := key(tabSequence, []byte{series}, of[:])
	n, _ := get[uint64](st, k)
	put(st, k, n+1)
	return n + 1
}

func (r *run) payout(st State, signer chain.Key, p chain.Payout) error {
	a := chain.AccountOf(signer)
	unit := chain.MinorUnit(r.rules.MinorDigits)
	if p.Amount <= 0 || p.Amount%unit != 0 {
		return refuse(CodeAmount, "a bank cannot pay %d nano: more than zero, whole multiples of %d", p.Amount, unit)
	}
	open := todo(st, todoPayout)
	mine := 0
	for _, n := range open {
		if v, _ := PayoutOf(st, n); v.Account == a {
			mine++
		}
	}
	if len(open) >= maxOpenPayouts || mine >= maxOwnPayouts {
		return refuse(CodeLimit, "%d payouts are open, %d of this account", len(open), mine)
	}
	v := PayoutView{
		Number: next(st, todoPayout, chain.Account{}), State: PayoutAsked, Account: a, Amount: p.Amount,
		AskedMs: r.time, DueMs: r.time + r.rules.PayoutDays*dayMs,
	}
	because(st, "payout asked", v.Number)
	if err := move(st, a, chain.AccountPayout, p.Amount); err != nil {
		return err
	}
	put(st, payoutKey(v.Number), v)
	put(st, todoKey(todoPayout, be64(v.Number)), true)
	r.event("payout.asked", fmt.Sprint(v.Number), "%d nano to %s", v.Amount, a)
	return nil
}

// openPayout returns a payout that is neither paid nor cancelled.
func openPayout(st State, n uint64) (PayoutView, error) {
	v, ok := PayoutOf(st, n)
	switch {
	case !ok:
		return v, refuse(CodeUnknown, "no payout %d", n)
	case v.State != PayoutAsked:
		return v, refuse(CodeState, "payout %d is %s", n, v.State)
	}
	return v, nil
}

func (r *run) donePayout(st State, v PayoutView, state PayoutState) {
	v.State, v.DoneMs = state, r.time
	put(st, payoutKey(v.Number), v)
	st.Delete(todoKey(todoPayout, be64(v.Number)))
	r.event("payout."+state.String(), fmt.Sprint(v.Number), "%d nano of %s", v.Amount, v.Account)
}

func (r *run) payoutPaid(st State, by authority, p chain.PayoutPaid) error {
	if err := r.operators(by); err != nil {
		return err
	}
	v, err := openPayout(st, p.Payout)
	if err != nil {
		return err
	}
	if err := r.bankRef(st, chain.TxPayoutPaid, v.Account, v.Amount, p.BankRef); err != nil {
		return err
	}
	because(st, "payout paid", v.Number)
	if err := destroy(st, chain.AccountPayout, v.Amount); err != nil {
		return err
	}
	v.BankRef = chain.Sum([]byte(p.BankRef))
	r.donePayout(st, v, PayoutPaid)
	return nil
}

func (r *run) payoutCancel(st State, signer chain.Key, p chain.PayoutCancel) error {
	v, err := openPayout(st, p.Payout)
	if err != nil {
		return err
	}
	if v.Account != chain.AccountOf(signer) {
		return refuse(CodeNotAllowed, "payout %d is of another account", v.Number)
	}
	because(st, "payout cancelled", v.Number)
	if err := move(st, chain.AccountPayout, v.Account, v.Amount); err != nil {
		return err
	}
	r.donePayout(st, v, PayoutCancelled)
	return nil
}

// deadlines marks payouts that are overdue and ends disputes whose time is
// over.
func (r *run) deadlines(st State) error {
	for _, n := range todo(st, todoPayout) {
		v, _ := PayoutOf(st, n)
		if !v.Overdue && r.time > v.DueMs {
			v.Overdue = true
			put(st, payoutKey(n), v)
			r.event("payout.overdue", fmt.Sprint(n), "%d nano to %s, asked %d days ago", v.Amount, v.Account, (r.time-v.AskedMs)/dayMs)
		}
	}
	return r.disputeDeadlines(st)
}

// PayoutOf returns one payout.
func PayoutOf(st State, n uint64) (PayoutView, bool) { return get[PayoutView](st, payoutKey(n)) }

// OpenPayouts returns the payouts that wait for the operator, oldest first.
func OpenPayouts(st State) []PayoutView {
	var all []PayoutView
	for _, n := range todo(st, todoPayout) {
		v, _ := PayoutOf(st, n)
		all = append(all, v)
	}
	return all
}

// Payouts returns all payouts, oldest first.
func Payouts(st State) []PayoutView { return collect[PayoutView](st, key(tabPayout)) }
