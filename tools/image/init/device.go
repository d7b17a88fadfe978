package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// devices gives the gateway's user what it reads and switches, and names
// adapters by what they say of themselves, as udev does elsewhere.
type devices struct {
	log  *logger
	root string // "/", or another in tests
	own  func(path string) error
}

func newDevices(log *logger) *devices {
	d := &devices{log: log, root: "/", own: func(p string) error { return os.Chown(p, gatewayID, gatewayID) }}
	d.scan()
	return d
}

// given are the device files that belong to the gateway.
var given = []string{"gpiochip*", "watchdog*", "ttyUSB*", "ttyACM*", "ttyAMA*", "ttyS*", "ttySC*", "rtc0"}

// scan looks at all there is now.
func (d *devices) scan() {
	for _, pattern := range given {
		found, _ := filepath.Glob(filepath.Join(d.root, "dev", pattern))
		for _, f := range found {
			d.log.problem(d.own(f))
		}
	}
	byID := filepath.Join(d.root, "dev/serial/by-id")
	links, _ := filepath.Glob(filepath.Join(byID, "*"))
	for _, l := range links { // of adapters that have gone
		if _, err := os.Stat(l); err != nil {
			_ = os.Remove(l)
		}
	}
	ports, _ := filepath.Glob(filepath.Join(d.root, "sys/class/tty/tty[UA][SC][BM]*"))
	for _, p := range ports {
		tty := filepath.Base(p)
		// An FTDI adapter waits 16 ms for more bytes before it passes a reply on.
		_ = os.WriteFile(filepath.Join(p, "device/latency_timer"), []byte("1"), 0)
		if name := serialName(p); name != "" && os.MkdirAll(byID, 0o755) == nil {
			if err := os.Symlink("../../"+tty, filepath.Join(byID, name)); err != nil && !errors.Is(err, os.ErrExist) {
				d.log.problem(err)
			}
		}
	}
}

// serialName is the name that udev would give a USB port below
// /dev/serial/by-id; empty if it is not on USB.
func serialName(port string) string {
	at, err := filepath.EvalSymlinks(filepath.Join(port, "device"))
	if err != nil {
		return ""
	}
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(at, name))
		return strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("#+-.:=@_", r) {
				return r
			}
			return '_'
		}, strings.TrimSpace(string(b)))
	}
	iface := ""
	for range 6 { // port, interface, device
		if n := read("bInterfaceNumber"); n != "" {
			iface = n
		}
		if read("idVendor") != "" {
			parts := []string{read("manufacturer"), read("product"), read("serial")}
			if parts[0] == "" {
				parts[0] = read("idVendor")
			}
			if parts[1] == "" {
				parts[1] = read("idProduct")
			}
			if parts[2] == "" {
				parts = parts[:2]
			}
			name := fmt.Sprintf("usb-%s-if%s", strings.Join(parts, "_"), iface)
			if strings.HasPrefix(filepath.Base(port), "ttyUSB") {
				name += "-port0"
			}
			return name
		}
		at = filepath.Dir(at)
	}
	return ""
}

// watch scans again whenever the kernel tells of a device (uevents; netlink(7),
// NETLINK_KOBJECT_UEVENT).
func (d *devices) watch(ctx context.Context) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err == nil {
		err = unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
	}
	if err != nil {
		d.log.printf("init: devices that are plugged in later stay closed: %v", err)
		return
	}
	d.scan() // what came in between
	b := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(s, b, 0)
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			d.log.printf("init: devices that are plugged in later stay closed: %v", err)
			return
		}
		// ENOBUFS: too many to hold; one scan makes up for them.
		if err != nil || strings.Contains(string(b[:n]), "SUBSYSTEM=tty") || strings.Contains(string(b[:n]), "SUBSYSTEM=gpio") || strings.Contains(string(b[:n]), "SUBSYSTEM=watchdog") {
			d.scan()
		}
	}
}
