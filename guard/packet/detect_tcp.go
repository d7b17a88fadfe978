package packet

import (
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Thresholds of the TCP rules.
const (
	scanPorts  = 20  // of one host, tried by another within
	surelyScan = 100 // so many even when most answer
	scanHosts  = 32  // of the local network, tried on one port within
	probeSpan  = time.Minute
	scanAgain  = 10 * time.Minute // an episode that goes on is found again, so that whoever was blocked for a while is again

	floodOpen    = 100 // connections to one port opened and not finished within
	floodSYNSpan = 10 * time.Second
)

// tcpDetector looks at how connections begin.
type tcpDetector struct {
	probes *table[probes] // ports of one host
	sweeps *table[probes] // hosts on one port
	half   *table[half]
}

// probes is what one host tries.
type probes struct {
	since, last time.Duration
	different   distinct
	n, answered uint32
	told        *note // of this episode
	toldAt      time.Duration
}

// half is what a server's port is offered.
type half struct {
	window
	finished uint32
	first    Addr // source
	others   uint32
	sources  distinct
	told     *note // of this episode
	last     time.Duration
}

func newTCP(r Rules) *tcpDetector {
	return &tcpDetector{
		probes: newTable[probes](2048>>r.shrink, r.Seed),
		sweeps: newTable[probes](1024>>r.shrink, r.Seed),
		half:   newTable[half](1024>>r.shrink, r.Seed),
	}
}

func (*tcpDetector) name() string { return "tcp" }
func (*tcpDetector) wants() kind  { return isControl }

func (d *tcpDetector) step(e *Event, out *sink) {
	switch {
	case e.completes:
		if h := d.half.find(hostPort{e.dst, e.dstPort}.hash(d.half.seed)); h != nil {
			h.finished++
		}
	case e.flags&(syn|ack) == syn|ack:
		if p := d.probes.find(pair{a: e.dst, b: e.src}.hash(d.probes.seed)); p != nil {
			p.answered++
		}
		if p := d.sweeps.find(hostPort{e.dst, e.srcPort}.hash(d.sweeps.seed)); p != nil {
			p.answered++
		}
	case e.flags&(syn|ack|rst|fin) == syn:
		if e.begins {
			d.open(e, out)
		}
		d.probe(e, out)
	case e.flags&(ack|rst) == 0 && e.begins:
		// Neither opens nor belongs to a connection: FIN, XMAS and null scans.
		d.probe(e, out)
	}
}

func (d *tcpDetector) probe(e *Event, out *sink) {
	p, fresh := d.probes.at(pair{a: e.src, b: e.dst}.hash(d.probes.seed), e.At)
	p.add(e.At, fresh, mix(uint64(e.dstPort), d.probes.seed))
	unanswered := p.answered*2 < p.n
	if ports := p.different.n; ports >= scanPorts && (unanswered || ports >= surelyScan) {
		p.tell(e, out).num("ports_at_least", uint64(ports)).num("probes", uint64(p.n))
	}
	if !e.dst.private() {
		return
	}
	p, fresh = d.sweeps.at(hostPort{e.src, e.dstPort}.hash(d.sweeps.seed), e.At)
	p.add(e.At, fresh, e.dst.hash(d.sweeps.seed).a)
	if hosts := p.different.n; hosts >= scanHosts && p.answered*2 < p.n {
		p.tell(e, out).num("port", uint64(e.dstPort)).num("hosts_at_least", uint64(hosts)).num("probes", uint64(p.n))
	}
}

// add counts a probe. An episode ends when it pauses, or when it took long
// without being found.
func (p *probes) add(now time.Duration, fresh bool, what uint64) {
	if fresh || now-p.last > probeSpan || p.told == nil && now-p.since > probeSpan {
		*p = probes{since: now}
	}
	p.last = now
	p.n++
	p.different.add(what)
}

// tell counts an episode once in scanAgain and else only brings its numbers up
// to date.
func (p *probes) tell(e *Event, out *sink) *note {
	if p.told == nil || e.At-p.toldAt >= scanAgain {
		p.toldAt = e.At
		p.told = out.find(e, guard.TCPPortScan, guard.Medium, host(e.src), 1).addr("target", e.dst)
	}
	return out.again(e, p.told)
}

func (d *tcpDetector) open(e *Event, out *sink) {
	h, fresh := d.half.at(hostPort{e.dst, e.dstPort}.hash(d.half.seed), e.At)
	if fresh || h.told != nil && e.At-h.last > floodSYNSpan || h.told == nil && e.At-h.since > floodSYNSpan {
		*h = half{first: e.src}
	}
	n, _ := h.add(e.At, time.Duration(1<<63-1))
	h.last = e.At
	h.sources.add(e.src.hash(d.half.seed).a)
	if e.src != h.first {
		h.others++
	}
	if n < h.finished+floodOpen || h.finished*5 > n {
		return
	}
	if h.told == nil {
		// One source is named; many are forged, and the target counts.
		about := host(e.dst)
		if h.others*10 < n {
			about = host(h.first)
		}
		h.told = out.find(e, guard.TCPSYNFlood, guard.Medium, about, 1).addr("target", e.dst)
	}
	out.again(e, h.told).num("port", uint64(e.dstPort)).num("opened", uint64(n)).num("finished", uint64(h.finished)).num("sources_at_least", uint64(h.sources.n))
}
