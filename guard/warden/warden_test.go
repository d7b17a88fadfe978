package warden

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/pipe"
	"github.com/joulegate/joulegate/guard/policy"
)

// The test's own program is the sensors' process too: what it does there, the
// environment says.
func TestMain(m *testing.M) {
	if what := os.Getenv("WARDEN_CHILD"); what != "" {
		child(what)
		return
	}
	os.Exit(m.Run())
}

func child(what string) {
	in, out := bufio.NewReader(os.Stdin), os.NewFile(3, "findings")
	var setup string
	if pipe.Read(in, &setup) != nil || setup != "setup" {
		os.Exit(3)
	}
	now := time.Now()
	_ = pipe.Write(out, pipe.Message{Beat: &pipe.Beat{Coverage: []guard.Coverage{{Sensor: guard.Packet, Level: "ring", Since: now}}}})
	_ = pipe.Write(out, pipe.Message{Finding: &guard.Finding{Rule: guard.ARPSpoof, Severity: guard.High, Subject: guard.Subject{Kind: guard.Host, Value: "192.0.2.7"}, Count: 1, First: now, Last: now}})
	switch what {
	case "panic":
		panic("a frame that nobody expected")
	case "lies":
		_ = pipe.Write(out, map[string]any{"finding": map[string]any{"rule": "charger.on"}})
	case "bomb":
		var all [][]byte
		for {
			b := make([]byte, 8<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
			time.Sleep(50 * time.Millisecond)
			runtime.KeepAlive(all)
			runtime.KeepAlive(out) // a pipe that was collected ends the process before its memory does
		}
	}
	var o pipe.Order
	for pipe.Read(in, &o) == nil {
		_ = pipe.Write(out, pipe.Message{Beat: &pipe.Beat{Coverage: []guard.Coverage{{Sensor: guard.Packet, Level: "ring", Since: now}}}})
	}
	if file := os.Getenv("WARDEN_TIDY"); file != "" { // the gateway has hung up
		time.Sleep(50 * time.Millisecond)
		_ = os.WriteFile(file, nil, 0o600)
	}
}

type memory struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (s *memory) Load(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[name], nil
}

func (s *memory) Save(name string, v []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[name] = v
	return nil
}

// kept is a warden at work and what it has put on record.
type kept struct {
	*Warden
	store   *memory
	records chan guard.Record
	told    chan guard.Finding
	end     func()
}

func keep(t *testing.T, what string, change func(*Config)) *kept {
	t.Helper()
	return keepOn(t, &memory{m: map[string][]byte{}}, what, change)
}

func keepOn(t *testing.T, store *memory, what string, change func(*Config)) *kept {
	t.Helper()
	k := &kept{store: store, records: make(chan guard.Record, 1000), told: make(chan guard.Finding, 1000)}
	c := Config{
		Start: func() *exec.Cmd {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "WARDEN_CHILD="+what)
			return cmd
		},
		Setup: "setup", Charging: func() bool { return true }, Memory: 256 << 20, Store: k.store,
		Append: func(_ context.Context, records []chain.Record) error {
			for _, r := range records {
				var g guard.Record
				if err := chain.Unmarshal(r.Body, &g); err != nil || r.Kind != chain.KindGuard {
					t.Errorf("record of kind %d: %v", r.Kind, err)
				}
				k.records <- g
			}
			return nil
		},
		Tell:   func(f guard.Finding) { k.told <- f },
		Silent: func(p chain.Key) string { return "north" },
		Log:    slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&c)
	}
	var err error
	if k.Warden, err = New(c); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	k.end = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(k.end)
	return k
}

// tells waits for a finding of a rule.
func (k *kept) tells(t *testing.T, rule string) guard.Finding {
	t.Helper()
	limit := time.After(60 * time.Second)
	for {
		select {
		case f := <-k.told:
			if f.Rule == rule {
				return f
			}
		case <-limit:
			t.Fatalf("no finding of %s; %+v", rule, k.Status())
		}
	}
}

func (k *kept) level(s guard.Sensor) string {
	for _, c := range k.Status().Coverage {
		if c.Sensor == s {
			return c.Level
		}
	}
	return ""
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal(what)
		}
	}
}

