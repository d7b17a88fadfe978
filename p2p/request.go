package p2p

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// A request is one stream:
//
//	asker    length uint32 (big-endian) | request
//	server   status uint8 | length uint32 | reply, or the text of an error
const (
	statusOK   = 0
	statusFail = 1
	statusBusy = 2
)

// ErrBusy is returned by Request when the peer serves too much already. Ask
// again later.
var ErrBusy = errors.New("peer is busy")

// RemoteError is what a peer's handler answered instead of a reply. Its text
// is the peer's: show it, do not interpret it.
type RemoteError struct{ Text string }

func (e *RemoteError) Error() string { return "peer refused: " + e.Text }

// RequestHandler answers one request. The text of its error is sent to the
// asker. It is called concurrently and may keep req.
type RequestHandler func(ctx context.Context, from peer.ID, req []byte) ([]byte, error)

// Handle answers requests of members on a protocol. Requests above maxRequest
// bytes are refused unread.
func (n *Node) Handle(proto protocol.ID, maxRequest int, f RequestHandler) {
	n.host.SetStreamHandler(proto, n.serve(maxRequest, f))
}

// HandleGuest is Handle for a protocol that guests may use too.
func (n *Node) HandleGuest(proto protocol.ID, maxRequest int, f RequestHandler) {
	n.inner.SetStreamHandler(proto, n.serve(maxRequest, f))
}

func (n *Node) serve(maxRequest int, f RequestHandler) network.StreamHandler {
	return func(s network.Stream) {
		from := s.Conn().RemotePeer()
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(RequestTimeout))
		n.count.requests.Add(1)
		most := maxPerPeer
		if !n.member(from) {
			most = maxPerGuest // guests together leave room for members
		}
		if !n.slots.take(from, most) {
			n.count.requestsBusy.Add(1)
			_ = writeReply(s, statusBusy, nil)
			return
		}
		defer n.slots.free(from)
		req, err := readFrame(s, maxRequest)
		if err != nil {
			n.count.requestErrors.Add(1)
			_ = s.Reset()
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), RequestTimeout)
		defer cancel()
		status, reply := byte(statusOK), []byte(nil)
		if reply, err = f(ctx, from, req); err != nil {
			n.count.requestErrors.Add(1)
			text := err.Error()
			status, reply = statusFail, []byte(text[:min(len(text), maxErrText)])
		}
		if err := writeReply(s, status, reply); err != nil {
			_ = s.Reset()
		}
	}
}

// Request asks a connected peer one question. A reply above maxReply bytes is
// an error. The deadline is ctx's or RequestTimeout, whichever is first.
func (n *Node) Request(ctx context.Context, id peer.ID, proto protocol.ID, req []byte, maxReply int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, RequestTimeout)
	defer cancel()
	s, err := n.inner.NewStream(network.WithNoDial(ctx, "the address book dials"), id, proto)
	if err != nil {
		return nil, fmt.Errorf("p2p: ask %s for %s: %w", id, proto, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	reply, err := ask(s, req, maxReply)
	if err != nil {
		_ = s.Reset()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("p2p: ask %s for %s: %w", id, proto, err)
	}
	_ = s.Close()
	return reply, nil
}

func ask(s network.Stream, req []byte, maxReply int) ([]byte, error) {
	if err := writeFrame(s, nil, req); err != nil {
		return nil, err
	}
	if err := s.CloseWrite(); err != nil {
		return nil, err
	}
	return readReply(s, maxReply)
}

// Connect dials a peer that need not be in the book, as a guest does to the
// gateway that invited it. Allow must accept the peer.
func (n *Node) Connect(ctx context.Context, info peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, RequestTimeout)
	defer cancel()
	if err := n.inner.Connect(ctx, info); err != nil {
		return fmt.Errorf("p2p: connect %s: %w", info.ID, err)
	}
	return nil
}

func writeFrame(w io.Writer, prefix, b []byte) error {
	buf := bufio.NewWriterSize(w, 4096)
	_, _ = buf.Write(prefix)
	_ = binary.Write(buf, binary.BigEndian, uint32(len(b)))
	_, _ = buf.Write(b)
	return buf.Flush()
}

func writeReply(w io.Writer, status byte, b []byte) error { return writeFrame(w, []byte{status}, b) }

// readFrame reads a length and that many bytes. Memory grows with what
// arrives, not with what the length claims.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if n > int64(limit) {
		return nil, fmt.Errorf("frame of %d bytes, at most %d", n, limit)
	}
	b, err := io.ReadAll(io.LimitReader(r, n))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != n {
		return nil, io.ErrUnexpectedEOF
	}
	return b, nil
}

func readReply(r io.Reader, limit int) ([]byte, error) {
	var status [1]byte
	if _, err := io.ReadFull(r, status[:]); err != nil {
		return nil, err
	}
	if status[0] != statusOK {
		limit = maxErrText
	}
	b, err := readFrame(r, limit)
	switch {
	case err != nil:
		return nil, err
	case status[0] == statusOK:
		return b, nil
	case status[0] == statusBusy:
		return nil, ErrBusy
	case status[0] == statusFail:
		return nil, &RemoteError{Text: string(b)}
	}
	return nil, fmt.Errorf("reply of unknown status %d", status[0])
}

// slots bounds the requests served at once.
type slots struct {
	mu    sync.Mutex
	total int
	peers map[peer.ID]int
}

func newSlots() *slots { return &slots{peers: map[peer.ID]int{}} }

func (s *slots) take(id peer.ID, most int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= MaxRequests || s.peers[id] >= most {
		return false
	}
	s.total++
	s.peers[id]++
	return true
}

func (s *slots) free(id peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.peers[id]--; s.peers[id] == 0 {
		delete(s.peers, id)
	}
}

func (s *slots) busy(id peer.ID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers[id]
}
