package modbus

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// FuzzRTUReply lets anything arrive while an answer is awaited. Whatever is
// taken for it has its unit, function, length and checksum, and every verdict
// consumes something or asks for more, so that the receive loop ends.
func FuzzRTUReply(f *testing.F) {
	good := registers(addressed).reply
	for _, req := range [][]byte{seal(1, 3, 0, 7, 0, 2), seal(1, 4, 0, 0, 0, 125), seal(9, 6, 1, 0, 0, 16), seal(9, 16, 1, 0, 0, 2, 4, 0, 1, 0, 2), seal(1, 1, 0, 0, 0, 9)} {
		f.Add(req[:len(req)-2], good(req), false)
		f.Add(req[:len(req)-2], append(bytes.Clone(req), good(req)...), true)
		f.Add(req[:len(req)-2], good(req)[:4], false)
		f.Add(req[:len(req)-2], seal(req[0], req[1]|exceptionBit, 2), false)
		f.Add(req[:len(req)-2], append(seal(7, 3, 2, 0, 1), good(req)...), false)
	}
	f.Fuzz(func(t *testing.T, body, buf []byte, echoed bool) {
		if len(body) < 6 || len(body) > maxRTU-2 {
			return
		}
		switch body[1] {
		case fnReadCoils, fnReadDiscrete, fnReadHolding, fnReadInput, fnWriteOne, fnWriteMany:
		default:
			return
		}
		req := seal(bytes.Clone(body)...)
		k := keyOf(req[1:])
		if k.read() && (k.count == 0 || k.count > MaxRead) {
			return
		}
		for len(buf) > 0 {
			v, n := parseRTU(buf, req, echoed)
			switch v {
			case partial, malformed:
				if n != 0 {
					t.Fatalf("verdict %d consumes %d bytes", v, n)
				}
				return
			}
			if n <= 0 || n > len(buf) {
				t.Fatalf("verdict %d consumes %d of %d bytes", v, n, len(buf))
			}
			frame := buf[:n]
			buf = buf[n:]
			switch v {
			case echo:
				echoed = false
				if !bytes.Equal(frame, req) {
					t.Fatalf("% x is no echo of % x", frame, req)
				}
			case answer:
				if !sealed(frame) || frame[0] != req[0] || frame[1]&^exceptionBit != k.fn {
					t.Fatalf("% x taken for the answer to % x", frame, req)
				}
				if frame[1] == k.fn && (n != k.rtuReply() || k.read() && int(frame[2]) != k.data()) {
					t.Fatalf("% x of the wrong length taken for the answer to % x", frame, req)
				}
				return
			}
		}
	})
}

// FuzzTCPReply does the same for a TCP stream.
func FuzzTCPReply(f *testing.F) {
	good := registers(addressed).replyTCP
	req := frameTCP(7, 1, 3, 0, 7, 0, 2)
	f.Add(good(req))
	f.Add(append(good(frameTCP(6, 1, 3, 0, 7, 0, 2)), good(req)...))
	f.Add(frameTCP(7, 1, 0x83, 2))
	f.Add(frameTCP(7, 1, 3, 2, 0, 1))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, buf []byte) {
		for {
			n, err := parseTCP(buf)
			if n == 0 || err != nil {
				return
			}
			if n > len(buf) || n > maxTCP || n < mbap+2 {
				t.Fatalf("frame of %d bytes in %d", n, len(buf))
			}
			frame := buf[:n]
			buf = buf[n:]
			if binary.BigEndian.Uint16(frame) != 7 || checkTCP(frame, req) != nil {
				continue
			}
			if frame[6] != 1 || frame[7] == 3 && n != 13 {
				t.Fatalf("% x taken for the answer to % x", frame, req)
			}
		}
	})
}
