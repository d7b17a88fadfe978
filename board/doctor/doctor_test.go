package doctor

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
)

// pi is a Raspberry Pi 4 on which everything is as it should be.
func pi(t *testing.T) (Subject, fstest.MapFS) {
	t.Helper()
	c, err := config.Parse([]byte(`
version: 1
name: north
board: raspberrypi-4
lines: [{id: rs485, device: /dev/ttyAMA0, baud: 9600, framing: 8N1, timeout: 500ms}]
meters:
  - {id: house, line: rs485, unit: 1, profile: eastron-sdm630, role: site}
  - {id: evse1, line: rs485, unit: 2, profile: eastron-sdm630, role: charger}
chargers: [{id: 1, meter: evse1, relay: RELAY1, estop: IN1, max_current_ma: 16000, phases: 3, mode: now, max_switches: 20, offline_limit_wh: 1000}]
watchdog: {device: /dev/watchdog0, timeout: 15s}
guard: {mode: observe, heartbeat: 1h, memory_mb: 96}
`))
	if err != nil {
		t.Fatal(err)
	}
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s), Mode: 0o644} }
	root := fstest.MapFS{
		"proc/device-tree/model":    file("Raspberry Pi 4 Model B Rev 1.5\x00"),
		"proc/cmdline":              file("console=tty1 root=PARTUUID=1 pinctrl_bcm2835.persist_gpio_outputs=0 psi=1\n"),
		"proc/meminfo":              file("MemTotal:        1886532 kB\nMemFree:  100 kB\nMemAvailable:    1500000 kB\n"),
		"proc/pressure/cpu":         file(""),
		"sys/kernel/btf/vmlinux":    file(""),
		"sys/class/rtc/rtc0/name":   file("rtc-ds3231"),
		"boot/firmware/config.txt":  file("[all]\ngpio=17,22-27=op,dl\ndtoverlay=disable-bt\n"),
		"dev/ttyAMA0":               {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o660},
		"dev/watchdog0":             {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o660},
		"var/lib/joulegate/keys":    {Mode: fs.ModeDir | 0o700},
		"sys/class/tty/ttyAMA0/dev": file("204:64"),
		"sys/devices/platform/soc/soc:firmware/get_throttled": file("0\n"),
	}
	s := Subject{ConfigPath: "/etc/joulegate/joulegate.yaml", Config: &c, Detected: "raspberrypi-4", State: "/var/lib/joulegate"}
	s.Host = Host{
		Root: root, Kernel: "6.12.47-v8+", Now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC),
		Synced:   func() (bool, error) { return true, nil },
		Disk:     func(string) (Disk, error) { return Disk{Free: 20e9, Size: 32e9}, nil },
		Writable: func(string) error { return nil },
		Pin:      func(board.Pin) (string, error) { return "", nil },
		RealTime: func() error { return nil },
		Listen:   func(string, string) error { return nil },
		Gateway:  func() (string, error) { return "version 1.0.0", nil },
	}
	return s, root
}

func find(all []Check, id string) Check {
	i := slices.IndexFunc(all, func(c Check) bool { return c.ID == id })
	if i < 0 {
		return Check{}
	}
	return all[i]
}

// TestHealthy: a board on which everything is right passes everything.
func TestHealthy(t *testing.T) {
	s, _ := pi(t)
	for _, c := range Examine(s) {
		if c.State != OK && c.ID != "ports" { // the running gateway has those
			t.Errorf("%+v", c)
		}
	}
}

