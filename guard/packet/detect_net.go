package packet

import (
	"math"
	"sync"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Thresholds of the destination rules.
const (
	exfilBytes = 20 << 20 // to one destination within
	exfilSpan  = time.Hour
	exfilShare = 3 // and so many times what came back

	beaconPause  = 2 * time.Second // what comes closer together is one call
	beaconLeast  = 5 * time.Second // between calls
	beaconCalls  = 12
	beaconSpread = 0.15 // standard deviation of the time between calls, of its mean
)

// destinations judges whom the hosts talk to by what they are used to.
type destinations struct {
	base  []listed
	learn time.Duration

	named *table[time.Duration] // addresses of names in the baseline
	to    *table[destination]   // outside, inside, port

	mu      sync.Mutex // guards learned, which others read and only step changes
	learned map[Addr]struct{}
}

// listed is a Destination as packets are compared with it.
type listed struct {
	name       string
	addr, mask Addr
	port       uint16
	four       bool
}

func listedOf(d Destination) listed {
	l := listed{name: d.Name, port: d.Port}
	if l.name == "" {
		l.four = d.Prefix.Addr().Unmap().Is4()
		l.addr = addrOf(d.Prefix.Masked().Addr())
		ones := d.Prefix.Bits() + 128 - d.Prefix.Addr().BitLen()
		l.mask = Addr{hi: ^uint64(0) << max(0, 64-ones), lo: ^uint64(0) << min(64, 128-ones)}
	}
	return l
}

func (l *listed) contains(a Addr) bool {
	if a.hi&l.mask.hi != l.addr.hi || a.lo&l.mask.lo != l.addr.lo {
		return false
	}
	_, four := a.isV4()
	return four == l.four // ::/0 is not about IPv4
}

// destination is one conversation's other end.
type destination struct {
	flow        *flow // that looked it up last
	since       time.Duration
	looked      time.Duration
	out, in     uint64        // bytes in this span
	told        *note         // of this span
	began, last time.Duration // of a call
	calls       uint32
	mean, m2    float64 // of the seconds between calls (Welford 1962)
}

func newDestinations(r Rules) *destinations {
	d := &destinations{
		learn:   r.Learn,
		named:   newTable[time.Duration](4096>>r.shrink, r.Seed),
		to:      newTable[destination](4096>>r.shrink, r.Seed),
		learned: map[Addr]struct{}{},
	}
	for _, b := range r.Baseline {
		d.base = append(d.base, listedOf(b))
	}
	return d
}

func (*destinations) name() string { return "net" }
func (*destinations) wants() kind  { return isIP | isDNS }

func (d *destinations) step(e *Event, out *sink) {
	if e.kinds&isDNS != 0 && e.dns.response {
		for _, b := range d.base {
			if b.name != "" && below(e.dns.name, b.name) {
				for _, a := range e.dns.answers {
					at, _ := d.named.at(a.hash(d.named.seed), e.At)
					*at = e.At
				}
			}
		}
	}
	if e.kinds&isIP == 0 || e.flow != nil && e.flow.listed > 0 {
		return
	}
	// The destination is whom somebody called; for a caller from outside, the
	// caller.
	inside, outside, port := e.client(), e.server(), e.serverPort()
	called := true
	if !inside.private() && outside.private() {
		inside, outside, called = outside, inside, false
	}
	if !outside.unicast() || !inside.unicast() || port == 67 || port == 68 {
		if e.flow != nil {
			e.flow.listed = 1 // not judged
		}
		return
	}
	listed := int8(0)
	if e.flow != nil {
		listed = e.flow.listed
	}
	if listed == 0 {
		listed = -1
		if d.known(outside, port, e.At) {
			listed = 1
		} else if called && (e.begins || e.flow == nil) {
			if e.At < d.learn && d.add(outside) {
				listed = 1
			} else {
				out.find(e, guard.NetNewDestination, guard.Info, host(outside), 1).addr("from", inside).num("port", uint64(port))
			}
		}
		if e.flow != nil {
			e.flow.listed = listed
		}
	}
	if listed > 0 {
		return
	}
	x := d.find(e, pair{outside, inside, port})
	if leaves := e.src == inside; leaves {
		d.exfil(e, out, x, inside, outside, port)
		if called && port != 123 && (len(e.payload) > 0 || e.begins) {
			d.beacon(e, out, x, inside, outside, port)
		}
	} else {
		x.in += uint64(e.Size)
	}
}

// find looks the destination up, or takes it from the flow that did so less
// than a second ago.
func (d *destinations) find(e *Event, k pair) *destination {
	f := e.flow
	if f != nil && f.dest != nil && f.dest.flow == f && e.At-f.dest.looked < time.Second {
		return f.dest
	}
	x, fresh := d.to.at(k.hash(d.to.seed), e.At)
	if fresh {
		*x = destination{since: e.At}
	}
	x.looked, x.flow = e.At, f
	if f != nil {
		f.dest = x
	}
	return x
}

// known tells whether the baseline has a destination.
func (d *destinations) known(a Addr, port uint16, now time.Duration) bool {
	for i := range d.base {
		b := &d.base[i]
		if b.port != 0 && b.port != port {
			continue
		}
		if b.name != "" {
			if at := d.named.find(a.hash(d.named.seed)); at != nil && now-*at <= answerFor {
				return true
			}
			continue
		}
		if b.contains(a) {
			return true
		}
	}
	_, ok := d.learned[a]
	return ok
}

// add learns a destination, if there is place.
func (d *destinations) add(a Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.learned) >= MaxBaseline {
		return false
	}
	d.learned[a] = struct{}{}
	return true
}

func (d *destinations) exfil(e *Event, out *sink, x *destination, inside, outside Addr, port uint16) {
	if e.At-x.since > exfilSpan {
		x.since, x.out, x.in, x.told = e.At, 0, 0, nil
	}
	x.out += uint64(e.Size)
	if x.out < exfilBytes || x.out < exfilShare*x.in {
		return
	}
	if x.told == nil {
		x.told = out.find(e, guard.NetExfiltration, guard.High, host(outside), 1).addr("from", inside)
	}
	out.again(e, x.told).num("port", uint64(port)).num("bytes", x.out).num("bytes_back", x.in)
}

// beacon finds calls that come like a clock's. A call that comes at quite
// another time begins the count anew.
func (d *destinations) beacon(e *Event, out *sink, x *destination, inside, outside Addr, port uint16) {
	last := x.last
	x.last = e.At
	if x.calls > 0 && e.At-last < beaconPause {
		return
	}
	interval := (e.At - x.began).Seconds()
	x.began = e.At
	x.calls++
	switch {
	case x.calls == 1:
		return
	case interval < beaconLeast.Seconds(), x.calls > 3 && math.Abs(interval-x.mean) > x.mean/2:
		x.calls, x.mean, x.m2 = 1, 0, 0
		return
	}
	n := float64(x.calls - 1)
	delta := interval - x.mean
	x.mean += delta / n
	x.m2 += delta * (interval - x.mean)
	if x.calls <= beaconCalls || math.Sqrt(x.m2/n) > beaconSpread*x.mean {
		return
	}
	out.find(e, guard.NetBeacon, guard.Low, host(outside), 1).addr("from", inside).
		latest().num("port", uint64(port)).num("calls", uint64(x.calls)).num("every_s", uint64(math.Round(x.mean)))
}
