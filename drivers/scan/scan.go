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
// first.
func Settings() []Setting {
	out := make([]Setting, 0, len(Bauds)*len(Framings))
	for _, b := range Bauds {
		for _, f := range Framings {
			out = append(out, Setting{b, f})
		}
	}
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

// Bus is a line that is open at one setting. Answers to its registers' reads
// carry errors with these methods, as far as they apply:
//
//	Timeout() bool                      nobody answered
//	Exception() (code uint8, ok bool)   the device refused
//	Garbled() bool                      something came that is no answer
//	Down() bool                         the adapter is gone, or the host hung up
//	Resting() bool                      not asked: the unit was silent too often
type Bus interface {
	// Register gives access to one unit. patient says to wait several times
	// longer for an answer than for a probe's.
	Register(unit uint8, patient bool) drivers.Register
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

// telling drops what fits by chance if something else fits for a reason. A
// voltage or a frequency in its place is a reason; a power between -100 and
// 100 kW, which is all that some profiles can be recognised by, is found in
// any other map now and then.
func telling(all []profile.Finding) []profile.Finding {
	sharp := func(f profile.Finding) bool {
		return f.Profile.SunSpec != nil || slices.ContainsFunc(f.Profile.Detect, func(r profile.Rule) bool { return r.Min > 0 && r.Max/r.Min < 2 })
	}
	return slices.DeleteFunc(slices.Clone(all), func(f profile.Finding) bool {
		return !sharp(f) && slices.ContainsFunc(all, func(o profile.Finding) bool { return sharp(o) && o.Profile.Vendor != f.Profile.Vendor }) &&
			!slices.ContainsFunc(all, func(o profile.Finding) bool { return sharp(o) && o.Profile.Vendor == f.Profile.Vendor })
	})
}

// Result is what a scan has seen.
type Result struct {
	Answers  []Answer
	Probes   int // done
	Total    int // planned
	Complete bool
}

// Run scans. When ctx ends it returns what was found so far, and no error.
func Run(ctx context.Context, cfg Config) (Result, error) {
	s := &scanner{cfg: cfg, found: map[place]bool{}}
	if len(cfg.Units) == 0 {
		return s.result, errors.New("scan: no units to try")
	}
	err := s.run(ctx)
	s.close()
	if ctx.Err() != nil {
		return s.result, nil
	}
	s.result.Complete = err == nil
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
	found  map[place]bool
	result Result

	bus     Bus
	setting Setting
	hangups int // units in a row at which the line went down
}

// maxHangups is at how many units in a row a line may go down before the scan
// ends: a device that hangs up on strange units is not absent.
const maxHangups = 3

// run tries every unit at every setting.
func (s *scanner) run(ctx context.Context) error {
	settings := s.cfg.Settings
	if len(settings) == 0 {
		settings = []Setting{{}}
	}
	s.result.Total = len(settings) * len(s.cfg.Units)
	if s.cfg.Settings == nil {
		if over, err := s.everywhere(ctx); over || err != nil {
			return err
		}
	}
	factory := factoryUnits(s.cfg.Profiles)
	first, rest := split(s.cfg.Units, func(u uint8) bool { return factory[u] })
	for _, set := range settings {
		if err := s.at(ctx, set, first); err != nil {
			return err
		}
	}
	// Where something answers there is probably more.
	live, dead := split(settings, func(set Setting) bool {
		return slices.ContainsFunc(s.result.Answers, func(a Answer) bool { return a.Setting == set })
	})
	for _, set := range append(live, dead...) {
		if err := s.at(ctx, set, rest); err != nil {
			return err
		}
	}
	return nil
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
		data, err := s.probe(ctx, u, false)
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

// at tries units at one setting.
func (s *scanner) at(ctx context.Context, set Setting, units []uint8) error {
	var late []uint8
	for _, u := range units {
		s.result.Probes++
		if s.found[place{set.Baud, u}] {
			continue
		}
		if err := s.open(ctx, set); err != nil {
			return err
		}
		if s.cfg.Progress != nil {
			s.cfg.Progress(Progress{set, u, s.result.Probes, s.result.Total, len(s.result.Answers)})
		}
		if err := s.try(ctx, u, false); err != nil {
			return err
		}
		late = append(late, u)
	}
	// What came too late was heard by those that were asked afterwards.
	if s.bus == nil || s.setting != set {
		return nil
	}
	late = slices.DeleteFunc(late, func(u uint8) bool { return s.found[place{set.Baud, u}] || !s.bus.Late(u) })
	for _, u := range late {
		if err := s.try(ctx, u, true); err != nil {
			return err
		}
	}
	return nil
}

// try asks one unit and examines it if it answers.
func (s *scanner) try(ctx context.Context, u uint8, patient bool) error {
	_, err := s.probe(ctx, u, patient)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	answered, garbled := judge(err)
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
	a := Answer{Unit: u, Setting: s.setting, Slow: patient}
	if garbled {
		// Once more: a disturbance is not a device.
		if _, err = s.probe(ctx, u, true); err != nil {
			if answered, garbled = judge(err); !answered && !garbled {
				return ctx.Err()
			}
		}
	}
	if a.Garbled = garbled; !garbled {
		s.examine(ctx, &a)
	}
	s.add(a)
	return ctx.Err()
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
	d, r := profile.NewDetect(s.cfg.Profiles), s.bus.Register(a.Unit, true)
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
	a.Findings, a.Cut = telling(d.Findings()), ctx.Err() != nil || silent >= maxSilent
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
func (s *scanner) probe(ctx context.Context, u uint8, patient bool) ([]byte, error) {
	return read(ctx, s.bus.Register(u, patient), drivers.HoldingRegisters, 0, 1)
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
