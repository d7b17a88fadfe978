package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"go.yaml.in/yaml/v3"
)

// netConfig is the part network of joulegate-setup.yaml. Without an address
// one is asked for by DHCP.
type netConfig struct {
	Address string   `yaml:"address"` // with its prefix: 192.168.1.20/24
	Gateway string   `yaml:"gateway"`
	DNS     []string `yaml:"dns"`
	NTP     []string `yaml:"ntp"`
}

// The setup, which the gateway may remove once it has done with it, and what
// was last in it.
const (
	setupFile = "/boot/firmware/joulegate-setup.yaml"
	netFile   = "/data/config/network.yaml"
)

// maxSetup is the largest file that is read, in bytes.
const maxSetup = 1 << 20

// readNetwork returns what the setup says of the network, or what an earlier
// one has said. Nonsense is told, and DHCP is tried: a gateway that can be
// reached can be repaired.
func readNetwork(log *logger) netConfig {
	b, err := os.ReadFile(setupFile)
	if err == nil {
		c, given, err := parseNetwork(b)
		if err != nil {
			log.printf("init: %s: %v; trying DHCP", setupFile, err)
			return netConfig{NTP: c.NTP}
		}
		if given {
			kept, _ := yaml.Marshal(map[string]netConfig{"network": c})
			log.problem(os.WriteFile(netFile, kept, 0o644))
			return c
		}
	}
	if b, err = os.ReadFile(netFile); errors.Is(err, fs.ErrNotExist) {
		return netConfig{}
	}
	c, _, e := parseNetwork(b)
	log.problem(errors.Join(err, e))
	return c
}

// parseNetwork reads the part network, and tells whether there is one. Other
// parts are the gateway's.
func parseNetwork(b []byte) (c netConfig, given bool, err error) {
	var doc struct {
		Network *netConfig `yaml:"network"`
	}
	if len(b) > maxSetup {
		return c, false, fmt.Errorf("%d bytes, at most %d", len(b), maxSetup)
	}
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return c, false, err
	}
	if doc.Network == nil {
		return c, false, nil
	}
	c = *doc.Network
	if c.Address == "" {
		if c.Gateway != "" {
			return c, true, errors.New("network.gateway goes with network.address")
		}
		return c, true, nil
	}
	p, err := netip.ParsePrefix(c.Address)
	if err != nil {
		return c, true, fmt.Errorf("network.address: %w; as in 192.168.1.20/24", err)
	}
	if !p.Addr().Is4() {
		return c, true, fmt.Errorf("network.address %s: IPv4; IPv6 configures itself", p)
	}
	if c.Gateway != "" {
		if g, err := netip.ParseAddr(c.Gateway); err != nil || !p.Contains(g) {
			return c, true, fmt.Errorf("network.gateway %q is no address of %s", c.Gateway, p.Masked())
		}
	}
	for _, d := range c.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			return c, true, fmt.Errorf("network.dns: %w", err)
		}
	}
	return c, true, nil
}

// network keeps the wired interface configured until ctx ends.
func network(ctx context.Context, c netConfig, who string, log *logger) {
	if lo, err := netlink.LinkByName("lo"); err == nil {
		log.problem(netlink.LinkSetUp(lo)) // the kernel gives it its addresses
	}
	link := wired(ctx)
	if link == nil {
		return
	}
	var told string
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, time.Minute) {
		err := serve(ctx, link, c, who, log)
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			log.printf("init: %s: %v", link.Attrs().Name, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// wired waits for the first wired interface.
func wired(ctx context.Context) netlink.Link {
	for ; ; time.Sleep(200 * time.Millisecond) {
		all, _ := netlink.LinkList()
		for _, l := range all {
			a := l.Attrs()
			_, wireless := os.Stat(filepath.Join("/sys/class/net", a.Name, "phy80211"))
			if a.Flags&net.FlagLoopback == 0 && a.EncapType == "ether" && errors.Is(wireless, fs.ErrNotExist) {
				return l
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// serve configures the interface and keeps its lease. It returns when that
// has to begin anew.
func serve(ctx context.Context, link netlink.Link, c netConfig, who string, log *logger) error {
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	if c.Address != "" {
		if err := apply(link, c); err != nil {
			return err
		}
		log.printf("init: %s has %s", link.Attrs().Name, c.Address)
		keepTime(ctx, c.NTP, log)
		return ctx.Err()
	}
	client, err := nclient4.New(link.Attrs().Name, nclient4.WithTimeout(4*time.Second), nclient4.WithRetry(3))
	if err != nil {
		return err
	}
	defer client.Close()
	lease, err := client.Request(ctx, dhcpv4.WithOption(dhcpv4.OptHostName(who)), dhcpv4.WithRequestedOptions(dhcpv4.OptionNTPServers))
	if err != nil {
		return fmt.Errorf("no address by DHCP yet: %w", err)
	}
	timed := false
	for {
		ack := lease.ACK
		got := fromLease(ack, c)
		if err := apply(link, got); err != nil {
			return err
		}
		if !timed {
			timed = true
			log.printf("init: %s has %s by DHCP", link.Attrs().Name, got.Address)
			inner, stop := context.WithCancel(ctx)
			defer stop()
			go keepTime(inner, got.NTP, log)
		}
		life := max(ack.IPAddressLeaseTime(time.Hour), time.Minute)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(life / 2): // T1 (RFC 2131, section 4.4.5)
		}
		next, err := client.Renew(ctx, lease)
		if err != nil {
			// Half the lease is left: asking anew has time, and moves on if the
			// gateway was carried to another network.
			return fmt.Errorf("renew the address: %w", err)
		}
		lease = next
	}
}

// fromLease is what a server has given; what the setup names comes first.
func fromLease(ack *dhcpv4.DHCPv4, c netConfig) netConfig {
	text := func(ips []net.IP) (s []string) {
		for _, ip := range ips {
			s = append(s, ip.String())
		}
		return s
	}
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask()
	}
	got := netConfig{Address: (&net.IPNet{IP: ack.YourIPAddr, Mask: mask}).String(), DNS: c.DNS, NTP: c.NTP}
	if r := ack.Router(); len(r) > 0 {
		got.Gateway = r[0].String()
	}
	if len(got.DNS) == 0 {
		got.DNS = text(ack.DNS())
	}
	if len(got.NTP) == 0 {
		got.NTP = text(ack.NTPServers())
	}
	return got
}

// apply gives the interface its one IPv4 address, the default route and the
// name servers.
func apply(link netlink.Link, c netConfig) error {
	addr, err := netlink.ParseAddr(c.Address)
	if err != nil {
		return err
	}
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, o := range old {
		if !o.Equal(*addr) {
			err = errors.Join(err, netlink.AddrDel(link, &o))
		}
	}
	if err := errors.Join(err, netlink.AddrReplace(link, addr)); err != nil {
		return fmt.Errorf("address %s: %w", c.Address, err)
	}
	if c.Gateway != "" {
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(c.Gateway)}); err != nil {
			return fmt.Errorf("route by %s: %w", c.Gateway, err)
		}
	}
	var b strings.Builder
	for _, d := range slices.Compact(slices.Clone(c.DNS)) {
		fmt.Fprintf(&b, "nameserver %s\n", d)
	}
	if b.Len() == 0 {
		return nil
	}
	if err := os.WriteFile("/etc/resolv.conf.new", []byte(b.String()), 0o644); err != nil {
		return err
	}
	return os.Rename("/etc/resolv.conf.new", "/etc/resolv.conf")
}
