package hil

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/tools/hil/wire"
)

// Base addresses of the PL061 of the machine virt (hw/arm/virt.c of QEMU).
const (
	gpioBase = 0x09030000
	gpioNode = "pl061@9030000"
	gpioData = gpioBase + 0x3fc // GPIODATA with all lines unmasked (ARM DDI 0190, 3.3.1)
	gpioDir  = gpioBase + 0x400 // GPIODIR, 1: output
	guestRAM = "512"            // MB
)

// Pins of the board qemu-virt, as lines of the PL061.
const (
	Relay1 = 0
	Relay2 = 1
	In1    = 2
	In2    = 3
	In3    = 4
	In4    = 5
	Heart1 = 6
)

var lineNames = [...]string{"RELAY1", "RELAY2", "IN1", "IN2", "IN3", "IN4", "HEART1", "SPARE"}

// kernelOptions keep the console readable, and leave out what costs an emulated
// processor a third of its time and protects nothing here: zeroing pages,
// security modules, self tests of ciphers, randomised addresses. A crash ends
// the machine.
const kernelOptions = "quiet loglevel=4 panic=-1 init_on_alloc=0 lsm= audit=0 hardened_usercopy=off randomize_kstack_offset=off cryptomgr.notests nokaslr"

// MachineConfig describes a machine.
type MachineConfig struct {
	Arch     Arch
	Kernel   Kernel
	Initrd   string // file
	Tree     string // file, made by DeviceTree
	Dir      string // for sockets and for what the machine says
	Name     string // of the machine, in its files
	Disk     string // file with an ext4 file system, mounted at /data; empty: none
	Line     string // address of a listener of RTU frames: /dev/ttyUSB0, an FTDI adapter; empty: none
	UART     bool   // the line is /dev/ttyS0 instead, a UART on the PCI bus
	LAN      string // socket of a Hub; empty: no network
	MAC      [6]byte
	Watchdog bool // an i6300esb whose alarm is seen by AwaitEvent("WATCHDOG"), and does nothing
	// OnOutput is called for each change of an output line of the PL061, in
	// order, from one goroutine.
	OnOutput func(line int, high bool, at time.Time)
	Echo     io.Writer // gets the console as well; nil: nobody
}

// Machine is a running guest. It is safe for concurrent use.
type Machine struct {
	cfg      MachineConfig
	cmd      *exec.Cmd
	qmp      *qmp
	qtest    *qtest
	gpio     string // path of the PL061 in QEMU's object tree
	port     net.Conn
	console  *os.File
	keyboard io.Writer // of the console; nil: none
	qmpLog   *os.File
	done     chan struct{} // closed when QEMU has ended

	mu      sync.Mutex
	text    []byte // of the console
	asked   int
	answers map[int]chan wire.Message
	events  []wire.Message
	more    chan struct{} // closed and made anew when there is more text or an event
}

