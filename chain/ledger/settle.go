package ledger

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/tree"
)

// Settling with other microgrids. There is no chain above the microgrids: each
// follows the signatures of those that its operators have chosen, as a light
// client does, and lets locked money go by what the other's validators signed
// ([chain.Settlement] has the conversation).
//
//	                ┌─proof: answered──────────────────► PAID
//	LOCKED (Home) ──┼─proof: not answered by deadline──► REFUNDED
//	                └─block time reaches Expires───────► REFUNDED
//
//	ANSWERED (Away): the counter-entry, paid at once
//
// What can go wrong for whom: until Expires the lock cannot return unless Away
// has signed, in a block at or after the deadline, that it has not answered;
// and no answer is taken then any more. So whoever answers in time has at
// least [chain.MinSettleSpan] to show it. Trust that is older than the trusting
// period carries no further: operators look again and set a newer checkpoint.
const (
	tabRemote     = '8' // chain id -> remote
	tabSettlement = '9' // side, id, the other's chain id -> SettlementView

	maxRemotes         = 16
	maxSettlements     = 4096 // kept; further ones wait until old ones are forgotten
	maxOpenSettlements = 256  // locked
	maxSettleDue       = 64   // per block; the next goes on
	settleHome         = 'h'
	settleAway         = 'a'
	todoSettle         = 'x' // ms, settlement's key: expires, or is forgotten
)

// SettlementState is where a settlement stands.
type SettlementState uint8

// Settlement states. Append only.
const (
	SettlementLocked SettlementState = 1 + iota
	SettlementPaid
	SettlementRefunded
	SettlementAnswered
)

var settlementStates = [...]string{SettlementLocked: "locked", SettlementPaid: "paid", SettlementRefunded: "refunded", SettlementAnswered: "answered"}