// TestFindings breaks one thing at a time: the check that is about it speaks,
// with a remedy, and no other changes.
func TestFindings(t *testing.T) {
	healthy, _ := pi(t)
	before := Examine(healthy)
	for name, c := range map[string]struct {
		spoil func(*Subject, fstest.MapFS)
		id    string
		state State
		says  string // in the detail or the remedy
	}{
		"another board":        {func(s *Subject, _ fstest.MapFS) { s.Detected = "raspberrypi-5" }, "board", Fail, "set board: raspberrypi-5"},
		"no board":             {func(s *Subject, _ fstest.MapFS) { s.Detected = "" }, "board", Fail, "Raspberry Pi 4 Model B"},
		"old kernel":           {func(s *Subject, _ fstest.MapFS) { s.Host.Kernel = "5.4.0" }, "kernel", Fail, "5.10"},
		"little memory":        {func(_ *Subject, r fstest.MapFS) { r["proc/meminfo"].Data = []byte("MemTotal: 262144 kB\n") }, "memory", Warn, "256 MB"},
		"card read-only":       {func(s *Subject, _ fstest.MapFS) { s.Host.Disk = disk(Disk{Free: 5e9, ReadOnly: true}) }, "disk", Fail, "worn out"},
		"state in memory":      {func(s *Subject, _ fstest.MapFS) { s.Host.Disk = disk(Disk{Free: 5e9, Volatile: true}) }, "disk", Fail, "lost with the power"},
		"disk full":            {func(s *Subject, _ fstest.MapFS) { s.Host.Disk = disk(Disk{Free: 1e6}) }, "disk", Fail, "0 MB free"},
		"disk getting full":    {func(s *Subject, _ fstest.MapFS) { s.Host.Disk = disk(Disk{Free: 1e9}) }, "disk", Warn, "953 MB free"},
		"open keys":            {func(_ *Subject, r fstest.MapFS) { r["var/lib/joulegate/keys"].Mode = fs.ModeDir | 0o755 }, "keys", Fail, "chmod 700 /var/lib/joulegate/keys"},
		"1970":                 {func(s *Subject, _ fstest.MapFS) { s.Host.Now = time.Unix(100, 0) }, "clock", Fail, "1970"},
		"clock kept by nobody": {func(s *Subject, _ fstest.MapFS) { s.Host.Synced = func() (bool, error) { return false, nil } }, "clock", Warn, "set-ntp"},
		"low voltage": {func(_ *Subject, r fstest.MapFS) {
			r["sys/devices/platform/soc/soc:firmware/get_throttled"].Data = []byte("50005\n")
		}, "power", Fail, "voltage"},
		"pin gone":             {func(s *Subject, _ fstest.MapFS) { s.Host.Pin = pin("", errors.New("no chip")) }, "pins", Fail, "RELAY1: no chip"},
		"pin held":             {func(s *Subject, _ fstest.MapFS) { s.Host.Pin = pin("sysfs", nil) }, "pins", Fail, "held by sysfs"},
		"relay kept by kernel": {func(_ *Subject, r fstest.MapFS) { r["proc/cmdline"].Data = []byte("console=tty1\n") }, "relays_at_rest", Fail, "pinctrl_bcm2835.persist_gpio_outputs=0"},
		"relay undriven": {func(_ *Subject, r fstest.MapFS) {
			r["boot/firmware/config.txt"].Data = []byte("gpio=22-27=op,dl\ngpio=17=op,dh\n")
		}, "relays_at_rest", Warn, "gpio=17=op,dl"},
		"no real time": {func(s *Subject, _ fstest.MapFS) { s.Host.RealTime = func() error { return errors.New("limit 0") } }, "real_time", Warn, "LimitRTPRIO"},
		"adapter gone": {func(_ *Subject, r fstest.MapFS) { delete(r, "dev/ttyAMA0") }, "serial", Fail, "/dev/ttyAMA0 is not there"},
		"console on the line": {func(_ *Subject, r fstest.MapFS) {
			r["proc/cmdline"].Data = append(r["proc/cmdline"].Data, " console=serial0,115200"...)
		}, "serial", Fail, "talk to your meters"},
		"bluetooth on the line": {func(_ *Subject, r fstest.MapFS) {
			r["sys/bus/serial/devices/serial0-0/modalias"], r["sys/class/tty/ttyAMA0/device/driver/x"] = &fstest.MapFile{}, &fstest.MapFile{}
		}, "serial", Fail, "disable-bt"},
		"serial not permitted": {func(s *Subject, _ fstest.MapFS) {
			s.Host.Writable = func(string) error { return errors.New("may not") }
		}, "serial", Fail, "dialout"},
		"slow adapter": {func(_ *Subject, r fstest.MapFS) {
			r["sys/class/tty/ttyAMA0/device/latency_timer"] = &fstest.MapFile{Data: []byte("16\n")}
		}, "serial", Warn, "16 ms"},
		"watchdog gone":       {func(_ *Subject, r fstest.MapFS) { delete(r, "dev/watchdog0") }, "watchdog", Fail, "bcm2835_wdt"},
		"watchdog unused":     {func(s *Subject, _ fstest.MapFS) { s.Config.Watchdog.Device = "" }, "watchdog", Warn, "watchdog: {device: /dev/watchdog0"},
		"no type information": {func(_ *Subject, r fstest.MapFS) { delete(r, "sys/kernel/btf/vmlinux") }, "guard", Warn, "BTF"},
		"no gateway":          {func(s *Subject, _ fstest.MapFS) { s.Host.Gateway = func() (string, error) { return "", nil } }, "gateway", Warn, "systemctl start"},
		"silent gateway": {func(s *Subject, _ fstest.MapFS) {
			s.Host.Gateway = func() (string, error) { return "", errors.New("timeout") }
		}, "gateway", Fail, "journalctl"},
	} {
		t.Run(name, func(t *testing.T) {
			s, root := pi(t)
			c.spoil(&s, root)
			after := Examine(s)
			got := find(after, c.id)
			if got.State != c.state || got.Remedy == "" || !strings.Contains(got.Detail+" "+got.Remedy, c.says) {
				t.Errorf("got %+v, want %s saying %q", got, c.state, c.says)
			}
			if Passed(after) != (c.state != Fail) {
				t.Errorf("passed: %t", Passed(after))
			}
			for _, b := range before {
				if b.ID != c.id && b.ID != "ports" && b.ID != "relays_at_rest" && find(after, b.ID) != b {
					t.Errorf("%s changed too: %+v", b.ID, find(after, b.ID))
				}
			}
		})
	}
}

