//go:build hil

package hil

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/tools/hil/wire"
)

var verbose = flag.Bool("hil.v", false, "show what machines say")

// limit is for any one thing that is waited for: an emulated processor is ten
// times slower than a real one, and shares two with others.
const limit = 5 * time.Minute

// lab is what all scenarios share: programs and kernels.
type lab struct {
	cache string
	out   string // what machines have said
	mu    sync.Mutex
	built map[string]string
}

var theLab = &lab{built: map[string]string{}}

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if theLab.cache = os.Getenv("JOULEGATE_HIL_CACHE"); theLab.cache == "" {
		theLab.cache, err = os.UserCacheDir()
		theLab.cache = filepath.Join(theLab.cache, "joulegate-hil")
	}
	theLab.out = filepath.Join(theLab.cache, "last")
	if err == nil {
		err = os.RemoveAll(theLab.out)
	}
	if err == nil {
		err = os.MkdirAll(theLab.out, 0o755)
	}
	for _, p := range []string{ARM64.QEMU[0], ARMv7.QEMU[0], "fdtput", "mke2fs", "depmod", "xz", "dpkg-deb", "apt-get"} {
		if _, missing := exec.LookPath(p); missing != nil {
			err = errors.Join(err, fmt.Errorf("hil: %w; as root: .ci/setup hil", missing))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// once makes a file the first time somebody asks for it.
func (l *lab) once(t testing.TB, name string, build func(path string) error) string {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.built[name]; p != "" {
		return p
	}
	p := filepath.Join(l.cache, "built", name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := build(p); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	l.built[name] = p
	return p
}

// program builds a command for a guest, as it is shipped.
func (l *lab) program(t testing.TB, a Arch, pkg string) string {
	return l.once(t, filepath.Base(pkg)+"-"+a.Name, func(path string) error {
		flags, err := os.ReadFile("../../.ci/buildflags")
		if err != nil {
			return err
		}
		c := exec.Command("go", append(append([]string{"build"}, strings.Fields(string(flags))...), "-ldflags", "-s -w", "-o", path, pkg)...)
		c.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux"), a.Env...)
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// modules that the guests' kernels need beside what is built in.
var modules = []string{"virtio_pci", "virtio_console", "virtio_blk", "ext4", "virtio_net", "xhci-pci", "ftdi_sio"}

func (l *lab) kernel(t testing.TB, a Arch) Kernel {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	k, err := FetchKernel(t.Context(), l.cache, a)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (l *lab) initrd(t testing.TB, a Arch) string {
	t.Helper()
	k := l.kernel(t, a)
	guest, agent := l.program(t, a, "github.com/joulegate/joulegate/tools/hil/guest"), l.program(t, a, "github.com/joulegate/joulegate/cmd/joulegate")
	return l.once(t, "initrd-"+a.Name, func(path string) error {
		names := slices.Clone(modules)
		if a.Name == ARM64.Name {
			names = append(names, "i6300esb")
		} else {
			names = append(names, "softdog") // armmp has no driver for the other
		}
		mods, err := k.Modules(names...)
		if err != nil {
			return err
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return Initramfs{Init: guest, Modules: mods, Files: map[string]string{"bin/joulegate": agent}}.Write(f)
	})
}

// disk makes an empty file system in a file.
func (l *lab) disk(t testing.TB, name string, mb int) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(mb) << 20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1", p).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	return p
}

// folder is where a scenario's machines and lines leave what they have said.
func (l *lab) folder(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(l.out, strings.ReplaceAll(t.Name(), "/", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// line listens for the serial adapter of a house, and keeps what passes.
func (l *lab) line(t testing.TB, house string) (net.Listener, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return Trace(ln, filepath.Join(l.folder(t), house+".modbus"))
}

// boot starts a machine and ends it with the test.
func (l *lab) boot(t testing.TB, cfg MachineConfig) *Machine {
	t.Helper()
	cfg.Kernel, cfg.Initrd = l.kernel(t, cfg.Arch), l.initrd(t, cfg.Arch)
	cfg.Tree = l.once(t, "virt-"+cfg.Arch.Name+".dtb", func(path string) error { return DeviceTree(t.Context(), path, cfg.Arch) })
	cfg.Dir = l.folder(t)
	if *verbose {
		cfg.Echo = os.Stderr
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	start := time.Now()
	m, err := Boot(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		if t.Failed() {
			t.Logf("what %[1]s said is kept: %[2]s/%[1]s.console, .qmp.log (of QEMU) and .modbus (of its line)", cfg.Name, cfg.Dir)
		}
	})
	t.Logf("%s up after %s", cfg.Name, time.Since(start).Round(100*time.Millisecond))
	return m
}

// try runs a command in the guest and returns what it printed.
func try(t testing.TB, m *Machine, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	a, err := m.Do(ctx, wire.Request{Op: wire.Run, Args: args, Number: int64(limit)})
	if err != nil {
		t.Fatal(err)
	}
	if a.Code != 0 {
		return string(a.Out) + string(a.Err), a.Code
	}
	return string(a.Out), 0
}
