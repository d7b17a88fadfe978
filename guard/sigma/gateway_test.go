package sigma

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/joulegate/joulegate/guard"
)

func own(t testing.TB) *Set {
	t.Helper()
	s, err := Load(Gateway())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// eventOf reads an event of testdata/gateway.yml.
func eventOf(t testing.TB, s string) Event {
	t.Helper()
	f := strings.Split(s, " | ")
	if image := f[0]; len(f) < 2 || !strings.HasPrefix(image, "/") {
		t.Fatalf("%q is no event", s)
	}
	// A command line may hold the separator itself; what comes after it begins
	// with a path or is the user.
	for len(f) > 2 && !strings.HasPrefix(f[2], "/") {
		f = slices.Concat(f[:1], []string{f[1] + " | " + f[2]}, f[3:])
	}
	f = append(f, "", "", "")
	return Event{Image: f[0], CommandLine: f[1], ParentImage: f[2], ParentCommandLine: f[3], User: f[4]}
}

// Every rule of the gateway finds what it is for, and nothing of medium or
// above finds what only looks like it.
func TestGatewayRules(t *testing.T) {
	text, err := os.ReadFile("testdata/gateway.yml")
	if err != nil {
		t.Fatal(err)
	}
	var cases map[string]struct{ Bad, Good []string }
	if err := yaml.UnmarshalWithOptions(text, &cases, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	set := own(t)
	m := set.Matcher()
	for _, r := range set.Rules {
		c, ok := cases[strings.TrimPrefix(r.Name, "process.")]
		if !ok || len(c.Bad) < 2 || len(c.Good) < 2 {
			t.Errorf("%s has no two events of each kind", r.Name)
		}
		if len(r.Description) < 60 || len(r.Tags) == 0 || r.ID == "" || r.Title == "" {
			t.Errorf("%s does not say what for: %+v", r.Name, r)
		}
		delete(cases, strings.TrimPrefix(r.Name, "process."))
		for _, s := range c.Bad {
			e := eventOf(t, s)
			if !slices.ContainsFunc(m.Match(&e), func(x *Rule) bool { return x.Name == r.Name }) {
				t.Errorf("%s does not find %q", r.Name, s)
			}
		}
		for _, s := range c.Good {
			e := eventOf(t, s)
			for _, x := range m.Match(&e) {
				if x.Level >= guard.Medium || x.Name == r.Name {
					t.Errorf("%s finds %q", x.Name, s)
				}
			}
		}
	}
	for name := range cases {
		t.Errorf("there is no rule %s", name)
	}
}

func TestGatewayRulesMatchAsTheSpecificationReads(t *testing.T) { agree(t, Gateway()) }

func BenchmarkMatchGateway(b *testing.B) { benchmark(b, own(b)) }

// BenchmarkMatchAll matches the gateway's and the public rules.
func BenchmarkMatchAll(b *testing.B) {
	all := files(b)
	for _, fsys := range []fs.FS{Gateway(), os.DirFS(public(b))} {
		if err := fs.WalkDir(fsys, ".", func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := fs.ReadFile(fsys, file)
			for k, v := range files(b, file, string(text)) {
				all[k] = v
			}
			return err
		}); err != nil {
			b.Fatal(err)
		}
	}
	s, err := Load(all)
	if err != nil {
		b.Fatal(err)
	}
	benchmark(b, s)
}
