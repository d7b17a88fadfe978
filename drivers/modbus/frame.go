package modbus

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	fnReadCoils    = 1
	fnReadDiscrete = 2
	fnReadHolding  = 3
	fnReadInput    = 4
	fnWriteCoil    = 5
	fnWriteOne     = 6
	fnWriteMany    = 16
	exceptionBit   = 0x80

	maxRTU = 256 // longest RTU frame (Modbus over Serial Line V1.02, 2.5.1)
	maxTCP = 260 // longest TCP frame (Modbus Messaging V1.0b, 3.1)
	mbap   = 7   // TCP header: transaction, protocol, length, unit
)

// key is what an answer has to fit: a request without its unit.
type key struct {
	fn    byte
	addr  uint16
	count uint16 // for functions 5 and 6 the value
}

// keyOf reads the key from a request's function and data.
func keyOf(pdu []byte) key {
	return key{fn: pdu[0], addr: binary.BigEndian.Uint16(pdu[1:]), count: binary.BigEndian.Uint16(pdu[3:])}
}

func (k key) read() bool { return k.fn >= fnReadCoils && k.fn <= fnReadInput }

// mirrored reports whether the regular answer to k equals its request.
func (k key) mirrored() bool { return k.fn == fnWriteCoil || k.fn == fnWriteOne }

// data is the length of the answer's payload when k is a read.
func (k key) data() int {
	if k.fn == fnReadCoils || k.fn == fnReadDiscrete {
		return (int(k.count) + 7) / 8
	}
	return 2 * int(k.count)
}

// rtuReply is the length of the regular RTU answer.
func (k key) rtuReply() int {
	if k.read() {
		return 5 + k.data()
	}
	return 8
}

// confusable reports whether a regular answer to k could be taken for one to
// o. Answers to reads carry only function and length, answers to writes
// repeat address and value or count.
func (k key) confusable(o key) bool {
	if k.fn != o.fn {
		return false
	}
	if k.read() {
		return k.data() == o.data()
	}
	return k == o
}

var crcTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

// crc16 is the checksum of Modbus over Serial Line V1.02, 6.2.2.
func crc16(b []byte) uint16 {
	c := uint16(0xFFFF)
	for _, x := range b {
		c = c>>8 ^ crcTable[byte(c)^x]
	}
	return c
}

// sealed reports whether the frame b ends in its own checksum.
func sealed(b []byte) bool {
	n := len(b)
	return n >= 4 && binary.LittleEndian.Uint16(b[n-2:]) == crc16(b[:n-2])
}

// verdict is what the bytes at the front of the receive buffer are.
type verdict uint8

const (
	partial   verdict = iota // cannot tell yet
	answer                   // a regular answer or exception with the right unit, function and length
	echo                     // our own request, heard back
	stray                    // a whole frame that answers something else
	malformed                // no frame starts here
)

// parseRTU judges the front of buf while an answer to req (a whole RTU
// frame) is awaited and returns the length of what it found. With echoed, req
// itself has to come first.
func parseRTU(buf, req []byte, echoed bool) (verdict, int) {
	if len(buf) < 2 {
		return partial, 0
	}
	k := keyOf(req[1 : len(req)-2])
	if echoed || !k.mirrored() { // else it is the answer
		if bytes.HasPrefix(buf, req) {
			return echo, len(req)
		}
		if echoed && bytes.HasPrefix(req, buf) {
			return partial, 0
		}
	}
	if v, n := parseAnswer(buf, req[0], k); v != malformed {
		return v, n
	}
	if n, whole := wholeFrame(buf); whole {
		return stray, n
	} else if n > len(buf) {
		return partial, 0
	}
	if len(buf) < len(req) && bytes.HasPrefix(req, buf) {
		return partial, 0 // an echo may be under way
	}
	return malformed, 0
}

// parseAnswer looks for the answer to k from unit. malformed means that buf
// does not start with one.
func parseAnswer(buf []byte, unit byte, k key) (verdict, int) {
	if buf[0] != unit || buf[1]&^exceptionBit != k.fn {
		return malformed, 0
	}
	n := k.rtuReply()
	switch {
	case buf[1]&exceptionBit != 0:
		n = 5
	case k.read():
		if len(buf) < 3 {
			return partial, 0
		}
		if int(buf[2]) != k.data() {
			return malformed, 0
		}
	}
	if len(buf) < n {
		return partial, 0
	}
	if !sealed(buf[:n]) {
		return malformed, 0
	}
	if !k.read() && buf[1] == k.fn && keyOf(buf[1:]) != k {
		return stray, n
	}
	return answer, n
}

// wholeFrame looks for any frame, request or answer, at the front of buf. If
// there is none it returns the length up to which one may still come.
func wholeFrame(buf []byte) (n int, whole bool) {
	if len(buf) < 2 {
		return 4, false
	}
	for _, size := range frameSizes(buf) {
		if size <= len(buf) && sealed(buf[:size]) {
			return size, true
		}
		n = max(n, size)
	}
	return n, false
}

// frameSizes lists the lengths that a frame starting like buf may have.
func frameSizes(buf []byte) []int {
	switch fn := buf[1]; {
	case fn&exceptionBit != 0:
		return []int{5}
	case fn >= fnReadCoils && fn <= fnReadInput: // request, answer
		if len(buf) < 3 {
			return []int{8}
		}
		if size := 5 + int(buf[2]); size <= maxRTU {
			return []int{8, size}
		}
		return []int{8}
	case fn == fnWriteCoil || fn == fnWriteOne:
		return []int{8}
	case fn == 15 || fn == fnWriteMany: // answer, request
		if len(buf) < 7 {
			return []int{8}
		}
		if size := 9 + int(buf[6]); size <= maxRTU {
			return []int{8, size}
		}
		return []int{8}
	}
	return nil
}

// parseTCP takes one frame off the front of buf. n is 0 while it is
// incomplete; an error means that the stream has lost its framing.
func parseTCP(buf []byte) (n int, err error) {
	if len(buf) < mbap {
		return 0, nil
	}
	if p := binary.BigEndian.Uint16(buf[2:]); p != 0 {
		return 0, fmt.Errorf("%w: protocol id %d, expected 0", ErrFrame, p)
	}
	length := int(binary.BigEndian.Uint16(buf[4:])) // from the unit on
	if length < 3 || 6+length > maxTCP {
		return 0, fmt.Errorf("%w: length %d, expected 3..%d", ErrFrame, length, maxTCP-6)
	}
	if len(buf) < 6+length {
		return 0, nil
	}
	return 6 + length, nil
}

// cut returns how many registers the answer pdu brings, if k asked for more.
func (k key) cut(pdu []byte) (n int, short bool) {
	if k.fn != fnReadHolding && k.fn != fnReadInput || len(pdu) < 2 || pdu[0] != k.fn {
		return 0, false
	}
	n = int(pdu[1]) / 2
	return n, n > 0 && 2*n == int(pdu[1]) && len(pdu) == 2+2*n && n < int(k.count)
}

// checkTCP reports what is wrong with a frame whose transaction id is req's.
func checkTCP(frame, req []byte) error {
	if frame[6] != req[6] {
		return fmt.Errorf("%w: from unit %d, expected %d", ErrFrame, frame[6], req[6])
	}
	k, pdu := keyOf(req[mbap:]), frame[mbap:]
	if n, short := k.cut(pdu); short {
		return fmt.Errorf("%w: %d registers, expected %d", ErrShort, n, k.count)
	}
	switch {
	case pdu[0] == k.fn|exceptionBit:
		if len(pdu) != 2 {
			return fmt.Errorf("%w: exception of %d bytes, expected 2", ErrFrame, len(pdu))
		}
	case pdu[0] != k.fn:
		return fmt.Errorf("%w: function %d, expected %d", ErrFrame, pdu[0], k.fn)
	case k.read():
		if int(pdu[1]) != k.data() || len(pdu) != 2+k.data() {
			return fmt.Errorf("%w: %d bytes of data in a frame of %d, expected %d", ErrFrame, pdu[1], len(frame), k.data())
		}
	default:
		if len(pdu) != 5 || keyOf(pdu) != k {
			return fmt.Errorf("%w: confirms another write (% x)", ErrFrame, pdu)
		}
	}
	return nil
}
