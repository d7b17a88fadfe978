package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/doctor"
	"github.com/joulegate/joulegate/drivers/gpio/gpiochip"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newDoctorCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Examine this computer and its configuration, and say what to do",
		Long: `Looks at the board, kernel, clock, power supply, disk, pins, serial ports,
watchdog, ports and the running gateway. It changes nothing: no relay moves and
no file is written. Exit code 1 if a check failed; warnings alone are no failure.`,
		Example: "  sudo joulegate doctor\n  joulegate doctor --json | jq '.checks[] | select(.state==\"fail\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks := doctor.Examine(subjectOf(cmd))
			ok := doctor.Passed(checks)
			if err := emit(cmd, map[string]any{"ok": ok, "version": version, "checks": checks}, func(w io.Writer) error {
				rows := [][]string{{"CHECK", "", "WHAT WAS SEEN"}}
				for _, c := range checks {
					rows = append(rows, []string{c.ID, string(c.State), c.Detail})
					if c.Remedy != "" && c.State != doctor.OK {
						rows = append(rows, []string{"", "", "-> " + c.Remedy})
					}
				}
				return table(w, rows)
			}); err != nil {
				return err
			}
			if !ok {
				return errSilent
			}
			return nil
		},
	}
}

// subjectOf is this computer and what a command line says of the gateway.
func subjectOf(cmd *cobra.Command) doctor.Subject {
	s := doctor.Subject{State: string(stateOf(cmd)), Host: thisHost()}
	s.Host.Gateway = func() (string, error) { return gatewayThere(cmd) }
	s.ConfigPath, _ = cmd.Flags().GetString("config")
	s.Detected, _ = detectedBoard()
	if cfg, err := loadConfig(s.ConfigPath); err == nil {
		s.Config = &cfg
	} else {
		s.ConfigErr = err
	}
	return s
}

// gatewayThere asks the running gateway; "": none runs.
func gatewayThere(cmd *cobra.Command) (string, error) {
	g, err := dial(cmd)
	if errors.Is(err, errNotRunning) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer g.Close()
	ctx, stop := context.WithTimeout(cmd.Context(), 5*time.Second)
	defer stop()
	st, err := g.Status(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("version %s, %d peers, block %d", st.Version, st.Peers, st.Height), nil
}

// thisHost is the computer that this program runs on.
func thisHost() doctor.Host {
	var uts unix.Utsname
	_ = unix.Uname(&uts) // cannot fail with a valid pointer
	chips := gpiochip.New()
	return doctor.Host{
		Root: os.DirFS("/"), Kernel: unix.ByteSliceToString(uts.Release[:]), Now: time.Now(),
		Synced: clockKept, Disk: diskOf, Writable: serviceMay, RealTime: mayHurry,
		Pin: func(p board.Pin) (string, error) {
			l, err := chips.Find(p)
			if err == nil && l.Used && l.Consumer == "" {
				l.Consumer = "the kernel"
			}
			return l.Consumer, err
		},
		Listen: func(network, address string) error {
			l, err := net.Listen(network, address)
			if err != nil {
				return err
			}
			return l.Close()
		},
	}
}

// clockKept asks the kernel whether something disciplines its clock
// (adjtimex(2): STA_UNSYNC).
func clockKept() (bool, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, fmt.Errorf("state of the clock: %w", err)
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, nil
}

func diskOf(path string) (doctor.Disk, error) {
	var s unix.Statfs_t
	for path != "/" && path != "." { // the folder may have to be made yet
		if _, err := os.Stat(path); err == nil {
			break
		}
		path = filepath.Dir(path)
	}
	if err := unix.Statfs(path, &s); err != nil {
		return doctor.Disk{}, fmt.Errorf("%s: %w", path, err)
	}
	block := uint64(s.Bsize)
	return doctor.Disk{
		Free: s.Bavail * block, Size: s.Blocks * block,
		ReadOnly: s.Flags&unix.ST_RDONLY != 0, Volatile: uint32(s.Type) == unix.TMPFS_MAGIC || uint32(s.Type) == unix.RAMFS_MAGIC, // 32 bits, signed on some
	}, nil
}

// serviceUser is whom the package makes.
const serviceUser = "joulegate"

// serviceMay says whether the gateway's user may read and write a device: by
// the file's owner and mode where that user exists, else whether we may.
func serviceMay(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	u, err := user.Lookup(serviceUser)
	if err != nil {
		if err := unix.Access(real, unix.R_OK|unix.W_OK); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return err
	}
	may := st.Mode&0o006 == 0o006 || u.Uid == fmt.Sprint(st.Uid) && st.Mode&0o600 == 0o600
	for _, g := range groups {
		may = may || g == fmt.Sprint(st.Gid) && st.Mode&0o060 == 0o060
	}
	if !may {
		return fmt.Errorf("%s: the user %s may not read and write it", path, serviceUser)
	}
	return nil
}

// mayHurry says whether the reflex gets its priority: as root always, as a
// service by the limit of the unit, which a shell does not have.
func mayHurry() error {
	if os.Geteuid() == 0 {
		return nil
	}
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTPRIO, &r); err != nil {
		return err
	}
	if r.Max < 10 {
		return fmt.Errorf("the limit of this session is %d", r.Max)
	}
	return nil
}
