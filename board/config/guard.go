package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"strings"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/policy"
)

// Modes are the rules' modes by id. The configuration has been checked.
func (g Guard) Modes() map[string]guard.Mode {
	modes := map[string]guard.Mode{}
	for _, r := range g.Rules {
		var m guard.Mode
		if m.UnmarshalText([]byte(r.Mode)) == nil {
			modes[r.ID] = m
		}
	}
	return modes
}

// Limits of the guard's lists.
const (
	MaxWriters  = 64
	MaxBaseline = 256

	MaxDNSListen    = 8
	MaxDNSClients   = 64
	MaxDNSLists     = 64
	MaxDNSUpstreams = 8

	MaxGuardRules = 256
	MaxNever      = 256
)

// GuardRule says what a rule of the guard may lead to.
type GuardRule struct {
	ID   string `yaml:"id" doc:"for example arp.spoof; 'joulegate guard status' lists those that can do something"`
	Mode string `yaml:"mode" doc:"observe, ask or enforce; enforce has no effect before the rule has observed for seven days"`
}

// Guard says what watches this gateway. It observes; it acts only where Rules
// say so.
type Guard struct {
	Mode      string      `yaml:"mode" enum:"off observe" doc:"off or observe: findings are put on record, and only rules do more"`
	Interface string      `yaml:"interface,omitempty" doc:"network interface to watch; left out: the one of the default route"`
	Writers   []string    `yaml:"writers,omitempty" items:"64" doc:"addresses that may write Modbus registers, beside this gateway"`
	Baseline  []string    `yaml:"baseline,omitempty" items:"256" doc:"ordinary destinations: address, prefix or name, with or without port; left out: destinations are not judged"`
	Rules     []GuardRule `yaml:"rules,omitempty" items:"256" doc:"what may be done about findings; left out: nothing is blocked, killed or stopped"`
	Never     []string    `yaml:"never,omitempty" items:"256" doc:"addresses, prefixes and programs that nothing is done about, beside what this gateway needs by its configuration"`
	Sigma     string      `yaml:"sigma,omitempty" doc:"folder of Sigma rules about programs, beside those that come with this program; read again when it changes"`
	Programs  string      `yaml:"programs,omitempty" doc:"list of executables that may be started, as sha256sum prints it; left out: they are not judged by a list"`
	Heartbeat Duration    `yaml:"heartbeat" range:"10s..24h" doc:"the guard puts on record that it lives; neighbours notice when it stops"`
	MemoryMB  int         `yaml:"memory_mb" range:"48..512" doc:"most memory of its own that the guard's process may have, 48..512; then it is started anew"`
	DNS       DNS         `yaml:"dns,omitempty" doc:"name server and filter; off until listen is set"`
}

// DNS is the name server of this gateway and, where the household has
// agreed, of its network.
type DNS struct {
	Listen    []string `yaml:"listen,omitempty" items:"8" doc:"where questions for names are answered, address:port, over UDP and TCP; left out: nowhere"`
	LAN       string   `yaml:"lan,omitempty" doc:"consent: the household agrees that its questions are answered and filtered here; whose and when may follow the word. Needed to listen elsewhere than on loopback"`
	Clients   []string `yaml:"clients,omitempty" items:"64" doc:"addresses and prefixes that may ask, beside this gateway; needs lan"`
	Block     []string `yaml:"block,omitempty" items:"64" doc:"files of names to block: hosts, names, *.names, ||names^, response policy zones"`
	Allow     []string `yaml:"allow,omitempty" items:"64" doc:"files of names that are allowed whatever block says"`
	Only      bool     `yaml:"only,omitempty" doc:"block every name that is not allowed"`
	Upstreams []string `yaml:"upstreams,omitempty" items:"8" doc:"who is asked, in order: udp://ADDRESS, tls://HOST or https://HOST/PATH"`
	Bootstrap []string `yaml:"bootstrap,omitempty" items:"8" doc:"addresses, with or without port, that know the names of upstreams"`
	Local     []string `yaml:"local,omitempty" items:"64" doc:"names whose answers may be private addresses, with all below them"`
	Answer    string   `yaml:"answer,omitempty" enum:"nxdomain null" doc:"what is said of blocked names: nxdomain, or null for 0.0.0.0 and ::"`
	Bypass    string   `yaml:"bypass,omitempty" enum:"off observe" doc:"observe: count what this gateway sends past its name server, or passes on for clients; it is refused only when the rule domain.bypass enforces; off: do not look"`
}

// On tells whether names are answered at all.
func (d DNS) On() bool { return len(d.Listen) > 0 }

