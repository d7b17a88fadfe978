package slave

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"time"
)

// mbap is the length of the Modbus TCP header (messaging guide 1.0b, 3.1.3):
// transaction, protocol 0, length of what follows, unit.
const mbap = 7

// ServeTCP answers Modbus TCP on every connection to ln until ctx ends. It
// closes ln.
func (b *Bus) ServeTCP(ctx context.Context, ln net.Listener) error {
	return b.serveConns(ctx, ln, b.serveMBAP)
}

func (b *Bus) serveMBAP(c net.Conn) error {
	l := &line{bus: b, w: c, garble: func(out []byte, random int) { flip(out[:2], random) }}
	defer l.wg.Wait()
	head := make([]byte, mbap)
	for {
		if _, err := io.ReadFull(c, head); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint16(head[4:])) - 1
		if binary.BigEndian.Uint16(head[2:]) != 0 || n < 1 || n > maxADU {
			b.count(func(s *Stats) { s.Ignored++ })
			return io.ErrUnexpectedEOF // the stream has lost its frame: hang up
		}
		pdu := make([]byte, n)
		if _, err := io.ReadFull(c, pdu); err != nil {
			return err
		}
		transaction := [2]byte(head)
		l.wrap = func(unit uint8, reply []byte) []byte {
			out := binary.BigEndian.AppendUint16([]byte{transaction[0], transaction[1], 0, 0}, uint16(len(reply)+1))
			return append(append(out, unit), reply...)
		}
		if err := l.answer(head[6], pdu, nil, func(int) { time.Sleep(b.cfg.Turnaround) }); err != nil {
			return err
		}
	}
}
