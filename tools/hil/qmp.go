package hil

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// patience is the longest that QEMU itself may take to answer.
const patience = 30 * time.Second

// Event is what QEMU tells without having been asked.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// maxEvents are kept that nobody has waited for; the oldest give way.
const maxEvents = 256

// qmp speaks the QEMU Machine Protocol (docs/interop/qmp-spec.rst). It is safe
// for concurrent use.
type qmp struct {
	conn    net.Conn
	log     io.Writer  // gets all that is said
	asking  sync.Mutex // one command at a time
	replies chan qmpReply

	mu     sync.Mutex
	events []Event
	more   chan struct{} // closed and made anew with each event
}

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func dialQMP(path string, log io.Writer) (*qmp, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	q := &qmp{conn: conn, log: log, replies: make(chan qmpReply, 1), more: make(chan struct{})}
	r := bufio.NewReaderSize(conn, 1<<20)
	if _, err := r.ReadBytes('\n'); err != nil { // greeting
		return nil, fmt.Errorf("qmp greeting: %w", err)
	}
	go q.read(r)
	_, err = q.do("qmp_capabilities", nil)
	return q, err
}

func (q *qmp) read(r *bufio.Reader) {
	defer close(q.replies)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		q.keep("<", line)
		var m struct {
			Event
			qmpReply
		}
		if err := json.Unmarshal(line, &m); err != nil {
			return
		}
		if m.Name == "" {
			q.replies <- m.qmpReply
			continue
		}
		q.mu.Lock()
		if len(q.events) == maxEvents {
			q.events = q.events[1:]
		}
		q.events = append(q.events, m.Event)
		close(q.more)
		q.more = make(chan struct{})
		q.mu.Unlock()
	}
}

func (q *qmp) keep(dir string, line []byte) {
	fmt.Fprintf(q.log, "%s %s %s", time.Now().Format("15:04:05.000"), dir, line)
}

// do runs a command and returns its result.
func (q *qmp) do(command string, args any) (json.RawMessage, error) {
	q.asking.Lock()
	defer q.asking.Unlock()
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	q.keep(">", b)
	if _, err := q.conn.Write(b); err != nil {
		return nil, fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case r, ok := <-q.replies:
		if !ok {
			return nil, fmt.Errorf("qmp %s: the machine has gone", command)
		}
		if r.Error != nil {
			return nil, fmt.Errorf("qmp %s: %s", command, r.Error.Desc)
		}
		return r.Return, nil
	case <-time.After(patience):
		return nil, fmt.Errorf("qmp %s: no answer within %s", command, patience)
	}
}

// await returns the next event of that name, taking it and all before it.
func (q *qmp) await(ctx context.Context, name string) (Event, error) {
	for {
		q.mu.Lock()
		for i, e := range q.events {
			if e.Name == name {
				q.events = q.events[i+1:]
				q.mu.Unlock()
				return e, nil
			}
		}
		more := q.more
		q.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return Event{}, fmt.Errorf("event %s: %w", name, ctx.Err())
		}
	}
}
