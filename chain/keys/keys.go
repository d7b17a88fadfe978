// Package keys keeps a gateway's private keys in sealed files.
//
//	device.key    Ed25519   libp2p identity and author of this gateway's blocks
//	receipt.key   P-256     signs receipts (OCMF has no Ed25519); the device key
//	                        vouches for it under chain.DomainReceipt
//	NAME.key      Ed25519   wallets: keys of people (owner, driver, operator),
//	                        not of the device
//
// # Sealed
//
// A sealed file is readable by its owner only: one that group or others may
// read is refused, because its key may be known to somebody already. With a
// passphrase the key is encrypted too, with XChaCha20-Poly1305 under an
// Argon2id key (RFC 9106), so that a stolen card does not sign.
//
// # Format
//
// PEM. Without a passphrase it is a PKCS #8 "PRIVATE KEY" that openssl reads.
// With one it is "JOULEGATE SEALED KEY" with the parameters of the key
// derivation in its headers, which are authenticated.
//
// Files appear whole or not at all: they are written beside their place,
// synced, and renamed.
package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/joulegate/joulegate/chain"
)

// Errors on which a caller decides; everything else is fatal for the file.
var (
	// ErrPassphrase: the file needs a passphrase, or another one.
	ErrPassphrase = errors.New("wrong or missing passphrase")
	// ErrExposed: the file's mode lets others read it.
	ErrExposed = errors.New("readable by others")
)

// MaxName is the longest name of a wallet, in bytes.
const MaxName = 32

const (
	plainType  = "PRIVATE KEY" // RFC 7468 section 10
	sealedType = "JOULEGATE SEALED KEY"
	maxFile    = 4096 // bytes; a key file is a few hundred
)

// Wallet is a person's key.
type Wallet struct {
	Name string
	Key  ed25519.PrivateKey
}

// Public returns the wallet's public key.
func (w Wallet) Public() chain.Key { return Public(w.Key) }

// Account returns the account that the wallet's key holds.
func (w Wallet) Account() chain.Account { return chain.AccountOf(w.Public()) }

// Public returns the public half of key.
func Public(key ed25519.PrivateKey) chain.Key {
	return chain.Key(key.Public().(ed25519.PublicKey))
}

// LoadDevice reads the device key.
func LoadDevice(path string, passphrase []byte) (ed25519.PrivateKey, error) {
	return loadEd25519("device key", path, passphrase)
}

// LoadOrCreateDevice reads the device key, or makes one where there is no
// file; created tells which.
func LoadOrCreateDevice(path string, passphrase []byte) (key ed25519.PrivateKey, created bool, err error) {
	return loadOrCreateEd25519("device key", path, passphrase)
}

// LoadWallet reads a wallet. Its name is the file's, without ".key".
func LoadWallet(path string, passphrase []byte) (Wallet, error) {
	key, err := loadEd25519("wallet", path, passphrase)
	return Wallet{walletName(path), key}, err
}

// LoadOrCreateWallet reads the wallet dir/NAME.key, or makes it. The
// directory must exist.
func LoadOrCreateWallet(dir, name string, passphrase []byte) (w Wallet, created bool, err error) {
	path, err := WalletPath(dir, name)
	if err != nil {
		return Wallet{}, false, err
	}
	key, created, err := loadOrCreateEd25519("wallet", path, passphrase)
	return Wallet{name, key}, created, err
}

// ImportWallet writes an existing key as the wallet dir/NAME.key. It never
// overwrites.
func ImportWallet(dir, name string, key ed25519.PrivateKey, passphrase []byte) error {
	path, err := WalletPath(dir, name)
	if err != nil {
		return err
	}
	return write("wallet", path, key, passphrase)
}

// WalletPath returns where the wallet of that name is. Names are 1..MaxName
// of a-z, 0-9, '-' and '_', so that they are file names everywhere.
func WalletPath(dir, name string) (string, error) {
	ok := len(name) >= 1 && len(name) <= MaxName && name != "device" && name != "receipt"
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	}
	if !ok {
		return "", fmt.Errorf("wallet name %q: 1..%d of a-z 0-9 - _, not device or receipt", name, MaxName)
	}
	return filepath.Join(dir, name+".key"), nil
}

func walletName(path string) string {
	base := filepath.Base(path)
	return base[:len(base)-len(filepath.Ext(base))]
}

