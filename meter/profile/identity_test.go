package profile_test

import (
	"testing"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
)

// A device says who it is; what it does not say stays empty, and a changed
// ratio is seen.
func TestIdentify(t *testing.T) {
	read := func(p *profile.Profile, im profile.Image) (profile.Identity, string) {
		var raw []meter.RawBlock
		for _, b := range p.IdentityBlocks() {
			if data, ok := im.Read(b.Function, b.Address, b.Count); ok {
				raw = append(raw, meter.RawBlock{Function: uint8(b.Function), Address: b.Address, Data: data})
			}
		}
		return p.Identify(raw)
	}
	for _, c := range []struct {
		id, ratios string
		want       profile.Identity
	}{
		{"eastron-sdm630", "", profile.Identity{Serial: "4711"}},
		{"huawei-sun2000", "", profile.Identity{Model: "X-9", Serial: "A4711"}},
		{"chint-dtsu666-ct", "1, 10", profile.Identity{}},
		{"keba-p30", "", profile.Identity{}},
	} {
		p := get(t, c.id)
		im, err := p.NewImage(0, profile.Identity{Model: "X-9", Serial: "A4711"})
		if err != nil {
			t.Fatal(err)
		}
		if got, ratios := read(p, im); got != c.want || ratios != c.ratios {
			t.Errorf("%s: %+v, %q; want %+v, %q", c.id, got, ratios, c.want, c.ratios)
		}
		if got, ratios := read(p, profile.Image{}); got != (profile.Identity{}) || ratios != "" {
			t.Errorf("%s: nothing says %+v, %q", c.id, got, ratios)
		}
	}
	p := get(t, "chint-dtsu666-ct")
	im := profile.Image{}
	place(im, 6, 40, 25)
	if _, ratios := read(p, im); ratios != "40, 25" {
		t.Errorf("ratios %q", ratios)
	}
}
