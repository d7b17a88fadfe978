package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/commission"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/doctor"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/identify"
	"github.com/spf13/cobra"
)

const trialsKey = "commission-trials"

// lastReport is the page that was made last.
func (s state) lastReport() string { return s.path("commissioning.html") }

// trials keeps what a person has tried at this gateway, on the disk as well.
// The newest of each kind counts, and there is one for each thing that is
// configured: that is their limit.
type trials struct {
	mu   sync.Mutex
	now  commission.Trials
	odd  time.Time // since when meters contradict each other; zero: they do not
	save func([]byte) error
}

// openTrials reads what was tried before. What cannot be read is to be tried
// again.
func (g *gateway) openTrials() {
	g.trials.save = func(b []byte) error { return g.journal.Save(trialsKey, b) }
	var t commission.Trials
	b, err := g.journal.Load(trialsKey)
	if err == nil && b != nil {
		err = json.Unmarshal(b, &t)
	}
	if err == nil && t.Version > commission.TrialsVersion {
		err = newer("what was tried at commissioning", t.Version, commission.TrialsVersion)
	}
	if err != nil {
		g.log.Warn("what was tried at commissioning is not known any more: try it again", "err", err)
		t = commission.Trials{}
	}
	t = t.Clone()
	t.Prune(&g.cfg)
	g.trials.now = t
}

// try changes what was tried.
func (g *gateway) try(change func(t *commission.Trials)) {
	g.trials.mu.Lock()
	defer g.trials.mu.Unlock()
	t := g.trials.now.Clone()
	change(&t)
	t.Version = commission.TrialsVersion
	t.Prune(&g.cfg)
	b, err := json.Marshal(t)
	if err == nil {
		err = g.trials.save(b)
	}
	if err != nil {
		g.log.Warn("what was tried is not stored: a restart forgets it", "err", err)
	}
	g.trials.now = t
}

func (g *gateway) tried() commission.Trials {
	g.trials.mu.Lock()
	defer g.trials.mu.Unlock()
	return g.trials.now.Clone()
}

// triedRelay keeps a test of a relay.
func (g *gateway) triedRelay(id uint8, v board.RelayTest) {
	for i := range g.cfg.Chargers {
		if h := &g.cfg.Chargers[i]; h.ID == id {
			g.try(func(t *commission.Trials) {
				t.Relays[fmt.Sprint(id)] = commission.Relay{At: time.Now().UTC(), Wires: commission.RelayWires(&g.devices.pins.board, h), Result: v}
			})
		}
	}
}

// triedScan keeps what answered on a line. A scan of some units adds to what
// is known of the others.
func (g *gateway) triedScan(line string, units []uint8, found []answerJSON) {
	asked := map[uint8]bool{}
	for _, u := range units {
		asked[u] = true
	}
	wires := commission.LineWires(&g.cfg, line)
	g.try(func(t *commission.Trials) {
		s := commission.Scan{At: time.Now().UTC(), Wires: wires}
		if was := t.Scans[line]; was.Wires == wires {
			for _, f := range was.Found {
				if !asked[f.Unit] {
					s.Found = append(s.Found, f)
				}
			}
		}
		for _, a := range found {
			f := commission.Found{Unit: a.Unit, Profile: a.Profile}
			for _, c := range a.Candidates {
				f.Fits = append(f.Fits, c.Profile)
			}
			if id := a.Identity; id != nil {
				f.Manufacturer, f.Model, f.Serial = id.Manufacturer, id.Model, id.Serial
			}
			s.Found = append(s.Found, f)
		}
		t.Scans[line] = s
	})
}

// Directions implements panel.Backend.
func (b backend) Directions(_ context.Context, o panel.DirectionOrder) error {
	if len(o.How) > 128 || !utf8.ValidString(o.How) {
		return panel.Invalid("how it was found out: at most 128 bytes of text")
	}
	for id, lines := range o.Meters {
		i := indexOf(b.cfg.Meters, func(m config.Meter) bool { return m.ID == id })
		if i < 0 {
			return panel.NotFound("there is no meter %q", id)
		}
		if len(lines) == 0 || len(lines) > 4 {
			return panel.Invalid("meter %s: %d lines, 1 to 4", id, len(lines))
		}
		b.found(&b.cfg.Meters[i], o.How, lines)
	}
	return nil
}

