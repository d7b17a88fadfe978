package sigma

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/joulegate/joulegate/guard"
)

// Field is one of an event's.
type Field byte

// Fields of an event, in the order of its struct.
const (
	Image Field = iota
	CommandLine
	ParentImage
	ParentCommandLine
	User
	CurrentDirectory
	numFields
	missing  = numFields     // a field that no event here has: always absent
	anyField = numFields + 1 // of keywords
)

// Event is a program that was started. Its form in JSON is that of 'guard
// exec'. A field that is empty is absent.
type Event struct {
	Image             string `json:"image"`        // path of the executable
	CommandLine       string `json:"command_line"` // arguments, separated by spaces
	ParentImage       string `json:"parent_image"`
	ParentCommandLine string `json:"parent_command_line"`
	User              string `json:"user"` // its name
	CurrentDirectory  string `json:"cwd"`
}

// get returns a field.
func (e *Event) get(f Field) string {
	switch f {
	case Image:
		return e.Image
	case CommandLine:
		return e.CommandLine
	case ParentImage:
		return e.ParentImage
	case ParentCommandLine:
		return e.ParentCommandLine
	case User:
		return e.User
	case CurrentDirectory:
		return e.CurrentDirectory
	}
	return ""
}

var fields = map[string]Field{
	"Image": Image, "CommandLine": CommandLine, "ParentImage": ParentImage,
	"ParentCommandLine": ParentCommandLine, "User": User, "CurrentDirectory": CurrentDirectory,
}

// elsewhere are the fields that process_creation has in Sigma's taxonomy and
// nobody fills in here. They are absent.
var elsewhere = []string{
	"LogonId", "LogonGuid", "ProcessId", "ProcessGuid", "ParentProcessId", "ParentProcessGuid", "ParentUser",
	"IntegrityLevel", "TerminalSessionId", "OriginalFileName", "Product", "Company", "Description", "FileVersion",
	"Hashes", "md5", "sha1", "sha256", "Imphash", "RuleName", "UtcTime", "Provider_Name", "EventID",
	"GrandParentImage", "ParentProcessName",
}

func fieldOf(name string, line int) (Field, error) {
	if f, ok := fields[name]; ok {
		return f, nil
	}
	if slices.Contains(elsewhere, name) {
		return missing, nil
	}
	for _, known := range slices.Sorted(maps.Keys(fields)) {
		if strings.EqualFold(known, name) {
			return 0, faultf(line, "process_creation has no field %q; it is called %s", name, known)
		}
	}
	return 0, faultf(line, "process_creation has no field %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
}

// Rule is what is known of one, beside what it looks for.
type Rule struct {
	Name        string // "process." and the file's name without its ending; with ".2" for the second of a file
	ID          string // as the file says, usually a UUID
	Title       string
	Level       guard.Severity // medium where the file does not say
	Description string
	Tags        []string // for example attack.t1059
}

// Limits of a set.
const (
	MaxFiles = 4096
	MaxRules = 1024
	maxAtoms = 1 << 16 // questions of all rules together; those of several count once
	maxLogic = 4096    // questions, ands and ors of one rule
	maxName  = 112     // bytes of a rule's name; the guard's records take 128
)

// operator joins expressions.
type operator byte

const (
	ask operator = iota
	and
	or
	not
)

// expr is what a rule looks for.
type expr struct {
	op   operator
	kids []*expr
	atom atom // of ask
}

func join(op operator, kids []*expr) *expr {
	if len(kids) == 1 {
		return kids[0]
	}
	return &expr{op: op, kids: kids}
}

func (e *expr) size() int {
	n := 1
	for _, k := range e.kids {
		n += k.size()
	}
	return n
}

// parsed is a rule with what it looks for.
type parsed struct {
	Rule
	when *expr
}

// parse reads a file's rules. What is for another source than Linux'
// processes is left out and counted.
func parse(file string, text []byte) (rules []parsed, skipped int, err error) {
	docs, err := documents(text)
	if err != nil {
		return nil, 0, err
	}
	if len(docs) == 0 {
		return nil, 0, &fault{text: "there is no rule in it"}
	}
	name := "process." + strings.TrimSuffix(path.Base(file), path.Ext(file))
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" || len(name) > maxName {
		return nil, 0, &fault{text: fmt.Sprintf("the file gives its rule the name %.140q: at most %d of a-z, 0-9, dot, hyphen and underscore", name, maxName)}
	}
	for i := range docs {
		d := &docs[i]
		if d.kind != mapping {
			return nil, 0, faultf(d.line, "a rule begins with names and colons, title: first")
		}
		for _, k := range []string{"correlation", "action", "filter"} {
			if v, ok := d.get(k); ok {
				return nil, 0, faultf(v.line, "%s: correlations, collections and filters are not supported; a rule has its own detection", k)
			}
		}
		here, err := applies(d)
		if err != nil {
			return nil, 0, err
		}
		if !here {
			skipped++
			continue
		}
		r, err := parseRule(d)
		if err != nil {
			return nil, 0, err
		}
		if r.Name = name; i > 0 {
			r.Name = fmt.Sprintf("%s.%d", name, i+1)
		}
		if r.Title == "" {
			r.Title = strings.TrimPrefix(r.Name, "process.")
		}
		rules = append(rules, r)
	}
	return rules, skipped, nil
}

