package reader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/poll"
	"github.com/joulegate/joulegate/meter/profile"
)

// Config describes one polled device.
type Config struct {
	Device   string // id from the configuration
	Profile  *profile.Profile
	Register drivers.Register
	// Slow reads the slow points, at a class below Register's. They never
	// hold up the others: what the line has no time for is left for the next
	// poll. Default: Register.
	Slow drivers.Register
	Unit uint8 // for the reading only: the register knows its own

	Interval  time.Duration // between polls, default 1 s
	SlowEvery int           // slow points are read every n-th poll, default 10
	Timeout   time.Duration // of one poll with all its blocks, default 5 s and what the profile's timing adds
	Limits    poll.Limits   // zero fields take their defaults
	State     poll.State    // from poll.Resume after a restart; zero for a new device

	// Where, if set, says where the device is reached and its hardware
	// address; it is called once per poll. Other fields are ignored.
	Where func() poll.Identity
	// Deliver takes every reading, in order, on Run's goroutine. It must not
	// block: while it does, nothing is read.
	Deliver func(meter.Reading)
	// Origin is the zero of Reading.Mono, one per process; default: New.
	Origin time.Time
	Logger *slog.Logger // default: none
}

// Reader polls one device. See the package comment.
type Reader struct {
	cfg Config

	mu      sync.Mutex
	state   poll.State
	lastErr error // of the last poll
	anew    bool  // a person has confirmed another device: what was learned is for the last one

	// Owned by the poll that is under way.
	polls    int
	chain    *profile.Chain
	plan     []profile.Block
	lacking  int             // since this poll the plan is less than the profile's; 0: it is not
	other    bool            // read with the profile's fallback function
	longest  uint16          // learned: registers per read that the device takes; 0: what the profile says
	sure     bool            // longest is certain
	guess    bool            // blocks were divided because of garbled answers: perhaps a disturbance
	refusals []profile.Block // divided because the device did not take them; until a whole poll explains it
	garbled  profile.Block   // the block whose last answer was none
	owed     int             // polls since the slow points were due, 0: they are not

	who     profile.Identity // as last told
	known   bool             // who was asked since the device was away
	whoAt   int              // the poll that asks it again
	unheard int              // polls that failed because who it is was not heard
}

// slowPatience is how many polls the slow points may be put off before they are
// read like the others.
const slowPatience = 10

// walkAgain is after how many failures in a row a device may have become
// another: its chain and its refusals are learned anew.
const walkAgain = 3

// retryLacking is after how many polls a refused register, or a longer read
// after disturbances, is tried again: devices refuse some for a while after a
// restart.
const retryLacking = 300

// How often it is asked who the device is: every identifyEvery polls, and how
// many polls may fail for it before its readings are Suspect instead.
const (
	identifyEvery = 60
	identifyTries = 3
)

// untold stands for the serial number of a device that had told one.
const untold = "not told"

// New returns a reader. It panics if profile, register or Deliver is missing.
func New(cfg Config) *Reader {
	if cfg.Profile == nil || cfg.Register == nil || cfg.Deliver == nil {
		panic(fmt.Sprintf("reader %q: profile %v, register %v and Deliver are needed", cfg.Device, cfg.Profile, cfg.Register))
	}
	if cfg.Interval <= 0 {
		cfg.Interval = time.Second
	}
	if cfg.SlowEvery <= 0 {
		cfg.SlowEvery = 10
	}
	if cfg.Timeout <= 0 {
		t := cfg.Profile.Timing
		reads := max(len(cfg.Profile.Blocks(0))+len(cfg.Profile.IdentityBlocks()), 1)
		cfg.Timeout = 5*time.Second + t.ConnectDelay + t.Timeout + time.Duration(reads)*t.Gap
	}
	if cfg.Origin.IsZero() {
		cfg.Origin = time.Now()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Logger = cfg.Logger.With("device", cfg.Device)
	if cfg.Slow == nil {
		cfg.Slow = cfg.Register
	}
	if cfg.Limits.Evidence == 0 && cfg.Profile.Has(meter.BatteryPower, 0) {
		cfg.Limits.Evidence = -1 // what comes from the battery is not in the registers of the sun
	}
	cfg.Limits = cfg.Limits.WithDefaults()
	return &Reader{cfg: cfg, state: cfg.State}
}

// Device returns the id of the polled device.
func (r *Reader) Device() string { return r.cfg.Device }

// State returns what must be stored so that polling can go on after a restart
// (see poll.Resume). It may be called at any time.
func (r *Reader) State() poll.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.state
	s.Registers = slices.Clone(s.Registers)
	return s
}

