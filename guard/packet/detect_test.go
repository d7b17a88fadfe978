package packet

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/net/dns/dnsmessage"
	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/guard"
)

const (
	gateway  = "192.168.1.2"
	gateway6 = "fd00::2"
	inverter = "192.168.1.30"
	stranger = "192.168.1.99"
	router   = "192.168.1.1"
	outside  = "198.51.100.9"
)

func TestModbusCountsRequestsNotSegments(t *testing.T) {
	w := newWire(t, Rules{Network: Network{Writers: []netip.Addr{mustAddr(gateway)}}})
	write := modbusADU(1, writeRegister, 0, 40, 0, 1)
	c := w.dial(stranger, inverter, 502)
	c.send([]byte(strings.Repeat(string(write), 5)))                  // five in one segment
	c.send(write[:3])                                                 // one in three
	c.send(write[3:9])                                                //
	c.send(write[9:])                                                 //
	c.seq[0] -= uint32(len(write))                                    // sent again: not another
	c.send(append(write[:len(write):len(write)], write...))           // and one more behind it
	w.dial(gateway, inverter, 502).send(write)                        // may
	w.dial(stranger, inverter, 502).send(modbusADU(1, 3, 0, 0, 0, 2)) // reads
	w.want("modbus.write_unauthorised high 192.168.1.99 x7")
}

func TestModbusWriteWhileChargingIsGraver(t *testing.T) {
	w := newWire(t, Rules{})
	c := w.dial(stranger, inverter, 502)
	c.send(modbusADU(1, writeRegister, 0, 40, 0, 1))
	w.charges = true
	c.send(modbusADU(1, writeRegister, 0, 41, 0, 0))
	w.charges = false
	c.send(modbusADU(1, writeRegister, 0, 42, 0, 0))
	w.want("modbus.write_unauthorised critical 192.168.1.99 x3")
	if e := w.found[0].Evidence; e["charging"] != "yes" || e["register"] != "41" {
		t.Errorf("the evidence is not of the gravest: %v", e)
	}
}

func TestModbusScansOfUnits(t *testing.T) {
	for _, writer := range []bool{false, true} {
		r := Rules{}
		if writer {
			r.Writers = []netip.Addr{mustAddr(stranger)}
		}
		w := newWire(t, r)
		c := w.dial(stranger, inverter, 502)
		for unit := range 60 {
			c.send(modbusADU(uint8(unit+1), 3, 0, 0, 0, 1))
			w.pass(100 * time.Millisecond)
		}
		if writer { // a gateway looks for its devices so
			w.want()
		} else {
			w.want("modbus.function_scan high 192.168.1.99 x1")
		}
	}
}

func TestModbusAfterALostSegmentGoesOn(t *testing.T) {
	w := newWire(t, Rules{})
	write := modbusADU(1, writeRegister, 0, 40, 0, 1)
	c := w.dial(stranger, inverter, 502)
	for i := range 100 {
		if i%10 == 5 {
			c.seq[0] += uint32(len(write)) // the sensor missed it
			continue
		}
		c.send(write)
		w.pass(time.Second)
	}
	w.pass(2 * time.Second)
	c.send(write)
	w.want("modbus.write_unauthorised high 192.168.1.99 x91")
}

func TestFragmentsOfModbusAreTold(t *testing.T) {
	w := newWire(t, Rules{})
	eth, ip, n := ipLayers(stranger, inverter, layers.IPProtocolTCP)
	ip.(*layers.IPv4).Flags = layers.IPv4MoreFragments
	tcp := &layers.TCP{SrcPort: 50000, DstPort: 502, ACK: true}
	_ = tcp.SetNetworkLayerForChecksum(n)
	w.frame(serialize(t, eth, ip, tcp, gopacket.Payload("1234")))
	w.want("modbus.protocol_violation medium 192.168.1.99 x1")
}

func arpFrame(t testing.TB, op uint16, ip string, mac net.HardwareAddr) []byte {
	return serialize(t,
		&layers.Ethernet{SrcMAC: mac, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
			SourceHwAddress: mac, SourceProtAddress: net.ParseIP(ip).To4(), DstHwAddress: make([]byte, 6), DstProtAddress: net.ParseIP(gateway).To4(),
		})
}

