package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrInUse is returned when another process holds the folder.
var ErrInUse = errors.New("in use")

// Lock is an exclusive hold on a folder. It ends with the process, however
// that ends.
type Lock struct{ f *os.File }

// LockDir takes the folder for this process by flock(2) on its LOCK file,
// which names the holder.
func LockDir(dir string) (*Lock, error) {
	path := filepath.Join(dir, "LOCK")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			pid, _ := io.ReadAll(io.LimitReader(f, 20))
			return nil, fmt.Errorf("state folder %s %w by process %s: stop it, or use its commands", dir, ErrInUse, strings.TrimSpace(string(pid)))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0) // for people; the lock itself is the kernel's
	return &Lock{f}, nil
}

// Unlock releases the folder.
func (l *Lock) Unlock() error { return l.f.Close() }
