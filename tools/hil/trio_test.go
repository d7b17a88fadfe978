//go:build hil

package hil

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
)

// TestThreeGuests: three machines form a microgrid over a LAN that loses
// frames, and the sun of two is sold to a car at the third. It charges while
// its gateway is cut off, and while another machine has no power; in the end
// all ledgers are the same.
//
// It has the host to itself: three emulated processors are enough for two.
func TestThreeGuests(t *testing.T) {
	all, hub := microgrid(t, ARM64, ARM64, ARM64)
	north, east, south := all[0], all[1], all[2]
	session := func(id chain.ID) func(ctx context.Context) (panel.Session, error) {
		return func(ctx context.Context) (panel.Session, error) { return east.client.Session(ctx, id) }
	}
	anna := north.driver("anna", 50)
	id := east.charge(anna)
	east.until("energy bought from neighbours", func(ctx context.Context) (bool, any) {
		v, err := session(id)(ctx)
		return err == nil && v.LocalWh > 0, fmt.Sprintf("%+v %v", v, err)
	})

	// East's cable is pulled. Two of three are no majority of more than two
	// thirds: nobody may go on by himself, and everybody goes on recording.
	if err := hub.Cut(east.cfg.MAC, true); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		s.until("a neighbour to be missed", func(ctx context.Context) (bool, any) {
			v, err := s.client.Status(ctx)
			return err == nil && (v.Peers == 0 || s != east && v.Peers == 1), fmt.Sprintf("%+v %v", v, err)
		})
	}
	var frozen [3]int64
	for i, s := range all {
		frozen[i] = s.height()
	}
	record(all, 2)
	east.flows()
	for i, s := range all {
		if h := s.height(); h != frozen[i] {
			t.Errorf("%s went from block %d to %d while nobody had a majority", s.cfg.Name, frozen[i], h)
		}
	}
	before := call(east, session(id)).Wh
	if err := hub.Cut(east.cfg.MAC, false); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	for i, s := range all {
		s.grows(frozen[i])
	}
	t.Logf("all have a new block %s after the heal", time.Since(healed).Round(time.Millisecond))
	east.until("what was charged meanwhile on the ledger", func(ctx context.Context) (bool, any) {
		v, err := session(id)(ctx)
		return err == nil && v.Wh > before, fmt.Sprintf("%+v %v", v, err)
	})

	// South has no power. The others notice, and it comes back.
	south.fail()
	for _, s := range all[:2] {
		s.until("south to be missed", func(ctx context.Context) (bool, any) {
			v, err := s.client.Status(ctx)
			return err == nil && v.Peers == 1, fmt.Sprintf("%+v %v", v, err)
		})
	}
	east.flows()
	south.boot()
	south.start()
	connected(all)
	south.grows(north.height())

	east.stop()
	v := east.settled(id)
	if v.Wh == 0 || v.LocalWh == 0 || v.Paid == 0 {
		t.Errorf("the session ended as %+v", v)
	}
	var sold bool
	for _, m := range call(north, north.client.Members) {
		sold = sold || m.Name != east.cfg.Name && m.SoldLocal > 0
	}
	if !sold {
		t.Error("nobody has sold anything to a neighbour")
	}
	agree(all)
}
