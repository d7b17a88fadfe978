package slave_test

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/tools/sim/slave"
)

// masters returns the commands of two independent Modbus masters, which speak
// the same language on standard input.
func masters(t *testing.T) map[string][]string {
	t.Helper()
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import pymodbus.client, serial").CombinedOutput(); err != nil {
		t.Skipf("needs Debian's python3-pymodbus and python3-serial: %v\n%s", err, out)
	}
	program := filepath.Join(t.TempDir(), "master")
	if out, err := exec.Command("gcc", "-O1", "-o", program, "testdata/master.c", "-lmodbus").CombinedOutput(); err != nil {
		t.Skipf("needs gcc and Debian's libmodbus-dev: %v\n%s", err, out)
	}
	return map[string][]string{"pymodbus": {python, "testdata/master.py"}, "libmodbus": {program}}
}

// Two independent masters read and command our simulated devices over RTU and
// TCP with functions 3, 4, 6 and 16, to the digit.
func TestIndependentMasters(t *testing.T) {
	steps := []struct{ ask, want string }{
		{"4 7 52 2", "50363 45056"},         // -1501.5 W as a float
		{"4 7 0 2", "17254 6554"},           // 230.1 V
		{"4 7 72 4", "17562 20480 16612 0"}, // 1234.5 and 7.125 kWh
		{"4 7 1000 2", "error"},             // nothing is there
		{"6 1 1000 16", "ok"},
		{"3 1 1000 3", "16 0 1"}, // offered, and no car
		{"6 1 1002 3", "error"},  // the status is not for writing
		{"16 2 1210 16728 0", "ok"},
		{"3 2 1210 2", "16728 0"}, // 13.5 A
		{"16 2 1210 16640 1 2", "error"},
		{"3 2 1210 2", "16728 0"}, // nothing of it was taken
		{"3 2 306 2", "17254 6554"},
	}
	for name, command := range masters(t) {
		for _, kind := range []string{"rtu", "tcp"} {
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				b := bus(t, slave.Config{Baud: 19200}, map[uint8]*slave.Unit{
					1: unit(t, "simpleevse", slave.UnitConfig{}),
					2: unit(t, "alfen-eve", slave.UnitConfig{}, truth[0]),
					7: unit(t, "eastron-sdm630", slave.UnitConfig{}, truth...),
				})
				var where []string
				if kind == "rtu" {
					pty := openPTY(t)
					background(t, func(ctx context.Context) error { return b.ServePTY(ctx, pty) })
					where = []string{"rtu", pty.Name(), "19200"}
				} else {
					ln := listen(t)
					background(t, func(ctx context.Context) error { return b.ServeTCP(ctx, ln) })
					_, port, _ := net.SplitHostPort(ln.Addr().String())
					where = []string{"tcp", port}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
				defer cancel()
				cmd := exec.CommandContext(ctx, command[0], append(command[1:len(command):len(command)], where...)...)
				var in, errs bytes.Buffer
				for _, s := range steps {
					in.WriteString(s.ask + "\n")
				}
				cmd.Stdin, cmd.Stderr = &in, &errs
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("%v\n%s%s", err, out, errs.Bytes())
				}
				got := strings.Split(strings.TrimSpace(string(out)), "\n")
				if len(got) != len(steps) {
					t.Fatalf("%d answers, want %d:\n%s", len(got), len(steps), out)
				}
				for i, s := range steps {
					if got[i] != s.want {
						t.Errorf("%s: %q, want %q", s.ask, got[i], s.want)
					}
				}
			})
		}
	}
}
