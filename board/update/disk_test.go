package update

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
)

// disk is a Store that can lose power. A file's bytes last from its Sync on, a
// name from its folder's Sync on. What was not synced when the power goes may
// be there, in part, or not at all; names change in their order.
type disk struct {
	files map[string]*node // as a program sees them
	kept  map[string]*node // names that last
	moves []move           // since the last Sync of their folder, in order
	full  bool

	left int // operations until the power goes; 0: never
	dead bool
}

type node struct {
	data, kept []byte
}

type move struct {
	folder, from, to string
	node             *node
}

var errCut = errors.New("the power is gone")

func newDisk() *disk { return &disk{files: map[string]*node{}, kept: map[string]*node{}} }

func (d *disk) names() []string { return slices.Sorted(maps.Keys(d.files)) }

func (d *disk) damage(name string) { d.files[name].data[0] ^= 1 }

// clone is another disk with the same files, all of which last.
func (d *disk) clone() *disk {
	c := newDisk()
	for name, n := range d.files {
		m := &node{slices.Clone(n.data), slices.Clone(n.data)}
		c.files[name], c.kept[name] = m, m
	}
	return c
}

// step counts a write and reports whether it is cut.
func (d *disk) step() error {
	if d.dead {
		return errCut
	}
	if d.full {
		return errors.New("no space left on device")
	}
	if d.left > 0 {
		if d.left--; d.left == 0 {
			d.dead = true
			return errCut
		}
	}
	return nil
}

// after is the disk once the power is back.
func (d *disk) after(r *rand.Rand) *disk {
	c := newDisk()
	names := maps.Clone(d.kept)
	for _, m := range d.moves[:r.Intn(len(d.moves)+1)] {
		if m.from != "" {
			delete(names, m.from)
		}
		names[m.to] = m.node
	}
	done := map[*node]*node{}
	for name, n := range names {
		if done[n] == nil {
			b := n.kept
			if !bytes.Equal(n.data, n.kept) {
				switch r.Intn(4) {
				case 0: // as synced
				case 1:
					b = n.data
				case 2:
					b = n.data[:r.Intn(len(n.data)+1)]
				case 3:
					b = make([]byte, len(n.data))
					copy(b, n.data[:r.Intn(len(n.data)+1)])
				}
			}
			done[n] = &node{slices.Clone(b), slices.Clone(b)}
		}
		c.files[name], c.kept[name] = done[n], done[n]
	}
	return c
}

func (d *disk) Open(name string) (io.ReadCloser, error) {
	n, ok := d.files[name]
	if d.dead {
		return nil, errCut
	}
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(n.data)), nil
}

func folderOf(name string) string {
	if f, _, ok := strings.Cut(name, "/"); ok {
		return f
	}
	return "."
}

func (d *disk) Create(name string) (File, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	n := &node{}
	d.files[name] = n
	d.moves = append(d.moves, move{folderOf(name), "", name, n})
	return &diskFile{d, n}, nil
}

func (d *disk) Rename(from, to string) error {
	n := d.files[from]
	err := d.step()
	if err != nil && (!d.dead || n == nil) {
		return err
	}
	// Cut at this moment, it may have happened.
	delete(d.files, from)
	d.files[to] = n
	d.moves = append(d.moves, move{folderOf(to), from, to, n})
	return err
}

func (d *disk) Sync(folder string) error {
	if err := d.step(); err != nil {
		return err
	}
	d.moves = slices.DeleteFunc(d.moves, func(m move) bool {
		if m.folder != folder {
			return false
		}
		if m.from != "" {
			delete(d.kept, m.from)
		}
		d.kept[m.to] = m.node
		return true
	})
	return nil
}

type diskFile struct {
	d *disk
	n *node
}

func (f *diskFile) Write(b []byte) (int, error) {
	err := f.d.step()
	if err == nil || f.d.dead {
		f.n.data = append(f.n.data, b...)
	}
	return len(b), err
}

func (f *diskFile) Sync() error {
	if err := f.d.step(); err != nil {
		return err
	}
	f.n.kept = slices.Clone(f.n.data)
	return nil
}

func (*diskFile) Close() error { return nil }

