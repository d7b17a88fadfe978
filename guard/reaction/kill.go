package reaction

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/guard"
)

// Processes says which processes are spared beside those that always are.
type Processes struct {
	Never  []string                              // paths of executables
	Listed func(image string, sum [32]byte) bool // an executable of the list; nil: there is none
}

// Limits of killing.
const (
	maxImage = 512 << 20       // bytes of an executable that is hashed; a larger one is spared
	endsIn   = 2 * time.Second // a killed process is awaited so long
)

// daemons are what a gateway is reached and fed by: init, network, names,
// time, broker, logins, devices, logs. They are spared when they run from a
// folder of the system, so that a name alone protects nobody.
var daemons = []string{
	"init", "systemd", "runit", "openrc-init", "dinit", "s6-svscan", "tini", "dumb-init",
	"systemd-networkd", "systemd-resolved", "systemd-timesyncd", "systemd-logind", "systemd-udevd", "systemd-journald", "systemd-executor", "(sd-pam)",
	"NetworkManager", "ModemManager", "connmand", "iwd", "wpa_supplicant", "hostapd", "dhclient", "dhcpcd", "udhcpc", "pppd", "wg-quick", "openvpn",
	"dnsmasq", "unbound", "named", "avahi-daemon", "chronyd", "ntpd", "openntpd", "busybox",
	"mosquitto", "sshd", "sshd-session", "sshd-auth", "dropbear", "login", "agetty", "sudo", "dbus-daemon", "dbus-broker", "rsyslogd", "polkitd", "watchdog",
}

// systemFolders hold them; links such as /bin are resolved by the kernel.
var systemFolders = []string{"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec", "/bin", "/sbin", "/lib"}

// kill ends the process that the finding named, if it still is that process
// and none that is spared.
func (p Processes) kill(ctx context.Context, r guard.Reaction) error {
	pid, start, err := parseProcess(r.Subject)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: it has ended by itself", r.Subject)
	} else if err != nil {
		return fmt.Errorf("kill %s: open it: %w", r.Subject, err)
	}
	defer unix.Close(fd)
	// From here on fd means one process. If the number is given to another
	// one while it is looked at, the signal reaches nobody.
	if err := p.spares(pid, start, r); err != nil {
		return fmt.Errorf("kill %s: %w", r.Subject, err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("kill %s: %w", r.Subject, err)
	}
	end := time.Now().Add(endsIn)
	for ctx.Err() == nil && time.Now().Before(end) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return nil
		}
	}
	return fmt.Errorf("kill %s: it was told to end and has not", r.Subject)
}

// parseProcess reads "4711@882301": number and start time.
func parseProcess(s guard.Subject) (pid int, start uint64, err error) {
	number, ticks, ok := strings.Cut(s.Value, "@")
	pid, err = strconv.Atoi(number)
	if err == nil {
		start, err = strconv.ParseUint(ticks, 10, 64)
	}
	if !ok || err != nil || s.Kind != guard.PID || pid <= 0 || start == 0 {
		return 0, 0, fmt.Errorf("%s is no process", s)
	}
	return pid, start, nil
}

// spares says why a process is not ended.
func (p Processes) spares(pid int, start uint64, r guard.Reaction) error {
	proc := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return err
	}
	switch got, err := startTime(stat); {
	case err != nil:
		return err
	case got != start:
		return errors.New("another process has its number now")
	case pid == 1 || pid == os.Getpid() || pid == os.Getppid():
		return errors.New("it is init, this gateway or what started it")
	case r.Image == "":
		return errors.New("the finding does not say which executable it runs")
	}
	exe := proc + "/exe"
	image, err := os.Readlink(exe)
	if err != nil {
		return fmt.Errorf("it is a kernel thread, or has ended: %w", err)
	}
	if bare(image) != bare(r.Image) {
		return fmt.Errorf("it runs %s now", image)
	}
	if same, err := sameFile(exe, "/proc/self/exe"); err != nil || same {
		return errors.Join(errors.New("it is a part of this gateway"), err)
	}
	if slices.Contains(p.Never, bare(image)) || isDaemon(bare(image)) {
		return fmt.Errorf("%s is needed by this gateway", image)
	}
	sum, err := hashOf(exe)
	switch {
	case err != nil:
		return fmt.Errorf("its executable cannot be read: %w", err)
	case r.SHA256 != "" && !strings.EqualFold(r.SHA256, hex.EncodeToString(sum[:])):
		return errors.New("its executable is not the one that was found")
	case p.Listed != nil && p.Listed(image, sum):
		return fmt.Errorf("%s is on the list of executables", image)
	}
	return nil
}

// bare is a path without the kernel's mark of a file that is gone: an update
// replaces the file of a daemon that runs.
func bare(image string) string { return strings.TrimSuffix(image, " (deleted)") }

func isDaemon(image string) bool {
	return slices.Contains(daemons, path.Base(image)) && slices.ContainsFunc(systemFolders, func(d string) bool { return strings.HasPrefix(image, d+"/") })
}

// startTime is field 22 of stat, in clock ticks after boot. The second field
// may hold blanks and brackets.
func startTime(stat []byte) (uint64, error) {
	i := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[i+1:])
	if i < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("/proc says of it %q", stat)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// sameFile compares the files behind two links, not their names.
func sameFile(a, b string) (bool, error) {
	var x, y syscall.Stat_t
	if err := errors.Join(syscall.Stat(a, &x), syscall.Stat(b, &y)); err != nil {
		return false, err
	}
	return x.Dev == y.Dev && x.Ino == y.Ino, nil
}

func hashOf(file string) (sum [32]byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(f, maxImage+1))
	if err == nil && n > maxImage {
		err = fmt.Errorf("it is larger than %d bytes", maxImage)
	}
	return [32]byte(h.Sum(nil)), err
}
