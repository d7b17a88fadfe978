package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/board/update"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

// arches are the artifacts that this program's processor executes, best first.
func arches() []string {
	if runtime.GOARCH != "arm" {
		return []string{runtime.GOARCH}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "GOARM" && strings.HasPrefix(s.Value, "7") {
				return []string{"armv7", "armv6"}
			}
		}
	}
	return []string{"armv6"}
}

// updateConfig is what a configuration says about updates.
func updateConfig(c config.Config, st state, log *slog.Logger) (update.Config, error) {
	store := st.updates()
	u := update.Config{
		Store: store, Slots: slotsHere(store), Threshold: c.Update.Wanted(), Auto: c.Update.Auto, Channel: c.Update.Channel,
		Arches: arches(), Patience: c.Update.Patience.D(), Log: log,
		Free: func() (uint64, error) {
			d, err := diskOf(string(st))
			return d.Free, err
		},
	}
	for _, t := range c.Update.Keys {
		var k chain.Key
		if err := k.UnmarshalText([]byte(t)); err != nil {
			return u, err
		}
		u.Keys = append(u.Keys, k)
	}
	if c.Update.Source != "" {
		var err error
		if u.Source, err = update.NewSource(c.Update.Source); err != nil {
			return u, fmt.Errorf("update.source: %w", err)
		}
	}
	return u, nil
}

// newUpdater connects updates with what only a running gateway knows.
func (g *gateway) newUpdater(at place) (*update.Updater, error) {
	c, err := updateConfig(g.cfg, g.state, g.log.With("part", "update"))
	if err != nil {
		return nil, err
	}
	c.Self, c.Place, c.Trial, c.Device = thisProgram(), at.Place, at.Trial, g.self
	c.Busy, c.Meters = g.occupied, g.settings.goodMeters
	c.Needs = func() (n uint32, err error) {
		err = g.ledger.View(func(s ledger.State) { n = rulesNeeded(s) })
		return n, err
	}
	c.Well = func(meters []string) string {
		if why := g.measuring(meters); why != "" {
			return why
		}
		if why := g.ledger.Status().Halted; why != "" {
			return "the ledger has halted: " + why
		}
		return ""
	}
	c.Now = func() time.Time { // a board without a clock has at least the ledger's
		now := time.Now()
		if t := g.ledger.Status().BlockTime; t.After(now) {
			return t
		}
		return now
	}
	c.Restart, c.Confirmed = func() { g.renew() }, func() { alarm(0) }
	c.Note = func(code string, severity int, text string) { g.station.Note(code, uint8(severity), g.cfg.Name, text) }
	return update.New(c)
}

// rulesNeeded is the version of the rules that a program must know to go on:
// in force, or agreed for a later block.
func rulesNeeded(s ledger.State) uint32 {
	n := ledger.RulesOf(s).Version
	for _, c := range ledger.PendingRules(s) {
		n = max(n, c.MinVersion)
	}
	return n
}

// occupied says why this is no moment to begin anew.
func (g *gateway) occupied() string {
	snap, ok := g.live.Latest()
	if !ok {
		return "the control loop has not said anything yet"
	}
	for _, c := range snap.Chargers {
		if c.Session != "" || c.Relay || c.Current > 0 {
			return fmt.Sprintf("a car charges at charger %d", c.ID)
		}
	}
	if len(g.station.Sessions()) > 0 {
		return "a session is open"
	}
	if g.settings.underWay() {
		return "a change of the configuration is under way"
	}
	return ""
}

// underWay reports whether a change waits, for whatever.
func (s *settings) underWay() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doc.Commit.Pending != nil
}

// updatesTrusted refuses changes from afar of whose programs are executed
// here: who could make them would own the gateway.
func updatesTrusted(cur, next config.Update) error {
	path := "update.keys"
	if slices.Equal(cur.Keys, next.Keys) {
		if path = "update.threshold"; cur.Threshold == next.Threshold {
			return nil
		}
	}
	return &config.Denial{Code: "local_only", Path: path, Text: "whose releases this gateway takes is changed at the machine only: in its file, or with joulegate config apply"}
}

