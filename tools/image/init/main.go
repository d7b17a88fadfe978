// Init is the first process of a joulegate card, and with the gateway the
// only one: there is no shell, no login and no password on it. Whoever stands
// before it with a screen and a keyboard can give the commands of joulegate.
//
//	kernel ─► init ─┬─ mounts: /boot (slot, read-only), /boot/firmware (setup), /data
//	                ├─ names devices, hands them to the gateway's user
//	                ├─ network: address by DHCP or as configured, time by NTP
//	                └─ joulegate run ── ends ─► joulegate safe-state ─► again
//
// Whatever fails on the way is told on the console and in /data/log, and does
// not keep the gateway from being started: it meters and charges without a
// network, and it opens its relays without a card.
//
// An update finds:
//
//	/run/joulegate/slot             partition of the running slot: 2 or 3
//	/dev/joulegate/2, /3            the slots; the gateway may write the other one
//	/boot/firmware/autoboot.txt     which of them the firmware starts
//	/run/joulegate/tryboot          made by whoever wants the next restart to try the other slot
//	/sbin/reboot, /sbin/poweroff    ask init to end everything in order
//
// A slot on trial whose gateway is not at work after five minutes is left
// again.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if name := filepath.Base(os.Args[0]); name == "reboot" || name == "poweroff" {
		if err := askInit(name, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is the first process of a joulegate card")
		os.Exit(2)
	}
	log := &logger{console: os.Stdout}
	defer func() { // a first process must not end: the kernel would stop
		if r := recover(); r != nil {
			log.printf("init: %v", r)
			finish(log, order{restart: true})
		}
	}()
	finish(log, live(log))
}

// live runs the card until somebody ends it, and says how.
func live(log *logger) order {
	log.problem(mountSystem())
	who := hostname()
	log.problem(unix.Sethostname([]byte(who)))
	log.printf("init: joulegate card, %s, slot %s", who, slotName())
	log.problem(mountCard(log))
	// At its first start the gateway shows its label there: the log would keep
	// the secret.
	log.problem(os.Chown("/dev/console", gatewayID, gatewayID))
	log.problem(limits())
	resumeClock()

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ends := make(chan order, 1)
	log.problem(listen(ctx, ends))
	go keys(ends)

	kids := newChildren()
	go kids.reap()
	devices := newDevices(log)
	go devices.watch(ctx)
	go network(ctx, readNetwork(log), who, log)
	go func() {
		for ctx.Err() == nil { // without it nobody could do anything here
			log.problem(console(ctx, kids, log))
			time.Sleep(consoleAgain)
		}
	}()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		supervise(ctx, kids, log, ends)
	}()
	o := <-ends
	if _, err := os.Stat(tryFlag); err == nil && o.restart && o.arg == "" {
		o.arg = tryArg
	}
	log.printf("init: %s", o)
	stop()
	<-gone
	return o
}

// keys turns Ctrl-Alt-Del and signals into an orderly end.
func keys(ends chan<- order) {
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) // SIGINT instead of a reset
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR2)
	switch <-c {
	case syscall.SIGUSR2:
		ends <- order{}
	default:
		ends <- order{restart: true}
	}
}

// order is how the card ends.
type order struct {
	restart bool
	arg     string // for the firmware: "0 tryboot"
}

func (o order) String() string {
	if !o.restart {
		return "power off"
	}
	return strings.TrimSpace("restart " + o.arg)
}

// finish ends the machine. The gateway has ended, and its relays are open.
func finish(log *logger, o order) {
	keepClock()
	log.close()
	unix.Sync()
	for _, m := range []string{"/etc/joulegate", "/var/lib/joulegate", "/data", "/boot/firmware", "/boot"} {
		if unix.Unmount(m, 0) != nil {
			_ = unix.Mount("", m, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	}
	time.Sleep(200 * time.Millisecond) // the console is slow
	switch {
	case o.arg != "":
		err := rebootWith(o.arg)
		fmt.Printf("init: restart %q: %v\n", o.arg, err)
		fallthrough
	case o.restart:
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	default:
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	runtime.Goexit()
}
