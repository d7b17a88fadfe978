package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// made is when files of tests were made: FAT counts in steps of two seconds.
var made = time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)

func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
}

func tell(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8", "TZ=UTC")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// unpack copies a FAT file system into a folder with mtools, which have
// nothing in common with its writer, and returns what is there.
func unpack(t *testing.T, image string) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	tell(t, "mcopy", "-s", "-n", "-m", "-i", image, "::", dir)
	got := map[string][]byte{}
	root := filepath.Join(dir)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		got[filepath.ToSlash(rel)], err = os.ReadFile(p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// same compares files by their hashes.
func same(t *testing.T, got, want map[string][]byte) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if strings.HasSuffix(name, "/") {
			continue
		}
		b, ok := got[name]
		if !ok {
			t.Errorf("%s is missing", name)
		} else if sha256.Sum256(b) != sha256.Sum256(want[name]) {
			t.Errorf("%s: %d bytes that are not the %d written", name, len(b), len(want[name]))
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s was not written", name)
	}
}

// TestFAT writes trees of all kinds and lets others check and read them.
func TestFAT(t *testing.T) {
	need(t, "fsck.fat", "mcopy")
	rng := rand.New(rand.NewPCG(1, 2))
	body := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	many := map[string][]byte{}
	for i := range 400 {
		many[fmt.Sprintf("folder-%d/a name that is longer than eight and three %d.data", i%7, i)] = body(rng.IntN(3000))
	}
	for name, f := range map[string]FAT{
		"empty": {Size: 40 * mib, Label: "EMPTY"},
		"names": {Size: 64 * mib, Label: "NAMES", Serial: 0xdeadbeef, Files: map[string][]byte{
			"start.elf": body(1), "Start4.ELF": body(511), "empty.txt": {}, "exactly-thirt": body(512), "README.txt": body(513),
			"a/b/c/d/e.f": body(70000), "no-extension-but-long": body(9), ".hidden": body(3), "two.dots.in.it": body(5), "a/empty/": nil,
		}},
		"many": {Size: 128 * mib, Label: "MANY", Files: many},
		"full": {Size: 40 * mib, Label: "FULL", Files: map[string][]byte{"all": body(38 * mib)}},
	} {
		f.Time = made
		b, err := f.Image()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		file := filepath.Join(t.TempDir(), "fat")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		tell(t, "fsck.fat", "-n", file)
		same(t, unpack(t, file), f.Files)
		if again, err := f.Image(); err != nil || !bytes.Equal(b, again) {
			t.Errorf("%s: another time other bytes (%v)", name, err)
		}
	}
	for name, f := range map[string]FAT{
		"too much":   {Size: 40 * mib, Label: "X", Files: map[string][]byte{"a": make([]byte, 40*mib)}},
		"too small":  {Size: 10 * mib, Label: "X"},
		"long label": {Size: 40 * mib, Label: "TWELVE-CHARS"},
		"both":       {Size: 40 * mib, Label: "X", Files: map[string][]byte{"a": {1}, "a/b": {1}}},
	} {
		if _, err := f.Image(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// TestCard builds a card twice and reads it back with other people's
// programs.
func TestCard(t *testing.T) {
	need(t, "fsck.fat", "mcopy", "mke2fs", "e2fsck", "debugfs", "zstd", "cpio")
	kernel, err := carried(kernelModule)
	if err != nil {
		t.Fatal(err)
	}
	firmware, err := carried(firmwareModule)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	put := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return name
	}
	c := Card{Version: "1.2.3", Time: made, Program: put("joulegate", "the program"), Init: put("init", "the first process"), Kernel: kernel, Firmware: firmware}
	card := filepath.Join(dir, "card")
	f, err := os.Create(card)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	slot, err := c.Slot()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(f, slot); err != nil {
		t.Fatal(err)
	}
	last := layout()[3]
	if err := f.Truncate(last.start + last.size); err != nil {
		t.Fatal(err)
	}
	t.Logf("a card has %d MiB", (last.start+last.size)/mib)

	// Each partition lies where the table says, and is sound.
	parts := make([]string, 4)
	for i, p := range layout() {
		parts[i] = filepath.Join(dir, fmt.Sprint("p", i+1))
		w, err := os.Create(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, io.NewSectionReader(f, p.start, p.size)); err != nil {
			t.Fatal(err)
		}
		w.Close()
	}
	for _, p := range parts[:3] {
		tell(t, "fsck.fat", "-n", p)
	}
	tell(t, "e2fsck", "-fn", parts[3])
	if out := tell(t, "debugfs", "-R", "stats", parts[3]); !strings.Contains(out, "metadata_csum") || !strings.Contains(out, "has_journal") {
		t.Errorf("data partition: %s", out)
	}

	boot := unpack(t, parts[0])
	rom, err := os.ReadFile(filepath.Join(firmware, "bootcode.bin"))
	if err != nil {
		t.Fatal(err)
	}
	same(t, boot, map[string][]byte{"autoboot.txt": own("autoboot.txt"), "bootcode.bin": rom, "README.txt": own("README.txt")})

	a, b := unpack(t, parts[1]), unpack(t, parts[2])
	if file, err := os.ReadFile(parts[2]); err != nil || !bytes.Equal(file, slot) {
		t.Errorf("slot B is not the file that an update brings (%v)", err)
	}
	for _, name := range []string{"bcm2710-rpi-3-b.dtb", "bcm2710-rpi-zero-2-w.dtb", "bcm2711-rpi-4-b.dtb", "bcm2712-rpi-5-b.dtb", "overlays/disable-bt.dtbo", "overlays/overlay_map.dtb", "start4.elf", "fixup.dat", "licences/sources.txt"} {
		if len(a[name]) == 0 || !bytes.Equal(a[name], b[name]) {
			t.Errorf("%s has %d and %d bytes", name, len(a[name]), len(b[name]))
		}
	}
	for name, line := range map[string]string{
		"cmdline.txt": "pinctrl_bcm2835.persist_gpio_outputs=0 pinctrl_rp1.persist_gpio_outputs=0",
		"config.txt":  "gpio=17,22,23,27=op,dl\n", "licences/sources.txt": "https://github.com/raspberrypi/linux/archive/",
	} {
		if !strings.Contains(string(a[name]), line) {
			t.Errorf("%s without %q", name, line)
		}
	}
	// Every firmware unpacks gzip; what comes out is the kernel as it was.
	put("kernel.gz", string(a["kernel.gz"]))
	image, err := os.ReadFile(filepath.Join(kernel, "vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gzip", "-dc", filepath.Join(dir, "kernel.gz")).Output(); err != nil || !bytes.Equal(out, image) {
		t.Errorf("the kernel unpacks to %d bytes of %d: %v", len(out), len(image), err)
	}
	put("initramfs.zst", string(a["initramfs.zst"]))
	tree := filepath.Join(dir, "tree")
	tell(t, "sh", "-c", "mkdir "+tree+" && cd "+tree+" && zstd -dc ../initramfs.zst | cpio -i --quiet --nonmatching dev/console dev/null")
	for name, text := range map[string]string{"init": "the first process", "bin/joulegate": "the program", "sbin/reboot": "->/init"} {
		b, err := os.ReadFile(filepath.Join(tree, name))
		if to, e := os.Readlink(filepath.Join(tree, name)); e == nil {
			b, err = []byte("->"+to), nil
		}
		if err != nil || string(b) != text {
			t.Errorf("%s is %q: %v", name, b, err)
		}
	}

	again, err := os.Create(filepath.Join(dir, "again"))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	other, err := c.Slot()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(again, other); err != nil {
		t.Fatal(err)
	}
	if err := again.Truncate(last.start + last.size); err != nil {
		t.Fatal(err)
	}
	tell(t, "cmp", card, again.Name())
}

// TestCardParts names the licence of everything on a card, and keeps what is
// under the GPL beside our programs, never in them.
func TestCardParts(t *testing.T) {
	first := filepath.Join(t.TempDir(), "init")
	tell(t, "go", "build", "-o", first, "./init")
	own, err := sbomOf(first)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(own), "pkg:golang/github.com/insomniacslk/dhcp@") {
		t.Error("no DHCP client among the parts of init")
	}
	kernel, err := carried(kernelModule)
	if err != nil {
		t.Fatal(err)
	}
	firmware, err := carried(firmwareModule)
	if err != nil {
		t.Fatal(err)
	}
	all, err := cardParts(Card{Version: "1.2.3", Kernel: kernel, Firmware: firmware})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"GPL-2.0-only"`, "raspberrypi/linux/archive/", "LICENCE.broadcom", "@v0.0.0-20251127164438-9778ec0261de"} {
		if !strings.Contains(string(all), want) {
			t.Errorf("no %s in the parts of a card", want)
		}
	}
}
