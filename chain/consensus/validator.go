package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cometbft/cometbft/crypto/ed25519"
	cmtjson "github.com/cometbft/cometbft/libs/json"
	"github.com/cometbft/cometbft/privval"

	"github.com/joulegate/joulegate/chain"
)

// The validator key is not the device key and never part of a backup: beside
// it lies what it signed last, and a key that comes back without that memory
// could sign two blocks of one height.
func validatorFiles(home string) (key, state string) {
	d := validatorDir(home)
	return filepath.Join(d, "key.json"), filepath.Join(d, "last_signed.json")
}

// InitValidator makes the validator key of a gateway and returns its public
// half. If a complete pair of files is there already it returns that key and
// changes nothing; half a pair is an error, never repaired in silence.
func InitValidator(home string) (chain.Key, error) {
	keyFile, stateFile := validatorFiles(home)
	_, kerr := os.Stat(keyFile)
	_, serr := os.Stat(stateFile)
	if errors.Is(kerr, fs.ErrNotExist) && errors.Is(serr, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(keyFile), 0o700); err != nil {
			return chain.Key{}, fmt.Errorf("make validator key: %w", err)
		}
		pv := privval.GenFilePV(keyFile, stateFile)
		// The last-signed file goes first: a crash in between leaves a
		// state without a key, which is refused, never a key without one.
		if err := saving(func() { pv.LastSignState.Save(); pv.Key.Save() }); err != nil {
			return chain.Key{}, fmt.Errorf("write validator key in %s: %w", filepath.Dir(keyFile), err)
		}
	}
	pv, err := loadValidator(home)
	if err != nil {
		return chain.Key{}, err
	}
	return chain.Key(pv.Key.PubKey.Bytes()), nil
}

// saving turns the panics of the library's save functions into errors.
func saving(f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	f()
	return nil
}

// loadValidator reads the pair of files. It checks both before it calls the
// library, which would end the process on a bad file.
func loadValidator(home string) (*privval.FilePV, error) {
	keyFile, stateFile := validatorFiles(home)
	var key privval.FilePVKey
	if err := readJSON(keyFile, &key); err != nil {
		return nil, fmt.Errorf("validator key: %w (run init to make one)", err)
	}
	if _, ok := key.PrivKey.(ed25519.PrivKey); !ok {
		return nil, fmt.Errorf("validator key %s: not an Ed25519 private key", keyFile)
	}
	if len(key.PrivKey.Bytes()) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("validator key %s: %d bytes, want %d", keyFile, len(key.PrivKey.Bytes()), ed25519.PrivateKeySize)
	}
	var state privval.FilePVLastSignState
	if err := readJSON(stateFile, &state); err != nil {
		return nil, fmt.Errorf("validator's last signature: %w (it guards against signing twice: move %s away and run init for a new validator key)", err, keyFile)
	}
	return privval.LoadFilePV(keyFile, stateFile), nil
}

func readJSON(file string, v any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := cmtjson.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}
