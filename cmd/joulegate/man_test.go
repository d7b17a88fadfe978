package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var updateDocs = flag.Bool("update", false, "write docs/CONFIG.md anew")

// TestConfigReference keeps docs/CONFIG.md what the struct says.
func TestConfigReference(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "CONFIG.md")
	want := []byte(configReference())
	if *updateDocs {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the settings say; go test ./cmd/joulegate -run TestConfigReference -update", path)
	}
}

// TestMan writes every page twice: a package must come out the same on
// rebuild.
func TestMan(t *testing.T) {
	pages := func() map[string]string {
		dir := t.TempDir()
		var out, errOut bytes.Buffer
		if code := run(t.Context(), []string{"man", "--out", dir}, nil, &out, &errOut); code != 0 {
			t.Fatalf("exit %d: %s", code, errOut.String())
		}
		all := map[string]string{}
		for _, section := range []string{"man1", "man5"} {
			files, err := os.ReadDir(filepath.Join(dir, section))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				b, err := os.ReadFile(filepath.Join(dir, section, f.Name()))
				if err != nil {
					t.Fatal(err)
				}
				all[f.Name()] = string(b)
			}
		}
		return all
	}
	one, two := pages(), pages()
	for name, text := range one {
		if two[name] != text {
			t.Errorf("%s differs from one run to the next", name)
		}
	}
	if !strings.Contains(one["joulegate-session-start.1"], "EXAMPLE") || !strings.Contains(one["joulegate.yaml.5"], "max_current_ma") {
		t.Errorf("%d pages, without the examples of session start or without a setting", len(one))
	}
}
