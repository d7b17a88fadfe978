package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
)

// What somebody far away may have this gateway write.
const (
	keptBackups  = 3         // in the state folder; the oldest goes
	backupMargin = 256 << 20 // bytes that stay free: records are worth more than a copy of them
	backupEnding = ".backup"
)

func (s state) backups() string { return s.path("backups") }

// storedBackup is the answer to the command backup: where it is, and by what
// it can be recognised. What is in it never leaves the gateway this way.
type storedBackup struct {
	Path    string     `json:"path"`
	Size    int64      `json:"size"`
	Hash    chain.Hash `json:"sha256"`
	Keys    bool       `json:"keys"` // secret keys are in it
	Files   int        `json:"files"`
	Created time.Time  `json:"created"`
	Kept    []string   `json:"kept"` // all that are there, the newest first
}

// storeBackup writes a backup into the state folder, for its owner only.
func (g *gateway) storeBackup(ctx context.Context, withKeys bool) (b storedBackup, err error) {
	dir := g.state.backups()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return b, err
	}
	old, err := backupsIn(dir)
	if err != nil {
		return b, err
	}
	if err := roomFor(g.state); err != nil {
		return b, err
	}
	now := time.Now()
	b.Path = filepath.Join(dir, g.cfg.Name+"-"+now.UTC().Format("20060102T150405Z")+backupEnding)
	m, sum, err := writeBackup(g.state, g.settings.file, b.Path, withKeys, now, func(w io.Writer) error { return backend{g}.Stores(ctx, w) })
	if err != nil {
		return b, err
	}
	i, err := os.Stat(b.Path)
	if err != nil {
		return b, err
	}
	b.Size, b.Hash, b.Keys, b.Files, b.Created = i.Size(), sum, m.Keys, len(m.Files), m.Created
	b.Kept = append([]string{b.Path}, old...)
	for _, gone := range b.Kept[min(keptBackups, len(b.Kept)):] {
		if err := os.Remove(gone); err != nil {
			return b, err
		}
	}
	b.Kept = b.Kept[:min(keptBackups, len(b.Kept))]
	return b, nil
}

// backupsIn returns the backups in dir, the newest first: their names say when
// they were made.
func backupsIn(dir string) (all []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasSuffix(e.Name(), backupEnding) {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	slices.Reverse(all)
	return all, nil
}

// roomFor refuses when a copy of the stores and a backup of that copy would
// leave too little free.
func roomFor(st state) error {
	var need uint64
	err := filepath.WalkDir(string(st), func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has gone meanwhile
		}
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(e.Name(), backupEnding) {
			return err
		}
		if i, err := e.Info(); err == nil {
			need += uint64(i.Size())
		}
		return nil
	})
	if err != nil {
		return err
	}
	d, err := diskOf(string(st))
	if err != nil {
		return err
	}
	if d.Free < 2*need+backupMargin {
		return panel.Refused("%d MB are free, and a backup needs up to %d MB beside the %d MB that stay: write it to another disk, with joulegate backup at the gateway", d.Free>>20, 2*need>>20, uint64(backupMargin)>>20)
	}
	return nil
}
