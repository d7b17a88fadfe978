package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
)

//go:embed files
var packaged embed.FS

// Package is what goes into one .deb.
type Package struct {
	Arch    string    // Debian's name: amd64, arm64 or armhf
	Version string    // Debian's form, see debVersion
	Time    time.Time // of every file, so that a rebuild gives the same bytes
	Program string    // joulegate for Arch
	Verify  string    // joulegate-verify for Arch
	Page    string    // on which a browser checks bundles; "": left out
	Host    string    // joulegate that runs here; writes manual and completions
	Root    string    // of the project, for its documents

	Compression string // as dpkg-deb's -Z; "": xz
}

// stage is the folder in which a package's files wait; the packager takes
// files only from a disk.
type stage struct {
	dir  string
	time time.Time
	all  files.Contents
	err  error
}

func (s *stage) add(dst string, mode fs.FileMode, kind string, body []byte) {
	if s.err != nil {
		return
	}
	src := filepath.Join(s.dir, strings.ReplaceAll(strings.Trim(dst, "/"), "/", "!"))
	if s.err = os.WriteFile(src, body, 0o600); s.err != nil {
		return
	}
	s.all = append(s.all, &files.Content{Source: src, Destination: dst, Type: kind, FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: s.time}})
}

func (s *stage) file(dst string, mode fs.FileMode, src string) {
	if s.err != nil {
		return
	}
	var b []byte
	if b, s.err = os.ReadFile(src); s.err == nil {
		s.add(dst, mode, "", b)
	}
}

// gz adds a file as Debian wants documents: compressed, without a time.
func (s *stage) gz(dst string, body []byte) {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	_, _ = w.Write(body)
	_ = w.Close()
	s.add(dst+".gz", 0o644, "", b.Bytes())
}

func (s *stage) own(dst string, mode fs.FileMode, name string) {
	b, err := packaged.ReadFile("files/" + name)
	if err != nil {
		panic(err) // embedded
	}
	s.add(dst, mode, "", b)
}

// writeDeb writes the package to w.
func writeDeb(p Package, w io.Writer) error {
	dir, err := os.MkdirTemp("", "joulegate-deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &stage{dir: dir, time: p.Time}
	s.file("/usr/bin/joulegate", 0o755, p.Program)
	s.file("/usr/bin/joulegate-verify", 0o755, p.Verify)
	if p.Page != "" {
		s.file("/usr/share/joulegate/joulegate-verify.html", 0o644, p.Page)
	}
	s.own("/usr/lib/systemd/system/joulegate.service", 0o644, "joulegate.service")
	s.own("/usr/lib/sysusers.d/joulegate.conf", 0o644, "sysusers.conf")
	s.own("/usr/lib/udev/rules.d/60-joulegate.rules", 0o644, "60-joulegate.rules")
	const docs = "/usr/share/doc/joulegate/"
	s.own(docs+"copyright", 0o644, "copyright")
	s.own(docs+"examples/guard-enforce.conf", 0o644, "guard-enforce.conf")
	if err := s.manual(p.Host); err != nil {
		return err
	}
	if err := s.documents(p.Root, docs); err != nil {
		return err
	}
	sbom, err := sbomOf(p.Program)
	if err != nil {
		return err
	}
	s.add(docs+"sbom.json", 0o644, "", sbom)
	if s.err != nil {
		return s.err
	}
	script := func(name string) string {
		b, err := packaged.ReadFile("files/" + name)
		if err == nil {
			name = filepath.Join(dir, name)
			err = os.WriteFile(name, b, 0o700)
		}
		if err != nil && s.err == nil {
			s.err = err
		}
		return name
	}
	info := &nfpm.Info{
		Name: "joulegate", Arch: p.Arch, Platform: "linux", Version: p.Version, VersionSchema: "none",
		Section: "net", Priority: "optional", Maintainer: "joulegate maintainers <joulegate@users.noreply.github.com>",
		Homepage: "https://github.com/joulegate/joulegate", License: "Apache-2.0", MTime: p.Time,
		Description: "energy gateway that trades a neighbour's surplus and proves it\n" +
			"Reads smart meters and inverters over Modbus, switches EV chargers, and forms\n" +
			"a microgrid with the gateways next door on one shared, verifiable ledger.",
		Overridables: nfpm.Overridables{
			Contents: s.all,
			Depends:  []string{"systemd | systemd-standalone-sysusers"},
			Scripts:  nfpm.Scripts{PostInstall: script("postinst"), PreRemove: script("prerm"), PostRemove: script("postrm")},
			Deb:      nfpm.Deb{Compression: cmp.Or(p.Compression, "xz")},
		},
	}
	if s.err != nil {
		return s.err
	}
	if err := nfpm.PrepareForPackager(info, "deb"); err != nil {
		return fmt.Errorf("package for %s: %w", p.Arch, err)
	}
	return deb.Default.Package(info, w)
}

// manual adds manual pages and completions, as the program writes them.
func (s *stage) manual(host string) error {
	pages := filepath.Join(s.dir, "man")
	if _, err := output(host, "man", "--out", pages); err != nil {
		return err
	}
	err := filepath.WalkDir(pages, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(file)
		if err == nil {
			rel, _ := filepath.Rel(pages, file)
			s.gz(path.Join("/usr/share/man", filepath.ToSlash(rel)), b)
		}
		return err
	})
	if err != nil {
		return err
	}
	for shell, dst := range map[string]string{
		"bash": "/usr/share/bash-completion/completions/joulegate",
		"zsh":  "/usr/share/zsh/vendor-completions/_joulegate",
		"fish": "/usr/share/fish/vendor_completions.d/joulegate.fish",
	} {
		b, err := output(host, "completion", shell)
		if err != nil {
			return err
		}
		s.add(dst, 0o644, "", b)
	}
	return nil
}

// documents adds what a person reads, as Markdown.
func (s *stage) documents(root, dst string) error {
	list, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		return err
	}
	for _, f := range append(list, filepath.Join(root, "README.md"), filepath.Join(root, "SECURITY.md")) {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		s.gz(dst+filepath.Base(f), b)
	}
	b, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	s.gz(dst+"changelog", b)
	return err
}
