package access

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/joulegate/joulegate/chain"
)

const number = "04A1B2C3D4E5F6"

func book(t testing.TB) (*Book, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cards.json")
	b, err := OpenBook(path, [32]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return b, path
}

func uid(t testing.TB, s string) UID {
	t.Helper()
	u, ok := ParseUID(s)
	if !ok {
		t.Fatalf("%s is no card's number", s)
	}
	return u
}

func TestACardKeepsItsToken(t *testing.T) {
	b, path := book(t)
	if _, err := b.Find(uid(t, number)); !errors.Is(err, ErrUnknown) {
		t.Fatalf("an empty book: %v", err)
	}
	c, err := b.Add(uid(t, number), "blue fob", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenBook(path, b.secret) // another program, or after a restart
	if err != nil {
		t.Fatal(err)
	}
	for _, spelling := range []string{number, strings.ToLower(number), "04:a1:b2:c3:d4:e5:f6", " 04 A1 B2 C3 D4 E5 F6\r"} {
		key, err := again.Find(uid(t, spelling))
		if err != nil || public(key) != c.Token {
			t.Errorf("%q: %v", spelling, err)
		}
	}
	if _, err := b.Add(uid(t, number), "", time.Now()); err == nil {
		t.Error("one card has two tokens")
	}
	_, payer, _ := ed25519.GenerateKey(rand.Reader)
	sig, err := b.Consent(c.Token, "grid", public(payer))
	if err != nil || !chain.Verify(c.Token, chain.DomainMandate, chain.ConsentBytes("grid", public(payer)), sig) {
		t.Errorf("consent: %v", err)
	}
	if _, err := again.Revoke(c.Token, time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Find(uid(t, number)); !errors.Is(err, ErrRevoked) {
		t.Errorf("a revoked card: %v", err)
	}
	n, err := b.Add(uid(t, number), "", time.Now())
	if err != nil || n.Token == c.Token {
		t.Errorf("added again: %v, the same token: %t", err, n.Token == c.Token)
	}
	if key, err := b.Find(uid(t, number)); err != nil || public(key) != n.Token {
		t.Errorf("added again: %v", err)
	}
}

// Neither the card's number nor the token's key can be read in the file, and
// nobody else's key opens it.
func TestTheBookTellsNothing(t *testing.T) {
	b, path := book(t)
	u := uid(t, number)
	if _, err := b.Add(u, "", time.Now()); err != nil {
		t.Fatal(err)
	}
	key, _ := b.Find(u)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{number, strings.ToLower(number), string(u), string(key.Seed()), fmt.Sprintf("%x", key.Seed())} {
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("the file holds %q", secret)
		}
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %#o", info.Mode().Perm())
	}
	for _, s := range []string{fmt.Sprint(u), fmt.Sprintf("%x %q %#v %d", u, u, u, []byte(nil)), slog.AnyValue(u).String()} {
		if strings.Contains(strings.ToUpper(s), "A1B2") {
			t.Errorf("a card prints as %s", s)
		}
	}
	other, err := OpenBook(path, [32]byte{9})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Find(u); !errors.Is(err, ErrUnknown) {
		t.Errorf("another operator's key finds the card: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBook(path, b.secret); err == nil {
		t.Error("a book that everybody can read is opened")
	}
}

func TestCodes(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		code, key, err := NewCode(rand.Reader)
		if err != nil || seen[code] {
			t.Fatalf("%v, twice: %t", err, seen[code])
		}
		seen[code] = true
		for _, typed := range []string{code, strings.ToLower(code), strings.ReplaceAll(code, "-", ""), " " + strings.ReplaceAll(code, "0", "o") + "\n", strings.ReplaceAll(code, "1", "l")} {
			if got, err := ParseCode(typed); err != nil || !got.Equal(key) {
				t.Fatalf("%q: %v", typed, err)
			}
		}
		if _, isCard := ParseUID(code); isCard {
			t.Fatalf("code %s is taken for a card", code)
		}
		wrong := []byte(strings.ReplaceAll(code, "-", ""))
		wrong[7] = map[bool]byte{true: 'Y', false: 'X'}[wrong[7] == 'X']
		if _, err := ParseCode(string(wrong)); !errors.Is(err, ErrCode) {
			t.Fatalf("a mistyped code: %v", err)
		}
	}
}

// desk remembers who tapped.
type desk struct {
	mu   sync.Mutex
	taps []chain.Key
	err  error
}

func (d *desk) Tap(_ context.Context, key ed25519.PrivateKey) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.taps = append(d.taps, public(key))
	return "started", d.err
}

func TestReaderOnASocket(t *testing.T) {
	b, _ := book(t)
	c, err := b.Add(uid(t, number), "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	code, key, _ := NewCode(rand.Reader)
	var log bytes.Buffer
	d := &desk{}
	path := filepath.Join(t.TempDir(), "reader.sock")
	r, err := New(Config{Socket: path, Book: b, Desk: d, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var conn net.Conn
	for deadline := time.Now().Add(10 * time.Second); conn == nil && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		conn, _ = net.Dial("unix", path)
	}
	if conn == nil {
		t.Fatal("the reader's socket does not open")
	}
	answers := bufio.NewReader(conn)
	say := func(line string) string {
		t.Helper()
		r.mu.Lock()
		r.last = time.Time{} // a second later
		r.mu.Unlock()
		if _, err := io.WriteString(conn, line+"\n"); err != nil {
			t.Fatal(err)
		}
		s, err := answers.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(s)
	}
	if got := say(number); got != "ok started" {
		t.Error(got)
	}
	if got := say(code); got != "ok started" {
		t.Error(got)
	}
	if got := say("04FFFFFFFFFFFF"); !strings.HasPrefix(got, "refused nobody knows") {
		t.Error(got)
	}
	d.err = errors.New("no mandate")
	if got := say(number); got != "refused no mandate" {
		t.Error(got)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(d.taps) != 3 || d.taps[0] != c.Token || d.taps[1] != public(key) {
		t.Errorf("taps %v", d.taps)
	}
	for _, secret := range []string{number, strings.ToLower(number), code, "04FFFFFFFFFFFF"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds %q:\n%s", secret, log.String())
		}
	}
}

func TestReaderOnADevice(t *testing.T) {
	b, _ := book(t)
	if _, err := b.Add(uid(t, number), "", time.Now()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "reader")
	if err := mkfifo(path); err != nil {
		t.Fatal(err)
	}
	d := &desk{}
	r, err := New(Config{Device: path, Book: b, Desk: d, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		_, _ = w.WriteString(strings.Repeat("x", 3*maxLine) + "\r\n" + number + "\r\n")
		d.mu.Lock()
		n := len(d.taps)
		d.mu.Unlock()
		if n > 0 {
			break
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(d.taps) == 0 {
		t.Error("nobody tapped")
	}
}

// A reader that guesses is not listened to, and one that repeats itself is
// slowed down.
func TestReaderIsSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := book(t)
		if _, err := b.Add(uid(t, number), "", time.Now()); err != nil {
			t.Fatal(err)
		}
		d := &desk{}
		r, err := New(Config{Socket: "x", Book: b, Desk: d, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		tap := func(line, want string) {
			t.Helper()
			if got := r.tap(t.Context(), line); !strings.Contains(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		}
		tap(number, "ok")
		tap(number, "too fast")
		for i := range maxUnknown {
			time.Sleep(tapPause)
			tap(fmt.Sprintf("04FFFFFFFFFF%02x", i), "nobody knows")
		}
		time.Sleep(tapPause)
		tap(number, "too many unknown")
		time.Sleep(lockTime)
		tap(number, "ok")
		if len(d.taps) != 2 {
			t.Errorf("%d taps reached the desk", len(d.taps))
		}
	})
}

// Whatever a reader says, the desk hears of known cards and codes only, and
// the answer does not repeat it.
func FuzzTap(f *testing.F) {
	b, _ := book(f)
	if _, err := b.Add(uid(f, number), "", time.Now()); err != nil {
		f.Fatal(err)
	}
	code, _, _ := NewCode(rand.Reader)
	for _, s := range []string{number, code, "", "04", "GET / HTTP/1.0", strings.Repeat("0", 200), "\x00\xff", "04:A1:B2:C3:D4:E5:F6"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		d := &desk{}
		r, err := New(Config{Socket: "x", Book: b, Desk: d, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		got := r.tap(t.Context(), line)
		if strings.HasPrefix(got, "ok") != (len(d.taps) == 1) {
			t.Fatalf("%q, and the desk heard %d taps", got, len(d.taps))
		}
		if len(line) >= 24 && len(d.taps) == 0 && strings.Contains(got, line) {
			t.Fatalf("the answer %q repeats the line", got)
		}
	})
}
