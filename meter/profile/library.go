package profile

import (
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

//go:embed data/*.yaml
var files embed.FS

// maxFiles bounds a folder of profiles.
const maxFiles = 512

// Suffixes of variants.
const (
	reversedSuffix = "+reversed"
	swappedSuffix  = "+swapped"
)

// Library is the built-in profiles with those of a folder over them: a file
// takes the place of the built-in profile with its id. A nil Library is the
// built-in profiles alone. It does not change and may be shared.
type Library struct {
	own map[string]*Profile // by id
}

// Load reads all files NAME.yaml at the root of fsys, each the profile with id
// NAME. The error names the first file that is wrong, and its line.
func Load(fsys fs.FS) (*Library, error) {
	names, err := fs.Glob(fsys, "*.yaml")
	if err != nil {
		return nil, err
	}
	if len(names) > maxFiles {
		return nil, fmt.Errorf("%d profiles: want at most %d", len(names), maxFiles)
	}
	l := &Library{own: make(map[string]*Profile, len(names))}
	for _, name := range names {
		info, err := fs.Stat(fsys, name)
		if err != nil {
			return nil, err
		}
		if info.Size() > MaxFileSize {
			return nil, fmt.Errorf("%s: profile is %d bytes long, at most %d", name, info.Size(), MaxFileSize)
		}
		b, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		p, err := parseFile(name, b)
		if err != nil {
			return nil, err
		}
		l.own[p.ID] = p
	}
	return l, nil
}

// parseFile parses a profile whose file must be called as it is.
func parseFile(name string, b []byte) (*Profile, error) {
	p, err := Parse(name, b)
	if err != nil {
		return nil, err
	}
	if want := strings.TrimSuffix(path.Base(name), ".yaml"); p.ID != want {
		return nil, fmt.Errorf("%s:%d: id: %q: a file is called as its profile: want %q", name, lineOf(b, "$.id"), p.ID, want)
	}
	return p, nil
}

// Own reports whether the profile id comes from the folder.
func (l *Library) Own(id string) bool {
	if l == nil {
		return false
	}
	_, ok := l.own[id]
	return ok
}

// IDs returns the ids of all profiles, in order.
func (l *Library) IDs() []string {
	entries, err := files.ReadDir("data")
	if err != nil {
		panic(err) // embedded
	}
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		ids = append(ids, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	if l != nil {
		ids = append(ids, slices.Collect(maps.Keys(l.own))...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// All returns all profiles, ordered by id. It parses the built-in ones anew.
func (l *Library) All() []*Profile {
	ids := l.IDs()
	out := make([]*Profile, 0, len(ids))
	for _, id := range ids {
		p, ok := l.plain(id)
		if !ok {
			panic(id) // just listed
		}
		out = append(out, p)
	}
	return out
}

// Get returns the profile id, or its variant "id+reversed", "id+swapped" or
// "id+reversed+swapped". The error lists what there is.
func (l *Library) Get(id string) (*Profile, error) {
	base, isSwapped := strings.CutSuffix(id, swappedSuffix)
	base, isReversed := strings.CutSuffix(base, reversedSuffix)
	p, ok := l.plain(base)
	if !ok {
		return nil, fmt.Errorf("unknown profile %q: there is %s", id, strings.Join(l.IDs(), ", "))
	}
	if isReversed {
		p = p.Reversed()
	}
	if isSwapped {
		p = p.Swapped()
	}
	return p, nil
}

func (l *Library) plain(id string) (*Profile, bool) {
	if !validID(id) {
		return nil, false
	}
	if l != nil {
		if p, ok := l.own[id]; ok {
			return p, true
		}
	}
	name := path.Join("data", id+".yaml")
	b, err := files.ReadFile(name)
	if err != nil {
		return nil, false
	}
	p, err := parseFile(name, b)
	if err != nil {
		panic(err) // embedded, and parsed by tests
	}
	return p, true
}

// All returns the built-in profiles: see Library.All.
func All() []*Profile { return (*Library)(nil).All() }

// Get returns a built-in profile or a variant of one: see Library.Get.
func Get(id string) (*Profile, error) { return (*Library)(nil).Get(id) }
