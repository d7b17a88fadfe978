package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBugreport: a report has its parts and nothing of what is secret or
// personal in the state folder, and does not overwrite a file.
func TestBugreport(t *testing.T) {
	st, cfg := stateWithAll(t)
	if err := os.WriteFile(st.path("receipts", "0123456789abcdef0123456789abcdef.ocmf"), []byte("OCMF|driver"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "report.tar.gz")
	var stdout, stderr bytes.Buffer
	args := []string{"bugreport", out, "--state", string(st), "--config", cfg}
	if code := run(t.Context(), args, nil, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
	if code := run(t.Context(), args, nil, &stdout, &stderr); code != 1 {
		t.Errorf("a second report over the first: exit %d", code)
	}
	if i, err := os.Stat(out); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: a report is its writer's", i.Mode(), err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	parts, all := map[string]bool{}, ""
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		parts[strings.TrimPrefix(h.Name, "joulegate/")] = true
		all += string(b)
	}
	for _, want := range []string{"about.json", "doctor.json", "config.json", "files.json", "gateway.json"} {
		if !parts[want] {
			t.Errorf("no %s in %v", want, parts)
		}
	}
	if !strings.Contains(all, "settings/revisions.json") || strings.Contains(all, "0123456789abcdef0123456789abcdef") {
		t.Error("the files are not listed, or a session is named")
	}
	// No line of any file of the state folder is in it.
	checked := 0
	err = filepath.WalkDir(string(st), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if s := strings.TrimSpace(string(b)); len(s) > 9 { // "revisions" is in the name of its file
			checked++
			if strings.Contains(all, s) {
				t.Errorf("the report holds %s", p)
			}
		}
		return nil
	})
	if err != nil || checked < 4 {
		t.Errorf("%d files compared, %v", checked, err)
	}
}
