package sigma

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io/fs"
	"maps"
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

// An ordinary week of a gateway: what was recorded and what was composed of
// its packages' units. See testdata/week/README.md.
func TestAnOrdinaryWeekIsQuiet(t *testing.T) {
	m := own(t).Matcher()
	var others *Matcher // informative: what people's rules for servers say of it
	if dir := os.Getenv("JOULEGATE_TESTDATA"); dir != "" {
		s, err := Load(os.DirFS(public(t)))
		if err != nil {
			t.Fatal(err)
		}
		others = s.Matcher()
	}
	said := map[string]int{}
	for file, least := range map[string]int{"recorded.jsonl": 400, "composed.jsonl": 400} {
		f, err := os.Open("testdata/week/" + file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines, n := bufio.NewScanner(f), 0
		for lines.Scan() {
			n++
			var e struct {
				Event
				Called string `json:"called"`
			}
			d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
			d.DisallowUnknownFields()
			if err := d.Decode(&e); err != nil || e.Image == "" {
				t.Fatalf("%s:%d: %v", file, n, err)
			}
			for _, image := range []string{e.Image, e.Called} {
				if e.Image = image; image == "" {
					continue
				}
				for _, r := range m.Match(&e.Event) {
					if r.Level >= guard.Medium {
						t.Errorf("%s:%d: %s (%s) of %s", file, n, r.Name, r.Level, lines.Text())
					}
				}
				if others == nil {
					continue
				}
				for _, r := range others.Match(&e.Event) {
					said[r.Level.String()+" "+r.Name]++
				}
			}
		}
		if lines.Err() != nil || n < least {
			t.Errorf("%s has %d programs, want %d: %v", file, n, least, lines.Err())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(said)) {
		t.Logf("of the public rules: %s, %d times", name, said[name])
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
