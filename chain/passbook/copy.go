package passbook

import "context"

// Copy hands every entry of the book to fn, as they all were at one moment,
// while the book goes on. A book that cannot be read now has none: it will be
// made anew. The slices are valid until fn returns.
func (b *Book) Copy(ctx context.Context, fn func(key, value []byte) error) error {
	b.mu.Lock()
	if b.db == nil {
		b.mu.Unlock()
		return nil
	}
	it, err := b.db.Iterator(nil, nil) // of goleveldb: a view of this moment
	b.mu.Unlock()
	if err != nil {
		return err
	}
	defer it.Close()
	for n := 0; it.Valid(); it.Next() {
		if n++; n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := fn(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	return it.Error()
}
