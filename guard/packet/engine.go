package packet

import (
	"fmt"
	"log/slog"
	"math/bits"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/joulegate/joulegate/guard"
)

// Answers tells what names were answered recently. The domain filter
// implements it; it must not block and be safe for concurrent use.
type Answers interface {
	// Asks tells whether a host has the filter as its resolver.
	Asks(client netip.Addr) bool
	// Answered tells whether addr was a recent answer for name, to anyone.
	// The name is in lower case, without a dot at its end.
	Answered(name string, addr netip.Addr) bool
}

// Rules is what an engine works by.
type Rules struct {
	Network
	Charging func() bool // the charger is at work; nil: it never is
	Answers  Answers     // nil: only answers seen on the wire count
	Seed     uint64      // of tables; secret where attackers are

	shrink int // tables are so many times halved, for tests that make many engines
}

// detector is one step over events. It changes only its own state and the
// sink.
type detector interface {
	name() string
	wants() kind
	step(e *Event, out *sink)
}

// engine decodes frames and runs the detectors on them. It is not safe for
// concurrent use.
type engine struct {
	rules     Rules
	dec       *decoder
	streams   *streams
	detectors []detector
	wants     [kinds]uint16 // by an event's kinds: a bit for every detector that wants one of them and is not switched off
	sink      *sink
	event     Event
	at        int // what is at work
	log       *slog.Logger

	packets, undecoded, panics uint64
	off                        []string // detectors that panicked
}

func newEngine(r Rules, link layers.LinkType, window time.Duration, report func(guard.Finding), log *slog.Logger) *engine {
	r.Network.defaults()
	if r.Charging == nil {
		r.Charging = func() bool { return false }
	}
	g := &engine{rules: r, dec: newDecoder(link), sink: newSink(window, report), log: log}
	g.streams = newStreams(r, g.dispatch)
	g.detectors = []detector{
		newModbus(r), newARP(r), newDHCP(r), newTCP(r), newDNS(r), newHello(r), mqttDetector{}, newAuth(r),
	}
	if r.Baseline != nil {
		g.detectors = append(g.detectors, newDestinations(r))
	}
	g.plan()
	return g
}

// plan says who wants what.
func (g *engine) plan() {
	for i, d := range g.detectors {
		w := int(d.wants())
		for k := range g.wants {
			if k&w != 0 {
				g.wants[k] |= 1 << i
			}
		}
	}
}

// frame takes the next frame. At must not decrease.
func (g *engine) frame(data []byte, at time.Duration, wall int64, size int, charging bool) {
	g.packets++
	e := &g.event
	e.At, e.Wall, e.Size, e.Charging = max(at, e.At), wall, size, charging
	g.look(data, e)
	if len(g.sink.fresh) > 0 || g.sink.window > 0 {
		g.sink.step(e.At)
	}
}

// at is what is at work, for whoever contains its panic: a detector's number,
// or one of these.
const (
	inNothing = -1 - iota
	inDecoder
	inStreams
)

// look contains panics. The frame that caused one is not looked at further,
// and a detector is not called again.
func (g *engine) look(data []byte, e *Event) {
	g.at = inDecoder
	defer g.contain(e)
	if err := g.dec.decode(data, e); err != nil {
		g.undecoded++
	}
	if e.kinds != 0 {
		g.at = inStreams
		g.streams.step(e)
		g.dispatch(e, e.kinds)
	}
	g.at = inNothing
}

// dispatch gives an event to those who want it.
func (g *engine) dispatch(e *Event, k kind) {
	before, was := g.at, e.kinds
	e.kinds = k
	for all := g.wants[k%kinds]; all != 0; all &= all - 1 {
		i := bits.TrailingZeros16(all)
		g.at = i
		g.detectors[i].step(e, g.sink)
	}
	g.at, e.kinds = before, was
}

func (g *engine) contain(e *Event) {
	if g.at == inNothing {
		return
	}
	p := recover()
	if g.at == inDecoder { // gopacket trusts some lengths that frames state
		g.undecoded++
		return
	}
	what := "streams"
	if g.at >= 0 {
		what = g.detectors[g.at].name()
		for k := range g.wants {
			g.wants[k] &^= 1 << g.at
		}
		g.off = append(g.off, what)
	}
	if e.flow != nil { // which may be half updated
		g.streams.release(e.flow)
		e.flow.synced = [2]bool{}
	}
	g.panics++
	if g.panics <= 16 {
		g.log.Error("a part of the packet sensor panicked", "part", what, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
}

// impaired says what was switched off, or nothing.
func (g *engine) impaired() string {
	if len(g.off) == 0 {
		return ""
	}
	return "switched off after a panic: " + strings.Join(g.off, ", ") + "; please report it, and restart to switch on again"
}
