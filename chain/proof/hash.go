package proof

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/bits"

	"github.com/joulegate/joulegate/chain"
)

// dataHash is the Merkle root over the hashes of a block's transactions.
func dataHash(txs [][]byte) chain.Hash {
	leaves := make([][]byte, len(txs))
	for i, tx := range txs {
		h := sha256.Sum256(tx)
		leaves[i] = h[:]
	}
	return chain.MerkleRoot(leaves)
}

// iavlInner is the hash of an inner node of the state's tree.
func iavlInner(height int8, size, version int64, left, right chain.Hash) chain.Hash {
	b := make([]byte, 0, 96)
	b = binary.AppendVarint(b, int64(height))
	b = binary.AppendVarint(b, size)
	b = binary.AppendVarint(b, version)
	b = append(append(b, 32), left[:]...)
	b = append(append(b, 32), right[:]...)
	return chain.Sum(b)
}

// iavlLeaf is the hash of an entry.
func iavlLeaf(key, value []byte, version int64) chain.Hash {
	v := sha256.Sum256(value)
	b := make([]byte, 0, 64+len(key))
	b = binary.AppendVarint(b, 0)
	b = binary.AppendVarint(b, 1)
	b = binary.AppendVarint(b, version)
	b = append(binary.AppendUvarint(b, uint64(len(key))), key...)
	b = append(append(b, 32), v[:]...)
	return chain.Sum(b)
}

var errShort = errors.New("ends too early")

func uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n > 1 && n != (bits.Len64(v)+6)/7 {
		return 0, nil, errShort
	}
	return v, b[n:], nil
}

// Pack joins transactions, each with its length in front.
func Pack(txs [][]byte) (b []byte) {
	for _, tx := range txs {
		b = append(binary.AppendUvarint(b, uint64(len(tx))), tx...)
	}
	return b
}

func unpack(b []byte) (txs [][]byte, err error) {
	for len(b) > 0 {
		var tx []byte
		if tx, b, err = counted(b); err != nil {
			return nil, err
		}
		txs = append(txs, tx)
	}
	return txs, nil
}
