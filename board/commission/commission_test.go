package commission

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/meter/identify"
	"github.com/joulegate/joulegate/meter/poll"
)

var update = flag.Bool("update", false, "write testdata anew")

var device = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))

func public(k ed25519.PrivateKey) (out chain.Key) {
	copy(out[:], k.Public().(ed25519.PublicKey))
	return out
}

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

const site = `
version: 1
name: north
board: raspberrypi-4
lines: [{id: rs485, device: /dev/ttyUSB0, baud: 9600, framing: 8N1, timeout: 500ms}]
meters:
  - {id: house, line: rs485, unit: 1, profile: eastron-sdm630, role: site}
  - {id: car, line: rs485, unit: 2, profile: eastron-sdm630, role: charger}
site: {fuse_ma: 35000}
chargers:
  - {id: 1, meter: car, relay: RELAY1, estop: IN1, earth_fault: IN2, feedback: IN3, max_current_ma: 16000, phases: 3, mode: now, max_switches: 20, offline_limit_wh: 1000}
`

// done is a gateway at which everything was tried and is in order.
func done(t *testing.T) Input {
	t.Helper()
	c, err := config.Parse([]byte(site))
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Hardware()
	if err != nil {
		t.Fatal(err)
	}
	h, at := &c.Chargers[0], noon.Add(-10*time.Minute)
	contact := func(name string) Contact {
		return Contact{at, at.Add(2 * time.Second), ContactWires(&b, h, name)}
	}
	direction := func(i int) Direction {
		return Direction{at, MeterWires(&c.Meters[i]), "a load of 2000 W was switched", []Line{{1, 1990, identify.Right}, {2, 2010, identify.Right}}}
	}
	volts := map[string]int64{"voltage_l1_mv": 230_400, "phase_sequence_code": 0}
	return Input{
		Made: noon, Installer: "A. Installer <a&b>", Config: &c, Board: b,
		Gateway: Gateway{Name: "north", Device: public(device), Chain: "sunny", Version: "1.0.0", Program: "ab", Revision: 3, Board: "raspberrypi-4", Model: "Raspberry Pi 4", Serial: "100000001"},
		Computer: []Row{
			{ID: "kernel", What: "kernel", State: OK, Seen: "Linux 6.12"},
			{ID: "clock", What: "clock", State: OK, Seen: "synchronised"},
			{ID: "watchdog", What: "watchdog", State: Note, Seen: "none", Remedy: "fit one"},
		},
		Trials: Trials{
			Version:  TrialsVersion,
			Relays:   map[string]Relay{"1": {at, RelayWires(&b, h), board.RelayTest{OK: true, ClosedFor: 2 * time.Second, Contact: board.ContactFollowed, Ended: "test over"}}},
			Contacts: map[string]Contact{"1/estop": contact(board.ContactEStop), "1/earth_fault": contact(board.ContactEarth)},
			Scans: map[string]Scan{"rs485": {at, LineWires(&c, "rs485"), []Found{
				{Unit: 1, Profile: "eastron-sdm630", Fits: []string{"eastron-sdm630"}}, {Unit: 2, Fits: []string{"eastron-sdm72d", "eastron-sdm630"}},
			}}},
			Directions: map[string]Direction{"house": direction(0), "car": direction(1)},
			Backup:     at,
		},
		Snapshot: board.Snapshot{
			Meters: []board.Meter{
				{ID: "house", Role: "site", Quality: "good", PowerW: 2500, Import: 12_345, Points: volts},
				{ID: "car", Role: "charger", Quality: "good", PowerW: 2000, Points: volts},
			},
			Chargers: []board.Charger{{ID: 1, State: "idle", Vehicle: "A", Order: "right", Contacts: []board.ContactState{{Name: board.ContactEStop}, {Name: board.ContactEarth}, {Name: board.ContactFeedback}}}},
		},
		Meters: map[string]Meter{
			"house": {Identity: poll.Identity{Serial: "2211"}, Vendor: "Eastron", Model: "SDM630", Requests: 1000, Answers: 999, Typical: 20 * time.Millisecond},
			"car":   {Identity: poll.Identity{Serial: "2212"}, Vendor: "Eastron", Model: "SDM630", Requests: 1000, Answers: 1000, Typical: 20 * time.Millisecond},
		},
		Grid:   Grid{Member: true, Members: 3, Connected: 2, Height: 77},
		Broker: Broker{Address: "127.0.0.1:1883", Embedded: true, Connected: true},
		Guard:  guard.Status{Mode: "observe", Coverage: []guard.Coverage{{Sensor: 1, Level: "full"}}},
	}
}

func red(r Report) (ids []string) {
	for _, row := range r.Red() {
		ids = append(ids, row.ID)
		if row.Remedy == "" {
			ids = append(ids, "and has no remedy")
		}
	}
	return ids
}

