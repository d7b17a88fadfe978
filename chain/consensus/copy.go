package consensus

import (
	"context"
	"errors"
	"fmt"

	"github.com/joulegate/joulegate/chain/ledger"
)

// A copy of the stores is named by their folders below Home.
const copyPrefix = "data/"

// Copy hands every entry of every store to fn, as they all were at one moment,
// while the ledger goes on; db is the store's folder below Home. Neither the
// validator's key nor what it signed last is in a store. The slices are valid
// until fn returns.
func (e *Engine) Copy(ctx context.Context, fn func(db string, key, value []byte) error) error {
	return e.app.view(func(committed, ledger.State) error {
		type source struct {
			name string
			it   entryIterator
		}
		var all []source
		defer func() {
			for _, s := range all {
				_ = s.it.Close() // read errors have been told
			}
		}()
		// An iterator sees its store as it was when it was made. While the lock
		// is held no block is committed, so that the four agree as after a
		// power cut at worst, which the next start mends.
		err := func() error {
			e.app.mu.Lock()
			defer e.app.mu.Unlock()
			open := func(name string, it entryIterator, err error) error {
				if err == nil {
					all = append(all, source{copyPrefix + name + ".db", it})
				}
				return err
			}
			tree, err := e.stores.ledger.Iterator(nil, nil)
			errs := []error{open("ledger", tree, err)}
			for _, d := range []struct {
				name string
				db   *lateDB
			}{{"evidence", e.stores.evidence}, {"state", e.stores.state}, {"blockstore", e.stores.blocks}} {
				it, err := d.db.Iterator(nil, nil)
				errs = append(errs, open(d.name, it, err))
			}
			return errors.Join(errs...)
		}()
		if err != nil {
			return fmt.Errorf("copy the ledger's stores: %w", err)
		}
		for _, s := range all {
			for n := 0; s.it.Valid(); s.it.Next() {
				if n++; n%1024 == 0 && ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := fn(s.name, s.it.Key(), s.it.Value()); err != nil {
					return err
				}
			}
			if err := s.it.Error(); err != nil {
				return fmt.Errorf("copy %s: %w", s.name, err)
			}
		}
		return nil
	})
}

type entryIterator interface {
	iterator
	Key() []byte
	Value() []byte
}
