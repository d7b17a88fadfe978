// Package powercut is a disk whose power fails at a chosen write, for tests
// of the stores that keep money and evidence.
//
// It is a goleveldb storage in memory that remembers which bytes a sync has
// covered. When the power fails, everything synced is there afterwards; of the
// rest some is there and some is not, as the Mode says:
//
//	written  ████████████████░░░░░░░░░░░░
//	         synced          not yet
//	torn     ████████████████░░░░░         ends anywhere, also inside a sector
//	mixed    ████████████████░░··░░··░░    sectors land in any order: some are zeros
//	lying    ████████░░··                  also what the disk had said was synced
//
// The model of the directory is ext4's: syncing a file keeps its name,
// replacing the meta file is atomic and keeps all names so far, and a removal
// that was not followed by either may come undone.
package powercut

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"sync"

	"github.com/syndtr/goleveldb/leveldb/storage"
)

// ErrOff is what every operation returns once the power has failed.
var ErrOff = errors.New("powercut: the power is off")

// Sector is what a disk writes at once.
const Sector = 512

// Mode is how bad the disk is.
type Mode uint8

// Modes.
const (
	Torn  Mode = iota // what was not synced ends anywhere
	Mixed             // and its sectors land in any order
	Lying             // and a sync may be a lie
)

func (m Mode) String() string { return [...]string{"torn", "mixed", "lying"}[m] }

// Disk implements storage.Storage. It is safe for concurrent use.
type Disk struct {
	mode Mode
	rng  *rand.Rand // under mu

	mu     sync.Mutex
	left   int // operations until the power fails; -1: it does not
	off    bool
	locked bool
	now    tree // what a program sees
	kept   tree // what a cut leaves at least
}

type tree struct {
	files map[storage.FileDesc]*file
	meta  storage.FileDesc
}

func (t tree) clone() tree { return tree{maps.Clone(t.files), t.meta} }

// file is shared by both trees; the prefix of length synced is kept.
type file struct {
	data   []byte
	synced int
}

// New returns an empty disk. The seed decides what a cut leaves.
func New(mode Mode, seed uint64) *Disk {
	none := tree{files: map[storage.FileDesc]*file{}}
	return &Disk{mode: mode, rng: rand.New(rand.NewPCG(seed, 0)), left: -1, now: none, kept: none.clone()}
}

// CutAfter lets the power fail at the n-th operation that changes something,
// counted from now. That operation fails too, and may have been done in part.
func (d *Disk) CutAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = n
}

// Off reports whether the power has failed.
func (d *Disk) Off() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.off
}

// Restart returns the disk as it is after the power failed and came back. The
// old one stays off, whatever its users still try.
func (d *Disk) Restart() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	after := New(d.mode, d.rng.Uint64())
	after.now.meta = d.kept.meta
	if d.mode == Lying && d.rng.IntN(4) == 0 {
		after.now.meta = d.now.meta
	}
	names := maps.Clone(d.kept.files)
	for fd, f := range d.now.files {
		if names[fd] == nil && d.rng.IntN(2) == 0 { // a name that nobody has synced
			names[fd] = f
		}
	}
	for fd := range names {
		if d.now.files[fd] == nil && d.rng.IntN(2) == 0 { // a removal that has come through
			delete(names, fd)
		}
	}
	for fd, f := range names {
		b := d.survives(f)
		after.now.files[fd] = &file{b, len(b)}
	}
	after.kept = after.now.clone()
	return after
}

// survives returns what a cut leaves of a file.
func (d *Disk) survives(f *file) []byte {
	keep := f.synced
	if d.mode == Lying && keep > 0 && d.rng.IntN(3) == 0 {
		keep = d.rng.IntN(keep + 1)
	}
	rest := f.data[keep:]
	if len(rest) == 0 {
		return bytes.Clone(f.data)
	}
	rest = bytes.Clone(rest[:d.rng.IntN(len(rest)+1)])
	if d.mode != Torn {
		for at := 0; at < len(rest); {
			end := min(len(rest), (keep+at)/Sector*Sector+Sector-keep)
			if d.rng.IntN(3) == 0 {
				clear(rest[at:end])
			}
			at = end
		}
	}
	return append(bytes.Clone(f.data[:keep]), rest...)
}

