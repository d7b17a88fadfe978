package sigma

import (
	"encoding/base64"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits of values.
const (
	maxPattern  = 4096 // characters of one
	maxVariants = 3125 // that windash makes of one value: five dashes
)

// glob is a string with wildcards.
type glob []rune

// Wildcards within a glob.
const (
	star rune = -1 // any characters, or none
	any1 rune = -2 // one character
)

// globOf reads Sigma's escapes: \* and \? are the characters, \\ is a
// backslash, and a backslash before anything else is itself.
func globOf(s string) glob {
	var g glob
	escaped := false
	for _, r := range s {
		wild := r == '*' || r == '?'
		switch {
		case escaped && (wild || r == '\\'):
			g = append(g, r)
			escaped = false
		case escaped:
			g = append(g, '\\', r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == '*':
			g = g.plusStar()
		case r == '?':
			g = append(g, any1)
		default:
			g = append(g, r)
		}
	}
	if escaped {
		g = append(g, '\\')
	}
	return g
}

func (g glob) plusStar() glob {
	if len(g) > 0 && g[len(g)-1] == star {
		return g
	}
	return append(slices.Clip(g), star)
}

func (g glob) starPlus() glob {
	if len(g) > 0 && g[0] == star {
		return g
	}
	return slices.Concat(glob{star}, g)
}

// plain returns the text of a glob without wildcards.
func (g glob) plain() (string, bool) {
	return string(g), !slices.Contains(g, star) && !slices.Contains(g, any1)
}

// literals returns the texts between wildcards.
func (g glob) literals() []string {
	var out []string
	for len(g) > 0 {
		i := slices.IndexFunc(g, func(r rune) bool { return r < 0 })
		if i < 0 {
			i = len(g)
		}
		if i > 0 {
			out = append(out, string(g[:i]))
		}
		g = g[min(i+1, len(g)):]
	}
	return out
}

// match compares with a value; unless cased without its case, and the glob was
// folded.
func (g glob) match(s string, cased bool) bool {
	at, back, from := 0, -1, 0 // where in g; after the last star, and where it began in s
	for i := 0; i < len(s) || at < len(g); {
		if at < len(g) && g[at] == star {
			at++
			back, from = at, i
			continue
		}
		if at < len(g) && i < len(s) {
			r, n := utf8.DecodeRuneInString(s[i:])
			if !cased {
				r = foldRune(r)
			}
			if g[at] == any1 || g[at] == r {
				at++
				i += n
				continue
			}
		}
		if back < 0 || from >= len(s) {
			return false
		}
		_, n := utf8.DecodeRuneInString(s[from:])
		from += n
		at, i = back, from
	}
	return true
}

func foldRune(r rune) rune {
	if r < utf8.RuneSelf {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}
	return unicode.ToLower(r)
}

func (g glob) fold() glob {
	out := slices.Clone(g)
	for i, r := range out {
		out[i] = foldRune(r)
	}
	return out
}

// appendFold appends s without its case. A byte that is no UTF-8 becomes
// U+FFFD, as which wildcards and regular expressions read it too.
func appendFold(b []byte, s string) []byte {
	for _, r := range s {
		b = utf8.AppendRune(b, foldRune(r))
	}
	return b
}

// question is what an atom asks about its field.
type question byte

const (
	like    question = iota // the glob
	absent                  // nothing there
	present                 // something there
	matches                 // the regular expression
	within                  // an address in the network
	compare                 // a number
	same                    // equal to another field
)

// atom is one question about one field.
type atom struct {
	field Field
	is    question
	cased bool
	glob  glob // folded, unless cased
	re    *regexp.Regexp
	net   netip.Prefix
	cmp   string // lt, lte, gt, gte
	num   float64
	other Field
}

// key tells atoms apart that ask different things.
func (a *atom) key() string {
	b := []byte{byte(a.field), byte(a.is), 0, byte(a.other)}
	if a.cased {
		b[2] = 1
	}
	switch a.is {
	case like:
		for _, r := range a.glob {
			b = strconv.AppendInt(append(b, ','), int64(r), 36)
		}
	case matches:
		b = append(b, a.re.String()...)
	case within:
		b = append(b, a.net.String()...)
	case compare:
		b = strconv.AppendFloat(append(b, a.cmp...), a.num, 'g', -1, 64)
	}
	return string(b)
}

// mods are a key's modifiers, in order.
type mods struct {
	list []string
	line int
}

func (m mods) has(name string) bool { return slices.Contains(m.list, name) }

// Modifiers, by what they do.
var (
	encoders  = []string{"wide", "utf16le", "utf16be", "utf16", "base64", "base64offset"}
	places    = []string{"contains", "startswith", "endswith"}
	compares  = []string{"lt", "lte", "gt", "gte"}
	reFlags   = []string{"i", "m", "s"}
	questions = append([]string{"re", "cidr", "exists", "fieldref"}, compares...)
	others    = []string{"all", "cased", "neq", "windash"}
)

// check refuses modifiers that are unknown or make no sense together.
func (m mods) check() error {
	asked := ""
	for i, s := range m.list {
		switch {
		case slices.Contains(m.list[:i], s):
			return faultf(m.line, "modifier %s is there twice", s)
		case slices.Contains(questions, s):
			if asked != "" {
				return faultf(m.line, "modifiers %s and %s exclude each other", asked, s)
			}
			asked = s
		case slices.Contains(reFlags, s):
			if asked != "re" {
				return faultf(m.line, "modifier %s belongs after re", s)
			}
		case !slices.Contains(encoders, s) && !slices.Contains(places, s) && !slices.Contains(others, s):
			return faultf(m.line, "unknown modifier %q", s)
		}
	}
	if asked == "" {
		return nil
	}
	for _, s := range m.list {
		if s != asked && s != "all" && s != "neq" && !slices.Contains(reFlags, s) {
			return faultf(m.line, "modifiers %s and %s exclude each other", asked, s)
		}
	}
	return nil
}

// atoms makes the questions of one value: any of them will do.
func (m mods) atoms(field Field, v node) ([]atom, error) {
	a := atom{field: field, cased: m.has("cased")}
	if v.kind != scalar {
		return nil, faultf(v.line, "want a text, a number or null")
	}
	if v.null {
		for _, s := range m.list {
			if s != "all" && s != "neq" {
				return nil, faultf(v.line, "modifier %s needs a value", s)
			}
		}
		a.is = absent
		return []atom{a}, nil
	}
	if len(v.text) > maxPattern {
		return nil, faultf(v.line, "a value of %d bytes, at most %d", len(v.text), maxPattern)
	}
	for _, s := range m.list {
		switch s {
		case "re":
			flags := ""
			for _, f := range reFlags {
				if m.has(f) {
					flags += f
				}
			}
			expr := v.text
			if flags != "" {
				expr = "(?" + flags + ")" + expr
			}
			re, err := regexp.Compile(expr)
			if err != nil {
				return nil, faultf(v.line, "%v; expressions are those of RE2, without look-around", err)
			}
			a.is, a.re = matches, re
			return []atom{a}, nil
		case "cidr":
			p, err := netip.ParsePrefix(v.text)
			if err != nil {
				return nil, faultf(v.line, "%q is no network like 192.0.2.0/24", v.text)
			}
			a.is, a.net = within, p.Masked()
			return []atom{a}, nil
		case "exists":
			switch v.text {
			case "true":
				a.is = present
			case "false":
				a.is = absent
			default:
				return nil, faultf(v.line, "exists: want true or false, not %q", v.text)
			}
			return []atom{a}, nil
		case "fieldref":
			other, err := fieldOf(v.text, v.line)
			if err != nil {
				return nil, err
			}
			a.is, a.other = same, other
			return []atom{a}, nil
		case "lt", "lte", "gt", "gte":
			n, err := strconv.ParseFloat(v.text, 64)
			if err != nil {
				return nil, faultf(v.line, "%s: %q is no number", s, v.text)
			}
			a.is, a.cmp, a.num = compare, s, n
			return []atom{a}, nil
		}
	}
	globs, err := m.globs(v)
	if err != nil {
		return nil, err
	}
	if field == anyField { // keywords are found anywhere in a field
		for i := range globs {
			globs[i] = globs[i].starPlus().plusStar()
		}
	}
	out := make([]atom, len(globs))
	for i, g := range globs {
		b := a
		switch {
		case len(g) == 0:
			b.is = absent
		case len(g) == 1 && g[0] == star:
			b.is = present
		case a.cased:
			b.glob = g
		default:
			b.glob = g.fold()
		}
		out[i] = b
	}
	return out, nil
}

// globs applies the modifiers of a string, in their order.
func (m mods) globs(v node) ([]glob, error) {
	all := []glob{globOf(v.text)}
	var raw []byte // after wide and its like, which only base64 may follow
	each := func(f func(glob) glob) {
		for i := range all {
			all[i] = f(all[i])
		}
	}
	for _, s := range m.list {
		if raw != nil && s != "base64" && s != "base64offset" && s != "all" && s != "neq" {
			break
		}
		switch s {
		case "contains":
			each(func(g glob) glob { return g.starPlus().plusStar() })
		case "startswith":
			each(glob.plusStar)
		case "endswith":
			each(glob.starPlus)
		case "windash":
			var more []glob
			for _, g := range all {
				more = append(more, dashes(g)...)
			}
			if len(more) > maxVariants {
				return nil, faultf(v.line, "windash: more than %d variants of one value", maxVariants)
			}
			all = more
		case "wide", "utf16le", "utf16be", "utf16", "base64", "base64offset":
			if len(all) != 1 {
				return nil, faultf(v.line, "%s: windash belongs after it", s)
			}
			text, ok := all[0].plain()
			if !ok {
				return nil, faultf(v.line, "%s: a value with wildcards cannot be encoded", s)
			}
			if raw == nil {
				raw = []byte(text)
			}
			switch s {
			case "base64":
				all, raw = []glob{glob(base64.StdEncoding.EncodeToString(raw))}, nil
			case "base64offset":
				all, raw = offsets(raw), nil
			default:
				raw = wide(raw, s)
			}
		}
	}
	if raw != nil {
		return nil, faultf(m.line, "wide and utf16 must be followed by base64 or base64offset")
	}
	return all, nil
}

func wide(text []byte, how string) []byte {
	var out []byte
	if how == "utf16" {
		out = append(out, 0xff, 0xfe)
	}
	for _, u := range utf16.Encode([]rune(string(text))) {
		if how == "utf16be" {
			out = append(out, byte(u>>8), byte(u))
		} else {
			out = append(out, byte(u), byte(u>>8))
		}
	}
	return out
}

// offsets returns what base64 makes of a text that is somewhere within
// another: of the three ways to fall, the characters that do not depend on
// the neighbours.
func offsets(raw []byte) []glob {
	out := make([]glob, 3)
	for i := range out {
		s := base64.StdEncoding.EncodeToString(append([]byte("  "[:i]), raw...))
		s = s[[]int{0, 2, 3}[i] : len(s)-[]int{0, 3, 2}[(len(raw)+i)%3]]
		out[i] = glob(s)
	}
	return out
}

// dashes returns the variants of the sign that begins an option: a - or /
// that is not within a word and begins one.
func dashes(g glob) []glob {
	word := func(i int) bool {
		return i >= 0 && i < len(g) && (g[i] == '_' || g[i] >= 0 && (unicode.IsLetter(g[i]) || unicode.IsDigit(g[i])))
	}
	out := []glob{{}}
	for i, r := range g {
		signs := []rune{r}
		if (r == '-' || r == '/') && !word(i-1) && word(i+1) {
			signs = []rune("-/\u2013\u2014\u2015")
		}
		if len(out)*len(signs) > maxVariants {
			return make([]glob, maxVariants+1)
		}
		next := make([]glob, 0, len(out)*len(signs))
		for _, o := range out {
			for _, s := range signs {
				next = append(next, append(slices.Clip(o), s))
			}
		}
		out = next
	}
	return out
}
