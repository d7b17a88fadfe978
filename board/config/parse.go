package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Error is one thing wrong with a configuration.
type Error struct {
	Path    string `json:"path"` // for example chargers[0].max_current_ma
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Message string `json:"message"`
}

func (e Error) Error() string {
	var s strings.Builder
	if e.Line > 0 {
		fmt.Fprintf(&s, "line %d: ", e.Line)
	}
	if e.Path != "" {
		s.WriteString(e.Path + ": ")
	}
	return s.String() + e.Message
}

// Errors is a list of them, in the order of the document.
type Errors []Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Parse reads a YAML document, fills in defaults and validates it. The error
// is Errors, each with the line it is on.
func Parse(b []byte) (Config, error) {
	fail := func(e Error) (Config, error) { return Config{}, Errors{e} }
	if len(b) > MaxBytes {
		return fail(Error{Message: fmt.Sprintf("%d bytes, at most %d", len(b), MaxBytes)})
	}
	if e, bad := screen(b); bad {
		return fail(e)
	}
	file, err := parser.ParseBytes(b, 0)
	if err != nil {
		return fail(located(err, nil))
	}
	if len(file.Docs) != 1 {
		return fail(Error{Message: fmt.Sprintf("%d YAML documents, want one", len(file.Docs))})
	}
	if file.Docs[0].Body == nil {
		return fail(Error{Message: "the file is empty"})
	}
	c := Default()
	c.Version = 0 // the one key without a default: a file says what it is
	if err := yaml.UnmarshalWithOptions(b, &c, yaml.Strict()); err != nil {
		return fail(located(err, file))
	}
	c.fill()
	if errs := c.Validate(); len(errs) > 0 {
		for i := range errs {
			errs[i].Line, errs[i].Column = position(file, errs[i].Path)
		}
		return Config{}, errs
	}
	return c, nil
}

// screen refuses what a configuration never needs and a parser pays for:
// anchors and aliases (expansion), and deep nesting (recursion).
func screen(b []byte) (Error, bool) {
	tokens := lexer.Tokenize(string(b))
	if len(tokens) > maxTokens {
		return Error{Message: fmt.Sprintf("%d words and signs, at most %d", len(tokens), maxTokens)}, true
	}
	depth, indents := 0, []int{0}
	for _, t := range tokens {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType, token.TagType, token.DirectiveType:
			return Error{Line: t.Position.Line, Column: t.Position.Column, Message: fmt.Sprintf("%q: anchors, aliases, tags and directives are not used here", t.Value)}, true
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
		}
		col := t.Position.Column
		for len(indents) > 1 && col <= indents[len(indents)-1] {
			indents = indents[:len(indents)-1]
		}
		if t.Type == token.MappingKeyType || t.Type == token.SequenceEntryType || t.Type == token.MappingValueType {
			indents = append(indents, col)
		}
		if depth > maxNesting || len(indents) > 4*maxNesting {
			return Error{Line: t.Position.Line, Column: col, Message: "nested too deeply"}, true
		}
	}
	return Error{}, false
}

// located turns an error of the YAML package into ours.
func located(err error, file *ast.File) Error {
	var y yaml.Error
	if !errors.As(err, &y) || y.GetToken() == nil {
		return Error{Message: firstLine(err.Error())}
	}
	t := y.GetToken()
	e := Error{Line: t.Position.Line, Column: t.Position.Column, Message: plain(firstLine(y.GetMessage()))}
	if file != nil {
		e.Path = pathOf(file, t)
	}
	return e
}

var wrongType = regexp.MustCompile(`^cannot unmarshal (.+?) into Go (?:struct field \S+ of|value of) type (\S+)`)

var tooLarge = regexp.MustCompile(`^cannot unmarshal (\S+) into Go value of type \S+ \( overflow \)`)

// plain says a wrong type in the words of the file instead of the program's.
func plain(s string) string {
	if m := tooLarge.FindStringSubmatch(s); m != nil {
		return m[1] + " is out of range"
	}
	m := wrongType.FindStringSubmatch(s)
	if m == nil {
		return s
	}
	want := m[2]
	switch {
	case strings.Contains(want, "int") || strings.Contains(want, "meter.") || strings.Contains(want, "chain."):
		want = "a whole number"
	case strings.HasPrefix(want, "[]"):
		want = "a list"
	case want == "bool":
		want = "true or false"
	case want == "string":
		want = "a text"
	case strings.HasPrefix(want, "config."):
		want = "a group of keys"
	}
	have := m[1]
	switch {
	case strings.HasPrefix(have, "[]"):
		have = "list"
	case strings.HasPrefix(have, "map["):
		have = "group of keys"
	case have == "string":
		have = "text"
	}
	return fmt.Sprintf("a %s stands here, want %s", have, want)
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// pathOf finds the node that starts at t.
func pathOf(file *ast.File, t *token.Token) string {
	f := &finder{offset: t.Position.Offset}
	for _, d := range file.Docs {
		ast.Walk(f, d)
	}
	return strings.TrimPrefix(strings.TrimPrefix(f.path, "$"), ".")
}

type finder struct {
	offset int
	path   string
}

func (f *finder) Visit(n ast.Node) ast.Visitor {
	if t := n.GetToken(); t != nil && t.Position != nil && t.Position.Offset == f.offset && len(n.GetPath()) > len(f.path) {
		f.path = n.GetPath()
	}
	return f
}

// position returns where path is in the document, or where the nearest parent
// is that the document has.
func position(file *ast.File, path string) (line, column int) {
	for p := path; p != ""; {
		if y, err := yaml.PathString("$." + p); err == nil {
			if n, err := y.FilterFile(file); err == nil && n != nil && n.GetToken() != nil {
				// A block collection's own token is its first colon; the
				// line is what matters to a reader.
				pos := n.GetToken().Position
				return pos.Line, pos.Column
			}
		}
		i := strings.LastIndexAny(p, ".[")
		if i < 0 {
			break
		}
		p = p[:i]
	}
	return 0, 0
}
