package profile_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// Whatever a device sends: an error or points of the profile, each at most
// once, and the same ones every time.
func FuzzDecode(f *testing.F) {
	all := profile.All()
	all = append(all, parse(f, base))
	for i, p := range all {
		im, err := p.NewImage(0, profile.Identity{})
		if err != nil {
			f.Fatal(err)
		}
		raw := readAll(f, p, im)
		f.Add(uint8(i), raw[0].Function, raw[0].Address, raw[0].Data, uint16(0), []byte{})
		if len(raw) > 1 {
			f.Add(uint8(i), raw[0].Function, raw[0].Address, raw[0].Data, raw[1].Address, raw[1].Data)
		}
	}
	f.Fuzz(func(t *testing.T, which, fn uint8, a1 uint16, b1 []byte, a2 uint16, b2 []byte) {
		p := all[int(which)%len(all)]
		raw := []meter.RawBlock{{Function: fn, Address: a1, Data: b1}}
		if len(b2) > 0 {
			raw = append(raw, meter.RawBlock{Function: fn, Address: a2, Data: b2})
		}
		values, err := p.DecodeValues(raw)
		if err != nil {
			if values != nil {
				t.Fatalf("%v and %v", values, err)
			}
			return
		}
		seen := map[string]bool{}
		for _, v := range values {
			if seen[v.Name()] || !p.Has(v.Quantity, v.Phase) || v.Digit < 1 {
				t.Fatalf("%s: %+v", p.ID, v)
			}
			seen[v.Name()] = true
		}
		again, err := p.DecodeValues(raw)
		if err != nil || !slices.Equal(values, again) {
			t.Fatalf("%v, then %v, %v", values, again, err)
		}
	})
}

// Whatever a device answers, a walk ends, stays inside the address space, and
// its models follow one another.
func FuzzWalk(f *testing.F) {
	f.Add([]byte("SunS\x00\x01\x00\x42"), uint16(40000))
	f.Add([]byte("SunS\x00\x67\x00\x32\xff\xff\x00\x00"), uint16(0))
	f.Add([]byte("nope"), uint16(50000))
	f.Fuzz(func(t *testing.T, answers []byte, base uint16) {
		w := profile.NewWalk([]uint16{base, 0})
		for steps := 0; ; steps++ {
			if steps > 2*profile.MaxModels+4 {
				t.Fatal("the walk does not end")
			}
			_, addr, count, done := w.Next()
			if done {
				break
			}
			if int(addr)+int(count) > 1<<16 || count == 0 || count > profile.MaxBlock {
				t.Fatalf("reads %d registers at %d", count, addr)
			}
			var answer []byte
			if n := 2 * int(count); len(answers) >= n {
				answer, answers = answers[:n], answers[n:]
			}
			_ = w.Feed(answer)
		}
		c, err := w.Chain()
		if err != nil {
			return
		}
		at := int(c.Base) + 2
		for _, m := range c.Models {
			if int(m.Address) != at {
				t.Fatalf("model %+v is not at %d", m, at)
			}
			at += 2 + int(m.Length)
		}
		for _, id := range []string{"sunspec-inverter", "sunspec-meter"} {
			blocks, err := get(t, id).ChainBlocks(c, 0)
			for _, b := range blocks {
				if err != nil || b.Count == 0 || int(b.Address)+int(b.Count) > at {
					t.Fatalf("block %+v past the end %d (%v)", b, at, err)
				}
			}
		}
	})
}

// Whatever is in a profile file: an error, or a profile whose blocks obey the
// limits and which an empty device can be made from.
func FuzzParse(f *testing.F) {
	f.Add([]byte(base))
	files, err := filepath.Glob("data/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatalf("no profiles: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := profile.Parse("fuzz.yaml", b)
		if err != nil {
			return
		}
		for _, blk := range p.Blocks(0) {
			if blk.Count == 0 || blk.Count > profile.MaxBlock || int(blk.Address)+int(blk.Count) > 1<<16 {
				t.Fatalf("block %+v", blk)
			}
		}
		im, err := p.NewImage(0, profile.Identity{})
		if err != nil {
			t.Fatal(err)
		}
		if p.SunSpec == nil {
			points, err := p.Decode(readAll(t, p, im))
			if err != nil {
				t.Fatal(err)
			}
			if state, ok := p.VehicleState(points); ok && (state < 'A' || state > 'F') {
				t.Fatalf("state %q", state)
			}
		}
		leads(t, p)
	})
}

// leads checks that what a profile says of leading the device can be written.
func leads(t *testing.T, p *profile.Profile) {
	t.Helper()
	for _, s := range append(p.Setup(), p.Pause()...) {
		var raw []meter.RawBlock
		for _, b := range s.Write.Conditions() {
			raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: []byte{0, 0}})
		}
		c, err := s.Write.Encode(s.Value, raw)
		if err != nil {
			t.Fatal(err)
		}
		if p.Watchdog != nil && p.Watchdog.FedBy == s.Write.Name && !p.Watchdog.Feeds(p, c.Function, c.Address, c.Values) && s.Write.Alt == nil {
			t.Fatalf("%+v does not feed the watchdog", c)
		}
	}
	for name := range p.Orders {
		power := int64(0)
		if w, _ := p.Write("power_command"); !w.Takes(0) {
			power = w.Max
		}
		if _, err := p.Order(name, power); err != nil && name != profile.OrderDischarge {
			t.Fatal(err)
		}
	}
}
