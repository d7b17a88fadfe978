package update

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
)

// What an operator may want to happen without a person.
const (
	AutoSecurity = "security"
	AutoAll      = "all"
	AutoOff      = "off"
)

// Config says who is trusted and how the rest of the gateway is reached. nil
// functions: a gateway that does not run has neither cars nor meters.
type Config struct {
	Store     Store
	Slots     Slots
	Source    Source // nil: none configured
	Keys      []chain.Key
	Threshold int
	Auto      string
	Channel   string

	Self     Program  // what runs
	Place    string   // where it lies
	Trial    *Trial   // it is on trial
	Arches   []string // that it can execute, best first
	Device   chain.Key
	Patience time.Duration // that a new program has to become well

	// Needs is the version of the ledger's rules that a program has to know.
	Needs func() (uint32, error)
	// Busy says in words why a new program must not start now.
	Busy func() string
	// Meters are those that answer.
	Meters func() []string
	// Well says what is not well; those meters have to answer.
	Well func(meters []string) string
	// Free is the room in the store, in bytes.
	Free func() (uint64, error)
	// Restart ends the gateway; the program that the record names starts.
	Restart func()
	// Confirmed is called once a trial has ended well.
	Confirmed func()
	// Note puts on record what happens to the program.
	Note func(code string, severity int, text string)

	Now func() time.Time // nil: the clock
	Log *slog.Logger
}

const (
	checkEach   = 6 * time.Hour
	firstCheck  = 10 * time.Minute // spread over as much again
	retryEach   = 5 * time.Second  // while a car charges
	wellEach    = 500 * time.Millisecond
	steady      = 5 * time.Second // well without a break
	manifestFor = time.Minute
	downloadFor = time.Hour
	// keepFree is what a download leaves: billing data is the last to find
	// no room.
	keepFree = 64 << 20
)

// Sentinels of an order.
var (
	ErrNotConfigured = errors.New("updates are not configured")
	ErrUnderWay      = errors.New("another update is under way")
	ErrRefused       = errors.New("refused")
)

// Updater looks for releases and applies them. Its methods are safe for
// concurrent use.
type Updater struct {
	cfg Config
	job sync.Mutex // held by whoever changes places

	mu     sync.Mutex
	record Record
	status board.Update
	ready  *Trial // installed; waits for a good moment
	wake   chan struct{}
	orders chan func(context.Context) error
}

// New reads the record.
func New(cfg Config) (*Updater, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Store == nil || cfg.Slots == nil || cfg.Log == nil || cfg.Place == "" {
		return nil, errors.New("update: store, slots, place and a logger are required")
	}
	r, err := Load(cfg.Store)
	if err != nil {
		cfg.Log.Warn("the record of updates is damaged; it begins anew", "err", err)
	}
	u := &Updater{cfg: cfg, record: r, wake: make(chan struct{}, 1), orders: make(chan func(context.Context) error, 1)}
	if _, known := r.Places[cfg.Place]; !known {
		u.record = r.with(cfg.Place, cfg.Self)
		u.record.Current = cfg.Place
	}
	if r := &u.record; r.Trial == nil && r.Current != cfg.Place { // what was current could not be started
		r.Former, r.Current = r.Current, cfg.Place
	}
	u.status.Phase = board.UpdateIdle
	switch t := r.Trial; {
	case t == nil:
	case u.onTrial():
		u.status.Phase = board.UpdateTrial
	case t.Attempts == 0: // ordered while no gateway ran
		u.status.Phase = board.UpdateRestarting
	default: // it was to be started, and was not
		u.record = u.record.Fail("it could not be executed", cfg.Now())
	}
	return u, nil
}

func (u *Updater) onTrial() bool {
	return u.record.Trial != nil && u.record.Trial.Place == u.cfg.Place
}

// Pending says in words what stands in the way of other changes: a program on
// trial, or one about to be.
func (u *Updater) Pending() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch u.status.Phase {
	case board.UpdateTrial, board.UpdateRestarting:
		return "a new program is on trial"
	}
	return ""
}

// Status tells how things stand.
func (u *Updater) Status() board.Update {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.status
	s.Version, s.Runs, s.Auto, s.Outcome = u.cfg.Self.Version, u.cfg.Place, u.cfg.Auto, u.record.Outcome
	if f := u.record.Former; f != "" {
		s.Former = u.record.Places[f].Version
	}
	if u.onTrial() {
		s.TriedFrom = u.record.Places[u.record.Current].Version
	}
	if s.Offered != nil {
		o := *s.Offered
		s.Offered = &o
	}
	return s
}

