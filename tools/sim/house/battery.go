package house

import (
	"fmt"

	"github.com/joulegate/joulegate/meter"
)

// BatteryConfig describes a house's battery. The zero value is none.
type BatteryConfig struct {
	Capacity meter.WattHour
	Charge   meter.WattHour // at the start
	Power    meter.Watt     // most, in and out
}

func (b BatteryConfig) check() error {
	if b.Capacity < 1 || b.Charge < 0 || b.Charge > b.Capacity || b.Power < 1 || b.Power > maxPower {
		return fmt.Errorf("a battery of %d Wh with %d Wh in it and %d W", b.Capacity, b.Charge, b.Power)
	}
	return nil
}

// battery follows the power at the house's connection.
type battery struct {
	BatteryConfig
	stored Energy          // above Charge; negative: below
	power  meter.MilliWatt // charging positive
}

func (b *battery) charge() meter.MilliWattHour {
	return meter.MilliWattHour(b.Charge)*1000 + b.stored.MilliWattHours
}

// follow takes or gives for us microseconds what makes net zero, and returns
// its power.
func (b *battery) follow(net meter.MilliWatt, us int64) meter.MilliWatt {
	most := meter.MilliWatt(b.Power) * 1000
	p := min(most, max(-most, -net))
	if (p > 0 && b.charge() >= meter.MilliWattHour(b.Capacity)*1000) || (p < 0 && b.charge() <= 0) {
		p = 0
	}
	b.power = p
	if p > 0 {
		b.stored.integrate(p*carYield/1000, us)
	} else {
		b.stored.integrate(p, us)
	}
	return p
}

// Battery returns what the house's battery shows: its power, charging
// positive, and its state of charge. A house without one shows nothing.
func (h *House) Battery() []meter.Point {
	b := h.battery
	if b == nil {
		return nil
	}
	return []meter.Point{
		{Quantity: meter.BatteryPower, Value: int64(b.power)},
		{Quantity: meter.StateOfCharge, Value: int64(b.charge()) / int64(b.Capacity)},
	}
}
