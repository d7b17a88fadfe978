package config

import (
	"fmt"
	"reflect"
	"sort"
	"strings"

	"github.com/goccy/go-yaml"
)

// Render writes c as commented YAML. Parse reads it back to the same value.
func Render(c Config) []byte {
	comments := yaml.CommentMap{}
	annotate(comments, "$", reflect.ValueOf(c), map[reflect.Type]bool{})
	b, err := yaml.MarshalWithOptions(c, yaml.WithComment(comments))
	if err != nil {
		panic(fmt.Sprintf("config: render: %v", err)) // every field type is ours
	}
	return append([]byte("# joulegate configuration. 'joulegate config check' validates it.\n\n"), b...)
}

// annotate puts a section's doc above it and a field's doc beside it. In a
// list only the first entry is explained.
func annotate(m yaml.CommentMap, path string, v reflect.Value, done map[reflect.Type]bool) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		p, doc, fv := path+"."+key, " "+f.Tag.Get("doc"), v.Field(i)
		switch {
		case fv.Kind() == reflect.Struct:
			m[p] = []*yaml.Comment{yaml.HeadComment(doc)}
			annotate(m, p, fv, done)
		case fv.Kind() == reflect.Slice:
			m[p] = []*yaml.Comment{yaml.HeadComment(doc)}
			if fv.Len() > 0 && fv.Index(0).Kind() == reflect.Struct && !done[fv.Type()] {
				done[fv.Type()] = true
				annotate(m, p+"[0]", fv.Index(0), done)
			}
		default:
			m[p] = []*yaml.Comment{yaml.LineComment(doc)}
		}
	}
}

// Change is one difference between two configurations. An empty Old or New
// means that the key is not there.
type Change struct {
	Path string `json:"path"` // list entries by id: meters[house].unit
	Old  string `json:"old"`
	New  string `json:"new"`
}

// Diff lists what has to change to get from a to b, sorted by path.
func Diff(a, b Config) []Change {
	old, now := map[string]string{}, map[string]string{}
	flatten(old, "", reflect.ValueOf(a))
	flatten(now, "", reflect.ValueOf(b))
	var out []Change
	for p, v := range old {
		if w := now[p]; w != v {
			out = append(out, Change{p, v, w})
		}
	}
	for p, w := range now {
		if _, both := old[p]; !both && w != "" {
			out = append(out, Change{p, "", w})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out
}

func flatten(out map[string]string, path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			flatten(out, strings.TrimPrefix(path+"."+key, "."), v.Field(i))
		}
	case reflect.Slice:
		for i := range v.Len() {
			e := v.Index(i)
			name := fmt.Sprint(i)
			if e.Kind() == reflect.Struct {
				if id := e.FieldByName("ID"); id.IsValid() {
					name = fmt.Sprint(id.Interface())
				}
			}
			flatten(out, path+"["+name+"]", e)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			flatten(out, path, v.Elem())
		}
	default:
		out[path] = fmt.Sprint(v.Interface())
	}
}
