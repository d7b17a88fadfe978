// Package live holds the latest snapshot of the gateway and fans it out to
// whoever watches.
//
// The control loop publishes and never waits: every watcher has a queue of
// QueueLen snapshots, and a watcher that is slower than the loop loses the
// oldest ones. A snapshot is the whole state, so a lost one costs smoothness
// and no information.
//
//	station ──Publish──► Hub ──► queue of 4 ──► panel
//	                      │ └──► queue of 4 ──► MQTT
//	                      └ Latest
package live

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/joulegate/joulegate/board"
)

// Limits of a hub.
const (
	QueueLen    = 4  // snapshots per watcher; the oldest is dropped
	MaxWatchers = 64 // more are refused
)

// ErrTooMany is returned when MaxWatchers watch already.
var ErrTooMany = errors.New("too many watchers")

// Hub is safe for concurrent use. The zero value is ready.
type Hub struct {
	latest  atomic.Pointer[board.Snapshot]
	dropped atomic.Uint64

	mu       sync.Mutex
	watchers map[chan board.Snapshot]struct{}
}

// New returns a hub without a snapshot.
func New() *Hub { return &Hub{} }

// Publish makes s the latest snapshot. It does not block.
func (h *Hub) Publish(s board.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.latest.Store(&s)
	for w := range h.watchers {
		select {
		case w <- s:
			continue
		default:
		}
		// Full. Publish is the only sender, so after taking one out there is
		// room, whether the watcher was faster or not.
		select {
		case <-w:
			h.dropped.Add(1)
		default:
		}
		w <- s
	}
}

// Latest returns the newest snapshot and whether there is one.
func (h *Hub) Latest() (board.Snapshot, bool) {
	p := h.latest.Load()
	if p == nil {
		return board.Snapshot{}, false
	}
	return *p, true
}

// Watch returns snapshots from the latest one on until ctx ends, when the
// channel is closed.
func (h *Hub) Watch(ctx context.Context) (<-chan board.Snapshot, error) {
	w := make(chan board.Snapshot, QueueLen)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) >= MaxWatchers {
		return nil, ErrTooMany
	}
	if h.watchers == nil {
		h.watchers = map[chan board.Snapshot]struct{}{}
	}
	h.watchers[w] = struct{}{}
	if s := h.latest.Load(); s != nil {
		w <- *s
	}
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers, w)
		close(w)
	})
	return w, nil
}

// Dropped counts snapshots that slow watchers missed.
func (h *Hub) Dropped() uint64 { return h.dropped.Load() }
