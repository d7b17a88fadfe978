package poll

import (
	"fmt"
	"strings"
)

// Identity is what tells a device from others, and the settings that change
// what its numbers mean. A field that the device or the line does not tell is
// empty.
type Identity struct {
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
	Serial       string `json:"serial,omitempty"`
	// Hardware is the hardware address of a device on a network, Address
	// where it is reached. The address counts only while one of two hardware
	// addresses is not known: a lease that moves is not another device.
	Hardware string `json:"hardware,omitempty"`
	Address  string `json:"address,omitempty"`
	// Ratios are the transformer ratios that the device is set to.
	Ratios string `json:"ratios,omitempty"`
}

// pin returns p with every empty field taken from now.
func (p Identity) pin(now Identity) Identity {
	for _, f := range p.fields(&now) {
		if *f.was == "" {
			*f.was = *f.is
		}
	}
	return p
}

type field struct {
	name    string
	was, is *string
}

func (p *Identity) fields(now *Identity) []field {
	return []field{
		{"manufacturer", &p.Manufacturer, &now.Manufacturer},
		{"model", &p.Model, &now.Model},
		{"serial number", &p.Serial, &now.Serial},
		{"hardware address", &p.Hardware, &now.Hardware},
		{"address", &p.Address, &now.Address},
		{"transformer ratios", &p.Ratios, &now.Ratios},
	}
}

// differs says in what now is not the pinned device, or nothing.
func (p Identity) differs(now Identity) string {
	var what []string
	for _, f := range p.fields(&now) {
		switch {
		case *f.was == "" || *f.is == "" || *f.was == *f.is:
		case f.name == "address" && p.Hardware != "" && p.Hardware == now.Hardware:
		default:
			what = append(what, fmt.Sprintf("%s is %q, was %q", f.name, *f.is, *f.was))
		}
	}
	if what == nil {
		return ""
	}
	return "another device or setting: " + strings.Join(what, ", ") + ": confirm the exchange"
}
