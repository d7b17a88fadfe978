package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The gateway's user (tools/image/card.go writes /etc/passwd).
const gatewayID = 900

// mountSystem mounts what Linux itself provides.
func mountSystem() error {
	var all error
	for _, m := range []struct {
		what, where, kind, how string
		flags                  uintptr
	}{
		{"proc", "/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"dev", "/dev", "devtmpfs", "", unix.MS_NOSUID},
		{"pts", "/dev/pts", "devpts", "", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"run", "/run", "tmpfs", "mode=0755,size=16m", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmp", "/tmp", "tmpfs", "mode=1777,size=32m", unix.MS_NOSUID | unix.MS_NODEV},
		{"cgroup", "/sys/fs/cgroup", "cgroup2", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"debugfs", "/sys/kernel/debug", "debugfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tracefs", "/sys/kernel/tracing", "tracefs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		_ = os.MkdirAll(m.where, 0o755)
		err := unix.Mount(m.what, m.where, m.kind, m.flags, m.how)
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, fmt.Errorf("mount %s: %w", m.where, err))
		}
	}
	return all
}

// cardLimit is how long a card may take to appear.
const cardLimit = 30 * time.Second

// mountCard mounts the partitions of the card. What fails leaves an empty
// folder in memory in its place, so that the gateway starts and says so.
func mountCard(log *logger) error {
	disk, err := findCard()
	if err != nil {
		return err
	}
	part := func(n int) string { return "/dev/" + partition(disk, n) }
	log.problem(grow(disk, 4))

	// The slot: what the firmware has started, for whoever looks.
	err = unix.Mount(part(activeSlot()), "/boot", "vfat", unix.MS_RDONLY|unix.MS_NOATIME|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err != nil {
		err = fmt.Errorf("mount /boot: %w", err)
	}
	_ = os.MkdirAll("/boot/firmware", 0o755)
	how := fmt.Sprintf("uid=%d,gid=%d,umask=0077,flush", gatewayID, gatewayID)
	const flags = unix.MS_NOATIME | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if e := unix.Mount(part(1), "/boot/firmware", "vfat", flags|unix.MS_SYNCHRONOUS, how); e != nil {
		err = errors.Join(err, fmt.Errorf("mount /boot/firmware: %w", e))
	}
	return errors.Join(err, nameSlots(part), mountData(part(4), log))
}

// nameSlots tells an update where to write, and lets it.
func nameSlots(part func(int) string) error {
	err := errors.Join(os.MkdirAll("/dev/joulegate", 0o755), os.MkdirAll("/run/joulegate", 0o750), os.Chown("/run/joulegate", gatewayID, gatewayID),
		os.WriteFile("/run/joulegate/slot", fmt.Appendln(nil, activeSlot()), 0o644))
	for _, n := range []int{2, 3} {
		err = errors.Join(err, os.Symlink(part(n), "/dev/joulegate/"+strconv.Itoa(n)))
		if n != activeSlot() {
			err = errors.Join(err, os.Chown(part(n), gatewayID, gatewayID))
		}
	}
	return err
}

// mountData mounts the data partition. The kernel replays its journal; one
// that cannot be written any more is mounted to be read, so that keys and
// records can be seen by the gateway, which then says what is wrong.
func mountData(device string, log *logger) error {
	const flags = unix.MS_NOATIME | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := unix.Mount(device, "/data", "ext4", flags, "errors=remount-ro")
	if err != nil {
		err = fmt.Errorf("the data partition cannot be written: %w; replace the card and restore a backup", err)
		if e := unix.Mount(device, "/data", "ext4", flags|unix.MS_RDONLY, "noload"); e != nil {
			return errors.Join(err, fmt.Errorf("nor read: %w", e))
		}
	} else {
		log.problem(resize("/data", device))
	}
	for _, d := range []struct {
		dir, at string
		mode    os.FileMode
	}{{"/data/config", "/etc/joulegate", 0o750}, {"/data/state", "/var/lib/joulegate", 0o750}} {
		if e := os.Mkdir(d.dir, d.mode); e == nil {
			err = errors.Join(err, os.Chown(d.dir, gatewayID, gatewayID))
		} else if !errors.Is(e, fs.ErrExist) {
			err = errors.Join(err, e)
		}
		if e := unix.Mount(d.dir, d.at, "", unix.MS_BIND, ""); e != nil {
			err = errors.Join(err, fmt.Errorf("mount %s: %w", d.at, e))
		}
	}
	log.problem(log.open("/data/log"))
	return err
}

// findCard waits for the disk that has four partitions, the card first.
func findCard() (string, error) {
	for until := time.Now().Add(cardLimit); ; time.Sleep(50 * time.Millisecond) {
		for _, pattern := range []string{"mmcblk[0-9]", "sd[a-z]", "nvme[0-9]n[0-9]", "vd[a-z]"} {
			found, _ := filepath.Glob("/sys/block/" + pattern)
			for _, f := range found {
				disk := filepath.Base(f)
				if _, err := os.Stat("/dev/" + partition(disk, 4)); err == nil && isCard(disk) {
					return disk, nil
				}
			}
		}
		if time.Now().After(until) {
			return "", fmt.Errorf("no card with four partitions within %s", cardLimit)
		}
	}
}

// isCard looks for the label that the first partition was made with.
func isCard(disk string) bool {
	f, err := os.Open("/dev/" + partition(disk, 1))
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 512)
	_, err = f.ReadAt(b, 0)
	return err == nil && string(b[71:82]) == "JG-SETUP   "
}

// partition is the name of a disk's n-th partition.
func partition(disk string, n int) string {
	if strings.HasPrefix(disk, "sd") || strings.HasPrefix(disk, "vd") {
		return disk + strconv.Itoa(n)
	}
	return disk + "p" + strconv.Itoa(n)
}

const bootloader = "/proc/device-tree/chosen/bootloader/"

// firmware returns a number that the firmware has left in the device tree.
func firmware(name string) (uint32, bool) {
	b, err := os.ReadFile(bootloader + name)
	if err != nil || len(b) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

// activeSlot is the partition that this system was started from: 2 or 3.
func activeSlot() int {
	if n, ok := firmware("partition"); ok && n == 3 {
		return 3
	}
	return 2
}

// onTrial tells whether the firmware has started this slot for once.
func onTrial() bool {
	n, ok := firmware("tryboot")
	return ok && n != 0
}

func slotName() string {
	s := "A"
	if activeSlot() == 3 {
		s = "B"
	}
	if onTrial() {
		s += " on trial"
	}
	return s
}

// hostname is joulegate and the end of the board's serial number, so that two
// of them in one house have two names.
func hostname() string {
	b, _ := os.ReadFile("/proc/device-tree/serial-number")
	s := strings.ToLower(string(bytes.TrimRight(b, "\x00\n")))
	if len(s) < 6 {
		return "joulegate"
	}
	return "joulegate-" + s[len(s)-6:]
}

// grow makes the last partition reach to the end of the card: one sector is
// written, and the kernel is told.
func grow(disk string, n int) error {
	b, err := os.ReadFile("/sys/block/" + disk + "/size")
	if err != nil {
		return err
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/"+disk, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return fmt.Errorf("grow the data partition: %w", err)
	}
	defer f.Close()
	table := make([]byte, 512)
	if _, err := f.ReadAt(table, 0); err != nil {
		return fmt.Errorf("grow the data partition: %w", err)
	}
	start, length, changed := grown(table, n, sectors)
	if !changed {
		return nil
	}
	if _, err := f.WriteAt(table, 0); err != nil {
		return fmt.Errorf("grow the data partition: %w", err)
	}
	p := unix.BlkpgPartition{Start: int64(start) * 512, Length: int64(length) * 512, Pno: int32(n)}
	a := unix.BlkpgIoctlArg{Op: unix.BLKPG_RESIZE_PARTITION, Datalen: int32(unsafe.Sizeof(p)), Data: (*byte)(unsafe.Pointer(&p))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&a))); errno != 0 {
		return fmt.Errorf("grow the data partition: the next start takes it: %w", errno)
	}
	return nil
}

