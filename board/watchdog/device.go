package watchdog

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// device is what a watchdog driver of Linux answers to
// (Documentation/watchdog/watchdog-api.rst).
type device interface {
	Info() (*unix.WatchdogInfo, error)
	SetTimeout(seconds int) error
	Timeout() (seconds int, err error)
	KeepAlive() error
	Write(b []byte) (int, error)
	Close() error
}

// Device returns an opener of a hardware watchdog, for example /dev/watchdog0.
// Opening it arms it.
func Device(path string, timeout time.Duration) func() (Dog, time.Duration, error) {
	return func() (Dog, time.Duration, error) {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		switch {
		case errors.Is(err, unix.EBUSY):
			return nil, 0, fmt.Errorf("watchdog %s: %w: somebody feeds it already; leave RuntimeWatchdogSec= of systemd empty", path, err)
		case errors.Is(err, fs.ErrNotExist):
			return nil, 0, fmt.Errorf("watchdog %s: %w: load its driver, or take watchdog.device out of the configuration", path, err)
		case err != nil:
			return nil, 0, fmt.Errorf("watchdog %s: %w", path, err)
		}
		return arm(linux(fd), path, timeout)
	}
}

// arm sets the time-out of an open watchdog. If that fails it is disarmed
// again, so that a wrong configuration does not reset the board for ever.
func arm(d device, path string, timeout time.Duration) (_ Dog, _ time.Duration, err error) {
	h := &hardware{d: d, path: path}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("watchdog %s: %w", path, err), h.Close(true))
		}
	}()
	info, err := d.Info()
	if err != nil {
		return nil, 0, err
	}
	h.magic = info.Options&unix.WDIOF_MAGICCLOSE != 0
	want := int(timeout / time.Second)
	if err := d.SetTimeout(want); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOTTY) {
		return nil, 0, fmt.Errorf("%s does not do %d s: %w (the processor of a Raspberry Pi does at most 15)", unix.ByteSliceToString(info.Identity[:]), want, err)
	}
	has, err := d.Timeout()
	if err != nil {
		return nil, 0, err
	}
	if has < 2 || has > 2*want {
		return nil, 0, fmt.Errorf("%s counts %d s, asked were %d", unix.ByteSliceToString(info.Identity[:]), has, want)
	}
	if err := d.KeepAlive(); err != nil {
		return nil, 0, err
	}
	return h, time.Duration(has) * time.Second, nil
}

type hardware struct {
	d     device
	path  string
	magic bool
}

func (h *hardware) Feed() error {
	if err := h.d.KeepAlive(); err != nil {
		return fmt.Errorf("watchdog %s: %w", h.path, err)
	}
	return nil
}

// Close gives the device back. With magic close only a "V" before it disarms
// the hardware; without it every close does, so that a driver without it does
// not outlast a crash. The kernel has it in nearly all.
func (h *hardware) Close(disarm bool) error {
	if disarm && h.magic {
		if _, err := h.d.Write([]byte("V")); err != nil {
			return errors.Join(fmt.Errorf("watchdog %s: disarm: %w", h.path, err), h.d.Close())
		}
	}
	if err := h.d.Close(); err != nil {
		return fmt.Errorf("watchdog %s: %w", h.path, err)
	}
	return nil
}

// linux is an open file of a watchdog driver.
type linux int

func (fd linux) Info() (*unix.WatchdogInfo, error) { return unix.IoctlGetWatchdogInfo(int(fd)) }

func (fd linux) SetTimeout(seconds int) error {
	return unix.IoctlSetPointerInt(int(fd), unix.WDIOC_SETTIMEOUT, seconds)
}

func (fd linux) Timeout() (int, error) { return unix.IoctlGetInt(int(fd), unix.WDIOC_GETTIMEOUT) }

func (fd linux) KeepAlive() error { return unix.IoctlWatchdogKeepalive(int(fd)) }

func (fd linux) Write(b []byte) (int, error) { return unix.Write(int(fd), b) }

func (fd linux) Close() error { return unix.Close(int(fd)) }
