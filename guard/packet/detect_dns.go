package packet

import (
	"bytes"
	"net/netip"
	"slices"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Thresholds of the DNS rules. A name that is asked to carry data is
// different each time: so many different ones below one domain, of so many
// bytes together, within the span.
const (
	tunnelNames = 32
	tunnelBytes = 1500
	tunnelSpan  = 10 * time.Minute
)

// dnsDetector looks at questions and answers.
type dnsDetector struct {
	resolvers map[Addr]bool // may be asked; empty: anybody
	doh       map[Addr]bool // public ones
	domains   *table[domain]
}

// domain is what was asked below one domain.
type domain struct {
	since time.Duration
	names distinct
	bytes uint32 // of what stands before the domain, once per name
	asked uint32
	told  bool
}

func newDNS(r Rules) *dnsDetector {
	d := &dnsDetector{resolvers: map[Addr]bool{}, doh: map[Addr]bool{}, domains: newTable[domain](1024>>r.shrink, r.Seed)}
	for _, a := range PublicResolvers() {
		d.doh[addrOf(a)] = true
	}
	for _, a := range r.Resolvers {
		d.resolvers[addrOf(a)] = true
	}
	return d
}

func (*dnsDetector) name() string { return "dns" }
func (*dnsDetector) wants() kind  { return isDNS | isHello | isFlow }

func (d *dnsDetector) step(e *Event, out *sink) {
	switch {
	case e.kinds&isHello != 0:
		if e.secure && slices.ContainsFunc(dohNames[:], func(n string) bool { return below(e.name, n) }) && !d.resolvers[e.server()] {
			out.find(e, guard.DNSDoHBypass, guard.Low, host(e.server()), 1).addr("from", e.client()).bytes("server_name", e.name).text("by", "DoH")
		}
		return
	case e.kinds&isFlow != 0 && e.fromClient:
		d.bypass(e, out)
	}
	if e.kinds&isDNS == 0 || len(e.dns.name) == 0 {
		return
	}
	if e.dns.response {
		d.rebind(e, out)
		return
	}
	if !ordinaryType(e.dns.qtype) {
		out.find(e, guard.DNSSuspiciousType, guard.Low, host(e.src), 1).num("type", uint64(e.dns.qtype)).bytes("name", e.dns.name)
	}
	d.tunnel(e, out)
}

// bypass finds conversations with resolvers that are not ours.
func (d *dnsDetector) bypass(e *Event, out *sink) {
	by := ""
	switch {
	case e.dstPort == 853:
		by = "DoT or DoQ"
	case e.dstPort == 443 && d.doh[e.dst]:
		by = "DoH"
	case e.dstPort == 53 && len(d.resolvers) > 0 && !d.resolvers[e.src]: // a resolver asks others
		by = "DNS"
	}
	if by == "" || d.resolvers[e.dst] || !e.dst.unicast() {
		return
	}
	out.find(e, guard.DNSDoHBypass, guard.Low, host(e.dst), 1).addr("from", e.src).num("port", uint64(e.dstPort)).text("by", by)
}

// rebind finds public names that lead into the local network. The
// unspecified address is what filters answer for a blocked name.
func (d *dnsDetector) rebind(e *Event, out *sink) {
	if localName(e.dns.name) {
		return
	}
	for _, a := range e.dns.answers {
		if a.private() {
			out.find(e, guard.DNSRebind, guard.High, named(e.dns.name), 1).named(e.dns.name).addr("address", a).addr("asked_by", e.dst)
			return
		}
	}
}

func (d *dnsDetector) tunnel(e *Event, out *sink) {
	name := e.dns.name
	if localName(name) {
		return
	}
	base := registered(name)
	if len(base) == len(name) {
		return
	}
	x, fresh := d.domains.at(digestOf(d.domains.seed, base), e.At)
	if fresh || e.At-x.since > tunnelSpan {
		*x = domain{since: e.At}
	}
	x.asked++
	sub := name[:len(name)-len(base)-1]
	if x.names.add(digestOf(d.domains.seed, sub).a) {
		x.bytes += uint32(len(sub))
	}
	if x.names.n < tunnelNames || x.bytes < tunnelBytes {
		return
	}
	count := uint64(1)
	if !x.told {
		x.told, count = true, uint64(x.asked)
	}
	out.find(e, guard.DNSTunnel, guard.High, named(base), count).named(base).addr("from", e.src).
		latest().num("names_at_least", uint64(x.names.n)).num("bytes_at_least", uint64(x.bytes))
}

// ordinaryType tells whether devices ask for records of a type (IANA, DNS
// parameters, resource record types).
func ordinaryType(t uint16) bool {
	switch t {
	case 1, 2, 5, 6, 12, 15, 16, 28, 29, 33, 35, 39, // A NS CNAME SOA PTR MX TXT AAAA LOC SRV NAPTR DNAME
		43, 44, 46, 47, 48, 50, 51, 52, // DS SSHFP RRSIG NSEC DNSKEY NSEC3 NSEC3PARAM TLSA
		59, 60, 61, 64, 65, 99, 257: // CDS CDNSKEY OPENPGPKEY SVCB HTTPS SPF CAA
		return true
	}
	return false
}

// localZones are names that mean something in one network only (RFC 6761,
// 6762, 8375), and those by which home routers call themselves.
var localZones = [...]string{"local", "lan", "home", "internal", "intranet", "localdomain", "localhost", "home.arpa", "arpa", "test", "fritz.box", "speedport.ip", "private", "corp"}

func localName(name []byte) bool {
	return bytes.IndexByte(name, '.') < 0 || slices.ContainsFunc(localZones[:], func(z string) bool { return below(name, z) })
}

// below tells whether name is zone or lies below it.
func below(name []byte, zone string) bool {
	i := len(name) - len(zone)
	return i >= 0 && string(name[i:]) == zone && (i == 0 || name[i-1] == '.')
}

// registered returns the part of a name that somebody registered: the last
// two labels, or three below short second labels of countries (co.uk).
func registered(name []byte) []byte {
	dot := func(end int) int { return bytes.LastIndexByte(name[:max(end, 0)], '.') }
	last := dot(len(name))
	second := dot(last)
	if last < 0 || second < 0 {
		return name
	}
	if len(name)-last-1 == 2 && last-second-1 <= 3 {
		if third := dot(second); third >= 0 {
			return name[third+1:]
		}
		return name
	}
	return name[second+1:]
}

// Public resolvers, as their operators publish them.
var dohNames = [...]string{
	"dns.google", "dns64.dns.google", "cloudflare-dns.com", "one.one.one.one", "dns.quad9.net", "dns9.quad9.net", "dns10.quad9.net", "dns11.quad9.net",
	"doh.opendns.com", "dns.umbrella.com", "dns.adguard.com", "dns.adguard-dns.com", "dns.nextdns.io", "doh.cleanbrowsing.org", "doh.libredns.gr", "dns.mullvad.net",
	"doh.dns.sb", "dns.controld.com", "freedns.controld.com", "dns0.eu", "doh.applied-privacy.net", "doh.ffmuc.net", "dns.switch.ch", "dnsforge.de", "doh.pub", "dns.alidns.com",
}

// Their addresses, IPv4 and IPv6.
var dohAddrs = [...]string{
	"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844", // Google
	"1.1.1.1", "1.0.0.1", "1.1.1.2", "1.0.0.2", "1.1.1.3", "1.0.0.3", "2606:4700:4700::1111", "2606:4700:4700::1001", // Cloudflare
	"9.9.9.9", "9.9.9.10", "9.9.9.11", "149.112.112.112", "149.112.112.10", "149.112.112.11", "2620:fe::fe", "2620:fe::9", // Quad9
	"208.67.222.222", "208.67.220.220", // OpenDNS
	"94.140.14.14", "94.140.15.15", // AdGuard
	"45.90.28.0", "45.90.30.0", // NextDNS
	"76.76.2.0", "76.76.10.0", // Control D
	"223.5.5.5", "223.6.6.6", // AliDNS
}

// PublicResolvers returns the addresses at which well-known resolvers answer
// over HTTPS.
func PublicResolvers() []netip.Addr {
	out := make([]netip.Addr, len(dohAddrs))
	for i, s := range dohAddrs {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}
