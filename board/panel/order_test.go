package panel

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// busy is a ledger before which another order of the same signer waits.
type busy struct {
	Backend
	final time.Time // of the other order's block
	nonce uint64    // before it
	got   []uint64
}

func (b *busy) Status(context.Context) (Status, error) { return Status{Chain: "street"}, nil }

func (b *busy) next() uint64 {
	if b.final.IsZero() || time.Now().Before(b.final) {
		return b.nonce
	}
	return b.nonce + 1
}

func (b *busy) Nonce(context.Context, chain.Key) (uint64, error) { return b.next(), nil }

func (b *busy) Submit(_ context.Context, raw []byte) (TxResult, error) {
	e, err := chain.OpenEnvelope(raw)
	if err != nil {
		return TxResult{}, err
	}
	tx, err := chain.OpenTx(e)
	if err != nil {
		return TxResult{}, err
	}
	b.got = append(b.got, tx.Nonce)
	if tx.Nonce != b.nonce+1 {
		return TxResult{Code: uint32(ledger.CodeNonce), Info: "nonce"}, nil
	}
	return TxResult{Height: 9}, nil
}

// TestOrderWaitsItsTurn: an order that comes second is made again with the
// next nonce, and one whose turn never comes is refused and not made twice.
func TestOrderWaitsItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &busy{nonce: 4, final: time.Now().Add(time.Second)}
		r, err := Order(t.Context(), b, key("operator"), chain.TxMint, chain.Mint{To: chain.AccountGrid, Amount: 1, BankRef: "A"})
		if err != nil || r.Code != 0 || r.Height != 9 || b.got[len(b.got)-1] != 5 {
			t.Errorf("%+v %v after nonces %v", r, err, b.got)
		}

		b, start := &busy{nonce: 4}, time.Now()
		r, err = Order(t.Context(), b, key("operator"), chain.TxMint, chain.Mint{To: chain.AccountGrid, Amount: 1, BankRef: "A"})
		if err != nil || r.Code != uint32(ledger.CodeNonce) || time.Since(start) > turnLimit+time.Second {
			t.Errorf("%+v %v after %s", r, err, time.Since(start))
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Order(ctx, b, key("operator"), chain.TxMint, chain.Mint{}); err == nil {
			t.Error("no error from somebody who does not wait")
		}
	})
}
