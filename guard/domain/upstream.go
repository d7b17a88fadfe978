package domain

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Times and limits of upstreams.
const (
	askTimeout = 3 * time.Second // of one upstream
	restMin    = 5 * time.Second // after a failure an upstream is asked last
	restMax    = 5 * time.Minute
	idleLinks  = 4 // kept open to a DoT upstream
	linkIdle   = 20 * time.Second
	MaxServers = 8
)

// upstream is one resolver that is asked.
type upstream struct {
	name   string
	sealed bool // encrypted and authenticated, or on this machine
	ask    func(ctx context.Context, m *dns.Msg) (*dns.Msg, error)

	mu    sync.Mutex
	fails int
	until time.Duration // rests
}

// newUpstream reads udp://ADDR[:53], tls://HOST[:853] or https://HOST/PATH.
// The name of a host is resolved at the bootstrap servers only, so that this
// server never has to ask itself.
//
// Packets to it carry mark, unless that is 0.
func newUpstream(text string, bootstrap []netip.AddrPort, roots *tls.Config, mark uint32) (*upstream, error) {
	if !strings.Contains(text, "://") {
		text = "udp://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("upstream %q: %w", text, err)
	}
	port := map[string]string{"udp": "53", "tls": "853", "https": "443"}[u.Scheme]
	host := u.Hostname()
	switch {
	case port == "":
		return nil, fmt.Errorf("upstream %q: want udp://ADDRESS, tls://HOST or https://HOST/PATH", text)
	case host == "":
		return nil, fmt.Errorf("upstream %q: no host", text)
	case u.Port() != "":
		port = u.Port()
	}
	addr, numeric := netip.ParseAddr(host)
	if numeric != nil && (u.Scheme == "udp" || len(bootstrap) == 0) {
		return nil, fmt.Errorf("upstream %q: the host is a name: give its address, or for tls and https bootstrap servers that know it", text)
	}
	config := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if roots != nil {
		config.RootCAs = roots.RootCAs
	}
	d := &dialer{host: host, port: port, bootstrap: bootstrap, mark: mark}
	up := &upstream{name: text, sealed: u.Scheme != "udp" || addr.IsLoopback()}
	switch u.Scheme {
	case "udp":
		up.ask = plain(net.JoinHostPort(host, port), mark)
	case "tls":
		up.ask = (&links{dial: func(ctx context.Context) (net.Conn, error) {
			raw, err := d.dial(ctx)
			if err != nil {
				return nil, err
			}
			c := tls.Client(raw, config)
			if err := c.HandshakeContext(ctx); err != nil {
				raw.Close()
				return nil, err
			}
			return c, nil
		}}).ask
	case "https":
		t := &http.Transport{
			TLSClientConfig: config, ForceAttemptHTTP2: true, MaxIdleConns: idleLinks, IdleConnTimeout: linkIdle, DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.dial(ctx) },
		}
		up.ask = overHTTP(&http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirected") }}, u.String())
	}
	return up, nil
}

// dialer connects to a host whose address only the bootstrap servers know.
type dialer struct {
	host, port string
	bootstrap  []netip.AddrPort
	mark       uint32

	mu    sync.Mutex
	addrs []netip.Addr
	until time.Time
}

func (d *dialer) dial(ctx context.Context) (net.Conn, error) {
	addrs, err := d.resolve(ctx)
	if err != nil {
		return nil, err
	}
	n := marked(d.mark)
	for _, a := range addrs {
		var c net.Conn
		if c, err = n.DialContext(ctx, "tcp", net.JoinHostPort(a.String(), d.port)); err == nil {
			return c, nil
		}
	}
	d.mu.Lock()
	d.until = time.Time{} // the address may have changed
	d.mu.Unlock()
	return nil, err
}

