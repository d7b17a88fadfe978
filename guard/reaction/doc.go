// Package reaction carries out what guard/policy has decided, and undoes it.
//
//	Do(Reaction) ─┬─ block       ─► Filter: the packet filter, by address, with an expiry
//	              ├─ kill        ─► pidfd: one process that was looked at again
//	              ├─ quarantine  ─► Peers: a neighbour's connection
//	              └─ safe_stop   ─► Chargers: the station's ordinary stop
//
// The policy decides by what a finding says. What it says may be old, or made
// up: a process number is given to another process, a file is replaced. So
// everything is looked at once more here, by what is true now, and refused
// when in doubt. A refusal is an error: it is put on record.
//
// # Killing
//
// A process is opened as a pidfd first, which goes on meaning the same process
// whatever becomes of its number. Then its start time, its executable and the
// hash of that are compared with the finding, and only then is it ended. The
// following are never: init, kernel threads, this program whatever it runs as
// (the station, the reflex, the sensors), whatever is on the list of
// executables, and the daemons that a gateway is reached and fed by.
package reaction
