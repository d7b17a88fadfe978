package config

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter/circuit"
)

const full = `version: 1
name: north
board: simulated
lines:
- id: rs485
  device: /dev/ttyUSB0
- {id: lan, tcp: "192.0.2.7:502", timeout: 1s}
meters:
- {id: house, line: rs485, unit: 1, profile: eastron-sdm630, role: site}
- {id: roof, line: lan, unit: 3, profile: sunspec-inverter, role: production, interval: 5s, invert: true}
- {id: car, line: rs485, unit: 2, profile: eastron-sdm120, role: charger}
chargers:
- id: 1
  meter: car
  relay: RELAY1
  estop: IN1
  evse: {line: rs485, unit: 10, profile: simpleevse}
  phases: 1
site: {fuse_ma: 35000}
market: {sell_limit_nano_per_wh: 0, buy_limit_nano_per_wh: 280000}
mqtt: {broker: "tls://broker.example:8883", user: north, password_file: /etc/joulegate/mqtt}
pins: {socket: /run/joulegate/pins.sock}
timing: {stale_after: 5s}
`

func TestParse(t *testing.T) {
	c, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case c.Lines[0].Baud != 9600 || c.Lines[0].Framing != "8N1" || c.Lines[0].Timeout != ms(500):
		t.Errorf("line defaults %+v", c.Lines[0])
	case c.Lines[1].Baud != 0 || c.Lines[1].Timeout != sec(1):
		t.Errorf("a TCP line %+v", c.Lines[1])
	case c.Meters[0].Interval != sec(1) || c.Meters[0].MaxPower != 22_000 || c.Meters[1].Interval != sec(5) || !c.Meters[1].Invert:
		t.Errorf("meters %+v", c.Meters)
	case c.Chargers[0].MaxCurrent != 16_000 || c.Chargers[0].Phases != 1 || c.Chargers[0].Mode != "market" || !c.Chargers[0].EVSE.Fitted():
		t.Errorf("charger %+v", c.Chargers[0])
	case c.Market.SellLimit == nil || *c.Market.SellLimit != 0 || *c.Market.BuyLimit != 280_000:
		t.Errorf("a limit of 0 is a limit: %+v", c.Market)
	case c.Timing.StaleAfter != sec(5) || c.Timing.Tick != ms(25):
		t.Errorf("timing %+v", c.Timing)
	}
}

func TestErrorsNameLineAndPath(t *testing.T) {
	head := "version: 1\nname: north\nboard: simulated\n"
	for _, c := range []struct{ name, doc, want string }{
		{"unknown key", head + "bord: x\n", `line 4: bord: unknown field "bord"`},
		{"unknown key in a list", head + "lines:\n- id: a\n  tcp: 127.0.0.1:502\n  bauds: 9600\n", `line 7: lines[0].bauds: unknown field "bauds"`},
		{"number for a word", head + "meters:\n- {id: a, unit: one}\n", "line 5: meters[0].unit: a text stands here, want a whole number"},
		{"unit too large", head + "meters:\n- id: a\n  unit: 300\n", "line 6: meters[0].unit: 300 is out of range"},
		{"list for a word", "version: 1\nname: [a]\n", "line 2: name: a list stands here, want a text"},
		{"time without unit", head + "timing:\n  tick: 20\n", `line 5: timing.tick: "20" is not a time`},
		{"negative time", head + "timing: {tick: -1s}\n", `line 4: timing.tick: "-1s" is not a time`},
		{"map for a time", head + "timing: {tick: {a: b}}\n", "line 4: timing.tick:"},
		{"twice", head + "name: south\n", `line 4: mapping key "name" already defined`},
		{"open quote", head + "panel: {listen: \"x}\n", "line 4: "},
		{"anchor", head + "p2p: &a {mdns: true}\n", "line 4: \"&\": anchors"},
		{"two documents", head + "---\nversion: 1\n", "2 YAML documents"},
		{"empty", "", "the file is empty"},
		{"comment only", "# nothing\n", "the file is empty"},
		{"list", "- a\n", "line 1: "},
		{"other version", "version: 2\nname: a\nboard: generic\n", "line 1: version: 2, this program reads 1"},
		{"no version", "name: a\nboard: generic\n", "version: 0"},
		{"other board", "version: 1\nname: a\nboard: toaster\n", `line 3: board: unknown board "toaster" (generic, gpiochip, qemu-virt, raspberrypi-3,`},
		{"name", "version: 1\nname: Frau Meier\nboard: generic\n", "line 2: name: "},
		{"deep", head + "p2p: {listen: " + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "}\n", "line 4: nested too deeply"},
		{"long", strings.Repeat("#", MaxBytes+1), "at most"},
		{"wide", head + "p2p: {listen: [" + strings.Repeat("a,", maxTokens) + "]}\n", "words and signs"},
		{"many addresses", head + "p2p: {listen: [" + strings.Repeat("/ip4,", MaxListen+1) + "]}\n", "line 4: p2p.listen: 5 addresses"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.doc))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			var list Errors
			if !errors.As(err, &list) || len(list) == 0 {
				t.Errorf("%T is not a list of errors", err)
			}
		})
	}
}

