package market

import (
	"math/bits"

	"github.com/joulegate/joulegate/chain"
)

// sum is a signed 128-bit total of products. Prices below 2^62 and energy
// below 2^61 cannot overflow it.
type sum struct{ hi, lo uint64 }

// add adds a times b.
func (s *sum) add(a, b int64) {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	// Mul64 took the two's complements as unsigned: take back what that added.
	if a < 0 {
		hi -= uint64(b)
	}
	if b < 0 {
		hi -= uint64(a)
	}
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, lo, 0)
	s.hi, _ = bits.Add64(s.hi, hi, carry)
}

// sub subtracts t.
func (s *sum) sub(t sum) {
	var borrow uint64
	s.lo, borrow = bits.Sub64(s.lo, t.lo, 0)
	s.hi, _ = bits.Sub64(s.hi, t.hi, borrow)
}

// nano returns the total as money, or chain.ErrOverflow.
func (s sum) nano() (chain.Nano, error) {
	if s.hi != uint64(int64(s.lo)>>63) {
		return 0, chain.ErrOverflow
	}
	return chain.Nano(s.lo), nil
}
