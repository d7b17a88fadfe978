package wallbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// beatEvery is half of the shortest time after which the device misses its
// master; timeout is its own setting, if it was read.
func (b *Box) beatEvery(timeout time.Duration) time.Duration {
	var every time.Duration
	least := func(d time.Duration) {
		if d > 0 && (every == 0 || d < every) {
			every = d
		}
	}
	for i := range b.prof.Writes {
		least(b.prof.Writes[i].Every)
	}
	if w := b.prof.Watchdog; w != nil {
		if timeout == 0 {
			timeout = w.Timeout
		}
		least(timeout / 2)
	}
	return every
}

// BeatEvery implements drivers.Heartbeat.
func (b *Box) BeatEvery() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.every
}

// Beat implements drivers.Heartbeat. It repeats what feeds the device's
// watchdog: its life bit, the limit as it stands, or any read. A device of
// which nothing is known yet is told to pause.
func (b *Box) Beat(ctx context.Context) error {
	return b.sequence(ctx, func(ctx context.Context) error {
		fedBy := ""
		if w := b.prof.Watchdog; w != nil {
			fedBy = w.FedBy
		}
		if b.beat != nil {
			if _, err := b.put(ctx, b.beat, 1); err != nil {
				return err
			}
		}
		switch {
		case fedBy == profile.FedByWrite && b.beat == nil, fedBy == "current_limit", b.limitEvery() > 0, fedBy == "power_command":
			return b.repeat(ctx)
		case fedBy == profile.FedByRequest:
			_, err := b.points(ctx, b.state)
			return err
		}
		return nil
	})
}

// repeat writes again what the device was told.
func (b *Box) repeat(ctx context.Context) error {
	b.mu.Lock()
	was := b.offered
	b.mu.Unlock()
	switch {
	case !was.known || was.limit == 0 && was.power == 0:
		return b.pause(ctx, true)
	case b.limit == nil || was.power != 0:
		return b.order(ctx, was.power, was.limit)
	}
	set, err := b.put(ctx, b.limit, b.most(was.limit))
	if err != nil {
		return err
	}
	b.took(offer{limit: was.limit, set: set})
	return nil
}

// Failsafe implements drivers.Failsafe. What cannot be read is the factory's
// setting, where the profile knows it.
func (b *Box) Failsafe(ctx context.Context) (out drivers.FailsafeSetting, err error) {
	if !b.hasFailsafe() {
		return out, fmt.Errorf("%s: failsafe: %w", b.prof.ID, drivers.ErrNotFitted)
	}
	err = b.sequence(ctx, func(ctx context.Context) error {
		out, err = b.failsafe(ctx)
		return err
	})
	return out, err
}

func (b *Box) hasFailsafe() bool {
	return b.failCurrent != nil || b.failTimeout != nil || b.prof.Watchdog != nil
}

func (b *Box) failsafe(ctx context.Context) (out drivers.FailsafeSetting, err error) {
	if w := b.prof.Watchdog; w != nil {
		out = drivers.FailsafeSetting{Current: meter.MilliAmpere(w.Current), Timeout: w.Timeout}
	}
	for _, r := range []struct {
		w  *profile.Write
		to func(int64)
	}{
		{b.failCurrent, func(v int64) { out.Current = meter.MilliAmpere(v) }},
		{b.failTimeout, func(v int64) { out.Timeout = time.Duration(v) * time.Millisecond }},
	} {
		if r.w == nil || r.w.Read == nil {
			continue
		}
		v, ok, err := b.read(ctx, r.w, readOf(r.w))
		if err != nil {
			return out, fmt.Errorf("%s: %w", r.w.Name, err)
		}
		if ok {
			r.to(v)
		}
	}
	return out, nil
}

// SetFailsafe implements drivers.Failsafe.
func (b *Box) SetFailsafe(ctx context.Context, want drivers.FailsafeSetting) (out drivers.FailsafeSetting, err error) {
	if !b.FailsafeCanBeSet() {
		return out, fmt.Errorf("%s: its failsafe cannot be set: %w", b.prof.ID, drivers.ErrNotFitted)
	}
	if err := CheckLimit(want.Current); err != nil {
		return out, fmt.Errorf("failsafe current: %w", err)
	}
	err = b.sequence(ctx, func(ctx context.Context) error {
		var set [2]int64
		for i, s := range []profile.Setting{{Write: b.failCurrent, Value: int64(want.Current)}, {Write: b.failTimeout, Value: want.Timeout.Milliseconds()}} {
			if s.Write == nil {
				continue
			}
			if set[i], err = b.put(ctx, s.Write, s.Value); err != nil {
				return err
			}
		}
		if out, err = b.failsafe(ctx); err != nil {
			return err
		}
		if b.failCurrent != nil && b.failCurrent.Read != nil && int64(out.Current) != set[0] ||
			b.failTimeout != nil && b.failTimeout.Read != nil && out.Timeout.Milliseconds() != set[1] {
			return fmt.Errorf("failsafe: it holds %d mA after %s, told %d mA after %s: %w", out.Current, out.Timeout, want.Current, want.Timeout, drivers.ErrNotTaken)
		}
		b.mu.Lock()
		b.every = b.beatEvery(out.Timeout)
		b.mu.Unlock()
		return nil
	})
	return out, err
}

