// Package doctor looks at the computer that a gateway runs on, before and
// after an installer has wired it, and says what is not as it has to be and
// what to do about it.
//
//	Host (files, kernel, clock, pins) + configuration ─► Examine ─► []Check ─► a table, or JSON for a fleet
//
// It looks and changes nothing: no relay moves, no register is read, no file
// is written. Every check stands alone, so that one that fails hides none of
// the others. A check fails if safety, money or metering suffer, warns if
// something works worse than it could, and is skipped with a reason if the
// computer or the configuration has nothing to look at.
package doctor

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
)

// State is how a check ended.
type State string

// States, the gravest first.
const (
	Fail State = "fail"
	Warn State = "warn"
	OK   State = "ok"
	Skip State = "skip"
)

// Check is one thing that was looked at.
type Check struct {
	ID     string `json:"id"` // for scripts; does not change
	State  State  `json:"state"`
	Detail string `json:"detail"`           // what was seen
	Remedy string `json:"remedy,omitempty"` // what to do, if something is to be done
}

// Disk is a file system.
type Disk struct {
	Free, Size uint64 // bytes
	ReadOnly   bool
	Volatile   bool // lost at power-off: tmpfs
}

// Host is the computer. Functions may be nil: then there is nothing to ask.
type Host struct {
	Root     fs.FS // "/": proc, sys, boot, dev
	Kernel   string
	Now      time.Time
	Synced   func() (bool, error) // the kernel says that something keeps its clock right
	Disk     func(path string) (Disk, error)
	Writable func(path string) error // whether the gateway's user may read and write a device
	Pin      func(board.Pin) (holder string, err error)
	RealTime func() error // whether a process may run ahead of others
	Listen   func(network, address string) error
	Gateway  func() (string, error) // asks the running gateway; "" and nil: none runs
}

// Subject is what is examined.
type Subject struct {
	Host       Host
	ConfigPath string
	Config     *config.Config // nil: ConfigErr says why
	ConfigErr  error
	Detected   string // board by the device tree, "": it does not say
	State      string // folder
}

// Examine looks at everything. The order is that of an installer's day.
func Examine(s Subject) []Check {
	e := &exam{Subject: s}
	for _, look := range []func(){
		e.config, e.board, e.kernel, e.memory, e.disk, e.folder, e.clock, e.power,
		e.pins, e.rest, e.realTime, e.serial, e.watchdog, e.ports, e.guard, e.gateway,
	} {
		look()
	}
	return e.out
}

// Passed reports whether no check failed.
func Passed(all []Check) bool {
	return !slices.ContainsFunc(all, func(c Check) bool { return c.State == Fail })
}

type exam struct {
	Subject
	out []Check
}

func (e *exam) say(id string, s State, remedy, format string, args ...any) {
	e.out = append(e.out, Check{id, s, fmt.Sprintf(format, args...), remedy})
}

// text reads a file that may not be there.
func (e *exam) text(path string) string {
	b, err := fs.ReadFile(e.Host.Root, strings.TrimPrefix(path, "/"))
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(b), "\x00\n ")
}

func (e *exam) exists(path string) bool {
	_, err := fs.Stat(e.Host.Root, strings.TrimPrefix(path, "/"))
	return err == nil
}

func (e *exam) config() {
	if e.Config == nil {
		e.say("config", Fail, "joulegate init writes one to start from; joulegate config check names line and path", "%v", e.ConfigErr)
		return
	}
	e.say("config", OK, "", "%s is valid: meters %d, chargers %d, board %s", e.ConfigPath, len(e.Config.Meters), len(e.Config.Chargers), e.Config.Board)
}

func (e *exam) board() {
	model := cmp.Or(e.text("proc/device-tree/model"), "a computer without device tree")
	switch {
	case e.Config == nil:
		e.say("board", Skip, "", "%s; no configuration to compare with", model)
	case e.Detected == "" && e.Config.Board != "generic" && e.Config.Board != "simulated" && e.Config.Board != "gpiochip":
		e.say("board", Fail, "set board: to what this computer is; joulegate board ls lists them", "%s is configured, this is %s", e.Config.Board, model)
	case e.Detected != "" && e.Detected != e.Config.Board && e.Config.Board != "generic" && e.Config.Board != "gpiochip" && e.Config.Board != "simulated":
		e.say("board", Fail, "set board: "+e.Detected, "%s is configured, this is %s (%s): its pins are elsewhere", e.Config.Board, e.Detected, model)
	default:
		e.say("board", OK, "", "%s on %s", e.Config.Board, model)
	}
}

