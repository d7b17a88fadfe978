package profile

import (
	"strings"
	"testing"
)

const signing = `version: 1
id: test-signing
vendor: Test
model: Signing
kind: meter
serial: {baud: 9600, framing: 8N1, unit: 1}
timing: {max_block: 100}
function: 3
points:
  - {quantity: import, address: 0, type: u32, scale: 1000}
  - {quantity: voltage, phase: 1, address: 2, type: u16, scale: 100}
  - {quantity: frequency, address: 3, type: u16, scale: 10}
detect:
  - {quantity: voltage, phase: 1, min: 207000, max: 253000}
  - {quantity: frequency, min: 47000, max: 53000}
sources: [{name: test, confidence: A}]
signed:
`

func TestSignedRecord(t *testing.T) {
	p, err := Parse("test", []byte(signing+"  {format: ocmf, address: 1000, length: 250, key: {address: 2000, length: 92}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	var n uint16
	for i, b := range p.SignedBlocks(p.Signed.Address, p.Signed.Length) {
		if b.Count > 100 || b.Address != 1000+n || b.Function != 3 {
			t.Errorf("read %d: %+v", i, b)
		}
		n += b.Count
	}
	if n != 250 {
		t.Errorf("%d registers are read, want 250", n)
	}
	for bad, what := range map[string]string{
		"{format: alfen, address: 1, length: 1}":                                    "signed.format",
		"{format: ocmf, address: 1, length: 0}":                                     "signed.length",
		"{format: ocmf, address: 1, length: 5000}":                                  "signed.length",
		"{format: ocmf, address: 65535, length: 2}":                                 "signed.address",
		"{format: ocmf, address: 1, length: 2, function: 6}":                        "signed.function",
		"{format: ocmf, address: 1, length: 2, key: {address: 65535, length: 300}}": "signed.key",
	} {
		if _, err := Parse("test", []byte(signing+"  "+bad+"\n")); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v, want a complaint about %s", bad, err, what)
		}
	}
}

func FuzzSignedText(f *testing.F) {
	f.Add([]byte("OCMF|{}|{}\x00\x00"))
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := SignedText(b); err == nil && (s == "" || strings.ContainsAny(s, "\x00\n")) {
			t.Errorf("%q", s)
		}
		_, _ = SignedKey(b)
	})
}
