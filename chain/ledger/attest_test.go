package ledger

import (
	"fmt"
	"testing"

	"github.com/joulegate/joulegate/chain"
)

func TestAttestationsAreBoundedAndExpiredOnesMakeRoom(t *testing.T) {
	vera := newPerson("vera")
	w := newWorldOf(t, func(g *chain.Genesis) { g.Money.Auditors = []chain.Key{vera.key} })
	say := func(n int, expires int64) []byte {
		return w.bad(vera, chain.TxAttest, chain.Attestation{Scope: fmt.Sprint("scope ", n), From: 1, To: 2, Expires: expires})
	}
	for n := range maxAttestations {
		w.took(say(n, w.now+int64(n+1)*dayMs))
	}
	w.refused(CodeLimit, say(maxAttestations, w.now+dayMs))
	w.took(say(7, w.now+9*dayMs)) // what is there can be said again
	equal(t, "in force", len(StatusOf(w.st).Attestations), maxAttestations)

	w.now += 3 * dayMs
	w.ok(w.mint(chain.AccountGrid, 1)) // it is block time that counts
	w.took(say(maxAttestations, w.now+dayMs))
	all := Attestations(w.st)
	equal(t, "kept", len(all), maxAttestations-2)
	equal(t, "newest", all[0].Scope, fmt.Sprint("scope ", maxAttestations))
	equal(t, "its auditor", all[0].Auditor, vera.key)
}

func TestAttestationCountsOnlyWhileItsAuditorIsOne(t *testing.T) {
	vera := newPerson("vera")
	w := newWorldOf(t, func(g *chain.Genesis) { g.Money.Auditors = []chain.Key{vera.key} })
	w.took(w.tx(vera, chain.TxAttest, chain.Attestation{Scope: "metering", From: 1, To: 2, Expires: w.now + dayMs}))
	equal(t, "in force", len(StatusOf(w.st).Attestations), 1)
	rules := RulesOf(w.st)
	rules.Auditors = nil
	put(w.st, key(tabRules), rules)
	equal(t, "in force after the auditor was replaced", len(StatusOf(w.st).Attestations), 0)
	equal(t, "still told", len(Attestations(w.st)), 1)
}
