package domain

import (
	"encoding/binary"
	"unsafe"
)

// Layout of a message, RFC 1035 section 4.1.1.
const (
	headerBytes = 12
	flagQR      = 1 << 15
	flagRD      = 1 << 8
	flagCD      = 1 << 4
	flagRA      = 1 << 7
	opcodeMask  = 0xf << 11
	rcodeName   = 3

	typeA, typeAAAA, typeOPT = 1, 28, 41

	// blockedTTL is how long a client may keep a blocked answer: short, so
	// that a name that is allowed after all works soon.
	blockedTTL = 60
)

// question is what a query asks, read without unpacking the rest.
type question struct {
	name  string // canonical; valid until the next question
	qtype uint16
	end   int  // of the question section
	edns  bool // the query has further records, and an OPT among them
}

// answerRoom is how many bytes longer than its question a refusal may be.
const answerRoom = 64

// ask reads the question of a query. Its name lies in buf. It reports false for whatever is not one
// plain question; that is the general parser's.
func ask(b []byte, buf *[maxName + 1]byte) (q question, ok bool) {
	if len(b) < headerBytes+5 || binary.BigEndian.Uint16(b[4:]) != 1 || binary.BigEndian.Uint32(b[6:]) != 0 {
		return q, false
	}
	if flags := binary.BigEndian.Uint16(b[2:]); flags&(flagQR|opcodeMask) != 0 {
		return q, false
	}
	n, i := 0, headerBytes
	for {
		if i >= len(b) {
			return q, false
		}
		l := int(b[i])
		if i++; l == 0 {
			break
		}
		if l > maxLabel || i+l > len(b) || n+l+1 > len(buf) {
			return q, false
		}
		if n > 0 {
			buf[n] = '.'
			n++
		}
		for _, c := range b[i : i+l] {
			switch {
			case c >= 'A' && c <= 'Z':
				c += 'a' - 'A'
			case c == '.':
				return q, false // within a label
			}
			buf[n] = c
			n++
		}
		i += l
	}
	if n == 0 || i+4 > len(b) || binary.BigEndian.Uint16(b[i+2:]) != 1 {
		return q, false // the root, or another class
	}
	q.name, q.qtype, q.end = unsafe.String(&buf[0], n), binary.BigEndian.Uint16(b[i:]), i+4
	if additional := binary.BigEndian.Uint16(b[10:]); additional > 0 {
		// An OPT record, if it is the first: root name, type.
		if len(b) < q.end+11 || b[q.end] != 0 || binary.BigEndian.Uint16(b[q.end+1:]) != typeOPT {
			return q, false
		}
		q.edns = true
	}
	return q, true
}

// refusal turns the query in b into the answer that its name is blocked, in
// place: NXDOMAIN, or with null the address of nobody. b needs room for
// answerRoom bytes more.
func refusal(b []byte, q question, null bool) []byte {
	flags := binary.BigEndian.Uint16(b[2:])&(flagRD|flagCD) | flagQR | flagRA
	if !null {
		flags |= rcodeName
	}
	binary.BigEndian.PutUint16(b[2:], flags)
	clear(b[6:headerBytes])
	b = b[:q.end]
	size := uint16(0)
	switch q.qtype {
	case typeA:
		size = 4
	case typeAAAA:
		size = 16
	}
	if null && size > 0 {
		b[7] = 1
		b = append(b, 0xc0, headerBytes) // the question's name
		b = binary.BigEndian.AppendUint16(b, q.qtype)
		b = binary.BigEndian.AppendUint16(b, 1)
		b = binary.BigEndian.AppendUint32(b, blockedTTL)
		b = binary.BigEndian.AppendUint16(b, size)
		b = append(b, make([]byte, size)...)
	}
	if q.edns {
		b[11] = 1
		// OPT with extended error 15, "blocked" (RFC 8914 section 4.16).
		b = append(b, 0, 0, typeOPT, 0x04, 0xd0, 0, 0, 0, 0, 0, 6, 0, 15, 0, 2, 0, 15)
	}
	return b
}