// Err returns why the last poll failed, nil if it did not. It may be called at
// any time.
func (r *Reader) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastErr
}

// Rebase forgets the energy bases and who the device was, after a person has
// confirmed that it may start anew. It may be called at any time.
func (r *Reader) Rebase() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.anew = poll.Rebase(r.state), true
}

func (r *Reader) now() time.Duration { return time.Since(r.cfg.Origin) }

// result is one finished poll.
type result struct {
	outcome poll.Outcome
	err     error
}

// Run polls until ctx ends and returns its error; the last poll has ended then.
func (r *Reader) Run(ctx context.Context) error {
	if r.cfg.Profile.Experimental {
		r.cfg.Logger.Warn("profile is experimental: its facts are not settled", "profile", r.cfg.Profile.ID)
	}
	start := r.now()
	tick := time.NewTicker(r.cfg.Interval)
	defer tick.Stop()
	results := make(chan result, 1)
	polling := false
	for {
		if now := r.now(); !polling && now >= r.retryAt() {
			polling = true
			go func() { results <- r.poll(ctx) }()
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				if polling {
					<-results
				}
				return ctx.Err()
			case res := <-results:
				polling = false
				if ctx.Err() == nil {
					r.finish(res)
				}
			case <-tick.C:
				r.age(start)
				waiting = false
			}
		}
	}
}

func (r *Reader) retryAt() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.RetryAt
}

// age delivers a Stale reading if it is time for one.
func (r *Reader) age(start time.Duration) {
	r.mu.Lock()
	s, reading, stale := poll.Age(r.state, r.cfg.Limits, r.now(), start, time.Now().UnixMilli())
	r.state = s
	r.mu.Unlock()
	if stale {
		r.deliver(reading)
	}
}

func (r *Reader) deliver(reading meter.Reading) {
	reading.Device, reading.Unit = r.cfg.Device, r.cfg.Unit
	reading.Profile, reading.ProfileHash = r.cfg.Profile.ID, r.cfg.Profile.Hash()
	r.cfg.Deliver(reading)
}

// finish takes the result of a poll.
func (r *Reader) finish(res result) {
	r.mu.Lock()
	failures, last := r.state.Failures, r.state.Last.Quality
	r.lastErr = res.err
	var reading meter.Reading
	if res.err != nil {
		r.state = poll.Fail(r.state, r.now())
		if !answered(res.err) {
			r.state.RetryAt = 0 // the line decides when a silent device is asked
		}
	} else {
		r.state, reading = poll.Step(r.state, r.cfg.Limits, res.outcome)
	}
	r.mu.Unlock()

	switch {
	case res.err != nil:
		if failures == 0 {
			r.cfg.Logger.Warn("meter does not answer", "err", res.err)
		}
		away := failures+1 >= walkAgain
		if !answered(res.err) {
			r.whoAt, r.known = min(r.whoAt, r.polls), r.known && !away
		}
		if away && r.guess {
			r.forget() // shorter reads are no better
		}
		// How much it takes at once is a habit that no silence ends.
		if errors.Is(res.err, errMap) || away && (r.chain != nil || r.lacking > 0) {
			r.chain, r.plan = nil, nil
		}
		return
	case failures > 0:
		r.cfg.Logger.Info("meter answers again", "failures", failures)
	}
	if reading.Quality != meter.Good && last != reading.Quality {
		r.cfg.Logger.Warn("reading is "+reading.Quality.String(), "reason", reading.Reason, "page", reading.Page)
	}
	r.deliver(reading)
}

// errMap says that the device answers, but not as its profile says.
var errMap = errors.New("device does not fit its profile")

// exception returns the code of a Modbus exception in err, 0 if it is none.
func exception(err error) uint8 {
	var x interface {
		error
		Exception() (code uint8, ok bool)
	}
	if errors.As(err, &x) {
		if code, ok := x.Exception(); ok {
			return code
		}
	}
	return 0
}

// answered reports whether there is a living device behind err.
func answered(err error) bool { return errors.Is(err, errMap) || exception(err) != 0 }

