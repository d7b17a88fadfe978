package proof

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/tree"
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
		if tx, b, err = tree.Counted(b); err != nil {
			return nil, err
		}
		txs = append(txs, tx)
	}
	return txs, nil
}