// TestComplete: everything done is green, and its JSON is what scripts rely on.
func TestComplete(t *testing.T) {
	r := Make(done(t))
	if !r.Complete || r.Open != 0 || len(r.Red()) != 0 {
		t.Fatalf("red: %v", red(r))
	}
	got, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "complete.json")
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got)+"\n" {
		t.Errorf("the report's JSON has changed (-update writes it anew; fields are added, never changed):\n%s", got)
	}
}

// TestUntouched: a gateway that runs and at which nothing was tried names all
// that is to be tried, with the command.
func TestUntouched(t *testing.T) {
	in := done(t)
	in.Trials = Trials{}
	want := []string{
		"charger.1.relay", "charger.1.feedback", "charger.1.estop", "charger.1.earth_fault",
		"meter.house.identity", "meter.house.direction", "meter.car.identity", "meter.car.direction", "operation.backup",
	}
	if got := red(Make(in)); !slices.Equal(got, want) {
		t.Errorf("red: %q, want %q", got, want)
	}
}

// TestRed spoils one thing at a time: the row that is about it becomes red, and
// no other.
func TestRed(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(in *Input)
		want  []string
		says  string
	}{
		"relay stuck": {func(in *Input) {
			r := in.Trials.Relays["1"]
			r.Result = board.RelayTest{Contact: board.ContactFollowed, Fault: "welded", Ended: "fault"}
			in.Trials.Relays["1"] = r
		}, []string{"charger.1.relay"}, "welded"},
		"contact does not follow": {func(in *Input) {
			r := in.Trials.Relays["1"]
			r.Result.Contact = board.ContactStayed
			in.Trials.Relays["1"] = r
		}, []string{"charger.1.feedback"}, "did not follow"},
		"relay moved since":       {func(in *Input) { in.Config.Chargers[0].Relay = "RELAY2" }, []string{"charger.1.relay", "charger.1.feedback"}, "before it was wired like this"},
		"emergency stop moved":    {func(in *Input) { in.Config.Chargers[0].EStop = "IN4" }, []string{"charger.1.estop"}, "before it was wired like this"},
		"emergency stop pressed":  {func(in *Input) { in.Snapshot.Chargers[0].Contacts[0].Active = true }, []string{"charger.1.estop"}, "active now"},
		"a latched fault":         {func(in *Input) { in.Snapshot.Chargers[0].Fault = "earth fault" }, []string{"charger.1.interlocks"}, "earth fault"},
		"charger's phases turned": {func(in *Input) { in.Snapshot.Chargers[0].Order = "wrong" }, []string{"charger.1.order"}, "L1 L3 L2"},
		"nothing at the address": {func(in *Input) {
			s := in.Trials.Scans["rs485"]
			s.Found = s.Found[:1]
			in.Trials.Scans["rs485"] = s
		}, []string{"meter.car.identity"}, "nothing answered"},
		"another device there": {func(in *Input) {
			s := in.Trials.Scans["rs485"]
			s.Found = []Found{{Unit: 1, Profile: "eastron-sdm120"}, s.Found[1]}
			in.Trials.Scans["rs485"] = s
		}, []string{"meter.house.identity"}, "eastron-sdm120"},
		"profile changed since": {func(in *Input) { in.Config.Meters[1].Profile = "eastron-sdm72d" }, []string{"meter.house.identity", "meter.car.identity", "meter.car.direction"}, ""},
		"meter silent":          {func(in *Input) { in.Snapshot.Meters[1].Quality = "stale" }, []string{"meter.car.reading"}, "stale"},
		"transformer reversed": {func(in *Input) {
			d := in.Trials.Directions["house"]
			d.Lines = []Line{{1, 2000, identify.Right}, {2, -2000, identify.Reversed}}
			in.Trials.Directions["house"] = d
		}, []string{"meter.house.direction"}, "L2 -2000 W, reversed"},
		"inverted since":     {func(in *Input) { in.Config.Meters[0].Invert = true }, []string{"meter.house.direction"}, ""},
		"meter's phases":     {func(in *Input) { in.Snapshot.Meters[0].Points = map[string]int64{"phase_sequence_code": -1} }, []string{"meter.house.order"}, "L1 L3 L2"},
		"line loses answers": {func(in *Input) { in.Meters["car"] = Meter{Requests: 1000, Answers: 940} }, []string{"meter.car.errors"}, "60 of 1000"},
		"too few reads":      {func(in *Input) { in.Meters["car"] = Meter{Requests: 99, Answers: 99} }, []string{"meter.car.errors"}, "wait"},
		"site reversed":      {func(in *Input) { in.Snapshot.Meters[0].PowerW, in.Contradicted = -2500, time.Minute }, []string{"meters.balance"}, "-4500 W"},
		"no member":          {func(in *Input) { in.Grid.Member = false }, []string{"operation.grid"}, "grid join"},
		"alone":              {func(in *Input) { in.Grid.Connected = 0 }, []string{"operation.grid"}, "2 neighbours"},
		"broker gone":        {func(in *Input) { in.Broker.Connected = false }, []string{"operation.broker"}, "not connected"},
		"doctor says no":     {func(in *Input) { in.Computer[1].State, in.Computer[1].Remedy = Fail, "set it" }, []string{"operation.clock"}, "set it"},
		"wallbox unwatched": {func(in *Input) {
			h := &in.Config.Chargers[0]
			h.Relay, h.Feedback, h.EStop, h.EarthFault, h.EVSE = "", "", "", "", config.EVSE{Line: "rs485", Unit: 9, Profile: "x"}
			in.Failsafe = map[uint8]Failsafe{1: {Current: 6000}}
		}, []string{"failsafe.charger.1.wallbox"}, "joulegate charger failsafe 1"},
		"wallbox does not answer": {func(in *Input) {
			h := &in.Config.Chargers[0]
			h.Relay, h.Feedback, h.EStop, h.EarthFault, h.EVSE = "", "", "", "", config.EVSE{Line: "rs485", Unit: 9, Profile: "x"}
			in.Failsafe = map[uint8]Failsafe{1: {Err: "time-out"}}
		}, []string{"failsafe.charger.1.wallbox"}, "time-out"},
	} {
		in := done(t)
		c.spoil(&in)
		r := Make(in)
		if got := red(r); !slices.Equal(got, c.want) || r.Complete || r.Open != len(c.want) {
			t.Errorf("%s: red %q, want %q", name, got, c.want)
		} else if row := r.Red()[0]; !strings.Contains(row.Seen+" "+row.Remedy, c.says) {
			t.Errorf("%s: %q -> %q does not say %q", name, row.Seen, row.Remedy, c.says)
		}
	}
}

