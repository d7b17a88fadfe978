package ledger

import (
	"encoding/binary"

	"github.com/joulegate/joulegate/chain"
)

func balance(st State, a chain.Account) chain.Nano {
	n, _ := get[chain.Nano](st, AccountKey(a))
	return n
}

// add changes a balance by delta and refuses to make it negative.
func add(st State, a chain.Account, delta chain.Nano) error {
	n, known := get[chain.Nano](st, AccountKey(a))
	sum, err := chain.AddNano(n, delta)
	switch {
	case err != nil:
		return refuse(CodeOverflow, "account %s: %d and %d", a, n, delta)
	case sum < 0:
		return refuse(CodeFunds, "account %s has %d, needs %d", a, n, -delta)
	case delta != 0 || !known:
		put(st, AccountKey(a), sum)
		note(st, a, delta, false)
	}
	return nil
}

// move transfers amount >= 0 between two accounts.
func move(st State, from, to chain.Account, amount chain.Nano) error {
	if amount == 0 {
		return nil
	}
	if err := add(st, from, -amount); err != nil {
		return err
	}
	return add(st, to, amount)
}

// credits returns an account's discount credit.
func credits(st State, a chain.Account) chain.Nano {
	var sum chain.Nano
	each(st, key(tabLot, a[:]), func(_ []byte, l lot) bool {
		sum += l.Amount
		return true
	})
	return sum
}

// earn grants amount of credit, funded by the promotion pool.
func (r *run) earn(st State, a chain.Account, amount chain.Nano, session chain.ID) error {
	if err := move(st, chain.AccountPromotion, chain.AccountReserve, amount); err != nil {
		return err
	}
	l := lot{Amount: amount, Session: session}
	if r.rules.ExpirySlots > 0 {
		l.Expires = r.clock.Next + chain.Slot(r.rules.ExpirySlots)
	}
	r.clock.Lots++
	put(st, lotKey(a, r.clock.Lots), l)
	note(st, a, amount, true)
	if l.Expires > 0 {
		put(st, expiryKey(l.Expires, a, r.clock.Lots), true)
	}
	return nil
}

// redeem spends amount of an account's credit, oldest lots first, and pays it
// out of the reserve to the account. It returns what it took of which lot.
func (r *run) redeem(st State, a chain.Account, amount chain.Nano) ([]spentLot, error) {
	type numbered struct {
		key []byte
		lot
	}
	var lots []numbered
	left := amount
	each(st, key(tabLot, a[:]), func(k []byte, l lot) bool {
		lots = append(lots, numbered{append([]byte{tabLot}, k...), l})
		left -= min(left, l.Amount)
		return left > 0
	})
	left = amount
	var spent []spentLot
	for _, l := range lots {
		n := min(left, l.Amount)
		left -= n
		if n > 0 {
			spent = append(spent, spentLot{binary.BigEndian.Uint64(l.key[1+len(a):]), n, l.Expires, l.Session})
		}
		takeLot(st, l.key, l.lot, n)
	}
	return spent, move(st, chain.AccountReserve, a, amount)
}

// expireLots returns credit whose last slot has passed to the promotion pool.
func (r *run) expireLots(st State) error {
	var due [][]byte
	st.Iterate([]byte{tabExpiry}, func(k, _ []byte) bool {
		if len(due) == maxExpiriesPerBlock || string(k[1:9]) >= string(slotBytes(r.clock.Next)) {
			return false
		}
		due = append(due, k)
		return true
	})
	for _, k := range due {
		lk := key(tabLot, k[9:])
		l, _ := get[lot](st, lk)
		st.Delete(k)
		st.Delete(lk)
		because(st, "credit expired", l.Session)
		note(st, chain.Account(k[9:29]), -l.Amount, true)
		if err := move(st, chain.AccountReserve, chain.AccountPromotion, l.Amount); err != nil {
			return err
		}
		r.event("credit.expired", chain.Account(k[9:29]).String(), "%d nano earned by session %s", l.Amount, l.Session)
	}
	return nil
}
