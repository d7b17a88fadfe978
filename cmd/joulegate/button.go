package main

import (
	"context"
	"time"

	"github.com/joulegate/joulegate/drivers"
)

// How long the commissioning button is held, and how often it is looked at.
const (
	buttonHold = 3 * time.Second
	buttonEach = 50 * time.Millisecond
)

// press tells when a button was held for long enough. One that is active at
// the first look counts only after it was released: a cut or a shorted wire
// begins nothing at every start.
type press struct {
	released bool
	since    time.Time // it is held; zero: it is not, or has counted
}

// see takes a look at the button and reports whether it was held long enough
// now. Each hold counts once.
func (p *press) see(active bool, now time.Time) bool {
	switch {
	case !active:
		p.released, p.since = true, time.Time{}
	case !p.released:
	case p.since.IsZero():
		p.since = now
	case now.Sub(p.since) >= buttonHold:
		p.released, p.since = false, time.Time{}
		return true
	}
	return false
}

// unseen is a look that failed: a hold has to last anew. Whoever goes on
// holding the button does not have to let it go for that.
func (p *press) unseen() { p.since = time.Time{} }

// watchButton begins commissioning mode when somebody holds the button, until
// ctx ends. While the button cannot be read nobody is taken to hold it.
func (g *gateway) watchButton(ctx context.Context, in drivers.Input) error {
	tick := time.NewTicker(buttonEach)
	defer tick.Stop()
	var p press
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		on, err := in.Active()
		if err != nil {
			p.unseen()
			continue
		}
		if p.see(on, time.Now()) {
			g.log.Warn("commissioning mode: relays may be tested and lines scanned", "until", g.commissioning.begin().UTC().Format(time.RFC3339), "by", "button")
			g.station.Note("commissioning.begun", 2, "", "somebody held the commissioning button")
		}
	}
}