func (s SettlementState) String() string {
	if s == 0 || int(s) >= len(settlementStates) {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return settlementStates[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s SettlementState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *SettlementState) UnmarshalText(b []byte) error {
	for i := range settlementStates {
		if i > 0 && settlementStates[i] == string(b) {
			*s = SettlementState(i)
			return nil
		}
	}
	return fmt.Errorf("unknown settlement state %q", b)
}

// SettlementView is this ledger's half of a settlement.
type SettlementView struct {
	Terms  chain.Settlement `cbor:"1,keyasint" json:"terms"`
	State  SettlementState  `cbor:"2,keyasint" json:"state"`
	AtMs   int64            `cbor:"3,keyasint" json:"at_ms"` // block time of the first half here
	DoneMs int64            `cbor:"4,keyasint,omitempty" json:"done_ms,omitempty"`
}

// locked is the money that the settlement keeps on its account.
func (v *SettlementView) locked() chain.Nano {
	if v.State != SettlementLocked {
		return 0
	}
	return v.Terms.Amount
}

// RemoteView is another microgrid that this one believes.
type RemoteView struct {
	chain.Remote
	Fresh bool `cbor:"-" json:"fresh"` // at block time; else operators must set a newer checkpoint
}

func remoteKey(id string) []byte { return key(tabRemote, []byte(id)) }

// SettlementKey is the key of a settlement on one of its two ledgers, to prove
// it to the other: on Home, where it is locked, other is Away, and on Away it is
// Home.
func SettlementKey(id chain.ID, other string, home bool) []byte {
	side := byte(settleAway)
	if home {
		side = settleHome
	}
	return key(tabSettlement, []byte{side}, id[:], []byte(other))
}

// ParseSettlement decodes the value under SettlementKey.
func ParseSettlement(value []byte) (SettlementView, error) { return parse[SettlementView](value) }

// Remotes returns the microgrids that this one believes, by chain id.
func Remotes(st State) []RemoteView {
	c, _ := get[clock](st, key(tabClock))
	all := collect[RemoteView](st, key(tabRemote))
	for i := range all {
		all[i].Fresh = all[i].Trust.Fresh(time.UnixMilli(c.TimeMs))
	}
	return all
}

// Settlements returns the halves of settlements that this ledger keeps: those
// it has answered, then those it has locked, by id.
func Settlements(st State) []SettlementView {
	return collect[SettlementView](st, key(tabSettlement))
}

// between executes the kinds of chain/remote.go; false: it is none of them.
func (r *run) between(st State, t chain.Tx) (bool, error) {
	switch t.Kind {
	case chain.TxRemoteHead:
		return true, decoded(t, func(b chain.RemoteHead) error { return r.remoteHead(st, t.Signer, b) })
	case chain.TxSettle:
		return true, decoded(t, func(b chain.Settlement) error { return r.lockSettlement(st, t.Signer, b) })
	case chain.TxSettleAnswer:
		return true, decoded(t, func(b chain.SettleAnswer) error { return r.settleAnswer(st, t.Signer, b) })
	case chain.TxSettleClose:
		return true, decoded(t, func(b chain.SettleClose) error { return r.settleClose(st, t.Signer, b) })
	}
	return false, nil
}

// remote sets whom to believe about another microgrid, or that nobody is.
func (r *run) remote(st State, by authority, b chain.Remote) error {
	if err := r.operators(by); err != nil {
		return err
	}
	k := remoteKey(b.Trust.Chain)
	if len(b.Trust.Next) == 0 {
		if st.Get(k) == nil {
			return refuse(CodeUnknown, "%q is not believed", b.Trust.Chain)
		}
		st.Delete(k)
		r.event("remote.forgotten", b.Trust.Chain, "by operators")
		return nil
	}
	if err := b.Trust.Check(); err != nil {
		return refuse(CodeMalformed, "%v", err)
	}
	switch {
	case b.Trust.Chain == r.rules.ChainID:
		return refuse(CodeChain, "%q is this microgrid", b.Trust.Chain)
	case b.Genesis == (chain.Hash{}):
		return refuse(CodeMalformed, "the genesis of %q has no hash", b.Trust.Chain)
	case b.Trust.Time > (r.time+r.skew())*1e6:
		return refuse(CodeRange, "trust of time %d ns is in the future", b.Trust.Time)
	case !b.Trust.Fresh(time.UnixMilli(r.time)):
		return refuse(CodeExpired, "%v: height %d; give a newer checkpoint", chain.ErrExpired, b.Trust.Height)
	}
	old, known := get[chain.Remote](st, k)
	if known && old.Genesis != b.Genesis {
		return refuse(CodeTaken, "%q is believed with genesis %s", b.Trust.Chain, old.Genesis)
	}
	if !known && len(collect[chain.Remote](st, key(tabRemote))) >= maxRemotes {
		return refuse(CodeLimit, "%d microgrids are believed", maxRemotes)
	}
	put(st, k, b)
	r.event("remote.believed", b.Trust.Chain, "from height %d, %d validators", b.Trust.Height, len(b.Trust.Next))
	return nil
}

// follow checks a checkpoint of another microgrid against what is believed and
// carries trust to it.
func (r *run) follow(st State, c *chain.Checkpoint) error {
	k := remoteKey(c.Header.Chain)
	known, ok := get[chain.Remote](st, k)
	switch {
	case !ok:
		return refuse(CodeUnknown, "nobody has said whom to believe about %q", c.Header.Chain)
	case !known.Trust.Fresh(time.UnixMilli(r.time)):
		return refuse(CodeExpired, "%q: %v: height %d; operators must set a newer checkpoint", c.Header.Chain, chain.ErrExpired, known.Trust.Height)
	case c.Header.Time > (r.time+r.skew())*1e6:
		return refuse(CodeRange, "the checkpoint of %s is in the future", c.Time())
	}
	if err := known.Trust.Verify(c); err != nil {
		return refuse(CodeProof, "%v", err)
	}
	if c.Header.Height > known.Trust.Height {
		known.Trust = c.Trust()
		put(st, k, known)
		r.event("remote.followed", c.Header.Chain, "to height %d", c.Header.Height)
	}
	return nil
}

func (r *run) remoteHead(st State, signer chain.Key, b chain.RemoteHead) error {
	if err := r.operator(signer); err != nil {
		return err
	}
	before, _ := get[chain.Remote](st, remoteKey(b.Checkpoint.Header.Chain))
	if err := r.follow(st, &b.Checkpoint); err != nil {
		return err
	}
	if b.Checkpoint.Header.Height <= before.Trust.Height {
		return refuse(CodeDuplicate, "height %d of %q is known", before.Trust.Height, b.Checkpoint.Header.Chain)
	}
	return nil
}

// shown returns the other ledger's half of a settlement by its proof; false:
// it is proven that there is none.
func (r *run) shown(st State, p *chain.RemoteProof, other string, k []byte) (v SettlementView, found bool, err error) {
	if p.Checkpoint.Header.Chain != other {
		return v, false, refuse(CodeChain, "a proof of %q, where one of %q belongs", p.Checkpoint.Header.Chain, other)
	}
	if len(p.Tree) > chain.MaxRemoteTree {
		return v, false, refuse(CodeTooLarge, "a proof of %d bytes, at most %d", len(p.Tree), chain.MaxRemoteTree)
	}
	if err := r.follow(st, &p.Checkpoint); err != nil {
		return v, false, err
	}
	told, root, err := tree.Read(p.Tree, 3)
	switch {
	case err != nil:
		return v, false, refuse(CodeMalformed, "%v", err)
	case root != p.Checkpoint.StateRoot():
		return v, false, refuse(CodeProof, "the proof leads to %s, block %d of %q signs %s", root, p.Checkpoint.Header.Height, other, p.Checkpoint.StateRoot())
	}
	value := told.Get(k)
	switch {
	case told.Unknown != nil:
		return v, false, refuse(CodeProof, "the proof is about another entry")
	case value == nil:
		return v, false, nil
	}
	if v, err = ParseSettlement(value); err != nil {
		return v, false, refuse(CodeMalformed, "the entry of %q: %v", other, err)
	}
	return v, true, nil
}

// newSettlement checks terms of which this ledger is about to keep a half.
func (r *run) newSettlement(st State, k []byte, s *chain.Settlement, payee chain.Account) error {
	if err := s.Check(); err != nil {
		return refuse(CodeMalformed, "%v", err)
	}
	if err := checkAccount(payee); err != nil {
		return err
	}
	switch {
	case payee.IsSystem():
		return refuse(CodeAccount, "settlement to %s", payee)
	case r.time >= s.Deadline:
		return refuse(CodeExpired, "the deadline was %d, block time is %d", s.Deadline, r.time)
	case s.Expires > r.time+chain.MaxSettleHorizon:
		return refuse(CodeRange, "it would expire at %d, at most %d ms after block time %d", s.Expires, int64(chain.MaxSettleHorizon), r.time)
	case st.Get(k) != nil:
		return refuse(CodeDuplicate, "settlement %s is in the ledger", s.ID)
	}
	kept, open := 0, 0
	each(st, key(tabSettlement), func(_ []byte, v SettlementView) bool {
		if kept++; v.State == SettlementLocked {
			open++
		}
		return true
	})
	if kept >= maxSettlements || open >= maxOpenSettlements {
		return refuse(CodeLimit, "%d settlements are kept, %d are locked", kept, open)
	}
	return nil
}

func settleDueKey(ms int64, k []byte) []byte { return todoKey(todoSettle, be64(uint64(ms)), k) }

// lockSettlement locks Home's half.
func (r *run) lockSettlement(st State, signer chain.Key, s chain.Settlement) error {
	k := SettlementKey(s.ID, s.Away, true)
	if err := r.operator(signer); err != nil {
		return err
	}
	switch {
	case s.Home != r.rules.ChainID:
		return refuse(CodeChain, "to be locked on %q, this is %q", s.Home, r.rules.ChainID)
	case s.Payer != chain.AccountOf(signer):
		return refuse(CodeNotAllowed, "%s is not the payer", signer.Short())
	case st.Get(remoteKey(s.Away)) == nil:
		return refuse(CodeUnknown, "nobody has said whom to believe about %q", s.Away)
	}
	if err := r.newSettlement(st, k, &s, s.Payee); err != nil {
		return err
	}
	if s.Payee == s.Payer {
		return refuse(CodeAccount, "%s would pay himself", s.Payer)
	}
	because(st, "locked for settlement", s.ID)
	if err := move(st, s.Payer, chain.AccountSettlement, s.Amount); err != nil {
		return err
	}
	put(st, k, SettlementView{Terms: s, State: SettlementLocked, AtMs: r.time})
	put(st, settleDueKey(s.Expires, k), true)
	r.event("settlement.locked", s.ID.String(), "%d nano for %s, against %d on %q", s.Amount, s.Payee, s.AwayAmount, s.Away)
	return nil
}

// settleAnswer pays Away's half.
func (r *run) settleAnswer(st State, signer chain.Key, b chain.SettleAnswer) error {
	s := &b.Terms
	k := SettlementKey(s.ID, s.Home, false)
	if err := r.operator(signer); err != nil {
		return err
	}
	switch {
	case s.Away != r.rules.ChainID:
		return refuse(CodeChain, "to be answered on %q, this is %q", s.Away, r.rules.ChainID)
	case s.AwayPayer != chain.AccountOf(signer):
		return refuse(CodeNotAllowed, "%s is not who pays the answer", signer.Short())
	}
	if err := r.newSettlement(st, k, s, s.AwayPayee); err != nil {
		return err
	}
	if s.AwayPayee == s.AwayPayer {
		return refuse(CodeAccount, "%s would pay himself", s.AwayPayer)
	}
	v, found, err := r.shown(st, &b.Proof, s.Home, SettlementKey(s.ID, s.Away, true))
	switch {
	case err != nil:
		return err
	case !found:
		return refuse(CodeProof, "%q has no such settlement", s.Home)
	case v.Terms != *s:
		return refuse(CodeProof, "%q has locked other terms", s.Home)
	case v.State != SettlementLocked:
		return refuse(CodeState, "on %q it is %s", s.Home, v.State)
	}
	because(st, "answered settlement", s.ID)
	if err := move(st, s.AwayPayer, s.AwayPayee, s.AwayAmount); err != nil {
		return err
	}
	put(st, k, SettlementView{Terms: *s, State: SettlementAnswered, AtMs: r.time, DoneMs: r.time})
	put(st, settleDueKey(s.Expires+r.rules.retainMs(), k), true)
	r.event("settlement.answered", s.ID.String(), "%d nano to %s, for %d on %q", s.AwayAmount, s.AwayPayee, s.Amount, s.Home)
	return nil
}

// settleClose pays or returns what Home has locked, by what Away has signed.
func (r *run) settleClose(st State, signer chain.Key, b chain.SettleClose) error {
	k := SettlementKey(b.ID, b.Away, true)
	v, ok := get[SettlementView](st, k)
	s, a := &v.Terms, chain.AccountOf(signer)
	switch {
	case !ok:
		return refuse(CodeUnknown, "no settlement %s with %q was locked here", b.ID, b.Away)
	case a != s.Payer && a != s.Payee && r.operator(signer) != nil:
		return refuse(CodeNotAllowed, "%s has no part in settlement %s", signer.Short(), b.ID)
	case v.State != SettlementLocked:
		return refuse(CodeState, "settlement %s is %s", b.ID, v.State)
	}
	other, found, err := r.shown(st, &b.Proof, s.Away, SettlementKey(s.ID, s.Home, false))
	switch signed := b.Proof.Checkpoint.Header.Time / 1e6; {
	case err != nil:
		return err
	case found && (other.Terms != *s || other.State != SettlementAnswered):
		return refuse(CodeProof, "%q has answered other terms", s.Away)
	case found:
		return r.endSettlement(st, k, v, SettlementPaid)
	case signed < s.Deadline:
		return refuse(CodeState, "%q has not answered at %d, and may until %d", s.Away, signed, s.Deadline)
	}
	return r.endSettlement(st, k, v, SettlementRefunded)
}

// endSettlement lets the locked money go.
func (r *run) endSettlement(st State, k []byte, v SettlementView, to SettlementState) error {
	who := v.Terms.Payee
	if to == SettlementRefunded {
		who = v.Terms.Payer
	}
	because(st, "settlement "+to.String(), v.Terms.ID)
	if err := move(st, chain.AccountSettlement, who, v.Terms.Amount); err != nil {
		return err
	}
	st.Delete(settleDueKey(v.Terms.Expires, k))
	put(st, settleDueKey(max(v.Terms.Expires, r.time)+r.rules.retainMs(), k), true)
	v.State, v.DoneMs = to, r.time
	put(st, k, v)
	r.event("settlement."+to.String(), v.Terms.ID.String(), "%d nano to %s", v.Terms.Amount, who)
	return nil
}

// settleDue returns what has expired and forgets what is long over. Nothing of
// it can be used again: its deadline has passed.
func (r *run) settleDue(st State) error {
	var due [][]byte
	st.Iterate(todoKey(todoSettle), func(k, _ []byte) bool {
		if int64(binary.BigEndian.Uint64(k[2:])) > r.time || len(due) == maxSettleDue {
			return false
		}
		due = append(due, k)
		return true
	})
	for _, d := range due {
		k := d[2+8:]
		v, _ := get[SettlementView](st, k)
		if v.State != SettlementLocked {
			st.Delete(d)
			st.Delete(k)
			continue
		}
		if err := r.endSettlement(st, k, v, SettlementRefunded); err != nil {
			return err
		}
	}
	return nil
}

// settlements checks that what is locked is on its account.
func (f *faults) settlements(st State) {
	var locked chain.Nano
	each(st, key(tabSettlement), func(_ []byte, v SettlementView) bool {
		locked += v.locked()
		return true
	})
	if have := balance(st, chain.AccountSettlement); have != locked {
		f.add("settlements lock %d, their account has %d", locked, have)
	}
}
