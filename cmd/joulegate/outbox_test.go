package main

import (
	"crypto/ed25519"
	"fmt"
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/journal"
)

// TestRecordsOfBeforeACrashAreNotSentTwice: of what the station had on its way
// when the gateway was killed, only what is not on the own chain goes there.
func TestRecordsOfBeforeACrashAreNotSentTwice(t *testing.T) {
	seed := chain.Sum([]byte("north"))
	dir, cfg := t.TempDir(), journal.Config{ChainID: "street", Key: ed25519.NewKeyFromSeed(seed[:]), Fresh: true}
	j, err := journal.Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var pages []chain.Record
	for page := range uint64(4) {
		pages = append(pages, chain.NewRecord(chain.KindMeter, chain.MeterRecord{Slot: chain.Slot(page), Meter: "house", Role: chain.RoleConnection, Page: page + 1}))
	}
	if _, err := j.Append(pages[:1]); err != nil {
		t.Fatal(err)
	}
	// Two slots' records at once, as after a start for which neighbours were asked for long.
	if _, err := j.Append(pages[1:3]); err != nil {
		t.Fatal(err)
	}
	for i := range 5 { // the guard goes on
		if _, err := j.Append([]chain.Record{chain.NewRecord(chain.KindEvent, chain.Event{Code: fmt.Sprint("guard.", i), Severity: 1})}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Fresh = false
	if j, err = journal.Open(dir, cfg); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	o := outbox{journal: j}
	for from, want := range []int{1, 1, 1, 1, 0} { // all, ..., only the last, none
		unsent, err := o.Unsent(pages[from:])
		if err != nil || len(unsent) != want {
			t.Errorf("of records %d to 3 %d are unsent, want %d (%v)", from, len(unsent), want, err)
			continue
		}
		var m chain.MeterRecord
		if want == 1 && (chain.Unmarshal(unsent[0].Body, &m) != nil || m.Page != 4) {
			t.Errorf("page %d is unsent", m.Page)
		}
	}
}
