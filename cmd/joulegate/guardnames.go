package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/domain"
)

// nameServer keeps the name server in the sensors' process: what parses
// anybody's packets shares nothing with the station.
type nameServer struct {
	c       config.DNS
	report  func(guard.Finding)
	now     func() time.Duration
	log     *slog.Logger
	answers *domain.Answers
	bypass  *bypass     // nil: nobody looks
	mark    uint32      // of packets to upstreams
	orders  chan uint64 // to read the lists anew; the newest counts

	mu     sync.Mutex
	server *domain.Server // nil: it does not listen
	reason string         // why not, or what is wrong
	since  time.Time
	ours   bool   // this machine asked here when its resolv.conf was read last
	base   uint64 // orders before this process began
}

// resolvConf names the machine's own name servers.
const resolvConf = "/etc/resolv.conf"

func newNameServer(c config.DNS, report func(guard.Finding), now func() time.Duration, log *slog.Logger) *nameServer {
	n := &nameServer{c: c, report: report, now: now, log: log, answers: domain.NewAnswers(now, ownAddresses()), orders: make(chan uint64, 1), reason: "not started", since: time.Now()}
	if c.Bypass == "observe" {
		n.bypass = newBypass(clientsOf(c), report, now, log)
	}
	return n
}

// order has the lists read anew. Of the first order only the number counts:
// this process has just read them.
func (n *nameServer) order(order uint64, first bool) {
	if first {
		n.mu.Lock()
		n.base = order
		n.mu.Unlock()
		return
	}
	select {
	case <-n.orders:
	default:
	}
	n.orders <- order // only one goroutine orders
}

// names says how the server is doing.
func (n *nameServer) names() *guard.Names {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server == nil {
		return &guard.Names{Listen: []string{}, Lists: []guard.NameList{}, Only: n.c.Only, Bypass: n.past()}
	}
	out := n.server.Names()
	out.Reload.Order = max(out.Reload.Order, n.base)
	out.Bypass = n.past()
	return &out
}

// past is what went past the server.
func (n *nameServer) past() guard.NameBypass {
	if n.bypass == nil {
		return guard.NameBypass{State: "off"}
	}
	return n.bypass.status()
}

// Coverage implements sensor.
func (n *nameServer) Coverage() guard.Coverage {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server == nil {
		return guard.Coverage{Sensor: guard.Domain, Level: guard.None, Reason: n.reason, Since: n.since}
	}
	c := n.server.Coverage()
	if r := n.server.Names().Reload; r.Error != "" {
		c.Reason = r.Error
	} else if n.reason != "" {
		c.Reason = n.reason
	}
	return c
}

func (n *nameServer) set(s *domain.Server, reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.server, n.reason = s, reason
}

// Run answers until ctx ends. Whatever keeps it from listening may pass.
func (n *nameServer) Run(ctx context.Context) error {
	if n.bypass != nil && n.bypass.open() {
		n.mark = bypassMark
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { n.bypass.run(ctx) })
	}
	for {
		err := n.serve(ctx)
		if ctx.Err() != nil {
			return nil
		}
		n.set(nil, err.Error())
		n.log.Error("name server", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Second):
		}
	}
}

func (n *nameServer) serve(ctx context.Context) error {
	c := domain.Config{
		Listen: n.c.Listen, Upstreams: n.c.Upstreams, Local: n.c.Local, Null: n.c.Answer == "null",
		// Questions that come before the lists are read wait in the sockets.
		Filter: domain.Empty(n.c.Only), Answers: n.answers, Report: n.report, Now: n.now, Mark: n.mark, Log: n.log,
		Clients: clientsOf(n.c),
	}
	if n.bypass != nil {
		c.Answered = n.bypass.answered
	}
	for _, s := range n.c.Bootstrap {
		if a, err := config.ParseResolver(s); err == nil {
			c.Bootstrap = append(c.Bootstrap, a)
		}
	}
	s, err := domain.New(c)
	if err != nil {
		if os.IsPermission(err) {
			err = fmt.Errorf("%w: ports below 1024 need CAP_NET_BIND_SERVICE; in the systemd unit AmbientCapabilities=CAP_NET_BIND_SERVICE", err)
		}
		return err
	}
	n.set(s, "")
	n.read(ctx, s, 0)
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case order := <-n.orders:
				n.read(ctx, s, order)
			}
		}
	})
	wg.Go(func() { n.watchOwn(ctx, s.Addrs()) })
	return s.Run(ctx)
}

