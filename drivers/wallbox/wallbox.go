// Package wallbox drives charge controllers and wallboxes over Modbus: it
// offers a current to the vehicle and reads the state of the control pilot.
//
// There is one driver. What makes a KEBA different from an ABL is data: a file
// in meter/profile says where the current is written and in which unit, what
// pauses, what the status codes mean and how the device notices that its
// master is gone.
//
//	SetLimit(16 A) ─► setup once ─► current, in the device's unit ─► enable ─► read back
//	SetLimit(0)    ─► what pauses: current 0, enable 0, a duty cycle of 100 %
//	VehicleState() ◄─ A no vehicle, B connected, C charging, ... (IEC 61851-1)
//	Beat()         ─► life bit, the current again, or any read: what feeds its watchdog
//	Halt()         ─► as SetLimit(0), past everything that is under way
//
// The device keeps what belongs to it: the pilot signal, the residual current
// device and the contactor's logic. A gateway only lowers what it may offer.
// IEC 61851-1 knows no current between 0 and 6 A, so a limit is 0 or at least
// 6 A; anything else is refused before it reaches the bus. A limit that the
// registers cannot express is rounded down, never up.
//
// # Nothing stays on by accident
//
// The driver has no goroutine. Whoever owns the control loop calls Beat, at
// least every BeatEvery; when the loop stalls the beats end, and the device
// falls back to its failsafe current by itself. An offer that was confirmed is
// looked at again while it stands, so that a wallbox that was restarted, or
// changed by another master, is found and told again. An answer that says more
// is on offer than was asked for is an error.
//
// # A device that does other than its file says
//
// An unknown status code is no state: the error names it. A command that is
// optional in the file may be refused with "illegal data address"; it is then
// left out until the device was lost and found again.
package wallbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	gm "github.com/goburrow/modbus"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// Limits of currents and times.
const (
	MinCurrent  meter.MilliAmpere = 6_000 // least and most that can be offered, IEC 61851-1
	MaxCurrent  meter.MilliAmpere = 32_000
	HaltTimeout                   = time.Second      // bounds Halt: one bus time-out
	PhasePause                    = 10 * time.Second // without an offer, before phases are switched

	lookAgain  = 5 * time.Second        // between two looks whether an offer still stands
	writeAgain = 10 * time.Second       // between two writes of one that cannot be read back
	offerLag   = 3 * time.Second        // a device takes this long to show a new limit
	tolerance  = meter.MilliAmpere(500) // of the limit that a device shows

	nominalVoltage = 230 // V, for limits of devices that are told a power
)

// Box is a wallbox. It implements drivers.Limiter, Statused, Heartbeat,
// Failsafe and PhaseSwitcher, and drivers.Discharger; each says how far its
// model has it. It is safe for concurrent use: one sequence of requests runs
// at a time, and Halt ends the one under way.
type Box struct {
	reg    drivers.Writer
	prof   *profile.Profile
	state  *profile.Profile // the points that tell the vehicle's state
	status *profile.Profile // and those that tell everything about the box

	show *profile.Profile // the limit in force

	limit, enable, beat, failCurrent, failTimeout, phases *profile.Write
	held                                                  func(context.Context) (int64, bool, error) // reads the limit that is set; nil: it cannot be read

	bus chan struct{} // holds one token: the right to talk to the device

	mu      sync.Mutex
	stop    context.CancelFunc // of the sequence under way
	every   time.Duration      // BeatEvery
	ready   bool               // Setup has been written since the device was found
	lacks   map[string]bool    // optional commands that were refused
	offered offer
	ended   time.Time // when an offer was last withdrawn
}

// offer is what the device was told and has confirmed.
type offer struct {
	known  bool
	limit  meter.MilliAmpere // as it was asked for
	set    int64             // as the registers express it
	power  meter.MilliWatt   // of a device that is told a power; limit is 0 then
	at     time.Time         // first written
	wrote  time.Time         // last written
	looked time.Time         // last found to stand
}

var (
	_ drivers.Limiter       = (*Box)(nil)
	_ drivers.Statused      = (*Box)(nil)
	_ drivers.Heartbeat     = (*Box)(nil)
	_ drivers.Failsafe      = (*Box)(nil)
	_ drivers.PhaseSwitcher = (*Box)(nil)
	_ drivers.Discharger    = (*Box)(nil)
)

