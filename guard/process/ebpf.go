package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
)

func oneOf(name, names string) bool { return slices.Contains(strings.Split(names, "|"), name) }

// Limits of what waits for this process.
const (
	ringBytes  = 2 << 20 // between kernel and us, some 2,500 execs; then they are lost and counted
	maxPending = 1024    // calls of execve that have not succeeded or failed yet; then the oldest is forgotten
)

// kernelSource hears of execs from programs in the kernel.
type kernelSource struct {
	ring, records, lostMap *ebpf.Map
	reader                 *ringbuf.Reader
	links                  []link.Link
	programs               []*ebpf.Program
	bad                    atomic.Uint64 // records that could not be read
	calls                  pending
}

// newExecSource attaches to sched_process_exec alone.
func newExecSource() (source, error) {
	o, err := kernelOffsets()
	if err != nil {
		return nil, err
	}
	return newKernelSource(func(s *kernelSource) error {
		return s.attach("sched_process_exec", ebpf.RawTracepoint, onExec(o, s.records.FD(), s.ring.FD(), s.lostMap.FD()), func(p *ebpf.Program) (link.Link, error) {
			return link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec", Program: p})
		})
	})
}

// newCallSource attaches to the calls, too: to their tracepoints where tracefs
// is to be seen, and else to all system calls, of which it takes these.
func newCallSource() (source, error) {
	s, err := newTracepointSource()
	if a, ok := abis[runtime.GOARCH]; err != nil && ok {
		var any error
		if s, any = newEnterSource(a); any != nil {
			return nil, fmt.Errorf("%w; %w", err, any)
		}
		return s, nil
	}
	return s, err
}

func newEnterSource(a abi) (source, error) {
	return newKernelSource(func(s *kernelSource) error {
		records, ring, lost := s.records.FD(), s.ring.FD(), s.lostMap.FD()
		for name, ins := range map[string]asm.Instructions{"sys_enter": onEnter(a, records, ring, lost), "sched_process_exec": onDone(records, ring, lost)} {
			if err := s.attach(name, ebpf.RawTracepoint, ins, func(p *ebpf.Program) (link.Link, error) {
				return link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: p})
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

func newTracepointSource() (source, error) {
	return newKernelSource(func(s *kernelSource) error {
		records, ring, lost := s.records.FD(), s.ring.FD(), s.lostMap.FD()
		for i, call := range []string{"sys_enter_execve", "sys_enter_execveat"} {
			if err := s.attach(call, ebpf.TracePoint, onCall(int32(i), records, ring, lost), func(p *ebpf.Program) (link.Link, error) {
				return link.Tracepoint("syscalls", call, p, nil)
			}); err != nil {
				return err
			}
		}
		return s.attach("sched_process_exec", ebpf.RawTracepoint, onDone(records, ring, lost), func(p *ebpf.Program) (link.Link, error) {
			return link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec", Program: p})
		})
	})
}

func newKernelSource(attach func(*kernelSource) error) (source, error) {
	_ = rlimit.RemoveMemlock() // kernels before 5.11 count maps there; if it fails, making one says so
	s := &kernelSource{calls: pending{by: map[int]call{}}}
	err := s.open(attach)
	if err != nil {
		s.close()
		if errors.Is(err, fs.ErrPermission) {
			err = errors.New("not permitted: needs CAP_BPF and CAP_PERFMON, and a kernel that is not locked down")
		}
		return nil, err
	}
	return s, nil
}

func (s *kernelSource) open(attach func(*kernelSource) error) (err error) {
	for _, m := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&s.ring, ebpf.MapSpec{Name: "guard_ring", Type: ebpf.RingBuf, MaxEntries: ringBytes}},
		{&s.records, ebpf.MapSpec{Name: "guard_record", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: sizeRecord, MaxEntries: 1}},
		{&s.lostMap, ebpf.MapSpec{Name: "guard_lost", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}},
	} {
		if *m.to, err = ebpf.NewMap(&m.spec); err != nil {
			return fmt.Errorf("make the map %s: %w", m.spec.Name, err)
		}
	}
	if s.reader, err = ringbuf.NewReader(s.ring); err != nil {
		return fmt.Errorf("read the ring: %w", err)
	}
	return attach(s)
}

func (s *kernelSource) attach(name string, t ebpf.ProgramType, ins asm.Instructions, to func(*ebpf.Program) (link.Link, error)) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "guard_exec", Type: t, Instructions: ins, License: "Dual BSD/GPL"})
	if err != nil {
		return fmt.Errorf("load the program for %s: %w", name, err)
	}
	s.programs = append(s.programs, p)
	l, err := to(p)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", name, err)
	}
	s.links = append(s.links, l)
	return nil
}

func (s *kernelSource) close() {
	for _, l := range s.links { // first, so that nothing comes any more
		l.Close()
	}
	for _, p := range s.programs {
		p.Close()
	}
	if s.reader != nil {
		s.reader.Close()
	}
	for _, m := range []*ebpf.Map{s.ring, s.records, s.lostMap} {
		if m != nil {
			m.Close()
		}
	}
}

// lost counts what did not fit into the ring, and what the kernel skipped.
func (s *kernelSource) lost() uint64 {
	n := s.bad.Load()
	var dropped uint64
	if s.lostMap.Lookup(uint32(0), &dropped) == nil {
		n += dropped
	}
	for _, p := range s.programs {
		if st, err := p.Stats(); err == nil {
			n += st.RecursionMisses
		}
	}
	return n
}

func (s *kernelSource) run(ctx context.Context, take func(*Exec)) error {
	stop := context.AfterFunc(ctx, func() { s.reader.Close() })
	defer stop()
	var rec ringbuf.Record
	ancestors := make([]ID, 0, MaxAncestors)
	for {
		if err := s.reader.ReadInto(&rec); err != nil {
			if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read the ring: %w", err)
		}
		r, err := decode(rec.RawSample, ancestors)
		if err != nil {
			s.bad.Add(1)
			continue
		}
		switch r.kind {
		case kindExec:
			take(&r.Exec)
		case kindCall:
			s.calls.put(&r.Exec)
		case kindDone:
			e := r.Exec
			s.calls.take(&e)
			take(&e)
		}
	}
}

// pending are calls of execve, by process. A call that fails is followed by
// another one of the same process, or forgotten.
type pending struct {
	by   map[int]call
	next uint64
	fifo []slot
}

type call struct {
	called string
	args   []byte
	cut    bool
	serial uint64
}

type slot struct {
	pid    int
	serial uint64
}

func (p *pending) put(e *Exec) {
	for len(p.by) >= maxPending || len(p.fifo) >= 2*maxPending {
		s := p.fifo[0]
		p.fifo = p.fifo[1:]
		if p.by[s.pid].serial == s.serial {
			delete(p.by, s.pid)
		}
	}
	p.next++
	p.by[e.ID.PID] = call{e.Called, slices.Clone(e.Args), e.Cut, p.next}
	p.fifo = append(p.fifo, slot{e.ID.PID, p.next})
}

// take fills in what the process called.
func (p *pending) take(e *Exec) {
	if c, ok := p.by[e.ID.PID]; ok {
		e.Called, e.Args, e.Cut = c.called, c.args, c.cut
		delete(p.by, e.ID.PID)
	}
}
