// Package announce makes a gateway's page findable on the local network
// without knowing its address: it answers for a host name of its own and names
// the page as a service (multicast DNS, RFC 6762; DNS-SD, RFC 6763).
//
//	who asks                                              is told
//	A joulegate-6ebf5fa0.local?                           192.168.1.20
//	PTR _http._tcp.local?                                 joulegate-6ebf5fa0._http._tcp.local
//	PTR _joulegate._tcp.local?                            joulegate-6ebf5fa0._joulegate._tcp.local
//	SRV joulegate-6ebf5fa0._http._tcp.local?              joulegate-6ebf5fa0.local, port 8080
//
// The name follows from the device's key: two gateways never have the same
// one, so nobody is asked whether it is free. It lives beside another responder
// of the machine, such as avahi, on the same port, and answers for nothing but
// these names. It hears and speaks by IPv4 multicast, and tells IPv6 addresses
// as well.
package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Times and limits.
const (
	hostTTL    = 120  // seconds; addresses move (RFC 6762, section 10)
	serviceTTL = 4500 // seconds
	maxPacket  = 9000
	maxEach    = 20 // answers within a second; further questions are dropped
	lookEach   = 10 * time.Second
	port       = 5353
	flush      = 1 << 15 // cache-flush bit of a record, or a wish for a direct answer of a question
)

var group = &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: port}

// Services under which the page is announced.
var services = []string{"_http._tcp.local.", "_joulegate._tcp.local."}

const directory = "_services._dns-sd._udp.local."

// Config says what is announced.
type Config struct {
	Host string   // joulegate-<id>, without .local
	Port uint16   // of the page
	Text []string // key=value, what a browser of services sees
	Log  *slog.Logger
}

// Responder answers. Make one with New.
type Responder struct {
	cfg    Config
	host   string // with .local.
	conn   *ipv4.PacketConn
	joined map[int]bool
	told   map[int]string // addresses that were announced, by interface
	spent  int
	since  time.Time
}

// New takes the port, which others on this machine may have as well.
func New(cfg Config) (*Responder, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }), err)
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, fmt.Errorf("multicast DNS: %w", err)
	}
	r := &Responder{cfg: cfg, host: cfg.Host + ".local.", conn: ipv4.NewPacketConn(pc), joined: map[int]bool{}, told: map[int]string{}}
	if err := errors.Join(r.conn.SetControlMessage(ipv4.FlagInterface, true), r.conn.SetMulticastTTL(255), r.conn.SetMulticastLoopback(true)); err != nil {
		pc.Close()
		return nil, fmt.Errorf("multicast DNS: %w", err)
	}
	return r, nil
}

// Close gives the port back, when Run is not going to be called.
func (r *Responder) Close() error { return r.conn.Close() }

// Run answers until ctx ends, and takes its leave then.
func (r *Responder) Run(ctx context.Context) error {
	defer r.conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = r.conn.SetReadDeadline(time.Now()) })
	defer stop()
	b := make([]byte, maxPacket)
	for next := time.Now(); ctx.Err() == nil; {
		if now := time.Now(); !now.Before(next) {
			r.look()
			next = now.Add(lookEach)
		}
		_ = r.conn.SetReadDeadline(next)
		if ctx.Err() != nil {
			break
		}
		n, cm, from, err := r.conn.ReadFrom(b)
		if err != nil {
			if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
				continue
			}
			r.cfg.Log.Warn("multicast DNS", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		if udp, ok := from.(*net.UDPAddr); ok && cm != nil {
			r.hear(b[:n], cm.IfIndex, udp)
		}
	}
	for index := range r.joined {
		r.say(index, r.records(index, 0)) // time to live 0: gone
	}
	return nil
}

// look joins interfaces that have come, and announces what is new.
func (r *Responder) look() {
	all, err := net.Interfaces()
	if err != nil {
		r.cfg.Log.Warn("multicast DNS", "err", err)
		return
	}
	here := map[int]bool{}
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		here[i.Index] = true
		if !r.joined[i.Index] {
			if err := r.conn.JoinGroup(&i, group); err != nil && !errors.Is(err, syscall.EADDRINUSE) {
				r.cfg.Log.Debug("multicast DNS", "interface", i.Name, "err", err)
				continue
			}
			r.joined[i.Index] = true
		}
		if at := fmt.Sprint(addresses(i.Index)); at != r.told[i.Index] && at != "[]" {
			r.told[i.Index] = at
			r.say(i.Index, r.records(i.Index, 1))
		}
	}
	for index := range r.joined {
		if !here[index] {
			delete(r.joined, index)
			delete(r.told, index)
		}
	}
}

