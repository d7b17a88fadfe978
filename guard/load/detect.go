package load

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Thresholds.
const (
	MinerShare  = 0.6              // of one core
	MinerAfter  = 10 * time.Minute // without pause
	HotMilliC   = 80_000           // m°C; a Raspberry Pi slows down there
	CoolMilliC  = 75_000
	HotAfter    = time.Minute
	TightMemory = 20              // of memory available, one part in so many
	WaitPercent = 20.0            // of time in which some program waits for memory, over a minute
	LowDisk     = 10              // of the disk free, one part in so many
	FullDisk    = 33              //
	ClockStep   = 2 * time.Second // of the wall clock against the monotonic one
	Relearn     = time.Hour       // then the new habit is learned
	WearSpan    = 6 * time.Hour   // over which writes are added up

	maxTracked = 64 // programs watched for mining, those that compute most
	maxGap     = 5 * time.Minute

	// CUSUM in standard deviations: below slack nothing is added, more than
	// peak counts as peak, alarm is given at limit. With a sample every 10 s
	// that is two deviations for ten minutes, or any height for three and a
	// half, so that a backup of two minutes passes.
	slack, peak, limit = 1.0, 4.0, 60.0
	leastSpread        = 0.03 // of all cores; a habit is never taken for more exact
	memory             = 0.002
)

// Sample is one look at the machine.
type Sample struct {
	Mono         time.Duration
	Wall         time.Time
	Cores        int
	Busy         time.Duration // CPU time of all cores since boot that was not idle
	Programs     []Program     // nil: not looked at
	MemTotal     uint64        // bytes
	MemAvailable uint64
	MemWaiting   float64 // percent of the last minute (PSI some avg60); NaN: not known
	MilliC       int     // hottest zone; 0: not known
	Throttled    bool
	DiskTotal    uint64 // bytes of the file system that holds the state
	DiskFree     uint64
	Written      uint64 // bytes to its block device since boot; 0: not known
	Worn         bool   // the device says that its reserve is nearly used up
	Binary       string // SHA-256 of the agent's file; empty: not looked at
	Started      string // SHA-256 of what runs, in the first sample, where that is another file
}

// Program is one process of a sample.
type Program struct {
	PID    int
	Start  uint64 // clock ticks after boot: with PID it names the process
	Image  string // path of its executable
	CPU    time.Duration
	Listed bool        // its executable is on the list
	Talks  func() bool // whether it has a connection to another machine; asked only of suspects
}

// Limits are what a machine may do.
type Limits struct {
	Learn       time.Duration // before a rise of the load is told; 24 h
	WritePerDay uint64        // bytes; 5 GB: a 16 GB card of 1,000 cycles lasts eight years
}

// Detector finds what is out of the ordinary. It is a value that Step
// changes; it has no clock and is not safe for concurrent use.
type Detector struct {
	limits Limits
	last   Sample
	some   bool // last is set

	mean, square float64 // of the share of all cores
	learned      time.Duration
	sum          float64
	riseAt       time.Duration

	busy map[id]busy
	// when programs were looked at last
	programsAt time.Duration
	on         map[string]guard.Severity // what is told and goes on
	hotAt      time.Duration
	hot        bool
	binary     string

	wroteAt time.Duration
	wrote   uint64
}

type id struct {
	pid   int
	start uint64
}

type busy struct {
	cpu   time.Duration
	since time.Duration // when it began to compute without pause
	seen  time.Duration
}

// NewDetector returns a detector that has learned nothing.
func NewDetector(l Limits) *Detector {
	if l.Learn == 0 {
		l.Learn = 24 * time.Hour
	}
	if l.WritePerDay == 0 {
		l.WritePerDay = 5e9
	}
	return &Detector{limits: l, busy: map[id]busy{}, on: map[string]guard.Severity{}}
}