func indexOf[T any](all []T, is func(T) bool) int {
	for i, v := range all {
		if is(v) {
			return i
		}
	}
	return -1
}

// found keeps how lines of a meter are mounted. Lines that a load was not on
// keep what was found out about them before.
func (g *gateway) found(m *config.Meter, how string, lines []commission.Line) {
	wires := commission.MeterWires(m)
	g.try(func(t *commission.Trials) {
		d := commission.Direction{At: time.Now().UTC(), Wires: wires, How: how}
		if was := t.Directions[m.ID]; was.Wires == wires {
			for _, l := range was.Lines {
				if indexOf(lines, func(n commission.Line) bool { return n.Phase == l.Phase }) < 0 {
					d.Lines = append(d.Lines, l)
				}
			}
		}
		d.Lines = append(d.Lines, lines...)
		t.Directions[m.ID] = d
	})
}

// watchTrials sees what a person does with contacts while the gateway is
// commissioned, and which way round meters are by what they say of each
// other.
func (g *gateway) watchTrials(ctx context.Context) error {
	snapshots, err := g.live.Watch(ctx)
	if err != nil {
		return err
	}
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-snapshots:
			if !ok {
				return nil
			}
			if begun := g.commissioning.since(); !begun.IsZero() {
				g.operated(s, begun)
			}
			if s.Time.Sub(last) >= time.Second || s.Time.Before(last) {
				last = s.Time
				g.compare(s)
			}
		}
	}
}

// operated keeps contacts that were operated and released since begun.
func (g *gateway) operated(s board.Snapshot, begun time.Time) {
	known := g.tried().Contacts
	for _, c := range s.Chargers {
		i := indexOf(g.cfg.Chargers, func(h config.Charger) bool { return h.ID == c.ID })
		if i < 0 {
			continue
		}
		for _, v := range c.Contacts {
			key := commission.ContactKey(c.ID, v.Name)
			if v.Operated.Before(begun) || !v.Released.After(v.Operated) || known[key].Active.Equal(v.Operated) {
				continue
			}
			wires := commission.ContactWires(&g.devices.pins.board, &g.cfg.Chargers[i], v.Name)
			if wires == (chain.Hash{}) {
				continue
			}
			g.log.Info("commissioning: a contact was operated and released", "charger", c.ID, "contact", v.Name)
			g.try(func(t *commission.Trials) {
				t.Contacts[key] = commission.Contact{Active: v.Operated, Released: v.Released, Wires: wires}
			})
		}
	}
}

// From which power on meters prove something to each other.
const (
	provenBy  = meter.Watt(1000)
	producing = meter.Watt(200)
)

// compare tells which way round meters are from what nobody doubts: power
// flows into a vehicle that is charged, out of an inverter, and through the
// house connection when nothing in the house makes up for it. It knows only
// what is proven, never what is wrong with a meter that was proven right.
func (g *gateway) compare(s board.Snapshot) {
	g.trials.mu.Lock()
	if house, slack, known := commission.House(s); !known || house >= -slack {
		g.trials.odd = time.Time{}
	} else if g.trials.odd.IsZero() {
		g.trials.odd = time.Now()
	}
	g.trials.mu.Unlock()
	var charging, produced meter.Watt
	for _, m := range s.Meters {
		if m.Quality != meter.Good.String() {
			return // one that is missing could turn everything round
		}
		switch m.Role {
		case chain.RoleCharger.String():
			charging += m.PowerW
		case chain.RoleProduction.String(), chain.RoleStorage.String():
			produced += max(m.PowerW, -m.PowerW)
		}
	}
	known := g.tried().Directions
	for _, m := range s.Meters {
		i := indexOf(g.cfg.Meters, func(c config.Meter) bool { return c.ID == m.ID })
		if i < 0 {
			continue
		}
		if d, ok := known[m.ID]; ok && d.Wires == commission.MeterWires(&g.cfg.Meters[i]) {
			continue
		}
		how, w := "", m.PowerW
		switch m.Role {
		case chain.RoleCharger.String():
			for _, c := range s.Chargers {
				if c.Meter == m.ID && c.Relay && c.Sale == nil && w >= provenBy {
					how = "while a vehicle was charged"
				}
			}
		case chain.RoleProduction.String():
			if w <= -producing {
				how = "while it produced"
			}
		case chain.RoleSite.String():
			if charging >= provenBy && 4*produced <= charging && w >= charging-charging/10 {
				how = fmt.Sprintf("while vehicles took %d W", charging)
			}
		}
		if how != "" {
			g.found(&g.cfg.Meters[i], how, []commission.Line{{StepW: w, Wiring: identify.Right}})
		}
	}
}