// applies tells whether a rule is about programs that start on Linux.
func applies(d *node) (bool, error) {
	src, ok := d.get("logsource")
	if !ok {
		return false, faultf(d.line, "there is no logsource")
	}
	if src.kind != mapping {
		return false, faultf(src.line, "logsource: want category and product")
	}
	category, err := src.str("category")
	if err != nil {
		return false, err
	}
	product, err := src.str("product")
	if err != nil {
		return false, err
	}
	return category == "process_creation" && (product == "linux" || product == ""), nil
}

func parseRule(d *node) (parsed, error) {
	var r parsed
	for _, f := range []struct {
		key string
		to  *string
	}{{"id", &r.ID}, {"title", &r.Title}, {"description", &r.Description}} {
		s, err := d.str(f.key)
		if err != nil {
			return r, err
		}
		*f.to = strings.TrimSpace(s)
	}
	r.Level = guard.Medium
	if level, err := d.str("level"); err != nil {
		return r, err
	} else if level != "" {
		if err := r.Level.UnmarshalText([]byte(level)); err != nil {
			v, _ := d.get("level")
			return r, faultf(v.line, "level: want informational, low, medium, high or critical, not %q", level)
		}
	}
	if tags, ok := d.get("tags"); ok {
		for _, t := range tags.list {
			r.Tags = append(r.Tags, t.text)
		}
	}
	det, ok := d.get("detection")
	if !ok || det.kind != mapping {
		return r, faultf(d.line, "there is no detection")
	}
	cond, ok := det.get("condition")
	if !ok {
		return r, faultf(det.line, "detection has no condition")
	}
	searches, left := map[string]*expr{}, budget(maxLogic)
	for i := range det.keys {
		e := &det.keys[i]
		if e.key == "condition" {
			continue
		}
		if e.key == "timeframe" {
			return r, faultf(e.line, "timeframe: a rule judges one event by itself")
		}
		s, err := left.search(e.value)
		if err != nil {
			return r, err
		}
		searches[e.key] = s
	}
	conds := cond.list
	if cond.kind == scalar {
		conds = []node{*cond}
	}
	var any []*expr
	for _, c := range conds {
		if c.kind != scalar || c.null {
			return r, faultf(c.line, "condition: want a text")
		}
		e, err := parseCondition(c.text, searches)
		if err != nil {
			return r, faultf(c.line, "condition: %v", err)
		}
		any = append(any, e)
	}
	if len(any) == 0 {
		return r, faultf(cond.line, "condition: want a text")
	}
	r.when = join(or, any)
	if n := r.when.size(); n > maxLogic {
		return r, faultf(cond.line, "%d questions in one rule, at most %d", n, maxLogic)
	}
	return r, nil
}

// budget is how many questions a rule may still ask. What windash and base64
// multiply is stopped before it fills the memory.
type budget int

// search reads what stands under a search identifier: a mapping of which all
// must hold, a list of which any must, keywords.
func (b *budget) search(v node) (*expr, error) {
	switch v.kind {
	case mapping:
		var all []*expr
		for _, e := range v.keys {
			x, err := b.field(e)
			if err != nil {
				return nil, err
			}
			all = append(all, x)
		}
		if len(all) > 0 {
			return join(and, all), nil
		}
	case sequence:
		var any []*expr
		for _, item := range v.list {
			x, err := b.search(item)
			if err != nil {
				return nil, err
			}
			any = append(any, x)
		}
		if len(any) > 0 {
			return join(or, any), nil
		}
	case scalar:
		if !v.null {
			return b.field(entry{line: v.line, value: v})
		}
	}
	return nil, faultf(v.line, "there is nothing to look for")
}

// field reads a field with its modifiers and values. Without a name, the
// values are keywords.
func (b *budget) field(e entry) (*expr, error) {
	parts := strings.Split(e.key, "|")
	field, err := anyField, error(nil)
	if parts[0] != "" {
		if field, err = fieldOf(parts[0], e.line); err != nil {
			return nil, err
		}
	}
	m := mods{parts[1:], e.line}
	if err := m.check(); err != nil {
		return nil, err
	}
	values := e.value.list
	if e.value.kind == scalar {
		values = []node{e.value}
	} else if e.value.kind == mapping || len(values) == 0 {
		return nil, faultf(e.line, "%s: want a value or a list of values", e.key)
	}
	var each []*expr
	for _, v := range values {
		atoms, err := m.atoms(field, v)
		if err != nil {
			return nil, err
		}
		if field == anyField && (atoms[0].is != like && atoms[0].is != matches) {
			return nil, faultf(v.line, "a keyword is a text")
		}
		if *b -= budget(len(atoms)); field == anyField {
			*b -= budget(len(atoms)) * budget(numFields)
		}
		if *b < 0 {
			return nil, faultf(v.line, "more than %d questions in one rule", maxLogic)
		}
		var any []*expr
		for _, a := range atoms {
			if field != anyField {
				any = append(any, &expr{atom: a})
				continue
			}
			for f := range numFields {
				a.field = f
				any = append(any, &expr{atom: a})
			}
		}
		each = append(each, join(or, any))
	}
	op := or
	if m.has("all") {
		op = and
	}
	x := join(op, each)
	if m.has("neq") {
		x = &expr{op: not, kids: []*expr{x}}
	}
	return x, nil
}
