package config

import (
	"testing"
)

func TestX(t *testing.T) {
	b := Render(Sample("north"))
	t.Logf("\n%s", b)
	c, err := Parse(b)
	t.Log(err, len(c.Meters))
	for _, s := range []string{"version: 1\nname: a\nboard: generic\nbord: 1\n", "version: 1\nname: a\nboard: generic\nlines:\n- {id: x, baud: fast}\n", "version: 1\nname: a\nboard: generic\nlines:\n- id: x\n  baud: 9601\n  device: /dev/x\n  timeout: 1x\n", "version: 1\nname: a\nboard: generic\nlines:\n- id: x\n  baud: 9601\n  device: /dev/x\n",
"version: 1\nname: [1]\n", "version: 1\n\n\nchargers:\n- id: 300\n", "a: &x 1\nb: *x\n", "name: \"abc\n", "version: 1\nversion: 1\n", "", "null", "[]"} {
		_, err := Parse([]byte(s))
		t.Logf("%q\n%v", s, err)
	}
}
