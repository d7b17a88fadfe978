package update

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/joulegate/joulegate/chain"
	"golang.org/x/sys/unix"
)

// Store is the folder that holds record and slots. What was written is on the
// disk once File.Sync and, for its name, Store.Sync have returned; Rename
// replaces whole files. Names have at most one folder: a/joulegate.
type Store interface {
	Open(name string) (io.ReadCloser, error)
	// Create makes an empty executable file, in place of one that is there.
	Create(name string) (File, error)
	Rename(from, to string) error
	// Sync puts the names in a folder ("." or a) on the disk.
	Sync(folder string) error
}

// File is being written.
type File interface {
	io.Writer
	Sync() error
	Close() error
}

// Dir is a Store on a disk.
type Dir string

// Path returns where a file lies.
func (d Dir) Path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }

// Open implements Store. What it reads comes from the disk, not from memory,
// where the kernel can be made to.
func (d Dir) Open(name string) (io.ReadCloser, error) {
	f, err := os.Open(d.Path(name))
	if err == nil {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return f, err
}

// Create implements Store.
func (d Dir) Create(name string) (File, error) {
	path := d.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	// A program that runs cannot be written to: its name gets another file.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o700)
}

// Rename implements Store.
func (d Dir) Rename(from, to string) error { return os.Rename(d.Path(from), d.Path(to)) }

// Sync implements Store.
func (d Dir) Sync(folder string) error {
	f, err := os.Open(d.Path(folder))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

const (
	recordFile  = "boot.json"
	programFile = "joulegate"
)

// Load reads the record. A store without one is a gateway that was never
// updated; one that is damaged is taken for such a gateway, and told.
func Load(s Store) (Record, error) {
	fresh := Record{Version: recordVersion, Current: Packaged}
	f, err := s.Open(recordFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	} else if err != nil {
		return fresh, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return fresh, err
	}
	r, err := decodeRecord(b)
	if err != nil {
		return fresh, fmt.Errorf("%s: %w", recordFile, err)
	}
	return r, nil
}

// save returns when r is on the disk, name and all.
func save(s Store, r Record) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	return replace(s, ".", recordFile, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

// replace writes a file beside its place, and puts it there whole.
func replace(s Store, folder, name string, write func(io.Writer) error) error {
	if folder != "." {
		name = folder + "/" + name
	}
	f, err := s.Create(name + ".new")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := s.Rename(name+".new", name); err != nil {
		return err
	}
	return s.Sync(folder)
}

// hash reads to the end, and at most one byte more than size.
func hash(r io.Reader, size int64) (chain.Hash, error) {
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes or more, the record says %d", n, size)
	}
	return chain.Hash(h.Sum(nil)), err
}