// oldest kernel with the GPIO interface that sets a level without a glitch.
var oldest = [2]int{5, 10}

func (e *exam) kernel() {
	var major, minor int
	if _, err := fmt.Sscanf(e.Host.Kernel, "%d.%d", &major, &minor); err != nil {
		e.say("kernel", Warn, "", "release %q is not understood", e.Host.Kernel)
		return
	}
	if slices.Compare([]int{major, minor}, oldest[:]) < 0 {
		e.say("kernel", Fail, "update the system: GPIO needs Linux 5.10 or newer", "Linux %s", e.Host.Kernel)
		return
	}
	e.say("kernel", OK, "", "Linux %s", e.Host.Kernel)
}

func (e *exam) memory() {
	kb := e.meminfo("MemTotal")
	switch {
	case kb == 0:
		e.say("memory", Skip, "", "/proc/meminfo is not there")
	case kb < 400<<10:
		e.say("memory", Warn, "use a board with 512 MB or more, or guard: {mode: off}", "%d MB", kb>>10)
	default:
		e.say("memory", OK, "", "%d MB, %d MB of it available", kb>>10, e.meminfo("MemAvailable")>>10)
	}
}

func (e *exam) meminfo(key string) int {
	for l := range strings.Lines(e.text("proc/meminfo")) {
		if rest, ok := strings.CutPrefix(l, key+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}

// Free space below which a gateway warns, and below which it is in danger.
const (
	lowDisk  = 2 << 30
	fullDisk = 256 << 20
)

func (e *exam) disk() {
	if e.Host.Disk == nil {
		return
	}
	d, err := e.Host.Disk(e.State)
	switch {
	case err != nil:
		e.say("disk", Fail, "make the state folder, or name another with --state", "%v", err)
	case d.ReadOnly:
		e.say("disk", Fail, "a card that became read-only is usually worn out or was unplugged: replace it, and restore a backup", "%s is mounted read-only", e.State)
	case d.Volatile:
		e.say("disk", Fail, "use a folder on a disk: keys and records in memory are lost with the power", "%s is in memory", e.State)
	case d.Free < fullDisk:
		e.say("disk", Fail, "free space or use a larger card", "%d MB free on %s", d.Free>>20, e.State)
	case d.Free < lowDisk:
		e.say("disk", Warn, "about 100 MB a day are written at most, of which old blocks stay: plan for a larger card", "%d MB free on %s", d.Free>>20, e.State)
	default:
		e.say("disk", OK, "", "%.1f of %.1f GB free on %s", float64(d.Free)/1e9, float64(d.Size)/1e9, e.State)
	}
}

func (e *exam) folder() {
	keys := strings.TrimPrefix(e.State, "/") + "/keys"
	info, err := fs.Stat(e.Host.Root, keys)
	switch {
	case err != nil:
		e.say("keys", Skip, "", "no keys yet in %s: joulegate grid create or grid join makes them", e.State)
	case info.Mode().Perm()&0o077 != 0:
		e.say("keys", Fail, fmt.Sprintf("chmod 700 /%s", keys), "others may look into /%s (mode %#o)", keys, info.Mode().Perm())
	default:
		e.say("keys", OK, "", "/%s is closed to others", keys)
	}
}

func (e *exam) clock() {
	const id = "clock"
	if e.Host.Now.Year() < 2025 {
		e.say(id, Fail, "connect a network with time (NTP) or fit a clock module: nothing is sold before the time is known", "it is %s", e.Host.Now.UTC().Format(time.DateTime))
		return
	}
	rtc := "no hardware clock"
	if e.exists("sys/class/rtc/rtc0") {
		rtc = "with hardware clock"
	}
	synced, err := false, error(nil)
	if e.Host.Synced != nil {
		synced, err = e.Host.Synced()
	}
	switch {
	case err != nil:
		e.say(id, Warn, "", "%v", err)
	case !synced:
		e.say(id, Warn, "timedatectl set-ntp true; without network time the ledger's clock decides", "%s, kept by nobody, %s", e.Host.Now.UTC().Format(time.DateTime), rtc)
	default:
		e.say(id, OK, "", "synchronised, %s", rtc)
	}
}

// power reads what a Raspberry Pi's firmware says of its supply: bit 0 under
// voltage now, bit 16 since boot (vcgencmd get_throttled).
func (e *exam) power() {
	v, err := strconv.ParseUint(e.text("sys/devices/platform/soc/soc:firmware/get_throttled"), 16, 32)
	switch {
	case err != nil:
		e.say("power", Skip, "", "this board does not tell about its supply")
	case v&(1|1<<16) != 0:
		e.say("power", Fail, "use the board's own supply and a short cable; a card written under low voltage is damaged sooner or later", "voltage was too low since it started (%#x)", v)
	case v&(4|1<<18|8|1<<19) != 0:
		e.say("power", Warn, "give it air or a heat sink", "the processor was slowed down by heat (%#x)", v)
	default:
		e.say("power", OK, "", "steady since it started")
	}
}

// used lists the pins that the configuration uses.
func (e *exam) used() (all []board.Pin, err error) {
	if e.Config == nil {
		return nil, nil
	}
	b, err := e.Config.Hardware()
	if err != nil {
		return nil, err
	}
	names := e.Config.Outputs()
	for _, c := range e.Config.Chargers {
		names = append(names, c.EStop, c.Feedback, c.Pilot, c.EarthFault, c.StopButton)
	}
	for _, n := range append(names, e.Config.Dimming.Pin, e.Config.Button) {
		if p, ok := b.Pin(n); ok {
			all = append(all, p)
		}
	}
	return all, nil
}

func (e *exam) pins() {
	used, err := e.used()
	if err != nil {
		e.say("pins", Fail, "joulegate board lines shows what the kernel has", "%v", err)
		return
	}
	if len(used) == 0 || e.Host.Pin == nil {
		e.say("pins", Skip, "", "the configuration uses no pins")
		return
	}
	var found []string
	bad := false
	for _, p := range used {
		if p.Backend != board.BackendChip {
			continue
		}
		holder, err := e.Host.Pin(p)
		switch {
		case err != nil:
			bad = true
			e.say("pins", Fail, "joulegate board lines shows what the kernel has; joulegate board show, what it should be", "%s: %v", p.Name, err)
		case holder != "" && holder != "joulegate":
			bad = true
			e.say("pins", Fail, "stop what holds it, or use another pin", "%s is held by %s", p.Name, holder)
		default:
			found = append(found, p.Name)
		}
	}
	if !bad {
		e.say("pins", OK, "", "found: %s", cmp.Or(strings.Join(found, ", "), "none on a chip"))
	}
}

// rest looks whether relays stay open before the gateway starts and after it
// was killed (Raspberry Pi: firmware and kernel both have a say).
func (e *exam) rest() {
	if !strings.HasPrefix(e.Detected, "raspberrypi") || e.Config == nil || len(e.Config.Outputs()) == 0 {
		e.say("relays_at_rest", Skip, "", "nothing that firmware or kernel could hold")
		return
	}
	driver := "pinctrl_bcm2835"
	if e.Detected == "raspberrypi-5" {
		driver = "pinctrl_rp1"
	}
	ok := true
	if arg := driver + ".persist_gpio_outputs=0"; !strings.Contains(" "+e.text("proc/cmdline")+" ", " "+arg+" ") {
		ok = false
		e.say("relays_at_rest", Fail, "append "+arg+" to /boot/firmware/cmdline.txt and restart", "the kernel may keep a relay closed after the gateway was killed")
	}
	text := e.text("boot/firmware/config.txt") + "\n" + e.text("boot/config.txt")
	b, err := e.Config.Hardware()
	if err != nil {
		return
	}
	var missing []string
	for _, name := range e.Config.Outputs() {
		if p, found := b.Pin(name); found && p.Backend == board.BackendChip && !driven(text, p) {
			missing = append(missing, strconv.Itoa(p.Line))
		}
	}
	if len(missing) > 0 {
		ok = false
		e.say("relays_at_rest", Warn, "add gpio="+strings.Join(missing, ",")+"=op,dl (dh for active-low relays) to /boot/firmware/config.txt", "the firmware leaves outputs %s undriven until Linux runs", strings.Join(missing, ", "))
	}
	if ok {
		e.say("relays_at_rest", OK, "", "open from power-on, and after a kill")
	}
}

// driven tells whether a gpio= line of config.txt holds a pin at its safe
// level: gpio=17,22-23=op,dl.
func driven(text string, p board.Pin) bool {
	want := "dl"
	if p.SafeHigh {
		want = "dh"
	}
	for l := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(l), "gpio=")
		list, set, ok2 := strings.Cut(rest, "=")
		if !ok || !ok2 || !slices.Contains(strings.Split(set, ","), "op") || !slices.Contains(strings.Split(set, ","), want) {
			continue
		}
		for part := range strings.SplitSeq(list, ",") {
			from, to, span := strings.Cut(part, "-")
			lo, err := strconv.Atoi(from)
			hi := lo
			if span {
				var err2 error
				if hi, err2 = strconv.Atoi(to); err2 != nil {
					continue
				}
			}
			if err == nil && lo <= p.Line && p.Line <= hi {
				return true
			}
		}
	}
	return false
}

