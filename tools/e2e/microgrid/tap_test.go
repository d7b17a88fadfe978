package microgrid

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// cardNumber is what a reader says of the test's card.
const cardNumber = "04A1B2C3D4E5F6"

// card gives the test's card a token on g that payer can sign for.
func (g *gateway) card(payer chain.Key) (token chain.Key, arg string) {
	g.t.Helper()
	c := g.command("card", "add", "--payer", payer.String(), "--json")
	c.Stdin = strings.NewReader(cardNumber + "\n")
	out, err := c.Output()
	if err != nil {
		g.t.Fatalf("card add: %v", err)
	}
	var v struct {
		Token   chain.Key `json:"token"`
		Consent string    `json:"consent"`
	}
	if err := json.Unmarshal(out, &v); err != nil {
		g.t.Fatalf("card add printed %q: %v", out, err)
	}
	return v.Token, v.Token.String() + "." + v.Consent
}

func (g *gateway) readerSocket() string { return filepath.Join(g.state, "reader.sock") }

var tapCount = flag.Int("taps", 5, "taps that TestTap measures")

// tap shows what to the reader and returns its answer and how long the relay
// took to be as wanted.
func (g *grid) tap(at *gateway, what string, closed bool) (answer string, took time.Duration) {
	g.t.Helper()
	time.Sleep(time.Second) // a reader is listened to once a second
	conn, err := net.Dial("unix", at.readerSocket())
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	start := time.Now()
	if _, err := io.WriteString(conn, what+"\n"); err != nil {
		g.t.Fatal(err)
	}
	said := make(chan string, 1)
	go func() {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		s, _ := bufio.NewReader(conn).ReadString('\n')
		said <- strings.TrimSpace(s)
	}()
	for answer == "" || strings.HasPrefix(answer, "ok") && took == 0 {
		select {
		case answer = <-said:
			if answer == "" {
				g.t.Fatalf("%s: the reader did not answer", at.name)
			}
			said = nil
		case <-time.After(2 * time.Millisecond):
		}
		if took == 0 && g.street.State(at.index).Relay == closed {
			took = time.Since(start)
		}
		if time.Since(start) > patience {
			g.t.Fatalf("%s: tapped, %q, and the relay is closed: %t", at.name, answer, !closed)
		}
	}
	return answer, took
}

// idle waits until the charger is free.
func (g *grid) idle(at *gateway) {
	g.t.Helper()
	at.wait(patience, "free charger", func(ctx context.Context) (bool, any) {
		c, err := at.client.Chargers(ctx)
		return err == nil && len(c) == 1 && c[0].State == "idle", fmt.Sprintf("%+v %v", c, err)
	})
}

func (g *gateway) mandates(payer chain.Account) panel.Mandates {
	g.t.Helper()
	return must(g, func(ctx context.Context) (panel.Mandates, error) { return g.client.Mandates(ctx, payer) })
}

