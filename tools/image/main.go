// Command image makes what is shipped: Debian packages, the image of an SD
// card, and beside them the list of parts, checksums and the statement of how
// they came about.
//
//	make packages        packages, in dist/
//	make image           those, and the image of an SD card
//
// It is a module of its own because its libraries are needed by nobody who
// runs or builds the gateway.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// arches are Debian's names for the programs that make build leaves in dist/.
// Raspberry Pi OS calls ARMv6 armhf, Debian ARMv7: the smaller runs on both.
var arches = map[string]string{"amd64": "linux-amd64", "arm64": "linux-arm64", "armhf": "linux-armv6"}

func main() {
	dist := flag.String("dist", "dist", "folder with the programs that make build has made; the rest goes there too")
	host := flag.String("host", "bin/joulegate", "joulegate for this machine; it writes manual and completions")
	root := flag.String("root", ".", "folder of the project")
	card := flag.String("card", "no", "make the image of an SD card, too (with), or nothing else (only); needs mke2fs")
	flag.Parse()
	if err := release(*dist, *host, *root, *card); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func release(dist, host, root, card string) error {
	src, err := sourceOf(root)
	if err != nil {
		return err
	}
	var made []string
	switch card {
	case "with", "only":
		images, err := writeCard(src, dist)
		if err != nil || card == "only" {
			return err
		}
		packed, err := packCard(src, dist)
		if err != nil {
			return err
		}
		made = append(images, packed)
	case "no":
	default:
		return fmt.Errorf("-card %s: no, with or only", card)
	}
	for _, arch := range []string{"amd64", "arm64", "armhf"} {
		p := Package{
			Arch: arch, Version: src.debVersion(), Time: src.Time, Host: host, Root: root,
			Program: filepath.Join(dist, "joulegate-"+arches[arch]), Verify: filepath.Join(dist, "joulegate-verify-"+arches[arch]),
			Page: filepath.Join(dist, "joulegate-verify.html"),
		}
		name := filepath.Join(dist, fmt.Sprintf("joulegate_%s_%s.deb", p.Version, arch))
		if err := create(name, func(w io.Writer) error { return writeDeb(p, w) }); err != nil {
			return err
		}
		fmt.Println(name)
		made = append(made, name)
	}
	for _, program := range programs(dist) {
		b, err := sbomOf(program)
		if err != nil {
			return err
		}
		if err := os.WriteFile(program+".cdx.json", b, 0o644); err != nil {
			return err
		}
		made = append(made, program, program+".cdx.json")
	}
	sums, err := digests(made)
	if err != nil {
		return err
	}
	st, err := provenance(src, sums)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dist, "provenance.intoto.json"), st, 0o644); err != nil {
		return err
	}
	var b strings.Builder
	for _, s := range sums {
		fmt.Fprintf(&b, "%s  %s\n", s.SHA256, s.Name)
	}
	return os.WriteFile(filepath.Join(dist, "SHA256SUMS"), []byte(b.String()), 0o644)
}

func programs(dist string) []string {
	var list []string
	for _, name := range []string{"joulegate", "joulegate-verify", "joulegate-init"} {
		found, _ := filepath.Glob(filepath.Join(dist, name+"-linux-*"))
		list = append(list, found...)
	}
	return slices.DeleteFunc(list, func(s string) bool { return strings.HasSuffix(s, ".json") })
}

// create writes a file, whole or not at all.
func create(name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// digest is a file that was made.
type digest struct{ Name, SHA256 string }

func digests(list []string) ([]digest, error) {
	var all []digest
	for _, name := range list {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		all = append(all, digest{filepath.Base(name), hex.EncodeToString(h.Sum(nil))})
	}
	slices.SortFunc(all, func(a, b digest) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// source is the commit that is built.
type source struct {
	Tag    string // "": none leads here
	Since  string // commits since the tag
	Commit string
	Dirty  bool
	Time   time.Time
}

func sourceOf(root string) (source, error) {
	var s source
	git := func(args ...string) string {
		b, err := exec.Command("git", append([]string{"-C", root}, args...)...).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	s.Commit = git("rev-parse", "HEAD")
	if s.Commit == "" {
		return s, fmt.Errorf("%s is no checkout of the project: a package names its commit", root)
	}
	when, err := time.Parse(time.RFC3339, git("log", "-1", "--format=%cI"))
	if err != nil {
		return s, err
	}
	s.Time, s.Dirty = when.UTC(), git("status", "--porcelain", "--untracked-files=no") != ""
	if d := git("describe", "--tags", "--long", "--match", "v[0-9]*"); d != "" {
		parts := strings.Split(d, "-")
		s.Tag, s.Since = strings.Join(parts[:len(parts)-2], "-"), parts[len(parts)-2]
	}
	return s, nil
}

// debVersion is the version as dpkg orders it: a release above every build on
// the way to it, and one build above those before it.
func (s source) debVersion() string {
	v := "0~" + s.Time.Format("20060102150405") + "." + s.Commit[:12]
	if s.Tag != "" {
		v = strings.ReplaceAll(strings.TrimPrefix(s.Tag, "v"), "-", "~")
		if s.Since != "0" {
			v += "+" + s.Since + "." + s.Commit[:12]
		}
	}
	if s.Dirty {
		v += "+dirty"
	}
	return v
}

func output(name string, args ...string) ([]byte, error) {
	var errOut strings.Builder
	c := exec.Command(name, args...)
	c.Stderr = &errOut
	b, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return b, nil
}
