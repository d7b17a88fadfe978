//go:build hil

package hil

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
)

// loss is how many frames the LAN loses, all the time: a bad radio link.
const loss = 0.01

// trio is three machines on one LAN that have formed a microgrid.
//
//	north           east            south
//	sun, charger    charger, car    sun
//	   └───────────── hub ────────────┘      10.83.0.1 to 3
func trio(t *testing.T) ([]*site, *Hub) {
	t.Helper()
	lan := filepath.Join(t.TempDir(), "lan")
	hub, err := NewHub(lan, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	hub.Lose(loss)
	st := neighbourhood(t, 3)
	all := make([]*site, 3)
	for i := range all {
		all[i] = build(t, st, i, MachineConfig{Arch: ARM64, LAN: lan, Disk: theLab.disk(t, fmt.Sprint("data", i), 128)})
		if i == 0 {
			all[i].found("--slot", "20s")
		} else {
			all[i].join(all[0])
		}
		all[i].start()
	}
	connected(all)
	return all, hub
}

// join makes the gateway a member by an invitation of another one.
func (s *site) join(from *site) {
	s.t.Helper()
	s.install()
	s.run("grid", "join", strings.TrimSpace(from.run("grid", "invite")))
}

// connected waits until all are connected with all, and know it.
func connected(all []*site) {
	all[0].t.Helper()
	for _, s := range all {
		s.until("neighbours", func(ctx context.Context) (bool, any) {
			v, err := s.client.Status(ctx)
			return err == nil && v.Peers == len(all)-1 && v.Members == len(all), fmt.Sprintf("%+v %v", v, err)
		})
	}
}

// height of a gateway's ledger.
func (s *site) height() int64 {
	s.t.Helper()
	return call(s, s.client.Status).Height
}

// grows waits until the ledger is past a height.
func (s *site) grows(past int64) {
	s.t.Helper()
	s.until(fmt.Sprintf("block after %d", past), func(ctx context.Context) (bool, any) {
		v, err := s.client.Status(ctx)
		return err == nil && v.Height > past, fmt.Sprint(v.Height, err)
	})
}

// own is the newest block of a gateway's own chain, as another one has it.
func (s *site) own(at *site) (p chain.Position) {
	s.t.Helper()
	for _, m := range call(at, at.client.Members) {
		if m.Name == s.cfg.Name {
			p = m.Newest
		}
	}
	return p
}

// records waits until a gateway has signed so many more blocks of its own.
func (s *site) records(n uint64) {
	s.t.Helper()
	from := s.own(s)
	s.until(fmt.Sprintf("%d records after %s", n, from), func(context.Context) (bool, any) {
		p := s.own(s)
		return p.Epoch == from.Epoch && p.Number >= from.Number+n, p
	})
}

// agree compares the states of all ledgers at a height that all have reached,
// and executes every block of each again.
func agree(all []*site) {
	t := all[0].t
	t.Helper()
	var height int64
	for _, s := range all {
		height = max(height, s.height())
	}
	var first panel.StateHash
	for i, s := range all {
		s.grows(height - 1)
		h := call(s, func(ctx context.Context) (panel.StateHash, error) { return s.client.StateHash(ctx, height) })
		if i == 0 {
			first = h
		} else if h != first {
			t.Errorf("at height %d %s has state %s, %s has %s", height, all[0].cfg.Name, first.StateHash, s.cfg.Name, h.StateHash)
		}
		r := call(s, func(ctx context.Context) (panel.VerifyReport, error) { return s.client.LedgerVerify(ctx, nil) })
		if len(r.Violations) > 0 || r.FromHeight != 1 || r.Height < height {
			t.Errorf("%s: %+v", s.cfg.Name, r)
		}
	}
	t.Logf("all have state %s after block %d", first.StateHash, height)
}

// TestThreeGuests: three machines form a microgrid over a LAN that loses
// frames, and the sun of two is sold to a car at the third. It charges while
// its gateway is cut off, and while another machine has no power; in the end
// all ledgers are the same.
//
// It has the host to itself: three emulated processors are enough for two.
func TestThreeGuests(t *testing.T) {
	all, hub := trio(t)
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
	for _, s := range all {
		s.records(2)
	}
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
