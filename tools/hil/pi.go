package hil

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// GPIO of a Raspberry Pi 3 (BCM2835 ARM peripherals, 6.1).
const (
	piGPIO   = 0x3f200000
	piSelect = piGPIO          // GPFSEL0: three bits a line, ten lines a word; 001 is an output
	piLevel  = piGPIO + 0x0034 // GPLEV0
)

// PiConfig describes a Raspberry Pi 3 with an SD card.
type PiConfig struct {
	Card string // file; its size is a power of two
	Line string // address of a listener of RTU frames: /dev/ttyAMA0, pins 8 and 10 of the header
	// Forward leads from ports of this machine's loopback to ports of the
	// guest, which finds this machine at HostInside.
	Forward map[int]int
	Dir     string // for sockets and for what the machine says
	Name    string
	Echo    io.Writer // gets the console as well; nil: nobody
}

// HostInside is the address at which a guest reaches this machine.
const HostInside = "10.0.2.2"

// Partition is a part of a card, in bytes.
type Partition struct{ Start, Size int64 }

// Partitions reads the table of a card (master boot record).
func Partitions(card string) (p [4]Partition, err error) {
	f, err := os.Open(card)
	if err != nil {
		return p, err
	}
	defer f.Close()
	b := make([]byte, 512)
	if _, err := io.ReadFull(f, b); err != nil {
		return p, fmt.Errorf("table of %s: %w", card, err)
	}
	for i := range p {
		e := b[446+16*i:]
		p[i] = Partition{int64(binary.LittleEndian.Uint32(e[8:])) * 512, int64(binary.LittleEndian.Uint32(e[12:])) * 512}
	}
	return p, nil
}

// onCard is what mtools call the FAT file system of a partition.
func onCard(card string, part int) (string, error) {
	all, err := Partitions(card)
	return fmt.Sprintf("%s@@%d", card, all[part-1].Start), err
}

// BootPi does what the firmware of a Raspberry Pi would, which QEMU has not:
// it takes kernel, device tree, initramfs and command line from the first
// slot of the card and applies the overlays that config.txt names. The console
// is moved from the screen to a UART, the only thing that differs. It returns
// when QEMU runs.
func BootPi(ctx context.Context, cfg PiConfig) (_ *Machine, err error) {
	m := &Machine{cfg: MachineConfig{Name: cfg.Name, Echo: cfg.Echo}, done: make(chan struct{}), more: make(chan struct{})}
	file := func(name string) string { return filepath.Join(cfg.Dir, cfg.Name+"."+name) }
	slot, err := onCard(cfg.Card, 2)
	if err != nil {
		return nil, err
	}
	tool := func(name string, args ...string) error {
		if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tail(string(out)))
		}
		return nil
	}
	take := func(name string) error {
		return tool("mcopy", "-n", "-o", "-i", slot, "::"+name, file(filepath.Base(name)))
	}
	const tree = "bcm2710-rpi-3-b.dtb"
	overlays := []string{}
	for _, name := range []string{"kernel.gz", "initramfs.zst", "cmdline.txt", "config.txt", tree} {
		if err := take(name); err != nil {
			return nil, err
		}
	}
	config, err := os.ReadFile(file("config.txt"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(config)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "dtoverlay=")
		if !ok {
			continue
		}
		if err := take("overlays/" + name + ".dtbo"); err != nil {
			return nil, err
		}
		overlays = append(overlays, file(name+".dtbo"))
	}
	const console = "/soc/serial@7e215040" // the small UART, which no header has
	dtb := file("dtb")
	if err := errors.Join(
		tool("fdtoverlay", append([]string{"-i", file(tree), "-o", dtb}, overlays...)...),
		tool("fdtput", "-t", "s", dtb, console, "status", "okay"),
	); err != nil {
		return nil, err
	}
	cmdline, err := os.ReadFile(file("cmdline.txt"))
	if err != nil {
		return nil, err
	}
	// The emulated USB controller has no fast interrupts, and four emulated
	// processors on two real ones wait for each other.
	line := strings.ReplaceAll(strings.TrimSpace(string(cmdline)), "console=tty1", "console=ttyS0,115200 8250.nr_uarts=1 dwc_otg.fiq_fsm_enable=0 maxcpus=2 "+kernelOptions)

	user := "user,id=lan"
	for host, guest := range cfg.Forward {
		user += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", host, guest)
	}
	if err := os.Remove(file("qmp")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if m.console, err = os.OpenFile(file("console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return nil, err
	}
	if m.qmpLog, err = os.OpenFile(file("qmp.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(cfg.Line)
	if err != nil {
		return nil, err
	}
	// The UART gives its first byte away alone; without nodelay the others wait
	// 40 ms for an acknowledgement, which ends a frame.
	// Not bound to ctx: a scenario ends its machines itself.
	m.cmd = exec.Command("nice", "qemu-system-aarch64", "-M", "raspi3b", "-display", "none", "-no-reboot",
		"-kernel", file("kernel.gz"), "-initrd", file("initramfs.zst"), "-dtb", dtb, "-append", line,
		"-drive", "if=sd,format=raw,file="+cfg.Card,
		"-serial", "tcp:"+net.JoinHostPort(host, port)+",nodelay=on", "-serial", "stdio",
		"-device", "usb-kbd", "-netdev", user, "-device", "usb-net,netdev=lan",
		"-qmp", "unix:"+file("qmp")+",server=on,wait=off")
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	m.cmd.Stdout, m.cmd.Stderr = w, w
	if m.keyboard, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
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
	for {
		if m.qmp, err = dialQMP(file("qmp"), m.qmpLog); err == nil {
			return m, nil
		}
		select {
		case <-m.done:
			return nil, errors.New("QEMU ended at once")
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// PiOutput reads a line of a Raspberry Pi from its registers: whether it is
// an output, and its level.
func (m *Machine) PiOutput(line int) (output, high bool, err error) {
	fn, err := m.Peek(piSelect + 4*uint64(line/10))
	if err != nil {
		return false, false, err
	}
	level, err := m.Peek(piLevel)
	return fn>>(3*(line%10))&7 == 1, level>>line&1 != 0, err
}

// Type writes to the console of a Raspberry Pi, as somebody before it would.
func (m *Machine) Type(text string) error {
	_, err := io.WriteString(m.keyboard, text)
	return err
}

// Press presses keys of the machine's keyboard at once.
func (m *Machine) Press(keys ...string) error {
	type key struct {
		Type string `json:"type"`
		Data string `json:"data"`
	}
	var all []key
	for _, k := range keys {
		all = append(all, key{"qcode", k})
	}
	_, err := m.qmp.do("send-key", map[string]any{"keys": all, "hold-time": 200})
	return err
}
