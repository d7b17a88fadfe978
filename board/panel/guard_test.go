package panel

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// The page shows what the guard does and names nobody; orders need a code that
// only the control socket makes.
func TestGuardOnThePage(t *testing.T) {
	f := &fake{}
	tcp, control, _, _ := serve(t, f)
	page, err := http.Get(tcp.base + "/guard/card")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(page.Body)
	page.Body.Close()
	if err != nil || page.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", page.Status, err)
	}
	for _, secret := range []string{"192.0.2.66", "secret", "66@66"} {
		if strings.Contains(string(b), secret) {
			t.Errorf("the page tells %q: %s", secret, b)
		}
	}
	for _, want := range []string{`"id":12`, `"id":13`, "load.miner", "an address answers from"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the page does not tell %q: %s", want, b)
		}
	}
	if _, err := tcp.Guard(t.Context()); err == nil {
		t.Error("findings are told to every browser")
	}
	if _, err := tcp.GuardCode(t.Context()); err == nil {
		t.Error("the page makes itself a code")
	}

	release := GuardOrder{Do: "release", ID: 12}
	forbidden := func(err error) bool {
		var e *Error
		return errors.As(err, &e) && e.Status == http.StatusForbidden
	}
	if err := tcp.GuardOrder(t.Context(), release); !forbidden(err) {
		t.Errorf("without a code: %v", err)
	}
	code, err := control.GuardCode(t.Context())
	if err != nil || len(code.Code) != 8 {
		t.Fatalf("%+v, %v", code, err)
	}
	wrong := release
	wrong.Code = "x" + code.Code[1:]
	if err := tcp.GuardOrder(t.Context(), wrong); !forbidden(err) {
		t.Errorf("with a wrong code: %v", err)
	}
	right := release
	right.Code = code.Code
	if err := tcp.GuardOrder(t.Context(), right); err != nil {
		t.Error(err)
	}
	if err := tcp.GuardOrder(t.Context(), right); !forbidden(err) {
		t.Errorf("a code is good twice: %v", err)
	}
	code, err = control.GuardCode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range codeTries {
		_ = tcp.GuardOrder(t.Context(), wrong)
	}
	right.Code = code.Code
	if err := tcp.GuardOrder(t.Context(), right); !forbidden(err) {
		t.Errorf("a code may be guessed for ever: %v", err)
	}
	if err := control.GuardOrder(t.Context(), GuardOrder{Do: "answer", ID: 13, Yes: true}); err != nil {
		t.Errorf("at the gateway itself: %v", err)
	}
	if len(f.guardOrders) != 2 || f.guardOrders[1].ID != 13 || !f.guardOrders[1].Yes {
		t.Errorf("the guard heard %+v", f.guardOrders)
	}
}

func TestACodeExpires(t *testing.T) {
	var c codes
	now := time.Now()
	if c.spend("", now) {
		t.Error("no code is a code")
	}
	code, err := c.make(now)
	if err != nil {
		t.Fatal(err)
	}
	if c.spend(code.Code, now.Add(codeLife)) {
		t.Error("an old code is taken")
	}
	if !c.spend(code.Code, now.Add(codeLife-time.Second)) {
		t.Error("a code is not taken in its time")
	}
}

func TestGuardReport(t *testing.T) {
	tcp, _, _, _ := serve(t, &fake{})
	from := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	r, err := tcp.GuardReport(t.Context(), from, from.Add(time.Hour))
	if err != nil || !r.From.Equal(from) || len(r.Clauses) == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	res, err := http.Get(tcp.base + "/guard/report")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	if !strings.Contains(res.Header.Get("Content-Type"), "text/html") || !strings.Contains(res.Header.Get("Content-Security-Policy"), "default-src 'none'") || !strings.Contains(string(b), "verifiable by a third party") {
		t.Errorf("%v\n%.200s", res.Header, b)
	}
}

func TestDiscreetKeepsHosts(t *testing.T) {
	s := guard.Subject{Kind: guard.Host, Value: "192.0.2.7"}
	if Discreet(s) != s || Discreet(guard.Subject{Kind: guard.Name, Value: "a.example"}).Value != "" {
		t.Error("hosts are for the broker, names are not")
	}
}
