package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board/mqtt"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/packet"
	"github.com/joulegate/joulegate/guard/warden"
)

// guardStore keeps what the guard must remember beside the journal's blocks.
type guardStore struct{ *journal.Journal }

// newWarden makes the gateway's side of the guard; nil when it is off.
func (g *gateway) newWarden() (*warden.Warden, error) {
	c := g.cfg.Guard
	if c.Mode == "off" {
		return nil, nil
	}
	setup := sensorsSetup{State: string(g.state), Interface: c.Interface, Memory: uint64(c.MemoryMB) << 20, DNS: c.DNS, Sigma: c.Sigma, Programs: c.Programs}
	setup.Network.Writers = append(writersOf(c.Writers), ownAddresses()...)
	setup.Network.Resolvers = resolversOf(c.DNS)
	for _, s := range c.Baseline {
		if d, err := packet.ParseDestination(s); err == nil { // the configuration was checked
			setup.Network.Baseline = append(setup.Network.Baseline, d)
		}
	}
	g.filter, g.needed = newPacketFilter(g.self), newNeeded(g)
	react, unable, modes := g.reactor(g.filter), g.unable(), c.Modes()
	if unable[guard.Refuse.String()] != "" { // else it would be on record as begun
		delete(modes, guard.DomainBypass)
	}
	w, err := warden.New(warden.Config{
		Start: func() *exec.Cmd { return itself("guard", "sensors") },
		Setup: setup, Charging: g.charging, Memory: setup.Memory, Heartbeat: c.Heartbeat.D(), Store: guardStore{g.journal},
		Append: func(ctx context.Context, records []chain.Record) error { return g.outbox.Append(ctx, records) }, // there is none yet
		Tell:   g.tellFinding,
		Silent: func(k chain.Key) string {
			if !g.roster.active(k) {
				return ""
			}
			return g.roster.name(k)
		},
		Past:  g.heartbeats,
		Modes: modes, React: react.Do, Never: g.needed.never, Asked: g.askGuard,
		Unable: func() map[string]string { return unable },
		Log:    g.log.With("part", "guard"),
	})
	if err != nil {
		return nil, err
	}
	g.metrics.MustRegister(guardMetrics{w.Status})
	if c.DNS.On() {
		g.metrics.MustRegister(nameMetrics{w.Status})
	}
	return w, err
}

// charging tells whether any charger gives current.
func (g *gateway) charging() bool {
	s, ok := g.live.Latest()
	if !ok {
		return false
	}
	for _, c := range s.Chargers {
		if c.Relay {
			return true
		}
	}
	return false
}

// ownAddresses are this machine's: the gateway writes to its own devices.
func ownAddresses() (out []netip.Addr) {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}

// tellFinding publishes a finding. Names that somebody asked for and programs
// stay on the device.
func (g *gateway) tellFinding(f guard.Finding) {
	severity := mqtt.Info
	switch {
	case f.Severity >= guard.High:
		severity = mqtt.Alarm
	case f.Severity >= guard.Low:
		severity = mqtt.Warning
	}
	subject := f.Subject
	if subject.Kind == guard.Name || subject.Kind == guard.Program || subject.Kind == guard.PID {
		subject.Value = ""
	}
	if f.Rule == guard.DomainBlocked {
		return // without its name it says nothing; guard/state counts
	}
	if err := g.mqtt.PublishEvent("guard.finding", severity, time.Now(), map[string]any{"rule": f.Rule, "severity": f.Severity, "subject": subject, "count": f.Count}); err != nil {
		g.log.Debug("not published", "err", err)
	}
}

// runGuard keeps the guard and publishes its state when it changes, once a
// minute at most for what counts up.
func (g *gateway) runGuard(ctx context.Context) error {
	if g.warden == nil {
		s, _ := backend{g}.Guard(ctx)
		return g.mqtt.PublishGuard(s)
	}
	done := make(chan error, 1)
	go func() {
		var wg sync.WaitGroup
		wg.Go(func() { g.needed.run(ctx) })
		err := g.warden.Run(ctx)
		wg.Wait()
		done <- err
	}()
	defer func() { // what is in force is done again at the next start
		if err := g.filter.close(); err != nil {
			g.log.Warn("blocked addresses stay until they expire", "err", err)
		}
	}()
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	var last string
	var at time.Time
	for {
		select {
		case err := <-done:
			return err
		case <-t.C:
		}
		s := g.warden.Status()
		s = panel.DiscreetStatus(s) // they may name what is the household's
		s.Findings = nil            // a summary
		key := fmt.Sprint(s.Child.PID, s.Told, s.Silent, s.Reacted, s.Suspended.IsZero(), standingIDs(s.Reactions), standingIDs(s.Questions))
		for _, c := range s.Coverage {
			key += c.Level + c.Reason
		}
		if key == last && time.Since(at) < time.Minute {
			continue
		}
		last, at = key, time.Now()
		if err := g.mqtt.PublishGuard(s); err != nil {
			g.log.Warn("not published", "err", err)
		}
	}
}

func standingIDs(all []guard.Standing) (ids []uint64) {
	for _, s := range all {
		ids = append(ids, s.ID)
	}
	return ids
}

func (b backend) Guard(context.Context) (guard.Status, error) {
	if b.warden == nil {
		return guard.Status{Mode: "off", Coverage: []guard.Coverage{}, Findings: []guard.Finding{}, Told: map[string]uint64{}, Silent: []string{}}, nil
	}
	return b.warden.Status(), nil
}

// heartbeatsBack is how many blocks of a neighbour are looked through for his
// newest heartbeat at a start. A gateway makes some hundred in an hour.
const heartbeatsBack = 2048

// heartbeats are the neighbours' newest blocks with one, as the journal has
// them.
func (g *gateway) heartbeats(yield func(*chain.Signed) bool) {
	for author, p := range g.journal.Heads() {
		if author == g.self {
			continue
		}
		for range heartbeatsBack {
			b, err := g.journal.Block(author, p)
			if err != nil || b == nil {
				break // none in this epoch
			}
			if warden.HasHeartbeat(b) {
				if !yield(b) {
					return
				}
				break
			}
			if p.Number--; p.Number == 0 {
				break
			}
		}
	}
}

// neighbourBlock takes a neighbour's block that the journal has stored.
func (g *gateway) neighbourBlock(b *chain.Signed) {
	if w := g.warden; w != nil {
		w.Heard(b)
	}
}
