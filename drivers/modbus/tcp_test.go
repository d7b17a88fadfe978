package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// frameTCP is a whole Modbus TCP frame.
func frameTCP(tid uint16, unit byte, pdu ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, tid)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(1+len(pdu)))
	return append(append(b, unit), pdu...)
}

// replyTCP is what a faultless slave answers to req.
func (r registers) replyTCP(req []byte) []byte {
	rtu := r.reply(seal(req[6:]...))
	return frameTCP(binary.BigEndian.Uint16(req), req[6], rtu[1:len(rtu)-2]...)
}

// tcpLine is a running TCP line on pipes; handle gets every request with its
// connection.
func tcpLine(t *testing.T, handle func(c net.Conn, req []byte)) (l *Line, stop func()) {
	var conns []net.Conn
	l = newLine(Config{TCP: "test:502", Timeout: 100 * ms}, func(context.Context) (port, error) {
		near, far := net.Pipe()
		conns = append(conns, far)
		go func() {
			for {
				head := make([]byte, 6)
				if _, err := io.ReadFull(far, head); err != nil {
					return
				}
				body := make([]byte, binary.BigEndian.Uint16(head[4:]))
				if _, err := io.ReadFull(far, body); err != nil {
					return
				}
				go handle(far, append(head, body...))
			}
		}()
		return near, nil
	})
	end := running(l)
	return l, func() {
		end()
		for _, c := range conns {
			c.Close()
		}
		time.Sleep(time.Second)
	}
}

// Each fault meets the second of five reads.
func TestTCPFaults(t *testing.T) {
	good := registers(addressed).replyTCP
	write := func(c net.Conn, b []byte) { c.Write(b) }
	for _, tt := range []struct {
		name  string
		fault func(c net.Conn, req []byte)
		want  error // nil: survived
		say   string
		check func(Stats) bool
	}{
		{"late", func(c net.Conn, req []byte) { time.Sleep(120 * ms); write(c, good(req)) }, ErrTimeout, "silence", func(s Stats) bool { return s.Units[1].Late == 1 }},
		{"foreign id before it", func(c net.Conn, req []byte) {
			b := good(req)
			b[0] ^= 0x80
			b[9] ^= 1
			write(c, append(b, good(req)...))
		}, nil, "", func(s Stats) bool { return s.Units[1].Foreign == 1 }},
		{"twice", func(c net.Conn, req []byte) { write(c, append(good(req), good(req)...)) }, nil, "", func(s Stats) bool { return s.Units[1].Late == 1 }},
		{"byte by byte", func(c net.Conn, req []byte) {
			for _, b := range good(req) {
				write(c, []byte{b})
				time.Sleep(ms)
			}
		}, nil, "", func(s Stats) bool { return s.Units[1].Answers == 5 }},
		{"truncated", func(c net.Conn, req []byte) { write(c, good(req)[:9]) }, ErrTimeout, "silence", nil},
		{"wrong unit", func(c net.Conn, req []byte) { b := good(req); b[6] = 9; write(c, b) }, ErrFrame, "from unit 9, expected 1", func(s Stats) bool { return s.Opened == 2 }},
		{"wrong length", func(c net.Conn, req []byte) { write(c, frameTCP(binary.BigEndian.Uint16(req), 1, 4, 2, 0, 1)) }, ErrShort, "1 registers, expected 2", func(s Stats) bool { return s.Opened == 1 }},
		{"wrong count", func(c net.Conn, req []byte) { write(c, frameTCP(binary.BigEndian.Uint16(req), 1, 4, 3, 0, 1)) }, ErrFrame, "expected 4", func(s Stats) bool { return s.Opened == 2 }},
		{"not Modbus", func(c net.Conn, req []byte) { write(c, []byte("HTTP/1.1 400 Bad Request\r\n")) }, ErrFrame, "protocol id", func(s Stats) bool { return s.Opened == 2 }},
		{"closed", func(c net.Conn, req []byte) { c.Close() }, ErrLineDown, "test:502", func(s Stats) bool { return s.Opened == 2 }},
		{"exception", func(c net.Conn, req []byte) { write(c, frameTCP(binary.BigEndian.Uint16(req), 1, 0x84, 2)) }, nil, "illegal data address", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n atomic.Int32
				l, stop := tcpLine(t, func(c net.Conn, req []byte) {
					if n.Add(1) == 2 {
						tt.fault(c, req)
						return
					}
					c.Write(good(req))
				})
				defer stop()
				dev := l.Device(DeviceConfig{Unit: 1, Name: "grid"})
				for i := range uint16(5) {
					data, err := dev.ReadRegisters(t.Context(), 4, 10+2*i, 2)
					if i == 1 && (tt.want != nil || tt.say != "") {
						if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.say) {
							t.Fatalf("during the fault: %v, want %v and %q", err, tt.want, tt.say)
						}
						time.Sleep(300 * ms)
						continue
					}
					if tt.name == "truncated" && i == 2 && err != nil {
						time.Sleep(300 * ms) // the stream lost its framing; it is made anew
						continue
					}
					if err != nil {
						t.Fatalf("read %d: %v", i, err)
					}
					if want := registers(addressed).data(1, key{4, 10 + 2*i, 2}); !slices.Equal(data, want) {
						t.Fatalf("read %d: % x, want % x", i, data, want)
					}
				}
				if tt.check != nil && !tt.check(l.Stats()) {
					t.Errorf("not counted: %+v", l.Stats())
				}
			})
		})
	}
}

// Units share a connection; their transaction ids must not.
func TestTCPIdsDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen sync.Map
		l, stop := tcpLine(t, func(c net.Conn, req []byte) {
			id := binary.BigEndian.Uint16(req)
			if _, twice := seen.LoadOrStore(id, true); twice {
				t.Errorf("id %d twice", id)
			}
			c.Write(registers(addressed).replyTCP(req))
		})
		defer stop()
		for unit := range uint8(5) {
			dev := l.Device(DeviceConfig{Unit: unit})
			for range 5 {
				if _, err := dev.ReadRegisters(t.Context(), 3, 0, 1); err != nil {
					t.Fatal(err)
				}
			}
			if err := dev.WriteRegisters(t.Context(), 3, []uint16{1, 2}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A connection on which nothing comes any more is replaced.
func TestTCPHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dead sync.Map
		l, stop := tcpLine(t, func(c net.Conn, req []byte) {
			if first, _ := dead.LoadOrStore("first", c); first != c {
				c.Write(registers(addressed).replyTCP(req))
			}
		})
		defer stop()
		devs := []uint8{1, 2, 3, 4}
		for _, u := range devs[:3] {
			if _, err := l.Device(DeviceConfig{Unit: u}).ReadRegisters(t.Context(), 3, 0, 1); !errors.Is(err, ErrTimeout) {
				t.Fatal(err)
			}
		}
		if _, err := l.Device(DeviceConfig{Unit: 4}).ReadRegisters(t.Context(), 3, 0, 1); err != nil {
			t.Errorf("after three time-outs: %v", err)
		}
	})
}
