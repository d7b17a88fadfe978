package packet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/net/dns/dnsmessage"
)

// linuxSLL2 is LINKTYPE_LINUX_SLL2, 276, as gopacket's eight bits keep it; 20
// itself is not assigned.
const linuxSLL2 layers.LinkType = 276 & 0xff

// decoder turns frames into events. It allocates nothing per frame.
type decoder struct {
	link layers.LinkType

	eth  layers.Ethernet
	tag  layers.Dot1Q
	arp  layers.ARP
	ip4  layers.IPv4
	ip6  layers.IPv6
	ext  layers.IPv6ExtensionSkipper
	tcp  layers.TCP
	udp  layers.UDP
	dhcp layers.DHCPv4

	byEthernet, byARP, byIP4, byIP6 *gopacket.DecodingLayerParser
	found                           []gopacket.LayerType

	dns  dnsmessage.Parser
	name [256]byte

	answers [maxAnswers]Addr
}

// supported lists the link types of a decoder.
func supported(link layers.LinkType) bool {
	switch link {
	case layers.LinkTypeEthernet, layers.LinkTypeNull, layers.LinkTypeLoop, layers.LinkTypeRaw, 12, 14, layers.LinkTypeIPv4, layers.LinkTypeIPv6, layers.LinkTypeLinuxSLL, linuxSLL2:
		return true
	}
	return false
}

func newDecoder(link layers.LinkType) *decoder {
	d := &decoder{link: link}
	parser := func(first gopacket.LayerType) *gopacket.DecodingLayerParser {
		p := gopacket.NewDecodingLayerParser(first)
		p.SetDecodingLayerContainer(gopacket.DecodingLayerSparse(nil))
		for _, l := range []gopacket.DecodingLayer{&d.eth, &d.tag, &d.arp, &d.ip4, &d.ip6, &d.ext, &d.tcp, &d.udp, &d.dhcp} {
			p.AddDecodingLayer(l)
		}
		p.IgnoreUnsupported = true
		p.IgnorePanic = true // the engine contains them
		return p
	}
	d.byEthernet, d.byARP = parser(layers.LayerTypeEthernet), parser(layers.LayerTypeARP)
	d.byIP4, d.byIP6 = parser(layers.LayerTypeIPv4), parser(layers.LayerTypeIPv6)
	return d
}

// decode fills e from a frame. After an error e holds what could be read: an
// attacker must not become invisible by a header that his target ignores.
func (d *decoder) decode(frame []byte, e *Event) error {
	at, wall, size, charging := e.At, e.Wall, e.Size, e.Charging
	*e = Event{} // in place: a literal with values would be built and copied
	e.At, e.Wall, e.Size, e.Charging, e.fromClient = at, wall, size, charging, true
	parser, data, err := d.start(frame, e)
	if parser == nil {
		return err
	}
	err = parser.DecodeLayers(data, &d.found)
	for _, l := range d.found {
		switch l {
		case layers.LayerTypeEthernet:
			copy(e.srcMAC[:], d.eth.SrcMAC)
			copy(e.dstMAC[:], d.eth.DstMAC)
		case layers.LayerTypeARP:
			d.fillARP(e)
		case layers.LayerTypeIPv4:
			e.kinds |= isIP
			e.src, e.dst, e.proto = addr4(d.ip4.SrcIP), addr4(d.ip4.DstIP), uint8(d.ip4.Protocol)
			e.missing = int(d.ip4.Length) - len(d.ip4.Contents) - len(d.ip4.Payload)
			if d.ip4.Flags&layers.IPv4MoreFragments != 0 && d.ip4.FragOffset == 0 {
				d.fillFragment(e)
			}
		case layers.LayerTypeIPv6:
			e.kinds |= isIP
			e.src, e.dst, e.proto = addr16(d.ip6.SrcIP), addr16(d.ip6.DstIP), uint8(d.ip6.NextHeader)
			e.missing = int(d.ip6.Length) - len(d.ip6.Payload)
		case layers.LayerTypeTCP:
			d.fillTCP(e)
		case layers.LayerTypeUDP:
			d.fillUDP(e)
		case layers.LayerTypeDHCPv4:
			d.fillDHCP(e)
		}
	}
	e.missing = max(e.missing, 0)
	if err != nil && e.kinds&(isIP|isTCP) == isIP && e.proto == uint8(layers.IPProtocolTCP) && len(d.found) > 0 {
		// Hosts ignore options that they cannot read, so what precedes them
		// counts.
		if payload := d.ipPayload(); len(payload) >= 20 {
			if off := int(payload[12]>>4) * 4; off >= 20 && off <= len(payload) {
				_ = d.tcp.DecodeFromBytes(payload, gopacket.NilDecodeFeedback)
				d.tcp.Payload = payload[off:]
				d.fillTCP(e)
			}
		}
	}
	if err == nil && e.kinds&(isTCP|isUDP) != 0 {
		err = d.fillDNS(e)
	}
	return err
}

