// Command release is the maintainers' side of updates: it says what a release
// is, and lets several people sign it, each with a key of his own on a machine
// of his own.
//
//	make packages                                  dist/: programs, packages, SHA256SUMS
//	release manifest -version 1.2.0 -security -share 10 -notes https://…
//	release sign -key anna.key                     on Anna's machine
//	release sign -key ben.key                      on Ben's, with Anna's result
//	release verify -trust KEY,KEY -threshold 2     what a gateway will say
//
// sign adds one signature to dist/update.json, which gateways read, and writes
// one of dist/SHA256SUMS for people, in the format of minisign. Keys are made
// by keygen, or by joulegate account new; openssl reads them. They are never
// in a repository, and a passphrase comes from the file that
// JOULEGATE_PASSPHRASE_FILE names.
//
// To let more gateways take a version by themselves, make and sign the
// manifest again with a larger -share.
package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/update"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

const usage = "release keygen FILE | pubkey -key FILE | manifest -version V | sign -key FILE | verify -trust KEYS; release COMMAND -help"

func run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	f := flag.NewFlagSet("release "+args[0], flag.ContinueOnError)
	dist := f.String("dist", "dist", "folder with what make packages has made")
	switch args[0] {
	case "keygen":
		if len(args) != 2 || filepath.Ext(args[1]) != ".key" {
			return errors.New("release keygen NAME.key")
		}
		return keygen(args[1], out)
	case "pubkey":
		name := f.String("key", "", "`FILE` of the key")
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		key, err := load(*name)
		if err != nil {
			return err
		}
		return told(out, key)
	case "manifest":
		m := update.Manifest{Format: 1, Rules: ledger.RulesVersion}
		f.StringVar(&m.Version, "version", "", "of the programs, as joulegate version says it")
		f.StringVar(&m.Channel, "channel", "stable", "whom it is for")
		f.BoolVar(&m.Security, "security", false, "gateways take it by themselves")
		f.IntVar(&m.Share, "share", 10, "percent of the gateways that take it by themselves")
		f.StringVar(&m.Notes, "notes", "", "https address of the release notes")
		from := f.Uint("rules-from", 1, "oldest version of the ledger's rules that it can execute")
		valid := f.Duration("valid", 90*24*time.Hour, "how long anybody may take it by this manifest")
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		m.RulesFrom = uint32(*from)
		now := time.Now()
		m.NotBefore, m.Expires = now.Add(-time.Hour).Unix(), now.Add(*valid).Unix()
		return manifest(*dist, m, out)
	case "sign":
		name := f.String("key", "", "`FILE` of the key")
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		key, err := load(*name)
		if err != nil {
			return err
		}
		return sign(*dist, key, time.Now(), out)
	case "verify":
		trust := f.String("trust", "", "public keys, with commas between")
		threshold := f.Int("threshold", 1, "so many of them")
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		return verify(*dist, *trust, *threshold, time.Now(), out)
	}
	return errors.New(usage)
}

func passphrase() ([]byte, error) {
	name := os.Getenv("JOULEGATE_PASSPHRASE_FILE")
	if name == "" {
		return nil, nil
	}
	b, err := os.ReadFile(name)
	return bytes.TrimRight(b, "\r\n"), err
}

func load(name string) (ed25519.PrivateKey, error) {
	if name == "" {
		return nil, errors.New("-key is required")
	}
	pass, err := passphrase()
	if err != nil {
		return nil, err
	}
	w, err := keys.LoadWallet(name, pass)
	return w.Key, err
}

func keygen(name string, out io.Writer) error {
	pass, err := passphrase()
	if err != nil {
		return err
	}
	w, created, err := keys.LoadOrCreateWallet(filepath.Dir(name), strings.TrimSuffix(filepath.Base(name), ".key"), pass)
	if err != nil {
		return err
	}
	if !created {
		return fmt.Errorf("%s is there already", name)
	}
	if pass == nil {
		fmt.Fprintln(out, "it has no passphrase; JOULEGATE_PASSPHRASE_FILE gives it one")
	}
	return told(out, w.Key)
}

// told prints a public key as gateways and as minisign want it.
func told(out io.Writer, key ed25519.PrivateKey) error {
	pub := keys.Public(key)
	_, err := fmt.Fprintf(out, "update.keys: %s\nminisign:    %s\n", pub, minisignKey(pub))
	return err
}

