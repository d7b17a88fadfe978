package slot

import (
	"testing"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"pgregory.net/rapid"
)

var testMeter = Meter{ID: "house", Role: chain.RoleSite, SlotSeconds: 10}

func reading(page uint64, wallMs int64, q meter.Quality, imp, exp int64) meter.Reading {
	return meter.Reading{
		Device: "house", Profile: "p", ProfileHash: [32]byte{9}, Unit: 1, Page: page, Wall: wallMs, Quality: q,
		Points: []meter.Point{{Quantity: meter.Import, Value: imp}, {Quantity: meter.Export, Value: exp}},
	}
}

func TestRecordAtTheFirstGoodReadingAfterTheSlot(t *testing.T) {
	c := New(testMeter, State{})
	base, ok := c.Read(reading(1, 100_500, meter.Good, 1_234_567, 89_999))
	if !ok || base.Slot != 9 || base.Page != 1 || base.Import != 1234 || base.Export != 89 || base.Count != 1 {
		t.Fatalf("the first reading is the base: %+v, %t", base, ok)
	}
	for i, r := range []meter.Reading{
		reading(2, 105_000, meter.Good, 1_250_000, 90_000),
		reading(3, 109_999, meter.Good, 1_260_000, 90_000),
		reading(4, 110_000, meter.Suspect, 9_999_999, 90_000), // on time, but not to be trusted
	} {
		if _, ok := c.Read(r); ok {
			t.Fatalf("reading %d makes a record", i)
		}
	}
	last := reading(5, 111_000, meter.Good, 1_261_999, 90_500)
	rec, ok := c.Read(last)
	want := chain.MeterRecord{
		Slot: 10, Meter: "house", Role: chain.RoleSite, Page: 2, Import: 1261, Export: 90, Quality: meter.Good, At: 111_000,
		Count: 4, Root: chain.MerkleRoot(rec.Leaves.Data), Profile: chain.Hash{9},
	}
	if !ok || rec.MeterRecord != want {
		t.Fatalf("got  %+v\nwant %+v", rec.MeterRecord, want)
	}
	if l := rec.Leaves; l.Page != 2 || l.Root != want.Root || string(l.Data[3]) != string(chain.Marshal(last)) {
		t.Fatal("the last leaf is not the reading that the record states")
	}
	proof := chain.MerkleProof(rec.Leaves.Data, 1)
	if err := chain.VerifyMerkle(rec.Root, rec.Leaves.Data[1], 1, int(rec.Count), proof); err != nil {
		t.Error(err)
	}
}

func TestSilenceAndClockJumps(t *testing.T) {
	c := New(testMeter, State{Slot: 9, Page: 7, Import: 1000, Export: 5})
	rec, ok := c.Read(reading(1, 200_000, meter.Good, 2_000_000, 5_000))
	if !ok || rec.Slot != 19 || rec.Page != 8 {
		t.Fatalf("after nine silent slots one record carries everything: %+v", rec)
	}
	if rec, ok := c.Read(reading(2, 120_000, meter.Good, 2_100_000, 5_000)); ok {
		t.Fatalf("a clock that went back makes a second record of a slot: %+v", rec)
	}
	if rec, ok := c.Read(reading(3, 210_000, meter.Good, 2_200_000, 5_000)); !ok || rec.Import != 2200 || rec.Count != 2 {
		t.Fatalf("and then goes on: %+v, %t", rec, ok)
	}
}

func TestWhatMovesNoEnergy(t *testing.T) {
	for name, r := range map[string]meter.Reading{
		"suspect":          reading(1, 300_000, meter.Suspect, 2_000_000, 6_000),
		"stale":            reading(1, 300_000, meter.Stale, 2_000_000, 6_000),
		"estimated":        reading(1, 300_000, meter.Estimated, 2_000_000, 6_000),
		"import went back": reading(1, 300_000, meter.Good, 999_999, 6_000),
		"export went back": reading(1, 300_000, meter.Good, 2_000_000, 4_999),
		"no registers":     {Device: "house", Wall: 300_000, Quality: meter.Good},
	} {
		c := New(testMeter, State{Slot: 9, Page: 7, Import: 1000, Export: 5})
		if rec, ok := c.Read(r); ok {
			t.Errorf("%s: %+v", name, rec)
		}
		if rec, ok := c.Read(reading(2, 301_000, meter.Good, 2_000_000, 6_000)); !ok || rec.Count != 2 {
			t.Errorf("%s: the reading is not committed to: %+v", name, rec)
		}
	}
}

