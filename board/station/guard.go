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

// turn ends a turn in which every charger was looked at and commanded. It
// counts if the outputs obeyed, and if somebody watched.
func (p *pulse) turn(obeyed bool) {
	p.tick()
	watched := p.now()-time.Duration(p.guard.Load()) <= p.limit
	if obeyed && watched && !p.stalled.Load() {
		p.turns.Add(1)
	}
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

// relay is a drivers.Relay under the watchdog's veto.
type relay struct {
	drivers.Relay
	p *pulse
}

func (r relay) Set(closed bool) error {
	if !closed {
		return r.Relay.Set(false)
	}
	if r.p.stalled.Load() {
		return errStalled
	}
	if err := r.Relay.Set(true); err != nil {
		return err
	}
	if r.p.stalled.Load() {
		return errors.Join(errStalled, r.Relay.Halt())
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
	refreshEach = 2 * time.Second // a limit is repeated, so that the controller's own time-out sees a live gateway
	busTimeout  = 2 * time.Second // one call, queueing included
)

// pilot is what a limiter worker found out.
type pilot struct {
	state drivers.VehicleState
	at    time.Duration
	err   error // of the last look or the last offer
}

// limiter carries out offers on the bus. The loop sets want; the worker alone
// talks to the device.
type limiter struct {
	dev  drivers.Limiter
	p    *pulse
	tell func(pilot)

	mu   sync.Mutex
	want meter.MilliAmpere
	kick chan struct{}
}

func newLimiter(dev drivers.Limiter, p *pulse, tell func(pilot)) *limiter {
	return &limiter{dev: dev, p: p, tell: tell, kick: make(chan struct{}, 1)}
}

func (l *limiter) offer(a meter.MilliAmpere) {
	l.mu.Lock()
	l.want = a
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

func (l *limiter) wanted() meter.MilliAmpere {
	// The heartbeat ends with the loop: a controller with a time-out of its
	// own then falls back by itself, and one without is told 0 A.
	if !l.p.alive() {
		return 0
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
	look := time.NewTicker(pilotEvery)
	defer look.Stop()
	applied, wrote := meter.MilliAmpere(-1), l.p.now()
	write := func() error {
		want := l.wanted()
		if want == applied && l.p.now()-wrote < refreshEach {
			return nil
		}
		c, cancel := context.WithTimeout(ctx, busTimeout)
		defer cancel()
		err := l.dev.SetLimit(c, want)
		applied, wrote = want, l.p.now()
		if err != nil {
			applied = -1 // unknown: try again at the next turn
		}
		return err
	}
	read := func() pilot {
		at := l.p.now()
		c, cancel := context.WithTimeout(ctx, busTimeout)
		defer cancel()
		s, err := l.dev.VehicleState(c)
		return pilot{s, at, err}
	}
	for first := true; ; first = false {
		err := write()
		if first || err == nil {
			got := read()
			got.err = errors.Join(err, got.err)
			l.tell(got)
		} else {
			l.tell(pilot{err: err})
		}
		select {
		case <-ctx.Done():
			return
		case <-l.kick:
		case <-look.C:
		}
	}
}