func disk(d Disk) func(string) (Disk, error) { return func(string) (Disk, error) { return d, nil } }
func pin(holder string, err error) func(board.Pin) (string, error) {
	return func(board.Pin) (string, error) { return holder, err }
}

// TestNamedLines: a line may be named by a link, and need not be in /dev.
func TestNamedLines(t *testing.T) {
	for _, device := range []string{"/dev/serial0", "/run/lines/rs485"} {
		s, root := pi(t)
		s.Config.Lines[0].Device = device
		root[strings.TrimPrefix(device, "/")] = &fstest.MapFile{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o660}
		if c := find(Examine(s), "serial"); c.State != OK {
			t.Errorf("%s: %+v", device, c)
		}
		s.Config.Lines[0].Device = device + "x"
		if c := find(Examine(s), "serial"); c.State != Fail {
			t.Errorf("%sx: %+v", device, c)
		}
	}
}

// TestTakenPort is told while no gateway runs.
func TestTakenPort(t *testing.T) {
	s, _ := pi(t)
	s.Host.Gateway = func() (string, error) { return "", nil }
	s.Host.Listen = func(_, a string) error { return errors.New(a + ": in use") }
	if c := find(Examine(s), "ports"); c.State != Fail || !strings.Contains(c.Remedy, "listen") {
		t.Errorf("%+v", c)
	}
}

// TestNoConfiguration: without one, the computer is examined all the same.
func TestNoConfiguration(t *testing.T) {
	s, _ := pi(t)
	s.Config, s.ConfigErr = nil, errors.New("open /etc/joulegate/joulegate.yaml: no such file")
	all := Examine(s)
	if c := find(all, "config"); c.State != Fail || !strings.Contains(c.Remedy, "init") {
		t.Errorf("%+v", c)
	}
	if c := find(all, "disk"); c.State != OK {
		t.Errorf("%+v", c)
	}
}