// Step takes the next sample and returns what it shows. A condition that goes
// on is told once, and again when it has become graver.
func (d *Detector) Step(s Sample) []guard.Finding {
	var out []guard.Finding
	tell := func(rule string, v guard.Severity, evidence map[string]string) {
		out = append(out, guard.Finding{Rule: rule, Severity: v, Subject: guard.Subject{Kind: guard.Machine}, Count: 1, First: s.Wall, Last: s.Wall, Evidence: evidence})
	}
	// while tells a condition when it begins or grows graver, and forgets it
	// when it is over.
	while := func(rule string, v guard.Severity, holds, over bool, evidence func() map[string]string) {
		switch was := d.on[rule]; {
		case holds && v > was:
			d.on[rule] = v
			tell(rule, v, evidence())
		case over:
			delete(d.on, rule)
		}
	}

	d.memory(s, while)
	d.heat(s, while)
	while(guard.LoadThrottled, guard.Low, s.Throttled, !s.Throttled, func() map[string]string { return map[string]string{} })
	d.disk(s, while)
	if s.Binary != "" {
		if d.binary == "" {
			d.binary = cmp.Or(s.Started, s.Binary)
		}
		while(guard.LoadBinary, guard.Critical, s.Binary != d.binary, s.Binary == d.binary, func() map[string]string {
			return map[string]string{"started_sha256": d.binary, "found_sha256": s.Binary}
		})
	}
	if dt := s.Mono - d.last.Mono; d.some && dt > 0 {
		if step := s.Wall.Sub(d.last.Wall) - dt; step.Abs() > ClockStep {
			tell(guard.LoadClock, guard.Low, map[string]string{"step": step.Round(time.Millisecond).String(), "before": d.last.Wall.UTC().Format(time.RFC3339)})
		}
		if dt <= maxGap { // otherwise the machine slept, and nothing is known of the time between
			d.cpu(s, dt, while)
		}
	}
	if s.Programs != nil {
		out = append(out, d.miners(s)...)
	}
	d.last, d.some = s, true
	d.last.Programs = nil
	return out
}

type teller func(rule string, v guard.Severity, holds, over bool, evidence func() map[string]string)

func (d *Detector) memory(s Sample, while teller) {
	tight := s.MemTotal > 0 && s.MemAvailable < s.MemTotal/TightMemory
	waits := s.MemWaiting >= WaitPercent // false for NaN
	while(guard.LoadMemory, guard.Medium, tight || waits, !tight && !(s.MemWaiting >= WaitPercent/2), func() map[string]string {
		return map[string]string{"available_mb": fmt.Sprint(s.MemAvailable >> 20), "total_mb": fmt.Sprint(s.MemTotal >> 20), "waiting_percent": fmt.Sprintf("%.1f", s.MemWaiting)}
	})
}

func (d *Detector) heat(s Sample, while teller) {
	switch {
	case s.MilliC < HotMilliC:
		d.hot = false
	case !d.hot:
		d.hot, d.hotAt = true, s.Mono
	}
	while(guard.LoadHeat, guard.Medium, d.hot && s.Mono-d.hotAt >= HotAfter, s.MilliC < CoolMilliC, func() map[string]string {
		return map[string]string{"celsius": fmt.Sprintf("%.1f", float64(s.MilliC)/1000)}
	})
}

func (d *Detector) disk(s Sample, while teller) {
	v := guard.Medium
	if s.DiskFree < s.DiskTotal/FullDisk {
		v = guard.High
	}
	low := s.DiskTotal > 0 && s.DiskFree < s.DiskTotal/LowDisk
	while(guard.LoadDisk, v, low, s.DiskFree > s.DiskTotal/(LowDisk-1), func() map[string]string {
		return map[string]string{"free_mb": fmt.Sprint(s.DiskFree >> 20), "total_mb": fmt.Sprint(s.DiskTotal >> 20)}
	})

	while(guard.LoadWear, guard.Medium, s.Worn, false, func() map[string]string {
		return map[string]string{"device": "its reserve of blocks is nearly used up"}
	})
	if s.Written == 0 {
		return
	}
	if d.wrote == 0 || s.Written < d.wrote {
		d.wrote, d.wroteAt = s.Written, s.Mono
		return
	}
	span := s.Mono - d.wroteAt
	if span < WearSpan {
		return
	}
	perDay := float64(s.Written-d.wrote) * float64(24*time.Hour) / float64(span)
	much := perDay > float64(d.limits.WritePerDay)
	while(guard.LoadWear, guard.Low, much, !much && !s.Worn, func() map[string]string {
		return map[string]string{"written_mb_per_day": fmt.Sprintf("%.0f", perDay/1e6), "limit_mb_per_day": fmt.Sprint(d.limits.WritePerDay / 1e6)}
	})
	d.wrote, d.wroteAt = s.Written, s.Mono
}

