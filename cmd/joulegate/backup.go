package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/spf13/cobra"
)

// A backup is a gzipped tar: the manifest first, then the files that it names,
// in its order and with its hashes. What is not on the list below is never
// put in and never taken out: above all consensus/validator, whose memory of
// what was signed last must not come back from the past, and CometBFT's log of
// votes beside it.
const (
	backupFormat   = "joulegate-backup"
	backupVersion  = 1
	backupManifest = "manifest.json"
	maxManifest    = 16 << 20 // bytes; larger is refused
	maxBackupFiles = 100_000  // likewise
	maxBackupBytes = 64 << 30 // of all files, likewise
	backupTries    = 3        // when a file of a running gateway changes meanwhile
)

// part says why a file is in a backup.
type part int

const (
	notKept part = iota
	plain        // always
	secret       // only with --with-keys
	store        // journal and ledger: of a running gateway as it gives them
)

// partOf is the list of what a backup holds; name is relative to the state
// folder, with slashes.
func partOf(name string) part {
	if !filepath.IsLocal(name) || path.Clean(name) != name || strings.ContainsAny(name, "\\\x00") {
		return notKept
	}
	dir, rest, deep := strings.Cut(name, "/")
	switch {
	case !deep:
		switch name {
		case "genesis.json", "joulegate.yaml", "peers.json", "parties.yaml":
			return plain
		case "psk", "broker.json":
			return secret
		}
	case dir == "receipts":
		return plain
	case name == "settings/revisions.json", name == "consensus/trust.json":
		return plain
	case name == "keys/new":
	case dir == "keys", dir == "wallets":
		return secret
	case dir == "journal":
		if d, file, ok := strings.Cut(rest, "/"); ok && d == "blocks.db" && file != "LOCK" {
			return store
		}
	case dir == "statements":
		if file, ok := strings.CutPrefix(rest, "statements.db/"); ok && file != "LOCK" {
			return store
		}
	case dir == "consensus":
		if file, ok := strings.CutPrefix(rest, "milestones/"); ok && !strings.Contains(file, ".new") {
			return store
		}
		for _, db := range []string{"blockstore", "state", "evidence", "ledger"} {
			if file, ok := strings.CutPrefix(rest, "data/"+db+".db/"); ok && file != "LOCK" {
				return store
			}
		}
		// What stands for blocks that have been pruned.
		if file, ok := strings.CutPrefix(rest, "data/anchors/"); ok && !strings.HasSuffix(file, ".tmp") || rest == "data/snapshot" || rest == "data/format" {
			return store
		}
	}
	return notKept
}

// inDatabase reports whether a file changes while the gateway runs.
func inDatabase(name string) bool {
	return slices.ContainsFunc(storeNames, func(db string) bool { return strings.HasPrefix(name, db+"/") })
}

type manifest struct {
	Format  string       `json:"format"`
	Version int          `json:"version"`
	Created time.Time    `json:"created"`
	Program string       `json:"program"`
	Chain   string       `json:"chain_id"`
	Keys    bool         `json:"keys"`   // secret keys are in it
	Ledger  bool         `json:"ledger"` // journal and ledger are in it
	Files   []backupFile `json:"files"`
}

type backupFile struct {
	Name string     `json:"name"`
	Mode uint32     `json:"mode"` // permission bits
	Size int64      `json:"size"`
	Hash chain.Hash `json:"sha256"`
}

func parseManifest(b []byte) (m manifest, err error) {
	if len(b) > maxManifest {
		return m, fmt.Errorf("manifest of %d bytes, at most %d", len(b), maxManifest)
	}
	// The version first: what a newer one says is not for this program.
	if err := json.Unmarshal(b, &struct {
		Format  *string `json:"format"`
		Version *int    `json:"version"`
	}{&m.Format, &m.Version}); err != nil {
		return m, fmt.Errorf("manifest: %w", err)
	}
	switch {
	case m.Format != backupFormat:
		return m, errors.New("not a backup of joulegate")
	case m.Version != backupVersion:
		return m, fmt.Errorf("backup of format %d, this program knows %d: use the program that made it, or a newer one", m.Version, backupVersion)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, fmt.Errorf("manifest: %w", err)
	}
	if len(m.Files) == 0 || len(m.Files) > maxBackupFiles {
		return m, fmt.Errorf("manifest of %d files, 1..%d", len(m.Files), maxBackupFiles)
	}
	seen, total := map[string]bool{}, int64(0)
	for _, f := range m.Files {
		p := partOf(f.Name)
		switch {
		case p == notKept || p == secret && !m.Keys || p == store && !m.Ledger:
			return m, fmt.Errorf("manifest: %q does not belong into this backup", f.Name)
		case seen[f.Name]:
			return m, fmt.Errorf("manifest: %q twice", f.Name)
		case f.Size < 0 || f.Size > maxBackupBytes-total:
			return m, fmt.Errorf("manifest: %q of %d bytes, at most %d together", f.Name, f.Size, int64(maxBackupBytes))
		case f.Mode&^0o777 != 0:
			return m, fmt.Errorf("manifest: %q with mode %o", f.Name, f.Mode)
		}
		seen[f.Name] = true
		total += f.Size
	}
	return m, nil
}

func newBackupCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write what this gateway cannot get back from its neighbours into one file",
		Long: `backup writes one file, readable by its owner only: genesis, configuration, address
book, settings, parties, receipts, journal and ledger. --with-keys adds the secret keys (device, receipts,
network, cards, wallets): whoever has that file is this gateway, and can spend.

It works on a stopped gateway and on a running one, which gives journal and ledger
as they are at one moment and goes on meanwhile.

The validator's key is never in it. Beside that key lies what it signed last, and
a key that comes back without that memory could sign two blocks of one height.`,
		Example: "  joulegate backup /media/usb/house1.backup --with-keys",
		Args:    cobra.ExactArgs(1),
	}
	c.Flags().Bool("with-keys", false, "include the secret keys")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		withKeys, _ := cmd.Flags().GetBool("with-keys")
		cfg, _ := cmd.Flags().GetString("config")
		m, sum, err := writeBackup(stateOf(cmd), cfg, args[0], withKeys, time.Now(), func(w io.Writer) error {
			c, err := dial(cmd)
			if err != nil {
				return fmt.Errorf("the gateway runs and does not answer: %w", err)
			}
			return c.Stores(cmd.Context(), w)
		})
		if err != nil {
			return err
		}
		if m.Keys {
			fmt.Fprintf(cmd.ErrOrStderr(), "WARNING: %s holds the SECRET KEYS of this gateway and its wallets: keep it like cash\n", args[0])
		}
		return emit(cmd, backupResult(m, sum), func(w io.Writer) error { return printBackup(w, m, sum, args[0]) })
	}
	return c
}

func backupResult(m manifest, sum chain.Hash) any {
	return struct {
		Version int        `json:"version"`
		Created time.Time  `json:"created"`
		Chain   string     `json:"chain_id"`
		Keys    bool       `json:"keys"`
		Ledger  bool       `json:"ledger"`
		Files   int        `json:"files"`
		Hash    chain.Hash `json:"sha256"`
	}{m.Version, m.Created, m.Chain, m.Keys, m.Ledger, len(m.Files), sum}
}

func printBackup(w io.Writer, m manifest, sum chain.Hash, file string) error {
	yes := func(b bool, yes, no string) string {
		if b {
			return yes
		}
		return no
	}
	return table(w, [][]string{
		{"file", file},
		{"sha256", sum.String()},
		{"chain", m.Chain},
		{"made", m.Created.Format(time.RFC3339)},
		{"files", strconv.Itoa(len(m.Files))},
		{"secret keys", yes(m.Keys, "INCLUDED", "not included; add --with-keys to be able to restore this gateway's identity")},
		{"journal and ledger", yes(m.Ledger, "included", "not included: neighbours hold them")},
		{"validator's key", "never included"},
	})
}

// writeBackup writes a backup of st. A gateway that does not run is kept from
// starting meanwhile; one that does is asked for its stores.
func writeBackup(st state, config, file string, withKeys bool, now time.Time, stores func(io.Writer) error) (m manifest, sum chain.Hash, err error) {
	_, g, _, err := consensus.ReadGenesis(st.genesis())
	if err != nil {
		return m, sum, err
	}
	lock, err := journal.LockDir(string(st))
	running := errors.Is(err, journal.ErrInUse)
	if err != nil && !running {
		return m, sum, err
	}
	if lock != nil {
		defer func() { err = errors.Join(err, lock.Unlock()) }()
	}
	copied := ""
	if running {
		if copied, err = os.MkdirTemp(filepath.Dir(file), "."+filepath.Base(file)+".stores-*"); err != nil { // 0700
			return m, sum, fmt.Errorf("backup: %w", err)
		}
		defer os.RemoveAll(copied)
		r, w := io.Pipe()
		go func() { w.CloseWithError(stores(w)) }()
		err := readStores(r, copied)
		r.CloseWithError(err) // lets the gateway go
		if err != nil {
			return m, sum, fmt.Errorf("backup: %w", err)
		}
	}
	for range backupTries {
		m = manifest{
			Format: backupFormat, Version: backupVersion, Created: now.UTC().Truncate(time.Second), Program: version,
			Chain: g.ChainID, Keys: withKeys, Ledger: true,
		}
		sum, err = tryBackup(st, copied, config, file, &m)
		if !errors.Is(err, errChanged) {
			break
		}
	}
	return m, sum, err
}

