package config

import (
	"strings"
	"testing"
)

// TestReference proves that every key is there once, and explained: the
// schema, which has the same source, knows exactly the same keys.
func TestReference(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Reference() {
		if seen[s.Path] || s.Doc == "" || s.Type == "" {
			t.Errorf("%+v: twice, or not explained", s)
		}
		seen[s.Path] = true
	}
	var keys func(path string, schema map[string]any) int
	keys = func(path string, schema map[string]any) int {
		n := 0
		props, _ := schema["properties"].(map[string]any)
		for k, v := range props {
			p, sub := strings.TrimPrefix(path+"."+k, "."), v.(map[string]any)
			if items, ok := sub["items"].(map[string]any); ok {
				if sub = items; items["type"] == "object" {
					p += "[]"
				}
			}
			if !seen[p] {
				t.Errorf("the schema has %s, the reference has not", p)
			}
			n += 1 + keys(p, sub)
		}
		return n
	}
	if n := keys("", Schema()); n != len(seen) {
		t.Errorf("the reference has %d keys, the schema %d", len(seen), n)
	}
}
