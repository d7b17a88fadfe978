package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	_ "github.com/gokrazy/firmware"   // its files, not its code: it has none
	_ "github.com/gokrazy/kernel.rpi" // likewise
	"github.com/klauspost/compress/zstd"
)

// Card is what an SD card of a Raspberry Pi is made from.
//
//	MBR │ p1 FAT   │ p2 FAT   │ p3 FAT   │ p4 ext4
//	    │ autoboot,│ slot A:  │ slot B:  │ data: grows to the
//	    │ setup    │ firmware, kernel,   │ end of the card at
//	    │          │ initramfs with the  │ the first start
//	    │          │ program; read-only  │
//
// The firmware reads autoboot.txt of the first partition and starts one of
// the slots, which are equal to the byte. Nothing of the system is on the
// data partition, and no data in a slot.
type Card struct {
	Version  string
	Time     time.Time
	Program  string // joulegate for arm64
	Init     string // tools/image/init for arm64
	Kernel   string // folder of the module kernelModule
	Firmware string // folder of the module firmwareModule
}

// Modules whose files are carried as data. Nothing of them is linked.
const (
	kernelModule   = "github.com/gokrazy/kernel.rpi"
	firmwareModule = "github.com/gokrazy/firmware"
)

const mib = 1 << 20

// Partitions, in bytes. A slot holds three times what is in it today.
const (
	cardAlign = 4 * mib // a card erases this much at once
	bootSize  = 64 * mib
	slotSize  = 128 * mib
	dataSize  = 256 * mib // as shipped
)

// part is a partition of the card.
type part struct {
	start, size int64
	kind        byte // of the MBR
}

// layout is fixed: an update relies on it.
func layout() [4]part {
	var p [4]part
	at := int64(cardAlign)
	for i, size := range []int64{bootSize, slotSize, slotSize, dataSize} {
		p[i] = part{at, size, 0x0c} // FAT32 with LBA
		at += size
	}
	p[3].kind = 0x83 // Linux
	return p
}

// serial is a number that stands for what a thing is called.
func serial(s string) uint32 {
	h := sha256.Sum256([]byte(s))
	return binary.LittleEndian.Uint32(h[:])
}

// own returns a file of files/card.
func own(name string) []byte {
	b, err := packaged.ReadFile("files/card/" + name)
	if err != nil {
		panic(err) // embedded
	}
	return b
}

// boards are those whose device trees a slot has.
var boards = []string{"bcm2710-rpi-3-*.dtb", "bcm2710-rpi-cm3.dtb", "bcm2710-rpi-zero-2*.dtb", "bcm2711-rpi-*.dtb", "bcm2712*-rpi-*.dtb"}

// Slot returns the file system that a Raspberry Pi starts from.
func (c Card) Slot() ([]byte, error) {
	files := map[string][]byte{
		"config.txt": own("config.txt"), "cmdline.txt": own("cmdline.txt"),
		"version.txt": []byte(c.Version + "\n"),
		"firmware/":   nil, // the first partition is mounted here
	}
	add := func(name, file string) error {
		b, err := os.ReadFile(file)
		files[name] = b
		return err
	}
	var err error
	for _, f := range []string{"bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat"} {
		err = errors.Join(err, add(f, filepath.Join(c.Firmware, f)))
	}
	err = errors.Join(err,
		add("licences/firmware.txt", filepath.Join(c.Firmware, "LICENSE.broadcom")),
		add("licences/linux.txt", filepath.Join(c.Kernel, "LICENSE.linux")))
	folders := map[string]string{"overlays/*.dtb*": "overlays/", "_build/*": "licences/linux/"}
	for _, b := range boards {
		folders[b] = ""
	}
	for pattern, folder := range folders {
		list, e := filepath.Glob(filepath.Join(c.Kernel, pattern))
		if e == nil && len(list) == 0 {
			e = fmt.Errorf("%s: no %s", c.Kernel, pattern)
		}
		err = errors.Join(err, e)
		for _, f := range list {
			err = errors.Join(err, add(folder+filepath.Base(f), f))
		}
	}
	if err != nil {
		return nil, err
	}
	upstream, err := c.upstream()
	if err != nil {
		return nil, err
	}
	files["licences/sources.txt"] = []byte(c.sources(upstream))
	if files["kernel.gz"], err = packedKernel(filepath.Join(c.Kernel, "vmlinuz")); err != nil {
		return nil, err
	}
	if files["initramfs.zst"], err = c.initramfs(); err != nil {
		return nil, err
	}
	return FAT{Size: slotSize, Serial: serial("slot " + c.Version), Label: "JOULEGATE", Time: c.Time, Files: files}.Image()
}

// upstream is where the kernel's source is.
func (c Card) upstream() (string, error) {
	b, err := os.ReadFile(filepath.Join(c.Kernel, "_build", "upstream-url.txt"))
	return strings.TrimSpace(string(b)), err
}