// start finds where the frame's first known header is. There may be none.
func (d *decoder) start(frame []byte, e *Event) (*gopacket.DecodingLayerParser, []byte, error) {
	short := func(n int) error {
		if len(frame) < n {
			return fmt.Errorf("frame of %d bytes, its link header has %d", len(frame), n)
		}
		return nil
	}
	var protocol uint16
	switch d.link {
	case layers.LinkTypeEthernet:
		return d.byEthernet, frame, nil
	case layers.LinkTypeNull, layers.LinkTypeLoop:
		if err := short(5); err != nil {
			return nil, nil, err
		}
		frame = frame[4:]
	case layers.LinkTypeLinuxSLL:
		if err := short(16); err != nil {
			return nil, nil, err
		}
		if binary.BigEndian.Uint16(frame[4:]) == 6 {
			copy(e.srcMAC[:], frame[6:12])
		}
		protocol, frame = binary.BigEndian.Uint16(frame[14:]), frame[16:]
	case linuxSLL2:
		if err := short(20); err != nil {
			return nil, nil, err
		}
		if frame[11] == 6 {
			copy(e.srcMAC[:], frame[12:18])
		}
		protocol, frame = binary.BigEndian.Uint16(frame), frame[20:]
	}
	if layers.EthernetType(protocol) == layers.EthernetTypeARP {
		return d.byARP, frame, nil
	}
	if len(frame) == 0 {
		return nil, nil, fmt.Errorf("empty packet")
	}
	switch frame[0] >> 4 {
	case 4:
		return d.byIP4, frame, nil
	case 6:
		return d.byIP6, frame, nil
	}
	if protocol != 0 {
		return nil, nil, nil // nothing that is looked at
	}
	return nil, nil, fmt.Errorf("IP version %d", frame[0]>>4)
}

// ipPayload is what follows the IP header that was decoded last.
func (d *decoder) ipPayload() []byte {
	for i := len(d.found) - 1; i >= 0; i-- {
		switch d.found[i] {
		case layers.LayerTypeIPv4:
			return d.ip4.Payload
		case layers.LayerTypeIPv6:
			return d.ip6.Payload
		}
	}
	return nil
}

func (d *decoder) fillARP(e *Event) {
	a := &d.arp
	if a.AddrType != layers.LinkTypeEthernet || a.Protocol != layers.EthernetTypeIPv4 || len(a.SourceHwAddress) != 6 || len(a.SourceProtAddress) != 4 {
		return
	}
	e.kinds |= isARP
	e.arp = arp{reply: a.Operation == layers.ARPReply, ip: addr4(a.SourceProtAddress)}
	copy(e.arp.sender[:], a.SourceHwAddress)
}

func (d *decoder) fillTCP(e *Event) {
	t := &d.tcp
	e.kinds |= isTCP
	e.srcPort, e.dstPort, e.seq, e.payload = uint16(t.SrcPort), uint16(t.DstPort), t.Seq, t.Payload
	for flag, set := range [...]bool{t.FIN, t.SYN, t.RST, t.PSH, t.ACK, t.URG} {
		if set {
			e.flags |= 1 << flag
		}
	}
	if e.flags&(syn|rst) != 0 || e.flags&ack == 0 {
		e.kinds |= isControl
	}
}

