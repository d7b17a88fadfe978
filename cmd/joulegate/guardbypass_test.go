package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/guard"
)

// ownNetwork puts the test into a network of its own whose default route
// leads nowhere.
func ownNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("network namespaces are not permitted here (CAP_SYS_ADMIN): %v", err)
	}
	for _, c := range []string{
		"ip link set lo up", "ip link add out type veth peer name away", "ip link set away up", "ip addr add 192.168.1.2/24 dev out", "ip addr add 2001:db8::2/64 dev out nodad",
		"ip link set out up", "ip route add default via 192.168.1.1", "ip -6 route add default via 2001:db8::1",
		"ip neigh add 192.168.1.1 lladdr 02:00:00:00:00:01 dev out", "ip neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev out",
		"ip neigh add 192.168.1.5 lladdr 02:00:00:00:00:05 dev out",
	} {
		if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s", c, out)
		}
	}
}

// leaves tells whether a datagram, or the opening of a connection, leaves
// this machine.
func leaves(t *testing.T, network, to string, mark int) bool {
	t.Helper()
	d := net.Dialer{Timeout: 100 * time.Millisecond, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
	}}
	c, err := d.Dial(network, to)
	if network == "tcp" { // nobody is there: what leaves is not answered
		var late net.Error
		return errors.As(err, &late) && late.Timeout()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Write([]byte("x"))
	return err == nil
}

// TestBypassIsCountedAndRefused: what goes past the name server is counted
// while observing and refused when armed; what a gateway needs passes always.
func TestBypassIsCountedAndRefused(t *testing.T) {
	ownNetwork(t)
	var now time.Duration
	var found []guard.Finding
	b := newBypass(nil, func(f guard.Finding) { found = append(found, f) }, func() time.Duration { return now }, slog.New(slog.DiscardHandler))
	b.steer(false, []netip.Prefix{netip.MustParsePrefix("203.0.113.128/25"), netip.MustParsePrefix("203.0.113.200/32")}) // before it is open
	if !b.open() {
		t.Fatal(b.status().State)
	}
	defer func() { _ = b.table.Close() }()
	b.steer(false, nil)
	b.answered([]netip.Addr{netip.MustParseAddr("203.0.113.8"), netip.MustParseAddr("2001:db8:1::8")}, time.Minute)

	type packet struct {
		network, to string
		mark        int
	}
	lawful := []packet{
		{"tcp", "203.0.113.8:443", 0}, {"udp", "[2001:db8:1::8]:443", 0}, // answered
		{"udp", "192.168.1.5:502", 0}, {"tcp", "192.168.1.5:502", 0}, // Modbus
		{"udp", "203.0.113.9:123", 0},                                         // NTP
		{"udp", "203.0.113.201:4470", 0},                                      // a neighbour
		{"udp", "9.9.9.9:53", bypassMark}, {"tcp", "9.9.9.9:853", bypassMark}, // our own questions
	}
	bypasses := map[string][]packet{
		"dns":     {{"udp", "9.9.9.9:53", 0}, {"tcp", "203.0.113.8:853", 0}, {"udp", "192.168.1.1:53", 0}, {"udp", "[2001:db8:1::8]:53", 0}},
		"doh":     {{"tcp", "8.8.8.8:443", 0}, {"udp", "[2606:4700:4700::1111]:443", 0}},
		"unasked": {{"tcp", "203.0.113.7:443", 0}, {"udp", "203.0.113.7:51820", 0}, {"udp", "[2001:db8:1::9]:443", 0}},
	}
	all := func(pass bool) {
		t.Helper()
		for _, p := range lawful {
			if !leaves(t, p.network, p.to, p.mark) {
				t.Errorf("%s %s is refused", p.network, p.to)
			}
		}
		for what, list := range bypasses {
			for _, p := range list {
				if leaves(t, p.network, p.to, p.mark) != pass {
					t.Errorf("%s: %s %s passes: %t", what, p.network, p.to, !pass)
				}
			}
		}
	}
	all(true)
	b.look()
	n := b.status()
	if n.State != "observe" || n.DNS != 4 || n.DoH != 2 || n.Unasked != 3 {
		t.Errorf("%+v", n)
	}
	if len(found) != 1 || found[0].Rule != guard.DomainBypass || found[0].Count != 9 || found[0].Evidence["refused"] != "false" {
		t.Errorf("%+v", found)
	}
	b.look()
	if len(found) != 1 {
		t.Errorf("told twice: %+v", found[1:])
	}

	b.steer(true, nil)
	all(false)
	b.look()
	if n := b.status(); n.State != "enforce" || len(found) != 2 || found[1].Evidence["refused"] != "true" {
		t.Errorf("%+v, %+v", n, found)
	}
	// A process that is gone refuses nothing for long.
	for _, set := range []string{"armed4", "armed6"} {
		if out, err := exec.Command("nft", "list", "set", "inet", bypassTable, set).CombinedOutput(); err != nil || !strings.Contains(string(out), "expires") {
			t.Errorf("%s does not expire: %s", set, out)
		}
	}
	b.steer(false, nil)
	all(true)
}

