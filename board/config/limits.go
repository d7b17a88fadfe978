package config

import (
	"fmt"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter/circuit"
)

// MaxInstallers is how many keys may sign statements.
const MaxInstallers = 8

// FeederCircuit is the id of the circuit above the main fuse, if the gateway
// shares a feeder.
const FeederCircuit = "feeder"

// Wires returns the wiring of a charger.
func (h *Charger) Wires() (circuit.Wiring, error) {
	if h.Wiring == "" {
		return circuit.Straight(h.Phases), nil
	}
	return circuit.ParseWiring(h.Wiring)
}

// CircuitRules are the times of the sharing, as they follow from those of the
// meters and the control loop.
func (c *Config) CircuitRules() circuit.Rules {
	r := circuit.DefaultRules()
	r.StaleAfter = c.Timing.StaleAfter.D()
	for _, m := range c.Meters {
		if role, _ := chain.ParseRole(m.Role); role == chain.RoleSite || role == chain.RoleCharger {
			r.RaiseDelay = max(r.RaiseDelay, 2*m.Interval.D()+time.Second)
		}
	}
	return r
}

// Tree returns the circuits of this gateway, the feeder's share first if there
// is one, then the main fuse and what is below it, and at the same index the
// meter of each ("": none).
func (c *Config) Tree() (all []circuit.Circuit, meters []string) {
	site, watch := circuit.Circuit{ID: SiteCircuit, Rating: c.Site.Fuse}, ""
	for _, m := range c.Meters {
		if m.Role == chain.RoleSite.String() {
			site.Metered, watch = true, m.ID
		}
	}
	if c.Feeder.Shared() {
		site.Parent = FeederCircuit
		all, meters = append(all, circuit.Circuit{ID: FeederCircuit, Rating: c.Feeder.Share}), append(meters, "")
	}
	all, meters = append(all, site), append(meters, watch)
	for _, k := range c.Circuits {
		all = append(all, circuit.Circuit{ID: k.ID, Parent: k.Parent, Rating: k.Rating, Reserve: k.Reserve, Power: k.Power})
		meters = append(meters, "") // its meter would need a role that the ledger does not book
	}
	return all, meters
}

// Ends returns where in the tree each charger hangs.
func (c *Config) Ends() (ends []circuit.Charger, err error) {
	for i := range c.Chargers {
		h := &c.Chargers[i]
		w, err := h.Wires()
		if err != nil {
			return nil, fmt.Errorf("charger %d: %w", h.ID, err)
		}
		ends = append(ends, circuit.Charger{ID: h.ID, Circuit: h.Circuit, Wiring: w, MaxCurrent: h.MaxCurrent})
	}
	return ends, nil
}

// FeederRules are the times of a shared feeder.
func (c *Config) FeederRules() circuit.FeederRules {
	return circuit.FeederRules{Rules: c.CircuitRules(), Lease: c.Feeder.Lease.D()}
}

// Lead returns the feeder that this gateway shares among all, or nil.
func (c *Config) Lead() (*circuit.Feeder, error) {
	f := &c.Feeder
	if f.Leader == "" || f.Leader != c.Name {
		return nil, nil
	}
	var members []circuit.Member
	for _, m := range f.Members {
		v := circuit.Member{Name: m.Gateway, Failsafe: m.Share}
		for _, h := range m.Chargers {
			w, err := circuit.ParseWiring(h.Wiring)
			if err != nil {
				return nil, err
			}
			v.Chargers = append(v.Chargers, circuit.Charger{ID: h.ID, Wiring: w, MaxCurrent: h.MaxCurrent})
		}
		members = append(members, v)
	}
	return circuit.NewFeeder(c.FeederRules(), f.Rating, f.Reserve, false, members)
}

