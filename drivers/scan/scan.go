package scan

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter/profile"
)

// Setting is how a serial line is set. The zero value stands for a network
// line, which has none.
type Setting struct {
	Baud    int    // bit/s
	Framing string // 8N1, 8E1, 8N2
}

func (s Setting) String() string {
	if s.Baud == 0 {
		return "network"
	}
	return fmt.Sprintf("%d %s", s.Baud, s.Framing)
}

// Bauds and Framings are what a serial scan tries.
var (
	Bauds    = []int{9600, 19200, 115200, 38400, 57600, 4800, 2400, 1200}
	Framings = []string{"8N1", "8E1", "8N2"}
)

// Settings returns all combinations of Bauds and Framings, the likeliest
// first: those with which devices of profiles leave the factory, the commonest
// of them before the others, and then the rest. 8N2 comes last there, because
// most devices set to 8N2 also understand 8N1.
func Settings(profiles []*profile.Profile) []Setting {
	var out []Setting
	for _, f := range Framings {
		for _, b := range Bauds {
			out = append(out, Setting{b, f})
		}
	}
	devices := map[Setting]int{}
	for _, p := range profiles {
		devices[Setting{p.Serial.Baud, p.Serial.Framing}]++
	}
	slices.SortStableFunc(out, func(a, b Setting) int { return cmp.Compare(devices[b], devices[a]) })
	return out
}

// factoryUnits are the addresses at which devices leave the factory: of the
// profiles, and those that SunSpec devices are known for.
func factoryUnits(profiles []*profile.Profile) map[uint8]bool {
	units := map[uint8]bool{1: true, 2: true, 3: true, 71: true, 126: true, 200: true, 240: true}
	for _, p := range profiles {
		if p.Serial.Unit > 0 {
			units[p.Serial.Unit] = true
		}
	}
	return units
}

// factory are the addresses at which devices of profiles leave the factory
// with a setting.
func factory(profiles []*profile.Profile, set Setting) map[uint8]bool {
	units := map[uint8]bool{}
	for _, p := range profiles {
		if p.Serial.Baud == set.Baud && p.Serial.Framing == set.Framing {
			units[p.Serial.Unit] = true
		}
	}
	return units
}

// Bus is a line that is open at one setting. Answers to its registers' reads
// carry errors with these methods, as far as they apply:
//
//	Timeout() bool                      nobody answered
//	Exception() (code uint8, ok bool)   the device refused
//	Garbled() bool                      something came that is no answer
//	Down() bool                         the adapter is gone, or the host hung up
//	Resting() bool                      not asked: the unit was silent too often
type Bus interface {
	// Register gives access to one unit, which may think for as long as
	// timeout before it answers. What the frames take is not part of it.
	Register(unit uint8, timeout time.Duration) drivers.Register
	// Late reports whether answers of the unit came after their time.
	Late(unit uint8) bool
	// Close ends the use of the line. A serial port can be opened at
	// another setting then.
	Close() error
}

// Config describes a scan.
type Config struct {
	Open     func(ctx context.Context, s Setting) (Bus, error)
	Settings []Setting // nil: a network line
	Units    []uint8
	Profiles []*profile.Profile // in order of preference
	// Full goes on where something has answered: a bus has one setting, so
	// others are not tried otherwise.
	Full bool
	// Probe is how long a device may think at settings and units that are
	// likely, Sweep at all others, and Patient one that is there. An answer
	// that comes later than Sweep is heard while others are asked.
	Probe, Sweep, Patient time.Duration
	// Progress, if set, is told before every probe. It must not block.
	Progress func(Progress)
	// Found, if set, is told of every answer at once.
	Found func(Answer)
}

// Progress is how far a scan has come.
type Progress struct {
	Setting     Setting
	Unit        uint8
	Done, Total int // probes
	Found       int
	// Remaining is how long the rest takes at most if nothing more answers.
	Remaining time.Duration
}

