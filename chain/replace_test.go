package chain

import (
	"strings"
	"testing"
)

func TestReplaceText(t *testing.T) {
	r := SignReplace("north", Key{1}, Key{2}, testKey(7))
	got, err := ParseReplace(" " + r.String() + "\n")
	if err != nil || !got.Signed("north") || got.New != (Key{2}) || got.Old != (Key{1}) {
		t.Fatalf("%+v, %v", got, err)
	}
	if got.Signed("south") {
		t.Error("good on another chain")
	}
	got.New = Key{3}
	if got.Signed("north") {
		t.Error("good for another key")
	}
	s := r.String()
	for _, bad := range []string{"", "jgv1.", s[:len(s)-1], strings.Replace(s, "jgv1", "jgv2", 1), s[:20] + "\n" + s[20:]} {
		if _, err := ParseReplace(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func FuzzParseReplace(f *testing.F) {
	f.Add(SignReplace("north", Key{1}, Key{2}, testKey(7)).String())
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseReplace(s); err == nil && r.String() != strings.TrimSpace(s) {
			t.Fatal("not the only form")
		}
	})
}
