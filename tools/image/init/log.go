package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxLog is how large a log file becomes; two are kept, the older as
// joulegate.log.1. Logs never fill a card.
const maxLog = 4 << 20

// logger writes lines to the console and to a file. It is safe for concurrent
// use.
type logger struct {
	mu      sync.Mutex
	console io.Writer
	hidden  bool // somebody works at the console
	path    string
	file    *os.File // nil: none yet, or it failed
	size    int64
}

// open goes on with the file of dir.
func (l *logger) open(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.path = filepath.Join(dir, "joulegate.log")
	return l.next(os.O_APPEND)
}

func (l *logger) next(how int) (err error) {
	l.file, err = os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|how, 0o600)
	if err != nil {
		l.file = nil
		return err
	}
	st, err := l.file.Stat()
	if err != nil {
		return err
	}
	l.size = st.Size()
	return nil
}

func (l *logger) printf(format string, args ...any) {
	l.line(fmt.Appendf(nil, "time=%s %s", time.Now().UTC().Format(time.RFC3339), fmt.Sprintf(format, args...)))
}

// problem says what went wrong, if anything did.
func (l *logger) problem(err error) {
	if err != nil {
		l.printf("init: %v", err)
	}
}

// line writes one line, without its end. A file that cannot be written is
// given up: the console goes on.
func (l *logger) line(b []byte) {
	b = append(b, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.hidden || l.file == nil {
		_, _ = l.console.Write(b)
	}
	if l.file == nil {
		return
	}
	if l.size+int64(len(b)) > maxLog {
		l.file.Close()
		_ = os.Rename(l.path, l.path+".1")
		if l.next(os.O_TRUNC) != nil {
			return
		}
	}
	n, err := l.file.Write(b)
	if l.size += int64(n); err != nil {
		l.file.Close()
		l.file = nil
		fmt.Fprintf(l.console, "init: %v: the log is on the console only\n", err)
	}
}

// show lets lines come to the console, or keeps them away while somebody
// works there.
func (l *logger) show(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hidden = !on
}

func (l *logger) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}
