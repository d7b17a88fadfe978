// Command verifypage makes the page on which anybody checks a bundle: one HTML
// file that holds the verifier as WebAssembly, for a browser without a network.
//
//	go run ./tools/verifypage -out bin/joulegate-verify.html
//
//	cmd/joulegate-verify ──go build, js/wasm──► gzip, base64 ─┐
//	its web/: page, style, script, worker ────────────────────┼─► one file
//	the Go's wasm_exec.js ────────────────────────────────────┘
//
// The file names its script and its style by their hashes, so that nothing
// else can run in it. Equal sources and an equal Go make an equal file.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	out := flag.String("out", "bin/joulegate-verify.html", "where the page goes")
	version := flag.String("version", "of an unknown version", "of the sources")
	flag.Parse()
	if err := write(*out, *version); err != nil {
		fmt.Fprintln(os.Stderr, "verifypage:", err)
		os.Exit(1)
	}
}

func write(out, version string) error {
	page, err := build(version)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, page, 0o644)
}

const (
	module  = "github.com/joulegate/joulegate"
	program = module + "/cmd/joulegate-verify"
)

// build makes the page. It runs anywhere in the module.
func build(version string) ([]byte, error) {
	root, err := goTool("list", "-f", "{{.Dir}}", module)
	if err != nil {
		return nil, err
	}
	sources := filepath.Join(strings.TrimSpace(string(root)), "cmd", "joulegate-verify", "web")
	goroot, err := goTool("env", "GOROOT")
	if err != nil {
		return nil, err
	}
	parts := map[string]string{"version": html.EscapeString(version)}
	for name, path := range map[string]string{
		"page": filepath.Join(sources, "page.html"), "style": filepath.Join(sources, "page.css"), "script": filepath.Join(sources, "page.js"),
		"worker": filepath.Join(sources, "worker.js"), "exec": filepath.Join(strings.TrimSpace(string(goroot)), "lib", "wasm", "wasm_exec.js"),
	} {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		parts[name] = strings.TrimSpace(string(b))
	}
	wasm, err := compile()
	if err != nil {
		return nil, err
	}
	parts["wasm"] = base64.StdEncoding.EncodeToString(wasm)
	parts["worker"] = parts["exec"] + "\n" + parts["worker"]
	for _, name := range []string{"worker", "script", "style"} {
		if strings.Contains(parts[name], "</") {
			return nil, fmt.Errorf("the %s holds %q, which would end its element", name, "</")
		}
	}
	parts["policy"] = "default-src 'none'; script-src " + hash(parts["script"]) + " 'wasm-unsafe-eval'; style-src " + hash(parts["style"]) +
		"; worker-src blob:; img-src data:; base-uri 'none'; form-action 'none'"
	page := parts["page"]
	for _, name := range []string{"policy", "style", "version", "script", "worker", "wasm"} {
		before, after, ok := strings.Cut(page, "{{"+name+"}}")
		if !ok {
			return nil, fmt.Errorf("page.html has no place for the %s", name)
		}
		page = before + parts[name] + after
	}
	return []byte(page + "\n"), nil
}

// compile returns the verifier as WebAssembly, compressed.
func compile() ([]byte, error) {
	dir, err := os.MkdirTemp("", "verifypage")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "verify.wasm")
	// Nothing of this machine, its folders or the state of its checkout.
	if _, err := goTool("build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", out, program); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	_, err = z.Write(raw)
	err = errors.Join(err, z.Close())
	return b.Bytes(), err
}

func goTool(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	if args[0] == "build" {
		cmd.Env = append(os.Environ(), "GOOS=js", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
	}
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, errOut.String())
	}
	return b, nil
}

// hash is a source's name in a policy.
func hash(source string) string {
	sum := sha256.Sum256([]byte(source))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
