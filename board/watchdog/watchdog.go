package watchdog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/joulegate/joulegate/drivers"
)

// Probe is one thing that has to be seen working.
type Probe struct {
	Name string
	// Progress returns a number that has grown if and only if work was done.
	// It is called from one goroutine and must not block.
	Progress func() uint64
}

// Dog is a hardware watchdog that is running.
type Dog interface {
	// Feed restarts its countdown.
	Feed() error
	// Close gives it back: disarmed, or counting on.
	Close(disarm bool) error
}

// Config says who is told and what has to be true.
type Config struct {
	Probes []Probe // at least one
	// Patience is how long a probe may stand still before it is reported and
	// nobody is fed. 0: one second.
	Patience time.Duration

	// Open starts the hardware watchdog and returns the time-out that the
	// hardware has agreed to. nil: none fitted.
	Open func() (Dog, time.Duration, error)
	// Heartbeat is an output that is moved while all is well. nil: none.
	Heartbeat drivers.Relay
	// Notify tells the service manager (sd_notify(3)). nil: systemd, if it
	// has started this process.
	Notify func(state string) error
	// SystemdEach is WatchdogSec of the unit, 0 if it has none. It is read
	// from the environment when Notify is nil.
	SystemdEach time.Duration

	Log *slog.Logger
}

const (
	beat     = 100 * time.Millisecond // the heartbeat's shortest half period
	patience = time.Second
)

// Watchdog is made by New and works in Run.
type Watchdog struct {
	cfg    Config
	probes []probe

	dog      Dog
	dogEach  time.Duration
	sysEach  time.Duration
	high     bool // of the heartbeat
	ready    bool
	verified bool
	refused  error // of the last feeding
}

// probe is what is known of a Probe.
type probe struct {
	Probe
	count uint64
	since time.Time // it has grown last
	// seen by the heartbeat, the hardware and systemd
	seen [consumers]uint64
}

const (
	byHeart = iota
	byDog
	bySystemd
	consumers
)

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Watchdog, error) {
	if len(cfg.Probes) == 0 || cfg.Log == nil {
		return nil, errors.New("watchdog: a probe and a logger are required: what is fed without proof watches nothing")
	}
	if cfg.Patience == 0 {
		cfg.Patience = patience
	}
	if cfg.Notify == nil {
		each, err := daemon.SdWatchdogEnabled(false)
		if err != nil {
			return nil, fmt.Errorf("watchdog: WATCHDOG_USEC: %w", err)
		}
		cfg.SystemdEach = each
		cfg.Notify = func(state string) error {
			_, err := daemon.SdNotify(false, state)
			return err
		}
	}
	w := &Watchdog{cfg: cfg, sysEach: cfg.SystemdEach / 3}
	for _, p := range cfg.Probes {
		w.probes = append(w.probes, probe{Probe: p})
	}
	return w, nil
}

// Run feeds whoever watches until ctx ends. It tells systemd that the service
// is ready when every probe has been seen working.
//
// A cause of ctx's end other than context.Canceled (context.WithCancelCause)
// is a control loop that has failed: the hardware watchdog then stays armed.
func (w *Watchdog) Run(ctx context.Context) error {
	if w.cfg.Open != nil {
		dog, timeout, err := w.cfg.Open()
		if err != nil {
			return err
		}
		w.dog, w.dogEach = dog, timeout/4
		w.cfg.Log.Info("hardware watchdog is armed", "timeout", timeout)
	}
	t := time.NewTicker(beat)
	defer t.Stop()
	start := time.Now()
	for i := range w.probes {
		w.probes[i].since = start
	}
	fedDog, fedSystemd := start, start.Add(-w.sysEach) // who has waited for a start anew hears of it at once
	for {
		select {
		case <-ctx.Done():
			return w.end(errors.Is(context.Cause(ctx), context.Canceled))
		case <-t.C:
		}
		now := time.Now()
		w.look(now)
		if w.cfg.Heartbeat != nil && w.grown(byHeart) {
			w.high = !w.high
			w.report(w.cfg.Heartbeat.Set(w.high))
		}
		if w.dog != nil && now.Sub(fedDog) >= w.dogEach-beat && w.grown(byDog) {
			fedDog = now
			w.report(w.dog.Feed())
		}
		if w.sysEach > 0 && now.Sub(fedSystemd) >= w.sysEach-beat && w.grown(bySystemd) {
			fedSystemd = now
			w.report(w.cfg.Notify(daemon.SdNotifyWatchdog))
		}
	}
}

