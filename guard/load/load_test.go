package load

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/guard"
)

const step = 10 * time.Second

// day is a machine that idles, with noise, a nightly backup and updates now
// and then.
type day struct {
	rnd  *rand.Rand
	now  time.Duration
	wall time.Time
	busy time.Duration
}

func newDay(seed uint64) *day {
	return &day{rnd: rand.New(rand.NewPCG(seed, 1)), wall: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
}

// next is the sample after another step at a given extra share of all four
// cores.
func (d *day) next(extra float64) Sample {
	share := 0.03 + 0.02*d.rnd.Float64() + extra
	if d.rnd.IntN(60) == 0 { // every ten minutes a peak
		share += 0.4
	}
	if h := d.now % (24 * time.Hour); h > 3*time.Hour && h < 3*time.Hour+2*time.Minute {
		share += 0.3 // backup
	}
	d.now += step
	d.wall = d.wall.Add(step)
	d.busy += time.Duration(min(1, share) * 4 * float64(step))
	return Sample{Mono: d.now, Wall: d.wall, Cores: 4, Busy: d.busy, MemTotal: 1 << 30, MemAvailable: 1 << 29, MemWaiting: math.NaN(), MilliC: 50_000, DiskTotal: 16e9, DiskFree: 8e9, Written: 1 + uint64(d.now.Seconds()*1000), Binary: "aa"}
}

func rulesOf(all []guard.Finding) []string {
	var ids []string
	for _, f := range all {
		ids = append(ids, f.Rule)
	}
	return ids
}

func TestAnOrdinaryWeekIsQuiet(t *testing.T) {
	seed := rand.Uint64()
	d, det := newDay(seed), NewDetector(Limits{})
	for d.now < 7*24*time.Hour {
		if out := det.Step(d.next(0)); len(out) > 0 {
			t.Fatalf("seed %d, at %s: %+v", seed, d.now, out)
		}
	}
}

func TestALastingRiseIsFoundAndBecomesTheHabit(t *testing.T) {
	for _, extra := range []float64{0.15, 0.5} {
		seed := rand.Uint64()
		d, det := newDay(seed), NewDetector(Limits{})
		for d.now < 48*time.Hour {
			det.Step(d.next(0))
		}
		from, found := d.now, 0
		var after time.Duration
		for d.now < from+6*time.Hour {
			for _, f := range det.Step(d.next(extra)) {
				if f.Rule != guard.LoadCPU {
					t.Fatalf("seed %d: %+v", seed, f)
				}
				found++
				after = d.now - from
			}
		}
		if found != 1 || after > 20*time.Minute {
			t.Errorf("seed %d: a rise by %.0f %% is told %d times, after %s", seed, 100*extra, found, after)
		}
	}
}

func TestAMinerIsFoundByWhatItDoes(t *testing.T) {
	d, det := newDay(1), NewDetector(Limits{})
	var found []guard.Finding
	cpu := map[int]time.Duration{}
	for d.now < time.Hour {
		s := d.next(0.25)
		program := func(pid int, image string, share float64, listed, talks bool) {
			cpu[pid] += time.Duration(share * float64(step))
			s.Programs = append(s.Programs, Program{PID: pid, Start: 100, Image: image, CPU: cpu[pid], Listed: listed, Talks: func() bool { return talks }})
		}
		program(10, "/tmp/.x/kworker", 0.97, false, true)
		program(11, "/usr/bin/joulegate", 0.97, true, true)       // listed
		program(12, "/usr/bin/python3", 0.97, false, false)       // talks to nobody
		program(13, "/usr/bin/apt", 0.3, false, true)             // does not compute much
		if pause := d.now%(8*time.Minute) < time.Minute; !pause { // rests
			program(14, "/usr/bin/gcc", 0.99, false, true)
		} else {
			program(14, "/usr/bin/gcc", 0, false, true)
		}
		found = append(found, det.Step(s)...)
	}
	if len(found) == 0 {
		t.Fatal("not found")
	}
	for _, f := range found {
		if f.Rule != guard.LoadMiner || f.Subject.Value != "10@100" || f.Evidence["image"] != "/tmp/.x/kworker" {
			t.Errorf("%+v", f)
		}
	}
	if len(found) > 6 {
		t.Errorf("told %d times in an hour", len(found))
	}
}

func TestConditionsAreToldOnceAndEnd(t *testing.T) {
	d, det := newDay(2), NewDetector(Limits{WritePerDay: 1e9})
	var told []string
	run := func(n int, change func(*Sample)) {
		for range n {
			s := d.next(0)
			if change != nil {
				change(&s)
			}
			told = append(told, rulesOf(det.Step(s))...)
		}
	}
	expect := func(want ...string) {
		t.Helper()
		if !slices.Equal(told, want) {
			t.Errorf("told %v, want %v", told, want)
		}
		told = nil
	}
	run(3, nil)
	expect()
	run(3, func(s *Sample) { s.MilliC = 85_000 }) // half a minute
	run(3, nil)
	expect()
	run(30, func(s *Sample) { s.MilliC = 85_000 })
	run(3, nil)
	expect(guard.LoadHeat)
	run(5, func(s *Sample) { s.DiskFree = 1e9 })
	run(5, func(s *Sample) { s.DiskFree = 1e8 })
	run(5, nil)
	expect(guard.LoadDisk, guard.LoadDisk) // once more when it is graver
	run(5, func(s *Sample) { s.MemAvailable = 10 << 20 })
	run(5, func(s *Sample) { s.MemWaiting = 40 })
	run(5, nil)
	expect(guard.LoadMemory)
	run(5, func(s *Sample) { s.Throttled = true })
	run(5, nil)
	expect(guard.LoadThrottled)
	d.wall = d.wall.Add(time.Hour)
	run(5, nil)
	expect(guard.LoadClock)
	run(5, func(s *Sample) { s.Binary = "" }) // not looked at
	run(1, func(s *Sample) { s.Binary = "bb" })
	run(5, func(s *Sample) { s.Binary = "" })
	expect(guard.LoadBinary)
	base := uint64(d.now.Seconds() * 1000)
	from := d.now
	run(int(7*time.Hour/step), func(s *Sample) { s.Written = base + uint64((d.now-from).Seconds()*20_000) }) // 1.7 GB a day
	expect(guard.LoadWear)
}

// A machine that slept, a counter that wrapped and a clock in 1970 make no
// panic and no wild finding.
func TestHolesInTime(t *testing.T) {
	d, det := newDay(3), NewDetector(Limits{Learn: time.Minute})
	for range 100 {
		det.Step(d.next(0))
	}
	d.now += 12 * time.Hour
	d.wall = d.wall.Add(12 * time.Hour)
	if out := det.Step(d.next(0)); len(out) > 0 {
		t.Errorf("after a sleep: %+v", out)
	}
	s := d.next(0)
	s.Busy, s.Written = 0, 5
	if out := det.Step(s); len(out) > 0 {
		t.Errorf("after a wrap: %+v", out)
	}
	s = d.next(0)
	s.Wall = time.Unix(0, 0)
	if out := det.Step(s); !slices.Equal(rulesOf(out), []string{guard.LoadClock}) {
		t.Errorf("in 1970: %+v", out)
	}
}

// tree makes files of a machine. A name that ends in "->" is a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file, isLink := strings.CutSuffix(name, "->")
		file = filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if isLink {
			err = os.Symlink(text, file)
		} else {
			err = os.WriteFile(file, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const stat = "cpu  100 0 200 3000 0 0 0 0 0 0\ncpu0 100 0 200 3000 0 0 0 0 0 0\nintr 0\nctxt 0\nbtime 1700000000\nprocesses 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n"

func TestReadsARaspberryPi(t *testing.T) {
	proc := tree(t, map[string]string{
		"stat":            stat,
		"meminfo":         "MemTotal:         948276 kB\nMemFree:          500000 kB\nMemAvailable:     600000 kB\n",
		"pressure/memory": "some avg10=0.00 avg60=12.50 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"77/stat":         "77 (a (b) c) S 1 77 77 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 4242 1000 100 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
		"77/exe->":        "/opt/thing",
		"77/fd/3->":       "socket:[9001]",
		"net/tcp":         "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1F90 070200C0:01BB 01 00000000:00000000 00:00000000 00000000     0        0 9001 1 0000000000000000 100 0 0 10 0\n",
		"net/udp":         "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n",
	})
	sys := tree(t, map[string]string{
		"class/thermal/thermal_zone0/temp":                "61234\n",
		"devices/platform/soc/soc:firmware/get_throttled": "50005\n",
	})
	bin := filepath.Join(t.TempDir(), "joulegate")
	if err := os.WriteFile(bin, []byte("one"), 0o755); err != nil {
		t.Fatal(err)
	}
	m, err := newMachine(Config{Proc: proc, Sys: sys, State: t.TempDir(), Binary: bin, Listed: func(string) bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.look(0, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if s.Busy != 3*time.Second || s.Cores != 1 || s.MemTotal>>10 != 948276 || s.MemWaiting != 12.5 || s.MilliC != 61234 || !s.Throttled || s.DiskTotal == 0 {
		t.Errorf("%+v", s)
	}
	if len(s.Programs) != 1 {
		t.Fatalf("programs %+v", s.Programs)
	}
	if more, _ := m.look(step, time.Unix(10, 0)); more.Programs != nil {
		t.Error("all of /proc is read at every look")
	}
	if p := s.Programs[0]; p.PID != 77 || p.Start != 4242 || p.Image != "/opt/thing" || p.CPU != 2*time.Second || !p.Talks() {
		t.Errorf("%+v, talks %t", p, p.Talks())
	}
	first := s.Binary
	if s, _ = m.look(step, time.Unix(10, 0)); s.Binary != "" || len(first) != 64 {
		t.Errorf("hashes %q, then %q: the file is hashed without need", first, s.Binary)
	}
	os.WriteFile(bin+".new", []byte("two"), 0o755)
	os.Rename(bin+".new", bin)
	if s, _ = m.look(2*step, time.Unix(20, 0)); s.Binary == "" || s.Binary == first {
		t.Errorf("an exchanged program has hash %q", s.Binary)
	}
	// Sensors that start anew know what they were started from.
	ran := filepath.Join(filepath.Dir(bin), "runs")
	if err := os.WriteFile(ran, []byte("one"), 0o755); err != nil {
		t.Fatal(err)
	}
	anew, err := newMachine(Config{Proc: proc, Sys: sys, State: t.TempDir(), Binary: bin, Runs: ran, Listed: func(string) bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	d := NewDetector(Limits{})
	s, _ = anew.look(0, time.Unix(20, 0))
	if f := d.Step(s); !slices.ContainsFunc(f, func(f guard.Finding) bool {
		return f.Rule == guard.LoadBinary && f.Evidence["started_sha256"] == first
	}) {
		t.Errorf("a program that was exchanged before the sensors started: %+v", f)
	}
	os.Remove(bin)
	if s, _ = m.look(3*step, time.Unix(30, 0)); s.Binary != "gone" {
		t.Errorf("a removed program has hash %q", s.Binary)
	}
}

// An eMMC says itself when its reserve goes (JESD84-B51, PRE_EOL_INFO), an SD
// card does not: there only what is written counts. It is told once.
func TestADiskThatWearsOut(t *testing.T) {
	dir := tree(t, map[string]string{"stat": "1 2 3 4 5 6 2048 8 9 10 11\n"})
	m := &machine{device: dir}
	if n, worn := m.writes(); n != 1<<20 || worn {
		t.Errorf("an SD card has %d bytes, worn %t", n, worn)
	}
	for info, want := range map[string]bool{"0x00\n": false, "0x01\n": false, "0x02\n": true, "0x03\n": true, "rubbish": false} {
		m.device = tree(t, map[string]string{"stat": "1 2 3 4 5 6 2048\n", "device/pre_eol_info": info})
		if _, worn := m.writes(); worn != want {
			t.Errorf("%q: worn %t", info, worn)
		}
	}
	d, det := newDay(4), NewDetector(Limits{})
	told := 0
	for range 5000 { // fourteen hours, over which writes are judged twice
		s := d.next(0)
		s.Worn = true
		for _, f := range det.Step(s) {
			if f.Rule != guard.LoadWear || f.Severity != guard.Medium {
				t.Fatalf("%+v", f)
			}
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// On this machine: a few samples of the real /proc see this test, and what
// is missing is named.
func TestRunsOnThisMachine(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	start := time.Now()
	found := make(chan guard.Finding, 100)
	s, err := New(Config{Interval: 5 * time.Millisecond, State: t.TempDir(), Report: func(f guard.Finding) {
		select {
		case found <- f:
		default:
		}
	}, Now: func() time.Duration { return time.Since(start) }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	for s.Coverage().Seen < 3 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c := s.Coverage()
	if c.Lost > 0 || (c.Level == Partial) != (c.Reason != "") {
		t.Errorf("%+v", c)
	}
	s.machine.looks = 0
	sample, err := s.machine.look(0, time.Now())
	if err != nil || !slices.ContainsFunc(sample.Programs, func(p Program) bool { return p.PID == os.Getpid() && p.Image == s.c.Binary && !p.Talks() }) {
		t.Errorf("this test (%d, %s) is not among %d programs, %v", os.Getpid(), s.c.Binary, len(sample.Programs), err)
	}
}

func BenchmarkLook(b *testing.B) {
	s, err := New(Config{State: b.TempDir(), Report: func(guard.Finding) {}, Now: func() time.Duration { return 0 }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		sample, err := s.machine.look(0, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		s.det.Step(sample)
		n = len(sample.Programs)
	}
	b.ReportMetric(float64(n), "programs")
}

func ExampleDetector() {
	d := NewDetector(Limits{})
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	d.Step(Sample{Mono: 0, Wall: at, MemWaiting: math.NaN()})
	for _, f := range d.Step(Sample{Mono: step, Wall: at.Add(time.Hour), MemWaiting: math.NaN()}) {
		fmt.Println(f.Rule, f.Evidence["step"])
	}
	// Output: load.clock_jump 59m50s
}

// What was learned in a day is there after a restart; what cannot be is not
// believed.
func TestAHabitSurvives(t *testing.T) {
	file := filepath.Join(t.TempDir(), "guard", "load.json")
	now := time.Duration(0)
	sensor := func() (*Sensor, *strings.Builder) {
		said := &strings.Builder{}
		s, err := New(Config{State: t.TempDir(), Keep: file, Report: func(guard.Finding) {}, Now: func() time.Duration { now += time.Second; return now }, Log: slog.New(slog.NewTextHandler(said, nil))})
		if err != nil {
			t.Fatal(err)
		}
		return s, said
	}
	s, said := sensor()
	if err := s.once(); err != nil {
		t.Fatal(err)
	}
	s.det.mean, s.det.square, s.det.learned = 0.25, 0.07, 5*time.Hour
	want := s.det.Habit()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := s.Run(ctx); err != nil || said.Len() > 0 {
		t.Fatal(err, said)
	}
	again, said := sensor()
	now = 0 // the next sample comes a second after the boot of the sensor
	if err := again.once(); err != nil {
		t.Fatal(err)
	}
	if h := again.det.Habit(); said.Len() > 0 || h.Learned < want.Learned || h.Mean < 0.2 || h.Mean > 0.3 {
		t.Errorf("kept %+v, read %+v; %s", want, h, said)
	}
	for name, text := range map[string]string{
		"damaged": "{", "of another version": `{"version":2,"cores":1}`, "of another machine": `{"version":1,"cores":4096}`,
		"impossible": fmt.Sprintf(`{"version":1,"cores":%d,"mean":0.9,"square":0.1,"learned_ns":1}`, want.Cores), "endless": strings.Repeat(" ", maxHabit+1),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, said := sensor()
		if err := s.once(); err != nil || !strings.Contains(said.String(), "learned anew") || s.det.learned > time.Minute {
			t.Errorf("a file that is %s: %v, learned %s, said %s", name, err, s.det.learned, said)
		}
	}
}

// A crash while a machine is learned takes ten minutes of it; later the habit
// is written once an hour, because cards wear out.
func TestAHabitIsKeptMoreOftenWhileItIsLearned(t *testing.T) {
	d := NewDetector(Limits{})
	wrote, at := [2]int{}, time.Duration(0)
	for s := newDay(1); s.now < 48*time.Hour; {
		d.Step(s.next(0))
		if d.keepDue(s.now - at) {
			at = s.now
			wrote[s.now/(24*time.Hour+time.Minute)]++
		}
	}
	if wrote[0] < 140 || wrote[1] > 25 {
		t.Errorf("on the first day it was kept %d times, on the second %d", wrote[0], wrote[1])
	}
}

func FuzzHabit(f *testing.F) {
	f.Add(0.5, 0.3, int64(7), 4)
	f.Add(math.NaN(), math.Inf(1), int64(-1), 0)
	f.Fuzz(func(t *testing.T, mean, square float64, learned int64, cores int) {
		d := NewDetector(Limits{})
		if d.Accustom(Habit{habitVersion, cores, mean, square, time.Duration(learned)}, cores) == nil && !(d.mean >= 0 && d.mean <= 1 && d.learned <= d.limits.Learn) {
			t.Errorf("believes %g, %g, %s", d.mean, d.square, d.learned)
		}
	})
}
