package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/joulegate/joulegate/drivers/modbus"
	"github.com/joulegate/joulegate/drivers/reader"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

func newMeterCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "meter",
		Short: "Read meters, inverters and wallboxes",
	}
	cmd.AddCommand(newMeterReadCmd(), newMeterProfilesCmd(), newMeterSunSpecCmd(), newMeterIdentifyCmd(), newMeterConfirmCmd())
	return cmd
}

// profilesFlag is a folder with profiles of one's own.
type profilesFlag struct{ dir string }

func (f *profilesFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "profiles", "", "`FOLDER` with profiles of one's own, ID.yaml each, before the built-in ones")
}

// load returns the built-in profiles with those of the folder over them.
func (f *profilesFlag) load() (*profile.Library, error) {
	if f.dir == "" {
		return nil, nil
	}
	if info, err := os.Stat(f.dir); err != nil || !info.IsDir() {
		return nil, usageError{fmt.Errorf("--profiles %s: want a folder", f.dir)}
	}
	l, err := profile.Load(os.DirFS(f.dir))
	if err != nil {
		return nil, usageError{fmt.Errorf("--profiles %s: %w", f.dir, err)}
	}
	return l, nil
}

// lineFlags are the flags that say how a device is connected.
type lineFlags struct {
	profiles         profilesFlag
	profile          string
	rtu, tcp, rtutcp string
	baud             int
	framing          string
	unit             int
	timeout          time.Duration
}

func (f *lineFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	f.profiles.add(cmd)
	fl.StringVar(&f.profile, "profile", "", "what the device is, an `ID` of: joulegate meter profiles")
	fl.StringVar(&f.rtu, "rtu", "", "serial `DEVICE`, for example /dev/ttyUSB0")
	fl.StringVar(&f.tcp, "tcp", "", "Modbus TCP at `HOST:PORT`")
	fl.StringVar(&f.rtutcp, "rtutcp", "", "RTU frames through a serial server at `HOST:PORT`")
	fl.IntVar(&f.baud, "baud", 0, "bit/s of the serial line (default: as the device leaves the factory)")
	fl.StringVar(&f.framing, "framing", "", "8N1, 8E1 or 8N2 (default: as the device leaves the factory)")
	fl.IntVar(&f.unit, "unit", 0, "Modbus unit id, 1..247, over TCP also 255 (default: as the device leaves the factory)")
	fl.DurationVar(&f.timeout, "timeout", 5*time.Second, "give up if the device has not answered by then")
}

// resolve checks the flags and fills in the profile's defaults.
func (f *lineFlags) resolve(cmd *cobra.Command) (*profile.Profile, modbus.Config, modbus.DeviceConfig, error) {
	fail := func(err error) (*profile.Profile, modbus.Config, modbus.DeviceConfig, error) {
		return nil, modbus.Config{}, modbus.DeviceConfig{}, usageError{err}
	}
	if f.profile == "" {
		return fail(errors.New("--profile is needed: see joulegate meter profiles"))
	}
	library, err := f.profiles.load()
	if err != nil {
		return fail(err)
	}
	p, err := library.Get(f.profile)
	if err != nil {
		return fail(err)
	}
	if n := len(f.rtu) + len(f.tcp) + len(f.rtutcp); n == 0 || n != max(len(f.rtu), len(f.tcp), len(f.rtutcp)) {
		return fail(errors.New("say where the device is with one of --rtu DEVICE, --tcp HOST:PORT and --rtutcp HOST:PORT"))
	}
	if f.rtu == "" && (cmd.Flags().Changed("baud") || cmd.Flags().Changed("framing")) {
		return fail(errors.New("--baud and --framing need --rtu: a network line has neither"))
	}
	if f.timeout <= 0 {
		return fail(fmt.Errorf("--timeout %s: want more than 0", f.timeout))
	}
	unit, err := unitFlag(cmd, f.unit, p, f.tcp != "")
	if err != nil {
		return fail(err)
	}
	line := modbus.Config{Device: f.rtu, TCP: f.tcp, RTUTCP: f.rtutcp, Baud: f.baud, Framing: f.framing}
	if line.Baud == 0 && !cmd.Flags().Changed("baud") {
		line.Baud = p.Serial.Baud
		if f.rtu != "" && line.Baud == 0 {
			return fail(fmt.Errorf("--baud is needed: a %s %s has no serial setting that we know", p.Vendor, p.Model))
		}
	} else if line.Baud < 300 {
		return fail(fmt.Errorf("--baud %d: want 300 or more, for example 9600", f.baud))
	}
	if line.Framing == "" {
		line.Framing = cmp.Or(p.Serial.Framing, "8N1")
	}
	if err := line.Validate(); err != nil {
		return fail(err)
	}
	return p, line, modbusDevice(p, unit, fmt.Sprintf("%s unit %d", p.ID, unit), modbus.Fast), nil
}

