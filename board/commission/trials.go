package commission

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/identify"
)

// TrialsVersion is the format of stored Trials.
const TrialsVersion = 1

// Trials are what a person has tried at a gateway, the newest of each kind.
// There is at most one for each thing that is configured, so that the limits
// of a configuration bound them. They are a value: who changes one changes a
// Clone.
type Trials struct {
	Version    int                  `json:"version"`
	Relays     map[string]Relay     `json:"relays"`     // by charger
	Contacts   map[string]Contact   `json:"contacts"`   // by charger and contact: 1/estop
	Scans      map[string]Scan      `json:"scans"`      // by line
	Directions map[string]Direction `json:"directions"` // by meter
	Backup     time.Time            `json:"backup,omitzero"`
}

// Relay is a test of a charger's relay.
type Relay struct {
	At     time.Time       `json:"at"`
	Wires  chain.Hash      `json:"wires"` // what it was tried on
	Result board.RelayTest `json:"result"`
}

// Contact is a contact that was seen active and then released.
type Contact struct {
	Active   time.Time  `json:"active"`
	Released time.Time  `json:"released"`
	Wires    chain.Hash `json:"wires"`
}

// Scan is what answered on a line.
type Scan struct {
	At    time.Time  `json:"at"`
	Wires chain.Hash `json:"wires"`
	Found []Found    `json:"found"`
}

// Found is a device that answered. Profile is empty unless one alone fits;
// Fits are all that do.
type Found struct {
	Unit         uint8    `json:"unit"`
	Profile      string   `json:"profile"`
	Fits         []string `json:"fits"`
	Manufacturer string   `json:"manufacturer,omitempty"`
	Model        string   `json:"model,omitempty"`
	Serial       string   `json:"serial,omitempty"`
}

// Direction is how the transformers of a meter were found to be mounted.
type Direction struct {
	At    time.Time  `json:"at"`
	Wires chain.Hash `json:"wires"`
	How   string     `json:"how"` // in words
	Lines []Line     `json:"lines"`
}

// Line is one of them; Phase 0 is the total.
type Line struct {
	Phase  uint8           `json:"phase"`
	StepW  meter.Watt      `json:"step_w"`
	Wiring identify.Wiring `json:"wiring"`
}

// Clone returns a copy that shares no map.
func (t Trials) Clone() Trials {
	t.Relays, t.Contacts, t.Scans, t.Directions = clone(t.Relays), clone(t.Contacts), clone(t.Scans), clone(t.Directions)
	return t
}

func clone[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

// Prune drops what is about things that are not configured any more.
func (t *Trials) Prune(c *config.Config) {
	chargers, lines, meters := map[string]bool{}, map[string]bool{}, map[string]bool{}
	contacts := map[string]bool{}
	for _, h := range c.Chargers {
		chargers[fmt.Sprint(h.ID)] = true
		for _, k := range contactsOf(&h) {
			contacts[ContactKey(h.ID, k.name)] = true
		}
	}
	for _, l := range c.Lines {
		lines[l.ID] = true
	}
	for _, m := range c.Meters {
		meters[m.ID] = true
	}
	maps.DeleteFunc(t.Relays, func(k string, _ Relay) bool { return !chargers[k] })
	maps.DeleteFunc(t.Contacts, func(k string, _ Contact) bool { return !contacts[k] })
	maps.DeleteFunc(t.Scans, func(k string, _ Scan) bool { return !lines[k] })
	maps.DeleteFunc(t.Directions, func(k string, _ Direction) bool { return !meters[k] })
}

// ContactKey names a contact of a charger in Trials.
func ContactKey(charger uint8, name string) string { return fmt.Sprintf("%d/%s", charger, name) }

// contact is one that a charger may have.
type contact struct {
	name, what, pin string
	must            bool // to be tried; else it may be
}

func contactsOf(h *config.Charger) (all []contact) {
	for _, c := range []contact{
		{board.ContactEStop, "emergency stop", h.EStop, true},
		{board.ContactEarth, "earth fault monitor", h.EarthFault, true},
		{board.ContactStop, "stop button", h.StopButton, true},
		{board.ContactPilot, "pilot module", h.Pilot, false},
	} {
		if c.pin != "" {
			all = append(all, c)
		}
	}
	return all
}

// sum names a wiring. A trial counts only for the one that it was made on.
func sum(parts ...any) chain.Hash {
	b, err := json.Marshal(parts)
	if err != nil {
		panic(fmt.Sprintf("commission: wiring: %v", err)) // plain values
	}
	return chain.Sum(b)
}

// RelayWires names how the relay of a charger is wired.
func RelayWires(b *board.Board, h *config.Charger) chain.Hash {
	relay, _ := b.Pin(h.Relay)
	feedback, _ := b.Pin(h.Feedback)
	return sum(relay, feedback)
}

// ContactWires names how a contact of a charger is wired.
func ContactWires(b *board.Board, h *config.Charger, name string) chain.Hash {
	for _, c := range contactsOf(h) {
		if c.name == name {
			p, _ := b.Pin(c.pin)
			return sum(p)
		}
	}
	return chain.Hash{}
}

// LineWires names a line and what is said to be on it.
func LineWires(c *config.Config, id string) chain.Hash {
	parts := []any{}
	for _, l := range c.Lines {
		if l.ID == id {
			parts = append(parts, l)
		}
	}
	for _, m := range c.Meters {
		if m.Line == id {
			parts = append(parts, m.Unit, m.Profile)
		}
	}
	return sum(parts...)
}

// MeterWires names a meter and which way round it is read.
func MeterWires(m *config.Meter) chain.Hash {
	return sum(m.ID, m.Line, m.Unit, m.Profile, m.Role, m.Invert)
}
