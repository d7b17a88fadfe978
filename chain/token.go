package chain

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// tokenPrefix marks an invitation and its format version.
const tokenPrefix = "jg1."

// Token is what `grid invite` prints and `grid join` takes: one pasted line.
// It is a secret until it has been used.
type Token struct {
	ChainID string   `cbor:"1,keyasint"`
	Genesis Hash     `cbor:"2,keyasint"` // SHA-256 of the genesis file's bytes
	PSK     []byte   `cbor:"3,keyasint"` // 32 bytes: libp2p private network key
	Peer    Key      `cbor:"4,keyasint"` // device key of the inviting gateway
	Addrs   []string `cbor:"5,keyasint"` // multiaddrs of the inviting gateway
	Seed    []byte   `cbor:"6,keyasint"` // 32 bytes: seed of the one-time key

	// A recent block of the ledger, so that a newcomer can tell it from a
	// forged one although the genesis is older than the trusting period.
	Height int64  `cbor:"7,keyasint,omitempty"`
	Block  []byte `cbor:"8,keyasint,omitempty"` // hash of its header; nil: none
}

// String returns the pasteable form. Treat it as a secret.
func (t Token) String() string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(Marshal(t))
}

// ParseToken reads what Token.String wrote.
func ParseToken(s string) (Token, error) {
	var t Token
	s = strings.TrimSpace(s)
	body, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok || len(s) > 4096 {
		return t, fmt.Errorf("not an invitation: it starts with %q and is one line", tokenPrefix)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || strings.ContainsAny(body, "\r\n") { // the decoder would skip line breaks
		return t, errors.New("the invitation is damaged: copy the whole line")
	}
	if err := Unmarshal(raw, &t); err != nil {
		return t, errors.New("the invitation is damaged: copy the whole line")
	}
	if len(t.PSK) != 32 || len(t.Seed) != 32 || len(t.Addrs) == 0 || t.Height < 0 || t.Height == 0 && len(t.Block) != 0 || t.Height > 0 && len(t.Block) != len(Hash{}) {
		return t, errors.New("the invitation is incomplete: ask for a new one")
	}
	return t, nil
}
