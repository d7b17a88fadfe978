package hil

import (
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// maxTrace is how much of a line's traffic is kept: hours of it. What comes
// later is not.
const maxTrace = 64 << 20

// Trace keeps a record of what passes over the connections of a listener, for
// people: a line per read or write, with its time, its direction as seen by
// the host, and its bytes. The file is closed with the listener.
func Trace(ln net.Listener, path string) (net.Listener, error) {
	f, err := os.Create(path)
	return &tracedListener{ln, &traceFile{f: f}}, err
}

type tracedListener struct {
	net.Listener
	to *traceFile
}

func (l *tracedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tracedConn{c, l.to}, nil
}

func (l *tracedListener) Close() error {
	err := l.Listener.Close()
	l.to.close()
	return err
}

type tracedConn struct {
	net.Conn
	to *traceFile
}

func (c *tracedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.to.say("<", b[:n])
	return n, err
}

func (c *tracedConn) Write(b []byte) (int, error) {
	c.to.say(">", b)
	return c.Conn.Write(b)
}

type traceFile struct {
	mu   sync.Mutex
	f    *os.File // nil: closed
	size int
}

func (t *traceFile) say(dir string, b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.f == nil || len(b) == 0 || t.size > maxTrace {
		return
	}
	n, _ := fmt.Fprintf(t.f, "%s %s % x\n", time.Now().Format("15:04:05.000"), dir, b)
	t.size += n
}

func (t *traceFile) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.f != nil {
		t.f.Close()
		t.f = nil
	}
}
