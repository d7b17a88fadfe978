package consensus

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	sm "github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	"github.com/cosmos/iavl"

	"github.com/joulegate/joulegate/chain"
)

// A milestone is a snapshot (see snapshotManifest) that is kept so that the
// blocks before it may go: whatever executes blocks again begins there instead
// of at the genesis.
//
//	genesis ──changes of validators──► checkpoint of block h+1 ──root──► state after block h
//	                                                                       │
//	                    blocks 1 to h may be dropped                       ▼
//	                                                        block h+1, h+2, … executed again
//
// The folder beside the stores holds
//
//	<h>/manifest, <h>/tree.gz   the snapshot, its tree compressed
//	<h>.change                  block h with its votes, after which others vote. Kept for ever: 2 to 3 KB each
//
// Nothing in it needs to be believed: checkpoints are signatures, and a tree
// either has the signed root or is refused.
type milestones struct{ dir string }

type milestone struct {
	*snapshotManifest
	dir string
}

const (
	packedFile = treeFile + ".gz"
	endChange  = ".change"
	endNew     = ".new" // what is being written
	// A state is written beside a ledger that runs: after so many bytes it
	// rests as long as they took.
	paceBytes = 64 << 10
)

func milestonesOf(home string) milestones { return milestones{filepath.Join(home, "milestones")} }

func (s milestones) path(height int64) string {
	return filepath.Join(s.dir, strconv.FormatInt(height, 10))
}

