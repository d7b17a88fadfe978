package sunspec

import (
	_ "embed" // the table
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
)

//go:embed models.txt
var table string

// Catalog is the models that are known. It does not change and may be shared.
type Catalog struct {
	models map[uint16]*Model
}

// maxFiles bounds a folder of models.
const maxFiles = 1024

// Builtin returns the built-in models.
func Builtin() *Catalog {
	c := &Catalog{models: map[uint16]*Model{}}
	models, err := parseTable(table)
	if err != nil {
		panic(err) // embedded, and parsed by tests
	}
	for _, m := range models {
		c.models[m.ID] = m
	}
	return c
}

// Load returns the built-in models with the official JSON files at the root of
// fsys (model_103.json) over them. Files that are wrong are left out: the
// catalog can be used even if there is an error, which names them all.
func Load(fsys fs.FS) (*Catalog, error) {
	c := Builtin()
	names, err := fs.Glob(fsys, "model_*.json")
	if err != nil {
		return c, err
	}
	if len(names) > maxFiles {
		return c, fmt.Errorf("%d models: want at most %d", len(names), maxFiles)
	}
	var all []error
	for _, name := range names {
		m, err := loadModel(fsys, name)
		if err != nil {
			all = append(all, err)
			continue
		}
		c.models[m.ID] = m
	}
	return c, errors.Join(all...)
}

func loadModel(fsys fs.FS, name string) (*Model, error) {
	info, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, err
	}
	if info.Size() > MaxFileSize {
		return nil, fmt.Errorf("%s: %d bytes, at most %d", name, info.Size(), MaxFileSize)
	}
	b, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, err
	}
	return ParseJSON(name, b)
}

// Model returns the model id, and whether it is known.
func (c *Catalog) Model(id uint16) (*Model, bool) {
	m, ok := c.models[id]
	return m, ok
}

// IDs returns the ids of all models, in order.
func (c *Catalog) IDs() []uint16 { return slices.Sorted(maps.Keys(c.models)) }

// parseTable reads the compact table. Per line:
//
//	model ID... NAME       starts models with equal points; ID and L go without saying
//	NAME TYPE [SF [UNIT]]  a point; "-" is no scale factor; str and its registers: str16
//	group NAME [COUNT]     COUNT: the name of a point, or * until the block ends
//	end                    of the group
func parseTable(text string) ([]*Model, error) {
	var out []*Model
	var ids []uint16
	var stack []*Group // of the first model of ids
	finish := func() error {
		if len(ids) == 0 {
			return nil
		}
		if len(stack) != 1 {
			return errors.New("a group is open")
		}
		for _, id := range ids {
			m := &Model{ID: id, Group: *stack[0]}
			if err := m.check(); err != nil {
				return err
			}
			out = append(out, m)
		}
		return nil
	}
	n := 0
	for line := range strings.Lines(text) {
		n++
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		var err error
		switch {
		case f[0] == "model":
			if err = finish(); err == nil {
				ids, stack, err = tableModel(f[1:])
			}
		case len(stack) == 0:
			err = errors.New("outside of a model")
		case f[0] == "group" && (len(f) == 2 || len(f) == 3):
			g := Group{Name: f[1]}
			if len(f) == 3 {
				if g.Rest = f[2] == "*"; !g.Rest {
					g.CountBy = f[2]
				}
			}
			top := stack[len(stack)-1]
			top.Groups = append(top.Groups, g)
			stack = append(stack, &top.Groups[len(top.Groups)-1])
		case f[0] == "end" && len(f) == 1 && len(stack) > 1:
			stack = stack[:len(stack)-1]
		default:
			var p Point
			if p, err = tablePoint(f); err == nil {
				top := stack[len(stack)-1]
				top.Points = append(top.Points, p)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("models.txt:%d: %w", n, err)
		}
	}
	if err := finish(); err != nil {
		return nil, fmt.Errorf("models.txt:%d: %w", n, err)
	}
	return out, nil
}

func tableModel(f []string) ([]uint16, []*Group, error) {
	if len(f) < 2 {
		return nil, nil, errors.New("want model ID... NAME")
	}
	var ids []uint16
	for _, s := range f[:len(f)-1] {
		id, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return nil, nil, err
		}
		ids = append(ids, uint16(id))
	}
	g := &Group{Name: f[len(f)-1], Points: []Point{{Name: "ID", Type: Uint16, Size: 1}, {Name: "L", Type: Uint16, Size: 1}}}
	return ids, []*Group{g}, nil
}

func tablePoint(f []string) (Point, error) {
	if len(f) < 2 {
		return Point{}, fmt.Errorf("%q: want NAME TYPE [SF [UNIT]]", strings.Join(f, " "))
	}
	p := Point{Name: f[0], Type: Type(f[1])}
	if n, ok := strings.CutPrefix(f[1], string(String)); ok {
		var err error
		if p.Size, err = strconv.Atoi(n); err != nil {
			return Point{}, err
		}
		p.Type = String
	} else {
		p.Size = types[p.Type].size
	}
	if len(f) > 2 && f[2] != "-" {
		if e, err := strconv.Atoi(f[2]); err == nil {
			p.Exp = e
		} else {
			p.Factor = f[2]
		}
	}
	if len(f) > 3 {
		p.Unit = strings.Join(f[3:], " ")
	}
	return p, nil
}