func (e *exam) realTime() {
	if e.Host.RealTime == nil || e.Config == nil || len(e.Config.Chargers) == 0 {
		e.say("real_time", Skip, "", "no charger")
		return
	}
	if err := e.Host.RealTime(); err != nil {
		e.say("real_time", Warn, "LimitRTPRIO=10 in the unit, as the package has it", "the process that opens relays may not run ahead of others: %v", err)
		return
	}
	e.say("real_time", OK, "", "the process that opens relays may run ahead of others")
}

func (e *exam) serial() {
	if e.Config == nil {
		return
	}
	any := false
	for _, l := range e.Config.Lines {
		if l.Device == "" {
			continue
		}
		any = true
		e.line(l)
	}
	if !any {
		e.say("serial", Skip, "", "no line is a serial device")
	}
}

func (e *exam) line(l config.Line) {
	name := strings.TrimPrefix(l.Device, "/dev/")
	if real, err := fs.ReadLink(e.Host.Root, strings.TrimPrefix(l.Device, "/")); err == nil { // /dev/serial0, /dev/serial/by-id/..
		name = real[strings.LastIndexByte(real, '/')+1:]
	}
	switch {
	case !e.exists(l.Device):
		e.say("serial", Fail, "plug the adapter in; ls /dev/serial/by-id shows what is there", "line %s: %s is not there", l.ID, l.Device)
		return
	case console(e.text("proc/cmdline"), name):
		e.say("serial", Fail, "take console=... out of /boot/firmware/cmdline.txt (raspi-config: serial port, no login shell) and restart", "line %s: the kernel's console is on %s: it would talk to your meters", l.ID, l.Device)
		return
	case name == "ttyAMA0" && e.exists("sys/class/tty/ttyAMA0/device/driver") && e.exists("sys/bus/serial/devices/serial0-0"):
		e.say("serial", Fail, "add dtoverlay=disable-bt to /boot/firmware/config.txt and restart", "line %s: Bluetooth has %s", l.ID, l.Device)
		return
	}
	if e.Host.Writable != nil {
		if err := e.Host.Writable(l.Device); err != nil {
			e.say("serial", Fail, "add the gateway's user to the group dialout: usermod -aG dialout joulegate", "line %s: %v", l.ID, err)
			return
		}
	}
	latency := e.text("sys/class/tty/" + name + "/device/latency_timer")
	if ms, err := strconv.Atoi(latency); err == nil && ms > 1 {
		e.say("serial", Warn, "echo 1 > /sys/class/tty/"+name+"/device/latency_timer (the package's udev rule does it)", "line %s: the adapter waits %d ms before it passes a reply on", l.ID, ms)
		return
	}
	if strings.HasPrefix(l.Device, "/dev/ttyUSB") || strings.HasPrefix(l.Device, "/dev/ttyACM") {
		if others, _ := fs.Glob(e.Host.Root, "dev/tty[UA][SC][BM]*"); len(others) > 1 {
			e.say("serial", Warn, "name it by /dev/serial/by-id/...: numbers change when adapters are plugged in", "line %s: %s is one of %d adapters", l.ID, l.Device, len(others))
			return
		}
	}
	e.say("serial", OK, "", "line %s: %s, %d baud %s", l.ID, l.Device, l.Baud, l.Framing)
}

