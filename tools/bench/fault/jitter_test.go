package fault

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func BenchmarkJitter(b *testing.B) {
	for _, sel := range [][]load{nil, loads[:1], loads[1:2], loads[2:], loads} {
		name := "none"
		if len(sel) > 0 {
			name = sel[0].name
		}
		if len(sel) > 1 {
			name = "all"
		}
		b.Run(name, func(b *testing.B) {
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			for _, l := range sel {
				run := l.start(b)
				done := make(chan uint64, 1)
				go func() { done <- run(ctx) }()
				defer func() { stop(); <-done }()
			}
			time.Sleep(time.Second)
			res := map[string][]float64{}
			type r struct {
				n string
				v []float64
			}
			out := make(chan r)
			go func() {
				t := time.NewTicker(10 * time.Millisecond)
				var v []float64
				last := time.Now()
				for range 800 {
					<-t.C
					v = append(v, float64(time.Since(last).Microseconds())/1000)
					last = time.Now()
				}
				out <- r{"ticker", v}
			}()
			go func() {
				runtime.LockOSThread()
				if os.Getenv("RR") != "" {
					err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 1, Priority: 10}, 0)
					if err != nil {
						panic(err)
					}
				}
				var v []float64
				last := time.Now()
				for range 800 {
					ts := unix.Timespec{Nsec: 10e6}
					unix.Nanosleep(&ts, nil)
					v = append(v, float64(time.Since(last).Microseconds())/1000)
					last = time.Now()
				}
				out <- r{"nanosleep", v}
			}()
			for range 2 {
				x := <-out
				res[x.n] = x.v
			}
			for n, v := range res {
				slices.Sort(v)
				fmt.Printf("DBG %s %s p50 %.1f p99 %.1f max %.1f\n", name, n, v[len(v)/2], v[len(v)*99/100], v[len(v)-1])
			}
			for b.Loop() {
			}
		})
	}
}
