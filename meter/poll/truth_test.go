package poll_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/poll"
	"github.com/joulegate/joulegate/meter/profile"
)

// wire is a true meter: three lines with loads of their own, registers that
// count each line by itself or the sum, and that are brought up to date now
// and then.
type wire struct {
	lines    [3]int64 // mW
	imp, exp int64    // mW ms that have flowed, as the meter counts
	netting  bool
	digit    int64 // mWh, step of the registers
	shownI   int64
	shownE   int64
}

const msHour = 3_600_000

func (w *wire) flow(dt time.Duration) {
	ms := dt.Milliseconds()
	count := func(p int64) {
		if p > 0 {
			w.imp += p * ms
		} else {
			w.exp -= p * ms
		}
	}
	if w.netting {
		count(w.lines[0] + w.lines[1] + w.lines[2])
		return
	}
	for _, p := range w.lines {
		count(p)
	}
}

func (w *wire) update() {
	w.shownI, w.shownE = w.imp/msHour/w.digit*w.digit, w.exp/msHour/w.digit*w.digit
}

// outcome is what the meter says, with its registers times ratio.
func (w *wire) outcome(now time.Duration, ratio float64) poll.Outcome {
	const start = 5_000_000_000
	o := outcome(now,
		meter.Point{Quantity: meter.Power, Value: w.lines[0] + w.lines[1] + w.lines[2]},
		meter.Point{Quantity: meter.Power, Phase: 1, Value: w.lines[0]},
		meter.Point{Quantity: meter.Power, Phase: 2, Value: w.lines[1]},
		meter.Point{Quantity: meter.Power, Phase: 3, Value: w.lines[2]},
		imported(start+int64(float64(w.shownI)*ratio)), exported(start+int64(float64(w.shownE)*ratio)))
	for i := range o.Digits {
		o.Digits[i] = w.digit
	}
	return o
}

// A true meter is never doubted, however its loads jump, whether it nets its
// lines or not, with coarse registers that lag by up to a minute.
func TestTrueMeterIsNeverDoubted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &wire{netting: rapid.Bool().Draw(t, "netting"), digit: rapid.SampledFrom([]int64{1, 100, 10_000}).Draw(t, "digit")}
		lag := rapid.IntRange(1, 60).Draw(t, "seconds between updates")
		period := rapid.IntRange(1, 600).Draw(t, "load period")
		load := rapid.Int64Range(-7_000_000, 7_000_000)
		var st poll.State
		for i := range 2400 {
			now := time.Duration(i) * time.Second
			if i%period == 0 {
				for l := range w.lines {
					w.lines[l] = load.Draw(t, "mW")
				}
			}
			if i%lag == 0 {
				w.update()
			}
			var r meter.Reading
			if st, r = poll.Step(st, limits, w.outcome(now, 1)); r.Quality != meter.Good {
				t.Fatalf("second %d: %s", i, r.Reason)
			}
			w.flow(time.Second)
		}
	})
}

// A register that stops, or counts at a third or three times the pace of
// power, is found, named, and forgiven when it is right again.
func TestRegisterAgainstPower(t *testing.T) {
	for name, c := range map[string]struct {
		ratio float64
		want  string
	}{"stuck": {0, "stuck"}, "third": {0.3, "transformer ratios"}, "triple": {3.3, "transformer ratios"}} {
		for _, dir := range []int64{1, -1} {
			w := &wire{lines: [3]int64{dir * 2_000_000, dir * 1_000_000, 0}, digit: 100}
			var st poll.State
			var r meter.Reading
			run := func(from, to int, ratio float64) (doubted int) {
				base := w.outcome(0, 1)
				for i := from; i < to; i++ {
					w.flow(time.Second)
					w.update()
					o := w.outcome(time.Duration(i)*time.Second, 1)
					for j := len(o.Points) - 2; j < len(o.Points); j++ { // registers go on from where they are
						o.Points[j].Value = base.Points[j].Value + int64(ratio*float64(o.Points[j].Value-base.Points[j].Value))
					}
					if st, r = poll.Step(st, limits, o); r.Quality != meter.Good {
						doubted++
					}
				}
				return doubted
			}
			if n := run(0, 600, 1); n > 0 {
				t.Fatalf("%s: a true meter is doubted: %s", name, r.Reason)
			}
			if run(600, 1500, c.ratio); r.Quality != meter.Suspect || !strings.Contains(r.Reason, c.want) {
				t.Fatalf("%s, direction %d: %s (%s)", name, dir, r.Quality, r.Reason)
			}
		}
	}
}