// clientsOf are those that may ask, beside this gateway.
func clientsOf(c config.DNS) (out []netip.Prefix) {
	for _, s := range c.Clients {
		if p, err := config.ParsePrefix(s); err == nil { // the configuration was checked
			out = append(out, p)
		}
	}
	return out
}

// read reads the lists. What is refused is in Names and in the coverage.
func (n *nameServer) read(ctx context.Context, s *domain.Server, order uint64) {
	began := n.now()
	if err := s.Reload(ctx, order, domain.Options{Block: n.c.Block, Allow: n.c.Allow, Only: n.c.Only}); err != nil {
		n.log.Error("lists of names", "err", err)
		return
	}
	debug.FreeOSMemory() // of the rules while they were sorted
	names := s.Names()
	n.log.Info("lists of names", "lists", len(names.Lists), "blocked", names.Rules, "took", (n.now() - began).Round(time.Millisecond))
}

// watchOwn looks whom this machine asks, by its resolv.conf.
func (n *nameServer) watchOwn(ctx context.Context, here []netip.AddrPort) {
	t := time.NewTicker(10 * time.Second)
	defer t.Stop()
	for {
		text, err := os.ReadFile(resolvConf)
		n.judgeOwn(string(text), err, here)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// judgeOwn says in the coverage what is wrong with the machine's resolv.conf.
// That it asked here and does so no more is a finding.
func (n *nameServer) judgeOwn(text string, err error, here []netip.AddrPort) {
	others := domain.Elsewhere(text, here)
	reason := ""
	switch {
	case !slices.ContainsFunc(here, func(a netip.AddrPort) bool { return a.Port() == 53 }):
		reason = "not on port 53, so that nothing asks here by itself"
	case err != nil:
		reason = err.Error()
	case len(others) > 0:
		reason = fmt.Sprintf("this machine asks %s: name one of %s in %s", strings.Join(others, ", "), joinAddrs(here), resolvConf)
	}
	n.answers.Uses(reason == "")
	n.mu.Lock()
	turned := n.ours && len(others) > 0
	n.reason, n.ours = reason, reason == ""
	n.mu.Unlock()
	if turned {
		at := time.Now()
		n.report(guard.Finding{
			Rule: guard.DomainBypass, Severity: guard.Medium, Subject: guard.Subject{Kind: guard.Machine}, Count: 1, First: at, Last: at,
			Evidence: map[string]string{"file": resolvConf, "asks": strings.Join(others, " ")},
		})
	}
}

func joinAddrs(all []netip.AddrPort) string {
	out := make([]string, len(all))
	for i, a := range all {
		out[i] = a.Addr().String()
	}
	return strings.Join(out, ", ")
}

// resolversOf are the name servers that machines of this network may ask,
// where this gateway answers them: others are gone past it. Of a gateway that
// answers only itself the packet filter knows better.
func resolversOf(c config.DNS) []netip.Addr {
	if !c.On() || c.LAN == "" {
		return nil
	}
	out := ownAddresses()
	for _, s := range c.Upstreams {
		if !strings.Contains(s, "://") {
			s = "udp://" + s
		}
		if u, err := url.Parse(s); err == nil {
			if a, err := netip.ParseAddr(u.Hostname()); err == nil {
				out = append(out, a.Unmap())
			}
		}
	}
	for _, s := range c.Bootstrap {
		if a, err := config.ParseResolver(s); err == nil {
			out = append(out, a.Addr().Unmap())
		}
	}
	return out
}

// ReloadNames implements panel.Backend.
func (b backend) ReloadNames(context.Context) (uint64, error) {
	switch {
	case b.warden == nil:
		return 0, panel.Refused("the guard is off: guard.mode in the configuration")
	case !b.cfg.Guard.DNS.On():
		return 0, panel.Refused("the name server is off: guard.dns.listen in the configuration")
	}
	return b.warden.Reload(), nil
}

func newGuardDomainReloadCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have the running gateway read its lists of names anew",
		Long: `reload has the running gateway read the lists of guard.dns anew and waits until
that is done. Meanwhile the former lists are in force, and they stay in force when
one of the new ones is refused: then the command fails with the file and the line.`,
		Example: "  joulegate guard domain reload",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			g, err := dial(cmd)
			if err != nil {
				return err
			}
			defer g.Close()
			order, err := g.ReloadNames(cmd.Context())
			if err != nil {
				return err
			}
			names, err := waitReload(cmd, g, order)
			if err != nil {
				return err
			}
			return emit(cmd, names, func(w io.Writer) error { return printNames(w, *names) })
		},
	}
}