var errChanged = errors.New("changed while it was read")

// tryBackup writes a backup of st, with the databases in the folder copied
// instead of its own if there is one.
func tryBackup(st state, copied, config, file string, m *manifest) (sum chain.Hash, err error) {
	source := map[string]string{}
	add := func(name, from string, i fs.FileInfo) error {
		h := sha256.New()
		n, err := copyFile(h, from)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has gone meanwhile
		}
		source[name] = from
		m.Files = append(m.Files, backupFile{name, uint32(i.Mode().Perm()), n, chain.Hash(h.Sum(nil))})
		return err
	}
	walk := func(root string, foreign func(name string) bool) error {
		return filepath.WalkDir(root, func(from string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has gone meanwhile
			}
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, from)
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			name := filepath.ToSlash(rel)
			p := partOf(name)
			if p == notKept || p == secret && !m.Keys || p == store && !m.Ledger || name == "joulegate.yaml" || foreign(name) {
				return nil
			}
			i, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			return add(name, from, i)
		})
	}
	err = walk(string(st), func(name string) bool { return copied != "" && inDatabase(name) })
	if err == nil && copied != "" {
		err = walk(copied, func(name string) bool { return !inDatabase(name) })
	}
	if err != nil {
		return sum, fmt.Errorf("backup of %s: %w", st, err)
	}
	if i, err := os.Stat(config); err == nil && i.Mode().IsRegular() {
		if err := add("joulegate.yaml", config, i); err != nil {
			return sum, fmt.Errorf("backup of %s: %w", config, err)
		}
	}
	out, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // 0600
	if err != nil {
		return sum, fmt.Errorf("backup: %w", err)
	}
	defer os.Remove(out.Name()) // gone already once renamed
	h := sha256.New()
	if err := errors.Join(pack(io.MultiWriter(out, h), m, source), out.Sync(), out.Close()); err != nil {
		return sum, fmt.Errorf("backup: write %s: %w", file, err)
	}
	return chain.Hash(h.Sum(nil)), os.Rename(out.Name(), file)
}

func pack(w io.Writer, m *manifest, source map[string]string) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: backupManifest, Mode: 0o600, Size: int64(len(b)), ModTime: m.Created}); err != nil {
		return err
	}
	if _, err := t.Write(b); err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := t.WriteHeader(&tar.Header{Name: f.Name, Mode: int64(f.Mode), Size: f.Size, ModTime: m.Created}); err != nil {
			return err
		}
		h := sha256.New()
		n, err := copyFile(io.MultiWriter(t, h), source[f.Name])
		if errors.Is(err, tar.ErrWriteTooLong) || errors.Is(err, fs.ErrNotExist) || err == nil && (n != f.Size || chain.Hash(h.Sum(nil)) != f.Hash) {
			err = errChanged
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return errors.Join(t.Close(), z.Close())
}

func copyFile(w io.Writer, name string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return io.Copy(w, f)
}

func newRestoreCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a state folder from a backup",
		Long: `restore fills an empty or new state folder (--state) from a backup. Every file is
checked first; a damaged backup, or one of a newer format, changes nothing. The
configuration is put into the state folder as joulegate.yaml.

Never run the old gateway and the restored one together. The restored gateway
signs its blocks in a new epoch, because it cannot know what was signed after the
backup, and it has a new validator key, which the ledger does not know: it follows
the ledger without a vote until operators give it the vote of the old key.

  1. joulegate restore FILE --state DIR          on the new card
  2. joulegate run --config DIR/joulegate.yaml --state DIR
  3. joulegate grid replace --state DIR          prints a request
  4. joulegate grid replace REQUEST              by an operator, at any gateway`,
		Example: "  joulegate restore /media/usb/house1.backup --state /var/lib/joulegate",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, sum, err := restoreBackup(stateOf(cmd), args[0], time.Now())
			if err != nil {
				return err
			}
			say := func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
			if m.Keys {
				say("NEVER start the old gateway again: two of one identity contradict each other")
				say("this gateway's blocks continue in a new epoch; it follows the ledger without a vote")
				say("next: joulegate run --config %s --state %s", stateOf(cmd).path("joulegate.yaml"), stateOf(cmd))
				say("then, to vote again: joulegate grid replace --state %s", stateOf(cmd))
			} else {
				say("the backup holds no keys: put this gateway's keys and psk into %s, or join again with a new state folder", stateOf(cmd))
			}
			return emit(cmd, backupResult(m, sum), func(w io.Writer) error { return printBackup(w, m, sum, args[0]) })
		},
	}
}