// It is the same register again: a stuck display that went on counting inside.
func TestStuckRegisterRecovers(t *testing.T) {
	w := &wire{lines: [3]int64{3_000_000, 0, 0}, digit: 1}
	var st poll.State
	var r meter.Reading
	doubted := false
	for i := range 3000 {
		w.flow(time.Second)
		if i < 500 || i > 1500 {
			w.update()
		}
		st, r = poll.Step(st, limits, w.outcome(time.Duration(i)*time.Second, 1))
		doubted = doubted || r.Quality == meter.Suspect
	}
	if !doubted || r.Quality != meter.Good {
		t.Fatalf("doubted %v, in the end %s (%s)", doubted, r.Quality, r.Reason)
	}
}

// A device whose power is not that of its registers is not compared.
func TestNotCompared(t *testing.T) {
	l := limits
	l.Evidence = -1
	w := &wire{lines: [3]int64{3_000_000, 0, 0}, digit: 1}
	var st poll.State
	var r meter.Reading
	for i := range 2000 {
		if st, r = poll.Step(st, l, w.outcome(time.Duration(i)*time.Second, 1)); r.Quality != meter.Good {
			t.Fatal(r.Reason)
		}
	}
}

// The current transformers' ratio is set in one place and forgotten in another.
func TestPowerAgainstCurrent(t *testing.T) {
	say := func(now time.Duration, ma int64) poll.Outcome {
		return outcome(now, meter.Point{Quantity: meter.Voltage, Phase: 1, Value: 230_000},
			meter.Point{Quantity: meter.Current, Phase: 1, Value: ma}, meter.Point{Quantity: meter.Power, Phase: 1, Value: -4_600_000})
	}
	var st poll.State
	var r meter.Reading
	for i := range 60 {
		ma := int64(20_000)
		if i%7 == 0 {
			ma = 0 // the current was measured before the load came
		}
		if st, r = poll.Step(st, limits, say(time.Duration(i)*time.Second, ma)); r.Quality != meter.Good {
			t.Fatalf("second %d: %s", i, r.Reason)
		}
	}
	for i := range 20 {
		st, r = poll.Step(st, limits, say(time.Duration(60+i)*time.Second, 400))
	}
	if r.Quality != meter.Suspect || !strings.Contains(r.Reason, "line 1 has more power") {
		t.Fatalf("%s (%s)", r.Quality, r.Reason)
	}
	if _, r = poll.Step(st, limits, say(81*time.Second, 20_000)); r.Quality != meter.Good {
		t.Fatalf("after it was set right: %s", r.Reason)
	}
}

