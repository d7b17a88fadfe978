package audit

import (
	"encoding/xml"
	"strings"
	"testing"
)

// A meter's own record passes through byte for byte, and what is said of it is
// true.
func TestNativeRecord(t *testing.T) {
	key, spki := newKey(t)
	line, _, err := sample().OCMF(key)
	if err != nil {
		t.Fatal(err)
	}
	_, other := newKey(t)
	foreign := strings.Replace(line, "secp256r1", "secp256k1", 1)
	for _, c := range []struct {
		name, line string
		key        []byte
		from       string
		good       bool
		note       string
	}{
		{"its key is configured", line, spki, KeyConfigured, true, "holds under the configured key"},
		{"its key is its own word", line, spki, KeyFromMeter, true, "compare that key"},
		{"its key is not known", line, nil, "", false, "not checked"},
		{"another key", line, other, KeyConfigured, false, "DOES NOT HOLD"},
		{"a changed register", strings.Replace(line, "1207.340", "1207.341", 1), spki, KeyConfigured, false, "DOES NOT HOLD"},
		{"a curve that is not known", foreign, spki, KeyConfigured, false, "another program has to check it"},
	} {
		n, err := NewNative(c.line, c.key, c.from)
		if err != nil || n.Line != c.line || n.Good != c.good || !strings.Contains(n.Note, c.note) {
			t.Errorf("%s: %+v, %v", c.name, n, err)
		}
	}
	for _, bad := range []string{"", "OCMF|{}", "OCMF|no json|{}", "OCMF|{}|no json", strings.Repeat("x", maxLine+1)} {
		if _, err := NewNative(bad, spki, KeyConfigured); err == nil {
			t.Errorf("%.20q is taken for a record", bad)
		}
	}

	n, _ := NewNative(line, spki, KeyConfigured)
	own, _, err := sample().OCMF(key)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := XML(7, own, spki, n)
	var v xmlValues
	if err == nil {
		err = xml.Unmarshal(doc, &v)
	}
	if err != nil || len(v.Value) != 2 || v.Value[0].Signed.Text != own || v.Value[1].Signed.Text != line || v.Value[1].Key.Text != n.Key {
		t.Errorf("container: %v\n%s", err, doc)
	}
}

func FuzzNative(f *testing.F) {
	key, spki := newKey(f)
	line, _, err := sample().OCMF(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add("OCMF|{}|{}")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := NewNative(s, spki, KeyConfigured)
		if err == nil && n.Good && s != line {
			// Only the signature section may be written differently.
			if p, _, _ := strings.Cut(strings.TrimPrefix(s, "OCMF|"), "|"); !strings.Contains(line, p) {
				t.Errorf("forged: %q", s)
			}
		}
	})
}