// poll reads all blocks that are due and decodes them.
func (r *Reader) poll(ctx context.Context) result {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	r.mu.Lock()
	anew := r.anew
	r.anew = false
	r.mu.Unlock()
	if anew {
		r.chain, r.plan, r.longest, r.sure, r.known = nil, nil, 0, false, false
	}
	if r.lacking > 0 && r.polls-r.lacking >= retryLacking {
		r.forget()
	}
	if r.plan == nil {
		r.lacking, r.refusals = 0, nil
		if r.longest > 0 && !r.sure {
			r.lacking = max(r.polls, 1)
		}
		if err := r.learn(ctx); err != nil {
			return result{err: err}
		}
	}
	if r.owed == 0 && r.polls%r.cfg.SlowEvery == 0 {
		r.owed = 1
	}
	slow, next := r.owed > 0, r.now()+r.cfg.Interval*3/4 // to be ready for the next poll
	var raw []meter.RawBlock
	var refused []profile.Block
	var refusal error
	var retried profile.Block
	for i := 0; i < len(r.plan); {
		b := r.plan[i]
		if b.Slow && !slow {
			i++
			continue
		}
		if r.longest > 0 && b.Count > r.longest {
			if parts := r.split(b, r.longest); parts != nil {
				r.plan = slices.Replace(r.plan, i, i+1, parts...)
				continue
			}
		}
		data, err := r.read(ctx, b, next)
		if errors.Is(err, errLater) {
			slow = false
			continue
		}
		if len(raw) > 0 && b != retried && disturbed(err) {
			retried = b // it is there: one bad frame need not cost all the others
			continue
		}
		code := exception(err)
		if code == illegalFunction && r.turn() {
			return result{err: fmt.Errorf("%w: %w", errMap, err)}
		}
		refuses := code == illegalAddress || code == illegalValue
		short := short(err)
		if garbled := r.garbledTwice(b, err); refuses || short || garbled {
			refusal = err
			if n, ok := poll.Shrink(b.Count); ok {
				if parts := r.split(b, n); parts != nil {
					r.plan = slices.Replace(r.plan, i, i+1, parts...)
					if refuses || short {
						r.refusals = append(r.refusals, b)
					} else {
						r.guess = true
					}
					if code != illegalAddress { // it is about the length, not about these registers
						r.longest, r.sure, r.lacking = n, false, max(r.polls, 1)
					}
					continue
				}
			}
		}
		if refuses {
			refused = append(refused, b)
			i++
			continue
		}
		if err != nil {
			return result{err: err}
		}
		raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: data})
		i++
	}
	switch {
	case slow:
		r.owed = 0
	case r.owed > 0:
		r.owed++
	}
	if len(raw) == 0 {
		// A device that refuses everything is starting up, or another one.
		r.forget()
		r.turn()
		return result{err: fmt.Errorf("%w: every register is refused: %w", errMap, refusal)}
	}
	for _, b := range refused {
		r.cfg.Logger.Warn("device lacks registers of its profile: their points are left out", "function", int(b.Function), "address", b.Address, "count", b.Count)
		r.plan = slices.DeleteFunc(r.plan, func(p profile.Block) bool { return p == b })
	}
	values, err := r.cfg.Profile.DecodeValues(raw)
	if err != nil {
		return result{err: fmt.Errorf("%w: %w", errMap, err)}
	}
	r.polls++
	r.conclude(raw, refused)
	if len(refused) > 0 {
		r.lacking = r.polls
	}
	if err := r.identify(ctx, next, raw); err != nil {
		return result{err: err}
	}
	o := poll.Outcome{Now: r.now(), Wall: time.Now().UnixMilli(), Raw: raw, Identity: r.identity(raw)}
	for _, v := range values {
		o.Points, o.Digits = append(o.Points, v.Point), append(o.Digits, v.Digit)
	}
	return result{outcome: o}
}

// Exceptions that a shorter read may cure.
const (
	illegalAddress = 2
	illegalValue   = 3
)

// illegalFunction may be cured by the profile's fallback.
const illegalFunction = 1

// forget makes the next poll start with the profile's plan, or with what is
// certain about how much the device takes at once.
func (r *Reader) forget() {
	r.plan, r.guess = nil, false
	if !r.sure {
		r.longest = 0
	}
}

// conclude tells from a poll without errors whether the refusals before it were
// about the length: then none of those blocks has a register that the device
// lacks, and everything was read in shorter ones.
func (r *Reader) conclude(raw []meter.RawBlock, lacking []profile.Block) {
	if len(r.refusals) == 0 {
		return
	}
	least, took := uint16(profile.MaxBlock+1), uint16(0)
	for _, b := range r.refusals {
		if !slices.ContainsFunc(lacking, func(l profile.Block) bool { return within(l, b) }) {
			least = min(least, b.Count)
		}
	}
	for _, b := range raw {
		took = max(took, uint16(len(b.Data)/2)) //nolint:gosec // at most 125 registers
	}
	r.refusals = nil
	if least > profile.MaxBlock || took >= least || r.guess {
		return
	}
	n, _ := poll.Shrink(least)
	if n = max(n, took); r.longest == 0 || n < r.longest {
		r.longest = n
	}
	if !r.sure {
		r.sure, r.lacking = true, 0
		r.cfg.Logger.Info("device takes short reads only", "registers", r.longest)
	}
}

