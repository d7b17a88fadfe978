package consensus

import (
	"sync"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// BlockEvent is one committed block.
type BlockEvent struct {
	Height       int64              `json:"height"`
	Time         time.Time          `json:"time"`     // block time
	AppHash      chain.Hash         `json:"app_hash"` // of the state after this block
	Txs          int                `json:"txs"`
	Events       []ledger.Event     `json:"events,omitempty"`
	Violations   []ledger.Violation `json:"violations,omitempty"`   // transactions refused because they would break an invariant
	Misbehaviour []Misbehaviour     `json:"misbehaviour,omitempty"` // validators proven to have signed twice
}

// Misbehaviour is evidence against a validator that a block carries.
type Misbehaviour struct {
	Kind      string    `json:"kind"`      // DUPLICATE_VOTE or LIGHT_CLIENT_ATTACK
	Validator string    `json:"validator"` // first 20 bytes of the SHA-256 of its key, hex
	Height    int64     `json:"height"`    // where it happened
	Time      time.Time `json:"time"`
}

// Result is what became of a submitted transaction.
type Result struct {
	Code    ledger.Code           `json:"code"`
	Info    string                `json:"info,omitempty"`
	Refused []ledger.RecordResult `json:"refused,omitempty"` // records of an accepted gateway block without effect
	Height  int64                 `json:"height"`            // of its block; 0: refused before it came into one
}

// hub passes committed blocks on to those who wait. It never blocks the
// consensus goroutine.
type hub struct {
	mu      sync.Mutex
	closed  bool
	subs    map[*subscription]struct{}
	waiters map[chain.Hash][]chan Result
	waiting int
	recent  map[chain.Hash]Result // of the last transactions, for those who ask late
	order   []chain.Hash          // of recent, oldest first
}

type subscription struct{ ch chan BlockEvent }

func newHub() *hub {
	return &hub{
		subs:    map[*subscription]struct{}{},
		waiters: map[chain.Hash][]chan Result{},
		recent:  map[chain.Hash]Result{},
	}
}

// committed tells the waiters of the block's transactions and all
// subscribers. A subscriber that lags loses its oldest event.
func (h *hub) committed(ev BlockEvent, txs []txOutcome) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range txs {
		r := Result{Code: t.result.Code, Info: t.result.Info, Refused: t.result.Refused, Height: ev.Height}
		if _, again := h.recent[t.hash]; !again {
			h.order = append(h.order, t.hash)
			h.recent[t.hash] = r
		}
		h.tell(t.hash, r)
	}
	if n := len(h.order) - recentResults; n > 0 {
		for _, k := range h.order[:n] {
			delete(h.recent, k)
		}
		h.order = append(h.order[:0], h.order[n:]...)
	}
	for s := range h.subs {
		select {
		case s.ch <- ev:
			continue
		default:
		}
		select {
		case <-s.ch:
		default:
		}
		s.ch <- ev // cannot block: only this function sends, and it holds the lock
	}
}

// refused tells the waiters of a transaction that a later block made invalid.
func (h *hub) refused(tx chain.Hash, r ledger.TxResult) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tell(tx, Result{Code: r.Code, Info: r.Info, Refused: r.Refused})
}

func (h *hub) tell(tx chain.Hash, r Result) {
	for _, w := range h.waiters[tx] {
		w <- r // buffered, one result each
		h.waiting--
	}
	delete(h.waiters, tx)
}

// wait returns a channel for the result of tx and a function to give up, or
// the result itself if it is known.
func (h *hub) wait(tx chain.Hash) (<-chan Result, func(), error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := make(chan Result, 1)
	switch r, known := h.recent[tx]; {
	case h.closed:
		return nil, nil, ErrClosed
	case known:
		w <- r
		return w, func() {}, nil
	case h.waiting >= maxWaiters:
		return nil, nil, ErrFull
	}
	h.waiters[tx] = append(h.waiters[tx], w)
	h.waiting++
	return w, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i, x := range h.waiters[tx] {
			if x == w {
				h.waiters[tx] = append(h.waiters[tx][:i:i], h.waiters[tx][i+1:]...)
				h.waiting--
			}
		}
		if len(h.waiters[tx]) == 0 {
			delete(h.waiters, tx)
		}
	}, nil
}

// subscribe returns a channel of later blocks. The channel is closed by the
// cancel function and by close.
func (h *hub) subscribe(buffer int) (<-chan BlockEvent, func(), error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, nil, ErrClosed
	}
	if len(h.subs) >= maxSubscriber {
		return nil, nil, ErrFull
	}
	s := &subscription{make(chan BlockEvent, max(buffer, 1))}
	h.subs[s] = struct{}{}
	return s.ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.drop(s)
	}, nil
}

func (h *hub) drop(s *subscription) {
	if _, ok := h.subs[s]; ok {
		delete(h.subs, s)
		close(s.ch)
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.subs {
		h.drop(s)
	}
}