func (d *decoder) fillUDP(e *Event) {
	e.kinds |= isUDP
	e.srcPort, e.dstPort, e.payload = uint16(d.udp.SrcPort), uint16(d.udp.DstPort), d.udp.Payload
}

// fillFragment reads the ports of a first fragment, which gopacket leaves
// alone. Its payload is not looked at.
func (d *decoder) fillFragment(e *Event) {
	e.fragment = true
	p := d.ip4.Payload
	if len(p) < 14 {
		return
	}
	switch d.ip4.Protocol {
	case layers.IPProtocolTCP:
		e.kinds |= isTCP
		e.seq, e.flags = binary.BigEndian.Uint32(p[4:]), p[13]&0x3f
	case layers.IPProtocolUDP:
		e.kinds |= isUDP
	default:
		return
	}
	e.srcPort, e.dstPort = binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
}

func (d *decoder) fillDHCP(e *Event) {
	h := &d.dhcp
	e.kinds |= isDHCP
	e.dhcp = dhcp{fromServer: h.Operation == layers.DHCPOpReply, server: e.src}
	copy(e.dhcp.client[:], h.ClientHWAddr)
	e.dhcp.relayed = len(h.RelayAgentIP) == 4 && !addr4(h.RelayAgentIP).isZero()
	for i := range h.Options {
		switch o := &h.Options[i]; {
		case o.Type == layers.DHCPOptMessageType && len(o.Data) == 1:
			e.dhcp.kind = o.Data[0]
		case o.Type == layers.DHCPOptServerID && len(o.Data) == 4:
			e.dhcp.server = addr4(o.Data)
		}
	}
}

// fillDNS reads a DNS message over UDP, or over TCP when one segment holds
// it.
func (d *decoder) fillDNS(e *Event) error {
	const port = 53
	p := e.payload
	if e.srcPort != port && e.dstPort != port || len(p) == 0 || e.missing > 0 {
		return nil
	}
	if e.kinds&isTCP != 0 {
		if len(p) < 14 || int(binary.BigEndian.Uint16(p)) != len(p)-2 {
			return nil
		}
		p = p[2:]
	}
	h, err := d.dns.Start(p)
	if err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	q, err := d.dns.Question()
	if err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	e.kinds |= isDNS
	e.dns.response, e.dns.failed, e.dns.qtype = h.Response, h.RCode != dnsmessage.RCodeSuccess, uint16(q.Type)
	e.dns.name = lower(d.name[:0], q.Name.Data[:q.Name.Length])
	if n := len(e.dns.name); n > 0 && e.dns.name[n-1] == '.' {
		e.dns.name = e.dns.name[:n-1]
	}
	if !h.Response {
		return nil
	}
	if err := d.dns.SkipAllQuestions(); err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	e.dns.answers = d.answers[:0]
	for len(e.dns.answers) < maxAnswers {
		r, err := d.dns.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return fmt.Errorf("DNS: %w", err)
		}
		switch r.Type {
		case dnsmessage.TypeA:
			a, err := d.dns.AResource()
			if err != nil {
				return fmt.Errorf("DNS: %w", err)
			}
			e.dns.answers = append(e.dns.answers, addr4(a.A[:]))
		case dnsmessage.TypeAAAA:
			a, err := d.dns.AAAAResource()
			if err != nil {
				return fmt.Errorf("DNS: %w", err)
			}
			e.dns.answers = append(e.dns.answers, addr16(a.AAAA[:]))
		default:
			if err := d.dns.SkipAnswer(); err != nil {
				return fmt.Errorf("DNS: %w", err)
			}
		}
	}
	return nil
}

// lower appends s to buf in lower case.
func lower(buf, s []byte) []byte {
	for _, c := range s {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf = append(buf, c)
	}
	return buf
}
