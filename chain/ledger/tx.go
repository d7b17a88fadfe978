package ledger

import (
	"errors"
	"slices"

	"github.com/joulegate/joulegate/chain"
)

// transaction executes a person's statement.
func (r *run) transaction(st State, e chain.Envelope) error {
	t, err := chain.OpenTx(e)
	if err != nil {
		return refuse(formCode(err), "%v", err)
	}
	if t.Chain != r.rules.ChainID {
		return refuse(CodeChain, "made for %q, this is %q", t.Chain, r.rules.ChainID)
	}
	if next := NextNonce(st, t.Signer); t.Nonce != next {
		return refuse(CodeNonce, "nonce %d, the next of %s is %d", t.Nonce, t.Signer.Short(), next)
	}
	switch t.Kind {
	case chain.TxTransfer:
		err = decoded(t, func(b chain.Transfer) error { return r.transfer(st, t.Signer, b) })
	case chain.TxInvite:
		err = decoded(t, func(b chain.Invite) error { return r.invite(st, t.Signer, b) })
	case chain.TxJoin:
		err = decoded(t, func(b chain.Join) error { return r.join(st, t.Signer, b) })
	case chain.TxTariff:
		err = decoded(t, func(b chain.Tariff) error { return r.setTariffs(st, t.Signer, []chain.Tariff{b}) })
	case chain.TxDim:
		err = decoded(t, func(b chain.Dim) error { return r.dim(st, t.Signer, b) })
	default:
		var ok bool
		if ok, err = r.mandates(st, t); !ok {
			ok, err = r.between(st, t)
		}
		if !ok {
			err = r.tradeTx(st, t)
		}
	}
	if err == nil {
		put(st, key(tabNonce, t.Signer[:]), t.Nonce)
	}
	return err
}

// decoded hands the body to fn in its type.
func decoded[T any](t chain.Tx, fn func(T) error) error {
	var body T
	if err := chain.Unmarshal(t.Body, &body); err != nil {
		return refuse(CodeMalformed, "body of transaction kind %d: %v", t.Kind, err)
	}
	return fn(body)
}

func formCode(err error) Code {
	if errors.Is(err, chain.ErrSignature) {
		return CodeSignature
	}
	return CodeMalformed
}

func (r *run) operator(signer chain.Key) error {
	if !slices.Contains(r.rules.Operators, signer) {
		return refuse(CodeNotAllowed, "%s is no operator", signer.Short())
	}
	return nil
}

// bankRef checks amount and account and uses up the reference.
func (r *run) bankRef(st State, kind chain.TxKind, a chain.Account, amount chain.Nano, ref string) error {
	if err := checkAccount(a); err != nil {
		return err
	}
	if amount <= 0 {
		return refuse(CodeAmount, "amount %d", amount)
	}
	if len(ref) == 0 || len(ref) > maxText {
		return refuse(CodeMalformed, "bank reference of %d bytes, 1..%d", len(ref), maxText)
	}
	h := chain.Sum([]byte(ref))
	k := key(tabBankRef, h[:])
	if used, ok := get[bankRef](st, k); ok {
		return refuse(CodeBankRef, "bank reference used at height %d", used.Height)
	}
	put(st, k, bankRef{Kind: kind, Account: a, Amount: amount, Height: r.height})
	return nil
}

// checkAccount refuses bytes that are neither a person's nor a named account.
func checkAccount(a chain.Account) error {
	text, _ := a.MarshalText()
	var b chain.Account
	if err := b.UnmarshalText(text); err != nil || a != b {
		return refuse(CodeAccount, "%s is no account", text)
	}
	return nil
}

func (r *run) transfer(st State, signer chain.Key, t chain.Transfer) error {
	from := chain.AccountOf(signer)
	switch err := checkAccount(t.To); {
	case !r.rules.Transfers:
		return refuse(CodeRules, "transfers between people are off")
	case t.Amount <= 0:
		return refuse(CodeAmount, "amount %d", t.Amount)
	case err != nil:
		return err
	case t.To.IsSystem() || t.To == from:
		return refuse(CodeAccount, "transfer to %s", t.To)
	}
	because(st, "transfer between", from.String()+" and "+t.To.String())
	return move(st, from, t.To, t.Amount)
}

