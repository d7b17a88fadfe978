package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/commission"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/drivers/reader"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/identify"
)

// identifyFlags say what is switched and how.
type identifyFlags struct {
	load    string
	turns   int
	seconds time.Duration
	line    lineFlags
	pace    pace
}

// pace is how fast one goes about it.
type pace struct {
	interval     time.Duration // between readings
	settle, late time.Duration // as identify.Limits
}

var personsPace = pace{time.Second, identify.DefaultSettle, identify.DefaultLate}

// least is the shortest time between two switches in which a level can be
// measured: what is not used around a switch, and three readings.
func (p pace) least() time.Duration { return p.settle + p.late + 3*p.interval }

func newMeterIdentifyCmd() *cobra.Command {
	return identifyCmd(personsPace)
}

func identifyCmd(p pace) *cobra.Command {
	f := identifyFlags{pace: p}
	cmd := &cobra.Command{
		Use:   "identify",
		Short: "Find out which meter and line a load is on, and which transformer is reversed",
		Long: `Asks you to switch a load that you know, a kettle for example, on and off a few
times, and names the meter and line that followed. A current transformer that is
mounted the wrong way round, or on another line than its voltage, is told.

It watches all meters of the running gateway, or with --profile and --rtu, --tcp
or --rtutcp one device without a gateway. It asks for Enter at every switch;
with --seconds it goes on by itself and you follow what it says.`,
		Example: `  joulegate meter identify --load 2000W
  joulegate meter identify --load 2kW --seconds 15 --json
  joulegate meter identify --load 2kW --profile eastron-sdm630 --rtu /dev/ttyUSB0 --unit 3`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return meterIdentify(cmd, &f) },
	}
	f.line.add(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.load, "load", "", "power of what you switch, for example `2000W` or 2kW (default: not known)")
	fl.IntVar(&f.turns, "turns", 4, "how often it is switched, on and off counted")
	fl.DurationVar(&f.seconds, "seconds", 0, "time between two switches, instead of asking for Enter; a number is seconds")
	fl.Lookup("seconds").Value = &secondsValue{&f.seconds}
	return atFlag(cmd)
}

// secondsValue is a duration that may be written as a plain number of seconds.
type secondsValue struct{ d *time.Duration }

func (s *secondsValue) String() string { return s.d.String() }
func (s *secondsValue) Type() string   { return "duration" }
func (s *secondsValue) Set(text string) error {
	if n, err := strconv.ParseUint(text, 10, 16); err == nil {
		*s.d = time.Duration(n) * time.Second
		return nil
	}
	d, err := time.ParseDuration(text)
	*s.d = d
	return err
}

// parseLoad reads 2000, 2000W or 2.5kW.
func parseLoad(s string) (meter.MilliWatt, error) {
	if s == "" {
		return 0, nil
	}
	number, scale := strings.TrimSuffix(strings.ToLower(s), "w"), 1000.0
	if n, ok := strings.CutSuffix(number, "k"); ok {
		number, scale = n, 1_000_000
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v*scale >= 50_000 && v*scale <= 100_000_000) {
		return 0, fmt.Errorf("--load %q: want 50W..100kW, for example 2000W", s)
	}
	return meter.MilliWatt(v * scale), nil
}

// watched is a source of samples.
type watched func(ctx context.Context, deliver func(identify.Sample)) error

func meterIdentify(cmd *cobra.Command, f *identifyFlags) error {
	load, err := parseLoad(f.load)
	if err != nil {
		return usageError{err}
	}
	if f.turns < 2 || f.turns > identify.MaxSwitches {
		return usageError{fmt.Errorf("--turns %d: want 2..%d", f.turns, identify.MaxSwitches)}
	}
	if f.seconds != 0 && f.seconds < f.pace.least() {
		return usageError{fmt.Errorf("--seconds %s: want %s or more, or nobody can tell", f.seconds, f.pace.least())}
	}
	start := time.Now()
	var watch watched
	if f.line.profile != "" || f.line.rtu+f.line.tcp+f.line.rtutcp != "" {
		if watch, err = watchLine(cmd, f, start); err != nil {
			return err
		}
	} else if watch, err = watchGateway(cmd, f.pace, start); err != nil {
		return err
	}
	record, err := observe(cmd, f, watch, start)
	if err != nil {
		return err
	}
	rep := identify.Decide(record, identify.Limits{Load: load, Settle: f.pace.settle, Late: f.pace.late})
	if f.line.profile == "" && f.line.rtu+f.line.tcp+f.line.rtutcp == "" && len(rep.Moved) > 0 {
		if err := keepDirections(cmd, load, rep); err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "joulegate: the gateway does not keep it for the commissioning report: %v\n", err)
		}
	}
	return emit(cmd, newIdentifyJSON(load, record, rep), func(w io.Writer) error { return printIdentified(w, rep) })
}

