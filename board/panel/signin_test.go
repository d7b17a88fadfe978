package panel

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
)

// TestSignIn: what a browser got is good for half an hour, for who made it.
func TestSignIn(t *testing.T) {
	key, other := make([]byte, KeyBytes), []byte(strings.Repeat("x", KeyBytes))
	now := time.Unix(1_700_000_000, 0)
	in := issue(key, now)
	flip := func(i int) string {
		b := []byte(in.Token)
		b[i] ^= 1
		return string(b)
	}
	for _, c := range []struct {
		what  string
		key   []byte
		token string
		at    time.Time
		want  bool
	}{
		{"at once", key, in.Token, now, true},
		{"at its end", key, in.Token, in.Expires, false},
		{"shortly before", key, in.Token, in.Expires.Add(-time.Second), true},
		{"of a clock set back by a day", key, in.Token, now.Add(-24 * time.Hour), false},
		{"of another gateway", other, in.Token, now, false},
		{"without a key", nil, in.Token, now, false},
		{"changed in its time", key, flip(3), now, false},
		{"changed in its seal", key, flip(20), now, false},
		{"cut", key, in.Token[:20], now, false},
		{"empty", key, "", now, false},
	} {
		if got := signedIn(c.key, c.token, c.at); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

// keeper keeps one configuration and tells what was wanted.
type keeper struct {
	text   string
	wanted []string
}

func (k *keeper) ConfigView(context.Context) (ConfigView, error) {
	return ConfigView{Rev: 7, Text: k.text, By: "file"}, nil
}

func (k *keeper) ConfigChange(_ context.Context, d config.Desired, by string) (ConfigResult, error) {
	k.wanted = append(k.wanted, by+" "+d.Mode)
	cur, err := config.Parse([]byte(k.text))
	if err != nil {
		return ConfigResult{}, err
	}
	next, err := d.Patch(cur)
	return ConfigResult{Txn: d.Txn, State: "valid", Changes: config.Diff(cur, next)}, err
}

func (k *keeper) ConfigConfirm(_ context.Context, txn string) (ConfigResult, error) {
	k.wanted = append(k.wanted, "confirm "+txn)
	return ConfigResult{Txn: txn, State: config.Confirmed}, nil
}

func (k *keeper) ConfigRollback(_ context.Context, txn string) (ConfigResult, error) {
	return ConfigResult{}, &config.Denial{Code: config.NothingToDo, Text: "no change is under way"}
}

// bearer signs requests in, as the page does.
type bearer struct {
	http.RoundTripper
	token string
}

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.RoundTripper.RoundTrip(r)
}

// TestSettingsNeedASignIn: the page tells nobody the settings and changes none
// without a code, and changes none where changes have to be signed.
func TestSettingsNeedASignIn(t *testing.T) {
	k := &keeper{text: string(config.Render(config.Sample("north")))}
	tcp, control, _, _ := serveWith(t, &fake{}, func(c *Config) { c.Settings, c.SettingsKey = k, make([]byte, KeyBytes) })
	ctx := t.Context()
	in := &bearer{RoundTripper: tcp.http.Transport}
	tcp.http.Transport = in
	status := func(err error) int {
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("%v is no answer of a panel", err)
		}
		return e.Status
	}
	change := config.Desired{Txn: "a", Base: 7, Mode: config.Merge, ConfirmS: 60, Config: []byte(`{"panel":{"listen":"127.0.0.1:8081"}}`)}
	for _, token := range []string{"", "x"} {
		in.token = token
		if _, err := get[settingsView](ctx, tcp, "/settings"); status(err) != http.StatusUnauthorized {
			t.Error(err)
		}
		if _, err := tcp.ConfigView(ctx); status(err) != http.StatusUnauthorized {
			t.Error(err)
		}
		if _, err := tcp.ConfigChange(ctx, change, ""); status(err) != http.StatusUnauthorized {
			t.Error(err)
		}
		if _, err := tcp.ConfigConfirm(ctx, "a"); status(err) != http.StatusUnauthorized {
			t.Error(err)
		}
	}
	if _, err := tcp.SignInCode(ctx); status(err) != http.StatusNotFound {
		t.Errorf("a code for whoever asks: %v", err)
	}
	signIn := func(code string) error {
		s, err := call[SignIn](ctx, tcp, http.MethodPost, "/settings/session", map[string]string{"code": code})
		in.token = s.Token
		return err
	}
	// Three tries, then the right code is of no use either.
	code, err := control.SignInCode(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range codeTries {
		if err := signIn("x" + code.Code[1:]); status(err) != http.StatusForbidden {
			t.Error(err)
		}
	}
	if err := signIn(code.Code); status(err) != http.StatusForbidden {
		t.Errorf("guessed for ever: %v", err)
	}
	if code, err = control.SignInCode(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := call[struct{}](ctx, tcp, http.MethodPost, "/guard/orders", GuardOrder{Do: "resume", Code: code.Code}); status(err) != http.StatusForbidden {
		t.Errorf("a code for settings gives orders to the guard: %v", err)
	}
	if err := signIn(code.Code); err != nil {
		t.Fatal(err)
	}
	token := in.token
	if err := signIn(code.Code); status(err) != http.StatusForbidden {
		t.Errorf("a code is good twice: %v", err)
	}
	in.token = token

	v, err := get[settingsView](ctx, tcp, "/settings")
	if err != nil || v.Rev != 7 || v.Config["name"] != "north" || v.Schema["properties"] == nil || v.Sealed {
		t.Fatalf("%+v %v", v, err)
	}
	if r, err := tcp.ConfigChange(ctx, change, ""); err != nil || len(r.Changes) != 1 || r.Changes[0].New != "127.0.0.1:8081" {
		t.Errorf("%+v %v", r, err)
	}
	wrong := change
	wrong.Config = []byte(`{"meters":[{"id":"house","unit":300}]}`)
	if r, err := tcp.ConfigChange(ctx, wrong, ""); err != nil || r.State != "rejected" || len(r.Errors) == 0 || r.Errors[0].Path == "" {
		t.Errorf("errors without their paths: %+v %v", r, err)
	}
	if r, err := tcp.ConfigRollback(ctx, "a"); err != nil || r.Code != config.NothingToDo {
		t.Errorf("%+v %v", r, err)
	}

	// With installers' keys the page looks, and tries.
	c := config.Sample("north")
	c.Installers = []string{pub(key("installer")).String()}
	k.text, k.wanted = string(config.Render(c)), nil
	if v, err := get[settingsView](ctx, tcp, "/settings"); err != nil || !v.Sealed {
		t.Fatalf("%+v %v", v, err)
	}
	for _, f := range []func() (ConfigResult, error){
		func() (ConfigResult, error) { return tcp.ConfigChange(ctx, change, "") },
		func() (ConfigResult, error) { return tcp.ConfigConfirm(ctx, "a") },
		func() (ConfigResult, error) { return tcp.ConfigRollback(ctx, "a") },
	} {
		if r, err := f(); err != nil || r.Code != config.Unsigned {
			t.Errorf("%+v %v", r, err)
		}
	}
	change.Mode = config.DryRun
	if r, err := tcp.ConfigChange(ctx, change, ""); err != nil || r.State != "valid" {
		t.Errorf("%+v %v", r, err)
	}
	if len(k.wanted) != 1 || k.wanted[0] != "page dry_run" {
		t.Errorf("%q reached the configuration", k.wanted)
	}
}