// Who the device is, is pinned; a change is suspect, also across a restart,
// until a person confirms it.
func TestIdentity(t *testing.T) {
	first := poll.Identity{Manufacturer: "ACME", Model: "One", Serial: "17", Hardware: "02:00:00:00:00:01", Address: "192.0.2.7:502", Ratios: "40"}
	step := func(st poll.State, second int, id poll.Identity) (poll.State, meter.Reading) {
		o := outcome(time.Duration(second)*time.Second, imported(5000))
		o.Identity = id
		return poll.Step(st, limits, o)
	}
	for name, c := range map[string]struct {
		change func(*poll.Identity)
		want   string // empty: good
	}{
		"nothing":                  {func(*poll.Identity) {}, ""},
		"says nothing this time":   {func(i *poll.Identity) { *i = poll.Identity{} }, ""},
		"serial":                   {func(i *poll.Identity) { i.Serial = "18" }, `serial number is "18", was "17"`},
		"ratio":                    {func(i *poll.Identity) { i.Ratios = "60" }, `transformer ratios is "60", was "40"`},
		"hardware":                 {func(i *poll.Identity) { i.Hardware = "02:00:00:00:00:02" }, "hardware address"},
		"moved by its lease":       {func(i *poll.Identity) { i.Address = "192.0.2.8:502" }, ""},
		"moved, behind a router":   {func(i *poll.Identity) { i.Address, i.Hardware = "192.0.2.8:502", "" }, `address is "192.0.2.8:502"`},
		"another of another maker": {func(i *poll.Identity) { i.Manufacturer, i.Model = "Beta", "Two" }, "manufacturer"},
	} {
		t.Run(name, func(t *testing.T) {
			st, _ := step(poll.State{}, 0, poll.Identity{Manufacturer: "ACME"})
			st, r := step(st, 1, first)
			if r.Quality != meter.Good || st.Pinned != first {
				t.Fatalf("%s, pinned %+v", r.Reason, st.Pinned)
			}
			now := first
			c.change(&now)
			// Through a restart, as it is stored.
			var stored poll.Identity
			b, _ := json.Marshal(st.Pinned)
			if err := json.Unmarshal(b, &stored); err != nil {
				t.Fatal(err)
			}
			st = poll.Resume(st.Page, st.Registers, stored, time.Minute)
			for i := range 3 {
				if st, r = step(st, i, now); (r.Quality == meter.Good) != (c.want == "") || !strings.Contains(r.Reason, c.want) {
					t.Fatalf("reading %d: %s (%s)", i, r.Quality, r.Reason)
				}
			}
			if st, r = step(poll.Rebase(st), 4, now); r.Quality != meter.Good {
				t.Fatalf("after it was confirmed: %s", r.Reason)
			}
			if c.want != "" {
				if _, r = step(st, 5, first); r.Quality != meter.Suspect {
					t.Fatal("the old device is still welcome")
				}
			}
		})
	}
}

// Whatever a register says that is no number never becomes a value: the
// reading says which point it is.
func TestNotANumber(t *testing.T) {
	for id, marks := range map[string][]uint32{
		"eastron-sdm630": {0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000}, // quiet, negative, signalling NaN, infinities
		"abb-a-b-series": {0xFFFFFFFF},
	} {
		p, err := profile.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		for _, mark := range marks {
			im, err := p.NewImage(0, profile.Identity{})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Encode([]meter.Point{imported(5_000_000)}, im); err != nil {
				t.Fatal(err)
			}
			read := func(now time.Duration) (o poll.Outcome, err error) {
				var raw []meter.RawBlock
				for _, b := range p.Blocks(0) {
					data, _ := im.Read(b.Function, b.Address, b.Count)
					raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: data})
				}
				points, err := p.Decode(raw)
				return outcome(now, points...), err
			}
			o, err := read(0)
			if err != nil {
				t.Fatal(err)
			}
			st, _ := poll.Step(poll.State{}, limits, o)
			for i := range p.Points {
				if pt := &p.Points[i]; pt.Quantity == meter.Import && pt.Phase == 0 {
					for k := range pt.Registers() {
						im[profile.Register{Function: pt.Function, Address: pt.Address + k}] = uint16(mark >> (16 * (1 - k%2)))
					}
				}
			}
			if o, err = read(time.Second); err != nil {
				continue // an infinity is no poll at all
			}
			if st, r := poll.Step(st, limits, o); r.Quality != meter.Suspect || !strings.Contains(r.Reason, "import_mwh is not a number") || st.Registers[0].Value == 0 {
				t.Errorf("%s %#x: %s (%s)", id, mark, r.Quality, r.Reason)
			}
		}
	}
}
