package packet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/joulegate/joulegate/guard"
)

// Limits of capture files.
const (
	maxFrame = 256 << 10 // bytes of a frame
	maxBlock = 16 << 20  // bytes of a pcapng block
)

// Counts is what a replay did.
type Counts struct {
	Packets      uint64 `json:"packets"`
	DecodeErrors uint64 `json:"decode_errors"` // frames whose headers contradict themselves or end too early
}

// Replay runs the detectors on a capture, pcap or pcapng, and reports every
// finding once, in the order in which they began. Times are those of the
// capture. Progress is called now and then; nil: never. A capture that breaks
// off is an error that comes after the findings of what was read.
func Replay(ctx context.Context, in io.Reader, r Rules, log *slog.Logger, report func(guard.Finding), progress func(Counts)) (Counts, error) {
	next, err := openCapture(in)
	if err != nil {
		return Counts{}, err
	}
	g := newEngine(r, layers.LinkTypeEthernet, 0, report, log)
	var first, last time.Time
	for {
		data, at, size, link, err := next()
		if err == nil && !supported(link) {
			err = fmt.Errorf("link type %s (%d) is not supported: Ethernet, Linux cooked and raw IP are", link, link)
		}
		if err == nil && g.packets&0xfff == 0xfff {
			if progress != nil {
				progress(g.read())
			}
			err = ctx.Err()
		}
		if err != nil {
			g.sink.flush(last.Sub(first))
			if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			} else {
				err = fmt.Errorf("packet %d: %w", g.packets+1, err)
			}
			return g.read(), err
		}
		if at.Year() < 1970 { // a simple packet block has no time
			at = last
		}
		if first.IsZero() {
			first = at
		}
		last = at
		g.dec.link = link
		g.frame(data, at.Sub(first), at.UnixNano(), size, g.rules.Charging())
	}
}

func (g *engine) read() Counts { return Counts{g.packets, g.undecoded} }

// nextFrame returns the next frame of a capture, valid until it is called
// again, or io.EOF.
type nextFrame func() (data []byte, at time.Time, size int, link layers.LinkType, err error)

func openCapture(in io.Reader) (nextFrame, error) {
	br := bufio.NewReaderSize(in, 1<<16)
	magic, err := br.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("no capture: %w", err)
	}
	if binary.BigEndian.Uint32(magic) == sectionHeader {
		return openNg(br)
	}
	r, err := pcapgo.NewReader(br)
	if err != nil {
		return nil, fmt.Errorf("no pcap or pcapng file: %w", err)
	}
	r.SetSnaplen(maxFrame) // files lie about it, in both directions
	return func() ([]byte, time.Time, int, layers.LinkType, error) {
		data, ci, err := r.ZeroCopyReadPacketData()
		return data, ci.Timestamp, ci.Length, r.LinkType(), err
	}, nil
}

func openNg(in io.Reader) (next nextFrame, err error) {
	defer recovered(&err)
	r, err := pcapgo.NewNgReader(&blocks{in: in}, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
	if err != nil {
		return nil, fmt.Errorf("no pcapng file: %w", err)
	}
	return func() (data []byte, at time.Time, size int, link layers.LinkType, err error) {
		defer recovered(&err)
		var ci gopacket.CaptureInfo
		if data, ci, err = r.ZeroCopyReadPacketData(); err != nil {
			return nil, at, 0, 0, err
		}
		link, _ = ci.AncillaryData[0].(layers.LinkType)
		return data, ci.Timestamp, ci.Length, link, nil
	}, nil
}

// recovered makes an error of a panic: the reader of pcapng trusts its file
// in places.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("malformed pcapng: %v", p)
	}
}

// Block types of pcapng (draft-ietf-opsawg-pcapng, 4).
const (
	sectionHeader   = 0x0a0d0d0a
	interfaceBlock  = 1
	packetBlock     = 2
	simpleBlock     = 3
	enhancedBlock   = 6
	byteOrderMagic  = 0x1a2b3c4d
	packetBlockHead = 20 // what precedes the data of packet and enhanced blocks
)

// blocks passes a pcapng file on block by block and refuses lengths that
// cannot be: its reader would allocate whatever a file asks for.
type blocks struct {
	in    io.Reader
	order binary.ByteOrder
	block []byte // read and not passed on yet
	buf   []byte
}

func (b *blocks) Read(p []byte) (int, error) {
	if len(b.block) == 0 {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.block)
	b.block = b.block[n:]
	return n, nil
}

func (b *blocks) next() error {
	var head [12]byte
	if _, err := io.ReadFull(b.in, head[:]); err != nil {
		return err // io.EOF between two blocks is the file's end
	}
	if binary.BigEndian.Uint32(head[:]) == sectionHeader {
		switch {
		case binary.LittleEndian.Uint32(head[8:]) == byteOrderMagic:
			b.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]) == byteOrderMagic:
			b.order = binary.BigEndian
		default:
			return errors.New("section header without byte order")
		}
	}
	kind, size := b.order.Uint32(head[:]), b.order.Uint32(head[4:])
	if size < 12 || size > maxBlock || size%4 != 0 {
		return fmt.Errorf("block of %d bytes", size)
	}
	if cap(b.buf) < int(size) {
		b.buf = make([]byte, size)
	}
	b.block = b.buf[:size]
	copy(b.block, head[:])
	if _, err := io.ReadFull(b.in, b.block[12:]); err != nil {
		b.block = nil
		return io.ErrUnexpectedEOF
	}
	body := b.block[8 : size-4]
	var captured, room uint32
	switch kind {
	case interfaceBlock:
		if len(body) < 8 {
			return errors.New("interface block too short")
		}
		b.order.PutUint32(body[4:], min(b.order.Uint32(body[4:]), maxFrame))
	case packetBlock, enhancedBlock:
		if len(body) < packetBlockHead {
			return errors.New("packet block too short")
		}
		captured, room = b.order.Uint32(body[12:]), uint32(len(body)-packetBlockHead)
	case simpleBlock:
		if len(body) < 4 {
			return errors.New("packet block too short")
		}
		captured = min(b.order.Uint32(body), uint32(len(body)-4))
		b.order.PutUint32(body, captured)
		room = captured
	}
	if captured > room || captured > maxFrame {
		return fmt.Errorf("packet of %d bytes in a block of %d", captured, size)
	}
	return nil
}