// restoreBackup makes st from a backup: beside it first, and by one rename
// when all has been checked and is on the disk.
func restoreBackup(st state, file string, now time.Time) (m manifest, sum chain.Hash, err error) {
	old, err := os.ReadDir(string(st))
	switch {
	case err == nil && len(old) > 0:
		return m, sum, fmt.Errorf("%s is not empty: restore into a new folder, or move this one away", st)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return m, sum, err
	}
	f, err := os.Open(file)
	if err != nil {
		return m, sum, err
	}
	defer f.Close()
	dir := filepath.Clean(string(st))
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return m, sum, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".restore-*") // 0700
	if err != nil {
		return m, sum, err
	}
	defer os.RemoveAll(tmp) // gone already once renamed
	h := sha256.New()
	if m, err = unpack(io.TeeReader(f, h), tmp); err != nil {
		return m, sum, fmt.Errorf("restore %s: %w", file, err)
	}
	if err := state(tmp).markRestored(now); err != nil {
		return m, sum, err
	}
	if len(old) == 0 {
		_ = os.Remove(dir) // an empty folder; the rename tells if it is still there
	}
	return m, chain.Hash(h.Sum(nil)), os.Rename(tmp, dir)
}

// unpack checks a backup and writes its files below dir. It writes no more
// than the manifest allows.
func unpack(r io.Reader, dir string) (m manifest, err error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return m, damaged(err)
	}
	return untar(z, dir)
}

func damaged(err error) error { return fmt.Errorf("the backup is damaged: %w", err) }

// untar is unpack of what gzip held.
func untar(z io.Reader, dir string) (m manifest, err error) {
	t := tar.NewReader(z)
	head, err := t.Next()
	if err != nil {
		return m, damaged(err)
	}
	if head.Name != backupManifest || head.Size > maxManifest {
		return m, errors.New("not a backup of joulegate")
	}
	b, err := io.ReadAll(t)
	if err != nil {
		return m, damaged(err)
	}
	if m, err = parseManifest(b); err != nil {
		return m, err
	}
	for _, f := range m.Files {
		head, err := t.Next()
		if err != nil {
			return m, damaged(fmt.Errorf("%s: %w", f.Name, err))
		}
		if head.Name != f.Name || head.Typeflag != tar.TypeReg || head.Size != f.Size {
			return m, damaged(fmt.Errorf("%s where %s should be", head.Name, f.Name))
		}
		if err := extract(t, filepath.Join(dir, filepath.FromSlash(f.Name)), f, sha256.New()); err != nil {
			return m, damaged(fmt.Errorf("%s: %w", f.Name, err))
		}
	}
	if _, err := t.Next(); err != io.EOF {
		return m, damaged(errors.New("more files than its manifest names"))
	}
	// What follows the archive: nothing but its padding, and the checksum.
	if n, err := io.Copy(io.Discard, io.LimitReader(z, 1<<20)); err != nil || n == 1<<20 {
		return m, damaged(fmt.Errorf("%d bytes after its end: %w", n, errors.Join(err, io.ErrUnexpectedEOF)))
	}
	return m, nil
}

func extract(r io.Reader, name string, f backupFile, h hash.Hash) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	mode := fs.FileMode(f.Mode)
	if partOf(f.Name) != plain {
		mode &= 0o700
	}
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(r, f.Size))
	if err == nil && (n != f.Size || chain.Hash(h.Sum(nil)) != f.Hash) {
		err = errors.New("its content is not what the manifest says")
	}
	return errors.Join(err, out.Sync(), out.Close())
}

// A state folder that came from a backup says when: what its device signed
// between the backup and then may be unknown to everybody who answers.
func (s state) restored() string { return s.path("restored") }

func (s state) markRestored(now time.Time) error {
	return writeFile(s.restored(), []byte(strconv.FormatInt(now.Unix(), 10)+"\n"), 0o600)
}

// restoredAt returns the Unix second of the restore, 0 if there was none.
func (s state) restoredAt() (uint32, error) {
	b, err := os.ReadFile(s.restored())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.restored(), err)
	}
	return uint32(n), nil
}