func (u *Updater) set(f func(s *board.Update)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f(&u.status)
}

// failed keeps an error for those who ask later.
func (u *Updater) failed(err error) error {
	u.set(func(s *board.Update) {
		s.Percent, s.Error = 0, ""
		if s.Phase == board.UpdateChecking || s.Phase == board.UpdateDownloading {
			s.Phase = board.UpdateIdle
		}
		if err != nil {
			s.Error = err.Error()
		}
	})
	return err
}

// store makes next the record, on the disk first.
func (u *Updater) store(next Record) error {
	next.Version = recordVersion
	if err := save(u.cfg.Store, next); err != nil {
		return fmt.Errorf("record of updates: %w", err)
	}
	u.mu.Lock()
	u.record = next
	u.mu.Unlock()
	return nil
}

func (u *Updater) current() Record {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.record
}

// Check asks the source. It returns what is offered, and changes nothing.
func (u *Updater) Check(ctx context.Context) (board.Release, error) {
	if !u.job.TryLock() {
		return board.Release{}, ErrUnderWay
	}
	defer u.job.Unlock()
	m, err := u.check(ctx)
	if u.failed(err) != nil {
		return board.Release{}, err
	}
	return u.offer(m), nil
}

func (u *Updater) check(ctx context.Context) (Manifest, error) {
	if len(u.cfg.Keys) == 0 || u.cfg.Source == nil {
		return Manifest{}, fmt.Errorf("%w: update.keys says whose signatures count, update.source where releases lie", ErrNotConfigured)
	}
	u.set(func(s *board.Update) {
		if s.Phase == board.UpdateIdle {
			s.Phase = board.UpdateChecking
		}
	})
	ctx, cancel := context.WithTimeout(ctx, manifestFor)
	defer cancel()
	f, err := u.cfg.Source.Open(ctx, ManifestFile, MaxManifest)
	if err != nil {
		return Manifest{}, fmt.Errorf("look for a release: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxManifest+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return Manifest{}, fmt.Errorf("read the manifest: %w", err)
	}
	m, err := Open(b, u.cfg.Keys, u.cfg.Threshold, u.cfg.Now())
	if err != nil {
		return m, err
	}
	u.set(func(s *board.Update) { s.Checked = u.cfg.Now().UTC() })
	return m, nil
}

// offer puts a manifest into words and remembers it if it is newer.
func (u *Updater) offer(m Manifest) board.Release {
	r := board.Release{
		Version: m.Version, Channel: m.Channel, Security: m.Security, Notes: m.Notes, Share: m.Share,
		Mine: Staged(m.Version, u.cfg.Device, m.Share), Expires: time.Unix(m.Expires, 0).UTC(),
	}
	if _, err := u.fits(m); err != nil {
		r.Refused = err.Error()
	}
	u.set(func(s *board.Update) {
		if s.Offered = nil; Compare(m.Version, u.cfg.Self.Version) > 0 {
			s.Offered = &r
		}
		if s.Phase == board.UpdateChecking {
			s.Phase = board.UpdateIdle
		}
	})
	return r
}

// fits returns the artifact of a release for this gateway, or why there is
// none that it may take.
func (u *Updater) fits(m Manifest) (Artifact, error) {
	refuse := func(format string, args ...any) (Artifact, error) {
		return Artifact{}, fmt.Errorf("version %s is %w: %s", m.Version, ErrRefused, fmt.Sprintf(format, args...))
	}
	if m.Channel != u.cfg.Channel {
		return refuse("it is of the channel %s, this gateway follows %s", m.Channel, u.cfg.Channel)
	}
	switch c := Compare(m.Version, u.cfg.Self.Version); {
	case c == 0:
		return refuse("it runs already")
	case c < 0:
		return refuse("%s runs, which is newer; only the former program, which is kept, can be gone back to: joulegate update rollback", u.cfg.Self.Version)
	}
	if err := u.knows(Program{RulesFrom: m.RulesFrom, Rules: m.Rules}); err != nil {
		return refuse("%v", err)
	}
	a, err := m.Artifact(u.cfg.Slots.Kind(), u.cfg.Arches)
	if err != nil {
		return refuse("%v", err)
	}
	return a, nil
}

// knows says whether a program can execute the ledger, as it is and as has
// been agreed for later.
func (u *Updater) knows(p Program) error {
	if u.cfg.Needs == nil {
		return nil
	}
	need, err := u.cfg.Needs()
	if err != nil {
		return err
	}
	if need > p.Rules || need < p.RulesFrom {
		return fmt.Errorf("the ledger has rules version %d, or will have; it knows %d to %d", need, p.RulesFrom, p.Rules)
	}
	return nil
}

// byItself says why a release is not taken without a person; empty: it is.
func (u *Updater) byItself(m Manifest, a Artifact) string {
	switch {
	case u.cfg.Auto == AutoOff:
		return "update.auto is off"
	case u.cfg.Auto == AutoSecurity && !m.Security:
		return "it is no security update"
	case slices.Contains(u.current().Failed, a.SHA256):
		return "it was not well here, or a person went back from it"
	case !Staged(m.Version, u.cfg.Device, m.Share):
		return fmt.Sprintf("%d %% of the gateways take it now, this one is not among them", m.Share)
	}
	return ""
}

// Begin checks, and lets Run install and start what is offered: the order of a
// person. It returns once the release is known to fit; Status tells the rest.
func (u *Updater) Begin(ctx context.Context) (board.Release, error) {
	r, do, err := u.begin(ctx, false)
	if do != nil {
		u.orders <- do // has room: the job is ours
	}
	return r, err
}

// Apply is Begin without Run: it returns when everything is done that can be
// done now.
func (u *Updater) Apply(ctx context.Context) (board.Release, error) {
	r, do, err := u.begin(ctx, false)
	if do != nil {
		err = do(ctx)
	}
	return r, err
}

// begin takes the job and returns what finishes it and gives it back; nil:
// there is nothing to do.
func (u *Updater) begin(ctx context.Context, alone bool) (r board.Release, do func(context.Context) error, err error) {
	if why := u.Pending(); why != "" {
		return r, nil, fmt.Errorf("%w: %s", ErrUnderWay, why)
	}
	if !u.job.TryLock() {
		return r, nil, ErrUnderWay
	}
	defer func() {
		if do == nil {
			u.job.Unlock()
		}
	}()
	m, err := u.check(ctx)
	if err != nil {
		return r, nil, u.failed(err)
	}
	r = u.offer(m)
	a, err := u.fits(m)
	if err != nil {
		return r, nil, u.failed(err)
	}
	if alone {
		if why := u.byItself(m, a); why != "" {
			u.cfg.Log.Info("a release is there", "version", m.Version, "not_taken", why)
			return r, nil, u.failed(nil)
		}
	}
	return r, func(ctx context.Context) error {
		defer u.job.Unlock()
		return u.failed(u.install(ctx, m, a))
	}, nil
}

// install puts an artifact into the spare slot and has it tried.
func (u *Updater) install(ctx context.Context, m Manifest, a Artifact) error {
	ctx, cancel := context.WithTimeout(ctx, downloadFor)
	defer cancel()
	r := u.current()
	if r.Trial != nil {
		return ErrUnderWay
	}
	slot := r.Spare(u.cfg.Slots.Names())
	p := Program{Version: m.Version, SHA256: a.SHA256, Size: a.Size, RulesFrom: m.RulesFrom, Rules: m.Rules}
	if had, there := r.Places[slot]; !there || had != p || u.cfg.Slots.Verify(slot, p) != nil {
		if err := u.download(ctx, a, slot, p); err != nil {
			return err
		}
	}
	u.mu.Lock()
	u.ready = &Trial{Place: slot, Patience: u.cfg.Patience}
	u.status.Phase, u.status.Percent = board.UpdateWaiting, 0
	u.mu.Unlock()
	u.cfg.Log.Info("update installed", "version", m.Version, "slot", slot)
	return u.try()
}

func (u *Updater) download(ctx context.Context, a Artifact, slot string, p Program) error {
	if u.cfg.Free != nil && u.cfg.Slots.Kind() == KindProgram {
		if free, err := u.cfg.Free(); err == nil && free < uint64(a.Size)+keepFree {
			return fmt.Errorf("%d MB are free, %d are needed: of them %d stay free for records", free>>20, (a.Size+keepFree)>>20, keepFree>>20)
		}
	}
	// From here on the slot holds nothing that anybody would start.
	if err := u.store(u.current().Clear(slot)); err != nil {
		return err
	}
	u.set(func(s *board.Update) { s.Phase = board.UpdateDownloading })
	f, err := u.cfg.Source.Open(ctx, a.File, a.Size)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", a.File, err)
	}
	defer f.Close()
	h := sha256.New()
	body := &exactly{r: io.TeeReader(f, h), left: a.Size, told: func(left int64) {
		u.set(func(s *board.Update) { s.Percent = int(100 * (a.Size - left) / a.Size) })
	}}
	if err := u.cfg.Slots.Write(slot, checked{body, func() error {
		if sum := chain.Hash(h.Sum(nil)); sum != a.SHA256 {
			return fmt.Errorf("SHA-256 of %s is %s, the manifest says %s", a.File, sum, a.SHA256)
		}
		return nil
	}}); err != nil {
		return fmt.Errorf("install %s: %w", a.File, err)
	}
	if err := u.cfg.Slots.Verify(slot, p); err != nil {
		return fmt.Errorf("read slot %s back: %w", slot, err)
	}
	return u.store(u.current().with(slot, p))
}