// story is the life of a gateway: an update that is confirmed, one that is not
// well, one more, and the way back. It returns at the first error.
func story(t *testing.T, s Store) error {
	for i, c := range []struct {
		version string
		well    bool
	}{{"1.1.0", true}, {"1.2.0", false}, {"1.3.0", true}, {"back", true}} {
		g := next(t, s, AutoAll)
		if c.version == "back" {
			if err := g.Rollback(t.Context()); err != nil {
				return err
			}
		} else {
			program := []byte("program " + c.version)
			g.offers(t, manifest(c.version, program), program)
			if _, err := g.Apply(t.Context()); err != nil {
				return err
			}
		}
		g = next(t, s, AutoAll)
		if g.Status().Phase != "trial" {
			return fmt.Errorf("step %d is not on trial: %+v", i, g.Status())
		}
		var err error
		if c.well {
			err = g.confirm(g.cfg.Place)
		} else {
			err = g.abandon("not well")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TestPowerCuts cuts the power at each write of a gateway's life, many times
// each, and then once more while it starts: what starts is always whole, is
// the version before or the one after, and goes on being updated.
func TestPowerCuts(t *testing.T) {
	count := newDisk()
	count.left = 1 << 30
	if err := story(t, count); err != nil {
		t.Fatal(err)
	}
	writes := 1<<30 - count.left
	if writes < 40 {
		t.Fatalf("only %d writes", writes)
	}
	known := map[string]bool{"": true}
	for _, v := range []string{"1.1.0", "1.2.0", "1.3.0"} {
		known[chain.Sum([]byte("program "+v)).String()] = true
	}
	before := confirmedAt(t, writes)
	for cut := 1; cut <= writes; cut++ {
		for seed := range int64(10) {
			rnd := rand.New(rand.NewSource(seed<<16 | int64(cut)))
			s := newDisk()
			s.left = cut
			if err := story(t, s); err == nil {
				t.Fatalf("cut %d was not seen", cut)
			}
			s = s.after(rnd)
			if seed%2 == 1 { // and again while it starts
				s.left = 1 + rnd.Intn(8)
				_ = Choose(s, v1, epoch)
				s.left, s.dead = 0, false
				s = s.after(rnd)
			}
			c := Choose(s, v1, epoch)
			what := ""
			if c.File != "" {
				what = chain.Sum([]byte(content(t, s, c.File))).String()
			}
			if !known[what] {
				t.Fatalf("cut %d, seed %d: starts %+v, which is no program", cut, seed, c)
			}
			version := v1.Version
			if c.File != "" {
				version = strings.TrimPrefix(content(t, s, c.File), "program ")
			}
			if !slices.Contains(before[cut], version) {
				t.Fatalf("cut %d, seed %d: starts %s, only %v may", cut, seed, version, before[cut])
			}
			if seed%5 != 0 {
				continue
			}
			// The next release finds its way.
			for range MaxAttempts {
				c = Choose(s, v1, epoch)
			}
			g := next(t, s, AutoAll)
			if g.record.Trial != nil {
				_ = g.abandon("the test goes on")
				g = next(t, s, AutoAll)
			}
			program := []byte("program 2.0.0")
			g.offers(t, manifest("2.0.0", program), program)
			if _, err := g.Apply(t.Context()); err != nil {
				t.Fatalf("cut %d, seed %d: no further update: %v", cut, seed, err)
			}
			if c := Choose(s, v1, epoch); c.Trial == nil || content(t, s, c.File) != string(program) {
				t.Fatalf("cut %d, seed %d: %+v", cut, seed, c)
			}
		}
	}
}

// confirmedAt says for each write which versions may start if it is cut: what
// was in force, and what was on its way.
func confirmedAt(t *testing.T, writes int) [][]string {
	t.Helper()
	out := make([][]string, writes+1)
	for cut := 1; cut <= writes; cut++ {
		s := newDisk()
		s.left = cut
		_ = story(t, s)
		// The record that lasts, and the one that may.
		lasting := newDisk()
		for name, n := range s.kept {
			lasting.files[name] = &node{data: n.kept}
		}
		s.dead = false
		for _, d := range []*disk{lasting, s} {
			if r, err := Load(d); err == nil {
				out[cut] = append(out[cut], r.Places[r.Current].Version)
				if r.Trial != nil {
					out[cut] = append(out[cut], r.Places[r.Trial.Place].Version)
				}
			}
		}
		if out[cut][0] == "" { // no record yet
			out[cut][0] = v1.Version
		}
	}
	return out
}

// TestFailedWrites lets each write fail once, without a power cut: the order
// fails with words or is done, and the gateway stays what it was or becomes
// what was ordered.
func TestFailedWrites(t *testing.T) {
	for n := 1; ; n++ {
		s := &failing{disk: newDisk(), at: n}
		g := next(t, s, AutoAll)
		program := []byte("program 1.1.0")
		g.offers(t, manifest("1.1.0", program), program)
		_, err := g.Apply(t.Context())
		if !s.done {
			if err != nil {
				t.Fatal(err)
			}
			if n < 10 {
				t.Fatalf("only %d writes", n)
			}
			return
		}
		if err == nil {
			t.Errorf("write %d failed, and nobody was told", n)
		}
		if c := Choose(s, v1, epoch); g.restarts == 0 && c.Trial != nil && n < 8 {
			t.Errorf("write %d: %+v", n, c)
		}
		if _, err := g.Apply(t.Context()); err != nil && !errors.Is(err, ErrUnderWay) && g.restarts == 0 {
			t.Errorf("after write %d: %v", n, err)
		}
	}
}

// failing fails one write.
type failing struct {
	*disk
	at   int
	done bool
}

func (f *failing) once() error {
	if f.at--; f.at == 0 {
		f.done = true
		return errors.New("input/output error")
	}
	return nil
}

func (f *failing) Create(name string) (File, error) {
	if err := f.once(); err != nil {
		return nil, err
	}
	w, err := f.disk.Create(name)
	return failingFile{f, w}, err
}

func (f *failing) Rename(from, to string) error {
	if err := f.once(); err != nil {
		return err
	}
	return f.disk.Rename(from, to)
}

func (f *failing) Sync(folder string) error {
	if err := f.once(); err != nil {
		return err
	}
	return f.disk.Sync(folder)
}

type failingFile struct {
	f *failing
	File
}

func (f failingFile) Write(b []byte) (int, error) {
	if err := f.f.once(); err != nil {
		return 0, err
	}
	return f.File.Write(b)
}

func (f failingFile) Sync() error {
	if err := f.f.once(); err != nil {
		return err
	}
	return f.File.Sync()
}
