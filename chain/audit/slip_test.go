package audit

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// newSlip signs a receipt as long as receipts get.
func newSlip(t testing.TB) (string, ed25519.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	device := ed25519.NewKeyFromSeed(make([]byte, 32))
	var self chain.Key
	copy(self[:], device.Public().(ed25519.PublicKey))
	at := time.Date(2026, 7, 24, 13, 22, 4, 0, time.UTC)
	line, _, err := Receipt{
		Number: 12, Session: chain.ID{1}, Gateway: self.String(), Version: "v1.2.3", Vendor: "Eastron", Model: "SDM630", Serial: "0a1b2c3d-bus-1",
		Driver: chain.AccountOf(chain.Key{1}), Tariff: "at most 0.30 EUR/kWh", Contact: strings.Repeat("c", MaxContact),
		Begin: Register{At: at, Synced: true, Wh: 1_200_000, Quality: meter.Good},
		End:   Register{At: at.Add(time.Hour), Synced: true, Wh: 1_207_340, Quality: meter.Good}, Reason: chain.StopDriver,
	}.OCMF(key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := Slip{Chain: strings.Repeat("x", chain.MaxName), Line: line, Key: spki, Height: 1 << 40, State: chain.Hash{7}}.Sign(device)
	if err != nil {
		t.Fatal(err)
	}
	return text, device
}

func TestSlipIsCheckedOffline(t *testing.T) {
	text, _ := newSlip(t)
	for _, as := range []string{text, text + "\n", strings.ReplaceAll(text, "\n", "\r\n") + "\r\n"} {
		s, c, err := ParseSlip(as)
		if err != nil {
			t.Fatal(err)
		}
		if s.Height != 1<<40 || s.State != (chain.Hash{7}) || c.Number != "T12" || c.Begin.KWh != "1200.000" || c.End.KWh != "1207.340" || !c.End.Good {
			t.Errorf("slip %+v, content %+v", s, c)
		}
		if !strings.Contains(c.Text, "not a certified") || !strings.HasSuffix(c.Text, "Questions: "+strings.Repeat("c", MaxContact)) || len(c.Text) > 250 {
			t.Errorf("%d bytes of text: %s", len(c.Text), c.Text)
		}
	}
	// No byte can be changed, dropped or put in.
	for i := range len(text) {
		for _, forged := range []string{text[:i] + string(text[i]^1) + text[i+1:], text[:i] + text[i+1:], text[:i] + "0" + text[i:]} {
			if forged == text {
				continue
			}
			if _, _, err := ParseSlip(forged); err == nil {
				t.Fatalf("changed at byte %d, it is accepted: %q", i, forged[max(i-10, 0):min(i+10, len(forged))])
			}
		}
	}
}

func TestSlipOfAnotherGatewayIsRefused(t *testing.T) {
	text, _ := newSlip(t)
	s, _, err := ParseSlip(text)
	if err != nil {
		t.Fatal(err)
	}
	other := ed25519.NewKeyFromSeed([]byte(strings.Repeat("o", 32)))
	if _, err := s.Sign(other); err == nil || !strings.Contains(err.Error(), "signed for gateway") {
		t.Fatalf("a gateway signs another's receipt: %v", err)
	}
}

func TestPrintedSlipHoldsItsCodeAndEscapesWhatItShows(t *testing.T) {
	text, _ := newSlip(t)
	html, err := Page{
		Energy: "7.34 kWh", Rows: [][2]string{{"at", "<script>alert(1)</script>"}},
		Notes: []string{"not settled"}, Attested: []string{"no third party has attested this microgrid"}, Contact: "anna",
	}.HTML(text)
	if err != nil {
		t.Fatal(err)
	}
	page := string(html)
	for _, want := range []string{"7.34 kWh", disclaimer, "no third party", "anna", "&lt;script&gt;", "M0 0h1v1h-1z", "1099511627776"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, never := range []string{"<script", "http:", "https:", "url("} {
		if strings.Contains(page, never) {
			t.Errorf("the page holds %q", never)
		}
	}
	if _, err := (Page{}).HTML(text[:len(text)-4]); err == nil {
		t.Error("a page is made of what does not verify")
	}
}

func FuzzParseSlip(f *testing.F) {
	text, _ := newSlip(f)
	f.Add(text)
	f.Add("")
	f.Add("OCMF|{}|{}\n" + slipHeader + "||||||")
	f.Fuzz(func(t *testing.T, s string) {
		if slip, _, err := ParseSlip(s); err == nil && slip.Line == "" {
			t.Fatal("an empty receipt is accepted")
		}
	})
}
