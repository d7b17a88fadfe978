package packet

import (
	"math"
	"time"
)

// Limits of what is remembered of conversations.
const (
	maxFlows   = 8192
	maxBuffers = 128     // partial messages held back at a time
	bufferSize = 8 << 10 // of one; a post-quantum ClientHello has about 2 kB
	maxPieces  = 8       // of a message with gaps
	oldestSeq  = 1 << 20 // what lies further back is not a repetition
	holdFor    = 1 * time.Second
)

// app is what a flow carries.
type app uint8

const (
	unknown app = iota
	opaque      // nothing more is expected of it
	modbusTCP
	tlsHello
	http
	mqtt
	ftp
	telnet
	ssh
	greeted // the server greeted as FTP servers do, and mail servers too
)

// flow is one conversation. Sides are 0 and 1, in the order of its key. With
// what its table keeps before it, it is one line of memory.
type flow struct {
	since   time.Duration
	next    [2]uint32
	isn     uint32
	dest    int32     // of the destination detector: 1 + its place, if it is still this flow's
	sent    [2]uint16 // bytes of payload, as far as that has bits, until it is known to be no ssh
	buf     [2]int16  // 1 + index of the buffer; 0: none
	client  uint8     // the side that began
	app     app
	listed  int8 // of the destination detector: 0 not decided, 1 in the baseline or not judged, -1 not
	role    role // of it, once listed is -1
	begun   bool // seen from its SYN
	synced  [2]bool
	closed  bool
	done    bool  // the client acknowledged: the connection is open
	pending bool  // a password was sent and not answered
	sane    bool  // modbusTCP: a message was read
	strange uint8 // modbusTCP: segments without a message before the first
}

// flowKey is the two ends of a conversation, the lower one first.
type flowKey struct {
	a, b  Addr
	ports uint32
	proto uint8
}

func (k flowKey) hash(seed uint64) digest {
	a, b := mix(k.a.hi^seed, k.a.lo), mix(k.b.hi^uint64(k.ports)^seed>>1, k.b.lo^uint64(k.proto)<<56)
	return spread(mix(a, b), a+b<<1)
}

// flowOf returns the key and the side that sends.
func flowOf(e *Event) (flowKey, uint8) {
	a, b := e.src, e.dst
	if a.hi < b.hi || a.hi == b.hi && (a.lo < b.lo || a.lo == b.lo && e.srcPort <= e.dstPort) {
		return flowKey{a, b, uint32(e.srcPort)<<16 | uint32(e.dstPort), e.proto}, 0
	}
	return flowKey{b, a, uint32(e.dstPort)<<16 | uint32(e.srcPort), e.proto}, 1
}

// buffer holds back bytes of one direction that do not make a message yet.
type buffer struct {
	owner  *flow
	side   uint8
	since  time.Duration
	pieces [maxPieces]piece // of data, ascending, without overlap
	n      int
	data   [bufferSize]byte // from flow.next on
}

type piece struct{ from, to int }

// streams follows conversations and finds the messages in them.
type streams struct {
	flows   *table[flow]
	last    flowKey // of the frame before: frames come in runs
	lastOf  *slot[flow]
	buffers []buffer
	victim  int // the buffer to take next when none is free
	ports   []uint16
	emit    func(*Event, kind)
	hello   [bufferSize]byte
	name    [256]byte
	taken   uint64 // buffers that were taken from others
}

func newStreams(r Rules, emit func(*Event, kind)) *streams {
	return &streams{flows: newTable[flow](maxFlows>>r.shrink, r.Seed), buffers: make([]buffer, maxBuffers>>r.shrink), ports: r.ModbusPorts, emit: emit}
}

// isModbusPort tells whether devices listen there.
func (t *streams) isModbusPort(p uint16) bool {
	for _, m := range t.ports {
		if m == p {
			return true
		}
	}
	return false
}