// keepDirections tells the gateway what was found out.
func keepDirections(cmd *cobra.Command, load meter.MilliWatt, rep identify.Report) error {
	if f := cmd.Flags().Lookup("at"); f != nil && f.Value.String() != "" {
		return nil // somewhere else nobody takes our word
	}
	g, err := dial(cmd)
	if err != nil {
		return err
	}
	defer g.Close()
	o := panel.DirectionOrder{How: "a load was switched", Meters: map[string][]commission.Line{}}
	if load > 0 {
		o.How = fmt.Sprintf("a load of %d W was switched", load.Watts())
	}
	for _, f := range rep.Moved {
		for _, l := range f.Lines {
			o.Meters[f.Meter] = append(o.Meters[f.Meter], commission.Line{Phase: l.Phase, StepW: l.Step.Watts(), Wiring: l.Wiring})
		}
	}
	return g.Directions(cmd.Context(), o)
}

// watchGateway takes samples from the running gateway.
func watchGateway(cmd *cobra.Command, p pace, start time.Time) (watched, error) {
	g, err := dial(cmd)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, deliver func(identify.Sample)) error {
		defer g.Close()
		last := map[string]time.Time{}
		tick := time.NewTicker(p.interval / 2)
		defer tick.Stop()
		for {
			all, err := g.Meters(ctx)
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("ask the gateway for its meters: %w", err)
			}
			for _, m := range all {
				if m.Time.After(last[m.ID]) && m.Quality != meter.Stale.String() {
					last[m.ID] = m.Time
					deliver(identify.Sample{Meter: m.ID, At: time.Since(start), Points: pointsOf(m)})
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}, nil
}

// pointsOf returns the points of m that tell a load.
func pointsOf(m board.Meter) (points []meter.Point) {
	for _, q := range []meter.Quantity{meter.Power, meter.Current, meter.Voltage} {
		for phase := range uint8(4) {
			if v, ok := m.Points[meter.PointName(q, phase)]; ok {
				points = append(points, meter.Point{Quantity: q, Phase: phase, Value: v})
			}
		}
	}
	return points
}

// watchLine takes samples from one device.
func watchLine(cmd *cobra.Command, f *identifyFlags, start time.Time) (watched, error) {
	p, lineCfg, device, err := f.line.resolve(cmd)
	if err != nil {
		return nil, err
	}
	line, err := modbus.New(lineCfg)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, deliver func(identify.Sample)) error {
		r := reader.New(reader.Config{
			Device: device.Name, Profile: p, Register: line.Device(device), Unit: device.Unit,
			Interval: f.pace.interval, Timeout: f.line.timeout,
			Deliver: func(m meter.Reading) {
				if m.Quality != meter.Stale {
					deliver(identify.Sample{Meter: device.Name, At: time.Since(start), Points: m.Points})
				}
			},
		})
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return quiet(ctx, line.Run(ctx)) })
		g.Go(func() error { return quiet(ctx, r.Run(ctx)) })
		return g.Wait()
	}, nil
}

