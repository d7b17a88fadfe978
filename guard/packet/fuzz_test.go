package packet

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/joulegate/joulegate/guard"
)

// everything is a policy under which all detectors run.
func everything(t testing.TB) Rules {
	r := baseline(t, "203.0.113.0/24", "time.example.org")
	r.Answers = &filterAnswers{}
	r.shrink = 5
	return r
}

func captureSeeds() [][]byte {
	files, _ := filepath.Glob(filepath.Join(os.Getenv("JOULEGATE_TESTDATA"), "captures", "*.pcap*"))
	var all [][]byte
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil {
			all = append(all, raw[:min(len(raw), 20_000)])
		}
	}
	return all
}

// FuzzReplay gives whole capture files to everything.
func FuzzReplay(f *testing.F) {
	for _, raw := range captureSeeds() {
		f.Add(raw)
	}
	f.Add([]byte("\xd4\xc3\xb2\xa1\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00\x01\x00\x00\x00"))
	f.Add([]byte("\x0a\x0d\x0d\x0a\x1c\x00\x00\x00\x4d\x3c\x2b\x1a\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x1c\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		log := &panics{t: t}
		_, _ = Replay(context.Background(), bytes.NewReader(raw), everything(t), slog.New(log), func(x guard.Finding) { checkFinding(t, x) }, nil)
	})
}

// panics is a log that fails the test when a part panicked.
type panics struct {
	slog.Handler
	t testing.TB
}

func (*panics) Enabled(context.Context, slog.Level) bool { return true }
func (p *panics) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool { p.t.Error(a.Key, a.Value); return true })
	p.t.Error(r.Message)
	return nil
}

func checkFinding(t testing.TB, f guard.Finding) {
	if r, ok := guard.RuleOf(f.Rule); !ok || r.Sensor != guard.Packet || f.Count == 0 || f.Evidence == nil || len(f.Evidence) > guard.MaxEvidence {
		t.Errorf("%+v", f)
	}
	for _, c := range []byte(f.Subject.Value) {
		if c <= ' ' || c >= 0x7f {
			t.Errorf("subject %q", f.Subject.Value)
		}
	}
}

// FuzzFrame gives single frames, of any link type, twice.
func FuzzFrame(f *testing.F) {
	f.Add(uint8(1), arpFrame(f, layers.ARPReply, router, macOf(router)))
	f.Add(uint8(1), dhcpFrame(f, macOf(router), router, layers.DHCPMsgTypeOffer, 1))
	f.Add(uint8(1), udpFrame(f, gateway, 4000, router, 53, dnsMessage(f, false, "a.example.org", dnsmessage.TypeA)))
	f.Add(uint8(1), tcpFrame(f, gateway6, 4000, "2001:db8::1", 443, ack, 7, helloOf(f, "a.example.org", 10)))
	f.Add(uint8(101), tcpFrame(f, gateway, 4000, inverter, 502, ack, 7, modbusADU(1, 3, 0, 0, 0, 1))[14:])
	f.Add(uint8(20), make([]byte, 60))
	f.Fuzz(func(t *testing.T, link uint8, frame []byte) {
		g := newEngine(everything(t), layers.LinkType(link), 0, func(x guard.Finding) { checkFinding(t, x) }, slog.New(&panics{t: t}))
		for i := range 2 {
			g.frame(frame, time.Duration(i)*time.Second, int64(i)*1e9, len(frame), false)
		}
		g.sink.flush(0)
	})
}

// fuzzPayload gives payloads between hosts to everything: a script of
// segments, each one byte of direction and gap, one of length, and bytes.
func fuzzPayload(f *testing.F, port uint16, udp bool, seeds ...[]byte) {
	for _, s := range seeds {
		script := []byte{}
		for len(s) > 0 {
			n := min(len(s), 200)
			script = append(append(script, 0, byte(n)), s[:n]...)
			s = s[n:]
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		g := newEngine(everything(t), layers.LinkTypeEthernet, 0, func(x guard.Finding) { checkFinding(t, x) }, slog.New(&panics{t: t}))
		w := &wire{t: t, g: g}
		var seq [2]uint32
		frame := func(side byte, flags uint8, p []byte) {
			a, b, sp, dp := gateway, outside, uint16(40000), port
			if side == 1 {
				a, b, sp, dp = b, a, dp, sp
			}
			if udp {
				w.frame(udpFrame(t, a, sp, b, dp, p))
			} else {
				w.frame(tcpFrame(t, a, sp, b, dp, flags, seq[side], p))
			}
		}
		frame(0, syn, nil)
		seq[0]++
		for i := 0; len(script) >= 2 && i < 64; i++ {
			how, n := script[0], min(int(script[1]), len(script)-2)
			p := script[2 : 2+n]
			script = script[2+n:]
			seq[how&1] += uint32(int8(how) >> 4) // gaps and overlaps
			frame(how&1, ack, p)
			seq[how&1] += uint32(n)
			w.pass(100 * time.Millisecond)
		}
		frame(0, fin|ack, nil)
		g.sink.flush(w.now)
	})
}

