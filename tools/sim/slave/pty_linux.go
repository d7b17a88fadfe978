package slave

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// PTY is a pseudo-terminal. The simulator holds its master side; a gateway
// opens Name as if it were a serial port.
type PTY struct {
	master *os.File
	slave  *os.File // kept open, or reading the master would fail between two masters
	name   string
	link   string
	once   sync.Once
}

// OpenPTY creates a pseudo-terminal in raw mode. link, if not empty, becomes a
// symbolic link to it; an existing link is replaced, any other file is an
// error.
func OpenPTY(link string) (*PTY, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	p := &PTY{master: os.NewFile(uintptr(fd), "/dev/ptmx")}
	if err := p.open(fd, link); err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

func (p *PTY) open(fd int, link string) error {
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("number of the pseudo-terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock the pseudo-terminal: %w", err)
	}
	p.name = "/dev/pts/" + strconv.Itoa(n)
	if p.slave, err = os.OpenFile(p.name, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return err
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("settings of %s: %w", p.name, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B9600
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return fmt.Errorf("settings of %s: %w", p.name, err)
	}
	if link == "" {
		return nil
	}
	if st, err := os.Lstat(link); err == nil {
		if st.Mode()&os.ModeSymlink == 0 {
			return fmt.Errorf("%s exists and is not a symbolic link", link)
		}
		if err := os.Remove(link); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(p.name, link); err != nil {
		return err
	}
	p.link = filepath.Clean(link)
	return nil
}

// Name is the device to open: the link if there is one.
func (p *PTY) Name() string {
	if p.link != "" {
		return p.link
	}
	return p.name
}

// Read reads what the master of the bus has sent.
func (p *PTY) Read(b []byte) (int, error) { return p.master.Read(b) }

// Write sends to the master of the bus.
func (p *PTY) Write(b []byte) (int, error) { return p.master.Write(b) }

// SetReadDeadline bounds Read.
func (p *PTY) SetReadDeadline(t time.Time) error { return p.master.SetReadDeadline(t) }

// share lets the next master open the terminal too. A master may claim it for
// itself (TIOCEXCL), which ends with a real port's last close, but never here:
// the simulator keeps the terminal open.
func (p *PTY) share() {
	if conn, err := p.slave.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _ = unix.IoctlSetInt(int(fd), unix.TIOCNXCL, 0) })
	}
}

// interrupt makes Read fail now and for ever.
func (p *PTY) interrupt() { _ = p.master.Close() }

// Speed returns what the bus master has set. TCGETS2 also tells speeds that
// have no constant, and masters that never use one.
func (p *PTY) Speed() (baud, stopBits int, err error) {
	conn, err := p.master.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var t *unix.Termios
	if e := conn.Control(func(fd uintptr) { t, err = unix.IoctlGetTermios(int(fd), unix.TCGETS2) }); e != nil {
		return 0, 0, e
	}
	if err != nil {
		return 0, 0, fmt.Errorf("settings of %s: %w", p.name, err)
	}
	stopBits = 1
	if t.Cflag&unix.CSTOPB != 0 {
		stopBits = 2
	}
	return int(t.Ospeed), stopBits, nil
}

// Close unplugs the device: masters get an error, the link goes away.
func (p *PTY) Close() error {
	var err error
	p.once.Do(func() {
		if p.link != "" {
			// Only our own link: another simulator may have replaced it.
			if to, e := os.Readlink(p.link); e == nil && to == p.name {
				err = os.Remove(p.link)
			}
		}
		if e := p.master.Close(); !errors.Is(e, os.ErrClosed) {
			err = errors.Join(err, e)
		}
		if p.slave != nil {
			err = errors.Join(err, p.slave.Close())
		}
	})
	return err
}
