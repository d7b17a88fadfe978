package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// writeCapture writes a capture in which a host writes a Modbus register
// three times.
func writeCapture(t *testing.T) string {
	t.Helper()
	var file bytes.Buffer
	w := pcapgo.NewWriter(&file)
	_ = w.WriteFileHeader(65536, layers.LinkTypeEthernet)
	for i := range 3 {
		eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 7}, DstMAC: []byte{2, 0, 0, 0, 0, 8}, EthernetType: layers.EthernetTypeIPv4}
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: []byte{192, 0, 2, 7}, DstIP: []byte{192, 0, 2, 8}}
		tcp := &layers.TCP{SrcPort: 40000, DstPort: 502, ACK: true, Seq: uint32(12 * i)}
		_ = tcp.SetNetworkLayerForChecksum(ip)
		buf := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, tcp, gopacket.Payload{0, 1, 0, 0, 0, 6, 1, 6, 0, 40, 0, 1}); err != nil {
			t.Fatal(err)
		}
		at := time.Date(2026, 3, 1, 12, 0, i, 0, time.UTC)
		_ = w.WritePacket(gopacket.CaptureInfo{Timestamp: at, Length: len(buf.Bytes()), CaptureLength: len(buf.Bytes())}, buf.Bytes())
	}
	path := filepath.Join(t.TempDir(), "capture.pcap")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestGuardReplay(t *testing.T) {
	path := writeCapture(t)
	policy := func(text string) string {
		p := filepath.Join(t.TempDir(), "policy.yaml")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	counts := `{"packets":3,"decode_errors":0}` + "\n"
	finding := `{"rule":"modbus.write_unauthorised","severity":"high","subject":{"kind":"host","value":"192.0.2.7"},"count":3,"first":"2026-03-01T12:00:00Z","last":"2026-03-01T12:00:02Z","evidence":{"device":"192.0.2.8","function":"6","register":"40","unit":"1"}}` + "\n"
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		out    string
		errOut string
	}{
		{"nobody may write", []string{path}, 0, finding + counts, ""},
		{"--json changes nothing", []string{path, "--json"}, 0, finding + counts, ""},
		{"a writer may", []string{path, "--policy", policy("modbus: {writers: [192.0.2.7]}\n")}, 0, counts, ""},
		{"a policy that nobody understands", []string{path, "--policy", policy("modbus:\n  writer: [192.0.2.7]\n")}, 1, "", "[2:3]"},
		{"no capture", []string{filepath.Join(t.TempDir(), "none")}, 1, "", "none"},
		{"no argument", nil, 2, "", "accepts 1 arg"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code := run(t.Context(), append([]string{"guard", "replay"}, tt.args...), strings.NewReader(""), &out, &errOut)
			if code != tt.code || out.String() != tt.out || !strings.Contains(errOut.String(), tt.errOut) || tt.errOut == "" && errOut.Len() > 0 {
				t.Errorf("exit %d\n%s%s\nwant %d\n%s", code, out.String(), errOut.String(), tt.code, tt.out)
			}
		})
	}
}

// TestGuardReplayOfATornFile prints what there was, and fails.
func TestGuardReplayOfATornFile(t *testing.T) {
	raw, err := os.ReadFile(writeCapture(t))
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	code := run(t.Context(), []string{"guard", "replay", "-"}, bytes.NewReader(raw[:len(raw)-10]), &out, &errOut)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var last map[string]int
	if code != 1 || len(lines) != 2 || json.Unmarshal([]byte(lines[1]), &last) != nil || last["packets"] != 2 {
		t.Errorf("exit %d\n%s%s", code, out.String(), errOut.String())
	}
}