// step looks up e's flow and reads the messages that e completes.
func (t *streams) step(e *Event) {
	if e.kinds&(isTCP|isUDP) == 0 {
		return
	}
	k, side := flowOf(e)
	fresh := false
	if l := &t.last; k.ports != l.ports || k.a != l.a || k.b != l.b || k.proto != l.proto || t.lastOf == nil { // not k != *l, which compares bytes, and those of the addresses first
		var at int
		at, fresh = t.flows.place(k.hash(t.flows.seed))
		t.lastOf = &t.flows.slots[at]
		t.last = k
	}
	t.lastOf.seen = e.At
	f := &t.lastOf.val
	opens := e.flags&(syn|ack|rst|fin) == syn && e.kinds&isTCP != 0
	if fresh || opens && (f.isn != e.seq || f.closed) {
		t.release(f)
		*f = flow{} // in place: a literal with values would be built and copied
		f.client, f.since, f.begun, f.isn = side, e.At, opens, e.seq
		if e.kinds&isTCP != 0 && !opens && e.srcPort < e.dstPort || e.flags&(syn|ack) == syn|ack {
			f.client = 1 - side // servers have the lower port
		}
		e.begins = true
		e.kinds |= isFlow
	}
	e.flow, e.side, e.fromClient = f, side, side == f.client
	if e.kinds&isUDP != 0 {
		return
	}
	if f.begun && !f.done && e.fromClient && e.flags&(syn|rst|ack) == ack {
		f.done, e.completes = true, true
		e.kinds |= isControl
	}
	if e.flags&syn != 0 {
		f.next[side], f.synced[side] = e.seq+1, true
	}
	if e.fragment && len(t.ports) > 0 && (t.isModbusPort(e.dstPort) || t.isModbusPort(e.srcPort)) {
		e.modbus = adu{request: t.isModbusPort(e.dstPort), wrong: "IP fragment"}
		t.emit(e, isModbus)
	}
	if len(e.payload) > 0 {
		if f.app != opaque {
			f.sent[side] = uint16(min(int(f.sent[side])+len(e.payload), math.MaxUint16))
			t.data(e, f, side)
		}
	}
	if e.flags&(fin|rst) != 0 && !f.closed {
		f.closed = true
		t.ended(e, f)
		if e.flags&rst != 0 {
			t.release(f)
		}
	}
}

// release gives the flow's buffers back.
func (t *streams) release(f *flow) {
	for side := range f.buf {
		if i := f.buf[side]; i > 0 {
			t.buffers[i-1].owner = nil
			f.buf[side] = 0
		}
	}
}

// hold returns the buffer of one side, taking it from another flow when none
// is free: that one loses its place and goes on with its next segment.
func (t *streams) hold(f *flow, side uint8, now time.Duration) *buffer {
	if i := f.buf[side]; i > 0 {
		return &t.buffers[i-1]
	}
	i := t.victim
	for n := range t.buffers {
		if j := (t.victim + n) % len(t.buffers); t.buffers[j].owner == nil {
			i = j
			break
		}
	}
	t.victim = (i + 1) % len(t.buffers)
	b := &t.buffers[i]
	if b.owner != nil {
		b.owner.buf[b.side], b.owner.synced[b.side] = 0, false
		t.taken++
	}
	b.owner, b.side, b.since, b.n = f, side, now, 0
	f.buf[side] = int16(i + 1)
	return b
}

// drop gives one side's buffer back.
func (t *streams) drop(f *flow, side uint8) {
	if i := f.buf[side]; i > 0 {
		t.buffers[i-1].owner = nil
		f.buf[side] = 0
	}
}

// data puts a segment in its place and reads what is complete.
func (t *streams) data(e *Event, f *flow, side uint8) {
	p, seq := e.payload, e.seq
	if e.flags&syn != 0 {
		seq++
	}
	end := seq + uint32(len(p)+e.missing)
	if !f.synced[side] {
		f.next[side], f.synced[side] = seq, true
	}
	ahead := int(int32(seq - f.next[side]))
	switch {
	case ahead < -oldestSeq, ahead > oldestSeq:
		t.drop(f, side)
		f.next[side], ahead = seq, 0
	case ahead < 0 && -ahead >= len(p):
		return // repeated
	case ahead < 0:
		p, ahead = p[-ahead:], 0
	}
	if f.buf[side] == 0 && ahead == 0 {
		used, more := t.read(e, f, side, p)
		switch {
		case e.missing > 0 || !more:
			f.next[side] = end
		case len(p)-used <= bufferSize:
			f.next[side] += uint32(used)
			t.hold(f, side, e.At).put(0, p[used:])
		default: // no message is so long
			f.next[side] = end
		}
		return
	}
	b := t.hold(f, side, e.At)
	if e.missing > 0 || !b.put(ahead, p) || b.since+holdFor < e.At && b.pieces[0].from > 0 {
		// Something is lost, or whoever sends plays with gaps: go on after
		// the gap with what is there.
		t.skip(e, f, side, b)
		if f.buf[side] == 0 && f.app != opaque && int32(end-f.next[side]) > 0 {
			rest := min(len(p), int(int32(end-f.next[side])))
			t.read(e, f, side, p[len(p)-rest:])
			f.next[side] = end
		}
		return
	}
	t.drain(e, f, side, b)
}