func TestARPBindingsComeFromIPToo(t *testing.T) {
	w := newWire(t, Rules{})
	w.udp(router, 5000, gateway, 5001, []byte("x")) // the router's own address, in an IP frame only
	w.pass(time.Second)
	w.frame(arpFrame(t, layers.ARPReply, router, macOf(stranger)))
	w.want("arp.spoof high 192.168.1.1 x1")
}

func TestARPOfAnOrdinaryNetwork(t *testing.T) {
	w := newWire(t, Rules{})
	old, next := macOf(stranger), macOf(inverter)
	for range 10 {
		w.frame(arpFrame(t, layers.ARPReply, stranger, old))
		w.frame(arpFrame(t, layers.ARPRequest, "0.0.0.0", next)) // a probe
		w.udp(outside, 443, gateway, 5001, nil)
		w.pass(20 * time.Second)
	}
	w.pass(2 * time.Minute) // it left; the address is given to another
	w.frame(arpFrame(t, layers.ARPReply, stranger, next))
	w.want()
}

func dhcpFrame(t testing.TB, from net.HardwareAddr, server string, kind layers.DHCPMsgType, client int) []byte {
	mac := net.HardwareAddr{2, 0, 0, 0, byte(client >> 8), byte(client)}
	d := &layers.DHCPv4{
		Operation: layers.DHCPOpRequest, HardwareType: layers.LinkTypeEthernet, HardwareLen: 6, ClientHWAddr: mac,
		ClientIP: net.IPv4zero, YourClientIP: net.IPv4zero, NextServerIP: net.IPv4zero, RelayAgentIP: net.IPv4zero,
		Options: layers.DHCPOptions{layers.NewDHCPOption(layers.DHCPOptMessageType, []byte{byte(kind)})},
	}
	src, sport, dport := "0.0.0.0", uint16(68), uint16(67)
	if server != "" {
		d.Operation, src, sport, dport = layers.DHCPOpReply, server, 67, 68
		d.Options = append(d.Options, layers.NewDHCPOption(layers.DHCPOptServerID, net.ParseIP(server).To4()))
	}
	eth := &layers.Ethernet{SrcMAC: from, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.ParseIP(src).To4(), DstIP: net.IPv4bcast.To4()}
	udp := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	_ = udp.SetNetworkLayerForChecksum(ip)
	return serialize(t, eth, ip, udp, d)
}

func TestDHCPSecondServer(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 3 {
		w.frame(dhcpFrame(t, macOf(router), router, layers.DHCPMsgTypeOffer, i))
		w.frame(dhcpFrame(t, macOf(router), router, layers.DHCPMsgTypeAck, i))
		w.pass(time.Minute)
	}
	w.frame(dhcpFrame(t, macOf(stranger), stranger, layers.DHCPMsgTypeOffer, 1))
	w.want("dhcp.rogue_server high 192.168.1.99 x1")
}

func TestDHCPKnownServer(t *testing.T) {
	w := newWire(t, Rules{Network: Network{DHCPServers: []netip.Addr{mustAddr(router)}}})
	w.frame(dhcpFrame(t, macOf(stranger), stranger, layers.DHCPMsgTypeOffer, 1)) // first, and still wrong
	w.frame(dhcpFrame(t, macOf(router), router, layers.DHCPMsgTypeOffer, 1))
	w.want("dhcp.rogue_server high 192.168.1.99 x1")
}

// TestDHCPFlood: ten thousand requests from as many addresses are one
// finding, live at most one per window.
func TestDHCPFlood(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 10_000 {
		w.frame(dhcpFrame(t, macOf(stranger), "", layers.DHCPMsgTypeDiscover, i))
		w.pass(2 * time.Millisecond)
	}
	w.want(fmt.Sprintf("dhcp.flood medium %s x10000", macOf(stranger)))

	live := newWire(t, Rules{})
	live.g.sink.window = 10 * time.Second
	for i := range 10_000 {
		live.frame(dhcpFrame(t, macOf(stranger), "", layers.DHCPMsgTypeDiscover, i))
		live.pass(2 * time.Millisecond)
	}
	total := uint64(0)
	for _, f := range live.findings() {
		total += f.Count
	}
	if n := len(live.found); n > 4 || total != 10000 {
		t.Errorf("%d findings of %d requests", n, total)
	}
}

