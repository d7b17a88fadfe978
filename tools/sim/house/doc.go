// Package house simulates the electricity of a neighbourhood: what people use,
// what their roofs produce, what their cars draw, what the wires lose and what
// every meter shows.
//
//	public grid
//	    │
//	 [connection meter]
//	    │ feeder cable, R
//	    ├──────────── service cable, R ──[site meter]── house 0: load, PV, charger
//	    ├──────────── service cable, R ──[site meter]── house 1
//	    └── ...                                             ├─ load
//	                                                        ├─[inverter's meter]── PV
//	                                                        └─[session meter]─ contactor ─ car
//
// # Time
//
// Nothing happens but in Step, which advances everything by dt and is
// deterministic: equal configurations, steps and inputs give equal meters on
// every machine (integers only). A real-time demonstration calls Step with the
// time that has passed; a test calls it with whatever it likes. All powers are
// constant within a tick of at most MaxTick.
//
// # Physics
//
//   - Load: stand-by, a fridge whose compressor runs two fifths of a period of
//     20 to 28 minutes, and now and then a kettle or a hob (1.2 to 2.4 kW, the
//     hob on its thermostat), all of them functions of seed, house and time.
//   - Sun: a parabola from 5 to 19 o'clock with its peak at noon. Clouds are
//     smooth noise that drifts over the houses one after the other and takes at
//     most two thirds. An inverter delivers nine tenths of its modules' peak at
//     best.
//   - Wires: the voltage at a house is the source's, which wanders by 1.5 V,
//     less the drop over feeder and service cable; loss is I²R per phase, the
//     neutral is ideal. Drops act on the next tick. Power factors are 1.
//   - Charger: a SimpleEVSE offers a current (0 or 6 to 32 A) over the pilot; a
//     contactor in series closes ContactorDelay after its coil and opens at
//     once. The pilot is in state A without a car, B with one, C when the car
//     wants energy and is offered some.
//   - Battery: it takes what the house would export and gives what it would
//     import, within its power, from empty to full and at once. A tenth of what
//     it takes is lost. What it takes counts as consumed, what it gives as
//     produced.
//   - Bidirectional wallbox: it takes what it is ordered out of the car at it, or
//     puts it in, within its own power and the car's, until the car is full or
//     at its reserve. Its power rises by 5 kW/s and falls at once. A tenth is
//     lost in either direction. What the car gives counts as produced.
//   - Car: it draws if and only if the contactor is closed and it is in state C;
//     a second after both are true its current rises by 8 A/s up to the offer
//     or what it can take, and follows a lower offer at once. One tenth of the
//     energy is lost in its charger. At its target it stops. It comes with
//     PlugIn and goes with Unplug, or by itself after its Stay.
//
// # Books
//
// Energy is integrated exactly (power in mW times time in µs, remainders
// carried), therefore at any moment, to the last digit,
//
//	produced + grid import = consumed + grid export + loss
//
// Registers of meters show whole mWh. Total import and export of a three-phase
// meter count the sum of its phases, as European meters do; its phase
// registers count each phase alone.
package house
