package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/meter"
)

// errReconfigured ends a gateway that starts anew with another configuration.
var errReconfigured = errors.New("the configuration has changed")

// settings keeps the revisions of the configuration in the state folder and
// applies changes: it stores one, ends the gateway in the ordinary way
// (actuators first) and lets this process execute itself anew, so that a
// change runs through the same code as any start. What decides is
// config.Step; every state is on the disk before anything is done about it.
type settings struct {
	file string // joulegate.yaml
	path string // revisions
	log  *slog.Logger
	lock *journal.Lock
	at   place // where this program lies

	mu      sync.Mutex
	doc     storedSettings
	cfg     config.Config // in force in this process
	stop    context.CancelCauseFunc
	changed func()                              // tells MQTT
	meters  func() []metered                    // what the meters say
	wake    chan struct{}                       // holds a token when a deadline may have moved
	check   func(want []string) string          // empty: all is well
	permit  func(cur, next config.Config) error // what only a running gateway knows; nil: nothing
}

type metered struct {
	id   string
	good bool
}

// settingsVersion is the format of revisions.json.
const settingsVersion = 1

// storedSettings is revisions.json.
type storedSettings struct {
	Version int           `json:"version"`
	File    chain.Hash    `json:"file"` // SHA-256 of joulegate.yaml as it was read or written last
	Commit  config.Commit `json:"commit"`
}

type sealedSettings struct {
	Sum chain.Hash      `json:"sum"`
	Doc json.RawMessage `json:"doc"`
}

func (s state) settings() string { return s.path("settings") }

// openSettings reads the file and the revisions and decides what is in force.
// A file that was edited since wins: whoever edits it is at the machine.
func openSettings(file string, st state, log *slog.Logger) (_ *settings, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		_, err = loadConfig(file) // says it better
		return nil, err
	}
	s := &settings{file: file, path: filepath.Join(st.settings(), "revisions.json"), log: log, wake: make(chan struct{}, 1)}
	if _, err := os.Stat(st.settings()); err == nil {
		if s.lock, err = journal.LockDir(st.settings()); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil && s.lock != nil {
			_ = s.lock.Unlock()
		}
	}()
	if err := s.load(); errors.Is(err, errNewer) {
		return nil, err
	} else if err != nil {
		// The file is what the installer wrote: it is never worse than nothing.
		log.Error("stored revisions are damaged; the file is in force", "err", err)
		s.doc = storedSettings{}
	}
	s.doc.Version = settingsVersion
	next, now := s.doc.Commit, time.Now()
	if sum := chain.Sum(b); sum != s.doc.File || next.Current.Rev == 0 {
		c, err := config.Parse(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		s.doc.File = sum
		if text := string(config.Render(c)); text != next.Current.Text {
			if next, err = config.Step(next, config.Edited{Text: text}, now); err != nil {
				return nil, err
			}
		}
	}
	waited := s.doc.Commit.Pending != nil
	if next, err = config.Step(next, config.Start{}, now); err != nil {
		return nil, err
	}
	if err := s.take(next); err != nil {
		return nil, err
	}
	if waited { // what becomes of a change is on the disk before it has an effect
		return s, s.settle()
	}
	return s, nil
}

// settle stores what is in force, once the gateway has been built with it: a
// start that fails changes nothing.
func (s *settings) settle() error {
	if s.lock == nil {
		dir := filepath.Dir(s.path)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		var err error
		if s.lock, err = journal.LockDir(dir); err != nil {
			return err
		}
	}
	return s.save(s.doc)
}

// take makes the next state this process's own.
func (s *settings) take(next config.Commit) error {
	doc := s.doc
	doc.Commit = next
	c, err := config.Parse([]byte(next.InForce().Text))
	if err != nil {
		return fmt.Errorf("revision %d: %w", next.InForce().Rev, err)
	}
	s.doc, s.cfg = doc, c
	return nil
}