// TestPrune: trials of what is not configured any more leave.
func TestPrune(t *testing.T) {
	in := done(t)
	c := *in.Config
	c.Chargers, c.Meters = nil, c.Meters[:1]
	in.Trials.Prune(&c)
	if len(in.Trials.Relays)+len(in.Trials.Contacts) != 0 || len(in.Trials.Directions) != 1 || len(in.Trials.Scans) != 1 {
		t.Errorf("%+v", in.Trials)
	}
}

// files are a sealed report and its page.
func files(t *testing.T) map[string][]byte {
	t.Helper()
	sealed, err := Seal(Make(done(t)), device)
	if err != nil {
		t.Fatal(err)
	}
	page, err := Page(sealed, device)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"sealed": sealed, "page": page}
}

// TestEveryByteCounts: whatever byte of a report or a page is changed, it is
// found.
func TestEveryByteCounts(t *testing.T) {
	for name, file := range files(t) {
		o, err := Open(file)
		if err != nil || o.Gateway.Device != public(device) || !o.Complete || o.Page != (name == "page") {
			t.Fatalf("%s: %+v %v", name, o, err)
		}
		step := 11 // each opening checks up to three signatures
		if name == "page" {
			step = 53
		}
		for i := 0; i < len(file); i += step {
			changed := bytes.Clone(file)
			changed[i] ^= 1
			if o, err := Open(changed); err == nil {
				t.Fatalf("%s: byte %d changed from %q to %q and nobody noticed: %+v", name, i, file[i], changed[i], o.Gateway)
			}
		}
		for _, n := range []int{0, 1, len(file) / 2, len(file) - 2} {
			if _, err := Open(file[:n]); err == nil {
				t.Errorf("%s: %d of %d bytes pass", name, n, len(file))
			}
		}
		if _, err := Open(append(bytes.Clone(file), ' ')); err == nil {
			t.Errorf("%s: a byte more passes", name)
		}
	}
}

// TestSomebodyElseSigns: a report that speaks for one gateway and is signed by
// another does not pass, nor does a page around somebody's report.
func TestSomebodyElseSigns(t *testing.T) {
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32))
	sealed, err := Seal(Make(done(t)), other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(sealed); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	page, err := Page(files(t)["sealed"], other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(page); !errors.Is(err, ErrChanged) {
		t.Errorf("a page by another: %v", err)
	}
	if _, err := Open([]byte(`{"format":"joulegate/commissioning-report/1","complete":true}`)); err == nil {
		t.Error("a report without signature passes")
	}
}

// TestPageEscapes: what people and devices write is text on the page.
func TestPageEscapes(t *testing.T) {
	page := string(files(t)["page"])
	if strings.Contains(page, "Installer <a") || !strings.Contains(page, "A. Installer &lt;a&amp;b&gt;") {
		t.Error("the installer's name is markup")
	}
	for _, want := range []string{"Complete: nothing is left to do", "<svg", "Emergency", "header pin 11"} {
		if !strings.Contains(page, want) && !strings.Contains(page, strings.ToLower(want)) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	in := Report{Format: Format, Gateway: Gateway{Device: public(device)}}
	sealed, err := Seal(in, device)
	if err != nil {
		f.Fatal(err)
	}
	page, err := Page(sealed, device)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{sealed, page, {}, []byte("<!doctype html>"), []byte(`{"payload":"e30=","sigs":[]}`), page[:len(page)/2]} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := Open(b); err == nil && !bytes.Equal(b, sealed) && !bytes.Equal(b, page) {
			t.Errorf("opened what nobody has signed: %+v", o.Gateway)
		}
	})
}
