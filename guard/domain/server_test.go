package domain

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/joulegate/joulegate/guard"
)

// zone is what the test's upstream knows.
const zone = `
www.example.com.     300 A     203.0.113.7
www.example.com.     300 AAAA  2001:db8::7
short.example.com.   2   A     203.0.113.8
cloak.example.com.   300 CNAME ads.example.net.
ads.example.net.     300 A     203.0.113.9
rebind.example.com.  300 A     192.168.1.1
alias.example.com.   300 HTTPS 0 ads.example.net.
hint.example.com.    300 HTTPS 1 . ipv4hint=192.168.1.1
mapped.example.com.  300 AAAA  ::ffff:192.168.1.1
meter.home.example.  300 A     192.168.1.7
big.example.com.     300 TXT   "` + "{}" + `"
`

// upstreamServer is a resolver that knows the zone. What it is told to be it
// is at once: down, slow.
type upstreamServer struct {
	records map[string][]dns.RR // "name type"
	asked   atomic.Int64
	mu      sync.Mutex
	down    bool
	slow    time.Duration
	lie     bool // answers another question
	sawDO   atomic.Bool
}

func newZone(t testing.TB) *upstreamServer {
	u := &upstreamServer{records: map[string][]dns.RR{}}
	text := strings.Replace(zone, `"{}"`, strings.Repeat(`"`+strings.Repeat("x", 200)+`" `, 15), 1)
	p := dns.NewZoneParser(strings.NewReader(text), ".", "zone")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		h := rr.Header()
		key := h.Name + " " + dns.TypeToString[h.Rrtype]
		u.records[key] = append(u.records[key], rr)
	}
	if p.Err() != nil {
		t.Fatal(p.Err())
	}
	return u
}

func (u *upstreamServer) set(down bool, slow time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.down, u.slow = down, slow
}

func (u *upstreamServer) reply(m *dns.Msg) *dns.Msg {
	u.asked.Add(1)
	u.mu.Lock()
	down, slow, lie := u.down, u.slow, u.lie
	u.mu.Unlock()
	time.Sleep(slow)
	r := new(dns.Msg)
	r.SetReply(m)
	r.AuthenticatedData = m.AuthenticatedData
	if down {
		r.Rcode = dns.RcodeServerFailure
		return r
	}
	if opt := m.IsEdns0(); opt != nil {
		u.sawDO.Store(opt.Do())
		r.SetEdns0(1232, opt.Do())
	}
	name, qtype := strings.ToLower(m.Question[0].Name), dns.TypeToString[m.Question[0].Qtype]
	if c := u.records[name+" CNAME"]; c != nil {
		r.Answer = append(r.Answer, c...)
		name = c[0].(*dns.CNAME).Target
	}
	r.Answer = append(r.Answer, u.records[name+" "+qtype]...)
	if len(r.Answer) == 0 {
		r.Rcode = dns.RcodeNameError
	}
	if lie {
		r.Question[0].Name = "other.example."
	}
	return r
}

func (u *upstreamServer) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	r := u.reply(m)
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		r.Truncate(1232)
	}
	w.WriteMsg(r)
}

// serve starts the upstream on UDP and TCP.
func (u *upstreamServer) serve(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: u}, {PacketConn: p, Handler: u}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return l.Addr().String()
}

// start runs a server and returns where it listens.
func start(t testing.TB, c Config) (*Server, string) {
	t.Helper()
	if c.Listen == nil {
		c.Listen = []string{"127.0.0.1:0"}
	}
	if c.Now == nil {
		begin := time.Now()
		c.Now = func() time.Duration { return time.Since(begin) }
	}
	c.Log = slog.New(slog.DiscardHandler)
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, s.Addrs()[0].String()
}

func query(t testing.TB, network, server, name string, qtype uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(1232, false)
	return exchange(t, network, server, m)
}

func exchange(t testing.TB, network, server string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 20 * time.Second}
	r, _, err := c.Exchange(m, server)
	if err != nil {
		t.Fatalf("%s over %s: %v", m.Question[0].Name, network, err)
	}
	return r
}

// found collects findings.
type found struct {
	mu  sync.Mutex
	all []guard.Finding
}

func (f *found) report(x guard.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, x)
}

func (f *found) rules() (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.all {
		ids = append(ids, x.Rule+" "+x.Subject.Value)
	}
	return ids
}