// Answer is a device that has answered.
type Answer struct {
	Unit    uint8
	Setting Setting
	// Findings are the profiles that fit, the best first; none if nobody
	// knows the device. See Best.
	Findings []profile.Finding
	// Chain is what a SunSpec device says about itself; nil for others.
	Chain *profile.Chain
	// AnyUnit: the device answers at every address, as devices do that have
	// a network port of their own.
	AnyUnit bool
	// Garbled: something answers that cannot be understood: two devices with
	// one address, a wrong framing or bad wiring.
	Garbled bool
	// Slow: answers come later than usual.
	Slow bool
	// Cut: it stopped answering before all profiles had been tried.
	Cut bool
}

// Best returns the profile to use. ok is false if none fits, and if several do
// and the registers do not tell which is true. Profiles of one vendor for
// different kinds of device are true together: a hybrid inverter has registers
// of its own and those of the meter that it listens to.
func (a *Answer) Best() (best profile.Finding, ok bool) {
	for i, f := range a.Findings {
		for _, o := range a.Findings[:i] {
			if f.Profile.Vendor != o.Profile.Vendor || f.Profile.Kind == o.Profile.Kind {
				return best, false
			}
		}
	}
	if len(a.Findings) == 0 {
		return best, false
	}
	return a.Findings[0], true
}

// Result is what a scan has seen.
type Result struct {
	Answers  []Answer
	Probes   int  // done
	Total    int  // of all settings and units
	Complete bool // it came to its end
	Full     bool // and everything was tried
	// Noisy are settings at which bytes came but never an answer. They were
	// left early: something with another speed talks there.
	Noisy []Setting
}

// Run scans. When ctx ends it returns what was found so far, and no error.
func Run(ctx context.Context, cfg Config) (Result, error) {
	s := &scanner{cfg: cfg, tried: map[Setting]map[uint8]bool{}, found: map[place]bool{}}
	if len(cfg.Units) == 0 {
		return s.result, errors.New("scan: no units to try")
	}
	if cfg.Probe <= 0 || cfg.Sweep <= 0 || cfg.Patient <= 0 {
		return s.result, fmt.Errorf("scan: probe %s, sweep %s, patient %s: want times", cfg.Probe, cfg.Sweep, cfg.Patient)
	}
	err := s.run(ctx)
	s.close()
	if ctx.Err() != nil {
		return s.result, nil
	}
	s.result.Complete = err == nil
	s.result.Full = s.result.Complete && s.result.Probes == s.result.Total
	return s.result, err
}

// place is where a device was found. Framing is not part of it: a device set
// to 8N1 also understands 8N2.
type place struct {
	baud int
	unit uint8
}

type scanner struct {
	cfg    Config
	tried  map[Setting]map[uint8]bool
	found  map[place]bool
	live   *Setting // the only one that is still tried
	result Result

	bus     Bus
	setting Setting
	hangups int  // units in a row at which the line went down
	garbled bool // the unit asked last answered with bytes that are no answer
	// reframing: a unit is being tried with other framings.
	reframing bool

	spent, planned time.Duration // of the probes so far
}

// maxHangups is at how many units in a row a line may go down before the scan
// ends: a device that hangs up on strange units is not absent.
const maxHangups = 3

// maxGarbled is after how many units in a row with bytes that are no answer a
// setting is left: no three neighbours are broken in the same way.
const maxGarbled = 3

