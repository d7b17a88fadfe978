package mqtt

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"
)

// Limits of the spool.
const (
	MaxEvents     = 4096    // events that the broker has not taken yet; beyond it the oldest goes
	maxEventBytes = 4 << 20 // of their payloads together, likewise
	// seqJump is how far seq runs ahead in a second of lost memory: far more
	// than events that can have happened in it.
	seqJump = 1 << 16
)

// Store keeps small values on disk.
type Store interface {
	// Saved calls f for the values whose names begin with prefix, by name.
	Saved(prefix string, f func(name string, value []byte) error) error
	// Update saves all of changes or none; nil removes. It returns when they
	// are on disk.
	Update(changes map[string][]byte) error
}

// Event is something that happened.
type Event struct {
	Kind     string // for example session.closed
	Severity Severity
	Time     time.Time
	Data     any
}

// Spool holds events until the broker has them, on disk, so that they survive
// a restart:
//
//	source ──Add(.., how far it was read)──► disk ──► sender ──► broker
//	   ▲                                      │          │ acknowledged
//	   └──── Read: continue from here ────────┴──────────┘
//
// An event and how far its source was read are written together. Whoever adds
// events of a source that can be read again (the ledger's blocks, this
// gateway's own) therefore loses none and adds none twice, wherever the power
// fails. What the broker has acknowledged is noted a moment later: after a
// crash some events come again, with the same seq.
//
// seq grows by one with each event. Where memory of it was lost, with the disk
// or by restoring a backup, it jumps ahead and never back.
//
// A Spool is safe for concurrent use.
type Spool struct {
	store Store

	mu      sync.Mutex
	head    spoolHead
	waiting []spooled // oldest first
	bytes   int
	done    []string // names of entries that have been taken and are still on disk
	dropped uint64
	added   func() // nil: nobody sends yet
}

type spoolHead struct {
	Version int               `json:"version"`
	Next    uint64            `json:"next"` // seq of the next event
	Mark    string            `json:"mark,omitempty"`
	Read    map[string]string `json:"read,omitempty"` // by source
}

type spooled struct {
	seq     uint64
	Topic   string          `json:"topic"` // below the root
	Payload json.RawMessage `json:"payload"`
}

const (
	spoolVersion = 1
	spoolKey     = "mqtt.event."
	spoolHeadKey = "mqtt.events"
)

func (s *spooled) key() string { return fmt.Sprintf("%s%016x", spoolKey, s.seq) }

// newSpool returns a spool that forgets with the process.
func newSpool() *Spool { return &Spool{head: spoolHead{Next: 1, Read: map[string]string{}}} }

