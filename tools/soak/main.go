// Command soak drives the ledger with a large neighbourhood in which
// everything goes wrong, for days of simulated time, and prints a seed that
// replays what it finds.
//
//	make soak                                     a month of 1,000 homes and 200 cars
//	make soak ARGS='-for 10m -homes 60 -cars 20'  as long as one likes
//	make soak ARGS='-seed 7 -slots 300'           the same again
//	make soak ARGS='-state DIR'                   keeps a checkpoint in DIR, every 96 slots and at Ctrl-C
//	make soak ARGS='-state DIR -resume'           goes on from there, to the same end
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
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/tools/sim/microgrid"
)

// options is what does not change the walk, only how it is run.
type options struct {
	slots  int
	limit  time.Duration
	out    string
	state  string
	resume bool
	every  int
	set    map[string]bool // flags that were given
}

func main() {
	var (
		cfg  microgrid.Config
		o    options
		twin = flag.Bool("twin", false, "execute every block on a second replica and compare the states at every full check")
		prof = flag.String("cpuprofile", "", "write a CPU profile to this file")
	)
	flag.Uint64Var(&cfg.Seed, "seed", 0, "replays a walk; 0: a new one, or that of the checkpoint")
	flag.IntVar(&cfg.Homes, "homes", 1000, "houses, 2..1000")
	flag.IntVar(&cfg.Cars, "cars", 200, "cars")
	flag.Float64Var(&cfg.Faults, "faults", 0.002, "faults per home, session and slot")
	flag.IntVar(&cfg.Full, "full", 480, "check the whole state every so many blocks (what a block changed is checked after each)")
	flag.IntVar(&o.slots, "slots", 31*96, "slots of fifteen minutes to live through, those before a checkpoint included")
	flag.DurationVar(&o.limit, "for", 0, "stop after this long; 0: when the slots are over")
	flag.StringVar(&o.out, "out", ".", "folder for the block after which something was wrong")
	flag.StringVar(&o.state, "state", "", "folder for checkpoints; empty: none are written")
	flag.BoolVar(&o.resume, "resume", false, "go on from the checkpoint in -state")
	flag.IntVar(&o.every, "every", 96, "write a checkpoint every so many slots")
	flag.Parse()
	if flag.NArg() > 0 || o.every < 1 || o.resume && o.state == "" {
		fmt.Fprintln(os.Stderr, "soak takes flags only; -resume needs -state; -every is 1 or more")
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
	if *twin {
		cfg.Twin = &microgrid.Store{}
	}
	o.set = map[string]bool{}
	flag.Visit(func(f *flag.Flag) { o.set[f.Name] = true })
	if err := run(cfg, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(cfg microgrid.Config, o options) error {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	store := &microgrid.Store{}
	cfg.State = store
	began, told := time.Now(), time.Now()
	w, err := begin(&cfg, o)
	if w == nil {
		return err
	}
	replay := fmt.Sprintf("-seed %d -homes %d -cars %d -faults %g -full %d -slots %d", cfg.Seed, cfg.Homes, cfg.Cars, cfg.Faults, cfg.Full, o.slots)
	from := w.Stats()
	saved := from.Slots
	fmt.Println("replay with", replay)
	stopped := false
	for err == nil && w.Stats().Slots < o.slots && !stopped {
		if err = w.Slot(); err != nil {
			break
		}
		s := w.Stats()
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			tell(&s, &from, o.slots, time.Since(began), store.Bytes())
		}
		select {
		case <-interrupted:
			stopped = true
		default:
			stopped = o.limit > 0 && time.Since(began) > o.limit
		}
		if o.state != "" && (stopped || s.Slots-saved >= o.every || s.Slots == o.slots) {
			saved = s.Slots
			err = save(o.state, w)
		}
	}
	if err == nil && stopped && o.state != "" {
		s := w.Stats()
		fmt.Printf("stopped after slot %d; go on with -resume -state %s\n", s.Slots, o.state)
		return nil
	}
	if err == nil {
		err = w.Finish()
	}
	if v := (*microgrid.Violation)(nil); errors.As(err, &v) {
		path := filepath.Join(o.out, fmt.Sprintf("soak-%d-block-%d.json", cfg.Seed, v.Block.Height))
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
	fmt.Printf("no violation in %d slots, %d blocks, %d transactions, %d checks of the whole state\n", s.Slots, s.Blocks, s.Txs, s.Full)
	fmt.Printf("this run: %d slots in %s, %.1f blocks/s, %.0f transactions/s, peak memory %d MB\n", s.Slots-from.Slots, took.Round(time.Second),
		float64(s.Blocks-from.Blocks)/took.Seconds(), float64(s.Txs-from.Txs)/took.Seconds(), peak()>>20)
	fmt.Println("state", ledger.StateHash(w.State()))
	fmt.Printf("%d sessions, %d closed, %d interrupted, %d kWh traded\n", s.Sessions, s.Closed, s.Interrupted, s.TradedWh/1000)
	fmt.Println("faults: ", table(s.Faults))
	fmt.Println("results:", table(s.Codes))
	fmt.Println("events: ", table(s.Events))
	return nil
}

// checkpointFile is where the walk is kept in the folder for checkpoints.
const checkpointFile = "walk.checkpoint"

// begin founds a microgrid, or goes on with the one of the checkpoint.
func begin(cfg *microgrid.Config, o options) (*microgrid.Walk, error) {
	if !o.resume {
		if cfg.Seed == 0 {
			cfg.Seed = uint64(time.Now().UnixNano())
		}
		return microgrid.New(*cfg)
	}
	f, err := os.Open(filepath.Join(o.state, checkpointFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w, err := microgrid.Resume(*cfg, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	asked := *cfg
	*cfg = w.Config()
	for name, differs := range map[string]bool{
		"seed": asked.Seed != cfg.Seed, "homes": asked.Homes != cfg.Homes, "cars": asked.Cars != cfg.Cars, "faults": asked.Faults != cfg.Faults, "full": asked.Full != cfg.Full,
	} {
		if differs && o.set[name] {
			return nil, fmt.Errorf("%s: a walk with -seed %d -homes %d -cars %d -faults %g -full %d; leave out -%s, or -resume", f.Name(), cfg.Seed, cfg.Homes, cfg.Cars, cfg.Faults, cfg.Full, name)
		}
	}
	fmt.Printf("resumed after slot %d\n", w.Stats().Slots)
	return w, nil
}

// save replaces the checkpoint as a whole or not at all.
func save(dir string, w *microgrid.Walk) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, checkpointFile+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = w.Checkpoint(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return os.Rename(f.Name(), filepath.Join(dir, checkpointFile))
}

// tell prints how far the walk is and when it will be over.
func tell(s, from *microgrid.Stats, slots int, took time.Duration, state int64) {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	left := time.Duration(float64(took) / float64(s.Slots-from.Slots) * float64(slots-s.Slots))
	fmt.Printf("%8s  slot %d of %d, %s left, %d blocks (%.0f/s), %d transactions (%.0f/s), %d sessions, state %d MB, heap %d MB, peak %d MB\n",
		took.Round(time.Second), s.Slots, slots, left.Round(time.Second), s.Blocks, float64(s.Blocks-from.Blocks)/took.Seconds(),
		s.Txs, float64(s.Txs-from.Txs)/took.Seconds(), s.Sessions, state>>20, mem.HeapAlloc>>20, peak()>>20)
}

// peak is the most memory in bytes that this process has had resident, as
// Linux counts it.
func peak() int64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10
		}
	}
	return 0
}

func table(counts map[string]int) string {
	var all []string
	for k, n := range counts {
		all = append(all, fmt.Sprintf("%s %d", k, n))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
