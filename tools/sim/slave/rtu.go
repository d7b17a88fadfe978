package slave

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// maxADU is the longest RTU frame (Modbus over serial line 1.02, 2.5.1).
const maxADU = 256

// interFrame is the silence after which a broken request is forgotten. It is
// longer than the 3.5 characters of the standard because a pseudo-terminal and
// a busy machine may pause inside a frame.
const interFrame = 30 * time.Millisecond

// crc16 is the checksum of RTU (Modbus over serial line 1.02, 6.2.2).
func crc16(b []byte) uint16 {
	crc := uint16(0xFFFF)
	for _, c := range b {
		crc ^= uint16(c)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xA001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}

func wrapRTU(unit uint8, pdu []byte) []byte {
	b := append([]byte{unit}, pdu...)
	return binary.LittleEndian.AppendUint16(b, crc16(b))
}

// unwrapRTU checks a whole frame.
func unwrapRTU(b []byte) (unit uint8, pdu []byte, ok bool) {
	if len(b) < 4 || len(b) > maxADU || crc16(b[:len(b)-2]) != binary.LittleEndian.Uint16(b[len(b)-2:]) {
		return 0, nil, false
	}
	return b[0], b[1 : len(b)-2], true
}

// requestLength returns the length of the request that b begins with, or 0 if
// only silence can tell.
func requestLength(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch fn := b[1]; {
	case fn >= 1 && fn <= fnWriteSingle:
		return 8
	case fn == 15 || fn == fnWriteMultiple:
		if len(b) < 7 {
			return 0
		}
		return 9 + int(b[6])
	}
	return 0
}

// takeRequest cuts a complete request off the front of b. silent says that
// nothing more will come.
func takeRequest(b []byte, silent bool) (req, rest []byte) {
	n := requestLength(b)
	if n > 0 && len(b) >= n {
		if _, _, ok := unwrapRTU(b[:n]); ok {
			return b[:n], b[n:]
		}
	}
	if silent || len(b) > maxADU {
		if _, _, ok := unwrapRTU(b); ok {
			return b, nil // a function we do not know, ended by silence
		}
		return nil, nil
	}
	return nil, b
}

// deadlineReader is a connection whose reads can be bounded.
type deadlineReader interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
}

// serveRTU answers requests on conn until reading fails. accept, if set, can
// veto an answer (wrong speed).
func (b *Bus) serveRTU(conn deadlineReader, pace pacer, accept func() bool) error {
	l := &line{bus: b, w: conn, wrap: wrapRTU, echo: true, garble: flip}
	defer l.wg.Wait()
	var buf []byte
	chunk := make([]byte, maxADU)
	var began time.Time
	for {
		deadline := time.Time{}
		if len(buf) > 0 {
			deadline = time.Now().Add(interFrame)
		}
		if err := conn.SetReadDeadline(deadline); err != nil {
			return err
		}
		n, err := conn.Read(chunk)
		silent := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !silent {
			return err
		}
		if len(buf) == 0 {
			began = time.Now()
		}
		buf = append(buf, chunk[:n]...)
		for len(buf) > 0 {
			req, rest := takeRequest(buf, silent)
			if req == nil {
				if rest == nil {
					b.count(func(s *Stats) { s.Ignored++ })
				}
				buf = rest
				break
			}
			unit, pdu, _ := unwrapRTU(req)
			if accept == nil || accept() {
				if err := l.answer(unit, pdu, req, func(answer int) { pace.wait(began, len(req), answer) }); err != nil {
					return err
				}
			} else {
				b.count(func(s *Stats) { s.Mismatch++ })
			}
			buf = append([]byte(nil), rest...)
		}
	}
}

func (b *Bus) count(f func(*Stats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.stats)
}

// pacer delays an answer until a real wire would have carried it.
type pacer struct {
	char       time.Duration // one character; 0: no wire
	turnaround time.Duration
}