func TestDHCPAfterAPowerCut(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 60 { // everything in the house asks within half a minute
		w.frame(dhcpFrame(t, macOf(fmt.Sprint("192.168.1.", i+1)), "", layers.DHCPMsgTypeDiscover, i))
		w.frame(dhcpFrame(t, macOf(fmt.Sprint("192.168.1.", i+1)), "", layers.DHCPMsgTypeRequest, i))
		w.pass(time.Second)
	}
	w.want()
}

// A scan that never pauses is found again and again, so that a block that has
// ended is renewed; not at every packet.
func TestTCPScanThatGoesOn(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 2000 {
		w.frame(tcpFrame(t, stranger, 40000, inverter, uint16(1000+i), syn, uint32(i), nil))
		w.pass(time.Second)
	}
	w.want("tcp.port_scan medium 192.168.1.99 x4")
}

func TestTCPSweepOfTheLocalNetwork(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 100 {
		w.frame(tcpFrame(t, stranger, 40000, fmt.Sprint("192.168.1.", i+100), 502, syn, 1, nil))
	}
	w.want("tcp.port_scan medium 192.168.1.99 x1")
}

func TestTCPScansWithoutSYN(t *testing.T) {
	for _, flags := range []uint8{0, fin, fin | psh | urg} {
		w := newWire(t, Rules{})
		for port := range uint16(50) {
			w.frame(tcpFrame(t, stranger, 40000, inverter, 1000+port, flags, 1, nil))
		}
		w.want("tcp.port_scan medium 192.168.1.99 x1")
	}
}

func TestTCPFloodFromForgedSourcesNamesTheTarget(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 5000 {
		w.frame(tcpFrame(t, fmt.Sprintf("10.1.%d.%d", i/250, i%250+1), 40000, inverter, 502, syn, uint32(i), nil))
	}
	w.want("tcp.syn_flood medium 192.168.1.30 x1")
}

func TestTCPBusyServerIsNotFlooded(t *testing.T) {
	w := newWire(t, Rules{})
	for range 1000 {
		w.dial(stranger, gateway, 443)
		w.pass(time.Millisecond)
	}
	w.want()
}

func dnsMessage(t testing.TB, response bool, name string, qtype dnsmessage.Type, answers ...string) []byte {
	t.Helper()
	n := dnsmessage.MustNewName(name + ".")
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, Response: response})
	b.EnableCompression()
	_ = b.StartQuestions()
	_ = b.Question(dnsmessage.Question{Name: n, Type: qtype, Class: dnsmessage.ClassINET})
	_ = b.StartAnswers()
	for _, a := range answers {
		h := dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 60}
		if ip := mustAddr(a); ip.Is4() {
			_ = b.AResource(h, dnsmessage.AResource{A: ip.As4()})
		} else {
			_ = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: ip.As16()})
		}
	}
	msg, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func (w *wire) ask(name string, qtype dnsmessage.Type) {
	w.udp(gateway, 33000, router, 53, dnsMessage(w.t, false, name, qtype))
}

func (w *wire) told(name string, answers ...string) {
	w.udp(router, 53, gateway, 33000, dnsMessage(w.t, true, name, dnsmessage.TypeA, answers...))
}

func TestDNSTunnel(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 100 {
		w.ask(fmt.Sprintf("%060x.t.evil.example", i*7919), dnsmessage.TypeTXT)
		w.pass(time.Second)
	}
	w.want("dns.tunnel high evil.example x100")
}

func TestDNSOfAnOrdinaryDay(t *testing.T) {
	w := newWire(t, Rules{})
	for i := range 500 {
		w.ask(fmt.Sprintf("r%d---sn-4g5e6nz.video.example", i%24), dnsmessage.TypeA)
		w.told(fmt.Sprintf("r%d---sn-4g5e6nz.video.example", i%24), outside)
		w.ask(fmt.Sprintf("%d.1.168.192.in-addr.arpa", i%256), dnsmessage.TypePTR)
		w.ask("www.example.org", 65)
		w.told("blocked.example.org", "0.0.0.0", "::") // a filter's answer
		w.told("nas.lan", "192.168.1.40")
		w.pass(3 * time.Second)
	}
	w.want()
}

