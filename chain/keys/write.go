package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// write puts a new key at path, mode 0600, and does not return before it is
// on the disk. It never replaces a file: a lost key is lost for good.
func write(what, path string, key any, passphrase []byte) error {
	raw, err := encode(key, passphrase)
	if err == nil {
		err = writeNew(path, raw)
	}
	if err != nil {
		return fmt.Errorf("write %s %s: %w", what, path, err)
	}
	return nil
}

func writeNew(path string, raw []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// Link, unlike rename, fails when another process was quicker.
	if err := os.Link(f.Name(), path); err != nil {
		if errors.Is(err, fs.ErrExist) || !linkUnsupported(err) {
			return err
		}
		if _, statErr := os.Lstat(path); statErr == nil {
			return fs.ErrExist
		}
		if err := os.Rename(f.Name(), path); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// linkUnsupported: FAT and some network file systems have no hard links.
func linkUnsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission)
}
