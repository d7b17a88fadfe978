package packet

import "time"

// kind says what an event shows; a detector names those it wants.
type kind uint16

const (
	isIP      kind = 1 << iota // an IP packet
	isTCP                      // with a TCP header
	isUDP                      // with a UDP header
	isARP                      // an ARP packet for IPv4 on Ethernet
	isDHCP                     // a DHCPv4 message
	isDNS                      // a DNS message of one question
	isModbus                   // a Modbus request or response, or what should be one
	isHello                    // a name that a connection asks for: TLS SNI or HTTP Host
	isMQTT                     // an MQTT CONNECT
	isLogin                    // a login that succeeded or failed
	isControl                  // a TCP segment that opens or refuses a connection
	isFlow                     // the first packet of a conversation

	kinds = 1 << iota // combinations
)

// TCP flags (RFC 9293, 3.1).
const (
	fin uint8 = 1 << iota
	syn
	rst
	psh
	ack
	urg
)

// Event is one frame, or one message found in a stream. Slices are valid
// during the step only.
type Event struct {
	At       time.Duration // never decreases
	Wall     int64         // Unix ns, as captured
	Size     int           // bytes on the wire
	Charging bool          // the charger is at work

	kinds            kind
	srcMAC, dstMAC   MAC
	src, dst         Addr
	srcPort, dstPort uint16
	proto            uint8 // of IP
	flags            uint8 // of TCP
	fragment         bool  // the first of several
	seq              uint32
	payload          []byte // of TCP or UDP
	missing          int    // bytes of the payload that were not captured

	// Of streams; without a flow, whoever sends began.
	flow       *flow
	side       uint8 // of it, that sends
	begins     bool  // the first packet of its flow
	fromClient bool
	completes  bool // the client's ACK after its SYN

	arp    arp
	dhcp   dhcp
	dns    dns
	modbus adu
	name   []byte // of isHello, lower case
	secure bool   // isHello: TLS
	mqtt   mqttConnect
	login  login
}

// client and server return both ends as of who began.
func (e *Event) client() Addr {
	if e.fromClient {
		return e.src
	}
	return e.dst
}

func (e *Event) server() Addr {
	if e.fromClient {
		return e.dst
	}
	return e.src
}

func (e *Event) serverPort() uint16 {
	if e.fromClient {
		return e.dstPort
	}
	return e.srcPort
}

// arp is an ARP packet (RFC 826).
type arp struct {
	reply  bool
	sender MAC
	ip     Addr // that the sender claims
}

// dhcp is a DHCP message (RFC 2131).
type dhcp struct {
	fromServer bool
	kind       uint8 // option 53
	client     MAC
	server     Addr // option 54, or the sender
	relayed    bool
}

// DHCP message types (RFC 2132, 9.6).
const (
	dhcpOffer = 2
	dhcpAck   = 5
)

// maxAnswers is how many addresses of a DNS answer are looked at.
const maxAnswers = 32

// dns is a DNS message (RFC 1035).
type dns struct {
	response bool
	failed   bool
	qtype    uint16
	name     []byte // lower case, without the last dot
	answers  []Addr // at most maxAnswers
}

// adu is a Modbus message with its header (MODBUS Messaging on TCP/IP
// Implementation Guide V1.0b, 3.1.3).
type adu struct {
	request bool
	unit    uint8
	pdu     []byte // function code and data; empty when wrong
	wrong   string // why it is no Modbus, or empty
}

// mqttConnect is what matters of a CONNECT (MQTT 3.1.1 and 5.0, 3.1).
type mqttConnect struct{ user, password bool }

// login is how an attempt ended.
type login struct {
	protocol string
	ok       bool
}