func TestDNSRebindAndTypes(t *testing.T) {
	w := newWire(t, Rules{})
	w.told("rebind.Evil.example", "198.51.100.9", "192.168.1.30")
	w.told("rebind6.evil.example", "fd00::1")
	w.pass(time.Second)
	w.ask("x.evil.example", 10)  // NULL
	w.ask("x.evil.example", 252) // AXFR
	w.want("dns.rebind high rebind.evil.example x1", "dns.rebind high rebind6.evil.example x1", "dns.suspicious_type low 192.168.1.2 x2")
}

func TestDNSBypass(t *testing.T) {
	w := newWire(t, Rules{Network: Network{Resolvers: []netip.Addr{mustAddr(router), mustAddr("9.9.9.9")}}})
	w.ask("www.example.org", dnsmessage.TypeA)
	w.dial(router, "9.9.9.9", 853) // ours asks its own
	w.dial(gateway, "9.9.9.9", 443)
	w.dial(gateway, outside, 443)
	w.want()
	w.dial(gateway, "8.8.8.8", 443)
	w.dial(gateway6, "2606:4700:4700::1111", 443)
	w.dial(gateway, "203.0.113.5", 853)
	w.udp(gateway, 33001, "203.0.113.6", 53, dnsMessage(t, false, "www.example.org", dnsmessage.TypeA))
	w.dial(gateway, "203.0.113.7", 443).send(helloOf(t, "cloudflare-dns.com", 0))
	w.want("dns.doh_bypass low 203.0.113.5 x1", "dns.doh_bypass low 203.0.113.6 x1", "dns.doh_bypass low 203.0.113.7 x1",
		"dns.doh_bypass low 2606:4700:4700::1111 x1", "dns.doh_bypass low 8.8.8.8 x1")
}

func TestNameThatNobodyLookedUp(t *testing.T) {
	w := newWire(t, Rules{})
	w.told("innocent.example.org", outside)
	w.told("other.example.org", "203.0.113.9")
	w.dial(gateway, outside, 443).send(helloOf(t, "innocent.example.org", 0))
	w.dial(gateway, outside, 443).send(helloOf(t, "other.example.org", 0)) // looked up: a shared server
	w.dial(gateway, outside, 80).send([]byte("GET / HTTP/1.1\r\nHost: innocent.example.org:80\r\n\r\n"))
	w.dial(gateway, outside, 80).send([]byte("GET / HTTP/1.1\r\nHost: 198.51.100.9\r\n\r\n"))
	w.dial(gateway, "203.0.113.77", 443).send(helloOf(t, "cached.example.org", 0)) // from before the capture
	w.want()
	w.dial(gateway, outside, 443).send(helloOf(t, "hidden.example.net", 0))
	w.dial(gateway, outside, 80).send([]byte("GET / HTTP/1.1\r\nHost: hidden2.example.net\r\n\r\n"))
	w.want("tls.sni_mismatch low 198.51.100.9 x2")
}

// household is a filter that knows what its clients were told.
type household map[string]string

func (household) Asks(c netip.Addr) bool                 { return c == mustAddr(gateway) }
func (h household) Answered(n string, a netip.Addr) bool { return h[n] == a.String() }

func TestNamesAgainstTheFiltersAnswers(t *testing.T) {
	w := newWire(t, Rules{Answers: household{"ocpp.example.org": outside}})
	w.dial(gateway, outside, 443).send(helloOf(t, "ocpp.example.org", 2500))
	w.dial(stranger, outside, 443).send(helloOf(t, "anything.example.org", 0)) // does not use the filter
	w.want()
	w.dial(gateway, "203.0.113.7", 443).send(helloOf(t, "ocpp.example.org", 0)) // another address
	w.want("tls.sni_mismatch low 203.0.113.7 x1")
}

