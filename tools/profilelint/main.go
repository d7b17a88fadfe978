// Command profilelint holds device profiles to rules that a single file cannot
// be held to when it is read, and writes the tables of supported devices.
//
//	go run ./tools/profilelint                  check the built-in profiles
//	go run ./tools/profilelint FOLDER           check profiles of one's own
//	go run ./tools/profilelint -write           write docs/DEVICES.md and the list in README.md
//
// Reading a profile already refuses overlapping registers, unknown quantities,
// blocks beyond the limits, missing sources and files that are not called as
// their profile. This adds what only makes sense for profiles that many people
// rely on: see lint.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/poll"
	"github.com/joulegate/joulegate/meter/profile"
)

func main() {
	write := flag.Bool("write", false, "write the table of devices")
	out := flag.String("out", "docs/DEVICES.md", "`FILE` of the table")
	readme := flag.String("readme", "README.md", "`FILE` with a list of devices between "+listBegin+" and "+listEnd)
	flag.Parse()
	if err := run(flag.Args(), *write, *out, *readme); err != nil {
		fmt.Fprintln(os.Stderr, "profilelint:", err)
		os.Exit(1)
	}
}

func run(args []string, write bool, out, readme string) error {
	profiles := profile.All()
	if len(args) > 1 || write && len(args) > 0 {
		return fmt.Errorf("want one folder, or -write")
	}
	if len(args) == 1 {
		l, err := profile.Load(os.DirFS(args[0]))
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		profiles = slices.DeleteFunc(l.All(), func(p *profile.Profile) bool { return !l.Own(p.ID) })
	}
	var complaints []string
	for _, p := range profiles {
		for _, c := range lint(p) {
			complaints = append(complaints, p.ID+": "+c)
		}
	}
	if len(complaints) > 0 {
		return fmt.Errorf("%d complaints:\n%s", len(complaints), strings.Join(complaints, "\n"))
	}
	if !write {
		return nil
	}
	old, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	text, err := withList(string(old), profiles)
	if err != nil {
		return fmt.Errorf("%s: %w", readme, err)
	}
	if err := os.WriteFile(readme, []byte(text), 0o644); err != nil {
		return err
	}
	return os.WriteFile(out, []byte(table(profiles)), 0o644)
}

// lint returns what is wrong with a profile.
func lint(p *profile.Profile) []string {
	var out []string
	complain := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	maps := [][]profile.Point{p.Points}
	if p.SunSpec != nil {
		maps = nil
		for _, m := range p.SunSpec.Models {
			maps = append(maps, m.Points)
		}
	}
	for _, points := range maps {
		lintPoints(points, complain)
	}
	lintDetection(p, complain)
	lintBlocks(p, complain)
	lintWallbox(p, complain)
	lintCommands(p, complain)
	if !strings.HasPrefix(p.ID, strings.ToLower(string([]rune(p.Vendor)[:1]))) {
		complain("the id does not start as the vendor %s", p.Vendor)
	}
	if p.Experimental && p.Note == "" {
		complain("experimental without a note that says what is not settled")
	}
	for i, s := range p.Sources {
		if slices.ContainsFunc(p.Sources[:i], func(o profile.Source) bool { return o.Name == s.Name }) {
			complain("source %q is there twice", s.Name)
		}
	}
	if a := slices.ContainsFunc(p.Sources, func(s profile.Source) bool { return s.Confidence == profile.ConfidenceA }); a && len(p.Sources) < 2 && p.SunSpec == nil {
		complain("confidence A means that sources agree: name the second")
	}
	return out
}