func TestSwappedMeterStartsASegment(t *testing.T) {
	c := New(testMeter, State{Slot: 9, Page: 7, Import: 1000, Export: 5})
	c.Swap()
	rec, ok := c.Read(reading(1, 110_000, meter.Good, 3_000, 0))
	if !ok || rec.Segment != 1 || rec.Import != 3 || rec.Page != 8 {
		t.Fatalf("%+v, %t", rec, ok)
	}
}

func TestLeavesAreBoundedAndSpanTheSlot(t *testing.T) {
	c := New(testMeter, State{Slot: 9, Page: 1})
	const n = 3*MaxLeaves + 17
	first := reading(1, 100_000, meter.Good, 1, 0)
	for i := range uint64(n) {
		r := first
		r.Page = i
		if _, ok := c.Read(r); ok {
			t.Fatal("a record within the slot")
		}
	}
	rec, ok := c.Read(reading(n, 110_000, meter.Good, 2, 0))
	if !ok || rec.Count > MaxLeaves || int(rec.Count) != len(rec.Leaves.Data) || rec.Root != chain.MerkleRoot(rec.Leaves.Data) {
		t.Fatalf("%d leaves, count %d", len(rec.Leaves.Data), rec.Count)
	}
	var was meter.Reading
	for i, b := range rec.Leaves.Data {
		var r meter.Reading
		if err := chain.Unmarshal(b, &r); err != nil {
			t.Fatal(err)
		}
		if i > 0 && (r.Page <= was.Page || r.Page-was.Page > 4) {
			t.Fatalf("page %d follows %d", r.Page, was.Page)
		}
		was = r
	}
	if was.Page != n {
		t.Fatalf("the last leaf is page %d, not the reading that closed the slot", was.Page)
	}
}

// TestEnergyAddsUp drives a meter through crashes, silence, bad readings and
// clock jumps: pages never skip, and the records' differences add up to what
// the register says.
func TestEnergyAddsUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := New(testMeter, State{})
		wall, reg := int64(1_000_000), int64(5_000_000)
		var first, last Record
		var page uint64
		for i := range rapid.IntRange(1, 200).Draw(t, "readings") {
			wall += int64(rapid.IntRange(-3000, 9000).Draw(t, "ms"))
			reg += int64(rapid.IntRange(0, 50_000).Draw(t, "mWh"))
			if rapid.IntRange(0, 20).Draw(t, "crash") == 0 {
				c = New(testMeter, c.State())
			}
			q := meter.Good
			seen := reg
			if rapid.IntRange(0, 4).Draw(t, "bad") == 0 {
				q, seen = meter.Suspect, rapid.Int64().Draw(t, "nonsense")
			}
			rec, ok := c.Read(reading(uint64(i), wall, q, seen, 0))
			if !ok {
				continue
			}
			if rec.Page != page+1 || (page > 0 && (rec.Slot <= last.Slot || rec.Import < last.Import)) || rec.At != wall {
				t.Fatalf("%+v after %+v", rec.MeterRecord, last.MeterRecord)
			}
			if rec.Import != meter.MilliWattHour(reg).WattHours() {
				t.Fatalf("states %d, the register is %d mWh", rec.Import, reg)
			}
			if page == 0 {
				first = rec
			}
			page, last = rec.Page, rec
		}
		if s := c.State(); page > 0 && (s.Page != page || s.Import != last.Import || last.Import < first.Import) {
			t.Fatalf("state %+v after %+v", s, last.MeterRecord)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	c := New(testMeter, State{})
	r := reading(1, 100_000, meter.Good, 1_000_000, 0)
	for b.Loop() {
		r.Wall += 1000
		c.Read(r)
	}
}
