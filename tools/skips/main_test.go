package main

import (
	"strings"
	"testing"
)

const readme = `# x
## Tests that need hardware or data
- ` + "`TestRelayOnBoard`" + ` needs a board
- ` + "`drivers/gpio.TestPins`" + ` needs pins
## Other
- ` + "`TestElsewhere`" + `
`

func run(t *testing.T, strict bool, lines ...string) (bool, string) {
	t.Helper()
	var out strings.Builder
	ok, err := judge(strings.NewReader(strings.Join(lines, "\n")), &out, allowed(readme), strict)
	if err != nil {
		t.Fatal(err)
	}
	return ok, out.String()
}

const (
	pass   = `{"Action":"pass","Package":"m/a","Test":"TestA"}`
	okLine = `{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t0.01s\n"}`
)

func skip(pkg, test string) []string {
	return []string{
		`{"Action":"output","Package":"` + pkg + `","Test":"` + test + `","Output":"    x_test.go:1: mosquitto is not installed\n"}`,
		`{"Action":"skip","Package":"` + pkg + `","Test":"` + test + `"}`,
	}
}

func TestUnlistedSkipFailsInCI(t *testing.T) {
	for _, c := range []struct {
		pkg, test string
		good      bool
	}{
		{"m/a", "TestRelayOnBoard", true},
		{"m/a", "TestRelayOnBoard/high", true},
		{"m/drivers/gpio", "TestPins", true},
		{"m/other/gpio", "TestPins", false},
		{"m/a", "TestElsewhere", false},
		{"m/a", "TestNew", false},
	} {
		lines := append(skip(c.pkg, c.test), pass, okLine)
		if ok, out := run(t, true, lines...); ok != c.good {
			t.Errorf("%s.%s skipped: good %t, want %t\n%s", c.pkg, c.test, ok, c.good, out)
		} else if !ok && !strings.Contains(out, "mosquitto is not installed") {
			t.Errorf("%s.%s: the reason is not shown:\n%s", c.pkg, c.test, out)
		}
		if ok, out := run(t, false, lines...); !ok {
			t.Errorf("%s.%s skipped outside CI fails:\n%s", c.pkg, c.test, out)
		}
	}
}

func TestFailuresAreShown(t *testing.T) {
	ok, out := run(t, true, pass, okLine,
		`{"Action":"output","Package":"m/b","Test":"TestB","Output":"    b_test.go:7: wrong\n"}`,
		`{"Action":"fail","Package":"m/b","Test":"TestB"}`,
		`{"Action":"fail","Package":"m/b"}`)
	if ok || !strings.Contains(out, "b_test.go:7: wrong") || !strings.HasSuffix(out, "FAIL\n1 passed, 1 failed, 0 skipped\n") {
		t.Errorf("good %t:\n%s", ok, out)
	}
	if ok, out := run(t, true, pass, `{"Action":"build-output","ImportPath":"m/c","Output":"c.go:1: syntax error\n"}`, `{"Action":"fail","Package":"m/c"}`); ok || !strings.Contains(out, "syntax error") {
		t.Errorf("a package that does not build: good %t:\n%s", ok, out)
	}
	if ok, out := run(t, true, pass, `{"Action":"output","Package":"m/d","Test":"TestD","Output":"panic: x\n"}`); ok || !strings.Contains(out, "panic: x") {
		t.Errorf("a crash: good %t:\n%s", ok, out)
	}
	if ok, _ := run(t, true); ok {
		t.Error("a run without tests is good")
	}
}

func TestGoodRunPrintsWhatGoTestPrints(t *testing.T) {
	ok, out := run(t, true, `{"Action":"output","Package":"m/a","Test":"TestA","Output":"=== RUN TestA\n"}`, pass, okLine)
	if !ok || out != "ok  \tm/a\t0.01s\n1 passed, 0 failed, 0 skipped\n" {
		t.Errorf("good %t: %q", ok, out)
	}
}