// lintPoints checks one map.
func lintPoints(points []profile.Point, complain func(string, ...any)) {
	has := func(q meter.Quantity, phase uint8) *profile.Point {
		if i := slices.IndexFunc(points, func(pt profile.Point) bool { return pt.Quantity == q && pt.Phase == phase }); i >= 0 {
			return &points[i]
		}
		return nil
	}
	energies := 0
	for i := range points {
		pt := &points[i]
		name := meter.PointName(pt.Quantity, pt.Phase)
		total := pt.Phase == 0
		switch pt.Quantity {
		case meter.Import, meter.Export:
			// A reading without its registers is not good enough to bill.
			if total && pt.Slow {
				complain("%s is slow: what is billed is read every time", name)
			}
			if pt.Sign != "" {
				complain("%s has a sign: registers count one direction each", name)
			}
		case meter.Power:
			if pt.Slow {
				complain("%s is slow: what is controlled is read every time", name)
			}
			// All lines count as their total does, unless it is said.
			if sum := has(meter.Power, 0); sum != nil && pt.Sign == "" && sum.Sign == profile.SignExport {
				complain("%s has another sign than the total: write sign: import if that is so", name)
			}
		case meter.Voltage, meter.Current:
			// Three lines, or one.
			if pt.Phase > 1 && has(pt.Quantity, pt.Phase-1) == nil {
				complain("%s without line %d", name, pt.Phase-1)
			}
			if pt.Quantity == meter.Voltage && total {
				complain("%s: a voltage is of a line", name)
			}
		case meter.Status, meter.Firmware, meter.Fault, meter.Cable, meter.CurrentLimit, meter.StateOfCharge, meter.SessionEnergy, meter.Energy:
			if !total && pt.Quantity != meter.Energy {
				complain("%s: this has no lines", name)
			}
		}
		// A 16 bit register of watts per line overflows nowhere near a house,
		// but an energy register of 16 bits does in a week.
		if (pt.Quantity == meter.Import || pt.Quantity == meter.Export || pt.Quantity == meter.Energy) && len(pt.Sum) == 0 && pt.Registers() < 2 {
			complain("%s in one register", name)
		}
		if pt.Quantity == meter.Import || pt.Quantity == meter.Export || pt.Quantity == meter.Energy {
			if energies++; energies == poll.MaxRegisters+1 {
				complain("more than %d energy registers: poll watches no more", poll.MaxRegisters)
			}
		}
	}
}

// lintDetection checks that two different points tell the device from noise.
func lintDetection(p *profile.Profile, complain func(string, ...any)) {
	if p.SunSpec != nil || p.Experimental {
		return // the marker and a model id prove a SunSpec device
	}
	points := map[string]bool{}
	for _, r := range p.Detect {
		points[meter.PointName(r.Quantity, r.Phase)] = true
		if r.Min == r.Max {
			complain("detection by the one value %d", r.Min)
		}
	}
	if len(points) < 2 {
		complain("detection by %d points: want at least 2", len(points))
	}
	// Where the device has a voltage, it is the surest sign.
	if p.Has(meter.Voltage, 1) && p.Kind == profile.Meter && !points[meter.PointName(meter.Voltage, 1)] {
		complain("has a voltage and is not recognised by it")
	}
}

// lintBlocks checks the reads a poll takes.
func lintBlocks(p *profile.Profile, complain func(string, ...any)) {
	blocks := p.Blocks(0)
	most := cmp.Or(int(p.Timing.MaxBlock), profile.MaxBlock)
	fast := 0
	for _, b := range blocks {
		if int(b.Count) > most {
			complain("block at %d has %d registers, at most %d", b.Address, b.Count, most)
		}
		if !b.Slow {
			fast++
		}
	}
	const maxFast = 20 // a poll of a second at 9600 baud has room for that
	if fast > maxFast {
		complain("%d reads every poll: join blocks or make points slow", fast)
	}
}

// lintWallbox checks what a station needs of a wallbox.
func lintWallbox(p *profile.Profile, complain func(string, ...any)) {
	if p.Kind != profile.Wallbox {
		if len(p.States) > 0 {
			complain("states of IEC 61851-1 on a %s", p.Kind)
		}
		return
	}
	limit, ok := p.Write("current_limit")
	switch {
	case !ok && len(p.Orders) == 0:
		complain("a wallbox takes a current_limit, or orders with a power")
	case !ok: // told a power
	case limit.Values == nil && limit.Min < 6000:
		complain("current_limit from %d mA on: IEC 61851-1 has nothing below 6 A", limit.Min)
	}
	if !slices.ContainsFunc(p.Pause(), func(s profile.Setting) bool { return !s.Write.Optional }) {
		complain("nothing pauses it for sure: a current_limit of 0, or enable")
	}
	lintWatchdog(p, complain)
	lintPilot(p, complain)
}

