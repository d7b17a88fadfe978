package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/joulegate/joulegate/board/update"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/ledger"
	"golang.org/x/sys/unix"
)

// errUpdated ends a gateway whose program gives way to another.
var errUpdated = errors.New("another program takes over")

// A gateway that was updated starts in two steps, in one process:
//
//	/usr/bin/joulegate run ──record, hash──► execve state/update/a/joulegate run
//	                       └─ nothing, or nothing whole: goes on itself
//
// The process id stays, and with it what a service manager knows of the
// service: its readiness, its watchdog, its control group.

// place is where the running program lies.
type place struct {
	update.Choice
	launcher string // program that has chosen this one; "": it has itself
	card     bool   // the firmware has chosen a partition
}

// A card's first process tells so where an update finds what it needs
// (tools/image/init).
const (
	cardSlot    = "/run/joulegate/slot"
	cardFlag    = "/run/joulegate/tryboot"
	cardDevices = "/dev/joulegate/"
	cardBoot    = "/boot/firmware/autoboot.txt"
	cardRestart = "/sbin/reboot"
)

// onCard returns the partition that runs, if this is a card.
func onCard() (slot string, ok bool) {
	b, err := os.ReadFile(cardSlot)
	return strings.TrimSpace(string(b)), err == nil
}

// slotsHere are the slots of this machine.
func slotsHere(store update.Store) update.Slots {
	if _, ok := onCard(); !ok {
		return update.Programs{Store: store}
	}
	return update.Partitions{Slots: [2]string{"2", "3"}, Card: update.Files{
		Autoboot: cardBoot, Flag: cardFlag, Devices: map[string]string{"2": cardDevices + "2", "3": cardDevices + "3"},
	}}
}

// placeVar tells a program that was chosen so, and by whom: place:launcher.
const placeVar = "JOULEGATE_PLACE"

func (s state) updates() update.Dir { return update.Dir(s.path("update")) }

// thisProgram is what the record has to know of the running program.
func thisProgram() update.Program {
	return update.Program{Version: version, RulesFrom: 1, Rules: ledger.RulesVersion}
}

// launch executes the program that the record names, or returns where this one
// lies. Before it a kernel timer is set which ends a program on trial that
// hangs, whatever it is.
func launch(st state, log *slog.Logger) place {
	was, chosen := os.LookupEnv(placeVar)
	_ = os.Unsetenv(placeVar) // children are not chosen
	if chosen {
		return launched(st, was, log)
	}
	alarm(0)
	if slot, ok := onCard(); ok {
		p := place{Choice: update.Booted(st.updates(), slot, time.Now()), card: true}
		for _, t := range p.Told {
			log.Error("update", "err", t)
		}
		return p
	}
	here := place{Choice: update.Choice{Place: update.Packaged}}
	if _, err := os.Stat(st.path("update", "boot.json")); errors.Is(err, fs.ErrNotExist) {
		return here
	}
	lock, err := journal.LockDir(string(st))
	if err != nil {
		return here // another gateway runs here, and this one will be told so
	}
	defer func() { _ = lock.Unlock() }()
	c := update.Choose(st.updates(), thisProgram(), time.Now())
	for _, t := range c.Told {
		log.Error("update", "err", t)
	}
	if c.Place == update.Packaged {
		return here
	}
	self, err := os.Executable()
	if err != nil {
		log.Error("the updated program is not started", "err", err)
		return here
	}
	if c.Trial != nil {
		log.Warn("a new program starts on trial", "slot", c.Place, "start", c.Trial.Attempts, "of", update.MaxAttempts)
		alarm(2 * c.Trial.Patience)
	}
	file := st.updates().Path(c.File)
	err = syscall.Exec(file, os.Args, append(os.Environ(), placeVar+"="+c.Place+":"+self))
	alarm(0)
	log.Error("the updated program cannot be executed; the packaged one goes on", "file", file, "err", err)
	return here
}

// launched is launch in the program that was chosen.
func launched(st state, was string, log *slog.Logger) place {
	var p place
	p.Place, p.launcher, _ = strings.Cut(was, ":")
	r, err := update.Load(st.updates())
	if err != nil {
		log.Error("update", "err", err)
	}
	if r.Trial != nil && r.Trial.Place == p.Place {
		p.Trial = r.Trial
		late := make(chan os.Signal, 1)
		signal.Notify(late, unix.SIGALRM)
		go func() {
			<-late
			log.Error("this program is on trial and has not shown in time that it is well")
			os.Exit(1)
		}()
	}
	return p
}

// alarm has the kernel send SIGALRM after d; it goes on over execve(2). 0
// takes it back.
func alarm(d time.Duration) {
	_, _ = unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{Value: unix.NsecToTimeval(int64(d))})
}

// again executes the program that the record names now, with the same
// arguments and process id.
func (p place) again(why error) error {
	alarm(0)
	if p.card && !errors.Is(why, errReconfigured) && !errors.Is(why, consensus.ErrReopen) {
		// The firmware starts the other partition; relays are open already.
		if out, err := exec.Command(cardRestart).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", cardRestart, err, out)
		}
		return nil
	}
	exe := "/proc/self/exe"
	if p.launcher != "" && unix.Access(p.launcher, unix.X_OK) == nil {
		exe = p.launcher
	}
	return fmt.Errorf("start anew: %w", syscall.Exec(exe, os.Args, os.Environ()))
}

// giveUp ends a trial in which the gateway has ended by itself. It reports
// whether the former program is to be started.
func (p place) giveUp(st state, why error, log *slog.Logger) bool {
	if p.Trial == nil {
		return false
	}
	given, err := update.GiveUp(st.updates(), p.Place, "the gateway ended: "+why.Error(), time.Now())
	if err != nil {
		log.Error("the update is not rolled back yet", "err", err) // its starts are counted
	} else if given {
		log.Error("the update is rolled back", "err", why)
	}
	return given
}