// observe leads through the switches and records what the meters say
// meanwhile.
func observe(cmd *cobra.Command, f *identifyFlags, watch watched, start time.Time) (identify.Record, error) {
	samples := make(chan identify.Sample)
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- watch(ctx, func(s identify.Sample) {
			select {
			case samples <- s:
			case <-ctx.Done():
			}
		})
	}()
	stop := func(err error) (identify.Record, error) {
		cancel()
		return identify.Record{}, errors.Join(err, <-ended)
	}
	keys := make(chan struct{})
	if f.seconds == 0 {
		go lines(ctx, cmd.InOrStdin(), keys)
	}
	var record identify.Record
	say := cmd.ErrOrStderr()
	// gather records until the pause is over, and then until Enter.
	gather := func(pause time.Duration, enter bool) error {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		for waiting := true; waiting; {
			select {
			case s := <-samples:
				record.Add(s)
			case <-timer.C:
				waiting = false
			case err := <-ended:
				ended <- nil
				return cmp.Or(err, errors.New("the meters fell silent"))
			case <-ctx.Done():
				return errors.New("interrupted: nothing is proven")
			}
		}
		for enter {
			select {
			case s := <-samples:
				record.Add(s)
			case _, ok := <-keys:
				if !ok {
					return errors.New("no more input: use --seconds where nobody can press Enter")
				}
				enter = false
			case err := <-ended:
				ended <- nil
				return cmp.Or(err, errors.New("the meters fell silent"))
			case <-ctx.Done():
				return errors.New("interrupted: nothing is proven")
			}
		}
		return nil
	}
	pause := max(f.seconds, f.pace.least())
	fmt.Fprintln(say, "Make sure that the load is off, and leave everything else as it is.")
	if err := gather(pause, false); err != nil {
		return stop(err)
	}
	for i := range f.turns {
		on := i%2 == 0
		word := map[bool]string{true: "ON", false: "OFF"}[on]
		if f.seconds == 0 {
			fmt.Fprintf(say, "%d of %d: switch it %s and press Enter at once.\n", i+1, f.turns, word)
			if err := gather(0, true); err != nil {
				return stop(err)
			}
		} else {
			fmt.Fprintf(say, "%d of %d: switch it %s now.\n", i+1, f.turns, word)
		}
		if err := record.Turn(identify.Switch{At: time.Since(start), On: on}); err != nil {
			return stop(err)
		}
		if err := gather(pause, false); err != nil {
			return stop(err)
		}
	}
	if len(record.Samples) == 0 {
		return stop(errors.New("no meter has said anything"))
	}
	cancel()
	return record, <-ended
}

// lines sends for every line of in. A read that never ends is left behind:
// the process ends soon.
func lines(ctx context.Context, in io.Reader, keys chan<- struct{}) {
	defer close(keys)
	for s := bufio.NewScanner(in); s.Scan(); {
		select {
		case keys <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// identifyJSON is what was found out, as scripts see it.
type identifyJSON struct {
	LoadW    meter.Watt       `json:"load_w,omitempty"`
	Switches int              `json:"switches"`
	Moved    []identifiedJSON `json:"moved"`  // the closest to the load first
	Still    []string         `json:"still"`  // did not follow
	Unsure   []string         `json:"unsure"` // said too little
}

type identifiedJSON struct {
	Meter string               `json:"meter"`
	StepW meter.Watt           `json:"step_w"`
	Lines []identifiedLineJSON `json:"lines"`
}

type identifiedLineJSON struct {
	Phase  uint8           `json:"phase"` // 0: the meter tells its total only
	StepW  meter.Watt      `json:"step_w"`
	Wiring identify.Wiring `json:"wiring"` // right, reversed, crossed
}

func newIdentifyJSON(load meter.MilliWatt, record identify.Record, rep identify.Report) identifyJSON {
	out := identifyJSON{load.Watts(), len(record.Switches), []identifiedJSON{}, append([]string{}, rep.Still...), append([]string{}, rep.Unsure...)}
	for _, f := range rep.Moved {
		m := identifiedJSON{f.Meter, f.Step.Watts(), []identifiedLineJSON{}}
		for _, l := range f.Lines {
			m.Lines = append(m.Lines, identifiedLineJSON{l.Phase, l.Step.Watts(), l.Wiring})
		}
		out.Moved = append(out.Moved, m)
	}
	return out
}

// remedy says what to do about a wiring.
var remedy = map[identify.Wiring]string{
	identify.Right:    "right",
	identify.Reversed: "REVERSED: turn the current transformer round, or exchange its wires",
	identify.Crossed:  "CROSSED: the current transformer is on another line than the voltage",
}

func printIdentified(w io.Writer, rep identify.Report) error {
	rows := [][]string{{"METER", "LINE", "STEP", "WIRING"}}
	for _, f := range rep.Moved {
		for _, l := range f.Lines {
			line := "total"
			if l.Phase > 0 {
				line = fmt.Sprintf("L%d", l.Phase)
			}
			rows = append(rows, []string{f.Meter, line, fmt.Sprintf("%+d W", l.Step.Watts()), remedy[l.Wiring]})
		}
	}
	for _, name := range rep.Still {
		rows = append(rows, []string{name, "", "", "did not follow"})
	}
	for _, name := range rep.Unsure {
		rows = append(rows, []string{name, "", "", "said too little to tell"})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if len(rep.Moved) == 0 {
		_, err := fmt.Fprintln(w, "no meter followed the load: is it behind one of them? Try a larger load, or when less else is switched")
		return err
	}
	return nil
}