func TestServerFilters(t *testing.T) {
	u := newZone(t)
	filter := load(t, Options{Block: []string{listFile(t, "||ads.example.net^\n||evil.example^\n")}})
	for _, null := range []bool{false, true} {
		for _, network := range []string{"udp", "tcp"} {
			var f found
			var mu sync.Mutex
			var told []netip.Addr
			answers := NewAnswers(func() time.Duration { return 0 }, nil)
			s, addr := start(t, Config{
				Upstreams: []string{u.serve(t)}, Filter: filter, Null: null, Local: []string{"home.example"}, Report: f.report, Answers: answers,
				Answered: func(a []netip.Addr, ttl time.Duration) {
					mu.Lock()
					defer mu.Unlock()
					told = append(told, a...)
				},
			})
			r := query(t, network, addr, "WWW.example.com", dns.TypeA)
			if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "203.0.113.7" || !r.RecursionAvailable {
				t.Fatalf("%s: %v", network, r)
			}
			mu.Lock()
			if len(told) != 1 || told[0].String() != "203.0.113.7" {
				t.Errorf("the firewall is told %v", told)
			}
			if !answers.Answered("www.example.com", told[0]) || answers.Answered("other.example.com", told[0]) || answers.Asks(told[0]) {
				t.Error("what was answered is not remembered, or what was not is")
			}
			mu.Unlock()
			for _, name := range []string{"x.EVIL.example", "evil.example", "cloak.example.com", "rebind.example.com"} {
				r := query(t, network, addr, name, dns.TypeA)
				opt := r.IsEdns0()
				if opt == nil || len(opt.Option) != 1 || opt.Option[0].(*dns.EDNS0_EDE).InfoCode != dns.ExtendedErrorCodeBlocked {
					t.Errorf("%s %s: no word of blocking in %v", network, name, r)
				}
				if null && (r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "0.0.0.0" || r.Answer[0].Header().Name != dns.Fqdn(name)) ||
					!null && (r.Rcode != dns.RcodeNameError || len(r.Answer) != 0) {
					t.Errorf("%s %s, null %t: %v", network, name, null, r)
				}
			}
			if r := query(t, network, addr, "x.evil.example", dns.TypeAAAA); null && (len(r.Answer) != 1 || r.Answer[0].(*dns.AAAA).AAAA.String() != "::") {
				t.Errorf("%v", r)
			}
			if r := query(t, network, addr, "x.evil.example", dns.TypeTXT); null && (len(r.Answer) != 0 || r.Rcode != dns.RcodeSuccess) {
				t.Errorf("%v", r)
			}
			if r := query(t, network, addr, "meter.home.example", dns.TypeA); len(r.Answer) != 1 {
				t.Errorf("a local name is taken for rebinding: %v", r)
			}
			if r := query(t, network, addr, "big.example.com", dns.TypeTXT); network == "udp" != r.Truncated {
				t.Errorf("%s: truncated %t", network, r.Truncated)
			}
			got := f.rules()
			for _, want := range []string{"domain.blocked evil.example", "domain.cname_cloaking cloak.example.com", "dns.rebind rebind.example.com"} {
				if !slices.Contains(got, want) {
					t.Errorf("not found: %s in %v", want, got)
				}
			}
			if st := s.Counts(); st.Blocked != 5 || st.Rebound != 1 || st.Questions != 9 || st.Failed+st.Dropped+st.Refused > 0 {
				t.Errorf("%+v", st)
			}
			plain := new(dns.Msg).SetQuestion("evil.example.", dns.TypeA) // no EDNS
			if r := exchange(t, network, addr, plain); r.IsEdns0() != nil {
				t.Errorf("an OPT record that nobody asked for: %v", r)
			}
		}
	}
}

