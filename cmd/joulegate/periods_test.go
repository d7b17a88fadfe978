package main

import (
	"testing"
	"time"
)

// Months are those of people's clocks: of 743 and 745 hours in spring and
// autumn, of the other way round south of the equator, and where a zone is not
// a whole number of slots from UTC they begin with the first slot in them.
func TestLocalMonths(t *testing.T) {
	for _, c := range []struct {
		zone  string
		year  int
		month time.Month
		slot  int64
		first string
		hours float64
	}{
		{"Europe/Berlin", 2026, 3, 900, "2026-02-28T23:00:00Z", 743},
		{"Europe/Berlin", 2026, 10, 900, "2026-09-30T22:00:00Z", 745},
		{"Europe/Berlin", 2026, 12, 900, "2026-11-30T23:00:00Z", 744},
		{"America/New_York", 2026, 11, 900, "2026-11-01T04:00:00Z", 721},
		{"Australia/Sydney", 2026, 10, 900, "2026-09-30T14:00:00Z", 743},
		{"Asia/Kathmandu", 2026, 2, 900, "2026-01-31T18:15:00Z", 672},
		{"Asia/Kathmandu", 2026, 2, 3600, "2026-01-31T19:00:00Z", 672},
	} {
		loc, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		b := localMonths(loc, c.year, c.month, 1, c.slot)
		first := time.UnixMilli(b[0].Start(c.slot)).UTC().Format(time.RFC3339)
		if hours := float64(int64(b[1]-b[0])*c.slot) / 3600; first != c.first || hours != c.hours {
			t.Errorf("%s %d-%d: from %s, %g h", c.zone, c.year, c.month, first, hours)
		}
	}
}
