package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits that stand in a field's tags hold by themselves, whatever the rest of
// the configuration says. Validate, the schema and the reference take them
// from there:
//
//	range:"1..120"        smallest and largest; durations as 20ms..10s
//	range:"0|21..36525"   or zero, which means something of its own
//	enum:"off observe"    the words that a text may be
//	items:"8"             most entries of a list
//	secret:"true"         where a secret lies: told to nobody over MQTT
//
// A value that may be left out (omitempty) and is, has no limits.
type limit struct {
	lo, hi   int64 // nanoseconds, if the field is a duration
	ranged   bool
	zero     bool // zero is allowed beside the range
	duration bool
	words    []string
	items    int
	secret   bool
	optional bool
}

func limitOf(f reflect.StructField) (l limit) {
	_, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	l.optional = options == "omitempty"
	l.words = strings.Fields(f.Tag.Get("enum"))
	l.items, _ = strconv.Atoi(f.Tag.Get("items"))
	l.secret = f.Tag.Get("secret") == "true"
	l.duration = f.Type == reflect.TypeFor[Duration]()
	text := f.Tag.Get("range")
	if text == "" {
		return l
	}
	l.ranged = true
	if rest, ok := strings.CutPrefix(text, "0|"); ok {
		l.zero, text = true, rest
	}
	lo, hi, _ := strings.Cut(text, "..")
	l.lo, l.hi = l.number(lo), l.number(hi)
	return l
}

func (l limit) number(s string) int64 {
	if l.duration {
		d, err := time.ParseDuration(s)
		if err != nil {
			panic(fmt.Sprintf("config: range %q: %v", s, err)) // a tag
		}
		return int64(d)
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("config: range %q: %v", s, err))
	}
	return n
}

// say writes a bound as it stands in a file.
func (l limit) say(n int64) string {
	if l.duration {
		return Duration(n).String()
	}
	return strconv.FormatInt(n, 10)
}

// span is the range in words; "": none.
func (l limit) span() string {
	switch {
	case !l.ranged:
		return ""
	case l.zero:
		return fmt.Sprintf("0, or %s..%s", l.say(l.lo), l.say(l.hi))
	}
	return l.say(l.lo) + ".." + l.say(l.hi)
}

func integer(v reflect.Value) int64 {
	if v.CanUint() {
		return int64(v.Uint()) // no field is wider than its range
	}
	return v.Int()
}

// tags checks what stands in the tags of the fields of v.
func (k *checker) tags(path string, v reflect.Value) {
	for i := range v.NumField() {
		f, fv := v.Type().Field(i), v.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		p := strings.TrimPrefix(path+"."+key, ".")
		l := limitOf(f)
		if l.optional && fv.IsZero() {
			continue
		}
		switch {
		case l.ranged:
			if n := integer(fv); (n < l.lo || n > l.hi) && (!l.zero || n != 0) {
				k.add(p, "%s is outside %s", l.say(n), l.span())
			}
		case len(l.words) > 0:
			if !slices.Contains(l.words, fv.String()) {
				k.add(p, "%q is not one of %s", fv.String(), strings.Join(l.words, ", "))
			}
		case fv.Kind() == reflect.Struct:
			k.tags(p, fv)
		case fv.Kind() == reflect.Slice && fv.Type().Elem().Kind() == reflect.Struct:
			if l.items > 0 && fv.Len() > l.items {
				continue // it is refused as a whole
			}
			for i := range fv.Len() {
				k.tags(fmt.Sprintf("%s[%d]", p, i), fv.Index(i))
			}
		}
	}
}

// secrets are the paths of the fields that say where a secret lies. None is in
// a list.
var secrets = secretsOf("", reflect.TypeFor[Config]())

func secretsOf(path string, t reflect.Type) (all []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		p := strings.TrimPrefix(path+"."+key, ".")
		if limitOf(f).secret {
			all = append(all, p)
		}
		if f.Type.Kind() == reflect.Struct {
			all = append(all, secretsOf(p, f.Type)...)
		}
	}
	return all
}

// Secret reports whether a path, as in a Change, says where a secret lies.
func Secret(path string) bool { return slices.Contains(secrets, path) }

const secretKey = "$secret"

// Public returns c as Document does, with {"$secret":"set"} in place of what
// is secret.
func Public(c Config) map[string]any {
	doc := Document(c)
	for _, path := range secrets {
		if m, key := within(doc, path); m != nil && m[key] != nil {
			m[key] = map[string]any{secretKey: "set"}
		}
	}
	return doc
}

// within returns the group of settings in doc that holds the last key of path,
// nil if there is none.
func within(doc map[string]any, path string) (group map[string]any, key string) {
	keys := strings.Split(path, ".")
	for _, k := range keys[:len(keys)-1] {
		doc, _ = doc[k].(map[string]any)
	}
	return doc, keys[len(keys)-1]
}

// InClear is the code of a change that holds a secret.
const InClear = "secret_in_clear"

var secretWords = []string{"password", "passphrase", "secret", "token", "private_key", "psk", "pin_code"}

// noSecrets refuses a change that holds a secret itself: it would be read by
// everybody who may read at the broker.
func noSecrets(v any, path string) error {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if slices.Contains(secretWords, strings.ToLower(k)) {
				return deny(InClear, path+"."+k, "a secret does not belong into the configuration, where others read it: put it into a file at the gateway and name that, as in mqtt.password_file")
			}
			if err := noSecrets(e, path+"."+k); err != nil {
				return err
			}
		}
	case []any:
		for i, e := range v {
			if err := noSecrets(e, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// unveil puts back what Public has taken out.
func unveil(patch any, cur Config) error {
	doc, ok := patch.(map[string]any)
	if !ok {
		return nil
	}
	now := Document(cur)
	for _, path := range secrets {
		m, key := within(doc, path)
		veil, ok := m[key].(map[string]any)
		if !ok {
			continue
		}
		if len(veil) != 1 || veil[secretKey] != "set" {
			return deny(BadRequest, "config."+path, `%v: want a text, or {"$secret":"set"} for what it is already`, veil)
		}
		delete(m, key)
		if is, key := within(now, path); is[key] != nil {
			m[key] = is[key]
		}
	}
	return nil
}