// maxInstaller bounds the name in a report.
const maxInstaller = 128

// CommissionReport implements panel.Backend.
func (b backend) CommissionReport(ctx context.Context, o panel.ReportOrder) ([]byte, error) {
	if len(o.Installer) > maxInstaller || !utf8.ValidString(o.Installer) || strings.ContainsFunc(o.Installer, func(r rune) bool { return r < ' ' }) {
		return nil, panel.Invalid("the installer's name: one line of at most %d bytes", maxInstaller)
	}
	in, err := b.commissioned(ctx)
	if err != nil {
		return nil, err
	}
	in.Installer = o.Installer
	sealed, err := commission.Seal(commission.Make(in), b.id.device)
	if err != nil {
		return nil, err
	}
	page, err := commission.Page(sealed, b.id.device)
	if err != nil {
		return nil, err
	}
	if err := writeFile(b.state.lastReport(), page, 0o600); err != nil {
		b.log.Warn("the report is not kept", "err", err)
	}
	if o.Page {
		return page, nil
	}
	return sealed, nil
}

// LastReport implements panel.Backend.
func (b backend) LastReport(context.Context) ([]byte, error) {
	p, err := os.ReadFile(b.state.lastReport())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, panel.NotFound("no report was made: joulegate commission --report FILE.html at the gateway")
	}
	return p, err
}

// commissioned gathers what a report is made of.
func (b backend) commissioned(ctx context.Context) (in commission.Input, err error) {
	snapshot, ok := b.live.Latest()
	if !ok {
		return in, panel.Unavailable("the control loop has not said anything yet")
	}
	force := b.settings.doc.Commit.InForce()
	status, l := b.mqtt.Stats(), b.ledger.Status()
	members, err := view(b, ledger.Members)
	if err != nil {
		return in, err
	}
	in = commission.Input{
		Made: time.Now(), Config: &b.cfg, Board: b.devices.pins.board, Trials: b.tried(), Snapshot: snapshot,
		Gateway: commission.Gateway{
			Name: b.cfg.Name, Device: b.self, Chain: b.genesis.ChainID, Genesis: b.genesisHash, Version: version, Program: programHash(),
			Config: revision(b.cfg), Revision: force.Rev, Board: b.devices.pins.board.ID + ": " + b.devices.pins.board.Title,
			Model: cmp.Or(hostText("/proc/device-tree/model", "/sys/class/dmi/id/product_name"), "model not known"), Serial: hostText("/proc/device-tree/serial-number", "/sys/class/dmi/id/product_serial"),
		},
		Grid:   commission.Grid{Member: b.isMember(), Connected: len(b.connected()), Height: l.Height, BlockTime: l.BlockTime, Halted: l.Halted},
		Broker: commission.Broker{Address: cmp.Or(b.cfg.MQTT.Broker, b.mqtt.Addr()), Embedded: b.cfg.MQTT.Broker == "", Connected: status.Connected},
		Meters: map[string]commission.Meter{}, Failsafe: map[uint8]commission.Failsafe{},
	}
	b.trials.mu.Lock()
	if odd := b.trials.odd; !odd.IsZero() {
		in.Contradicted = time.Since(odd)
	}
	b.trials.mu.Unlock()
	for _, m := range members {
		if m.Active {
			in.Grid.Members++
		}
	}
	if in.Guard, err = b.Guard(ctx); err != nil {
		return in, err
	}
	for _, c := range doctor.Examine(b.subject()) {
		in.Computer = append(in.Computer, commission.Row{ID: c.ID, What: strings.ReplaceAll(c.ID, "_", " "), State: stateWord[c.State], Seen: c.Detail, Remedy: c.Remedy})
	}
	stats := map[string]modbus.Stats{}
	for id, line := range b.devices.lines {
		stats[id] = line.Stats()
	}
	for i, m := range b.cfg.Meters {
		u, p := stats[m.Line].Units[m.Unit], b.devices.profiles[m.ID]
		in.Meters[m.ID] = commission.Meter{
			Identity: b.devices.readers[i].State().Pinned, Vendor: p.Vendor, Model: p.Model,
			Requests: u.Requests, Answers: u.Answers, Down: u.Down, Typical: u.Turnaround,
		}
	}
	for id := range b.devices.boxes {
		f, err := b.Failsafe(ctx, id, nil)
		v := commission.Failsafe{Current: f.Current, Timeout: time.Duration(f.TimeoutMs) * time.Millisecond, Fixed: f.Fixed}
		if err != nil {
			v.Err = err.Error()
		}
		in.Failsafe[id] = v
	}
	return in, nil
}