// console tells whether the kernel's command line has a console on a device.
func console(cmdline, name string) bool {
	for arg := range strings.FieldsSeq(cmdline) {
		rest, ok := strings.CutPrefix(arg, "console=")
		if dev, _, _ := strings.Cut(rest, ","); ok && (dev == name || dev == "serial0" && name == "ttyAMA0") {
			return true
		}
	}
	return false
}

func (e *exam) watchdog() {
	device := ""
	if e.Config != nil {
		device = e.Config.Watchdog.Device
	}
	here, _ := fs.Glob(e.Host.Root, "dev/watchdog*")
	switch {
	case device == "" && len(here) > 0:
		e.say("watchdog", Warn, "watchdog: {device: /dev/watchdog0, timeout: 15s}: if this computer hangs, only it opens the relays", "there is one, and it is not used")
	case device == "":
		e.say("watchdog", Warn, "fit a relay driver that needs a heartbeat (watchdog.heartbeat)", "this computer has none")
	case !e.exists(strings.TrimPrefix(device, "/")):
		e.say("watchdog", Fail, "load its driver (bcm2835_wdt on a Raspberry Pi), or name another", "%s is not there", device)
	default:
		e.say("watchdog", OK, "", "%s, after %s", device, e.Config.Watchdog.Timeout)
	}
}

