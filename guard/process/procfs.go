package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// procFS reads what /proc tells of processes.
type procFS struct{ root string }

// maxProcesses that are looked at when all of /proc is read.
const maxProcesses = 16384

func (p *procFS) path(pid int, name string) string {
	return filepath.Join(p.root, strconv.Itoa(pid), name)
}

// stat returns when a process started and its parent's number.
func (p *procFS) stat(pid int) (start uint64, parent int, ok bool) {
	b, err := os.ReadFile(p.path(pid, "stat"))
	if err != nil {
		return 0, 0, false
	}
	return parseStat(b)
}

// parseStat reads /proc/PID/stat. The second field is in parentheses and may
// hold any characters, parentheses too.
func parseStat(b []byte) (start uint64, parent int, ok bool) {
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 { // state is the third field, start the 22nd
		return 0, 0, false
	}
	parent, err1 := strconv.Atoi(f[1])
	start, err2 := strconv.ParseUint(f[19], 10, 64)
	return start, parent, err1 == nil && err2 == nil
}

// alive tells whether this very process still runs.
func (p *procFS) alive(id ID) bool {
	start, _, ok := p.stat(id.PID)
	return ok && start == id.Start
}

// readSome reads a file of /proc up to a limit, without asking for its size,
// which is 0 there.
func readSome(path string, limit int) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, limit)
	n := 0
	for n < limit {
		m, err := f.Read(b[n:])
		if n += m; err != nil {
			break
		}
	}
	return b[:n]
}

// exe returns the path of a process's file, and what it is.
func (p *procFS) exe(pid int) (string, Body, bool) {
	to, err := os.Readlink(p.path(pid, "exe"))
	if err != nil {
		return "", File, false
	}
	to, body := bodyOf(to)
	return to, body, true
}

// bodyOf reads a link /proc/PID/exe.
func bodyOf(to string) (string, Body) {
	name, gone := strings.CutSuffix(to, " (deleted)")
	switch {
	case gone && strings.HasPrefix(name, "/memfd:"):
		return name, Memory
	case gone:
		return name, Deleted
	}
	return to, File
}

func (p *procFS) dir(pid int) string {
	to, err := os.Readlink(p.path(pid, "cwd"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(to, " (deleted)")
}

// uid returns a process's effective user, as which it acts.
func (p *procFS) uid(pid int) (uint32, bool) {
	for l := range bytes.Lines(readSome(p.path(pid, "status"), 4096)) {
		if f := bytes.Fields(l); len(f) > 2 && string(f[0]) == "Uid:" {
			n, err := strconv.ParseUint(string(f[2]), 10, 32)
			return uint32(n), err == nil
		}
	}
	return 0, false
}

// fill completes an exec of which only the number is known, what is gone
// soonest first. It reports false when nothing of it is left.
func (p *procFS) fill(e *Exec) bool {
	e.Args = readSome(p.path(e.ID.PID, "cmdline"), MaxArgs+1)
	if e.Cut = len(e.Args) > MaxArgs; e.Cut {
		e.Args = e.Args[:MaxArgs]
	}
	if len(e.Args) == 0 { // a kernel thread, or it is ending
		return false
	}
	e.Path, e.Body, _ = p.exe(e.ID.PID)
	start, parent, ok := p.stat(e.ID.PID)
	if !ok {
		return false
	}
	e.ID.Start = start
	if at, _, ok := p.stat(parent); ok {
		e.Ancestors = []ID{{parent, at}}
	}
	e.UID, e.HasUID = p.uid(e.ID.PID)
	e.Called = text(e.Args)
	return true
}

func (p *procFS) ancestors(parent int) []ID {
	var out []ID
	for parent > 0 && len(out) < MaxAncestors {
		start, next, ok := p.stat(parent)
		if !ok {
			break
		}
		out = append(out, ID{parent, start})
		parent = next
	}
	return out
}

// pids lists the processes there are.
func (p *procFS) pids() ([]int, error) {
	d, err := os.Open(p.root)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && len(out) < maxProcesses {
			out = append(out, pid)
		}
	}
	return out, nil
}

// pollEvery is how often /proc is gone through on the lowest rung.
const pollEvery = 250 * time.Millisecond

// pollSource goes through /proc.
type pollSource struct {
	proc *procFS
	seen map[ID]look
}

// look is what a process was at a look: its file tells a second exec from a
// changed title, its arguments a started program from a forked one.
type look struct{ exe, args string }

func newPollSource(p *procFS) (source, error) {
	s := &pollSource{proc: p}
	if err := s.look(func(*Exec) {}); err != nil {
		return nil, fmt.Errorf("read %s: %w", p.root, err)
	}
	if len(s.seen) == 0 {
		return nil, fmt.Errorf("no process is visible in %s", p.root)
	}
	return s, nil
}

func (s *pollSource) run(ctx context.Context, take func(*Exec)) error {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := s.look(take); err != nil {
			return err
		}
	}
}

// look tells what was not there at the last look. A process that forked and
// is still the same program as its parent was not started.
func (s *pollSource) look(take func(*Exec)) error {
	pids, err := s.proc.pids()
	if err != nil {
		return err
	}
	now := make(map[ID]look, len(pids))
	for _, pid := range pids {
		start, parent, ok := s.proc.stat(pid)
		if !ok {
			continue
		}
		id := ID{pid, start}
		exe, _, _ := s.proc.exe(pid)
		is := look{exe, string(readSome(s.proc.path(pid, "cmdline"), 512))}
		now[id] = is
		was, known := s.seen[id]
		if s.seen == nil || known && was.exe == is.exe {
			continue
		}
		if at, _, ok := s.proc.stat(parent); !known && ok && (s.seen[ID{parent, at}] == is || now[ID{parent, at}] == is) {
			continue
		}
		e := Exec{ID: id}
		if s.proc.fill(&e) {
			take(&e)
		}
	}
	s.seen = now
	return nil
}

func (s *pollSource) lost() uint64 { return 0 } // nobody knows
func (s *pollSource) close()       {}
