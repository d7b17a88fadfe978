package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// consoleIdle is when the log comes back to a screen that somebody has left.
const consoleIdle = 15 * time.Minute

// consoleAgain is the pause before a screen that was lost is opened again.
const consoleAgain = 5 * time.Second

const welcome = `
This is the gateway's own screen. Commands are those of joulegate, without
that word: doctor, commission start, config code, help. Files of the first
partition are in /boot/firmware. exit goes back to the log.
`

// console lets whoever stands at the gateway, with a screen and a keyboard,
// give the commands of joulegate and no others. The first Enter stops the log
// on the screen, exit lets it go on.
//
// It asks for no password, because there is nothing to protect: whoever can
// plug in a keyboard can take out the card.
func console(ctx context.Context, kids *children, log *logger) error {
	b, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		return err
	}
	names := strings.Fields(string(b))
	if len(names) == 0 {
		return errors.New("the kernel has no console")
	}
	// The last one is what /dev/console means; it can have a foreground.
	path := filepath.Join("/dev", names[len(names)-1])
	tty, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer func() { tty.Close() }()
	defer log.show(true)
	lines := bufio.NewReader(tty) // a terminal has lines of at most 4096 bytes
	idle := time.AfterFunc(consoleIdle, func() { log.show(true) })
	for ctx.Err() == nil {
		if _, err := lines.ReadString('\n'); err != nil {
			return err
		}
		log.show(false)
		fmt.Fprint(tty, welcome)
		for {
			idle.Reset(consoleIdle)
			fmt.Fprint(tty, "joulegate> ")
			line, err := lines.ReadString('\n')
			if err != nil {
				return err
			}
			log.show(false)
			args, err := words(strings.TrimSpace(line))
			if err == nil && len(args) == 1 && args[0] == "exit" {
				break
			}
			if len(args) > 0 && args[0] == "joulegate" {
				args = args[1:]
			}
			if err == nil && len(args) > 0 {
				err = command(kids, path, args)
				// The terminal was the command's; with its end the kernel hung
				// it up for everybody who had it open.
				tty.Close()
				again, openErr := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
				if openErr != nil {
					return openErr
				}
				tty = again
				lines.Reset(tty)
			}
			if err != nil {
				fmt.Fprintln(tty, err)
			}
		}
		log.show(true)
	}
	return ctx.Err()
}

// command runs one command as the gateway's user, in the foreground of a
// terminal, where Ctrl-C ends it.
func command(kids *children, terminal string, args []string) error {
	tty, err := os.OpenFile(terminal, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer tty.Close()
	attr := asGateway()
	attr.Setctty, attr.Ctty, attr.AmbientCaps = true, 0, nil
	_, done, err := kids.start(append([]string{program}, args...), environ("TERM=linux"), []uintptr{tty.Fd(), tty.Fd(), tty.Fd()}, attr)
	if err != nil {
		return err
	}
	if st := <-done; st.ExitStatus() != 0 {
		return told(st)
	}
	return nil
}

// words splits a line as a shell does where nothing is special but quotation
// marks.
func words(line string) (out []string, err error) {
	var quote rune
	var word *strings.Builder
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote = r
			if word == nil {
				word = new(strings.Builder)
			}
		case quote == 0 && (r == ' ' || r == '\t'):
			if word != nil {
				out, word = append(out, word.String()), nil
			}
		default:
			if word == nil {
				word = new(strings.Builder)
			}
			word.WriteRune(r)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quotation mark %c is not closed", quote)
	}
	if word != nil {
		out = append(out, word.String())
	}
	return out, nil
}
