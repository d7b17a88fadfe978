package sigma

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"
)

// naive judges an event by a rule the way the specification reads: a string
// becomes an anchored regular expression, a condition is evaluated word by
// word, and nothing is shared. It is slow and has no line of code in common
// with what it checks.
type naive struct {
	name      string
	detection map[string]any
	ask       map[string]func(Event) bool // by search identifier
}

func naiveRules(t testing.TB, fsys fs.FS) []*naive {
	t.Helper()
	var out []*naive
	err := fs.WalkDir(fsys, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || path.Ext(file) != ".yml" {
			return err
		}
		text, err := fs.ReadFile(fsys, file)
		if err != nil {
			return err
		}
		var doc struct {
			Detection map[string]any `yaml:"detection"`
		}
		if err := yaml.Unmarshal(text, &doc); err != nil {
			return err
		}
		n := &naive{name: "process." + strings.TrimSuffix(path.Base(file), ".yml"), detection: doc.Detection, ask: map[string]func(Event) bool{}}
		for id, v := range doc.Detection {
			if id != "condition" {
				n.ask[id] = naiveSearch(t, v)
			}
		}
		out = append(out, n)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(out, func(a, b *naive) int { return strings.Compare(a.name, b.name) })
	return out
}

var quantity = regexp.MustCompile(`(?i)\b(1|any|all) of ([\w*]+)`)

var identifier = regexp.MustCompile(`[\w]+`)

var secondOr = regexp.MustCompile(`(^|\( |or )(TRUE|FALSE) or (TRUE|FALSE)( \)| or| $)`)

var truths = regexp.MustCompile(`(TRUE|FALSE) or (TRUE|FALSE)`)

var firstOr = regexp.MustCompile(`^ (TRUE|FALSE) or (TRUE|FALSE)`)

// fatal is a test or a case of rapid's.
type fatal interface{ Fatalf(string, ...any) }

func (n *naive) holds(t fatal, e Event) bool {
	switch c := n.detection["condition"].(type) {
	case string:
		return n.condition(t, e, c)
	case []any:
		return slices.ContainsFunc(c, func(c any) bool { return n.condition(t, e, c.(string)) })
	}
	t.Fatalf("%s: condition %v", n.name, n.detection["condition"])
	return false
}

// condition rewrites the text until one truth value is left: what is within
// the innermost parentheses first, then not, and, or.
func (n *naive) condition(t fatal, e Event, text string) bool {
	truth := map[bool]string{true: " TRUE ", false: " FALSE "}
	text = quantity.ReplaceAllStringFunc(text, func(s string) string {
		w := strings.Fields(s)
		all := strings.EqualFold(w[0], "all")
		result, some := all, false
		for id, ask := range n.ask {
			prefix, starred := strings.CutSuffix(w[2], "*") // the only place a star has in the rules tested here
			want := id == w[2] || starred && strings.HasPrefix(id, prefix)
			if w[2] == "them" {
				want = id[0] != '_'
			}
			if want {
				some = true
				if ask(e) != all {
					result = !all
				}
			}
		}
		if !some {
			t.Fatalf("%s: %s names nothing", n.name, s)
		}
		return truth[result]
	})
	text = identifier.ReplaceAllStringFunc(text, func(s string) string {
		if ask, ok := n.ask[s]; ok {
			return truth[ask(e)]
		}
		return s
	})
	text = " " + strings.Join(strings.Fields(strings.NewReplacer("(", " ( ", ")", " ) ").Replace(text)), " ") + " "
	for range 1000 {
		was := text
		for _, step := range [][2]string{
			{"( TRUE )", "TRUE"},
			{"( FALSE )", "FALSE"},
			{"not TRUE", "FALSE"},
			{"not FALSE", "TRUE"},
			{"not not ", ""},
			{"TRUE and TRUE", "TRUE"},
			{"TRUE and FALSE", "FALSE"},
			{"FALSE and TRUE", "FALSE"},
			{"FALSE and FALSE", "FALSE"},
		} {
			if text = strings.Replace(text, step[0], step[1], 1); text != was {
				break
			}
		}
		if text == was { // no not and no and is left that could go first
			text = secondOr.ReplaceAllStringFunc(text, func(s string) string {
				m := truths.FindStringSubmatch(s)
				r := "FALSE"
				if m[1] == "TRUE" || m[2] == "TRUE" {
					r = "TRUE"
				}
				return strings.Replace(s, m[0], r, 1)
			})
			if text == was {
				text = firstOr.ReplaceAllStringFunc(text, func(s string) string {
					return map[bool]string{true: " TRUE", false: " FALSE"}[strings.Contains(s, "TRUE")]
				})
			}
		}
		if text == was {
			break
		}
	}
	switch strings.TrimSpace(text) {
	case "TRUE":
		return true
	case "FALSE":
		return false
	}
	t.Fatalf("%s: the condition comes down to %q", n.name, text)
	return false
}

func naiveSearch(t testing.TB, v any) func(Event) bool {
	switch v := v.(type) {
	case map[string]any:
		var all []func(Event) bool
		for key, value := range v {
			all = append(all, naiveField(t, key, value))
		}
		return func(e Event) bool {
			return !slices.ContainsFunc(all, func(f func(Event) bool) bool { return !f(e) })
		}
	case []any:
		var any []func(Event) bool
		for _, item := range v {
			any = append(any, naiveSearch(t, item))
		}
		return func(e Event) bool { return slices.ContainsFunc(any, func(f func(Event) bool) bool { return f(e) }) }
	}
	return naiveField(t, "", v)
}

func naiveField(t testing.TB, key string, value any) func(Event) bool {
	parts := strings.Split(key, "|")
	has := func(m string) bool { return slices.Contains(parts[1:], m) }
	get := func(e Event) []string {
		switch parts[0] {
		case "Image":
			return []string{e.Image}
		case "CommandLine":
			return []string{e.CommandLine}
		case "ParentImage":
			return []string{e.ParentImage}
		case "ParentCommandLine":
			return []string{e.ParentCommandLine}
		case "User":
			return []string{e.User}
		case "CurrentDirectory":
			return []string{e.CurrentDirectory}
		case "":
			return []string{e.Image, e.CommandLine, e.ParentImage, e.ParentCommandLine, e.User, e.CurrentDirectory}
		}
		return []string{""}
	}
	values, ok := value.([]any)
	if !ok {
		values = []any{value}
	}
	var each []func(Event) bool
	for _, v := range values {
		var one func(string) bool
		switch text := fmt.Sprint(v); {
		case v == nil || text == "" && len(parts) == 1:
			one = func(s string) bool { return s == "" }
		case has("re"):
			flags := ""
			for _, f := range []string{"i", "m", "s"} {
				if has(f) {
					flags += "(?" + f + ")"
				}
			}
			re := regexp.MustCompile(flags + text)
			one = func(s string) bool { return s != "" && re.MatchString(s) }
		default:
			if has("contains") || has("startswith") || parts[0] == "" {
				text += "*"
			}
			if has("contains") || has("endswith") || parts[0] == "" {
				text = "*" + text
			}
			lower := func(s string) string { return strings.Map(unicode.ToLower, strings.ToValidUTF8(s, "\ufffd")) }
			if has("cased") {
				lower = func(s string) string { return s }
			}
			re := regexp.MustCompile("(?s)^" + naiveWildcards(lower(text), has("windash")) + "$")
			one = func(s string) bool { return s != "" && re.MatchString(lower(s)) }
		}
		each = append(each, func(e Event) bool { return slices.ContainsFunc(get(e), one) })
	}
	return func(e Event) bool {
		result := slices.ContainsFunc(each, func(f func(Event) bool) bool { return f(e) })
		if has("all") {
			result = !slices.ContainsFunc(each, func(f func(Event) bool) bool { return !f(e) })
		}
		return result != has("neq")
	}
}

// naiveWildcards makes a regular expression of a string with * and ?.
func naiveWildcards(s string, windash bool) string {
	// A backslash before another, a star or a question mark escapes it.
	out := regexp.MustCompile(`(?s)\\[\\*?]|.`).ReplaceAllStringFunc(s, func(c string) string {
		switch {
		case c == "*":
			return "\x00"
		case c == "?":
			return "\x01"
		case len(c) == 2 && c[0] == '\\':
			return c[1:]
		}
		return c
	})
	if windash {
		out = regexp.MustCompile(`\B[-/]\b`).ReplaceAllString(out, "\x02")
	}
	out = regexp.QuoteMeta(out)
	return strings.NewReplacer("\x00", ".*", "\x01", ".", "\x02", "[-/–—―]").Replace(out)
}

// vocabulary is what rules look for, so that random events come near to it.
type vocabulary struct {
	rules []map[string][][]string // by field, lists of values of which one may do
	all   []string
}

func vocabularyOf(rules []*naive) vocabulary {
	var v vocabulary
	for _, n := range rules {
		m := map[string][][]string{}
		var walk func(key string, x any)
		walk = func(key string, x any) {
			field, _, _ := strings.Cut(key, "|")
			switch x := x.(type) {
			case map[string]any:
				for _, k := range slices.Sorted(maps.Keys(x)) {
					walk(k, x[k])
				}
			case []any:
				var list []string
				for _, y := range x {
					switch y.(type) {
					case map[string]any, nil:
						walk(key, y)
						continue
					}
					if list = append(list, fmt.Sprint(y)); strings.Contains(key, "|all") {
						m[field] = append(m[field], list)
						list = nil
					}
				}
				if list != nil {
					m[field] = append(m[field], list)
				}
			case nil:
			default:
				m[field] = append(m[field], []string{fmt.Sprint(x)})
			}
		}
		for _, id := range slices.Sorted(maps.Keys(n.detection)) {
			if id != "condition" {
				walk("", n.detection[id])
			}
		}
		for _, groups := range m {
			v.all = append(v.all, slices.Concat(groups...)...)
		}
		v.rules = append(v.rules, m)
	}
	slices.Sort(v.all)
	return v
}

// event draws an event: mostly parts of what one rule looks for, in any
// order and case, among parts of others and characters of all kinds.
func (v vocabulary) event(t *rapid.T, rule map[string][][]string) Event {
	noise := rapid.OneOf(
		rapid.SampledFrom([]string{" ", "-", "/", "x", "É", "İ", "ß", "K", "ſ", "\xff", "\\", "*", "?", "–", "  -e", "/usr/bin/"}),
		rapid.SampledFrom(v.all),
		rapid.StringN(0, 4, 8),
	)
	seldom := func(name string) bool { return rapid.IntRange(0, 5).Draw(t, name) == 0 }
	field := func(name string) string {
		var parts []string
		for _, group := range rule[name] {
			if seldom("left out") {
				continue
			}
			p := rapid.SampledFrom(group).Draw(t, name)
			switch {
			case seldom("plain"):
			case seldom("upper"):
				p = strings.ToUpper(p)
			default:
				p = strings.NewReplacer(`\s`, " ", `\`, "", "*", " x ", "?", "y").Replace(p)
			}
			parts = append(parts, p)
		}
		if seldom("order") {
			parts = rapid.Permutation(parts).Draw(t, "parts")
		}
		s := strings.Join(parts, rapid.SampledFrom([]string{"", " "}).Draw(t, "gap"))
		if seldom("before") {
			s = noise.Draw(t, name) + s
		}
		if seldom("after") {
			s += noise.Draw(t, name)
		}
		return s
	}
	return Event{field("Image"), field("CommandLine"), field("ParentImage"), field("ParentCommandLine"), field("User"), field("CurrentDirectory")}
}

// agree checks the compiled rules against the naive ones with random events.
func agree(t *testing.T, fsys fs.FS) {
	set, err := Load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	rules := naiveRules(t, fsys)
	if len(rules) != len(set.Rules) {
		t.Fatalf("%d rules, read naively %d", len(set.Rules), len(rules))
	}
	v, m := vocabularyOf(rules), set.Matcher()
	matched := map[string]bool{}
	check := func(t *rapid.T) {
		for _, rule := range v.rules[:min(len(v.rules), 12)] {
			if len(v.rules) > 12 {
				rule = rapid.SampledFrom(v.rules).Draw(t, "rule")
			}
			e := v.event(t, rule)
			var got, want []string
			for _, r := range m.Match(&e) {
				got = append(got, r.Name)
				matched[r.Name] = true
			}
			for _, n := range rules {
				if n.holds(t, e) {
					want = append(want, n.name)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("of %+q match\n%q, and naively\n%q", e, got, want)
			}
		}
	}
	rapid.Check(t, check)
	t.Logf("%d of %d rules matched a random event", len(matched), len(rules))
	if len(matched) < len(rules)/2 {
		t.Errorf("random events matched %d of %d rules only: they are no test", len(matched), len(rules))
	}
}
