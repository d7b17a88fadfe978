package ledger

import (
	"slices"

	"github.com/joulegate/joulegate/chain"
)

// Who may state what. A statement that moves other people's money or changes
// what they agreed to needs as many operators as the rules' threshold says:
//
//	mint  burn  payout paid  refund  revoke  replace  rules  meter approval   threshold of operators
//	whom to believe about another microgrid                          threshold of operators
//	mint beyond the day's cap                                        and an auditor
//	resolve a dispute                                                an auditor; see [run.resolve]
//	release a meter that jumped                                      threshold, or an auditor; he alone if the excess is billed
//	invite  tariff  answer  invoice  settle with another microgrid   any operator
//	attest                                                           an auditor, for himself
//	transfer  payout  cancel  dispute  profile                       the holder
//
// With a threshold of one an operator's transaction is enough. Otherwise the
// statement is a [chain.Proposal] that those who agree have signed.

// maxProposals bounds the joint statements that are remembered until they
// expire. Beyond it new ones are refused until old ones do.
const maxProposals = 4096

// authority is who stands behind a statement: the signer of a transaction,
// or everybody who approved a joint one. No key is twice in it.
type authority []chain.Key

func (by authority) has(k chain.Key) bool { return slices.Contains(by, k) }

func (by authority) count(keys []chain.Key) (n int64) {
	for _, k := range by {
		if slices.Contains(keys, k) {
			n++
		}
	}
	return n
}

// operators demands the rules' number of operators.
func (r *run) operators(by authority) error {
	switch n := by.count(r.rules.Operators); {
	case n == 0:
		return refuse(CodeNotAllowed, "%s is no operator", by[0].Short())
	case n < r.rules.Threshold:
		return refuse(CodeApproval, "%d of %d operators have approved it", n, r.rules.Threshold)
	}
	return nil
}

func (r *run) audited(by authority) bool { return by.count(r.rules.Auditors) > 0 }

// people executes the kinds of chain/money.go, alone or joint.
func (r *run) people(st State, t chain.Tx) error {
	if t.Kind == chain.TxJoint {
		return decoded(t, func(b chain.Joint) error { return r.joint(st, t.Signer, b) })
	}
	by := authority{t.Signer}
	switch t.Kind {
	case chain.TxPayout:
		return decoded(t, func(b chain.Payout) error { return r.payout(st, t.Signer, b) })
	case chain.TxPayoutCancel:
		return decoded(t, func(b chain.PayoutCancel) error { return r.payoutCancel(st, t.Signer, b) })
	case chain.TxDispute:
		return decoded(t, func(b chain.Dispute) error { return r.dispute(st, t.Signer, b) })
	case chain.TxAnswer:
		return decoded(t, func(b chain.Answer) error { return r.answer(st, t.Signer, b) })
	case chain.TxInvoice:
		return decoded(t, func(b chain.IssueInvoice) error { return r.issueInvoice(st, t.Signer, b) })
	case chain.TxPeriods:
		return decoded(t, func(b chain.BillingPeriods) error { return r.setPeriods(st, t.Signer, b) })
	case chain.TxAttest:
		return decoded(t, func(b chain.Attestation) error { return r.attest(st, t.Signer, b) })
	case chain.TxProfile:
		return decoded(t, func(b chain.Profile) error { return r.profile(st, t.Signer, b) })
	}
	return r.agreed(st, by, t)
}

// agreed executes what several people may have to agree to.
func (r *run) agreed(st State, by authority, t chain.Tx) error {
	switch t.Kind {
	case chain.TxMint:
		return decoded(t, func(b chain.Mint) error { return r.mint(st, by, b) })
	case chain.TxBurn:
		return decoded(t, func(b chain.Burn) error { return r.burn(st, by, b) })
	case chain.TxRevoke:
		return decoded(t, func(b chain.Revoke) error { return r.revoke(st, by, b) })
	case chain.TxReplace:
		return decoded(t, func(b chain.Replace) error { return r.replace(st, by, b) })
	case chain.TxRules:
		return decoded(t, func(b chain.RulesChange) error { return r.proposeRules(st, by, b) })
	case chain.TxPayoutPaid:
		return decoded(t, func(b chain.PayoutPaid) error { return r.payoutPaid(st, by, b) })
	case chain.TxRefund:
		return decoded(t, func(b chain.Refund) error { return r.refund(st, by, b) })
	case chain.TxResolve:
		return decoded(t, func(b chain.Resolve) error { return r.resolve(st, by, b) })
	case chain.TxRemote:
		return decoded(t, func(b chain.Remote) error { return r.remote(st, by, b) })
	case chain.TxMeterApproval:
		return decoded(t, func(b chain.MeterApproval) error { return r.meterApproval(st, by, b) })
	case chain.TxMeterRelease:
		return decoded(t, func(b chain.MeterRelease) error { return r.meterRelease(st, by, b) })
	}
	return refuse(CodeKind, "transaction kind %d", t.Kind)
}