// cpu learns how much the machine works, and notices when that changes.
func (d *Detector) cpu(s Sample, dt time.Duration, while teller) {
	if s.Cores == 0 || s.Busy < d.last.Busy {
		return
	}
	share := min(1, float64(s.Busy-d.last.Busy)/float64(dt)/float64(s.Cores))
	spread := max(leastSpread, math.Sqrt(max(0, d.square-d.mean*d.mean)))
	ready := d.learned >= d.limits.Learn
	if ready {
		d.sum = max(0, d.sum+min(peak, (share-d.mean)/spread)-slack)
		if d.sum = min(d.sum, 2*limit); d.sum < limit {
			d.riseAt = s.Mono
		}
	}
	holds := ready && d.sum >= limit
	while(guard.LoadCPU, guard.Low, holds, d.sum == 0, func() map[string]string {
		return map[string]string{"share_percent": fmt.Sprintf("%.0f", 100*share), "usual_percent": fmt.Sprintf("%.0f", 100*d.mean)}
	})
	if holds && s.Mono-d.riseAt < Relearn {
		return
	}
	if holds { // it has lasted: this is the habit now
		d.mean, d.square, d.sum = share, share*share, 0
		return
	}
	// Weighted by time, so that a missed sample does not distort the average.
	w := 1 - math.Pow(1-memory, float64(dt)/float64(10*time.Second))
	if d.learned < d.limits.Learn { // plain average first
		w = max(w, float64(dt)/float64(d.learned+dt))
		d.learned += dt
	}
	d.mean += w * (share - d.mean)
	d.square += w * (share*share - d.square)
}

// miners finds programs that compute without pause, are on no list and talk
// to the network.
func (d *Detector) miners(s Sample) []guard.Finding {
	dt := s.Mono - d.programsAt
	d.programsAt = s.Mono
	if dt <= 0 || dt > maxGap {
		clear(d.busy)
		dt = maxGap
	}
	type run struct {
		Program
		id
		used time.Duration
	}
	var runs []run
	for _, p := range s.Programs {
		k := id{p.PID, p.Start}
		was, known := d.busy[k]
		if !known {
			was = busy{cpu: p.CPU, since: s.Mono}
			runs = append(runs, run{p, k, 0})
		} else {
			runs = append(runs, run{p, k, p.CPU - was.cpu})
		}
		if float64(p.CPU-was.cpu) < MinerShare*float64(dt) || p.Listed {
			was.since = s.Mono
		}
		d.busy[k] = busy{cpu: p.CPU, since: was.since, seen: s.Mono}
	}
	for k, b := range d.busy {
		if b.seen != s.Mono {
			delete(d.busy, k)
		}
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(b.used, a.used) })
	for _, r := range runs[min(len(runs), maxTracked):] {
		b := d.busy[r.id]
		b.since = s.Mono
		d.busy[r.id] = b
	}
	var out []guard.Finding
	for _, r := range runs[:min(len(runs), maxTracked)] {
		b := d.busy[r.id]
		if s.Mono-b.since < MinerAfter || r.Talks == nil || !r.Talks() {
			continue
		}
		b.since = s.Mono // told again after another MinerAfter
		d.busy[r.id] = b
		out = append(out, guard.Finding{
			Rule: guard.LoadMiner, Severity: guard.High, Count: 1, First: s.Wall.Add(-MinerAfter), Last: s.Wall,
			Subject:  guard.Subject{Kind: guard.PID, Value: fmt.Sprintf("%d@%d", r.PID, r.Start)},
			Evidence: map[string]string{"image": r.Image, "core_percent": fmt.Sprintf("%.0f", 100*float64(r.used)/float64(dt))},
		})
	}
	return out
}