func (s *settings) load() error {
	b, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var sealed sealedSettings
	if err := json.Unmarshal(b, &sealed); err != nil {
		return err
	}
	if chain.Sum(sealed.Doc) != sealed.Sum {
		return fmt.Errorf("%s: the checksum does not match", s.path)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(sealed.Doc, &v); err != nil {
		return err
	}
	if v.Version > settingsVersion { // not damaged: what it says is not for this program
		return newer(s.path, v.Version, settingsVersion)
	}
	var doc storedSettings
	if err := json.Unmarshal(sealed.Doc, &doc); err != nil {
		return err
	}
	if err := doc.Commit.Check(); err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	if _, err := config.Parse([]byte(doc.Commit.Current.Text)); err != nil {
		return fmt.Errorf("%s: revision %d: %w", s.path, doc.Commit.Current.Rev, err)
	}
	s.doc = doc
	return nil
}

// save returns when doc is on the disk, name and all.
func (s *settings) save(doc storedSettings) error {
	b, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	out, err := json.Marshal(sealedSettings{chain.Sum(b), b})
	if err != nil {
		return err
	}
	if err := writeFile(s.path, out, 0o600); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// step decides about an event, stores the outcome and then acts on it.
func (s *settings) step(e config.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.doc.Commit
	next, err := config.Step(was, e, time.Now())
	if err != nil {
		return err
	}
	doc := s.doc
	doc.Commit = next
	if err := s.save(doc); err != nil {
		return err
	}
	s.doc = doc
	if next.Current.Rev != was.Current.Rev {
		s.writeBack()
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	if s.changed != nil {
		s.changed()
	}
	stored := next.Pending != nil && next.Pending.Phase == config.Stored
	if s.stop != nil && (stored || next.InForce().Rev != was.InForce().Rev) {
		s.log.Warn("the gateway starts anew with another configuration", "revision", next.InForce().Rev, "pending", stored)
		s.stop(errReconfigured)
	}
	return nil
}

// writeBack makes the file say what was confirmed. A file that cannot be
// written stays as it is: the revision is in force all the same, until
// somebody edits the file.
func (s *settings) writeBack() {
	text := []byte(s.doc.Commit.Current.Text)
	mode := fs.FileMode(0o644)
	if fi, err := os.Stat(s.file); err == nil {
		mode = fi.Mode().Perm()
	}
	if err := writeFile(s.file, text, mode); err != nil {
		s.log.Warn("the confirmed configuration is in force, its file could not be written", "file", s.file, "err", err)
		return
	}
	doc := s.doc
	doc.File = chain.Sum(text)
	if err := s.save(doc); err != nil {
		s.log.Warn("revisions not stored", "err", err) // the next start compares the text itself
		return
	}
	s.doc = doc
}

// pending reports whether an unconfirmed change is in force.
func (s *settings) pending() bool {
	p := s.doc.Commit.Pending
	return p != nil && p.Phase != config.Stored
}

// failed rolls a change back with which the gateway could not be built.
func (s *settings) failed(why error) error {
	next, err := config.Step(s.doc.Commit, config.Check{Err: "the gateway does not start with it: " + why.Error()}, time.Now())
	if err != nil {
		return err
	}
	s.log.Warn("the change is rolled back", "err", why)
	if err := s.take(next); err != nil {
		return err
	}
	return s.settle()
}

// checkFor bounds the new configuration's check of itself.
const (
	checkFor  = 60 * time.Second
	checkEach = 500 * time.Millisecond
)

// watch lets an applied change check itself and ends it when its time is over.
func (s *settings) watch(ctx context.Context) error {
	s.mu.Lock()
	p := s.doc.Commit.Pending
	s.mu.Unlock()
	if p != nil && p.Phase == config.Applying {
		limit := time.After(min(checkFor, p.Confirm*4/5))
		tick := time.NewTicker(checkEach)
		defer tick.Stop()
		why := s.check(p.Meters)
		for late := false; why != "" && !late; why = s.check(p.Meters) {
			select {
			case <-ctx.Done():
				return nil
			case <-limit:
				late = true
			case <-tick.C:
			}
		}
		if err := s.step(config.Check{Err: why}); err != nil {
			s.log.Info("change", "err", err) // cancelled meanwhile
		}
	}
	for {
		s.mu.Lock()
		p := s.doc.Commit.Pending
		s.mu.Unlock()
		var due <-chan time.Time
		if p != nil && p.Phase != config.Stored {
			due = time.After(time.Until(p.Deadline))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-due:
			if err := s.step(config.Tick{}); err != nil {
				return err
			}
		}
	}
}

// ConfigView implements panel.Settings.
func (s *settings) ConfigView(context.Context) (panel.ConfigView, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.doc.Commit
	r := c.InForce()
	return panel.ConfigView{Rev: r.Rev, Text: r.Text, By: r.By, Pending: c.Pending, Outcome: c.Outcome}, nil
}

// ConfigChange implements panel.Settings.
func (s *settings) ConfigChange(_ context.Context, d config.Desired, by string) (panel.ConfigResult, error) {
	s.mu.Lock()
	c := s.doc.Commit
	s.mu.Unlock()
	cur, err := config.Parse([]byte(c.Current.Text))
	if err != nil {
		return panel.ConfigResult{}, err
	}
	next, err := d.Patch(cur)
	if err != nil {
		return panel.ConfigResult{}, err
	}
	if by != "command line" {
		if err := updatesTrusted(cur.Update, next.Update); err != nil {
			return panel.ConfigResult{}, err
		}
	}
	if s.permit != nil {
		if err := s.permit(cur, next); err != nil {
			return panel.ConfigResult{}, err
		}
	}
	e := config.Propose{
		Base: d.Base, Text: string(config.Render(next)), By: by, Txn: d.Txn,
		Confirm: time.Duration(d.ConfirmS) * time.Second, Meters: s.goodMeters(),
	}
	r := panel.ConfigResult{Txn: d.Txn, State: "valid", Changes: config.Diff(cur, next)}
	if d.Mode == config.DryRun {
		_, err := config.Step(c, e, time.Now())
		return r, err
	}
	if err := s.step(e); err != nil {
		return panel.ConfigResult{}, err
	}
	r.State, r.Rev = string(config.Stored), c.Last+1
	return r, nil
}

func (s *settings) goodMeters() (ids []string) {
	if s.meters == nil {
		return nil
	}
	for _, m := range s.meters() {
		if m.good {
			ids = append(ids, m.id)
		}
	}
	return ids
}

// ConfigConfirm implements panel.Settings.
func (s *settings) ConfigConfirm(_ context.Context, txn string) (panel.ConfigResult, error) {
	if err := s.step(config.Confirm{Txn: txn}); err != nil {
		return panel.ConfigResult{}, err
	}
	return s.result(), nil
}

// ConfigRollback implements panel.Settings.
func (s *settings) ConfigRollback(ctx context.Context, txn string) (panel.ConfigResult, error) {
	s.mu.Lock()
	c := s.doc.Commit
	s.mu.Unlock()
	if c.Pending == nil && c.Previous != nil && txn == "" {
		d := config.Desired{
			Txn: fmt.Sprintf("rollback-%d", c.Last+1), Base: c.Current.Rev, Mode: config.Replace,
			ConfirmS: int64(config.DefaultConfirm / time.Second), Config: json.RawMessage(c.Previous.Text),
		}
		return s.ConfigChange(ctx, d, "rollback")
	}
	if err := s.step(config.Cancel{Txn: txn, Why: "cancelled"}); err != nil {
		return panel.ConfigResult{}, err
	}
	return s.result(), nil
}

// result tells how the last change stands.
func (s *settings) result() panel.ConfigResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	return resultOf(s.doc.Commit)
}

func resultOf(c config.Commit) panel.ConfigResult {
	if p := c.Pending; p != nil {
		r := panel.ConfigResult{Txn: p.Txn, State: string(p.Phase), Rev: p.Rev}
		if !p.Deadline.IsZero() {
			r.Until = p.Deadline.UTC().Format(time.RFC3339)
		}
		return r
	}
	if o := c.Outcome; o != nil {
		return panel.ConfigResult{Txn: o.Txn, State: o.State, Rev: o.Rev, Error: o.Why}
	}
	return panel.ConfigResult{State: config.Confirmed, Rev: c.Current.Rev}
}

// remote is what people may do over MQTT.
type remote struct{ *gateway }

// Desired implements mqtt.Remote.
func (r remote) Desired(ctx context.Context, payload []byte, retained bool) {
	var d config.Desired
	payload, err := config.Unwrap(payload, r.installers())
	if err == nil {
		d, err = config.ParseDesired(payload)
	}
	var res panel.ConfigResult
	if err == nil {
		r.settings.mu.Lock()
		known := r.settings.doc.Commit.Knows(d.Txn)
		r.settings.mu.Unlock()
		if known && retained {
			return // the broker tells it at every connect
		}
		res, err = r.settings.ConfigChange(ctx, d, "mqtt")
	}
	if err != nil {
		res = panel.Rejected(d.Txn, err)
		r.log.Warn("change of the configuration refused", "txn", d.Txn, "code", res.Code, "err", err)
	}
	for i := range res.Changes {
		if c := &res.Changes[i]; config.Secret(c.Path) {
			c.Old, c.New = hidden(c.Old), hidden(c.New)
		}
	}
	if err != nil || d.Mode == config.DryRun {
		if err := r.mqtt.PublishResult(res); err != nil {
			r.log.Warn("not published", "err", err)
		}
	}
}

// hidden says that there is something, and not what.
func hidden(s string) string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

func (g *gateway) installers() (keys []chain.Key) {
	for _, t := range g.cfg.Installers {
		var k chain.Key
		if k.UnmarshalText([]byte(t)) == nil { // Validate has read it
			keys = append(keys, k)
		}
	}
	return keys
}

// follow binds the settings to a running gateway and tells MQTT of them.
func (g *gateway) follow(stop context.CancelCauseFunc) {
	s := g.settings
	tell := func() { // with the lock held
		c := s.doc.Commit
		cfg, err := config.Parse([]byte(c.InForce().Text))
		if err == nil {
			err = errors.Join(
				g.mqtt.PublishConfig(map[string]any{"rev": c.InForce().Rev, "confirmed": c.Pending == nil, "config": config.Public(cfg)}),
				g.mqtt.PublishResult(resultOf(c)),
			)
		}
		if err != nil {
			g.log.Warn("configuration not published", "err", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop, s.changed = stop, tell
	s.meters = func() (all []metered) {
		snap, _ := g.live.Latest()
		for _, m := range snap.Meters {
			all = append(all, metered{m.ID, m.Quality == meter.Good.String()})
		}
		return all
	}
	s.check, s.permit = g.well, g.permit
	if err := errors.Join(g.mqtt.PublishSchema(config.Schema()), g.tellCommands()); err != nil {
		g.log.Warn("schema not published", "err", err)
	}
	tell()
	if p := s.doc.Commit.Pending; p != nil {
		g.station.Note("config.applied", 1, g.cfg.Name, fmt.Sprintf("revision %d by %s is in force, not confirmed yet", p.Rev, p.By))
	}
}

// well says what is not well under a new configuration: what measuring says,
// or the broker.
func (g *gateway) well(want []string) string {
	if why := g.measuring(want); why != "" || g.mqtt.Stats().Connected {
		return why
	}
	return "the broker cannot be reached"
}

// measuring says what is not well of the control loop and of the meters that
// answered before.
func (g *gateway) measuring(want []string) string {
	snap, ok := g.live.Latest()
	if !ok || !g.station.Alive() {
		return "the control loop does not run"
	}
	for _, id := range want {
		for _, m := range snap.Meters {
			if m.ID == id && m.Quality != meter.Good.String() {
				return fmt.Sprintf("meter %s answered before and does not now", id)
			}
		}
	}
	return ""
}