// ListWallets loads nothing: it returns the names of the wallets in dir,
// sorted.
func ListWallets(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.key"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		name := walletName(f)
		if _, err := WalletPath(dir, name); err == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// Receipt is the key that signs receipts.
type Receipt struct {
	Key *ecdsa.PrivateKey // P-256
}

// LoadReceipt reads the receipt key.
func LoadReceipt(path string, passphrase []byte) (Receipt, error) {
	key, err := load("receipt key", path, passphrase)
	if err != nil {
		return Receipt{}, err
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok || k.Curve != elliptic.P256() {
		return Receipt{}, fmt.Errorf("receipt key %s: it holds %T, want ECDSA P-256: put back the right file", path, key)
	}
	return Receipt{k}, nil
}

// LoadOrCreateReceipt reads the receipt key, or makes one where there is no
// file.
func LoadOrCreateReceipt(path string, passphrase []byte) (r Receipt, created bool, err error) {
	if r, err = LoadReceipt(path, passphrase); !errors.Is(err, fs.ErrNotExist) {
		return r, false, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Receipt{}, false, fmt.Errorf("make receipt key: %w", err)
	}
	if err := write("receipt key", path, key, passphrase); err != nil {
		return Receipt{}, false, err
	}
	return Receipt{key}, true, nil
}

// Public returns the public key as DER SubjectPublicKeyInfo (RFC 5480), which
// is what verifiers of receipts read.
func (r Receipt) Public() []byte {
	der, err := x509.MarshalPKIXPublicKey(&r.Key.PublicKey)
	if err != nil {
		panic(fmt.Sprintf("keys: P-256 key does not marshal: %v", err))
	}
	return der
}

// Vouch returns the device key's signature over the receipt key, so that a
// receipt leads to a member of the ledger.
func (r Receipt) Vouch(device ed25519.PrivateKey) []byte {
	return chain.Sign(device, chain.DomainReceipt, r.Public())
}

// VerifyVouch checks that device vouched for the receipt key spki.
func VerifyVouch(device chain.Key, spki, sig []byte) error {
	if !chain.Verify(device, chain.DomainReceipt, spki, sig) {
		return fmt.Errorf("receipt key is not vouched for by device %s", device.Short())
	}
	return nil
}

func loadEd25519(what, path string, passphrase []byte) (ed25519.PrivateKey, error) {
	key, err := load(what, path, passphrase)
	if err != nil {
		return nil, err
	}
	k, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s %s: it holds %T, want Ed25519: put back the right file", what, path, key)
	}
	return k, nil
}

func loadOrCreateEd25519(what, path string, passphrase []byte) (ed25519.PrivateKey, bool, error) {
	key, err := loadEd25519(what, path, passphrase)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	_, key, err = ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, false, fmt.Errorf("make %s: %w", what, err)
	}
	if err := write(what, path, key, passphrase); err != nil {
		return nil, false, err // a key that is not on disk is not used
	}
	return key, true, nil
}

func load(what, path string, passphrase []byte) (any, error) {
	raw, err := readSealed(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	key, err := decode(raw, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, path, err)
	}
	return key, nil
}

// readSealed judges the mode of the file it has opened, not of whatever has
// the name by then.
func readSealed(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %#o: %w; run chmod 600 %s, and replace the key if somebody may have read it", path, mode.Perm(), ErrExposed, path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(raw) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes: not a key file", path, maxFile)
	}
	return raw, nil
}

// decode turns a key file's bytes into a key.
func decode(raw, passphrase []byte) (any, error) {
	const remedy = "restore it from the backup"
	block, rest := pem.Decode(raw)
	if block == nil || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("damaged: not one PEM block; " + remedy)
	}
	der := block.Bytes
	switch block.Type {
	case plainType:
	case sealedType:
		var err error
		if der, err = unseal(block, passphrase); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("damaged: PEM block %q; %s", block.Type, remedy)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("damaged: %w; %s", err, remedy)
	}
	return key, nil
}

func encode(key any, passphrase []byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if len(passphrase) == 0 {
		return pem.EncodeToMemory(&pem.Block{Type: plainType, Bytes: der}), nil
	}
	salt := make([]byte, saltBytes)
	rand.Read(salt)
	block := &pem.Block{Type: sealedType, Headers: map[string]string{
		"KDF": "argon2id", "Time": strconv.Itoa(kdfTime), "Memory": strconv.Itoa(kdfMemory),
		"Threads": strconv.Itoa(kdfThreads), "Salt": hex.EncodeToString(salt),
	}}
	aead, err := cipherOf(block, passphrase)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	block.Bytes = aead.Seal(nonce, nonce, der, headers(block))
	return pem.EncodeToMemory(block), nil
}
