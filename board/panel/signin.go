package panel

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/config"
)

// Whoever changes settings on the page signs in with a code from the control
// socket. What the browser gets for it outlives the gateway's process, because
// a change is confirmed after the gateway has started anew with it.
//
//	joulegate config code ──▶ 12345678 ──▶ page ──▶ POST /settings/session
//	                                         ◀── token, good for signInLife

// KeyBytes is the length of the key that sign-ins are made with.
const KeyBytes = 32

// signInLife is how long the page may change settings without another code.
const signInLife = 30 * time.Minute

// SignIn lets a browser see and change settings.
type SignIn struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// issue makes a token: when it ends, and who says so.
func issue(key []byte, now time.Time) SignIn {
	end := now.Add(signInLife).Truncate(time.Second)
	b := binary.BigEndian.AppendUint64(nil, uint64(end.Unix()))
	return SignIn{base64.RawURLEncoding.EncodeToString(append(b, seal(key, b)...)), end}
}

func seal(key, b []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte("joulegate/panel/settings/1\x00"))
	m.Write(b)
	return m.Sum(nil)
}

// signedIn reports whether a token was issued with this key and has not ended.
// A clock that was set back does not make it good for longer.
func signedIn(key []byte, token string, now time.Time) bool {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(key) != KeyBytes || len(b) != 8+sha256.Size || !hmac.Equal(seal(key, b[:8]), b[8:]) {
		return false
	}
	left := time.Unix(int64(binary.BigEndian.Uint64(b)), 0).Sub(now)
	return left > 0 && left <= signInLife
}

// settingsPage offers to a browser what settingsRoutes offers on the control
// socket, to those who have signed in, and as people see it.
func (s *Server) settingsPage(handle func(string, func(*http.Request) (any, error))) {
	set := s.cfg.Settings
	handle("POST /settings/session", func(r *http.Request) (any, error) {
		var o struct {
			Code string `json:"code"`
		}
		if err := body(r, &o); err != nil {
			return nil, err
		}
		if !s.signIns.spend(strings.ReplaceAll(o.Code, " ", ""), time.Now()) {
			return nil, &Error{http.StatusForbidden, "forbidden", "that is no fresh code; make one at the gateway: joulegate config code"}
		}
		return issue(s.cfg.SettingsKey, time.Now()), nil
	})
	known := func(pattern string, h func(*http.Request) (any, error)) {
		handle(pattern, func(r *http.Request) (any, error) {
			token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			if !signedIn(s.cfg.SettingsKey, token, time.Now()) {
				return nil, &Error{http.StatusUnauthorized, "sign_in", "sign in with a code that the gateway makes: joulegate config code"}
			}
			return h(r)
		})
	}
	known("GET /settings", func(r *http.Request) (any, error) {
		v, c, err := inForce(r.Context(), set)
		return settingsView{v, config.Document(c), config.Schema(), len(c.Installers) > 0}, err
	})
	settingsRoutes(known, set, door{
		by:     "page",
		refuse: func(txn string, err error) (any, error) { return Rejected(txn, err), nil },
		permit: func(ctx context.Context) error {
			_, c, err := inForce(ctx, set)
			if err == nil && len(c.Installers) > 0 {
				err = &config.Denial{Code: config.Unsigned, Path: "installers", Text: "this gateway has installers: over the network a change must be signed by one of them, as MQTT allows; unsigned ones are made at the gateway"}
			}
			return err
		},
	})
}

func inForce(ctx context.Context, s Settings) (v ConfigView, c config.Config, err error) {
	if v, err = s.ConfigView(ctx); err == nil {
		c, err = config.Parse([]byte(v.Text))
	}
	return v, c, err
}

// settingsView is what the page shows.
type settingsView struct {
	ConfigView
	Config map[string]any `json:"config"`
	Schema map[string]any `json:"schema"`
	Sealed bool           `json:"sealed"` // changes must be signed: the page only looks
}

// SignInCode makes a code for the page's settings. Only the control socket
// offers it.
func (c *Client) SignInCode(ctx context.Context) (Code, error) {
	return call[Code](ctx, c, http.MethodPost, "/settings/code", struct{}{})
}
