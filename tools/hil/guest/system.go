package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loadModules loads the kernel modules that a file names, one a line.
func loadModules(list string) error {
	f, err := os.Open(list)
	if err != nil {
		return err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		m, err := os.Open(lines.Text())
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(m.Fd()), "", 0)
		m.Close()
		// A faster way to do something that this processor has not: another
		// module does it.
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("load %s: %w", lines.Text(), err)
		}
	}
	return nil
}

// openPort opens a virtio console port by its name; udev would make a link.
func openPort(name string) (*os.File, error) {
	for range 100 {
		ports, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			if b, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(b)) == name {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(p)), os.O_RDWR, 0)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, fmt.Errorf("no port %q", name)
}

// address gives an interface an address and brings it up (netdevice(7)).
func address(name, ip string, prefix int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	set := func(request uint, addr []byte) error {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := r.SetInet4Addr(addr); err != nil {
			return err
		}
		return ioctl(s, request, r)
	}
	if err := set(unix.SIOCSIFADDR, net.ParseIP(ip).To4()); err != nil {
		return fmt.Errorf("address of %s: %w", name, err)
	}
	if err := set(unix.SIOCSIFNETMASK, net.CIDRMask(prefix, 32)); err != nil {
		return fmt.Errorf("mask of %s: %w", name, err)
	}
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return ioctl(s, unix.SIOCSIFFLAGS, r)
}

func ioctl(fd int, request uint, r *unix.Ifreq) error {
	//nolint:gosec // G103: the interface of netdevice(7) is a pointer
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(r))); errno != 0 {
		return errno
	}
	return nil
}
