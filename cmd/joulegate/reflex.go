package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/drivers/gpio/reflex"
	"github.com/spf13/cobra"
	periph "periph.io/x/conn/v3/gpio"
)

// newReflexCmd is the process that holds a running gateway's pins. Nobody
// starts it by hand.
func newReflexCmd() *cobra.Command {
	c := &cobra.Command{
		Use:    "reflex",
		Short:  "Open relays for a running gateway, which starts this itself",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd)
			if err != nil {
				return err
			}
			// Whoever stops the gateway stops its whole group: the reflex goes on
			// until the gateway has done with its relays.
			signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			// The last one to be taken when memory runs out; without permission one among others.
			_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
			socket, _ := cmd.Flags().GetString("pins-socket")
			lease, _ := cmd.Flags().GetDuration("lease")
			p, err := openPins(config.Config{Board: "generic", Pins: config.Pins{Socket: socket}})
			if err != nil {
				p = &pins{Opener: noPins{err}, close: func() error { return nil }}
			}
			runtime.LockOSThread() // its priority is this thread's too
			if err := reflex.Urgent(); err != nil {
				log.Warn("contacts are watched at ordinary priority: under load a stop may take longer", "err", err)
			}
			return errors.Join(reflex.ServeStarted(reflex.ServerConfig{Pins: p, Lease: lease, Log: log}), p.close())
		},
	}
	c.Flags().String("pins-socket", "", "`PATH` of simulated pins")
	c.Flags().Duration("lease", time.Second, "how long a verified turn of the control loop counts")
	return c
}

// itself is this very program, also while its file is being replaced, to be
// started with other arguments.
func itself(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0], cmd.Stderr = "joulegate", os.Stderr
	return cmd
}

// noPins is an opener that says why there are none, to whoever asks.
type noPins struct{ err error }

func (n noPins) Open(board.Pin) (periph.PinIO, error) { return nil, n.err }

// reflexes starts the reflex when the first pin is opened: a gateway without
// pins has none.
type reflexes struct {
	cfg     config.Config
	log     *slog.Logger
	process atomic.Pointer[reflex.Process]
	lost    chan error // the reflex has ended by itself, and what became of the outputs
	closing atomic.Bool
}

func newReflexes(cfg config.Config, log *slog.Logger) *reflexes {
	return &reflexes{cfg: cfg, log: log, lost: make(chan error, 1)}
}

// Open implements gpio.Opener.
func (r *reflexes) Open(d board.Pin) (periph.PinIO, error) {
	p := r.process.Load()
	if p == nil {
		args := []string{"reflex", "--lease", r.cfg.Timing.Watchdog.D().String()}
		if s := r.cfg.Pins.Socket; s != "" {
			args = append(args, "--pins-socket", s)
		}
		var err error
		if p, err = reflex.Start(itself(args...)); err != nil {
			return nil, err
		}
		r.process.Store(p)
		go r.watch(p)
	}
	return p.Open(d)
}

// watch makes the outputs safe when the reflex has died, because its kernel
// may leave them as they were.
func (r *reflexes) watch(p *reflex.Process) {
	err := p.Err()
	if r.closing.Load() {
		return
	}
	r.log.Error("the reflex process has ended; opening every relay", "err", err)
	err = fmt.Errorf("the process that holds the pins has ended: %w", errors.Join(err, reflex.ErrGone))
	direct, openErr := openPins(r.cfg)
	if openErr != nil {
		r.lost <- errors.Join(err, openErr)
		return
	}
	for _, o := range safeState(direct, r.cfg.Outputs()) {
		if o.Used && o.Error != "" {
			err = errors.Join(err, fmt.Errorf("%s: %s", o.Pin, o.Error))
		}
	}
	r.lost <- errors.Join(err, direct.close())
}

// verified renews the lease.
func (r *reflexes) verified() {
	if p := r.process.Load(); p != nil {
		p.Beat()
	}
}

// guard ties the contacts of every charger to its relay, and tells the station
// of what the reflex has done.
func (r *reflexes) guard(b *pins, s *station.Station) error {
	p := r.process.Load()
	if p == nil {
		return nil
	}
	type cause struct {
		charger uint8
		contact station.Contact
	}
	relays := map[string]uint8{}
	causes := map[cause]string{}
	for _, h := range r.cfg.Chargers {
		if h.Relay == "" {
			continue
		}
		relays[h.Relay] = h.ID
		for contact, name := range map[station.Contact]string{station.EmergencyStop: h.EStop, station.EarthFault: h.EarthFault} {
			if name == "" {
				continue
			}
			d, _ := b.board.Pin(name) // it is open: its description exists
			if err := p.Guard(h.Relay, name, periph.Level(d.Polarity == board.ActiveHigh)); err != nil {
				return fmt.Errorf("charger %d: %w", h.ID, err)
			}
			causes[cause{h.ID, contact}] = name
		}
	}
	return p.Listen(func(t reflex.Trip) {
		id, ok := relays[t.Output]
		switch {
		case !ok: // a trip coil or a heartbeat whose lease ended
		case t.Contact == "":
			r.log.Warn("relay opened: the control loop was not verified in time", "charger", id)
			s.Tripped(id, station.LoopLost)
		default:
			why := station.Contact(0)
			for _, contact := range []station.Contact{station.EmergencyStop, station.EarthFault} {
				if causes[cause{id, contact}] == t.Contact {
					why |= contact
				}
			}
			s.Tripped(id, why)
		}
	})
}

// close opens everything and ends the process.
func (r *reflexes) close() error {
	p := r.process.Load()
	if p == nil {
		return nil
	}
	r.closing.Store(true)
	return p.Close()
}
