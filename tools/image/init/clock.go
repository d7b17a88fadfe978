package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/beevik/ntp"
	"golang.org/x/sys/unix"
)

// clockFile's time of change is the last time that was known. A Raspberry Pi
// has no clock that runs without power; with it, time at least never runs
// backwards over a restart.
const clockFile = "/data/log/clock"

// resumeClock sets a clock that is behind what was known last.
func resumeClock() {
	st, err := os.Stat(clockFile)
	if err == nil && time.Now().Before(st.ModTime()) {
		_ = setClock(st.ModTime())
	}
}

// keepClock notes the time, unless nobody knows it.
func keepClock() {
	if time.Now().Year() >= 2025 {
		_ = os.WriteFile(clockFile, nil, 0o600)
		now := time.Now()
		_ = os.Chtimes(clockFile, now, now)
	}
}

func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// Times of the network clock. The kernel lets its own error grow by 0.5 ms a
// second and calls itself unsynchronised at 16 s: an hour leaves it at 2 s.
const (
	clockEvery = time.Hour
	clockRetry = 30 * time.Second
	clockStep  = 128 * time.Millisecond // a larger error is not slewed (RFC 5905, STEPT)
)

// timeServers are asked when neither configuration nor DHCP names any.
var timeServers = []string{"0.pool.ntp.org", "1.pool.ntp.org", "2.pool.ntp.org"}

// keepTime sets the clock by SNTP (RFC 5905, section 14) until ctx ends.
func keepTime(ctx context.Context, servers []string, log *logger) {
	if len(servers) == 0 {
		servers = timeServers
	}
	first := true
	for i := 0; ctx.Err() == nil; i++ {
		wait := clockRetry
		off, err := askTime(servers[i%len(servers)])
		if err == nil {
			err = correct(off)
		}
		if err == nil {
			if first || off.Abs() > clockStep {
				log.printf("init: clock set by %s, it was off by %s", servers[i%len(servers)], off.Round(time.Millisecond))
			}
			first, wait = false, clockEvery
			keepClock()
		} else if i < len(servers) {
			log.printf("init: no time from %s: %v", servers[i%len(servers)], err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func askTime(server string) (time.Duration, error) {
	r, err := ntp.QueryWithOptions(server, ntp.QueryOptions{Timeout: 5 * time.Second})
	if err != nil {
		return 0, err
	}
	return r.ClockOffset, r.Validate()
}

// correct moves the clock and tells the kernel that somebody keeps it.
func correct(off time.Duration) error {
	if off.Abs() > clockStep {
		if err := setClock(time.Now().Add(off)); err != nil {
			return fmt.Errorf("set the clock: %w", err)
		}
	} else if _, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: off.Microseconds()}); err != nil {
		return fmt.Errorf("slew the clock: %w", err)
	}
	_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_STATUS | unix.ADJ_MAXERROR | unix.ADJ_ESTERROR, Maxerror: 100_000, Esterror: 50_000})
	return err
}