// checked turns the end of r into an error unless end agrees.
type checked struct {
	r   io.Reader
	end func() error
}

func (c checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if errors.Is(err, io.EOF) {
		if bad := c.end(); bad != nil {
			err = bad
		}
	}
	return n, err
}

// try starts what is ready, unless this is no good moment. The job is held.
func (u *Updater) try() error {
	u.mu.Lock()
	t := u.ready
	u.mu.Unlock()
	if t == nil {
		return nil
	}
	if u.cfg.Busy != nil {
		if why := u.cfg.Busy(); why != "" {
			u.set(func(s *board.Update) { s.Wait = why })
			select {
			case u.wake <- struct{}{}:
			default:
			}
			return nil
		}
	}
	drop := func() {
		u.mu.Lock()
		u.ready, u.status.Phase, u.status.Wait = nil, board.UpdateIdle, ""
		u.mu.Unlock()
	}
	if u.cfg.Meters != nil {
		t.Meters = u.cfg.Meters()
	}
	r := u.current()
	next, err := r.Try(*t)
	if err != nil {
		drop()
		return err
	}
	if err := u.store(next); err != nil {
		drop()
		return err
	}
	if err := u.cfg.Slots.Arm(t.Place); err != nil {
		drop()
		return errors.Join(err, u.store(r))
	}
	u.mu.Lock()
	u.ready, u.status.Phase, u.status.Wait = nil, board.UpdateRestarting, ""
	u.mu.Unlock()
	version := next.Places[t.Place].Version
	u.note("update.applied", 2, fmt.Sprintf("version %s starts on trial, from slot %s; %s was in force", version, t.Place, u.cfg.Self.Version))
	u.cfg.Log.Warn("the gateway starts anew with another program", "version", version, "slot", t.Place)
	if u.cfg.Restart != nil {
		u.cfg.Restart()
	}
	return nil
}

