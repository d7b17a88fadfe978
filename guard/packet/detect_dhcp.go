package packet

import (
	"slices"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Thresholds of the DHCP rules.
const (
	floodRequests = 100 // of clients, within
	floodSpan     = 10 * time.Second
	serverFor     = 24 * time.Hour // a server that was silent for longer is forgotten
)

// dhcpDetector knows the server and counts what clients ask.
type dhcpDetector struct {
	known  []Addr
	server Addr // learnt, when none is known
	mac    MAC
	seen   time.Duration
	some   bool

	asked   window
	clients distinct
	from    MAC // of the first request of the window
	others  bool
}

func newDHCP(r Rules) *dhcpDetector {
	d := &dhcpDetector{}
	for _, a := range r.DHCPServers {
		d.known = append(d.known, addrOf(a))
	}
	return d
}

func (*dhcpDetector) name() string { return "dhcp" }
func (*dhcpDetector) wants() kind  { return isDHCP }

func (d *dhcpDetector) step(e *Event, out *sink) {
	if e.dhcp.fromServer {
		if e.dhcp.kind == dhcpOffer || e.dhcp.kind == dhcpAck {
			d.serve(e, out)
		}
		return
	}
	n, began := d.asked.add(e.At, floodSpan)
	if began {
		d.clients, d.from, d.others = distinct{}, e.srcMAC, false
	}
	d.clients.add(e.dhcp.client.hash(0).a)
	d.others = d.others || e.srcMAC != d.from
	count := uint64(1)
	switch {
	case n < floodRequests:
		return
	case n == floodRequests:
		count = floodRequests
	}
	from := d.from
	if d.others {
		from = broadcast
	}
	out.find(e, guard.DHCPFlood, guard.Medium, link(from), count).latest().num("clients_at_least", uint64(d.clients.n))
}

// serve judges an offer. Of an unknown network, whoever offers first is taken
// for its server.
func (d *dhcpDetector) serve(e *Event, out *sink) {
	s := e.dhcp.server
	if len(d.known) > 0 {
		if !slices.Contains(d.known, s) {
			out.find(e, guard.DHCPRogueServer, guard.High, host(s), 1).mac("from", e.srcMAC).addr("expected", d.known[0])
		}
		return
	}
	switch {
	case !d.some || e.At-d.seen > serverFor:
		d.server, d.mac, d.some = s, e.srcMAC, true
	case s != d.server:
		out.find(e, guard.DHCPRogueServer, guard.High, host(s), 1).mac("from", e.srcMAC).addr("expected", d.server)
		return
	case e.srcMAC != d.mac && !e.dhcp.relayed && e.At-d.seen < aliveFor:
		out.find(e, guard.DHCPRogueServer, guard.High, host(s), 1).mac("from", e.srcMAC).mac("expected", d.mac)
		return
	default:
		d.mac = e.srcMAC
	}
	d.seen = e.At
}
