package main

import (
	"slices"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// at is the price of a local moment in expanded ranges.
func priceIn(t *testing.T, ranges []chain.Tariff, at time.Time) chain.NanoPerWh {
	t.Helper()
	s := chain.SlotAt(at.UnixMilli(), 900)
	i := slices.IndexFunc(ranges, func(r chain.Tariff) bool { return r.From <= s && s <= r.To })
	if i < 0 {
		return 0
	}
	return ranges[i].Retail
}

func berlin(t *testing.T) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// A local table covers days of 23, 24 and 25 hours without a gap, and each of
// its hours is where the clocks on the wall say.
func TestTariffTableOnShortAndLongDays(t *testing.T) {
	loc := berlin(t)
	table, err := parseTable([]byte(`
zone: Europe/Berlin
from: x
to: x
other: {retail: 0.30, feed_in: 0.08}
rules:
  - {from: "02:00", to: "03:00", retail: 0.10, feed_in: 0.05}
  - {days: mon-fri, from: "17:00", to: "20:00", retail: 0.40, feed_in: 0.08}
  - {from: "23:00", to: "01:00", retail: 0.20, feed_in: 0.08}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, day := range []struct {
		date         string
		slots, cheap int
	}{
		{"2026-03-29", 92, 0}, // no hour from two to three
		{"2026-03-30", 96, 4},
		{"2026-10-25", 100, 8}, // it comes twice
	} {
		table.From, table.To = day.date, day.date
		ranges, err := table.expand(900, 0)
		if err != nil {
			t.Fatal(err)
		}
		start, _ := time.ParseInLocation(time.DateOnly, day.date, loc)
		slots, cheap := 0, 0
		for i, r := range ranges {
			if i > 0 && r.From != ranges[i-1].To+1 {
				t.Fatalf("%s: a gap before %d", day.date, r.From)
			}
			slots += int(r.To - r.From + 1)
			if r.Retail == 100_000 {
				cheap += int(r.To - r.From + 1)
			}
		}
		if slots != day.slots || cheap != day.cheap || ranges[0].From != chain.SlotAt(start.UnixMilli(), 900) {
			t.Errorf("%s has %d slots, %d of them cheap, from %d; want %d, %d, from %s", day.date, slots, cheap, ranges[0].From, day.slots, day.cheap, start)
		}
		for clock, want := range map[string]chain.NanoPerWh{"00:30": 200_000, "01:00": 300_000, "12:00": 300_000, "23:45": 200_000} {
			at, _ := time.ParseInLocation("2006-01-02 15:04", day.date+" "+clock, loc)
			if got := priceIn(t, ranges, at); got != want {
				t.Errorf("%s: %d, want %d", at, got, want)
			}
		}
		evening := time.Date(start.Year(), start.Month(), start.Day(), 18, 0, 0, 0, loc)
		want := chain.NanoPerWh(300_000)
		if w := start.Weekday(); w != time.Saturday && w != time.Sunday {
			want = 400_000
		}
		if got := priceIn(t, ranges, evening); got != want {
			t.Errorf("%s: %d, want %d", evening, got, want)
		}
	}
}

// Rules are for the local day on which they begin; dates win over weekdays by
// standing first; begun slots are left alone.
func TestTariffTableRules(t *testing.T) {
	loc := berlin(t)
	table := touTable{Zone: "Europe/Berlin", From: "2026-12-24", To: "2026-12-27", Rules: []touRule{
		{Days: "2026-12-25", Retail: "0.05", FeedIn: "0.01"},
		{Days: "thu", From: "22:00", To: "06:00", Retail: "0.10", FeedIn: "0.01"},
		{Days: "fri-mon", Retail: "0.20", FeedIn: "0.01"},
	}}
	ranges, err := table.expand(900, 0)
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]chain.NanoPerWh{
		"2026-12-24 21:45": 0, "2026-12-24 22:00": 100_000, "2026-12-25 05:00": 50_000, "2026-12-26 05:00": 200_000, "2026-12-27 23:45": 200_000, "2026-12-28 00:00": 0,
	} {
		when, _ := time.ParseInLocation("2006-01-02 15:04", at, loc)
		if got := priceIn(t, ranges, when); got != want {
			t.Errorf("%s: %d, want %d", at, got, want)
		}
	}
	first := ranges[len(ranges)-1].To - 3
	if again, err := table.expand(900, first); err != nil || len(again) != 1 || again[0].From != first {
		t.Errorf("from slot %d: %+v, %v", first, again, err)
	}
	for what, spoil := range map[string]func(*touTable){
		"zone":  func(t *touTable) { t.Zone = "Mars" },
		"from":  func(t *touTable) { t.From = "soon" },
		"days":  func(t *touTable) { t.Rules[0].Days = "someday" },
		"hours": func(t *touTable) { t.Rules[0].From = "25:00" },
		"empty": func(t *touTable) { t.Rules[0].From, t.Rules[0].To = "06:00", "06:00" },
		"price": func(t *touTable) { t.Rules[0].Retail = "cheap" },
		"fine":  func(t *touTable) { t.Rules[0].Retail = "0.1234567" },
		"below": func(t *touTable) { t.Rules[0].FeedIn = "9" },
		"none":  func(t *touTable) { t.Rules = nil },
		"order": func(t *touTable) { t.To = "2026-12-01" },
	} {
		bad := table
		bad.Rules = slices.Clone(table.Rules)
		spoil(&bad)
		if _, err := bad.expand(900, 0); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}