// sources says where what is not ours comes from and where its source is, as
// the kernel's licence asks (GPL-2.0, section 3).
func (c Card) sources(upstream string) string {
	return fmt.Sprintf(`Linux on this card is under the GNU General Public License, version 2
(linux.txt). Its source is
  %s
with the patches and the configuration that lie beside this file in linux/.
It was built by https://%s,
version %s, which explains how.
Whoever passes this image on must offer that source, too.

The firmware (start*.elf, fixup*.dat, bootcode.bin) is Broadcom's and Raspberry
Pi Ltd's (firmware.txt), unchanged, from https://%s,
version %s. It may only be used with a Raspberry Pi.

joulegate is under the Apache License 2.0. Its parts and their licences are in
joulegate-linux-arm64.cdx.json beside the image.
`, upstream, kernelModule, moduleVersion(c.Kernel), firmwareModule, moduleVersion(c.Firmware))
}

// moduleVersion is the version in the name of a module's folder.
func moduleVersion(dir string) string {
	_, v, _ := strings.Cut(filepath.Base(dir), "@")
	return v
}

// packedKernel compresses the kernel in the only way that every firmware
// unpacks by itself.
func packedKernel(file string) ([]byte, error) {
	in, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.DefaultCompression) // the level is valid
	_, err = w.Write(in)
	err = errors.Join(err, w.Close())
	return b.Bytes(), err
}

// initramfs is the root of the running system: init, the program, and what
// looks up names and numbers in /etc. It stays in memory, so that relays can
// be opened when the card has failed.
func (c Card) initramfs() ([]byte, error) {
	program, err := os.ReadFile(c.Program)
	if err != nil {
		return nil, err
	}
	first, err := os.ReadFile(c.Init)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1)) // else the bytes depend on the machine
	if err != nil {
		return nil, err
	}
	w := &cpio{w: z, time: c.Time}
	for _, d := range []string{"bin", "boot", "data", "dev", "etc", "etc/joulegate", "etc/ssl", "etc/ssl/certs", "proc", "run", "sbin", "sys", "tmp", "usr", "usr/bin", "var", "var/lib", "var/lib/joulegate"} {
		w.entry(d, 0o040755, 0, 0, nil)
	}
	w.entry("dev/console", 0o020600, 5, 1, nil)
	w.entry("dev/null", 0o020666, 1, 3, nil)
	w.entry("etc/passwd", 0o100644, 0, 0, []byte("root:*:0:0:root:/:/sbin/nologin\njoulegate:*:900:900:joulegate:/var/lib/joulegate:/sbin/nologin\n"))
	w.entry("etc/group", 0o100644, 0, 0, []byte("root:*:0:\njoulegate:*:900:\n"))
	w.entry("etc/hosts", 0o100644, 0, 0, []byte("127.0.0.1 localhost\n::1 localhost\n"))
	w.entry("etc/os-release", 0o100644, 0, 0, fmt.Appendf(nil, "ID=joulegate\nNAME=joulegate\nVERSION_ID=%q\nPRETTY_NAME=%q\n", c.Version, "joulegate "+c.Version))
	w.entry("init", 0o100755, 0, 0, first)
	for _, name := range []string{"sbin/reboot", "sbin/poweroff"} {
		w.entry(name, 0o120777, 0, 0, []byte("/init"))
	}
	w.entry("bin/joulegate", 0o100755, 0, 0, program)
	w.entry("usr/bin/joulegate", 0o120777, 0, 0, []byte("/bin/joulegate"))
	w.entry("TRAILER!!!", 0, 0, 0, nil)
	if err := errors.Join(w.err, z.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// cpio writes entries in the format newc (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst) until one
// fails.
type cpio struct {
	w    io.Writer
	time time.Time
	ino  int
	err  error
}

func (c *cpio) entry(name string, mode uint32, major, minor int, data []byte) {
	if c.err != nil {
		return
	}
	c.ino++
	var b bytes.Buffer
	b.WriteString("070701")
	for _, f := range []int{c.ino, int(mode), 0, 0, 1, int(c.time.Unix()), len(data), 0, 0, major, minor, len(name) + 1, 0} {
		fmt.Fprintf(&b, "%08X", f)
	}
	b.WriteString(name)
	b.Write(make([]byte, 1+(4-(b.Len()+1)%4)%4))
	b.Write(data)
	b.Write(make([]byte, (4-len(data)%4)%4))
	_, c.err = c.w.Write(b.Bytes())
}

// boot is the first partition: what the firmware looks at first, and where a
// person leaves joulegate-setup.yaml.
func (c Card) boot() ([]byte, error) {
	rom, err := os.ReadFile(filepath.Join(c.Firmware, "bootcode.bin")) // for a Raspberry Pi 3 and Zero 2 W
	if err != nil {
		return nil, err
	}
	return FAT{Size: bootSize, Serial: serial("boot " + c.Version), Label: "JG-SETUP", Time: c.Time, Files: map[string][]byte{
		"autoboot.txt": own("autoboot.txt"), "bootcode.bin": rom, "README.txt": own("README.txt"),
	}}.Image()
}

// data is the empty data partition. mke2fs is e2fsprogs', which knows its own
// format best; everything that it would choose by itself is given.
func (c Card) data() ([]byte, error) {
	dir, err := os.MkdirTemp("", "joulegate-data-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	name, conf := filepath.Join(dir, "data"), filepath.Join(dir, "mke2fs.conf")
	// Debian's defaults change from release to release.
	err = os.WriteFile(conf, []byte("[defaults]\n[fs_types]\next4 = {\ninode_size = 256\n}\n"), 0o600)
	if err := errors.Join(err, os.WriteFile(name, nil, 0o600), os.Truncate(name, dataSize)); err != nil {
		return nil, err
	}
	id := sha256.Sum256([]byte("data " + c.Version))
	uuid := func(b []byte) string { return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16]) }
	cmd := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "1", "-L", "joulegate", "-U", uuid(id[:16]), "-J", "size=32",
		"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
		"-E", "lazy_itable_init=1,nodiscard,hash_seed="+uuid(id[16:]), name)
	cmd.Env = append(os.Environ(), "MKE2FS_CONFIG="+conf, "LC_ALL=C",
		fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", c.Time.Unix()), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", c.Time.Unix()))
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mke2fs (package e2fsprogs): %w: %s", err, bytes.TrimSpace(out))
	}
	return os.ReadFile(name)
}

