// Package board holds the words for a gateway as an appliance: what the
// hardware is (Board, Pin, Bus, Rating) and what the appliance is doing at
// this moment (Snapshot).
//
// A board is data, not code. One file in board/boards says which lines exist,
// which level energises a relay, and how much current the terminals carry:
//
//	          ┌────────────── Board ──────────────┐
//	RELAY1 ◄──┤ Pin{output, active high, safe off} │
//	IN1    ──►┤ Pin{input, active low, pull up}    ├──► Rating{16 A, 3 phases}
//	RS-485 ◄─►┤ Bus{/dev/ttyUSB0}                  │
//	          └───────────────────────────────────┘
//
// # Levels and states
//
// A level is a voltage, a state is a meaning. Everything above drivers/gpio
// speaks of states (closed, active); a pin's polarity turns one into the
// other in exactly one place. The safe state of an output is the state it
// takes when nobody drives it: for every relay that is open.
//
// # Ratings
//
// A rating is a limit of the hardware. Configuration may lower it and never
// raise it.
package board
