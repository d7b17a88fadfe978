package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/user"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/sigma"
)

// Rungs of the ladder, the highest first.
const (
	Kernel    = "ebpf"
	Calls     = "ebpf-syscall"
	Connector = "connector"
	Polling   = "polling"
)

// Rungs lists them.
var Rungs = []string{Kernel, Calls, Connector, Polling}

// Limits.
const (
	TellAtOnce = 4         // findings of one rule about one program in TellWindow; then each time their number has doubled
	TellWindow = time.Hour //
	maxTold    = 1024      // rules and programs being counted; then the oldest is forgotten
	maxUsers   = 256       // names of users; then all are asked for again
	maxLinks   = 512       // links that were followed; then all are followed again
	rememberOf = 10 * time.Minute
)

// source tells of execs.
type source interface {
	run(ctx context.Context, take func(*Exec)) error // returns nil when ctx has ended
	lost() uint64                                    // execs known to have been missed; safe for concurrent use
	close()
}

// Config is what a sensor is made of.
type Config struct {
	Set      *sigma.Set          // rules
	Programs *Programs           // nil: what is started is not compared with a list
	Rung     string              // the only one to stand on; empty: the highest that carries
	Proc     string              // default /proc
	Report   func(guard.Finding) // must not block
	Watch    func(Seen)          // if set, is told of every exec; must not block
	Log      *slog.Logger
}

// Seen is an exec with all that is known of it.
type Seen struct {
	Time   time.Time
	ID     ID
	Parent ID // the nearest ancestor that is known
	sigma.Event
	Called  string // the path it was called by, where it is not Image
	Body    Body
	Cut     bool          // its command line was longer
	Matches []*sigma.Rule // valid until Watch returns
}

// Sensor sees programs start. Coverage and SetRules are safe for concurrent
// use.
type Sensor struct {
	c    Config
	proc *procFS
	rung int

	mu     sync.Mutex
	cov    guard.Coverage
	src    source
	past   uint64 // lost by sources that have ended
	note   string // added to the reason
	seen   atomic.Uint64
	broken atomic.Uint64 // execs whose judging panicked
	rules  atomic.Pointer[sigma.Set]

	// Of Run.
	set      *sigma.Set
	matcher  *sigma.Matcher
	table    *table
	hashes   hasher
	users    map[uint32]string
	links    map[string]string
	cached   time.Time // users and links
	told     map[tellKey]*telling
	toldFIFO []tellKey
}

type tellKey struct{ rule, image string }

type telling struct {
	since   time.Time
	n, next uint64 // so many in the window; told again at
	untold  uint64
	first   time.Time
}

// New climbs the ladder. It fails when no rung carries.
func New(c Config) (*Sensor, error) {
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	s := &Sensor{
		c: c, proc: &procFS{c.Proc}, table: newTable(), users: map[uint32]string{}, links: map[string]string{}, told: map[tellKey]*telling{},
		cov: guard.Coverage{Sensor: guard.Process, Since: time.Now()},
	}
	s.rules.Store(c.Set)
	if c.Rung != "" && !slices.Contains(Rungs, c.Rung) {
		return nil, fmt.Errorf("%q is none of %s", c.Rung, strings.Join(Rungs, ", "))
	}
	return s, s.climb(0, nil)
}

// climb stands on the highest rung from a given one that carries.
func (s *Sensor) climb(from int, why []string) error {
	for i, name := range Rungs[from:] {
		if s.c.Rung != "" && s.c.Rung != name {
			continue
		}
		src, err := s.open(name)
		if err != nil {
			why = append(why, name+": "+oneLine(err))
			continue
		}
		if name == Polling {
			why = append(why, "what ends within a quarter of a second is not seen")
		}
		if !capable(unix.CAP_SYS_PTRACE) {
			why = append(why, "without CAP_SYS_PTRACE other users' programs are known by how they were called")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.cov.Level != name {
			s.cov.Since = time.Now()
		}
		s.src, s.rung = src, from+i
		s.cov.Level, s.cov.Reason = name, strings.Join(why, "; ")
		return nil
	}
	return fmt.Errorf("no way to see programs start: %s", strings.Join(why, "; "))
}

func (s *Sensor) open(rung string) (source, error) {
	switch rung {
	case Kernel:
		return newExecSource()
	case Calls:
		return newCallSource()
	case Connector:
		return newConnectorSource(s.proc)
	}
	return newPollSource(s.proc)
}

// oneLine shortens an error to what a status line can show. The verifier of
// the kernel explains itself at length.
func oneLine(err error) string {
	l, _, _ := strings.Cut(err.Error(), "\n")
	return l[:min(len(l), 200)]
}

// capable tells whether this process has a capability.
func capable(which uint) bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	return unix.Capget(&h, &d[0]) == nil && d[which/32].Effective&(1<<(which%32)) != 0
}

