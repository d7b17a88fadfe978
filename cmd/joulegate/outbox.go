package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter/slot"
	"github.com/joulegate/joulegate/p2p"
)

// outbox takes records to the disk, to the neighbours and to the ledger, in
// this order. What is on the disk reaches the others sooner or later: the
// ledger's own view of this gateway's chain is the cursor, so nothing is
// skipped and nothing needs to be remembered.
type outbox struct {
	self    chain.Key
	topic   string
	journal *journal.Journal
	net     *p2p.Node
	ledger  *consensus.Engine
	log     *slog.Logger
	wake    chan struct{}  // holds a token while something may be submitted
	told    chain.Position // of a refusal that was logged, so that it is logged once
	open    chan struct{}  // closed when the journal knows where this chain continues
	online  func(ok bool)  // told whether the ledger takes own blocks
	stored  func()         // called when own blocks are on the disk
}

const (
	submitBatch = 64               // blocks handed to the ledger at a time
	submitRetry = 10 * time.Second // a block that is not committed by then is submitted again
	submitPoll  = time.Second
	// A ledger that takes none of the waiting blocks for so long cannot be
	// reached, whatever the reason.
	offlineAfter = 60 * time.Second
	// The newest own blocks are where records are looked for that may have been
	// appended before a crash: a slot's, and what the guard has said meanwhile.
	ownNewest = 256
)

// Unsent implements station.Outbox. A record that is on the chain longer than
// ownNewest blocks is sent again, and the ledger knows it.
func (o *outbox) Unsent(records []chain.Record) (unsent []chain.Record, err error) {
	if len(records) == 0 {
		return nil, nil
	}
	blocks, err := o.journal.OwnNewest(ownNewest)
	if err != nil {
		return nil, err
	}
	sent := map[chain.Hash]bool{}
	for _, b := range blocks {
		for _, r := range b.Records {
			sent[chain.Sum(chain.Marshal(r))] = true
		}
	}
	for _, r := range records {
		if !sent[chain.Sum(chain.Marshal(r))] {
			unsent = append(unsent, r)
		}
	}
	return unsent, nil
}

// Keep implements station.Outbox.
func (o *outbox) Keep(l slot.Leaves) error { return o.journal.PutReadings(l.Root, l.Data) }

// Append implements station.Outbox.
func (o *outbox) Append(ctx context.Context, records []chain.Record) error {
	select {
	case <-o.open: // nothing is signed before the neighbours have been asked
	case <-ctx.Done():
		return ctx.Err()
	}
	blocks, err := o.journal.Append(records)
	if err != nil {
		return err
	}
	for _, b := range blocks {
		// Nobody may be listening; neighbours catch up by streams.
		if err := o.net.Publish(ctx, o.topic, b.Raw); err != nil {
			o.log.Debug("block not gossiped", "block", b.Position(), "err", err)
		}
	}
	o.nudge()
	o.stored()
	return nil
}

func (o *outbox) nudge() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run submits own blocks to the ledger until ctx ends.
func (o *outbox) run(ctx context.Context) error {
	var sent, head chain.Position
	var since time.Time
	moved, online := time.Now(), true
	tick := time.NewTicker(submitPoll)
	defer tick.Stop()
	for {
		var h ledger.Head
		if err := o.ledger.View(func(st ledger.State) { h, _ = ledger.HeadOf(st, o.self) }); err == nil {
			if h.Position != head {
				head, since, moved = h.Position, time.Now(), time.Now()
			}
			next := o.journal.Next()
			if waiting := next.Number > 1 && h.Position.Less(chain.Position{Epoch: next.Epoch, Number: next.Number - 1}); !waiting {
				moved = time.Now()
			}
			if ok := time.Since(moved) < offlineAfter; ok != online {
				online = ok
				o.log.Warn("ledger", "takes own blocks", ok, "newest committed", h.Position, "next", next)
				o.online(ok)
			}
			if sent.Less(head) || time.Since(since) > submitRetry {
				sent, since = head, time.Now()
			}
			sent = o.submit(sent)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-tick.C:
		}
	}
}

// submit hands over what comes after sent and returns the last block taken.
func (o *outbox) submit(sent chain.Position) chain.Position {
	blocks, err := o.journal.OwnAfter(sent, submitBatch)
	if err != nil {
		o.log.Error("own blocks cannot be read", "err", err)
		return sent
	}
	for _, b := range blocks {
		err := o.ledger.SubmitAsync(b.Raw)
		var refused *consensus.Rejected
		switch {
		case err == nil:
		case errors.As(err, &refused) && refused.Code == ledger.CodeDuplicate:
		case errors.As(err, &refused):
			// A gap closes by itself when the earlier block is committed;
			// anything else is worth a person's look.
			// A newcomer is no member until its ledger has caught up.
			waiting := refused.Code == ledger.CodeGap || refused.Code == ledger.CodeNotMember && o.ledger.Status().CatchingUp
			if !waiting && o.told != b.Position() {
				o.told = b.Position()
				o.log.Warn("the ledger refuses a block of this gateway", "block", b.Position(), "code", refused.Code, "why", refused.Info)
			}
			return sent
		default:
			o.log.Debug("block not submitted yet", "block", b.Position(), "err", err)
			return sent
		}
		sent = b.Position()
	}
	return sent
}
