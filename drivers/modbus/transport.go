package modbus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// exchange is the request that is on the wire.
type exchange struct {
	u       *unit
	timeout time.Duration
	scan    bool // who asks is looking for devices
	fence   bool
	fenced  bool // the fence was answered
	copied  bool // the answer may be a copy: to be verified
	refused bool // by an exception that may be meant for an earlier request
	short   int  // registers in an answer of this unit and function that has fewer than were asked for
	strict  bool // it must not even be a copy of an earlier answer to the same
}

// echoState is what the line knows about adapters that hear themselves.
type echoState struct {
	known  bool // a read has shown it
	on     bool
	absent int // answers without echo since the last one
}

const echoForgotten = 8 // answers without echo that end the expectation of one

func (e *echoState) heard() { e.known, e.on, e.absent = true, true, 0 }

func (e *echoState) missed() {
	e.known = true
	if e.absent++; e.absent >= echoForgotten {
		e.on = false
	}
}

// ask gets one trusted answer, with as many fences as that takes.
func (l *Line) ask(p *pending, probing bool) ([]byte, error) {
	u, g, timeout := p.dev.u, &p.dev.u.guard, p.dev.cfg.Timeout
	switch {
	case g.slow == 0:
	case probing:
		timeout = min(timeout, max(4*g.slow, probeFloor))
	case p.class != Safety && u.strikes == 0 && u.count.Answers >= learnedAfter:
		// A slave that is known to be quick need not be waited for long; the
		// time after that, if it is silent, it has all the time there is.
		timeout = min(timeout, max(4*g.slow, timeout*2/5))
	}
	heard, err := l.collect()
	if err != nil {
		l.lost(err) // noticed before anything was sent: the request waits for the line
		return nil, errLater
	}
	if l.tcp() {
		return l.exchange(u, p.key, p.values, exchange{timeout: timeout})
	}
	if p.class != Scan { // who looks for devices waits for them longer than bridges hold copies
		g.window = max(g.window, timeout)
	}
	g.expire(time.Now())
	if !g.clean(p.key) || p.key.mirrored() && !l.echo.known {
		if heard && u.drains < drainTries { // not silent yet
			u.drains++
			u.quietUntil = time.Now().Add(g.quiet(timeout))
			return nil, errLater
		}
		if err := l.fence(p, timeout); err != nil {
			return nil, err
		}
		u.strikes = 0
		if u.gap > 0 {
			return nil, errLater
		}
	}
	data, err := l.exchange(u, p.key, p.values, exchange{timeout: timeout, scan: p.class == Scan, strict: p.strict})
	switch {
	case l.x.refused: // with a fence before it, the next refusal is its own
		if p.waits++; p.waits <= maxWaits {
			return nil, errLater
		}
		return nil, err
	case !l.x.copied:
		return data, err
	}
	// Something else had the same bytes a moment ago. A longer read of the
	// same registers settles it, or a second try when no copy can come.
	if k, ok := g.cover(p.key, l.maxBlock(u)); ok {
		data, err := l.exchange(u, k, nil, exchange{timeout: timeout, fence: true})
		if err == nil {
			return data[:p.key.data()], nil
		} else if errors.Is(err, ErrTimeout) || errors.Is(err, ErrLineDown) {
			return nil, err
		}
	}
	return nil, l.outwait(p)
}

// outwait puts p off until copies of what has been heard can no longer come.
func (l *Line) outwait(p *pending) error {
	u := p.dev.u
	if p.waits++; p.waits > maxWaits {
		u.count.Suspect++
		return fmt.Errorf("%w: %d tries", ErrSuspect, p.waits)
	}
	u.quietUntil = time.Now().Add(u.guard.window + time.Millisecond)
	return errLater
}

func (l *Line) maxBlock(u *unit) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return u.maxBlock
}

// fence reads something whose answer cannot be mistaken. When it comes,
// nothing that was asked earlier can follow.
func (l *Line) fence(p *pending, timeout time.Duration) error {
	u := p.dev.u
	for range fenceTries {
		if u.guard.full() {
			return fmt.Errorf("%w: %d requests unanswered in %v", ErrSuspect, maxOpen, openLife)
		}
		k, ok := u.guard.fence(p.key, l.maxBlock(u))
		if !ok {
			break
		}
		_, err := l.exchange(u, k, nil, exchange{timeout: timeout, fence: true})
		switch {
		case l.x.fenced:
			return nil // by an exception as well as by data
		case err == nil: // settled in part
		case !errors.Is(err, ErrSuspect):
			return fmt.Errorf("resync with registers %d+%d: %w", k.addr, k.count, err)
		}
	}
	return l.outwait(p)
}

