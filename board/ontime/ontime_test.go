package ontime

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestEvery: it looks as often as it was asked to, on a thread of its own with
// raised priority, and the priority ends with it.
func TestEvery(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	looks, tids, classes := 0, map[int]bool{}, map[string]bool{}
	ended := make(chan struct{})
	start := time.Now()
	go func() {
		defer close(ended)
		Every(ctx, 2*time.Millisecond, func() {
			looks++
			tids[unix.Gettid()] = true
			classes[class(unix.Gettid())] = true
			if looks == 50 {
				cancel()
			}
		}, slog.New(slog.DiscardHandler))
	}()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	if took := time.Since(start); looks != 50 || took < 99*time.Millisecond {
		t.Errorf("%d looks in %s", looks, took)
	}
	if len(tids) != 1 {
		t.Errorf("it ran on %d threads", len(tids))
	}
	if os.Geteuid() == 0 && (!classes["2"] || len(classes) != 1) {
		t.Errorf("scheduling classes %v, want SCHED_RR", classes)
	}
	for range 100 { // nobody inherits it
		done := make(chan string)
		go func() { runtime.LockOSThread(); done <- class(unix.Gettid()) }()
		if c := <-done; c == "2" {
			t.Fatal("another goroutine runs at real-time priority")
		}
	}
}

// class is field 41 of stat, the scheduling policy (man 5 proc).
func class(tid int) string {
	b, _ := os.ReadFile("/proc/self/task/" + strconv.Itoa(tid) + "/stat")
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 39 {
		return ""
	}
	return f[38]
}

func TestSpare(t *testing.T) {
	was := runtime.GOMAXPROCS(0)
	undo := Spare()
	if n := runtime.GOMAXPROCS(0); n < 2*runtime.NumCPU() {
		t.Errorf("%d slots on %d processors", n, runtime.NumCPU())
	}
	undo()
	if n := runtime.GOMAXPROCS(0); n != was {
		t.Errorf("%d slots, there were %d", n, was)
	}
}
