package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	gm "github.com/goburrow/modbus"

	"github.com/joulegate/joulegate/drivers"
)

const (
	deadAfter    = 3                // failures in a row that make a slave silent
	backoffMin   = time.Second      // first pause of a silent slave
	backoffMax   = 60 * time.Second // longest pause
	probeShare   = 30               // asking silent slaves takes at most 1/probeShare of the line's time
	probeFloor   = 100 * time.Millisecond
	learnedAfter = 32 // answers after which a slave's longest time to one is known
	fenceTries   = 4  // fences per request
	maxWaits     = 3  // times a request is put off until no copy can come
	drainTries   = 8  // times a drain starts anew before the request fails
)

// Line is one serial line or connection. New makes it, Run owns it, Device
// hands out access. All methods are safe for concurrent use.
type Line struct {
	cfg  Config
	name string
	fr   framing
	log  *slog.Logger
	dial func(context.Context) (port, error)
	wake chan struct{}

	mu        sync.Mutex
	queue     queue
	units     [256]*unit
	closed    bool
	nextProbe time.Time // when a silent slave may be asked again
	overflows uint64
	published Stats
	peer      peer

	// Only the owner goroutine touches what follows.
	port     port
	ctx      context.Context // of Run
	opened   time.Time
	nextOpen time.Time
	openErr  error
	active   time.Time // when the line was last busy, in either direction
	checked  time.Time // when the line was last seen empty
	lastUnit *unit
	rx       []byte // TCP: bytes of a frame not yet complete
	tid      uint16 // TCP: last transaction id
	mute     int    // time-outs since anything was received
	echo     echoState
	x        *exchange
	count    Stats
}

// unit is everything the line knows about one slave. mu guards the first
// group; the rest belongs to the owner goroutine.
type unit struct {
	down      bool
	downUntil time.Time
	refused   uint64
	published UnitStats
	gap       time.Duration
	changeGap time.Duration
	delay     time.Duration
	maxBlock  int

	id         uint8
	name       string
	client     gm.Client
	guard      guard
	quietUntil time.Time // silence after an error
	lastEnd    time.Time
	strikes    int
	level      int // of back-off
	drains     int
	count      UnitStats
}

// device is a handle on a unit.
type device struct {
	line *Line
	cfg  DeviceConfig
	err  error // the configuration is wrong
	u    *unit
}

// errLater puts a request back into the queue.
var errLater = errors.New("not yet")

