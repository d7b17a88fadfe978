package packet

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/guard"
)

// Levels of coverage.
const (
	Ring  = "ring"  // frames through shared memory
	Plain = "plain" // frames one by one: some are lost under load
)

// Charger tells what the charger does. The wiring's charger implements it; it
// must not block and be safe for concurrent use.
type Charger interface{ Charging() bool }

// Config is what a sensor is made of.
type Config struct {
	Interface string              // empty: the one with the default route
	Network   Network             //
	Charger   Charger             // nil: there is none
	Answers   Answers             // nil: only answers on the wire count
	Window    time.Duration       // a finding that goes on is reported again at most so often; 10 s
	Report    func(guard.Finding) // must not block
	Now       func() time.Duration
	Log       *slog.Logger

	plain bool // no ring, for tests
}

// Sensor looks at an interface.
type Sensor struct {
	c     Config
	rules Rules

	mu      sync.Mutex
	cov     guard.Coverage
	dests   *destinations // of the engine at work, for Learned
	learned []netip.Addr
}

// Times of the sensor.
const (
	retry = 10 * time.Second // after an interface went away, or a capability is missing
	tick  = time.Second      // drop counters, findings that go on
)

// New returns a sensor that has not looked yet.
func New(c Config) (*Sensor, error) {
	if c.Report == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("packet sensor: Report, Now and Log must be set")
	}
	if c.Window == 0 {
		c.Window = 10 * time.Second
	}
	if n := len(c.Network.ModbusPorts); n > 32 {
		return nil, fmt.Errorf("packet sensor: %d Modbus ports, at most 32", n)
	}
	c.Network.defaults()
	s := &Sensor{c: c}
	var seed [8]byte
	rand.Read(seed[:])
	s.rules = Rules{Network: c.Network, Answers: c.Answers, Seed: binary.NativeEndian.Uint64(seed[:])}
	if c.Charger != nil {
		s.rules.Charging = c.Charger.Charging
	}
	s.cov = guard.Coverage{Sensor: guard.Packet, Level: guard.None, Reason: "not started", Since: time.Now()}
	return s, nil
}

// Coverage says how much the sensor sees. It is safe for concurrent use.
func (s *Sensor) Coverage() guard.Coverage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cov
}

// Learned returns the destinations that were learned, to be kept and given
// as part of the baseline after a restart. It is safe for concurrent use.
func (s *Sensor) Learned() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Clone(s.learned)
	if s.dests != nil {
		all = append(all, s.dests.list()...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// list returns what was learned.
func (d *destinations) list() []netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []netip.Addr
	for a := range d.learned {
		all = append(all, a.Netip())
	}
	return all
}

// Run looks until ctx ends. Without the capability, or while the interface is
// away, the coverage says so and Run tries again: it fails for nothing that
// time can mend.
func (s *Sensor) Run(ctx context.Context) error {
	// One engine for all of Run: what was learned outlives an interface that
	// goes away for a moment.
	g := newEngine(s.rules, 0, s.c.Window, s.c.Report, s.c.Log)
	for _, d := range g.detectors {
		if d, ok := d.(*destinations); ok {
			s.mu.Lock()
			s.dests = d
			s.mu.Unlock()
		}
	}
	start := s.c.Now()
	defer func() { g.sink.flush(s.c.Now() - start) }()
	for {
		err := s.look(ctx, g, start)
		if ctx.Err() != nil {
			return nil
		}
		s.level(guard.None, err.Error())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

// level publishes a level when it differs.
func (s *Sensor) level(level, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cov.Level == level && s.cov.Reason == reason {
		return
	}
	if s.cov.Level != level {
		s.cov.Since = time.Now()
	}
	s.cov.Level, s.cov.Reason = level, reason
	s.c.Log.Info("packet sensor", "level", level, "reason", reason)
}

// look reads one socket until it fails or ctx ends.
func (s *Sensor) look(ctx context.Context, g *engine, start time.Duration) error {
	name := s.c.Interface
	if name == "" {
		var err error
		if name, err = DefaultInterface(); err != nil {
			return err
		}
	}
	sock, why, err := openSocket(name, g.rules.ModbusPorts, s.c.plain)
	if err != nil {
		return remedy(err)
	}
	defer sock.close()
	level, reason := Ring, ""
	if sock.ring == nil {
		level, reason = Plain, "no ring, frames may be lost under load: "+why.Error()
	}
	g.dec.link = sock.link
	s.level(level, reason)

	s.mu.Lock()
	seen, lost := s.cov.Seen, s.cov.Lost
	s.mu.Unlock()
	var at, counted time.Duration
	charging := false
	take := func(data []byte, wall int64, size int) { g.frame(data, at, wall, size, charging) }
	for ctx.Err() == nil {
		at, charging = s.c.Now()-start, g.rules.Charging()
		if err := sock.read(take); err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
		if at-counted < tick {
			continue
		}
		counted = at
		g.sink.step(at)
		sock.count()
		s.mu.Lock()
		s.cov.Seen, s.cov.Lost = seen+sock.seen, lost+sock.lost
		s.mu.Unlock()
		if off := g.impaired(); off != "" {
			s.level(level, strings.TrimPrefix(reason+"; "+off, "; "))
		}
	}
	sock.count()
	s.mu.Lock()
	s.cov.Seen, s.cov.Lost = seen+sock.seen, lost+sock.lost
	s.mu.Unlock()
	return nil
}

// remedy says what to do about a missing capability.
func remedy(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: needs CAP_NET_RAW; in the systemd unit AmbientCapabilities=CAP_NET_RAW, else 'setcap cap_net_raw+ep' on the program", err)
	}
	return err
}

// Probe tells why packets of an interface cannot be seen, and what to do; nil
// when they can. An empty name is the interface with the default route.
func Probe(name string) error {
	if name == "" {
		var err error
		if name, err = DefaultInterface(); err != nil {
			return err
		}
	}
	s, why, err := openSocket(name, []uint16{502}, false)
	if err != nil {
		return remedy(err)
	}
	defer s.close()
	if s.ring == nil {
		return fmt.Errorf("no ring, frames may be lost under load: %w", why)
	}
	return nil
}

// DefaultInterface returns the interface that the default route leads
// through, IPv4 before IPv6, or the only one that there is beside loopback.
func DefaultInterface() (string, error) {
	if text, err := os.ReadFile("/proc/thread-self/net/route"); err == nil {
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
				return f[0], nil
			}
		}
	}
	if text, err := os.ReadFile("/proc/thread-self/net/ipv6_route"); err == nil {
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 10 && f[0] == strings.Repeat("0", 32) && f[1] == "00" && f[9] != "lo" {
				return f[9], nil
			}
		}
	}
	all, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("list the interfaces: %w", err)
	}
	only := ""
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 {
			continue
		}
		if only != "" {
			return "", errors.New("no default route and several interfaces: name the one to watch in the configuration")
		}
		only = i.Name
	}
	if only == "" {
		return "", errors.New("no network interface is up")
	}
	return only, nil
}