// DimRules say how orders of the utility are followed.
func (c *Config) DimRules() circuit.DimRules {
	d := c.Dimming
	r := circuit.DimRules{PerDevice: d.PerDevice, Total: d.Total, Silence: d.Silence.D(), FailsafeFor: d.Failsafe.D(), Own: d.Own}
	r.Watched[circuit.Message] = d.MQTT // a contact is lost when it cannot be read
	return r
}

// MinuteOf returns the minute of the day of "07:00".
func MinuteOf(s string) (int, error) {
	t, err := time.Parse("15:04", s)
	if err != nil || len(s) != 5 {
		return 0, fmt.Errorf("%q is not a time of day such as 07:00", s)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// limits checks what shares cables, orders of the utility and what only an
// installer may allow.
func (c *Config) limits(k *checker, b board.Board) {
	before := len(k.errs)
	c.circuits(k)
	for i := range c.Chargers {
		c.allowances(k, i)
	}
	c.feeder(k)
	if len(k.errs) == before {
		// Whatever is left is a mistake of the whole: a ring, too deep a tree.
		all, _ := c.Tree()
		ends, err := c.Ends()
		if err == nil {
			_, err = circuit.New(c.CircuitRules(), all, ends)
		}
		if err != nil {
			k.add("circuits", "%v", err)
		}
		if _, err := c.Lead(); err != nil {
			k.add("feeder", "%v", err)
		}
	}
	c.dimming(k, b)
	if c.Button != "" {
		k.pin(b, "commission_button", c.Button, board.Input)
	}
	if m := c.Battery.Meter; m != "" && k.ids[m] == "" {
		k.add("battery.meter", "there is no meter %q", m)
	}
	if len(c.Installers) > MaxInstallers {
		k.add("installers", "%d, at most %d", len(c.Installers), MaxInstallers)
	}
	for i, s := range c.Installers {
		var key chain.Key
		if err := key.UnmarshalText([]byte(s)); err != nil {
			k.add(fmt.Sprintf("installers[%d]", i), "%v", err)
		}
	}
}

func (c *Config) circuits(k *checker) {
	if len(c.Circuits) > circuit.MaxCircuits-2 {
		k.add("circuits", "%d, at most %d", len(c.Circuits), circuit.MaxCircuits-2)
		return
	}
	seen := map[string]bool{SiteCircuit: true, FeederCircuit: true}
	for i, v := range c.Circuits {
		p := fmt.Sprintf("circuits[%d]", i)
		if !word(v.ID) || seen[v.ID] {
			k.add(p+".id", "%q is not a word, used twice, or taken (site, feeder)", v.ID)
		}
		seen[v.ID] = true
		if v.Reserve < 0 || v.Reserve > v.Rating {
			k.add(p+".reserve_ma", "%d is outside 0..%d", v.Reserve, v.Rating)
		}
	}
	delete(seen, FeederCircuit)
	for i, v := range c.Circuits {
		if !seen[v.Parent] {
			k.add(fmt.Sprintf("circuits[%d].parent", i), "there is no circuit %q", v.Parent)
		}
	}
	for i, h := range c.Chargers {
		if !seen[h.Circuit] {
			k.add(fmt.Sprintf("chargers[%d].circuit", i), "there is no circuit %q", h.Circuit)
		}
	}
}

// allowances checks what a charger may do beyond charging.
func (c *Config) allowances(k *checker, i int) {
	h := &c.Chargers[i]
	p := fmt.Sprintf("chargers[%d]", i)
	if w, err := h.Wires(); err != nil {
		k.add(p+".wiring", "%v", err)
	} else if w.Count() != h.Phases && (h.Phases == 1 || h.Phases == 3) {
		k.add(p+".wiring", "%q names %d phases, the charger has %d", h.Wiring, w.Count(), h.Phases)
	}
	if h.PhaseSwitch && (h.Statement == "" || len(c.Installers) == 0) {
		k.add(p+".statement", "phase_switch needs a statement, and installers whose signature counts")
	}
	if h.PhaseSwitch && (h.Phases != 3 || !h.EVSE.Fitted()) {
		k.add(p+".phase_switch", "needs three phases and a wallbox that switches them")
	}
	if d := &h.Discharge; d.Enabled {
		if h.Statement == "" || len(c.Installers) == 0 {
			k.add(p+".statement", "discharge needs a statement, and installers whose signature counts")
		}
		if !h.EVSE.Fitted() || h.Relay != "" {
			k.add(p+".discharge", "needs a wallbox that discharges and switches by itself, without relay")
		}
		if d.Capacity < 1_000 || d.Capacity > 1_000_000 {
			k.add(p+".discharge.capacity_wh", "%d is outside 1000..1000000", d.Capacity)
		}
		if d.Floor < 100 || d.Floor > 1000 {
			k.add(p+".discharge.floor_permille", "%d is outside 100..1000", d.Floor)
		}
		if d.FloorWh < 0 || d.FloorWh > d.Capacity {
			k.add(p+".discharge.floor_wh", "%d is outside 0..%d, the capacity", d.FloorWh, d.Capacity)
		}
		if d.MaxPower < 1 || d.MaxPower > 50_000 || d.MinPower < 0 || d.MinPower > d.MaxPower {
			k.add(p+".discharge.max_power_w", "%d is outside 1..50000, or less than min_power_w %d", d.MaxPower, d.MinPower)
		}
		if d.SellLimit < 0 {
			k.add(p+".discharge.sell_limit_nano_per_wh", "%d is negative", d.SellLimit)
		}
	}
	if d := h.Departure; d != (Departure{}) {
		if _, err := MinuteOf(d.By); err != nil {
			k.add(p+".departure.by", "%v", err)
		}
		if d.Wh < 1 || d.Wh > 200_000 {
			k.add(p+".departure.wh", "%d is outside 1..200000", d.Wh)
		}
		if d.MaxPrice < 0 {
			k.add(p+".departure.max_price_nano_per_wh", "%d is negative", d.MaxPrice)
		}
	}
}

func (c *Config) feeder(k *checker) {
	f := &c.Feeder
	if !f.Shared() {
		return
	}
	if f.Leader != "" {
		if !word(f.Leader) {
			k.add("feeder.leader", "%q is no gateway's name", f.Leader)
		}
	}
	if lead := f.Leader == c.Name && f.Leader != ""; !lead {
		if f.Rating != 0 || f.Reserve != 0 || len(f.Members) > 0 {
			k.add("feeder", "rating_ma, reserve_ma and members belong into the leader's configuration")
		}
		return
	}
	if f.Rating == 0 {
		k.add("feeder.rating_ma", "is required of the leader")
	}
	self := false
	for i, m := range f.Members {
		p := fmt.Sprintf("feeder.members[%d]", i)
		if !word(m.Gateway) {
			k.add(p+".gateway", "%q is no gateway's name", m.Gateway)
		}
		if m.Gateway == c.Name {
			self = m.Share == f.Share
		}
		for n, h := range m.Chargers {
			if _, err := circuit.ParseWiring(h.Wiring); err != nil {
				k.add(fmt.Sprintf("%s.chargers[%d].wiring", p, n), "%v", err)
			}
		}
	}
	if !self {
		k.add("feeder.members", "this gateway is missing, or with another share_ma than %d", f.Share)
	}
}

func (c *Config) dimming(k *checker, b board.Board) {
	d := &c.Dimming
	if !d.On() {
		if *d != (Dimming{}) {
			k.add("dimming", "names no source: pin, mqtt or ledger")
		}
		return
	}
	if d.Pin != "" {
		k.pin(b, "dimming.pin", d.Pin, board.Input)
	}
	if d.Total > 0 && d.Total < d.PerDevice {
		k.add("dimming.total_w", "%d is less than one charger keeps (%d)", d.Total, d.PerDevice)
	}
}
