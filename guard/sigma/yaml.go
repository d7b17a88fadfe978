package sigma

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Limits of a file. Rule sets are written by people: what exceeds these is
// not one.
const (
	MaxFile    = 256 << 10 // bytes
	maxTokens  = 20_000
	maxNesting = 16
)

// fault is something wrong at a line.
type fault struct {
	line int
	text string
}

func (f *fault) Error() string {
	if f.line == 0 {
		return f.text
	}
	return fmt.Sprintf("%d: %s", f.line, f.text)
}

func faultf(line int, format string, args ...any) *fault {
	return &fault{line, fmt.Sprintf(format, args...)}
}

// node is a YAML value with its line.
type node struct {
	line int
	null bool
	text string  // of a scalar
	list []node  // of a sequence
	keys []entry // of a mapping, in order
	kind kind
}

type kind byte

const (
	scalar kind = iota
	sequence
	mapping
)

type entry struct {
	key   string
	line  int
	value node
}

// get returns the value of a key of a mapping.
func (n *node) get(key string) (*node, bool) {
	for i := range n.keys {
		if n.keys[i].key == key {
			return &n.keys[i].value, true
		}
	}
	return nil, false
}

// str returns the text of an optional key.
func (n *node) str(key string) (string, error) {
	v, ok := n.get(key)
	if !ok || v.null {
		return "", nil
	}
	if v.kind != scalar {
		return "", faultf(v.line, "%s: want a text", key)
	}
	return v.text, nil
}

// documents reads the documents of a file.
func documents(text []byte) (docs []node, err error) {
	defer func() {
		if p := recover(); p != nil { // go-yaml trusts some lists of tokens
			docs, err = nil, &fault{text: fmt.Sprintf("malformed YAML: %v", p)}
		}
	}()
	if len(text) > MaxFile {
		return nil, &fault{text: fmt.Sprintf("more than %d bytes", MaxFile)}
	}
	if err := screen(text); err != nil {
		return nil, err
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		var y yaml.Error
		if errors.As(err, &y) && y.GetToken() != nil {
			message, _, _ := strings.Cut(y.GetMessage(), "\n")
			return nil, faultf(y.GetToken().Position.Line, "%s", message)
		}
		return nil, &fault{text: strings.TrimSpace(yaml.FormatError(err, false, false))}
	}
	for _, d := range file.Docs {
		if d.Body == nil {
			continue
		}
		n, err := convert(d.Body, 0)
		if err != nil {
			return nil, err
		}
		docs = append(docs, n)
	}
	return docs, nil
}

// screen refuses what rules never need and a parser pays for.
func screen(text []byte) error {
	tokens := lexer.Tokenize(string(text))
	if len(tokens) > maxTokens {
		return &fault{text: fmt.Sprintf("%d words and signs, at most %d", len(tokens), maxTokens)}
	}
	depth, indents := 0, []int{0}
	for _, t := range tokens {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType, token.TagType, token.DirectiveType:
			return faultf(t.Position.Line, "%q: anchors, aliases, tags and directives are not used here; quote a value that begins like one", t.Value)
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
		}
		for len(indents) > 1 && t.Position.Column <= indents[len(indents)-1] {
			indents = indents[:len(indents)-1]
		}
		if t.Type == token.MappingKeyType || t.Type == token.SequenceEntryType || t.Type == token.MappingValueType {
			indents = append(indents, t.Position.Column)
		}
		if depth > maxNesting || len(indents) > 4*maxNesting {
			return faultf(t.Position.Line, "nested too deeply")
		}
	}
	return nil
}

func convert(in ast.Node, depth int) (node, error) {
	out := node{}
	if t := in.GetToken(); t != nil {
		out.line = t.Position.Line
	}
	if depth > maxNesting {
		return out, faultf(out.line, "nested too deeply")
	}
	switch in := in.(type) {
	case *ast.NullNode:
		out.null = true
	case *ast.StringNode:
		out.text = in.Value
	case *ast.LiteralNode:
		out.text = in.Value.Value
	case *ast.SequenceNode:
		out.kind = sequence
		for _, v := range in.Values {
			n, err := convert(v, depth+1)
			if err != nil {
				return out, err
			}
			out.list = append(out.list, n)
		}
	case *ast.MappingValueNode:
		return out, out.add(in, depth)
	case *ast.MappingNode:
		out.kind = mapping
		for _, v := range in.Values {
			if err := out.add(v, depth); err != nil {
				return out, err
			}
		}
	case ast.ScalarNode: // numbers and truth values, as they are written
		out.text = in.GetToken().Value
	default:
		return out, faultf(out.line, "a %s is not used here", strings.ToLower(in.Type().String()))
	}
	return out, nil
}

// add adds an entry to a mapping.
func (n *node) add(v *ast.MappingValueNode, depth int) error {
	n.kind = mapping
	key, err := convert(v.Key, depth+1)
	if err != nil {
		return err
	}
	if key.kind != scalar || key.null {
		return faultf(key.line, "want a name before the colon")
	}
	if n.line == 0 || key.line < n.line {
		n.line = key.line
	}
	if _, ok := n.get(key.text); ok {
		return faultf(key.line, "%q is there twice", key.text)
	}
	value, err := convert(v.Value, depth+1)
	if err != nil {
		return err
	}
	n.keys = append(n.keys, entry{key.text, key.line, value})
	return nil
}
