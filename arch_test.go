package joulegate_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/joulegate/joulegate"

// pkg is what `go list -json` tells of a package. Only the files that ship
// count: tests may import what they need.
type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	CgoFiles   []string
	Imports    []string
}

// layer is a package's height. Imports point down only.
type layer int

const (
	unknown layer = iota
	words         // types, their one encoding, signature checks
	core          // decisions as functions: no clock, no disk, no socket
	edge          // goroutines, devices, files, networks
	wiring        // builds it all and hands it to one another
	root          // this directory
)

func (l layer) String() string {
	return [...]string{"unknown", "words", "core", "edge", "wiring", "root"}[l]
}

// layerOf places a package of this module by its path.
func layerOf(rel string) layer {
	switch rel {
	case "":
		return root
	case "meter", "chain", "drivers", "guard", "board":
		return words
	case "chain/market", "chain/ledger", "chain/invoice", "chain/proof", "chain/tree", "board/config", "board/boards", "board/commission", "board/label", "guard/policy", "guard/pipe", "guard/report", "guard/sigma":
		return core
	}
	switch top, _, _ := strings.Cut(rel, "/"); top {
	case "meter":
		return core
	case "drivers", "p2p", "chain", "guard", "board":
		return edge
	case "cmd", "tools":
		return wiring
	}
	return unknown
}

// own returns the path within this module, and whether it is within.
func own(importPath string) (string, bool) {
	if importPath == module {
		return "", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// under reports whether p is dir or below it.
func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// rule is one sentence of the architecture. It returns what is wrong with
// from importing to (both as import paths), or nothing.
type rule struct {
	reason string
	broken func(from, to string) bool
}

// within makes a rule between two packages of this module.
func within(f func(from, to string) bool) func(from, to string) bool {
	return func(from, to string) bool {
		f1, ok1 := own(from)
		t1, ok2 := own(to)
		return ok1 && ok2 && f(f1, t1)
	}
}

// impure is what a decision must not reach, and pure what it may although it
// lies below: addresses as values.
var (
	impure = []string{"os", "net", "context", "sync", "log", "math/rand", "crypto/rand", "syscall", "golang.org/x/sys"}
	pure   = []string{"net/netip", "net/url"}
)

var rules = []rule{
	{"a core package decides from its arguments alone, so that it can be replayed, simulated and proven equal on every gateway: no os, net, context, sync, log, random", func(from, to string) bool {
		rel, ok := own(from)
		return ok && layerOf(rel) == core && !slices.Contains(pure, to) && slices.ContainsFunc(impure, func(p string) bool { return under(to, p) })
	}},
	{"a bundle is judged by a second implementation that runs in a browser: chain/proof and chain/tree share no code with CometBFT, IAVL or ICS-23", func(from, to string) bool {
		rel, ok := own(from)
		return ok && (under(rel, "chain/proof") || under(rel, "chain/tree")) && slices.ContainsFunc([]string{"github.com/cometbft", "github.com/cosmos", "cosmossdk.io"}, func(p string) bool { return under(to, p) })
	}},
	{"words are understood without anything above them: they import words only", within(func(from, to string) bool {
		return layerOf(from) == words && layerOf(to) != words
	})},
	{"core packages know words and other core packages; edges call them, never the other way", within(func(from, to string) bool {
		return layerOf(from) == core && layerOf(to) > core
	})},
	{"edges meet in the wiring through interfaces that the consumer declares, so that each can be tested and replaced alone", within(func(from, to string) bool {
		return layerOf(from) == edge && layerOf(to) == edge
	})},
	{"agreement runs on any libp2p host it is given: chain/consensus never imports our p2p", within(func(from, to string) bool {
		return under(from, "chain/consensus") && under(to, "p2p")
	})},
	{"only cmd and tools wire: nothing below imports them", within(func(from, to string) bool {
		return layerOf(from) < wiring && layerOf(to) == wiring
	})},
	{"tools are libraries and programs of their own: they never import cmd", within(func(from, to string) bool {
		return under(from, "tools") && under(to, "cmd")
	})},
	{"tests' helpers do not ship", func(from, to string) bool {
		rel, ok := own(from)
		return ok && to == "testing" && layerOf(rel) != wiring && !strings.HasSuffix(rel, "test")
	}},
	{"everything shipped builds without cgo, for four processors", func(_, to string) bool { return to == "C" }},
}

// folders are the top-level folders there are. A new package is welcome; a
// new top-level folder means that the design has changed.
var folders = []string{"board", "chain", "cmd", "docs", "drivers", "guard", "meter", "p2p", "tools"}

// violations checks one package's place and imports.
func violations(p pkg) []string {
	var out []string
	rel, _ := own(p.ImportPath)
	if layerOf(rel) == unknown {
		out = append(out, fmt.Sprintf("%s belongs to no layer: top-level folders are fixed", p.ImportPath))
	}
	for _, to := range p.Imports {
		for _, r := range rules {
			if r.broken(p.ImportPath, to) {
				out = append(out, fmt.Sprintf("%s imports %s: %s", p.ImportPath, to, r.reason))
			}
		}
	}
	return out
}

// misuses checks one file of a package for what imports do not show.
func misuses(rel, name string, f *ast.File) []string {
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
	exact := rel == "chain" || under(rel, "chain/ledger") || under(rel, "chain/market")
	var out []string
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && layerOf(rel) == core && slices.Contains(clock, n.Sel.Name) {
				out = append(out, fmt.Sprintf("%s/%s calls time.%s: in a core package time is a value", rel, name, n.Sel.Name))
			}
		case *ast.Ident:
			if exact && (n.Name == "float64" || n.Name == "float32") {
				out = append(out, fmt.Sprintf("%s/%s uses %s: money and energy are integers, floats round differently on every processor", rel, name, n.Name))
			}
		}
		return true
	})
	return out
}

