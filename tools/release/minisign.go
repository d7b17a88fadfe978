package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/joulegate/joulegate/chain"
	"golang.org/x/crypto/blake2b"
)

// The format of minisign 0.11 (jedisct1.github.io/minisign, "Signature
// format"): the signature is of the BLAKE2b-512 of the file, and the trusted
// comment is signed together with it.

const (
	algKey    = "Ed"
	algHashed = "ED"
)

// keyID names a key; minisign chooses it at random, here it follows from the
// key.
func keyID(pub chain.Key) []byte {
	h := chain.Sum(pub[:])
	return h[:8]
}

// minisignKey is what minisign -P takes.
func minisignKey(pub chain.Key) string {
	return base64.StdEncoding.EncodeToString(append(append([]byte(algKey), keyID(pub)...), pub[:]...))
}

func minisign(key ed25519.PrivateKey, file []byte, comment string) []byte {
	pub := chain.Key(key.Public().(ed25519.PublicKey))
	h := blake2b.Sum512(file)
	sig := ed25519.Sign(key, h[:])
	global := ed25519.Sign(key, append(bytes.Clone(sig), comment...))
	return fmt.Appendf(nil, "untrusted comment: signature of a joulegate release\n%s\ntrusted comment: %s\n%s\n",
		base64.StdEncoding.EncodeToString(append(append([]byte(algHashed), keyID(pub)...), sig...)), comment, base64.StdEncoding.EncodeToString(global))
}

func minisigned(pub chain.Key, file, text []byte) error {
	bad := errors.New("is not the signature of this file by this key")
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != 4 {
		return bad
	}
	comment, ok := strings.CutPrefix(lines[2], "trusted comment: ")
	b, err := base64.StdEncoding.DecodeString(lines[1])
	global, errGlobal := base64.StdEncoding.DecodeString(lines[3])
	want := append([]byte(algHashed), keyID(pub)...)
	if !ok || err != nil || errGlobal != nil || len(b) != len(want)+ed25519.SignatureSize || !bytes.Equal(b[:len(want)], want) {
		return bad
	}
	sig, h := b[len(want):], blake2b.Sum512(file)
	if !chain.Verify(pub, "", h[:], sig) || !chain.Verify(pub, "", append(bytes.Clone(sig), comment...), global) {
		return bad
	}
	return nil
}