// run tries every unit at every setting, the likeliest first.
func (s *scanner) run(ctx context.Context) error {
	settings := s.cfg.Settings
	if len(settings) == 0 {
		settings = []Setting{{}}
		s.cfg.Full = true
	}
	s.cfg.Settings = settings
	s.result.Total = len(settings) * len(s.cfg.Units)
	if settings[0] == (Setting{}) {
		if over, err := s.everywhere(ctx); over || err != nil {
			return err
		}
	}
	common := factoryUnits(s.cfg.Profiles)
	for _, likely := range []func(Setting) map[uint8]bool{
		func(set Setting) map[uint8]bool { return factory(s.cfg.Profiles, set) },
		func(Setting) map[uint8]bool { return common },
	} {
		for _, set := range settings {
			units, _ := split(s.cfg.Units, func(u uint8) bool { return likely(set)[u] })
			if err := s.at(ctx, set, units, s.cfg.Probe); err != nil {
				return err
			}
			if over, err := s.settled(ctx); over || err != nil {
				return err
			}
		}
	}
	// Where something answers there is probably more.
	live, dead := split(settings, s.answers)
	for _, set := range append(live, dead...) {
		if err := s.at(ctx, set, s.cfg.Units, s.cfg.Sweep); err != nil {
			return err
		}
		if over, err := s.settled(ctx); over || err != nil {
			return err
		}
	}
	return nil
}

// answers reports whether something has answered at a setting.
func (s *scanner) answers(set Setting) bool {
	return slices.ContainsFunc(s.result.Answers, func(a Answer) bool { return a.Setting == set && !a.Garbled })
}

// settled ends a scan that is not full once something has answered: with the
// other units at the settings of what has.
func (s *scanner) settled(ctx context.Context) (over bool, err error) {
	if s.cfg.Full {
		return false, nil
	}
	for _, other := range s.cfg.Settings {
		if s.answers(other) {
			s.live, over = &other, true
			if err := s.at(ctx, other, s.cfg.Units, s.cfg.Sweep); err != nil {
				return true, err
			}
		}
	}
	return over, nil
}

func split[T any](all []T, want func(T) bool) (yes, no []T) {
	for _, x := range all {
		if want(x) {
			yes = append(yes, x)
		} else {
			no = append(no, x)
		}
	}
	return yes, no
}

// strangers are units at which hardly anybody is. A device that answers at
// all of them does not look at the unit.
var strangers = []uint8{231, 113, 187}

// everywhere finds out whether the device at the end of a network line
// answers at every unit; then it is the only answer.
func (s *scanner) everywhere(ctx context.Context) (over bool, err error) {
	if len(s.cfg.Units) <= len(strangers) {
		return false, nil
	}
	if err := s.open(ctx, Setting{}); err != nil {
		return false, err
	}
	var first []byte
	for i, u := range strangers {
		data, err := s.probe(ctx, u, s.cfg.Probe)
		switch answered, _ := judge(err); {
		case isDown(err):
			return false, err // the first request of all: nobody is there
		case !answered || i > 0 && !bytes.Equal(data, first):
			return false, nil
		}
		first = data
	}
	a := Answer{Unit: s.cfg.Units[0], AnyUnit: true}
	s.examine(ctx, &a)
	s.result.Probes = s.result.Total
	s.add(a)
	return true, nil
}

// at tries the units at one setting that have not been tried there.
func (s *scanner) at(ctx context.Context, set Setting, units []uint8, timeout time.Duration) error {
	if s.tried[set] == nil {
		s.tried[set] = map[uint8]bool{}
	}
	var asked []uint8
	garbled := 0 // units in a row
	for _, u := range units {
		if s.tried[set][u] {
			continue
		}
		s.tried[set][u] = true
		s.result.Probes++
		if s.found[place{set.Baud, u}] || slices.Contains(s.result.Noisy, set) {
			continue
		}
		if err := s.open(ctx, set); err != nil {
			return err
		}
		if s.cfg.Progress != nil {
			s.cfg.Progress(Progress{set, u, s.result.Probes, s.result.Total, len(s.result.Answers), s.remaining()})
		}
		start := time.Now()
		if err := s.try(ctx, u, timeout); err != nil {
			return err
		}
		asked = append(asked, u)
		if !s.garbled {
			garbled = 0
			if !s.found[place{set.Baud, u}] {
				s.spent += time.Since(start)
				s.planned += s.cost(set, timeout)
			}
			continue
		}
		if garbled++; garbled >= maxGarbled {
			s.leave(set)
		} else if n := len(asked); n > 1 && !s.found[place{set.Baud, asked[n-2]}] {
			// It may have been the answer of the unit before, come late.
			if err := s.try(ctx, asked[n-2], s.cfg.Patient); err != nil {
				return err
			}
		}
	}
	// What came too late was heard by those that were asked afterwards.
	if s.bus == nil || s.setting != set {
		return nil
	}
	asked = slices.DeleteFunc(asked, func(u uint8) bool { return s.found[place{set.Baud, u}] || !s.bus.Late(u) })
	for _, u := range asked {
		if err := s.try(ctx, u, s.cfg.Patient); err != nil {
			return err
		}
	}
	return nil
}

