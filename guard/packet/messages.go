package packet

import (
	"bytes"
	"encoding/binary"
	"time"
)

// identify tells what a flow carries from its first bytes, and only then from
// its port: a program that does not want to be seen does not use the usual
// one.
func (t *streams) identify(e *Event, f *flow, data []byte, fromClient bool) app {
	if t.isModbusPort(e.srcPort) || t.isModbusPort(e.dstPort) {
		return modbusTCP
	}
	begins := func(s string) bool { return len(data) >= len(s) && string(data[:len(s)]) == s }
	if begins("SSH-") {
		return ssh
	}
	port := e.serverPort()
	if !fromClient {
		switch {
		case begins("220"):
			return greeted
		case data[0] == iac || port == 23:
			return telnet
		case begins("HTTP/1."):
			return http
		case f.app == greeted:
			return greeted
		}
		return opaque
	}
	switch {
	case data[0] == tlsHandshake && (len(data) < 2 || data[1] == 3):
		return tlsHello
	case data[0] == mqttConnectByte && f.begun || begins("\x10") && port == 1883 || data[0] == mqttConnectByte && bytes.Contains(data[:min(len(data), 16)], []byte("MQ")):
		return mqtt
	case startsRequest(data):
		return http
	case begins("USER ") || begins("user ") || port == 21:
		return ftp
	case f.app == greeted:
		if begins("EHLO") || begins("HELO") {
			return opaque
		}
		return greeted
	case data[0] == iac || port == 23:
		return telnet
	}
	return opaque
}

// Modbus (MODBUS Application Protocol V1.1b3, 4.1 and MODBUS Messaging on
// TCP/IP Implementation Guide V1.0b, 3.1.3).
const (
	mbapSize  = 6 // up to and with the length
	maxLength = 254
)

// readModbus reads message after message: several share a segment, and one
// may span two.
func (t *streams) readModbus(e *Event, f *flow, data []byte) (used int, more bool) {
	request := t.isModbusPort(e.dstPort) && (!t.isModbusPort(e.srcPort) || e.fromClient)
	for len(data) > used {
		m := data[used:]
		if len(m) < mbapSize {
			return used, true
		}
		protocol, length := binary.BigEndian.Uint16(m[2:]), int(binary.BigEndian.Uint16(m[4:]))
		wrong := ""
		switch {
		case protocol != 0:
			wrong = "protocol identifier is not 0"
		case length < 2:
			wrong = "length is too short for a function code"
		case length > maxLength:
			wrong = "length is more than a message may have"
		}
		if wrong != "" {
			// In the middle of a conversation that was not seen from its
			// beginning, the first bytes may be the rest of a message.
			if f.begun || f.sane || f.strange >= 8 {
				e.modbus = adu{request: request, wrong: wrong}
				t.emit(e, isModbus)
			}
			f.strange = min(f.strange+1, 8)
			return len(data), false
		}
		if len(m) < mbapSize+length {
			if e.missing > 0 {
				return len(data), false
			}
			return used, true
		}
		f.sane = true
		e.modbus = adu{request: request, unit: m[6], pdu: m[7 : mbapSize+length]}
		t.emit(e, isModbus)
		used += mbapSize + length
	}
	return used, false
}

// TLS (RFC 8446, 4 and 5.1; RFC 6066, 3).
const (
	tlsHandshake   = 22
	clientHello    = 1
	serverNameType = 0
)

// readHello reads a ClientHello, which may span records and segments.
func (t *streams) readHello(e *Event, f *flow, data []byte) (used int, more bool) {
	hello, rest := t.hello[:0], data
	for {
		if len(hello) >= 4 {
			if hello[0] != clientHello {
				f.app = opaque
				return len(data), false
			}
			size := 4 + int(hello[1])<<16 + int(hello[2])<<8 + int(hello[3])
			if size > bufferSize {
				f.app = opaque
				return len(data), false
			}
			if len(hello) >= size {
				f.app = opaque
				if name := sni(hello[4:size]); len(name) > 0 {
					e.name, e.secure = lower(t.name[:0], name[:min(len(name), len(t.name))]), true
					t.emit(e, isHello)
				}
				return len(data), false
			}
		}
		if len(rest) < 5 {
			return 0, true
		}
		size := int(binary.BigEndian.Uint16(rest[3:]))
		if rest[0] != tlsHandshake || rest[1] != 3 || size == 0 || len(hello)+size > bufferSize {
			f.app = opaque
			return len(data), false
		}
		if len(rest) < 5+size {
			return 0, true
		}
		hello = append(hello, rest[5:5+size]...)
		rest = rest[5+size:]
	}
}

// cursor reads lengths and what they announce.
type cursor struct {
	b  []byte
	ok bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.ok, n = false, len(c.b)
	}
	head := c.b[:n]
	c.b = c.b[n:]
	return head
}

// vector takes what a length of so many bytes announces.
func (c *cursor) vector(lengthBytes int) []byte {
	n := 0
	for _, b := range c.take(lengthBytes) {
		n = n<<8 | int(b)
	}
	return c.take(n)
}

// sni returns the host name that a ClientHello's body asks for, or nothing.
func sni(body []byte) []byte {
	c := cursor{body, true}
	c.take(2 + 32) // version, random
	c.vector(1)    // session
	c.vector(2)    // cipher suites
	c.vector(1)    // compression
	extensions := cursor{c.vector(2), true}
	for c.ok && extensions.ok && len(extensions.b) > 0 {
		kind := extensions.take(2)
		content := extensions.vector(2)
		if len(kind) == 2 && kind[0] == 0 && kind[1] == serverNameType {
			list := cursor{content, true}
			names := cursor{list.vector(2), true}
			if entry := names.take(1); len(entry) == 1 && entry[0] == 0 {
				if name := names.vector(2); names.ok {
					return name
				}
			}
			return nil
		}
	}
	return nil
}

