// Package reflex opens relays from a process of its own.
//
// A program that is at its limit answers late, however well it is written: a
// thread with real-time priority wakes in time, and then waits for Go's
// scheduler, whose processors all belong to threads that the kernel has put
// aside. Measured with a ledger burst, a guard replay, a scan and a busy
// thread per processor on two cores: a watch of 10 ms in the same process was
// up to 160 ms late, one in a process beside it 6 ms.
//
//	gateway: as busy as it likes               reflex: does this, and nothing else
//	┌───────────────────────────────┐          ┌──────────────────────────────────┐
//	│ station ─► gpio.Relay ─► Client ──────────► Serve ─► pins: outputs, inputs   │
//	│    ▲                       │  │ commands │   │   real-time priority          │
//	│    └── trip ◄──────────────┘ ◄───────────────┘   a look every 10 ms          │
//	│ verified turns ─► lease ═══════ page ══════► opens everything when it ends   │
//	│ Input.Active ◄── levels ═══════ page ═══════ levels of all inputs            │
//	└───────────────────────────────┘          └──────────────────────────────────┘
//
// The reflex can only open. It opens an output
//
//   - when a contact that guards it (emergency stop, earth fault) is active or
//     cannot be read, at once, and tells the gateway which one it was;
//   - when the lease ends: the gateway renews it with each verified turn of
//     its control loop, in memory that both share, so a gateway that hangs, is
//     stopped or is starved loses its relays;
//   - when the gateway is gone: the socket between them closes.
//
// It closes one only when it is told to by somebody who knows of every time
// that the reflex has opened it (a command carries their number), while the
// lease is fresh and no contact that guards it is active.
//
// If the reflex itself dies, its pins are given back; what a kernel then does
// with an output differs (docs/RELAYS.md). The Client says so, and whoever owns
// it makes the outputs safe and ends.
package reflex
