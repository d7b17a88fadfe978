// Command soak drives the ledger with a large neighbourhood in which
// everything goes wrong, for days of simulated time, and prints a seed that
// replays what it finds.
//
//	make soak                                     a month of 1,000 homes and 200 cars
//	make soak ARGS='-for 10m -homes 60 -cars 20'  as long as one likes
//	make soak ARGS='-seed 7 -slots 300'           the same again
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/tools/sim/microgrid"
)

func main() {
	var (
		seed   = flag.Uint64("seed", 0, "replays a walk; 0: a new one")
		homes  = flag.Int("homes", 1000, "houses, 2..1000")
		cars   = flag.Int("cars", 200, "cars")
		slots  = flag.Int("slots", 31*96, "slots of fifteen minutes to live through")
		faults = flag.Float64("faults", 0.002, "faults per home, session and slot")
		full   = flag.Int("full", 480, "check the whole state every so many blocks (what a block changed is checked after each)")
		twin   = flag.Bool("twin", false, "execute every block on a second replica and compare the states at every full check")
		limit  = flag.Duration("for", 0, "stop after this long; 0: when the slots are over")
		out    = flag.String("out", ".", "folder for the block after which something was wrong")
		prof   = flag.String("cpuprofile", "", "write a CPU profile to this file")
	)
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "soak takes flags only")
		os.Exit(2)
	}
	if *prof != "" {
		f, err := os.Create(*prof)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		defer pprof.StopCPUProfile()
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	cfg := microgrid.Config{Seed: *seed, Homes: *homes, Cars: *cars, Faults: *faults, Full: *full}
	if *twin {
		cfg.Twin = ledger.NewMapState()
	}
	if err := run(cfg, *slots, *limit, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(cfg microgrid.Config, slots int, limit time.Duration, out string) error {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	replay := fmt.Sprintf("-seed %d -homes %d -cars %d -faults %g -full %d -slots %d", cfg.Seed, cfg.Homes, cfg.Cars, cfg.Faults, cfg.Full, slots)
	fmt.Println("replay with", replay)
	store := &microgrid.Store{}
	cfg.State = store
	began, told := time.Now(), time.Now()
	w, err := microgrid.New(cfg)
walking:
	for i := 0; err == nil && i < slots; i++ {
		if err = w.Slot(); err != nil {
			break
		}
		if s := w.Stats(); time.Since(told) > 10*time.Second {
			told = time.Now()
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			fmt.Printf("%8s  slot %d of %d, %d blocks (%.0f/s), %d transactions (%.0f/s), %d sessions, state %d MB, heap %d MB\n",
				time.Since(began).Round(time.Second), s.Slots, slots, s.Blocks, float64(s.Blocks)/time.Since(began).Seconds(),
				s.Txs, float64(s.Txs)/time.Since(began).Seconds(), s.Sessions, store.Bytes()>>20, mem.HeapAlloc>>20)
		}
		select {
		case <-interrupted:
			break walking
		default:
		}
		if limit > 0 && time.Since(began) > limit {
			break
		}
	}
	if err == nil {
		err = w.Finish()
	}
	if v := (*microgrid.Violation)(nil); errors.As(err, &v) {
		path := filepath.Join(out, fmt.Sprintf("soak-%d-block-%d.json", cfg.Seed, v.Block.Height))
		if werr := microgrid.Save(path, cfg, v); werr != nil {
			path = werr.Error()
		}
		return fmt.Errorf("%w\nthe block and its transactions: %s\nreplay with %s", err, path, replay)
	}
	if err != nil {
		return err
	}
	s := w.Stats()
	took := time.Since(began)
	fmt.Printf("no violation in %d slots, %d blocks (%.1f/s), %d transactions (%.0f/s), %d checks of the whole state, %s\n",
		s.Slots, s.Blocks, float64(s.Blocks)/took.Seconds(), s.Txs, float64(s.Txs)/took.Seconds(), s.Full, took.Round(time.Second))
	fmt.Printf("%d sessions, %d closed, %d interrupted, %d kWh traded\n", s.Sessions, s.Closed, s.Interrupted, s.TradedWh/1000)
	fmt.Println("faults: ", table(s.Faults))
	fmt.Println("results:", table(s.Codes))
	fmt.Println("events: ", table(s.Events))
	return nil
}

func table(counts map[string]int) string {
	var all []string
	for k, n := range counts {
		all = append(all, fmt.Sprintf("%s %d", k, n))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
