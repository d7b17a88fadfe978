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
	link string

	mu     sync.Mutex
	master *os.File
	slave  *os.File // kept open, or reading the master would fail between two masters
	name   string
	closed bool // for good
}

// OpenPTY creates a pseudo-terminal in raw mode. link, if not empty, becomes a
// symbolic link to it; an existing link is replaced, any other file is an
// error.
func OpenPTY(link string) (*PTY, error) {
	p := &PTY{}
	if link != "" {
		p.link = filepath.Clean(link)
	}
	if err := p.plug(); err != nil {
		return nil, err
	}
	return p, nil
}

// plug makes the terminal and its link.
func (p *PTY) plug() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return os.ErrClosed
	}
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/ptmx: %w", err)
	}
	p.master = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := p.open(fd); err != nil {
		_ = p.pull()
		return err
	}
	return nil
}

// unplug closes the terminal and removes its link; plug undoes it.
func (p *PTY) unplug() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pull()
}

// pull is unplug with mu held.
func (p *PTY) pull() error {
	var err error
	if p.link != "" {
		// Only our own link: another simulator may have replaced it.
		if to, e := os.Readlink(p.link); e == nil && to == p.name {
			err = os.Remove(p.link)
		}
		p.name = "" // which another terminal may have from now on
	}
	for _, f := range []*os.File{p.master, p.slave} {
		if f == nil {
			continue
		}
		if e := f.Close(); !errors.Is(e, os.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// ends returns the files of the terminal as it is plugged in now.
func (p *PTY) ends() (master, slave *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.master, p.slave
}

func (p *PTY) open(fd int) error {
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
	if p.link == "" {
		return nil
	}
	if st, err := os.Lstat(p.link); err == nil {
		if st.Mode()&os.ModeSymlink == 0 {
			return fmt.Errorf("%s exists and is not a symbolic link", p.link)
		}
		if err := os.Remove(p.link); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(p.name, p.link)
}

// Name is the device to open: the link if there is one.
func (p *PTY) Name() string {
	if p.link != "" {
		return p.link
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.name
}

// Read reads what the master of the bus has sent.
func (p *PTY) Read(b []byte) (int, error) { master, _ := p.ends(); return master.Read(b) }

// Write sends to the master of the bus.
func (p *PTY) Write(b []byte) (int, error) { master, _ := p.ends(); return master.Write(b) }

// SetReadDeadline bounds Read.
func (p *PTY) SetReadDeadline(t time.Time) error {
	master, _ := p.ends()
	return master.SetReadDeadline(t)
}

// share lets the next master open the terminal too. A master may claim it for
// itself (TIOCEXCL), which ends with a real port's last close, but never here:
// the simulator keeps the terminal open.
func (p *PTY) share() {
	_, slave := p.ends()
	if conn, err := slave.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _ = unix.IoctlSetInt(int(fd), unix.TIOCNXCL, 0) })
	}
}

// interrupt makes Read fail now and for ever.
func (p *PTY) interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	_ = p.master.Close()
}

// Speed returns what the bus master has set. TCGETS2 also tells speeds that
// have no constant, and masters that never use one.
func (p *PTY) Speed() (baud, stopBits int, err error) {
	master, _ := p.ends()
	conn, err := master.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var t *unix.Termios
	if e := conn.Control(func(fd uintptr) { t, err = unix.IoctlGetTermios(int(fd), unix.TCGETS2) }); e != nil {
		return 0, 0, e
	}
	if err != nil {
		return 0, 0, fmt.Errorf("settings of %s: %w", p.Name(), err)
	}
	stopBits = 1
	if t.Cflag&unix.CSTOPB != 0 {
		stopBits = 2
	}
	return int(t.Ospeed), stopBits, nil
}

// Close unplugs the device for good: masters get an error, the link goes away.
func (p *PTY) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return p.pull()
}
