package modbus

import (
	"bufio"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/joulegate/joulegate/drivers"
)

// startLibmodbus compiles and starts testdata/slave.c, waits until it serves
// and returns its TCP port.
func startLibmodbus(t *testing.T, args ...string) (port int) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "slave")
	if out, err := exec.Command("gcc", "-O1", "-o", program, "testdata/slave.c", "-lmodbus").CombinedOutput(); err != nil {
		t.Skipf("needs gcc and Debian's libmodbus-dev: %v\n%s", err, out)
	}
	cmd := exec.Command(program, args...)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if n, e := fmt.Sscanf(line, "ready %d\n", &port); n != 1 {
		t.Fatalf("the slave says %q, %v, %v", line, err, e)
	}
	return port
}

// writePeer writes to unit 2 with every function, and reads it back.
func writePeer(t *testing.T, dev drivers.Writer) {
	t.Helper()
	for _, w := range []drivers.Write{
		{Values: []uint16{16}},
		{Values: []uint16{1, 2, 0xFFFF}},
		{Function: drivers.WriteSingle, Values: []uint16{60}},
		{Function: drivers.WriteMultiple, Values: []uint16{160}},
		{Function: drivers.WriteMultiple, Values: []uint16{0x4158, 0}}, // 13.5 as a float
	} {
		w.Address, w.Verify = 1000, true
		if err := dev.Write(t.Context(), w); err != nil {
			t.Fatalf("%+v: %v", w, err)
		}
		data, err := dev.ReadRegisters(t.Context(), 3, 1000, uint16(len(w.Values)))
		if err != nil {
			t.Fatal(err)
		}
		want := registers(func(_, _ byte, addr uint16) uint16 { return w.Values[addr] }).data(2, key{3, 0, uint16(len(w.Values))})
		if !slices.Equal(data, want) {
			t.Errorf("wrote %v, read % x", w.Values, data)
		}
	}
	for _, v := range []uint16{drivers.CoilOn, drivers.CoilOff, drivers.CoilOn} {
		if err := dev.Write(t.Context(), drivers.Write{Function: drivers.WriteCoil, Address: 400, Values: []uint16{v}, Verify: true}); err != nil {
			t.Errorf("coil %#x: %v", v, err)
		}
	}
}

// The second independent slave, libmodbus: functions 3 to 6 and 16, to the
// digit. The first is in TestPymodbus.
func TestLibmodbus(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"rtu", "tcp"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			cfg := Config{Timeout: 5 * time.Second, Logger: testLog(t)}
			if kind == "rtu" {
				near, line := openPTY(t)
				far, slave := openPTY(t)
				hold := holdOpen(t, slave)
				defer hold.Close()
				startLibmodbus(t, "rtu", slave, "19200")
				cfg.Device, cfg.Baud, cfg.Timeout = line, 19200, 300*time.Millisecond
				defer splice(near, far)()
			} else {
				cfg.TCP = fmt.Sprintf("127.0.0.1:%d", startLibmodbus(t, "tcp", "0"))
			}
			l, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer running(l)()
			dev := l.Device(DeviceConfig{Unit: 2, Name: "wallbox"})
			for _, k := range []key{{3, 0, 1}, {4, 0, 125}, {3, 1200, 2}, {4, 1875, 125}, {4, 1999, 1}} {
				data, err := dev.ReadRegisters(t.Context(), drivers.Function(k.fn), k.addr, k.count)
				if err != nil {
					t.Error(err)
				} else if !slices.Equal(data, registers(addressed).data(2, k)) {
					t.Errorf("%+v: % x", k, data)
				}
			}
			writePeer(t, dev)
			// Past its last register it refuses, and we say so.
			if data, err := dev.ReadRegisters(t.Context(), 4, 1999, 2); err == nil {
				t.Errorf("registers 1999 and 2000: % x", data)
			}
		})
	}
}
