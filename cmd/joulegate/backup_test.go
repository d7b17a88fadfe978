package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

// stateWithAll makes a state folder with something of everything.
func stateWithAll(t testing.TB) (st state, config string) {
	t.Helper()
	st = state(filepath.Join(t.TempDir(), "state"))
	id, err := makeIdentity(st)
	if err != nil {
		t.Fatal(err)
	}
	op, _, err := keys.LoadOrCreateWallet(st.wallets(), "operator", nil)
	if err != nil {
		t.Fatal(err)
	}
	g := chain.Genesis{
		Version: chain.Version, ChainID: "backup-street", SlotSeconds: 900, GraceSeconds: 60, Currency: "EUR", MinorDigits: 2,
		Operators: []chain.Key{op.Public()}, Retail: 300_000, FeedIn: 80_000, Nodes: []chain.Node{{ID: "root"}}, StartSeconds: 600, Basis: "simulated",
		Members: []chain.Founder{{Member: id.member("house1", op.Public(), true, 17_000, nil), Node: "root"}},
	}
	if _, err := consensus.WriteGenesis(st.genesis(), g, time.Unix(1_764_000_000, 0)); err != nil {
		t.Fatal(err)
	}
	if err := writePSK(st, bytes.Repeat([]byte{7}, 32)); err != nil {
		t.Fatal(err)
	}
	config = filepath.Join(t.TempDir(), "joulegate.yaml")
	for name, text := range map[string]string{
		config: "version: 1\n", st.path("parties.yaml"): "people", st.path("receipts", "r1.ocmf"): "OCMF|{}|{}",
		st.path("journal", "blocks.db", "000001.log"): "journal", st.path("consensus", "data", "ledger.db", "CURRENT"): "ledger",
		st.path("consensus", "milestones", "7", "manifest"): "votes", st.path("consensus", "milestones", "8.new", "manifest"): "half",
		st.path("consensus", "data", "cs.wal", "wal"): "votes", st.path("settings", "revisions.json"): "revisions", st.path("settings", "LOCK"): "1", st.path("control.sock"): "", st.path("keys", "new"): "",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return st, config
}

func tree(t *testing.T, dir string) (names []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			names = append(names, filepath.ToSlash(rel))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// given are the stores of a running gateway, an entry each.
var given = map[string]string{"journal/blocks.db": "own", "consensus/data/ledger.db": "account", "consensus/data/blockstore.db": "block"}

func givenStores(t *testing.T) func(io.Writer) error {
	return func(w io.Writer) error {
		err := writeStores(w, func(entry func(string, []byte, []byte) error) error {
			for name, text := range given {
				if err := entry(name, []byte(text), []byte(name)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return err
	}
}

// A copy that breaks off is no backup.
func TestBackupOfBrokenStores(t *testing.T) {
	st, config := stateWithAll(t)
	lock, err := journal.LockDir(string(st))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	var whole bytes.Buffer
	if err := givenStores(t)(&whole); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for n := 0; n < whole.Len(); n += 23 { // and entries of three databases are cut somewhere
		_, _, err := writeBackup(st, config, filepath.Join(dir, "b"), false, time.Now(), func(w io.Writer) error {
			_, err := w.Write(whole.Bytes()[:n])
			return err
		})
		if err == nil {
			t.Fatalf("a backup of %d of %d bytes", n, whole.Len())
		}
	}
	if _, _, err := writeBackup(st, config, filepath.Join(dir, "b"), false, time.Now(), func(w io.Writer) error {
		return writeStores(w, func(entry func(string, []byte, []byte) error) error { return entry("../evil", nil, nil) })
	}); err == nil || !strings.Contains(err.Error(), "there is no") {
		t.Errorf("a store of another name: %v", err)
	}
	if left := tree(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBackupRestore(t *testing.T) {
	st, config := stateWithAll(t)
	now := time.Unix(1_770_000_000, 0)
	public := []string{"genesis.json", "joulegate.yaml", "parties.yaml", "receipts/r1.ocmf", "restored", "settings/revisions.json"}
	secrets := []string{"keys/device.key", "keys/receipt.key", "psk", "wallets/operator.key"}
	milestones := []string{"consensus/milestones/7/manifest"} // files that do not change: taken from a running gateway as they are
	stores := append([]string{"consensus/data/ledger.db/CURRENT", "journal/blocks.db/000001.log"}, milestones...)
	if _, err := os.Stat(st.path("wallets", "operator.key")); err != nil {
		path, _ := keys.WalletPath("wallets", "operator")
		secrets[3] = filepath.ToSlash(path)
	}
	for _, c := range []struct {
		name              string
		withKeys, running bool
		want              []string
	}{
		{"stopped", false, false, slices.Concat(public, stores)},
		{"stopped, with keys", true, false, slices.Concat(public, stores, secrets)},
		{"running", false, true, slices.Concat(public, milestones)},
		{"running, with keys", true, true, slices.Concat(public, milestones, secrets)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.running {
				lock, err := journal.LockDir(string(st))
				if err != nil {
					t.Fatal(err)
				}
				defer lock.Unlock()
			}
			file := filepath.Join(t.TempDir(), "b")
			m, sum, err := writeBackup(st, config, file, c.withKeys, now, givenStores(t))
			if err != nil {
				t.Fatal(err)
			}
			if i, err := os.Stat(file); err != nil || i.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v: a backup is its owner's", i.Mode(), err)
			}
			to := state(filepath.Join(t.TempDir(), "new", "state"))
			got, sum2, err := restoreBackup(to, file, now)
			if err != nil {
				t.Fatal(err)
			}
			if sum != sum2 || got.Keys != c.withKeys || !got.Ledger || len(got.Files) != len(m.Files) {
				t.Errorf("restored %+v (%s), wrote %+v (%s)", got, sum2, m, sum)
			}
			want := slices.Sorted(slices.Values(c.want))
			have := tree(t, string(to))
			if c.running { // its stores are what the gateway gave, not its files
				for name, text := range given {
					db, err := leveldb.OpenFile(to.path(filepath.FromSlash(name)), &opt.Options{ReadOnly: true})
					if err != nil {
						t.Fatal(err)
					}
					if v, err := db.Get([]byte(text), nil); err != nil || string(v) != name {
						t.Errorf("%s: %q, %v", name, v, err)
					}
					_ = db.Close()
				}
				have = slices.DeleteFunc(have, inDatabase)
			}
			if !slices.Equal(have, want) {
				t.Errorf("restored\n%v\nwant\n%v", have, want)
			}
			for _, name := range c.want {
				from := st.path(filepath.FromSlash(name))
				switch name {
				case "restored":
					continue
				case "joulegate.yaml":
					from = config
				}
				a, err1 := os.ReadFile(from)
				b, err2 := os.ReadFile(to.path(filepath.FromSlash(name)))
				if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
					t.Errorf("%s differs: %v", name, err)
				}
			}
			if at, err := to.restoredAt(); err != nil || int64(at) != now.Unix() {
				t.Errorf("restored at %d, %v", at, err)
			}
			if freshDevice(to) {
				t.Error("a restored device counts as new")
			}
			if c.withKeys { // the device is the same, the validator's key a new one
				old, err1 := makeIdentity(st)
				id, err2 := loadIdentity(to)
				if err := errors.Join(err1, err2); err != nil {
					t.Fatal(err)
				}
				if !id.device.Equal(old.device) || id.validator == old.validator {
					t.Errorf("device equal %t, validator's key %s, was %s", id.device.Equal(old.device), id.validator, old.validator)
				}
			}
		})
	}
}

// Without --with-keys nothing secret is in a backup, whatever its name is.
func TestBackupLeaksNothing(t *testing.T) {
	st, config := stateWithAll(t)
	file := filepath.Join(t.TempDir(), "b")
	if _, _, err := writeBackup(st, config, file, false, time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	if _, err := all.ReadFrom(z); err != nil {
		t.Fatal(err)
	}
	psk, _ := os.ReadFile(st.psk())
	device, _ := os.ReadFile(st.path("keys", "device.key"))
	for name, s := range map[string][]byte{"psk": bytes.TrimSpace(psk), "device key": bytes.TrimSpace(device)} {
		if len(s) == 0 || bytes.Contains(all.Bytes(), s) {
			t.Errorf("%s is in the backup", name)
		}
	}
}

// What is damaged, newer, or would overwrite something changes nothing.
func TestRestoreRefuses(t *testing.T) {
	st, config := stateWithAll(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "b")
	if _, _, err := writeBackup(st, config, file, true, time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	to := state(filepath.Join(dir, "to"))
	refused := func(what string, b []byte, words string) {
		t.Helper()
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := restoreBackup(to, file, time.Now())
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", what, err, words)
		}
		if _, err := os.Stat(string(to)); err == nil {
			t.Fatalf("%s: %v is there", what, tree(t, string(to)))
		}
	}
	inflated := func(b []byte) []byte {
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil
		}
		out, err := io.ReadAll(z)
		if err != nil {
			return nil
		}
		return out
	}
	plain := inflated(good)
	for i := 10; i < len(good); i += 97 { // the first ten bytes are gzip's own header
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if bytes.Equal(inflated(bad), plain) {
			continue // deflate has bits that mean nothing: what is restored is the same
		}
		refused("a changed byte", bad, "")
	}
	for _, n := range []int{0, 1, 20, len(good) / 2, len(good) - 1} {
		refused("a cut file", good[:n], "damaged")
	}
	refused("bytes after the end", append(bytes.Clone(good), 1, 2, 3), "damaged")

	archive := func(m any, files ...string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		raw, _ := json.Marshal(m)
		for i, f := range append([]string{backupManifest}, files...) {
			body := raw
			if i > 0 {
				body = []byte(f)
			}
			_ = w.WriteHeader(&tar.Header{Name: f, Mode: 0o600, Size: int64(len(body))})
			_, _ = w.Write(body)
		}
		_ = w.Close()
		_ = z.Close()
		return b.Bytes()
	}
	one := func(name string, keys bool) manifest {
		return manifest{Format: backupFormat, Version: 1, Keys: keys, Files: []backupFile{{name, 0o600, int64(len(name)), chain.Sum([]byte(name))}}}
	}
	newer := map[string]any{"format": backupFormat, "version": 2, "something": "new"}
	refused("a newer format", archive(newer), "format 2, this program knows 1")
	refused("another program's", archive(map[string]any{"format": "tarball"}), "not a backup")
	for _, name := range []string{
		"../evil", "/etc/passwd", "consensus/validator/last_signed.json", "consensus/validator/key.json", "keys/../psk", "control.sock", "restored", "keys/new", "journal/blocks.db/LOCK", "receipts/../../x",
	} {
		refused(name, archive(one(name, true), name), "does not belong")
	}
	refused("a key in a backup without keys", archive(one("keys/device.key", false), "keys/device.key"), "does not belong")
	refused("a file too many", archive(one("genesis.json", true), "genesis.json", "psk"), "more files")
	refused("a file missing", archive(one("genesis.json", true)), "damaged")
	huge := one("genesis.json", true)
	huge.Files[0].Size = 1 << 50
	refused("a huge file", archive(huge), "at most")

	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := restoreBackup(st, file, time.Now()); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("into a folder with something in it: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".to.restore-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// FuzzRestore reads archives: what is inside of the compression, so that the
// fuzzer changes manifests, headers and contents and not checksums.
func FuzzRestore(f *testing.F) {
	st, config := stateWithAll(f)
	file := filepath.Join(f.TempDir(), "b")
	for _, withKeys := range []bool{false, true} {
		if _, _, err := writeBackup(st, config, file, withKeys, time.Unix(1_770_000_000, 0), nil); err != nil {
			f.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			f.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := untar(bytes.NewReader(plain), f.TempDir()); err != nil {
			f.Fatalf("the seed is not restored: %v", err)
		}
		f.Add(plain)
		f.Add(plain[:len(plain)/2])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		m, err := untar(bytes.NewReader(b), dir)
		if err == nil {
			restoredRight(t, m, dir)
		}
		contained(t, dir)
	})
}

// FuzzRestoreFile restores archives of one file, of which everything is the
// fuzzer's: all of it gets as far as the checks of that file.
func FuzzRestoreFile(f *testing.F) {
	f.Add("genesis.json", "genesis.json", []byte("{}"), int64(2), uint32(0o644), true, true, true)
	f.Add("keys/device.key", "keys/device.key", []byte("key"), int64(3), uint32(0o777), true, false, true)
	f.Add("keys/device.key", "keys/device.key", []byte("key"), int64(3), uint32(0o600), false, false, true)
	f.Add("journal/blocks.db/000001.log", "journal/blocks.db/000001.log", []byte("x"), int64(1), uint32(0o600), false, true, true)
	f.Add("consensus/validator/key.json", "consensus/validator/key.json", []byte("x"), int64(1), uint32(0o600), true, true, true)
	f.Add("../evil", "../evil", []byte("x"), int64(1), uint32(0o600), true, true, true)
	f.Add("receipts/a/../../b", "receipts/a/../../b", []byte("x"), int64(1), uint32(0o600), true, true, true)
	f.Add("psk", "genesis.json", []byte("x"), int64(1<<40), uint32(0o4755), true, true, false)
	f.Fuzz(func(t *testing.T, name, entry string, content []byte, size int64, mode uint32, withKeys, ledger, honest bool) {
		m := manifest{Format: backupFormat, Version: backupVersion, Keys: withKeys, Ledger: ledger, Files: []backupFile{{name, mode, size, chain.Sum(content)}}}
		if !honest {
			m.Files[0].Hash[0] ^= 1
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range []struct {
			name string
			body []byte
		}{{backupManifest, raw}, {entry, content}} {
			if w.WriteHeader(&tar.Header{Name: e.name, Mode: int64(mode), Size: int64(len(e.body))}) != nil {
				return // a name that tar does not write
			}
			_, _ = w.Write(e.body)
		}
		_ = w.Close()
		dir := t.TempDir()
		got, err := untar(&b, dir)
		contained(t, dir)
		ok := honest && name == entry && size == int64(len(content)) && mode&^0o777 == 0
		switch p := partOf(name); {
		case err == nil && (!ok || p == notKept || p == secret && !withKeys || p == store && !ledger):
			t.Fatalf("restored %q", name)
		case err == nil:
			restoredRight(t, got, dir)
		}
	})
}

// contained checks that nothing but what a backup holds is below dir, and
// nothing beside it.
func contained(t *testing.T, dir string) {
	t.Helper()
	for _, name := range tree(t, dir) {
		if partOf(name) == notKept || strings.HasPrefix(name, "consensus/validator") {
			t.Fatalf("restored %q", name)
		}
	}
	if beside, _ := os.ReadDir(filepath.Dir(dir)); len(beside) != 1 {
		t.Fatalf("beside the folder: %v", beside)
	}
}

// restoredRight checks that what was accepted is there as its manifest says.
func restoredRight(t *testing.T, m manifest, dir string) {
	t.Helper()
	for _, f := range m.Files {
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(f.Name)))
		if err != nil || int64(len(b)) != f.Size || chain.Sum(b) != f.Hash {
			t.Fatalf("%s: %d bytes, %v", f.Name, len(b), err)
		}
		if i, err := os.Stat(filepath.Join(dir, filepath.FromSlash(f.Name))); err != nil || partOf(f.Name) != plain && i.Mode().Perm()&0o077 != 0 {
			t.Fatalf("%s: mode %v, %v", f.Name, i.Mode(), err)
		}
	}
	if have := tree(t, dir); len(have) != len(m.Files) {
		t.Fatalf("%d files, the manifest names %d", len(have), len(m.Files))
	}
}