// Boot starts a machine and returns when its init takes requests.
func Boot(ctx context.Context, cfg MachineConfig) (_ *Machine, err error) {
	m := &Machine{cfg: cfg, done: make(chan struct{}), answers: map[int]chan wire.Message{}, more: make(chan struct{})}
	file := func(suffix string) string { return filepath.Join(cfg.Dir, cfg.Name+suffix) }
	for _, s := range []string{".qmp", ".qtest", ".port"} {
		if err := os.Remove(file(s)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if m.console, err = os.OpenFile(file(".console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return nil, err
	}
	if m.qmpLog, err = os.OpenFile(file(".qmp.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return nil, err
	}
	args := append(slices.Clone(cfg.Arch.QEMU[1:]),
		"-m", guestRAM, "-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", cfg.Kernel.Image, "-initrd", cfg.Initrd, "-append", "console="+cfg.Arch.UART+" "+kernelOptions,
		"-serial", "stdio",
		"-qmp", "unix:"+file(".qmp")+",server=on,wait=off",
		"-qtest", "unix:"+file(".qtest")+",server=on,wait=off", "-qtest-log", "none",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=port,server=on,wait=off,path="+file(".port"), "-device", "virtserialport,chardev=port,name=hil")
	switch {
	case cfg.Line == "":
	case cfg.UART:
		args = append(args, "-chardev", chardev("line", cfg.Line), "-device", "pci-serial,chardev=line")
	default:
		args = append(args, "-device", "qemu-xhci", "-chardev", chardev("line", cfg.Line), "-device", "usb-serial,id=ftdi,chardev=line,always-plugged=on")
	}
	if cfg.Disk != "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,file="+cfg.Disk, "-device", "virtio-blk-pci,drive=disk")
	}
	if cfg.LAN != "" {
		args = append(args, "-netdev", "stream,id=lan,server=off,addr.type=unix,addr.path="+cfg.LAN,
			"-device", "virtio-net-pci,netdev=lan,romfile=,mac="+net.HardwareAddr(cfg.MAC[:]).String())
	}
	if cfg.Watchdog {
		args = append(args, "-device", "i6300esb", "-action", "watchdog=none")
	}
	// Not bound to ctx: a scenario kills its machines itself, and when.
	m.cmd = exec.Command(cfg.Arch.QEMU[0], append(args, "-dtb", cfg.Tree)...)
	// It ends with the test at the latest, however that ends.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	m.cmd.Stdout, m.cmd.Stderr = w, w
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	w.Close()
	go m.listen(out)
	go func() {
		_ = m.cmd.Wait()
		close(m.done)
	}()
	defer func() {
		if err != nil {
			m.Kill()
			err = fmt.Errorf("%w; the console said:\n%s", err, tail(m.Console()))
		}
	}()
	if err := m.connect(ctx, file); err != nil {
		return nil, err
	}
	if _, err := m.AwaitGuest(ctx, wire.Ready, ""); err != nil {
		return nil, err
	}
	return m, nil
}

// chardev leads to a listener. A UART gives its first byte away alone; without
// nodelay the others would wait 40 ms for an acknowledgement, which ends a
// frame.
func chardev(id, addr string) string {
	host, port, _ := net.SplitHostPort(addr)
	return "socket,id=" + id + ",host=" + host + ",port=" + port + ",reconnect=1,nodelay=on"
}

// DeviceTree writes the device tree of a machine, with names for its pins and
// without the power button, which holds one of them. What is plugged into the
// machine's PCI bus makes no difference to it.
func DeviceTree(ctx context.Context, path string, a Arch) error {
	dump := append(slices.Clone(a.QEMU), "-m", guestRAM, "-nodefaults", "-display", "none")
	dump[slices.Index(dump, "-M")+1] += ",dumpdtb=" + path
	for _, c := range [][]string{
		dump,
		append([]string{"fdtput", "-t", "s", path, "/" + gpioNode, "gpio-line-names"}, lineNames[:]...),
		{"fdtput", "-r", path, "/gpio-keys"},
	} {
		if out, err := exec.CommandContext(ctx, c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("device tree: %s: %w: %s", c[0], err, tail(string(out)))
		}
	}
	return nil
}

// connect reaches QEMU's sockets, which it makes before the guest runs.
func (m *Machine) connect(ctx context.Context, file func(string) string) error {
	for _, socket := range []string{".port", ".qmp", ".qtest"} {
		for {
			if _, err := os.Stat(file(socket)); err == nil {
				break
			}
			select {
			case <-m.done:
				return errors.New("QEMU ended at once")
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	var err error
	if m.qmp, err = dialQMP(file(".qmp"), m.qmpLog); err != nil {
		return err
	}
	changed := m.cfg.OnOutput
	if changed == nil {
		changed = func(int, bool, time.Time) {}
	}
	if m.qtest, err = dialQTest(file(".qtest"), changed); err != nil {
		return err
	}
	if m.gpio, err = m.find("pl061"); err != nil {
		return err
	}
	if err := m.qtest.do("irq_intercept_out %s", m.gpio); err != nil {
		return err
	}
	if m.port, err = net.Dial("unix", file(".port")); err != nil {
		return err
	}
	go m.hear()
	return nil
}

// find returns the path of a device of the board.
func (m *Machine) find(kind string) (string, error) {
	const board = "/machine/unattached"
	b, err := m.qmp.do("qom-list", map[string]string{"path": board})
	if err != nil {
		return "", err
	}
	var all []struct{ Name, Type string }
	if err := json.Unmarshal(b, &all); err != nil {
		return "", err
	}
	for _, d := range all {
		if strings.Contains(d.Type, kind) {
			return board + "/" + d.Name, nil
		}
	}
	return "", fmt.Errorf("the machine has no %s", kind)
}

// listen keeps what the console says, also what is not a line yet: a prompt.
func (m *Machine) listen(r io.ReadCloser) {
	defer r.Close()
	defer m.console.Close()
	var line []byte // for Echo
	for chunk := make([]byte, 4096); ; {
		n, err := r.Read(chunk)
		b := bytes.ReplaceAll(chunk[:n], []byte{'\r'}, nil)
		_, _ = m.console.Write(b)
		m.mu.Lock()
		m.text = append(m.text, b...)
		m.changed()
		m.mu.Unlock()
		if m.cfg.Echo != nil {
			for line = append(line, b...); ; {
				whole, rest, ok := bytes.Cut(line, []byte{'\n'})
				if !ok {
					break
				}
				fmt.Fprintf(m.cfg.Echo, "%s| %s\n", m.cfg.Name, whole)
				line = rest
			}
		}
		if err != nil {
			return
		}
	}
}

// hear takes the guest's messages.
func (m *Machine) hear() {
	in := json.NewDecoder(m.port)
	for {
		var msg wire.Message
		if err := in.Decode(&msg); err != nil {
			return
		}
		m.mu.Lock()
		if msg.Event != "" {
			m.events = append(m.events, msg)
			m.changed()
		} else if c := m.answers[msg.ID]; c != nil {
			delete(m.answers, msg.ID)
			c <- msg
		}
		m.mu.Unlock()
	}
}

// changed wakes those who wait; mu is held.
func (m *Machine) changed() {
	close(m.more)
	m.more = make(chan struct{})
}

// await waits until look, called with mu held, is true.
func (m *Machine) await(ctx context.Context, what string, look func() bool) error {
	for {
		m.mu.Lock()
		ok, more := look(), m.more
		m.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-more:
		case <-m.done:
			return fmt.Errorf("%s: waiting for %s: the machine has ended", m.cfg.Name, what)
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting for %s: %w", m.cfg.Name, what, ctx.Err())
		}
	}
}

// AwaitConsole waits until the console has said text so many times since the
// machine was booted.
func (m *Machine) AwaitConsole(ctx context.Context, text string, times int) error {
	return m.await(ctx, strconv.Quote(text), func() bool { return bytes.Count(m.text, []byte(text)) >= times })
}

// Console returns what the console has said.
func (m *Machine) Console() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.text)
}

// AwaitGuest returns the next event of a kind, of name if that is not empty,
// and forgets it.
func (m *Machine) AwaitGuest(ctx context.Context, event, name string) (got wire.Message, err error) {
	err = m.await(ctx, strings.TrimSpace(event+" "+name), func() bool {
		for i, e := range m.events {
			if e.Event == event && (name == "" || e.Name == name) {
				got, m.events = e, slices.Delete(m.events, i, i+1)
				return true
			}
		}
		return false
	})
	return got, err
}

// AwaitEvent waits for an event of QEMU's, for example WATCHDOG.
func (m *Machine) AwaitEvent(ctx context.Context, name string) (Event, error) {
	return m.qmp.await(ctx, name)
}

// Do asks the guest for something.
func (m *Machine) Do(ctx context.Context, r wire.Request) (wire.Message, error) {
	answer := make(chan wire.Message, 1)
	m.mu.Lock()
	m.asked++
	r.ID = m.asked
	m.answers[r.ID] = answer
	m.mu.Unlock()
	b, err := json.Marshal(r)
	if err != nil {
		return wire.Message{}, err
	}
	if _, err := m.port.Write(append(b, '\n')); err != nil {
		return wire.Message{}, err
	}
	select {
	case a := <-answer:
		if a.Error != "" {
			return a, fmt.Errorf("%s: %s %s %v: %s", m.cfg.Name, r.Op, r.Name, r.Args, a.Error)
		}
		return a, nil
	case <-m.done:
		return wire.Message{}, fmt.Errorf("%s: %s %v: the machine has ended", m.cfg.Name, r.Op, r.Args)
	case <-ctx.Done():
		return wire.Message{}, fmt.Errorf("%s: %s %v: %w", m.cfg.Name, r.Op, r.Args, ctx.Err())
	}
}

// Input drives an input line of the PL061 from outside.
func (m *Machine) Input(line int, high bool) error {
	level := 0
	if high {
		level = 1
	}
	return m.qtest.do("set_irq_in %s unnamed-gpio-in %d %d", m.gpio, line, level)
}

// Output reads an output line from the PL061's registers: whether it is an
// output at all, and its level.
func (m *Machine) Output(line int) (output, high bool, err error) {
	dir, err := m.Peek(gpioDir)
	if err != nil {
		return false, false, err
	}
	data, err := m.Peek(gpioData)
	return dir>>line&1 != 0, data>>line&1 != 0, err
}

// Peek reads a word of the guest's physical memory.
func (m *Machine) Peek(addr uint64) (uint32, error) {
	b, err := m.qmp.do("human-monitor-command", map[string]string{"command-line": fmt.Sprintf("xp /1wx 0x%x", addr)})
	if err != nil {
		return 0, err
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return 0, err
	}
	_, v, ok := strings.Cut(strings.TrimSpace(s), ": 0x")
	if !ok {
		return 0, fmt.Errorf("xp 0x%x: %q", addr, s)
	}
	n, err := strconv.ParseUint(v, 16, 32)
	return uint32(n), err
}

// Unplug takes the USB adapter out, and Plug puts it back in.
func (m *Machine) Unplug(ctx context.Context) error {
	if _, err := m.qmp.do("device_del", map[string]string{"id": "ftdi"}); err != nil {
		return err
	}
	_, err := m.qmp.await(ctx, "DEVICE_DELETED")
	return err
}

// Plug puts the USB adapter back in.
func (m *Machine) Plug() error {
	_, err := m.qmp.do("device_add", map[string]any{"driver": "usb-serial", "id": "ftdi", "chardev": "line", "always-plugged": true})
	return err
}

// Kill ends the machine as a power cut does: what it had not given to its disk
// is lost.
func (m *Machine) Kill() {
	_ = m.cmd.Process.Kill() // it may have ended
	<-m.done
	m.hangUp()
}

// Done is closed when the machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

func (m *Machine) hangUp() {
	if m.port != nil {
		m.port.Close()
	}
	if m.qtest != nil {
		m.qtest.conn.Close()
	}
	if m.qmp != nil {
		m.qmp.conn.Close()
	}
	m.qmpLog.Close()
}