// stateWord translates the doctor's states.
var stateWord = map[doctor.State]commission.State{doctor.OK: commission.OK, doctor.Warn: commission.Note, doctor.Fail: commission.Fail, doctor.Skip: commission.Skip}

// hostText returns the first of some files that says anything.
func hostText(files ...string) string {
	for _, f := range files {
		b, err := os.ReadFile(f)
		if s := strings.TrimSpace(strings.TrimRight(string(b), "\x00\n")); err == nil && s != "" {
			return s[:min(len(s), 128)]
		}
	}
	return ""
}

// subject is this running gateway for the doctor.
func (b backend) subject() doctor.Subject {
	s := doctor.Subject{Host: thisHost(), Config: &b.cfg, ConfigPath: b.settings.file, State: string(b.state)}
	s.Detected, _ = detectedBoard()
	s.Host.Gateway = func() (string, error) {
		st, err := b.Status(context.Background())
		return fmt.Sprintf("version %s, %d peers, block %d", st.Version, st.Peers, st.Height), err
	}
	return s
}

// doneWords says what was tried, for people who wait for it.
func (g *gateway) doneWords() []string {
	t := g.tried()
	out := []string{}
	say := func(at time.Time, format string, args ...any) {
		out = append(out, at.Local().Format("15:04:05 ")+fmt.Sprintf(format, args...))
	}
	for _, h := range g.cfg.Chargers {
		if r, ok := t.Relays[fmt.Sprint(h.ID)]; ok {
			say(r.At, "relay of charger %d tested: in order %t", h.ID, r.Result.OK)
		}
		for _, name := range []string{board.ContactEStop, board.ContactEarth, board.ContactStop, board.ContactPilot} {
			if c, ok := t.Contacts[commission.ContactKey(h.ID, name)]; ok {
				say(c.Active, "%s of charger %d operated and released", name, h.ID)
			}
		}
	}
	for _, l := range g.cfg.Lines {
		if s, ok := t.Scans[l.ID]; ok {
			say(s.At, "line %s scanned: %d devices", l.ID, len(s.Found))
		}
	}
	for _, m := range g.cfg.Meters {
		if d, ok := t.Directions[m.ID]; ok {
			say(d.At, "direction of meter %s seen %s", m.ID, d.How)
		}
	}
	return out
}

// commissionReport is `commission --report` and `commission --json`.
func commissionReport(cmd *cobra.Command, file, by string) error {
	page := false
	switch filepath.Ext(file) {
	case ".html", ".htm":
		page = true
	case ".json", "":
	default:
		return usageError{errors.New("--report: a file that ends in .html or .json")}
	}
	g, err := dial(cmd)
	if err != nil {
		return err
	}
	defer g.Close()
	b, err := g.CommissionReport(cmd.Context(), panel.ReportOrder{Installer: by, Page: page})
	if err != nil {
		return err
	}
	o, err := commission.Open(b)
	if err != nil {
		return fmt.Errorf("the gateway's report: %w", err)
	}
	if file != "" {
		if err := writeFile(file, b, 0o644); err != nil {
			return err
		}
	}
	if err := emit(cmd, o.Report, func(w io.Writer) error { return printCommission(w, o, file) }); err != nil {
		return err
	}
	if !o.Complete {
		return errSilent
	}
	return nil
}