// TestBypassForgets: addresses are renewed before they expire and there is a
// most of them.
func TestBypassForgets(t *testing.T) {
	ownNetwork(t)
	var now time.Duration
	b := newBypass(nil, func(guard.Finding) {}, func() time.Duration { return now }, slog.New(slog.DiscardHandler))
	if !b.open() {
		t.Fatal(b.status().State)
	}
	defer func() { _ = b.table.Close() }()
	a := []netip.Addr{netip.MustParseAddr("203.0.113.8")}
	left := func() time.Duration {
		e, err := b.table.List("given4")
		if err != nil || len(e) == 0 {
			return 0
		}
		return e[0].Timeout
	}
	b.answered(a, time.Second)
	if d := left(); d < 9*time.Minute || d > 10*time.Minute {
		t.Errorf("an address stays for %s", d)
	}
	b.answered(a, time.Hour)
	if d := left(); d < 119*time.Minute {
		t.Errorf("a renewed one for %s", d)
	}
	for i := len(b.given); i < maxGiven; i++ { // as if so many had been answered
		b.given[netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})] = time.Hour
	}
	last := netip.MustParseAddr("198.18.0.1")
	b.answered([]netip.Addr{last}, time.Minute)
	e, err := b.table.List("given4")
	if err != nil || len(e) != 1 || e[0].Prefix.Addr() != last || len(b.given) != 1 {
		t.Errorf("when there is no place for the newest, it stands not alone: %v, %d addresses, %v", e, len(b.given), err)
	}
}

// client is a device of the household behind this machine, in a network of
// its own, and another one that has not been given the name server.
type client struct {
	t     *testing.T
	space string
}

func newClient(t *testing.T) *client {
	t.Helper()
	c := &client{t, fmt.Sprintf("jgbypass-%d", os.Getpid())}
	for _, s := range []string{
		"ip netns add " + c.space,
		"ip link add lan type veth peer name eth0 netns " + c.space, "ip link set lan up", "ip addr add 192.168.7.1/24 dev lan", "ip addr add fd07::1/64 dev lan nodad",
		"echo 1 > /proc/sys/net/ipv4/ip_forward", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
		"ip -n " + c.space + " addr add 192.168.7.10/24 dev eth0", "ip -n " + c.space + " addr add 192.168.7.99/24 dev eth0", "ip -n " + c.space + " addr add fd07::10/64 dev eth0 nodad",
		"ip -n " + c.space + " link set eth0 up", "ip -n " + c.space + " link set lo up",
		"ip -n " + c.space + " route add default via 192.168.7.1 src 192.168.7.10", "ip -n " + c.space + " -6 route add default via fd07::1",
	} {
		if out, err := exec.Command("sh", "-c", s).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s", s, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", c.space).Run() })
	return c
}