func TestLoginsOfManyKinds(t *testing.T) {
	for _, tt := range []struct {
		protocol string
		attempts int
		attempt  func(w *wire)
	}{
		{"ftp", 10, func(w *wire) {
			c := w.dial(stranger, gateway, 2121) // not its port
			c.answer([]byte("220 ready\r\n"))
			c.send([]byte("USER root\r\n"))
			c.answer([]byte("331 password\r\n"))
			c.send([]byte("PASS hunter2\r\n"))
			c.answer([]byte("530 no\r\n"))
			c.close()
		}},
		{"telnet", 10, func(w *wire) {
			c := w.dial(stranger, gateway, 23)
			c.answer([]byte{iac, 253, 1})
			c.answer([]byte("login: "))
			c.send([]byte("root\r\n"))
			c.send([]byte("hunter2\r\n"))
			c.answer([]byte("\r\nLogin incorrect\r\nlogin: "))
			c.close()
		}},
		{"http", 10, func(w *wire) {
			c := w.dial(stranger, gateway, 80)
			c.send([]byte("GET / HTTP/1.1\r\nHost: 192.168.1.2\r\n\r\n"))
			c.answer([]byte("HTTP/1.1 401 Unauthorized\r\n\r\n")) // the question, not a failure
			c.send([]byte("GET / HTTP/1.1\r\nHost: 192.168.1.2\r\nAuthorization: Basic cm9vdDpodW50ZXIy\r\n\r\n"))
			c.answer([]byte("HTTP/1.1 401 Unauthorized\r\n\r\n"))
			c.close()
		}},
		{"mqtt", 10, func(w *wire) {
			c := w.dial(stranger, gateway, 1883)
			c.send([]byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"))
			c.answer([]byte{mqttConnackByte, 2, 0, 5})
			c.close()
		}},
		{"ssh", 30, func(w *wire) {
			c := w.dial(stranger, gateway, 22)
			c.answer([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
			c.send([]byte("SSH-2.0-hydra\r\n"))
			c.send(make([]byte, 1200))
			c.answer(make([]byte, 1000))
			c.close()
		}},
	} {
		t.Run(tt.protocol, func(t *testing.T) {
			w := newWire(t, Rules{})
			for range tt.attempts {
				tt.attempt(w)
				w.pass(time.Second)
			}
			w.want(fmt.Sprintf("auth.brute_force medium 192.168.1.99 x%d", tt.attempts))
			if w.found[0].Evidence["protocol"] != tt.protocol {
				t.Errorf("called %v", w.found[0].Evidence)
			}
			if s := fmt.Sprint(w.found); strings.Contains(s, "hunter2") || strings.Contains(s, "cm9vd") || strings.Contains(s, "root") {
				t.Errorf("a secret stands in %s", s)
			}
			few := newWire(t, Rules{})
			for range 5 { // a person who forgot it
				tt.attempt(few)
				few.pass(10 * time.Second)
			}
			few.want()
		})
	}
}

func TestMailServersAreNotFTP(t *testing.T) {
	w := newWire(t, Rules{})
	for range 20 {
		c := w.dial(gateway, outside, 25)
		c.answer([]byte("220 mail ESMTP\r\n"))
		c.send([]byte("EHLO gateway\r\n"))
		c.answer([]byte("250 ok\r\n"))
		c.send([]byte("PASS the parcel\r\n"))
		c.answer([]byte("530 Must issue STARTTLS\r\n"))
	}
	w.want()
}

func baseline(t testing.TB, s ...string) Rules {
	r := Rules{Network: Network{Baseline: []Destination{}}}
	for _, d := range s {
		dest, err := ParseDestination(d)
		if err != nil {
			t.Fatal(err)
		}
		r.Baseline = append(r.Baseline, dest)
	}
	return r
}

func TestNewDestinations(t *testing.T) {
	w := newWire(t, baseline(t, "198.51.100.0/24", "time.example.org:123", "[2001:db8::1]:443"))
	w.told("eu.time.example.org", "203.0.113.3")
	w.dial(gateway, outside, 443).answer([]byte("hello"))
	w.udp(gateway, 123, "203.0.113.3", 123, make([]byte, 48))
	w.dial(gateway6, "2001:db8::1", 443)
	w.udp(gateway, 5353, "224.0.0.251", 5353, nil)
	w.udp(gateway, 1900, "255.255.255.255", 1900, nil)
	w.g.sink.open = map[noteKey]*note{} // the resolver itself is not listed
	w.dial(gateway, "203.0.113.3", 80)
	w.dial(gateway, "203.0.113.4", 443)
	w.dial(gateway6, "2001:db8::1", 80)
	w.want("net.new_destination info 2001:db8::1 x1", "net.new_destination info 203.0.113.3 x1", "net.new_destination info 203.0.113.4 x1")

	none := newWire(t, Rules{})
	none.dial(gateway, "203.0.113.4", 443)
	none.want()
}

func TestDestinationsAreLearned(t *testing.T) {
	r := baseline(t)
	r.Learn = time.Hour
	w := newWire(t, r)
	w.dial(gateway, outside, 443)
	w.pass(2 * time.Hour)
	w.dial(gateway, outside, 443)
	w.want()
	w.dial(gateway, "203.0.113.4", 443)
	w.want("net.new_destination info 203.0.113.4 x1")
}

func rulesFound(all []guard.Finding) map[string]int {
	n := map[string]int{}
	for _, f := range all {
		n[f.Rule]++
	}
	return n
}

func TestBeacon(t *testing.T) {
	for _, tt := range []struct {
		name   string
		jitter time.Duration
		want   int
	}{{"like a clock", 2 * time.Second, 1}, {"like a person", 50 * time.Second, 0}} {
		w := newWire(t, baseline(t, "192.168.0.0/16"))
		for i := range 60 {
			c := w.dial(gateway, outside, 8443)
			c.send([]byte("anything new?"))
			c.answer([]byte("no"))
			c.close()
			w.pass(time.Minute + time.Duration(i*7919%100-50)*tt.jitter/50)
		}
		if got := rulesFound(w.findings())[guard.NetBeacon]; got != tt.want {
			t.Errorf("%s: %d findings", tt.name, got)
		}
	}
}

func TestExfiltration(t *testing.T) {
	for _, up := range []bool{true, false} {
		w := newWire(t, baseline(t, "192.168.0.0/16"))
		c := w.dial(gateway, outside, 443)
		for range 16_000 {
			if up {
				c.send(make([]byte, 1400))
			} else {
				c.answer(make([]byte, 1400)) // a download
			}
			w.pass(10 * time.Millisecond)
		}
		if got := rulesFound(w.findings())[guard.NetExfiltration]; (got == 1) != up {
			t.Errorf("up %t: %d findings", up, got)
		}
	}
}

// helloOf builds a ClientHello with a key share of some size, in one
// record.
func helloOf(t testing.TB, name string, share int) []byte {
	t.Helper()
	vector := func(size int, b ...byte) []byte {
		var out []byte
		for i := size - 1; i >= 0; i-- {
			out = append(out, byte(len(b)>>(8*i)))
		}
		return append(out, b...)
	}
	ext := func(kind uint16, body []byte) []byte {
		return append([]byte{byte(kind >> 8), byte(kind)}, vector(2, body...)...)
	}
	server := ext(0, vector(2, append([]byte{0}, vector(2, []byte(name)...)...)...))
	exts := append(ext(51, make([]byte, share)), server...)
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, vector(1)...)
	body = append(body, vector(2, 0x13, 1)...)
	body = append(body, vector(1, 0)...)
	body = append(body, vector(2, exts...)...)
	return append([]byte{tlsHandshake, 3, 1}, vector(2, append([]byte{clientHello}, vector(3, body...)...)...)...)
}

// A prefix is compared as two words; it must contain what netip says.
func TestListedContainsWhatThePrefixDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.SliceOfN(rapid.Byte(), 16, 16)
		draw := func(what string) netip.Addr {
			a := netip.AddrFrom16([16]byte(bits.Draw(t, what)))
			if rapid.Bool().Draw(t, what+" is IPv4") {
				b := a.As16()
				a = netip.AddrFrom4([4]byte(b[:4]))
			}
			return a
		}
		p := netip.PrefixFrom(draw("prefix"), 0)
		p = netip.PrefixFrom(p.Addr(), rapid.IntRange(0, p.Addr().BitLen()).Draw(t, "bits")).Masked()
		a := draw("address")
		if rapid.Bool().Draw(t, "near") && a.BitLen() == p.Addr().BitLen() { // random ones are never inside
			x, y := a.AsSlice(), p.Addr().AsSlice()
			copy(x, y[:p.Bits()/8])
			a, _ = netip.AddrFromSlice(x)
		}
		l := listedOf(Destination{Prefix: p})
		if got := l.contains(addrOf(a)); got != p.Contains(a.Unmap()) {
			t.Fatalf("%s contains %s: %t", p, a, got)
		}
	})
}
