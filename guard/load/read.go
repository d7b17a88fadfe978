package load

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// hertz is USER_HZ, in which /proc/PID/stat counts on every architecture
// that this program runs on.
const hertz = 100

// programsEvery so many samples: going through all of /proc is the dearest
// part of a look, and a miner computes for longer.
const programsEvery = 6

// maxPrograms of a sample; a machine with more is told apart by the coverage.
const maxPrograms = 4096

// machine reads samples of a Linux machine. Missing says what it lacks.
type machine struct {
	fs      procfs.FS
	proc    string
	sys     string
	state   string // a path on the file system that holds the state
	exe     string // file of the agent
	runs    string // what runs of it; empty: it was looked at
	device  string // folder under /sys of the block device that holds it
	listed  func(image string) bool
	images  map[id]string
	stamp   string // of the agent's file when it was hashed
	looks   int
	missing []string
}

func newMachine(c Config) (*machine, error) {
	fs, err := procfs.NewFS(c.Proc)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; the load sensor needs it mounted", c.Proc, err)
	}
	m := &machine{fs: fs, proc: c.Proc, sys: c.Sys, state: c.State, exe: c.Binary, runs: c.Runs, listed: c.Listed, images: map[id]string{}}
	if _, err := os.Stat(filepath.Join(c.Proc, "pressure", "memory")); err != nil {
		m.missing = append(m.missing, "memory pressure (boot with psi=1)")
	}
	if m.temperature() == 0 {
		m.missing = append(m.missing, "temperature")
	}
	if m.device = m.blockDevice(); m.device == "" {
		m.missing = append(m.missing, "writes to the disk")
	}
	return m, nil
}

// look takes a sample.
func (m *machine) look(mono time.Duration, wall time.Time) (Sample, error) {
	s := Sample{Mono: mono, Wall: wall, MemWaiting: math.NaN(), MilliC: m.temperature(), Throttled: m.throttled()}
	stat, err := m.fs.Stat()
	if err != nil {
		return s, fmt.Errorf("read %s/stat: %w", m.proc, err)
	}
	t := stat.CPUTotal
	s.Cores = len(stat.CPU)
	s.Busy = seconds(t.User + t.Nice + t.System + t.IRQ + t.SoftIRQ + t.Steal)
	mem, err := m.fs.Meminfo()
	if err != nil {
		return s, fmt.Errorf("read %s/meminfo: %w", m.proc, err)
	}
	s.MemTotal, s.MemAvailable = bytes(mem.MemTotalBytes), bytes(mem.MemAvailableBytes)
	if p, err := m.fs.PSIStatsForResource("memory"); err == nil && p.Some != nil {
		s.MemWaiting = p.Some.Avg60
	}
	var v unix.Statfs_t
	if err := unix.Statfs(m.state, &v); err == nil {
		s.DiskTotal, s.DiskFree = v.Blocks*uint64(v.Bsize), v.Bavail*uint64(v.Bsize)
	}
	s.Written, s.Worn = m.writes()
	if m.looks%programsEvery == 0 {
		s.Programs = m.programs()
	}
	m.looks++
	s.Binary = m.hash()
	if m.runs != "" { // its file may have been exchanged before this process began
		if !sameFile(m.runs, m.exe) {
			s.Started, _ = hashFile(m.runs)
		}
		m.runs = ""
	}
	return s, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func bytes(p *uint64) uint64 {
	if p == nil {
		return 0
	}
	return *p
}

func (m *machine) programs() []Program {
	procs, err := m.fs.AllProcs()
	if err != nil {
		return nil
	}
	seen := make(map[id]string, len(procs))
	out := make([]Program, 0, len(procs))
	for _, p := range procs[:min(len(procs), maxPrograms)] {
		st, err := p.Stat()
		if err != nil {
			continue // it is gone
		}
		k := id{st.PID, st.Starttime}
		image, ok := m.images[k]
		if !ok {
			if image, err = p.Executable(); err != nil || image == "" {
				image = "[" + st.Comm + "]" // a kernel thread
			}
		}
		seen[k] = image
		out = append(out, Program{
			PID: st.PID, Start: st.Starttime, Image: image,
			CPU:    time.Duration(st.UTime+st.STime) * (time.Second / hertz),
			Listed: strings.HasPrefix(image, "[") || m.listed(image),
			Talks:  func() bool { return m.talks(p) },
		})
	}
	m.images = seen
	return out
}

// talks tells whether a process has a connection to another machine.
func (m *machine) talks(p procfs.Proc) bool {
	targets, err := p.FileDescriptorTargets()
	if err != nil {
		return false
	}
	inodes := map[uint64]bool{}
	for _, t := range targets {
		if s, ok := strings.CutPrefix(t, "socket:["); ok {
			if n, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 64); err == nil {
				inodes[n] = true
			}
		}
	}
	away := func(ip net.IP, inode uint64) bool {
		return inodes[inode] && !ip.IsLoopback() && !ip.IsUnspecified()
	}
	//nolint:staticcheck // Deprecated for its cost; here it is asked of suspects only, and needs no permission.
	for _, table := range []func() (procfs.NetTCP, error){m.fs.NetTCP, m.fs.NetTCP6} {
		lines, _ := table()
		for _, l := range lines {
			if away(l.RemAddr, l.Inode) {
				return true
			}
		}
	}
	for _, table := range []func() (procfs.NetUDP, error){m.fs.NetUDP, m.fs.NetUDP6} {
		lines, _ := table()
		for _, l := range lines {
			if away(l.RemAddr, l.Inode) {
				return true
			}
		}
	}
	return false
}

