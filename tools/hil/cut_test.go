//go:build hil

package hil

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
)

// cuts is how often the power fails, over all machines that it fails for.
const (
	cuts        = 50
	cutMachines = 2
	// A payment takes a machine about a second, from the request until the
	// block that holds it is on the disk and the answer is out.
	longestWrite = 1500 * time.Millisecond
)

// TestPowerCut: the machine is killed while it writes, again and again. What
// somebody was told to be done is there afterwards.
func TestPowerCut(t *testing.T) {
	for n := range cutMachines {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, uint64(n)))
			s, anna := solo(t, MachineConfig{}, nil)
			// What anna was told to have, and what was ever asked to be paid to
			// her: a block of before the cut may become final after it.
			paid, asked, lost := 50, 50, 0
			for cut := range cuts / cutMachines {
				// One more euro, acknowledged or not when the power fails.
				asked++
				ctx, stop := context.WithCancel(t.Context())
				acknowledged := make(chan error, 1)
				go func() { acknowledged <- s.mint(ctx, anna, 1, fmt.Sprint("CUT-", cut)) }()
				select {
				case err := <-acknowledged:
					if err != nil {
						t.Fatalf("a payment was refused: %v", err)
					}
					paid++
				case <-time.After(time.Duration(rng.Int64N(int64(longestWrite)))): // mid-write
					lost++
				}
				s.fail()
				stop()
				s.boot()
				s.start()
				var got int
				s.until("account", func(ctx context.Context) (bool, any) {
					a, err := s.client.Account(ctx, anna.Account())
					got = int(a.Balance / 1e9)
					return err == nil && got >= paid, fmt.Sprint(got, err)
				})
				if got > asked {
					t.Fatalf("cut %d: %d euro, %d were paid in", cut, got, asked)
				}
				paid = got
			}
			t.Logf("%d of %d cuts before the answer", lost, cuts/cutMachines)
			r := call(s, func(ctx context.Context) (panel.VerifyReport, error) { return s.client.LedgerVerify(ctx, nil) })
			if len(r.Violations) > 0 || r.FromHeight != 1 || r.StateHash == (chain.Hash{}) {
				t.Errorf("after %d cuts: %+v", cuts/cutMachines, r)
			}
		})
	}
}
