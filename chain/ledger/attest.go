package ledger

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/joulegate/joulegate/chain"
)

// Attestations. The ledger proves that it follows its rules, not that a meter
// measures what flows. Who has looked at that says so here, where every member
// and every receipt can see it:
//
//	auditor ──scope, period, expiry──► ledger ──► status, receipts, panel
//
// It counts while block time has not reached its expiry, its auditor is one of
// the rules' auditors, and he owns no gateway here: an owner is no third party.
const (
	tabAttestation  = '3' // auditor, SHA-256 of scope and period -> AttestationView
	maxAttestations = 64  // beyond it new ones are refused until old ones have expired
	maxAttestDays   = 2 * 366
)

// AttestationView is what an auditor has said.
type AttestationView struct {
	Auditor chain.Key `cbor:"-" json:"auditor"`

	chain.Attestation
	AtMs    int64 `cbor:"20,keyasint" json:"at_ms"` // block time at which it was said
	InForce bool  `cbor:"-" json:"in_force"`
}

func attestationKey(auditor chain.Key, a chain.Attestation) []byte {
	what := chain.Sum(chain.Marshal(chain.Attestation{Scope: a.Scope, From: a.From, To: a.To}))
	return key(tabAttestation, auditor[:], what[:])
}

// Attestations returns what auditors have said and not withdrawn, expired ones
// included as long as they are kept, newest first.
func Attestations(st State) []AttestationView {
	c, _ := get[clock](st, key(tabClock))
	rules := RulesOf(st)
	all := []AttestationView{}
	each(st, key(tabAttestation), func(k []byte, v AttestationView) bool {
		v.Auditor = chain.Key(k[:32])
		v.InForce = v.Expires > c.TimeMs && slices.Contains(rules.Auditors, v.Auditor) && !owner(st, v.Auditor)
		all = append(all, v)
		return true
	})
	slices.SortStableFunc(all, func(a, b AttestationView) int { return int(min(max(b.AtMs-a.AtMs, -1), 1)) })
	return all
}

// InForce returns those of all that count.
func InForce(all []AttestationView) []AttestationView {
	return slices.DeleteFunc(all, func(v AttestationView) bool { return !v.InForce })
}

// owner reports whether somebody owns a gateway of the microgrid.
func owner(st State, k chain.Key) (yes bool) {
	each(st, key(tabMember), func(_ []byte, m member) bool {
		yes = m.Active && m.Member.Owner == k
		return !yes
	})
	return yes
}

// attest takes down what an auditor says.
func (r *run) attest(st State, signer chain.Key, a chain.Attestation) error {
	k := attestationKey(signer, a)
	known := st.Get(k) != nil
	switch {
	case !slices.Contains(r.rules.Auditors, signer):
		return refuse(CodeNotAllowed, "%s is no auditor", signer.Short())
	case a.Expires == 0 && !known:
		return refuse(CodeUnknown, "there is no such attestation to withdraw")
	case a.Expires == 0:
		st.Delete(k)
		r.event("audit.withdrawn", signer.String(), "%q, %d to %d", a.Scope, a.From, a.To)
		return nil
	case owner(st, signer):
		return refuse(CodeNotAllowed, "%s owns a gateway here: an owner is no third party", signer.Short())
	case !printable(a.Scope):
		return refuse(CodeMalformed, "scope %q: 1..%d bytes of printable text", a.Scope, maxText)
	case a.From < 0 || a.To <= a.From || a.To > r.time:
		return refuse(CodeRange, "period %d to %d, block time is %d", a.From, a.To, r.time)
	case a.Expires <= r.time || a.Expires > r.time+maxAttestDays*dayMs:
		return refuse(CodeRange, "expires at %d; block time is %d, at most %d days before it", a.Expires, r.time, maxAttestDays)
	}
	var dead [][]byte
	kept := 0
	each(st, key(tabAttestation), func(k []byte, v AttestationView) bool {
		if kept++; v.Expires <= r.time {
			dead = append(dead, key(tabAttestation, k))
		}
		return true
	})
	if !known && kept >= maxAttestations {
		if len(dead) == 0 {
			return refuse(CodeLimit, "%d attestations are in force", kept)
		}
		for _, d := range dead {
			st.Delete(d)
		}
	}
	put(st, k, AttestationView{Attestation: a, AtMs: r.time})
	r.event("audit.attested", signer.String(), "%q, %d to %d, until %d", a.Scope, a.From, a.To, a.Expires)
	return nil
}

// printable reports whether a text is 1..maxText bytes that a receipt can show.
func printable(s string) bool {
	odd := func(c rune) bool { return !unicode.IsPrint(c) }
	return len(s) > 0 && len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, odd)
}