func TestServerCachesAndServesStale(t *testing.T) {
	u := newZone(t)
	var clock atomic.Int64
	s, addr := start(t, Config{Upstreams: []string{u.serve(t)}, Now: func() time.Duration { return time.Duration(clock.Load()) }})
	first := query(t, "udp", addr, "short.example.com", dns.TypeA)
	clock.Store(int64(time.Second))
	again := query(t, "udp", addr, "short.example.com", dns.TypeA)
	if u.asked.Load() != 1 || s.Counts().Cached != 1 || again.Answer[0].Header().Ttl != 1 || first.Answer[0].Header().Ttl != 2 {
		t.Errorf("asked %d times, %+v, ttl %d", u.asked.Load(), s.Counts(), again.Answer[0].Header().Ttl)
	}
	clock.Store(int64(10 * time.Second))
	u.set(true, 0)
	if r := query(t, "udp", addr, "short.example.com", dns.TypeA); len(r.Answer) != 1 || r.Answer[0].Header().Ttl != 30 || s.Counts().Stale != 1 {
		t.Errorf("upstream is down: %v %+v", r, s.Counts())
	}
	if r := query(t, "udp", addr, "www.example.com", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("an unknown name while upstream is down: %v", r)
	}
	u.set(false, 4*time.Second)
	if r := query(t, "udp", addr, "short.example.com", dns.TypeA); len(r.Answer) != 1 || s.Counts().Stale != 2 {
		t.Errorf("upstream is slow: %v %+v", r, s.Counts())
	}
	u.set(false, 0)
	clock.Store(int64(30 * time.Hour))
	u.set(true, 0)
	if r := query(t, "udp", addr, "short.example.com", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("an answer of yesterday: %v", r)
	}
	u.set(false, 0)
	for range 2 {
		if r := query(t, "udp", addr, "nothing.example.com", dns.TypeA); r.Rcode != dns.RcodeNameError {
			t.Errorf("%v", r)
		}
	}
}

// What leads to a blocked name or into the house does so by other records too
// (RFC 9460), and the bit that says that signatures were checked is worth
// nothing on an open path.
func TestServerSeesThroughOtherRecords(t *testing.T) {
	filter := load(t, Options{Block: []string{listFile(t, "||ads.example.net^\n")}})
	var f found
	s, addr := start(t, Config{Upstreams: []string{newZone(t).serve(t)}, Filter: filter, Report: f.report})
	for name, qtype := range map[string]uint16{"alias.example.com": dns.TypeHTTPS, "hint.example.com": dns.TypeHTTPS, "mapped.example.com": dns.TypeAAAA} {
		if r := query(t, "udp", addr, name, qtype); r.Rcode != dns.RcodeNameError {
			t.Errorf("%s passes: %v", name, r)
		}
	}
	if n := s.Counts(); n.Cloaked != 1 || n.Rebound != 2 {
		t.Errorf("%+v, found %v", n, f.rules())
	}
	for text, sealed := range map[string]bool{"udp://192.0.2.53": false, "192.0.2.53": false, "udp://127.0.0.1:5353": true, "tls://192.0.2.53": true, "https://192.0.2.53/dns-query": true} {
		if u, err := newUpstream(text, nil, nil, 0); err != nil || u.sealed != sealed {
			t.Errorf("%s: %+v, %v", text, u, err)
		}
	}
}

// Upstreams that fail or lie are passed over, and rest.
func TestServerPassesOverBadUpstreams(t *testing.T) {
	liar, good := newZone(t), newZone(t)
	liar.lie = true
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addrOfDead := dead.LocalAddr().String()
	dead.Close()
	_, addr := start(t, Config{Upstreams: []string{addrOfDead, liar.serve(t), good.serve(t)}})
	for _, name := range []string{"www.example.com", "short.example.com"} {
		if r := query(t, "udp", addr, name, dns.TypeA); len(r.Answer) != 1 {
			t.Errorf("%v", r)
		}
	}
	if liar.asked.Load() != 1 {
		t.Errorf("the liar was asked %d times, it should rest after the first", liar.asked.Load())
	}
}

func TestServerIsCarefulWithStrangers(t *testing.T) {
	s := &Server{c: Config{Clients: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}}}
	for a, want := range map[string]bool{"127.0.0.1": true, "::1": true, "192.168.1.9": true, "::ffff:192.168.1.9": true, "192.168.2.9": false, "203.0.113.1": false, "fe80::1": false} {
		if s.admits(netip.MustParseAddr(a)) != want {
			t.Errorf("%s: admitted %t", a, !want)
		}
	}
	_, addr := start(t, Config{Upstreams: []string{newZone(t).serve(t)}})
	any := query(t, "udp", addr, "www.example.com", dns.TypeANY)
	if any.Rcode != dns.RcodeNotImplemented {
		t.Errorf("ANY amplifies: %v", any)
	}
}

