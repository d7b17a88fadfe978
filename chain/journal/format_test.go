package journal

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	dbm "github.com/cometbft/cometbft-db"

	"github.com/joulegate/joulegate/chain"
)

// TestFormats opens a journal as format 1 was written, with
// JOULEGATE_FIXTURE=1 after writing it anew, and refuses a newer one.
func TestFormats(t *testing.T) {
	fixture := "testdata/journal-1"
	if os.Getenv("JOULEGATE_FIXTURE") != "" {
		dir := t.TempDir()
		cfg := config(1)
		cfg.Fresh = true
		j := mustOpen(t, dir, cfg)
		if _, err := j.Recover(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"first", "second"} {
			if _, err := j.Append([]chain.Record{record(text)}); err != nil {
				t.Fatal(err)
			}
		}
		leaves := [][]byte{[]byte("a reading")}
		if err := j.PutReadings(chain.MerkleRoot(leaves), leaves); err != nil {
			t.Fatal(err)
		}
		if err := j.Save("cursor", []byte("here")); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(fixture); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(fixture, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"LOCK", "blocks.db/LOCK", "blocks.db/LOG"} {
			if err := os.Remove(filepath.Join(fixture, f)); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(fixture)); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, dir, config(1))
	blocks, err := j.OwnAfter(chain.Position{}, 10)
	if err != nil || len(blocks) != 2 || blocks[1].Position() != (chain.Position{Epoch: 1, Number: 2}) {
		t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	if v, err := j.Load("cursor"); err != nil || string(v) != "here" {
		t.Errorf("saved %q, %v", v, err)
	}
	if r, err := j.Readings(chain.MerkleRoot([][]byte{[]byte("a reading")})); err != nil || len(r) != 1 {
		t.Errorf("readings %q, %v", r, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	db, err := dbm.NewGoLevelDB(dbName, dir)
	if err != nil {
		t.Fatal(err)
	}
	next := chain.Marshal(meta{chain.Version + 1, grid, pubNo(1)})
	if err := db.SetSync(keyMeta, next); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, config(1)); err == nil || !strings.Contains(err.Error(), "update joulegate") {
		t.Errorf("a newer journal: %v", err)
	}
}
