package microgrid

import (
	"fmt"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// invite lets a gateway join, in place of another or beside the others.
func (w *Walk) invite(after int) item {
	h := pick(w, w.Homes)
	i := invited{
		N: w.Founded, Once: newPerson(fmt.Sprint("once ", w.Founded)), Node: h.Feeder, Fee: chain.NanoPerWh(w.rnd.IntN(10_000)),
		Votes: w.chance(0.5), Expires: w.Now + 3*3_600_000, After: after, Late: w.chance(0.15),
	}
	w.Founded++
	return w.tx(w.Operator, chain.TxInvite, chain.Invite{Key: i.Once.key, Node: i.Node, Fee: i.Fee, Validator: i.Votes, Expires: i.Expires}, func() {
		w.Invited = append(w.Invited, i)
	})
}

// replaced picks a house whose gateway has left; -1: there is none.
func (w *Walk) replaced() int {
	for range 20 {
		if n := w.rnd.IntN(len(w.Homes)); w.Homes[n].Gone {
			return n
		}
	}
	return -1
}

// joins redeems invitations, some of them too late and some twice.
func (w *Walk) joins() (items []item) {
	kept := w.Invited[:0]
	for _, i := range w.Invited {
		switch {
		case w.Now > i.Expires:
			w.fault("invitation expired")
		case i.Late || w.chance(0.7):
			kept = append(kept, i)
			continue
		}
		h := newHome(i.N)
		h.Feeder, h.Dirty = i.Node, 9
		if i.After >= 0 {
			old := w.Homes[i.After]
			h.Imp, h.Exp, h.Gen, h.In, h.Out = old.Imp+old.OffImp, old.Exp+old.OffExp, old.Gen, old.In, old.Out
		}
		join := func() item {
			return w.tx(i.Once, chain.TxJoin, h.join(i.Votes), func() {
				w.fault("gateway joined")
				if i.After >= 0 {
					w.fault("gateway replaced")
				}
				w.Homes = append(w.Homes, h)
				w.Books.Edges[h.name] = edge{i.Node, i.Fee}
				if i.Votes && len(w.Books.Seats) < ledger.MaxValidators {
					w.fault("validator joined")
					w.Books.Seats[h.validator()] = true
				}
			})
		}
		items = append(items, join())
		if w.chance(0.2) {
			w.fault("joined twice")
			items = append(items, join())
		}
	}
	w.Invited = kept
	return items
}

// revoke ends a membership.
func (w *Walk) revoke() []item {
	n := len(w.Homes) - 1 - w.rnd.IntN(max(1, len(w.Homes)/4))
	if w.chance(0.3) && len(w.Books.Seats) > 3 {
		n = w.rnd.IntN(min(len(w.Homes), ledger.MaxValidators)) // one that may vote
	}
	h := w.Homes[n]
	if h.Gone || w.active() < w.cfg.Homes*2/3 || w.used[w.Operator.key] {
		return nil
	}
	w.fault("member revoked")
	return []item{w.tx(w.Operator, chain.TxRevoke, chain.Revoke{Device: h.key, Reason: "soak"}, func() {
		h.Gone, h.Queue = true, nil
		if w.Books.Seats[h.validator()] {
			w.fault("validator revoked")
			delete(w.Books.Seats, h.validator())
		}
		for _, c := range w.Cars {
			if c.at != nil && c.at.home == h {
				c.at.Clean = false
				c.at = nil
			}
		}
		for id, s := range w.Unheard { // whoever let it charge bears it
			if s.home == h {
				delete(w.Unheard, id)
			}
		}
		w.doubt(h)
	})}
}

func (w *Walk) active() (n int) {
	for _, h := range w.Homes {
		if !h.Gone {
			n++
		}
	}
	return n
}

// handOver gives the operator's office to a new key, from a block on.
func (w *Walk) handOver() []item {
	if w.used[w.Operator.key] || w.Heir != nil {
		return nil
	}
	next := newPerson(fmt.Sprint("operator ", len(w.Retired)+1))
	at := w.Height + 3 + int64(w.rnd.IntN(20))
	return []item{w.tx(w.Operator, chain.TxRules, chain.RulesChange{Height: at, Operators: []chain.Key{next.key}}, func() {
		w.Heir, w.HeirAt = next, at
	})}
}

// succeed puts the new operator in office when it is time.
func (w *Walk) succeed() {
	if w.Heir != nil && w.Height+1 >= w.HeirAt {
		w.fault("operator's key changed")
		w.Retired = append(w.Retired, w.Operator)
		w.Operator, w.Heir = w.Heir, nil
	}
}

// votes follows what the engine is told, and compares it with who should vote.
func (b *books) votes(updates []ledger.ValidatorUpdate) (f findings) {
	for _, u := range updates {
		if b.Voting[u.Key] == (u.Power > 0) {
			f.add("validator %s has power %d and is told so again", u.Key, u.Power)
		}
		if u.Power > 0 {
			b.Voting[u.Key] = true
		} else {
			delete(b.Voting, u.Key)
		}
	}
	if n := len(b.Voting); n < 1 || n > ledger.MaxValidators {
		f.add("%d validators, 1..%d", n, ledger.MaxValidators)
	}
	for k := range b.Voting {
		if !b.Seats[k] {
			f.add("validator %s votes and should not", k)
		}
	}
	if len(b.Seats) != len(b.Voting) {
		f.add("%d should vote, %d do", len(b.Seats), len(b.Voting))
	}
	return f
}
