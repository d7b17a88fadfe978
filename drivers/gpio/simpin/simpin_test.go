package simpin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/boards"
	"periph.io/x/conn/v3/gpio"
)

type change struct {
	pin  string
	high bool
}

// serve starts the simulated board's pins and returns the changes it sees.
func serve(t *testing.T, path string, pins []board.Pin) (*Server, <-chan change, func()) {
	t.Helper()
	changes := make(chan change, 100)
	s, err := Listen(ServerConfig{Path: path, Pins: pins, OnChange: func(p string, h bool) { changes <- change{p, h} }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return s, changes, stop
}

func simulated(t *testing.T) board.Board {
	b, err := boards.Get("simulated")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t *testing.T, c *Client, name string) gpio.PinIO {
	t.Helper()
	b := simulated(t)
	d, ok := b.Pin(name)
	if !ok {
		t.Fatalf("no pin %s", name)
	}
	p, err := c.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func next(t *testing.T, changes <-chan change, want change) {
	t.Helper()
	select {
	case got := <-changes:
		if got != want {
			t.Fatalf("change %v, want %v", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no change, want %v", want)
	}
}

// eventually waits for what another goroutine brings about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func TestRelayAndInput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pins")
	s, changes, stop := serve(t, path, simulated(t).Pins)
	defer stop()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, in := open(t, c, "RELAY1"), open(t, c, "IN1")
	if err := r.Out(gpio.High); err != nil {
		t.Fatal(err)
	}
	if h, err := s.Level("RELAY1"); err != nil || !h || r.Read() != gpio.High {
		t.Fatalf("level %t, %v", h, err)
	}
	next(t, changes, change{"RELAY1", true})
	if err := r.Out(gpio.High); err != nil { // no change, no call
		t.Fatal(err)
	}
	if in.Read() != gpio.Low {
		t.Fatal("the button is pressed")
	}
	if err := s.SetInput("IN1", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the press does not arrive", func() bool { return in.Read() == gpio.High })
	if err := r.Halt(); err != nil {
		t.Fatal(err)
	}
	next(t, changes, change{"RELAY1", false})
	if in.Out(gpio.High) == nil || s.SetInput("RELAY1", true) == nil {
		t.Error("an input is driven from inside, or an output from outside")
	}
}

func TestOutputsFallToTheirSafeLevelWithTheConnection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pins")
	pins := append(simulated(t).Pins, board.Pin{Name: "LOW", Backend: board.BackendSocket, Direction: board.Output, Polarity: board.ActiveLow, SafeHigh: true})
	s, changes, stop := serve(t, path, pins)
	defer stop()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	r := open(t, c, "RELAY2")
	low, err := c.Open(pins[len(pins)-1])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Out(gpio.High), low.Out(gpio.Low)); err != nil {
		t.Fatal(err)
	}
	next(t, changes, change{"RELAY2", true})
	next(t, changes, change{"LOW", false})
	c.Close() // as when the process is killed
	next(t, changes, change{"RELAY2", false})
	next(t, changes, change{"LOW", true})
	if h, _ := s.Level("RELAY2"); h {
		t.Fatal("closed with nobody there")
	}
	if err := r.Out(gpio.High); err == nil {
		t.Error("a closed client drives a pin")
	}
}

func TestNewClientTakesOverThroughTheSafeLevel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pins")
	_, changes, stop := serve(t, path, simulated(t).Pins)
	defer stop()
	old, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := open(t, old, "RELAY1").Out(gpio.High); err != nil {
		t.Fatal(err)
	}
	next(t, changes, change{"RELAY1", true})
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	next(t, changes, change{"RELAY1", false})
	if err := open(t, c, "RELAY1").Out(gpio.High); err != nil {
		t.Fatal(err)
	}
	next(t, changes, change{"RELAY1", true})
}

func TestLostServerReadsAsUnknownAndComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pins")
	_, _, stop := serve(t, path, simulated(t).Pins)
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, in := open(t, c, "RELAY1").(*pin), open(t, c, "IN1").(*pin)
	if err := r.Out(gpio.High); err != nil {
		t.Fatal(err)
	}
	stop()
	eventually(t, "an input of a lost board can be read", func() bool { _, err := in.Level(); return err != nil })
	if err := r.Out(gpio.High); !errors.Is(err, ErrLost) {
		t.Fatalf("driving a lost board: %v", err)
	}
	if r.Read() != gpio.Low {
		t.Error("a lost output reads as closed")
	}
	_, _, stop = serve(t, path, simulated(t).Pins)
	defer stop()
	eventually(t, "the board does not come back", func() bool { _, err := in.Level(); return err == nil })
	if l, err := r.Level(); err != nil || l != gpio.Low {
		t.Fatalf("after the return the relay reads %s, %v", l, err)
	}
}

// TestMuteServer checks that a server that stops answering costs the
// connection, so that a late reply can never answer a later request.
func TestMuteServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pins")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ended := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			ended <- err
			return
		}
		io.WriteString(conn, "in IN1 0\nready\n")
		in := bufio.NewScanner(conn)
		in.Scan()
		fmt.Fprintln(conn, "ok RELAY1 0")
		for in.Scan() { // says no more
		}
		ended <- in.Err()
	}()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := open(t, c, "RELAY1")
	if err := r.Out(gpio.High); !errors.Is(err, ErrLost) {
		t.Fatalf("silence gives %v", err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestBadRequests(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pins")
	s, changes, stop := serve(t, path, simulated(t).Pins)
	defer stop()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for line := ""; line != "ready\n"; {
		if line, err = in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"out RELAY1 2", "out NOSUCH 1", "out IN1 1", "get", "", "out RELAY1 1 1", "IN1 1", "get NOSUCH"} {
		fmt.Fprintln(conn, bad)
		if reply, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(reply, "err ") {
			t.Errorf("%q -> %q, %v", bad, reply, err)
		}
	}
	if h, _ := s.Level("RELAY1"); h {
		t.Error("a bad request closed a relay")
	}
	fmt.Fprintln(conn, "out RELAY1 1")
	next(t, changes, change{"RELAY1", true})
	conn.Write([]byte(strings.Repeat("x", 2*MaxLine)))
	next(t, changes, change{"RELAY1", false}) // the connection is ended
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{"out RELAY1 1", "get RELAY1", "out", "get IN1", "out RELAY1 0 x"} {
		f.Add(s)
	}
	b, err := boards.Get("simulated")
	if err != nil {
		f.Fatal(err)
	}
	s := &Server{cfg: ServerConfig{Pins: b.Pins}, pins: map[string]*serverPin{}}
	for _, p := range b.Pins {
		s.pins[p.Name] = &serverPin{Pin: p}
	}
	f.Fuzz(func(t *testing.T, line string) {
		fields := strings.Fields(line)
		reply := s.handle(nil, fields)
		ok := strings.HasPrefix(reply, "ok ")
		if !ok && !strings.HasPrefix(reply, "err ") || strings.Contains(reply, "\n") && !strings.Contains(line, "\n") {
			t.Fatalf("%q -> %q", line, reply)
		}
	})
}
