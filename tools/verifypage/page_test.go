package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/tools/e2e/browser"
)

const vectors = "../../chain/proof/testdata/vectors"

// TestPage opens the page from disk in a real browser and judges bundles: what
// it says is what the published vectors say.
func TestPage(t *testing.T) {
	page, err := build("1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	again, err := build("1.2.3")
	if err != nil || !bytes.Equal(page, again) {
		t.Fatalf("made twice, it is not the same (%v)", err)
	}
	if _, err := panel.VerifierPolicy(page); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(page, []byte("href=")); n != 1 || bytes.Contains(page, []byte(" src=")) || bytes.Contains(page, []byte("@import")) {
		t.Errorf("the page loads something: %d href", n) // one: no icon
	}
	if _, err := exec.LookPath(browser.Program); err != nil {
		t.Skip("chromium is not installed (make setup)")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "verify.html")
	if err := os.WriteFile(file, page, 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := browser.Open(t.Context(), browser.Config{URL: "file://" + file, Width: 900, Height: 1500})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c := &checker{t: t, b: b}
	c.until("its version", `document.readyState === 'complete' && document.querySelector('footer').textContent.includes('1.2.3')`)
	c.until("a button that waits", `document.querySelector('#check').disabled`)

	var list []struct {
		File       string
		Checkpoint string
		OK         bool
		Red        string
	}
	raw, err := os.ReadFile(filepath.Join(vectors, "vectors.json"))
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil || len(list) < 5 {
		t.Fatalf("%d vectors, %v", len(list), err)
	}
	// All of them pass through the same program in cmd/joulegate-verify.
	seen := map[bool]int{}
	for _, v := range list {
		if seen[v.OK]++; seen[v.OK] > 3 {
			continue
		}
		c.files(filepath.Join(vectors, v.File), filepath.Join(vectors, "genesis.json"), v.Checkpoint)
		c.check()
		if v.OK {
			c.until("green for "+v.File, `document.querySelector('#verdict.green') && !document.querySelector('.checks .red') && document.querySelectorAll('.checks .ok').length > 10`)
			c.until("what it is worth", `/Assurance: .*(self-attested|signed by)/.test(document.querySelector('#assurance').textContent)`)
			continue
		}
		c.until("red for "+v.File+": "+v.Red, fmt.Sprintf(`document.querySelector('#verdict.red') && document.querySelector('.checks .red .name').lastChild.textContent === %q`, v.Red))
	}

	// The wrong genesis, no genesis, and what is no bundle.
	good := ""
	for _, v := range list {
		if v.OK && v.Checkpoint == "" {
			good = filepath.Join(vectors, v.File)
		}
	}
	genesis, err := os.ReadFile(filepath.Join(vectors, "genesis.json"))
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.json")
	must(t, os.WriteFile(other, append(genesis, '\n'), 0o644))
	c.files(good, other, "")
	c.check()
	c.until("that it is of another genesis", `/belongs to the trusted genesis/.test(document.querySelector('#assurance').textContent) && document.querySelectorAll('.checks .waits').length > 5`)
	none := filepath.Join(dir, "none.json")
	must(t, os.WriteFile(none, []byte("{}"), 0o644))
	c.files(good, none, "")
	c.check()
	c.until("that this is no genesis", `/could not be checked/.test(document.querySelector('#title').textContent) && /genesis/.test(document.querySelector('#assurance').textContent)`)
	c.files(none, filepath.Join(vectors, "genesis.json"), "")
	c.check()
	c.until("that this is no bundle", `/not a bundle/.test(document.querySelector('.checks .red').textContent)`)

	// A bundle larger than any memory that the page may take: it begins well,
	// then lies about a length, and is refused without being read.
	huge := filepath.Join(dir, "huge.jgb")
	head, err := os.ReadFile(good)
	must(t, err)
	must(t, os.WriteFile(huge, head[:len(head)/2], 0o644))
	must(t, os.Truncate(huge, 6<<30))
	c.files(huge, filepath.Join(vectors, "genesis.json"), "")
	c.check()
	c.until("that a huge one is broken", `document.querySelector('#verdict.red') && document.querySelector('#bundle-name').textContent.includes('MB')`)

	must(t, b.Size(360, 780, true))
	c.until("no sideways scrolling on a telephone", `innerWidth === 360 && document.documentElement.scrollWidth <= 360`)
	if len(b.Complaints) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(b.Complaints, "\n"))
	}
}

