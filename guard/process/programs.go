package process

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of the list of executables and of what is done for it.
const (
	MaxPrograms = 65536   // of a list
	maxHashes   = 4096    // remembered; then all are forgotten
	maxFile     = 1 << 30 // bytes of a file that is hashed
	hashBudget  = 2 << 30 // bytes hashed in a minute; beyond it files count as not listed
)

// Programs are the executables that may be started: paths with the SHA-256 of
// their files.
type Programs struct{ by map[string][][32]byte }

// ReadPrograms reads a list as sha256sum prints it: a hash in hex, two
// spaces (or a space and a star), an absolute path. A path may have several
// hashes. Empty lines and lines that begin with # are left out.
func ReadPrograms(name string, r io.Reader) (*Programs, error) {
	p := &Programs{map[string][][32]byte{}}
	lines := bufio.NewScanner(r)
	n, total := 0, 0
	for lines.Scan() {
		n++
		l := strings.TrimRight(lines.Text(), "\r")
		if l == "" || l[0] == '#' {
			continue
		}
		var sum [32]byte
		hash, file, ok := strings.Cut(l, " ")
		if ok && file != "" && (file[0] == ' ' || file[0] == '*') {
			file = file[1:]
		} else {
			ok = false
		}
		if b, err := hex.DecodeString(hash); !ok || err != nil || len(b) != len(sum) || !path.IsAbs(file) || path.Clean(file) != file {
			return nil, fmt.Errorf("%s:%d: want a SHA-256, two spaces and an absolute path, as sha256sum prints it", name, n)
		} else {
			copy(sum[:], b)
		}
		if total++; total > MaxPrograms {
			return nil, fmt.Errorf("%s:%d: more than %d programs", name, n, MaxPrograms)
		}
		p.by[file] = append(p.by[file], sum)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", name, n+1, err)
	}
	if total == 0 {
		return nil, fmt.Errorf("%s: no program is listed", name)
	}
	return p, nil
}

// stamp tells whether a file is the one that was hashed.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // ns
}

// hasher hashes files, each once while it does not change.
type hasher struct {
	known map[stamp][32]byte
	left  int64
	since time.Time
}

var errBudget = errors.New("too much had to be hashed in this minute")

// sum returns a file's SHA-256.
func (h *hasher) sum(file string, now time.Time) ([32]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return [32]byte{}, err
	}
	defer f.Close()
	s, err := stampOf(f)
	if err != nil {
		return [32]byte{}, err
	}
	if sum, ok := h.known[s]; ok {
		return sum, nil
	}
	if now.Sub(h.since) >= time.Minute || now.Before(h.since) {
		h.since, h.left = now, hashBudget
	}
	if s.size > maxFile {
		return [32]byte{}, fmt.Errorf("a file of %d bytes is not hashed", s.size)
	}
	if s.size > h.left {
		return [32]byte{}, errBudget
	}
	h.left -= s.size
	d := sha256.New()
	if _, err := io.Copy(d, io.LimitReader(f, s.size+1)); err != nil {
		return [32]byte{}, err
	}
	if again, err := stampOf(f); err != nil || again != s {
		return [32]byte{}, errors.New("the file changes while it is hashed")
	}
	if h.known == nil || len(h.known) >= maxHashes {
		h.known = map[stamp][32]byte{}
	}
	sum := [32]byte(d.Sum(nil))
	h.known[s] = sum
	return sum, nil
}

func stampOf(f *os.File) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stamp{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return stamp{}, errors.New("not a file")
	}
	return stamp{st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// Lists reports whether an executable of that path and hash is on the list.
func (p *Programs) Lists(image string, sum [32]byte) bool { return slices.Contains(p.by[image], sum) }

// judge says why a file is not one of the list; empty: it is. Where the
// process still runs, the file is the one that it runs.
func (p *Programs) judge(h *hasher, image, open string, now time.Time) string {
	sums, ok := p.by[image]
	if !ok {
		return "its path is not listed"
	}
	sum, err := h.sum(open, now)
	if err != nil {
		if sum, err = h.sum(image, now); err != nil {
			return "it could not be read: " + err.Error()
		}
	}
	for _, s := range sums {
		if s == sum {
			return ""
		}
	}
	return "its content is another: " + hex.EncodeToString(sum[:8])
}