// unitFlag checks --unit, or takes the profile's.
func unitFlag(cmd *cobra.Command, unit int, p *profile.Profile, tcp bool) (uint8, error) {
	if !cmd.Flags().Changed("unit") {
		if p.Serial.Unit > 247 && !tcp {
			return 0, fmt.Errorf("--unit is needed: the usual %d of a %s is for TCP only", p.Serial.Unit, p.Model)
		}
		return p.Serial.Unit, nil
	}
	if unit >= 1 && unit <= 247 || tcp && unit == 255 {
		return uint8(unit), nil
	}
	if tcp {
		return 0, fmt.Errorf("--unit %d: want 1..247, or 255 for a device without units", unit)
	}
	return 0, fmt.Errorf("--unit %d: want 1..247", unit)
}

// modbusDevice says to the line how a device of this profile likes to be asked.
func modbusDevice(p *profile.Profile, unit uint8, name string, class modbus.Class) modbus.DeviceConfig {
	t := p.Timing
	return modbus.DeviceConfig{
		Unit: unit, Name: name, Class: class,
		Gap: t.Gap, SlaveChangeGap: t.SlaveChangeGap, ConnectDelay: t.ConnectDelay, Timeout: t.Timeout, MaxBlock: int(t.MaxBlock),
	}
}

