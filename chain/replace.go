package chain

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// TxReplace gives a gateway's vote to another key, by operators.
const TxReplace TxKind = 80

// DomainReplace is what a device signs a Replace under.
const DomainReplace = "joulegate/replace/1\x00"

// Replace gives the vote of a gateway to a new validator key, after the old
// one was lost with its memory of what it signed. The device asks for it; who
// agrees are operators. The old key is named so that the request is good once.
type Replace struct {
	Device Key    `cbor:"1,keyasint" json:"device"`
	Old    Key    `cbor:"2,keyasint" json:"old"` // as the ledger knows it; zero: none
	New    Key    `cbor:"3,keyasint" json:"new"`
	Sig    []byte `cbor:"4,keyasint" json:"sig"` // device key over the rest
}

func (r Replace) body(chainID string) []byte {
	return Marshal(struct {
		Chain string  `cbor:"1,keyasint"`
		Body  Replace `cbor:"2,keyasint"`
	}{chainID, Replace{Device: r.Device, Old: r.Old, New: r.New}})
}

// SignReplace returns the request of a device.
func SignReplace(chainID string, old, next Key, device ed25519.PrivateKey) Replace {
	r := Replace{Old: old, New: next}
	copy(r.Device[:], device.Public().(ed25519.PublicKey))
	r.Sig = Sign(device, DomainReplace, r.body(chainID))
	return r
}

// Signed reports whether the device has signed the request for this chain.
func (r Replace) Signed(chainID string) bool {
	return Verify(r.Device, DomainReplace, r.body(chainID), r.Sig)
}

const replacePrefix = "jgv1."

// String returns the request as one line to be pasted. It is no secret.
func (r Replace) String() string {
	return replacePrefix + base64.RawURLEncoding.EncodeToString(Marshal(r))
}

// ParseReplace reads what Replace.String wrote. Signed tells whether it holds.
func ParseReplace(s string) (r Replace, err error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(s), replacePrefix)
	if !ok || len(body) > 1024 {
		return r, fmt.Errorf("not a request for a vote: it starts with %q and is one line", replacePrefix)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err == nil && !strings.ContainsAny(body, "\r\n") {
		if err = Unmarshal(raw, &r); err == nil {
			return r, nil
		}
	}
	return Replace{}, errors.New("the request for a vote is damaged: copy the whole line")
}
