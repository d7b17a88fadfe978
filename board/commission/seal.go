package commission

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
)

// ErrChanged is wrapped when a signature does not hold: something was changed
// after the gateway had signed.
var ErrChanged = errors.New("not as the gateway has signed it")

type envelope struct {
	Payload string      `json:"payload"`
	Sigs    []signature `json:"sigs"`
}

type signature struct {
	Kid chain.Key `json:"kid"`
	Alg string    `json:"alg"`
	Sig string    `json:"sig"`
}

func sign(key ed25519.PrivateKey, domain string, b []byte) signature {
	s := signature{Alg: "Ed25519", Sig: base64.StdEncoding.EncodeToString(chain.Sign(key, domain, b))}
	copy(s.Kid[:], key.Public().(ed25519.PublicKey))
	return s
}

// Seal returns the report's file: its JSON, signed by the gateway.
func Seal(r Report, key ed25519.PrivateKey) ([]byte, error) {
	var payload bytes.Buffer
	enc := json.NewEncoder(&payload)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, err
	}
	b, err := json.Marshal(envelope{base64.StdEncoding.EncodeToString(payload.Bytes()), []signature{sign(key, "", payload.Bytes())}})
	return append(b, '\n'), err
}

// Opened is a report whose signatures hold.
type Opened struct {
	Report
	Hash chain.Hash // SHA-256 of the signed bytes, as the page's QR code has it
	Page bool       // it came in a page, whose own signature holds as well
}

// Open checks a file that Seal or Page has made. Whether the key is that of
// the gateway in question is for the caller to compare.
func Open(file []byte) (Opened, error) {
	if len(file) > MaxBytes {
		return Opened{}, fmt.Errorf("commissioning report of %d bytes, at most %d", len(file), MaxBytes)
	}
	sealed, page, err := unpage(file)
	if err != nil {
		return Opened{}, err
	}
	if !bytes.HasPrefix(bytes.TrimLeft(sealed, " \r\n\t"), []byte(`{"payload"`)) {
		return Opened{}, errors.New("no commissioning report: neither the file that 'commission --report' has written, nor its page")
	}
	payload, err := config.Unwrap(sealed, nil) // what it says, and by whom
	if err != nil {
		return Opened{}, fmt.Errorf("%w: %w", ErrChanged, err)
	}
	// There is one way to write an envelope: no byte of the file is free.
	var e envelope
	if err := json.Unmarshal(sealed, &e); err != nil {
		return Opened{}, err
	}
	if again, err := json.Marshal(e); err != nil || !bytes.Equal(again, bytes.TrimSuffix(sealed, []byte("\n"))) || e.Payload != base64.StdEncoding.EncodeToString(payload) {
		return Opened{}, fmt.Errorf("%w: the envelope is written in another way", ErrChanged)
	}
	for _, s := range e.Sigs {
		if raw, err := base64.StdEncoding.Strict().DecodeString(s.Sig); err != nil || base64.StdEncoding.EncodeToString(raw) != s.Sig {
			return Opened{}, fmt.Errorf("%w: the envelope is written in another way", ErrChanged)
		}
	}
	o := Opened{Hash: chain.Sum(payload), Page: page != nil}
	d := json.NewDecoder(bytes.NewReader(payload))
	if err := d.Decode(&o.Report); err != nil {
		return Opened{}, fmt.Errorf("commissioning report: %w", err)
	}
	if o.Format != Format {
		return Opened{}, fmt.Errorf("commissioning report: format %q, this program knows %q", o.Format, Format)
	}
	if _, err := config.Unwrap(sealed, []chain.Key{o.Gateway.Device}); err != nil {
		return Opened{}, fmt.Errorf("%w: it speaks for gateway %s and is signed by another", ErrChanged, o.Gateway.Device.Short())
	}
	if page != nil {
		if err := page.check(o.Gateway.Device); err != nil {
			return Opened{}, err
		}
	}
	return o, nil
}