// Whatever becomes of the sensors' process, the warden goes on, says so, sees
// nothing meanwhile and starts another one.
func TestTheSensorsProcessDies(t *testing.T) {
	for what, why := range map[string]string{"panic": "exit status 2", "bomb": "it took", "lies": "charger.on"} {
		t.Run(what, func(t *testing.T) {
			k := keep(t, what, func(c *Config) {
				if what == "bomb" {
					c.Memory = 96 << 20
				}
			})
			k.tells(t, guard.ARPSpoof)
			f := k.tells(t, guard.GuardCoverage)
			if !strings.Contains(f.Evidence["reason"], why) || f.Evidence["level"] != guard.None {
				t.Errorf("told %v", f.Evidence)
			}
			until(t, "no new process", func() bool { return k.Status().Child.Restarts >= 2 })
		})
	}
	t.Run("kill", func(t *testing.T) {
		k := keep(t, "good", nil)
		until(t, "no coverage", func() bool { return k.level(guard.Packet) == "ring" })
		first := k.Status().Child.PID
		if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if f := k.tells(t, guard.GuardCoverage); !strings.Contains(f.Evidence["reason"], "killed") {
			t.Errorf("told %v", f.Evidence)
		}
		until(t, "no new process", func() bool { s := k.Status(); return s.Child.PID != 0 && s.Child.PID != first })
		until(t, "the new process is not believed", func() bool { return k.level(guard.Packet) == "ring" })
	})
}

// What goes on the ledger names nobody, and matches what the journal keeps.
// TestTheSensorsProcessTidiesUp: when the gateway ends, the process has a
// moment for what it has put into the kernel.
func TestTheSensorsProcessTidiesUp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tidy")
	t.Setenv("WARDEN_TIDY", file)
	k := keep(t, "works", nil)
	k.tells(t, guard.ARPSpoof)
	k.end()
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

// TestWhatTheProcessIsTold: what is exempt, when it changes; that names are
// read anew; whether what goes past them is refused.
func TestWhatTheProcessIsTold(t *testing.T) {
	nets := []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}
	w, err := New(Config{
		Charging: func() bool { return true }, Store: &memory{m: map[string][]byte{}}, Log: slog.New(slog.DiscardHandler),
		Never: func() policy.Never { return policy.Never{Nets: nets} },
	})
	if err != nil {
		t.Fatal(err)
	}
	var told []netip.Prefix
	if o := w.steer(&told); !o.Charging || o.Bypass || o.Reload != 0 || o.Exempt != nil {
		t.Errorf("%+v", o)
	}
	w.spare()
	w.bypass.Store(true)
	if n := w.Reload(); n != 1 {
		t.Errorf("the first reload is number %d", n)
	}
	if o := w.steer(&told); !o.Bypass || o.Reload != 1 || len(o.Exempt) != 1 {
		t.Errorf("%+v", o)
	}
	if o := w.steer(&told); o.Exempt != nil {
		t.Errorf("told again: %v", o.Exempt)
	}
	var fresh []netip.Prefix // a process that was started anew
	if o := w.steer(&fresh); len(o.Exempt) != 1 {
		t.Errorf("%+v", o)
	}
}

func TestARecordNamesNobody(t *testing.T) {
	k := keep(t, "good", nil)
	k.tells(t, guard.ARPSpoof)
	r := <-k.records
	if r.Rule != guard.ARPSpoof || r.Level != "ring" || r.RuleSet == (chain.Hash{}) || strings.Contains(fmt.Sprintf("%+v", r), "192.0.2.7") {
		t.Errorf("%+v", r)
	}
	raw, _ := k.store.Load(sealedKey + "0")
	var sealed guard.Sealed
	if err := chain.Unmarshal(raw, &sealed); err != nil || sealed.Hash() != r.Detail || sealed.Finding.Subject.Value != "192.0.2.7" {
		t.Errorf("kept %+v (%v), the record is of %s", sealed, err, r.Detail)
	}
}

// Evidence of a flood stops filling disks; what is held back is counted.
func TestEvidenceHasALimit(t *testing.T) {
	k := keep(t, "good", nil)
	k.tells(t, guard.ARPSpoof)
	now := time.Now()
	for i := range 600 {
		k.inbox <- pipe.Message{Finding: &guard.Finding{Rule: guard.TCPPortScan, Severity: guard.Medium, Subject: guard.Subject{Kind: guard.Host, Value: fmt.Sprint(i)}, Count: 1, First: now, Last: now}}
	}
	until(t, "nothing is held back", func() bool { return k.Status().HeldBack >= 450 })
	if n := len(k.Status().Findings); n != MaxRecent {
		t.Errorf("%d findings are shown", n)
	}
}

