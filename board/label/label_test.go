package label

import (
	"strings"
	"testing"
)

func sample() *Label {
	return &Label{
		Name: "north <1>", Device: strings.Repeat("6e", 32), Host: "joulegate-6e6e6e6e.local", Page: "http://joulegate-6e6e6e6e.local:8080",
		Broker: "joulegate-6e6e6e6e.local:8883", User: "installer", Password: "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
	}
}

// TestLabel: both forms have everything a person needs, as text too, and what
// is not reached is not promised.
func TestLabel(t *testing.T) {
	l := sample()
	text, err := l.Text()
	if err != nil {
		t.Fatal(err)
	}
	page, err := l.HTML()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{l.Device, l.Page, l.Broker, l.Password} {
		if !strings.Contains(text, want) || !strings.Contains(string(page), want) {
			t.Errorf("a label lacks %q", want)
		}
	}
	if strings.Contains(string(page), "<1>") {
		t.Error("a name is markup")
	}
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
			t.Errorf("a line of %d columns does not fit a console", n)
		}
	}
	l.Page, l.User, l.Password = "", "", ""
	if text, err = l.Text(); err != nil || strings.Contains(text, "password") || strings.Contains(text, "page") {
		t.Errorf("%v: %s", err, text)
	}
}

// TestBlocks: the drawing is the code, with its margin, row by row.
func TestBlocks(t *testing.T) {
	c, err := Encode("joulegate")
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(strings.TrimSuffix(Blocks(c), "\n"), "\n")
	up, down := map[rune]bool{'█': true, '▀': true}, map[rune]bool{'█': true, '▄': true}
	for i, row := range rows {
		for x, r := range []rune(row) {
			for k, light := range []bool{up[r], down[r]} {
				if cx, cy := x-quiet/2, 2*i+k-quiet/2; light == c.Black(cx, cy) {
					t.Fatalf("module %d,%d is drawn wrong", cx, cy)
				}
			}
		}
	}
	if n := strings.Count(SVG(c), "h1v1h-1z"); n == 0 {
		t.Error("the drawing is empty")
	}
}
