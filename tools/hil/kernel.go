package hil

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Kernel is a Linux of Debian's, unpacked.
type Kernel struct {
	Release string // of uname
	Image   string // file
	Root    string // has lib/modules/Release
}

// Arch is one of the processors that the program is shipped for.
type Arch struct {
	Name   string   // of Go, with GOARM: arm64, armv7
	Debian string   // arm64, armhf
	Flavor string   // of Debian's kernel
	Env    []string // for the Go tool
	QEMU   []string // program and machine
	UART   string   // console
}

// Arches that scenarios know.
var (
	ARM64 = Arch{
		Name: "arm64", Debian: "arm64", Flavor: "arm64", Env: []string{"GOARCH=arm64"},
		QEMU: []string{"qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53"}, UART: "ttyAMA0",
	}
	ARMv7 = Arch{
		Name: "armv7", Debian: "armhf", Flavor: "armmp", Env: []string{"GOARCH=arm", "GOARM=7"},
		QEMU: []string{"qemu-system-arm", "-M", "virt,highmem=off", "-cpu", "cortex-a15"}, UART: "ttyAMA0",
	}
)

// suites are the Debian releases whose kernels are run: the first that can be
// fetched. A mirror that is being synchronised cannot give all of them.
var suites = [...]string{"trixie", "bookworm-backports", "bookworm"}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// aptConf makes apt work in a folder of its own, for a foreign architecture:
// nothing of this machine's packages is read or changed.
const aptConf = `Dir::State "%[1]s/state";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::parts "-";
APT::Architecture "%[2]s";
APT::Architectures {"%[2]s";};
APT::Sandbox::User "root";
Acquire::Languages "none";
`

// FetchKernel returns the newest kernel of a suite for a. Packages are kept
// in cache under their hash, which apt checks against Debian's signatures; a
// kernel that is there is taken without asking anybody.
func FetchKernel(ctx context.Context, cache string, a Arch) (Kernel, error) {
	if k, err := unpacked(cache, a); err == nil {
		return k, nil
	}
	var failed []error
	for _, suite := range suites {
		k, err := fetch(ctx, cache, a, suite)
		if err == nil {
			return k, nil
		}
		failed = append(failed, err)
	}
	return Kernel{}, errors.Join(failed...)
}

func fetch(ctx context.Context, cache string, a Arch, suite string) (Kernel, error) {
	dir := filepath.Join(cache, "apt-"+a.Debian)
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return Kernel{}, err
		}
	}
	conf := filepath.Join(dir, "apt.conf")
	for name, text := range map[string]string{
		"status":       "",
		"apt.conf":     fmt.Sprintf(aptConf, dir, a.Debian),
		"sources.list": fmt.Sprintf("deb [signed-by=%s arch=%s] http://deb.debian.org/debian %s main\n", keyring, a.Debian, suite),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return Kernel{}, err
		}
	}
	apt := func(program string, args ...string) (string, error) {
		c := exec.CommandContext(ctx, program, args...)
		c.Dir, c.Env = filepath.Join(dir, "debs"), append(os.Environ(), "APT_CONFIG="+conf, "LC_ALL=C")
		out, err := c.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, tail(string(out)))
		}
		return string(out), nil
	}
	if _, err := apt("apt-get", "update", "-qq"); err != nil {
		return Kernel{}, err
	}
	meta := "linux-image-" + a.Flavor
	out, err := apt("apt-cache", "depends", meta)
	if err != nil {
		return Kernel{}, err
	}
	_, pkg, ok := strings.Cut(out, "Depends: ")
	if !ok {
		return Kernel{}, fmt.Errorf("%s in %s depends on no kernel:\n%s", meta, suite, out)
	}
	pkg, _, _ = strings.Cut(pkg, "\n")
	if _, err := apt("apt-get", "download", pkg); err != nil {
		return Kernel{}, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "debs", pkg+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return Kernel{}, fmt.Errorf("%s: %d packages after the download", pkg, len(debs))
	}
	sum, err := fileSum(debs[0])
	if err != nil {
		return Kernel{}, err
	}
	to := filepath.Join(cache, "kernel-"+a.Debian+"-"+sum[:16])
	part := to + ".part"
	if err := errors.Join(os.RemoveAll(part), os.RemoveAll(to)); err != nil {
		return Kernel{}, err
	}
	release := strings.TrimPrefix(pkg, "linux-image-")
	for _, c := range [][]string{
		{"dpkg-deb", "-x", debs[0], part},
		{"ln", "-sfn", "usr/lib", filepath.Join(part, "lib")},
		{"depmod", "-b", part, release},
		{"mv", part, to},
	} {
		if out, err := exec.CommandContext(ctx, c[0], c[1:]...).CombinedOutput(); err != nil {
			return Kernel{}, fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, tail(string(out)))
		}
	}
	if err := os.Remove(debs[0]); err != nil {
		return Kernel{}, err
	}
	return unpacked(cache, a)
}

// unpacked returns the kernel that is in the cache.
func unpacked(cache string, a Arch) (Kernel, error) {
	images, err := filepath.Glob(filepath.Join(cache, "kernel-"+a.Debian+"-*", "boot", "vmlinuz-*"))
	if err != nil {
		return Kernel{}, err
	}
	for _, image := range images {
		root := filepath.Dir(filepath.Dir(image))
		if !strings.HasSuffix(root, ".part") {
			return Kernel{Release: strings.TrimPrefix(filepath.Base(image), "vmlinuz-"), Image: image, Root: root}, nil
		}
	}
	return Kernel{}, fmt.Errorf("no kernel for %s in %s", a.Debian, cache)
}

// Modules returns the files of the named modules and of all they need, in the
// order in which they must be loaded. Names that are built in need none.
func (k Kernel) Modules(names ...string) ([]string, error) {
	var files []string
	have := map[string]bool{}
	for _, name := range names {
		out, err := exec.Command("modprobe", "-d", k.Root, "-S", k.Release, "--show-depends", name).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("module %s of %s: %w: %s", name, k.Release, err, tail(string(out)))
		}
		for line := range strings.Lines(string(out)) {
			if f, ok := strings.CutPrefix(strings.TrimSpace(line), "insmod "); ok && !have[f] {
				have[f] = true
				files = append(files, strings.TrimSpace(f))
			}
		}
	}
	return files, nil
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// tail is the end of what a program has said.
func tail(s string) string {
	const most = 2000
	s = strings.TrimSpace(s)
	if len(s) > most {
		s = "..." + s[len(s)-most:]
	}
	return s
}
