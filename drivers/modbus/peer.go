package modbus

import (
	"net"
	"os"
	"strings"
)

// Peer returns where the other end of a network line is: its IP address and,
// if it is on the same network, its hardware address. Modbus knows no
// authentication; these at least tell when another device has taken a place.
// Both are empty while there is no connection, and on a serial line.
func (l *Line) Peer() (address, hardware string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.peer.address, l.peer.hardware
}

// peer is who is at the other end of a connection.
type peer struct{ address, hardware string }

// peerOf finds out who p leads to. Right after connecting, the kernel's table
// of neighbours is fresh.
func peerOf(p port) (who peer) {
	c, ok := p.(net.Conn)
	if !ok {
		return peer{}
	}
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil { // net.Pipe
		return peer{}
	}
	table, _ := os.ReadFile("/proc/net/arp") // without it the address remains
	return peer{host, neighbour(string(table), host)}
}

// neighbour looks ip up in a table of the form of /proc/net/arp (proc(5)): IP
// address, hardware type, flags, hardware address, mask, device.
func neighbour(table, ip string) string {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) >= 4 && f[0] == ip && f[3] != "00:00:00:00:00:00" {
			return f[3]
		}
	}
	return ""
}