// exchange sends k and returns the payload of its answer.
func (l *Line) exchange(u *unit, k key, values []uint16, x exchange) ([]byte, error) {
	x.u = u
	l.x = &x
	data, err := u.call(k, values)
	l.lastUnit, u.lastEnd = u, time.Now()
	return data, err
}

// gap is the silence between two frames: 3.5 characters of 11 bits, above
// 19200 baud 1.75 ms (Modbus over Serial Line V1.02, 2.5.1.1).
func (l *Line) gap() time.Duration {
	switch {
	case l.cfg.Device == "":
		return 0
	case l.cfg.Baud > 19200:
		return 1750 * time.Microsecond
	}
	return time.Duration(38.5 * float64(time.Second) / float64(l.cfg.Baud))
}

// wire is the time n characters take.
func (l *Line) wire(n int) time.Duration {
	if l.cfg.Device == "" {
		return 0
	}
	return time.Duration(n*l.fr.bits()) * time.Second / time.Duration(l.cfg.Baud)
}

func (l *Line) trace(sent bool, b []byte) {
	if l.cfg.Trace != nil {
		l.cfg.Trace(Trace{At: time.Now(), Sent: sent, Data: b})
	}
}

// send writes req once the line has been silent for its gap.
func (l *Line) send(req []byte, timeout time.Duration) (sent time.Time, err error) {
	if d := time.Until(l.active.Add(l.gap())); d > 0 && !l.paused(d) {
		time.Sleep(d)
	}
	sent = time.Now()
	l.active = sent.Add(l.wire(len(req)))
	if err := l.port.SetDeadline(l.active.Add(timeout)); err != nil {
		return sent, err
	}
	l.trace(true, req)
	l.count.Requests++
	l.x.u.count.Requests++
	_, err = l.port.Write(req)
	return sent, err
}

// read waits until deadline for the next bytes.
func (l *Line) read(buf []byte, deadline time.Time) (int, error) {
	if err := l.port.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := l.port.Read(buf)
	l.checked = time.Now()
	if n > 0 {
		l.active, l.mute = l.checked, 0
		l.trace(false, buf[:n])
		return n, nil
	}
	return 0, err
}

// collect takes in what arrived while nothing was awaited.
func (l *Line) collect() (heard bool, err error) {
	var buf [2 * maxRTU]byte
	since := l.checked
	for {
		n, err := readNow(l.port, buf[:])
		l.checked = time.Now()
		if n == 0 || err != nil {
			return heard, err
		}
		heard, l.active = true, l.checked
		l.trace(false, buf[:n])
		if l.tcp() {
			if err := l.takeTCP(buf[:n]); err != nil {
				return heard, err
			}
			continue
		}
		rest := buf[:n]
		for len(rest) > 0 {
			size, whole := wholeFrame(rest)
			if !whole {
				break
			}
			l.dismiss(rest[:size], nil, since)
			rest = rest[size:]
		}
		l.count.StrayBytes += uint64(len(rest))
		if len(rest) >= 4 && l.lastUnit != nil { // less is the crackle of a driver switching
			l.lastUnit.guard.stray = true
		}
	}
}

// dismiss accounts for a whole RTU frame that is not the awaited answer.
// asked is the unit that is being asked, if any; the frame came at at or
// later.
func (l *Line) dismiss(frame []byte, asked *unit, at time.Time) {
	l.mu.Lock()
	u := l.units[frame[0]]
	l.mu.Unlock()
	if u == nil {
		l.count.Unknown++
		return
	}
	g := &u.guard
	switch {
	case g.judge(key{}, frame) != fresh:
		u.count.Duplicates++
	case len(g.open) > 0:
		u.count.Late++
		g.learn(at.Sub(g.debtor(frame)))
	default:
		u.count.Foreign++
		g.stray = g.stray || u != asked
	}
	g.note(key{}, frame, time.Now())
	l.publish(u) // it may not be asked again for long
}

// settle listens until the line is silent: a process before this one may have
// asked for something.
func (l *Line) settle() {
	if l.tcp() {
		return
	}
	var buf [maxRTU]byte
	for end := time.Now().Add(10 * l.cfg.Timeout); ; {
		n, err := l.read(buf[:], time.Now().Add(l.cfg.Timeout))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case err != nil:
			l.lost(err)
			return
		case time.Now().After(end):
			l.log.Warn("line is never silent; is there another master on it?")
			return
		}
		l.count.StrayBytes += uint64(n)
	}
}

// rtuTransport is the goburrow transporter for RTU frames on a device or
// through a bridge.
type rtuTransport struct{ l *Line }

