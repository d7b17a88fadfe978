package profile

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
)

// Watchdog is how a device notices that its master is gone. It offers the
// failsafe current then, until it is fed again.
type Watchdog struct {
	// FedBy is what keeps it quiet: "request" is any request, "write" any
	// write, else the name of a command.
	FedBy string `yaml:"fed_by"`
	// Timeout is the factory setting, which a failsafe_timeout changes. 0: it
	// is off, or not known.
	Timeout time.Duration `yaml:"timeout,omitempty"`
	// Current is the factory setting in mA, which a failsafe_current changes.
	Current int64 `yaml:"current,omitempty"`
}

// What feeds a watchdog beside commands.
const (
	FedByRequest = "request"
	FedByWrite   = "write"
)

// maxFailsafe bounds Watchdog.Timeout.
const maxFailsafe = 24 * time.Hour

func (p *Profile) checkWatchdog() error {
	w := p.Watchdog
	if w == nil {
		return nil
	}
	if _, ok := p.Write(w.FedBy); !ok && w.FedBy != FedByRequest && w.FedBy != FedByWrite {
		return at("watchdog.fed_by", "%q: want request, write or one of the commands", w.FedBy)
	}
	if w.Timeout < 0 || w.Timeout > maxFailsafe {
		return at("watchdog.timeout", "want 0..%s", maxFailsafe)
	}
	if w.Current != 0 && (w.Current < 6000 || w.Current > 80_000) {
		return at("watchdog.current", "%d mA: want 0 or 6000..80000", w.Current)
	}
	return nil
}

// Feeds reports whether a request keeps the watchdog quiet: a read, or a write
// of values from addr on.
func (w *Watchdog) Feeds(p *Profile, function uint8, addr uint16, values []uint16) bool {
	write := function == writeCoil || function == writeSingle || function == writeMultiple
	switch w.FedBy {
	case FedByRequest:
		return true
	case FedByWrite:
		return write
	}
	c, ok := p.Write(w.FedBy)
	if !ok || !write || (c.Function == writeCoil) != (function == writeCoil) {
		return false
	}
	if c.Alt != nil { // which scale holds does not matter here
		plain := *c
		plain.Alt = nil
		c = &plain
	}
	_, ok = c.Decode(addr, values, nil)
	return ok
}

// Setting is a command with a value.
type Setting struct {
	Write *Write
	Value int64
}

// Setup returns what a master writes once when it takes over, in order.
func (p *Profile) Setup() []Setting {
	var out []Setting
	for i := range p.Writes {
		if w := &p.Writes[i]; w.Setup != nil {
			out = append(out, Setting{w, *w.Setup})
		}
	}
	return out
}

// Pause returns what pauses a wallbox, in order: a current of 0 where it is
// taken, and enable. It is paused when one that is not Optional has been
// confirmed. Charging goes on after the current and then enable were written.
func (p *Profile) Pause() []Setting {
	var out []Setting
	for _, name := range []string{"current_limit", "enable"} {
		if w, ok := p.Write(name); ok && w.Takes(0) {
			out = append(out, Setting{w, 0})
		}
	}
	return out
}

// VehicleState returns the state of the control pilot that a reading of a
// wallbox tells: the letter of its status, and what the cable says beside it.
// Where no vehicle hangs on the cable the state is A, where one does it is B at
// least; states E and F stay. ok is false if the status was not read or has no
// letter.
func (p *Profile) VehicleState(points []meter.Point) (state drivers.VehicleState, ok bool) {
	var plugged, cabled bool
	for _, pt := range points {
		switch {
		case pt.Phase != 0:
		case pt.Quantity == meter.Status:
			if letter, has := p.States[pt.Value]; has {
				state, ok = drivers.VehicleState(letter[0]), true
			}
		case pt.Quantity == meter.Cable:
			plugged, cabled = p.Cables[pt.Value]
		}
	}
	switch {
	case !ok || !cabled || state == drivers.StateE || state == drivers.StateF:
	case !plugged:
		state = drivers.StateA
	case state == drivers.StateA:
		state = drivers.StateB
	}
	return state, ok
}

