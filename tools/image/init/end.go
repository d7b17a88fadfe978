package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is where the gateway's user may ask for a restart. Only its group
// can reach it.
const socket = "/run/init.sock"

// tryArg has the firmware start the other slot, once; tryFlag is a file that
// asks for it at the next restart.
const (
	tryArg  = "0 tryboot"
	tryFlag = "/run/joulegate/tryboot"
)

// maxOrder is the longest order, in bytes.
const maxOrder = 256

// parseOrder reads what reboot and poweroff send: their name and, for the
// firmware, an argument.
func parseOrder(line string) (order, error) {
	name, arg, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	switch {
	case name == "poweroff" && arg == "":
		return order{}, nil
	case name == "reboot" && (arg == "" || arg == tryArg):
		return order{restart: true, arg: arg}, nil
	}
	return order{}, fmt.Errorf("%q: reboot, reboot \"0 tryboot\" or poweroff", line)
}

// listen takes orders until ctx ends.
func listen(ctx context.Context, ends chan<- order) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			line, err := bufio.NewReader(io.LimitReader(c, maxOrder)).ReadString('\n')
			var o order
			if err == nil {
				o, err = parseOrder(line)
			}
			if err != nil {
				fmt.Fprintln(c, err)
			} else {
				fmt.Fprintln(c, "ok")
				select {
				case ends <- o:
				default: // it ends already
				}
			}
			c.Close()
		}
	}()
	return errors.Join(os.Chown(socket, 0, gatewayID), os.Chmod(socket, 0o660))
}

// askInit sends an order to the running init.
func askInit(name string, args []string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, strings.Join(append([]string{name}, args...), " ")); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if answer != "ok\n" {
		return errors.New(strings.TrimSpace(answer))
	}
	return nil
}

// rebootWith restarts with an argument that the kernel hands to the firmware
// (reboot(2), LINUX_REBOOT_CMD_RESTART2).
func rebootWith(arg string) error {
	b, err := unix.BytePtrFromString(arg)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall6(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_RESTART2, uintptr(unsafe.Pointer(b)), 0, 0)
	return errno
}
