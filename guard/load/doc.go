// Package load watches the machine: processors, memory, heat, disk, clock and
// the agent's own program.
//
//	/proc, /sys ──► Sample every 10 s ──► Detector ──► findings
//	                                         │
//	                 what is ordinary here ◄─┘ learned, EWMA
//
// A gateway is a machine of habits: it does the same today as yesterday. The
// detector learns the mean and the spread of its work as exponentially
// weighted averages and adds up what exceeds them (CUSUM, Page 1954): a long
// small rise counts as much as a short high one, and a single peak counts for
// nothing. While something is out of the ordinary nothing is learned from it,
// for up to [Relearn].
//
// A program that computes without pause, is on no list and talks to the
// network is taken for a miner, whatever its name.
//
// # Where the figures come from
//
// Work and programs: /proc. Waiting: PSI (Linux 4.20; Raspberry Pi OS boots
// with psi=1 only). Heat: thermal zones. Throttling: the Raspberry Pi's
// firmware (get_throttled). Writes: the block device's statistics; an eMMC
// also tells its own wear (JEDEC JESD84-B51, PRE_EOL_INFO). What is missing is
// named in the coverage.
package load