func (r *run) invite(st State, signer chain.Key, i chain.Invite) error {
	if err := r.operator(signer); err != nil {
		return err
	}
	if err := checkPrice("fee", i.Fee); err != nil {
		return err
	}
	if i.Key == (chain.Key{}) {
		return refuse(CodeMalformed, "the one-time key is zero")
	}
	if i.Expires <= r.time {
		return refuse(CodeInvitation, "expires at %d, before block time %d", i.Expires, r.time)
	}
	if err := checkParent(st, i.Node); err != nil {
		return err
	}
	k := key(tabInvitation, i.Key[:])
	if st.Get(k) != nil {
		return refuse(CodeTaken, "one-time key %s has an invitation", i.Key.Short())
	}
	var open int
	var dead [][]byte
	each(st, key(tabInvitation), func(k []byte, v InvitationView) bool {
		if v.Used {
			return true
		}
		if open++; v.Expires <= r.time {
			dead = append(dead, key(tabInvitation, k))
		}
		return true
	})
	if open-len(dead) >= maxInvitations {
		return refuse(CodeLimit, "%d invitations are open", open)
	}
	for _, k := range dead {
		st.Delete(k)
	}
	put(st, k, InvitationView{Invite: i})
	r.event("member.invited", i.Key.String(), "under %s, until %d", i.Node, i.Expires)
	return nil
}

func (r *run) join(st State, signer chain.Key, j chain.Join) error {
	k := key(tabInvitation, signer[:])
	inv, ok := get[InvitationView](st, k)
	switch {
	case !ok:
		return refuse(CodeInvitation, "no invitation for %s", signer.Short())
	case inv.Used:
		return refuse(CodeInvitation, "the invitation was used by %s", inv.Device.Short())
	case inv.Expires <= r.time:
		return refuse(CodeInvitation, "the invitation expired at %d", inv.Expires)
	case !chain.Verify(j.Member.Device, chain.DomainMember, chain.Marshal(j.Member), j.Sig):
		return refuse(CodeSignature, "the device did not sign this membership")
	}
	if err := r.admit(st, j.Member, inv.Node, inv.Fee, inv.Validator); err != nil {
		return err
	}
	inv.Used, inv.Device = true, j.Member.Device
	put(st, k, inv)
	return nil
}

// admit adds a member under parent. It gets voting power if it may vote, has
// a consensus key, and there is room.
func (r *run) admit(st State, m chain.Member, parent string, fee chain.NanoPerWh, vote bool) error {
	switch {
	case m.Device == chain.Key{} || m.Owner == chain.Key{}:
		return refuse(CodeMalformed, "member without a device or owner key")
	case !goodName(m.Name):
		return refuse(CodeMalformed, "member name %q: 1..%d of letters, digits, '.', '_', '-'", m.Name, chain.MaxName)
	case m.MaxPower < 1 || m.MaxPower > maxMemberPower:
		return refuse(CodeRange, "max_power_w %d, 1..%d", m.MaxPower, maxMemberPower)
	case len(m.Addrs) > maxAddrs:
		return refuse(CodeMalformed, "%d addresses, at most %d", len(m.Addrs), maxAddrs)
	case st.Get(MemberKey(m.Device)) != nil:
		return refuse(CodeTaken, "device %s is or was a member", m.Device.Short())
	case st.Get(nodeKey(m.Name)) != nil:
		return refuse(CodeTaken, "node %q exists", m.Name)
	}
	for _, a := range m.Addrs {
		if len(a) > maxAddrBytes {
			return refuse(CodeMalformed, "address of %d bytes, at most %d", len(a), maxAddrBytes)
		}
	}
	if err := checkPrice("fee", fee); err != nil {
		return err
	}
	if err := checkParent(st, parent); err != nil {
		return err
	}
	if err := checkFutureParent(st, m.Name, parent); err != nil {
		return err
	}
	all := 0 // those who have left too
	st.Iterate(key(tabMember), func(_, _ []byte) bool {
		all++
		return true
	})
	if all >= MaxMembers {
		active := 0
		each(st, key(tabMember), func(_ []byte, m member) bool {
			if m.Active {
				active++
			}
			return true
		})
		if active >= MaxMembers {
			return refuse(CodeLimit, "%d members", active)
		}
	}
	if m.Validator != (chain.Key{}) {
		if st.Get(key(tabValidator, m.Validator[:])) != nil {
			return refuse(CodeTaken, "validator key %s is in use", m.Validator.Short())
		}
		if vote && len(validators(st)) < MaxValidators {
			put(st, key(tabValidator, m.Validator[:]), validator{Device: m.Device, Power: votingPower})
		}
	}
	put(st, MemberKey(m.Device), member{Member: m, Active: true, JoinedMs: r.time})
	put(st, nodeKey(m.Name), node{Parent: parent, Fee: fee, Device: m.Device})
	r.event("member.joined", m.Name, "device %s under %s", m.Device, parent)
	return nil
}

