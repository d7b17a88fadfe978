// Package hil runs the shipped program on emulated hardware and watches it
// from outside: what a relay does is read from the pins of the machine, never
// from what the program says.
//
//	 host                                          QEMU, one Machine
//	┌───────────────────────────┐   chardevs      ┌──────────────────────────┐
//	│ tools/sim/street: meters, │◄─ FTDI, PCI ────│ joulegate (as shipped)   │
//	│ inverter, charger, car    │                 │   ▲ started and watched  │
//	│      ▲ relay, feedback    │◄─ qtest ────────│ PL061: relay, contacts   │
//	│      │                    │◄─ QMP ──────────│ watchdog, registers      │
//	│ scenario (go test)        │◄─ control port ─│ /init = tools/hil/guest  │
//	│      │                    │                 └──────────────────────────┘
//	│ Hub: a LAN with losses    │◄─ netdev stream ── up to three of them
//	└───────────────────────────┘
//
// Scenarios are tests behind the build tag hil; make hil runs them all, and
// make hil RUN=EStop V=1 one of them with everything it says. They wait for
// markers of the guest and edges of pins, never for time to pass. What a
// machine has said is kept in a folder that a failing test names.
//
// docs/HIL.md lists what QEMU cannot show.
package hil
