package modbus

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seal appends the checksum.
func seal(b ...byte) []byte { return binary.LittleEndian.AppendUint16(b, crc16(b)) }

// registers says what a register holds. It is the slave's truth and the
// test's: a value names its address.
type registers func(unit, fn byte, addr uint16) uint16

func addressed(unit, fn byte, addr uint16) uint16 { return addr*7 + uint16(unit)<<8 + uint16(fn) }

func (r registers) data(unit byte, k key) (b []byte) {
	for i := range k.count {
		b = binary.BigEndian.AppendUint16(b, r(unit, k.fn, k.addr+i))
	}
	return b
}

// reply is what a faultless slave answers to the RTU request req.
func (r registers) reply(req []byte) []byte {
	k := keyOf(req[1 : len(req)-2])
	switch k.fn {
	case fnReadHolding, fnReadInput:
		data := r.data(req[0], k)
		return seal(append([]byte{req[0], k.fn, byte(len(data))}, data...)...)
	case fnWriteCoil, fnWriteOne, fnWriteMany:
		return seal(slices.Clone(req[:6])...)
	}
	return seal(req[0], k.fn|exceptionBit, 1)
}

// sending is a piece of a slave's output.
type sending struct {
	after time.Duration // the request; output keeps its order
	data  []byte
}

// fakeSlave answers the RTU requests on streams as script says.
type fakeSlave struct {
	script func(req []byte) []sending
	done   sync.WaitGroup

	mu   sync.Mutex
	seen [][]byte // requests in order of arrival
}

type due struct {
	at   time.Time
	data []byte
}

func serveRTU(rw io.ReadWriter, script func(req []byte) []sending) *fakeSlave {
	s := &fakeSlave{script: script}
	s.serve(rw)
	return s
}

// serve answers on rw until reading fails.
func (s *fakeSlave) serve(rw io.ReadWriter) {
	out := make(chan due, 4096)
	s.done.Go(func() {
		defer close(out)
		s.listen(rw, out)
	})
	s.done.Go(func() {
		for d := range out {
			time.Sleep(time.Until(d.at))
			if _, err := rw.Write(d.data); err != nil {
				for range out {
				}
				return
			}
		}
	})
}

func (s *fakeSlave) listen(rw io.Reader, out chan<- due) {
	var buf []byte
	chunk := make([]byte, 512)
	for {
		n, err := rw.Read(chunk)
		if err != nil {
			return
		}
		buf = append(buf, chunk[:n]...)
		for {
			size := requestSize(buf)
			if size == 0 || len(buf) < size {
				break
			}
			req := slices.Clone(buf[:size])
			buf = buf[size:]
			if !sealed(req) {
				panic("the line sent a bad frame")
			}
			s.mu.Lock()
			s.seen = append(s.seen, req)
			s.mu.Unlock()
			now := time.Now()
			for _, o := range s.script(req) {
				out <- due{now.Add(o.after), o.data}
			}
		}
	}
}

func (s *fakeSlave) requests() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

func requestSize(b []byte) int {
	if len(b) < 7 {
		return 0
	}
	if b[1] == fnWriteMany {
		return 9 + int(b[6])
	}
	return 8
}

// pipeLine is a running RTU line whose slave is script: through a bridge,
// without any wire time, unless cfg names a device. stop ends both.
func pipeLine(cfg Config, script func(req []byte) []sending) (l *Line, s *fakeSlave, stop func()) {
	if cfg.Device == "" {
		cfg.RTUTCP = "test:1"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 100 * time.Millisecond
	}
	var mu sync.Mutex
	var far []net.Conn
	s = &fakeSlave{script: func(req []byte) []sending {
		mu.Lock()
		defer mu.Unlock()
		return script(req)
	}}
	l = newLine(cfg, func(context.Context) (port, error) {
		a, b := net.Pipe()
		mu.Lock()
		defer mu.Unlock()
		far = append(far, b)
		s.serve(b)
		return a, nil
	})
	end := running(l)
	return l, s, func() {
		end()
		for _, c := range far {
			c.Close()
		}
		s.done.Wait()
	}
}

// running runs l until the returned function is called.
func running(l *Line) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx); close(done) }()
	return func() { cancel(); <-done }
}

// openPTY returns the master of a new pseudo-terminal, raw, and its name.
func openPTY(tb testing.TB) (*os.File, string) {
	tb.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatalf("open /dev/ptmx: %v", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		tb.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		tb.Fatal(err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		tb.Fatal(err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		tb.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "ptmx")
	tb.Cleanup(func() { f.Close() })
	return f, "/dev/pts/" + strconv.Itoa(n)
}

// testLog writes the line's log to the test's.
func testLog(tb testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