// within reports whether block a is part of b.
func within(a, b profile.Block) bool {
	return a.Function == b.Function && a.Address >= b.Address && int(a.Address)+int(a.Count) <= int(b.Address)+int(b.Count)
}

// turn takes the other function for the next poll, if the profile has one.
func (r *Reader) turn() bool {
	if r.cfg.Profile.Fallback == 0 {
		return false
	}
	r.plan, r.other = nil, !r.other
	return true
}

// learn makes the plan; on a SunSpec device it walks the chain first.
func (r *Reader) learn(ctx context.Context) error {
	if r.cfg.Profile.SunSpec == nil {
		r.plan = r.blocks(0)
		return nil
	}
	w := profile.NewWalk(r.cfg.Profile.SunSpec.Bases)
	for {
		fn, addr, count, done := w.Next()
		if done {
			break
		}
		data, err := r.cfg.Register.ReadRegisters(ctx, fn, addr, count)
		if err != nil && exception(err) == 0 {
			return err
		}
		if err := w.Feed(data); err != nil {
			return fmt.Errorf("%w: %w", errMap, err)
		}
	}
	chain, err := w.Chain()
	if err != nil {
		return fmt.Errorf("%w: %w", errMap, err)
	}
	plan, err := r.cfg.Profile.ChainBlocks(chain, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errMap, err)
	}
	first := r.chain == nil
	r.chain, r.plan = &chain, plan
	if first {
		r.cfg.Logger.Info("SunSpec device found", "base", chain.Base, "manufacturer", chain.Manufacturer, "model", chain.Model, "serial", chain.Serial)
	}
	return nil
}

// errLater says that the line has no time for the slow points now.
var errLater = errors.New("no time for slow points")

// read reads one block. A slow one has until the next poll is due, except at
// the first poll, where every poll has it, and when it was put off too often.
func (r *Reader) read(ctx context.Context, b profile.Block, next time.Duration) ([]byte, error) {
	if !b.Slow || r.owed > slowPatience || r.polls == 0 || r.cfg.SlowEvery == 1 {
		return r.cfg.Register.ReadRegisters(ctx, b.Function, b.Address, b.Count)
	}
	return r.readSlow(ctx, b, next)
}

// readSlow reads one block if the line has time for it before next.
func (r *Reader) readSlow(ctx context.Context, b profile.Block, next time.Duration) ([]byte, error) {
	until, cancel := context.WithTimeout(ctx, next-r.now())
	defer cancel()
	data, err := r.cfg.Slow.ReadRegisters(until, b.Function, b.Address, b.Count)
	if err != nil && until.Err() != nil && ctx.Err() == nil {
		return nil, errLater
	}
	return data, err
}

// short reports whether the device answered with fewer registers than it was
// asked for.
func short(err error) bool {
	var x interface{ Short() bool }
	return errors.As(err, &x) && x.Short()
}

// disturbed reports whether an answer was lost or garbled on the way.
func disturbed(err error) bool {
	var x interface {
		Timeout() bool
		Garbled() bool
	}
	return errors.As(err, &x) && (x.Timeout() || x.Garbled())
}

// garbledTwice reports whether b was answered with something that is no answer
// twice in a row: that is hardly a disturbance, but a device that cannot answer
// so much.
func (r *Reader) garbledTwice(b profile.Block, err error) bool {
	var x interface{ Garbled() bool }
	if !errors.As(err, &x) || !x.Garbled() {
		r.garbled = profile.Block{}
		return false
	}
	again := r.garbled == b
	r.garbled = b
	return again
}

