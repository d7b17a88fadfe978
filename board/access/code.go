package access

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A code is 16 random bytes and 2 that check them, in Crockford's base 32,
// which has no letters that look alike, in groups of five.
const (
	codeSecret = 16
	codeCheck  = 2
	codeGroup  = 5
)

var crockford = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// ErrCode is returned for what is no code, or one with a mistake in it.
var ErrCode = errors.New("not a code, or mistyped")

// NewCode draws a code and returns its token's key.
func NewCode(random io.Reader) (code string, key ed25519.PrivateKey, err error) {
	b := make([]byte, codeSecret)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", nil, fmt.Errorf("draw a code: %w", err)
	}
	text := crockford.EncodeToString(append(b, check(b)...))
	var groups []string
	for len(text) > 0 {
		n := min(codeGroup, len(text))
		groups = append(groups, text[:n])
		text = text[n:]
	}
	return strings.Join(groups, "-"), codeKey(b), nil
}

// ParseCode returns the token's key of a code as a person types it: in either
// case, with or without hyphens, O for 0, I and L for 1.
func ParseCode(s string) (ed25519.PrivateKey, error) {
	if len(s) > maxLine {
		return nil, ErrCode
	}
	s = strings.NewReplacer("-", "", " ", "", "O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(strings.TrimSpace(s)))
	b, err := crockford.DecodeString(s)
	if err != nil || len(b) != codeSecret+codeCheck || crockford.EncodeToString(b) != s || string(check(b[:codeSecret])) != string(b[codeSecret:]) {
		return nil, ErrCode
	}
	return codeKey(b[:codeSecret]), nil
}

func check(secret []byte) []byte {
	h := sha256.Sum256(append([]byte("joulegate/code/check/1\x00"), secret...))
	return h[:codeCheck]
}

func codeKey(secret []byte) ed25519.PrivateKey {
	seed := sha256.Sum256(append([]byte("joulegate/code/1\x00"), secret...))
	return ed25519.NewKeyFromSeed(seed[:])
}
