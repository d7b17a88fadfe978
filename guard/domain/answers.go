package domain

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Limits of what is remembered of answers. There are two generations of each
// size; when the younger one is full or old it becomes the older one.
const (
	maxAnswers = 16_384 // pairs of a name and an address
	maxAskers  = 512    // machines that asked
	rememberIt = 12 * time.Hour
)

// Answers remembers which addresses were answered for which names, and who
// asks here at all, so that the packet sensor can tell a connection to a name
// that nobody looked up. It keeps hashes only. It is safe for concurrent use.
type Answers struct {
	now  func() time.Duration
	seed maphash.Seed

	mu     sync.Mutex
	given  generations[uint64]
	askers generations[netip.Addr]
	own    map[netip.Addr]bool
	ours   bool
}

// NewAnswers returns an empty memory of a machine with these addresses.
func NewAnswers(now func() time.Duration, own []netip.Addr) *Answers {
	a := &Answers{now: now, seed: maphash.MakeSeed(), own: map[netip.Addr]bool{}}
	for _, o := range own {
		a.own[o.Unmap()] = true
	}
	return a
}

// Uses says whether this machine itself asks here, by its resolv.conf.
func (a *Answers) Uses(here bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ours = here
}

// Asks tells whether a host has this server as its resolver.
func (a *Answers) Asks(client netip.Addr) bool {
	client = client.Unmap()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ours && (client.IsLoopback() || a.own[client]) || !client.IsLoopback() && a.askers.has(client)
}

// Answered tells whether addr was a recent answer for name, to anyone.
func (a *Answers) Answered(name string, addr netip.Addr) bool {
	k := a.key(name, addr.Unmap())
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.given.has(k)
}

func (a *Answers) asked(client netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.askers.add(client.Unmap(), maxAskers, a.now())
}

func (a *Answers) answered(name string, addrs []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, addr := range addrs {
		a.given.add(a.key(name, addr), maxAnswers, a.now())
	}
}

func (a *Answers) key(name string, addr netip.Addr) uint64 {
	var h maphash.Hash
	h.SetSeed(a.seed)
	h.WriteString(name)
	b := addr.As16()
	h.Write(b[:])
	return h.Sum64()
}

// generations is a set that forgets what was not added again for long.
type generations[K comparable] struct {
	young, old map[K]struct{}
	since      time.Duration
}

func (g *generations[K]) has(k K) bool {
	_, young := g.young[k]
	_, old := g.old[k]
	return young || old
}

func (g *generations[K]) add(k K, most int, now time.Duration) {
	if _, ok := g.young[k]; ok && now-g.since < rememberIt {
		return
	}
	if g.young == nil || len(g.young) >= most || now-g.since >= rememberIt {
		g.old, g.young, g.since = g.young, map[K]struct{}{}, now
	}
	g.young[k] = struct{}{}
}

// Elsewhere returns the name servers of a resolv.conf(5) that are not in
// here; a file without any means this machine.
func Elsewhere(resolvConf string, here []netip.AddrPort) (others []string) {
	for line := range strings.Lines(resolvConf) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil || !slices.ContainsFunc(here, func(p netip.AddrPort) bool {
			return p.Port() == 53 && (p.Addr().Unmap() == a.Unmap() || p.Addr().IsUnspecified() && a.IsLoopback())
		}) {
			others = append(others, f[1])
		}
	}
	return others
}