// DNSSEC-aware: who asks for signatures has them asked for.
func TestServerPassesDNSSECOn(t *testing.T) {
	u := newZone(t)
	_, addr := start(t, Config{Upstreams: []string{u.serve(t)}})
	m := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	m.SetEdns0(1232, true)
	if r := exchange(t, "udp", addr, m); !r.AuthenticatedData || !u.sawDO.Load() {
		t.Error("the DO bit or what it asks for is lost")
	}
	if r := query(t, "udp", addr, "www.example.com", dns.TypeA); r.AuthenticatedData {
		t.Error("signatures were checked, and one is told who did not ask")
	}
	if u.asked.Load() != 2 || u.sawDO.Load() {
		t.Error("an answer with signatures is given to one who did not ask for them")
	}
}

func certificate(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// Encrypted upstreams are found through the bootstrap servers only, their
// certificate counts, and connections are used again and replaced.
func TestEncryptedUpstreams(t *testing.T) {
	const host = "resolver.example"
	cert, pool := certificate(t, host)
	u := newZone(t)
	u.records[host+". A"] = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: host + ".", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(127, 0, 0, 1)}}
	bootstrap := []netip.AddrPort{netip.MustParseAddrPort(u.serve(t))}

	var accepted atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dot := &dns.Server{Listener: tls.NewListener(counted{l, &accepted}, &tls.Config{Certificates: []tls.Certificate{cert}}), Handler: u, IdleTimeout: func() time.Duration { return 300 * time.Millisecond }}
	go dot.ActivateAndServe()
	t.Cleanup(func() { dot.Shutdown() })

	doh := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		m := new(dns.Msg)
		if err := m.Unpack(body); err != nil || m.Id != 0 || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/dns-message" {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		out, _ := u.reply(m).Pack()
		w.Header().Set("Content-Type", "application/dns-message")
		w.Write(out)
	}))
	doh.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	doh.EnableHTTP2 = true
	doh.StartTLS()
	t.Cleanup(doh.Close)

	_, dotPort, _ := net.SplitHostPort(l.Addr().String())
	_, dohPort, _ := net.SplitHostPort(doh.Listener.Addr().String())
	for _, up := range []string{"tls://" + host + ":" + dotPort, "https://" + host + ":" + dohPort + "/dns-query"} {
		_, addr := start(t, Config{Upstreams: []string{up}, Bootstrap: bootstrap, TLS: &tls.Config{RootCAs: pool}})
		for _, name := range []string{"www.example.com", "short.example.com"} {
			if r := query(t, "udp", addr, name, dns.TypeA); len(r.Answer) != 1 {
				t.Errorf("%s: %v", up, r)
			}
		}
		time.Sleep(400 * time.Millisecond) // the other side closes what is idle
		if r := query(t, "udp", addr, "www.example.com", dns.TypeAAAA); len(r.Answer) != 1 {
			t.Errorf("%s, after the connection was closed: %v", up, r)
		}
		_, strict := start(t, Config{Upstreams: []string{up}, Bootstrap: bootstrap})
		if r := query(t, "udp", strict, "www.example.com", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: a certificate that nobody vouches for is taken: %v", up, r)
		}
	}
	if n := accepted.Load(); n > 5 {
		t.Errorf("%d connections for three questions and two refused ones", n)
	}
	for _, bad := range []string{"tls://resolver.example", "udp://resolver.example", "ftp://192.0.2.1", "https:///x", "::bad::"} {
		if _, err := New(Config{Upstreams: []string{bad}}); err == nil || !strings.Contains(err.Error(), "upstream") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

type counted struct {
	net.Listener
	n *atomic.Int64
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return conn, err
}

// Without lists a server says so, and answers everything or, when only what is
// allowed passes, nothing.
func TestServerWithoutLists(t *testing.T) {
	for _, f := range []*Filter{nil, Empty(false), Empty(true)} {
		s, addr := start(t, Config{Upstreams: []string{newZone(t).serve(t)}, Filter: f})
		want := dns.RcodeSuccess
		if f != nil && f.only {
			want = dns.RcodeNameError
		}
		if r := query(t, "udp", addr, "www.example.com", dns.TypeA); r.Rcode != want {
			t.Errorf("%+v: %v", f, r)
		}
		if n := s.Names(); n.Rules != 0 || len(n.Lists) != 0 || n.Only != (want == dns.RcodeNameError) || len(n.Listen) != 1 || n.Questions != 1 {
			t.Errorf("%+v", n)
		}
	}
}

// While a new list is read the old one answers, and a broken one changes
// nothing.
func TestReloadWhileAnswering(t *testing.T) {
	u := newZone(t)
	old := load(t, Options{Block: []string{listFile(t, "evil.example\n")}})
	s, addr := start(t, Config{Upstreams: []string{u.serve(t)}, Filter: old})
	if err := s.Reload(t.Context(), 1, Options{Block: []string{listFile(t, "a.example\nb..example\n")}}); err == nil || !strings.Contains(err.Error(), ":2:") {
		t.Error(err)
	}
	if s.Filter() != old {
		t.Fatal("a broken list took the place of a good one")
	}
	var big strings.Builder
	for _, n := range names(200_000, 3) {
		big.WriteString(n + "\n")
	}
	file, progress := listFile(t, big.String()+"evil.example\nwww.example.com\n"), 0
	reading := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- s.Reload(context.Background(), 2, Options{Block: []string{file}, Progress: func(string, int) {
			if progress++; progress == 1 {
				close(reading)
			}
		}})
	}()
	<-reading
	if r := query(t, "udp", addr, "evil.example", dns.TypeA); r.Rcode != dns.RcodeNameError {
		t.Errorf("while reading: %v", r)
	}
	if err := <-done; err != nil || progress != 2 {
		t.Errorf("%v, %d words of progress", err, progress)
	}
	if r := query(t, "udp", addr, "www.example.com", dns.TypeA); r.Rcode != dns.RcodeNameError {
		t.Errorf("the new list is not in force: %v", r)
	}
}

