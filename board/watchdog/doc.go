// Package watchdog lets others end charging when this program no longer can.
//
// A program cannot notice that it hangs. Three others can, each outside of it,
// and each acts when it hears nothing for a while:
//
//	                          ┌─► /dev/watchdogN ── silent ──► the board is reset
//	probes ─► verified? ─yes──┼─► systemd ───────── silent ──► killed, safe-state, restarted
//	 the loop's progress      └─► heartbeat pin ─── still ───► the relay driver drops out
//	               └─no─► nothing is fed
//
// What is fed is proof, not time. A Probe counts work that was done; the
// station's counts turns of the control loop in which every contact was read,
// every charger decided about and every command obeyed. Only growth counts:
// a hardware watchdog that is fed by a timer watches the timer.
//
// # Three different times
//
// The heartbeat moves at most ten times a second and only when every probe has
// grown since it moved last, so a relay driver with a monostable of half a
// second (or a charge pump) drops out that long after the loop has stopped,
// whatever this process, the kernel or the processor do. systemd is told three
// times per WatchdogSec, and the hardware four times per timeout: they are
// for a hang that does not mend itself.
//
// # Ends
//
// On an orderly end, after the relays are open, the hardware is disarmed (the
// "magic close" of Documentation/watchdog/watchdog-api.rst) and the heartbeat
// rests low. On any other, a crash, a kill, an error of the control loop, the
// hardware stays armed: either a restarted gateway feeds it in time, or the
// board is reset.
package watchdog
