package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/nft"
	"github.com/joulegate/joulegate/guard/packet"
)

// bypass sees, and when armed refuses, what this machine sends past its name
// server, and what it passes on for the household's devices that may ask
// there. The kernel's packet filter decides, by sets that are filled before
// an answer leaves:
//
//	name servers of others, 53 and 853 ─────────────► counted: dns
//	local network, NTP, DHCP, exempt ──► passes
//	public resolvers over HTTPS ────────────────────► counted: doh
//	what was answered lately ──► passes
//	everything else ────────────────────────────────► counted: unasked
//
// What is counted passes too, unless it is armed. Being armed lasts for armFor
// and is renewed: when this process is gone, nothing is refused any more.
// Connections that were let through go on. Devices of the household keep what
// they were answered before this process began, so that nothing of theirs is
// refused in the first five minutes.
type bypass struct {
	report func(guard.Finding)
	now    func() time.Duration
	log    *slog.Logger

	clients []netip.Prefix // whose packets are looked at when they are passed on

	mu     sync.Mutex
	table  *nft.Table // nil: not open
	opened time.Duration
	why    string // not
	armed  bool
	given  map[netip.Addr]time.Duration // as long as the kernel knows it
	wanted []netip.Prefix               // exempt, as ordered
	exempt []netip.Prefix               // as the kernel knows it
	counts guard.NameBypass
	told   guard.NameBypass // of what was a finding
}

// Times and limits.
const (
	bypassMark  = 0x6a67 // of our packets to upstreams
	bypassTable = nft.Prefix + "_names"
	leastGiven  = 5 * time.Minute // programs use an address for longer than its time to live
	maxGiven    = 16_384          // addresses; then all are forgotten, and answered anew
	armFor      = time.Minute
	bypassEvery = 10 * time.Second
)

// localNets are this network's own (RFC 1918, 3927, 4193, 4291, 6598), and
// multicast: Modbus devices, routers, printers.
var localNets = []string{
	"10.0.0.0/8", "127.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
	"::1/128", "fc00::/7", "fe80::/10", "ff00::/8",
}

func newBypass(clients []netip.Prefix, report func(guard.Finding), now func() time.Duration, log *slog.Logger) *bypass {
	return &bypass{clients: outermost(clients), report: report, now: now, log: log, why: "not open yet", given: map[netip.Addr]time.Duration{}}
}

// family names the set of an address' version.
func family(set string, a netip.Addr) string {
	if a.Is4() {
		return set + "4"
	}
	return set + "6"
}

// bypassLayout is the table, with what is local, what the public resolvers are
// and who the clients are in it from the first moment on.
func bypassLayout(clients []netip.Prefix) nft.Layout {
	known := map[string][]nft.Element{}
	put := func(set string, p netip.Prefix) {
		name := family(set, p.Addr())
		known[name] = append(known[name], nft.Element{Prefix: p})
	}
	for _, n := range localNets {
		put("local", netip.MustParsePrefix(n))
	}
	for _, a := range packet.PublicResolvers() {
		put("doh", nft.Host(a))
	}
	for _, p := range clients {
		put("clients", p)
	}
	l := nft.Layout{Table: bypassTable}
	for v, t := range map[string]nft.Type{"4": nft.IPv4, "6": nft.IPv6} {
		l.Sets = append(l.Sets,
			nft.Set{Name: "armed" + v, Type: t, Nets: true, Expires: true}, nft.Set{Name: "lan_armed" + v, Type: t, Nets: true, Expires: true},
			nft.Set{Name: "clients" + v, Type: t, Nets: true, Elements: known["clients"+v]},
			nft.Set{Name: "local" + v, Type: t, Nets: true, Elements: known["local"+v]}, nft.Set{Name: "exempt" + v, Type: t, Nets: true},
			nft.Set{Name: "doh" + v, Type: t, Elements: known["doh"+v]}, nft.Set{Name: "given" + v, Type: t, Expires: true, Size: maxGiven})
	}
	l.Chains = []nft.Chain{
		{Name: "out", Hook: nft.Output, Rules: bypassRules("", nft.Out("lo"), nft.Mark(bypassMark))},
		{Name: "forward", Hook: nft.Forward, Rules: bypassRules("lan_", nft.NotFrom("clients4"), nft.NotFrom("clients6"))},
	}
	return l
}

