package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/joulegate/joulegate/guard"
)

// wire writes frames to an engine as if they had been captured.
type wire struct {
	t       testing.TB
	g       *engine
	found   []guard.Finding
	now     time.Duration
	charges bool
	seq     map[string]uint32
}

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newWire(t testing.TB, r Rules) *wire {
	w := &wire{t: t, seq: map[string]uint32{}}
	r.Charging = func() bool { return w.charges }
	w.g = newEngine(r, layers.LinkTypeEthernet, 0, func(f guard.Finding) { w.found = append(w.found, f) }, slog.New(slog.DiscardHandler))
	return w
}

// findings ends the capture.
func (w *wire) findings() []guard.Finding {
	w.t.Helper()
	w.g.sink.flush(w.now)
	if w.g.panics > 0 {
		w.t.Errorf("%d panics", w.g.panics)
	}
	return w.found
}

// want ends the capture and compares rule, subject and count.
func (w *wire) want(want ...string) {
	w.t.Helper()
	var got []string
	for _, f := range w.findings() {
		got = append(got, fmt.Sprintf("%s %s %s x%d", f.Rule, f.Severity, f.Subject.Value, f.Count))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Errorf("found %q\nwant  %q", got, want)
	}
}

func (w *wire) pass(d time.Duration) { w.now += d }

func (w *wire) frame(b []byte) {
	w.g.frame(b, w.now, epoch.Add(w.now).UnixNano(), len(b), w.charges)
}

// mac gives every address a hardware address of its own.
func macOf(ip string) net.HardwareAddr {
	h := addrOf(mustAddr(ip)).hash(1).a
	return net.HardwareAddr{2, byte(h), byte(h >> 8), byte(h >> 16), byte(h >> 24), byte(h >> 32)}
}

func serialize(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// ip returns the layers below a transport, for either version.
func ipLayers(from, to string, p layers.IPProtocol) (gopacket.SerializableLayer, gopacket.SerializableLayer, gopacket.NetworkLayer) {
	eth := &layers.Ethernet{SrcMAC: macOf(from), DstMAC: macOf(to), EthernetType: layers.EthernetTypeIPv4}
	if mustAddr(from).Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: p, SrcIP: net.ParseIP(from), DstIP: net.ParseIP(to)}
		return eth, ip, ip
	}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: p, SrcIP: net.ParseIP(from).To4(), DstIP: net.ParseIP(to).To4()}
	return eth, ip, ip
}

func udpFrame(t testing.TB, from string, sport uint16, to string, dport uint16, payload []byte) []byte {
	eth, ip, n := ipLayers(from, to, layers.IPProtocolUDP)
	udp := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	_ = udp.SetNetworkLayerForChecksum(n)
	return serialize(t, eth, ip, udp, gopacket.Payload(payload))
}

func tcpFrame(t testing.TB, from string, sport uint16, to string, dport uint16, flags uint8, seq uint32, payload []byte) []byte {
	eth, ip, n := ipLayers(from, to, layers.IPProtocolTCP)
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Seq: seq, Window: 1000,
		FIN: flags&fin != 0, SYN: flags&syn != 0, RST: flags&rst != 0, PSH: flags&psh != 0, ACK: flags&ack != 0, URG: flags&urg != 0,
	}
	_ = tcp.SetNetworkLayerForChecksum(n)
	return serialize(t, eth, ip, tcp, gopacket.Payload(payload))
}

func (w *wire) udp(from string, sport uint16, to string, dport uint16, payload []byte) {
	w.frame(udpFrame(w.t, from, sport, to, dport, payload))
}

// conn is a TCP conversation.
type conn struct {
	w          *wire
	from, to   string
	sport, dst uint16
	seq        [2]uint32
}

var nextPort uint16 = 40000

// dial opens a connection with a handshake.
func (w *wire) dial(from, to string, port uint16) *conn {
	nextPort++
	c := &conn{w, from, to, nextPort, port, [2]uint32{uint32(nextPort) * 7919, uint32(nextPort) * 104729}}
	c.segment(0, syn, nil)
	c.seq[0]++
	c.segment(1, syn|ack, nil)
	c.seq[1]++
	c.segment(0, ack, nil)
	return c
}

func (c *conn) segment(side int, flags uint8, payload []byte) {
	from, sport, to, dport := c.from, c.sport, c.to, c.dst
	if side == 1 {
		from, sport, to, dport = to, dport, from, sport
	}
	c.w.frame(tcpFrame(c.w.t, from, sport, to, dport, flags, c.seq[side], payload))
}

// send and answer carry a segment in either direction.
func (c *conn) send(payload []byte) {
	c.segment(0, ack|psh, payload)
	c.seq[0] += uint32(len(payload))
}

func (c *conn) answer(payload []byte) {
	c.segment(1, ack|psh, payload)
	c.seq[1] += uint32(len(payload))
}

func (c *conn) close() { c.segment(0, fin|ack, nil) }

// modbusADU puts a header before a PDU.
func modbusADU(unit uint8, pdu ...byte) []byte {
	b := []byte{0, 1, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(pdu)+1))
	return append(append(b, unit), pdu...)
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }
