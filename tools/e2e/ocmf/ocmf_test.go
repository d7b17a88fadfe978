// Package ocmf reads the gateway's receipts with a verifier that shares no
// code with it: @road-labs/ocmf from npm, pinned by package-lock.json.
package ocmf

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/audit"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/tools/e2e/npm"
)

type request struct {
	Line string `json:"line"`
	Key  string `json:"key"`
}

type answer struct {
	Verified bool   `json:"verified"`
	Error    string `json:"error"`
	Value    struct {
		FV, PG, MS string
		RD         []struct {
			TX string
			RV json.Number
		}
	} `json:"value"`
}

func TestIndependentVerifierAcceptsReceiptsAndRefusesForgeries(t *testing.T) {
	var in bytes.Buffer
	var want []bool
	add := func(line string, key []byte, ok bool) {
		if err := json.NewEncoder(&in).Encode(request{line, hex.EncodeToString(key)}); err != nil {
			t.Fatal(err)
		}
		want = append(want, ok)
	}
	key, spki := newKey(t)
	_, other := newKey(t)
	// Many, because about every second ECDSA signature has a high s, and
	// DER drops leading zeros now and then.
	for i := range 40 {
		at := time.Date(2026, 7, 24, 13, 22, 4, 0, time.UTC)
		line, _, err := audit.Receipt{
			Number: uint64(i + 1), Gateway: "gw", Serial: "220912", Driver: chain.AccountOf(chain.Key{1}),
			Begin: audit.Register{At: at, Synced: true, Wh: 1_200_000, Quality: meter.Good},
			End:   audit.Register{At: at.Add(time.Hour), Synced: true, Wh: 1_207_340, Quality: meter.Good}, Reason: chain.StopDriver,
		}.OCMF(key)
		if err != nil {
			t.Fatal(err)
		}
		add(line, spki, true)
		add(strings.Replace(line, "1207.340", "1207.341", 1), spki, false)
		add(strings.Replace(line, "1207.340", "1207.34", 1), spki, false) // equal as a number, not as bytes
		add(line, other, false)
	}
	dec := json.NewDecoder(bytes.NewReader(npm.Run(t, "verify.mjs", &in)))
	for i, ok := range want {
		var a answer
		if err := dec.Decode(&a); err != nil {
			t.Fatal(err)
		}
		switch {
		case a.Verified != ok || a.Error != "":
			t.Errorf("receipt %d: verified %v, want %v; %s", i, a.Verified, ok, a.Error)
		case ok && (a.Value.FV != "1.3" || a.Value.MS != "220912" || len(a.Value.RD) != 2 || a.Value.RD[0].TX != "B" || a.Value.RD[1].RV != "1207.34"):
			t.Errorf("receipt %d read as %+v", i, a.Value)
		}
	}
}

func newKey(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, spki
}
