package panel

import (
	"context"
	"crypto/ed25519"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// How long an order waits for others of the same signer, and how often it
// looks for its turn.
const (
	turnLimit = 30 * time.Second
	turnAgain = 100 * time.Millisecond
)

// Order signs a transaction with the signer's next nonce, gives it to the
// ledger and waits until a block holds it. Where another transaction of the
// same signer came before it (a second terminal, or one of before a power cut
// that becomes final now) the ledger refuses the nonce, which changes nothing:
// it is signed again with the next one, for half a minute at most. Any other
// refusal is returned in the result's code.
func Order(ctx context.Context, b Backend, signer ed25519.PrivateKey, kind chain.TxKind, body any) (TxResult, error) {
	s, err := b.Status(ctx)
	if err != nil {
		return TxResult{}, err
	}
	var who chain.Key
	copy(who[:], signer.Public().(ed25519.PublicKey))
	for late := time.After(turnLimit); ; {
		nonce, err := b.Nonce(ctx, who)
		if err != nil {
			return TxResult{}, err
		}
		r, err := b.Submit(ctx, chain.SignTx(s.Chain, nonce, kind, body, signer))
		if err != nil || r.Code != uint32(ledger.CodeNonce) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-late:
			return r, nil
		case <-time.After(turnAgain):
		}
	}
}
