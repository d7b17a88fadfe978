package microgrid

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board/config"
)

// TestFirstBoot: a gateway that finds a setup on its boot partition becomes a
// member by its token, once, and leaves no secret there; its label has the
// password that is its own.
func TestFirstBoot(t *testing.T) {
	t.Parallel()
	grid := newGrid(t, 2)
	first, g := grid.gateways[0], grid.gateways[1]
	first.install()
	first.create()
	first.start()

	g.install() // its devices; what follows is the installer's card
	boot := t.TempDir()
	file, problem := filepath.Join(boot, "joulegate-setup.yaml"), filepath.Join(boot, "joulegate-setup.error.txt")
	g.env = append(g.env, "JOULEGATE_SETUP="+file)
	token := strings.TrimSpace(first.run("grid", "invite", "--node", "feeder2"))
	key := strings.Repeat("ab", 32)
	setup := fmt.Sprintf("version: 1\nname: house2\ngrid: {token: %s}\ninstallers: [%q]\n", token, key)

	// A mistake is told beside the file; nothing is applied.
	write(t, file, strings.Replace(setup, "house2", "House 2", 1))
	if _, errOut, code := g.try("setup", "apply", "--file", file); code != 1 || !strings.Contains(errOut, "line 2: name") {
		t.Errorf("exit %d, %s", code, errOut)
	}
	if b, err := os.ReadFile(problem); err != nil || !bytes.Contains(b, []byte("joulegate-setup.yaml: line 2: name: ")) {
		t.Errorf("%q %v", b, err)
	}

	write(t, file, setup)
	g.start()
	grid.connected()
	b, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := config.Parse(b); err != nil || c.Name != "house2" || !slices.Equal(c.Installers, []string{key}) {
		t.Errorf("%+v %v", c.Installers, err)
	}
	left, err := os.ReadFile(file)
	if s, e := config.ParseSetup(left); err != nil || e != nil || s.Applied == "" {
		t.Errorf("%v %v: %s", err, e, left)
	}
	if _, err := os.Stat(problem); err == nil {
		t.Error("the error is still there")
	}
	if hits := append(holding(t, g.state, g.log, token[8:]), holding(t, boot, g.log, token[8:])...); len(hits) > 0 {
		t.Errorf("the token is in %q", hits)
	}

	// The label: one password for each device, for its owner's eyes.
	for i, ext := range []string{"txt", "html"} {
		fi, err := os.Stat(filepath.Join(g.state, "label."+ext))
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("label %d: %v %v", i, fi, err)
		}
	}
	type label struct{ Host, Password, Device string }
	mine, his := ask[label](g, "label"), ask[label](first, "label")
	if mine.Password == his.Password || len(mine.Password) < 20 || mine.Host == his.Host || mine.Host != "joulegate-"+mine.Device[:8]+".local" {
		t.Errorf("%+v and %+v", mine, his)
	}
	hits := holding(t, g.state, g.log, mine.Password)
	for _, h := range hits {
		if base := filepath.Base(h); base != "label.txt" && base != "label.html" && base != "mqtt-installer.password" {
			t.Errorf("the password is in %s", h)
		}
	}

	// Another start applies nothing.
	g.stop()
	g.start()
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, left) {
		t.Errorf("%v: %s", err, now)
	}
	g.wait(patience, "membership", func(ctx context.Context) (bool, any) {
		s, err := g.client.Status(ctx)
		return err == nil && s.Members == 2, fmt.Sprint(s, err)
	})
}
