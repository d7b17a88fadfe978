package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Setting is one key of the configuration, as its struct field documents it.
type Setting struct {
	Path    string // lists as meters[]: lines[].baud
	Type    string // section, list, text, number, yes or no, duration
	Default string // "": none, or the zero of its type
	Range   string // "": none; in words
	Doc     string
}

// Reference lists every key: those of a section before the sections in it,
// otherwise in the order of the file. The schema, the
// comments that Render writes, the manual page and docs/CONFIG.md come from
// the same fields, so none of them can say something else.
func Reference() []Setting {
	var all []Setting
	refer(&all, "", reflect.TypeFor[Config](), reflect.ValueOf(Default()))
	return all
}

func refer(all *[]Setting, path string, t reflect.Type, def reflect.Value) {
	var nested []func()
	for i := range t.NumField() {
		f := t.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		s := Setting{Path: strings.TrimPrefix(path+"."+key, "."), Doc: f.Tag.Get("doc"), Range: limitOf(f).span()}
		var d reflect.Value
		if def.IsValid() {
			d = def.Field(i)
		}
		inner := f.Type
		if inner.Kind() == reflect.Pointer {
			inner, d = inner.Elem(), reflect.Value{}
		}
		switch {
		case inner == reflect.TypeFor[Duration]():
			s.Type = "duration"
		case schemaOf(inner, reflect.Value{})["type"] == "string":
			s.Type = "text"
		case inner.Kind() == reflect.Slice:
			s.Type = "list"
			inner, d = inner.Elem(), reflect.Value{}
			if inner.Kind() == reflect.Struct {
				s.Path += "[]"
			}
		case inner.Kind() == reflect.Struct:
			s.Type = "section"
		case inner.Kind() == reflect.Bool:
			s.Type = "yes or no"
		default:
			s.Type = "number"
		}
		if v, ok := defaultOf(d); ok {
			s.Default = fmt.Sprint(v)
		}
		if inner.Kind() != reflect.Struct || s.Type != "section" && s.Type != "list" {
			*all = append(*all, s)
			continue
		}
		nested = append(nested, func() {
			*all = append(*all, s)
			refer(all, s.Path, inner, d)
		})
	}
	for _, f := range nested {
		f()
	}
}
