// Package session decides when a charger is energised.
//
// It is a pure state machine: Step takes a state, an event and the monotonic
// time, and returns the next state and what has to be done. It has no clock,
// no disk, no pin and no randomness; package board/station gives it events and
// carries out its actions.
//
// # The circuit
//
// Two kinds of hardware are driven by the same machine. Either the gateway has
// a contactor of its own, with whatever of the rest is fitted:
//
//	fuse ── RCD ── shunt trip ── contactor ── meter ── charge controller ── car
//	                   ▲             ▲ │        │            │
//	          TripOn ──┘  CloseRelay ┘ └ feed-  │            └ pilot: Vehicle
//	                      OpenRelay      back   └ Reading
//
// or a wallbox switches by itself and its current limit is the actuator
// (Rules.Wallbox). Then "closed" means that it may offer current, and "open"
// that it was told 0 A, which counts as done when the pilot has left state C
// and the meter sees less than 1 A.
//
// # Phases
//
//	              Open                Ledger ok
//	     ┌──────┐      ┌──────┐      ┌────────────┐
//	────►│ Idle ├─────►│ Held ├─────►│ Authorised ├──┐ all conditions, then
//	     └──▲───┘      └─┬──┬─┘      └──────┬─────┘  │ RecordBegin, BeginRecorded,
//	        │   refused  │  │ limit         │        │ Close
//	        ◄────────────┘  │               │        ▼
//	        │               │               │   ┌──────────┐  condition lost  ┌───────────┐
//	        │               │   stop, limit │   │ Charging │◄────────────────►│ Suspended │◄── Resume
//	        │               │               │   └────┬─────┘  all conditions  └─────┬─────┘
//	        │               ▼               ▼        ▼ stop, hold used, full, gone   │
//	        │             ┌────────────────────────────┐                             │
//	        │             │ Stopping: 0 A, < 1 A, open ◄─────────────────────────────┘
//	        │             └──────────────┬─────────────┘
//	        │  StopRecorded      ┌───────▼──┐  final register, RecordStop
//	        └────────────────────┤ Metered  │
//	                             └──────────┘
//
// Every transition there is:
//
//	from        to          when
//	Idle        Testing     Test, and nothing speaks against it
//	Testing     Idle        the test is over; anything speaks against it; Stop
//	Testing     Held        Open
//	Idle        Held        Open; Resume of a session without a begin register
//	Idle        Suspended   Resume of a session that had begun
//	Idle        Stopping    Resume of a session whose stop was under way
//	Held        Authorised  Ledger ok
//	Held        Idle        Ledger refused
//	Held        Stopping    no word within HoldLimit; Stop; interlock; ResumeLimit
//	Authorised  Charging    every condition holds and the begin register is on disk
//	Authorised  Idle        the ledger takes its word back before anything began
//	Authorised  Stopping    no energy within StartLimit; Stop; interlock; unplugged
//	Charging    Suspended   a condition is lost: ordinary opening, or at once
//	Charging    Stopping    Stop; hold or offline limit used; full; unplugged; interlock
//	Suspended   Charging    every condition holds again
//	Suspended   Stopping    Stop; hold used; meter lost for long; ResumeLimit; interlock
//	Stopping    Metered     open and the last register is known
//	Stopping    Idle        open and no register was ever read
//	Metered     Idle        StopRecorded
//
// # Conditions
//
// The circuit closes, and stays closed, only while all of these hold:
//
//   - authorisation: the ledger holds the driver's money, the hold and the
//     limit for times without the ledger pay for what can still flow before
//     the circuit is open, and the begin register is on disk;
//   - a live loop: the control loop ticks, the output obeys, records can be
//     written, the program does not end;
//   - closed interlocks: no emergency stop, no latched fault, no phase missing
//     or in the wrong order, the house's fuse not overloaded, the charge
//     controller without a fault;
//   - fresh readings: the session meter, and where fitted the site meter, the
//     pilot and the temperature sensor, were heard within Rules.StaleAfter,
//     and the meter's reading is good;
//   - something to charge and to charge with: a vehicle is connected and the
//     setpoint is at least 6 A;
//   - wear: Rules.MinOff since it opened, fewer than Rules.MaxSwitches
//     closings within an hour, and the spread of starts is over.
//
// # Interlocks
//
//	what                    seen by                       then
//	emergency stop          input, or its wire is cut     cut, session ends
//	weld                    > 0.5 A for > 2 s though      latched, shunt trip
//	                        open, or feedback closed
//	contactor does not      feedback open for > 1 s       cut, latched
//	close
//	over-current, charger   > 110 % of the rating on a    cut, latched
//	                        phase for 5 s
//	over-current, house     > 110 % of the fuse on a      0 A, open; returns when
//	                        phase for 5 s                 the house is below it
//	over-temperature        sensor or wallbox; from       less current from
//	                        DerateFrom on                 DerateFrom, at TempMax
//	                                                      cut, latched
//	earth fault             input or wallbox              cut, latched
//	phase loss              < 70 % of nominal for 1 s     cut; returns with the
//	                                                      supply, spread
//	phase order             the meter, if it can tell     cut; returns with it
//	charge controller       pilot E or F                  cut, session ends
//	wallbox                 a fault code of its own       cut, latched
//	stale or suspect meter  age of the last good reading  6 A, later 0 A and open
//	stuck register          stands still while        0 A, open, session ends
//	                        200 Wh have flowed
//	stalled loop            longer than LoopLimit         cut; rests, returns
//
// A latched fault survives a restart, ends the session, refuses the next one
// and is cleared by a person's ClearFault only. Latched faults add up: a
// contactor that welds while it cuts an over-current is found as well.
//
// A lost neutral shows as phases that leave their range and is found as a lost
// phase once one of them falls below 70 %. Phase order is judged only when the
// session meter reports it (Sequence), as Carlo Gavazzi's do; from magnitudes it
// cannot be told, and with any other meter a reversed supply has to be found by
// the electrician's phase-sequence tester. This package
// is in addition to the residual current device, the pilot's own electronics
// and the fuses, never instead of them.
//
// # How it stops
//
// An ordinary stop offers 0 A, waits until less than 1 A flows, at most
// Rules.StopWait, and then opens, so that the contactor does not cut under
// load. Emergency stop, faults and a stalled loop open at once. When readings
// grow stale the offer falls to 6 A, and Rules.StaleOff later the circuit
// opens.
//
// # A test of the relay
//
// Testing closes the circuit without a session, for MaxTest at most, when a
// person who commissions the charger asks for it. Of the conditions above it
// needs all but the hold and the begin register; a vehicle must not be
// connected and nothing may draw current. No current is offered, and nothing
// is recorded but the test.
//
// # A vehicle that gives
//
// Setpoint.Back asks for a power out of the vehicle. It becomes State.Back
// only while the circuit is closed and every condition above holds; only the
// hold need not pay for anything, and no current is offered meanwhile. There is
// no least power to fall back to: whatever is lost, a stale reading included,
// orders 0 W in the same step.
//
// # How it starts
//
// Where many chargers would start at the same moment, at a slot's edge, when a
// tariff changes, when power returns, each waits a random time of up to
// Rules.StartSpread (Great Britain: The Electric Vehicles (Smart Charge
// Points) Regulations 2021, regulation 11, asks for up to 600 s). The machine
// asks for the random time with AskDelay and is answered with Spread, so that
// a recorded sequence of events replays exactly. A person's StartNow ends the
// wait.
package session
