package ledger

import "github.com/joulegate/joulegate/chain"

// replace gives a gateway's vote to the key that its device asks for. Without
// a vote it only notes the key.
func (r *run) replace(st State, by authority, v chain.Replace) error {
	if err := r.operators(by); err != nil {
		return err
	}
	m, ok := get[member](st, MemberKey(v.Device))
	switch {
	case !ok || !m.Active:
		return refuse(CodeNotMember, "%s is no active member", v.Device.Short())
	case v.New == chain.Key{}:
		return refuse(CodeMalformed, "no validator key")
	case !v.Signed(r.rules.ChainID):
		return refuse(CodeSignature, "the device did not ask for this key")
	case v.Old != m.Member.Validator:
		return refuse(CodeTaken, "the validator key of %s is %s by now", m.Member.Name, m.Member.Validator.Short())
	case st.Get(key(tabValidator, v.New[:])) != nil || v.New == v.Old:
		return refuse(CodeTaken, "validator key %s is in use", v.New.Short())
	}
	old := key(tabValidator, v.Old[:])
	if val, ok := get[validator](st, old); ok && val.Device == v.Device {
		st.Delete(old)
		put(st, key(tabValidator, v.New[:]), val)
	}
	m.Member.Validator = v.New
	put(st, MemberKey(v.Device), m)
	r.event("member.validator", m.Member.Name, "%s instead of %s", v.New, v.Old.Short())
	return nil
}
