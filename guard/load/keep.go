package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The habit survives restarts, because a machine that restarts once a day
// would never have learned. It is written to a file beside and renamed over
// the old one: a power cut leaves either.
const (
	habitVersion = 1
	maxHabit     = 4 << 10 // bytes of the file
	keepEach     = time.Hour
	keepLearning = 10 * time.Minute // while each hour counts; some 30 kB each, with what the file system notes
)

// keepDue tells whether the habit is to be written, so long after the last
// time. A habit that has been learned changes over hours: a crash that takes
// one of them takes little.
func (d *Detector) keepDue(after time.Duration) bool {
	return after >= keepEach || after >= keepLearning && d.learned < d.limits.Learn
}

// Habit is what a Detector has learned.
type Habit struct {
	Version int           `json:"version"`
	Cores   int           `json:"cores"`      // it is a share of these
	Mean    float64       `json:"mean"`       // of the share of all cores that work
	Square  float64       `json:"square"`     // of the share, squared
	Learned time.Duration `json:"learned_ns"` // how long it has looked
}

// Habit returns what was learned so far.
func (d *Detector) Habit() Habit {
	return Habit{habitVersion, d.last.Cores, d.mean, d.square, d.learned}
}

// Accustom makes a habit of before the detector's own. It refuses one that
// cannot be, and one of another machine.
func (d *Detector) Accustom(h Habit, cores int) error {
	switch {
	case h.Version != habitVersion:
		return fmt.Errorf("version %d, want %d", h.Version, habitVersion)
	case h.Cores != cores:
		return fmt.Errorf("learned with %d cores, this machine has %d", h.Cores, cores)
	case !(h.Mean >= 0 && h.Mean <= 1 && h.Square >= 0 && h.Square <= 1) || h.Square+1e-9 < h.Mean*h.Mean || h.Learned < 0:
		return fmt.Errorf("a mean of %g with squares of %g over %s cannot be", h.Mean, h.Square, h.Learned)
	}
	d.mean, d.square, d.learned = h.Mean, h.Square, min(h.Learned, d.limits.Learn)
	return nil
}

// readHabit reads what was kept. No file is no error and no habit.
func readHabit(file string) (h Habit, ok bool, err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return h, false, nil
	} else if err != nil {
		return h, false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHabit+1))
	if err == nil && len(b) > maxHabit {
		err = fmt.Errorf("more than %d bytes", maxHabit)
	}
	if err == nil {
		err = json.Unmarshal(b, &h)
	}
	if err != nil {
		return Habit{}, false, fmt.Errorf("%s: %w", file, err)
	}
	return h, true, nil
}

// keepHabit returns when h is on the disk.
func keepHabit(file string, h Habit) (err error) {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".habit-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
