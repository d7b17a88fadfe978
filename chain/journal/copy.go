package journal

import "context"

// Copy hands every entry of the journal's database to fn, as they all were at
// one moment, while the journal goes on. The slices are valid until fn returns.
func (j *Journal) Copy(ctx context.Context, fn func(key, value []byte) error) error {
	it, err := j.db.Iterator(nil, nil) // of goleveldb: a view of this moment
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
