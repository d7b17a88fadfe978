package consensus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain/ledger"
)

// four starts a microgrid of four gateways in this process with the timing
// that gateways use, and waits until all vote.
func four(b *testing.B) *world {
	w := newWorld(b, 4)
	w.timing = Timing{}
	for _, n := range w.nodes {
		n.start()
	}
	for i, n := range w.nodes {
		n.submit(w.mint(i, "driver", 1))
	}
	for _, n := range w.nodes {
		n.until("consensus", func(s Status) bool { return !s.CatchingUp && s.Peers == 3 })
	}
	return w
}

// BenchmarkFinality4 submits 20 transactions a second, in turn through four
// gateways, and reports how long it takes until each is final.
func BenchmarkFinality4(b *testing.B) {
	w := four(b)
	var mu sync.Mutex
	var took []time.Duration
	var all sync.WaitGroup
	tick := time.NewTicker(time.Second / 20)
	defer tick.Stop()
	i := 0
	for b.Loop() {
		<-tick.C
		n, tx := w.nodes[i%4], w.mint(i%operators, "driver", 1)
		i++
		all.Go(func() {
			t0 := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if r, err := n.eng.Submit(ctx, tx); err != nil || r.Code != ledger.CodeOK {
				b.Errorf("%+v, %v", r, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(t0))
		})
	}
	all.Wait()
	slices.Sort(took)
	at := func(p int) float64 { return float64(took[(len(took)-1)*p/100].Microseconds()) / 1000 }
	b.ReportMetric(at(50), "p50-ms")
	b.ReportMetric(at(95), "p95-ms")
}

// BenchmarkBurst4 hands 4,000 transactions to four gateways at once and
// reports how many a second become final.
func BenchmarkBurst4(b *testing.B) {
	const burst = 4000
	w := four(b)
	var spent time.Duration
	bursts := 0
	for b.Loop() {
		bursts++
		txs := make([][][]byte, operators) // each operator's in order
		for i := range burst {
			txs[i%operators] = append(txs[i%operators], w.mint(i%operators, "driver", 1))
		}
		want := w.nodes[0].balance("driver") + burst
		t0 := time.Now()
		for op := range operators {
			go func() {
				for _, tx := range txs[op] {
					if err := w.nodes[op%4].eng.SubmitAsync(tx); err != nil {
						b.Error(err)
					}
				}
			}()
		}
		w.nodes[0].until("burst", func(Status) bool { return w.nodes[0].balance("driver") == want })
		spent += time.Since(t0)
	}
	b.ReportMetric(float64(bursts*burst)/spent.Seconds(), "tx/s")
}

// BenchmarkCatchUp brings a gateway that has nothing to the end of 1,000
// blocks of a transaction each: by executing them, and by a snapshot with what
// comes after it.
func BenchmarkCatchUp(b *testing.B) {
	w := newWorld(b, 1)
	w.timing.Commit = time.Millisecond
	old := w.nodes[0].start()
	for old.eng.Status().Height < 1000 {
		old.submit(w.mint(0, "driver", 1))
	}
	for name, behind := range map[string]int64{"replay": 1 << 40, "snapshot": 500} {
		b.Run(name, func(b *testing.B) {
			var spent time.Duration
			for i := range b.N {
				w.snapshots(behind)
				change := w.change
				w.change = func(n *gateway, c *Config) { change(n, c); c.lookEvery = 0 }
				n := w.newGateway(fmt.Sprintf("%s%d", name, i))
				t0 := time.Now()
				n.start()
				if name == "snapshot" {
					n.caughtUp()
				}
				n.reach(old.eng.Status().Height)
				spent += time.Since(t0)
				n.stop()
			}
			b.ReportMetric(spent.Seconds()/float64(b.N), "s")
		})
	}
}
