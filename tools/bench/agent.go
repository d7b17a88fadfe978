package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/board/panel"
)

// agent takes a value from running gateways.
type agent struct {
	scene  scene
	metric metric
}

// scene is what runs while /proc is read.
type scene string

const (
	idle    scene = "idle"    // one gateway, a ledger of one, no devices, no guard
	guarded scene = "guarded" // the same with its guard
	metered scene = "metered" // one gateway that reads a simulated SDM630 each second, short slots
	demo    scene = "demo"    // joulegate demo: four gateways, 10 s slots
)

// slot is the settlement interval of the metered scene. A gateway writes per
// slot, and a day has 96 of 900 s: a window of a few short slots tells what a
// day costs.
const slot = 30 * time.Second

// metric is what is read.
type metric func(s sample) float64

// sample is what was seen of a scene, per gateway.
type sample struct {
	rss     float64 // bytes, at the end; of children only what they share with nobody
	cpu     float64 // seconds of processor
	written float64 // bytes handed to the block layer
	kids    float64 // seconds of processor of what it has started: without pins, the guard's sensors
	kidsRSS float64 // bytes that those share with nobody
	over    float64 // seconds
	first   float64 // seconds from start to the first reading
}

func rss(s sample) float64          { return s.rss / 1e6 }
func cpu(s sample) float64          { return 100 * s.cpu / s.over }
func sensors(s sample) float64      { return 100 * s.kids / s.over }
func sensorsRSS(s sample) float64   { return s.kidsRSS / 1e6 }
func written(s sample) float64      { return s.written / 1e3 / s.over * 60 }
func perDay(s sample) float64       { return s.written / 1e6 / s.over * slot.Seconds() * 96 }
func firstReading(s sample) float64 { return s.first }

func (a agent) measure(ctx context.Context, m *measurer) (float64, error) {
	if m.samples == nil {
		m.samples, m.failed = map[scene]sample{}, map[scene]error{}
	}
	if err := m.failed[a.scene]; err != nil {
		return 0, err
	}
	s, ok := m.samples[a.scene]
	if !ok {
		var err error
		if s, err = m.play(ctx, a.scene); err != nil {
			m.failed[a.scene] = err
			return 0, err
		}
		m.samples[a.scene] = s
	}
	return a.metric(s), nil
}

// play runs a scene. What it starts has ended when it returns.
func (m *measurer) play(ctx context.Context, what scene) (s sample, err error) {
	if m.binary == "" {
		path := filepath.Join(m.dir, "joulegate")
		if err := m.build(ctx, path, runtime.GOARCH, ""); err != nil {
			return s, err
		}
		m.binary = path
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(m.dir, &fs); err == nil && fs.Type == tmpfs {
		return s, fmt.Errorf("%s is in memory: set TMPDIR to a folder on a disk", m.dir)
	}
	dir := filepath.Join(m.dir, string(what))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return s, err
	}
	m.say("bench: %s", what)
	settle, window := 15*time.Second, 60*time.Second
	if what == metered {
		window = 4 * slot
	}
	if m.quick {
		settle, window = 5*time.Second, slot
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var pids []int
	switch what {
	case demo:
		state := filepath.Join(dir, "s")
		p, err := m.start(ctx, dir, "demo", "--state", state)
		if err != nil {
			return s, err
		}
		defer p.stop()
		settle += 15 * time.Second // keys, genesis, minting
		if pids, err = demoPIDs(ctx, filepath.Join(state, "demo.json")); err != nil {
			return s, p.explain(err)
		}
	default:
		devices := "lines: []\nmeters: []\n"
		if what == idle {
			devices += "guard:\n  mode: off\n"
		}
		if what == metered {
			line := filepath.Join(dir, "line")
			sim, err := m.start(ctx, dir, "sim", "meter", "--profile", "eastron-sdm630", "--pty", line, "--paced")
			if err != nil {
				return s, err
			}
			defer sim.stop()
			if err := until(ctx, 10*time.Second, func() bool { _, err := os.Stat(line); return err == nil }); err != nil {
				return s, sim.explain(err)
			}
			devices = "lines:\n- id: rs485\n  device: " + line + "\n  baud: 9600\nmeters:\n- id: house\n  line: rs485\n  unit: 1\n  profile: eastron-sdm630\n  role: site\n  interval: 1s\n"
		}
		p, first, err := m.gateway(ctx, dir, devices, what == metered)
		if err != nil {
			return s, err
		}
		defer p.stop()
		s.first, pids = first, []int{p.cmd.Process.Pid}
	}
	if err := pause(ctx, settle); err != nil {
		return s, err
	}
	before, err := readAll(pids)
	if err != nil {
		return s, err
	}
	t0 := time.Now()
	if err := pause(ctx, window); err != nil {
		return s, err
	}
	s.over = time.Since(t0).Seconds()
	after, err := readAll(pids)
	if err != nil {
		return s, err
	}
	n := float64(len(pids))
	s.rss, s.cpu, s.written = after.rss/n, (after.cpu-before.cpu)/n, (after.written-before.written)/n
	s.kids, s.kidsRSS = (after.kids-before.kids)/n, after.kidsRSS/n
	return s, nil
}

// gateway founds a microgrid of one and runs it. It returns the seconds to
// the first reading, or to the first answer when there is nothing to read.
func (m *measurer) gateway(ctx context.Context, dir, devices string, reads bool) (*process, float64, error) {
	port, err := freePort()
	if err != nil {
		return nil, 0, err
	}
	p2p := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)
	config, state := filepath.Join(dir, "joulegate.yaml"), filepath.Join(dir, "s")
	text := "version: 1\nname: bench\nboard: generic\n" + devices + "p2p:\n  listen: [" + p2p + "]\nmqtt:\n  listen: 127.0.0.1:0\npanel:\n  listen: 127.0.0.1:0\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, 0, err
	}
	if _, err := command(ctx, m.binary, "grid", "create", "--config", config, "--state", state, "--advertise", p2p, "--slot", slot.String(), "--grace", "5s"); err != nil {
		return nil, 0, fmt.Errorf("grid create: %w", err)
	}
	t0 := time.Now()
	p, err := m.start(ctx, dir, "run", "--config", config, "--state", state)
	if err != nil {
		return nil, 0, err
	}
	c := panel.Dial(filepath.Join(state, "control.sock"))
	defer c.Close()
	err = until(ctx, 30*time.Second, func() bool {
		if !reads {
			_, err := c.Status(ctx)
			return err == nil
		}
		meters, err := c.Meters(ctx)
		return err == nil && len(meters) > 0 && !meters[0].Time.IsZero()
	})
	if err != nil {
		p.stop()
		return nil, 0, p.explain(err)
	}
	return p, time.Since(t0).Seconds(), nil
}

