package audit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Native is a record that the meter has signed itself. It is passed on byte for
// byte; what this gateway says of it stands beside it. A calibrated meter's
// record is worth more than any that a gateway can sign.
type Native struct {
	Line string `json:"record"`               // OCMF
	Key  string `json:"public_key,omitempty"` // SubjectPublicKeyInfo in hex; empty: not known
	From string `json:"key_from,omitempty"`   // "configuration", which somebody has compared with the meter, or "meter"
	Good bool   `json:"verified"`
	Note string `json:"note"` // in words
}

// Where a meter's key was learned.
const (
	KeyConfigured = "configuration"
	KeyFromMeter  = "meter"
)

// errCurve is an algorithm that is good and not known here.
var errCurve = errors.New("another program has to check it")

// NewNative judges a record by the public key, which may be empty. It fails
// only if the line is no record at all.
func NewNative(line string, key []byte, from string) (Native, error) {
	n := Native{Line: line, Key: hex.EncodeToString(key), From: from}
	payload, sig, err := splitOCMF(line)
	if err != nil {
		return n, err
	}
	if len(key) == 0 {
		n.From, n.Note = "", "signed by the meter; not checked: its public key is not known here"
		return n, nil
	}
	switch err := verifyNative(payload, sig, key); {
	case errors.Is(err, errCurve):
		n.Note = "signed by the meter; not checked: " + err.Error()
	case err != nil:
		n.Note = "SIGNATURE DOES NOT HOLD: " + err.Error()
	case from == KeyFromMeter:
		n.Good, n.Note = true, "the signature holds under the key that the meter tells; compare that key with the meter's plate"
	default:
		n.Good, n.Note = true, "the meter's signature holds under the configured key"
	}
	return n, nil
}

func splitOCMF(line string) (payload []byte, s ocmfSignature, err error) {
	parts := strings.Split(line, "|")
	if len(line) > maxLine || len(parts) != 3 || parts[0] != ocmfHeader || !json.Valid([]byte(parts[1])) {
		return nil, s, fmt.Errorf("meter's record: %d bytes that are not OCMF|payload|signature", len(line))
	}
	if err := json.Unmarshal([]byte(parts[2]), &s); err != nil {
		return nil, s, fmt.Errorf("meter's record: signature section: %w", err)
	}
	return []byte(parts[1]), s, nil
}

// verifyNative checks a signature as OCMF 1.4.1 encodes it.
func verifyNative(payload []byte, s ocmfSignature, spki []byte) error {
	decode := hex.DecodeString
	switch s.SE {
	case "", "hex":
	case "base64":
		decode = base64.StdEncoding.DecodeString
	default:
		return fmt.Errorf("signature encoded as %q", s.SE)
	}
	der, err := decode(s.SD)
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	var curve elliptic.Curve
	var digest []byte
	switch s.SA {
	case ocmfAlgorithm, "": // what a line without an algorithm means
		sum := sha256.Sum256(payload)
		curve, digest = elliptic.P256(), sum[:]
	case "ECDSA-secp384r1-SHA256":
		sum := sha256.Sum256(payload)
		curve, digest = elliptic.P384(), sum[:]
	case "ECDSA-secp384r1-SHA384":
		sum := sha512.Sum384(payload)
		curve, digest = elliptic.P384(), sum[:]
	default:
		return fmt.Errorf("algorithm %.40q: %w", s.SA, errCurve)
	}
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	if key, ok := pub.(*ecdsa.PublicKey); !ok || key.Curve != curve {
		return fmt.Errorf("the key is not of %s", curve.Params().Name)
	} else if !ecdsa.VerifyASN1(key, digest, der) {
		return errors.New("it does not fit the record")
	}
	return nil
}