// addresses of an interface under which neighbours on the same network reach
// this machine.
func addresses(index int) (out []net.IP) {
	i, err := net.InterfaceByIndex(index)
	if err != nil {
		return nil
	}
	all, err := i.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && (n.IP.To4() != nil || n.IP.IsGlobalUnicast() || n.IP.IsLinkLocalUnicast()) {
			out = append(out, n.IP)
		}
	}
	return out
}

// records are all that this gateway may say on an interface; times to live are
// multiplied by life, 1 or 0.
func (r *Responder) records(index int, life uint32) (out []dns.RR) {
	head := func(name string, kind uint16, ttl uint32, shared bool) dns.RR_Header {
		h := dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl * life}
		if !shared {
			h.Class |= flush
		}
		return h
	}
	for _, ip := range addresses(index) {
		if v4 := ip.To4(); v4 != nil {
			out = append(out, &dns.A{Hdr: head(r.host, dns.TypeA, hostTTL, false), A: v4})
		} else {
			out = append(out, &dns.AAAA{Hdr: head(r.host, dns.TypeAAAA, hostTTL, false), AAAA: ip})
		}
	}
	for _, s := range services {
		instance := r.cfg.Host + "." + s
		out = append(
			out,
			&dns.PTR{Hdr: head(s, dns.TypePTR, serviceTTL, true), Ptr: instance},
			&dns.SRV{Hdr: head(instance, dns.TypeSRV, hostTTL, false), Port: r.cfg.Port, Target: r.host},
			&dns.TXT{Hdr: head(instance, dns.TypeTXT, serviceTTL, false), Txt: append([]string{}, r.cfg.Text...)},
			&dns.PTR{Hdr: head(directory, dns.TypePTR, serviceTTL, true), Ptr: s},
		)
	}
	return out
}

// hear answers a question, if it is one that this gateway can answer.
func (r *Responder) hear(b []byte, index int, from *net.UDPAddr) {
	var q dns.Msg
	if q.Unpack(b) != nil || q.Response || q.Opcode != dns.OpcodeQuery {
		return
	}
	m, direct := r.answer(&q, index, from.Port != port)
	if m == nil {
		return
	}
	if now := time.Now(); now.Sub(r.since) >= time.Second {
		r.since, r.spent = now, 0
	}
	if r.spent++; r.spent > maxEach {
		return
	}
	to := group
	if direct {
		to = from
	}
	r.send(m, index, to)
}

// answer returns what is said to a question, nil for nothing, and whether only
// to whom has asked. One that does not speak multicast DNS (legacy) gets its
// question back, and short times to live (RFC 6762, section 6.7).
func (r *Responder) answer(q *dns.Msg, index int, legacy bool) (m *dns.Msg, direct bool) {
	m, direct = &dns.Msg{}, true
	m.Response, m.Authoritative, m.Compress = true, true, true
	all := r.records(index, 1)
	taken := map[dns.RR]bool{}
	for _, question := range q.Question {
		if question.Qclass&^flush != dns.ClassINET && question.Qclass&^flush != dns.ClassANY {
			continue
		}
		direct = direct && (legacy || question.Qclass&flush != 0)
		for _, rr := range all {
			h := rr.Header()
			if taken[rr] || !strings.EqualFold(h.Name, question.Name) || question.Qtype != h.Rrtype && question.Qtype != dns.TypeANY || known(q.Answer, rr) {
				continue
			}
			taken[rr] = true
			m.Answer = append(m.Answer, rr)
		}
	}
	if len(m.Answer) == 0 {
		return nil, false
	}
	for _, rr := range all { // what is asked for next
		if !taken[rr] && rr.Header().Name != directory {
			m.Extra = append(m.Extra, rr)
		}
	}
	if legacy {
		m.Id, m.Question = q.Id, q.Question
		for _, rr := range append(append([]dns.RR{}, m.Answer...), m.Extra...) {
			h := rr.Header()
			h.Class &^= flush
			h.Ttl = min(h.Ttl, 10)
		}
	}
	return m, direct
}

// known reports whether who asks has the record (RFC 6762, section 7.1).
func known(has []dns.RR, rr dns.RR) bool {
	for _, h := range has {
		if dns.IsDuplicate(h, rr) && h.Header().Ttl >= rr.Header().Ttl/2 {
			return true
		}
	}
	return false
}

// say tells everybody on an interface.
func (r *Responder) say(index int, rr []dns.RR) {
	m := &dns.Msg{Answer: rr}
	m.Response, m.Authoritative, m.Compress = true, true, true
	r.send(m, index, group)
}

func (r *Responder) send(m *dns.Msg, index int, to *net.UDPAddr) {
	b, err := m.Pack()
	if err == nil {
		_, err = r.conn.WriteTo(b, &ipv4.ControlMessage{IfIndex: index}, to)
	}
	if err != nil {
		r.cfg.Log.Debug("multicast DNS", "to", to, "err", err)
	}
}
