package hil

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/joulegate/joulegate/tools/hil/wire"
)

// Forward makes a Unix socket of the guest that speaks HTTP reachable at a
// path of the host, until the machine ends. Whoever asks often asks here: a
// command of the program takes an emulated processor seconds to start. A
// connection carries one request; limit is for its answer.
func (m *Machine) Forward(path, socket string, limit time.Duration) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		<-m.done
		ln.Close()
	}()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if err := m.pass(c, socket, limit); err != nil {
					fmt.Fprintf(c, "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n%v\n", err)
				}
			}()
		}
	}()
	return nil
}

// pass carries one request into the guest and its answer back.
func (m *Machine) pass(c net.Conn, socket string, limit time.Duration) error {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return err
	}
	r.Close = true // the end of the connection is the end of the answer
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	a, err := m.Do(ctx, wire.Request{Op: wire.Talk, Name: socket, Data: b.Bytes(), Number: int64(limit)})
	if err != nil {
		return err
	}
	_, err = c.Write(a.Out)
	return err
}
