package consensus

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/util"

	"github.com/joulegate/joulegate/chain/ledger"
)

// TestVerifyFinds changes single bytes of a stopped gateway's stores, with and
// without the store's own checksums noticing.
func TestVerifyFinds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	var tx []byte
	for range 3 {
		tx = w.mint(0, "driver", 1_000)
		n.submit(tx)
	}
	root, err := n.eng.AppHashAt(n.eng.Status().Height - 2)
	if err != nil {
		t.Fatal(err)
	}
	n.stop()
	value := ledger.AccountKey(account("driver"))

	pristine := n.home + ".pristine"
	if err := os.Rename(n.home, pristine); err != nil {
		t.Fatal(err)
	}
	for name, tamper := range map[string]func(t *testing.T, home string){
		"a transaction in a block": func(t *testing.T, home string) { rewrite(t, home, "blockstore", tx[20:40]) },
		"a header's app hash":      func(t *testing.T, home string) { rewrite(t, home, "blockstore", root[:20]) },
		"an entry of the state":    func(t *testing.T, home string) { rewrite(t, home, "ledger", value) },
		"a byte of the block store's files": func(t *testing.T, home string) {
			flip(t, filepath.Join(dataDir(home), "blockstore.db"))
		},
		"a byte of the state's files": func(t *testing.T, home string) { flip(t, filepath.Join(dataDir(home), "ledger.db")) },
	} {
		t.Run(name, func(t *testing.T) {
			home := filepath.Join(t.TempDir(), "home")
			if err := os.CopyFS(home, os.DirFS(pristine)); err != nil {
				t.Fatal(err)
			}
			if rep, err := VerifyHome(t.Context(), home, w.genesis, nil); err != nil || len(rep.Violations) > 0 {
				t.Fatalf("before: %+v, %v", rep, err)
			}
			tamper(t, home)
			rep, err := VerifyHome(t.Context(), home, w.genesis, nil)
			if err == nil && len(rep.Violations) == 0 {
				t.Errorf("not found: %+v", rep)
			}
			t.Logf("%+v %v", rep.Violations, err)
		})
	}
}

// rewrite changes a byte right after pattern in every value that holds it,
// through the database, so that its checksums are right.
func rewrite(t *testing.T, home, store string, pattern []byte) {
	t.Helper()
	db, err := dbm.NewGoLevelDB(store, dataDir(home))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	it, err := db.Iterator(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	changed := map[string][]byte{}
	for ; it.Valid(); it.Next() {
		v := bytes.Clone(it.Value())
		if i := bytes.Index(v, pattern); i >= 0 {
			v[min(i+len(pattern)+2, len(v)-1)] ^= 1
			changed[string(it.Key())] = v
		}
	}
	it.Close()
	if len(changed) == 0 {
		t.Fatalf("%x is not in the %s", pattern, store)
	}
	for k, v := range changed {
		if err := db.SetSync([]byte(k), v); err != nil {
			t.Fatal(err)
		}
	}
}

// flip changes a byte in the middle of a database's tables.
func flip(t *testing.T, dir string) {
	t.Helper()
	// Into tables first: a torn tail of the journal is dropped by rule.
	db, err := leveldb.OpenFile(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.CompactRange(util.Range{}); err != nil {
		t.Fatal(err)
	}
	db.Close()
	files, err := filepath.Glob(filepath.Join(dir, "*.ldb"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tables in %s: %v", dir, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 0x10
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
