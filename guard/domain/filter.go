package domain

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/joulegate/joulegate/guard"
)

// Filter tells whether a name may be looked up. It is immutable and safe for
// concurrent use: a new one is built beside it and takes its place.
type Filter struct {
	block *Set
	allow map[string]Scope // exact: a collision must not let anything through
	lists []guard.NameList
	only  bool
}

// Empty returns a filter without lists: with only it blocks everything, else
// nothing.
func Empty(only bool) *Filter { return &Filter{block: &Set{}, only: only} }

// Options of a filter.
type Options struct {
	Block []string // files
	Allow []string // files whose names may be looked up whatever else says
	// Only blocks every name that is not allowed: for a gateway that talks to
	// few, a list of friends is shorter than one of enemies.
	Only bool
	// Progress is told the file and the rules read so far, about every
	// 100,000 rules; nil: nobody.
	Progress func(file string, rules int)
}

const progressEvery = 100_000

// MaxAllow is the most names that may be allowed: they are kept whole.
const MaxAllow = 100_000

// Load builds a filter from files. Any file that cannot be read whole is an
// error that names it and the line, and nothing is built.
func Load(ctx context.Context, o Options) (*Filter, error) {
	f := &Filter{allow: map[string]Scope{}, only: o.Only}
	b := newBuilder()
	total := 0
	for _, files := range []struct {
		names []string
		allow bool
	}{{o.Block, false}, {o.Allow, true}} {
		for _, name := range files.names {
			s := guard.NameList{File: name, Allow: files.allow}
			var full error
			err := read(name, func(in io.Reader) (err error) {
				s.Skipped, err = Rules(name, reader{ctx, in}, func(r Rule) {
					s.Rules++
					switch {
					case full != nil:
					case r.Allow || files.allow:
						if len(f.allow) >= MaxAllow {
							full = fmt.Errorf("%s:%d: more than %d allowed names", name, r.Line, MaxAllow)
						} else {
							f.allow[r.Name] |= r.Scope
						}
					case len(b.hashes) >= MaxNames:
						full = fmt.Errorf("%s:%d: more than %d blocked names", name, r.Line, MaxNames)
					default:
						b.add(r.Name, r.Scope)
					}
					if total++; total%progressEvery == 0 && o.Progress != nil {
						o.Progress(name, total)
					}
				})
				return err
			})
			switch {
			case err != nil:
			case full != nil:
				err = full
			case s.Rules == 0 && s.Skipped > 0:
				err = fmt.Errorf("%s: none of its %d lines is a rule about names: hosts files, names, *.names, ||names^ and response policy zones are understood", name, s.Skipped)
			}
			if err != nil {
				return nil, err
			}
			f.lists = append(f.lists, s)
		}
	}
	f.block = b.build()
	return f, nil
}

func read(name string, fn func(io.Reader) error) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	return fn(file)
}

// reader ends with ctx.
type reader struct {
	ctx context.Context
	in  io.Reader
}

func (r reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.in.Read(b)
}

// Verdict is what a filter says about a name.
type Verdict struct {
	Name   string // canonical
	Block  bool
	Suffix string // of the name, that a rule is about; empty: no rule is
	Scope  Scope  // of that rule
}

// Lists returns what the filter was built from.
func (f *Filter) Lists() []guard.NameList { return f.lists }

// Blocked returns the number of blocking rules and the bytes they take.
func (f *Filter) Blocked() (rules, bytes int) { return f.block.Len(), f.block.Bytes() }

// Judge says whether name may be looked up. Allowing rules win over blocking
// ones. A name that is none is an error.
func (f *Filter) Judge(name string) (Verdict, error) {
	c, err := Canonical(name)
	if err != nil {
		return Verdict{Name: name}, err
	}
	return f.judge(c), nil
}

func (f *Filter) judge(name string) Verdict {
	v := Verdict{Name: name}
	if len(f.allow) > 0 {
		for want, rest := Self, name; ; want = Subs {
			if s := f.allow[rest]; s&want != 0 {
				v.Suffix, v.Scope = rest, s
				return v
			}
			if rest = parent(rest); rest == "" {
				break
			}
		}
	}
	if v.Suffix, v.Scope, v.Block = f.block.Lookup(name); !v.Block {
		v.Suffix, v.Scope = "", 0
		v.Block = f.only
	}
	return v
}

func parent(name string) string {
	for i := range len(name) {
		if name[i] == '.' {
			return name[i+1:]
		}
	}
	return ""
}

// Why finds the rule behind a verdict: its text and its list. The filter does
// not keep the texts, so the lists are read again; where one has changed
// since, text is what the filter knows.
func (f *Filter) Why(v Verdict) (text, list string) {
	switch {
	case v.Suffix == "" && v.Block:
		return "not on an allow-list", ""
	case v.Suffix == "":
		return "", ""
	}
	for _, s := range f.lists {
		if s.Allow && v.Block {
			continue
		}
		_ = read(s.File, func(in io.Reader) error {
			_, err := Rules(s.File, in, func(r Rule) {
				if text == "" && r.Name == v.Suffix && (r.Allow || s.Allow) != v.Block && (r.Scope&Subs != 0 || v.Name == r.Name && r.Scope&Self != 0) {
					text, list = r.Text, s.File
				}
			})
			return err
		})
		if text != "" {
			return text, list
		}
	}
	return v.Suffix, ""
}
