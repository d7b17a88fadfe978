package sigma

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
)

// Set is rules made ready to match. It does not change and is safe for
// concurrent use; each goroutine needs a Matcher of its own.
type Set struct {
	Rules   []Rule
	Hash    chain.Hash // of the files' names and contents
	Files   int
	Skipped int // rules for other sources than Linux' processes

	atoms   []*probe
	when    []int32 // root of each rule, in logic
	logic   []gate
	kids    []int32
	search  [numFields]automaton
	touched [][]int32 // by atom, the rules that ask it
	eager   []int32   // rules that may hold although nothing was found
}

// gate is an expression, in a flat list.
type gate struct {
	op   operator
	atom int32 // of ask
	from int32 // in kids
	n    int32
}

// probe is an atom made ready.
type probe struct {
	atom
	direct bool     // what the automaton finds is the answer
	lits   []string // folded; without any of them the atom cannot hold; none: unknown
}

// Load reads and compiles all .yml and .yaml files of folders and those below.
// One broken rule refuses them all; the error names each with file and line.
func Load(folders ...fs.FS) (*Set, error) {
	l := loader{seen: map[string]string{}}
	for _, fsys := range folders {
		if err := fs.WalkDir(fsys, ".", func(file string, d fs.DirEntry, err error) error {
			if ext := path.Ext(file); err != nil || d.IsDir() || ext != ".yml" && ext != ".yaml" {
				return err
			}
			return l.file(fsys, file)
		}); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(l.errs...); err != nil {
		return nil, err
	}
	if len(l.all) == 0 {
		return nil, fmt.Errorf("there is no rule for process_creation on Linux in %d files ending in .yml or .yaml", l.files)
	}
	slices.SortStableFunc(l.all, func(a, b parsed) int { return cmp.Compare(a.Name, b.Name) })
	s, err := compile(l.all)
	if err != nil {
		return nil, err
	}
	s.Files, s.Skipped, s.Hash = l.files, l.skipped, chain.Sum([]byte(strings.Join(l.sum, "\n")))
	return s, nil
}

// loader gathers rules of files.
type loader struct {
	all            []parsed
	errs           []error
	files, skipped int
	sum            []string          // names and hashes of files
	seen           map[string]string // file by rule
}

func (l *loader) file(fsys fs.FS, file string) error {
	if l.files++; l.files > MaxFiles {
		return fmt.Errorf("more than %d files", MaxFiles)
	}
	text, err := read(fsys, file)
	if err != nil {
		return err
	}
	l.sum = append(l.sum, file, chain.Sum(text).String())
	rules, skipped, err := parse(file, text)
	l.skipped += skipped
	if err != nil {
		if f := (*fault)(nil); errors.As(err, &f) && f.line == 0 {
			err = fmt.Errorf("%s: %w", file, err)
		} else {
			err = fmt.Errorf("%s:%w", file, err)
		}
		l.errs = append(l.errs, err)
		return nil
	}
	for _, r := range rules {
		if other, ok := l.seen[r.Name]; ok {
			l.errs = append(l.errs, fmt.Errorf("%s: another rule is called %s, of %s", file, r.Name, other))
		} else if slices.ContainsFunc(guard.Rules, func(g guard.Rule) bool { return g.ID == r.Name }) {
			l.errs = append(l.errs, fmt.Errorf("%s: %s is the name of a rule of the guard itself; rename the file", file, r.Name))
		}
		l.seen[r.Name] = file
		l.all = append(l.all, r)
	}
	if len(l.all) > MaxRules {
		return fmt.Errorf("%s: more than %d rules", file, MaxRules)
	}
	return nil
}

// read reads a file, one byte more than it may have at most.
func read(fsys fs.FS, file string) ([]byte, error) {
	f, err := fsys.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFile+1))
}