func printCommission(w io.Writer, o commission.Opened, file string) error {
	rows := [][]string{{"STEP", "DONE", "LEFT", "OF"}}
	for _, s := range o.Steps {
		left := 0
		for _, r := range s.Rows {
			if r.State.Red() {
				left++
			}
		}
		rows = append(rows, []string{s.Title, map[bool]string{true: "yes", false: "NO"}[s.OK], fmt.Sprint(left), fmt.Sprint(len(s.Rows))})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	for _, r := range o.Red() {
		word := "FAILS"
		if r.State == commission.NotDone {
			word = "NOT DONE"
		}
		fmt.Fprintf(w, "\n%s  %s: %s\n", word, r.What, r.Seen)
		if r.Remedy != "" {
			fmt.Fprintf(w, "  -> %s\n", r.Remedy)
		}
	}
	fmt.Fprintln(w)
	if o.Complete {
		fmt.Fprintln(w, "complete: nothing is left to do")
	} else {
		fmt.Fprintf(w, "not complete: %d left to do\n", o.Open)
	}
	if file != "" {
		fmt.Fprintf(w, "%s is signed by gateway %s; check it with: joulegate commission verify %s\n", file, o.Gateway.Device.Short(), file)
	}
	return nil
}

func newCommissionVerifyCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check the signatures of a commissioning report, offline",
		Long: `Checks a report that 'commission --report' has written, page or JSON, with neither
a gateway nor a network: any changed byte is found. It says whose signature it
is; compare the key with the label on the gateway, or name it with --device.

Exits 1 if a signature does not hold. A report that is signed and not complete
is in order: it says so.`,
		Example: "  joulegate commission verify report.html --device 6ebf...c1",
		Args:    cobra.ExactArgs(1),
	}
	device := c.Flags().String("device", "", "`KEY` that must have signed")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, commission.MaxBytes+1))
		if err != nil {
			return err
		}
		o, err := commission.Open(b)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		if *device != "" {
			var want chain.Key
			if err := want.UnmarshalText([]byte(*device)); err != nil {
				return usageError{fmt.Errorf("--device: %w", err)}
			}
			if want != o.Gateway.Device {
				return fmt.Errorf("%s: signed by %s, not by %s", args[0], o.Gateway.Device, want)
			}
		}
		return emit(cmd, o.Report, func(w io.Writer) error {
			what := "signed report"
			if o.Page {
				what = "signed page and report"
			}
			return table(w, [][]string{
				{"file", what + ", whole"},
				{"gateway", o.Gateway.Name + " in " + o.Gateway.Chain},
				{"signed by", o.Gateway.Device.String()},
				{"made", o.Made.Format(time.RFC3339)},
				{"installer", cmp.Or(o.Installer, "not named")},
				{"complete", map[bool]string{true: "yes", false: fmt.Sprintf("NO, %d left to do", o.Open)}[o.Complete]},
				{"hash", o.Hash.String()},
			})
		})
	}
	return c
}

// scanConfigured is `bus scan --line`.
func scanConfigured(cmd *cobra.Command, line, units string) error {
	g, err := dial(cmd)
	if err != nil {
		return err
	}
	defer g.Close()
	raw, err := g.ScanLine(cmd.Context(), panel.ScanOrder{Line: line, Units: units})
	if err != nil {
		return err
	}
	var s scanJSON
	if err := json.Unmarshal(bytes.TrimSpace(raw), &s); err != nil {
		return fmt.Errorf("the gateway's answer: %w", err)
	}
	return emit(cmd, raw, func(w io.Writer) error {
		rows := [][]string{{"UNIT", "PROFILE", "EVIDENCE"}}
		for _, a := range s.Found {
			what, why := a.Profile, strings.Join(a.Evidence, "; ")
			if a.Status == ambiguous {
				var fit []string
				for _, c := range a.Candidates {
					fit = append(fit, c.Profile)
				}
				what, why = strings.Join(fit, " or "), lookAtLabel
			}
			rows = append(rows, []string{fmt.Sprint(a.Unit), cmp.Or(what, a.Status), why})
		}
		if len(s.Found) == 0 {
			_, err := fmt.Fprintf(w, "nothing answers on %s\n", line)
			return err
		}
		return table(w, rows)
	})
}
