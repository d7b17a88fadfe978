package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/joulegate/joulegate/board/mqtt"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
)

// Two sources of events can be read again: the ledger's blocks, which are told
// before their state is saved and again when they are executed again, and this
// gateway's own blocks in the journal. The spool holds how far each was read.
const (
	ledgerSource = "ledger"
	ownSource    = "own"
	// A gateway that has never told events of the ledger does not begin with
	// its past.
	newsFor = time.Hour
	ownPage = 64 // own blocks read at a time
)

// ledgerEvents takes what a block of the ledger did. The ledger waits for it.
func (g *gateway) ledgerEvents(height int64, at time.Time, all []ledger.Event) {
	read, known := g.spool.Read(ledgerSource)
	var upTo int64
	if _, err := fmt.Sscan(read, &upTo); known && (err != nil || height <= upTo) || !known && time.Since(at) > newsFor {
		return
	}
	if len(all) == 0 {
		g.spool.Skip(ledgerSource, fmt.Sprint(height))
		return
	}
	events := make([]mqtt.Event, len(all))
	for i, x := range all {
		severity := mqtt.Info
		if lv := eventLevel(x.Code); lv >= slog.LevelError {
			severity = mqtt.Alarm
		} else if lv >= slog.LevelWarn {
			severity = mqtt.Warning
		}
		events[i] = mqtt.Event{Kind: x.Code, Severity: severity, Time: at, Data: map[string]any{"source": ledgerSource, "subject": x.Subject, "detail": x.Detail, "height": height}}
	}
	g.tellEvents(ledgerSource, fmt.Sprint(height), events)
}

// ownEvents takes what this gateway has put on record since it was asked last.
func (g *gateway) ownEvents() {
	g.telling.Lock()
	defer g.telling.Unlock()
	read, known := g.spool.Read(ownSource)
	var at chain.Position
	if !known {
		at = g.journal.Heads()[g.self] // its past is no news
		at.Number = max(at.Number, 1) - 1
	} else if _, err := fmt.Sscanf(read, "%d.%d", &at.Epoch, &at.Number); err != nil {
		g.log.Error("events not told", "err", fmt.Errorf("own blocks read up to %q: %w", read, err))
		return
	}
	for {
		blocks, err := g.journal.OwnAfter(at, ownPage)
		if err != nil {
			g.log.Error("events not told", "err", err)
			return
		}
		for _, b := range blocks {
			var events []mqtt.Event
			for _, r := range b.Records {
				var e chain.Event
				if r.Kind != chain.KindEvent || chain.Unmarshal(r.Body, &e) != nil {
					continue
				}
				events = append(events, mqtt.Event{
					Kind: e.Code, Severity: mqtt.Severity(e.Severity), Time: time.UnixMilli(e.At),
					Data: map[string]any{"source": ownSource, "subject": e.Subject, "text": e.Text},
				})
			}
			at = b.Position()
			upTo := fmt.Sprintf("%d.%d", at.Epoch, at.Number)
			if len(events) == 0 {
				g.spool.Skip(ownSource, upTo)
				continue
			}
			g.tellEvents(ownSource, upTo, events)
		}
		if len(blocks) < ownPage {
			return
		}
	}
}

func (g *gateway) tellEvents(source, upTo string, events []mqtt.Event) {
	if err := g.spool.Add(source, upTo, events...); err != nil {
		g.log.Error("events not told", "source", source, "err", err)
	}
}
