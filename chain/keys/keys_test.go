package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/joulegate/joulegate/chain"
)

func TestKeysSurviveARestart(t *testing.T) {
	for name, pass := range map[string][]byte{"plain": nil, "passphrase": []byte("correct horse")} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "device.key")
			key, created, err := LoadOrCreateDevice(path, pass)
			if err != nil || !created {
				t.Fatal(created, err)
			}
			again, created, err := LoadOrCreateDevice(path, pass)
			if err != nil || created || !key.Equal(again) {
				t.Errorf("created %v, err %v, same %v", created, err, key.Equal(again))
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			if raw, _ := os.ReadFile(path); len(pass) > 0 && bytes.Contains(raw, []byte("BEGIN PRIVATE KEY")) {
				t.Error("not encrypted")
			}
			left, _ := filepath.Glob(filepath.Join(dir, ".key-*"))
			if len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestExposedKeyIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.key")
	if _, _, err := LoadOrCreateDevice(path, nil); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o644, 0o620} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, created, err := LoadOrCreateDevice(path, nil)
		if !errors.Is(err, ErrExposed) || created || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}

func TestDamagedKeyIsAnErrorThatNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "device.key")
	if _, _, err := LoadOrCreateDevice(path, nil); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	receipt := filepath.Join(dir, "receipt.key")
	if _, _, err := LoadOrCreateReceipt(receipt, nil); err != nil {
		t.Fatal(err)
	}
	other, _ := os.ReadFile(receipt)
	for what, raw := range map[string][]byte{
		"empty":           {},
		"torn":            good[:len(good)/2],
		"zeros":           make([]byte, len(good)),
		"twice":           append(bytes.Clone(good), good...),
		"large":           bytes.Repeat([]byte("x"), maxFile+1),
		"the receipt key": other,
	} {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		_, created, err := LoadOrCreateDevice(path, nil)
		if err == nil || created || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: created %v, %v", what, created, err)
		}
		if now, _ := os.ReadFile(path); !bytes.Equal(now, raw) {
			t.Errorf("%s: the file was changed", what)
		}
	}
}

func TestWrongPassphraseIsTold(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := LoadOrCreateWallet(dir, "owner", []byte("right")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "owner.key")
	for _, pass := range []string{"", "wrong"} {
		if _, err := LoadWallet(path, []byte(pass)); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%q: %v", pass, err)
		}
	}
	// Parameters are authenticated and bounded: nobody makes us derive with 4 GB.
	raw, _ := os.ReadFile(path)
	for old, forged := range map[string]string{"Memory: 65536": "Memory: 4194304", "Time: 3": "Time: 2"} {
		if err := os.WriteFile(path, bytes.Replace(raw, []byte(old), []byte(forged), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadWallet(path, []byte("right")); err == nil {
			t.Errorf("%s accepted", forged)
		}
	}
}

func TestWallets(t *testing.T) {
	dir := t.TempDir()
	w, created, err := LoadOrCreateWallet(dir, "driver-1", nil)
	if err != nil || !created || w.Name != "driver-1" || w.Account() != chain.AccountOf(w.Public()) {
		t.Fatalf("%+v %v %v", w, created, err)
	}
	if got, err := LoadWallet(filepath.Join(dir, "driver-1.key"), nil); err != nil || got.Name != w.Name || !got.Key.Equal(w.Key) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := ImportWallet(dir, "driver-1", w.Key, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("import over a wallet: %v", err)
	}
	if _, _, err := LoadOrCreateDevice(filepath.Join(dir, "device.key"), nil); err != nil {
		t.Fatal(err)
	}
	if names, err := ListWallets(dir); err != nil || len(names) != 1 || names[0] != "driver-1" {
		t.Errorf("%v, %v", names, err)
	}
	for _, bad := range []string{"", "../x", "a/b", "A", "device", "receipt", strings.Repeat("a", 33), "a.key"} {
		if _, _, err := LoadOrCreateWallet(dir, bad, nil); err == nil {
			t.Errorf("name %q accepted", bad)
		}
	}
}

// Two commands that make the same key at once must not end up with two.
func TestConcurrentCreationYieldsOneKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device.key")
	var wg sync.WaitGroup
	made := make(chan ed25519.PrivateKey, 8)
	for range cap(made) {
		wg.Go(func() {
			if key, created, err := LoadOrCreateDevice(path, nil); err == nil && created {
				made <- key
			} else if err != nil && !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(made)
	onDisk, err := LoadDevice(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for key := range made {
		n++
		if !key.Equal(onDisk) {
			t.Error("a key was handed out that is not on disk")
		}
	}
	if n != 1 {
		t.Errorf("%d keys made", n)
	}
}

func TestReceiptKeyIsVouchedForByTheDevice(t *testing.T) {
	dir := t.TempDir()
	device, _, err := LoadOrCreateDevice(filepath.Join(dir, "device.key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	r, created, err := LoadOrCreateReceipt(filepath.Join(dir, "receipt.key"), nil)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	again, _, err := LoadOrCreateReceipt(filepath.Join(dir, "receipt.key"), nil)
	if err != nil || !bytes.Equal(again.Public(), r.Public()) {
		t.Fatalf("not the same after a restart: %v", err)
	}
	if err := VerifyVouch(Public(device), r.Public(), r.Vouch(device)); err != nil {
		t.Error(err)
	}
	if err := VerifyVouch(chain.Key{1}, r.Public(), r.Vouch(device)); err == nil {
		t.Error("another device vouched")
	}
	pub, err := x509.ParsePKIXPublicKey(r.Public())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("x"))
	sig, err := ecdsa.SignASN1(rand.Reader, r.Key, digest[:])
	if err != nil || !ecdsa.VerifyASN1(pub.(*ecdsa.PublicKey), digest[:], sig) {
		t.Errorf("signature does not verify: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	plain, err := encode(key, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add([]byte("-----BEGIN JOULEGATE SEALED KEY-----\nKDF: argon2id\nMemory: 9999999999\n\nAAAA\n-----END JOULEGATE SEALED KEY-----\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if k, err := decode(raw, nil); (k == nil) == (err == nil) {
			t.Errorf("%v, %v", k, err)
		}
	})
}