// TestPageServed serves the page as the panel does, where the browser holds it
// to its policy: not even the gateway can be reached from it.
func TestPageServed(t *testing.T) {
	if _, err := exec.LookPath(browser.Program); err != nil {
		t.Skip("chromium is not installed (make setup)")
	}
	page, err := build("1.2.3")
	must(t, err)
	file := filepath.Join(t.TempDir(), "verify.html")
	must(t, os.WriteFile(file, page, 0o644))
	s, err := panel.New(panel.Config{Verifier: file})
	must(t, err)
	web := httptest.NewServer(s.Handler(false))
	defer web.Close()
	res, err := http.Get(web.URL + "/verify")
	must(t, err)
	res.Body.Close()
	if csp := res.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "'wasm-unsafe-eval'") || strings.Contains(csp, "connect-src") || strings.Contains(csp, "unsafe-inline") {
		t.Errorf("policy %q", csp)
	}
	b, err := browser.Open(t.Context(), browser.Config{URL: web.URL + "/verify"})
	must(t, err)
	defer b.Close()
	c := &checker{t: t, b: b}
	c.until("its title", `document.readyState === 'complete' && document.title === 'Check a joulegate bundle'`)
	raw, err := os.ReadFile(filepath.Join(vectors, "vectors.json"))
	must(t, err)
	var list []struct {
		File string
		OK   bool
	}
	must(t, json.Unmarshal(raw, &list))
	for _, v := range list {
		if v.OK {
			c.files(filepath.Join(vectors, v.File), filepath.Join(vectors, "genesis.json"), "")
			break
		}
	}
	c.check()
	c.until("green", `document.querySelector('#verdict.green')`)
	if len(b.Complaints) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(b.Complaints, "\n"))
	}
	_, err = b.Eval(`(fetch('/api/v1/status').then(() => { document.title = 'reached' }, () => { document.title = 'barred' }), true)`)
	must(t, err)
	c.until("that it reaches nobody", `document.title === 'barred'`)
}

type checker struct {
	t       *testing.T
	b       *browser.Page
	pointed bool // a checkpoint is chosen
}

func (c *checker) until(what, js string) {
	c.t.Helper()
	must(c.t, c.b.Until(what, "!!("+js+")"))
}

func (c *checker) files(bundle, genesis, checkpoint string) {
	c.t.Helper()
	abs := func(path string) string {
		p, err := filepath.Abs(path)
		must(c.t, err)
		return p
	}
	if c.pointed {
		_, err := c.b.Eval("(location.reload(), true)")
		must(c.t, err)
		c.until("a fresh page", `document.readyState === 'complete' && document.querySelector('#checkpoint').files.length === 0`)
	}
	must(c.t, c.b.Files("#bundle", abs(bundle)))
	must(c.t, c.b.Files("#genesis", abs(genesis)))
	if c.pointed = checkpoint != ""; c.pointed {
		must(c.t, c.b.Files("#checkpoint", abs(filepath.Join(vectors, checkpoint))))
	}
	c.until("the chosen file", fmt.Sprintf(`document.querySelector('#bundle-name').textContent.startsWith(%q) && document.querySelector('#result').hidden`, filepath.Base(bundle)))
	c.until("the chosen genesis", fmt.Sprintf(`document.querySelector('#genesis-name').textContent.startsWith(%q)`, filepath.Base(genesis)))
}

func (c *checker) check() {
	c.t.Helper()
	_, err := c.b.Eval(`(document.querySelector('#check').click(), true)`)
	must(c.t, err)
	c.until("a verdict", `!document.querySelector('#result').hidden`)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
