package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const vectors = "../../chain/proof/testdata/vectors"

// maxSize is the most that the command may take, built to ship.
const maxSize = 15_000_000

type vector struct {
	File       string `json:"file"`
	Checkpoint string `json:"checkpoint"`
	OK         bool   `json:"ok"`
	Red        string `json:"red"`
}

func published(t *testing.T) (list []vector) {
	b, err := os.ReadFile(filepath.Join(vectors, "vectors.json"))
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil || len(list) == 0 {
		t.Fatalf("%d vectors, %v", len(list), err)
	}
	return list
}

// args is the command line for a vector.
func args(v vector) []string {
	a := []string{filepath.Join(vectors, v.File), "--json", "--trust", filepath.Join(vectors, "genesis.json")}
	if v.Checkpoint != "" {
		a = append(a, "--checkpoint", filepath.Join(vectors, v.Checkpoint))
	}
	return a
}

func judge(t *testing.T, v vector, out []byte, code int) {
	t.Helper()
	var r struct {
		OK     bool
		Checks []struct {
			Name   string
			OK     bool
			Detail string
		}
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%s: %v in %q", v.File, err, out)
	}
	red := ""
	for _, c := range r.Checks {
		if !c.OK && c.Detail != "not reached" {
			red = c.Name
		}
	}
	if r.OK != v.OK || red != v.Red || (code == 0) != v.OK {
		t.Errorf("%s: exit %d, ok %v, red %q, want %+v", v.File, code, r.OK, red, v)
	}
}

func TestPublishedVectors(t *testing.T) {
	for _, v := range published(t) {
		var out, errOut bytes.Buffer
		code := run(args(v), &out, &errOut)
		judge(t, v, out.Bytes(), code)
		if errOut.Len() > 0 {
			t.Errorf("%s: %s", v.File, errOut.String())
		}
	}
}

func TestUsage(t *testing.T) {
	for _, a := range [][]string{{}, {"x.jgb"}, {"--trust", "g.json"}, {"--nonsense"}, {"--trust", "g", "a", "b"}} {
		if code := run(a, &bytes.Buffer{}, &bytes.Buffer{}); code != 2 {
			t.Errorf("%q: exit %d, want 2", a, code)
		}
	}
	var errOut bytes.Buffer
	if code := run([]string{"--trust", "no such genesis", "x"}, &bytes.Buffer{}, &errOut); code != 1 || !strings.Contains(errOut.String(), "no such genesis") {
		t.Errorf("exit %d: %s", code, errOut.String())
	}
}

// TestShippedSize builds the command as it ships, without cgo.
func TestShippedSize(t *testing.T) {
	out := filepath.Join(t.TempDir(), "joulegate-verify")
	build(t, out, "GOOS=linux", "GOARCH=arm64")
	if s, err := os.Stat(out); err != nil || s.Size() > maxSize {
		t.Errorf("%d bytes, at most %d (%v)", s.Size(), maxSize, err)
	}
}

func build(t *testing.T, out string, env ...string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, ".")
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, b)
	}
}

// TestWebAssembly runs the same verifier, compiled to WebAssembly, on every
// published vector.
func TestWebAssembly(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("node is missing")
	}
	wasm := filepath.Join(t.TempDir(), "verify.wasm")
	build(t, wasm, "GOOS=js", "GOARCH=wasm")
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	glue := filepath.Join(strings.TrimSpace(string(root)), "lib", "wasm", "wasm_exec_node.js")
	for _, v := range published(t) {
		cmd := exec.Command("node", append([]string{"--stack-size=8192", glue, wasm}, args(v)...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		if err := cmd.Run(); cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if out.Len() == 0 {
			t.Fatalf("%s: %s", v.File, errOut.String())
		}
		judge(t, v, out.Bytes(), cmd.ProcessState.ExitCode())
	}
}