// PhaseCounts implements drivers.PhaseSwitcher.
func (b *Box) PhaseCounts() []int {
	if b.phases == nil || b.lacking(b.phases) {
		return nil
	}
	var out []int
	for _, n := range slices.Sorted(maps.Keys(b.phases.Values)) {
		out = append(out, int(n))
	}
	return out
}

// Phases implements drivers.PhaseSwitcher.
func (b *Box) Phases(ctx context.Context) (n int, err error) {
	if b.phases == nil || b.phases.Read == nil {
		return 0, fmt.Errorf("%s: it does not tell its phases: %w", b.prof.ID, drivers.ErrNotFitted)
	}
	err = b.sequence(ctx, func(ctx context.Context) error {
		v, ok, err := b.read(ctx, b.phases, readOf(b.phases))
		if err == nil && !ok {
			err = errors.New("it tells a number of phases that it cannot be switched to")
		}
		n = int(v)
		return err
	})
	return n, err
}

// SwitchPhases implements drivers.PhaseSwitcher. A contactor that changes
// phases under a vehicle that charges can damage its rectifier.
func (b *Box) SwitchPhases(ctx context.Context, phases int) error {
	if counts := b.PhaseCounts(); !slices.Contains(counts, phases) {
		return fmt.Errorf("%s: %d phases: it can be switched to %v: %w", b.prof.ID, phases, counts, drivers.ErrNotFitted)
	}
	return b.sequence(ctx, func(ctx context.Context) error {
		points, err := b.points(ctx, b.state)
		if err != nil {
			return err
		}
		s, err := b.vehicle(points)
		if err != nil {
			return err
		}
		b.mu.Lock()
		was, since := b.offered, time.Since(b.ended)
		b.mu.Unlock()
		switch {
		case s == drivers.StateC || s == drivers.StateD:
			return fmt.Errorf("%w: the vehicle charges (state %s)", errNotNow, s)
		case !was.known || was.limit != 0 || was.power != 0:
			return fmt.Errorf("%w: phases are switched after an offer of 0 A", errNotNow)
		case since < PhasePause:
			return fmt.Errorf("%w: phases are switched %s after the offer ended, %s to go", errNotNow, PhasePause, (PhasePause - since).Round(time.Second))
		}
		if c, ok := b.prof.Write("phase_control"); ok {
			if _, err := b.put(ctx, c, 1); err != nil {
				return err
			}
		}
		if _, err := b.put(ctx, b.phases, int64(phases)); err != nil {
			return err
		}
		if b.lacking(b.phases) {
			return fmt.Errorf("it refuses to switch phases: %w", drivers.ErrNotFitted)
		}
		if b.phases.Read == nil {
			return nil
		}
		have, ok, err := b.read(ctx, b.phases, readOf(b.phases))
		if err == nil && (!ok || have != int64(phases)) {
			err = fmt.Errorf("it charges on %d phases, told %d: %w", have, phases, drivers.ErrNotTaken)
		}
		return err
	})
}

// PowerRange implements drivers.Discharger.
func (b *Box) PowerRange() (least, most meter.MilliWatt) {
	w, ok := b.prof.Write("power_command")
	if !ok || len(b.prof.Orders) == 0 {
		return 0, 0
	}
	if len(b.prof.Orders[profile.OrderCharge]) > 0 {
		most = meter.MilliWatt(w.Max)
	}
	if len(b.prof.Orders[profile.OrderDischarge]) > 0 {
		if least = meter.MilliWatt(w.Min); least >= 0 {
			least = -meter.MilliWatt(w.Max)
		}
	}
	return least, most
}

// SetPower implements drivers.Discharger.
func (b *Box) SetPower(ctx context.Context, power meter.MilliWatt) error {
	least, most := b.PowerRange()
	if power < least || power > most || least == most {
		return fmt.Errorf("%s: %d mW is outside %d..%d", b.prof.ID, power, least, most)
	}
	return b.sequence(ctx, func(ctx context.Context) error {
		if power == 0 {
			return b.pause(ctx, true)
		}
		return b.order(ctx, power, 0)
	})
}

// order tells the device a power, import positive, and notes it as the offer
// of limit.
func (b *Box) order(ctx context.Context, power meter.MilliWatt, limit meter.MilliAmpere) error {
	if err := b.setup(ctx); err != nil {
		return err
	}
	least, most := b.PowerRange()
	power = min(max(power, least), most)
	name := profile.OrderCharge
	if power < 0 {
		name = profile.OrderDischarge
	}
	if err := b.send(ctx, name, max(power, -power)); err != nil {
		return fmt.Errorf("%s with %d mW: %w", name, power, err)
	}
	b.took(offer{limit: limit, power: power})
	return nil
}

func (b *Box) send(ctx context.Context, name string, power meter.MilliWatt) error {
	commands, err := b.prof.Order(name, int64(power))
	if err != nil {
		return err
	}
	for _, c := range commands {
		if err := b.reg.Write(ctx, drivers.Write{Function: drivers.Function(c.Function), Address: c.Address, Values: c.Values}); err != nil {
			return err
		}
	}
	return nil
}

// FailsafeCanBeSet reports whether SetFailsafe can do anything.
func (b *Box) FailsafeCanBeSet() bool { return b.failCurrent != nil || b.failTimeout != nil }
