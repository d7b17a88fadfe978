package main

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/keys"
)

// TestErase: only with --all, only with the gateway's name, only while it does
// not run, only in a state folder, and nothing beyond it. Then no byte of a
// secret is left in the files, even in those that somebody still holds open.
func TestErase(t *testing.T) {
	dir := t.TempDir()
	st := state(filepath.Join(dir, "state"))
	file := filepath.Join(dir, "joulegate.yaml")
	precious := filepath.Join(dir, "precious")
	must(t, os.MkdirAll(st.path("consensus", "data", "blockstore.db"), 0o700))
	must(t, os.MkdirAll(st.keys(), 0o700))
	must(t, os.MkdirAll(st.wallets(), 0o700))
	must(t, os.WriteFile(file, config.Render(config.Sample("north")), 0o600))
	must(t, os.WriteFile(precious, []byte("stays"), 0o600))
	must(t, os.Symlink(precious, st.path("link")))
	must(t, os.Symlink(dir, st.path("keys", "folder")))
	must(t, os.WriteFile(st.psk(), []byte("a secret of the microgrid"), 0o600))
	must(t, os.WriteFile(st.path("consensus", "data", "blockstore.db", "000001.log"), []byte("blocks"), 0o600))
	_, _, err := keys.LoadOrCreateWallet(st.wallets(), "anna", nil)
	must(t, err)
	held, err := os.Open(st.psk())
	must(t, err)
	defer held.Close()

	erase := func(in string, args ...string) (string, int) {
		var out, errOut bytes.Buffer
		code := run(t.Context(), append([]string{"erase", "--config", file, "--state", string(st)}, args...), strings.NewReader(in), &out, &errOut)
		return out.String() + errOut.String(), code
	}
	refused := func(want string, code int, in string, args ...string) {
		t.Helper()
		if out, got := erase(in, args...); got != code || !strings.Contains(out, want) {
			t.Errorf("%v: exit %d, %q, want %q", args, got, out, want)
		}
		if _, err := os.Stat(st.psk()); err != nil {
			t.Fatal("something was touched")
		}
	}
	refused("--all", 2, "north\n")
	refused("nothing was touched", 1, "yes\n", "--all")
	refused("nothing was touched", 1, "", "--all", "--confirm", "south")
	refused("no state folder", 1, "north\n", "--all", "--state", dir)
	lock, err := journal.LockDir(string(st))
	must(t, err)
	refused("in use", 1, "north\n", "--all")
	must(t, lock.Unlock())

	out, code := erase("north\n", "--all")
	if code != 0 || !strings.Contains(out, "flash") {
		t.Fatalf("exit %d: %s", code, out)
	}
	left, err := os.ReadDir(string(st))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the configuration is there: %v", err)
	}
	if b, err := os.ReadFile(precious); err != nil || string(b) != "stays" {
		t.Errorf("beyond the state folder: %q %v", b, err)
	}
	b := make([]byte, 64)
	if n, _ := held.Read(b); bytes.Contains(b[:n], []byte("secret")) || n == 0 {
		t.Errorf("the old bytes are there: %q", b[:n])
	}
}

// Whose programs are executed is not changed from afar.
func TestKeysOfUpdatesAreLocal(t *testing.T) {
	cur := config.Update{Keys: []string{"aa"}, Threshold: 1}
	for name, c := range map[string]struct {
		next config.Update
		ok   bool
	}{
		"source":    {config.Update{Keys: []string{"aa"}, Threshold: 1, Source: "/media/stick", Auto: "off"}, true},
		"keys":      {config.Update{Keys: []string{"bb"}, Threshold: 1}, false},
		"none":      {config.Update{Threshold: 1}, false},
		"threshold": {config.Update{Keys: []string{"aa"}}, false},
	} {
		if err := updatesTrusted(cur, c.next); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	st := state(t.TempDir())
	file := filepath.Join(t.TempDir(), "joulegate.yaml")
	c := config.Sample("north")
	must(t, os.WriteFile(file, config.Render(c), 0o600))
	set, err := openSettings(file, st, slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, set.settle())
	for _, by := range []string{"mqtt", "page", "rollback"} {
		_, err := set.ConfigChange(t.Context(), config.Desired{
			Txn: by, Base: 1, Mode: config.Merge, ConfirmS: 60, Config: []byte(`{"update":{"keys":["` + strings.Repeat("ab", 32) + `"]}}`),
		}, by)
		var d *config.Denial
		if !errors.As(err, &d) || d.Path != "update.keys" {
			t.Errorf("%s: %v", by, err)
		}
	}
	if _, err := set.ConfigChange(t.Context(), config.Desired{
		Txn: "here", Base: 1, Mode: config.DryRun, ConfirmS: 60, Config: []byte(`{"update":{"keys":["` + strings.Repeat("ab", 32) + `"]}}`),
	}, "command line"); err != nil {
		t.Errorf("at the machine: %v", err)
	}
}