// waitReload tells how reading goes on until it is over.
func waitReload(cmd *cobra.Command, g *panel.Client, order uint64) (*guard.Names, error) {
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	last := ""
	for began := time.Now(); ; {
		s, err := g.Guard(cmd.Context())
		if err != nil {
			return nil, err
		}
		n := s.Names
		switch {
		case n == nil || n.Reload.Order < order:
			if time.Since(began) > time.Minute {
				return nil, errors.New("the guard does not answer: see 'joulegate guard status'")
			}
		case !n.Reload.Running && n.Reload.Error != "":
			return nil, errors.New(n.Reload.Error)
		case !n.Reload.Running:
			return n, nil
		default:
			if line := fmt.Sprintf("%s: %d rules read", n.Reload.File, n.Reload.Read); line != last && n.Reload.Read > 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), line)
				last = line
			}
		}
		select {
		case <-cmd.Context().Done():
			return nil, cmd.Context().Err()
		case <-t.C:
		}
	}
}

func printNames(w io.Writer, n guard.Names) error {
	if len(n.Listen) == 0 {
		_, err := fmt.Fprintln(w, "the name server does not listen")
		return err
	}
	only := ""
	if n.Only {
		only = "; every name that is not allowed is blocked"
	}
	fmt.Fprintf(w, "name server on %s; %d names blocked%s\n", strings.Join(n.Listen, ", "), n.Rules, only)
	rows := [][]string{}
	for _, c := range nameCounts(n) {
		rows = append(rows, []string{c.name, strconv.FormatUint(c.value, 10)})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if len(n.Lists) > 0 {
		rows = [][]string{{"LIST", "RULES", "NOT ABOUT NAMES"}}
		for _, l := range n.Lists {
			rows = append(rows, []string{l.File, strconv.Itoa(l.Rules), strconv.Itoa(l.Skipped)})
		}
		fmt.Fprintln(w)
		if err := table(w, rows); err != nil {
			return err
		}
	}
	if b := n.Bypass; b.State != "off" {
		fmt.Fprintf(w, "\npast the name server: %s; packets to other name servers %d, to resolvers over HTTPS %d, to addresses nobody asked for %d\n", b.State, b.DNS, b.DoH, b.Unasked)
		if lan := b.LANDNS + b.LANDoH + b.LANUnasked; lan > 0 {
			fmt.Fprintf(w, "of the household's devices: %d, %d, %d\n", b.LANDNS, b.LANDoH, b.LANUnasked)
		}
	}
	if n.Reload.Error != "" {
		fmt.Fprintf(w, "\nthe newest lists were refused: %s\n", n.Reload.Error)
	}
	return nil
}

// nameCount is one of the server's counts.
type nameCount struct {
	name, help string
	value      uint64
}

func nameCounts(n guard.Names) []nameCount {
	return []nameCount{
		{"questions", "Questions for names.", n.Questions},
		{"blocked", "Questions for blocked names.", n.Blocked},
		{"cloaked", "Of the blocked ones: because of a name that the asked one leads to.", n.Cloaked},
		{"cached", "Questions answered from the cache.", n.Cached},
		{"stale", "Questions answered past their time, because no upstream answered.", n.Stale},
		{"failed", "Questions that no upstream answered.", n.Failed},
		{"rebound", "Answers of public names with private addresses.", n.Rebound},
		{"refused", "Questions of strangers.", n.Refused},
		{"dropped", "Questions that were malformed or too many.", n.Dropped},
		{"bypass_dns", "Packets of this machine to other name servers.", n.Bypass.DNS},
		{"bypass_doh", "Packets of this machine to public resolvers over HTTPS.", n.Bypass.DoH},
		{"bypass_unasked", "Packets of this machine to addresses that were no answer.", n.Bypass.Unasked},
	}
}

// nameMetrics tells Prometheus what the name server counts. Its process may
// start anew, and then counts from zero, as counters do.
type nameMetrics struct{ status func() guard.Status }

func nameDesc(c nameCount) *prometheus.Desc {
	return prometheus.NewDesc("joulegate_guard_names_"+c.name+"_total", c.help, nil, nil)
}

// Describe implements prometheus.Collector.
func (nameMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range nameCounts(guard.Names{}) {
		ch <- nameDesc(c)
	}
}

// Collect implements prometheus.Collector.
func (m nameMetrics) Collect(ch chan<- prometheus.Metric) {
	n := m.status().Names
	if n == nil {
		return
	}
	for _, c := range nameCounts(*n) {
		ch <- prometheus.MustNewConstMetric(nameDesc(c), prometheus.CounterValue, float64(c.value))
	}
}
