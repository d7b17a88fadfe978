package load

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Levels of coverage.
const (
	Full    = "full"
	Partial = "partial" // the reason says what is missing
)

// Config is what a sensor is made of.
type Config struct {
	Limits   Limits
	Interval time.Duration           // between samples; 10 s
	State    string                  // a folder on the disk to watch
	Keep     string                  // a file for what was learned; empty: nothing is kept
	Binary   string                  // the agent's file; empty: the running one
	Runs     string                  // what runs; it may have another file than Binary by now. Empty: nothing is known of it
	Proc     string                  // empty: /proc
	Sys      string                  // empty: /sys
	Listed   func(image string) bool // programs that may compute; nil: none
	Report   func(guard.Finding)     // must not block
	Now      func() time.Duration    // monotonic
	Log      *slog.Logger
}

// Sensor looks at the machine.
type Sensor struct {
	c       Config
	machine *machine
	det     *Detector

	asked bool          // for what was kept
	kept  time.Duration // when the habit was written last

	mu  sync.Mutex
	cov guard.Coverage
}

// New returns a sensor that has not looked yet. It fails only for a machine
// without /proc.
func New(c Config) (*Sensor, error) {
	if c.Interval == 0 {
		c.Interval = 10 * time.Second
	}
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	if c.Sys == "" {
		c.Sys = "/sys"
	}
	if c.Listed == nil {
		c.Listed = func(string) bool { return false }
	}
	if c.Binary == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the running program: %w", err)
		}
		c.Binary, c.Runs = exe, "/proc/self/exe"
	}
	m, err := newMachine(c)
	if err != nil {
		return nil, err
	}
	s := &Sensor{c: c, machine: m, det: NewDetector(c.Limits), kept: c.Now()}
	s.cov = guard.Coverage{Sensor: guard.Load, Level: Full, Since: time.Now()}
	if len(m.missing) > 0 {
		s.cov.Level, s.cov.Reason = Partial, "not available here: "+strings.Join(m.missing, ", ")
	}
	return s, nil
}

// Coverage says how much the sensor sees. It is safe for concurrent use.
func (s *Sensor) Coverage() guard.Coverage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cov
}

// Run looks every interval until ctx ends. A sample that fails counts as
// lost; the next one is tried all the same.
func (s *Sensor) Run(ctx context.Context) error {
	t := time.NewTicker(s.c.Interval)
	defer t.Stop()
	for {
		if err := s.once(); err != nil {
			s.c.Log.Warn("load sensor", "err", err)
		}
		if s.det.keepDue(s.c.Now() - s.kept) {
			s.keep()
		}
		select {
		case <-ctx.Done():
			s.keep()
			return nil
		case <-t.C:
		}
	}
}

// keep writes the habit. A disk that is full costs what was learned, no more.
func (s *Sensor) keep() {
	s.kept = s.c.Now()
	h := s.det.Habit()
	if s.c.Keep == "" || h.Cores == 0 {
		return
	}
	if err := keepHabit(s.c.Keep, h); err != nil {
		s.c.Log.Warn("what was learned is not kept", "err", err)
	}
}

func (s *Sensor) once() (err error) {
	defer func() { // a malformed /proc must not end the guard
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cov.Seen++
		if err != nil {
			s.cov.Lost++
		}
	}()
	sample, err := s.machine.look(s.c.Now(), time.Now())
	if err != nil {
		return err
	}
	if s.c.Keep != "" && !s.asked { // only a sample says how many cores there are
		s.asked = true
		h, ok, err := readHabit(s.c.Keep)
		if err == nil && ok {
			err = s.det.Accustom(h, sample.Cores)
		}
		if err != nil { // what is damaged, or another machine's, is learned anew
			s.c.Log.Warn("what is ordinary here is learned anew", "file", s.c.Keep, "err", err)
		}
	}
	for _, f := range s.det.Step(sample) {
		s.c.Report(f)
	}
	return nil
}

func inode(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