// Coverage says how much the sensor sees.
func (s *Sensor) Coverage() guard.Coverage {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cov
	c.Seen, c.Lost = s.seen.Load(), s.past+s.broken.Load()
	if s.src != nil {
		c.Lost += s.src.lost()
	}
	if s.note != "" {
		c.Reason = strings.TrimPrefix(c.Reason+"; "+s.note, "; ")
	}
	return c
}

// SetRules exchanges the rules from the next exec on. Note, if not empty, is
// added to what Coverage gives as the reason, for example why the former rules
// stay in force.
func (s *Sensor) SetRules(set *sigma.Set, note string) {
	s.rules.Store(set)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note = note
}

// Run looks until ctx ends. When a rung breaks, the next one is tried.
func (s *Sensor) Run(ctx context.Context) error {
	for {
		s.mu.Lock()
		src := s.src
		s.mu.Unlock()
		err := src.run(ctx, s.safely)
		if err == nil {
			err = errors.New("it has ended by itself")
		}
		s.mu.Lock()
		s.past += src.lost()
		s.src = nil
		s.mu.Unlock()
		src.close()
		if ctx.Err() != nil {
			return nil
		}
		s.c.Log.Warn("a way to see programs start has ended", "level", Rungs[s.rung], "err", err)
		if err = s.climb(s.rung+1, []string{fmt.Sprintf("%s: ended: %v", Rungs[s.rung], err)}); err != nil {
			s.mu.Lock()
			s.cov.Level, s.cov.Reason, s.cov.Since = guard.None, oneLine(err), time.Now()
			s.mu.Unlock()
			return err
		}
	}
}

