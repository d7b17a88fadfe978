// Package poll judges what a meter says and decides when to ask it again.
//
//	            +--------- State (a value) ---------+
//	            v                                   |
//	outcome -> Step -> Reading with quality, reason and page
//	(values | error | nothing, now)
//
// # Gate
//
// Energy registers are money. A reading is Good only if every energy register
// continues the last good one: it did not go back, did not fall to zero, did
// not jump further than the connection could have carried in the time, and is
// a number. Anything else is Suspect, says why, and never becomes the base
// that later readings are compared with; so a meter that reboots and shows
// zero for a while is Good again as soon as it shows its true count.
//
//	register  100.0  100.2  0.0      0.0      100.3  900.0    100.4
//	quality   good   good   suspect  suspect  good   suspect  good
//
// The first value of a register is believed until the next one contradicts it.
// If all registers are zero at first, they must start to count or stay so for
// ZeroHold, because meters show zero while they boot. A register that really went back (another
// meter behind the same address) stays Suspect until a person confirms it:
// Rebase.
//
// # Truth
//
// Two more things are held against a reading. Who the device is (serial
// number, address, transformer ratios) is pinned when it is first told, and a
// change makes readings Suspect until a person confirms it. And registers are
// compared with power: one that is stuck, or runs at another pace, is Suspect
// until the two agree again.
//
// # Silence
//
// A device that does not answer is asked again after 1, 2, 4 .. 60 s, and its
// last values are handed on as Stale once they are older than StaleAfter.
//
// Everything here is pure: time is a value, State can be stored and copied.
package poll
