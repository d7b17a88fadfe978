package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/process"
	"github.com/joulegate/joulegate/guard/sigma"
)

// What `guard exec` reads and prints is a contract.
func TestGuardExec(t *testing.T) {
	set, err := execOptions{}.load()
	if err != nil {
		t.Fatal(err)
	}
	in := `{"image":"/usr/bin/dash","command_line":"sh -c id","parent_image":"/usr/bin/joulegate","parent_command_line":"joulegate run","user":"root","cwd":"/"}

{"image":"/usr/bin/ls","command_line":"ls"}
{"image":"/usr/bin/nmap.real","called":"/usr/bin/nmap","command_line":"nmap"}
`
	var out strings.Builder
	if err := guardExec(set, "stdin", strings.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	want := `{"matches":[{"rule":"process.agent_shell","id":"` + idOf(t, set, "process.agent_shell") + `","title":"The gateway program starts a shell or a downloader","level":"critical"}]}`
	if len(lines) != 3 || lines[0] != want || lines[1] != `{"matches":[]}` || !strings.Contains(lines[2], "process.scanner") {
		t.Errorf("got\n%s\nwant first\n%s", out.String(), want)
	}
	for _, bad := range []string{`{"imag":"x"}`, `{"image":1}`, `[]`, `{} {}`, `x`} {
		if err := guardExec(set, "stdin", strings.NewReader("{}\n"+bad+"\n"), &out); err == nil || !strings.HasPrefix(err.Error(), "stdin:2: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func idOf(t *testing.T, set *sigma.Set, name string) string {
	t.Helper()
	for _, r := range set.Rules {
		if r.Name == name {
			return r.ID
		}
	}
	t.Fatalf("no rule %s", name)
	return ""
}

// Rules that somebody edits come into force when they are whole; what is
// broken changes nothing and is told, with file and line.
func TestRulesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rule := "title: mine\nlogsource: {category: process_creation, product: linux}\ndetection:\n  s: {Image: /x}\n  condition: s\n"
	write("mine.yml", strings.Replace(rule, "Image", "Imag", 1))
	w, err := newProgramWatch(dir, filepath.Join(dir, "no list"), func(guard.Finding) {}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Skipf("programs cannot be watched here: %v", err)
	}
	t.Cleanup(func() { // closes what it opened
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		w.Run(ctx)
	})
	own, err := sigma.Load(sigma.Gateway())
	if err != nil {
		t.Fatal(err)
	}
	if r := w.Coverage().Reason; w.hash() != own.Hash || !strings.Contains(r, "mine.yml:4:") || !strings.Contains(r, "no list") {
		t.Errorf("hash %s, reason %q", w.hash(), r)
	}
	write("mine.yml", rule)
	w.reload()
	first := w.hash()
	if r := w.Coverage().Reason; first == own.Hash || strings.Contains(r, "guard.sigma") || len(w.set.Load().Rules) != len(own.Rules)+1 {
		t.Errorf("hash %s, reason %q", first, r)
	}
	write("second.yml", "title: [")
	w.reload()
	if r := w.Coverage().Reason; w.hash() != first || !strings.Contains(r, "second.yml") || !strings.Contains(r, "former rules stay in force") {
		t.Errorf("hash %s, reason %q", w.hash(), r)
	}
	os.Remove(filepath.Join(dir, "second.yml"))
	w.reload()
	if r := w.Coverage().Reason; w.hash() != first || strings.Contains(r, "guard.sigma") {
		t.Errorf("hash %s, reason %q", w.hash(), r)
	}
}

// A line of --live can be read again by `guard exec`.
func TestSeenLinesAreEvents(t *testing.T) {
	seen := process.Seen{Event: sigma.Event{Image: "/usr/bin/x", CommandLine: "x"}, Called: "/y"}
	line, err := json.Marshal(execSeen{Event: seen.Event, Called: seen.Called, Time: &seen.Time, Process: seen.ID.String(), Parent: seen.Parent.String(), Body: "memory", Matches: []execMatch{{"process.x", "", "", guard.High}}})
	if err != nil {
		t.Fatal(err)
	}
	set, err := execOptions{}.load()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := guardExec(set, "x", bytes.NewReader(line), &out); err != nil || !bufio.NewScanner(&out).Scan() {
		t.Errorf("%v: %s", err, line)
	}
}