// safely judges an exec. What a program is called must not end the guard.
func (s *Sensor) safely(e *Exec) {
	defer func() {
		if p := recover(); p != nil {
			s.broken.Add(1)
			s.c.Log.Error("an exec was not judged", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	s.take(e, time.Now())
}

// take judges an exec.
func (s *Sensor) take(e *Exec, now time.Time) {
	s.seen.Add(1)
	if set := s.rules.Load(); set != s.set {
		s.set, s.matcher = set, set.Matcher()
	}
	if now.Sub(s.cached) > rememberOf || now.Before(s.cached) {
		clear(s.users)
		clear(s.links)
		s.cached = now
	}
	seen := s.complete(e, now)
	rules := s.match(&seen)
	seen.Matches = rules
	s.table.put(seen.ID, known{seen.Image, seen.CommandLine, seen.CurrentDirectory})
	if s.c.Watch != nil {
		s.c.Watch(seen)
	}
	for _, r := range rules {
		s.tell(r.Name, r.Level, seen, map[string]string{"title": r.Title})
	}
	switch seen.Body {
	case Memory:
		s.tell(guard.ProcessMemfd, guard.High, seen, nil)
	case Deleted:
		level := guard.High
		// systemd starts services through a copy of its helper that it holds
		// open; an update takes its name away.
		if e.Name == "systemd-executor" && e.HasUID && e.UID == 0 && len(e.Ancestors) > 0 && e.Ancestors[0].PID == 1 {
			level = guard.Info
		}
		// So does an update to this program, whose parts start through
		// /proc/self/exe; that its file was changed is what the load sensor
		// says, and must not count as two sources.
		if s.isSelf(seen.ID.PID) {
			level = guard.Info
		}
		s.tell(guard.ProcessDeleted, level, seen, nil)
	}
	if s.c.Programs != nil {
		if why := s.c.Programs.judge(&s.hashes, seen.Image, s.proc.path(seen.ID.PID, "exe"), now); why != "" {
			s.tell(guard.ProcessUnlisted, guard.Low, seen, map[string]string{"why": why})
		}
	}
}

// isSelf tells whether a process runs the file that this one runs.
func (s *Sensor) isSelf(pid int) bool {
	var own, its unix.Stat_t
	return unix.Stat("/proc/self/exe", &own) == nil && unix.Stat(s.proc.path(pid, "exe"), &its) == nil && own.Dev == its.Dev && own.Ino == its.Ino
}

// complete adds what only /proc and the table know.
func (s *Sensor) complete(e *Exec, now time.Time) Seen {
	seen := Seen{Time: now, ID: e.ID, Body: e.Body, Cut: e.Cut}
	start, parent, alive := s.proc.stat(e.ID.PID)
	switch {
	case e.ID.Start == 0: // no source but the process itself knows when it started
		seen.ID.Start = start
	case start != e.ID.Start:
		alive = false
	}
	if e.Ancestors == nil && alive {
		e.Ancestors = s.proc.ancestors(parent)
	}
	above, up := s.table.parent(e.Ancestors, s.proc)
	seen.Parent = above
	seen.ParentImage, seen.ParentCommandLine = up.image, up.line

	args, image, dir, body := e.Args, e.Path, "", e.Body
	if alive {
		if to, b, ok := s.proc.exe(e.ID.PID); ok {
			image, body = to, b
		}
		dir = s.proc.dir(e.ID.PID)
		if again := readSome(s.proc.path(e.ID.PID, "cmdline"), MaxArgs+1); e.Cut && len(again) > len(args) || len(args) == 0 {
			args, seen.Cut = again[:min(len(again), MaxArgs)], len(again) > MaxArgs
		}
		if now, _, ok := s.proc.stat(e.ID.PID); !ok || now != seen.ID.Start { // it ended meanwhile: the number may be another's
			args, image, dir, body = e.Args, e.Path, "", e.Body
		}
	}
	if seen.CurrentDirectory = dir; dir == "" {
		seen.CurrentDirectory = up.dir
	}
	if seen.Body == File {
		seen.Body = body
	}
	called := s.called(e, seen.CurrentDirectory)
	if seen.Image = image; image == "" {
		seen.Image = s.follow(called)
	}
	if called != seen.Image && path.IsAbs(called) && path.Base(called) != path.Base(seen.Image) && !isFD(called) {
		seen.Called = called
	}
	seen.CommandLine = line(args)
	if e.HasUID {
		seen.User = s.user(e.UID)
	}
	return seen
}

// called makes an absolute path of how a program was called. A file that was
// opened before and has no name to be called by has its own.
func (s *Sensor) called(e *Exec, dir string) string {
	switch {
	case isFD(e.Called) && e.Body == Memory:
		return "/" + e.Name
	case isFD(e.Called) && e.Name != "":
		return e.Name
	case e.Called == "" || path.IsAbs(e.Called) || dir == "" || !strings.Contains(e.Called, "/"):
		return e.Called
	}
	return path.Join(dir, e.Called)
}

func isFD(p string) bool {
	return strings.HasPrefix(p, "/dev/fd/") || strings.HasPrefix(p, "/proc/self/fd/") || strings.HasPrefix(p, "/proc/thread-self/fd/")
}

// follow resolves links in the path of a program that has ended.
func (s *Sensor) follow(p string) string {
	if !path.IsAbs(p) || strings.HasPrefix(p, "/proc/") {
		return p
	}
	if to, ok := s.links[p]; ok {
		return to
	}
	to, err := filepath.EvalSymlinks(p)
	if err != nil {
		to = p
	}
	if len(s.links) >= maxLinks {
		clear(s.links)
	}
	s.links[p] = to
	return to
}

func (s *Sensor) user(uid uint32) string {
	if name, ok := s.users[uid]; ok {
		return name
	}
	id := strconv.FormatUint(uint64(uid), 10)
	name := id
	if u, err := user.LookupId(id); err == nil {
		name = u.Username
	}
	if len(s.users) >= maxUsers {
		clear(s.users)
	}
	s.users[uid] = name
	return name
}

// match asks the rules about a program under both its names.
func (s *Sensor) match(seen *Seen) []*sigma.Rule {
	rules := s.matcher.Match(&seen.Event)
	if seen.Called == "" {
		return rules
	}
	return AlsoAs(s.matcher, seen.Event, seen.Called, slices.Clone(rules))
}

// AlsoAs adds the rules that match a program under the name that it was called
// by.
func AlsoAs(m *sigma.Matcher, e sigma.Event, called string, rules []*sigma.Rule) []*sigma.Rule {
	e.Image = called
	for _, r := range m.Match(&e) {
		if !slices.Contains(rules, r) {
			rules = append(rules, r)
		}
	}
	return rules
}

// tell reports a finding, unless the same was told often enough.
func (s *Sensor) tell(rule string, level guard.Severity, seen Seen, evidence map[string]string) {
	k := tellKey{rule, seen.Image}
	t := s.told[k]
	if t == nil || seen.Time.Sub(t.since) >= TellWindow || seen.Time.Before(t.since) {
		if t == nil {
			if len(s.told) >= maxTold {
				delete(s.told, s.toldFIFO[0])
				s.toldFIFO = s.toldFIFO[1:]
			}
			s.toldFIFO = append(s.toldFIFO, k)
		}
		t = &telling{since: seen.Time}
		s.told[k] = t
	}
	if t.untold == 0 {
		t.first = seen.Time
	}
	t.n++
	if t.untold++; t.n > TellAtOnce && t.n < t.next {
		return
	}
	t.next = max(2*t.n, 2*TellAtOnce)
	f := guard.Finding{
		Rule: rule, Severity: level, Subject: guard.Subject{Kind: guard.PID, Value: seen.ID.String()}, Count: t.untold, First: t.first, Last: seen.Time,
		Evidence: map[string]string{
			"image": seen.Image, "command_line": guard.Redact(seen.CommandLine),
			"parent_image": seen.ParentImage, "parent_command_line": guard.Redact(seen.ParentCommandLine),
			"user": seen.User, "cwd": seen.CurrentDirectory,
		},
	}
	if seen.Called != "" {
		f.Evidence["called"] = seen.Called
	}
	if seen.Cut {
		f.Evidence["cut"] = "the command line was longer"
	}
	for k, v := range evidence {
		f.Evidence[k] = v
	}
	for k, v := range f.Evidence {
		if v == "" {
			delete(f.Evidence, k)
		}
	}
	t.untold = 0
	f.Cut()
	s.c.Report(f)
}
