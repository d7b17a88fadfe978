package hil

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// Initramfs is the first and only root file system of a guest.
type Initramfs struct {
	Init    string            // program of tools/hil/guest
	Modules []string          // kernel modules in the order in which init loads them; .xz is unpacked
	Files   map[string]string // path in the guest -> file on the host
}

// modulesList is where the guest finds what to load.
const modulesList = "modules.list"

// Write writes the archive in the format newc
// (Documentation/driver-api/early-userspace/buffer-format.rst of Linux), not
// compressed: QEMU copies it into memory at once, and an emulated processor
// would unpack it slowly.
func (r Initramfs) Write(out io.Writer) error {
	w := &cpio{w: bufio.NewWriterSize(out, 1<<20), dirs: map[string]bool{}}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "etc", "bin", "mods", "data"} {
		w.dir(d)
	}
	w.entry("dev/console", 0o020600, 5, 1, nil)
	w.entry("dev/null", 0o020666, 1, 3, nil)
	w.host("init", r.Init)
	var list bytes.Buffer
	for _, m := range r.Modules {
		name := "mods/" + strings.TrimSuffix(path.Base(m), ".xz")
		fmt.Fprintf(&list, "/%s\n", name)
		if !strings.HasSuffix(m, ".xz") {
			w.host(name, m)
			continue
		}
		b, err := exec.Command("xz", "-dc", m).Output()
		if err != nil {
			return fmt.Errorf("unpack %s: %w", m, err)
		}
		w.entry(name, 0o100644, 0, 0, b)
	}
	w.entry(modulesList, 0o100644, 0, 0, list.Bytes())
	paths := make([]string, 0, len(r.Files))
	for p := range r.Files {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		w.host(strings.TrimPrefix(p, "/"), r.Files[p])
	}
	w.entry("TRAILER!!!", 0, 0, 0, nil)
	if w.err != nil {
		return w.err
	}
	return w.w.Flush()
}

// cpio writes entries until one fails.
type cpio struct {
	w    *bufio.Writer
	ino  int
	dirs map[string]bool
	err  error
}

func (c *cpio) host(name, file string) {
	if c.err != nil {
		return
	}
	b, err := os.ReadFile(file)
	if err != nil {
		c.err = err
		return
	}
	st, err := os.Stat(file)
	if err != nil {
		c.err = err
		return
	}
	c.entry(name, 0o100000|uint32(st.Mode()&fs.ModePerm), 0, 0, b)
}

func (c *cpio) dir(name string) {
	if name == "." || c.dirs[name] {
		return
	}
	c.dirs[name] = true
	c.entry(name, 0o040755, 0, 0, nil)
}

func (c *cpio) entry(name string, mode uint32, major, minor int, data []byte) {
	if mode&0o170000 != 0 && mode&0o170000 != 0o040000 {
		parts := strings.Split(path.Dir(name), "/")
		for i := range parts {
			c.dir(path.Join(parts[:i+1]...))
		}
	}
	if c.err != nil {
		return
	}
	c.ino++
	fields := []int{c.ino, int(mode), 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0}
	var head strings.Builder
	head.WriteString("070701")
	for _, f := range fields {
		fmt.Fprintf(&head, "%08X", f)
	}
	head.WriteString(name)
	head.WriteByte(0)
	for _, b := range [][]byte{[]byte(head.String()), data} {
		if _, err := c.w.Write(b); err != nil {
			c.err = err
			return
		}
		for range (4 - len(b)%4) % 4 {
			c.err = c.w.WriteByte(0)
		}
	}
}