func (u *Updater) note(code string, severity int, text string) {
	if u.cfg.Note != nil {
		u.cfg.Note(code, severity, text)
	}
}

// Rollback goes back to the former program: it ends a trial, or tries the one
// that is kept.
func (u *Updater) Rollback(_ context.Context) error {
	if !u.job.TryLock() {
		return ErrUnderWay
	}
	defer u.job.Unlock()
	r := u.current()
	if r.Trial != nil {
		return u.abandon("a person wanted the former one back")
	}
	place := r.Former
	if place == "" {
		return fmt.Errorf("%w: no former program is kept", ErrRefused)
	}
	p := r.Places[place]
	if p.SHA256 != (chain.Hash{}) { // known, because it came by an update
		if err := u.cfg.Slots.Verify(place, p); err != nil {
			return fmt.Errorf("%w: the former program is damaged: %w", ErrRefused, err)
		}
	}
	if err := u.knows(p); err != nil {
		return fmt.Errorf("%w: version %s: %w", ErrRefused, p.Version, err)
	}
	if u.cfg.Busy != nil {
		if why := u.cfg.Busy(); why != "" {
			return fmt.Errorf("%w now: %s", ErrRefused, why)
		}
	}
	u.mu.Lock()
	u.ready = &Trial{Place: place, Patience: u.cfg.Patience, Back: true}
	u.mu.Unlock()
	return u.failed(u.try())
}