func (c *Config) guard(k *checker) {
	g := c.Guard
	if len(g.Interface) > 15 || strings.ContainsAny(g.Interface, "/ \t") {
		k.add("guard.interface", "%q is no name of an interface", g.Interface)
	}
	if len(g.Writers) > MaxWriters {
		k.add("guard.writers", "%d, at most %d", len(g.Writers), MaxWriters)
	}
	for i, w := range g.Writers[:min(len(g.Writers), MaxWriters)] {
		if _, err := netip.ParseAddr(w); err != nil {
			k.add(fmt.Sprintf("guard.writers[%d]", i), "%q is no IP address", w)
		}
	}
	if len(g.Baseline) > MaxBaseline {
		k.add("guard.baseline", "%d, at most %d", len(g.Baseline), MaxBaseline)
	}
	if len(g.Rules) > MaxGuardRules {
		k.add("guard.rules", "%d, at most %d", len(g.Rules), MaxGuardRules)
	}
	seen := map[string]bool{}
	for i, r := range g.Rules[:min(len(g.Rules), MaxGuardRules)] {
		var m guard.Mode
		err := m.UnmarshalText([]byte(r.Mode))
		if err == nil {
			err = policy.CheckMode(r.ID, m)
		}
		if err == nil && seen[r.ID] {
			err = fmt.Errorf("rule %s is listed twice", r.ID)
		}
		if err != nil {
			k.add(fmt.Sprintf("guard.rules[%d]", i), "%v", err)
		}
		seen[r.ID] = true
	}
	if len(g.Never) > MaxNever {
		k.add("guard.never", "%d, at most %d", len(g.Never), MaxNever)
	}
	for i, n := range g.Never[:min(len(g.Never), MaxNever)] {
		_, addr := netip.ParseAddr(n)
		_, prefix := netip.ParsePrefix(n)
		if addr != nil && prefix != nil && !strings.HasPrefix(n, "/") {
			k.add(fmt.Sprintf("guard.never[%d]", i), "%q is no IP address, no prefix and no path of a program", n)
		}
	}
	for _, f := range []struct{ key, path string }{{"guard.sigma", g.Sigma}, {"guard.programs", g.Programs}} {
		if f.path != "" && (!path.IsAbs(f.path) || len(f.path) > 255) {
			k.add(f.key, "%q is no absolute path", f.path)
		}
	}
	g.DNS.check(k, "guard.dns")
}

// check refuses what would let strangers ask, or nobody.
func (d DNS) check(k *checker, path string) {
	for _, l := range []struct {
		name string
		list []string
		most int
	}{
		{"listen", d.Listen, MaxDNSListen},
		{"clients", d.Clients, MaxDNSClients},
		{"block", d.Block, MaxDNSLists},
		{"allow", d.Allow, MaxDNSLists},
		{"upstreams", d.Upstreams, MaxDNSUpstreams},
		{"bootstrap", d.Bootstrap, MaxDNSUpstreams},
		{"local", d.Local, MaxDNSLists},
	} {
		if len(l.list) > l.most {
			k.add(path+"."+l.name, "%d, at most %d", len(l.list), l.most)
			return
		}
	}
	consent := d.LAN == "consent" || strings.HasPrefix(d.LAN, "consent ")
	if d.LAN != "" && !consent {
		k.add(path+".lan", "%q does not say consent, as in: consent of the household, 1 March 2026", d.LAN)
	}
	for i, s := range d.Listen {
		a, err := netip.ParseAddrPort(s)
		switch at := fmt.Sprintf("%s.listen[%d]", path, i); {
		case err != nil:
			k.add(at, "%q is no address with a port, such as 127.0.0.1:53", s)
		case !a.Addr().IsLoopback() && !consent:
			k.add(at, "%s is not loopback: others could be filtered; set %s.lan once the household has agreed", s, path)
		}
	}
	for i, s := range d.Clients {
		_, err := ParsePrefix(s)
		switch at := fmt.Sprintf("%s.clients[%d]", path, i); {
		case err != nil:
			k.add(at, "%q is no address and no prefix", s)
		case !consent:
			k.add(at, "others would be filtered; set %s.lan once the household has agreed", path)
		}
	}
	for i, s := range d.Bootstrap {
		if _, err := ParseResolver(s); err != nil {
			k.add(fmt.Sprintf("%s.bootstrap[%d]", path, i), "%q is no address, with or without port", s)
		}
	}
	for i, s := range d.Upstreams {
		text := s
		if !strings.Contains(text, "://") {
			text = "udp://" + text
		}
		u, err := url.Parse(text)
		at := fmt.Sprintf("%s.upstreams[%d]", path, i)
		if err != nil || u.Hostname() == "" || u.Scheme != "udp" && u.Scheme != "tls" && u.Scheme != "https" {
			k.add(at, "%q is not udp://ADDRESS, tls://HOST or https://HOST/PATH", s)
			continue
		}
		if _, err := netip.ParseAddr(u.Hostname()); err != nil && (u.Scheme == "udp" || len(d.Bootstrap) == 0) {
			k.add(at, "%q is a name: give its address, or for tls and https bootstrap servers that know it", u.Hostname())
		}
	}
	switch {
	case !d.On() && (len(d.Upstreams) > 0 || len(d.Block) > 0 || d.Only):
		k.add(path+".listen", "missing: without it nobody can ask")
	case d.On() && len(d.Upstreams) == 0:
		k.add(path+".upstreams", "missing: whom to ask for names")
	case d.Only && len(d.Allow) == 0:
		k.add(path+".allow", "missing: with only, every name would be blocked")
	case d.Bypass == "observe" && !d.On():
		k.add(path+".bypass", "needs %s.listen: what is let through follows from what was answered", path)
	}
}

// ParsePrefix reads a prefix, or an address as the prefix of one.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

// ParseResolver reads the address of a name server, port 53 unless it says
// another.
func ParseResolver(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(s)
}
