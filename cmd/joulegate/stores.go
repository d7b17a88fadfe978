package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/joulegate/joulegate/board/commission"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// A running gateway gives its stores as a stream, entry by entry:
//
//	magic | { length database | length key | length value } ... | 0 | number of entries
//
// Whoever reads it makes databases of it.
const (
	storesMagic   = "joulegate stores 1\n"
	maxStoreKey   = 64 << 10
	maxStoreValue = 64 << 20
	storesBatch   = 1 << 20
)

// storeNames are the databases of a gateway, below its state folder.
var storeNames = []string{
	"journal/blocks.db", "statements/statements.db", "consensus/data/blockstore.db", "consensus/data/evidence.db", "consensus/data/ledger.db", "consensus/data/state.db",
}

// writeStores streams what the sources hand over.
func writeStores(w io.Writer, sources ...func(entry func(db string, key, value []byte) error) error) error {
	out := bufio.NewWriterSize(w, 64<<10)
	if _, err := out.WriteString(storesMagic); err != nil {
		return err
	}
	var n uint64
	field := func(b []byte) { // a writer keeps its first error
		_, _ = out.Write(binary.AppendUvarint(nil, uint64(len(b))))
		_, _ = out.Write(b)
	}
	for _, s := range sources {
		if err := s(func(db string, key, value []byte) error {
			n++
			field([]byte(db))
			field(key)
			field(value)
			_, err := out.Write(nil)
			return err
		}); err != nil {
			return err
		}
	}
	field(nil)
	_, _ = out.Write(binary.AppendUvarint(nil, n))
	return out.Flush()
}

// readStores makes the databases of a stream below dir.
func readStores(r io.Reader, dir string) (err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	magic := make([]byte, len(storesMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != storesMagic {
		return fmt.Errorf("the gateway's answer is not a copy of its stores in a format that this program knows: use the same version for both (%w)", errors.Join(err))
	}
	open := map[string]*leveldb.DB{}
	defer func() {
		for _, db := range open {
			if db != nil {
				err = errors.Join(err, db.Close())
			}
		}
	}()
	for _, name := range storeNames { // an empty one has no entries to tell of it
		if open[name], err = leveldb.OpenFile(filepath.Join(dir, filepath.FromSlash(name)), &opt.Options{WriteBuffer: storesBatch, DisableLargeBatchTransaction: true}); err != nil {
			return err
		}
	}
	batch, at := new(leveldb.Batch), ""
	flush := func() error {
		if at == "" {
			return nil
		}
		defer batch.Reset()
		return open[at].Write(batch, nil)
	}
	for n := uint64(0); ; n++ {
		db, err := storeField(in, 64)
		if err != nil {
			return err
		}
		if len(db) == 0 {
			of, err := binary.ReadUvarint(in)
			if err != nil || of != n {
				return fmt.Errorf("copy of the stores: %d entries, %d were sent: %w", n, of, errors.Join(err))
			}
			return flush()
		}
		key, err := storeField(in, maxStoreKey)
		if err != nil {
			return err
		}
		value, err := storeField(in, maxStoreValue)
		if err != nil {
			return err
		}
		if name := string(db); name != at {
			if err := flush(); err != nil {
				return err
			}
			if open[name] == nil {
				return fmt.Errorf("copy of the stores: there is no %q", name)
			}
			at = name
		}
		if batch.Put(key, value); len(batch.Dump()) >= storesBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

// storeField reads a length and so many bytes; memory grows with what comes.
func storeField(r *bufio.Reader, most uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err == nil && n > most {
		err = fmt.Errorf("a field of %d bytes, at most %d", n, most)
	}
	var b bytes.Buffer
	if err == nil {
		_, err = io.CopyN(&b, r, int64(n))
	}
	if err != nil {
		return nil, fmt.Errorf("copy of the stores: %w", err)
	}
	return b.Bytes(), nil
}

// Stores implements panel.Backend. The ledger comes last: it may know own
// blocks and movements that journal and index lack, never the other way round.
// The index fills itself, and a restored gateway signs in a new epoch anyway.
func (b backend) Stores(ctx context.Context, w io.Writer) (err error) {
	defer func() {
		if err == nil {
			b.try(func(t *commission.Trials) { t.Backup = time.Now().UTC() })
		}
	}()
	return writeStores(w, func(entry func(string, []byte, []byte) error) error {
		return b.journal.Copy(ctx, func(k, v []byte) error { return entry("journal/blocks.db", k, v) })
	}, func(entry func(string, []byte, []byte) error) error {
		return b.passbook.Copy(ctx, func(k, v []byte) error { return entry("statements/statements.db", k, v) })
	}, func(entry func(string, []byte, []byte) error) error {
		return b.ledger.Copy(ctx, func(db string, k, v []byte) error { return entry("consensus/"+db, k, v) })
	})
}