// Send implements modbus.Transporter. It runs on the owner goroutine.
func (t rtuTransport) Send(req []byte) ([]byte, error) {
	l, x := t.l, t.l.x
	k := keyOf(req[1 : len(req)-2])
	sent, err := l.send(req, x.timeout)
	if err != nil {
		return nil, t.broken(k, sent, err)
	}
	deadline := sent.Add(l.wire(len(req)+k.rtuReply()) + x.timeout)
	var buf [2 * maxRTU]byte
	have, echoed := 0, l.echo.on
	for {
		v, n := parseRTU(buf[:have], req, echoed)
		switch v {
		case partial:
			if have == len(buf) {
				return nil, t.failed(k, sent, &x.u.count.BadFrames, fmt.Errorf("%w: %d bytes without one", ErrFrame, have))
			}
			m, err := l.read(buf[have:], deadline)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				l.muted()
				if x.short > 0 {
					return nil, t.failed(k, sent, &x.u.count.BadFrames, fmt.Errorf("%w: %d registers, expected %d", ErrShort, x.short, k.count))
				}
				return nil, t.failed(k, sent, &x.u.count.Timeouts, silence(k, buf[:have], time.Since(sent)))
			} else if err != nil {
				return nil, t.broken(k, sent, err)
			}
			have += m
			continue
		case echo:
			l.echo.heard()
			echoed = false
		case stray:
			if cut, short := k.cut(buf[1 : n-2]); short && buf[0] == req[0] && !x.fence && x.u.guard.expectsNothing(buf[:n]) {
				x.short = cut
			}
			l.dismiss(buf[:n], x.u, time.Now())
		case malformed:
			return nil, t.failed(k, sent, &x.u.count.BadFrames,
				fmt.Errorf("%w: % x, expected unit %d, function %d, %d bytes and their checksum", ErrFrame, head(buf[:have]), req[0], k.fn, k.rtuReply()))
		case answer:
			if rest := buf[n:have]; bytes.HasPrefix(buf[:n], rest) {
				if len(rest) > 0 {
					x.u.count.Duplicates++
				}
			} else {
				return nil, t.failed(k, sent, &x.u.count.Suspect, fmt.Errorf("%w: %d bytes follow it", ErrSuspect, len(rest)))
			}
			if echoed && !k.mirrored() || !l.echo.on && k.read() {
				l.echo.missed()
			}
			return t.accept(k, sent, slices.Clone(buf[:n]), time.Since(sent)-l.wire(len(req)+n))
		}
		have = copy(buf[:], buf[n:have])
	}
}

// accept lets the guard judge an answer that fits.
func (t rtuTransport) accept(k key, sent time.Time, frame []byte, took time.Duration) ([]byte, error) {
	l, x := t.l, t.l.x
	g, now, exception := &x.u.guard, time.Now(), frame[1]&exceptionBit != 0
	g.expire(now)
	switch {
	case x.fence && !g.conclusive(k, frame):
		if exception {
			g.refused(k)
		}
		g.note(k, frame, now)
		return nil, t.failed(k, sent, &x.u.count.Suspect, fmt.Errorf("%w: resync answered with % x", ErrSuspect, head(frame)))
	case x.fence:
		x.fenced = g.fenced(k)
		g.answered(k, fresh, exception)
		x.u.count.Resyncs++
	case exception && g.awaits(k.fn) && !(x.scan && !g.owes(k.fn)):
		// A request in doubt has had its answer; only a scan, which is
		// refused time and again, may take the next refusal for its own.
		g.note(k, frame, now)
		x.refused = true
		return nil, t.failed(k, sent, &x.u.count.Suspect, fmt.Errorf("%w: an exception, perhaps to an earlier request", ErrSuspect))
	default:
		t := g.judge(k, frame)
		// A second answer with the same bytes is right for a read of the same
		// registers, but confirms no second write, and does not tell what one has
		// changed. An exception is right for
		// any of its function.
		if x.copied = !exception && (t == copied || t == again && (x.strict || !k.read())); x.copied {
			g.owe(k, sent)
			g.settled = k
		} else {
			g.answered(k, t, exception)
		}
	}
	g.note(k, frame, now)
	g.learn(max(took, time.Microsecond))
	l.answered(took, exception)
	return frame, nil
}

// answered counts an answer that took so long beyond its time on the wire.
func (l *Line) answered(took time.Duration, exception bool) {
	c := &l.x.u.count
	c.Answers++
	if exception {
		c.Exceptions++
	}
	if c.Turnaround == 0 {
		c.Turnaround = max(took, 0)
	}
	c.Turnaround += (max(took, 0) - c.Turnaround) / 16
}

// failed records that k has no answer and the unit needs silence.
func (t rtuTransport) failed(k key, sent time.Time, counter *uint64, err error) error {
	u := t.l.x.u
	*counter++
	u.guard.owe(k, sent)
	u.quietUntil = time.Now().Add(u.guard.quiet(t.l.x.timeout))
	return err
}