// lintWatchdog checks that a master can keep a wallbox alive, and knows what
// happens otherwise.
func lintWatchdog(p *profile.Profile, complain func(string, ...any)) {
	w := p.Watchdog
	for _, name := range []string{"heartbeat", "failsafe_timeout", "failsafe_current"} {
		if _, ok := p.Write(name); ok && w == nil {
			complain("a %s without a watchdog", name)
		}
	}
	if w == nil {
		return
	}
	least := w.Timeout
	if timeout, ok := p.Write("failsafe_timeout"); ok {
		if _, ok := timeout.ReadBlock(); !ok {
			complain("nobody can check the failsafe_timeout: it has no read")
		}
		// A millisecond is what a register says, not what anybody sets.
		if ms := time.Duration(timeout.Min) * time.Millisecond; timeout.Min > 1 && (least == 0 || ms < least) {
			least = ms
		}
	}
	feeder, ok := p.Write(w.FedBy)
	if !ok {
		return // any request or write does
	}
	if feeder.Every == 0 {
		complain("%s feeds the watchdog, but nothing says how often: every", feeder.Name)
	}
	if least > 0 && 2*feeder.Every > least {
		complain("%s every %s is too rare for a watchdog of %s", feeder.Name, feeder.Every, least)
	}
}

// lintPilot checks that the state of the control pilot can be told.
func lintPilot(p *profile.Profile, complain func(string, ...any)) {
	for _, letter := range []string{"A", "B", "C"} {
		if _, ok := p.StateCode(letter); !ok {
			complain("no status means %s", letter)
		}
	}
	if i := slices.IndexFunc(p.Points, func(pt profile.Point) bool { return pt.Quantity == meter.Status }); i < 0 || p.Points[i].Slow {
		complain("a wallbox has a status, read every time")
	}
	if len(p.Cables) == 0 {
		return
	}
	if i := slices.IndexFunc(p.Points, func(pt profile.Point) bool { return pt.Quantity == meter.Cable }); i < 0 || p.Points[i].Slow {
		complain("cables without a cable that is read every time")
	}
	if _, ok := p.CableCode(true); !ok {
		complain("no cable means that a vehicle hangs on it")
	}
}

// lintCommands checks commands of all devices.
func lintCommands(p *profile.Profile, complain func(string, ...any)) {
	for i := range p.Writes {
		if w := &p.Writes[i]; w.Name == "phases" && !(w.Takes(1) && w.Takes(3)) {
			complain("phases takes 1 and 3")
		}
	}
	if len(p.Cables) > 0 && p.Kind != profile.Wallbox {
		complain("cables on a %s", p.Kind)
	}
	if len(p.Orders) == 0 {
		return
	}
	if p.Kind == profile.Meter {
		complain("orders to a battery on a %s", p.Kind)
	}
	if !p.Has(meter.BatteryPower, 0) && (p.Kind != profile.Wallbox || !p.Has(meter.Power, 0)) {
		complain("orders, and no battery_power to see whether they are obeyed")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Orders)) {
		w, _ := p.Write("power_command")
		writes, err := p.Order(name, w.Max)
		if err != nil {
			complain("order %s of %d mW: %v", name, w.Max, err)
			continue
		}
		values := map[string]int64{}
		for _, c := range writes {
			for i := range p.Writes {
				if v, ok := p.Writes[i].Decode(c.Address, c.Values, nil); ok {
					values[p.Writes[i].Name] = v
				}
			}
		}
		if got, _ := p.Ordered(values); (got == profile.OrderRelease) != (name == profile.OrderRelease) {
			complain("order %s cannot be told from %s", name, got)
		}
	}
}