// CableCode returns the smallest code of the cable that means that a vehicle
// hangs on it, or that none does.
func (p *Profile) CableCode(plugged bool) (int64, bool) {
	for _, code := range slices.Sorted(maps.Keys(p.Cables)) {
		if p.Cables[code] == plugged {
			return code, true
		}
	}
	return 0, false
}

// Step is one write of an order: a command with a value, or with the power
// that was ordered.
type Step struct {
	Write string `yaml:"write"`
	Value *int64 `yaml:"value,omitempty"` // default: the power
}

// Orders of a battery.
const (
	OrderCharge    = "charge"    // with a power
	OrderDischarge = "discharge" // with a power
	OrderRelease   = "release"   // the device decides again
)

var orderNames = []string{OrderCharge, OrderDischarge, OrderRelease}

func (p *Profile) checkOrders() error {
	if i := slices.IndexFunc(p.Writes, func(w Write) bool { return w.Name == "power_command" }); (i >= 0) != (len(p.Orders) > 0) {
		return at("orders", "a power_command and orders go together")
	}
	if len(p.Orders) == 0 {
		return nil
	}
	if len(p.Orders[OrderRelease]) == 0 {
		return at("orders", "want a release: what is ordered must come to an end")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Orders)) {
		here := "orders." + name
		if !slices.Contains(orderNames, name) {
			return at("orders", "%q: want %s", name, orderNames)
		}
		powers := 0
		for i, s := range p.Orders[name] {
			w, ok := p.Write(s.Write)
			switch {
			case !ok:
				return at(fmt.Sprintf("%s[%d].write", here, i), "there is no command %q", s.Write)
			case w.Alt != nil:
				return at(fmt.Sprintf("%s[%d].write", here, i), "the scale of %s depends on another register", s.Write)
			case s.Value == nil && s.Write != "power_command":
				return at(fmt.Sprintf("%s[%d].value", here, i), "missing")
			case s.Value == nil:
				powers++
			case !w.Takes(*s.Value):
				return at(fmt.Sprintf("%s[%d].value", here, i), "%d is not a value of %s", *s.Value, s.Write)
			}
		}
		if want := boolInt(name != OrderRelease); powers != want {
			return at(here, "%d steps take the power, want %d", powers, want)
		}
	}
	return nil
}

// Order returns the writes that make a battery charge or discharge with power
// (mW, never negative); release gives it back to itself and ignores
// power. The writes go out in their order. An order holds until the next one,
// or for as long as a command_timeout says.
func (p *Profile) Order(name string, power int64) ([]Command, error) {
	steps, ok := p.Orders[name]
	if !ok {
		return nil, fmt.Errorf("%s takes no order %q", p.ID, name)
	}
	if power < 0 {
		return nil, fmt.Errorf("%s %d mW: want 0 or more, the order tells the direction", name, power)
	}
	var out []Command
	for _, s := range steps {
		w, _ := p.Write(s.Write)
		v := power
		if s.Value != nil {
			v = *s.Value
		} else if name == OrderDischarge && w.Min < 0 {
			v = -power
		}
		c, err := w.Encode(v, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// Ordered returns what a device is told by the values that its commands have:
// the order, and the power with its sign, charging positive. It is the inverse
// of Order, for simulators.
func (p *Profile) Ordered(values map[string]int64) (name string, power int64) {
	for _, name := range []string{OrderCharge, OrderDischarge} {
		steps := p.Orders[name]
		met := len(steps) > 0 && !slices.ContainsFunc(steps, func(s Step) bool {
			v, has := values[s.Write]
			return !has || s.Value != nil && v != *s.Value
		})
		if power := values["power_command"]; met {
			if w, _ := p.Write("power_command"); name == OrderDischarge && w.Min >= 0 {
				power = -power
			}
			return name, power
		}
	}
	return OrderRelease, 0
}