// process is a program that runs beside the measurement.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

func (m *measurer) start(ctx context.Context, dir string, args ...string) (*process, error) {
	log := filepath.Join(dir, args[0]+".log")
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &process{cmd: exec.CommandContext(ctx, m.binary, args...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 20 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // that it is told to end is not news
		close(p.done)
	}()
	return p, nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// explain adds what the process said last.
func (p *process) explain(err error) error {
	b, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return fmt.Errorf("%w; %s", err, lines[len(lines)-1])
}

// demoPIDs waits until the demo's gateways run and returns their process ids.
func demoPIDs(ctx context.Context, path string) ([]int, error) {
	var pids []int
	err := until(ctx, time.Minute, func() bool {
		b, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		var index struct {
			Gateways []struct {
				PID int `json:"pid"`
			} `json:"gateways"`
		}
		if json.Unmarshal(b, &index) != nil {
			return false
		}
		pids = pids[:0]
		for _, g := range index.Gateways {
			pids = append(pids, g.PID)
		}
		return len(pids) > 0
	})
	return pids, err
}

func readAll(pids []int) (sample, error) {
	var sum sample
	add := func(pid int, memory string, kid float64) error {
		s, err := readProc(pid, memory)
		if err != nil {
			return fmt.Errorf("a gateway ended during the measurement: %w", err)
		}
		sum.rss, sum.cpu, sum.written = sum.rss+s.rss, sum.cpu+s.cpu, sum.written+s.written
		sum.kids, sum.kidsRSS = sum.kids+kid*s.cpu, sum.kidsRSS+kid*s.rss
		return nil
	}
	for _, pid := range pids {
		if err := add(pid, "VmRSS:", 0); err != nil {
			return sum, err
		}
		// The reflex and the guard's sensors are the same program again, and
		// its text is in memory once.
		kids, err := children(pid)
		if err != nil {
			return sum, err
		}
		for _, kid := range kids {
			if err := add(kid, "RssAnon:", 1); err != nil {
				return sum, err
			}
		}
	}
	return sum, nil
}

// children returns the processes that a process has started.
func children(pid int) (kids []int, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	for _, t := range threads {
		b, err := os.ReadFile(t)
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		} else if err != nil {
			return nil, err
		}
		for _, f := range strings.Fields(string(b)) {
			kid, err := strconv.Atoi(f)
			if err != nil {
				return nil, err
			}
			kids = append(kids, kid)
		}
	}
	return kids, nil
}

// tmpfs is the magic number of a file system in memory (linux/magic.h): what
// is written there never reaches a block device.
const tmpfs = 0x01021994

// ticksPerSecond is USER_HZ, which is 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// readProc reads what a process has used (man 5 proc); memory is the line of
// its status that counts.
func readProc(pid int, memory string) (sample, error) {
	var s sample
	read := func(name string) (string, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		return string(b), err
	}
	status, err := read("status")
	if err != nil {
		return s, err
	}
	stat, err := read("stat")
	if err != nil {
		return s, err
	}
	io, err := read("io")
	if err != nil {
		return s, err
	}
	s.rss = 1024 * field(status, memory)
	s.written = field(io, "write_bytes:")
	// After the command's name, which may hold anything but ends with the
	// last parenthesis, utime and stime are fields 14 and 15.
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 || s.rss == 0 {
		return s, errors.New("it has no memory: a zombie")
	}
	for _, ticks := range f[11:13] {
		v, err := strconv.ParseFloat(ticks, 64)
		if err != nil {
			return s, err
		}
		s.cpu += v / ticksPerSecond
	}
	return s, nil
}

// field returns the number after a key at the start of a line.
func field(text, key string) float64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				v, _ := strconv.ParseFloat(f[0], 64)
				return v
			}
		}
	}
	return 0
}

func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func until(ctx context.Context, limit time.Duration, cond func() bool) error {
	for end := time.Now().Add(limit); !cond(); {
		if time.Now().After(end) {
			return fmt.Errorf("nothing within %s", limit)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
