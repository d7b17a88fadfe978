package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/load"
	"github.com/joulegate/joulegate/guard/packet"
	"github.com/joulegate/joulegate/guard/pipe"
)

// sensorsSetup is what the gateway tells the sensors' process first.
type sensorsSetup struct {
	State     string         `json:"state"`
	Interface string         `json:"interface"`
	Network   packet.Network `json:"network"`
	Memory    uint64         `json:"memory"` // bytes; the gateway ends the process beyond it
	DNS       config.DNS     `json:"dns"`
	Sigma     string         `json:"sigma"`    // folder of rules about programs, beside the own
	Programs  string         `json:"programs"` // list of executables
}

// newGuardSensorsCmd is the process that holds a running gateway's sensors.
// Nobody starts it by hand.
func newGuardSensorsCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "sensors",
		Short:  "Look for a running gateway, which starts this itself",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(cmd)
			if err != nil {
				return err
			}
			// The first one to be taken when memory runs out, before the station.
			_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
			yield()
			in := bufio.NewReader(cmd.InOrStdin())
			var c sensorsSetup
			if err := pipe.Read(in, &c); err != nil {
				return errors.New("this is started by a gateway, not by hand")
			}
			debug.SetMemoryLimit(int64(c.Memory / 4 * 3))
			debug.SetGCPercent(50)
			// What grows faster than anybody looks fails by itself.
			_ = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: 4 * c.Memory, Max: 4 * c.Memory})
			return runSensors(cmd.Context(), c, in, os.NewFile(3, "findings"), log)
		},
	}
}

// sensorsNice is the niceness of the sensors: a third of the processor time of
// the station where there is not enough for both. A relay opens when the
// control loop has to wait for a second; what is seen may come later.
const sensorsNice = 5

// yield gives every thread of this process, and those that they start,
// sensorsNice. It needs no permission, and where it fails nothing is lost but
// time.
func yield() {
	threads, _ := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, sensorsNice)
		}
	}
}

// sensorsQueue is how many findings wait for the gateway; then they are
// dropped and counted, because no sensor may wait.
const sensorsQueue = 512

// charging is what the gateway said last.
type charging struct{ atomic.Bool }

func (c *charging) Charging() bool { return c.Load() }

// runSensors looks until the gateway hangs up. A sensor that cannot work says
// so in its coverage, and the others look on.
func runSensors(ctx context.Context, c sensorsSetup, in io.Reader, out *os.File, log *slog.Logger) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	queue := make(chan guard.Finding, sensorsQueue)
	var dropped atomic.Uint64
	report := func(f guard.Finding) {
		pipe.Fit(&f)
		select {
		case queue <- f:
		default:
			dropped.Add(1)
		}
	}
	began := time.Now()
	now := func() time.Duration { return time.Since(began) }
	var charger charging
	type sensor interface {
		Run(ctx context.Context) error
		Coverage() guard.Coverage
	}
	var wg sync.WaitGroup
	var looking []sensor
	start := func(which guard.Sensor, s sensor, err error) {
		if err != nil {
			looking = append(looking, missing{guard.Coverage{Sensor: which, Level: guard.None, Reason: err.Error(), Since: began}})
			return
		}
		looking = append(looking, s)
		wg.Go(func() {
			if err := s.Run(ctx); err != nil {
				log.Error("guard", "sensor", which, "err", err)
			}
		})
	}
	self, _ := os.Executable()
	l, err := load.New(load.Config{
		State: c.State, Keep: filepath.Join(c.State, "guard", "load.json"), Report: report, Now: now, Log: log,
		// Catching up with a ledger computes for long and talks to neighbours.
		Listed: func(image string) bool { return self != "" && strings.TrimSuffix(image, " (deleted)") == self },
	})
	start(guard.Load, l, err)
	look := packet.Config{Interface: c.Interface, Network: c.Network, Charger: &charger, Report: report, Now: now, Log: log}
	var names *nameServer
	if c.DNS.On() {
		names = newNameServer(c.DNS, report, now, log)
		look.Answers = names.answers
		start(guard.Domain, names, nil)
	} else {
		start(guard.Domain, nil, errors.New("the name server is off: guard.dns.listen in the configuration"))
	}
	p, err := packet.New(look)
	start(guard.Packet, p, err)
	programs, err := newProgramWatch(c.Sigma, c.Programs, report, log)
	start(guard.Process, programs, err)

	go func() {
		defer stop() // the gateway has hung up or died
		var o pipe.Order
		for first := true; ; first = false {
			was := o.Reload
			if pipe.Read(in, &o) != nil {
				return
			}
			charger.Store(o.Charging)
			// What was asked for before this process began, it has read.
			if names != nil && (first || o.Reload != was) {
				names.order(o.Reload, first)
			}
			if names != nil && names.bypass != nil {
				names.bypass.steer(o.Bypass, o.Exempt)
			}
			o.Exempt = nil // said when it changes
		}
	}()
	t := time.NewTicker(time.Second)
	defer t.Stop()
	defer wg.Wait()
	defer stop()
	for {
		var m pipe.Message
		select {
		case <-ctx.Done():
			return nil
		case f := <-queue:
			m.Finding = &f
		case <-t.C:
			m.Beat = &pipe.Beat{Dropped: dropped.Load(), Coverage: []guard.Coverage{}}
			if programs != nil {
				m.Beat.Rules = programs.hash()
			}
			for _, s := range looking {
				cov := s.Coverage()
				cov.Lost += dropped.Load()
				m.Beat.Coverage = append(m.Beat.Coverage, cov)
			}
			if names != nil {
				m.Beat.Names = names.names()
				pipe.FitNames(m.Beat.Names)
			}
		}
		if err := pipe.Write(out, m); err != nil {
			return err
		}
	}
}

// missing is a sensor that cannot work here.
type missing struct{ cov guard.Coverage }

func (m missing) Coverage() guard.Coverage  { return m.cov }
func (m missing) Run(context.Context) error { return nil }

// writersOf are the addresses that may write Modbus registers: those of the
// configuration. This gateway's own are added where it looks.
func writersOf(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil { // the configuration was checked
			out = append(out, a.Unmap())
		}
	}
	return slices.Compact(out)
}
