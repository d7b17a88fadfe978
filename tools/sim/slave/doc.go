// Package slave simulates Modbus devices: the other end of the line.
//
// A Unit is one device. Its registers are made from the same profile with
// which a gateway reads it, so what a test sets is what must be read:
//
//	Set(power 1.5 kW) -> profile.Encode -> registers -> bus -> profile.Decode -> power 1.5 kW
//
// A Bus holds several units under their addresses and answers requests on any
// of three lines, misbehaving on demand:
//
//	                  +-- ServePTY     RTU on a pseudo-terminal (two-wire RS-485)
//	units -- Bus -----+-- ServeTCP     Modbus TCP
//	                  +-- ServeRTUTCP  RTU frames inside TCP (serial servers)
//
// On a pseudo-terminal the simulator can see which speed and stop bits the
// master has set, and answers only if they are its own, as a real device does.
// Parity cannot be seen there: the kernel drops it.
//
// A wallbox of Physics does what its profile says: currents, pauses, phases and
// A wallbox of Physics does what its profile says: currents, pauses, phases and
// the failsafe current when nothing feeds its watchdog any more. It refuses
// currents that IEC 61851-1 does not know. One that is told a power charges and
// discharges the vehicle at it. Master is the part that hears commands, for
// devices whose physics are elsewhere.
//
// What goes wrong with real devices goes wrong on demand: single answers are
// late, broken, refused or missing at a rate, the device is unplugged for a
// while, and it has habits (takes short reads only, admits one client). See
// Faults.
//
// Example:
//
//	p, _ := profile.Get("eastron-sdm630")
//	u, _ := slave.NewUnit(p, slave.UnitConfig{})
//	_ = u.Set(meter.Point{Quantity: meter.Power, Value: 1_500_000})
//	bus, _ := slave.NewBus(slave.Config{Faults: slave.Faults{slave.Late: 0.1}, Seed: 1})
//	_ = bus.Add(1, u)
//	pty, _ := slave.OpenPTY("/tmp/meter")
//	err := bus.ServePTY(ctx, pty)
package slave