func (e *exam) ports() {
	if e.Config == nil || e.Host.Listen == nil {
		return
	}
	if who, err := e.gatewayHere(); err == nil && who != "" {
		e.say("ports", Skip, "", "the running gateway has them")
		return
	}
	bad := false
	for _, at := range []struct{ key, addr string }{{"panel.listen", e.Config.Panel.Listen}, {"mqtt.listen", e.Config.MQTT.Listen}} {
		if at.addr == "" {
			continue
		}
		if err := e.Host.Listen("tcp", at.addr); err != nil {
			bad = true
			e.say("ports", Fail, "stop what listens there, or choose another address under "+at.key, "%v", err)
		}
	}
	if !bad {
		e.say("ports", OK, "", "free")
	}
}

func (e *exam) gatewayHere() (string, error) {
	if e.Host.Gateway == nil {
		return "", nil
	}
	return e.Host.Gateway()
}

// guard looks for what its sensors ask of a kernel.
func (e *exam) guard() {
	if e.Config == nil || e.Config.Guard.Mode == "off" {
		e.say("guard", Skip, "", "no guard is configured")
		return
	}
	var lacks []string
	for path, what := range map[string]string{
		"sys/kernel/btf/vmlinux": "type information for eBPF (CONFIG_DEBUG_INFO_BTF); programs are watched by a weaker way",
		"proc/pressure/cpu":      "pressure figures (boot with psi=1)",
	} {
		if !e.exists(path) {
			lacks = append(lacks, what)
		}
	}
	slices.Sort(lacks)
	if len(lacks) > 0 {
		e.say("guard", Warn, "joulegate guard status says how much is covered", "the kernel lacks %s", strings.Join(lacks, "; "))
		return
	}
	e.say("guard", OK, "", "the kernel has what the guard asks for")
}

func (e *exam) gateway() {
	who, err := e.gatewayHere()
	switch {
	case err != nil:
		e.say("gateway", Fail, "journalctl -u joulegate says why", "%v", err)
	case who == "":
		e.say("gateway", Warn, "systemctl start joulegate", "none runs")
	default:
		e.say("gateway", OK, "", "%s", who)
	}
}
