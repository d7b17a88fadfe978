package panel

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/report"
)

// GuardOrder is what a person wants of the guard.
type GuardOrder struct {
	Do   string `json:"do"`             // release, release_all, resume, answer
	ID   uint64 `json:"id,omitempty"`   // of release and answer
	Yes  bool   `json:"yes,omitempty"`  // of answer
	Code string `json:"code,omitempty"` // the page needs one, the control socket does not
}

// Code lets the page give the guard one order, or a browser sign in.
type Code struct {
	Code    string    `json:"code"`
	Expires time.Time `json:"expires"`
}

// Limits of a code. The page is open to everybody who reaches it and has no
// passwords: whoever may give orders proves it by having the other door.
const (
	codeLife   = 10 * time.Minute
	codeTries  = 3
	codeDigits = 8
)

// codes keeps the one code there is.
type codes struct {
	mu    sync.Mutex
	code  string
	until time.Time
	tries int
}

// make replaces the code.
func (c *codes) make(now time.Time) (Code, error) {
	n, err := rand.Int(rand.Reader, big.NewInt(100_000_000))
	if err != nil {
		return Code{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.code, c.until, c.tries = fmt.Sprintf("%0*d", codeDigits, n), now.Add(codeLife), codeTries
	return Code{c.code, c.until}, nil
}

// spend reports whether the code is right, and forgets it when it is or when
// it was tried too often.
func (c *codes) spend(code string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.code == "" || !now.Before(c.until) {
		return false
	}
	ok := subtle.ConstantTimeCompare([]byte(code), []byte(c.code)) == 1
	if c.tries--; ok || c.tries <= 0 {
		c.code = ""
	}
	return ok
}

// Discreet leaves out what a household does not want every browser and broker
// to know: names that were asked for, and programs.
func Discreet(s guard.Subject) guard.Subject {
	if s.Kind == guard.Name || s.Kind == guard.Program || s.Kind == guard.PID {
		s.Value = ""
	}
	return s
}

// DiscreetStatus does that to everything in a status, and leaves evidence out.
func DiscreetStatus(s guard.Status) guard.Status {
	s.Findings = slices.Clone(s.Findings)
	for i := range s.Findings {
		f := &s.Findings[i]
		f.Subject, f.Evidence = Discreet(f.Subject), map[string]string{}
	}
	standing := func(all []guard.Standing) []guard.Standing {
		all = slices.Clone(all)
		for i := range all {
			all[i].Subject, all[i].Image, all[i].SHA256 = Discreet(all[i].Subject), "", ""
		}
		return all
	}
	s.Reactions, s.Questions = standing(s.Reactions), standing(s.Questions)
	if s.Names != nil && s.Names.Reload.Error != "" {
		n := *s.Names
		n.Reload.Error = "refused: see 'joulegate guard status'" // it may quote a list of the household's
		s.Names = &n
	}
	return s
}

// GuardCard is what the page shows.
type GuardCard struct {
	guard.Status
	Words map[string]string `json:"words"` // titles of the rules that are named
}

// card leaves out everybody's names and addresses.
func card(s guard.Status) GuardCard {
	s = DiscreetStatus(s)
	s.Told, s.Rules = maps.Clone(s.Told), slices.Clone(s.Rules)
	words := map[string]string{}
	name := func(id string) {
		if r, ok := guard.RuleOf(id); ok {
			words[id] = r.Title
		}
	}
	for i := range s.Findings {
		s.Findings[i].Subject.Value = ""
		name(s.Findings[i].Rule)
	}
	for _, all := range [][]guard.Standing{s.Reactions, s.Questions} {
		for i := range all {
			all[i].Subject.Value = ""
			name(all[i].Rule)
		}
	}
	return GuardCard{s, words}
}

func (s *Server) guardRoutes(handle func(string, func(*http.Request) (any, error)), raw func(string, func(http.ResponseWriter, *http.Request) error), control bool) {
	b := s.cfg.Backend
	handle("GET /guard/card", func(r *http.Request) (any, error) {
		v, err := b.Guard(r.Context())
		return card(v), err
	})
	handle("POST /guard/orders", func(r *http.Request) (any, error) {
		var o GuardOrder
		if err := body(r, &o); err != nil {
			return nil, err
		}
		if !control && !s.codes.spend(o.Code, time.Now()) {
			return nil, &Error{http.StatusForbidden, "forbidden", "an order to the guard needs a fresh code: joulegate guard code"}
		}
		return struct{}{}, b.GuardOrder(r.Context(), o)
	})
	raw("/guard/report", s.guardReport)
	if control {
		// Findings may name what a household asks for: not for every browser.
		handle("GET /guard", func(r *http.Request) (any, error) { return b.Guard(r.Context()) })
		handle("POST /guard/names/reload", func(r *http.Request) (any, error) { return b.ReloadNames(r.Context()) })
		handle("POST /guard/code", func(*http.Request) (any, error) { return s.codes.make(time.Now()) })
	}
}

// guardReport answers with a page, or with JSON. It reads this gateway's own
// chain, so there is one at a time.
func (s *Server) guardReport(w http.ResponseWriter, r *http.Request) error {
	format, ct := r.URL.Query().Get("format"), "text/html; charset=utf-8"
	switch format {
	case "", "html":
		format = "html"
	case "json":
		ct = "application/json"
	default:
		return Invalid("format %q is not html or json", short(format))
	}
	from, err := timeOf(r, "from")
	if err != nil {
		return err
	}
	to, err := timeOf(r, "to")
	if err != nil {
		return err
	}
	var rep report.Report
	if err := s.alone(func() error {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		rep, err = s.cfg.Backend.GuardReport(ctx, from, to)
		return err
	}); err != nil {
		return err
	}
	b := rep.HTML()
	if format == "json" {
		if b, err = json.Marshal(rep); err != nil {
			return err
		}
	} else { // a page that loads nothing and runs nothing; its style is in it
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	}
	w.Header().Set("Content-Type", ct)
	w.Header().Set("Content-Disposition", fmt.Sprintf("inline; filename=%q", "guard-report."+format))
	w.Write(b)
	return nil
}

// GuardReport implements Backend.
func (c *Client) GuardReport(ctx context.Context, from, to time.Time) (report.Report, error) {
	q := url.Values{"format": {"json"}}
	for key, t := range map[string]time.Time{"from": from, "to": to} {
		if !t.IsZero() {
			q.Set(key, t.Format(time.RFC3339Nano))
		}
	}
	return get[report.Report](ctx, c, "/guard/report?"+q.Encode())
}

// GuardOrder implements Backend.
func (c *Client) GuardOrder(ctx context.Context, o GuardOrder) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/guard/orders", o)
	return err
}

// GuardCode makes a code for the page. Only the control socket offers it.
func (c *Client) GuardCode(ctx context.Context) (Code, error) {
	return call[Code](ctx, c, http.MethodPost, "/guard/code", struct{}{})
}
