package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"time"

	"github.com/spf13/cobra"

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
	setup := sensorsSetup{State: string(g.state), Interface: c.Interface, Memory: uint64(c.MemoryMB) << 20, DNS: c.DNS}
	setup.Network.Writers = append(writersOf(c.Writers), ownAddresses()...)
	for _, s := range c.Baseline {
		if d, err := packet.ParseDestination(s); err == nil { // the configuration was checked
			setup.Network.Baseline = append(setup.Network.Baseline, d)
		}
	}
	w, err := warden.New(warden.Config{
		Start: func() *exec.Cmd { return itself("guard", "sensors") },
		Setup: setup, Charging: g.charging, Memory: setup.Memory, Heartbeat: c.Heartbeat.D(), Store: guardStore{g.journal},
		Append: func(ctx context.Context, records []chain.Record) error { return g.outbox.Append(ctx, records, nil) },
		Tell:   g.tellFinding,
		Silent: func(k chain.Key) string {
			if !g.roster.active(k) {
				return ""
			}
			return g.roster.name(k)
		},
		Log: g.log.With("part", "guard"),
	})
	if err == nil && c.DNS.On() {
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
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- g.warden.Run(ctx) }()
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
		s.Findings = nil // a summary; they may name what is the household's
		if s.Names != nil && s.Names.Reload.Error != "" {
			n := *s.Names
			n.Reload.Error = "refused: see 'joulegate guard status'" // it may quote a list of the household's
			s.Names = &n
		}
		key := fmt.Sprint(s.Child.PID, s.Told, s.Silent)
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

func (b backend) Guard(context.Context) (guard.Status, error) {
	if b.warden == nil {
		return guard.Status{Mode: "off", Coverage: []guard.Coverage{}, Findings: []guard.Finding{}, Told: map[string]uint64{}, Silent: []string{}}, nil
	}
	return b.warden.Status(), nil
}

func newGuardStatusCmd() *cobra.Command {
	return query(&cobra.Command{
		Use:   "status",
		Short: "Say what the guard of the running gateway sees and has found",
		Long: `status tells how much every sensor of the running gateway sees, and why not more,
and the newest findings. Everything is observed; nothing is blocked or killed.`,
		Example: "  joulegate guard status\n  joulegate guard status --json",
		Args:    cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (guard.Status, error) {
		return g.Guard(cmd.Context())
	}, printGuard)
}

func printGuard(w io.Writer, s guard.Status) error {
	if s.Mode == "off" {
		_, err := fmt.Fprintln(w, "the guard is off: guard.mode in the configuration")
		return err
	}
	state := fmt.Sprintf("process %d, %d MB of its own, started %s", s.Child.PID, s.Child.MemoryMB, s.Child.Since.Local().Format(time.DateTime))
	if s.Child.PID == 0 {
		state = "no sensor runs: " + s.Child.Ended
	}
	if s.Child.Restarts > 0 {
		state += fmt.Sprintf(", restarted %d times", s.Child.Restarts)
	}
	fmt.Fprintf(w, "mode %s; %s\n\n", s.Mode, state)
	rows := [][]string{{"SENSOR", "LEVEL", "SEEN", "LOST", ""}}
	for _, c := range s.Coverage {
		rows = append(rows, []string{c.Sensor.String(), c.Level, strconv.FormatUint(c.Seen, 10), strconv.FormatUint(c.Lost, 10), c.Reason})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if s.Names != nil {
		fmt.Fprintln(w)
		if err := printNames(w, *s.Names); err != nil {
			return err
		}
	}
	for _, n := range s.Silent {
		fmt.Fprintf(w, "\nthe guard of %s is silent\n", n)
	}
	if s.HeldBack > 0 {
		fmt.Fprintf(w, "\n%d records were held back: too many for the ledger\n", s.HeldBack)
	}
	if len(s.Findings) == 0 {
		_, err := fmt.Fprintln(w, "\nnothing found")
		return err
	}
	fmt.Fprintln(w)
	rows = [][]string{{"LAST", "SEVERITY", "RULE", "SUBJECT", "COUNT"}}
	for _, f := range s.Findings {
		rows = append(rows, []string{f.Last.Local().Format(time.DateTime), f.Severity.String(), f.Rule, f.Subject.String(), strconv.FormatUint(f.Count, 10)})
	}
	return table(w, rows)
}

// neighbourBlock takes a neighbour's block that the journal has stored.
func (g *gateway) neighbourBlock(b *chain.Signed) {
	if w := g.warden; w != nil {
		w.Heard(b)
	}
}
