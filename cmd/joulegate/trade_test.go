package main

import (
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
)

// A departure becomes the slot in which the driver leaves, in the quote that
// he signs.
func TestByDeparture(t *testing.T) {
	now := time.Date(2026, 11, 23, 21, 0, 0, 0, berlin(t))
	by := time.Date(2026, 11, 24, 7, 30, 0, 0, now.Location())
	req := panel.QuoteRequest{MaxWh: 8000, PlanOrder: panel.PlanOrder{By: by}}
	set, err := byDeparture(req, 900, now)
	if err != nil {
		t.Fatal(err)
	}
	q := chain.Quote{MaxWh: 8000}
	set(&q)
	if q.By != chain.SlotAt(by.UnixMilli(), 900) || q.Want != 8000 {
		t.Errorf("by %d, want %d", q.By, q.Want)
	}
	req.By = now.Add(time.Minute)
	if _, err := byDeparture(req, 900, now); err == nil {
		t.Error("a departure in this slot was quoted")
	}
	if set, err = byDeparture(panel.QuoteRequest{MaxWh: 5}, 900, now); err != nil {
		t.Fatal(err)
	}
	q = chain.Quote{}
	if set(&q); q.By != 0 || q.Want != 0 {
		t.Errorf("%+v", q)
	}
}
