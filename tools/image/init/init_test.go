package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestNetwork reads what an installer writes, and says what is wrong with it.
func TestNetwork(t *testing.T) {
	for text, want := range map[string]netConfig{
		"":                         {},
		"name: north\ngrid: jg1.x": {},
		"network: {}":              {},
		"network: {ntp: [192.0.2.1]}\nname: north":                                                    {NTP: []string{"192.0.2.1"}},
		"network: {address: 192.0.2.7/24, gateway: 192.0.2.1, dns: [192.0.2.1, 2001:db8::1]}\nx: [1]": {Address: "192.0.2.7/24", Gateway: "192.0.2.1", DNS: []string{"192.0.2.1", "2001:db8::1"}},
	} {
		got, given, err := parseNetwork([]byte(text))
		if err != nil || got.Address != want.Address || got.Gateway != want.Gateway || !slices.Equal(got.DNS, want.DNS) || !slices.Equal(got.NTP, want.NTP) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		if given != strings.Contains(text, "network:") {
			t.Errorf("%q: given %t", text, given)
		}
	}
	for _, text := range []string{
		"network: {address: 192.0.2.7}", "network: {address: '2001:db8::7/64'}", "network: {address: 192.0.2.7/24, gateway: 198.51.100.1}",
		"network: {address: 192.0.2.7/24, dns: [router]}", "network: {gateway: 192.0.2.1}", "network: [", "network: 7", strings.Repeat("#", maxSetup+1),
	} {
		if _, _, err := parseNetwork([]byte(text)); err == nil {
			t.Errorf("%.60q is taken", text)
		}
	}
}

func FuzzNetwork(f *testing.F) {
	f.Add([]byte("network: {address: 192.0.2.7/24, gateway: 192.0.2.1, dns: [192.0.2.1]}"))
	f.Add([]byte("network:\n  ntp: [\"192.0.2.1:123\"]\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, given, err := parseNetwork(b); err == nil && !given && (c.Address != "" || len(c.DNS) > 0) {
			t.Errorf("%+v from nothing", c)
		}
	})
}

func FuzzOrder(f *testing.F) {
	for _, s := range []string{"reboot\n", "reboot 0 tryboot\n", "poweroff\n", "reboot 1 x\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseOrder(s)
		if err == nil && (o.arg != "" && o.arg != "0 tryboot" || o.arg != "" && !o.restart) {
			t.Errorf("%q: %+v", s, o)
		}
	})
}

// TestGrown takes the rest of a larger card, once, and never less than there
// was.
func TestGrown(t *testing.T) {
	const start, size = 663552, 524288
	table := func() []byte {
		b := make([]byte, 512)
		b[510], b[511] = 0x55, 0xaa
		binary.LittleEndian.PutUint32(b[446+48+8:], start)
		binary.LittleEndian.PutUint32(b[446+48+12:], size)
		return b
	}
	for _, c := range []struct {
		sectors, end uint64
		changed      bool
	}{
		{start + size, start + size, false},
		{start + size + 8191, start + size, false}, // less than a step
		{start + size - 1, start + size, false},    // a card that lies: the kernel says so
		{62333952, 62333952 / 8192 * 8192, true},   // 32 GB
		{1 << 33, 1 << 32, true},                   // 4 TB
	} {
		b := table()
		s, l, changed := grown(b, 4, c.sectors)
		if s != start || s+l != c.end || changed != c.changed {
			t.Errorf("%d sectors: %d + %d, %t", c.sectors, s, l, changed)
		}
		if !changed && !bytes.Equal(b, table()) {
			t.Errorf("%d sectors: the record has changed", c.sectors)
		}
		if _, _, changed := grown(b, 4, c.sectors); changed {
			t.Errorf("%d sectors: it grows again", c.sectors)
		}
	}
	if _, _, changed := grown(make([]byte, 512), 4, 1<<30); changed {
		t.Error("a disk without a record is written to")
	}
}

