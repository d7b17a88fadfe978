package hil

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
)

// maxFrame is the longest Ethernet frame that a hub carries.
const maxFrame = 16 << 10

// Hub is a LAN for guests: each is a client of its Unix socket
// (-netdev stream, frames behind a big-endian length of four bytes). It loses
// frames and cuts ports off on demand. It is safe for concurrent use.
type Hub struct {
	ln net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	rng   *rand.Rand
	loss  float64
	ports []*port
	mac   map[[6]byte]*port // where a station was last heard
}

type port struct {
	conn net.Conn
	mu   sync.Mutex // writes
	cut  bool       // guarded by Hub.mu
}

// NewHub listens on a Unix socket; seed decides which frames are lost.
func NewHub(path string, seed uint64) (*Hub, error) {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	h := &Hub{ln: ln, rng: rand.New(rand.NewPCG(seed, 1)), mac: map[[6]byte]*port{}}
	h.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p := &port{conn: c}
			h.mu.Lock()
			h.ports = append(h.ports, p)
			h.mu.Unlock()
			h.wg.Go(func() { h.serve(p) })
		}
	})
	return h, nil
}

// Lose makes every frame get lost with probability p.
func (h *Hub) Lose(p float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.loss = p
}

// Cut pulls the plug of the station with this address, or plugs it in again.
func (h *Hub) Cut(mac [6]byte, cut bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.mac[mac]
	if p == nil {
		return errors.New("nothing was heard of that station so far")
	}
	p.cut = cut
	return nil
}

// Close unplugs everybody.
func (h *Hub) Close() error {
	err := h.ln.Close()
	h.mu.Lock()
	for _, p := range h.ports {
		p.conn.Close()
	}
	h.mu.Unlock()
	h.wg.Wait()
	return err
}

func (h *Hub) serve(p *port) {
	defer p.conn.Close()
	b := make([]byte, 4+maxFrame)
	for {
		if _, err := io.ReadFull(p.conn, b[:4]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint32(b))
		if n < 12 || n > maxFrame {
			return
		}
		if _, err := io.ReadFull(p.conn, b[4:4+n]); err != nil {
			return
		}
		for _, to := range h.route(p, [6]byte(b[4:10]), [6]byte(b[10:16])) {
			to.mu.Lock()
			_, _ = to.conn.Write(b[:4+n]) // a guest that has gone is found by its own reader
			to.mu.Unlock()
		}
	}
}

// route returns who gets a frame.
func (h *Hub) route(from *port, dst, src [6]byte) []*port {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mac[src] = from
	if from.cut || h.loss > 0 && h.rng.Float64() < h.loss {
		return nil
	}
	if to := h.mac[dst]; to != nil && dst[0]&1 == 0 {
		if to.cut || to == from {
			return nil
		}
		return []*port{to}
	}
	var all []*port
	for _, to := range h.ports {
		if to != from && !to.cut {
			all = append(all, to)
		}
	}
	return all
}
