package packet

import (
	"time"

	"github.com/joulegate/joulegate/guard"
)

// aliveFor is how long after its last frame a host counts as present. An
// address that moves later has a new owner.
const aliveFor = time.Minute

// arpDetector learns which hardware address speaks for an IP address, from
// ARP and from IP frames. A forged answer contradicts what was learnt; one
// about a router shows when remote traffic moves to whoever claimed the
// router's address.
type arpDetector struct {
	bindings *table[binding]
	claims   *table[claim]
	recent   [64]spoken // by the last bits of the address
}

// spoken is a host that was heard in a second: its binding is as fresh as it
// needs to be.
type spoken struct {
	ip     Addr
	second uint32
	mac    MAC
}

type binding struct {
	mac  MAC
	seen time.Duration
}

// claim is the address that an interface named as its own last.
type claim struct {
	ip Addr
	at time.Duration
}

func newARP(r Rules) *arpDetector {
	return &arpDetector{bindings: newTable[binding](4096>>r.shrink, r.Seed), claims: newTable[claim](1024>>r.shrink, r.Seed)}
}

func (*arpDetector) name() string { return "arp" }
func (*arpDetector) wants() kind  { return isARP | isIP }

func (d *arpDetector) step(e *Event, out *sink) {
	if e.kinds&isARP != 0 {
		d.arp(e, out)
		return
	}
	now, r := spoken{e.src, uint32(e.At / time.Second), e.srcMAC}, &d.recent[e.src.lo%64]
	if *r == now {
		return
	}
	if !e.srcMAC.unicast() || !e.src.unicast() {
		return
	}
	*r = now
	b, fresh := d.bindings.at(e.src.hash(d.bindings.seed), e.At)
	switch {
	case fresh:
		*b = binding{e.srcMAC, e.At}
	case b.mac == e.srcMAC:
		b.seen = e.At
	case e.At-b.seen > aliveFor:
		*b = binding{e.srcMAC, e.At}
	case !e.src.private():
		// A remote address speaks through its router.
		if c := d.claims.find(e.srcMAC.hash(d.claims.seed)); c != nil && c.ip != e.src && e.At-c.at <= aliveFor {
			out.find(e, guard.ARPSpoof, guard.High, host(c.ip), 1).
				mac("claimed_by", e.srcMAC).mac("belongs_to", b.mac).addr("took_over", e.src)
		}
		*b = binding{e.srcMAC, e.At}
	}
}

func (d *arpDetector) arp(e *Event, out *sink) {
	a := &e.arp
	if !a.sender.unicast() || !a.ip.unicast() { // a probe (RFC 5227) claims nothing
		return
	}
	c, _ := d.claims.at(a.sender.hash(d.claims.seed), e.At)
	*c = claim{a.ip, e.At}
	b, fresh := d.bindings.at(a.ip.hash(d.bindings.seed), e.At)
	switch {
	case fresh || e.At-b.seen > aliveFor:
		*b = binding{a.sender, e.At}
	case b.mac == a.sender:
		b.seen = e.At
	default:
		n := out.find(e, guard.ARPSpoof, guard.High, host(a.ip), 1).mac("claimed_by", a.sender).mac("belongs_to", b.mac)
		if e.srcMAC != a.sender && e.srcMAC.unicast() {
			n.mac("sent_by", e.srcMAC)
		}
	}
}
