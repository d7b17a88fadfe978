package mqtt

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

const onceKey = "mqtt.command."

// errFull means that as many commands are remembered as there may be.
var errFull = fmt.Errorf("more than %d commands within %s", maxRemembered, maxAhead)

// errReplayed means that a command has been here before.
var errReplayed = errors.New("has been here already")

// Once remembers commands until they expire, on disk and before they are
// carried out: one that a broker delivers again after a crash, or that somebody
// has recorded and sends again, is not carried out twice. It keeps a digest of
// who sent what, no names. It is for one goroutine.
type Once struct {
	store Store                // nil: it forgets with the process
	seen  map[string]time.Time // by digest: when the command expires
}

// OpenOnce reads what was remembered in store.
func OpenOnce(store Store) (*Once, error) {
	o := &Once{store, map[string]time.Time{}}
	err := store.Saved(onceKey, func(name string, value []byte) error {
		if len(value) != 8 {
			return fmt.Errorf("%s: %d bytes", name, len(value))
		}
		o.seen[name] = time.Unix(int64(binary.BigEndian.Uint64(value)), 0)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("mqtt: commands of before: %w", err)
	}
	return o, nil
}

// take remembers a command of a client. An error means that it must not be
// carried out: errReplayed, errFull, or the disk's.
func (o *Once) take(client, txn string, exp, now time.Time) error {
	sum := sha256.Sum256([]byte(client + "/" + txn)) // a client has no slash
	key := onceKey + hex.EncodeToString(sum[:16])
	changes := map[string][]byte{}
	left := len(o.seen)
	for k, t := range o.seen {
		if !t.After(now) {
			changes[k] = nil
			left--
		}
	}
	if until, ok := o.seen[key]; ok && until.After(now) {
		return errReplayed
	}
	if left >= maxRemembered {
		return errFull
	}
	exp = exp.Add(time.Second - 1).Truncate(time.Second) // the disk has whole seconds: not forgotten before it expires
	changes[key] = binary.BigEndian.AppendUint64(nil, uint64(exp.Unix()))
	if o.store != nil {
		if err := o.store.Update(changes); err != nil {
			return err
		}
	}
	for k, v := range changes {
		if v == nil {
			delete(o.seen, k)
		}
	}
	o.seen[key] = exp
	return nil
}
