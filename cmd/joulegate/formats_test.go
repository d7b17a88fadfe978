package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
)

// copied makes a state folder from a fixture.
func copied(t *testing.T, fixture string) state {
	t.Helper()
	st := state(filepath.Join(t.TempDir(), "state"))
	if err := os.CopyFS(string(st), os.DirFS(fixture)); err != nil {
		t.Fatal(err)
	}
	return st
}

// TestOldLists opens files from before they had a version: they say the same,
// and are of today's format afterwards.
func TestOldLists(t *testing.T) {
	st := copied(t, "testdata/state-0")
	for _, again := range []bool{false, true} {
		members, err := readBook(st)
		if err != nil || len(members) != 2 || members[1].Name != "east" || members[1].Addrs[0] != "/ip4/192.168.1.21/tcp/4470" {
			t.Fatalf("members %+v, %v", members, err)
		}
		users, err := loadBrokerUsers(st, config.MQTT{})
		if err != nil || len(users) != 2 || users[0].Name != "installer" || len(users[1].Rules) == 0 {
			t.Fatalf("broker's accounts %+v, %v", users, err)
		}
		for _, name := range []string{st.book(), st.brokerUsers()} {
			b, err := os.ReadFile(name)
			if err != nil || !bytes.Contains(b, []byte(`"version": 1`)) {
				t.Errorf("again %t: %s is %s, %v", again, name, b, err)
			}
		}
	}
	if i, err := os.Stat(st.brokerUsers()); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("accounts with mode %v, %v", i.Mode(), err)
	}
}

// TestNewerFiles: what a newer program wrote is refused, with words, and stays
// as it is.
func TestNewerFiles(t *testing.T) {
	st := copied(t, "testdata/state-0")
	file := filepath.Join(t.TempDir(), "joulegate.yaml")
	cfg := config.Default()
	cfg.Name, cfg.Board = "north", "generic"
	if err := os.WriteFile(file, config.Render(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := openSettings(file, st, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := set.settle(); err != nil {
		t.Fatal(err)
	}
	if err := set.lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := readBook(st); err != nil { // brings them up to date
		t.Fatal(err)
	}
	if _, err := loadBrokerUsers(st, config.MQTT{}); err != nil {
		t.Fatal(err)
	}
	revisions := filepath.Join(st.settings(), "revisions.json")
	for name, open := range map[string]func() error{
		st.book():        func() error { _, err := readBook(st); return err },
		st.brokerUsers(): func() error { _, err := loadBrokerUsers(st, config.MQTT{}); return err },
		revisions: func() error {
			_, err := openSettings(file, st, slog.New(slog.DiscardHandler))
			return err
		},
	} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		next := bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 2, "more": true`), 1)
		if name == revisions { // under a checksum
			var s sealedSettings
			if err := json.Unmarshal(b, &s); err != nil {
				t.Fatal(err)
			}
			s.Doc = bytes.Replace(s.Doc, []byte(`"version":1`), []byte(`"version":2,"more":true`), 1)
			s.Sum = chain.Sum(s.Doc)
			if next, err = json.Marshal(s); err != nil {
				t.Fatal(err)
			}
		}
		if bytes.Equal(b, next) {
			t.Fatalf("%s has no version: %s", name, b)
		}
		if err := os.WriteFile(name, next, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := open(); !errors.Is(err, errNewer) || !strings.Contains(err.Error(), "update joulegate") {
			t.Errorf("%s: %v", name, err)
		}
		if now, err := os.ReadFile(name); err != nil || !bytes.Equal(now, next) {
			t.Errorf("%s was refused and changed (%v)", name, err)
		}
	}
}
