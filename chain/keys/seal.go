package keys

import (
	"crypto/cipher"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
)

// Argon2id parameters of new files: 64 MiB and three passes is the second
// recommended choice of RFC 9106 section 4 and fits a gateway with 1 GB. A
// file is opened with its own parameters, up to the maxima.
const (
	kdfTime    = 3
	kdfMemory  = 64 << 10 // KiB
	kdfThreads = 4
	maxTime    = 16
	maxMemory  = 256 << 10 // KiB
	maxThreads = 16
	saltBytes  = 16
)

func unseal(block *pem.Block, passphrase []byte) ([]byte, error) {
	if len(passphrase) == 0 {
		return nil, fmt.Errorf("it is encrypted: %w", ErrPassphrase)
	}
	aead, err := cipherOf(block, passphrase)
	if err != nil {
		return nil, err
	}
	n := aead.NonceSize()
	if len(block.Bytes) < n {
		return nil, errors.New("damaged: shorter than its nonce; restore it from the backup")
	}
	der, err := aead.Open(nil, block.Bytes[:n], block.Bytes[n:], headers(block))
	if err != nil {
		return nil, fmt.Errorf("cannot decrypt: %w, or the file is damaged", ErrPassphrase)
	}
	return der, nil
}

// cipherOf derives the file's cipher from its headers and the passphrase.
func cipherOf(block *pem.Block, passphrase []byte) (cipher.AEAD, error) {
	number := func(name string, most int) (int, error) {
		n, err := strconv.Atoi(block.Headers[name])
		if err != nil || n < 1 || n > most {
			return 0, fmt.Errorf("damaged: header %s is %q, want 1..%d; restore it from the backup", name, block.Headers[name], most)
		}
		return n, nil
	}
	if kdf := block.Headers["KDF"]; kdf != "argon2id" {
		return nil, fmt.Errorf("key derivation %q is unknown to this program; restore it from the backup", kdf)
	}
	time, err1 := number("Time", maxTime)
	memory, err2 := number("Memory", maxMemory)
	threads, err3 := number("Threads", maxThreads)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	salt, err := hex.DecodeString(block.Headers["Salt"])
	if err != nil || len(salt) != saltBytes {
		return nil, errors.New("damaged: header Salt; restore it from the backup")
	}
	return chacha20poly1305.NewX(argon2.IDKey(passphrase, salt, uint32(time), uint32(memory), uint8(threads), chacha20poly1305.KeySize))
}

// headers is what the cipher authenticates beside the key.
func headers(block *pem.Block) []byte {
	h := block.Headers
	return []byte(sealedType + "\n" + h["KDF"] + "\n" + h["Time"] + "\n" + h["Memory"] + "\n" + h["Threads"] + "\n" + h["Salt"])
}
