package packet

import (
	"bytes"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// answerFor is how long an answer counts as recent.
const answerFor = 24 * time.Hour

// helloDetector compares the name that a connection asks for with what was
// answered: whoever looks a name up elsewhere, or hides behind another one,
// shows here.
//
// The filter knows all answers to its clients. Without it, only answers that
// crossed the wire are known: then a name counts as wrong when nobody looked
// it up and its address was given for other names.
type helloDetector struct {
	answers Answers
	given   *table[time.Duration] // addresses in answers
	asked   *table[time.Duration] // names that were looked up
}

func newHello(r Rules) *helloDetector {
	return &helloDetector{answers: r.Answers, given: newTable[time.Duration](4096>>r.shrink, r.Seed), asked: newTable[time.Duration](4096>>r.shrink, r.Seed)}
}

func (*helloDetector) name() string { return "hello" }
func (*helloDetector) wants() kind  { return isHello | isDNS }

func (d *helloDetector) step(e *Event, out *sink) {
	if e.kinds&isDNS != 0 {
		if e.dns.response && !e.dns.failed {
			at, _ := d.asked.at(digestOf(d.asked.seed, e.dns.name), e.At)
			*at = e.At
			for _, a := range e.dns.answers {
				at, _ := d.given.at(a.hash(d.given.seed), e.At)
				*at = e.At
			}
		}
		return
	}
	name := bytes.TrimSuffix(e.name, []byte("."))
	if len(name) == 0 || len(bytes.Trim(name, "0123456789.")) == 0 || bytes.IndexByte(name, ':') >= 0 || localName(name) {
		return // an address, or a name that needs no DNS
	}
	if !d.wrong(e, name) {
		return
	}
	by := "HTTP"
	if e.secure {
		by = "TLS"
	}
	out.find(e, guard.TLSSNIMismatch, guard.Low, host(e.server()), 1).addr("from", e.client()).bytes("server_name", name).text("by", by)
}

func (d *helloDetector) wrong(e *Event, name []byte) bool {
	if d.answers != nil {
		return d.answers.Asks(e.client().Netip()) && !d.answers.Answered(string(name), e.server().Netip())
	}
	given := d.given.find(e.server().hash(d.given.seed))
	if given == nil || e.At-*given > answerFor {
		return false
	}
	asked := d.asked.find(digestOf(d.asked.seed, name))
	return asked == nil || e.At-*asked > answerFor
}