func (d *dialer) resolve(ctx context.Context) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(d.host); err == nil {
		return []netip.Addr{a}, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Now().Before(d.until) {
		return d.addrs, nil
	}
	var last error
	for _, server := range d.bootstrap {
		var found []netip.Addr
		ttl := maxTTL
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			m := new(dns.Msg).SetQuestion(dns.Fqdn(d.host), t)
			r, err := plain(server.String(), d.mark)(ctx, m)
			if err != nil {
				last = err
				continue
			}
			found = append(found, addresses(r)...)
			if l, ok := lifetime(r); ok && len(r.Answer) > 0 {
				ttl = min(ttl, l)
			}
		}
		if len(found) > 0 {
			d.addrs, d.until = found, time.Now().Add(ttl)
			return found, nil
		}
	}
	if len(d.addrs) > 0 {
		return d.addrs, nil // better an old address than none
	}
	return nil, fmt.Errorf("find %s at the bootstrap servers: %w", d.host, orElse(last, errors.New("no address")))
}

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// plain asks over UDP, and over TCP when the answer does not fit.
func plain(server string, mark uint32) func(context.Context, *dns.Msg) (*dns.Msg, error) {
	d := marked(mark)
	d.Timeout = askTimeout
	udp, tcp := &dns.Client{Net: "udp", UDPSize: 4096, Timeout: askTimeout, Dialer: d}, &dns.Client{Net: "tcp", Timeout: askTimeout, Dialer: d}
	return func(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
		r, _, err := udp.ExchangeContext(ctx, m, server)
		if err == nil && r.Truncated {
			r, _, err = tcp.ExchangeContext(ctx, m, server)
		}
		return r, err
	}
}

// marked is a dialer whose packets carry a mark.
func marked(mark uint32) *net.Dialer {
	var d net.Dialer
	if mark != 0 {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)) }); failed != nil {
				return failed
			}
			return err
		}
	}
	return &d
}

// links keeps TLS connections for the next question.
type links struct {
	dial func(context.Context) (net.Conn, error)
	mu   sync.Mutex
	idle []link
}

type link struct {
	*dns.Conn
	since time.Time
}

func (l *links) ask(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	for {
		c, used, err := l.take(ctx)
		if err != nil {
			return nil, err
		}
		deadline, _ := ctx.Deadline()
		_ = c.SetDeadline(deadline)
		if err = c.WriteMsg(m); err == nil {
			var r *dns.Msg
			if r, err = c.ReadMsg(); err == nil && r.Id != m.Id {
				err = dns.ErrId
			}
			if err == nil {
				l.give(c)
				return r, nil
			}
		}
		c.Close()
		if !used || ctx.Err() != nil {
			return nil, err
		} // else the other side had closed it: once more on another
	}
}

func (l *links) take(ctx context.Context) (c *dns.Conn, used bool, err error) {
	l.mu.Lock()
	for len(l.idle) > 0 {
		last := l.idle[len(l.idle)-1]
		l.idle = l.idle[:len(l.idle)-1]
		if time.Since(last.since) < linkIdle {
			l.mu.Unlock()
			return last.Conn, true, nil
		}
		last.Close()
	}
	l.mu.Unlock()
	raw, err := l.dial(ctx)
	if err != nil {
		return nil, false, err
	}
	return &dns.Conn{Conn: raw}, false, nil
}

func (l *links) give(c *dns.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.idle) >= idleLinks {
		c.Close()
		return
	}
	l.idle = append(l.idle, link{c, time.Now()})
}

// overHTTP asks as RFC 8484 says, by POST.
func overHTTP(client *http.Client, address string) func(context.Context, *dns.Msg) (*dns.Msg, error) {
	const media = "application/dns-message"
	return func(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
		id := m.Id
		q := m.Copy()
		q.Id = 0 // section 4.1: so that caches work
		wire, err := q.Pack()
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(wire))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", media)
		req.Header.Set("Accept", media)
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, dns.MaxMsgSize+1))
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != media:
			return nil, fmt.Errorf("%s: %s, %s", address, resp.Status, resp.Header.Get("Content-Type"))
		}
		r := new(dns.Msg)
		if err := r.Unpack(body); err != nil {
			return nil, fmt.Errorf("%s: %w", address, err)
		}
		r.Id = id
		return r, nil
	}
}

// addresses returns the addresses that an answer gives.
func addresses(m *dns.Msg) (out []netip.Addr) {
	add := func(all ...net.IP) {
		for _, ip := range all {
			if a, ok := netip.AddrFromSlice(ip); ok {
				out = append(out, a.Unmap())
			}
		}
	}
	hints := func(values []dns.SVCBKeyValue) { // RFC 9460, section 7.3
		for _, v := range values {
			switch v := v.(type) {
			case *dns.SVCBIPv4Hint:
				add(v.Hint...)
			case *dns.SVCBIPv6Hint:
				add(v.Hint...)
			}
		}
	}
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			add(rr.A)
		case *dns.AAAA:
			add(rr.AAAA)
		case *dns.HTTPS:
			hints(rr.Value)
		case *dns.SVCB:
			hints(rr.Value)
		}
	}
	return out
}
