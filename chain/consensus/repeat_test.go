package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	cs "github.com/cometbft/cometbft/consensus"
	"github.com/cometbft/cometbft/lp2p"
	cmtcons "github.com/cometbft/cometbft/proto/tendermint/consensus"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// forgetfulHost loses the first time that it says to a peer which parts of a
// block it lacks. For the receiver that is what the statement comes to when
// it overtakes the one about the height: it is dropped.
type forgetfulHost struct {
	host.Host
	mu   sync.Mutex
	said map[peer.ID]int64 // height last lost
	lost int
}

func (h *forgetfulHost) NewStream(ctx context.Context, id peer.ID, pids ...protocol.ID) (network.Stream, error) {
	s, err := h.Host.NewStream(ctx, id, pids...)
	if err != nil || pids[0] != lp2p.ProtocolID(cs.StateChannel) {
		return s, err
	}
	return &judgedStream{s, h, id}, nil
}

type judgedStream struct {
	network.Stream
	h  *forgetfulHost
	id peer.ID
}

func (s *judgedStream) Write(b []byte) (int, error) {
	var m cmtcons.Message
	_, n := binary.Uvarint(b)
	if n > 0 && m.Unmarshal(b[n:]) == nil {
		if v := m.GetNewValidBlock(); v != nil && s.h.loses(s.id, v.Height) {
			return len(b), s.Reset()
		}
	}
	return s.Stream.Write(b)
}

func (h *forgetfulHost) loses(id peer.ID, height int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.said[id] == height {
		return false
	}
	h.said[id] = height
	h.lost++
	return true
}

// A gateway whose first word about a missing block is lost is sent the block
// all the same. Without the repetition it waits for ever within some ten
// blocks.
func TestLostStatement(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1) // one neighbour only: no other can help out
	for _, n := range w.nodes {
		n.start()
	}
	var h *forgetfulHost
	w.wrap = func(inner host.Host) host.Host {
		h = &forgetfulHost{Host: inner, said: map[peer.ID]int64{}}
		return h
	}
	late := w.newGateway("house4")
	late.start()
	var last Result
	for range 20 {
		last = w.nodes[0].submit(w.mint(0, "driver", 1))
	}
	late.reach(last.Height)
	agree(t, w.nodes...)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost == 0 {
		t.Error("no statement was lost: the test did not try")
	}
	t.Logf("%d statements lost", h.lost)
}

// TestClockSetBack: a ledger that waits much longer after a block than it was
// told to does so because the wall clock was set back under it. The clock of
// this computer stays as it is: here the ledger was told to wait an hour.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	n := w.nodes[0].start()
	n.submit(w.mint(0, "driver", 5_000))
	n.stop()
	w.change = func(_ *gateway, c *Config) { c.Timing.Commit, c.pauseLimit = time.Hour, 2*time.Second }
	n.start()
	n.submit(w.mint(0, "driver", 5_000))
	select {
	case err := <-n.done:
		if !errors.Is(err, ErrClock) || !errors.Is(err, ErrReopen) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it waits for an hour")
	}
	n.cancel = nil
	n.host.Close()
	w.change = nil
	n.start()
	n.submit(w.mint(0, "driver", 5_000))
}

// TestClockBeforeFounding: computers without a battery start in the past, and
// some of them are never told the time. The ledger runs, and a start later
// goes on.
func TestClockBeforeFounding(t *testing.T) {
	t.Parallel()
	w := foundedAt(t, 2, time.Now().Add(365*24*time.Hour))
	for _, n := range w.nodes {
		n.start()
	}
	w.nodes[0].submit(w.mint(0, "driver", 5_000))
	w.nodes[0].stop()
	w.nodes[0].start()
	r := w.nodes[0].submit(w.mint(0, "driver", 5_000))
	w.nodes[1].reach(r.Height)
	agree(t, w.nodes...)
}
