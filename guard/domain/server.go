package domain

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"

	"github.com/joulegate/joulegate/guard"
)

// Limits of the server.
const (
	MaxWaiting = 512 // questions on their way to an upstream; beyond it SERVFAIL
	MaxStreams = 64  // TCP connections
	udpBuffer  = 4096 + 64
)

// Config is what a server is made of.
type Config struct {
	Listen    []string       // addresses, host:port; UDP and TCP
	Clients   []netip.Prefix // who may ask beside this machine
	Upstreams []string       // udp://ADDR, tls://HOST, https://HOST/PATH; asked in order
	Bootstrap []netip.AddrPort
	Local     []string // names whose answers may be private addresses
	Null      bool     // blocked names get 0.0.0.0 and ::, not NXDOMAIN
	Cache     int      // answers; 0: 4096
	Filter    *Filter  // nil: nothing is blocked
	Report    func(guard.Finding)
	// Answers remembers what was answered. nil: nobody wants to know.
	Answers *Answers
	// Answered is told the addresses of an allowed name before the answer
	// leaves, so that a firewall can let through what was asked for. It must
	// not block for long. nil: nobody.
	Answered func(addrs []netip.Addr, ttl time.Duration)
	// Mark of the packets to upstreams (SO_MARK), by which a firewall knows
	// them. It needs CAP_NET_ADMIN; 0: none.
	Mark uint32
	Now  func() time.Duration // monotonic
	TLS  *tls.Config          // root certificates of upstreams; nil: the system's
	Log  *slog.Logger
}

// Server answers questions. It is safe for concurrent use.
type Server struct {
	c         Config
	filter    atomic.Pointer[Filter]
	upstreams []*upstream
	cache     *cache
	once      singleflight.Group
	waiting   chan struct{}
	udp       []*net.UDPConn
	tcp       []net.Listener
	since     time.Time
	tally     *tally

	mu     sync.Mutex
	reload guard.NameReload

	questions, blocked, hidden, cached, stale, failed, rebound, refused, dropped atomic.Uint64
}

// New opens the server's sockets. They are closed by Run, or by Close if Run
// is never called.
func New(c Config) (*Server, error) {
	if c.Cache == 0 {
		c.Cache = 4096
	}
	if c.Report == nil {
		c.Report = func(guard.Finding) {}
	}
	for i, l := range c.Local {
		name, err := Canonical(l)
		if err != nil {
			return nil, fmt.Errorf("local name: %w", err)
		}
		c.Local[i] = name
	}
	if len(c.Upstreams) > MaxServers {
		return nil, fmt.Errorf("%d upstreams, at most %d", len(c.Upstreams), MaxServers)
	}
	s := &Server{c: c, cache: newCache(c.Cache), waiting: make(chan struct{}, MaxWaiting), since: time.Now(), tally: newTally(c.Report, c.Now)}
	if c.Filter == nil {
		c.Filter = Empty(false)
	}
	s.filter.Store(c.Filter)
	for _, u := range c.Upstreams {
		up, err := newUpstream(u, c.Bootstrap, c.TLS, c.Mark)
		if err != nil {
			return nil, err
		}
		s.upstreams = append(s.upstreams, up)
	}
	for _, addr := range c.Listen {
		if err := s.listen(addr); err != nil {
			s.Close()
			return nil, fmt.Errorf("listen for DNS on %s: %w", addr, err)
		}
	}
	return s, nil
}

func (s *Server) listen(addr string) error {
	t, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	s.tcp = append(s.tcp, t)
	// Port 0 is one port for both.
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(t.Addr().(*net.TCPAddr).AddrPort()))
	if err != nil {
		return err
	}
	s.udp = append(s.udp, u)
	return nil
}

