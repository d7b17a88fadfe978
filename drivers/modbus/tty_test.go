package modbus

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReplug pulls the adapter during operation, by closing the master of a
// pseudo-terminal, and plugs another one in under the same name.
func TestReplug(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "ttyUSB0")
	plug := func() *os.File {
		master, name := openPTY(t)
		if err := os.Symlink(name, link); err != nil {
			t.Fatal(err)
		}
		serveRTU(master, func(req []byte) []sending { return []sending{{0, registers(addressed).reply(req)}} })
		return master
	}
	master := plug()
	l, err := New(Config{Device: link, Baud: 115200, Timeout: 100 * time.Millisecond, Logger: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer running(l)()
	dev := l.Device(DeviceConfig{Unit: 1, Name: "grid"})
	read := func() error {
		data, err := dev.ReadRegisters(t.Context(), 3, 7, 2)
		if err == nil && !slices.Equal(data, registers(addressed).data(1, key{3, 7, 2})) {
			t.Fatalf("got % x", data)
		}
		return err
	}
	for end := time.Now().Add(20 * time.Second); ; {
		err := read()
		if err == nil {
			break
		}
		if time.Now().After(end) { // a busy machine answers late
			t.Fatal(err)
		}
	}
	os.Remove(link)
	master.Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := read()
		if err != nil && strings.Contains(err.Error(), "no such device; is the adapter plugged in?") {
			if !errors.Is(err, ErrLineDown) {
				t.Errorf("%v is not ErrLineDown", err)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the loss is not reported: %v", err)
		}
	}
	plug()
	for end := time.Now().Add(20 * time.Second); read() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the line does not come back")
		}
	}
	if n := l.Stats().Opened; n != 2 {
		t.Errorf("opened %d times, want 2", n)
	}
}

// TestAbsentAtFirst starts a line before its adapter is plugged in. A wrong
// device is an error all the same.
func TestAbsentAtFirst(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "ttyUSB0")
	if _, err := New(Config{Device: "/dev/null", Absent: true}); err == nil || !strings.Contains(err.Error(), "not a serial device") {
		t.Errorf("no serial device: %v", err)
	}
	l, err := New(Config{Device: link, Baud: 115200, Timeout: 100 * time.Millisecond, Logger: testLog(t), Absent: true})
	if err != nil {
		t.Fatal(err)
	}
	defer running(l)()
	dev := l.Device(DeviceConfig{Unit: 1, Name: "grid"})
	if _, err := dev.ReadRegisters(t.Context(), 3, 7, 2); !errors.Is(err, ErrLineDown) || !strings.Contains(err.Error(), "is the adapter plugged in?") {
		t.Errorf("without an adapter: %v", err)
	}
	master, name := openPTY(t)
	serveRTU(master, func(req []byte) []sending { return []sending{{0, registers(addressed).reply(req)}} })
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err = dev.ReadRegisters(t.Context(), 3, 7, 2); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the line does not come: %v", err)
		}
	}
}

// Two programs on one line would read each other's answers.
func TestDeviceIsExclusive(t *testing.T) {
	_, name := openPTY(t)
	l, err := New(Config{Device: name})
	if err != nil {
		t.Fatal(err)
	}
	defer l.detach()
	if _, err := New(Config{Device: name}); err == nil || !strings.Contains(err.Error(), "in use by another program") {
		t.Errorf("opened twice: %v", err)
	}
}

// The settings arrive at the device. A pseudo-terminal drops parity and takes
// the rest.
func TestSerialSettings(t *testing.T) {
	master, name := openPTY(t)
	for _, tt := range []struct {
		baud  int
		frame string
		stop2 bool
	}{{9600, "8N1", false}, {115200, "8N2", true}, {250000, "8E1", false}, {12345, "8N1", false}} {
		l, err := New(Config{Device: name, Baud: tt.baud, Framing: tt.frame})
		if err != nil {
			t.Fatal(err)
		}
		rc, err := master.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		rc.Control(func(fd uintptr) {
			got, err := unix.IoctlGetTermios(int(fd), unix.TCGETS2)
			if err != nil {
				t.Error(err)
				return
			}
			if int(got.Ospeed) != tt.baud || got.Cflag&unix.CSTOPB != 0 != tt.stop2 || got.Lflag&(unix.ECHO|unix.ICANON) != 0 || got.Iflag&unix.IXON != 0 {
				t.Errorf("%d %s: device has %d baud, cflag %#x, lflag %#x, iflag %#x", tt.baud, tt.frame, got.Ospeed, got.Cflag, got.Lflag, got.Iflag)
			}
		})
		l.detach()
	}
}

// An answer to an earlier process arrives after the start.
func TestListensBeforeItAsks(t *testing.T) {
	t.Parallel()
	master, name := openPTY(t)
	late := registers(addressed).reply(seal(1, 3, 0, 40, 0, 2))
	l, err := New(Config{Device: name, Baud: 115200, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer running(l)()
	time.Sleep(30 * time.Millisecond)
	if _, err := master.Write(late); err != nil {
		t.Fatal(err)
	}
	serveRTU(master, func(req []byte) []sending { return []sending{{0, registers(addressed).reply(req)}} })
	data, err := l.Device(DeviceConfig{Unit: 1}).ReadRegisters(t.Context(), 3, 7, 2)
	if err != nil {
		t.Fatal(err)
	}
	if want := registers(addressed).data(1, key{3, 7, 2}); !slices.Equal(data, want) {
		t.Errorf("got % x, want % x", data, want)
	}
}