var methods = [...]string{"GET ", "POST ", "PUT ", "HEAD ", "DELETE ", "OPTIONS ", "PATCH ", "PROPFIND "}

func startsRequest(data []byte) bool {
	for _, m := range methods {
		if len(data) >= len(m) && string(data[:len(m)]) == m {
			return true
		}
	}
	return false
}

// readHTTP reads heads of requests and status lines (RFC 9112). Bodies pass.
func (t *streams) readHTTP(e *Event, f *flow, data []byte, fromClient bool) (used int, more bool) {
	if !fromClient {
		if f.pending && len(data) >= 12 && string(data[:7]) == "HTTP/1." {
			f.pending = false
			e.login = login{"http", string(data[9:12]) != "401"}
			t.emit(e, isLogin)
		}
		return len(data), false
	}
	if !startsRequest(data) {
		return len(data), false
	}
	end := bytes.Index(data, []byte("\r\n\r\n"))
	if end < 0 {
		if len(data) < bufferSize && e.missing == 0 {
			return 0, true
		}
		end = len(data)
	}
	for line := data[:end]; ; {
		i := bytes.IndexByte(line, '\n')
		if i < 0 {
			break
		}
		line = line[i+1:]
		if value, ok := header(line, "host"); ok {
			if i := bytes.LastIndexByte(value, ':'); i >= 0 && bytes.IndexByte(value, ']') < i {
				value = value[:i]
			}
			e.name, e.secure = lower(t.name[:0], value[:min(len(value), len(t.name))]), false
			t.emit(e, isHello)
		} else if _, ok := header(line, "authorization"); ok {
			f.pending = true
		}
	}
	return len(data), false
}

// header returns the value when the line has that name, in lower case.
func header(line []byte, name string) ([]byte, bool) {
	if len(line) <= len(name) || line[len(name)] != ':' {
		return nil, false
	}
	for i := range len(name) {
		if line[i]|0x20 != name[i] {
			return nil, false
		}
	}
	value := line[len(name)+1:]
	if i := bytes.IndexByte(value, '\r'); i >= 0 {
		value = value[:i]
	}
	return bytes.TrimSpace(value), true
}

// MQTT control packets (MQTT 3.1.1 and 5.0, 2.1).
const (
	mqttConnectByte = 0x10
	mqttConnackByte = 0x20
)

// readMQTT reads a CONNECT up to its flags, and the answer.
func (t *streams) readMQTT(e *Event, f *flow, data []byte, fromClient bool) (used int, more bool) {
	wait := func() (int, bool) {
		if e.missing > 0 {
			f.app = opaque
			return len(data), false
		}
		return 0, true
	}
	if !fromClient {
		f.app = opaque
		if len(data) >= 4 && data[0] == mqttConnackByte {
			code := data[3] // 4 and 5 of 3.1.1; 0x86, 0x87 of 5.0
			e.login = login{"mqtt", code != 4 && code != 5 && code != 0x86 && code != 0x87}
			t.emit(e, isLogin)
		}
		return len(data), false
	}
	if f.pending || data[0] != mqttConnectByte {
		return len(data), false // after CONNECT
	}
	at := 1
	for ; at < 5; at++ { // the remaining length, seven bits a byte
		if at >= len(data) {
			return wait()
		}
		if data[at]&0x80 == 0 {
			break
		}
	}
	at++
	if len(data) < at+2 {
		return wait()
	}
	name := int(binary.BigEndian.Uint16(data[at:]))
	if name != 4 && name != 6 {
		f.app = opaque
		return len(data), false
	}
	if len(data) < at+2+name+2 {
		return wait()
	}
	if s := string(data[at+2 : at+2+name]); s != "MQTT" && s != "MQIsdp" {
		f.app = opaque
		return len(data), false
	}
	flags := data[at+2+name+1]
	f.pending = true
	e.mqtt = mqttConnect{user: flags&0x80 != 0, password: flags&0x40 != 0}
	t.emit(e, isMQTT)
	return len(data), false
}

// iac begins Telnet's commands (RFC 854).
const iac = 0xff

// What Telnet servers say when a login failed.
var refusals = [...]string{"login incorrect", "login failed", "authentication failed", "access denied", "invalid login", "bad password"}

// readLogin finds how logins end that are answered in words.
func (t *streams) readLogin(e *Event, f *flow, data []byte, fromClient bool) {
	switch {
	case f.app == ssh: // see ended
	case fromClient:
		if f.app == ftp && len(data) >= 5 && bytes.EqualFold(data[:5], []byte("PASS ")) {
			f.pending = true
		}
	case f.app == ftp:
		if f.pending && len(data) >= 3 && (string(data[:3]) == "530" || string(data[:3]) == "430" || data[0] == '2') {
			f.pending = false
			e.login = login{"ftp", data[0] == '2'}
			t.emit(e, isLogin)
		}
	case f.app == telnet:
		text := lower(t.hello[:0], data[:min(len(data), 512)])
		for _, r := range refusals {
			if bytes.Contains(text, []byte(r)) {
				e.login = login{"telnet", false}
				t.emit(e, isLogin)
				return
			}
		}
	}
}

// An SSH conversation that ends so soon after so few bytes let nobody in. It
// is a guess: what passes is encrypted.
const (
	sshShort = 30 * time.Second
	sshFew   = 5000
)

// ended is told once per flow.
func (t *streams) ended(e *Event, f *flow) {
	if f.app == ssh && f.begun {
		f.app = opaque
		ok := e.At-f.since > sshShort || f.sent[f.client] > sshFew || f.sent[f.client] < 200
		e.login = login{"ssh", ok}
		t.emit(e, isLogin)
	}
}