// New drives the device behind reg, which is of profile p. It does not touch
// the bus. The error says what p lacks for a wallbox.
func New(reg drivers.Writer, p *profile.Profile) (*Box, error) {
	if err := Fit(p); err != nil {
		return nil, err
	}
	b := &Box{reg: reg, prof: p, bus: make(chan struct{}, 1), lacks: map[string]bool{}}
	b.bus <- struct{}{}
	for name, w := range map[string]**profile.Write{
		"current_limit": &b.limit, "enable": &b.enable, "heartbeat": &b.beat,
		"failsafe_current": &b.failCurrent, "failsafe_timeout": &b.failTimeout, "phases": &b.phases,
	} {
		if c, ok := p.Write(name); ok {
			*w = c
		}
	}
	b.state = only(p, meter.Status, meter.Cable)
	b.status = only(p, meter.Status, meter.Cable, meter.Fault, meter.Temperature, meter.CurrentLimit, meter.Current)
	b.show = only(p, meter.CurrentLimit)
	b.held = b.findHeld()
	b.every = b.beatEvery(0)
	return b, nil
}

// Fit says what p lacks to be driven as a wallbox, or nil.
func Fit(p *profile.Profile) error {
	_, current := p.Write("current_limit")
	switch {
	case p.Kind != profile.Wallbox:
		return fmt.Errorf("%s is a profile of a %s, not of a wallbox", p.ID, p.Kind)
	case !current && len(p.Orders) == 0:
		return fmt.Errorf("%s cannot be told a current: it has neither current_limit nor orders", p.ID)
	case len(p.States) == 0:
		return fmt.Errorf("%s has no states: its status tells nothing about the vehicle", p.ID)
	}
	return nil
}

// only returns p with no other points than those of quantities.
func only(p *profile.Profile, quantities ...meter.Quantity) *profile.Profile {
	q := *p
	q.Points = slices.DeleteFunc(slices.Clone(p.Points), func(pt profile.Point) bool {
		return !slices.Contains(quantities, pt.Quantity)
	})
	return &q
}

// CheckLimit returns an error unless limit is 0 or 6..32 A.
func CheckLimit(limit meter.MilliAmpere) error {
	if limit != 0 && (limit < MinCurrent || limit > MaxCurrent) {
		return fmt.Errorf("%d mA: a vehicle can be offered 0 or %d..%d mA (IEC 61851-1)", limit, MinCurrent, MaxCurrent)
	}
	return nil
}

// errNotNow refuses what would harm at this moment; the device is well.
var errNotNow = errors.New("not now")

// sequence runs f alone on the device. After an error nothing is known about
// the device any more.
func (b *Box) sequence(ctx context.Context, f func(ctx context.Context) error) error {
	select {
	case <-b.bus:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", b.prof.ID, ctx.Err())
	}
	defer func() { b.bus <- struct{}{} }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	b.mu.Lock()
	b.stop = stop
	b.mu.Unlock()
	if err := f(ctx); err != nil {
		if !errors.Is(err, errNotNow) {
			b.forget()
		}
		return fmt.Errorf("%s: %w", b.prof.ID, err)
	}
	return nil
}

// forget takes nothing for granted any more: the device may have been
// restarted or replaced.
func (b *Box) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ready, b.offered.known = false, false
	clear(b.lacks)
}

// SetLimit implements drivers.Limiter. The same limit again costs no write
// while the device shows that it stands.
func (b *Box) SetLimit(ctx context.Context, limit meter.MilliAmpere) error {
	if err := CheckLimit(limit); err != nil {
		return err
	}
	return b.sequence(ctx, func(ctx context.Context) error { return b.set(ctx, limit) })
}

func (b *Box) set(ctx context.Context, limit meter.MilliAmpere) error {
	b.mu.Lock()
	was := b.offered
	b.mu.Unlock()
	if was.known && was.power == 0 && was.limit == limit {
		if done, err := b.stands(ctx, was); done || err != nil {
			return err
		}
	}
	switch {
	case limit == 0:
		return b.pause(ctx, true)
	case b.limit == nil: // told a power: what the current carries on three phases
		return b.order(ctx, meter.MilliWatt(limit)*nominalVoltage*3, limit)
	}
	if err := b.setup(ctx); err != nil {
		return err
	}
	set, err := b.put(ctx, b.limit, b.most(limit))
	if err == nil {
		err = b.confirm(ctx, set)
	}
	if err != nil {
		return fmt.Errorf("offer %d mA: %w", limit, err)
	}
	if b.enable != nil { // last: never enabled with a limit of before
		if _, err := b.put(ctx, b.enable, 1); err != nil {
			return fmt.Errorf("enable: %w", err)
		}
	}
	b.took(offer{limit: limit, set: set})
	return nil
}

// most is limit, or the largest one below it that the device knows.
func (b *Box) most(limit meter.MilliAmpere) int64 {
	if b.limit.Values != nil {
		return int64(limit) // Encode finds it
	}
	return min(int64(limit), b.limit.Max)
}

