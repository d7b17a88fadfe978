// Guest is the first process of an emulated machine: it mounts what Linux
// needs, loads the kernel modules that lie beside it, and then does what the
// host asks for over a port of its own, as systemd and an installer's hands
// would. See tools/hil.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the init of an emulated machine, see tools/hil")
		os.Exit(2)
	}
	fmt.Printf("HIL failed: %v\n", boot())
	time.Sleep(time.Second) // the console is slow
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// boot serves until the port fails, and says why.
func boot() error {
	for _, m := range []struct{ what, where, kind string }{
		{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"dev", "/dev", "devtmpfs"}, {"tmp", "/tmp", "tmpfs"}, {"run", "/run", "tmpfs"},
	} {
		if err := unix.Mount(m.what, m.where, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	if err := os.MkdirAll("/dev/pts", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("pts", "/dev/pts", "devpts", 0, ""); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	if err := loadModules("/modules.list"); err != nil {
		return err
	}
	if err := address("lo", "127.0.0.1", 8); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/vda"); err == nil {
		if err := unix.Mount("/dev/vda", "/data", "ext4", unix.MS_NOATIME, ""); err != nil {
			return fmt.Errorf("mount /data: %w", err)
		}
	}
	port, err := openPort("hil")
	if err != nil {
		return err
	}
	// Orphans stay as zombies: a machine lives for minutes.
	return (&guest{port: port, running: map[string]*daemon{}}).serve()
}
