// Package browser drives one page of a headless Chromium through its DevTools
// protocol, for tests and pictures.
//
//	p, err := browser.Open(ctx, browser.Config{URL: "http://127.0.0.1:8080/"})
//	defer p.Close()
//	err = p.Until("a price", `document.querySelector('#price').textContent !== ''`)
//
// The browser has a profile of its own, which is removed, and makes no traffic
// but the page's. A Page is used by one goroutine.
package browser

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// Program is the browser. Who has none may say so and go on.
const Program = "chromium"

// patience is how long the browser may take for one answer, and a page for
// what it is waited for; machines are busy.
const patience = time.Minute

// Config says what to open.
type Config struct {
	URL           string
	Width, Height int // CSS pixels; zero: 1280 by 1400
}

// Page is the browser's only page.
type Page struct {
	// Complaints are the exceptions and errors that the page has told so far.
	Complaints []string

	ws   *websocket.Conn
	cmd  *exec.Cmd
	dir  string
	last int
}

// Open starts the browser and goes to the URL. ctx ends the browser.
func Open(ctx context.Context, cfg Config) (_ *Page, err error) {
	dir, err := os.MkdirTemp("", "browser")
	if err != nil {
		return nil, err
	}
	p := &Page{dir: dir}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if cfg.Width == 0 {
		cfg.Width, cfg.Height = 1280, 1400
	}
	p.cmd = exec.CommandContext(ctx, Program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
		"--force-prefers-reduced-motion", "--remote-debugging-port=0", "--user-data-dir="+dir, fmt.Sprintf("--window-size=%d,%d", cfg.Width, cfg.Height), "about:blank")
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	lines := bufio.NewScanner(stderr)
	endpoint := ""
	for endpoint == "" && lines.Scan() {
		if _, ws, ok := strings.Cut(lines.Text(), "listening on ws://"); ok {
			endpoint, _, _ = strings.Cut(ws, "/")
		}
	}
	if !timer.Stop() || endpoint == "" {
		return nil, fmt.Errorf("%s did not open its debugging port within %s", Program, patience)
	}
	go func() { // it must not block on a full pipe
		for lines.Scan() {
		}
	}()
	if p.ws, err = attach(ctx, endpoint); err != nil {
		return nil, fmt.Errorf("%s: %w", Program, err)
	}
	for _, domain := range []string{"Runtime", "Log", "Page", "DOM"} {
		if _, err := p.Call(domain+".enable", nil); err != nil {
			return nil, err
		}
	}
	return p, p.Go(cfg.URL)
}

// attach connects to the browser's only page.
func attach(ctx context.Context, endpoint string) (*websocket.Conn, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+endpoint+"/json", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var targets []struct {
		Type string `json:"type"`
		URL  string `json:"webSocketDebuggerUrl"`
	}
	if err := json.NewDecoder(res.Body).Decode(&targets); err != nil {
		return nil, err
	}
	for _, t := range targets {
		if t.Type == "page" {
			ws, _, err := websocket.DefaultDialer.DialContext(ctx, t.URL, nil) //nolint:bodyclose // the handshake's body is the connection
			return ws, err
		}
	}
	return nil, errors.New("it has no page")
}

// Close ends the browser and removes its profile.
func (p *Page) Close() {
	if p.ws != nil {
		p.ws.Close()
	}
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
	for range 50 { // a dying browser may still be writing
		if os.RemoveAll(p.dir) == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Call makes one request and gathers complaints that arrive meanwhile.
func (p *Page) Call(method string, params map[string]any) (json.RawMessage, error) {
	p.last++
	if err := p.ws.WriteJSON(map[string]any{"id": p.last, "method": method, "params": params}); err != nil {
		return nil, err
	}
	for {
		_ = p.ws.SetReadDeadline(time.Now().Add(patience))
		var m struct {
			ID     int             `json:"id"`
			Method string          `json:"method"`
			Params json.RawMessage `json:"params"`
			Result json.RawMessage `json:"result"`
			Error  *struct {
				Message string `json:"message"`
			} `json:"error"`
		}
		if err := p.ws.ReadJSON(&m); err != nil {
			return nil, fmt.Errorf("%s: %w", method, err)
		}
		switch {
		case m.ID == p.last && m.Error != nil:
			return nil, fmt.Errorf("%s: %s", method, m.Error.Message)
		case m.ID == p.last:
			return m.Result, nil
		case m.Method == "Runtime.exceptionThrown", m.Method == "Log.entryAdded" && strings.Contains(string(m.Params), `"level":"error"`):
			p.Complaints = append(p.Complaints, fmt.Sprintf("%.400s", m.Params))
		}
	}
}

// Go goes to a URL.
func (p *Page) Go(url string) error {
	_, err := p.Call("Page.navigate", map[string]any{"url": url})
	return err
}

// Eval returns the value of a JavaScript expression; nil where it throws.
func (p *Page) Eval(js string) (any, error) {
	b, err := p.Call("Runtime.evaluate", map[string]any{"expression": "(() => { try { return " + js + " } catch { return null } })()", "returnByValue": true})
	if err != nil {
		return nil, err
	}
	var out struct {
		Result struct{ Value any }
	}
	err = json.Unmarshal(b, &out)
	return out.Result.Value, err
}

// Until waits until a JavaScript expression is true. Its error tells what the
// page shows instead.
func (p *Page) Until(what, js string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		v, err := p.Eval(js)
		if err != nil || v == true {
			return err
		}
		if time.Now().After(deadline) {
			text, _ := p.Eval("document.body.innerText")
			return fmt.Errorf("the page does not show %s within %s:\n%v\n%s", what, patience, text, strings.Join(p.Complaints, "\n"))
		}
	}
}

// Size sets the size of the view in CSS pixels, as of a telephone if mobile.
func (p *Page) Size(width, height int, mobile bool) error {
	_, err := p.Call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile})
	return err
}

// Files puts files, or none, into the input that a selector names, as a person
// does.
func (p *Page) Files(selector string, files ...string) error {
	b, err := p.Call("Runtime.evaluate", map[string]any{"expression": fmt.Sprintf("document.querySelector(%q)", selector)})
	if err != nil {
		return err
	}
	var v struct {
		Result struct {
			ObjectID string `json:"objectId"`
		} `json:"result"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	_, err = p.Call("DOM.setFileInputFiles", map[string]any{"files": append([]string{}, files...), "objectId": v.Result.ObjectID})
	return err
}

// Picture returns what is in view as PNG, or the whole page.
func (p *Page) Picture(whole bool) ([]byte, error) {
	b, err := p.Call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": whole})
	if err != nil {
		return nil, err
	}
	var v struct{ Data []byte }
	err = json.Unmarshal(b, &v)
	return v.Data, err
}