// reaches tells whether this machine passes a packet on: what it refuses it
// says so, and nobody answers the rest.
func (c *client) reaches(network, to, from string) bool {
	c.t.Helper()
	own, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		c.t.Fatal(err)
	}
	defer own.Close()
	there, err := os.Open("/run/netns/" + c.space)
	if err != nil {
		c.t.Fatal(err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		c.t.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
	}()
	const wait = 150 * time.Millisecond
	d := net.Dialer{Timeout: wait}
	switch ip := net.ParseIP(from); {
	case from != "" && network == "udp":
		d.LocalAddr = &net.UDPAddr{IP: ip}
	case from != "":
		d.LocalAddr = &net.TCPAddr{IP: ip}
	}
	conn, err := d.Dial(network, to)
	if err == nil {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(wait))
		if _, err = conn.Write([]byte("x")); err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
	}
	var late net.Error
	return errors.As(err, &late) && late.Timeout()
}

// TestBypassOfTheHousehold: what devices that may ask the name server send
// past it by way of this machine is counted and refused like its own; what
// others send is not looked at.
func TestBypassOfTheHousehold(t *testing.T) {
	ownNetwork(t)
	c := newClient(t)
	now := time.Duration(0)
	var found []guard.Finding
	b := newBypass([]netip.Prefix{netip.MustParsePrefix("192.168.7.0/26"), netip.MustParsePrefix("fd07::/64")},
		func(f guard.Finding) { found = append(found, f) }, func() time.Duration { return now }, slog.New(slog.DiscardHandler))
	if !b.open() {
		t.Fatal(b.status().State)
	}
	defer func() { _ = b.table.Close() }()
	b.steer(false, []netip.Prefix{netip.MustParsePrefix("203.0.113.128/25")})
	b.answered([]netip.Addr{netip.MustParseAddr("203.0.113.8"), netip.MustParseAddr("2001:db8:1::8")}, time.Minute)

	lawful := [][2]string{
		{"tcp", "203.0.113.8:443"}, {"udp", "203.0.113.8:443"}, {"udp", "[2001:db8:1::8]:443"}, // answered
		{"tcp", "192.168.1.5:502"},    // Modbus
		{"udp", "203.0.113.9:123"},    // NTP
		{"udp", "203.0.113.201:4470"}, // exempt
	}
	past := map[string][][2]string{
		"dns":     {{"udp", "9.9.9.9:53"}, {"tcp", "203.0.113.8:853"}, {"udp", "[2001:db8:1::8]:53"}},
		"doh":     {{"tcp", "8.8.8.8:443"}, {"udp", "[2606:4700:4700::1111]:443"}},
		"unasked": {{"tcp", "203.0.113.7:443"}, {"udp", "203.0.113.7:51820"}, {"udp", "[2001:db8:1::9]:443"}},
	}
	all := func(pass bool) {
		t.Helper()
		for _, p := range lawful {
			if !c.reaches(p[0], p[1], "") {
				t.Errorf("%s %s is refused", p[0], p[1])
			}
		}
		for what, list := range past {
			for _, p := range list {
				if c.reaches(p[0], p[1], "") != pass {
					t.Errorf("%s: %s %s passes: %t", what, p[0], p[1], !pass)
				}
			}
		}
		for _, p := range past["dns"][:2] {
			if !c.reaches(p[0], p[1], "192.168.7.99") {
				t.Errorf("%s %s of a device that is not listed is refused", p[0], p[1])
			}
		}
	}
	all(true)
	b.look()
	n := b.status()
	if n.LANDNS != 3 || n.LANDoH != 2 || n.LANUnasked != 3 || n.Sum() != 8 {
		t.Errorf("%+v", n)
	}
	if len(found) != 1 || found[0].Rule != guard.DomainBypass || found[0].Count != 8 || found[0].Evidence["lan_dns"] != "3" {
		t.Errorf("%+v", found)
	}

	// Devices know for a while what they were answered before this began.
	b.steer(true, nil)
	if leaves(t, "udp", "9.9.9.9:53", 0) || !c.reaches("udp", "9.9.9.9:53", "") {
		t.Error("armed, this machine's own is not refused, or the household's already is")
	}
	now = leastGiven
	b.look()
	all(false)
	b.steer(false, nil)
	all(true)
}
