package station

import (
	"fmt"
	"strings"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/session"
)

// What happens at a charger becomes chain.Event records in this gateway's own
// block, so that a later question, "why did it switch at 14:03?", has a signed
// answer. Three rules keep a fault that comes and goes from filling the disk:
//
//   - an event that repeats the last one of its kind and subject within a
//     while is counted and told with the next; the while doubles from
//     repeatFirst to repeatLast and starts anew after two quiet ones;
//   - a changed offer is recorded once in offerEach, the switching itself
//     always (session.Rules.MaxSwitches bounds it);
//   - beyond maxBurst, one event each refillEach; what is dropped is counted
//     and told. Alarms are exempt: they latch.
const (
	repeatFirst = time.Minute
	repeatLast  = time.Hour
	offerEach   = time.Minute
	maxBurst    = 200
	refillEach  = 2 * time.Second
	maxKinds    = 256 // kinds of event whose repetition is remembered; then all are forgotten
)

// fact is something to put on record.
type fact struct {
	code     string
	severity uint8
	subject  string
	text     string
}

// events is the recorder's memory.
type events struct {
	seen    map[string]*repeat // code/subject
	tokens  int
	filled  time.Duration
	dropped int
}

type repeat struct {
	fact
	at     time.Duration // of the last one recorded
	window time.Duration
	more   int // since then
}

func newEvents() events { return events{seen: map[string]*repeat{}, tokens: maxBurst} }

func chargerName(id uint8) string { return fmt.Sprintf("charger-%d", id) }

// evidence puts something that happened on record.
func (s *Station) evidence(code string, severity uint8, subject, text string) {
	f := fact{code, severity, subject, text}
	key := code + "/" + subject
	r, known := s.events.seen[key]
	switch {
	case !known:
		if len(s.events.seen) >= maxKinds {
			clear(s.events.seen)
		}
		s.events.seen[key] = &repeat{f, s.now, repeatFirst, 0}
	case s.now-r.at < r.window:
		r.fact = f
		r.more++
		return
	default:
		s.again(r, f)
	}
	s.record(f)
}

// again begins the next while of an event that came before.
func (s *Station) again(r *repeat, f fact) {
	if s.now-r.at < 2*r.window {
		r.window = min(2*r.window, repeatLast)
	} else {
		r.window = repeatFirst
	}
	r.fact, r.at, r.more = f, s.now, 0
}

// repeats tells what was only counted, once its while is over.
func (s *Station) repeats() {
	for _, r := range s.events.seen {
		if r.more == 0 || s.now-r.at < r.window {
			continue
		}
		f := r.fact
		f.text = fmt.Sprintf("%d times within %s, last: %s", r.more, r.window, f.text)
		s.again(r, r.fact)
		s.record(f)
	}
}

// record appends to the queue what the limits let through.
func (s *Station) record(f fact) {
	e := &s.events
	if n := int((s.now - e.filled) / refillEach); n > 0 {
		e.tokens, e.filled = min(maxBurst, e.tokens+n), s.now
	}
	if len(s.queue) >= MaxQueue || e.tokens == 0 && f.severity < 3 {
		e.dropped++ // evidence gives way to billing
		return
	}
	e.tokens = max(0, e.tokens-1)
	if e.dropped > 0 {
		f.text += fmt.Sprintf(" (%d earlier events were dropped)", e.dropped)
		e.dropped = 0
	}
	if s.cfg.By != "" {
		f.text += " [" + s.cfg.By + "]"
	}
	ev := chain.Event{Code: f.code, Severity: f.severity, Subject: f.subject, At: s.wall.UnixMilli(), Detail: chain.Sum([]byte(f.text)), Text: f.text}
	if len(ev.Text) > chain.MaxEventText {
		ev.Text = strings.ToValidUTF8(ev.Text[:chain.MaxEventText], "")
	}
	s.enqueue(entry{record: chain.NewRecord(chain.KindEvent, ev)}, f.severity > 1)
}

// recordCommand puts a switching of the actuator on record, with its cause and
// the circumstances.
func (s *Station) recordCommand(c *charger, was session.State) {
	if c.st.Relay == was.Relay {
		return
	}
	code, verb := "charger.closed", "closed"
	if !c.st.Relay {
		code, verb = "charger.opened", "opened"
	}
	cause := c.st.Cause
	if cause == session.NoCurrent {
		cause += ", because of " + c.why
	}
	text := fmt.Sprintf("%s %s: %s; %s after %s, offered %d mA before, %d mA flowed", c.actuator(), verb, cause, c.st.Phase, was.Phase, was.Offered, c.st.Current)
	if c.Session.Temp {
		text += ", " + c.st.Heat.String()
	}
	if c.st.ID != (chain.ID{}) {
		text += ", session " + c.st.ID.String()
	}
	if c.st.Relay {
		text += fmt.Sprintf("; offers %d mA", c.st.Offered)
	}
	severity := uint8(1)
	if c.st.Reason == chain.StopSafety || c.st.Fault != session.NoFault {
		severity = 2
	}
	c.offer = offers{recorded: c.st.Offered, at: s.now}
	s.record(fact{code, severity, chargerName(c.ID), text})
}

func (c *charger) actuator() string {
	if c.Relay == nil {
		return "wallbox"
	}
	return "relay"
}

// offers is what has been offered since the last record of it.
type offers struct {
	recorded meter.MilliAmpere
	at       time.Duration
}

// recordOffer puts a changed offer on record, not more often than offerEach.
func (s *Station) recordOffer(c *charger) {
	if !c.st.Relay || c.st.Offered == 0 || c.st.Offered == c.offer.recorded || s.now-c.offer.at < offerEach {
		return
	}
	text := fmt.Sprintf("offers %d mA after %d mA, because of %s; %d mA flow", c.st.Offered, c.offer.recorded, c.why, c.st.Current)
	if c.Session.Temp {
		text += ", " + c.st.Heat.String()
	}
	c.offer = offers{recorded: c.st.Offered, at: s.now}
	s.record(fact{"charger.offer", 1, chargerName(c.ID), text})
}

// quality puts on record when a meter stops or starts to be believed.
func (s *Station) quality(m *meterState, r meter.Reading) {
	was, now := m.last.Quality, r.Quality
	if was == now || m.last.Device == "" && now == meter.Good {
		return
	}
	switch now {
	case meter.Good:
		s.evidence("meter.good", 1, m.ID, "readings are good again, after "+was.String()+": "+m.last.Reason)
	default:
		s.evidence("meter."+now.String(), 2, m.ID, r.Reason)
	}
}
