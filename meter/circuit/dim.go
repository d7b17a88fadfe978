package circuit

import (
	"fmt"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// Limit is what the utility allows. The zero value allows everything.
type Limit struct {
	PerDevice meter.Watt // for each charger; 0: none
	Total     meter.Watt // for all chargers; 0: none
	Why       string     // whose order it is, or that a signal is missing
}

// Source is where an order to dim may come from.
type Source uint8

// Sources.
const (
	Contact Source = iota // a contact of the control box
	Message               // MQTT
	Ledger                // a transaction of an operator
	sources
)

func (s Source) String() string {
	if s >= sources {
		return fmt.Sprintf("source(%d)", uint8(s))
	}
	return [...]string{"the utility's contact", "the utility's message", "the operator's order on the ledger"}[s]
}

// Failsafe times.
const (
	// MinFailsafe is the least time for which a lost signal counts as dimmed
	// (EEBUS LPC, failsafe duration minimum).
	MinFailsafe = 2 * time.Hour
	// MaxSilence is the longest pause between two signs of life of a source
	// that is watched (EEBUS LPC, heartbeat).
	MaxSilence = 120 * time.Second
)

// DimRules say how orders are followed.
type DimRules struct {
	// PerDevice is the least that a charger keeps (section 14a EnWG: 4200 W):
	// no order goes below it. It is also what the contact means, and what
	// holds while a watched source is silent.
	PerDevice meter.Watt
	// Total limits the sum of all chargers while dimmed; 0: PerDevice each.
	Total meter.Watt
	// Watched sources must be heard at least every Silence.
	Watched [sources]bool
	Silence time.Duration
	// FailsafeFor is how long a lost signal counts as dimmed, at least
	// MinFailsafe; then Own holds, per charger, until it is heard again.
	FailsafeFor time.Duration
	Own         meter.Watt // 0: no limit
}

// DimEvent is what a source says.
type DimEvent struct {
	Source Source
	// Lost means that the source is known to be gone: its pin cannot be read.
	Lost bool
	// Limit per charger; 0: no limit.
	Limit meter.Watt
	// For is how long the order stands; 0: until the next one. A watched
	// source's order ends by a word or by failsafe, never by silence.
	For time.Duration
}

// DimState remembers what the sources said. The zero value is the start:
// watched sources count as lost until they are heard.
type DimState struct {
	src [sources]struct {
		heard  bool
		at     time.Duration
		lost   bool
		lostAt time.Duration
		limit  meter.Watt
		until  time.Duration // 0: until recalled
	}
}

// HearDim takes what a source says.
func HearDim(s DimState, e DimEvent, now time.Duration) DimState {
	if e.Source >= sources {
		panic(fmt.Sprintf("circuit: dimming by %s", e.Source))
	}
	v := &s.src[e.Source]
	if e.Lost {
		if !v.lost {
			v.lost, v.lostAt = true, now
		}
		return s
	}
	v.heard, v.at, v.lost, v.limit, v.until = true, now, false, max(0, e.Limit), 0
	if e.For > 0 {
		v.until = now + e.For
	}
	return s
}

// StepDim returns the limit in force: the lowest of all sources, and never
// below what the rules leave to a charger.
func StepDim(r DimRules, s DimState, now time.Duration) (DimState, Limit) {
	var out Limit
	lower := func(p meter.Watt, why string) {
		if p = max(p, r.PerDevice); out.PerDevice == 0 || p < out.PerDevice {
			out.PerDevice, out.Why = p, why
		}
	}
	for i := range s.src {
		v := &s.src[i]
		if r.Watched[i] && !v.lost && (!v.heard || now-v.at > r.Silence) {
			v.lost, v.lostAt = true, now
			if v.heard {
				v.lostAt = v.at + r.Silence
			}
		}
		switch {
		case v.lost && now-v.lostAt < max(MinFailsafe, r.FailsafeFor):
			lower(r.PerDevice, Source(i).String()+" is silent: failsafe")
		case v.lost:
			if r.Own > 0 {
				lower(r.Own, Source(i).String()+" is silent: own limit")
			}
		case v.limit > 0 && (v.until == 0 || now < v.until || r.Watched[i]):
			lower(v.limit, Source(i).String())
		}
	}
	if out.PerDevice > 0 {
		out.Total = r.Total
	}
	return s, out
}