// drain reads what lies at the front of the buffer.
func (t *streams) drain(e *Event, f *flow, side uint8, b *buffer) {
	for b.n > 0 && b.pieces[0].from == 0 {
		front := b.pieces[0].to
		used, more := t.read(e, f, side, b.data[:front])
		if f.buf[side] == 0 {
			return // another flow took it meanwhile
		}
		if !more {
			used = front
		}
		f.next[side] += uint32(used)
		b.shift(used)
		if used == 0 {
			if front == bufferSize { // no message is so long
				t.drop(f, side)
				f.synced[side] = false
			}
			return
		}
		b.since = e.At
	}
	if b.n == 0 {
		t.drop(f, side)
	}
}

// skip gives up the gap at the front.
func (t *streams) skip(e *Event, f *flow, side uint8, b *buffer) {
	for b.n > 0 {
		gap := b.pieces[0].from
		f.next[side] += uint32(gap)
		b.shift(gap)
		t.read(e, f, side, b.data[:b.pieces[0].to])
		gap = b.pieces[0].to
		f.next[side] += uint32(gap)
		b.shift(gap)
	}
	t.drop(f, side)
}

// put adds bytes at an offset. What is there already stays: the first bytes
// that were seen count. It reports whether there was place.
func (b *buffer) put(from int, p []byte) bool {
	to := from + len(p)
	if to > bufferSize {
		return false
	}
	// Everything that overlaps or touches becomes one piece.
	i := 0
	for i < b.n && b.pieces[i].to < from {
		i++
	}
	j, merged := i, piece{from, to}
	for ; j < b.n && b.pieces[j].from <= to; j++ {
		merged.from, merged.to = min(merged.from, b.pieces[j].from), max(merged.to, b.pieces[j].to)
	}
	if i == j && b.n == maxPieces {
		return false
	}
	at := from
	for _, old := range b.pieces[i:j] {
		if at < old.from {
			copy(b.data[at:old.from], p[at-from:])
		}
		at = max(at, old.to)
	}
	if at < to {
		copy(b.data[at:to], p[at-from:])
	}
	n := copy(b.pieces[i+1:], b.pieces[j:b.n])
	b.pieces[i] = merged
	b.n = i + 1 + n
	return true
}

// shift forgets the first n bytes.
func (b *buffer) shift(n int) {
	if n == 0 || b.n == 0 {
		return
	}
	last := b.pieces[b.n-1].to
	copy(b.data[:], b.data[n:max(n, last)])
	kept := 0
	for _, p := range b.pieces[:b.n] {
		if p.to > n {
			b.pieces[kept] = piece{max(p.from-n, 0), p.to - n}
			kept++
		}
	}
	b.n = kept
}

// read finds messages at the start of data. It returns how many bytes they
// took, and whether the rest belongs to a message that goes on.
func (t *streams) read(e *Event, f *flow, side uint8, data []byte) (used int, more bool) {
	if len(data) == 0 {
		return 0, false
	}
	fromClient := side == f.client
	if f.app == unknown || f.app == greeted {
		f.app = t.identify(e, f, data, fromClient)
	}
	switch f.app {
	case modbusTCP:
		return t.readModbus(e, f, data)
	case tlsHello:
		if fromClient {
			return t.readHello(e, f, data)
		}
	case http:
		return t.readHTTP(e, f, data, fromClient)
	case mqtt:
		return t.readMQTT(e, f, data, fromClient)
	case ftp, telnet, ssh:
		t.readLogin(e, f, data, fromClient)
	}
	return 0, false
}