func TestHeartbeatsAndTheirAbsence(t *testing.T) {
	k := keep(t, "good", func(c *Config) { c.Heartbeat = time.Hour })
	seen := map[guard.Sensor]bool{}
	for len(seen) < 4 {
		select {
		case r := <-k.records:
			if r.Rule == guard.GuardHeartbeat {
				seen[r.Sensor] = r.Every == 3600
			}
		case <-time.After(60 * time.Second):
			t.Fatalf("heartbeats of %v", seen)
		}
	}
	// A neighbour whose heartbeat was due long ago.
	w, err := New(k.c)
	if err != nil {
		t.Fatal(err)
	}
	body := chain.NewRecord(chain.KindGuard, guard.Record{Rule: guard.GuardHeartbeat, Severity: guard.Info, Sensor: guard.Load, Every: 10})
	w.Heard(&chain.Signed{Block: chain.Block{Author: chain.Key{1}, Records: []chain.Record{body}}})
	b := <-w.peers
	w.heard[b.peer] = &neighbour{at: 0, every: b.every, said: b.said}
	w.neighbours(80 * time.Second)
	if s := w.Status().Silent; len(s) != 0 {
		t.Errorf("%v is silent too early", s)
	}
	w.neighbours(81 * time.Second)
	w.neighbours(90 * time.Second)
	if f := k.tells(t, guard.GuardSilent); f.Subject.Value != "north" || len(w.Status().Silent) != 1 {
		t.Errorf("%+v, %v", f, w.Status().Silent)
	}
}

// A neighbour that was not heard while this gateway was off is missed all the
// same: by when he has spoken last, or by the gap between what he says.
func TestAGapAcrossARestart(t *testing.T) {
	said := func(ago time.Duration) *chain.Signed {
		at := time.Now().Add(-ago).UnixMilli()
		return &chain.Signed{Block: chain.Block{Author: chain.Key{1}, Records: []chain.Record{
			chain.NewRecord(chain.KindGuard, guard.Record{Rule: guard.GuardHeartbeat, Severity: guard.Info, Sensor: guard.Load, First: at, Last: at, Every: 3600}),
		}}}
	}
	for name, c := range map[string]struct {
		past, next *chain.Signed
		gap        string
	}{
		"still silent":        {said(5 * time.Hour), nil, "5h0m"},
		"here again":          {said(5 * time.Hour), said(time.Second), "4h59m59s"},
		"fetched again":       {said(time.Hour), said(5 * time.Hour), ""},
		"in time":             {said(time.Hour), said(time.Second), ""},
		"not yet to be heard": {said(time.Hour), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := keep(t, "good", nil)
			k.end()
			c0 := k.c
			c0.Past = func(yield func(*chain.Signed) bool) { yield(c.past) }
			c0.Log = slog.New(slog.DiscardHandler)
			w, err := New(c0)
			if err != nil {
				t.Fatal(err)
			}
			w.remember()
			if c.next != nil {
				w.Heard(c.next)
				w.hear(<-w.peers, 0)
			}
			w.neighbours(w.now())
			w.neighbours(w.now())
			var gaps []string
			for _, f := range w.Status().Findings {
				if f.Rule == guard.GuardSilent {
					gaps = append(gaps, f.Evidence["silent_for"])
				}
			}
			if c.gap == "" && len(gaps) > 0 || c.gap != "" && (len(gaps) != 1 || !strings.HasPrefix(gaps[0], c.gap)) {
				t.Errorf("gaps %v, want %q", gaps, c.gap)
			}
		})
	}
}

// What the sensors use of a processor is told, also of those that have ended.
func TestTheSensorsTimeIsTold(t *testing.T) {
	k := keep(t, "good", nil)
	until(t, "no time is told", func() bool { return k.Status().Child.PID != 0 })
	pid := k.Status().Child.PID
	k.end()
	if k.spent <= 0 || k.spent > time.Minute {
		t.Errorf("process %d used %s", pid, k.spent)
	}
	if ownTime(os.Getpid()) <= 0 || ownTime(1<<30) != 0 {
		t.Error("the time of a process cannot be read")
	}
	var s share
	start := time.Now()
	for i := range 100 { // a tenth of a core, then half of one
		used := time.Duration(i) * time.Second
		if i >= 50 {
			used = 50*time.Second + time.Duration(i-50)*5*time.Second
		}
		p := s.add(start.Add(time.Duration(i)*10*time.Second), used)
		if want := map[int]float64{0: 0, 1: 10, 49: 10, 99: 50}[i]; want > 0 && (p < want-0.1 || p > want+0.1) {
			t.Errorf("after %d looks %.2f %%, want %.0f", i, p, want)
		}
	}
}