// manifest writes what is to be signed.
func manifest(dist string, m update.Manifest, out io.Writer) error {
	for _, arch := range update.Arches {
		name := "joulegate-linux-" + arch
		b, err := os.ReadFile(filepath.Join(dist, name))
		if errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(out, "%s is not there: those gateways are not offered this version\n", name)
			continue
		} else if err != nil {
			return err
		}
		if !bytes.Contains(b, []byte(m.Version)) {
			return fmt.Errorf("%s does not contain the text %q: it is another version", name, m.Version)
		}
		m.Artifacts = append(m.Artifacts, update.Artifact{Kind: update.KindProgram, Arch: arch, File: name, Size: int64(len(b)), SHA256: chain.Sum(b)})
	}
	slots, _ := filepath.Glob(filepath.Join(dist, "*-slot.img"))
	if len(slots) > 1 {
		return fmt.Errorf("%d images of a slot: which one?", len(slots))
	}
	for _, name := range slots { // of the card, which is for arm64
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		m.Artifacts = append(m.Artifacts, update.Artifact{Kind: update.KindPartition, Arch: "arm64", File: filepath.Base(name), Size: int64(len(b)), SHA256: chain.Sum(b)})
	}
	b, err := m.Encode()
	if err != nil {
		return err
	}
	name := filepath.Join(dist, update.ManifestFile)
	fmt.Fprintf(out, "%s: version %s, to be signed until %s\n", name, m.Version, time.Unix(m.Expires, 0).UTC().Format(time.RFC3339))
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

// sign adds one person's signatures. What is signed is compared with what lies
// there first: a signature says that this person has seen these bytes.
func sign(dist string, key ed25519.PrivateKey, now time.Time, out io.Writer) error {
	name := filepath.Join(dist, update.ManifestFile)
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if b, err = update.Sign(bytes.TrimSpace(b), key); err != nil {
		return err
	}
	m, good, bad, err := update.Signers(b)
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("%s: the signature of %s does not hold", name, bad[0])
	}
	if err == nil {
		err = compare(dist, m)
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: version %s, %d signatures\n", name, m.Version, len(good))

	sums, err := os.ReadFile(filepath.Join(dist, "SHA256SUMS"))
	if err != nil {
		return err
	}
	if err := listed(dist, sums); err != nil {
		return err
	}
	pub := keys.Public(key)
	to := filepath.Join(dist, sumsSignature(pub))
	fmt.Fprintln(out, to)
	return os.WriteFile(to, minisign(key, sums, fmt.Sprintf("joulegate %s timestamp:%d", m.Version, now.Unix())), 0o644)
}

func sumsSignature(pub chain.Key) string { return "SHA256SUMS." + pub.String()[:8] + ".minisig" }

// compare says whether the artifacts are those of the manifest.
func compare(dist string, m update.Manifest) error {
	for _, a := range m.Artifacts {
		b, err := os.ReadFile(filepath.Join(dist, a.File))
		if err != nil {
			return err
		}
		if int64(len(b)) != a.Size || chain.Sum(b) != a.SHA256 {
			return fmt.Errorf("%s is not what the manifest says", a.File)
		}
	}
	return nil
}

// listed says whether the files are those of SHA256SUMS.
func listed(dist string, sums []byte) error {
	for line := range strings.Lines(string(sums)) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok || name != filepath.Base(name) {
			return fmt.Errorf("SHA256SUMS: %q", line)
		}
		b, err := os.ReadFile(filepath.Join(dist, name))
		if err != nil {
			return err
		}
		if h := chain.Sum(b); hex.EncodeToString(h[:]) != sum {
			return fmt.Errorf("%s is not what SHA256SUMS says", name)
		}
	}
	return nil
}

// verify says what a gateway that trusts these keys will say.
func verify(dist, trust string, threshold int, now time.Time, out io.Writer) error {
	var trusted []chain.Key
	for _, t := range strings.Split(trust, ",") {
		var k chain.Key
		if err := k.UnmarshalText([]byte(strings.TrimSpace(t))); err != nil {
			return fmt.Errorf("-trust: %w", err)
		}
		trusted = append(trusted, k)
	}
	b, err := os.ReadFile(filepath.Join(dist, update.ManifestFile))
	if err != nil {
		return err
	}
	m, err := update.Open(b, trusted, threshold, now)
	if err != nil {
		return err
	}
	if err := compare(dist, m); err != nil {
		return err
	}
	sums, err := os.ReadFile(filepath.Join(dist, "SHA256SUMS"))
	if err != nil {
		return err
	}
	if err := listed(dist, sums); err != nil {
		return err
	}
	signed := 0
	for _, k := range trusted {
		b, err := os.ReadFile(filepath.Join(dist, sumsSignature(k)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := minisigned(k, sums, b); err != nil {
			return fmt.Errorf("%s: %w", sumsSignature(k), err)
		}
		signed++
	}
	if signed < threshold {
		return fmt.Errorf("SHA256SUMS is signed by %d, wanted %d", signed, threshold)
	}
	fmt.Fprintf(out, "version %s for %d %% of the gateways until %s: signed by enough, and everything is what it says\n", m.Version, m.Share, time.Unix(m.Expires, 0).UTC().Format(time.RFC3339))
	return nil
}
