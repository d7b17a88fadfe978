package modbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// port is an open serial device or connection.
type port interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
}

// absent reports whether an error of opening says that there is no such
// device now.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

// openTTY opens a serial device for one process at a time: raw, no flow
// control, non-blocking so that deadlines work.
func openTTY(dev string, baud int, f framing) (_ port, err error) {
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case absent(err):
		return nil, fmt.Errorf("open %s: no such device; is the adapter plugged in? (%w)", dev, err)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("open %s: %w; is the user in the group dialout?", dev, err)
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("open %s: in use by another program (%w)", dev, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return nil, fmt.Errorf("open %s: not a serial device", dev)
	}
	// TIOCEXCL keeps other users out, the lock other programs of root.
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("open %s: in use by another program (%w)", dev, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TIOCEXCL, 0); err != nil {
		return nil, fmt.Errorf("open %s: not a serial device (%w)", dev, err)
	}
	cflag := uint32(unix.CS8 | unix.CREAD | unix.CLOCAL | unix.BOTHER)
	if f.parity {
		cflag |= unix.PARENB
	}
	if f.stop2 {
		cflag |= unix.CSTOPB
	}
	t := unix.Termios{Cflag: cflag, Ispeed: uint32(baud), Ospeed: uint32(baud)}
	if f.parity {
		t.Iflag = unix.INPCK // a character with bad parity reads as 0 and fails the checksum
	}
	t.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(fd, unix.TCSETS2, &t); err != nil {
		return nil, fmt.Errorf("set %s to %d baud: %w", dev, baud, err)
	}
	got, err := unix.IoctlGetTermios(fd, unix.TCGETS2)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	// A driver that cannot do what was asked says so only here. A
	// pseudo-terminal has no characters on a wire: parity is lost on it, and
	// nothing is lost with it.
	const frame = unix.CSIZE | unix.PARENB | unix.PARODD | unix.CSTOPB
	if !pseudo(st.Rdev) {
		if got.Cflag&frame != cflag&frame {
			return nil, fmt.Errorf("set %s: the adapter cannot do this framing", dev)
		}
		if d := int(got.Ospeed) - baud; got.Ospeed != 0 && max(d, -d)*50 > baud {
			return nil, fmt.Errorf("set %s to %d baud: the adapter offers %d", dev, baud, got.Ospeed)
		}
	}
	return os.NewFile(uintptr(fd), dev), nil
}

// pseudo reports whether a device number is a pseudo-terminal's (majors
// 136..143, Linux Documentation/admin-guide/devices.txt).
func pseudo(rdev uint64) bool {
	m := unix.Major(rdev)
	return m >= 136 && m <= 143
}

// shortPause is the longest pause that is worth a thread of its own.
const shortPause = 5 * time.Millisecond

// pause sleeps for d, at most shortPause, to within the kernel's timer slack
// of 50 us. The runtime's timers are no use for the silence between frames: an
// idle process waits for them in whole milliseconds, which turns 1.75 ms into
// 2 and costs a tenth of a line at 115200 baud.
func pause(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	for {
		if err := unix.Nanosleep(&t, &t); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// dial connects to a Modbus TCP device or a serial bridge.
func dial(ctx context.Context, addr string, timeout time.Duration) (port, error) {
	d := net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// readNow reads what has already arrived, without waiting for more. It
// returns 0, nil if there is nothing.
func readNow(p port, buf []byte) (int, error) {
	sc, ok := p.(syscall.Conn)
	if !ok { // net.Pipe
		if err := p.SetReadDeadline(time.Now().Add(time.Microsecond)); err != nil {
			return 0, err
		}
		n, err := p.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
		return n, err
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	// An expired deadline would refuse even to look.
	if err := p.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	var n int
	var rerr error
	if err := rc.Read(func(fd uintptr) bool {
		n, rerr = unix.Read(int(fd), buf)
		return true
	}); err != nil {
		return 0, err
	}
	switch {
	case errors.Is(rerr, unix.EAGAIN), errors.Is(rerr, unix.EINTR):
		return 0, nil
	case rerr != nil:
		return 0, rerr
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