// Stopping tells systemd that the end has begun, so that it waits for it. It
// may be called from any goroutine.
func (w *Watchdog) Stopping() {
	if err := w.cfg.Notify(daemon.SdNotifyStopping); err != nil {
		w.cfg.Log.Warn("systemd was not told", "err", err)
	}
}

// renewTime is how long a gateway may take to start anew under the service
// manager's watchdog: it has its relays open then, and feeds nobody.
const renewTime = time.Minute

// Renewing tells systemd that this process is about to execute itself anew, so
// that it waits longer than usual for the next sign of life. Once that one is
// ready the unit's own time counts again. It may be called from any goroutine.
func (w *Watchdog) Renewing() {
	if w.sysEach == 0 {
		return
	}
	if err := errors.Join(w.cfg.Notify(watchdogFor(renewTime)), w.cfg.Notify(daemon.SdNotifyWatchdog)); err != nil {
		w.cfg.Log.Warn("systemd was not told", "err", err)
	}
}

// watchdogFor asks systemd for another WatchdogSec (sd_notify(3)).
func watchdogFor(d time.Duration) string { return fmt.Sprintf("WATCHDOG_USEC=%d", d.Microseconds()) }

// look asks every probe, and says so when one begins or ends to stand still.
func (w *Watchdog) look(now time.Time) {
	still, began := "", true
	for i := range w.probes {
		p := &w.probes[i]
		if n := p.Progress(); n != p.count {
			p.count, p.since = n, now
		}
		if began = began && p.count > 0; now.Sub(p.since) > w.cfg.Patience {
			still = p.Name
		}
	}
	was := w.verified
	w.verified = began && still == ""
	switch {
	case !w.verified && was:
		w.cfg.Log.Error("nobody is told that all is well: no progress", "probe", still, "patience", w.cfg.Patience)
	case w.verified && !was && w.ready:
		w.cfg.Log.Warn("progress again")
	case w.verified && !w.ready:
		w.ready = true
		if w.sysEach > 0 { // a gateway that started anew has asked for more
			w.report(w.cfg.Notify(watchdogFor(w.cfg.SystemdEach)))
		}
		w.report(w.cfg.Notify(daemon.SdNotifyReady))
	}
}

// grown reports whether all is well and every probe has done something since
// this consumer was told last.
func (w *Watchdog) grown(by int) bool {
	if !w.verified {
		return false
	}
	for i := range w.probes {
		if w.probes[i].count == w.probes[i].seen[by] {
			return false
		}
	}
	for i := range w.probes {
		w.probes[i].seen[by] = w.probes[i].count
	}
	return true
}

// report logs a feeding that failed, once until it changes.
func (w *Watchdog) report(err error) {
	if err != nil && (w.refused == nil || w.refused.Error() != err.Error()) {
		w.cfg.Log.Error("a watchdog was not fed", "err", err)
	}
	w.refused = err
}

func (w *Watchdog) end(orderly bool) error {
	var err error
	if w.cfg.Heartbeat != nil {
		err = w.cfg.Heartbeat.Halt()
	}
	if w.dog != nil {
		if !orderly {
			w.cfg.Log.Warn("the hardware watchdog stays armed: the board is reset unless the gateway is back in time")
		}
		err = errors.Join(err, w.dog.Close(orderly))
	}
	return err
}
