// Command picture takes the picture of the demonstration that the README
// shows: it runs the program, waits until there is something to see, and lets
// a headless browser photograph the panel.
//
//	go run ./tools/e2e/picture -program bin/joulegate -out docs/demo.png
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/tools/e2e/browser"
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
	png, err := photograph(ctx, address)
	if err != nil {
		return err
	}
	return os.WriteFile(out, png, 0o644)
}

// photograph opens a page in a headless browser, waits until it shows live
// data, and returns a picture of it.
func photograph(ctx context.Context, address string) ([]byte, error) {
	p, err := browser.Open(ctx, browser.Config{URL: address, Width: 1180, Height: 1240})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if err := p.Until("sessions and cars", `document.querySelectorAll("#sessions tbody tr").length > 2 && document.querySelectorAll(".house .body").length > 1`); err != nil {
		return nil, err
	}
	time.Sleep(time.Second) // what has just appeared fades in
	return p.Picture(false)
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
