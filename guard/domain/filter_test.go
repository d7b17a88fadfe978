package domain

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/guard"
)

func listFile(t testing.TB, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "list.txt")
	if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}

func load(t testing.TB, o Options) *Filter {
	t.Helper()
	f, err := Load(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestEveryFormatMeansWhatItSays(t *testing.T) {
	for _, c := range []struct {
		name, text     string
		blocks, allows string // names
	}{
		{
			"hosts", "# a comment\n127.0.0.1 localhost\n0.0.0.0 ads.example.com\n0.0.0.0 track.example.net # inline\n::1 v6.example.org\n0.0.0.0 0.0.0.0\n",
			"ads.example.com track.example.net v6.example.org ADS.Example.com.", "example.com a.ads.example.com localhost",
		},
		{
			"names", "ads.example.com\nBücher.example\n_tcp.under_score.example\n",
			"ads.example.com x.ads.example.com xn--bcher-kva.example bücher.example a._tcp.under_score.example", "example.com badads.example.com",
		},
		{"wildcard", "*.ads.example.com\n", "x.ads.example.com y.x.ads.example.com", "ads.example.com"},
		{
			"adblock", "[Adblock Plus 2.0]\n! title\n||ads.example.com^\n||cdn.example.com^$third-party\n||star.example^|\n@@||good.ads.example.com^\nexample.com##.banner\n||path.example.com/x^\n/regex[0-9]+/\n||only.example.com^$domain=a.b\n",
			"ads.example.com x.ads.example.com cdn.example.com star.example", "good.ads.example.com x.good.ads.example.com example.com path.example.com only.example.com",
		},
		{
			"zone", "$TTL 60\n@ SOA localhost. root.localhost. 1 2 3 4 5\n@ NS localhost.\nads.example.com CNAME .\n*.track.example.net CNAME .\nok.track.example.net CNAME rpz-passthru.\n32.1.2.0.192.rpz-ip CNAME .\nrewrite.example.com CNAME other.example.org.\nlocal.example.com A 192.0.2.1\n",
			"ads.example.com a.track.example.net", "x.ads.example.com track.example.net ok.track.example.net rewrite.example.com local.example.com",
		},
		{"zone with origin", "$ORIGIN rpz.example.\n$TTL 60\n@ IN SOA localhost. root.localhost. 1 2 3 4 5\nads.example.com IN CNAME .\n", "ads.example.com", "example.com"},
		{"mixed, DOS lines", "\ufeff0.0.0.0 a.example\r\nb.example\r\n||c.example^\r\n", "a.example b.example x.c.example", "x.a.example d.example"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := listFile(t, c.text)
			f := load(t, Options{Block: []string{file}})
			for _, want := range []bool{true, false} {
				names := c.allows
				if want {
					names = c.blocks
				}
				for _, name := range strings.Fields(names) {
					v, err := f.Judge(name)
					if err != nil || v.Block != want {
						t.Errorf("%s: %+v, %v", name, v, err)
					}
					text, from := f.Why(v)
					if want && (from != file || !strings.Contains(c.text, strings.TrimSuffix(text, ".")) && c.name[:4] != "zone") {
						t.Errorf("%s is blocked by %q of %q", name, text, from)
					}
				}
			}
		})
	}
}

func TestAllowWins(t *testing.T) {
	block, allow := listFile(t, "||example.com^\n"), listFile(t, "meter.example.com\n*.wild.example.com\n0.0.0.0 self.example.com\n")
	f := load(t, Options{Block: []string{block}, Allow: []string{allow}})
	for name, want := range map[string]bool{
		"example.com": true, "meter.example.com": false, "a.meter.example.com": false, "wild.example.com": true,
		"a.wild.example.com": false, "self.example.com": false, "a.self.example.com": true,
	} {
		if v, _ := f.Judge(name); v.Block != want {
			t.Errorf("%s: %+v", name, v)
		}
	}
	v, _ := f.Judge("a.meter.example.com")
	if text, from := f.Why(v); text != "meter.example.com" || from != allow {
		t.Errorf("why: %q of %q", text, from)
	}
	only := load(t, Options{Allow: []string{allow}, Only: true})
	v, _ = only.Judge("other.example.org")
	if text, _ := only.Why(v); !v.Block || text == "" {
		t.Errorf("a stranger passes: %+v %q", v, text)
	}
	if v, _ = only.Judge("meter.example.com"); v.Block {
		t.Error("a friend does not")
	}
}

func TestBrokenListsAreRefusedWhole(t *testing.T) {
	long := strings.Repeat("a", 64)
	for text, want := range map[string]string{
		"a.example\nb..example\n":                       ":2: ",
		"a.example\n\n" + long + ".example\n":           ":3: ",
		"a.example\nnot an address\n":                   ":2: ",
		"||sp ace.example^\n":                           ":1: ",
		"$TTL 60\n@ SOA a. b. 1 2 3 4 5\nx CNAME\n":     "line",
		"/only/\n/paths/\n":                             "none of its 2 lines",
		strings.Repeat("abc.", 70) + "example\n":        ":1: ",
		"0.0.0.0 " + long + "\n":                        ":1: ",
		"<html>\n<body>404 not found</body>\n</html>\n": ":1: ",
	} {
		file := listFile(t, text)
		_, err := Load(t.Context(), Options{Block: []string{file}})
		if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	if _, err := Load(t.Context(), Options{Block: []string{"/nonexistent/list"}}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Load(ctx, Options{Block: []string{listFile(t, "a.example\n")}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// label returns a random name of a few labels, so that names and parents of
// one another are common.
func label(t *rapid.T, what string) string {
	n := rapid.IntRange(1, 4).Draw(t, what+" labels")
	parts := make([]string, n)
	for i := range parts {
		parts[i] = string(rune('a' + rapid.IntRange(0, 2).Draw(t, what)))
	}
	return strings.Join(parts, ".")
}

// The set says the same as a plain map and a plain walk.
func TestSetAgreesWithAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, m := newBuilder(), map[string]Scope{}
		for range rapid.IntRange(0, 40).Draw(t, "rules") {
			name, scope := label(t, "rule"), Scope(rapid.IntRange(1, 3).Draw(t, "scope"))
			b.add(name, scope)
			m[name] |= scope
		}
		s := b.build()
		if s.Len() != len(m) {
			t.Fatalf("%d rules, want %d", s.Len(), len(m))
		}
		name := label(t, "name")
		var want string
		for w, rest := Self, name; rest != "" && want == ""; w, rest = Subs, parent(rest) {
			if m[rest]&w != 0 {
				want = rest
			}
		}
		if got, scope, ok := s.Lookup(name); got != want || ok != (want != "") || ok && scope != m[want] {
			t.Fatalf("%s: %q %d %t, want %q", name, got, scope, ok, want)
		}
	})
}

// names makes n different names as lists have them.
func names(n int, seed uint64) []string {
	rnd := rand.New(rand.NewPCG(seed, 0))
	out := make([]string, n)
	for i := range out {
		b := make([]byte, 4+rnd.IntN(12))
		for j := range b {
			b[j] = byte('a' + rnd.IntN(26))
		}
		out[i] = fmt.Sprintf("%s%d.example%d.com", b, i, rnd.IntN(100_000))
	}
	return out
}

func TestAMillionNames(t *testing.T) {
	all := names(1_000_000, 1)
	b := newBuilder()
	for _, n := range all {
		b.add(n, Tree)
	}
	s := b.build()
	if per := float64(s.Bytes()) / float64(s.Len()); per > 6 {
		t.Errorf("%.2f bytes a name", per)
	}
	for _, n := range all {
		if _, _, ok := s.Lookup(n); !ok {
			t.Fatalf("%s is not found", n)
		}
	}
	wrong := 0
	for _, n := range names(1_000_000, 2) {
		if _, _, ok := s.Lookup("x" + n); ok {
			wrong++
		}
	}
	if wrong > 2 {
		t.Errorf("%d innocent names of a million are blocked", wrong)
	}
}

// A name that goes on is reported once an hour with its count, and whoever
// asks for ever new ones gets few of them reported.
func TestFindingsAreCountedTogether(t *testing.T) {
	var now time.Duration
	var out []guard.Finding
	ta := newTally(func(f guard.Finding) { out = append(out, f) }, func() time.Duration { return now })
	evidence := func() map[string]string { return map[string]string{"rule": "x"} }
	for i := range 3600 {
		now = time.Duration(i) * time.Second
		ta.find("a", guard.Info, "ads.example", evidence)
	}
	now = time.Hour
	ta.find("a", guard.Info, "ads.example", evidence)
	if len(out) != 2 || out[0].Count != 1 || out[1].Count != 3600 || out[1].Evidence["rule"] != "x" {
		t.Fatalf("%+v", out)
	}
	out = nil
	for i := range 10_000 {
		ta.find("a", guard.Info, fmt.Sprintf("%d.example", i), evidence)
	}
	ta.find("b", guard.High, "rebind.example", evidence)
	if len(out) != maxNamed+1 || out[maxNamed-1].Subject.Value != "others" || out[maxNamed].Rule != "b" {
		t.Errorf("%d findings, %+v", len(out), out[len(out)-2:])
	}
	now, out = 3*time.Hour, nil
	ta.find("a", guard.Info, "new.example", evidence)
	if len(out) != 1 || out[0].Subject.Value != "new.example" {
		t.Errorf("names of long ago keep the place: %+v", out)
	}
}

func TestAnswersAreForgotten(t *testing.T) {
	var now time.Duration
	a := NewAnswers(func() time.Duration { return now }, []netip.Addr{netip.MustParseAddr("192.168.1.2")})
	addr, client, own := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("192.168.1.50"), netip.MustParseAddr("192.168.1.2")
	if a.Asks(client) || a.Asks(own) {
		t.Error("nobody has asked")
	}
	a.asked(client)
	a.Uses(true)
	if !a.Asks(client) || !a.Asks(own) || a.Asks(addr) {
		t.Error("who asks is not known")
	}
	a.answered("www.example.org", []netip.Addr{addr})
	for _, age := range []time.Duration{0, 13 * time.Hour} {
		now += age
		a.answered("other.example.org", []netip.Addr{addr})
		if !a.Answered("www.example.org", netip.MustParseAddr("::ffff:203.0.113.7")) {
			t.Errorf("forgotten after %s", now)
		}
	}
	now += 13 * time.Hour
	a.answered("other.example.org", []netip.Addr{addr})
	if a.Answered("www.example.org", addr) || !a.Answered("other.example.org", addr) {
		t.Error("remembered for ever")
	}
	for i := range 5 * maxAnswers {
		a.answered(fmt.Sprint(i), []netip.Addr{addr})
	}
	if n := len(a.given.young) + len(a.given.old); n > 2*maxAnswers {
		t.Errorf("%d pairs are kept", n)
	}
}

func TestElsewhere(t *testing.T) {
	here := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53"), netip.MustParseAddrPort("[::]:53"), netip.MustParseAddrPort("192.168.1.2:5353")}
	for text, want := range map[string]string{
		"# none\n": "", "nameserver 127.0.0.1\nsearch lan\n": "", "nameserver ::1\n": "",
		"nameserver 192.168.1.1\nnameserver 127.0.0.1\n": "192.168.1.1", "nameserver 192.168.1.2\n": "192.168.1.2", "nameserver fe80::1%eth0": "fe80::1%eth0",
	} {
		if got := strings.Join(Elsewhere(text, here), " "); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func FuzzRules(f *testing.F) {
	for _, seed := range []string{"0.0.0.0 a.example\n", "||a.example^$third-party\n@@||b^\n", "$TTL 60\n@ SOA a. b. 1 2 3 4 5\nx CNAME .\n", "*.a\n\xff", "$INCLUDE /etc/passwd\n", "$GENERATE 1-1000000 a$ CNAME .\n", "$TTL 1\n$GENERATE 1-65535 a$ CNAME .\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rules := 0
		_, _ = Rules("list", strings.NewReader(text), func(r Rule) {
			rules++
			if c, err := Canonical(r.Name); err != nil || c != r.Name || r.Scope == 0 || r.Scope > Tree {
				t.Errorf("rule %+v: %v", r, err)
			}
		})
		if rules > 70_000+len(text) {
			t.Errorf("%d bytes become %d rules", len(text), rules)
		}
	})
}

// threadTime is the processor time that this thread has used: what others on
// the machine do counts less than on the wall's clock.
func threadTime(t testing.TB) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkLookup looks names up as the server does: the name has just been
// read from a packet and is near, the set is in memory, far. It tells the
// mean, and the best of its parts, on which others disturbed least.
func BenchmarkLookup(b *testing.B) {
	all := names(1_000_000, 1)
	bu := newBuilder()
	for _, n := range all {
		bu.add(n, Tree)
	}
	s := bu.build()
	for _, c := range []struct {
		name string
		of   []string
	}{{"hit", all}, {"miss", names(100_000, 2)}} {
		b.Run(c.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			b.ReportAllocs()
			const part = 2000
			near, at := make([]string, part), 0
			var sum, best time.Duration
			parts := 0
			for range b.N/part + 1 {
				var text []byte
				for range part {
					text = append(text, c.of[at]...)
					at = (at + 7919) % len(c.of)
				}
				at = (at + len(c.of) - part*7919%len(c.of)) % len(c.of)
				joined := string(text)
				for i := range near {
					n := len(c.of[at])
					near[i], joined = joined[:n], joined[n:]
					at = (at + 7919) % len(c.of)
				}
				start := threadTime(b)
				for _, n := range near {
					s.Lookup(n)
				}
				took := threadTime(b) - start
				if sum += took; parts == 0 || took < best {
					best = took
				}
				parts++
			}
			b.ReportMetric(float64(sum.Nanoseconds())/float64(parts*part), "cpu-ns")
			b.ReportMetric(float64(best.Nanoseconds())/part, "best-ns")
		})
	}
	b.Run("bytes", func(b *testing.B) { b.ReportMetric(float64(s.Bytes())/float64(s.Len()), "bytes/name") })
}

func BenchmarkLoadMillion(b *testing.B) {
	file := filepath.Join(b.TempDir(), "list")
	var text strings.Builder
	for _, n := range names(1_000_000, 1) {
		text.WriteString("0.0.0.0 " + n + "\n")
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		load(b, Options{Block: []string{file}})
	}
}