// bypassRules are those of one chain, whose counts and armed sets begin with
// whose. What the chain is not about passes first.
func bypassRules(whose string, others ...nft.Match) (rules []nft.Rule) {
	pass := func(m ...nft.Match) { rules = append(rules, nft.Rule{Match: m}) }
	count := func(what string, m ...nft.Match) {
		for _, armed := range []string{"armed4", "armed6"} {
			rules = append(rules, nft.Rule{Match: append(slices.Clone(m), nft.To(whose+armed)), Verdict: nft.Reject, Comment: whose + what})
		}
		rules = append(rules, nft.Rule{Match: m, Comment: whose + what})
	}
	pass(nft.Known())
	for _, m := range others {
		pass(m)
	}
	for _, port := range []uint16{53, 853} {
		count("dns", nft.UDP(), nft.ToPort(port))
		count("dns", nft.TCP(), nft.ToPort(port))
	}
	for _, v := range []string{"4", "6"} {
		pass(nft.To("local" + v))
		pass(nft.To("exempt" + v))
	}
	for _, port := range []uint16{123, 67, 547} { // NTP, DHCP
		pass(nft.UDP(), nft.ToPort(port))
	}
	for _, v := range []string{"4", "6"} {
		count("doh", nft.TCP(), nft.ToPort(443), nft.To("doh"+v))
		count("doh", nft.UDP(), nft.ToPort(443), nft.To("doh"+v))
		pass(nft.To("given" + v))
	}
	count("unasked")
	return rules
}

// open puts the table in place. It reports whether packets may carry the
// mark.
func (b *bypass) open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, err := nft.Open(bypassLayout(b.clients))
	if err != nil {
		b.why = err.Error()
		b.log.Warn("what goes past the name server is not seen", "err", err)
		return false
	}
	b.table, b.opened = t, b.now()
	return true
}

// run counts, renews and tells until ctx ends, and takes the table away.
func (b *bypass) run(ctx context.Context) {
	tick := time.NewTicker(bypassEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.table != nil {
				if err := b.table.Close(); err != nil {
					b.log.Warn("packet filter", "err", err)
				}
				b.table, b.why = nil, "ended"
			}
			return
		case <-tick.C:
			b.look()
		}
	}
}

// steer takes the gateway's order.
func (b *bypass) steer(arm bool, exempt []netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if exempt != nil {
		b.wanted = outermost(exempt)
	}
	if b.table == nil {
		return
	}
	if !slices.Equal(b.wanted, b.exempt) {
		b.spare()
	}
	if arm != b.armed {
		if err := b.arm(arm); err != nil {
			b.log.Error("packet filter", "err", err)
			return
		}
		b.armed = arm
		b.log.Info("what goes past the name server", "refused", arm)
	}
}

// arm has what is counted refused, or not. Held by the caller: mu.
func (b *bypass) arm(on bool) (err error) {
	for _, whose := range []string{"armed", "lan_armed"} {
		for _, all := range []string{"0.0.0.0/0", "::/0"} {
			e := nft.Element{Prefix: netip.MustParsePrefix(all), Timeout: armFor}
			set := family(whose, e.Prefix.Addr())
			switch {
			case !on:
				err = errors.Join(err, b.table.Flush(set))
			case whose == "lan_armed" && b.now()-b.opened < leastGiven:
			case b.armed:
				err = errors.Join(err, b.table.Renew(set, e))
			default:
				err = errors.Join(err, b.table.Flush(set), b.table.Add(set, e))
			}
		}
	}
	return err
}

// spare replaces what needs no name.
func (b *bypass) spare() {
	for _, set := range []string{"exempt4", "exempt6"} {
		if err := b.table.Flush(set); err != nil {
			b.log.Error("packet filter", "err", err)
			return
		}
	}
	for _, p := range b.wanted {
		if err := b.table.Add(family("exempt", p.Addr()), nft.Element{Prefix: p}); err != nil {
			b.log.Error("packet filter", "exempt", p, "err", err)
		}
	}
	b.exempt = b.wanted
}