// TestDevices hands over what is there and names adapters as udev does.
func TestDevices(t *testing.T) {
	root := t.TempDir()
	file := func(name, text string) {
		name = filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"ttyUSB0", "ttyAMA0", "gpiochip0", "watchdog0", "mmcblk0", "mem", "tty1"} {
		file("dev/"+d, "")
	}
	const usb = "sys/devices/usb1/1-1"
	file(usb+"/idVendor", "0403\n")
	file(usb+"/idProduct", "6001\n")
	file(usb+"/manufacturer", "FTDI\n")
	file(usb+"/product", "FT232R USB/UART\n")
	file(usb+"/serial", "A1\n")
	file(usb+"/1-1:1.0/bInterfaceNumber", "00\n")
	file(usb+"/1-1:1.0/ttyUSB0/latency_timer", "16")
	if err := os.MkdirAll(filepath.Join(root, "sys/class/tty/ttyUSB0"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, usb, "1-1:1.0/ttyUSB0"), filepath.Join(root, "sys/class/tty/ttyUSB0/device")); err != nil {
		t.Fatal(err)
	}
	var owned []string
	d := &devices{log: &logger{console: t.Output()}, root: root, own: func(p string) error {
		owned = append(owned, filepath.Base(p))
		return nil
	}}
	d.scan()
	slices.Sort(owned)
	if want := []string{"gpiochip0", "ttyAMA0", "ttyUSB0", "watchdog0"}; !slices.Equal(owned, want) {
		t.Errorf("handed over %v, want %v", owned, want)
	}
	link := filepath.Join(root, "dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A1-if00-port0")
	if to, err := filepath.EvalSymlinks(link); err != nil || filepath.Base(to) != "ttyUSB0" {
		t.Errorf("by-id: %s, %v", to, err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, usb, "1-1:1.0/ttyUSB0/latency_timer")); string(b) != "1" {
		t.Errorf("latency %s", b)
	}
	if err := errors.Join(os.Remove(filepath.Join(root, "dev/ttyUSB0")), os.RemoveAll(filepath.Join(root, "sys/class/tty/ttyUSB0"))); err != nil {
		t.Fatal(err)
	}
	d.scan()
	if _, err := os.Lstat(link); err == nil {
		t.Error("the name of an adapter that has gone is still there")
	}
}

// TestLog never fills a card, and keeps the newest.
func TestLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	var console bytes.Buffer
	l := &logger{console: &console}
	l.printf("before there is a card")
	if err := l.open(dir); err != nil {
		t.Fatal(err)
	}
	line := bytes.Repeat([]byte("x"), 1000)
	for range 3 * maxLog / 1000 {
		l.line(line)
	}
	l.printf("the newest")
	l.close()
	var all int64
	for _, name := range []string{"joulegate.log", "joulegate.log.1"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all += st.Size()
	}
	if all > 2*maxLog {
		t.Errorf("%d bytes are kept", all)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "joulegate.log")); !bytes.HasSuffix(b, []byte("the newest\n")) {
		t.Error("the newest line is not in the file")
	}
	if !strings.Contains(console.String(), "before there is a card\n") {
		t.Error("the console lacks a line")
	}
}

// TestWords takes a line of the console apart.
func TestWords(t *testing.T) {
	for line, want := range map[string][]string{
		"":                          nil,
		"  ":                        nil,
		"doctor":                    {"doctor"},
		" commission\tstart  ":      {"commission", "start"},
		`relay test 1 --note "a b"`: {"relay", "test", "1", "--note", "a b"},
		`a '' "it's" b"c d"e`:       {"a", "", "it's", "bc de"},
		"x; reboot && $HOME *":      {"x;", "reboot", "&&", "$HOME", "*"},
	} {
		if got, err := words(line); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
	if _, err := words(`say "hello`); err == nil {
		t.Error("an open quotation is taken")
	}
}