// wait blocks until the last character of the answer would have arrived: the
// request since began, the silence that ends it (3.5 characters, fixed at
// 1.75 ms above 19200 bit/s), the device, the answer.
func (p pacer) wait(began time.Time, request, answer int) {
	until := p.turnaround
	if p.char > 0 {
		gap := p.char * 7 / 2
		if p.char < 11*time.Second/19200 {
			gap = max(gap, 1750*time.Microsecond)
		}
		until += time.Duration(request+answer)*p.char + gap
	}
	time.Sleep(time.Until(began.Add(until)))
}

// ServePTY answers on a pseudo-terminal until ctx ends or the terminal is
// closed. It does not close p. A bus that can be unplugged needs a terminal
// with a link: its device has another name each time.
func (b *Bus) ServePTY(ctx context.Context, p *PTY) error {
	stop := context.AfterFunc(ctx, p.interrupt)
	defer stop()
	pace := pacer{turnaround: b.cfg.Turnaround}
	if b.cfg.Paced {
		bits := 9 + b.cfg.StopBits
		if b.cfg.Parity {
			bits++
		}
		baud := b.cfg.Baud
		if baud == 0 {
			baud = 9600
		}
		pace.char = time.Duration(bits) * time.Second / time.Duration(baud)
	}
	if b.has(Unplug) && p.link == "" {
		return fmt.Errorf("serve %s: to be unplugged it needs a link", p.Name())
	}
	for {
		err := b.serveRTU(p, pace, func() bool {
			p.share()
			if b.cfg.Baud == 0 {
				return true
			}
			baud, stopBits, err := p.Speed()
			return err == nil && baud == b.cfg.Baud && stopBits == b.cfg.StopBits
		})
		if errors.Is(err, errUnplugged) {
			err = b.replug(ctx, p)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("serve %s: %w", p.Name(), err)
		}
	}
}

// replug takes the terminal away for as long as the bus is.
func (b *Bus) replug(ctx context.Context, p *PTY) error {
	if err := p.unplug(); err != nil {
		return err
	}
	away, _ := b.plug()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(away):
	}
	return p.plug()
}

// ServeRTUTCP answers RTU frames on every connection to ln until ctx ends. It
// closes ln.
func (b *Bus) ServeRTUTCP(ctx context.Context, ln net.Listener) error {
	return b.serveConns(ctx, ln, func(c net.Conn) error {
		return b.serveRTU(c, pacer{turnaround: b.cfg.Turnaround}, nil)
	})
}

// has reports whether a fault was there when the bus was made.
func (b *Bus) has(f Fault) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cfg.Faults[f] > 0
}

// reset ends a connection as a device does that has lost its power or has no
// room.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// maxConns bounds the masters of one listener; more are refused.
const maxConns = 64

func (b *Bus) serveConns(ctx context.Context, ln net.Listener, serve func(net.Conn) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = map[net.Conn]bool{}
	)
	most := maxConns
	if b.has(SingleClient) {
		most = 1
	}
	stop := context.AfterFunc(ctx, func() {
		_ = ln.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range conns {
			_ = c.Close()
		}
	})
	defer stop()
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("listen on %s: %w", ln.Addr(), err)
		}
		away, gone := b.plug()
		mu.Lock()
		full := len(conns) >= most || away > 0 || ctx.Err() != nil
		if !full {
			conns[c] = true
		}
		mu.Unlock()
		if full {
			b.count(func(s *Stats) { s.Refused++ })
			reset(c)
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			served := make(chan struct{})
			wg.Add(1)
			go func() { // whoever else is connected when the plug is pulled
				defer wg.Done()
				select {
				case <-gone:
					reset(c)
				case <-served:
				}
			}()
			_ = serve(c) // the master hung up, or the plug was pulled
			close(served)
			if away, _ := b.plug(); away > 0 {
				reset(c)
			}
			_ = c.Close()
			mu.Lock()
			delete(conns, c)
			mu.Unlock()
		}()
	}
}
