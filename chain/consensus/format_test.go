package consensus

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
)

// TestOldStores opens stores as they were before they had a format version,
// with JOULEGATE_FIXTURE=1 after writing them anew.
func TestOldStores(t *testing.T) {
	t.Parallel()
	fixture := "testdata/home-0"
	if os.Getenv("JOULEGATE_FIXTURE") != "" {
		w := newWorld(t, 1)
		n := w.nodes[0].start()
		w.grow(n, 6)
		n.stop()
		if err := os.RemoveAll(fixture); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(filepath.Join(fixture, "data"), os.DirFS(dataDir(n.home))); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(w.genesis)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(fixture, "genesis.json"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		left, _ := filepath.Glob(filepath.Join(fixture, "data", "*.db", "LO*"))
		for _, f := range append(left, filepath.Join(fixture, "data", formatFile), filepath.Join(fixture, "data", "cs.wal")) {
			if err := os.RemoveAll(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	home := t.TempDir()
	if err := os.CopyFS(home, os.DirFS(fixture)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dataDir(home), formatFile)); err == nil {
		t.Fatal("the fixture is not of format 0")
	}
	genesis := filepath.Join(home, "genesis.json")
	before, err := VerifyHome(t.Context(), home, genesis, nil)
	if err != nil || len(before.Violations) > 0 || before.Height < 6 {
		t.Fatalf("read: %+v, %v", before, err)
	}
	if _, err := InitValidator(home); err != nil { // another one than then: it follows
		t.Fatal(err)
	}
	host := newHost(keyFrom("old stores"), "/ip4/127.0.0.1/tcp/0")
	defer host.Close()
	open := func() (*Engine, error) {
		return Open(t.Context(), Config{Home: home, GenesisFile: genesis, Host: host, Log: testLog(t, "old")})
	}
	e, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if s := e.Status(); s.Height != before.Height || s.AppHash != before.StateHash {
		t.Errorf("opened at %d with %s, want %d with %s", s.Height, s.AppHash, before.Height, before.StateHash)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dataDir(home), formatFile)
	if b, err := os.ReadFile(name); err != nil || string(b) != "joulegate ledger 1\n" {
		t.Errorf("after that the format is %q, %v", b, err)
	}
	for text, want := range map[string]string{"joulegate ledger 2\n": "update joulegate", "joulegate ledger": "damaged", "": "damaged", "joulegate ledger -1\n": "damaged"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for what, try := range map[string]func() error{
			"open": func() error { _, err := open(); return err },
			"read": func() error { _, err := VerifyHome(t.Context(), home, genesis, nil); return err },
		} {
			if err := try(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s with %q: %v, want %q", what, text, err, want)
			}
		}
		if b, err := os.ReadFile(name); err != nil || string(b) != text {
			t.Errorf("refused, and changed to %q (%v)", b, err)
		}
	}
}

func TestAnchorFormat(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	hash := chain.Sum([]byte("block"))
	if a, err := readAnchor(home, "north"); err != nil || a.Height != 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	if err := WriteAnchor(home, "north", 7, hash); err != nil {
		t.Fatal(err)
	}
	if a, err := readAnchor(home, "north"); err != nil || a.Height != 7 || a.Hash != hash {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := readAnchor(home, "south"); err == nil {
		t.Error("of another chain")
	}
	b, _ := os.ReadFile(trustFile(home))
	if err := os.WriteFile(trustFile(home), []byte(strings.Replace(string(b), `"version": 1`, `"version": 2`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readAnchor(home, "north"); err == nil || !strings.Contains(err.Error(), "update joulegate") {
		t.Errorf("newer: %v", err)
	}
}
