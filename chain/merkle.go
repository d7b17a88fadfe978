package chain

import (
	"crypto/sha256"
	"errors"
	"math/bits"
)

// MerkleRoot returns the RFC 6962 section 2.1 tree hash of leaves. The root
// of no leaves is the hash of the empty string.
func MerkleRoot(leaves [][]byte) Hash {
	switch len(leaves) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leafHash(leaves[0])
	}
	k := split(len(leaves))
	return nodeHash(MerkleRoot(leaves[:k]), MerkleRoot(leaves[k:]))
}

// MerkleProof returns the audit path of leaf i (RFC 6962 section 2.1.1).
func MerkleProof(leaves [][]byte, i int) []Hash {
	if len(leaves) <= 1 {
		return nil
	}
	k := split(len(leaves))
	if i < k {
		return append(MerkleProof(leaves[:k], i), MerkleRoot(leaves[k:]))
	}
	return append(MerkleProof(leaves[k:], i-k), MerkleRoot(leaves[:k]))
}

// VerifyMerkle checks that leaf is number i of n under root
// (RFC 9162 section 2.1.3.2).
func VerifyMerkle(root Hash, leaf []byte, i, n int, proof []Hash) error {
	if i < 0 || i >= n {
		return errors.New("merkle: index outside the tree")
	}
	fn, sn, h := uint(i), uint(n-1), leafHash(leaf)
	for _, p := range proof {
		if sn == 0 {
			return errors.New("merkle: proof too long")
		}
		if fn&1 == 1 || fn == sn {
			h = nodeHash(p, h)
			if fn&1 == 0 {
				for fn&1 == 0 && fn != 0 {
					fn >>= 1
					sn >>= 1
				}
			}
		} else {
			h = nodeHash(h, p)
		}
		fn >>= 1
		sn >>= 1
	}
	if sn != 0 || h != root {
		return errors.New("merkle: proof does not lead to the root")
	}
	return nil
}

func split(n int) int { return 1 << (bits.Len(uint(n-1)) - 1) }

func leafHash(b []byte) Hash {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(b)
	return Hash(h.Sum(nil))
}

func nodeHash(l, r Hash) Hash {
	h := sha256.New()
	h.Write([]byte{1})
	h.Write(l[:])
	h.Write(r[:])
	return Hash(h.Sum(nil))
}
