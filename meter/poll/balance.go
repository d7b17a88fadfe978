package poll

import (
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// A register that stands still while power flows, or runs at another pace
// than power says, bills what did not happen. Power is integrated between two
// comparisons:
//
//	power     3 kW ............................
//	integral  0 ---------- 50 Wh  |  0 ---- 50 Wh
//	register  100.0        100.05 |         100.05   stuck
//	quality   good .............. | ........ suspect until they agree again
//
// Power between two readings is not known, and a meter may bring its registers
// up to date once a minute only. So the integral is a range, from what must
// have flowed to what can have, and a register is wrong only if it is beyond
// half or double of it.

// DefaultEvidence is how much energy has to flow before a register is
// compared with power.
const DefaultEvidence meter.MilliWattHour = 50_000

const (
	evidenceDigits = 20      // steps of the register that it must be, too
	maxFlow        = 1 << 40 // mW, beyond anything: keeps sums in range
	maxUnseen      = 30 * time.Second
	maxExcess      = 10 // readings in a row in which power exceeds voltage times current
)

// Balance compares the total register of one direction with power.
type Balance struct {
	Base  meter.MilliWattHour // the register at the last comparison
	Began bool
	Least int64 // mWs that must have flowed since then
	Most  int64 // mWs that can have flowed, -1: not known
	Peak  int64 // mW
	Wrong string
}

// flow is the power of one direction in one reading, mW.
type flow struct {
	least int64 // of the total: lines in opposite directions cancel out
	most  int64 // of the lines: or add up, on a meter that counts each by itself; -1: not known
}

// flowOf returns the flow into (dir 1) or out of (dir -1) what is metered.
func flowOf(points []meter.Point, dir int64) (f flow, ok bool) {
	f.most = -1
	lines, several := int64(0), false
	for _, p := range points {
		several = several || p.Phase > 1
		switch {
		case p.Quantity != meter.Power:
		case p.Phase == 0:
			f.least, ok = min(max(dir*p.Value, 0), maxFlow), true
		default:
			lines = min(lines+min(max(dir*p.Value, 0), maxFlow), maxFlow)
		}
	}
	if hasLines := slices.ContainsFunc(points, func(p meter.Point) bool { return p.Quantity == meter.Power && p.Phase > 0 }); hasLines {
		f.most = max(lines, f.least)
	} else if !several {
		f.most = f.least
	}
	return f, ok
}

// balanced are the registers that are compared.
var balanced = [2]struct {
	q   meter.Quantity
	dir int64
}{{meter.Import, 1}, {meter.Export, -1}}

// balance integrates power from the last reading to o and compares. It returns
// why the registers cannot be true, or nothing.
func balance(b [2]Balance, l Limits, last meter.Reading, o Outcome) ([2]Balance, string) {
	reason := ""
	for i, w := range balanced {
		j := slices.IndexFunc(o.Points, func(p meter.Point) bool { return p.Quantity == w.q && p.Phase == 0 })
		now, ok1 := flowOf(o.Points, w.dir)
		before, ok2 := flowOf(last.Points, w.dir)
		dt := o.Now - last.Mono
		if j < 0 || l.Evidence < 0 {
			continue
		}
		v := meter.MilliWattHour(o.Points[j].Value)
		if last.Quality == 0 || !ok1 || !ok2 || dt < 0 || dt > maxUnseen || !b[i].Began || v < b[i].Base {
			b[i] = Balance{Base: v, Began: true, Wrong: b[i].Wrong}
		} else {
			b[i] = b[i].add(before, now, dt)
			b[i] = b[i].compare(meter.PointName(w.q, 0), v, l.Evidence, o.Digits[j])
		}
		if reason == "" {
			reason = b[i].Wrong
		}
	}
	return b, reason
}

// suspended ends the comparison that is under way: a reading between was not
// to be believed.
func suspended(b [2]Balance) [2]Balance {
	for i := range b {
		b[i] = Balance{Wrong: b[i].Wrong}
	}
	return b
}

func (b Balance) add(before, now flow, dt time.Duration) Balance {
	ms := dt.Milliseconds()
	b.Least = addSat(b.Least, min(before.least, now.least)*ms/1000)
	switch {
	case before.most < 0 || now.most < 0:
		b.Most = -1
	case b.Most >= 0:
		b.Most = addSat(b.Most, max(before.most, now.most)*ms/1000)
	}
	b.Peak = max(b.Peak, before.most, now.most, before.least, now.least)
	return b
}

// compare judges register v once enough has flowed.
func (b Balance) compare(name string, v, evidence meter.MilliWattHour, digit int64) Balance {
	const hour = 3600
	lag := b.Peak * int64(maxUpdate/time.Second) / hour
	some := addSat(max(int64(evidence), digit), evidenceDigits*min(digit, 1<<40))
	much := addSat(some, 10*lag) // so much that the lag is but a tenth of it
	delta, least, most := int64(v-b.Base), b.Least/hour, b.Most/hour
	switch {
	case delta == 0 && least >= addSat(some, 2*lag):
		b.Wrong = fmt.Sprintf("%s is stuck at %d: power says that at least %d mWh have flowed; is its sign reversed?", name, v, least)
		return b // until it moves
	case least >= much && delta+lag < least/2:
		b.Wrong = fmt.Sprintf("%s moved by %d mWh where power says at least %d: do its transformer ratios differ?", name, delta, least)
	case b.Most >= 0 && delta >= much && delta-lag > 2*most:
		b.Wrong = fmt.Sprintf("%s moved by %d mWh where power says at most %d: do its transformer ratios differ?", name, delta, most)
	case least >= much:
		b.Wrong = ""
	default:
		return b
	}
	return Balance{Base: v, Began: true, Wrong: b.Wrong}
}

// excess returns the line on which more active power flows than voltage and
// current carry together, 0 if there is none: their transformer ratios differ.
// Meters do not measure all at one moment; a fifth and 20 W are forgiven.
func excess(points []meter.Point) (phase uint8) {
	for _, p := range points {
		if p.Quantity != meter.Power || p.Phase == 0 {
			continue
		}
		r := meter.Reading{Points: points}
		u, ok1 := r.Value(meter.Voltage, p.Phase)
		i, ok2 := r.Value(meter.Current, p.Phase)
		if !ok1 || !ok2 || u <= 0 || max(u, i, -i) > 1<<30 {
			continue
		}
		apparent := u * max(i, -i) / 1000 // mVA
		if max(p.Value, -p.Value) > apparent+apparent/5+20_000 {
			return p.Phase
		}
	}
	return 0
}
