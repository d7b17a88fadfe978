package pipe

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/guard"
)

func finding() guard.Finding {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return guard.Finding{
		Rule: guard.ARPSpoof, Severity: guard.High, Subject: guard.Subject{Kind: guard.Host, Value: "192.0.2.7"},
		Count: 3, First: at, Last: at, Evidence: map[string]string{"mac": "02:00:00:00:00:01"},
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	f := finding()
	var b bytes.Buffer
	for _, m := range []Message{
		{Finding: &f},
		{Beat: &Beat{Coverage: []guard.Coverage{{Sensor: guard.Packet, Level: "ring", Seen: 7, Since: f.First}}}},
		{Learned: []netip.Addr{netip.MustParseAddr("2001:db8::1")}},
	} {
		if err := Write(&b, m); err != nil {
			t.Fatal(err)
		}
		got, err := ReadMessage(&b)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := json.Marshal(m)
		if have, _ := json.Marshal(got); !bytes.Equal(want, have) {
			t.Errorf("wrote %s, read %s", want, have)
		}
	}
}

// Whoever has taken over the sensors sends what he likes.
func TestLiesAreRefused(t *testing.T) {
	for name, lie := range map[string]func(*guard.Finding){
		"a rule of nobody":           func(f *guard.Finding) { f.Rule = "charger.on" },
		"a rule of the gateway":      func(f *guard.Finding) { f.Rule = guard.GuardCoverage },
		"a rule that rings the bell": func(f *guard.Finding) { f.Rule = "process.\a" },
		"no severity":                func(f *guard.Finding) { f.Severity = 0 },
		"a count of nothing":         func(f *guard.Finding) { f.Count = 0 },
		"a subject of nobody":        func(f *guard.Finding) { f.Subject.Kind = "charger" },
		"a neighbour as subject":     func(f *guard.Finding) { f.Subject.Kind = guard.Peer },
		"an escape in a subject":     func(f *guard.Finding) { f.Subject.Value = "\x1b[2J" },
		"a long subject":             func(f *guard.Finding) { f.Subject.Value = strings.Repeat("a", guard.MaxSubject+1) },
		"much evidence":              func(f *guard.Finding) { f.Evidence = many(guard.MaxEvidence + 1) },
		"a long value":               func(f *guard.Finding) { f.Evidence["x"] = strings.Repeat("a", guard.MaxValue+1) },
		"a line in a value":          func(f *guard.Finding) { f.Evidence["x"] = "a\nb" },
		"a key that is a text":       func(f *guard.Finding) { f.Evidence["a b"] = "" },
		"a time before computers":    func(f *guard.Finding) { f.First = time.Time{} },
	} {
		f := finding()
		f.Evidence = maps.Clone(f.Evidence)
		lie(&f)
		var b bytes.Buffer
		if err := Write(&b, Message{Finding: &f}); err != nil {
			continue // not even JSON
		}
		if _, err := ReadMessage(&b); err == nil {
			t.Errorf("%s is believed", name)
		}
	}
	for name, raw := range map[string]string{
		"an endless frame":   "\xff\xff\xff\xff{}",
		"a torn frame":       "\x00\x00\x00\x09{}",
		"an empty frame":     "\x00\x00\x00\x00",
		"nothing said":       "\x00\x00\x00\x02{}",
		"two things said":    "\x00\x00\x00\x24" + `{"beat":{},"learned":["192.0.2.1"]}` + " ",
		"an unknown field":   "\x00\x00\x00\x12" + `{"beat":{"x":"y"}}`,
		"a sensor of nobody": "\x00\x00\x00\x2e" + `{"beat":{"coverage":[{"sensor":"x","level":""}]}}`,
	} {
		if _, err := ReadMessage(strings.NewReader(raw)); err == nil {
			t.Errorf("%s is believed", name)
		}
	}
}

func many(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[strings.Repeat("k", i+1)] = ""
	}
	return m
}

func TestFitMakesAnythingFit(t *testing.T) {
	f := finding()
	f.Subject.Value = "a\x00\xff" + strings.Repeat("é", guard.MaxSubject)
	f.Evidence = map[string]string{"line": "one\ntwo\x1b[31m" + strings.Repeat("x", guard.MaxValue)}
	Fit(&f)
	if err := checkFinding(&f); err != nil {
		t.Error(err)
	}
}

// What is said of the name server is shown in a terminal and published.
func TestLiesAboutNamesAreRefused(t *testing.T) {
	beat := func() *Beat {
		return &Beat{Coverage: []guard.Coverage{}, Names: &guard.Names{Lists: []guard.NameList{}, Listen: []string{"127.0.0.1:53"}}}
	}
	for name, lie := range map[string]func(*guard.Names){
		"an escape in a file":  func(n *guard.Names) { n.Lists = []guard.NameList{{File: "\x1b[2J"}} },
		"a line in an error":   func(n *guard.Names) { n.Reload.Error = "a\nb" },
		"a long error":         func(n *guard.Names) { n.Reload.Error = strings.Repeat("a", MaxReason+1) },
		"many lists":           func(n *guard.Names) { n.Lists = make([]guard.NameList, MaxLists+1) },
		"many addresses":       func(n *guard.Names) { n.Listen = make([]string, MaxListen+1) },
		"fewer rules than 0":   func(n *guard.Names) { n.Rules = -1 },
		"a time of no one":     func(n *guard.Names) { n.Reload.At = time.Unix(1<<40, 0) },
		"a state with a bell":  func(n *guard.Names) { n.Bypass.State = "\a" },
		"an address in escape": func(n *guard.Names) { n.Listen[0] = "\x1b" },
	} {
		b := beat()
		if err := (&Message{Beat: b}).Check(); err != nil {
			t.Fatal(err)
		}
		lie(b.Names)
		if err := (&Message{Beat: b}).Check(); err == nil {
			t.Errorf("%s is believed", name)
		}
	}
	// Whatever a list is called and says, what is told of it fits.
	b := beat()
	for range MaxLists + 7 {
		b.Names.Lists = append(b.Names.Lists, guard.NameList{File: strings.Repeat("é\x1b", 2000)})
	}
	b.Names.Reload.File, b.Names.Reload.Error, b.Names.Bypass.State = strings.Repeat("\xff", 5000), strings.Repeat("日", 5000), "a\nb"
	FitNames(b.Names)
	var out bytes.Buffer
	if err := Write(&out, Message{Beat: b}); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadMessage(&out); err != nil {
		t.Error(err)
	}
}

func FuzzReadMessage(f *testing.F) {
	one := finding()
	for _, m := range []Message{{Finding: &one}, {Beat: &Beat{Coverage: []guard.Coverage{{Sensor: guard.Load, Level: "none", Since: one.First}}, Names: &guard.Names{Reload: guard.NameReload{Error: "x"}}}}, {Learned: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}} {
		var b bytes.Buffer
		_ = Write(&b, m)
		f.Add(b.Bytes())
	}
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ReadMessage(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if m.Finding != nil {
			// What was believed stays within what a journal takes.
			g := *m.Finding
			g.Cut()
			if g.Subject != m.Finding.Subject || len(g.Evidence) != len(m.Finding.Evidence) {
				t.Errorf("%+v exceeds the limits of a finding", m.Finding)
			}
		}
		var b bytes.Buffer
		if err := Write(&b, m); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadMessage(&b); err != nil {
			t.Errorf("%+v is not believed when said again: %v", m, err)
		}
	})
}