// TestTap charges with a card and with printed codes, with the ledger and
// without, and measures the time from the tap to the relay.
func TestTap(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 4)
	g.found()
	north, east := g.gateways[0], g.gateways[1]
	for _, to := range []string{"sys:grid", "sys:promotion"} {
		north.run("account", "mint", "--to", to, "--amount", "100", "--ref", "BANK-"+to)
	}
	anna := north.wallet("anna", "100")
	account := anna.Account()
	token, arg := east.card(anna.Public())
	if err := g.street.PlugIn(east.index, car("anna")); err != nil {
		t.Fatal(err)
	}
	if answer, _ := g.tap(east, cardNumber, false); !strings.HasPrefix(answer, "refused nobody pays") {
		t.Errorf("a card without mandate: %q", answer)
	}
	north.run("mandate", "sign", "--wallet", "anna", "--token", arg, "--per-tap", "2", "--per-day", "400", "--price", "1")
	seen := func(n int) {
		t.Helper()
		east.wait(patience, "mandate", func(context.Context) (bool, any) {
			m := east.mandates(account)
			return len(m.Mandates) == n, m
		})
	}
	seen(1)
	var with, without []time.Duration
	for range *tapCount {
		answer, took := g.tap(east, cardNumber, true)
		if !strings.HasPrefix(answer, "ok started") {
			t.Fatalf("tapped: %q", answer)
		}
		with = append(with, took)
		if answer, _ := g.tap(east, cardNumber, false); !strings.HasPrefix(answer, "ok stopped") {
			t.Fatalf("tapped again: %q", answer)
		}
		g.idle(east)
		time.Sleep(2 * time.Second) // the relay's pause
	}
	s := newest(t, east)
	if s.Driver != account || s.DriverKey != token {
		t.Errorf("session of %s with token %s, want %s with %s", s.Driver, s.DriverKey, account, token)
	}

	// A printed code, once.
	codes := ask[[]struct{ Code string }](north, "code", "new", "--wallet", "anna", "--per-tap", "1")
	seen(2)
	if answer, _ := g.tap(east, codes[0].Code, true); !strings.HasPrefix(answer, "ok started") {
		t.Fatalf("code: %q", answer)
	}
	if answer, _ := g.tap(east, strings.ToLower(codes[0].Code), false); !strings.HasPrefix(answer, "ok stopped") {
		t.Fatalf("code again: %q", answer)
	}
	g.idle(east)
	east.settled(newest(t, east).ID)
	east.wait(patience, "refusal of a used code", func(context.Context) (bool, any) {
		answer, _ := g.tap(east, codes[0].Code, false)
		if strings.HasPrefix(answer, "ok started") {
			t.Fatalf("a used code: %q", answer)
		}
		return strings.Contains(answer, "for 1 sessions"), answer
	})

	// No ledger: the neighbours are gone. Then only a reserve pays.
	north.run("mandate", "reserve", "6", "--wallet", "anna", "--gateway", "east")
	east.wait(patience, "reserve", func(context.Context) (bool, any) {
		m := east.mandates(account)
		return len(m.Reserves) == 1, m
	})
	others := []*gateway{north, g.gateways[2], g.gateways[3]}
	for _, gw := range others {
		gw.kill()
	}
	for range 2 { // of 2 each; the third would be the last
		answer, took := g.tap(east, cardNumber, true)
		if !strings.HasPrefix(answer, "ok started") || !strings.HasSuffix(answer, "without the ledger") {
			t.Fatalf("tapped without the ledger: %q", answer)
		}
		without = append(without, took)
		if answer, _ := g.tap(east, cardNumber, false); !strings.HasPrefix(answer, "ok stopped") {
			t.Fatalf("tapped again without the ledger: %q", answer)
		}
		g.idle(east)
		time.Sleep(2 * time.Second)
	}
	for _, gw := range others {
		gw.start()
	}
	east.wait(2*patience, "sessions on the ledger", func(ctx context.Context) (bool, any) {
		all, err := east.client.Sessions(ctx)
		n := 0
		for _, s := range all {
			if s.State == ledger.SessionClosed {
				n++
			}
		}
		return err == nil && n == len(all) && n >= 8, fmt.Sprintf("%d of %d closed, %v", n, len(all), err)
	})
	g.agree()

	// Neither the card nor the code is anywhere in the state or the log.
	for _, gw := range g.gateways {
		gw.stop()
		for _, secret := range []string{cardNumber, strings.ToLower(cardNumber), codes[0].Code} {
			if hits := holding(t, gw.state, gw.log, secret); len(hits) > 0 {
				t.Errorf("%s: %q is in %v", gw.name, secret, hits)
			}
		}
	}
	slices.Sort(with)
	slices.Sort(without)
	t.Logf("tap to relay with the ledger: median %s, p95 %s, worst of %d %s; without: worst of %d %s",
		with[len(with)/2], with[len(with)*95/100], len(with), with[len(with)-1], len(without), without[len(without)-1])
}

// newest returns the session that was opened last at g.
func newest(t *testing.T, g *gateway) panel.Session {
	t.Helper()
	all := must(g, g.client.Sessions)
	if len(all) == 0 {
		t.Fatal("there is no session")
	}
	return slices.MaxFunc(all, func(a, b panel.Session) int { return int(a.OpenedMs - b.OpenedMs) })
}

// holding returns the files of a state folder, and the log, that hold secret.
func holding(t *testing.T, state, log, secret string) (hits []string) {
	t.Helper()
	err := filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(secret)) {
			hits = append(hits, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(log); err == nil && bytes.Contains(b, []byte(secret)) {
		hits = append(hits, log)
	}
	return hits
}
