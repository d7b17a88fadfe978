package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/guard/domain"
)

// What `guard domain` prints is a contract.
func TestGuardDomain(t *testing.T) {
	dir := t.TempDir()
	block, allow := filepath.Join(dir, "block.txt"), filepath.Join(dir, "allow.txt")
	os.WriteFile(block, []byte("||ads.example.com^\n0.0.0.0 track.example.net\n"), 0o644)
	os.WriteFile(allow, []byte("good.ads.example.com\n"), 0o644)
	f, err := domain.Load(t.Context(), domain.Options{Block: []string{block}, Allow: []string{allow}})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := guardDomain(f, []string{"x.ADS.example.com.", "-", "good.ads.example.com"}, strings.NewReader("track.example.net\n\nexample.org\n"), &out); err != nil {
		t.Fatal(err)
	}
	want := `{"name":"x.ads.example.com","verdict":"block","rule":"||ads.example.com^","list":"` + block + `"}
{"name":"track.example.net","verdict":"block","rule":"track.example.net","list":"` + block + `"}
{"name":"example.org","verdict":"allow","rule":"","list":""}
{"name":"good.ads.example.com","verdict":"allow","rule":"good.ads.example.com","list":"` + allow + `"}
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	if err := guardDomain(f, []string{"-"}, strings.NewReader("a.example\nb..example\n"), &out); err == nil || !strings.Contains(err.Error(), "stdin:2:") {
		t.Error(err)
	}
}