// identify asks who the device is, if its profile knows where that can be read
// and it is time: at once when it has been away, so that no reading of another
// device is taken for its own; else when the line has time. Its error fails
// the poll.
func (r *Reader) identify(ctx context.Context, next time.Duration, raw []meter.RawBlock) error {
	back := !r.known
	if len(r.cfg.Profile.Identity) == 0 || !back && r.polls < r.whoAt {
		return nil
	}
	pinned := r.State().Pinned
	for _, b := range r.identityBlocks() {
		read := r.readSlow
		if back || r.polls > r.whoAt+slowPatience {
			read = func(ctx context.Context, b profile.Block, _ time.Duration) ([]byte, error) {
				return r.cfg.Register.ReadRegisters(ctx, b.Function, b.Address, b.Count)
			}
		}
		data, err := read(ctx, b, next)
		switch {
		case err == nil:
			raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: data})
		case exception(err) != 0: // it does not tell
		case !back:
			switch {
			case errors.Is(err, errLater): // the next poll asks again
			case pinned.Serial == "":
				r.whoAt = r.polls + identifyEvery
			default:
				r.whoAt = r.polls + r.cfg.SlowEvery
			}
			return nil
		case pinned.Serial != "":
			if r.unheard++; r.unheard < identifyTries {
				return fmt.Errorf("who the device is: %w", err)
			}
		}
	}
	r.who, _ = r.cfg.Profile.Identify(raw)
	r.known, r.whoAt, r.unheard = true, r.polls+identifyEvery, 0
	if pinned.Serial != "" && r.who.Serial == "" {
		r.who.Serial, r.whoAt = untold, r.polls+r.cfg.SlowEvery
	}
	return nil
}

// identityBlocks returns the reads that tell who a device is, none longer than
// it takes.
func (r *Reader) identityBlocks() (out []profile.Block) {
	p := r.cfg.Profile
	most := uint16(profile.MaxBlock)
	for _, n := range []uint16{p.Timing.MaxBlock, r.longest} {
		if n > 0 {
			most = min(most, n)
		}
	}
	for _, b := range p.IdentityBlocks() {
		if !slices.ContainsFunc(p.Identity, func(f profile.IdentityPoint) bool { return f.Function == b.Function && f.Address == b.Address }) {
			continue // a ratio: the poll reads it
		}
		if r.other && b.Function == p.Function {
			b.Function = p.Fallback
		}
		if parts := chop(b, most); parts != nil {
			out = append(out, parts...)
		} else {
			out = append(out, b)
		}
	}
	return out
}

// identity returns who the device is, as far as chain, registers and line
// tell.
func (r *Reader) identity(raw []meter.RawBlock) (id poll.Identity) {
	if r.cfg.Where != nil {
		where := r.cfg.Where()
		id.Address, id.Hardware = where.Address, where.Hardware
	}
	id.Manufacturer, id.Model, id.Serial = r.who.Manufacturer, r.who.Model, r.who.Serial
	if c := r.chain; c != nil {
		id.Manufacturer, id.Model, id.Serial = c.Manufacturer, c.Model, c.Serial
	}
	id.Ratios = r.ratios(raw)
	return id
}

// ratios returns the transformer ratios that values are multiplied with, as
// the device has them in its registers: "6=40 7=10".
func (r *Reader) ratios(raw []meter.RawBlock) string {
	var parts []string
	for _, p := range r.cfg.Profile.Points {
		for _, ratio := range p.Ratios {
			for _, b := range raw {
				i := 2 * (int(ratio.Address) - int(b.Address))
				if i < 0 || i+2 > len(b.Data) {
					continue
				}
				part := fmt.Sprintf("%d=%d", ratio.Address, int(b.Data[i])<<8|int(b.Data[i+1]))
				if !slices.Contains(parts, part) {
					parts = append(parts, part)
				}
			}
		}
	}
	return strings.Join(parts, " ")
}

// blocks returns the reads of a profile with fixed addresses.
func (r *Reader) blocks(n uint16) []profile.Block {
	blocks := r.cfg.Profile.Blocks(n)
	if r.other {
		for i := range blocks {
			blocks[i].Function = r.cfg.Profile.Fallback
		}
	}
	return blocks
}

// split returns blocks of at most n registers that together read what b does,
// or nil if b cannot be divided so.
func (r *Reader) split(b profile.Block, n uint16) []profile.Block {
	if r.chain == nil {
		if parts := r.cfg.Profile.Divide(b, n); len(parts) > 1 || len(parts) == 1 && parts[0] != b {
			return parts
		}
		return nil
	}
	return chop(b, n)
}

// chop cuts b into blocks of at most n registers, or returns nil if it has no
// more.
func chop(b profile.Block, n uint16) (out []profile.Block) {
	if b.Count <= n {
		return nil
	}
	for ; b.Count > n; b.Address, b.Count = b.Address+n, b.Count-n {
		part := b
		part.Count = n
		out = append(out, part)
	}
	return append(out, b)
}
