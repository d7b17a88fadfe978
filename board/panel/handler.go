package panel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/joulegate/joulegate/chain"
)

// Prefix of the API.
const Prefix = "/api/v1"

// Handler returns the API and the pages: for the control socket everything,
// otherwise what a browser may do.
func (s *Server) Handler(control bool) http.Handler {
	b := s.cfg.Backend
	mux := http.NewServeMux()
	handle := func(pattern string, h func(r *http.Request) (any, error)) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" "+Prefix+path, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
			defer cancel()
			v, err := h(r.WithContext(ctx))
			if err != nil {
				s.fail(w, r, control, err)
				return
			}
			reply(w, http.StatusOK, v)
		})
	}

	handle("GET /status", func(r *http.Request) (any, error) { return b.Status(r.Context()) })
	handle("GET /ledger/status", func(r *http.Request) (any, error) { return b.LedgerStatus(r.Context()) })
	atHeight := func(path string, f func(ctx context.Context, height int64) (any, error)) {
		handle("GET "+path, func(r *http.Request) (any, error) {
			var height int64
			if q := r.URL.Query().Get("height"); q != "" {
				var err error
				if height, err = strconv.ParseInt(q, 10, 64); err != nil || height < 0 {
					return nil, Invalid("height %q is not a number", short(q))
				}
			}
			return f(r.Context(), height)
		})
	}
	atHeight("/ledger/hash", func(ctx context.Context, height int64) (any, error) { return b.StateHash(ctx, height) })
	atHeight("/ledger/checkpoint", func(ctx context.Context, height int64) (any, error) { return b.Checkpoint(ctx, height) })
	handle("GET /accounts", func(r *http.Request) (any, error) { return b.Accounts(r.Context()) })
	handle("GET /accounts/{id}", func(r *http.Request) (any, error) {
		var id chain.Account
		if err := id.UnmarshalText([]byte(r.PathValue("id"))); err != nil {
			return nil, Invalid("%v", err)
		}
		return b.Account(r.Context(), id)
	})
	handle("GET /accounts/{id}/mandates", func(r *http.Request) (any, error) {
		var id chain.Account
		if err := id.UnmarshalText([]byte(r.PathValue("id"))); err != nil {
			return nil, Invalid("%v", err)
		}
		return b.Mandates(r.Context(), id)
	})
	handle("GET /nonce", func(r *http.Request) (any, error) {
		var k chain.Key
		if err := k.UnmarshalText([]byte(r.URL.Query().Get("key"))); err != nil {
			return nil, Invalid("%v", err)
		}
		n, err := b.Nonce(r.Context(), k)
		return nonce{n}, err
	})
	handle("GET /members", func(r *http.Request) (any, error) { return b.Members(r.Context()) })
	handle("GET /peers", func(r *http.Request) (any, error) { return b.Peers(r.Context()) })
	handle("GET /meters", func(r *http.Request) (any, error) { return b.Meters(r.Context()) })
	handle("GET /chargers", func(r *http.Request) (any, error) { return b.Chargers(r.Context()) })
	handle("GET /events", func(r *http.Request) (any, error) {
		from, err := timeOf(r, "from")
		if err != nil {
			return nil, err
		}
		to, err := timeOf(r, "to")
		if err != nil {
			return nil, err
		}
		return b.Events(r.Context(), from, to)
	})
	handle("GET /energy", func(r *http.Request) (any, error) { return b.Energy(r.Context()) })
	handle("GET /market/status", func(r *http.Request) (any, error) { return b.Market(r.Context()) })
	handle("GET /sessions", func(r *http.Request) (any, error) { return b.Sessions(r.Context()) })
	handle("GET /sessions/{id}", func(r *http.Request) (any, error) {
		id, err := sessionID(r)
		if err != nil {
			return nil, err
		}
		return b.Session(r.Context(), id)
	})
	handle("POST /sessions/quote", func(r *http.Request) (any, error) {
		var req QuoteRequest
		if err := body(r, &req); err != nil {
			return nil, err
		}
		if req.Connector == 0 || req.MaxWh < 0 || req.SellWh < 0 || req.MaxWh+req.SellWh == 0 || req.Driver == (chain.Key{}) {
			return nil, Invalid("a quote needs connector (from 1), driver (a key) and max_wh or sell_wh (above 0)")
		}
		return b.Quote(r.Context(), req)
	})
	handle("POST /sessions", func(r *http.Request) (any, error) {
		var q signedQuote
		if err := body(r, &q); err != nil {
			return nil, err
		}
		signed := chain.SignedQuote(q)
		if _, err := signed.Open(); err != nil {
			return nil, Invalid("%v", err)
		}
		return b.StartSession(r.Context(), signed)
	})
	handle("POST /sessions/{id}/stop", func(r *http.Request) (any, error) {
		id, err := sessionID(r)
		if err != nil {
			return nil, err
		}
		var order StopOrder
		if err := body(r, &order); err != nil {
			return nil, err
		}
		if !control {
			ses, err := b.Session(r.Context(), id)
			if err != nil {
				return nil, err
			}
			if err := order.Check(id, ses.Driver); err != nil {
				return nil, err
			}
		}
		return b.StopSession(r.Context(), id, order)
	})
	moneyRoutes(handle, b, control)
	s.trade(handle, control)
	// These write their answers themselves.
	raw := func(path string, h func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc("GET "+Prefix+path, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				s.fail(w, r, control, err)
			}
		})
	}
	raw("/genesis", s.genesis)
	raw("/receipts/{id}", s.receipt)
	raw("/live", s.live)
	s.guardRoutes(handle, raw, control)
	s.commissionRoutes(handle, raw, control)
	if control {
		raw("/ledger/claim", s.claim)
		handle("POST /tx", func(r *http.Request) (any, error) {
			var t envelope
			if err := body(r, &t); err != nil {
				return nil, err
			}
			if _, err := chain.OpenEnvelope(t.Envelope); err != nil {
				return nil, Invalid("%v", err)
			}
			return b.Submit(r.Context(), t.Envelope)
		})
		charger := func(r *http.Request) (uint8, error) {
			id, err := strconv.ParseUint(r.PathValue("id"), 10, 8)
			if err != nil {
				return 0, Invalid("charger %q is not a number of 1..255", short(r.PathValue("id")))
			}
			return uint8(id), nil
		}
		handle("GET /chargers/{id}/failsafe", func(r *http.Request) (any, error) {
			id, err := charger(r)
			if err != nil {
				return nil, err
			}
			return b.Failsafe(r.Context(), id, nil)
		})
		handle("POST /chargers/{id}/failsafe", func(r *http.Request) (any, error) {
			id, err := charger(r)
			if err != nil {
				return nil, err
			}
			var f Failsafe
			if err := body(r, &f); err != nil {
				return nil, err
			}
			return b.Failsafe(r.Context(), id, &f)
		})
		handle("POST /chargers/{id}", func(r *http.Request) (any, error) {
			id, err := charger(r)
			if err != nil {
				return nil, err
			}
			var o ChargerOrder
			if err := body(r, &o); err != nil {
				return nil, err
			}
			if !slices.Contains(ChargerOrders, o.Do) {
				return nil, Invalid("%q: a charger can be told to %s", short(o.Do), strings.Join(ChargerOrders, ", "))
			}
			return b.OrderCharger(r.Context(), id, o)
		})
		handle("POST /update", func(r *http.Request) (any, error) {
			var o UpdateOrder
			if err := body(r, &o); err != nil {
				return nil, err
			}
			return b.Update(r.Context(), o)
		})
		handle("POST /sessions/{id}/plan", func(r *http.Request) (any, error) {
			id, err := sessionID(r)
			if err != nil {
				return nil, err
			}
			var o PlanOrder
			if err := body(r, &o); err != nil {
				return nil, err
			}
			return b.SetPlan(r.Context(), id, o)
		})
		handle("POST /utility", func(r *http.Request) (any, error) {
			var o DimOrder
			if err := body(r, &o); err != nil {
				return nil, err
			}
			return struct{}{}, b.Dim(r.Context(), o)
		})
		handle("POST /meters/{id}/confirm", func(r *http.Request) (any, error) {
			return struct{}{}, b.ConfirmMeter(r.Context(), r.PathValue("id"))
		})
		handle("POST /grid/invite", func(r *http.Request) (any, error) {
			var req InviteRequest
			if err := body(r, &req); err != nil {
				return nil, err
			}
			return b.Invite(r.Context(), req)
		})
		if s.cfg.Settings != nil {
			settingsRoutes(handle, s.cfg.Settings, byCommand)
			handle("POST /settings/code", func(*http.Request) (any, error) { return s.signIns.make(time.Now()) })
		}
		raw("/ledger/verify", s.ledgerVerify)
		raw("/audit/bundle", s.bundle)
		raw("/stores", s.stores)
	} else if s.cfg.Settings != nil && len(s.cfg.SettingsKey) == KeyBytes {
		s.settingsPage(handle)
	}
	mux.HandleFunc(Prefix+"/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, control, NotFound("no %s %s here", r.Method, short(r.URL.Path)))
	})
	if s.cfg.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: writeTimeout}))
	}
	mux.HandleFunc("GET /verify", s.verifier)
	mux.Handle("/", s.page)

	h := http.MaxBytesHandler(mux, MaxBody)
	if !control {
		cross := http.NewCrossOriginProtection()
		cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.fail(w, r, control, &Error{http.StatusForbidden, "cross_origin", "the request comes from a page of another site"})
		}))
		h = s.checkHost(cross.Handler(h))
	}
	return headers(h)
}