// leave gives a setting up: what came there is of no device's own.
func (s *scanner) leave(set Setting) {
	s.result.Noisy = append(s.result.Noisy, set)
	s.result.Answers = slices.DeleteFunc(s.result.Answers, func(a Answer) bool { return a.Garbled && a.Setting == set })
}

// cost is what a probe without an answer takes: the frames with their
// silences, and the time in which a device may think.
func (s *scanner) cost(set Setting, timeout time.Duration) time.Duration {
	if set.Baud == 0 {
		return timeout
	}
	const bits = 8*10 + 7*10 + 4*11 // request, shortest answer, silence
	return timeout + bits*time.Second/time.Duration(set.Baud)
}

// remaining estimates how long the rest takes from what it took so far.
func (s *scanner) remaining() time.Duration {
	var plan time.Duration
	for _, set := range s.cfg.Settings {
		if s.live == nil || *s.live == set {
			plan += time.Duration(len(s.cfg.Units)-len(s.tried[set])) * s.cost(set, s.cfg.Sweep)
		}
	}
	if s.planned > 0 {
		plan = time.Duration(float64(plan) * float64(s.spent) / float64(s.planned))
	}
	return plan
}

// try asks one unit and examines it if it answers.
func (s *scanner) try(ctx context.Context, u uint8, timeout time.Duration) error {
	_, err := s.probe(ctx, u, timeout)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	answered, garbled := judge(err)
	s.garbled = garbled
	switch {
	case isDown(err):
		if s.hangups++; s.hangups >= maxHangups {
			return err
		}
		return nil
	case !answered && !garbled:
		s.hangups = 0
		return nil
	}
	s.hangups = 0
	a := Answer{Unit: u, Setting: s.setting, Slow: timeout == s.cfg.Patient}
	if garbled {
		// Once more: a disturbance is not a device.
		if _, err = s.probe(ctx, u, s.cfg.Patient); err != nil {
			if answered, garbled = judge(err); !answered && !garbled {
				return ctx.Err()
			}
		}
	}
	if a.Garbled = garbled; !garbled {
		s.examine(ctx, &a)
	}
	s.add(a)
	if garbled && ctx.Err() == nil {
		return s.reframe(ctx, u)
	}
	return ctx.Err()
}

// reframe tries a unit whose answer could not be understood with the other
// framings of that speed.
func (s *scanner) reframe(ctx context.Context, u uint8) error {
	if s.reframing {
		return nil
	}
	here := s.setting
	s.reframing = true
	defer func() { s.reframing, s.garbled = false, true }()
	for _, set := range s.cfg.Settings {
		if set.Baud != here.Baud || set == here || s.found[place{set.Baud, u}] || slices.Contains(s.result.Noisy, set) {
			continue
		}
		if err := s.open(ctx, set); err != nil {
			return err
		}
		if err := s.try(ctx, u, s.cfg.Probe); err != nil {
			return err
		}
	}
	return s.open(ctx, here)
}

func (s *scanner) add(a Answer) {
	if !a.Garbled {
		s.found[place{a.Setting.Baud, a.Unit}] = true
		// A garbled answer at another framing was this device.
		s.result.Answers = slices.DeleteFunc(s.result.Answers, func(o Answer) bool {
			return o.Garbled && o.Unit == a.Unit && o.Setting.Baud == a.Setting.Baud
		})
	}
	s.result.Answers = append(s.result.Answers, a)
	slices.SortStableFunc(s.result.Answers, func(a, b Answer) int {
		return cmp.Or(cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.Setting.Baud, b.Setting.Baud))
	})
	if s.cfg.Found != nil {
		s.cfg.Found(a)
	}
}