// heights lists what has such an ending, ascending: "" is the milestones.
func (s milestones) heights(ending string) ([]int64, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("milestones: %w", err)
	}
	var out []int64
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ending); ok {
			if h, err := strconv.ParseInt(name, 10, 64); err == nil && h > 0 {
				out = append(out, h)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// all lists the milestones, oldest first.
func (s milestones) all() ([]milestone, error) {
	heights, err := s.heights("")
	if err != nil {
		return nil, err
	}
	var out []milestone
	for _, h := range heights {
		m, err := readSnapshot(s.path(h))
		if err != nil {
			return nil, err
		}
		if m.height() != h {
			return nil, fmt.Errorf("%s: it is the state of height %d", s.path(h), m.height())
		}
		out = append(out, milestone{m, s.path(h)})
	}
	return out, nil
}

// from returns the oldest milestone from which all later blocks are here.
func (s milestones) from(base int64) (milestone, error) {
	all, err := s.all()
	for _, m := range all {
		if m.height()+1 >= base {
			return m, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("blocks before %d are not here, and no state from which the later ones could be executed", base)
	}
	return milestone{}, err
}

// before returns the newest milestone from which all later blocks are here and
// that is before a time, or else the oldest one.
func (s milestones) before(base int64, at time.Time) (milestone, error) {
	best, err := s.from(base)
	if err != nil {
		return best, err
	}
	all, err := s.all()
	for _, m := range all {
		if m.height() > best.height() && m.At.Time().Before(at) {
			best = m
		}
	}
	return best, err
}

// changes returns the stored changes of validators up to a block, ascending.
func (s milestones) changes(to int64) ([]*chain.Checkpoint, error) {
	heights, err := s.heights(endChange)
	if err != nil {
		return nil, err
	}
	var out []*chain.Checkpoint
	for _, h := range heights {
		if h > to {
			break
		}
		c, err := readChange(s.path(h) + endChange)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func readChange(path string) (*chain.Checkpoint, error) {
	b, err := readSome(path, chain.MaxCheckpoint)
	if err != nil {
		return nil, err
	}
	c, err := chain.ParseCheckpoint(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// lookup returns a block's votes if they are kept here, or nil.
func (s milestones) lookup(height int64) *chain.Checkpoint {
	if c, err := readChange(s.path(height) + endChange); err == nil && c.Header.Height == height {
		return c
	}
	for _, h := range []int64{height, height - 1} {
		if m, err := readSnapshot(s.path(h)); err == nil {
			for _, c := range []*chain.Checkpoint{&m.At, &m.Next} {
				if c.Header.Height == height {
					return c
				}
			}
		}
	}
	return nil
}

// keepChange stores a change of validators.
func (s milestones) keepChange(c *chain.Checkpoint) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	return errors.Join(writeFile(s.path(c.Header.Height)+endChange, c.Encode()), syncDir(s.dir))
}

// clean removes what an interrupted write has left.
func (s milestones) clean() error {
	left, err := filepath.Glob(filepath.Join(s.dir, "*"+endNew))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// drop removes a milestone.
func (s milestones) drop(m milestone) error {
	gone := m.dir + endNew // in one step
	return errors.Join(os.Rename(m.dir, gone), os.RemoveAll(gone))
}

// make keeps the state after a block of which the next is here as well.
func (s milestones) make(ctx context.Context, t *iavl.ImmutableTree, blocks *store.BlockStore, states sm.Store, height int64) (milestone, error) {
	m, err := signedState(blocks, states, height)
	if err != nil {
		return milestone{}, err
	}
	return s.write(ctx, m, func(w io.Writer) error {
		return m.fill(w, t)
	})
}

// adopt keeps a snapshot that came from neighbours and was verified.
func (s milestones) adopt(ctx context.Context, m *snapshotManifest, tree string) error {
	_, err := s.write(ctx, m, func(w io.Writer) error {
		f, err := os.Open(tree)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	return err
}

// write stores a milestone as a whole or not at all, and reads it back: blocks
// are going to be dropped for it.
func (s milestones) write(ctx context.Context, m *snapshotManifest, tree func(io.Writer) error) (out milestone, err error) {
	dir := s.path(m.height())
	dirNew := dir + endNew
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("keep the state of height %d: %w", m.height(), err), os.RemoveAll(dirNew))
		}
	}()
	if err := errors.Join(os.RemoveAll(dirNew), os.MkdirAll(dirNew, 0o700)); err != nil {
		return out, err
	}
	f, err := os.Create(filepath.Join(dirNew, packedFile))
	if err != nil {
		return out, err
	}
	z, _ := gzip.NewWriterLevel(f, gzip.BestSpeed) // a level that it knows
	err = tree(&pacer{ctx: ctx, w: z, since: time.Now()})
	if err = errors.Join(err, z.Close(), f.Sync(), f.Close()); err != nil {
		return out, err
	}
	if err := writeFile(filepath.Join(dirNew, manifestFile), m.encode()); err != nil {
		return out, err
	}
	if err := (&milestone{m, dirNew}).check(ctx); err != nil {
		return out, err
	}
	return milestone{m, dir}, errors.Join(syncDir(dirNew), os.RemoveAll(dir), os.Rename(dirNew, dir), syncDir(s.dir))
}

// pacer leaves half of the time to others, and ends with its context.
type pacer struct {
	ctx   context.Context
	w     io.Writer
	since time.Time
	bytes int
}

func (p *pacer) Write(b []byte) (int, error) {
	if p.bytes += len(b); p.bytes >= paceBytes {
		select {
		case <-p.ctx.Done():
			return 0, context.Cause(p.ctx)
		case <-time.After(time.Since(p.since)):
		}
		p.bytes, p.since = 0, time.Now()
	}
	return p.w.Write(b)
}

// read hands the milestone's tree to fn and checks that it is as it was
// written.
func (m *milestone) read(ctx context.Context, fn func(io.Reader) error) (err error) {
	f, err := os.Open(filepath.Join(m.dir, packedFile))
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(bufio.NewReaderSize(f, 64<<10))
	if err == nil {
		err = fn(stoppable{ctx, io.LimitReader(z, m.Size+1)})
	}
	if err == nil {
		_, err = io.Copy(io.Discard, z) // its checksum stands at the end
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", f.Name(), err)
	}
	return err
}

// stoppable reads until its context ends.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s stoppable) Read(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(b)
}

// check reads the tree and compares its root with the signed one.
func (m *milestone) check(ctx context.Context) error { return m.read(ctx, m.verifyTree) }

// load builds the state in an empty database.
func (m *milestone) load(ctx context.Context, db *treeDB) error {
	return m.read(ctx, func(r io.Reader) error { return m.importTree(db, r) })
}

// entries hands the state's entries to fn and then checks that their root is
// the signed one.
func (m *milestone) entries(ctx context.Context, fn func(key, value []byte)) error {
	return m.read(ctx, func(r io.Reader) error {
		t := newTreeReader(r, m.height())
		for {
			n, err := t.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if n.Height == 0 {
				fn(n.Key, bytes.Clone(n.Value))
			}
		}
		if root, err := t.root(); err != nil || root != m.Next.StateRoot() {
			return errors.Join(err, fmt.Errorf("root %s, block %d signs %s", root, m.height()+1, m.Next.StateRoot()))
		}
		return nil
	})
}