// TestArchitecture holds every package to the layers of ARCHITECTURE.md.
func TestArchitecture(t *testing.T) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,CgoFiles,Imports", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages++
		for _, v := range violations(p) {
			t.Error(v)
		}
		rel, _ := own(p.ImportPath)
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				continue // the compiler says it better
			}
			for _, v := range misuses(rel, name, f) {
				t.Error(v)
			}
		}
	}
	if packages < 4 {
		t.Fatalf("go list shows %d packages: nothing was checked", packages)
	}
}

// TestTopLevelFolders keeps the ground plan.
func TestTopLevelFolders(t *testing.T) {
	ignored, err := os.ReadFile(".gitignore")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() || strings.HasPrefix(name, ".") || strings.Contains("\n"+string(ignored), "\n/"+name+"/\n") {
			continue
		}
		if !slices.Contains(folders, name) {
			t.Errorf("top-level folder %s: the folders are %s", name, strings.Join(folders, ", "))
		}
	}
}

// TestPlantedViolations proves that the checker sees what it is for: every
// rule must report its own planted import, and leave its lawful neighbour
// alone.
func TestPlantedViolations(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     string // part of the reason; empty: lawful
	}{
		{"chain/ledger", "os", "decides from its arguments"},
		{"chain/market", "net/http", "decides from its arguments"},
		{"meter/session", "context", "decides from its arguments"},
		{"meter/poll", "sync/atomic", "decides from its arguments"},
		{"board/config", "log/slog", "decides from its arguments"},
		{"meter/profile", "math/rand/v2", "decides from its arguments"},
		{"chain/ledger", "crypto/rand", "decides from its arguments"},
		{"chain/proof", "github.com/cometbft/cometbft/types", "runs in a browser"},
		{"chain/proof", module + "/meter/profile", ""},
		{"chain/ledger", "osmosis.example/x", ""},
		{"chain/ledger", "crypto/sha256", ""},
		{"meter/profile", "time", ""},
		{"board/config", "net/netip", ""},
		{"board/station", "os", ""},
		{"chain", module + "/chain/ledger", "words only"},
		{"chain", module + "/meter", ""},
		{"chain/ledger", module + "/chain/journal", "never the other way"},
		{"chain/ledger", module + "/chain/market", ""},
		{"board/panel", module + "/board/live", "meet in the wiring"},
		{"drivers/wallbox", module + "/drivers/modbus", "meet in the wiring"},
		{"board/panel", module + "/chain/ledger", ""},
		{"chain/consensus", module + "/p2p", "any libp2p host"},
		{"board/station", module + "/tools/sim", "only cmd and tools wire"},
		{"chain/audit", module + "/cmd/joulegate", "only cmd and tools wire"},
		{"tools/bench", module + "/cmd/joulegate", "never import cmd"},
		{"cmd/joulegate", module + "/tools/sim", ""},
		{"cmd/joulegate", module + "/p2p", ""},
		{"board/mqtt", "testing", "do not ship"},
		{"drivers/driverstest", "testing", ""},
		{"drivers/gpio", "C", "without cgo"},
		{"utils", "fmt", "no layer"},
	} {
		got := strings.Join(violations(pkg{ImportPath: path.Join(module, c.from), Imports: []string{c.to}}), "\n")
		if c.want == "" && got != "" {
			t.Errorf("%s -> %s is lawful, reported: %s", c.from, c.to, got)
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s -> %s: want %q, reported: %q", c.from, c.to, c.want, got)
		}
	}
	src := "package p\nimport \"time\"\nvar x float64\nfunc f() { time.Now() }\n"
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := misuses("chain/ledger", "x.go", f); len(got) != 2 {
		t.Errorf("a clock and a float in the ledger: reported %q", got)
	}
	if got := misuses("board/station", "x.go", f); len(got) != 0 {
		t.Errorf("a clock and a float at an edge: reported %q", got)
	}
}
