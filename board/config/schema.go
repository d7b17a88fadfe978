package config

import (
	"encoding"
	"reflect"
	"strings"
	"time"
)

// Schema returns the JSON Schema (2020-12) of a configuration, made from the
// fields of Config and their tags. It tells names, types, meanings and what
// limits a value has by itself; what depends on the board or on another setting
// only Validate knows. Ranges of durations stand in x-minimum and x-maximum,
// because JSON Schema has no word for them.
func Schema() map[string]any {
	s := schemaOf(reflect.TypeFor[Config](), reflect.ValueOf(Default()))
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "joulegate configuration"
	s["required"] = []string{"version", "name", "board"}
	return s
}

var textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()

// schemaOf describes a type; def holds the default, if it is valid.
func schemaOf(t reflect.Type, def reflect.Value) map[string]any {
	switch {
	case t == reflect.TypeFor[Duration]():
		return map[string]any{"type": "string", "pattern": `^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$|^0$`}
	case t.Kind() == reflect.Pointer:
		return schemaOf(t.Elem(), reflect.Value{})
	case t.Kind() == reflect.String, t.Implements(textMarshaler), reflect.PointerTo(t).Implements(textMarshaler):
		return map[string]any{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Struct:
		props := map[string]any{}
		for i := range t.NumField() {
			f := t.Field(i)
			key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			var d reflect.Value
			if def.IsValid() {
				d = def.Field(i)
			}
			p := schemaOf(f.Type, d)
			p["description"] = f.Tag.Get("doc")
			limitOf(f).describe(p)
			if v, ok := defaultOf(d); ok {
				p["default"] = v
			}
			props[key] = p
		}
		return map[string]any{"type": "object", "additionalProperties": false, "properties": props}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem(), reflect.Value{})}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Uint8:
		return map[string]any{"type": "integer", "minimum": 0, "maximum": 255}
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return map[string]any{"type": "integer", "minimum": 0}
	}
	return map[string]any{"type": "integer"}
}

// describe adds what the tags of a field say to its schema.
func (l limit) describe(p map[string]any) {
	switch {
	case l.ranged && l.duration:
		p["x-minimum"], p["x-maximum"] = l.say(l.lo), l.say(l.hi)
	case l.ranged:
		p["minimum"], p["maximum"] = l.lo, l.hi
		if l.zero && l.lo > 0 {
			p["minimum"] = 0
			p["anyOf"] = []any{map[string]any{"const": 0}, map[string]any{"minimum": l.lo}}
		}
	}
	if len(l.words) > 0 {
		p["enum"] = l.words
	}
	if l.items > 0 {
		p["maxItems"] = l.items
	}
	if l.secret {
		p["writeOnly"] = true
	}
}

func defaultOf(v reflect.Value) (any, bool) {
	if !v.IsValid() || v.IsZero() {
		return nil, false
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Slice, reflect.Pointer:
		return nil, false
	}
	if d, ok := v.Interface().(Duration); ok {
		return d.String(), true
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return d.String(), true
	}
	return v.Interface(), true
}
