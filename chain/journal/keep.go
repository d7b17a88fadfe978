package journal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/joulegate/joulegate/chain"
)

// Save stores a small value under a name and returns when it is on the disk:
// the state of a session, the cursor of the outbox.
func (j *Journal) Save(name string, value []byte) error {
	switch {
	case name == "" || len(name) > 128:
		return fmt.Errorf("journal: name of %d bytes, 1..128", len(name))
	case len(value) > MaxValue:
		return fmt.Errorf("journal: save %s: %d bytes, at most %d", name, len(value), MaxValue)
	case value == nil:
		value = []byte{}
	}
	if err := j.db.SetSync(append([]byte("k"), name...), value); err != nil {
		j.count.writeErrors.Add(1)
		return fmt.Errorf("journal: save %s: %w", name, err)
	}
	return nil
}

// Load returns what was saved, or nil.
func (j *Journal) Load(name string) ([]byte, error) {
	v, err := j.db.Get(append([]byte("k"), name...))
	if err != nil {
		return nil, fmt.Errorf("journal: load %s: %w", name, err)
	}
	return v, nil
}

// Update saves several small values, all or none, and removes those that are
// nil. It returns when that is on the disk.
func (j *Journal) Update(changes map[string][]byte) error {
	batch := j.db.NewBatch()
	defer batch.Close()
	for name, value := range changes {
		if name == "" || len(name) > 128 || len(value) > MaxValue {
			return fmt.Errorf("journal: save %q: a name of %d bytes, 1..128, and %d bytes, at most %d", name, len(name), len(value), MaxValue)
		}
		key := append([]byte("k"), name...)
		var err error
		if value == nil {
			err = batch.Delete(key)
		} else {
			err = batch.Set(key, value)
		}
		if err != nil {
			return fmt.Errorf("journal: save %s: %w", name, err)
		}
	}
	if err := batch.WriteSync(); err != nil {
		j.count.writeErrors.Add(1)
		return fmt.Errorf("journal: save %d values: %w", len(changes), err)
	}
	return nil
}

// Saved calls f for every saved value whose name begins with prefix, by name,
// until it returns an error.
func (j *Journal) Saved(prefix string, f func(name string, value []byte) error) error {
	err := j.each(append([]byte("k"), prefix...), func(key, value []byte) error { return f(string(key[1:]), value) })
	if err != nil {
		return fmt.Errorf("journal: load %s: %w", prefix, err)
	}
	return nil
}

// readings is the account of raw readings on disk, a queue by age.
type readings struct {
	first, next uint64 // sequence numbers held: first..next-1
	bytes       int64
}

type readingsEntry struct {
	Root  chain.Hash `cbor:"1,keyasint"`
	Bytes int64      `cbor:"2,keyasint"`
}

func keyReadings(root chain.Hash) []byte { return append([]byte("r"), root[:]...) }
func keyReadingsAt(seq uint64) []byte    { return binary.BigEndian.AppendUint64([]byte("t"), seq) }

func (j *Journal) loadReadings() error {
	r := &j.readings
	return j.each([]byte("t"), func(key, value []byte) error {
		var e readingsEntry
		if err := chain.Unmarshal(value, &e); err != nil || len(key) != 9 {
			return errors.New("index of readings is damaged: move the folder away and start again")
		}
		seq := binary.BigEndian.Uint64(key[1:])
		if r.next == 0 {
			r.first = seq
		}
		r.next = seq + 1
		r.bytes += e.Bytes
		return nil
	})
}

// PutReadings keeps the raw readings that a record commits to by their
// Merkle root, dropping the oldest of all beyond Config.ReadingsBytes. They
// are on disk when it returns: call it before Append of the record.
func (j *Journal) PutReadings(root chain.Hash, leaves [][]byte) error {
	if len(leaves) > MaxLeaves {
		return fmt.Errorf("journal: %d readings under one root, at most %d", len(leaves), MaxLeaves)
	}
	if chain.MerkleRoot(leaves) != root {
		return fmt.Errorf("journal: readings do not lead to root %s", root)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if known, err := j.db.Has(keyReadings(root)); err != nil || known {
		return err
	}
	raw := chain.Marshal(leaves)
	next := j.readings
	batch := j.db.NewBatch()
	defer batch.Close()
	err := errors.Join(
		batch.Set(keyReadings(root), raw),
		batch.Set(keyReadingsAt(next.next), chain.Marshal(readingsEntry{root, int64(len(raw))})),
	)
	next.next++
	next.bytes += int64(len(raw))
	for err == nil && next.bytes > j.cfg.ReadingsBytes && next.first+1 < next.next {
		var e readingsEntry
		var old []byte
		if old, err = j.db.Get(keyReadingsAt(next.first)); err != nil {
			break
		}
		if old != nil {
			if err = chain.Unmarshal(old, &e); err != nil {
				break
			}
			err = errors.Join(batch.Delete(keyReadings(e.Root)), batch.Delete(keyReadingsAt(next.first)))
		}
		next.bytes -= e.Bytes
		next.first++
	}
	if err == nil {
		// A later synced write would not do: goleveldb may have begun another
		// log by then, and syncs only that.
		err = batch.WriteSync()
	}
	if err != nil {
		j.count.writeErrors.Add(1)
		return fmt.Errorf("journal: put readings: %w", err)
	}
	j.readings = next
	return nil
}

// Readings returns the raw readings under a root, or nil when they are not
// held (any more).
func (j *Journal) Readings(root chain.Hash) ([][]byte, error) {
	raw, err := j.db.Get(keyReadings(root))
	if err != nil || raw == nil {
		return nil, err
	}
	var leaves [][]byte
	if err := chain.Unmarshal(raw, &leaves); err != nil {
		return nil, fmt.Errorf("journal: readings %s: %w", root, err)
	}
	return leaves, nil
}