// took notes what the device has confirmed.
func (b *Box) took(o offer) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.offered
	if was.limit != 0 && o.limit == 0 || was.power != 0 && o.power == 0 || b.ended.IsZero() {
		b.ended = now
	}
	o.known, o.at, o.wrote, o.looked = true, now, now, now
	if was.known && was.limit == o.limit && was.power == o.power {
		o.at = was.at
	}
	b.offered = o
}

// stands reports whether the offer was found to stand, or needs no look yet.
func (b *Box) stands(ctx context.Context, was offer) (bool, error) {
	now := time.Now()
	every := b.limitEvery()
	switch {
	case every > 0 && now.Sub(was.wrote) >= every/2:
		return false, nil
	case now.Sub(was.looked) < lookAgain:
		return true, nil
	}
	if b.limit == nil || b.held == nil || was.limit == 0 && b.limit.Nonzero {
		return now.Sub(was.wrote) < writeAgain, nil
	}
	have, ok, err := b.held(ctx)
	if err != nil {
		return false, err
	}
	if !ok || have != was.set {
		return false, nil // another hand, or a restart: say it again
	}
	if was.limit > 0 {
		most, told, err := b.shown(ctx)
		if err != nil {
			return false, err
		}
		if told && now.Sub(was.at) > offerLag && most > meter.MilliAmpere(was.set)+tolerance {
			return false, fmt.Errorf("it offers %d mA, told %d mA: %w", most, was.set, drivers.ErrNotTaken)
		}
	}
	b.mu.Lock()
	b.offered.looked = now
	b.mu.Unlock()
	return true, nil
}

func (b *Box) limitEvery() time.Duration {
	if b.limit == nil {
		return 0
	}
	return b.limit.Every
}

// pause withdraws the offer. It is withdrawn when one of the commands that
// pause has been confirmed and all that are not optional have been; look reads
// it back too.
func (b *Box) pause(ctx context.Context, look bool) error {
	confirmed := false
	var failed error
	if len(b.prof.Orders) > 0 {
		failed = b.send(ctx, profile.OrderRelease, 0)
		confirmed = failed == nil
	}
	for _, s := range b.prof.Pause() {
		if b.lacking(s.Write) {
			continue
		}
		set, err := b.put(ctx, s.Write, s.Value)
		if err == nil && look && s.Write == b.limit {
			err = b.confirm(ctx, set)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("pause with %s: %w", s.Write.Name, err))
			continue // the next one may do it
		}
		confirmed = confirmed || !b.lacking(s.Write)
	}
	if failed == nil && !confirmed {
		failed = errors.New("pause: every command that pauses is optional, and refused")
	}
	if failed != nil {
		return failed
	}
	b.took(offer{})
	return nil
}

// setup writes what a master says once when it takes over.
func (b *Box) setup(ctx context.Context) error {
	b.mu.Lock()
	ready := b.ready
	b.mu.Unlock()
	if ready {
		return nil
	}
	if b.beat != nil { // some take no other command before
		if _, err := b.put(ctx, b.beat, 1); err != nil {
			return fmt.Errorf("heartbeat: %w", err)
		}
	}
	for _, s := range b.prof.Setup() {
		if _, err := b.put(ctx, s.Write, s.Value); err != nil {
			return fmt.Errorf("set up %s: %w", s.Write.Name, err)
		}
	}
	var timeout time.Duration
	if b.failTimeout != nil && b.failTimeout.Read != nil {
		ms, ok, err := b.read(ctx, b.failTimeout, readOf(b.failTimeout))
		if err != nil {
			return fmt.Errorf("failsafe time-out: %w", err)
		}
		if ok {
			timeout = time.Duration(ms) * time.Millisecond
		}
	}
	b.mu.Lock()
	b.ready, b.every = true, b.beatEvery(timeout)
	b.mu.Unlock()
	return nil
}

// put writes value and returns it as the device's registers express it.
func (b *Box) put(ctx context.Context, w *profile.Write, value int64) (int64, error) {
	if b.lacking(w) {
		return value, nil
	}
	var raw []meter.RawBlock
	for _, c := range w.Conditions() {
		data, err := b.fetch(ctx, c)
		if err != nil {
			return 0, err
		}
		raw = append(raw, data)
	}
	c, err := w.Encode(value, raw)
	if err != nil {
		return 0, err
	}
	write := drivers.Write{Function: drivers.Function(c.Function), Address: c.Address, Values: c.Values}
	err = b.reg.Write(ctx, write)
	if w.Twice && ctx.Err() == nil { // the first one wakes it up
		err = b.reg.Write(ctx, write)
	}
	if w.Optional && refused(err) {
		b.mu.Lock()
		b.lacks[w.Name] = true
		b.mu.Unlock()
		return value, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%s = %d: %w", w.Name, value, err)
	}
	set, ok := w.Decode(c.Address, c.Values, raw)
	if !ok {
		panic(fmt.Sprintf("wallbox: %s %s: %v does not decode to %d", b.prof.ID, w.Name, c.Values, value))
	}
	return set, nil
}

