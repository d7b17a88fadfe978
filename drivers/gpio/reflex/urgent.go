package reflex

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	priority = 10  // of SCHED_RR, 1 to 99: above everything that is not real-time
	niceness = -15 // if there is no permission for that
)

// Urgent gives every thread of this process, and those that they start, the
// highest priority that is permitted, and keeps what they have touched in
// memory. It returns an error if that is an ordinary priority: under load a
// stop may then take longer. Real-time priority needs CAP_SYS_NICE or
// LimitRTPRIO=10 in the unit.
func Urgent() error {
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT) // without permission: gateways have no swap
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	var failed error
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		rr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: priority}
		if err := unix.SchedSetAttr(tid, &rr, 0); err != nil {
			failed = fmt.Errorf("real-time priority: %w (LimitRTPRIO=%d in the unit)", err, priority)
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, niceness)
		}
	}
	return failed
}
