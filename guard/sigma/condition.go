package sigma

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Limits of a condition.
const (
	maxDepth = 32  // of parentheses and nots
	maxWords = 512 // parentheses count too
)

// parseCondition reads a condition over search identifiers. "not" binds
// closest, then "and", then "or".
//
//	(selection and not 1 of filter_*) or all of them
func parseCondition(text string, searches map[string]*expr) (*expr, error) {
	p := &conditions{words: words(text), searches: searches}
	if len(p.words) > maxWords {
		return nil, fmt.Errorf("%d words, at most %d", len(p.words), maxWords)
	}
	x, err := p.or(0)
	if err != nil {
		return nil, err
	}
	switch {
	case len(p.words) == 0:
		return x, nil
	case strings.Contains(p.words[0], "|"):
		return nil, errAggregates
	}
	return nil, fmt.Errorf("%q is not expected there", p.words[0])
}

var errAggregates = errors.New("counting over several events is not supported: a rule judges one event by itself")

// words splits at spaces and parentheses.
func words(text string) []string {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "(", " ( "), ")", " ) ")
	return strings.Fields(text)
}

type conditions struct {
	words    []string // what is left
	searches map[string]*expr
}

// take takes the next word if it is w.
func (p *conditions) take(w string) bool {
	if len(p.words) > 0 && strings.EqualFold(p.words[0], w) {
		p.words = p.words[1:]
		return true
	}
	return false
}

func (p *conditions) chain(op operator, word string, next func(int) (*expr, error), depth int) (*expr, error) {
	var kids []*expr
	for {
		x, err := next(depth)
		if err != nil {
			return nil, err
		}
		kids = append(kids, x)
		if !p.take(word) {
			return join(op, kids), nil
		}
	}
}

func (p *conditions) or(depth int) (*expr, error)  { return p.chain(or, "or", p.and, depth) }
func (p *conditions) and(depth int) (*expr, error) { return p.chain(and, "and", p.not, depth) }

func (p *conditions) not(depth int) (*expr, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	if p.take("not") {
		x, err := p.not(depth + 1)
		return &expr{op: not, kids: []*expr{x}}, err
	}
	if p.take("(") {
		x, err := p.or(depth + 1)
		if err == nil && !p.take(")") {
			err = fmt.Errorf("a parenthesis is not closed")
		}
		return x, err
	}
	if len(p.words) == 0 {
		return nil, fmt.Errorf("it ends where a search is expected")
	}
	w := p.words[0]
	p.words = p.words[1:]
	if len(p.words) > 0 && strings.EqualFold(p.words[0], "of") {
		p.words = p.words[1:]
		return p.of(w)
	}
	x, ok := p.searches[w]
	switch {
	case ok:
		return x, nil
	case strings.Contains(w, "|"):
		return nil, errAggregates
	case strings.ContainsAny(w, "*"):
		return nil, fmt.Errorf("%q needs \"1 of\" or \"all of\" before it", w)
	}
	return nil, fmt.Errorf("there is no search %q; there are %s", w, strings.Join(slices.Sorted(maps.Keys(p.searches)), ", "))
}

// of reads what follows "1 of" or "all of".
func (p *conditions) of(quantity string) (*expr, error) {
	op := or
	switch strings.ToLower(quantity) {
	case "1", "any":
	case "all":
		op = and
	default:
		return nil, fmt.Errorf("%q of: want 1, any or all", quantity)
	}
	if len(p.words) == 0 {
		return nil, fmt.Errorf("%s of what?", quantity)
	}
	pattern := p.words[0]
	p.words = p.words[1:]
	var kids []*expr
	for _, name := range slices.Sorted(maps.Keys(p.searches)) {
		if pattern == "them" && !strings.HasPrefix(name, "_") || pattern != "them" && globOf(pattern).match(name, true) {
			kids = append(kids, p.searches[name])
		}
	}
	if len(kids) == 0 {
		return nil, fmt.Errorf("no search is called %q", pattern)
	}
	return join(op, kids), nil
}