// grown changes a master boot record so that partition n ends where a disk of
// so many sectors ends, and says whether that is further than before.
func grown(table []byte, n int, sectors uint64) (start, length uint64, changed bool) {
	const align = 8192 // sectors: 4 MiB, which a card erases at once
	e := table[446+16*(n-1):]
	start = uint64(binary.LittleEndian.Uint32(e[8:]))
	old := uint64(binary.LittleEndian.Uint32(e[12:]))
	end := min(sectors/align*align, 1<<32) // the record has no room for more
	if table[510] != 0x55 || table[511] != 0xaa || start == 0 || end <= start+old {
		return start, old, false
	}
	binary.LittleEndian.PutUint32(e[12:], uint32(end-start))
	return start, end - start, true
}

// ext4Resize is EXT4_IOC_RESIZE_FS (fs/ext4/ext4.h of Linux): _IOW('f', 16, __u64).
const ext4Resize = 1<<30 | 8<<16 | 'f'<<8 | 16

// resize lets the file system fill its partition, as resize2fs does with a
// mounted one.
func resize(dir, device string) error {
	b, err := os.ReadFile("/sys/class/block/" + filepath.Base(device) + "/size")
	if err != nil {
		return err
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	// Statfs leaves out what the file system itself takes: a tenth, at most.
	blocks := sectors * 512 / uint64(st.Bsize)
	if st.Blocks+blocks/10 > blocks {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), ext4Resize, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow the file system of %s to %d blocks: %w", dir, blocks, errno)
	}
	return nil
}