// New checks cfg and opens the device, so that a missing adapter shows at
// once, unless cfg says that it may be absent; connections over TCP are made
// by Run. The device stays open for Run, which must follow.
func New(cfg Config) (*Line, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Baud == 0 {
		cfg.Baud = 9600
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	fr, _ := parseFraming(cfg.Framing)
	l := newLine(cfg, func(ctx context.Context) (port, error) {
		switch {
		case cfg.Device != "":
			return openTTY(cfg.Device, cfg.Baud, fr)
		case cfg.TCP != "":
			return dial(ctx, cfg.TCP, cfg.Timeout)
		default:
			return dial(ctx, cfg.RTUTCP, cfg.Timeout)
		}
	})
	l.fr = fr
	if cfg.Device != "" {
		p, err := l.dial(context.Background())
		switch {
		case err == nil:
			l.attach(p)
		case !cfg.Absent || !absent(err):
			return nil, err
		}
	}
	return l, nil
}

func newLine(cfg Config, dial func(context.Context) (port, error)) *Line {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	return &Line{
		cfg: cfg, name: cfg.Name(), log: cfg.Logger.With("line", cfg.Name()), dial: dial,
		wake: make(chan struct{}, 1), tid: uint16(cfg.Rand.Uint32()),
	}
}

func (l *Line) tcp() bool { return l.cfg.TCP != "" }

// Device returns access to the registers of one slave. A wrong configuration
// is returned as the error of every use; cfg.Validate tells it beforehand.
// Several handles may share a unit: the line then keeps the longest of their
// gaps.
func (l *Line) Device(cfg DeviceConfig) drivers.Writer {
	d := &device{line: l, cfg: cfg, err: cfg.Validate(l.tcp())}
	if d.err != nil {
		return d
	}
	if d.cfg.Class == 0 {
		d.cfg.Class = Slow
	}
	if d.cfg.Timeout == 0 {
		d.cfg.Timeout = l.cfg.Timeout
	}
	if d.cfg.MaxBlock == 0 {
		d.cfg.MaxBlock = MaxRead
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.units[cfg.Unit]
	if u == nil {
		u = &unit{id: cfg.Unit, name: cfg.Name, maxBlock: MaxRead, client: l.client(cfg.Unit), guard: guard{window: l.cfg.Timeout}}
		l.units[cfg.Unit] = u
	}
	u.gap = max(u.gap, cfg.Gap)
	u.changeGap = max(u.changeGap, cfg.SlaveChangeGap)
	u.delay = max(u.delay, cfg.ConnectDelay)
	u.maxBlock = min(u.maxBlock, d.cfg.MaxBlock)
	d.u = u
	return d
}

// ReadRegisters implements drivers.Register.
func (d *device) ReadRegisters(ctx context.Context, fn drivers.Function, addr, count uint16) ([]byte, error) {
	k := key{fn: byte(fn), addr: addr, count: count}
	switch {
	case d.err != nil:
		return nil, d.err
	case fn != drivers.HoldingRegisters && fn != drivers.InputRegisters:
		return nil, d.fail(k, int(count), fmt.Errorf("read function %d: want 3 or 4", fn))
	case count == 0 || int(count) > d.cfg.MaxBlock:
		return nil, d.fail(k, int(count), fmt.Errorf("%d registers: want 1..%d", count, d.cfg.MaxBlock))
	case int(addr)+int(count) > 1<<16:
		return nil, d.fail(k, int(count), errors.New("past the last register"))
	}
	data, err := d.line.do(ctx, &pending{dev: d, key: k})
	if err != nil {
		return nil, d.fail(k, int(count), err)
	}
	return data, nil
}

// WriteRegisters implements drivers.Register.
func (d *device) WriteRegisters(ctx context.Context, addr uint16, values []uint16) error {
	return d.Write(ctx, drivers.Write{Address: addr, Values: values})
}

// Write implements drivers.Writer.
func (d *device) Write(ctx context.Context, w drivers.Write) error {
	if d.err != nil {
		return d.err
	}
	k, err := keyOfWrite(w)
	if err != nil {
		return d.fail(k, len(w.Values), err)
	}
	_, err = d.line.do(ctx, &pending{dev: d, key: k, values: slices.Clone(w.Values)})
	if w.Verify && (err == nil || errors.Is(err, ErrTimeout)) || errors.Is(err, ErrFrame) || errors.Is(err, ErrSuspect) {
		err = d.settle(ctx, k, w.Values, err)
	}
	if err != nil {
		return d.fail(k, len(w.Values), err)
	}
	return nil
}

// keyOfWrite checks w and returns its key, with an error as good as there is
// one.
func keyOfWrite(w drivers.Write) (key, error) {
	k := key{fn: byte(w.Function), addr: w.Address, count: uint16(min(len(w.Values), 1<<16-1))}
	switch {
	case k.fn != 0:
	case len(w.Values) == 1:
		k.fn = fnWriteOne
	default:
		k.fn = fnWriteMany
	}
	most := MaxWrite
	switch k.fn {
	case fnWriteMany:
	case fnWriteCoil, fnWriteOne:
		most = 1
	default:
		return k, fmt.Errorf("write function %d: want 5, 6 or 16", k.fn)
	}
	switch {
	case len(w.Values) == 0 || len(w.Values) > most:
		return k, fmt.Errorf("%d values with function %d: want 1..%d", len(w.Values), k.fn, most)
	case int(w.Address)+len(w.Values) > 1<<16:
		return k, errors.New("past the last register")
	case k.fn == fnWriteCoil && w.Values[0] != drivers.CoilOn && w.Values[0] != drivers.CoilOff:
		return k, fmt.Errorf("value %#04x of a coil: want 0xFF00 or 0", w.Values[0])
	}
	if k.mirrored() {
		k.count = w.Values[0]
	}
	return k, nil
}

// settle finds out whether the device holds what k wrote. doubt is why that is
// to be asked: an error if the write was not confirmed.
func (d *device) settle(ctx context.Context, k key, values []uint16, doubt error) error {
	say := func(err error) error {
		if doubt == nil {
			return err
		}
		return fmt.Errorf("%w; %w", doubt, err)
	}
	for i := 0; i < len(values); {
		n := min(len(values)-i, d.cfg.MaxBlock)
		r := key{fn: fnReadHolding, addr: k.addr + uint16(i), count: uint16(n)}
		if k.fn == fnWriteCoil {
			r.fn = fnReadCoils
		}
		data, err := d.line.do(ctx, &pending{dev: d, key: r, strict: true})
		if err != nil {
			return say(fmt.Errorf("read back with function %d: %w", r.fn, err))
		}
		for _, want := range values[i : i+n] {
			var got uint16
			if r.fn == fnReadHolding {
				got, data = binary.BigEndian.Uint16(data), data[2:]
			} else if data[0]&1 != 0 {
				got = drivers.CoilOn
			}
			if got != want {
				return say(fmt.Errorf("%w: %d is %d, want %d", drivers.ErrNotTaken, int(k.addr)+i, got, want))
			}
			i++
		}
	}
	return nil
}

func (d *device) fail(k key, count int, err error) error {
	return &Error{Line: d.line.name, Device: d.cfg.Name, Unit: d.cfg.Unit, Function: k.fn, Address: k.addr, Count: uint16(count), Err: err}
}

// do queues a request and waits for its result or the end of ctx. A request
// already on the wire is finished by the owner whatever happens to ctx, so
// that its answer meets somebody who expects it.
func (l *Line) do(ctx context.Context, p *pending) ([]byte, error) {
	now := time.Now()
	p.ctx, p.class, p.deadline, p.done = ctx, p.dev.cfg.Class, now.Add(time.Second), make(chan result, 1)
	if t, ok := ctx.Deadline(); ok {
		p.deadline = t
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, ErrClosed
	}
	if err := l.refuse(p.dev.u, now); err != nil {
		l.mu.Unlock()
		return nil, err
	}
	evicted := l.queue.push(p)
	if evicted != nil {
		l.overflows++
	}
	l.mu.Unlock()
	if evicted != nil {
		evicted.finish(nil, fmt.Errorf("%w (%d requests)", ErrQueueFull, MaxQueue))
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	select {
	case r := <-p.done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// refuse returns ErrBackoff while u is silent and must not be asked. It is
// called with mu held.
func (l *Line) refuse(u *unit, now time.Time) error {
	if !u.down {
		return nil
	}
	until := u.downUntil
	if l.nextProbe.After(until) {
		until = l.nextProbe
	}
	if !now.Before(until) {
		return nil
	}
	u.refused++
	return fmt.Errorf("%w for %v more", ErrBackoff, until.Sub(now).Round(time.Millisecond))
}

// Run serves requests until ctx ends, then fails those that wait and closes
// the line. It survives the loss of the adapter or connection and reopens it.
// It may be called once and returns the error of ctx.
func (l *Line) Run(ctx context.Context) error {
	l.ctx = ctx
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.closed = true
		if l.port != nil {
			l.port.Close() // ends a read under way
		}
	})
	defer func() {
		stop()
		l.detach()
		l.mu.Lock()
		l.closed = true
		rest := l.queue.items
		l.queue.items = nil
		l.mu.Unlock()
		for _, p := range rest {
			p.finish(nil, ErrClosed)
		}
	}()
	if l.port != nil {
		l.settle()
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		wait := l.step(time.Now())
		if wait == 0 || l.paused(wait) {
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-timer.C:
		}
	}
	return ctx.Err()
}

// paused sleeps for d if that is short and the line is a serial device's,
// where it matters.
func (l *Line) paused(d time.Duration) bool {
	if _, serial := l.port.(*os.File); !serial || d > shortPause {
		return false
	}
	pause(d)
	return true
}

// step does one piece of work, or returns how long there is none.
func (l *Line) step(now time.Time) time.Duration {
	if l.port == nil {
		if wait := l.nextOpen.Sub(now); wait > 0 {
			l.failAll(fmt.Errorf("%w: %w", ErrLineDown, l.openErr))
			return wait
		}
		l.open()
		return 0
	}
	p, wait := l.pick(now)
	if p == nil || wait > 0 {
		return wait
	}
	l.serve(p)
	return 0
}

// pick takes the most urgent request whose unit may be asked out of the
// queue. If the line itself has to be silent first it returns that time
// instead and leaves the request, because a more urgent one may come.
func (l *Line) pick(now time.Time) (*pending, time.Duration) {
	wait := time.Hour
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := 0; i < len(l.queue.items); {
		p := l.queue.items[i]
		u := p.dev.u
		if err := p.ctx.Err(); err != nil {
			l.queue.remove(i)
			p.finish(nil, err)
			continue
		}
		if err := l.refuse(u, now); err != nil {
			l.queue.remove(i)
			p.finish(nil, err)
			continue
		}
		ready := latest(u.quietUntil, u.lastEnd.Add(u.gap), l.opened.Add(u.delay))
		if d := ready.Sub(now); d > 0 {
			wait = min(wait, d)
			i++
			continue
		}
		gap := l.gap()
		if l.lastUnit != nil && l.lastUnit != u {
			gap = max(gap, u.changeGap)
		}
		if d := l.active.Add(gap).Sub(now); d > 0 {
			return p, d
		}
		l.queue.remove(i)
		return p, 0
	}
	return nil, wait
}

func latest(t time.Time, more ...time.Time) time.Time {
	for _, m := range more {
		if m.After(t) {
			t = m
		}
	}
	return t
}

// serve brings one request to its end.
func (l *Line) serve(p *pending) {
	u, start := p.dev.u, time.Now()
	probing := u.down
	data, err := l.ask(p, probing)
	if errors.Is(err, errLater) {
		l.mu.Lock()
		evicted := l.queue.push(p)
		l.mu.Unlock()
		if evicted != nil {
			evicted.finish(nil, ErrQueueFull)
		}
		return
	}
	if l.ctx.Err() != nil && err != nil {
		err = ErrClosed
	}
	l.settleScore(u, err, probing, time.Since(start))
	l.publish(u)
	p.finish(data, err)
}

// settleScore keeps a slave's record: it is down after deadAfter failures in
// a row, and asked again after a growing pause.
func (l *Line) settleScore(u *unit, err error, probing bool, cost time.Duration) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	u.lastEnd = now
	var x *gm.ModbusError
	if err == nil || errors.Is(err, ErrShort) || errors.As(err, &x) && !gatewaySilence(err) {
		if u.down {
			l.log.Info("slave answers again", "device", u.name, "unit", u.id)
		}
		u.strikes, u.level, u.drains, u.down = 0, 0, 0, false
		return
	}
	if errors.Is(err, ErrLineDown) || errors.Is(err, ErrClosed) {
		return // says nothing about the slave
	}
	u.strikes++
	if u.strikes < deadAfter {
		return
	}
	pause := min(backoffMin<<u.level, backoffMax)
	if pause < backoffMax {
		u.level++
	}
	pause = time.Duration(float64(pause) * (0.8 + 0.4*l.cfg.Rand.Float64()))
	if !u.down {
		u.down = true
		u.count.Backoffs++
		l.log.Warn("slave does not answer", "device", u.name, "unit", u.id, "error", err)
	}
	u.downUntil = now.Add(min(pause, backoffMax))
	if probing {
		l.nextProbe = now.Add(probeShare * cost)
	}
}

// failAll fails every waiting request.
func (l *Line) failAll(err error) {
	l.mu.Lock()
	all := l.queue.items
	l.queue.items = nil
	l.mu.Unlock()
	for _, p := range all {
		p.finish(nil, err)
	}
}

// open tries to open the line once.
func (l *Line) open() {
	p, err := l.dial(l.ctx)
	l.nextOpen = time.Now().Add(reopenEvery)
	if err != nil {
		if l.openErr == nil || l.openErr.Error() != err.Error() {
			l.log.Warn("line is down", "error", err)
		}
		l.openErr = err
		return
	}
	l.attach(p)
	l.log.Info("line is open")
	l.settle()
}

func (l *Line) attach(p port) {
	who := peerOf(p)
	l.mu.Lock()
	l.port, l.peer = p, who
	if l.closed {
		p.Close()
	}
	l.mu.Unlock()
	l.openErr = nil
	l.opened = time.Now()
	l.active, l.lastUnit, l.rx, l.echo, l.mute = l.opened, nil, l.rx[:0], echoState{}, 0
	l.count.Opened++
	l.mu.Lock()
	l.published = l.count
	l.mu.Unlock()
}

// lost closes the line after err; step will open it again.
func (l *Line) lost(err error) {
	if l.ctx.Err() == nil {
		l.log.Warn("line lost", "error", err)
	}
	l.openErr = err
	l.detach()
}

func (l *Line) detach() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.port != nil {
		l.port.Close()
		l.port, l.peer = nil, peer{}
	}
}

// client is goburrow's client for one unit over this line.
func (l *Line) client(id uint8) gm.Client {
	if l.tcp() {
		h := gm.NewTCPClientHandler("")
		h.SlaveId = id
		return gm.NewClient2(h, tcpTransport{l})
	}
	h := gm.NewRTUClientHandler("")
	h.SlaveId = id
	return gm.NewClient2(h, rtuTransport{l})
}

// call sends k through goburrow's client.
func (u *unit) call(k key, values []uint16) ([]byte, error) {
	switch k.fn {
	case fnReadCoils:
		return u.client.ReadCoils(k.addr, k.count)
	case fnReadDiscrete:
		return u.client.ReadDiscreteInputs(k.addr, k.count)
	case fnReadHolding:
		return u.client.ReadHoldingRegisters(k.addr, k.count)
	case fnReadInput:
		return u.client.ReadInputRegisters(k.addr, k.count)
	case fnWriteCoil:
		return u.client.WriteSingleCoil(k.addr, k.count)
	case fnWriteOne:
		return u.client.WriteSingleRegister(k.addr, k.count)
	case fnWriteMany:
		data := make([]byte, 0, 2*len(values))
		for _, v := range values {
			data = binary.BigEndian.AppendUint16(data, v)
		}
		return u.client.WriteMultipleRegisters(k.addr, k.count, data)
	}
	panic(fmt.Sprintf("modbus: call of function %d", k.fn))
}
