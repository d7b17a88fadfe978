package modbus

import (
	"hash/maphash"
	"slices"
	"time"
)

// Limits of the guard, per unit.
const (
	// maxOpen bounds the requests whose answers may still come. At the
	// limit the unit is asked nothing until the oldest has expired.
	maxOpen = 16
	// openLife is how long an answer may be late. Slaves and bridges buffer
	// for seconds; this is far more.
	openLife = 2 * time.Minute
	// maxSeen bounds the remembered answers. When it is full the oldest is
	// forgotten, which shortens the time for which a copy is recognised.
	maxSeen = 512
	// maxProven bounds the remembered requests that the device is known to
	// answer. The least recently used is forgotten.
	maxProven = 8
	// maxSlow caps the learned time to an answer.
	maxSlow = 5 * time.Second
)

// guard decides whether an answer of one unit can be trusted. RTU answers do
// not say what they answer, so the guard remembers everything that may still
// arrive. See the package comment for the argument. It does no input or
// output and never reads a clock.
type guard struct {
	open   []owed        // requests without an answer, oldest first
	doubts []key         // answered, perhaps by a copy of an earlier answer to the same request
	stray  bool          // something arrived that nobody had asked for
	seen   []sighting    // frames received within window, oldest first
	proven []key         // reads that the device answers, most recent last
	window time.Duration // how late a copy may be
	slow   time.Duration // learned: longest time to an answer, with slow decay

	refuses bool // answers a shortened read with an exception
	settled key  // open, though it was answered: asked again it tells nothing more
}

type owed struct {
	key
	sent time.Time // last, if it was sent more than once
}

type sighting struct {
	key       key // zero: it answered nothing that was awaited
	exception bool
	sum       uint64
	at        time.Time
}

var sumSeed = maphash.MakeSeed()

// trust is the judgement over an answer that fits.
type trust uint8

const (
	fresh  trust = iota // it can only be the answer
	again               // same bytes as an earlier answer to the same request
	copied              // same bytes as an answer to something else
)

// expire forgets what is too old to matter.
func (g *guard) expire(now time.Time) {
	g.open = slices.DeleteFunc(g.open, func(o owed) bool { return now.Sub(o.sent) > openLife })
	i := 0
	for i < len(g.seen) && now.Sub(g.seen[i].at) > g.window {
		i++
	}
	g.seen = slices.Delete(g.seen, 0, i)
}

// expectsNothing reports whether frame, which is not what was asked for, can be
// no answer to anything that was asked earlier.
func (g *guard) expectsNothing(frame []byte) bool {
	return len(g.open) == 0 && len(g.doubts) == 0 && !g.stray && g.judge(key{}, frame) != copied
}

// clean reports whether k may be asked and its answer trusted as it is.
func (g *guard) clean(k key) bool {
	if g.stray || len(g.open) > 0 || len(g.doubts) >= maxOpen {
		return false
	}
	for _, d := range g.doubts {
		if d != k && d.confusable(k) {
			return false
		}
	}
	return true
}

// full reports whether nothing may be asked at all.
func (g *guard) full() bool { return len(g.open) >= maxOpen }

// owe records that k was sent at t and got no answer. One that was sent before
// keeps its place: only what was open then is older than all answers to it.
func (g *guard) owe(k key, t time.Time) {
	if i := g.find(k); i >= 0 {
		g.open[i].sent = t
		if g.settled == k { // it is silent again
			g.settled = key{}
		}
	} else if len(g.open) < maxOpen {
		g.open = append(g.open, owed{k, t})
	}
}

// note remembers a frame. A zero key stands for one that answered nothing.
func (g *guard) note(k key, frame []byte, now time.Time) {
	if len(g.seen) >= maxSeen {
		g.seen = slices.Delete(g.seen, 0, 1)
	}
	g.seen = append(g.seen, sighting{key: k, exception: frame[1]&exceptionBit != 0, sum: maphash.Bytes(sumSeed, frame), at: now})
}

// judge says how far frame, which fits k, can be trusted.
func (g *guard) judge(k key, frame []byte) trust {
	t := fresh
	sum := maphash.Bytes(sumSeed, frame)
	for _, s := range g.seen {
		switch {
		case s.sum != sum:
		case s.key != k:
			return copied
		default:
			t = again
		}
	}
	return t
}

// answered records a trusted answer to k. A fresh answer proves, since
// slaves answer in order, that nothing asked before it is still to come.
func (g *guard) answered(k key, t trust, exception bool) {
	if t == fresh {
		g.doubts = g.doubts[:0]
	} else if !slices.Contains(g.doubts, k) {
		g.doubts = append(g.doubts, k)
	}
	if k.read() && !exception {
		g.proven = slices.DeleteFunc(g.proven, func(p key) bool { return p == k })
		if len(g.proven) >= maxProven {
			g.proven = slices.Delete(g.proven, 0, 1)
		}
		g.proven = append(g.proven, k)
	}
}

// find returns where k is among the open requests, or -1.
func (g *guard) find(k key) int {
	return slices.IndexFunc(g.open, func(o owed) bool { return o.key == k })
}

// fenced records that the fence k was answered, and reports whether nothing
// older can follow. If k has been sent more than once, answers to the others
// can: what was asked before the first of them is settled, and a fence that
// differs from k has to settle the rest.
func (g *guard) fenced(k key) bool {
	if i := g.find(k); i >= 0 {
		g.open, g.settled = slices.Delete(g.open, 0, i), k
		return false
	}
	g.open, g.doubts, g.stray, g.settled = g.open[:0], g.doubts[:0], false, key{}
	return true
}