// Update implements panel.Backend.
func (b backend) Update(ctx context.Context, o panel.UpdateOrder) (board.Update, error) {
	var err error
	switch o.Do {
	case "":
	case "check":
		_, err = b.updater.Check(ctx)
	case "apply":
		_, err = b.updater.Begin(ctx)
	case "rollback":
		err = b.updater.Rollback(ctx)
	default:
		return board.Update{}, panel.Invalid("updates cannot be told to %q: check, apply or rollback", o.Do)
	}
	if err != nil {
		return board.Update{}, panel.Refused("%v", err)
	}
	return b.updater.Status(), nil
}

func newUpdateCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "update",
		Short: "Look for a newer joulegate, apply it, go back",
		Long: `A release counts if enough of the keys in update.keys have signed it. It is put
beside the running program, started when no car charges, and kept if the control
loop runs, the meters that answered before answer again and the ledger opens.
Otherwise the former program returns by itself. By default security updates are
applied without a person (update.auto).`,
		Example: "  joulegate update status\n  joulegate update check\n  joulegate update apply\n  joulegate update rollback",
	}
	c.AddCommand(
		newUpdateDoCmd("check", "Look for a release, and change nothing", ""),
		newUpdateDoCmd("apply", "Fetch the release, and start it when no car charges", `Fetches what is offered into the slot that does not run and starts it as soon as
no car charges. update.auto and the share of gateways that take a release by
themselves do not count: a person wants it. It waits until the new program is
confirmed or gone again, or until a car has to leave first.

Without a running gateway the next start tries it.`),
		newUpdateDoCmd("rollback", "Go back to the former program", `Ends the trial of a new program, or goes back to the one that ran before and is
kept. What one has gone back from does not come again by itself.`),
		newUpdateDoCmd("status", "Show which program runs, and what is offered", ""),
	)
	return c
}

func newUpdateDoCmd(do, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: do, Short: short, Long: long, Args: cobra.NoArgs,
		Example: "  joulegate update " + do + "\n  joulegate update " + do + " --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			order := do
			if do == "status" {
				order = ""
			}
			g, err := dial(cmd)
			var v board.Update
			switch {
			case errors.Is(err, errNotRunning):
				v, err = updateStopped(cmd, order)
			case err == nil:
				defer g.Close()
				v, err = updateRunning(cmd, g, order)
			}
			if err != nil {
				return err
			}
			if err := emit(cmd, v, func(w io.Writer) error { return printUpdate(w, v) }); err != nil {
				return err
			}
			if order != "" && v.Error != "" {
				return errors.New(v.Error)
			}
			if o := v.Outcome; order == "apply" && v.Phase == board.UpdateIdle && o != nil && o.State == board.UpdateRolledBack {
				return fmt.Errorf("version %s was rolled back: %s", o.Version, o.Why)
			}
			return nil
		},
	}
}

// followFor bounds how long a command waits for a gateway that changes its
// program.
const followFor = 90 * time.Minute

// updateRunning gives the order and tells how it goes on.
func updateRunning(cmd *cobra.Command, g *panel.Client, order string) (board.Update, error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), followFor)
	defer cancel()
	progress := progressLine(cmd)
	defer progress("")
	if order == "check" || order == "apply" {
		progress("asking the source")
	}
	v, err := g.Update(ctx, panel.UpdateOrder{Do: order})
	if err != nil || order == "" || order == "check" {
		return v, err
	}
	var began time.Time
	if v.Outcome != nil {
		began = v.Outcome.Time
	}
	was := v
	for {
		select {
		case <-ctx.Done():
			return was, fmt.Errorf("the gateway was not heard again; last it was %s: %w", was.Phase, ctx.Err())
		case <-time.After(300 * time.Millisecond):
		}
		one, done := context.WithTimeout(ctx, 5*time.Second)
		v, err := g.Update(one, panel.UpdateOrder{})
		done()
		if err != nil { // it starts anew
			progress("the gateway starts anew")
			continue
		}
		was = v
		ended := v.Outcome != nil && !v.Outcome.Time.Equal(began)
		switch {
		case v.Phase == board.UpdateDownloading:
			progress(fmt.Sprintf("downloading, %d %%", v.Percent))
		case v.Phase == board.UpdateWaiting && v.Wait != "", v.Phase == board.UpdateIdle && (ended || v.Error != ""):
			return v, nil
		case v.Phase == board.UpdateTrial:
			progress("version " + v.Version + " is on trial")
		}
	}
}