const head = `# Devices

Written by ` + "`go run ./tools/profilelint -write`" + ` from the files in meter/profile/data; do not edit.

A profile is what the program knows of a device: registers, serial setting, timing, how to recognise it, and where the facts come from. ` + "`joulegate meter profiles`" + ` lists them,
` + "`joulegate meter read --profile ID`" + ` reads one device, ` + "`joulegate sim meter --profile ID`" + ` simulates it. Profiles of your own go into a folder: ` + "`--profiles FOLDER`" + `.

- **Confidence** A: two or more independent sources agree. B: one solid source. C: sources disagree.
- **Experimental** profiles have an unsettled register. They say so when they are used; compare them with the device's display before anything is billed.
- **Hybrid inverters** have two profiles: the inverter shows what the modules deliver, its meter what flows to and from the grid.
- A profile's sign or direction can be turned round: ` + "`ID+reversed`" + ` for the sign of power, ` + "`ID+swapped`" + ` for current transformers mounted the wrong way.
`

const finding = `
## Finding devices

` + "`joulegate bus scan --rtu DEVICE`" + ` tries the settings and units below first, then all others, and stops at the setting at which something answers; ` + "`--full`" + ` goes on. Measured on a simulated line as slow as a real one:

| Scan | Takes |
|---|---|
| a device as it leaves the factory (9600 8N1, unit 1), and all other units there | 20 s |
| a device where nobody expects it (4800 8N2, unit 211), the only one | 8 min 2 s |
| ` + "`--full`" + `: 24 settings, 247 units each | 9 min 15 s |
| 247 units at one setting, each silent, at 9600 / 1200 bit/s | 19 s / 46 s |

Each request gets what its frames take at that speed, and 50 ms (at likely units 150 ms). Devices that think longer are heard while others are asked, and asked again. With ` + "`--timeout 150ms`" + ` everything takes about twice as long.
`

var kinds = []struct {
	kind  profile.Kind
	title string
}{{profile.Meter, "Meters"}, {profile.Inverter, "Inverters"}, {profile.Battery, "Batteries"}, {profile.Wallbox, "Wallboxes"}}

// ofKind returns the profiles of a kind by vendor.
func ofKind(profiles []*profile.Profile, k profile.Kind) []*profile.Profile {
	list := slices.DeleteFunc(slices.Clone(profiles), func(p *profile.Profile) bool { return p.Kind != k })
	slices.SortFunc(list, func(x, y *profile.Profile) int {
		return cmp.Or(strings.Compare(strings.ToLower(x.Vendor), strings.ToLower(y.Vendor)), strings.Compare(x.ID, y.ID))
	})
	return list
}

func confidence(p *profile.Profile) string {
	if p.Experimental {
		return string(p.Confidence()) + ", **experimental**"
	}
	return string(p.Confidence())
}

// What encloses the list in the README.
const (
	listBegin = "<!-- devices -->"
	listEnd   = "<!-- /devices -->"
)

// withList returns text with the list of devices between its marks.
func withList(text string, profiles []*profile.Profile) (string, error) {
	before, rest, ok := strings.Cut(text, listBegin)
	_, after, end := strings.Cut(rest, listEnd)
	if !ok || !end {
		return "", fmt.Errorf("want %s and, after it, %s", listBegin, listEnd)
	}
	var b strings.Builder
	b.WriteString("\n| Device | Profile | Confidence |\n|---|---|---|\n")
	for _, k := range kinds {
		for _, p := range ofKind(profiles, k.kind) {
			fmt.Fprintf(&b, "| %s %s | `%s` | %s |\n", p.Vendor, strings.ReplaceAll(p.Model, "|", "\\|"), p.ID, confidence(p))
		}
	}
	return before + listBegin + "\n" + b.String() + "\n" + listEnd + after, nil
}

// table returns the page of all devices.
func table(profiles []*profile.Profile) string {
	var b strings.Builder
	b.WriteString(head)
	b.WriteString(finding)
	for _, k := range kinds {
		fmt.Fprintf(&b, "\n## %s\n\n| Device | Profile | Factory setting | Measures | Confidence |\n|---|---|---|---|---|\n", k.title)
		for _, p := range ofKind(profiles, k.kind) {
			fmt.Fprintf(&b, "| %s %s | `%s` | %s | %s | %s |\n", p.Vendor, strings.ReplaceAll(p.Model, "|", "\\|"), p.ID, setting(p.Serial), measures(p), confidence(p))
		}
	}
	b.WriteString(led(profiles))
	b.WriteString("\n## Notes\n\n")
	for _, p := range profiles {
		if p.Note != "" {
			fmt.Fprintf(&b, "- `%s`: %s\n", p.ID, p.Note)
		}
	}
	return b.String()
}

