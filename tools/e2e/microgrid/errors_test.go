package microgrid

import (
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// TestErrorsAreOneLine gives the program what installers, crashes and bad
// cards give it. Each time it must say in one line what is wrong and where,
// exit with 1 (2 for wrong usage) and change nothing on disk.
func TestErrorsAreOneLine(t *testing.T) {
	t.Parallel()
	g := newGrid(t, 2)
	north, east := g.gateways[0], g.gateways[1]
	north.install()
	north.create()
	north.start()
	north.run("account", "new", "anna")
	token := strings.TrimSpace(north.run("grid", "invite"))
	foreign := func() string { // of a microgrid that does not exist here
		tok, err := chain.ParseToken(token)
		if err != nil {
			t.Fatal(err)
		}
		tok.ChainID, tok.Genesis = "elsewhere", chain.Sum([]byte("another genesis"))
		return tok.String()
	}()
	for range 2 { // the second start sorts the stores' logs into tables
		north.grow(north.status().Height)
		north.stop()
		north.start()
	}
	north.grow(north.status().Height)
	north.stop()
	east.install() // configured, member of nothing

	config := func(old, new string) func(*testing.T, *gateway) {
		return func(t *testing.T, c *gateway) { replace(t, c.config, old, new) }
	}
	damage := func(file string, f func([]byte) []byte) func(*testing.T, *gateway) {
		return func(t *testing.T, c *gateway) {
			path := filepath.Join(c.state, file)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, f(b), info.Mode().Perm()); err != nil {
				t.Fatal(err)
			}
		}
	}
	half := func(b []byte) []byte { return b[:len(b)/2] }
	listen := func(port string) func(*testing.T, *gateway) {
		return func(t *testing.T, c *gateway) {
			l, err := net.Listen("tcp", c.addr+":"+port)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}
	}

	for _, c := range []struct {
		name  string
		of    *gateway
		spoil func(*testing.T, *gateway)
		args  []string
		code  int
		says  []string // each must be in the line; $CONFIG, $STATE, $ADDR are replaced
	}{
		{name: "unknown key", of: north, spoil: config("p2p:\n", "p2p:\n  lisen: []\n"), args: []string{"run"}, code: 1, says: []string{"$CONFIG", "line ", "lisen"}},
		{name: "wrong type", of: north, spoil: config("baud: 19200", "baud: fast"), args: []string{"run"}, code: 1, says: []string{"$CONFIG", "line ", "lines[0].baud"}},
		{name: "wrong value", of: north, spoil: config("baud: 19200", "baud: 19201"), args: []string{"run"}, code: 1, says: []string{"$CONFIG", "baud", "19201"}},
		{name: "broken yaml", of: north, spoil: config("p2p:\n", "p2p: [\n"), args: []string{"run"}, code: 1, says: []string{"$CONFIG", "line "}},
		{name: "no configuration", of: north, spoil: func(t *testing.T, c *gateway) { remove(t, c.config) }, args: []string{"run"}, code: 1, says: []string{"$CONFIG", "joulegate init"}},
		{name: "p2p address in use", of: north, spoil: listen("4470"), args: []string{"run"}, code: 1, says: []string{"$ADDR/tcp/4470", "in use"}},
		{name: "panel address in use", of: north, spoil: listen("8080"), args: []string{"run"}, code: 1, says: []string{"$ADDR:8080", "in use"}},
		{name: "broker address in use", of: north, spoil: listen("1883"), args: []string{"run"}, code: 1, says: []string{"$ADDR:1883", "in use"}},
		{name: "no serial device", of: north, spoil: config("device: "+north.house.Line, "device: /dev/null"), args: []string{"run"}, code: 1, says: []string{"/dev/null", "rs485", "not a serial device"}},
		{name: "missing pins", of: north, spoil: config("socket: "+north.house.Pins, "socket: /nowhere/pins.sock"), args: []string{"run"}, code: 1, says: []string{"/nowhere/pins.sock"}},
		{name: "not a member", of: east, args: []string{"run"}, code: 1, says: []string{"$STATE/genesis.json", "grid join"}},
		{name: "half a genesis", of: north, spoil: damage("genesis.json", half), args: []string{"run"}, code: 1, says: []string{"$STATE/genesis.json"}},
		{name: "changed genesis", of: north, spoil: damage("genesis.json", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"EUR"`), []byte(`"USD"`), 1)
		}), args: []string{"run"}, code: 1, says: []string{"genesis"}},
		{name: "damaged network key", of: north, spoil: damage("psk", half), args: []string{"run"}, code: 1, says: []string{"$STATE/psk"}},
		{name: "no network key", of: north, spoil: func(t *testing.T, c *gateway) { remove(t, filepath.Join(c.state, "psk")) }, args: []string{"run"}, code: 1, says: []string{"$STATE/psk"}},
		{name: "damaged device key", of: north, spoil: damage("keys/device.key", half), args: []string{"run"}, code: 1, says: []string{"$STATE/keys/device.key"}},
		{name: "key that others can read", of: north, spoil: func(t *testing.T, c *gateway) {
			if err := os.Chmod(filepath.Join(c.state, "keys", "device.key"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, args: []string{"run"}, code: 1, says: []string{"$STATE/keys/device.key", "chmod 600"}},
		{name: "no device key", of: north, spoil: func(t *testing.T, c *gateway) {
			remove(t, filepath.Join(c.state, "keys", "device.key"))
		}, args: []string{"run"}, code: 1, says: []string{"$STATE/keys/device.key"}},
		{name: "damaged address book", of: north, spoil: func(t *testing.T, c *gateway) {
			write(t, filepath.Join(c.state, "peers.json"), `[{"name":`)
		}, args: []string{"run"}, code: 1, says: []string{"$STATE/peers.json"}},
		{name: "damaged broker accounts", of: north, spoil: damage("broker.json", half), args: []string{"run"}, code: 1, says: []string{"$STATE/broker.json"}},
		{name: "founded twice", of: north, args: []string{"grid", "create"}, code: 1, says: []string{"$STATE/genesis.json"}},
		{name: "token of another microgrid", of: north, args: []string{"grid", "join", foreign}, code: 1, says: []string{"elsewhere", "$STATE"}},
		{name: "own microgrid again", of: north, args: []string{"grid", "join", token}, code: 1, says: []string{"member", "already"}},
		{name: "half a token", of: east, args: []string{"grid", "join", token[:len(token)/2]}, code: 1, says: []string{"damaged"}},
		{name: "token with a wrong letter", of: east, args: []string{"grid", "join", strings.Replace(token, token[20:21], "!", 1)}, code: 1, says: []string{"damaged"}},
		{name: "no token", of: east, args: []string{"grid", "join", "hello"}, code: 1, says: []string{"jg1."}},
		{name: "no argument", of: east, args: []string{"grid", "join"}, code: 2, says: []string{"arg"}},
		{name: "unknown command", of: east, args: []string{"grid", "leave"}, code: 2, says: []string{"leave"}},
		{name: "unknown flag", of: east, args: []string{"run", "--fast"}, code: 2, says: []string{"--fast"}},
		{name: "unknown level", of: east, args: []string{"run", "--log-level", "loud"}, code: 2, says: []string{"loud"}},
		{name: "nobody runs", of: north, args: []string{"grid", "members"}, code: 1, says: []string{"$STATE", "joulegate run"}},
		{name: "no such wallet", of: north, args: []string{"account", "mint", "--to", "anna", "--ref", "x", "--amount", "1", "--wallet", "carl"}, code: 1, says: []string{"carl.key", "account new"}},
		{name: "wallet exists", of: north, args: []string{"account", "new", "anna"}, code: 1, says: []string{"anna"}},
		{name: "too many decimals", of: north, args: []string{"account", "mint", "--to", "anna", "--ref", "x", "--amount", "1.0000000001"}, code: 2, says: []string{"1.0000000001"}},
		{name: "configuration exists", of: north, args: []string{"init"}, code: 1, says: []string{"$CONFIG", "exists"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			copied := c.of.copy(t)
			if c.spoil != nil {
				c.spoil(t, copied)
			}
			before := snapshot(t, copied)
			out, errOut, code := copied.try(c.args...)
			line := strings.TrimSuffix(errOut, "\n")
			if code != c.code || strings.Contains(line, "\n") || !strings.HasPrefix(line, "joulegate: ") || strings.Contains(line, "panic") || out != "" {
				t.Errorf("exit %d, want %d and one line\nstdout %q\nstderr %s", code, c.code, out, errOut)
			}
			for _, s := range c.says {
				s = strings.NewReplacer("$CONFIG", copied.config, "$STATE", copied.state, "$ADDR", copied.addr).Replace(s)
				if !strings.Contains(line, s) {
					t.Errorf("the line does not say %q: %s", s, line)
				}
			}
			if after := snapshot(t, copied); after != before {
				t.Errorf("the state folder was changed:\nbefore %s\nafter  %s", before, after)
			}
		})
	}

	t.Run("second gateway on one folder", func(t *testing.T) {
		north.start()
		defer north.stop()
		second := *north
		second.config = filepath.Join(t.TempDir(), "second.yaml")
		b, err := os.ReadFile(north.config)
		if err != nil {
			t.Fatal(err)
		}
		write(t, second.config, string(b))
		_, errOut, code := second.try("run")
		if code != 1 || strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, north.state) {
			t.Errorf("exit %d, %q", code, errOut)
		}
		north.status() // the first does not mind
	})

	// Doors that stay shut: nothing is written before the other side agrees.
	t.Run("refused by the microgrid", func(t *testing.T) {
		north.start()
		defer north.stop()
		valid := strings.TrimSpace(north.run("grid", "invite"))
		forge := func(f func(*chain.Token)) string {
			tok, err := chain.ParseToken(valid)
			if err != nil {
				t.Fatal(err)
			}
			f(&tok)
			return tok.String()
		}
		for _, c := range []struct{ name, token, says string }{
			{"another chain", forge(func(k *chain.Token) { k.ChainID = "elsewhere" }), "refused"},
			{"another network key", forge(func(k *chain.Token) { k.PSK[0] ^= 1 }), north.multiaddr()},
			{"another peer", forge(func(k *chain.Token) { k.Peer[0] ^= 1 }), ""},
			{"nobody there", forge(func(k *chain.Token) { k.Addrs = []string{"/ip4/" + east.addr + "/tcp/4470"} }), east.addr},
			{"never invited", forge(func(k *chain.Token) { k.Seed[0] ^= 1 }), "invitation"},
		} {
			t.Run(c.name, func(t *testing.T) {
				copied := east.copy(t)
				_, errOut, code := copied.try("grid", "join", c.token)
				lines := strings.Split(strings.TrimSpace(errOut), "\n") // the first says who is asked
				if code != 1 || len(lines) != 2 || !strings.Contains(lines[1], c.says) {
					t.Errorf("exit %d, %q", code, errOut)
				}
				for _, name := range []string{"genesis.json", "psk", "peers.json"} {
					if _, err := os.Stat(filepath.Join(copied.state, name)); err == nil {
						t.Errorf("a refused join has written %s", name)
					}
				}
			})
		}
		t.Run("used twice", func(t *testing.T) {
			first, second := east.copy(t), east.copy(t)
			first.run("grid", "join", valid)
			replace(t, second.config, "name: east", "name: west")
			_, errOut, code := second.try("grid", "join", valid)
			if code != 1 || !strings.Contains(errOut, "used") {
				t.Errorf("exit %d, %q", code, errOut)
			}
		})
	})

	// What can be repaired is repaired, and said; nothing is trusted blindly.
	for _, store := range []string{"journal", "consensus"} {
		t.Run("damaged "+store, func(t *testing.T) {
			var files []string
			if err := filepath.WalkDir(filepath.Join(north.state, store), func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					rel, _ := filepath.Rel(north.state, path)
					if info, err := d.Info(); err == nil && info.Size() > 0 {
						files = append(files, rel)
					}
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				t.Run(strings.ReplaceAll(file, "/", "_"), func(t *testing.T) { damaged(t, north, file) })
			}
		})
	}
}

// damaged flips bits in the middle of one file of a store and starts the
// gateway. Either it refuses, with one line, or it runs and every block
// verifies, or the verification says what is damaged.
func damaged(t *testing.T, of *gateway, file string) {
	c := of.copy(t)
	path := filepath.Join(c.state, file)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(b) / 2; i < min(len(b)/2+16, len(b)); i++ {
		b[i] ^= 0x55
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := c.command("run")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	defer func() { _ = cmd.Process.Kill(); <-ended }()
	for limit := time.After(patience); ; {
		select {
		case <-ended:
			text := strings.TrimSpace(errOut.String())
			lines := strings.Split(text, "\n")
			last := lines[len(lines)-1]
			if cmd.ProcessState.ExitCode() != 1 || !strings.HasPrefix(last, "joulegate: ") || strings.Contains(text, "panic") || strings.Contains(text, "goroutine ") || !strings.Contains(last, c.state) {
				t.Errorf("exit %d: %s", cmd.ProcessState.ExitCode(), text)
			}
			t.Logf("refused: %s", strings.ReplaceAll(last, c.state, "STATE"))
			return
		case <-limit:
			_ = cmd.Process.Signal(syscall.SIGQUIT) // shows where it hangs
			<-ended
			t.Fatalf("neither runs nor ends: %s", errOut.String())
		case <-time.After(100 * time.Millisecond):
		}
		if _, err := os.Stat(filepath.Join(c.state, "control.sock")); err == nil {
			break
		}
	}
	c.cmd, c.done = cmd, ended
	c.wait(patience, "answer", ready(c))
	c.books()
	switch out, errOut, code := c.try("ledger", "verify", "--json"); {
	case code == 0:
		t.Log("repaired, or did not matter")
	case code == 1 && strings.Contains(out, "store ") && strings.Contains(out, "corruption"):
		t.Log("runs, and verification finds the damage")
	default:
		t.Errorf("ledger verify: exit %d, %s%s", code, out, errOut)
	}
}

// copy returns a gateway like g whose files are copies.
func (g *gateway) copy(t *testing.T) *gateway {
	t.Helper()
	c := *g
	dir := t.TempDir()
	c.t, c.cmd, c.state, c.config = t, nil, filepath.Join(dir, g.name), filepath.Join(dir, g.name+".yaml")
	c.client = dialControl(&c)
	t.Cleanup(c.client.Close)
	b, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	write(t, c.config, string(b))
	if err := os.MkdirAll(c.state, 0o700); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(g.state, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(g.state, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		switch to := filepath.Join(c.state, rel); {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(to, info.Mode().Perm())
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(to, b, info.Mode().Perm())
		}
		return nil // sockets and links of the physics stay where they are
	})
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

// snapshot returns names, modes and content of everything in the folder and
// of the configuration, but for stores, which note that they were opened.
func snapshot(t *testing.T, g *gateway) string {
	t.Helper()
	var out strings.Builder
	add := func(path string, d fs.FileInfo) {
		b, _ := os.ReadFile(path)
		fmt.Fprintf(&out, "\n  %s %s %s", strings.TrimPrefix(path, g.state), d.Mode(), chain.Sum(b))
	}
	if d, err := os.Stat(g.config); err == nil {
		add(g.config, d)
	}
	if err := filepath.WalkDir(g.state, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == "LOCK" {
			return err
		}
		if d.IsDir() && (d.Name() == "journal" || strings.HasSuffix(d.Name(), ".db")) {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err == nil && info.Mode().IsRegular() {
			add(path, info)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func replace(t *testing.T, path, old, new string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s does not contain %q:\n%s", path, old, b)
	}
	write(t, path, strings.Replace(string(b), old, new, 1))
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