func newMeterReadCmd() *cobra.Command {
	var (
		line     lineFlags
		count    int
		interval time.Duration
	)
	cmd := &cobra.Command{
		Use:   "read --profile ID (--rtu DEVICE | --tcp HOST:PORT | --rtutcp HOST:PORT)",
		Short: "Read a device and print what it says",
		Long: `Read a device and print what it says. Import is positive power, also for
inverters. With --json every reading is one line.`,
		Example: `  joulegate meter read --profile eastron-sdm630 --rtu /dev/ttyUSB0 --unit 3
  joulegate meter read --profile sunspec-inverter --tcp 192.0.2.7:502 --count 0 --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, lineCfg, device, err := line.resolve(cmd)
			if err != nil {
				return err
			}
			if count < 0 {
				return usageError{fmt.Errorf("--count %d: want how many readings, or 0 for no end", count)}
			}
			if interval < 10*time.Millisecond {
				return usageError{fmt.Errorf("--interval %s: want 10ms or more", interval)}
			}
			return meterRead(cmd, p, lineCfg, device, line.timeout, count, interval)
		},
	}
	line.add(cmd)
	cmd.Flags().IntVar(&count, "count", 1, "how many readings, 0: until interrupted")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between readings")
	return cmd
}

// noArgs is cobra.NoArgs as wrong usage.
func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

func meterRead(cmd *cobra.Command, p *profile.Profile, lineCfg modbus.Config, device modbus.DeviceConfig, timeout time.Duration, count int, interval time.Duration) error {
	if p.Experimental {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: profile %s is experimental: compare what it says with the display. %s\n", p.ID, p.Note)
	}
	line, err := modbus.New(lineCfg)
	if err != nil {
		return err
	}
	readings := make(chan meter.Reading)
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	r := reader.New(reader.Config{
		Device: device.Name, Profile: p, Register: line.Device(device), Unit: device.Unit,
		Interval: interval, SlowEvery: 1, Timeout: timeout,
		Deliver: func(m meter.Reading) {
			select {
			case readings <- m:
			case <-ctx.Done():
			}
		},
	})
	var g errgroup.Group
	g.Go(func() error { return line.Run(ctx) })
	g.Go(func() error { return r.Run(ctx) })
	err = meterPrint(ctx, cmd, p, r, readings, timeout, count)
	cancel()
	if e := g.Wait(); e != nil && !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	if err != nil {
		return fmt.Errorf("%s on %s: %w", device.Name, lineCfg.Name(), err)
	}
	return nil
}

// meterPrint prints count readings. Only the first answer has a deadline:
// afterwards silence is reported as stale readings.
func meterPrint(ctx context.Context, cmd *cobra.Command, p *profile.Profile, r *reader.Reader, readings <-chan meter.Reading, timeout time.Duration, count int) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	answered := false
	for n := 0; count == 0 || n < count; {
		select {
		case <-ctx.Done():
			if answered {
				return nil // interrupted by a person who has seen enough
			}
			return errors.New("interrupted before the first answer")
		case m := <-readings:
			if m.Quality == meter.Stale && !answered {
				continue
			}
			answered = true
			deadline.Stop()
			if err := emit(cmd, newReadingJSON(&m), func(w io.Writer) error { return printReading(w, p, &m) }); err != nil {
				return err
			}
			n++
		case <-deadline.C:
			if err := r.Err(); err != nil {
				return fmt.Errorf("no usable answer within %s: %w", timeout, err)
			}
			return fmt.Errorf("no answer within %s: check wiring (A and B exchanged?), unit id, speed and framing", timeout)
		}
	}
	return nil
}

// readingJSON is a reading as scripts see it.
type readingJSON struct {
	Profile string           `json:"profile"`
	Unit    uint8            `json:"unit"`
	Time    time.Time        `json:"time"`
	Quality meter.Quality    `json:"quality"`
	Reason  string           `json:"reason,omitempty"`
	Points  map[string]int64 `json:"points"`
}

func newReadingJSON(m *meter.Reading) readingJSON {
	points := make(map[string]int64, len(m.Points))
	for _, p := range m.Points {
		points[p.Name()] = p.Value
	}
	return readingJSON{m.Profile, m.Unit, time.UnixMilli(m.Wall).UTC(), m.Quality, m.Reason, points}
}

func printReading(w io.Writer, profile *profile.Profile, m *meter.Reading) error {
	quality := m.Quality.String()
	if m.Reason != "" {
		quality += ": " + m.Reason
	}
	rows := [][]string{{m.Profile + " unit " + strconv.Itoa(int(m.Unit)), time.UnixMilli(m.Wall).Format("15:04:05.000"), quality}}
	for _, p := range m.Points {
		phase := ""
		if p.Phase > 0 {
			phase = fmt.Sprintf(" L%d", p.Phase)
		}
		value, unit := humanValue(p)
		if p.Quantity == meter.Status {
			if text, ok := profile.StatusText(p.Value); ok {
				value = text
			}
			if letter, ok := profile.States[p.Value]; ok {
				unit = "is " + letter + " of IEC 61851-1"
			}
		}
		rows = append(rows, []string{"  " + strings.ReplaceAll(p.Quantity.String(), "_", " ") + phase, value, unit})
	}
	return table(w, rows)
}

// humanValue writes a point in the unit that people use.
func humanValue(p meter.Point) (value, unit string) {
	units := map[string]struct {
		decimals int
		name     string
	}{
		"mw": {3, "W"}, "mva": {3, "VA"}, "mvar": {3, "var"}, "mv": {3, "V"}, "ma": {3, "A"},
		"mhz": {3, "Hz"}, "permille": {3, ""}, "mwh": {6, "kWh"}, "mdegc": {3, "°C"}, "code": {0, ""},
	}
	u, ok := units[p.Quantity.Unit()]
	if !ok {
		return strconv.FormatInt(p.Value, 10), p.Quantity.Unit()
	}
	digits := strconv.FormatInt(p.Value, 10)
	sign := ""
	if digits[0] == '-' {
		sign, digits = "-", digits[1:]
	}
	if u.decimals == 0 {
		return sign + digits, u.name
	}
	digits = strings.Repeat("0", max(0, u.decimals+1-len(digits))) + digits
	cut := len(digits) - u.decimals
	return sign + digits[:cut] + "." + digits[cut:], u.name
}

// profileJSON is a profile as scripts see it.
type profileJSON struct {
	ID           string             `json:"id"`
	Vendor       string             `json:"vendor"`
	Model        string             `json:"model"`
	Kind         profile.Kind       `json:"kind"`
	Baud         int                `json:"baud"`
	Framing      string             `json:"framing"`
	Unit         uint8              `json:"unit"`
	Port         uint16             `json:"port,omitempty"` // usual TCP port
	Confidence   profile.Confidence `json:"confidence"`
	Experimental bool               `json:"experimental"`
	Own          bool               `json:"own,omitempty"` // from --profiles
	Note         string             `json:"note,omitempty"`
	Hash         string             `json:"hash"`
}

// factory is how a device leaves the factory, for people.
func factory(s profile.Serial) string {
	var ways []string
	if s.Baud != 0 {
		ways = append(ways, fmt.Sprintf("%d %s", s.Baud, s.Framing))
	}
	if s.Port != 0 {
		ways = append(ways, fmt.Sprintf("port %d", s.Port))
	}
	return fmt.Sprintf("%s unit %d", strings.Join(ways, ", "), s.Unit)
}

func newMeterProfilesCmd() *cobra.Command {
	var folder profilesFlag
	cmd := &cobra.Command{
		Use:   "profiles [ID]",
		Short: "List the devices that can be read",
		Long: `List the devices that can be read, or tell all that is known of one.
Experimental are those with an unsettled register: compare what they say with
their display.`,
		Example: `  joulegate meter profiles
  joulegate meter profiles eastron-sdm630`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.MaximumNArgs(1)(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			library, err := folder.load()
			if err != nil {
				return err
			}
			profiles := library.All
			if len(args) == 1 {
				p, err := library.Get(args[0])
				if err != nil {
					return usageError{err}
				}
				profiles = func() []*profile.Profile { return []*profile.Profile{p} }
			}
			out := []profileJSON{}
			rows := [][]string{{"ID", "DEVICE", "KIND", "FACTORY SETTING", "CONFIDENCE"}}
			for _, p := range profiles() {
				own := library.Own(p.ID)
				out = append(out, profileJSON{
					ID: p.ID, Vendor: p.Vendor, Model: p.Model, Kind: p.Kind, Baud: p.Serial.Baud, Framing: p.Serial.Framing, Unit: p.Serial.Unit, Port: p.Serial.Port,
					Confidence: p.Confidence(), Experimental: p.Experimental, Own: own, Note: p.Note, Hash: fmt.Sprintf("%x", p.Hash()),
				})
				confidence := string(p.Confidence())
				if p.Experimental {
					confidence += ", experimental"
				}
				if own {
					confidence += ", own file"
				}
				rows = append(rows, []string{p.ID, p.Vendor + " " + p.Model, string(p.Kind), factory(p.Serial), confidence})
			}
			if len(args) == 1 {
				rows = append(rows, profileRows(profiles()[0])...)
			}
			return emit(cmd, out, func(w io.Writer) error { return table(w, rows) })
		},
	}
	folder.add(cmd)
	return cmd
}

// profileRows tells what a profile is made of.
func profileRows(p *profile.Profile) [][]string {
	var rows [][]string
	add := func(cells ...string) { rows = append(rows, cells) }
	points := func(list []profile.Point) {
		for _, pt := range list {
			at := fmt.Sprintf("%d", pt.Address)
			if len(pt.Sum) > 0 {
				at = fmt.Sprintf("sum of %v", pt.Sum)
			}
			if len(pt.Less) > 0 {
				at += fmt.Sprintf(" less %v", pt.Less)
			}
			add("  "+meter.PointName(pt.Quantity, pt.Phase), fmt.Sprintf("function %d, %s", pt.Function, at), string(pt.Type))
		}
	}
	if p.SunSpec == nil {
		add("points")
		points(p.Points)
	} else {
		for _, m := range p.SunSpec.Models {
			add(fmt.Sprintf("points of models %v", m.IDs))
			points(m.Points)
		}
	}
	if len(p.Writes) > 0 {
		add("commands")
	}
	for _, w := range p.Writes {
		limits := fmt.Sprintf("%d..%d %s", w.Min, w.Max, w.Unit())
		if w.Min > 0 && !w.Nonzero {
			limits = "0, " + limits
		}
		if w.Values != nil {
			limits = fmt.Sprintf("%d values", len(w.Values))
		}
		if w.Every > 0 {
			limits += fmt.Sprintf(", every %s", w.Every)
		}
		add("  "+w.Name, fmt.Sprintf("function %d, %d", w.Function, w.Address), string(w.Type), limits)
	}
	add("sources")
	for _, s := range p.Sources {
		add("  " + string(s.Confidence) + "  " + s.Name)
	}
	if p.Note != "" {
		add(p.Note)
	}
	return rows
}
