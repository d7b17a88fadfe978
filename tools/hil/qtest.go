package hil

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// qtest speaks the protocol of QEMU's device tests (qtest.c of QEMU) beside a
// running guest: it sees outputs of a device change and drives its inputs,
// which the guest cannot know or prevent.
type qtest struct {
	conn    net.Conn
	asking  sync.Mutex
	replies chan string
}

// dialQTest calls changed for every output that changes, from one goroutine.
func dialQTest(path string, changed func(line int, high bool, at time.Time)) (*qtest, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	q := &qtest{conn: conn, replies: make(chan string, 1)}
	go func() {
		defer close(q.replies)
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			at := time.Now()
			var what string
			var line int
			if _, err := fmt.Sscanf(lines.Text(), "IRQ %s %d", &what, &line); err == nil {
				changed(line, what == "raise", at)
				continue
			}
			q.replies <- lines.Text()
		}
	}()
	return q, nil
}

func (q *qtest) do(format string, args ...any) error {
	q.asking.Lock()
	defer q.asking.Unlock()
	command := fmt.Sprintf(format, args...)
	if _, err := q.conn.Write([]byte(command + "\n")); err != nil {
		return fmt.Errorf("qtest %s: %w", command, err)
	}
	select {
	case r, ok := <-q.replies:
		if !ok {
			return fmt.Errorf("qtest %s: %w", command, errors.New("the machine has gone"))
		}
		if !strings.HasPrefix(r, "OK") {
			return fmt.Errorf("qtest %s: %s", command, r)
		}
		return nil
	case <-time.After(patience):
		return fmt.Errorf("qtest %s: no answer within %s", command, patience)
	}
}