// TestValidate changes one thing in a good document and expects one message.
func TestValidate(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"rating raised", "phases: 1", "max_current_ma: 40000", "line 18: chargers[0].max_current_ma: 40000 is outside 6000..32000, the rating of board simulated"},
		{"3 A", "phases: 1", "max_current_ma: 3000", "3000 is outside 6000..32000"},
		{"stale time stretched", "stale_after: 5s", "stale_after: 11s", "line 23: timing.stale_after: 11s is outside"},
		{"blocks too short", "timing:", "ledger: {keep_days: 20}\ntiming:", "ledger.keep_days: 20 is outside 0, or 21..36525"},
		{"own records before blocks", "timing:", "ledger: {keep_days: 90, journal_days: 80}\ntiming:", "ledger.journal_days: 80: 0, or at least keep_days (90)"},
		{"stop stretched", "stale_after: 5s", "stop_wait: 4s", "timing.stop_wait: 4s is outside"},
		{"watchdog shorter than ticks", "stale_after: 5s", "watchdog: 50ms", "timing.watchdog: 50ms is outside"},
		{"two phases", "phases: 1", "phases: 2", "chargers[0].phases: 2"},
		{"mode", "phases: 1", "mode: fast", `chargers[0].mode: "fast" is not one of`},
		{"no such relay", "RELAY1", "RELAY9", `board simulated has no output "RELAY9"`},
		{"a relay as stop button", "estop: IN1", "estop: RELAY2", `has no input "RELAY2"`},
		{"one input twice", "estop: IN1", "estop: IN1\n  feedback: IN1", "IN1 is already used by chargers[0].estop"},
		{"meter of another role", "meter: car", "meter: house", "not a meter with role charger"},
		{"evse unknown", "simpleevse}", "magic}", `"magic" is unknown`},
		{"evse of another kind", "simpleevse}", "eastron-sdm630}", "eastron-sdm630 is a meter, not a wallbox"},
		{"evse without profile", ", profile: simpleevse}", "}", "chargers[0].evse.profile: is required"},
		{"evse too small", "unit: 10, profile: simpleevse}", "unit: 10, profile: heidelberg-energy-control}\n  max_current_ma: 20000", "heidelberg-energy-control takes at most 16000 mA, max_current_ma is 20000"},
		{"no unit 255 on a serial line", "unit: 10, profile: simpleevse}", "unit: 255, profile: keba-p30}", "chargers[0].evse.unit: 255 is outside"},
		{"reader without charger", "site: {fuse_ma: 35000}", "readers: [{charger: 7, device: /dev/ttyACM0}]", "readers[0].charger: there is no charger 7"},
		{"reader nowhere", "site: {fuse_ma: 35000}", "readers: [{charger: 1}]", "readers[0]: wants exactly one of device and socket"},
		{"one reader twice", "site: {fuse_ma: 35000}", "readers: [{charger: 1, socket: /run/r}, {charger: 1, socket: /run/r}]", "/run/r is already used by readers[0]"},
		{"unit twice", "unit: 10", "unit: 1", "unit 1 on line rs485 is already meters[0]"},
		{"no line", "line: lan, unit: 3", "line: wifi, unit: 3", `there is no line "wifi"`},
		{"unit 0", "unit: 2", "unit: 0", "meters[2].unit: 0 is outside"},
		{"role", "role: production", "role: solar", `"solar" is not one of site`},
		{"two sites", "role: production", "role: site", "meters[1].role: a gateway has one site meter"},
		{"no site", "role: site", "role: production", "none has the role site"},
		{"two endpoints", "device: /dev/ttyUSB0", "device: /dev/ttyUSB0\n  tcp: 192.0.2.8:502", "has 2 of device, tcp, rtutcp"},
		{"endpoint twice", "device: /dev/ttyUSB0", "rtutcp: 192.0.2.7:502", "is already used by"},
		{"no endpoint", "  device: /dev/ttyUSB0\n", "", "has 0 of device"},
		{"baud", "device: /dev/ttyUSB0", "device: /dev/ttyUSB0\n  baud: 9601", "line 7: lines[0].baud: 9601"},
		{"framing", "device: /dev/ttyUSB0", "device: /dev/ttyUSB0\n  framing: 7E1", `"7E1" is not one of 8N1`},
		{"id twice", "id: roof", "id: house", `meters[1].id: "house"`},
		{"negative price", "280000", "-1", "buy_limit_nano_per_wh: -1 is negative"},
		{"broker", "tls://", "http://", "mqtt.broker"},
		{"socket missing", "pins: {socket: /run/joulegate/pins.sock}\n", "", "needs the socket"},
		{"fuse", "fuse_ma: 35000", "fuse_ma: 35", "site.fuse_ma: 35 is outside"},
	} {
		t.Run(c.name, func(t *testing.T) {
			doc := strings.Replace(full, c.old, c.new, 1)
			if doc == full {
				t.Fatal("nothing was changed")
			}
			if _, err := Parse([]byte(doc)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestABoardWithoutRelaysChargesNobody(t *testing.T) {
	doc := strings.Replace(full, "board: simulated", "board: generic", 1)
	if _, err := Parse([]byte(doc)); err == nil || !strings.Contains(err.Error(), "board generic has room for 0") {
		t.Error(err)
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	_, err := Parse([]byte("version: 3\nname: N\nboard: x\npanel: {listen: here}\n"))
	var list Errors
	if !errors.As(err, &list) || len(list) != 4 {
		t.Fatalf("%v", err)
	}
	for i, line := range []int{1, 2, 3, 4} {
		if list[i].Line != line {
			t.Errorf("%v: line %d, want %d", list[i], list[i].Line, line)
		}
	}
}

func TestRenderLoads(t *testing.T) {
	c, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{"sample": Sample("south"), "full": c} {
		b := Render(c)
		back, err := Parse(b)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, b)
		}
		if !reflect.DeepEqual(back, c) {
			t.Errorf("%s: %v", name, Diff(c, back))
		}
		if !strings.Contains(string(b), "# exactly one") && !strings.Contains(string(b), "exactly one has the role site") {
			t.Errorf("%s: no comments\n%s", name, b)
		}
	}
}

func TestDiff(t *testing.T) {
	a, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	if d := Diff(a, a); len(d) != 0 {
		t.Errorf("a configuration differs from itself: %v", d)
	}
	b := a
	b.Meters = append([]Meter(nil), a.Meters[1], a.Meters[0]) // order is no difference
	b.Meters[1].Unit = 7
	b.Market.SellLimit = nil
	limit := chain.NanoPerWh(5)
	b.Market.BuyLimit = &limit
	want := map[string][2]string{
		"market.buy_limit_nano_per_wh": {"280000", "5"}, "market.sell_limit_nano_per_wh": {"0", ""},
		"meters[house].unit": {"1", "7"}, "meters[car].unit": {"2", ""}, "meters[car].role": {"charger", ""},
	}
	got := map[string][2]string{}
	for _, c := range Diff(a, b) {
		got[c.Path] = [2]string{c.Old, c.New}
	}
	for p, w := range want {
		if got[p] != w {
			t.Errorf("%s: %q, want %q", p, got[p], w)
		}
	}
	for p := range got {
		if !strings.HasPrefix(p, "meters[car]") && want[p] == [2]string{} {
			t.Errorf("unexpected change of %s", p)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add(Render(Sample("a")))
	f.Add([]byte("version: 1\nlines:\n- id: [[[[\n"))
	f.Add([]byte("a: &a [*a, *a]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Parse(Render(c))
		if err != nil {
			t.Fatalf("what was rendered does not load: %v\n%s", err, Render(c))
		}
		if d := Diff(c, again); len(d) != 0 {
			t.Fatalf("%v", d)
		}
	})
}

// The address that the manual advertises is one that a fresh configuration
// listens on: a port chosen anew at each start can be dialled by nobody.
func TestSampleListensOnAFixedPort(t *testing.T) {
	c := Sample("north")
	if len(c.P2P.Listen) != 1 || !strings.HasSuffix(c.P2P.Listen[0], "/tcp/4470") {
		t.Errorf("listens on %v", c.P2P.Listen)
	}
}

// TestPinsOfYourOwn: lines that the installer has wired become pins of the
// board, and what an output does when nobody drives it is not the installer's
// to get wrong.
func TestPinsOfYourOwn(t *testing.T) {
	const head = "version: 1\nname: a\nboard: gpiochip\nlines: [{id: bus, tcp: 127.0.0.1:502}]\nmeters:\n- {id: house, line: bus, unit: 1, profile: eastron-sdm630, role: site}\n- {id: car, line: bus, unit: 2, profile: eastron-sdm630, role: charger}\n" +
		"chargers: [{id: 1, meter: car, relay: K1, estop: STOP}]\nwatchdog: {device: /dev/watchdog0, heartbeat: BEAT}\npins:\n  lines:\n"
	const good = "  - {name: K1, chip: c, line: 3, label: X3, direction: output, polarity: active_low}\n" +
		"  - {name: BEAT, chip: c, line: 4, direction: output, polarity: active_high}\n" +
		"  - {name: STOP, chip: c, line: 5, direction: input, polarity: active_high, pull: up, debounce_us: 500}\n"
	c, err := Parse([]byte(head + good))
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Hardware()
	if err != nil {
		t.Fatal(err)
	}
	k1, _ := b.Pin("K1")
	beat, _ := b.Pin("BEAT")
	stop, _ := b.Pin("STOP")
	if !k1.SafeHigh || k1.Pull != board.PullUp || beat.SafeHigh || beat.Pull != board.PullDown || stop.Debounce != 500 || stop.Pull != board.PullUp {
		t.Errorf("%+v %+v %+v", k1, beat, stop)
	}
	if got := c.Outputs(); !slices.Equal(got, []string{"BEAT", "K1"}) {
		t.Errorf("outputs %s", got)
	}
	if again, err := Parse(Render(c)); err != nil || len(Diff(c, again)) > 0 {
		t.Errorf("%v %v", err, Diff(c, again))
	}
	for _, e := range []struct{ name, old, now, want string }{
		{"no such pin", "relay: K1", "relay: K2", `board gpiochip has no output "K2"`},
		{"an input as heartbeat", "heartbeat: BEAT", "heartbeat: STOP", `watchdog.heartbeat: board gpiochip has no output "STOP"`},
		{"a relay as heartbeat", "heartbeat: BEAT", "heartbeat: K1", "K1 is already used by chargers[0].relay"},
		{"one line twice", "line: 4", "line: 3", "BEAT is line 3"},
		{"one name twice", "name: BEAT", "name: K1", `pin name "K1" is missing or used twice`},
		{"polarity", "active_low", "low", `unknown polarity "low"`},
		{"slow", "debounce_us: 500", "debounce_us: 500000", "line 14: pins.lines[2].debounce_us: 500000 is outside"},
		{"not a device", "/dev/watchdog0", "watchdog", "watchdog.device: \"watchdog\" is not a device"},
		{"board without", "board: gpiochip", "board: generic", "takes no pins of your own"},
		{"no line", "{name: BEAT, chip: c, line: 4,", "{name: BEAT, chip: \"\",", "neither chip nor label"},
	} {
		_, err := Parse([]byte(strings.Replace(head+good, e.old, e.now, 1)))
		if err == nil || !strings.Contains(err.Error(), e.want) {
			t.Errorf("%s: %v, want %s", e.name, err, e.want)
		}
	}
	// A board's own pins and the installer's live side by side.
	c, err = Parse([]byte(strings.Replace(head+good, "board: gpiochip", "board: raspberrypi-4", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = c.Hardware(); err != nil || len(b.Pins) != 8+3 {
		t.Errorf("%d pins, %v", len(b.Pins), err)
	}
}

const shared = `version: 1
name: north
board: simulated
lines: [{id: rs485, device: /dev/ttyUSB0}]
meters:
- {id: house, line: rs485, unit: 1, profile: eastron-sdm630, role: site, interval: 3s}
- {id: car, line: rs485, unit: 2, profile: eastron-sdm630, role: charger}
- {id: car2, line: rs485, unit: 3, profile: eastron-sdm120, role: charger}
- {id: street, line: rs485, unit: 9, profile: eastron-sdm630, role: connection}
chargers:
- {id: 1, meter: car, relay: RELAY1, circuit: garage, wiring: L2 L3 L1, departure: {by: "07:00", wh: 20000, max_price_nano_per_wh: 250000}}
- {id: 2, meter: car2, relay: RELAY2, phases: 1, circuit: garage, wiring: L3}
site: {fuse_ma: 35000}
circuits:
- {id: garage, rating_ma: 20000}
feeder:
  share_ma: 16000
  leader: north
  rating_ma: 63000
  members:
  - {gateway: north, share_ma: 16000, chargers: [{id: 1, max_current_ma: 16000, wiring: L2 L3 L1}, {id: 2, max_current_ma: 16000, wiring: L3}]}
  - {gateway: south, share_ma: 32000, chargers: [{id: 1, max_current_ma: 32000, wiring: L1 L2 L3}]}
dimming: {pin: IN3, mqtt: true, ledger: true, total_w: 6000}
battery: {meter: house, first_permille: 800}
pins: {socket: /run/joulegate/pins.sock}
`

func TestCircuitsAndUtility(t *testing.T) {
	c, err := Parse([]byte(shared))
	if err != nil {
		t.Fatal(err)
	}
	all, meters := c.Tree()
	if len(all) != 3 || all[0].ID != FeederCircuit || all[1].Parent != FeederCircuit || all[2].Parent != SiteCircuit || !slices.Equal(meters, []string{"", "house", ""}) {
		t.Errorf("circuits %+v with meters %q", all, meters)
	}
	if ends, err := c.Ends(); err != nil || ends[0].Wiring != (circuit.Wiring{2, 3, 1}) || ends[1].Circuit != "garage" {
		t.Errorf("ends %+v, %v", ends, err)
	}
	if lead, err := c.Lead(); err != nil || lead.Member("south") != 1 {
		t.Errorf("feeder %+v, %v", lead, err)
	}
	if r := c.CircuitRules(); r.RaiseDelay != 7*time.Second {
		t.Errorf("a meter read every 3 s, and limits rise after %s", r.RaiseDelay)
	}
	if r := c.DimRules(); r.PerDevice != 4_200 || r.FailsafeFor != 2*time.Hour || r.Watched[0] || !r.Watched[1] || r.Watched[2] {
		t.Errorf("dimming %+v", r)
	}
	for _, v := range []struct{ old, new, want string }{
		{"circuit: garage, wiring: L3", "circuit: cellar, wiring: L3", `chargers[1].circuit: there is no circuit "cellar"`},
		{"wiring: L3}\nsite", "wiring: L1 L2 L3}\nsite", "names 3 phases, the charger has 1"},
		{"rating_ma: 20000}", "rating_ma: 20000, parent: attic}", `circuits[0].parent: there is no circuit "attic"`},
		{"rating_ma: 20000}", "rating_ma: 20000, parent: garage}", "a ring"},
		{"rating_ma: 20000}", "rating_ma: 5000}", "outside 6000..250000"},
		{"rating_ma: 63000", "rating_ma: 40000", "failsafe shares of 48000"},
		{"gateway: north, share_ma: 16000", "gateway: north, share_ma: 10000", "with another share_ma"},
		{"leader: north", "leader: south", "belong into the leader's configuration"},
		{"total_w: 6000", "total_w: 3000", "less than one charger keeps"},
		{"total_w: 6000", "failsafe: 1h", "dimming.failsafe: 1h is outside 2h..24h"},
		{"pin: IN3", "pin: RELAY3", "dimming.pin"},
		{"first_permille: 800", "first_permille: 1001", "outside 0..1000"},
		{`by: "07:00"`, "by: seven", "not a time of day"},
		{"circuit: garage, wiring: L3}", "circuit: garage, wiring: L3, phase_switch: true}", "needs a statement"},
	} {
		doc := strings.Replace(shared, v.old, v.new, 1)
		if doc == shared {
			t.Fatalf("%q is not in the document", v.old)
		}
		if _, err := Parse([]byte(doc)); err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("%s: %v\nwant %s", v.new, err, v.want)
		}
	}
}

// Taking energy out of vehicles is off unless everything for it is there.
func TestDischargeNeedsAStatement(t *testing.T) {
	doc := strings.NewReplacer(
		"{id: car, line: rs485, unit: 2, profile: eastron-sdm120, role: charger}", "{id: car, line: lan, unit: 7, profile: generic-dc-bidirectional, role: charger}",
		"evse: {line: rs485, unit: 10, profile: simpleevse}", "evse: {line: lan, unit: 7, profile: generic-dc-bidirectional}\n  statement: /etc/joulegate/one.statement\n  discharge: {enabled: true, capacity_wh: 60000, max_power_w: 7000}",
		"  relay: RELAY1\n", "",
	).Replace(full) + "installers: [" + strings.Repeat("ab", 32) + "]\n"
	c, err := Parse([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	if d := c.Chargers[0].Discharge; !d.Enabled || d.Floor != 400 {
		t.Errorf("%+v", d)
	}
	for old, v := range map[string][2]string{
		"  statement: /etc/joulegate/one.statement\n": {"", "needs a statement"},
		"installers: [":        {"#", "needs a statement"},
		"capacity_wh: 60000, ": {"", "discharge.capacity_wh: 0 is outside"},
		"max_power_w: 7000}":   {"max_power_w: 60000}", "discharge.max_power_w: 60000 is outside"},
		"7000}":                {"7000, floor_permille: 50}", "discharge.floor_permille: 50 is outside 100..1000"},
		"capacity_wh: 60000":   {"capacity_wh: 60000, floor_wh: 60001", "discharge.floor_wh"},
	} {
		bad := strings.Replace(doc, old, v[0], 1)
		if _, err := Parse([]byte(bad)); bad == doc || err == nil || !strings.Contains(err.Error(), v[1]) {
			t.Errorf("%s: %v", v[1], err)
		}
	}
}

// A wallbox with a meter of its own is one device with two parts to play; for
// anybody else its address is taken.
func TestAWallboxIsItsOwnSessionMeter(t *testing.T) {
	doc := strings.NewReplacer(
		"{id: car, line: rs485, unit: 2, profile: eastron-sdm120, role: charger}", "{id: car, line: lan, unit: 255, profile: keba-p30, role: charger}",
		"evse: {line: rs485, unit: 10, profile: simpleevse}", "evse: {line: lan, unit: 255, profile: keba-p30}",
		"  relay: RELAY1\n", "",
	).Replace(full)
	if _, err := Parse([]byte(doc)); err != nil {
		t.Fatal(err)
	}
	taken := strings.Replace(doc, "{id: roof, line: lan, unit: 3,", "{id: roof, line: lan, unit: 255,", 1)
	if _, err := Parse([]byte(taken)); err == nil || !strings.Contains(err.Error(), "unit 255 on line lan is already") {
		t.Errorf("two devices at one address: %v", err)
	}
}