// compile turns expressions into gates over shared atoms.
func compile(all []parsed) (*Set, error) {
	s := &Set{}
	index := map[string]int32{}
	for n, r := range all {
		s.Rules = append(s.Rules, r.Rule)
		s.when = append(s.when, s.add(r.when, index, int32(n)))
		if len(s.atoms) > maxAtoms {
			return nil, fmt.Errorf("more than %d questions in all rules; %s is one too many", maxAtoms, r.Name)
		}
	}
	var words [numFields][]word
	for i, p := range s.atoms {
		if p.field == missing {
			continue
		}
		for _, lit := range p.lits {
			words[p.field] = append(words[p.field], word{lit, int32(i), p.where()})
		}
	}
	for f := range words {
		var err error
		if s.search[f], err = newAutomaton(words[f]); err != nil {
			return nil, fmt.Errorf("field %d: %w", f, err)
		}
	}
	for n := range s.when {
		if s.mayHold(s.when[n]) != holdsNot {
			s.eager = append(s.eager, int32(n))
		}
	}
	return s, nil
}

// add flattens an expression and returns its gate.
func (s *Set) add(e *expr, index map[string]int32, rule int32) int32 {
	if e.op == ask {
		k := e.atom.key()
		i, ok := index[k]
		if !ok {
			i = int32(len(s.atoms))
			index[k] = i
			s.atoms = append(s.atoms, newProbe(e.atom))
			s.touched = append(s.touched, nil)
		}
		if t := s.touched[i]; len(t) == 0 || t[len(t)-1] != rule {
			s.touched[i] = append(s.touched[i], rule)
		}
		s.logic = append(s.logic, gate{op: ask, atom: i})
		return int32(len(s.logic) - 1)
	}
	kids := make([]int32, len(e.kids))
	for i, k := range e.kids {
		kids[i] = s.add(k, index, rule)
	}
	// The cheap first: they often decide.
	slices.SortStableFunc(kids, func(a, b int32) int { return cmp.Compare(s.cost(a), s.cost(b)) })
	from := int32(len(s.kids))
	s.kids = append(s.kids, kids...)
	s.logic = append(s.logic, gate{op: e.op, from: from, n: int32(len(kids))})
	return int32(len(s.logic) - 1)
}

func (s *Set) cost(g int32) int {
	l := s.logic[g]
	if l.op == ask {
		switch p := s.atoms[l.atom]; {
		case p.direct:
			return 1
		case p.is == matches: // some 10 ns a character, for each
			return 1000
		}
		return 10
	}
	sum := 0
	for _, k := range s.kids[l.from : l.from+l.n] {
		sum += s.cost(k)
	}
	return sum
}

// mayHold tells what a gate is while nothing was found.
func (s *Set) mayHold(g int32) answer {
	l := s.logic[g]
	switch l.op {
	case ask:
		switch p := s.atoms[l.atom]; {
		case p.field == missing:
			return p.ofNothing()
		case len(p.lits) > 0:
			return holdsNot
		}
		return open
	case not:
		switch s.mayHold(s.kids[l.from]) {
		case holdsNot:
			return holds
		case holds:
			return holdsNot
		}
		return open
	}
	decides, out := holds, holdsNot // of or
	if l.op == and {
		decides, out = holdsNot, holds
	}
	for _, k := range s.kids[l.from : l.from+l.n] {
		switch t := s.mayHold(k); t {
		case decides:
			return t
		case open:
			out = open
		}
	}
	return out
}

// ofNothing answers about a field that is always absent.
func (p *probe) ofNothing() answer {
	if p.is == absent {
		return holds
	}
	return holdsNot
}

func newProbe(a atom) *probe {
	p := &probe{atom: a}
	switch a.is {
	case absent, present:
		p.direct = true
	case matches:
		p.lits = required(a.re.String())
	case like:
		lits := a.glob.literals()
		best := slices.MaxFunc(append(lits, ""), func(x, y string) int { return cmp.Compare(len(x), len(y)) })
		if a.cased {
			best = string(appendFold(nil, best))
		}
		if best != "" {
			p.lits = []string{best}
		}
		// One literal with nothing but a star before or after it needs no
		// second look.
		g := a.glob
		if len(lits) == 1 && !a.cased && !slices.Contains(g, any1) {
			p.direct = true
		}
	}
	return p
}

// where tells where the literal must lie for a direct probe.
func (p *probe) where() place {
	if !p.direct {
		return inside | unsure
	}
	var at place
	if p.glob[0] != star {
		at |= atStart
	}
	if p.glob[len(p.glob)-1] != star {
		at |= atEnd
	}
	return at
}