// table is the master boot record with the four partitions.
func (c Card) table() []byte {
	b := make([]byte, sector)
	binary.LittleEndian.PutUint32(b[440:], serial("card "+c.Version))
	for i, p := range layout() {
		e := b[446+16*i:]
		copy(e[1:], []byte{0xfe, 0xff, 0xff, p.kind, 0xfe, 0xff, 0xff}) // no cylinders: LBA only
		binary.LittleEndian.PutUint32(e[8:], uint32(p.start/sector))
		binary.LittleEndian.PutUint32(e[12:], uint32(p.size/sector))
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

// Write writes the card. Places without content are not written: a file
// stays sparse.
func (c Card) Write(w io.WriterAt, slot []byte) error {
	boot, err := c.boot()
	if err != nil {
		return err
	}
	data, err := c.data()
	if err != nil {
		return err
	}
	if _, err := w.WriteAt(c.table(), 0); err != nil {
		return err
	}
	for i, b := range [][]byte{boot, slot, slot, data} {
		p := layout()[i]
		if int64(len(b)) != p.size {
			panic(fmt.Sprintf("partition %d has %d bytes, its place %d", i+1, len(b), p.size))
		}
		if err := writeSparse(w, b, p.start); err != nil {
			return err
		}
	}
	return nil
}

var zeros [mib]byte

func writeSparse(w io.WriterAt, b []byte, at int64) error {
	for chunk := range slices.Chunk(b, len(zeros)) {
		if !bytes.Equal(chunk, zeros[:len(chunk)]) {
			if _, err := w.WriteAt(chunk, at); err != nil {
				return err
			}
		}
		at += int64(len(chunk))
	}
	return nil
}

// writeCard makes the card, the slot by itself and their parts list in dist,
// and returns what of it is shipped as it is.
func writeCard(src source, dist string) ([]string, error) {
	c := Card{
		Version: src.debVersion(), Time: src.Time,
		Program: filepath.Join(dist, "joulegate-linux-arm64"), Init: filepath.Join(dist, "joulegate-init-linux-arm64"),
	}
	var err error
	if c.Kernel, err = carried(kernelModule); err == nil {
		c.Firmware, err = carried(firmwareModule)
	}
	if err != nil {
		return nil, err
	}
	slot, err := c.Slot()
	if err != nil {
		return nil, err
	}
	card := cardName(src, dist)
	made := []string{strings.TrimSuffix(card, "-sd.img") + "-slot.img", strings.TrimSuffix(card, ".img") + ".cdx.json"}
	parts, err := cardParts(c)
	if err != nil {
		return nil, err
	}
	for i, b := range [][]byte{slot, parts} {
		if err := os.WriteFile(made[i], b, 0o644); err != nil {
			return nil, err
		}
	}
	return made, create(card, func(w io.Writer) error {
		f := w.(*os.File)
		last := layout()[3]
		return errors.Join(f.Truncate(last.start+last.size), c.Write(f, slot))
	})
}

func cardName(src source, dist string) string {
	return filepath.Join(dist, "joulegate-"+src.debVersion()+"-sd.img")
}

// packCard compresses the card: half of it is nothing.
func packCard(src source, dist string) (string, error) {
	name := cardName(src, dist)
	in, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer in.Close()
	fmt.Println(name + ".gz")
	return name + ".gz", create(name+".gz", func(w io.Writer) error {
		z := gzip.NewWriter(w)
		_, err := io.Copy(z, in)
		return errors.Join(err, z.Close())
	})
}

// carried returns the folder of a module that this program carries for its
// files.
func carried(module string) (string, error) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", errors.New("this program does not know its modules: build it with the go command")
	}
	i := slices.IndexFunc(info.Deps, func(m *debug.Module) bool { return m.Path == module })
	if i < 0 {
		return "", fmt.Errorf("%s is not among this program's modules", module)
	}
	return moduleDir(info.Deps[i])
}
