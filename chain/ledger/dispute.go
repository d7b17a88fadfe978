package ledger

import (
	"fmt"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Disputes. A driver says that a settled bill is wrong by an amount. That
// amount, and no more, is frozen out of the supplier's account until somebody
// who may has decided; nobody's trade and nobody's other money is touched.
//
//	OPEN ──answer (operator, charger's owner)──► ANSWERED
//	  │                                             │
//	  ├── driver withdraws, or accepts what is conceded ──► RESOLVED
//	  ├── an auditor decides; operators may only give in where there are auditors
//	  └── nobody answers, or nobody decides, in time: for the driver, by rule
const maxOpenDisputes = 4096

// DisputeState is where a dispute stands.
type DisputeState uint8

// Dispute states. Append only.
const (
	DisputeOpen DisputeState = 1 + iota
	DisputeAnswered
	DisputeResolved
)

var disputeStates = [...]string{DisputeOpen: "open", DisputeAnswered: "answered", DisputeResolved: "resolved"}

func (s DisputeState) String() string {
	if s == 0 || int(s) >= len(disputeStates) {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return disputeStates[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s DisputeState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *DisputeState) UnmarshalText(b []byte) error {
	i := slices.Index(disputeStates[:], string(b))
	if i < 1 {
		return fmt.Errorf("unknown dispute state %q", b)
	}
	*s = DisputeState(i)
	return nil
}

// DisputeView is one dispute.
type DisputeView struct {
	Number       uint64        `cbor:"1,keyasint" json:"number"`
	State        DisputeState  `cbor:"2,keyasint" json:"state"`
	Session      chain.ID      `cbor:"3,keyasint" json:"session"`
	Driver       chain.Account `cbor:"4,keyasint" json:"driver"`
	Amount       chain.Nano    `cbor:"5,keyasint" json:"amount_nano"` // disputed
	Frozen       chain.Nano    `cbor:"6,keyasint" json:"frozen_nano"` // less than Amount if the supplier's account did not cover it
	Reason       string        `cbor:"7,keyasint" json:"reason"`
	Detail       chain.Hash    `cbor:"8,keyasint" json:"detail"`
	OpenedMs     int64         `cbor:"9,keyasint" json:"opened_ms"`
	AnswerByMs   int64         `cbor:"10,keyasint" json:"answer_by_ms"`
	ResolveByMs  int64         `cbor:"11,keyasint" json:"resolve_by_ms"`
	Conceded     chain.Nano    `cbor:"12,keyasint" json:"conceded_nano"`
	Answer       string        `cbor:"13,keyasint" json:"answer,omitempty"`
	AnswerDetail chain.Hash    `cbor:"14,keyasint" json:"answer_detail"`
	AnsweredMs   int64         `cbor:"15,keyasint" json:"answered_ms,omitempty"`
	Refund       chain.Nano    `cbor:"16,keyasint" json:"refund_nano"`
	Resolution   string        `cbor:"17,keyasint" json:"resolution,omitempty"`
	ResolvedMs   int64         `cbor:"18,keyasint" json:"resolved_ms,omitempty"`
	ByRule       bool          `cbor:"19,keyasint" json:"by_rule"` // a deadline decided

	// About a meter that has jumped, opened by rule. Driver is the house's
	// owner if it is the house's, and Session is zero then.
	Device    chain.Key      `cbor:"30,keyasint,omitzero" json:"device,omitzero"`
	Connector uint8          `cbor:"31,keyasint,omitempty" json:"connector,omitempty"`
	Meter     string         `cbor:"32,keyasint,omitempty" json:"meter,omitempty"`
	Wh        meter.WattHour `cbor:"33,keyasint,omitempty" json:"wh,omitempty"`        // disputed
	ExportWh  meter.WattHour `cbor:"34,keyasint,omitempty" json:"export_wh,omitempty"` // disputed
}

// jump reports whether it is about a meter that has jumped.
func (v *DisputeView) jump() bool { return v.Device != chain.Key{} }

// frozen is the money that the dispute keeps on its account.
func (v *DisputeView) frozen() chain.Nano {
	if v.State == DisputeResolved {
		return 0
	}
	return v.Frozen
}

func disputeKey(n uint64) []byte { return key(tabDispute, be64(n)) }

func (r *run) dispute(st State, signer chain.Key, d chain.Dispute) error {
	s, err := settled(st, d.Session)
	if err != nil {
		return err
	}
	b := billOf(st, s.ID)
	switch err := checkReason(d.Reason); {
	case chain.AccountOf(signer) != s.Driver:
		return refuse(CodeNotAllowed, "session %s is another driver's", s.ID)
	case err != nil:
		return err
	case d.Amount <= 0:
		return refuse(CodeAmount, "amount %d", d.Amount)
	case d.Amount > s.Captured-b.Refunded:
		return refuse(CodeRange, "%d of a bill of %d with %d refunded", d.Amount, s.Captured, b.Refunded)
	case b.Dispute != 0:
		return refuse(CodeState, "session %s has dispute %d", s.ID, b.Dispute)
	case r.time > s.ClosedMs+r.rules.DisputeDays*dayMs:
		return refuse(CodeExpired, "session %s ended more than %d days ago", s.ID, r.rules.DisputeDays)
	case len(todo(st, todoDispute)) >= maxOpenDisputes:
		return refuse(CodeLimit, "%d disputes are open", maxOpenDisputes)
	}
	v := DisputeView{
		Number: next(st, todoDispute, chain.Account{}), State: DisputeOpen, Session: s.ID, Driver: s.Driver, Amount: d.Amount,
		Frozen: min(d.Amount, balance(st, chain.AccountGrid)), Reason: d.Reason, Detail: d.Detail,
		OpenedMs: r.time, AnswerByMs: r.time + r.rules.AnswerDays*dayMs, ResolveByMs: r.time + r.rules.ResolveDays*dayMs,
	}
	because(st, "frozen by dispute", v.Number)
	if err := move(st, chain.AccountGrid, chain.AccountDispute, v.Frozen); err != nil {
		return err
	}
	b.Dispute = v.Number
	put(st, billKey(s.ID), b)
	put(st, disputeKey(v.Number), v)
	put(st, todoKey(todoDispute, be64(v.Number)), true)
	r.event("dispute.opened", fmt.Sprint(v.Number), "%d nano of session %s, %d frozen: %s", v.Amount, s.ID, v.Frozen, v.Reason)
	return nil
}

// openDispute returns a dispute that is not resolved.
func openDispute(st State, n uint64) (DisputeView, error) {
	v, ok := DisputeOf(st, n)
	switch {
	case !ok:
		return v, refuse(CodeUnknown, "no dispute %d", n)
	case v.State == DisputeResolved:
		return v, refuse(CodeState, "dispute %d is resolved", n)
	}
	return v, nil
}

func (r *run) answer(st State, signer chain.Key, a chain.Answer) error {
	v, err := openDispute(st, a.Dispute)
	if err != nil {
		return err
	}
	gateway := v.Device
	if !v.jump() {
		gateway = session(st, v.Session).Gateway
	}
	m, _ := get[member](st, MemberKey(gateway))
	switch err := checkReason(a.Reason); {
	case signer != m.Member.Owner && !slices.Contains(r.rules.Operators, signer):
		return refuse(CodeNotAllowed, "dispute %d is answered by an operator or the charger's owner", v.Number)
	case err != nil:
		return err
	case v.State != DisputeOpen:
		return refuse(CodeState, "dispute %d is %s", v.Number, v.State)
	case a.Concede < 0 || a.Concede > v.Amount:
		return refuse(CodeRange, "%d conceded of %d", a.Concede, v.Amount)
	}
	v.State, v.Conceded, v.Answer, v.AnswerDetail, v.AnsweredMs = DisputeAnswered, a.Concede, a.Reason, a.Detail, r.time
	put(st, disputeKey(v.Number), v)
	r.event("dispute.answered", fmt.Sprint(v.Number), "%d nano conceded: %s", v.Conceded, v.Answer)
	return nil
}

func (r *run) resolve(st State, by authority, d chain.Resolve) error {
	v, err := openDispute(st, d.Dispute)
	if err != nil {
		return err
	}
	if err := checkReason(d.Reason); err != nil {
		return err
	}
	if d.Refund < 0 || d.Refund > v.Amount {
		return refuse(CodeRange, "%d refunded of %d disputed", d.Refund, v.Amount)
	}
	if v.jump() && d.Refund < v.Amount-v.Frozen {
		return refuse(CodeState, "that the excess was energy is said by the release of the meter")
	}
	switch driver := chain.AccountOf(by[0]) == v.Driver; {
	case r.audited(by):
	case driver && d.Refund <= v.Conceded: // withdraws or accepts
	case driver:
		return refuse(CodeNotAllowed, "%d nano are conceded, not %d", v.Conceded, d.Refund)
	default:
		if err := r.operators(by); err != nil {
			return err
		}
		if len(r.rules.Auditors) > 0 && d.Refund < v.Amount {
			// The operator is the other side.
			return refuse(CodeApproval, "an auditor must approve less than the driver asks for")
		}
	}
	return r.endDispute(st, v, d.Refund, d.Reason)
}

// endDispute thaws the frozen amount and refunds out of it.
func (r *run) endDispute(st State, v DisputeView, refund chain.Nano, reason string) error {
	if v.jump() {
		if err := r.endJump(st, &v, refund); err != nil {
			return err
		}
	} else if err := r.thaw(st, &v); err != nil {
		return err
	} else if refund > 0 {
		s := session(st, v.Session)
		if err := r.giveBack(st, &s, refund, reason); err != nil {
			return err
		}
	}
	v.State, v.Refund, v.Resolution, v.ResolvedMs = DisputeResolved, refund, reason, r.time
	put(st, disputeKey(v.Number), v)
	st.Delete(todoKey(todoDispute, be64(v.Number)))
	code := "dispute.resolved"
	if v.ByRule {
		code = "dispute.defaulted"
	}
	r.event(code, fmt.Sprint(v.Number), "%d of %d nano refunded: %s", refund, v.Amount, reason)
	return nil
}

// thaw gives what a dispute has frozen back to the supplier.
func (r *run) thaw(st State, v *DisputeView) error {
	because(st, "thawed by dispute", v.Number)
	return move(st, chain.AccountDispute, chain.AccountGrid, v.Frozen)
}

// disputeDeadlines decides for the driver what nobody has answered or decided
// in time, as far as money is frozen for it.
func (r *run) disputeDeadlines(st State) error {
	for _, n := range todo(st, todoDispute) {
		v, _ := DisputeOf(st, n)
		reason := "not decided in time"
		switch {
		case v.State == DisputeOpen && r.time > v.AnswerByMs:
			reason = "not answered in time"
		case r.time <= v.ResolveByMs:
			continue
		}
		v.ByRule = true
		refund := v.Amount
		if !v.jump() {
			refund = min(v.Frozen, session(st, v.Session).Captured-billOf(st, v.Session).Refunded)
		}
		if err := r.endDispute(st, v, refund, reason); err != nil {
			return fmt.Errorf("dispute %d: %w", n, err)
		}
	}
	return nil
}

// DisputeOf returns one dispute.
func DisputeOf(st State, n uint64) (DisputeView, bool) { return get[DisputeView](st, disputeKey(n)) }

// Disputes returns all disputes, oldest first.
func Disputes(st State) []DisputeView { return collect[DisputeView](st, key(tabDispute)) }