// refused records that the device answered the fence k with an exception, and
// that this says nothing. Whoever lacks a function need not refuse shortened
// reads by another one.
func (g *guard) refused(k key) {
	g.refuses = g.refuses || len(g.proven) == 0 || slices.ContainsFunc(g.proven, func(p key) bool { return p.fn == k.fn })
	g.proven = slices.DeleteFunc(g.proven, func(p key) bool { return p == k })
}

// debtor returns when the request was sent that frame is a late answer to,
// as far as one can tell.
func (g *guard) debtor(frame []byte) time.Time {
	for _, o := range g.open {
		if _, n := parseAnswer(frame, frame[0], o.key); n > 0 {
			return o.sent
		}
	}
	return g.open[len(g.open)-1].sent
}

// learn takes d as an observed time to an answer.
func (g *guard) learn(d time.Duration) {
	g.slow = min(max(d, g.slow-g.slow/64), maxSlow)
}

// quiet is the silence to wait for after an error.
func (g *guard) quiet(timeout time.Duration) time.Duration {
	if g.slow == 0 {
		return timeout
	}
	return g.slow + g.slow/4
}

// separate reports whether a regular answer to k is unlike every frame that
// may still arrive, late or as a copy.
func (g *guard) separate(k key) bool { return g.find(k) < 0 && g.distinct(k) }

// distinct is separate, but for answers to k itself.
func (g *guard) distinct(k key) bool {
	for _, o := range g.open {
		if o.key != k && k.confusable(o.key) {
			return false
		}
	}
	for _, d := range g.doubts {
		if k.confusable(d) {
			return false
		}
	}
	for _, s := range g.seen {
		if s.key == (key{}) { // unknown what it answered
			continue // judge compares the bytes
		}
		if k.confusable(s.key) {
			return false
		}
	}
	return true
}

// conclusive reports whether frame, which fits the fence k, can only be its
// answer. A regular answer is, because k is separate; an exception only names
// its function.
func (g *guard) conclusive(k key, frame []byte) bool {
	if g.judge(k, frame) != fresh {
		return false
	}
	if frame[1]&exceptionBit == 0 {
		return true
	}
	return !g.awaits(k.fn)
}

// awaits reports whether an answer, hence an exception, to function fn may
// still arrive.
func (g *guard) awaits(fn byte) bool {
	return g.owes(fn) || slices.ContainsFunc(g.doubts, func(d key) bool { return d.fn == fn })
}

// owes reports whether a request of function fn is without a trusted answer.
func (g *guard) owes(fn byte) bool {
	return slices.ContainsFunc(g.open, func(o owed) bool { return o.fn == fn })
}

// telling reports whether an exception to function fn could only answer a
// request that is sent now.
func (g *guard) telling(fn byte) bool {
	return !g.awaits(fn) && !slices.ContainsFunc(g.seen, func(s sighting) bool { return s.exception && (s.key.fn == fn || s.key == key{}) })
}

// cover proposes a longer read that begins with the registers of k and is a
// fence.
func (g *guard) cover(k key, maxBlock int) (key, bool) {
	if k.fn != fnReadHolding && k.fn != fnReadInput || g.refuses {
		return key{}, false
	}
	for _, step := range []uint16{2, 1} {
		for n := k.count + step; int(n) <= maxBlock && int(k.addr)+int(n) <= 1<<16 && n <= k.count+16; n += step {
			if c := (key{k.fn, k.addr, n}); g.separate(c) {
				return c, true
			}
		}
	}
	return key{}, false
}

// fence proposes a harmless read whose answer cannot be mistaken: something
// that the device has answered before, also if it is open itself, else a part
// of it, else another read function, which at least draws a telling exception.
// wanted is the request that waits behind the fence.
func (g *guard) fence(wanted key, maxBlock int) (key, bool) {
	best, ok := key{}, false
	for _, p := range g.proven {
		if g.separate(p) && (!ok || p.count < best.count) {
			best, ok = p, true
		}
	}
	if ok {
		return best, true
	}
	// Of those that are open the newest, because it settles most. A device that
	// is silent for long is asked this again and again, and no new kinds of
	// request are used up that it may have no answer to.
	for _, o := range slices.Backward(g.open) {
		if o.key != g.settled && slices.Contains(g.proven, o.key) && g.distinct(o.key) {
			return o.key, true
		}
	}
	base := key{fn: fnReadHolding, count: 2}
	if wanted.read() {
		base = wanted
	}
	if n := len(g.proven); n > 0 {
		base = g.proven[n-1]
	}
	other := fnReadHolding + fnReadInput - base.fn
	if base.fn != fnReadHolding && base.fn != fnReadInput {
		other = fnReadHolding
	}
	fns := []byte{base.fn, other, fnReadCoils, fnReadDiscrete}
	if g.refuses {
		// Only an exception will come: of a function of which no other can.
		fns = append(fns[1:], fns[0])
		if i := slices.IndexFunc(fns, g.telling); i >= 0 {
			fns = fns[i:]
		} else if slices.ContainsFunc(fns, func(fn byte) bool { return !g.awaits(fn) }) {
			return key{}, false // one can when no copy can come any more
		}
	}
	for _, fn := range fns {
		for _, odd := range []uint16{0, 1} { // meters of 32-bit values refuse odd counts
			for n := 2 - odd; int(n) <= maxBlock; n += 2 {
				k := key{fn: fn, addr: base.addr, count: n}
				if int(k.addr)+int(n) <= 1<<16 && g.separate(k) {
					return k, true
				}
				if n >= 32 && fn != base.fn {
					break
				}
			}
		}
	}
	return key{}, false
}
