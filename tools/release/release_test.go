package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
)

// TestTwoPeopleSign goes the maintainers' way, and lets minisign itself judge
// the signature of the checksums.
func TestTwoPeopleSign(t *testing.T) {
	dist := t.TempDir()
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dist, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program := []byte("program of version v1.2.0")
	h := chain.Sum(program)
	put("joulegate-linux-arm64", program)
	put("SHA256SUMS", fmt.Appendf(nil, "%s  joulegate-linux-arm64\n", hex.EncodeToString(h[:])))
	do := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(args, &out)
		return out.String(), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := do(args...)
		if err != nil {
			t.Fatalf("release %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	people := t.TempDir()
	var trust []string
	for _, who := range []string{"anna", "ben"} {
		file := filepath.Join(people, who+".key")
		out := must("keygen", file)
		w, err := keys.LoadWallet(file, nil)
		if err != nil || !strings.Contains(out, w.Public().String()) {
			t.Fatalf("%v: %s", err, out)
		}
		if again := must("pubkey", "-key", file); !strings.Contains(out, again) {
			t.Errorf("pubkey says %s", again)
		}
		trust = append(trust, w.Public().String())
		if _, err := do("keygen", file); err == nil {
			t.Error("a key was overwritten")
		}
	}
	if _, err := do("manifest", "-dist", dist, "-version", "1.3.0"); err == nil {
		t.Error("a version that the program does not carry")
	}
	must("manifest", "-dist", dist, "-version", "v1.2.0", "-security", "-share", "20", "-notes", "https://example.org/1.2.0")
	all := strings.Join(trust, ",")
	verify := func(threshold string) error {
		_, err := do("verify", "-dist", dist, "-trust", all, "-threshold", threshold)
		return err
	}
	if verify("1") == nil {
		t.Error("unsigned, and it verifies")
	}
	must("sign", "-dist", dist, "-key", filepath.Join(people, "anna.key"))
	if err := verify("1"); err != nil {
		t.Error(err)
	}
	if verify("2") == nil {
		t.Error("one signature counts for two")
	}
	must("sign", "-dist", dist, "-key", filepath.Join(people, "ben.key"))
	if err := verify("2"); err != nil {
		t.Error(err)
	}

	minisign, err := exec.LookPath("minisign")
	if err != nil {
		t.Skip("minisign is not installed")
	}
	var k chain.Key
	if err := k.UnmarshalText([]byte(trust[1])); err != nil {
		t.Fatal(err)
	}
	judge := func() ([]byte, error) {
		return exec.Command(minisign, "-V", "-P", minisignKey(k), "-m", filepath.Join(dist, "SHA256SUMS"), "-x", filepath.Join(dist, sumsSignature(k))).CombinedOutput()
	}
	if out, err := judge(); err != nil || !bytes.Contains(out, []byte("joulegate v1.2.0")) {
		t.Errorf("minisign: %v\n%s", err, out)
	}

	// Whatever is changed afterwards is found.
	put("joulegate-linux-arm64", []byte("program of version v1.2.0!"))
	if verify("2") == nil {
		t.Error("another program verifies")
	}
	if _, err := do("sign", "-dist", dist, "-key", filepath.Join(people, "anna.key")); err == nil {
		t.Error("another program is signed")
	}
	put("joulegate-linux-arm64", program)
	put("SHA256SUMS", nil)
	if verify("2") == nil {
		t.Error("empty checksums verify")
	}
	if out, err := judge(); err == nil {
		t.Errorf("minisign accepts empty checksums: %s", out)
	}
}
