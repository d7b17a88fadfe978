//go:build hil

package hil

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
)

// loss is how many frames the LAN loses, all the time: a bad radio link.
const loss = 0.01

// microgrid boots a machine per processor, one after the other, on one LAN.
// The first founds a microgrid, the others join it.
//
//	north           east            south
//	sun, charger    charger, car    sun
//	   └───────────── hub ────────────┘      10.83.0.1 to 3
func microgrid(t *testing.T, arches ...Arch) ([]*site, *Hub) {
	t.Helper()
	lan := filepath.Join(t.TempDir(), "lan")
	hub, err := NewHub(lan, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	hub.Lose(loss)
	st := neighbourhood(t, len(arches))
	all := make([]*site, len(arches))
	for i, a := range arches {
		all[i] = build(t, st, i, MachineConfig{Arch: a, LAN: lan, Disk: theLab.disk(t, fmt.Sprint("data", i), 128)})
		all[i].unhurried()
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

// unhurried makes a gateway bear that other machines run beside it on the same
// two processors: what solo scenarios measure, reactions within milliseconds,
// is not the matter here.
func (s *site) unhurried() {
	s.yaml.Timing.Tick = config.Duration(100 * time.Millisecond)
	for i := range s.yaml.Meters {
		s.yaml.Meters[i].Interval = config.Duration(2 * time.Second)
	}
	for i := range s.yaml.Chargers {
		s.yaml.Chargers[i].Feedback = ""
	}
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

// record waits until every gateway has signed so many more blocks of its own.
func record(all []*site, n uint64) {
	all[0].t.Helper()
	from := make([]chain.Position, len(all))
	for i, s := range all {
		from[i] = s.own(s)
	}
	for i, s := range all {
		s.until(fmt.Sprintf("%d records after %s", n, from[i]), func(context.Context) (bool, any) {
			p := s.own(s)
			return p.Epoch == from[i].Epoch && p.Number >= from[i].Number+n, p
		})
	}
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
