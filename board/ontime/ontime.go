// Package ontime runs one small thing on time, in a program whose other parts
// may be as busy as they like.
//
// A Go timer is late twice over when a program is at its limit: the goroutine
// it wakes waits for a free slot among those that are running (GOMAXPROCS of
// them), and the thread it runs on waits for a processor among all threads of
// the machine. Measured with a ledger burst on two cores: a ticker of 10 ms
// came up to 290 ms late.
//
//	Every ── a thread of its own, real-time priority, sleeps in the kernel
//	Spare ── more slots than processors, so that one is free when it wakes
//
// With both the same load makes it late by 12 ms at most. Real-time priority
// needs CAP_SYS_NICE or LimitRTPRIO=10 in the unit; without it, and without a
// better nice value, the thread is one among others, and Every says so. Against
// other programs of the machine the unit has CPUWeight=1000: the collector
// waits for ordinary threads too.
package ontime

import (
	"context"
	"log/slog"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	priority = 10  // of SCHED_RR, 1 to 99: above everything that is not real-time
	niceness = -15 // if there is no permission for that
)

// Every calls look every so often until ctx ends, from a thread that nothing
// else uses. look must be short: it may keep a processor from everybody.
func Every(ctx context.Context, every time.Duration, look func(), log *slog.Logger) {
	runtime.LockOSThread() // never unlocked: the thread ends with its priority
	urgent(log)
	next := now()
	for ctx.Err() == nil {
		next += every
		if late := now() - next; late > 0 {
			next += late // what was missed is not made up for
		}
		sleepUntil(next)
		look()
	}
}

// Spare lets more goroutines run at once than there are processors, so that
// the kernel, which knows priorities, decides who waits and not Go, which does
// not. It returns what undoes it. Three for each were best of 1.5 to 8: with
// fewer none is free, with more the garbage collector, which stops Every too,
// waits longer until all have stopped.
func Spare() (undo func()) {
	was := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(max(was, 3*runtime.NumCPU()))
	return func() { runtime.GOMAXPROCS(was) }
}

// urgent raises the priority of the calling thread as far as is permitted.
func urgent(log *slog.Logger) {
	rr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Flags: unix.SCHED_FLAG_RESET_ON_FORK, Priority: priority}
	err := unix.SchedSetAttr(0, &rr, 0)
	if err == nil {
		log.Debug("contacts are watched at real-time priority", "priority", priority)
		return
	}
	if niceErr := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), niceness); niceErr != nil {
		log.Warn("contacts are watched at ordinary priority: under load a stop may take longer (LimitRTPRIO=10 in the unit)", "err", err)
	}
}

// now is CLOCK_MONOTONIC: steps of the wall clock do not matter.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("ontime: CLOCK_MONOTONIC: " + err.Error()) // every Linux has it
	}
	return time.Duration(ts.Nano())
}

func sleepUntil(t time.Duration) {
	ts := unix.NsecToTimespec(int64(t))
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) == unix.EINTR { //nolint:errorlint // a plain errno
	}
}