// abandon ends the trial under way.
func (u *Updater) abandon(why string) error {
	next := u.current().Fail(why, u.cfg.Now())
	if err := u.store(next); err != nil {
		return err
	}
	u.set(func(s *board.Update) { s.Phase = board.UpdateRestarting })
	u.note("update.rolled_back", 3, fmt.Sprintf("version %s: %s; %s is in force again", next.Outcome.Version, why, next.Places[next.Current].Version))
	u.cfg.Log.Warn("the update is rolled back", "version", next.Outcome.Version, "why", why)
	if u.cfg.Restart != nil {
		u.cfg.Restart()
	}
	return nil
}

// Run lets a program on trial prove itself, looks for releases now and then,
// and applies what is installed once no car charges.
func (u *Updater) Run(ctx context.Context) error {
	u.mu.Lock()
	trial := u.onTrial()
	u.mu.Unlock()
	if trial {
		u.prove(ctx)
	}
	wait := firstCheck + time.Duration(binary.BigEndian.Uint32(u.cfg.Device[:4]))%firstCheck
	look := time.NewTimer(wait)
	defer look.Stop()
	for {
		var again <-chan time.Time
		u.mu.Lock()
		if u.ready != nil {
			again = time.After(retryEach)
		}
		u.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-u.wake:
		case do := <-u.orders:
			if err := do(ctx); err != nil {
				u.cfg.Log.Warn("update not applied", "err", err)
			}
		case <-again:
			if u.job.TryLock() {
				err := u.try()
				u.job.Unlock()
				if err != nil {
					u.cfg.Log.Warn("update not applied", "err", u.failed(err))
				}
			}
		case <-look.C:
			look.Reset(checkEach)
			if u.cfg.Auto == AutoOff || len(u.cfg.Keys) == 0 || u.cfg.Source == nil {
				continue
			}
			_, do, err := u.begin(ctx, true)
			if do != nil {
				err = do(ctx)
			}
			if err != nil {
				u.cfg.Log.Warn("no update", "err", err)
			}
		}
	}
}

// prove confirms the trial once all is well without a break, and ends it when
// its time is over.
func (u *Updater) prove(ctx context.Context) {
	r := u.current()
	t := *r.Trial
	patience := t.Patience
	if patience <= 0 {
		patience = u.cfg.Patience
	}
	tick := time.NewTicker(wellEach)
	defer tick.Stop()
	end := time.After(patience)
	var since time.Time
	why := "it did not say whether it was well"
	for {
		select {
		case <-ctx.Done():
			return
		case <-end:
			u.job.Lock()
			defer u.job.Unlock()
			if err := u.abandon(why); err != nil {
				// The start counts, so the former program returns all the same.
				u.cfg.Log.Error("the update cannot be rolled back in the record", "err", err)
				if u.cfg.Restart != nil {
					u.cfg.Restart()
				}
			}
			return
		case <-tick.C:
		}
		now := time.Now()
		bad := ""
		if u.cfg.Well != nil {
			bad = u.cfg.Well(t.Meters)
		}
		if bad != "" {
			why, since = bad, time.Time{}
			continue
		}
		if since.IsZero() {
			since = now
		}
		if now.Sub(since) < min(steady, patience/4) {
			continue
		}
		if err := u.confirm(t.Place); err != nil {
			why = "it could not be confirmed: " + err.Error()
			u.cfg.Log.Warn("update not confirmed yet", "err", err)
			continue
		}
		return
	}
}

func (u *Updater) confirm(place string) error {
	u.job.Lock()
	defer u.job.Unlock()
	r := u.current()
	if r.Trial == nil {
		return nil // a person has ended it
	}
	if err := u.cfg.Slots.Keep(place); err != nil {
		return err
	}
	next, err := r.Confirm(u.cfg.Now())
	if err != nil {
		return err
	}
	if err := u.store(next); err != nil {
		return err
	}
	u.set(func(s *board.Update) { s.Phase = board.UpdateIdle })
	if u.cfg.Confirmed != nil {
		u.cfg.Confirmed()
	}
	u.note("update.confirmed", 1, fmt.Sprintf("version %s is well and in force; %s is kept to go back to", next.Outcome.Version, next.Places[next.Former].Version))
	u.cfg.Log.Info("the update is confirmed", "version", next.Outcome.Version)
	return nil
}