func FuzzModbus(f *testing.F) {
	fuzzPayload(f, 502, false, modbusADU(1, 3, 0, 0, 0, 1), modbusADU(1, readWrite, 0, 0, 0, 1, 0, 1, 0, 1, 2, 0, 0), modbusADU(1, 0x83, 2), []byte{0, 1, 0, 0, 0x88, 4, 5})
}

func FuzzHello(f *testing.F) {
	fuzzPayload(f, 443, false, helloOf(f, "a.example.org", 300), []byte("GET / HTTP/1.1\r\nHost: a.example.org\r\nAuthorization: Basic x\r\n\r\n"))
}

func FuzzMQTT(f *testing.F) {
	fuzzPayload(f, 1883, false, []byte("\x10\x0c\x00\x04MQTT\x04\xc2\x00\x3c\x00\x00"), []byte("\x10\xff\xff\x7f\x00\x06MQIsdp\x03\x02"))
}

func FuzzLogins(f *testing.F) {
	fuzzPayload(f, 21, false, []byte("USER a\r\nPASS b\r\n"), []byte("SSH-2.0-x\r\n"), []byte{iac, 253, 1})
}

func FuzzDNS(f *testing.F) {
	fuzzPayload(f, 53, true, dnsMessage(f, false, "a.example.org", dnsmessage.TypeTXT), dnsMessage(f, true, "a.example.org", dnsmessage.TypeA, "192.168.1.1", "fd00::1"))
}

func FuzzDNSOverTCP(f *testing.F) {
	m := dnsMessage(f, false, "a.example.org", dnsmessage.TypeTXT)
	fuzzPayload(f, 53, false, append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
}

func FuzzDHCP(f *testing.F) {
	fuzzPayload(f, 67, true, dhcpFrame(f, macOf(router), "", layers.DHCPMsgTypeOffer, 1)[42:])
}

// FuzzARP gives ARP packets among IP frames.
func FuzzARP(f *testing.F) {
	f.Add(arpFrame(f, layers.ARPReply, router, macOf(stranger))[14:])
	f.Fuzz(func(t *testing.T, body []byte) {
		w := newWire(t, everything(t))
		for range 2 {
			w.udp(router, 1, gateway, 2, nil)
			w.frame(append(append(append([]byte{}, layers.EthernetBroadcast...), 2, 0, 0, 0, 0, 1, 8, 6), body...))
		}
		for _, x := range w.findings() {
			checkFinding(t, x)
		}
	})
}

// FuzzTCPFlags gives segments of any flags and ports.
func FuzzTCPFlags(f *testing.F) {
	f.Add([]byte{syn, 1, syn, 2, 0, 3, fin, 4, syn | ack, 5, rst, 6, ack, 1})
	f.Fuzz(func(t *testing.T, script []byte) {
		w := newWire(t, everything(t))
		for i := 0; i+1 < len(script) && i < 256; i += 2 {
			a, b := gateway, outside
			if script[i]&0x80 != 0 {
				a, b = b, a
			}
			w.frame(tcpFrame(t, a, uint16(script[i+1]>>4), b, uint16(script[i+1]), script[i], uint32(i), nil))
		}
		for _, x := range w.findings() {
			checkFinding(t, x)
		}
	})
}

// FuzzPolicy: no policy file panics, and what is read can be used.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte("modbus:\n  writers: [192.0.2.7]\nbaseline: [198.51.100.0/24, a.example.org:1]\n"))
	f.Add([]byte("baseline: []\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, err := ParsePolicy(text)
		if err != nil {
			return
		}
		w := newWire(t, Rules{Network: n})
		w.dial(gateway, outside, 443)
		w.findings()
	})
}
