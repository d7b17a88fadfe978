package house

import (
	"fmt"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// microPerMilliWattHour is a mWh in mW·µs.
const microPerMilliWattHour = int64(time.Hour / time.Microsecond)

// Energy is an exact amount: whole mWh and a rest of 0 <= Rest < 3.6e9 mW·µs.
// Equal amounts are equal values.
type Energy struct {
	MilliWattHours meter.MilliWattHour
	Rest           int64
}

// Add returns e + f.
func (e Energy) Add(f Energy) Energy {
	e.MilliWattHours += f.MilliWattHours
	return e.plus(f.Rest)
}

func (e Energy) plus(milliWattMicroseconds int64) Energy {
	q, r := floorDiv(e.Rest+milliWattMicroseconds, microPerMilliWattHour)
	e.MilliWattHours += meter.MilliWattHour(q)
	e.Rest = r
	return e
}

// integrate adds p over us microseconds of one tick.
func (e *Energy) integrate(p meter.MilliWatt, us int64) { *e = e.plus(int64(p) * us) }

// Balance is what happened to energy since the start.
type Balance struct {
	Produced, Consumed, GridImport, GridExport, Loss Energy
}

// Check returns an error unless every mW·µs is accounted for.
func (b Balance) Check() error {
	in, out := b.Produced.Add(b.GridImport), b.Consumed.Add(b.GridExport).Add(b.Loss)
	if in != out {
		return fmt.Errorf("produced %v + grid import %v is %v; consumed %v + grid export %v + loss %v is %v",
			b.Produced, b.GridImport, in, b.Consumed, b.GridExport, b.Loss, out)
	}
	return nil
}

// phases holds a value per phase.
type phases [3]meter.MilliWatt

func (p phases) total() meter.MilliWatt { return p[0] + p[1] + p[2] }

// counter is an electricity meter.
type counter struct {
	power                  phases // import positive
	imported, exported     Energy
	importedBy, exportedBy [3]Energy
}

// measure counts power over one tick.
func (c *counter) measure(power phases, us int64) {
	c.power = power
	count(&c.imported, &c.exported, power.total(), us)
	for l, p := range power {
		count(&c.importedBy[l], &c.exportedBy[l], p, us)
	}
}

func count(imported, exported *Energy, p meter.MilliWatt, us int64) {
	if p > 0 {
		imported.integrate(p, us)
	} else {
		exported.integrate(-p, us)
	}
}

// points is the meter's face: totals, then n phases at their voltages.
func (c *counter) points(n int, voltage [3]meter.MilliVolt, frequency meter.MilliHertz) []meter.Point {
	total := c.power.total()
	pts := []meter.Point{
		{Quantity: meter.Power, Value: int64(total)},
		{Quantity: meter.Import, Value: int64(c.imported.MilliWattHours)},
		{Quantity: meter.Export, Value: int64(c.exported.MilliWattHours)},
		{Quantity: meter.Energy, Value: int64(c.imported.MilliWattHours + c.exported.MilliWattHours)},
		{Quantity: meter.Frequency, Value: int64(frequency)},
		{Quantity: meter.ApparentPower, Value: int64(max(total, -total))},
		{Quantity: meter.ReactivePower},
		{Quantity: meter.PowerFactor, Value: 1000},
	}
	var sum int64
	for l := range n {
		phase, p := uint8(l+1), c.power[l]
		current := int64(ampere(max(p, -p), voltage[l]))
		sum += current
		pts = append(pts,
			meter.Point{Quantity: meter.Power, Phase: phase, Value: int64(p)},
			meter.Point{Quantity: meter.Voltage, Phase: phase, Value: int64(voltage[l])},
			meter.Point{Quantity: meter.Current, Phase: phase, Value: current},
			meter.Point{Quantity: meter.ApparentPower, Phase: phase, Value: int64(max(p, -p))},
			meter.Point{Quantity: meter.ReactivePower, Phase: phase},
			meter.Point{Quantity: meter.PowerFactor, Phase: phase, Value: 1000},
			meter.Point{Quantity: meter.Import, Phase: phase, Value: int64(c.importedBy[l].MilliWattHours)},
			meter.Point{Quantity: meter.Export, Phase: phase, Value: int64(c.exportedBy[l].MilliWattHours)},
		)
	}
	return append(pts, meter.Point{Quantity: meter.Current, Value: sum})
}

// ampere is the current of p at voltage u, sign kept.
func ampere(p meter.MilliWatt, u meter.MilliVolt) meter.MilliAmpere {
	return meter.MilliAmpere(int64(p) * 1000 / int64(u))
}
