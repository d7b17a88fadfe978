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
	beats []beat                // by the place in it

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

// destination is one conversation's other end. With what its table keeps
// before it, what every frame needs is one line of memory.
type destination struct {
	flow    *flow // that looked it up last
	since   time.Duration
	out, in uint64        // bytes in this span
	told    *note         // of this span
	last    time.Duration // of a call
}

// beat is how regularly a destination is called.
type beat struct {
	began    time.Duration // of a call
	mean, m2 float64       // of the seconds between calls (Welford 1962)
	calls    uint32
}

func newDestinations(r Rules) *destinations {
	d := &destinations{
		learn:   r.Learn,
		named:   newTable[time.Duration](4096>>r.shrink, r.Seed),
		to:      newTable[destination](4096>>r.shrink, r.Seed),
		learned: map[Addr]struct{}{},
	}
	d.beats = make([]beat, len(d.to.slots))
	for _, b := range r.Baseline {
		d.base = append(d.base, listedOf(b))
	}
	return d
}

func (*destinations) name() string { return "net" }
func (*destinations) wants() kind  { return isIP | isDNS }

// role says what a conversation is to the local network.
type role uint8

const (
	insideIs1 role = 1 << iota // the side of the local network
	calls                      // which began it, and not to ask for the time
)

func (d *destinations) step(e *Event, out *sink) {
	if e.kinds&isDNS != 0 && e.dns.response {
		d.answered(e)
	}
	if e.kinds&isIP == 0 {
		return
	}
	f := e.flow
	if f == nil {
		if r, ok := d.judge(e, out); ok {
			d.count(e, out, r)
		}
		return
	}
	if f.listed == 0 {
		f.listed = 1
		if r, ok := d.judge(e, out); ok {
			f.listed, f.role = -1, r
		}
	}
	if f.listed < 0 {
		d.count(e, out, f.role)
	}
}

// answered remembers the addresses of names in the baseline.
func (d *destinations) answered(e *Event) {
	for _, b := range d.base {
		if b.name != "" && below(e.dns.name, b.name) {
			for _, a := range e.dns.answers {
				at, _ := d.named.at(a.hash(d.named.seed), e.At)
				*at = e.At
			}
		}
	}
}

// judge tells whether a conversation is counted, and tells of a destination
// that is new.
func (d *destinations) judge(e *Event, out *sink) (role, bool) {
	// The destination is whom somebody called; for a caller from outside, the
	// caller.
	inside, outside, port := e.client(), e.server(), e.serverPort()
	called := true
	if !inside.private() && outside.private() {
		inside, outside, called = outside, inside, false
	}
	if !outside.unicast() || !inside.unicast() || port == 67 || port == 68 || d.known(outside, port, e.At) {
		return 0, false
	}
	if called && (e.begins || e.flow == nil) {
		if e.At < d.learn && d.add(outside) {
			return 0, false
		}
		out.find(e, guard.NetNewDestination, guard.Info, host(outside), 1).addr("from", inside).num("port", uint64(port))
	}
	r := role(e.side)
	if inside != e.src {
		r ^= insideIs1
	}
	if called && port != 123 {
		r |= calls
	}
	return r, true
}

// count adds a frame to what its destination was sent, or has sent.
func (d *destinations) count(e *Event, out *sink, r role) {
	leaves := r&insideIs1 == role(e.side)
	at := -1
	if f := e.flow; f != nil && f.dest > 0 {
		if s := &d.to.slots[f.dest-1]; s.val.flow == f && e.At-s.seen < time.Second {
			at = int(f.dest - 1) // this flow has looked it up lately, and nobody since
		}
	}
	if at < 0 {
		at = d.find(e, leaves)
	}
	x := &d.to.slots[at].val
	if !leaves {
		x.in += uint64(e.Size)
		return
	}
	if e.At-x.since > exfilSpan {
		x.since, x.out, x.in, x.told = e.At, 0, 0, nil
	}
	x.out += uint64(e.Size)
	if x.out >= exfilBytes && x.out >= exfilShare*x.in {
		d.exfil(e, out, x)
	}
	if r&calls != 0 && (len(e.payload) > 0 || e.begins) {
		last := x.last
		if x.last = e.At; e.At-last >= beaconPause {
			d.beacon(e, out, &d.beats[at])
		}
	}
}

// find looks the destination up.
func (d *destinations) find(e *Event, leaves bool) (at int) {
	k := pair{e.src, e.dst, e.serverPort()} // outside, inside
	if leaves {
		k.a, k.b = k.b, k.a
	}
	f := e.flow
	at, fresh := d.to.place(k.hash(d.to.seed))
	s := &d.to.slots[at]
	if s.seen = e.At; fresh {
		s.val = destination{since: e.At, last: e.At - beaconPause}
		d.beats[at] = beat{}
	}
	s.val.flow = f
	if f != nil {
		f.dest = int32(at + 1)
	}
	return at
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

func (d *destinations) exfil(e *Event, out *sink, x *destination) {
	if x.told == nil {
		x.told = out.find(e, guard.NetExfiltration, guard.High, host(e.dst), 1).addr("from", e.src)
	}
	out.again(e, x.told).num("port", uint64(e.serverPort())).num("bytes", x.out).num("bytes_back", x.in)
}

// beacon finds calls that come like a clock's. A call that comes at quite
// another time begins the count anew.
func (d *destinations) beacon(e *Event, out *sink, x *beat) {
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
	out.find(e, guard.NetBeacon, guard.Low, host(e.dst), 1).addr("from", e.src).
		latest().num("port", uint64(e.serverPort())).num("calls", uint64(x.calls)).num("every_s", uint64(math.Round(x.mean)))
}