// broken records that the line was lost while k was on it.
func (t rtuTransport) broken(k key, sent time.Time, err error) error {
	t.l.x.u.guard.owe(k, sent)
	t.l.lost(err)
	return fmt.Errorf("%w: %w", ErrLineDown, err)
}

// silence describes a time-out.
func silence(k key, got []byte, waited time.Duration) error {
	waited = waited.Round(time.Millisecond)
	if len(got) == 0 {
		return fmt.Errorf("%w: silence for %v, expected %d bytes", ErrTimeout, waited, k.rtuReply())
	}
	return fmt.Errorf("%w: %w: truncated after %v, expected %d bytes, got %d: % x", ErrTimeout, ErrFrame, waited, k.rtuReply(), len(got), head(got))
}

// head is the part of a frame worth printing.
func head(b []byte) []byte { return b[:min(len(b), 16)] }

// maxMute is the number of time-outs without a byte after which a connection
// is taken for dead and made anew.
const maxMute = 3

// muted counts a time-out. A serial device is never given up for one.
func (l *Line) muted() {
	if l.mute++; l.mute >= maxMute && l.cfg.Device == "" {
		l.lost(fmt.Errorf("%d requests and not one byte", l.mute))
	}
}

// tcpTransport is the goburrow transporter for Modbus TCP. Transaction ids
// are the line's, so that no two requests of any unit share one.
type tcpTransport struct{ l *Line }

// Send implements modbus.Transporter. It runs on the owner goroutine.
func (t tcpTransport) Send(adu []byte) ([]byte, error) {
	l, x := t.l, t.l.x
	req := slices.Clone(adu)
	l.tid++
	binary.BigEndian.PutUint16(req, l.tid)
	k := keyOf(req[mbap:])
	sent, err := l.send(req, x.timeout)
	if err != nil {
		return nil, t.broken(err)
	}
	deadline := sent.Add(x.timeout)
	var buf [maxTCP]byte
	for {
		frame, err := l.nextTCP()
		if err != nil {
			x.u.count.BadFrames++
			t.l.lost(err)
			return nil, err
		}
		if frame == nil {
			n, err := l.read(buf[:], deadline)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				x.u.count.Timeouts++
				l.muted()
				return nil, fmt.Errorf("%w: silence for %v", ErrTimeout, time.Since(sent).Round(time.Millisecond))
			} else if err != nil {
				return nil, t.broken(err)
			}
			l.rx = append(l.rx, buf[:n]...)
			continue
		}
		if binary.BigEndian.Uint16(frame) != l.tid {
			l.dismissTCP(frame)
			continue
		}
		if err := checkTCP(frame, req); err != nil {
			x.u.count.BadFrames++
			// Whoever answers short or confirms badly answers. Only what
			// follows would say that the stream has lost its framing.
			if badly := errors.Is(err, ErrShort) || frame[6] == req[6] && !k.read() && frame[mbap] == k.fn; !badly || len(l.rx) > 0 {
				t.l.lost(err)
			}
			return nil, err
		}
		copy(frame, adu[:2]) // goburrow's own transaction id
		took := time.Since(sent)
		x.u.guard.learn(took)
		l.answered(took, frame[mbap] != k.fn)
		return frame, nil
	}
}

func (t tcpTransport) broken(err error) error {
	t.l.lost(err)
	return fmt.Errorf("%w: %w", ErrLineDown, err)
}

// nextTCP takes the next whole frame out of the receive buffer, or returns
// nil.
func (l *Line) nextTCP() ([]byte, error) {
	n, err := parseTCP(l.rx)
	if n == 0 || err != nil {
		return nil, err
	}
	frame := slices.Clone(l.rx[:n])
	l.rx = slices.Delete(l.rx, 0, n)
	return frame, nil
}

// takeTCP takes in bytes that arrived while nothing was awaited and throws
// the whole frames among them away.
func (l *Line) takeTCP(b []byte) error {
	l.rx = append(l.rx, b...)
	for {
		frame, err := l.nextTCP()
		if frame == nil || err != nil {
			return err
		}
		l.dismissTCP(frame)
	}
}

// dismissTCP counts a frame with a transaction id that is not awaited.
func (l *Line) dismissTCP(frame []byte) {
	l.mu.Lock()
	u := l.units[frame[6]]
	l.mu.Unlock()
	switch age := l.tid - binary.BigEndian.Uint16(frame); {
	case u == nil:
		l.count.Unknown++
	case age < 1<<10: // asked not long ago
		u.count.Late++
	default:
		u.count.Foreign++
	}
	if u != nil {
		l.publish(u)
	}
}
