package packet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/joulegate/joulegate/guard"
)

func captureFile(t testing.TB, name string) []byte {
	t.Helper()
	dir := os.Getenv("JOULEGATE_TESTDATA")
	if dir == "" {
		t.Skip("JOULEGATE_TESTDATA is not set: the public captures (captures) are not there to replay")
	}
	b, err := os.ReadFile(filepath.Join(dir, "captures", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func replay(t testing.TB, raw []byte, r Rules) ([]guard.Finding, Counts) {
	t.Helper()
	var all []guard.Finding
	c, err := Replay(context.Background(), bytes.NewReader(raw), r, slog.New(slog.DiscardHandler), func(f guard.Finding) { all = append(all, f) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	return all, c
}

// TestPublicCaptures replays other people's captures: what each must show is
// written down beside them.
func TestPublicCaptures(t *testing.T) {
	for _, tt := range []struct {
		file    string
		packets uint64
		want    string // rule subject xcount, ...
	}{
		{"zk-modbusSmall.pcap", 166, "modbus.write_unauthorised 118.189.96.132 x8"},
		{"zk-modbus-fuzz-1011.pcap", 6, "modbus.protocol_violation 10.1.1.234 x1"},
		{"zk-modbus-eit.pcap", 4, ""},
		{"iti-modbus_test.pcap", 2257, "modbus.write_unauthorised 192.168.0.156 x63"},
		{"iti-modbus-p1.pcap", 118, "modbus.illegal_function 10.0.0.57 x8, modbus.write_unauthorised 10.0.0.9 x3, modbus.protocol_violation 10.0.0.57 x4, modbus.protocol_violation 10.0.0.8 x11, modbus.exception_storm 10.0.0.57 x14"},
		{"sv-modbus.pcap", 99, "modbus.illegal_function 10.0.0.57 x8, modbus.write_unauthorised 10.0.0.9 x3, modbus.protocol_violation 10.0.0.57 x4, modbus.protocol_violation 10.0.0.8 x5, modbus.exception_storm 10.0.0.57 x9"},
		{"ic-modbus.pcap", 100, "modbus.write_unauthorised 127.0.0.1 x9, modbus.illegal_function 127.0.0.1 x5, modbus.function_scan 127.0.0.1 x1"},
		{"sv-mqtt311-userpass.pcap", 12, "mqtt.cleartext_credentials ::1 x1"},
		{"zk-mqtt.pcap", 19, ""},
		{"zk-dhcp.pcap", 9, ""},
		{"sv-arp2.pcap", 6, ""},
		{"cs-arp_gratuitous.pcapng", 1, ""},
		{"cs-arppoison.pcapng", 165, "arp.spoof 172.16.0.1 x2"},
		{"cs-synscan.pcapng", 2011, "tcp.port_scan 172.16.0.8 x1"},
		{"sv-synflood.pcap", 200, "tcp.syn_flood 192.0.2.10 x1"},
		{"zk-ftp-bruteforce.pcap", 606, "auth.brute_force 192.168.56.1 x30"},
		{"zk-tls-chrome34.pcap", 42, ""},
	} {
		t.Run(tt.file, func(t *testing.T) {
			all, counts := replay(t, captureFile(t, tt.file), Rules{})
			var got []string
			for _, f := range all {
				got = append(got, fmt.Sprintf("%s %s x%d", f.Rule, f.Subject.Value, f.Count))
				text, err := json.Marshal(f)
				if err != nil {
					t.Fatal(err)
				}
				for _, secret := range []string{"abc123", "myvoiceismypassport", "Login", "bro\""} {
					if strings.Contains(string(text), secret) {
						t.Errorf("%s stands in %s", secret, text)
					}
				}
				if rule, ok := guard.RuleOf(f.Rule); !ok || rule.Sensor != guard.Packet || f.Severity < guard.Info || f.First.After(f.Last) || f.First.Year() < 2000 {
					t.Errorf("%+v", f)
				}
			}
			if s := strings.Join(got, ", "); s != tt.want || counts != (Counts{Packets: tt.packets}) {
				t.Errorf("%+v\ngot  %s\nwant %s", counts, s, tt.want)
			}
		})
	}
}

// TestPublicCapturesInDetail asks what counts alone do not tell.
func TestPublicCapturesInDetail(t *testing.T) {
	t.Run("an allowed writer writes", func(t *testing.T) {
		all, _ := replay(t, captureFile(t, "iti-modbus_test.pcap"), Rules{Network: Network{Writers: []netip.Addr{mustAddr("192.168.0.156")}}})
		if len(all) > 0 {
			t.Errorf("%+v", all)
		}
	})
	t.Run("FTP is not called SSH", func(t *testing.T) {
		all, _ := replay(t, captureFile(t, "zk-ftp-bruteforce.pcap"), Rules{})
		if len(all) != 1 || all[0].Evidence["protocol"] != "ftp" {
			t.Errorf("%+v", all)
		}
	})
	t.Run("every port of the scan counts", func(t *testing.T) {
		all, _ := replay(t, captureFile(t, "cs-synscan.pcapng"), Rules{})
		if len(all) != 1 || all[0].Evidence["probes"] != "1994" {
			t.Errorf("%+v", all)
		}
	})
	t.Run("SNI is read", func(t *testing.T) {
		asked := &filterAnswers{}
		all, _ := replay(t, captureFile(t, "zk-tls-chrome34.pcap"), Rules{Answers: asked})
		if asked.name != "google.de" || len(all) != 1 || all[0].Rule != guard.TLSSNIMismatch || all[0].Evidence["server_name"] != "google.de" {
			t.Errorf("asked for %q, found %+v", asked.name, all)
		}
	})
	t.Run("diagnostics say what they do", func(t *testing.T) {
		all, _ := replay(t, captureFile(t, "iti-modbus-p1.pcap"), Rules{})
		if all[0].Severity != guard.High || !strings.Contains(all[0].Evidence["means"], "silent") {
			t.Errorf("%+v", all[0])
		}
	})
}

// filterAnswers is a domain filter that was asked for nothing.
type filterAnswers struct{ name string }

func (f *filterAnswers) Asks(netip.Addr) bool { return true }
func (f *filterAnswers) Answered(name string, _ netip.Addr) bool {
	f.name = name
	return false
}

// captured is all frames of all captures, in memory.
type captured struct {
	link   layers.LinkType
	frames [][]byte
	at     []int64
	sizes  []int
}

func load(t testing.TB) []captured {
	t.Helper()
	dir := os.Getenv("JOULEGATE_TESTDATA")
	if dir == "" {
		t.Skip("JOULEGATE_TESTDATA is not set: the public captures (captures) are not there to replay")
	}
	files, err := filepath.Glob(filepath.Join(dir, "captures", "*.pcap*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	var all []captured
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		next, err := openCapture(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		var c captured
		for {
			data, at, size, link, err := next()
			if err != nil {
				break
			}
			c.link = link
			c.frames, c.at, c.sizes = append(c.frames, bytes.Clone(data)), append(c.at, at.UnixNano()), append(c.sizes, size)
		}
		all = append(all, c)
	}
	return all
}
