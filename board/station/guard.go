package station

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/session"
)

// errStalled refuses to close a relay while the watchdog holds it open.
var errStalled = errors.New("the control loop has stalled and is not trusted yet")

// pulse is the loop's sign of life and the watchdog's veto.
type pulse struct {
	now     func() time.Duration
	limit   time.Duration
	beat    atomic.Int64 // time of the last tick
	running atomic.Bool
	stalled atomic.Bool
	stalls  atomic.Uint64
	turns   atomic.Uint64 // verified turns of the loop
	guard   atomic.Int64  // time of the watchdog's last look
}

func (p *pulse) tick() { p.beat.Store(int64(p.now())) }

// turn ends a turn in which every charger was looked at and commanded, and
// reports whether it counts: if the outputs obeyed, and if somebody watched.
func (p *pulse) turn(obeyed bool) bool {
	p.tick()
	watched := p.now()-time.Duration(p.guard.Load()) <= p.limit
	if !obeyed || !watched || p.stalled.Load() {
		return false
	}
	p.turns.Add(1)
	return true
}

func (p *pulse) alive() bool {
	return p.running.Load() && p.now()-time.Duration(p.beat.Load()) <= p.limit
}

// watch halts everything when the loop is silent. It runs beside the loop, so
// it must not take any lock that the loop may hold.
func (p *pulse) watch(ctx context.Context, halt func()) {
	t := time.NewTicker(max(p.limit/4, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		p.guard.Store(int64(p.now()))
		if !p.alive() && p.running.Load() {
			// Veto first, then halt: a Set(true) that is under way either
			// sees the veto or happens before the halt.
			if !p.stalled.Swap(true) {
				p.stalls.Add(1)
			}
			halt()
		}
	}
}

// relay is a drivers.Relay under the vetoes of the watchdog and of Tripped.
type relay struct {
	drivers.Relay
	p   *pulse
	cut *cut
}

func (r relay) veto() error {
	switch {
	case r.p.stalled.Load():
		return errStalled
	case r.cut.seen.Load() != 0:
		return errCut
	}
	return nil
}

func (r relay) Set(closed bool) error {
	if !closed {
		return r.Relay.Set(false)
	}
	if err := r.veto(); err != nil {
		return err
	}
	if err := r.Relay.Set(true); err != nil {
		return err
	}
	if err := r.veto(); err != nil {
		return errors.Join(err, r.Relay.Halt())
	}
	return nil
}

// watchHeat asks a thermometer until ctx ends.
func watchHeat(ctx context.Context, dev Thermometer, now func() time.Duration, tell func(heat)) {
	t := time.NewTicker(heatEvery)
	defer t.Stop()
	for {
		at := now()
		c, cancel := context.WithTimeout(ctx, busTimeout)
		v, err := dev.Temperature(c)
		cancel()
		tell(heat{v, at, err})
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// heat is what a thermometer said.
type heat struct {
	value session.MilliCelsius
	at    time.Duration
	err   error
}

const heatEvery = 2 * time.Second

// Times of a limiter worker.
const (
	pilotEvery  = time.Second     // between two looks at the pilot
	statusEvery = 5 * time.Second // between two looks at everything else the device tells
	refreshEach = 2 * time.Second // a limit is repeated, so that the controller's own time-out sees a live gateway
	busTimeout  = 2 * time.Second // one call, queueing included
)

// pilot is what a limiter worker found out.
type pilot struct {
	looked bool // state was read at that time
	state  drivers.VehicleState
	at     time.Duration
	status *drivers.Status // nil: not read this time
	phases int             // in use; 0: not known
	err    error           // of the last look or the last command
}

// limiter carries out offers on the bus. The loop sets what is wanted; the
// worker alone talks to the device. While the loop is not alive it tells the
// device 0 A, and once that is done nothing more: the heartbeat ends with the
// loop, and the device falls back by itself.
type limiter struct {
	dev  drivers.Limiter
	p    *pulse
	tell func(pilot)

	mu     sync.Mutex
	want   setting
	phases int           // to switch to; 0: as they are
	seen   time.Duration // when the vehicle's state was read last
	kick   chan struct{}
}

func newLimiter(dev drivers.Limiter, p *pulse, tell func(pilot)) *limiter {
	return &limiter{dev: dev, p: p, tell: tell, kick: make(chan struct{}, 1)}
}

func (l *limiter) set(f func()) {
	l.mu.Lock()
	f()
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// setting is what a device is told: a current to offer, or a power to take out
// of the vehicle. Its zero value pauses.
type setting struct {
	limit meter.MilliAmpere
	back  meter.Watt
}

func (l *limiter) offer(a meter.MilliAmpere, back meter.Watt) {
	l.set(func() { l.want = setting{a, back} })
}

func (l *limiter) switchTo(phases int) { l.set(func() { l.phases = phases }) }

// seenAt is when the vehicle's state was read last.
func (l *limiter) seenAt() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen
}

// live reports whether the loop is to be obeyed.
func (l *limiter) live() bool { return l.p.alive() && !l.p.stalled.Load() }

func (l *limiter) wanted() setting {
	if !l.live() {
		return setting{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.want
}

func (l *limiter) run(ctx context.Context) {
	defer func() {
		if err := l.dev.Halt(); err != nil {
			l.tell(pilot{err: err})
		}
	}()
	w := limiterWork{limiter: l}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.kick:
		case <-next.C:
		}
		w.turn(ctx)
		next.Reset(w.pause())
	}
}

// limiterWork is what the worker remembers between two turns.
type limiterWork struct {
	*limiter
	applied                  setting
	sure                     bool          // applied is what the device was told last
	wrote, beat, look, whole time.Duration // when each was done last
	begun                    bool
}

// pause is how long the worker may sleep.
func (w *limiterWork) pause() time.Duration {
	if b, ok := w.dev.(drivers.Heartbeat); ok {
		if every := b.BeatEvery(); every > 0 {
			return max(50*time.Millisecond, min(pilotEvery, every/3))
		}
	}
	return pilotEvery
}

func (w *limiterWork) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	return f(ctx)
}

func (w *limiterWork) turn(ctx context.Context) {
	if w.sure && w.applied == (setting{}) && !w.live() {
		return // it has been told 0 A and has to notice that we are gone
	}
	err := w.write(ctx)
	if err == nil && w.live() {
		err = errors.Join(w.heartbeat(ctx), w.order(ctx))
	}
	now := w.p.now()
	switch {
	case err != nil && w.begun:
		w.tell(pilot{err: err})
	case !w.begun || now-w.look >= pilotEvery:
		w.begun, w.look = true, now
		got := w.read(ctx, now)
		got.err = errors.Join(err, got.err)
		w.tell(got)
	}
}

// write tells the device what is wanted, and repeats it.
func (w *limiterWork) write(ctx context.Context) error {
	want, now := w.wanted(), w.p.now()
	if w.sure && want == w.applied && now-w.wrote < refreshEach {
		return nil
	}
	w.sure, w.wrote = false, now // until confirmed
	err := w.call(ctx, func(ctx context.Context) error {
		if want.back == 0 {
			return w.dev.SetLimit(ctx, want.limit)
		}
		// Only a charger with a Discharger is given such an order.
		dev := w.dev.(drivers.Discharger)
		least, _ := dev.PowerRange()
		return dev.SetPower(ctx, max(least, -meter.MilliWatt(want.back)*1000))
	})
	if err == nil {
		w.applied, w.sure = want, true
	}
	return err
}

// heartbeat says that the gateway is there, if the device listens for it.
func (w *limiterWork) heartbeat(ctx context.Context) error {
	b, ok := w.dev.(drivers.Heartbeat)
	if !ok {
		return nil
	}
	every, now := b.BeatEvery(), w.p.now()
	if every == 0 || w.beat != 0 && now-w.beat < every/2 {
		return nil
	}
	w.beat = now
	return w.call(ctx, b.Beat)
}

// order switches phases if that was asked for.
func (w *limiterWork) order(ctx context.Context) error {
	w.mu.Lock()
	n := w.phases
	w.phases = 0
	w.mu.Unlock()
	sw, ok := w.dev.(drivers.PhaseSwitcher)
	if n == 0 || !ok {
		return nil
	}
	return w.call(ctx, func(ctx context.Context) error { return sw.SwitchPhases(ctx, n) })
}

// read looks at the pilot, and now and then at everything else.
func (w *limiterWork) read(ctx context.Context, at time.Duration) (got pilot) {
	got.at = at
	st, ok := w.dev.(drivers.Statused)
	if whole := ok && (w.whole == 0 || at-w.whole >= statusEvery); whole {
		w.whole = at
		got.err = w.call(ctx, func(ctx context.Context) error {
			v, err := st.Status(ctx)
			if err == nil {
				got.status, got.state, got.looked = &v, v.Vehicle, true
			}
			return err
		})
		if sw, ok := w.dev.(drivers.PhaseSwitcher); ok && len(sw.PhaseCounts()) > 1 {
			got.err = errors.Join(got.err, w.call(ctx, func(ctx context.Context) (err error) {
				got.phases, err = sw.Phases(ctx)
				return err
			}))
		}
	}
	if !got.looked { // also when the whole could not be read
		got.err = errors.Join(got.err, w.call(ctx, func(ctx context.Context) (err error) {
			got.state, err = w.dev.VehicleState(ctx)
			got.looked = err == nil
			return err
		}))
	}
	if got.looked {
		w.mu.Lock()
		w.seen = at
		w.mu.Unlock()
	}
	return got
}
