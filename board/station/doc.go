// Package station is the control loop of a gateway: the one goroutine that
// owns sessions and actuators.
//
// It decides nothing itself. What a charger may do is decided by the pure
// packages meter/session and meter/setpoint, what a slot's record says by
// meter/slot. The station gives them readings, contacts and time, and carries
// out what they answer:
//
//	poller ──Reading──► mailbox ─┐                      ┌─► relay (guarded)
//	ledger ──LedgerSession──►────┤   ┌─────────────┐    ├─► limiter worker ─► bus
//	people ──Start, Stop──► queue┼──►│  the loop   ├────┤
//	contacts ◄──read each tick───┘   └──────┬──────┘    └─► snapshot
//	                                        │ records
//	                                        ▼
//	                                   scribe: Outbox.Keep, Store.Save, Outbox.Append
//
// The loop never waits for a bus or a disk: both have goroutines of their
// own, so that an emergency stop is seen within a tick whatever they do.
//
// # From wish to current
//
//	mode, plan, sun ─► setpoint ─wish─► circuit ─grant─► session ─► relay, offer
//	                                       ▲                ▲
//	            fuses, other chargers, utility      interlocks, hold, meters
//
// A charger has a contactor of this board, or it is a wallbox that switches by
// itself and is led by its limit alone. A limiter worker tells the device what
// is wanted, beats its heart and looks at its state. When the loop stalls it
// says 0 A once and then nothing, so that the device's own failsafe works too.
//
// # What happened and why
//
// Each switching with its cause, each fault, trip and doubted meter, each jump
// of the clock becomes a chain.Event in this gateway's own block. What repeats
// is counted instead (see events.go for the limits).
//
// # Vehicles that give
//
// Where Charger.Discharge is set, a session whose driver has signed that he
// sells gives what it has promised firmly (Duties), slot by slot, and what the
// house draws if that is wanted. meter/discharge decides how much, above the
// owner's floor; meter/session has the last word. The installer's permit is
// asked at each turn. The limiter's worker orders the power and repeats it, so
// that a device that hears nothing more ends it by itself.
//
// # Journal first
//
// A record is saved with the state it belongs to, then appended to the outbox,
// then acted upon. A crash between any two of these repeats the append after
// the restart, with the same bytes: records name themselves by (meter, page)
// and (session, sequence), and the second one changes nothing. While records
// cannot be written nobody is charged.
//
//	SessionOpen on disk ─► ledger holds ─► SessionMeter 1 on disk ─► relay closes
//	                                       SessionMeter n each slot's end
//	relay open, last reading ─► receipt ─► SessionStop on disk
//
// # Safe by default
//
// The contacts that open a relay, emergency stop and earth fault, are watched
// by a process beside this one (drivers/gpio/reflex), which opens the relay
// itself and tells (Tripped): the loop wakes and learns what happened. That
// process opens everything, too, when it does not hear of verified turns
// (Config.Verified). A fault that only a meter can see is acted upon when its
// reading arrives, one poll period later at most.
//
// Every actuator is halted before the loop starts and after it ends, by
// return, by panic and by shutdown. A watchdog goroutine halts all of them
// when the loop has not ticked for Config.Watchdog and keeps them halted until
// the loop has ticked again for a while. What no program can promise about
// itself (kill -9, loss of power) is the board's: see package board on safe
// levels.
package station
