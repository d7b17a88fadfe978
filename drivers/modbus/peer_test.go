package modbus

import (
	"net"
	"testing"
	"time"
)

func TestNeighbour(t *testing.T) {
	const table = `IP address       HW type     Flags       HW address            Mask     Device
192.0.2.7        0x1         0x2         02:00:00:00:00:07     *        eth0
192.0.2.8        0x1         0x0         00:00:00:00:00:00     *        eth0
192.0.2.70       0x1         0x2         02:00:00:00:00:70     *        eth0
`
	for ip, want := range map[string]string{"192.0.2.7": "02:00:00:00:00:07", "192.0.2.70": "02:00:00:00:00:70", "192.0.2.8": "", "192.0.2.9": ""} {
		if got := neighbour(table, ip); got != want {
			t.Errorf("%s is %q, want %q", ip, got, want)
		}
	}
	if got := neighbour("", "192.0.2.7"); got != "" {
		t.Error(got)
	}
}

func TestPeerOfConnection(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l, err := New(Config{TCP: ln.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if a, h := l.Peer(); a != "" || h != "" {
		t.Errorf("before connecting: %q %q", a, h)
	}
	defer running(l)()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if a, _ := l.Peer(); a == "127.0.0.1" {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("connected, but the peer is %q", a)
		}
	}
}