// temperature returns the hottest zone in m°C, or 0.
func (m *machine) temperature() int {
	hottest := 0
	zones, _ := filepath.Glob(filepath.Join(m.sys, "class/thermal/thermal_zone*/temp"))
	for _, z := range zones {
		if n, err := number(z); err == nil && n < 200_000 {
			hottest = max(hottest, n)
		}
	}
	return hottest
}

// throttled asks the Raspberry Pi's firmware: bits 0 to 3 say what holds now
// (under-voltage, capped, throttled, soft limit).
func (m *machine) throttled() bool {
	b, err := os.ReadFile(filepath.Join(m.sys, "devices/platform/soc/soc:firmware/get_throttled"))
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 16, 64)
	return err == nil && n&0xf != 0
}

// blockDevice finds the whole disk under the state folder.
func (m *machine) blockDevice() string {
	var st unix.Stat_t
	if err := unix.Stat(m.state, &st); err != nil {
		return ""
	}
	link := filepath.Join(m.sys, "dev/block", fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "stat")); err != nil {
		return ""
	}
	return dir
}

// writes returns the bytes written since boot (Documentation/block/stat.rst,
// field 7 in units of 512 bytes) and whether an eMMC warns (2 or 3).
func (m *machine) writes() (written uint64, worn bool) {
	if m.device == "" {
		return 0, false
	}
	if b, err := os.ReadFile(filepath.Join(m.device, "stat")); err == nil {
		if f := strings.Fields(string(b)); len(f) > 6 {
			n, _ := strconv.ParseUint(f[6], 10, 64)
			written = n * 512
		}
	}
	if b, err := os.ReadFile(filepath.Join(m.device, "device/pre_eol_info")); err == nil {
		n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 0, 8)
		worn = err == nil && n >= 2
	}
	return written, worn
}

func number(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// hash returns the SHA-256 of the agent's file when it is not the file that
// was hashed last, by what the file system says of it.
func (m *machine) hash() string {
	info, err := os.Stat(m.exe)
	stamp := "gone"
	if err == nil {
		stamp = fmt.Sprint(info.Size(), info.ModTime().UnixNano(), inode(info))
	}
	if stamp == m.stamp {
		return ""
	}
	m.stamp = stamp
	sum, err := hashFile(m.exe)
	if errors.Is(err, os.ErrNotExist) {
		return "gone"
	}
	if err != nil {
		return ""
	}
	return sum
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}

func hashFile(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