const ledHead = `
## How wallboxes and batteries are led

A wallbox is offered 0 or 6 A and more. It falls back by itself when nothing feeds its watchdog for the time that it has from the factory or was set to; "set" means that the time can be set. A command in brackets is not there on all models.

| Profile | Current | Paused by | Set up once | Watchdog fed by | Falls back after | Phases |
|---|---|---|---|---|---|---|
`

// led says how wallboxes and batteries are led.
func led(profiles []*profile.Profile) string {
	var b strings.Builder
	b.WriteString(ledHead)
	for _, p := range ofKind(profiles, profile.Wallbox) {
		var pause, setup []string
		for _, s := range p.Pause() {
			pause = append(pause, command(s.Write, s.Value))
		}
		for _, s := range p.Setup() {
			setup = append(setup, command(s.Write, s.Value))
		}
		feed, after := "-", "-"
		if w := p.Watchdog; w != nil {
			feed, after = strings.ReplaceAll(w.FedBy, "_", " "), ""
			if c, ok := p.Write(w.FedBy); ok && c.Every > 0 {
				feed += fmt.Sprintf(" every %s", c.Every)
			}
			if w.Timeout > 0 {
				after = w.Timeout.String()
			}
			if _, ok := p.Write("failsafe_timeout"); ok {
				after = strings.TrimPrefix(after+", set", ", ")
			}
			if after == "" {
				after = "not known"
			}
			if c, ok := p.Write("failsafe_current"); ok {
				after += fmt.Sprintf("; to 0, %s A", amperes(c))
			}
		}
		phases := "-"
		if w, ok := p.Write("phases"); ok {
			phases = "1, 3"
			if w.Optional {
				phases = "(1, 3)"
			}
		}
		current := "-"
		if w, ok := p.Write("current_limit"); ok {
			current = amperes(w) + " A"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s |\n", p.ID, current, strings.Join(pause, ", "), cmp.Or(strings.Join(setup, ", "), "-"), feed, after, phases)
	}
	b.WriteString("\n| Profile | Orders to its battery | Power |\n|---|---|---|\n")
	for _, p := range profiles {
		if w, ok := p.Write("power_command"); ok && len(p.Orders) > 0 {
			fmt.Fprintf(&b, "| `%s` | %s | up to %d W |\n", p.ID, strings.Join(slices.Sorted(maps.Keys(p.Orders)), ", "), w.Max/1000)
		}
	}
	return b.String()
}

// command is a command with its value, for people.
func command(w *profile.Write, v int64) string {
	text := fmt.Sprintf("%s %d", strings.ReplaceAll(w.Name, "_", " "), v)
	if w.Optional {
		return "(" + text + ")"
	}
	return text
}

// amperes is the range of a current.
func amperes(w *profile.Write) string {
	lo, hi := w.Min, w.Max
	for v := range w.Values {
		if v > 0 && (lo == 0 || v < lo) {
			lo = v
		}
		hi = max(hi, v)
	}
	return fmt.Sprintf("%d..%d", lo/1000, hi/1000)
}

func setting(s profile.Serial) string {
	var ways []string
	if s.Baud != 0 {
		ways = append(ways, fmt.Sprintf("%d %s", s.Baud, s.Framing))
	}
	if s.Port != 0 {
		ways = append(ways, fmt.Sprintf("TCP %d", s.Port))
	}
	return fmt.Sprintf("%s, unit %d", strings.Join(ways, " or "), s.Unit)
}

// measures says in words what a profile has.
func measures(p *profile.Profile) string {
	var out []string
	for q := meter.Power; q.Valid(); q++ {
		total, lines := p.Has(q, 0), 0
		for phase := uint8(1); phase <= 3; phase++ {
			if p.Has(q, phase) {
				lines++
			}
		}
		name := strings.ReplaceAll(q.String(), "_", " ")
		switch {
		case lines == 0 && !total:
			continue
		case lines > 1:
			name += fmt.Sprintf(" L1-L%d", lines)
		}
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}