// Bodies without a type of their own.
type (
	nonce struct {
		Nonce uint64 `json:"nonce"`
	}
	envelope struct {
		Envelope []byte `json:"envelope"`
	}
)

// checkHost refuses names that somebody else's DNS might point here.
func (s *Server) checkHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		ok := net.ParseIP(host) != nil || strings.EqualFold(host, "localhost")
		for _, h := range s.cfg.Hosts {
			ok = ok || strings.EqualFold(host, h)
		}
		if !ok {
			s.fail(w, r, false, &Error{http.StatusMisdirectedRequest, "host", "this panel does not answer to that host name: add it to panel.hosts"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// headers tells the browser to load nothing from elsewhere and to let nobody
// frame, sniff or embed what it gets, and bounds the time of an answer.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
		h.Set("Cache-Control", "no-store")
		// Whoever does not read his answer loses the connection. Streams
		// give each write a deadline of its own.
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(requestTimeout + writeTimeout))
		next.ServeHTTP(w, r)
	})
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, control bool, err error) {
	e, shown := asError(err)
	if e.Status == http.StatusInternalServerError {
		s.log.Error("panel request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		if !shown && !control {
			e.Message = "the gateway could not do that; its log says why"
		}
	}
	reply(w, e.Status, e)
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":"the answer could not be encoded","code":"internal"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// body decodes a JSON request strictly: one document, no unknown keys.
func body(r *http.Request, v any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return &Error{http.StatusUnsupportedMediaType, "content_type", "the body must be application/json"}
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil && d.Decode(new(json.RawMessage)) != io.EOF {
		err = errors.New("more than one JSON document")
	}
	if tooBig := new(http.MaxBytesError); errors.As(err, &tooBig) {
		return &Error{http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the body has more than %d bytes", MaxBody)}
	}
	if err != nil {
		return Invalid("body: %v", err)
	}
	return nil
}

func sessionID(r *http.Request) (id chain.ID, err error) {
	if err := id.UnmarshalText([]byte(r.PathValue("id"))); err != nil {
		return id, Invalid("session: %v", err)
	}
	return id, nil
}

// timeOf reads a time of the query; none is the zero time.
func timeOf(r *http.Request, key string) (t time.Time, err error) {
	q := r.URL.Query().Get(key)
	if q == "" {
		return t, nil
	}
	if t, err = time.Parse(time.RFC3339Nano, q); err != nil {
		return t, Invalid("%s %q is not a time such as 2026-05-01T14:03:00Z", key, short(q))
	}
	return t, nil
}

// short cuts what a stranger sent to something fit for an answer.
func short(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return s
}

// genesis sends the file as it is: its hash is what others trust.
func (s *Server) genesis(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	b, err := s.cfg.Backend.Genesis(ctx)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b)
	return nil
}

// maxStateKey bounds the key of an entry of the ledger's state, in bytes.
const maxStateKey = 256

func (s *Server) claim(w http.ResponseWriter, r *http.Request) error {
	key, err := hex.DecodeString(r.URL.Query().Get("key"))
	if err != nil || len(key) == 0 || len(key) > maxStateKey {
		return Invalid("key: 2 to %d hex digits", 2*maxStateKey)
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	b, err := s.cfg.Backend.Claim(ctx, key)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(b)
	return nil
}

func (s *Server) receipt(w http.ResponseWriter, r *http.Request) error {
	id, err := sessionID(r)
	if err != nil {
		return err
	}
	format, ct, disposition := r.URL.Query().Get("format"), "text/plain; charset=utf-8", "attachment"
	switch format {
	case "", "ocmf":
		format = "ocmf"
	case "xml":
		ct = "application/xml"
	case "native":
		ct = "application/json"
	case "html":
		ct, disposition = "text/html; charset=utf-8", "inline"
	default:
		return Invalid("format %q is not ocmf, xml, native or html", short(format))
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	b, err := s.cfg.Backend.Receipt(ctx, id, format)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", ct)
	if format == "html" { // a page that loads nothing and runs nothing; its style is in it
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	}
	w.Header().Set("Content-Disposition", fmt.Sprintf("%s; filename=%q", disposition, "receipt-"+id.String()+"."+format))
	w.Write(b)
	return nil
}

// live streams updates as server-sent events (HTML Living Standard, 9.2).
func (s *Server) live(w http.ResponseWriter, r *http.Request) error {
	select {
	case s.watchers <- struct{}{}:
		defer func() { <-s.watchers }()
	default:
		return Unavailable("%d live streams are open already", MaxWatchers)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	updates, err := s.cfg.Backend.Watch(ctx)
	if err != nil {
		return err
	}
	out := newStream(w, "text/event-stream")
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		var line []byte
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			line = []byte(": still here\n\n")
		case u, ok := <-updates:
			if !ok {
				return nil
			}
			data, err := json.Marshal(u.Data)
			if err != nil {
				s.log.Error("live update", "event", u.Event, "err", err)
				continue
			}
			line = fmt.Appendf(nil, "event: %s\ndata: %s\n\n", u.Event, data)
		}
		if out.write(line) != nil {
			return nil // the watcher is gone or does not read
		}
	}
}

// verifyLine is one line of a verification's answer.
type verifyLine struct {
	Progress *VerifyProgress `json:"progress,omitempty"`
	Report   *VerifyReport   `json:"report,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// ledgerVerify answers with one JSON document per line, so that a person who
// waits sees how far it is.
func (s *Server) ledgerVerify(w http.ResponseWriter, r *http.Request) error {
	var out stream
	line := func(l verifyLine) {
		b, _ := json.Marshal(l)        // plain structs
		_ = out.write(append(b, '\n')) // if nobody reads, the context ends it
	}
	var end verifyLine
	if err := s.alone(func() error {
		out = newStream(w, "application/x-ndjson")
		var last time.Time
		report, err := s.cfg.Backend.LedgerVerify(r.Context(), func(p VerifyProgress) {
			if time.Since(last) >= 200*time.Millisecond {
				last = time.Now()
				line(verifyLine{Progress: &p})
			}
		})
		if end.Report = &report; err != nil {
			e, _ := asError(err)
			end = verifyLine{Error: e}
		}
		return nil
	}); err != nil {
		return err
	}
	line(end)
	return nil
}

// alone does one long piece of work at a time: each takes a processor and
// reads the whole chain or journal. What tells the client that the work is
// done is sent after it, because the client may ask for the next at once.
func (s *Server) alone(work func() error) error {
	if !s.working.TryLock() {
		return Unavailable("another verification, bundle, report or backup is being made: try again when it is done")
	}
	defer s.working.Unlock()
	return work()
}

// bundle answers with the bytes of a bundle. If it cannot be finished the
// connection breaks, so that nobody takes half of it for a whole.
func (s *Server) bundle(w http.ResponseWriter, r *http.Request) error {
	var q BundleQuery
	var err error
	if id := r.URL.Query().Get("session"); id != "" {
		if err := q.Session.UnmarshalText([]byte(id)); err != nil {
			return Invalid("%v", err)
		}
	}
	if q.From, err = timeOf(r, "from"); err != nil {
		return err
	}
	if q.To, err = timeOf(r, "to"); err != nil {
		return err
	}
	return s.alone(func() error {
		return s.whole(w, "bundle", func(out io.Writer) error { return s.cfg.Backend.Bundle(r.Context(), q, out) })
	})
}

// stores answers with what a backup holds of journal and ledger.
func (s *Server) stores(w http.ResponseWriter, r *http.Request) error {
	return s.alone(func() error {
		return s.whole(w, "copy of the stores", func(out io.Writer) error { return s.cfg.Backend.Stores(r.Context(), out) })
	})
}

// whole breaks the connection when an answer has begun and cannot be finished.
func (s *Server) whole(w http.ResponseWriter, what string, write func(io.Writer) error) error {
	out := &lateStream{w: w}
	err := write(out)
	if err != nil && out.started {
		s.log.Warn(what+" was not finished", "err", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

// lateStream begins its answer with the first byte, so that an error before it
// is told as one.
type lateStream struct {
	w       http.ResponseWriter
	stream  stream
	started bool
}

func (l *lateStream) Write(b []byte) (int, error) {
	if !l.started {
		l.started = true
		l.stream = newStream(l.w, "application/octet-stream")
	}
	if err := l.stream.write(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// stream writes an answer of unknown length to a client that may stop
// reading.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newStream(w http.ResponseWriter, contentType string) stream {
	w.Header().Set("Content-Type", contentType)
	s := stream{w, http.NewResponseController(w)}
	s.rc.SetReadDeadline(time.Time{}) // the request has been read
	_ = s.write(nil)                  // sends the header; the next write tells if it failed
	return s
}

func (s stream) write(b []byte) error {
	s.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.rc.Flush()
}

//go:embed web
var web embed.FS

// pages serves the embedded files with a strong ETag each.
type pages map[string]asset

type asset struct {
	data []byte
	etag string
	ct   string
}

// contentTypes does not ask the host's MIME table, which a gateway may lack.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
	".txt":  "text/plain; charset=utf-8",
}

func loadPages() (pages, error) {
	p := pages{}
	err := fs.WalkDir(web, "web", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := web.ReadFile(name)
		if err != nil {
			return err
		}
		ct, ok := contentTypes[path.Ext(name)]
		if !ok {
			return fmt.Errorf("no content type for %s", name)
		}
		sum := sha256.Sum256(b)
		p[strings.TrimPrefix(name, "web")] = asset{b, `"` + hex.EncodeToString(sum[:8]) + `"`, ct}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("panel: embedded pages: %w", err)
	}
	p["/"] = p["/index.html"]
	p["/settings"] = p["/settings.html"]
	return p, nil
}

func (p pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, ok := p[r.URL.Path]
	if !ok || (r.Method != http.MethodGet && r.Method != http.MethodHead) {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", a.ct)
	w.Header().Set("ETag", a.etag)
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, r.URL.Path, time.Time{}, bytes.NewReader(a.data))
}