// checkParent reports whether a house may hang under the node.
func checkParent(st State, id string) error {
	depth := 1 // of the house
	for at := id; ; depth++ {
		n, ok := get[node](st, nodeKey(at))
		switch {
		case !ok:
			return refuse(CodeNode, "no node %q in the fee tree", at)
		case n.Device != (chain.Key{}):
			return refuse(CodeNode, "node %q is a house", at)
		case depth > maxDepth:
			return refuse(CodeNode, "a house under %q is more than %d edges from the root", id, maxDepth)
		case n.Parent == "":
			return nil
		}
		at = n.Parent
	}
}

func (r *run) revoke(st State, by authority, v chain.Revoke) error {
	if err := r.operators(by); err != nil {
		return err
	}
	m, ok := get[member](st, MemberKey(v.Device))
	switch {
	case !ok || !m.Active:
		return refuse(CodeNotMember, "%s is no active member", v.Device.Short())
	case len(v.Reason) > maxText:
		return refuse(CodeMalformed, "reason of %d bytes, at most %d", len(v.Reason), maxText)
	}
	vk := key(tabValidator, m.Member.Validator[:])
	if val, ok := get[validator](st, vk); ok && val.Device == v.Device {
		if len(validators(st)) == 1 {
			return refuse(CodeLastValidator, "%s is the last validator", m.Member.Name)
		}
		st.Delete(vk)
	}
	m.Active = false
	put(st, MemberKey(v.Device), m)
	if g, ok := get[connection](st, key(tabGrid)); ok && g.Device == v.Device {
		st.Delete(key(tabGrid)) // the sites' sums stand in until another meter reports
	}
	for _, id := range openSessions(st) {
		s := session(st, id)
		if s.Gateway == v.Device && s.State != SessionMetered {
			r.endByRule(st, &s, chain.StopOperator)
		}
	}
	r.event("member.revoked", m.Member.Name, "%s", v.Reason)
	return nil
}

// prices returns the supplier's tariff in a slot.
func (r *run) prices(st State, s chain.Slot) (retail, feedIn chain.NanoPerWh) {
	if r.tariffs == nil {
		r.tariffs = append(make([]chain.Tariff, 0, 1), Tariffs(st)...)
	}
	return r.rules.at(r.tariffs, s)
}

// at returns the tariff of the range that holds s, or the genesis tariff.
func (g *Rules) at(ranges []chain.Tariff, s chain.Slot) (retail, feedIn chain.NanoPerWh) {
	i, found := slices.BinarySearchFunc(ranges, s, func(t chain.Tariff, s chain.Slot) int {
		switch {
		case t.To < s:
			return -1
		case t.From > s:
			return 1
		}
		return 0
	})
	if found {
		return ranges[i].Retail, ranges[i].FeedIn
	}
	return g.Retail, g.FeedIn
}

func checkPrice(what string, p chain.NanoPerWh) error {
	if p < 0 || p > MaxPrice {
		return refuse(CodeRange, "%s %d nano/Wh, 0..%d", what, p, MaxPrice)
	}
	return nil
}

func goodName(s string) bool {
	if len(s) == 0 || len(s) > chain.MaxName {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