// OpenSpool reads what waits in store. mark names the memory that store is:
// another one than before, as after a restore, means that events may have been
// told since that it does not know.
func OpenSpool(store Store, mark string, now time.Time) (*Spool, error) {
	s := newSpool()
	known := false
	err := store.Saved(spoolHeadKey, func(name string, value []byte) error {
		if name != spoolHeadKey {
			return nil
		}
		known = true
		if err := json.Unmarshal(value, &s.head); err != nil {
			return err
		}
		if s.head.Version > spoolVersion {
			return fmt.Errorf("of format %d, this program knows %d: update joulegate", s.head.Version, spoolVersion)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("mqtt: waiting events: %w", err)
	}
	err = store.Saved(spoolKey, func(name string, value []byte) error {
		var e spooled
		if _, err := fmt.Sscanf(strings.TrimPrefix(name, spoolKey), "%016x", &e.seq); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := json.Unmarshal(value, &e); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s.waiting, s.bytes = append(s.waiting, e), s.bytes+len(e.Payload)
		s.head.Next = max(s.head.Next, e.seq+1)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("mqtt: waiting events: %w", err)
	}
	if s.head.Read == nil {
		s.head.Read = map[string]string{}
	}
	if !known || s.head.Mark != mark {
		s.head.Next = max(s.head.Next, uint64(max(now.Unix(), 1))*seqJump)
	}
	s.head.Version, s.head.Mark, s.store = spoolVersion, mark, store
	return s, nil
}

// Read returns how far a source has been read.
func (s *Spool) Read(source string) (upTo string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	upTo, ok = s.head.Read[source]
	return upTo, ok
}

// Skip notes that a source was read up to a place and nothing was found. It is
// not written: to read it again costs less.
func (s *Spool) Skip(source, upTo string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head.Read[source] = upTo
}

// event is the payload of event/<type>.
type event struct {
	Seq      uint64    `json:"seq"` // +1 per event; see Spool
	Time     time.Time `json:"time"`
	Severity Severity  `json:"severity"`
	Data     any       `json:"data"`
}

// Add puts events into the queue, and with them how far their source was read;
// "" is a source that cannot be read again. They are on disk when it returns.
// An error of the disk does not keep them from being sent; a wrong event adds
// none of them.
func (s *Spool) Add(source, upTo string, events ...Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.head
	var more []spooled
	for _, e := range events {
		if err := CheckLevel(e.Kind); err != nil {
			return fmt.Errorf("mqtt: event: %w", err)
		}
		b, err := json.Marshal(event{next.Next, e.Time.UTC(), e.Severity, e.Data})
		if err != nil {
			return fmt.Errorf("mqtt: event %s: %w", e.Kind, err)
		}
		if len(b) > MaxPayload {
			return fmt.Errorf("mqtt: event %s: payload of %d bytes, at most %d", e.Kind, len(b), MaxPayload)
		}
		more = append(more, spooled{next.Next, "event/" + e.Kind, b})
		next.Next++
	}
	if source != "" {
		next.Read = maps.Clone(next.Read)
		next.Read[source] = upTo
	}
	s.head = next
	if s.added != nil {
		s.added()
	}
	for _, e := range more {
		s.waiting, s.bytes = append(s.waiting, e), s.bytes+len(e.Payload)
	}
	for len(s.waiting) > 1 && (len(s.waiting) > MaxEvents || s.bytes > maxEventBytes) {
		s.dropped++
		s.drop()
	}
	if s.store == nil {
		s.done = s.done[:0]
		return nil
	}
	changes := s.changes()
	for i := range more {
		if more[i].seq >= s.waiting[0].seq {
			changes[more[i].key()] = mustJSON(more[i])
		}
	}
	return s.write(changes)
}

// drop takes the oldest out. The caller holds mu.
func (s *Spool) drop() {
	e := s.waiting[0]
	s.waiting, s.bytes = s.waiting[1:], s.bytes-len(e.Payload)
	s.done = append(s.done, e.key())
}

func (s *Spool) changes() map[string][]byte {
	m := map[string][]byte{spoolHeadKey: mustJSON(s.head)}
	for _, name := range s.done {
		m[name] = nil
	}
	return m
}

func (s *Spool) write(changes map[string][]byte) error {
	if err := s.store.Update(changes); err != nil {
		return fmt.Errorf("mqtt: events are not on disk: %w", err)
	}
	s.done = s.done[:0]
	return nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("mqtt: %T: %v", v, err)) // of our own types
	}
	return b
}

// oldest returns the event that has waited longest. It stays.
func (s *Spool) oldest() (spooled, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		return spooled{}, false
	}
	return s.waiting[0], true
}

// taken notes that the broker has an event.
func (s *Spool) taken(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) > 0 && s.waiting[0].seq == seq { // else it was dropped meanwhile
		s.drop()
	}
}

// flush writes what was taken.
func (s *Spool) flush(log *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store == nil {
		s.done = s.done[:0]
	}
	if len(s.done) == 0 {
		return
	}
	if err := s.write(s.changes()); err != nil {
		log.Warn("events will be told again after a restart", "err", err)
	}
}

func (s *Spool) stats() (waiting int, dropped uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting), s.dropped
}
