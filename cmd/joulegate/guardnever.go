package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/multiformats/go-multiaddr"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/policy"
)

// needed keeps what this gateway cannot do without: whatever findings say of
// it, it is never blocked. It holds what the configuration names (devices on
// the network, broker, name servers), the neighbours, and what the system has
// been given: routers, name servers, the server that gave it its address.
type needed struct {
	g     *gateway
	hosts []string // of the configuration, names among them

	mu       sync.Mutex
	resolved []netip.Addr // of the names
}

// Limits of names that are looked up.
const (
	resolveEach = 5 * time.Minute
	resolveIn   = 10 * time.Second
)

func newNeeded(g *gateway) *needed {
	n := &needed{g: g}
	host := func(hostport string) {
		if h, _, err := net.SplitHostPort(hostport); err == nil && h != "" {
			n.hosts = append(n.hosts, h)
		}
	}
	for _, l := range g.cfg.Lines {
		host(l.TCP)
		host(l.RTUTCP)
	}
	for _, s := range append([]string{g.cfg.MQTT.Broker}, g.cfg.Guard.DNS.Upstreams...) {
		if u, err := url.Parse(s); err == nil && u.Hostname() != "" {
			n.hosts = append(n.hosts, u.Hostname())
		}
	}
	return n
}

// run looks the names up anew now and then; what was found last stays when
// nobody answers.
func (n *needed) run(ctx context.Context) {
	for {
		var all []netip.Addr
		complete := true
		for _, h := range n.hosts {
			if a, err := netip.ParseAddr(h); err == nil {
				all = append(all, a.Unmap())
				continue
			}
			c, cancel := context.WithTimeout(ctx, resolveIn)
			found, err := net.DefaultResolver.LookupNetIP(c, "ip", h)
			cancel()
			complete = complete && err == nil
			for _, a := range found {
				all = append(all, a.Unmap())
			}
		}
		n.mu.Lock()
		if complete {
			n.resolved = all
		} else {
			n.resolved = slices.Compact(slices.SortedFunc(slices.Values(append(all, n.resolved...)), netip.Addr.Compare))
			n.resolved = n.resolved[:min(len(n.resolved), policy.MaxNever/4)]
		}
		n.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(resolveEach):
		}
	}
}

// never is the list as it is now.
func (n *needed) never() policy.Never {
	var out policy.Never
	add := func(a netip.Addr) {
		if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsUnspecified() {
			out.Nets = append(out.Nets, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, s := range n.g.cfg.Guard.Never {
		if p, err := netip.ParsePrefix(s); err == nil {
			out.Nets = append(out.Nets, p.Masked())
		} else if a, err := netip.ParseAddr(s); err == nil {
			add(a)
		} else {
			out.Subjects = append(out.Subjects, guard.Subject{Kind: guard.Program, Value: s})
		}
	}
	for _, h := range n.hosts { // also before the first look-up
		if a, err := netip.ParseAddr(h); err == nil {
			add(a)
		}
	}
	n.mu.Lock()
	for _, a := range n.resolved {
		add(a)
	}
	n.mu.Unlock()
	for _, a := range ownAddresses() {
		add(a)
	}
	for _, a := range givenAddresses("/") {
		add(a)
	}
	for _, p := range n.g.net.Peers() {
		for _, s := range p.Addrs {
			if m, err := multiaddr.NewMultiaddr(s); err == nil {
				add(addrOfMultiaddr(m))
			}
		}
	}
	for _, info := range n.g.roster.book() {
		for _, m := range info.Addrs {
			add(addrOfMultiaddr(m))
		}
	}
	slices.SortFunc(out.Nets, func(a, b netip.Prefix) int { return a.Compare(b) })
	out.Nets = slices.Compact(out.Nets)
	out.Quarantined = max(0, (n.g.roster.actives()-1)/3)
	return out
}

func addrOfMultiaddr(m multiaddr.Multiaddr) netip.Addr {
	for _, p := range []int{multiaddr.P_IP4, multiaddr.P_IP6} {
		if s, err := m.ValueForProtocol(p); err == nil {
			a, _ := netip.ParseAddr(s)
			return a
		}
	}
	return netip.Addr{}
}

// givenAddresses are those that the network has given this machine: routers,
// name servers, and servers of addresses. root is "/" but in tests.
func givenAddresses(root string) (out []netip.Addr) {
	add := func(s string) {
		if a, err := netip.ParseAddr(strings.Trim(s, ` ";`)); err == nil {
			out = append(out, a)
		}
	}
	lines := func(path string, f func(fields []string, line string)) {
		file, err := os.Open(filepath.Join(root, path))
		if err != nil {
			return
		}
		defer file.Close()
		s := bufio.NewScanner(file)
		for n := 0; s.Scan() && n < 4096; n++ {
			f(strings.Fields(s.Text()), s.Text())
		}
	}
	lines("proc/net/route", func(f []string, _ string) { // gateway, hexadecimal in the machine's order
		if len(f) > 2 {
			if b, err := hex.DecodeString(f[2]); err == nil && len(b) == 4 && f[2] != "00000000" {
				slices.Reverse(b) // every processor that this is built for is little-endian
				out = append(out, netip.AddrFrom4([4]byte(b)))
			}
		}
	})
	lines("proc/net/ipv6_route", func(f []string, _ string) { // next hop
		if len(f) > 4 {
			if b, err := hex.DecodeString(f[4]); err == nil && len(b) == 16 {
				out = append(out, netip.AddrFrom16([16]byte(b)))
			}
		}
	})
	for _, path := range []string{resolvConf, "run/systemd/resolve/resolv.conf"} {
		lines(path, func(f []string, _ string) {
			if len(f) > 1 && f[0] == "nameserver" {
				add(f[1])
			}
		})
	}
	leases := []string{"run/systemd/netif/leases/*", "var/lib/NetworkManager/*.lease", "var/lib/dhcp/*.leases", "run/udhcpc*.lease"}
	for _, pattern := range leases {
		files, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, file := range files[:min(len(files), 32)] {
			rel, _ := filepath.Rel(root, file)
			lines(rel, func(f []string, line string) {
				key, value, _ := strings.Cut(line, "=")
				switch {
				case key == "SERVER_ADDRESS", key == "ROUTER", key == "DNS", key == "NTP":
					for _, s := range strings.Fields(value) {
						add(s)
					}
				case len(f) > 2 && f[0] == "option" && slices.Contains([]string{"dhcp-server-identifier", "routers", "domain-name-servers", "ntp-servers"}, f[1]):
					for _, s := range strings.Split(strings.Join(f[2:], ""), ",") {
						add(s)
					}
				}
			})
		}
	}
	return out[:min(len(out), policy.MaxNever/4)]
}