// joint executes a proposal for everybody who approved it, once.
func (r *run) joint(st State, signer chain.Key, j chain.Joint) error {
	p, err := j.Open()
	switch {
	case err != nil:
		return refuse(formCode(err), "%v", err)
	case p.Chain != r.rules.ChainID:
		return refuse(CodeChain, "proposal made for %q, this is %q", p.Chain, r.rules.ChainID)
	case p.Expires < r.time || p.Expires > r.time+chain.MaxProposalMs:
		return refuse(CodeExpired, "the proposal expires at %d; block time is %d, at most %d ms before it", p.Expires, r.time, int64(chain.MaxProposalMs))
	}
	by := make(authority, 0, len(j.Approvals))
	for _, a := range j.Approvals {
		by = append(by, a.Key)
	}
	if !by.has(signer) {
		return refuse(CodeNotAllowed, "%s submits what it has not approved", signer.Short())
	}
	k := key(tabProposal, be64(uint64(p.Expires)), p.ID[:])
	if st.Get(k) != nil {
		return refuse(CodeDuplicate, "proposal %s has been executed", p.ID)
	}
	var dead [][]byte
	open := 0
	st.Iterate([]byte{tabProposal}, func(k, _ []byte) bool {
		if open++; string(k[1:9]) < string(be64(uint64(r.time))) {
			dead = append(dead, k)
		}
		return true
	})
	if open-len(dead) >= maxProposals {
		return refuse(CodeLimit, "%d proposals have not expired yet", open)
	}
	for _, d := range dead {
		st.Delete(d)
	}
	put(st, k, true)
	return r.agreed(st, by, chain.Tx{Kind: p.Kind, Body: p.Body})
}

func (r *run) mint(st State, by authority, m chain.Mint) error {
	if err := r.operators(by); err != nil {
		return err
	}
	// Other system accounts only hold what the ledger itself has moved there.
	if m.To.IsSystem() && m.To != chain.AccountGrid && m.To != chain.AccountPromotion && m.To != chain.AccountRounding {
		return refuse(CodeAccount, "money cannot be minted to %s", m.To)
	}
	if err := r.bankRef(st, chain.TxMint, m.To, m.Amount, m.BankRef); err != nil {
		return err
	}
	s, _ := get[supply](st, key(tabMoney))
	var err error
	if s.Minted, err = chain.AddNano(s.Minted, m.Amount); err != nil {
		return refuse(CodeOverflow, "%d minted, %d more", s.Minted, m.Amount)
	}
	if day := r.time / dayMs; day != s.Day {
		s.Day, s.Today = day, 0
	}
	s.Today += m.Amount // <= Minted
	if limit := r.rules.DailyMintCap; limit > 0 && s.Today > limit && !r.audited(by) {
		return refuse(CodeApproval, "with it %d nano are minted today, beyond %d an auditor must approve", s.Today, limit)
	}
	put(st, key(tabMoney), s)
	because(st, "paid in", m.BankRef)
	r.event("money.minted", m.To.String(), "%d nano", m.Amount)
	return add(st, m.To, m.Amount)
}

func (r *run) burn(st State, by authority, b chain.Burn) error {
	if err := r.operators(by); err != nil {
		return err
	}
	// The reserve backs credits; what is disputed, locked for a payout or a
	// settlement, or put up for firm orders is not the operator's.
	if b.From == chain.AccountReserve || b.From == chain.AccountDispute || b.From == chain.AccountPayout || b.From == chain.AccountCollateral || b.From == chain.AccountSettlement {
		return refuse(CodeAccount, "money cannot be burned from %s", b.From)
	}
	if err := r.bankRef(st, chain.TxBurn, b.From, b.Amount, b.BankRef); err != nil {
		return err
	}
	because(st, "paid out", b.BankRef)
	r.event("money.burned", b.From.String(), "%d nano", b.Amount)
	return destroy(st, b.From, b.Amount)
}

// destroy takes money out of the ledger.
func destroy(st State, from chain.Account, amount chain.Nano) error {
	s, _ := get[supply](st, key(tabMoney))
	s.Burned += amount // <= Minted, because the account covers it
	put(st, key(tabMoney), s)
	return add(st, from, -amount)
}