// outermost drops the prefixes that others contain: those of a set must not
// overlap.
func outermost(all []netip.Prefix) []netip.Prefix {
	all = slices.Clone(all)
	for i, p := range all {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		all[i] = p.Masked()
	}
	slices.SortFunc(all, func(x, y netip.Prefix) int {
		return cmp.Or(cmp.Compare(x.Bits(), y.Bits()), x.Addr().Compare(y.Addr()))
	})
	var out []netip.Prefix
	for _, p := range all {
		if p.IsValid() && !slices.ContainsFunc(out, p.Overlaps) {
			out = append(out, p)
		}
	}
	return out
}

// answered lets this machine talk to what was answered. It returns when the
// kernel knows.
func (b *bypass) answered(addrs []netip.Addr, ttl time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.table == nil {
		return
	}
	now, stay := b.now(), max(ttl, leastGiven)
	for _, a := range addrs {
		until, known := b.given[a]
		if until >= now+stay {
			continue
		}
		if !known && len(b.given) >= maxGiven {
			b.forget(now)
		}
		// Twice as long as needed, so that most answers need not wait.
		e, set, add := nft.Element{Prefix: nft.Host(a), Timeout: 2 * stay}, family("given", a), b.table.Add
		if known {
			add = b.table.Renew // which is dearer
		}
		if err := add(set, e); err != nil {
			b.log.Error("packet filter", "err", err)
			continue
		}
		b.given[a] = now + 2*stay
	}
}

// forget makes room: what has expired goes, and when nothing has, all of it.
func (b *bypass) forget(now time.Duration) {
	for a, until := range b.given {
		if now > until+time.Second { // the kernel's clock and ours
			delete(b.given, a)
		}
	}
	if len(b.given) < maxGiven {
		return
	}
	for _, set := range []string{"given4", "given6"} {
		if err := b.table.Flush(set); err != nil {
			b.log.Error("packet filter", "err", err)
			return
		}
	}
	clear(b.given)
}

// look reads the counters, keeps what is armed armed, and tells what is new.
func (b *bypass) look() {
	b.mu.Lock()
	if b.table == nil {
		b.mu.Unlock()
		return
	}
	if b.armed {
		if err := b.arm(true); err != nil {
			b.log.Error("packet filter", "err", err)
		}
	}
	counts, err := b.table.Counts()
	if err != nil {
		b.log.Warn("packet filter", "err", err)
		b.mu.Unlock()
		return
	}
	b.counts = guard.NameBypass{
		DNS: counts["dns"].Packets, DoH: counts["doh"].Packets, Unasked: counts["unasked"].Packets,
		LANDNS: counts["lan_dns"].Packets, LANDoH: counts["lan_doh"].Packets, LANUnasked: counts["lan_unasked"].Packets,
	}
	n, was, refused := b.counts, b.told, b.armed
	b.told = n
	b.mu.Unlock()
	sum := n.Sum() - was.Sum()
	if sum == 0 {
		return
	}
	evidence := map[string]string{"refused": strconv.FormatBool(refused)}
	for what, more := range map[string]uint64{
		"dns": n.DNS - was.DNS, "doh": n.DoH - was.DoH, "unasked": n.Unasked - was.Unasked,
		"lan_dns": n.LANDNS - was.LANDNS, "lan_doh": n.LANDoH - was.LANDoH, "lan_unasked": n.LANUnasked - was.LANUnasked,
	} {
		if more > 0 {
			evidence[what] = strconv.FormatUint(more, 10)
		}
	}
	at := time.Now()
	b.report(guard.Finding{
		Rule: guard.DomainBypass, Severity: guard.Low, Subject: guard.Subject{Kind: guard.Machine}, Count: sum, First: at.Add(-bypassEvery), Last: at,
		Evidence: evidence,
	})
}

// status is what is counted so far.
func (b *bypass) status() guard.NameBypass {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.counts
	switch {
	case b.table == nil:
		out.State = b.why
	case b.armed:
		out.State = guard.Enforce.String()
	default:
		out.State = guard.Observe.String()
	}
	return out
}
