package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	iavldb "github.com/cosmos/iavl/db"

	"github.com/joulegate/joulegate/chain"
)

func validGenesis(t testing.TB) []byte {
	t.Helper()
	g := testGenesis()
	for i := range 2 {
		name := fmt.Sprintf("house%d", i+1)
		g.Members = append(g.Members, chain.Founder{Node: "root", Member: chain.Member{
			Device: public(keyFrom("device " + name)), Owner: public(keyFrom("owner " + name)), Name: name,
			Validator: public(keyFrom("validator " + name)), MaxPower: 10_000,
		}})
	}
	g.Members[1].Validator = chain.Key{} // a full node
	path := filepath.Join(t.TempDir(), "genesis.json")
	h, err := WriteGenesis(path, g, time.UnixMilli(1_790_000_000_000))
	if err != nil {
		t.Fatal(err)
	}
	doc, got, hash, err := ReadGenesis(path)
	if err != nil || hash != h || got.ChainID != g.ChainID || len(doc.Validators) != 1 || doc.Validators[0].Power != chain.ValidatorPower {
		t.Fatalf("read back: %+v, %s (written %s), %v", got, hash, h, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGenesisRefused(t *testing.T) {
	good := validGenesis(t)
	replace := func(old, repl string) []byte {
		if !bytes.Contains(good, []byte(old)) {
			t.Fatalf("no %q in %s", old, good)
		}
		return bytes.Replace(good, []byte(old), []byte(repl), 1)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"cut", good[:len(good)/2], "unexpected EOF"},
		{"no JSON", append([]byte("\n\n{,"), good...), "line 3"},
		{"trailing data", append(bytes.Clone(good), '{'), "after the end"},
		{"unknown key", replace(`"genesis_time"`, `"genesis_tyme"`), "genesis_tyme"},
		{"unknown key in the state", replace(`"slot_seconds"`, `"slotseconds"`), "slotseconds"},
		{"two chain ids", replace(`"chain_id": "test-grid"`, `"chain_id": "other"`), "app_state says"},
		{"initial height", replace(`"initial_height": "1"`, `"initial_height": "2"`), "initial_height 2"},
		{"app hash", replace(`"app_hash": ""`, `"app_hash": "00"`), "app_hash"},
		{"protocol", replace(`"app": "1"`, `"app": "9"`), "protocol version 9"},
		{"power", replace(`"power": "10"`, `"power": "11"`), "power 10"},
		{"slot", replace(`"slot_seconds": 900`, `"slot_seconds": 0`), "slot_seconds"},
		{"ledger rules", replace(`"id": "root"`, `"id": "r oot"`), "r oot"},
		{"huge", make([]byte, maxGenesisBytes+1), "at most"},
	} {
		if _, _, _, err := ParseGenesis(c.b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
	if _, _, _, err := ReadGenesis("/nowhere/genesis.json"); err == nil || !strings.Contains(err.Error(), "/nowhere/genesis.json") {
		t.Errorf("missing file: %v", err)
	}
}

func TestOtherGenesis(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].open()
	n.run().stop()
	g := testGenesis()
	g.ChainID = "other-grid"
	g.Members = []chain.Founder{{Member: n.member, Node: "root"}}
	other := filepath.Join(w.dir, "other.json")
	if _, err := WriteGenesis(other, g, time.Now()); err != nil {
		t.Fatal(err)
	}
	h := newHost(n.key, "/ip4/127.0.0.1/tcp/0")
	defer h.Close()
	_, err := Open(t.Context(), Config{Home: n.home, GenesisFile: other, Host: h})
	if err == nil || !strings.Contains(err.Error(), "another genesis") {
		t.Errorf("stores of another microgrid: %v", err)
	}
	// The failure left nothing locked.
	e, err := Open(t.Context(), Config{Home: n.home, GenesisFile: w.genesis, Host: h})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.Close(), e.Close()); err != nil {
		t.Error(err)
	}
}

func TestValidatorKey(t *testing.T) {
	home := t.TempDir()
	key, err := InitValidator(home)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := InitValidator(home); err != nil || again != key {
		t.Errorf("second init: %s, %v; first %s", again, err, key)
	}
	keyFile, stateFile := validatorFiles(home)
	for _, f := range []string{keyFile, stateFile} {
		if s, err := os.Stat(f); err != nil || s.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f, s.Mode(), err)
		}
	}
	// A key without the memory of what it signed must not vote.
	if err := os.Rename(stateFile, stateFile+".lost"); err != nil {
		t.Fatal(err)
	}
	if _, err := InitValidator(home); err == nil || !strings.Contains(err.Error(), "signing twice") {
		t.Errorf("lost last signature: %v", err)
	}
	if err := os.WriteFile(stateFile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadValidator(home); err == nil || !strings.Contains(err.Error(), stateFile) {
		t.Errorf("broken last signature: %v", err)
	}
	if err := os.Rename(stateFile+".lost", stateFile); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, []byte(`{"priv_key":null}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadValidator(home); err == nil || !strings.Contains(err.Error(), keyFile) {
		t.Errorf("broken key: %v", err)
	}
}

func FuzzGenesis(f *testing.F) {
	f.Add(validGenesis(f))
	f.Add([]byte(`{"app_state":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if doc, g, h, err := ParseGenesis(b); err == nil && (doc.ChainID != g.ChainID || h != chain.Sum(b)) {
			t.Errorf("accepted %q", b)
		}
	})
}

func FuzzVerifyProof(f *testing.F) {
	t, err := openTree(&treeDB{DB: iavldb.NewMemDB()})
	if err != nil {
		f.Fatal(err)
	}
	for _, k := range []string{"a", "key", "z"} {
		working{t}.Set([]byte(k), []byte("value"))
	}
	root, _, err := t.SaveVersion()
	if err != nil {
		f.Fatal(err)
	}
	for _, k := range []string{"key", "kez"} {
		proof, _, err := prove(t.ImmutableTree, []byte(k))
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(k), []byte("value"), proof)
	}
	f.Fuzz(func(t *testing.T, key, value, proof []byte) {
		holds := string(value) == "value" && (string(key) == "a" || string(key) == "key" || string(key) == "z")
		if value != nil && VerifyProof(chain.Hash(root), key, value, proof) == nil && !holds {
			t.Errorf("%q = %q is not in the tree: %x", key, value, proof)
		}
	})
}
