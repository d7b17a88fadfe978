// Command picture takes the picture of the demonstration that the README
// shows: it runs the program, waits until there is something to see, and lets
// a headless browser photograph the panel.
//
//	go run ./tools/e2e/picture -program bin/joulegate -out docs/demo.png
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain/ledger"
)

func main() {
	program := flag.String("program", "bin/joulegate", "the joulegate to run")
	out := flag.String("out", "docs/demo.png", "where the picture goes")
	seed := flag.String("seed", "1", "of the demonstration")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if err := run(ctx, *program, *out, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "picture:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, program, out, seed string) (err error) {
	out, err = filepath.Abs(out)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "jgpic")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	demo := exec.Command(program, "demo", "--state", filepath.Join(dir, "s"), "--seed", seed)
	demo.Stderr = os.Stderr
	if err := demo.Start(); err != nil {
		return err
	}
	defer func() {
		_ = demo.Process.Signal(syscall.SIGINT)
		err = errors.Join(err, demo.Wait())
	}()

	address, err := wait(ctx, filepath.Join(dir, "s", "demo.json"))
	if err != nil {
		return err
	}
	png, err := photograph(ctx, filepath.Join(dir, "profile"), address)
	if err != nil {
		return err
	}
	return os.WriteFile(out, png, 0o644)
}

// photograph opens a page in a headless browser, waits until it shows live
// data, and returns a picture of it. It speaks the DevTools protocol.
func photograph(ctx context.Context, profile, address string) ([]byte, error) {
	// A profile of its own and no traffic but to the panel.
	cmd := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
		"--force-prefers-reduced-motion", "--remote-debugging-port=0", "--user-data-dir="+profile, "--window-size=1180,1240", address)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(stderr)
	endpoint := ""
	for endpoint == "" && lines.Scan() {
		if _, ws, ok := strings.Cut(lines.Text(), "listening on ws://"); ok {
			endpoint, _, _ = strings.Cut(ws, "/")
		}
	}
	go func() { // it must not block on a full pipe
		for lines.Scan() {
		}
	}()
	page, err := attach(ctx, endpoint)
	if err != nil {
		return nil, fmt.Errorf("chromium: %w", err)
	}
	defer page.Close()
	for id := 1; ; id++ {
		if err := page.WriteJSON(map[string]any{"id": id, "method": "Runtime.evaluate", "params": map[string]any{
			"expression": `document.querySelectorAll("#sessions tbody tr").length > 2 && document.querySelectorAll(".house .body").length > 1`,
		}}); err != nil {
			return nil, err
		}
		var r struct {
			Result struct {
				Result struct {
					Value bool `json:"value"`
				} `json:"result"`
			} `json:"result"`
		}
		if err := page.ReadJSON(&r); err != nil {
			return nil, err
		}
		if r.Result.Result.Value {
			break
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the page shows nothing: %w", ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
	time.Sleep(time.Second) // what has just appeared fades in
	if err := page.WriteJSON(map[string]any{"id": 0, "method": "Page.captureScreenshot", "params": map[string]any{"format": "png"}}); err != nil {
		return nil, err
	}
	var r struct {
		Result struct {
			Data []byte `json:"data"`
		} `json:"result"`
	}
	if err := page.ReadJSON(&r); err != nil {
		return nil, err
	}
	return r.Result.Data, nil
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
			c, handshake, err := websocket.DefaultDialer.DialContext(ctx, t.URL, nil)
			if handshake != nil {
				handshake.Body.Close()
			}
			return c, err
		}
	}
	return nil, errors.New("it has no page")
}

// wait returns the address of a panel once a session has been settled there
// and another one is charging in the same street.
func wait(ctx context.Context, index string) (string, error) {
	var demo struct {
		Gateways []struct {
			Panel   string `json:"panel"`
			Control string `json:"control"`
		} `json:"gateways"`
	}
	var c *panel.Client
	for {
		if c == nil {
			if b, err := os.ReadFile(index); err == nil && json.Unmarshal(b, &demo) == nil && len(demo.Gateways) > 1 {
				c = panel.Dial(demo.Gateways[1].Control)
				defer c.Close()
			}
		} else if sessions, err := c.Sessions(ctx); err == nil {
			charging, closed := 0, 0
			for _, s := range sessions {
				if s.State == ledger.SessionCharging && s.Wh > 0 {
					charging++
				}
				if s.State == ledger.SessionClosed {
					closed++
				}
			}
			if charging >= 2 && closed >= 2 {
				return demo.Gateways[1].Panel, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("nothing to see yet: %w", ctx.Err())
		case <-time.After(500 * time.Millisecond):
		}
	}
}