func (b *Box) lacking(w *profile.Write) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lacks[w.Name]
}

// refused reports whether the device answered that it has no such register.
func refused(err error) bool {
	var x *gm.ModbusError
	return errors.As(err, &x) && (x.ExceptionCode == gm.ExceptionCodeIllegalDataAddress || x.ExceptionCode == gm.ExceptionCodeIllegalFunction)
}

func readOf(w *profile.Write) profile.Block {
	block, _ := w.ReadBlock()
	return block
}

// read returns what is set.
func (b *Box) read(ctx context.Context, w *profile.Write, block profile.Block) (int64, bool, error) {
	raw, err := b.fetch(ctx, block)
	if err != nil {
		return 0, false, err
	}
	v, ok := w.DecodeRead([]meter.RawBlock{raw})
	return v, ok, nil
}

// findHeld returns how to read which limit is set, if it can be read: where
// the file says so, or as a point at the very registers that are written.
func (b *Box) findHeld() func(context.Context) (int64, bool, error) {
	switch w := b.limit; {
	case w == nil:
	case w.Read != nil:
		return func(ctx context.Context) (int64, bool, error) { return b.read(ctx, w, readOf(w)) }
	case b.own():
		return func(ctx context.Context) (int64, bool, error) {
			a, ok, err := b.shown(ctx)
			return int64(a), ok, err
		}
	}
	return nil
}

// own reports whether the limit that the device shows is read where it is
// written.
func (b *Box) own() bool {
	return b.limit != nil && slices.ContainsFunc(b.prof.Points, func(pt profile.Point) bool {
		return pt.Quantity == meter.CurrentLimit && pt.Function == drivers.HoldingRegisters && pt.Address == b.limit.Address && pt.Type == b.limit.Type
	})
}

// confirm reads the limit back. A device may hold less than it was told, when
// its own switches or cable allow no more, but not more.
func (b *Box) confirm(ctx context.Context, set int64) error {
	if b.held == nil {
		return nil
	}
	have, ok, err := b.held(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("read back: %w", err)
	case !ok:
		return fmt.Errorf("it holds none of the values of %s: %w", b.limit.Name, drivers.ErrNotTaken)
	case have > set || have < set && have != 0 && have < int64(MinCurrent):
		return fmt.Errorf("it holds %d mA, told %d mA: %w", have, set, drivers.ErrNotTaken)
	}
	return nil
}

// fetch reads one block.
func (b *Box) fetch(ctx context.Context, block profile.Block) (meter.RawBlock, error) {
	data, err := b.reg.ReadRegisters(ctx, block.Function, block.Address, block.Count)
	if err != nil {
		return meter.RawBlock{}, err
	}
	if len(data) != 2*int(block.Count) {
		return meter.RawBlock{}, fmt.Errorf("register %d: %d bytes, want %d", block.Address, len(data), 2*int(block.Count))
	}
	return meter.RawBlock{Function: uint8(block.Function), Address: block.Address, Data: data}, nil
}

// points reads what sub has.
func (b *Box) points(ctx context.Context, sub *profile.Profile) ([]meter.Point, error) {
	var raw []meter.RawBlock
	for _, block := range sub.Blocks(0) {
		r, err := b.fetch(ctx, block)
		if err != nil {
			return nil, err
		}
		raw = append(raw, r)
	}
	return sub.Decode(raw)
}

// shown returns the limit that the device shows to be in force, if it shows
// one.
func (b *Box) shown(ctx context.Context) (meter.MilliAmpere, bool, error) {
	if len(b.show.Points) == 0 {
		return 0, false, nil
	}
	points, err := b.points(ctx, b.show)
	if err != nil || len(points) == 0 {
		return 0, false, err
	}
	return meter.MilliAmpere(points[0].Value), true, nil
}

// Halt implements drivers.Limiter: it withdraws the offer. A sequence under
// way is ended first.
func (b *Box) Halt() error {
	ctx, cancel := context.WithTimeout(context.Background(), HaltTimeout)
	defer cancel()
	b.mu.Lock()
	if b.stop != nil {
		b.stop()
	}
	b.mu.Unlock()
	return b.sequence(ctx, func(ctx context.Context) error { return b.pause(ctx, false) })
}
