package panel

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestPageInABrowser opens the page in a real browser: a person sees who
// produces, who charges, the price and why, and the ledger growing; nothing
// on the page breaks its own security policy.
func TestPageInABrowser(t *testing.T) {
	exe, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed (make setup)")
	}
	f := &fake{started: time.Now().Add(-90 * time.Second), height: 57}
	_, _, addr, _ := serve(t, f)
	b := openBrowser(t, exe, "http://"+addr+"/")

	for _, c := range []struct{ what, js string }{
		{"live", `document.querySelector('#link').textContent === 'live'`},
		{"who produces", `/house1.*sells 12 Wh/s.test(document.querySelector('.house.sells').textContent)`},
		{"a sun over two houses", `document.querySelectorAll('.house .sunball').length === 2`},
		{"who charges", `/house4.*this house.*buys 8 Wh.*car charging, 412 Wh/s.test(document.querySelector('#street').textContent)`},
		{"the car", `document.querySelectorAll('.house .body').length === 1`},
		{"the price", `document.querySelector('#price').textContent.replace(',', '.') === '0.193'`},
		{"and why", `document.querySelector('#why').textContent.startsWith('house1 and house2 sold 15 Wh to house3 and the car at house4.')`},
		{"this house's meters", `/House connection.*Solar inverter.*640 W.*relay closed/s.test(document.querySelector('#here').textContent)`},
		{"what a car sells, and at which price", `/gives 310 Wh of 900 Wh, sold from 0.10* per kWh.*delivers what was promised.*42 Wh promised.*3 Wh short/s.test(document.querySelector('#here').textContent.replaceAll(',1', '.1'))`},
		{"what it has received", `/gave 310 Wh, received 0.054/.test(document.querySelector('#sessions').textContent.replaceAll(',0', '.0'))`},
		{"the newest block", `document.querySelector('#blocks li').textContent.includes('#57')`},
		{"three sessions", `document.querySelectorAll('#sessions tbody tr').length === 3`},
		{"a discount used", `/used/.test(document.querySelector('#sessions').textContent)`},
		{"receipts", `document.querySelectorAll('#sessions a[href*="/receipts/"][href*="html"]').length === 2 && document.querySelectorAll('#sessions a[href*="ocmf"]').length === 2`},
		{"that nobody has attested it", `/no third party has attested/.test(document.querySelector('#ledger').textContent)`},
		{"the energy balance", `document.querySelector('#energy .equals').textContent === '='`},
		{"no sideways scrolling", `document.documentElement.scrollWidth <= innerWidth`},
	} {
		b.until(t, c.what, c.js)
	}
	f.tick()
	b.until(t, "a new block", `document.querySelector('#blocks li').textContent.includes('#58')`)
	b.until(t, "the theme switch", `(document.querySelector('#theme').click(), ['light', 'dark'].includes(document.documentElement.dataset.theme))`)
	b.call(t, "Emulation.setDeviceMetricsOverride", map[string]any{"width": 360, "height": 780, "deviceScaleFactor": 1, "mobile": true})
	b.until(t, "all of itself on a telephone", `innerWidth === 360 && document.documentElement.scrollWidth <= 360`)
	if len(b.complaints) > 0 {
		t.Errorf("the browser complains: %s", strings.Join(b.complaints, "\n"))
	}
}

// browser is one page of a headless Chromium, through its DevTools protocol.
type browser struct {
	ws         *websocket.Conn
	n          int
	complaints []string
}

func openBrowser(t *testing.T, exe, url string) *browser {
	t.Helper()
	profile := t.TempDir()
	cmd := exec.Command(exe, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0", "--user-data-dir="+profile, "--window-size=1280,1400", "about:blank")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); cleanup(profile) })
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	var endpoint string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if _, ws, ok := strings.Cut(lines.Text(), "listening on ws://"); ok {
			endpoint, _, _ = strings.Cut(ws, "/")
			break
		}
	}
	if !timer.Stop() || endpoint == "" {
		t.Fatal("chromium did not open its debugging port within a minute")
	}
	go func() { // it must not block on a full pipe
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
		}
	}()
	res, err := http.Get("http://" + endpoint + "/json")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var targets []struct {
		Type string `json:"type"`
		URL  string `json:"webSocketDebuggerUrl"`
	}
	if err := json.NewDecoder(res.Body).Decode(&targets); err != nil {
		t.Fatal(err)
	}
	for _, target := range targets {
		if target.Type != "page" {
			continue
		}
		ws, _, err := websocket.DefaultDialer.Dial(target.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.Close() })
		b := &browser{ws: ws}
		for _, domain := range []string{"Runtime", "Log", "Page"} {
			b.call(t, domain+".enable", nil)
		}
		b.call(t, "Page.navigate", map[string]any{"url": url})
		return b
	}
	t.Fatal("chromium has no page")
	return nil
}

// cleanup removes what a dying browser may still be writing.
func cleanup(dir string) {
	for range 50 {
		if os.RemoveAll(filepath.Join(dir)) == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// call makes one request and collects complaints that arrive meanwhile.
func (b *browser) call(t *testing.T, method string, params map[string]any) json.RawMessage {
	t.Helper()
	b.n++
	if err := b.ws.WriteJSON(map[string]any{"id": b.n, "method": method, "params": params}); err != nil {
		t.Fatal(err)
	}
	for {
		b.ws.SetReadDeadline(time.Now().Add(time.Minute))
		var m struct {
			ID     int             `json:"id"`
			Method string          `json:"method"`
			Params json.RawMessage `json:"params"`
			Result json.RawMessage `json:"result"`
		}
		if err := b.ws.ReadJSON(&m); err != nil {
			t.Fatal(err)
		}
		switch {
		case m.ID == b.n:
			return m.Result
		case m.Method == "Runtime.exceptionThrown", m.Method == "Log.entryAdded" && strings.Contains(string(m.Params), `"level":"error"`):
			b.complaints = append(b.complaints, fmt.Sprintf("%.400s", m.Params))
		}
	}
}

// until waits until a JavaScript expression is true.
func (b *browser) until(t *testing.T, what, js string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var out struct {
			Result struct{ Value any }
		}
		js := "(() => { try { return " + js + " } catch { return false } })()"
		if err := json.Unmarshal(b.call(t, "Runtime.evaluate", map[string]any{"expression": js}), &out); err != nil {
			t.Fatal(err)
		}
		if out.Result.Value == true {
			return
		}
		if time.Now().After(deadline) {
			text := b.call(t, "Runtime.evaluate", map[string]any{"expression": "document.body.innerText"})
			t.Fatalf("the page does not show %s within a minute:\n%s\n%s", what, text, strings.Join(b.complaints, "\n"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}
