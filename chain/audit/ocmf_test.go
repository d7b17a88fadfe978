package audit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

func sample() Receipt {
	at := time.Date(2026, 7, 24, 13, 22, 4, 50e6, time.FixedZone("CEST", 7200))
	return Receipt{
		Number: 7, Session: chain.ID{1, 2}, Gateway: "gw-1", Version: "0.1", Vendor: "Eastron", Model: "SDM120", Serial: "22091234",
		Driver: chain.AccountOf(chain.Key{9}), Tariff: "at most 0.30 EUR/kWh", Reason: chain.StopUnplugged,
		Begin: Register{At: at, Synced: true, Wh: 1_200_005, Quality: meter.Good},
		End:   Register{At: at.Add(time.Hour), Wh: 1_207_340, Quality: meter.Good},
	}
}

func newKey(t testing.TB) (*ecdsa.PrivateKey, []byte) {
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

func TestReceiptHoldsTheFactsAndVerifies(t *testing.T) {
	key, spki := newKey(t)
	line, hash, err := sample().OCMF(key)
	if err != nil {
		t.Fatal(err)
	}
	body, got, err := VerifyOCMF(line, spki)
	if err != nil || got != hash || chain.Sum(body) != hash {
		t.Fatalf("hash %s, %s, %v", got, hash, err)
	}
	if n := strings.Count(line, "|"); n != 2 {
		t.Errorf("%d bars in %s", n, line)
	}
	const readings = `"RD":[{"TM":"2026-07-24T13:22:04,050+0200 S","TX":"B","RV":1200.005,"RI":"01-00:01.08.00*FF","RU":"kWh","RT":"AC","EF":"","ST":"G"},` +
		`{"TM":"2026-07-24T14:22:04,050+0200 U","TX":"E","RV":1207.340,"RI":"01-00:01.08.00*FF","RU":"kWh","RT":"AC","EF":"","ST":"G"}]`
	for _, want := range []string{readings, `"FV":"1.3"`, `"PG":"T7"`, `"GS":"gw-1"`, `"MS":"22091234"`, `"IS":true`, "not a certified"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("payload lacks %s:\n%s", want, body)
		}
	}
}

// A receipt names the newest block as far as the text has room, whatever the
// other texts are.
func TestReceiptNamesTheNewestBlock(t *testing.T) {
	key, _ := newKey(t)
	r := sample()
	r.Height, r.State = 1200, chain.Sum([]byte("state"))
	for _, contact := range []string{"", "+49 40 123", strings.Repeat("c", MaxContact)} {
		r.Contact = contact
		line, _, err := r.OCMF(key)
		if err != nil {
			t.Fatal(err)
		}
		height, digits := Anchor(line)
		if height != 1200 || len(digits) < 16 || !strings.HasPrefix(r.State.String(), digits) || contact == "" && len(digits) != 64 {
			t.Errorf("with contact %q it names block %d, %q", contact, height, digits)
		}
		var p ocmfPayload
		if err := json.Unmarshal([]byte(strings.Split(line, "|")[1]), &p); err != nil || len(p.TT) > maxTariff {
			t.Errorf("the tariff text has %d bytes, OCMF allows %d (%v)", len(p.TT), maxTariff, err)
		}
	}
	if h, s := Anchor("OCMF|{}|{}"); h != 0 || s != "" {
		t.Errorf("nothing is named, and it reads %d, %q", h, s)
	}
}

func TestAnyChangedByteOfAReceiptIsFound(t *testing.T) {
	key, spki := newKey(t)
	line, _, err := sample().OCMF(key)
	if err != nil {
		t.Fatal(err)
	}
	payloadEnd := strings.LastIndex(line, "|")
	for i := range payloadEnd {
		forged := []byte(line)
		forged[i] ^= 1
		if _, _, err := VerifyOCMF(string(forged), spki); err == nil {
			t.Fatalf("byte %d changed and accepted: %s", i, forged)
		}
	}
	_, other := newKey(t)
	if _, _, err := VerifyOCMF(line, other); err == nil {
		t.Error("accepted under another key")
	}
}