// maxSilent is how many reads of a detection in a row may get no answer before
// the device is taken for gone.
const maxSilent = 6

// examine finds out what a unit is.
func (s *scanner) examine(ctx context.Context, a *Answer) {
	d, r := profile.NewDetect(s.cfg.Profiles), s.bus.Register(a.Unit, s.cfg.Patient)
	walk := profile.NewWalk(sunspecBases) // reads along
	silent := 0
	for ctx.Err() == nil && silent < maxSilent {
		fn, addr, count, done := d.Next()
		if done {
			break
		}
		data, err := read(ctx, r, fn, addr, count)
		if answered, _ := judge(err); !answered {
			// Devices may be silent about registers that they do not have,
			// and any device may miss one request.
			data, err = read(ctx, r, fn, addr, count)
		}
		if answered, garbled := judge(err); answered || garbled {
			silent = 0
		} else {
			silent++
		}
		if f, at, n, over := walk.Next(); !over && f == fn && at == addr && n == count {
			_ = walk.Feed(data) // Chain tells
		}
		d.Feed(data)
	}
	a.Findings, a.Cut = d.Findings(), ctx.Err() != nil || silent >= maxSilent
	if chain, _ := walk.Chain(); len(chain.Models) > 0 {
		a.Chain = &chain
	}
}

// sunspecBases are where SunSpec maps begin (SunSpec Device Information Model
// Specification 1.1, 6.2).
var sunspecBases = []uint16{40000, 0, 50000}

// reopenPause is how long a lost line is given to come back.
const reopenPause = 300 * time.Millisecond

// probe is the shortest read there is.
func (s *scanner) probe(ctx context.Context, u uint8, timeout time.Duration) ([]byte, error) {
	return read(ctx, s.bus.Register(u, timeout), drivers.HoldingRegisters, 0, 1)
}

// read asks one unit, and again if the line was down or the unit resting.
func read(ctx context.Context, r drivers.Register, fn drivers.Function, addr, count uint16) ([]byte, error) {
	for try := 0; ; try++ {
		data, err := r.ReadRegisters(ctx, fn, addr, count)
		wait := time.Duration(0)
		switch {
		case isDown(err):
			wait = reopenPause
		case isResting(err):
			wait = 4 * reopenPause // the first back-off of a line is 1 s, with jitter
		}
		if wait == 0 || try == 2 {
			return data, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// open makes sure that the line is open at a setting.
func (s *scanner) open(ctx context.Context, set Setting) error {
	if s.bus != nil && s.setting == set {
		return nil
	}
	s.close()
	bus, err := s.cfg.Open(ctx, set)
	if err != nil {
		return err
	}
	s.bus, s.setting = bus, set
	return nil
}

func (s *scanner) close() {
	if s.bus != nil {
		_ = s.bus.Close() // nothing was written
		s.bus = nil
	}
}

// judge says what came back: an answer, a refusal included, or something that
// cannot be understood. Gateways answer in the name of absent units with
// exceptions 10 and 11 (Modbus Application Protocol V1.1b3, 7).
func judge(err error) (answered, garbled bool) {
	if err == nil {
		return true, false
	}
	if code, ok := exception(err); ok {
		return code != 10 && code != 11, false
	}
	var x interface{ Garbled() bool }
	return false, errors.As(err, &x) && x.Garbled()
}

func exception(err error) (code uint8, ok bool) {
	var x interface {
		Exception() (code uint8, ok bool)
	}
	if errors.As(err, &x) {
		return x.Exception()
	}
	return 0, false
}

func isDown(err error) bool {
	var x interface{ Down() bool }
	return errors.As(err, &x) && x.Down()
}

func isResting(err error) bool {
	var x interface{ Resting() bool }
	return errors.As(err, &x) && x.Resting()
}
