package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// storesFormat is the version of what is in the folder of stores: which
// databases there are, how the state's keys are laid out (a version of the
// tree per block), what lies beside them.
//
//	0   no format file: as 1
//	1   written by this program
//
// A newer one is refused; an older one is brought to this one by migrate, step
// by step, before anything else opens it.
const (
	storesFormat = 1
	formatFile   = "format"
	formatWords  = "joulegate ledger "
)

// checkFormat refuses stores that this program does not know, and brings older
// ones to its own format unless they are only read.
func checkFormat(dir string, readOnly bool) error {
	name := filepath.Join(dir, formatFile)
	have := 0
	b, err := readSome(name, 64)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		text, ok := strings.CutPrefix(strings.TrimSpace(string(b)), formatWords)
		if have, err = strconv.Atoi(text); !ok || err != nil || have < 1 {
			return fmt.Errorf("%s is damaged: %q%s", name, b, refetch(dir))
		}
	}
	if have > storesFormat {
		return fmt.Errorf("the ledger's stores in %s are of format %d, this program knows %d: update joulegate, or go back to the program that wrote them", dir, have, storesFormat)
	}
	if have == storesFormat || readOnly {
		return nil // formats 0 and 1 read alike
	}
	if err := writeFile(name, []byte(formatWords+strconv.Itoa(storesFormat)+"\n")); err != nil {
		return fmt.Errorf("migrate %s from format %d: %w", dir, have, err)
	}
	return os.Chmod(name, 0o600)
}
