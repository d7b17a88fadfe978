// Package boards knows the hardware that joulegate runs on. Every board is
// one YAML file under data/, described by the words of package board; adding
// a board means adding a file.
package boards

import (
	"embed"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/joulegate/joulegate/board"
)

//go:embed data/*.yaml
var files embed.FS

var all = load()

func load() []board.Board {
	entries, err := files.ReadDir("data")
	if err != nil {
		panic(err)
	}
	var out []board.Board
	for _, e := range entries {
		b, err := files.ReadFile("data/" + e.Name())
		if err != nil {
			panic(err)
		}
		d, err := Parse(b)
		if err != nil {
			panic(fmt.Sprintf("boards: data/%s: %v", e.Name(), err))
		}
		if d.ID+".yaml" != e.Name() {
			panic(fmt.Sprintf("boards: data/%s describes %q", e.Name(), d.ID))
		}
		out = append(out, d)
	}
	return out
}

// Parse reads a board description. Unknown keys are errors.
func Parse(b []byte) (board.Board, error) {
	var d board.Board
	if err := yaml.UnmarshalWithOptions(b, &d, yaml.Strict()); err != nil {
		return board.Board{}, err
	}
	return d, d.Check()
}

// Get returns the board of that id, or an error that names the known ones.
func Get(id string) (board.Board, error) {
	i := slices.IndexFunc(all, func(b board.Board) bool { return b.ID == id })
	if i < 0 {
		return board.Board{}, fmt.Errorf("unknown board %q (%s)", id, strings.Join(IDs(), ", "))
	}
	return all[i], nil
}

// IDs returns the ids of all boards, sorted.
func IDs() []string {
	ids := make([]string, len(all))
	for i := range all {
		ids[i] = all[i].ID
	}
	return ids
}

// Detect returns the id of the board whose device tree says it is compatible
// with one of these strings, the most specific first (as in
// /proc/device-tree/compatible).
// The device tree lists the whole before its parts, so that a Revolution Pi is
// not taken for the Raspberry Pi inside it.
func Detect(compatible []string) (id string, ok bool) {
	for _, c := range compatible {
		for i := range all {
			if slices.Contains(all[i].Detect, c) {
				return all[i].ID, true
			}
		}
	}
	return "", false
}
