package modbus

import "time"

// Stats is what a line has counted since New.
type Stats struct {
	Opened     uint64 // times the device or connection was opened
	Requests   uint64 // frames sent, fences included
	StrayBytes uint64 // received bytes that belong to no frame
	Unknown    uint64 // frames from units that no device was made for
	Overflows  uint64 // requests refused or pushed out because the queue was full
	Queued     int    // waiting now
	Echo       bool   // the adapter hears what it sends
	Units      map[uint8]UnitStats
}

// UnitStats is what a line has counted for one unit.
type UnitStats struct {
	Requests   uint64 // frames sent, fences included
	Answers    uint64 // trusted answers, exceptions included
	Exceptions uint64
	Timeouts   uint64
	BadFrames  uint64 // checksum, length or header wrong
	Late       uint64 // answers thrown away because their request had been given up
	Foreign    uint64 // frames thrown away that answered nothing at all
	Duplicates uint64 // copies recognised and thrown away
	Suspect    uint64 // answers thrown away because they could not be attributed
	Resyncs    uint64 // fences that restored trust
	Backoffs   uint64 // times the unit was declared silent
	Refused    uint64 // requests refused while it was backed off
	Down       bool   // backed off now

	Turnaround time.Duration // typical time to an answer, without wire time
	Slowest    time.Duration // learned longest time to an answer, slowly decaying
}

// Stats returns a snapshot. It is safe for concurrent use.
func (l *Line) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.published
	s.Queued = len(l.queue.items)
	s.Overflows = l.overflows
	s.Units = make(map[uint8]UnitStats)
	for id, u := range l.units {
		if u == nil {
			continue
		}
		us := u.published
		us.Refused, us.Down = u.refused, u.down
		s.Units[uint8(id)] = us
	}
	return s
}

// publish makes the owner's counters visible.
func (l *Line) publish(u *unit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.published = l.count
	l.published.Echo = l.echo.on
	u.count.Slowest = u.guard.slow
	u.published = u.count
}
