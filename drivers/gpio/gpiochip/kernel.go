package gpiochip

import (
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel is all that this package asks of Linux, so that a test can hold the
// exact sequence against what a relay needs.
type kernel interface {
	Chips() ([]string, error) // device files
	Open(path string) (fd int, err error)
	Ioctl(fd int, request uint, arg unsafe.Pointer) error
	Poll(fd int, d time.Duration) (readable bool, err error)
	Read(fd int, b []byte) (int, error)
	Close(fd int) error
}

// What linux/gpio.h has and x/sys/unix does not.
const (
	setConfig = 0xc110b40d // GPIO_V2_LINE_SET_CONFIG_IOCTL

	flagUsed         = 1 << 0
	flagActiveLow    = 1 << 1
	flagInput        = 1 << 2
	flagOutput       = 1 << 3
	flagRising       = 1 << 4
	flagFalling      = 1 << 5
	flagPullUp       = 1 << 8
	flagPullDown     = 1 << 9
	flagBiasDisabled = 1 << 10
)

type linux struct{}

func (linux) Chips() ([]string, error) { return filepath.Glob("/dev/gpiochip*") }

func (linux) Open(path string) (int, error) {
	return unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
}

func (linux) Ioctl(fd int, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

func (linux) Poll(fd int, d time.Duration) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(d/time.Millisecond))
	if err == unix.EINTR { //nolint:errorlint // a plain errno from the system call
		return false, nil
	}
	return n == 1, err
}

func (linux) Read(fd int, b []byte) (int, error) { return unix.Read(fd, b) }

func (linux) Close(fd int) error { return unix.Close(fd) }

// text is a fixed C string of the kernel's.
func text(b [32]byte) string { return unix.ByteSliceToString(b[:]) }