// updateStopped is for a gateway that does not run.
func updateStopped(cmd *cobra.Command, order string) (board.Update, error) {
	log, err := newLogger(cmd)
	if err != nil {
		return board.Update{}, err
	}
	path, _ := cmd.Flags().GetString("config")
	cfg, err := loadConfig(path)
	if err != nil {
		return board.Update{}, err
	}
	st := stateOf(cmd)
	c, err := updateConfig(cfg, st, log)
	if err != nil {
		return board.Update{}, err
	}
	if id, err := loadIdentity(st); err == nil { // without one it is nobody's turn; a person's word counts anyway
		c.Device = keys.Public(id.device)
	}
	c.Self, c.Place = thisProgram(), update.Packaged
	if r, err := update.Load(c.Store); err == nil && r.Current != update.Packaged {
		c.Self, c.Place = r.Places[r.Current], r.Current
	}
	c.Needs = func() (n uint32, err error) {
		err = consensus.ViewHome(st.consensus(), st.genesis(), func(_ int64, _ time.Time, _ chain.Hash, s ledger.State) { n = rulesNeeded(s) })
		return n, err
	}
	if order == "apply" || order == "rollback" {
		lock, err := journal.LockDir(string(st))
		if err != nil {
			return board.Update{}, err
		}
		defer func() { _ = lock.Unlock() }()
	}
	u, err := update.New(c)
	if err != nil {
		return board.Update{}, err
	}
	progress := progressLine(cmd)
	defer progress("")
	ctx := cmd.Context()
	switch order {
	case "check":
		progress("asking the source")
		_, err = u.Check(ctx)
	case "apply":
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err = u.Apply(ctx)
		}()
		for wait := true; wait; {
			select {
			case <-done:
				wait = false
			case <-time.After(200 * time.Millisecond):
				s := u.Status()
				progress(fmt.Sprintf("%s, %d %%", s.Phase, s.Percent))
			}
		}
	case "rollback":
		err = u.Rollback(ctx)
	}
	return u.Status(), err
}

func printUpdate(w io.Writer, v board.Update) error {
	where := map[string]string{update.Packaged: "as packaged"}[v.Runs]
	if where == "" {
		where = "from slot " + v.Runs
	}
	rows := [][]string{{"version", v.Version + ", " + where}, {"by itself", v.Auto}}
	add := func(name, text string) {
		if text != "" {
			rows = append(rows, []string{name, text})
		}
	}
	switch v.Phase {
	case board.UpdateDownloading:
		add("now", fmt.Sprintf("downloading, %d %%", v.Percent))
	case board.UpdateWaiting:
		add("now", "installed; it starts later: "+v.Wait)
	case board.UpdateRestarting:
		add("now", "the next start tries it")
	case board.UpdateTrial:
		add("now", "on trial; "+v.TriedFrom+" returns unless it is well")
	}
	if o := v.Offered; o != nil {
		text := o.Version
		if o.Security {
			text += ", a security update"
		}
		if o.Refused != "" {
			text += "; " + o.Refused
		} else if !o.Mine {
			text += fmt.Sprintf("; %d %% of the gateways take it by themselves now, this one is not among them", o.Share)
		}
		add("offered", text)
		add("notes", o.Notes)
	} else if !v.Checked.IsZero() {
		add("offered", "nothing newer")
	}
	if !v.Checked.IsZero() {
		add("asked", v.Checked.Local().Format(time.DateTime))
	}
	add("former", v.Former)
	if o := v.Outcome; o != nil {
		add("last change", strings.TrimSpace(fmt.Sprintf("%s %s on %s %s", o.Version, strings.ReplaceAll(o.State, "_", " "), o.Time.Local().Format(time.DateTime), o.Why)))
	}
	return table(w, rows)
}