// What is no question is not answered, and does no harm.
func TestServerSurvivesNoise(t *testing.T) {
	s, addr := start(t, Config{Upstreams: []string{newZone(t).serve(t)}})
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, b := range [][]byte{{}, {1}, make([]byte, 12), make([]byte, 4096), []byte("GET / HTTP/1.1\r\n\r\n")} {
		c.Write(b)
	}
	if r := query(t, "udp", addr, "www.example.com", dns.TypeA); len(r.Answer) != 1 {
		t.Errorf("%v", r)
	}
	if s.Counts().Dropped == 0 {
		t.Error("noise is not counted")
	}
}

// The short way through a query says the same as the library.
func FuzzAsk(f *testing.F) {
	for _, edns := range []bool{false, true} {
		m := new(dns.Msg).SetQuestion("www.Example.com.", dns.TypeAAAA)
		if edns {
			m.SetEdns0(1232, true)
		}
		b, _ := m.Pack()
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, null bool) {
		if len(b) > udpBuffer-64 {
			return
		}
		var buf [maxName + 1]byte
		q, ok := ask(b, &buf)
		if !ok {
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil || len(m.Question) != 1 {
			return // the rest is broken; the question is not
		}
		want, err := Canonical(m.Question[0].Name)
		if err == nil && q.name != want || q.qtype != m.Question[0].Qtype {
			t.Fatalf("%q %d, the library reads %v", q.name, q.qtype, m.Question[0])
		}
		room := make([]byte, len(b), len(b)+64)
		copy(room, b)
		out := refusal(room, q, null)
		r := new(dns.Msg)
		if err := r.Unpack(out); err != nil || !r.Response || r.Id != m.Id || r.Question[0] != m.Question[0] {
			t.Fatalf("answer %x: %v", out, err)
		}
	})
}

func BenchmarkBlockedAnswer(b *testing.B) {
	file := b.TempDir() + "/list"
	if err := os.WriteFile(file, []byte(strings.Join(names(1_000_000, 1), "\n")), 0o644); err != nil {
		b.Fatal(err)
	}
	filter := load(b, Options{Block: []string{file}})
	began := time.Now()
	s := &Server{tally: newTally(func(guard.Finding) {}, func() time.Duration { return time.Since(began) })}
	s.filter.Store(filter)
	m := new(dns.Msg).SetQuestion(names(1, 1)[0]+".", dns.TypeA)
	m.SetEdns0(1232, false)
	wire, _ := m.Pack()
	var buf [maxName + 1]byte
	packet := make([]byte, len(wire), udpBuffer)
	b.ReportAllocs()
	for b.Loop() {
		packet = packet[:len(wire)]
		copy(packet, wire)
		q, ok := ask(packet, &buf)
		if v := s.filter.Load().judge(q.name); !ok || !v.Block {
			b.Fatal("not blocked")
		}
		refusal(packet, q, false)
	}
}