// step counts an operation that changes something; false: the power is off,
// from now on if last.
func (d *Disk) step() (on, last bool) {
	if d.off {
		return false, false
	}
	if d.left > 0 {
		d.left--
	} else if d.left == 0 {
		d.off = true
		return false, true
	}
	return true, false
}

// Lock implements storage.Storage.
func (d *Disk) Lock() (storage.Locker, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return nil, storage.ErrLocked
	}
	d.locked = true
	return unlocker{d}, nil
}

type unlocker struct{ d *Disk }

func (u unlocker) Unlock() {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	u.d.locked = false
}

// Log implements storage.Storage.
func (*Disk) Log(string) {}

// SetMeta implements storage.Storage: it writes, syncs and renames a file,
// and syncs the folder.
func (d *Disk) SetMeta(fd storage.FileDesc) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	on, last := d.step()
	if on || last && d.rng.IntN(2) == 0 {
		d.now.meta = fd
		if d.mode != Lying || d.rng.IntN(2) == 0 {
			d.kept = d.now.clone()
		}
	}
	if !on {
		return ErrOff
	}
	return nil
}

// GetMeta implements storage.Storage.
func (d *Disk) GetMeta() (storage.FileDesc, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return storage.FileDesc{}, ErrOff
	}
	if d.now.meta.Zero() || d.now.files[d.now.meta] == nil {
		return storage.FileDesc{}, os.ErrNotExist
	}
	return d.now.meta, nil
}

// List implements storage.Storage.
func (d *Disk) List(ft storage.FileType) (out []storage.FileDesc, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, ErrOff
	}
	for fd := range d.now.files {
		if fd.Type&ft != 0 {
			out = append(out, fd)
		}
	}
	return out, nil
}

// Open implements storage.Storage.
func (d *Disk) Open(fd storage.FileDesc) (storage.Reader, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return nil, ErrOff
	}
	f := d.now.files[fd]
	if f == nil {
		return nil, os.ErrNotExist
	}
	return reader{bytes.NewReader(f.data)}, nil // as the file is now
}

type reader struct{ *bytes.Reader }

func (reader) Close() error { return nil }

// Create implements storage.Storage.
func (d *Disk) Create(fd storage.FileDesc) (storage.Writer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if on, _ := d.step(); !on {
		return nil, ErrOff
	}
	f := &file{}
	d.now.files[fd] = f
	return &writer{d, fd, f}, nil
}

// Remove implements storage.Storage.
func (d *Disk) Remove(fd storage.FileDesc) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if on, _ := d.step(); !on {
		return ErrOff
	}
	if d.now.files[fd] == nil {
		return os.ErrNotExist
	}
	delete(d.now.files, fd)
	return nil
}

// Rename implements storage.Storage.
func (d *Disk) Rename(from, to storage.FileDesc) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if on, _ := d.step(); !on {
		return ErrOff
	}
	f := d.now.files[from]
	if f == nil {
		return os.ErrNotExist
	}
	delete(d.now.files, from)
	d.now.files[to] = f
	return nil
}

// Close implements storage.Storage.
func (*Disk) Close() error { return nil }

type writer struct {
	d  *Disk
	fd storage.FileDesc
	f  *file
}

// Write implements io.Writer.
func (w *writer) Write(b []byte) (int, error) {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	on, last := w.d.step()
	if last {
		b = b[:w.d.rng.IntN(len(b)+1)]
	}
	if on || last {
		w.f.data = append(w.f.data, b...)
	}
	if !on {
		return 0, ErrOff
	}
	return len(b), nil
}

// Sync implements storage.Syncer.
func (w *writer) Sync() error {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	on, last := w.d.step()
	if on || last && w.d.rng.IntN(2) == 0 {
		w.f.synced = len(w.f.data)
		if w.d.now.files[w.fd] == w.f {
			w.d.kept.files[w.fd] = w.f
		}
	}
	if !on {
		return ErrOff
	}
	return nil
}

// Close implements io.Closer. Closing syncs nothing.
func (*writer) Close() error { return nil }

var (
	_ storage.Storage = (*Disk)(nil)
	_ io.Writer       = (*writer)(nil)
)