// Addrs returns where the server listens.
func (s *Server) Addrs() (out []netip.AddrPort) {
	for _, l := range s.tcp {
		out = append(out, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return out
}

// Close closes the sockets.
func (s *Server) Close() {
	for _, l := range s.tcp {
		l.Close()
	}
	for _, u := range s.udp {
		u.Close()
	}
}

// Filter returns the filter in force.
func (s *Server) Filter() *Filter { return s.filter.Load() }

// Reload builds a filter from files and puts it in force. Until then, and
// whenever that fails, the old one answers. Order is what Names says of it
// from then on. Only one runs at a time.
func (s *Server) Reload(ctx context.Context, order uint64, o Options) error {
	s.note(func(r *guard.NameReload) { *r = guard.NameReload{Order: order, Running: true} })
	told := o.Progress
	o.Progress = func(file string, rules int) {
		s.note(func(r *guard.NameReload) { r.File, r.Read = file, rules })
		if told != nil {
			told(file, rules)
		}
	}
	f, err := Load(ctx, o)
	if err == nil {
		s.filter.Store(f)
	} else {
		err = fmt.Errorf("the filter in force stays: %w", err)
	}
	s.note(func(r *guard.NameReload) {
		r.Running, r.At = false, time.Now()
		if err != nil {
			r.Error = err.Error()
		}
	})
	return err
}

func (s *Server) note(change func(*guard.NameReload)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.reload)
}

// Counts returns what was counted since the start.
func (s *Server) Counts() guard.NameCounts {
	return guard.NameCounts{
		Questions: s.questions.Load(), Blocked: s.blocked.Load(), Cloaked: s.hidden.Load(), Cached: s.cached.Load(), Stale: s.stale.Load(), Failed: s.failed.Load(),
		Rebound: s.rebound.Load(), Refused: s.refused.Load(), Dropped: s.dropped.Load(), Entries: s.cache.len(),
	}
}

// Names says how the server is doing.
func (s *Server) Names() guard.Names {
	f := s.filter.Load()
	n := guard.Names{Listen: []string{}, Only: f.only, Lists: append([]guard.NameList{}, f.lists...), NameCounts: s.Counts()}
	for _, a := range s.Addrs() {
		n.Listen = append(n.Listen, a.String())
	}
	n.Rules, _ = f.Blocked()
	s.mu.Lock()
	defer s.mu.Unlock()
	n.Reload = s.reload
	return n
}

// Coverage says how much the sensor sees: what asks elsewhere it does not.
func (s *Server) Coverage() guard.Coverage {
	c := guard.Coverage{Sensor: guard.Domain, Level: "resolver", Reason: "sees questions asked here; what asks other resolvers is the packet sensor's", Seen: s.questions.Load(), Lost: s.dropped.Load(), Since: s.since}
	if len(s.c.Listen) == 0 {
		c.Level, c.Reason = guard.None, "switched off"
	}
	return c
}

// Run answers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, len(s.udp)+len(s.tcp))
	for _, u := range s.udp {
		for range runtime.GOMAXPROCS(0) {
			wg.Go(func() { s.serveUDP(ctx, u, &wg) })
		}
	}
	var servers []*dns.Server
	for _, l := range s.tcp {
		server := &dns.Server{Listener: limited(l), Handler: handler{s, ctx}, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxTCPQueries: 1000}
		servers = append(servers, server)
		wg.Go(func() {
			if err := server.ActivateAndServe(); err != nil && ctx.Err() == nil {
				failed <- fmt.Errorf("serve DNS over TCP: %w", err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer done()
	for _, server := range servers {
		_ = server.ShutdownContext(stop) // the listener is closed below at the latest
	}
	s.Close()
	wg.Wait()
	return err
}

// serveUDP answers what can be answered at once in place, and leaves the rest
// to goroutines of their own.
func (s *Server) serveUDP(ctx context.Context, u *net.UDPConn, wg *sync.WaitGroup) {
	b, err := newBatch(u)
	if err != nil {
		s.c.Log.Error("name server", "err", err)
		return
	}
	var name [maxName + 1]byte
	for {
		n, err := b.questions()
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		case err != nil: // of one datagram: an ICMP answer to an earlier one
			select {
			case <-ctx.Done():
			case <-time.After(time.Millisecond):
			}
		}
		for i := range n {
			s.questions.Add(1)
			question, from := b.question(i)
			if !s.admits(from.Addr()) {
				s.refused.Add(1)
				continue
			}
			if s.c.Answers != nil {
				s.c.Answers.asked(from.Addr())
			}
			if q, ok := ask(question, &name); ok {
				if v := s.filter.Load().judge(q.name); v.Block {
					s.block(v)
					b.answer(i, refusal(question, q, s.c.Null))
					continue
				}
			}
			s.serve(ctx, u, question, from, wg)
		}
		_ = b.flush() // who is not reached asks again
	}
}

// serve answers in a goroutine of its own.
func (s *Server) serve(ctx context.Context, u *net.UDPConn, question []byte, from netip.AddrPort, wg *sync.WaitGroup) {
	m := new(dns.Msg)
	if err := m.Unpack(question); err != nil || m.Response {
		s.dropped.Add(1)
		return
	}
	select {
	case s.waiting <- struct{}{}:
	default:
		s.dropped.Add(1)
		if r, err := failure(m, dns.RcodeServerFailure).Pack(); err == nil {
			_, _ = u.WriteToUDPAddrPort(r, from)
		}
		return
	}
	wg.Go(func() {
		defer func() { <-s.waiting }()
		r := s.answer(ctx, m)
		size := dns.MinMsgSize
		if opt := m.IsEdns0(); opt != nil {
			size = int(max(opt.UDPSize(), dns.MinMsgSize))
		}
		r.Truncate(min(size, 4096))
		if out, err := r.Pack(); err == nil {
			_, _ = u.WriteToUDPAddrPort(out, from)
		}
	})
}

// admits tells who may ask: this machine, and who is listed.
func (s *Server) admits(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || slices.ContainsFunc(s.c.Clients, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (s *Server) block(v Verdict) {
	s.blocked.Add(1)
	s.tally.find(guard.DomainBlocked, guard.Info, v.Name, func() map[string]string { return map[string]string{"rule": strings.Clone(v.Suffix)} })
}

// handler is the server over TCP.
type handler struct {
	*Server
	ctx context.Context
}

func (h handler) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	h.questions.Add(1)
	from, err := netip.ParseAddrPort(w.RemoteAddr().String())
	if err != nil || !h.admits(from.Addr()) {
		h.refused.Add(1)
		w.Close()
		return
	}
	if h.c.Answers != nil {
		h.c.Answers.asked(from.Addr())
	}
	select {
	case h.waiting <- struct{}{}:
		defer func() { <-h.waiting }()
		_ = w.WriteMsg(h.answer(h.ctx, m))
	default:
		h.dropped.Add(1)
		_ = w.WriteMsg(failure(m, dns.RcodeServerFailure))
	}
}

func failure(m *dns.Msg, code int) *dns.Msg {
	r := new(dns.Msg)
	r.SetRcode(m, code)
	r.RecursionAvailable = true
	return r
}

// answer answers any question.
func (s *Server) answer(ctx context.Context, m *dns.Msg) (r *dns.Msg) {
	defer func() { // whatever upstream sent
		if p := recover(); p != nil {
			s.c.Log.Error("DNS answer", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			r = failure(m, dns.RcodeServerFailure)
		}
	}()
	switch {
	case m.Opcode != dns.OpcodeQuery:
		return failure(m, dns.RcodeNotImplemented)
	case len(m.Question) != 1:
		return failure(m, dns.RcodeFormatError)
	}
	q := m.Question[0]
	if q.Qtype == dns.TypeANY || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR {
		return failure(m, dns.RcodeNotImplemented) // RFC 8482: nobody needs it
	}
	name, err := Canonical(q.Name)
	if err == nil {
		if v := s.filter.Load().judge(name); v.Block {
			s.block(v)
			return s.blockedAnswer(m)
		}
	} else {
		name = strings.ToLower(strings.TrimSuffix(q.Name, "."))
	}
	r, ok := s.lookup(ctx, m, name)
	if !ok {
		s.failed.Add(1)
		return failure(m, dns.RcodeServerFailure)
	}
	if v, ok := s.cloaked(r); ok {
		s.block(v)
		s.hidden.Add(1)
		s.tally.find(guard.DomainCloaked, guard.Low, name, func() map[string]string { return map[string]string{"leads_to": v.Name, "rule": v.Suffix} })
		return s.blockedAnswer(m)
	}
	addrs := addresses(r)
	if bad := slices.IndexFunc(addrs, private); bad >= 0 && !s.mayBePrivate(name) {
		s.rebound.Add(1)
		s.tally.find(guard.DNSRebind, guard.High, name, func() map[string]string { return map[string]string{"address": addrs[bad].String()} })
		return s.blockedAnswer(m)
	}
	if len(addrs) > 0 && s.c.Answers != nil {
		s.c.Answers.answered(name, addrs)
	}
	if len(addrs) > 0 && s.c.Answered != nil {
		ttl, _ := lifetime(r)
		s.c.Answered(addrs, ttl)
	}
	r.Id, r.Question = m.Id, m.Question
	r.RecursionDesired, r.CheckingDisabled, r.RecursionAvailable, r.Response = m.RecursionDesired, m.CheckingDisabled, true, true
	// RFC 6840, section 5.7: only who asks is told that signatures were checked.
	opt := m.IsEdns0()
	r.AuthenticatedData = r.AuthenticatedData && (m.AuthenticatedData || opt != nil && opt.Do())
	if opt == nil {
		r.Extra = slices.DeleteFunc(r.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	}
	return r
}

func (s *Server) blockedAnswer(m *dns.Msg) *dns.Msg {
	r := failure(m, dns.RcodeNameError)
	if s.c.Null {
		r.Rcode = dns.RcodeSuccess
		h := dns.RR_Header{Name: m.Question[0].Name, Rrtype: m.Question[0].Qtype, Class: dns.ClassINET, Ttl: blockedTTL}
		switch h.Rrtype {
		case dns.TypeA:
			r.Answer = []dns.RR{&dns.A{Hdr: h, A: net.IPv4zero}}
		case dns.TypeAAAA:
			r.Answer = []dns.RR{&dns.AAAA{Hdr: h, AAAA: net.IPv6zero}}
		}
	}
	if m.IsEdns0() != nil {
		r.SetEdns0(1232, false)
		opt := r.IsEdns0()
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeBlocked})
	}
	return r
}

// cloaked finds a blocked name among those that an answer leads to.
func (s *Server) cloaked(r *dns.Msg) (Verdict, bool) {
	f := s.filter.Load()
	if f.only {
		return Verdict{}, false // the question was allowed by name
	}
	for _, rr := range r.Answer {
		target := ""
		switch rr := rr.(type) {
		case *dns.CNAME:
			target = rr.Target
		case *dns.HTTPS: // RFC 9460: an alias in its own right
			target = rr.Target
		case *dns.SVCB:
			target = rr.Target
		}
		if name, err := Canonical(target); err == nil {
			if v := f.judge(name); v.Block {
				return v, true
			}
		}
	}
	return Verdict{}, false
}

// private are the addresses that no public name has a reason to point to.
func private(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || carrier.Contains(a)
}

var carrier = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

func (s *Server) mayBePrivate(name string) bool {
	return slices.ContainsFunc(s.c.Local, func(l string) bool { return name == l || strings.HasSuffix(name, "."+l) })
}

// lookup answers from the cache or from upstream. An answer that is past its
// time is served when upstream fails or is slow (RFC 8767).
func (s *Server) lookup(ctx context.Context, m *dns.Msg, name string) (*dns.Msg, bool) {
	q := m.Question[0]
	do := m.IsEdns0() != nil && m.IsEdns0().Do()
	key := fmt.Sprintf("%s %d %d %t %t", name, q.Qtype, q.Qclass, do, m.CheckingDisabled)
	old, fresh := s.cache.get(key, s.c.Now())
	if fresh {
		s.cached.Add(1)
		return old, true
	}
	found := s.once.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
		defer cancel()
		r, err := s.forward(ctx, q, do, m.CheckingDisabled)
		if err == nil {
			s.cache.put(key, r, s.c.Now())
		}
		return r, err
	})
	var slow <-chan time.Time
	if old != nil {
		t := time.NewTimer(staleAfter)
		defer t.Stop()
		slow = t.C
	}
	select {
	case r := <-found:
		if r.Err == nil {
			return r.Val.(*dns.Msg).Copy(), true // others may have it too
		}
		s.c.Log.Debug("DNS upstream", "err", r.Err)
	case <-slow:
	case <-ctx.Done():
	}
	if old != nil {
		s.stale.Add(1)
		return old, true
	}
	return nil, false
}

// forward asks the upstreams in order, those that failed lately last.
func (s *Server) forward(ctx context.Context, q dns.Question, do, cd bool) (*dns.Msg, error) {
	now := s.c.Now()
	order := slices.Clone(s.upstreams)
	slices.SortStableFunc(order, func(a, b *upstream) int {
		return boolInt(a.rests(now)) - boolInt(b.rests(now))
	})
	err := errors.New("no upstream is configured")
	for _, u := range order {
		m := new(dns.Msg)
		m.Id = dns.Id()
		m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = true, cd, true
		m.Question = []dns.Question{q}
		m.SetEdns0(1232, do)
		one, cancel := context.WithTimeout(ctx, askTimeout)
		r, e := u.ask(one, m)
		cancel()
		if e == nil {
			e = fits(m, r)
		}
		u.heard(e == nil, s.c.Now())
		if e == nil {
			// Whoever sits on an open path can set the bit.
			r.AuthenticatedData = r.AuthenticatedData && u.sealed
			return r, nil
		}
		err = fmt.Errorf("%s: %w", u.name, e)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// fits tells whether r answers m and is worth keeping.
func fits(m, r *dns.Msg) error {
	switch {
	case !r.Response || r.Id != m.Id:
		return errors.New("not an answer to the question")
	case len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, m.Question[0].Name) || r.Question[0].Qtype != m.Question[0].Qtype:
		return errors.New("an answer to another question")
	case r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError:
		return errors.New(dns.RcodeToString[r.Rcode])
	}
	return nil
}

func (u *upstream) rests(now time.Duration) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return now < u.until
}

func (u *upstream) heard(ok bool, now time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if ok {
		u.fails, u.until = 0, 0
		return
	}
	u.fails = min(u.fails+1, 8)
	u.until = now + min(restMax, restMin<<(u.fails-1))
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// limited accepts at most MaxStreams connections at a time; more wait.
func limited(l net.Listener) net.Listener { return &limiter{l, make(chan struct{}, MaxStreams)} }

type limiter struct {
	net.Listener
	free chan struct{}
}

func (l *limiter) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, done: sync.OnceFunc(func() { <-l.free })}, nil
}

type limitedConn struct {
	net.Conn
	done func()
}

func (c *limitedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}
