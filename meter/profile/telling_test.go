package profile

import (
	"fmt"
	"testing"
)

// What fits by chance does not stand against what fits for a reason, and parts
// of one device do not contend.
func TestTelling(t *testing.T) {
	for name, c := range map[string]struct{ found, want []string }{
		"chance":   {[]string{"eastron-sdm630", "solax-x3"}, []string{"eastron-sdm630"}},
		"order":    {[]string{"solax-x3", "eastron-sdm630"}, []string{"eastron-sdm630"}},
		"parts":    {[]string{"goodwe-et", "goodwe-et-meter"}, []string{"goodwe-et", "goodwe-et-meter"}},
		"siblings": {[]string{"deye-sg04lp3", "deye-sg01hp3"}, []string{"deye-sg04lp3", "deye-sg01hp3"}},
		"traps":    {[]string{"carlogavazzi-em24", "carlogavazzi-em340"}, []string{"carlogavazzi-em24", "carlogavazzi-em340"}},
		"vague":    {[]string{"solax-x3", "growatt-sph"}, []string{"solax-x3", "growatt-sph"}},
		"alone":    {[]string{"solax-x3"}, []string{"solax-x3"}},
		"nobody":   {nil, nil},
	} {
		var all []Finding
		for _, id := range c.found {
			p, err := Get(id)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, Finding{Profile: p})
		}
		var got []string
		for _, f := range telling(all) {
			got = append(got, f.Profile.ID)
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