func TestReceiptRefusesImpossibleFacts(t *testing.T) {
	key, _ := newKey(t)
	for what, change := range map[string]func(*Receipt){
		"bar in a text":       func(r *Receipt) { r.Model = "a|b" },
		"no meter serial":     func(r *Receipt) { r.Serial = "" },
		"not numbered":        func(r *Receipt) { r.Number = 0 },
		"register ran back":   func(r *Receipt) { r.End.Wh = r.Begin.Wh - 1 },
		"time ran back":       func(r *Receipt) { r.End.At = r.Begin.At.Add(-1) },
		"unknown stop reason": func(r *Receipt) { r.Reason = 99 },
	} {
		r := sample()
		change(&r)
		if line, _, err := r.OCMF(key); err == nil {
			t.Errorf("%s: %s", what, line)
		}
	}
	wrong, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := sample().OCMF(wrong); err == nil {
		t.Error("signed with P-384")
	}
}

func TestEveryStopReasonAndQualityHasACode(t *testing.T) {
	key, spki := newKey(t)
	for reason := chain.StopDriver; reason <= chain.StopOperator; reason++ {
		for q := meter.Good; q <= meter.Stale; q++ {
			r := sample()
			r.Reason, r.End.Quality = reason, q
			line, _, err := r.OCMF(key)
			if err != nil {
				t.Fatalf("%s, %s: %v", reason, q, err)
			}
			body, _, err := VerifyOCMF(line, spki)
			var p ocmfPayload
			if err != nil || json.Unmarshal(body, &p) != nil || len(p.RD) != 2 || (p.RD[1].ST == "G") != (q == meter.Good) {
				t.Errorf("%s, %s: %s, %v", reason, q, body, err)
			}
		}
	}
}

func TestXMLContainerCarriesLineAndKey(t *testing.T) {
	key, spki := newKey(t)
	line, _, err := sample().OCMF(key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := XML(7, line, spki)
	if err != nil {
		t.Fatal(err)
	}
	var v xmlValues
	if err := xml.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	pub, err := hex.DecodeString(v.Value[0].Key.Text)
	if err != nil || v.Value[0].Signed.Format != "OCMF" || v.Value[0].Signed.Encoding != "plain" {
		t.Fatalf("%s: %v", raw, err)
	}
	if _, _, err := VerifyOCMF(v.Value[0].Signed.Text, pub); err != nil {
		t.Errorf("what the container holds does not verify: %v", err)
	}
}

func FuzzVerifyOCMF(f *testing.F) {
	key, spki := newKey(f)
	line, _, err := sample().OCMF(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add("OCMF||")
	f.Add(`OCMF|{}|{"SD":""}`)
	want := strings.Split(line, "|")[1]
	f.Fuzz(func(t *testing.T, s string) {
		if body, _, err := VerifyOCMF(s, spki); err == nil && string(body) != want {
			t.Errorf("forged: %s", s)
		}
	})
}

// A receipt says how well the driver was identified: a card's number can be
// copied, a key cannot.
func TestReceiptSaysHowTheDriverWasIdentified(t *testing.T) {
	for kind, want := range map[chain.MandateKind]string{
		0:                  `"IL":"VERIFIED","IF":[],"IT":"UNDEFINED"`,
		chain.MandateCard:  `"IL":"HEARSAY","IF":["RFID_PLAIN"],"IT":"LOCAL"`,
		chain.MandateCode:  `"IL":"VERIFIED","IF":[],"IT":"KEY_CODE"`,
		chain.MandateOwner: `"IL":"HEARSAY","IF":["RFID_PLAIN"],"IT":"LOCAL"`,
	} {
		r := sample()
		r.Shown = kind
		key, _ := newKey(t)
		line, _, err := r.OCMF(key)
		if err != nil || !strings.Contains(line, want) {
			t.Errorf("%s: %v, no %s in %s", kind, err, want, line)
		}
	}
}
