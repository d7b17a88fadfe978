package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter/circuit"
)

// everything is a configuration in which no section is missing.
const everything = `version: 1
name: north
board: simulated
installers: [%[1]s]
lines:
  - {id: bus, device: /dev/ttyUSB0}
meters:
  - {id: house, line: bus, unit: 1, profile: eastron-sdm630, role: site}
  - {id: car, line: bus, unit: 2, profile: eastron-sdm630, role: charger}
  - {id: sun, line: bus, unit: 3, profile: eastron-sdm630, role: production}
chargers:
  - {id: 1, meter: car, relay: RELAY1, evse: {line: bus, unit: 10, profile: simpleevse}, circuit: cellar, temp_sensor: /sys/t, departure: {by: "07:00", wh: 9000}}
readers:
  - {charger: 1, socket: /run/reader}
site: {fuse_ma: 35000}
circuits:
  - {id: cellar, rating_ma: 25000, power_w: 9000}
feeder: {share_ma: 20000, leader: north, rating_ma: 63000, members: [{gateway: north, share_ma: 20000, chargers: [{id: 1, max_current_ma: 16000, wiring: L1 L2 L3}]}]}
dimming: {mqtt: true, total_w: 6000, own_limit_w: 5000}
battery: {meter: sun, first_permille: 500}
mqtt: {broker: "tls://broker:8883", user: north, password_file: /etc/pw, cert_file: /etc/crt, key_file: /etc/key, discovery: "off"}
ledger: {keep_days: 60}
pins: {socket: /run/pins}
guard:
  mode: observe
  dns: {listen: ["127.0.0.1:53"], upstreams: ["192.0.2.1"], answer: nxdomain, bypass: observe}
`

func complete(t *testing.T) Config {
	t.Helper()
	var key chain.Key
	key[0] = 7
	text, err := key.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(fmt.Appendf(nil, everything, text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// plainDoc is a configuration as JSON decodes it.
func plainDoc(t *testing.T, c Config) any {
	t.Helper()
	b, err := json.Marshal(Document(c))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func validator(t *testing.T) *jsonschema.Schema {
	t.Helper()
	b, err := json.Marshal(Schema())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	k := jsonschema.NewCompiler()
	k.DefaultDraft(jsonschema.Draft2020)
	if err := k.AddResource("joulegate.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := k.Compile("joulegate.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// limited visits every field of v that has a limit, in the first entry of
// every list.
func limited(path string, v reflect.Value, visit func(path string, l limit, v reflect.Value)) {
	for i := range v.NumField() {
		f, fv := v.Type().Field(i), v.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		p := strings.TrimPrefix(path+"."+key, ".")
		if l := limitOf(f); l.ranged || len(l.words) > 0 || l.items > 0 {
			visit(p, l, fv)
		}
		switch {
		case fv.Kind() == reflect.Struct:
			limited(p, fv, visit)
		case fv.Kind() == reflect.Slice && fv.Type().Elem().Kind() == reflect.Struct && fv.Len() > 0:
			limited(p+"[0]", fv.Index(0), visit)
		}
	}
}

// stricter are fields within whose range another setting or the board draws a
// narrower limit, and why.
var stricter = map[string]string{
	"meters[0].unit":            "255 is for a device without units on a tcp line, and a unit is used once",
	"chargers[0].evse.unit":     "as meters[0].unit",
	"readers[0].charger":        "only a charger that is there",
	"chargers[0].id":            "the reader and the feeder name it",
	"chargers[0].derate_from_c": "below max_temp_c",
	"chargers[0].max_temp_c":    "above derate_from_c",
	"meters[0].role":            "a gateway has one site meter, a charger one of its own",
	"ledger.keep_days":          "journal_days is not less",
	"ledger.journal_days":       "not less than keep_days",
	"timing.watchdog":           "four ticks at least",
	"dimming.total_w":           "not less than one charger keeps",
	"guard.dns.bypass":          "off needs nothing, observe a name server",
	"feeder.share_ma":           "the same among its members",
	"feeder.rating_ma":          "the shares fit in it",
	"dimming.per_device_w":      "total_w is not less",
}

// TestSchemaAndValidateAgree: at every limit that a tag states, just inside and
// just outside, a validator of somebody else says of the schema what Validate
// says of the configuration, and at the place where it is wrong.
func TestSchemaAndValidateAgree(t *testing.T) {
	schema := validator(t)
	if err := schema.Validate(plainDoc(t, complete(t))); err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string]string{"an unknown key": `{"version":1,"name":"n","board":"generic","mqtt":{"brokr":""}}`, "a text for a number": `{"version":1,"name":"n","board":"generic","site":{"fuse_ma":"35"}}`, "no name": `{"version":1,"board":"generic"}`} {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(doc))
		if err != nil {
			t.Fatal(err)
		}
		if schema.Validate(v) == nil {
			t.Errorf("the schema takes %s", name)
		}
	}
	checked := 0
	try := func(path, what string, inside bool, set func(c *Config)) {
		t.Helper()
		checked++
		c := complete(t)
		set(&c)
		var wrong []string
		for _, e := range c.Validate() {
			if e.Path == path {
				wrong = append(wrong, e.Message)
			}
		}
		narrower := inside && stricter[path] != "" // inside, somebody else may refuse
		if (len(wrong) == 0) != inside && !narrower {
			t.Errorf("%s = %s: Validate says %q", path, what, wrong)
		}
		if len(slices.Compact(slices.Sorted(slices.Values(wrong)))) < len(wrong) {
			t.Errorf("%s = %s is told twice: %q", path, what, wrong)
		}
		if err := schema.Validate(plainDoc(t, c)); (err == nil) != inside && !strings.HasPrefix(what, "duration ") {
			t.Errorf("%s = %s: the schema says %v", path, what, err)
		}
	}
	at := func(c *Config, path string) (found reflect.Value) {
		limited("", reflect.ValueOf(c).Elem(), func(p string, _ limit, v reflect.Value) {
			if p == path {
				found = v
			}
		})
		return found
	}
	c := complete(t)
	limited("", reflect.ValueOf(&c).Elem(), func(path string, l limit, v reflect.Value) {
		switch {
		case l.ranged:
			step := int64(1)
			kind := "number"
			if l.duration {
				step, kind = int64(time.Millisecond), "duration" // JSON Schema has no word for its range
			}
			for _, n := range []struct {
				v      int64
				inside bool
			}{{l.lo - step, false}, {l.lo, true}, {l.hi, true}, {l.hi + step, false}} {
				if n.v < 0 && v.CanUint() || v.CanUint() && v.Type().Bits() == 8 && n.v > 255 {
					continue // cannot be written down
				}
				if n.v == 0 && (l.optional || l.zero) && !n.inside {
					continue // left out, or with a meaning of its own
				}
				if l.duration && n.v < 0 {
					continue // no such text
				}
				try(path, fmt.Sprintf("%s %s", kind, l.say(n.v)), n.inside, func(c *Config) {
					if f := at(c, path); f.CanUint() {
						f.SetUint(uint64(n.v))
					} else {
						f.SetInt(n.v)
					}
				})
			}
		case len(l.words) > 0:
			for _, w := range append(slices.Clone(l.words), "nonsense") {
				try(path, w, w != "nonsense", func(c *Config) { at(c, path).SetString(w) })
			}
		default:
			try(path, "one entry too many", false, func(c *Config) {
				f := at(c, path)
				f.Set(reflect.MakeSlice(f.Type(), l.items+1, l.items+1))
			})
		}
	})
	if checked < 200 {
		t.Errorf("only %d values were tried: does the full configuration lack a section?", checked)
	}
}

// TestEveryNumberHasALimit: whoever adds a number says how large it may be.
func TestEveryNumberHasALimit(t *testing.T) {
	elsewhere := []string{ // limits that depend on something: see Validate
		"version", "lines[].baud", "chargers[].max_current_ma", "chargers[].phases", "circuits[].reserve_ma", "feeder.reserve_ma",
		"feeder.members[].share_ma", "feeder.members[].chargers[].id", "feeder.members[].chargers[].max_current_ma", "update.threshold",
		"market.sell_limit_nano_per_wh", "market.buy_limit_nano_per_wh",
		// Of sections that are checked once they are in use.
		"chargers[].departure.wh", "chargers[].departure.max_price_nano_per_wh",
		"chargers[].discharge.capacity_wh", "chargers[].discharge.floor_permille", "chargers[].discharge.floor_wh",
		"chargers[].discharge.max_power_w", "chargers[].discharge.min_power_w", "chargers[].discharge.sell_limit_nano_per_wh",
	}
	for _, s := range Reference() {
		if limited := s.Range != ""; (s.Type == "number" || s.Type == "duration") && limited == slices.Contains(elsewhere, s.Path) {
			t.Errorf("%s: range %q", s.Path, s.Range)
		}
	}
}

// TestTagsSayWhatTheCoreSays: limits that other packages know as well.
func TestTagsSayWhatTheCoreSays(t *testing.T) {
	field := func(s any, name string) limit {
		f, ok := reflect.TypeOf(s).FieldByName(name)
		if !ok {
			t.Fatal(name)
		}
		return limitOf(f)
	}
	for what, pair := range map[string][2]int64{
		"fuse":     {field(Site{}, "Fuse").lo, int64(MinCurrent)},
		"circuit":  {field(Circuit{}, "Rating").lo, int64(MinCurrent)},
		"keep":     {field(Ledger{}, "KeepDays").lo, MinKeepDays},
		"silence":  {field(Dimming{}, "Silence").hi, int64(circuit.MaxSilence)},
		"failsafe": {field(Dimming{}, "Failsafe").lo, int64(circuit.MinFailsafe)},
		"lines":    {int64(field(Config{}, "Lines").items), MaxLines},
		"meters":   {int64(field(Config{}, "Meters").items), MaxMeters},
		"chargers": {int64(field(Config{}, "Chargers").items), MaxChargers},
		"readers":  {int64(field(Config{}, "Readers").items), MaxChargers},
		"keys":     {int64(field(Config{}, "Installers").items), MaxInstallers},
		"listen":   {int64(field(P2P{}, "Listen").items), MaxListen},
		"pins":     {int64(field(Pins{}, "Lines").items), MaxPins},
		"writers":  {int64(field(Guard{}, "Writers").items), MaxWriters},
		"baseline": {int64(field(Guard{}, "Baseline").items), MaxBaseline},
		"rules":    {int64(field(Guard{}, "Rules").items), MaxGuardRules},
		"never":    {int64(field(Guard{}, "Never").items), MaxNever},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: the tag says %d, the program %d", what, pair[0], pair[1])
		}
	}
}

// TestSecretsStayWhereTheyAre: what is told of the configuration holds none,
// what was told can be sent back, and one in clear is refused.
func TestSecretsStayWhereTheyAre(t *testing.T) {
	cur := complete(t)
	b, err := json.Marshal(Public(cur))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("/etc/pw")) || bytes.Contains(b, []byte("/etc/key")) || bytes.Count(b, []byte(`{"$secret":"set"}`)) != 2 {
		t.Errorf("%s", b)
	}
	without := cur
	without.MQTT.PasswordFile, without.MQTT.KeyFile, without.MQTT.CertFile = "", "", ""
	if b, _ := json.Marshal(Public(without)); bytes.Contains(b, []byte("$secret")) {
		t.Errorf("nothing is set: %s", b)
	}
	for _, mode := range []string{Merge, Replace} {
		d := Desired{Txn: "x", Mode: mode, Config: b}
		if got, err := d.Patch(cur); err != nil || len(Diff(cur, got)) != 0 {
			t.Errorf("%s with what was told: %v, %+v", mode, err, Diff(cur, got))
		}
	}
	props := Schema()["properties"].(map[string]any)["mqtt"].(map[string]any)["properties"].(map[string]any)
	for _, key := range []string{"password_file", "key_file"} {
		if props[key].(map[string]any)["writeOnly"] != true {
			t.Errorf("%s is not writeOnly", key)
		}
	}
	for patch, want := range map[string]*Denial{
		`{"mqtt":{"password":"hunter2"}}`:                  {Code: InClear, Path: "config.mqtt.password"},
		`{"readers":[{"Token":"x"}]}`:                      {Code: InClear, Path: "config.readers[0].Token"},
		`{"mqtt":{"password_file":{"$secret":"hunter2"}}}`: {Code: BadRequest, Path: "config.mqtt.password_file"},
	} {
		d := Desired{Txn: "x", Mode: Merge, Config: json.RawMessage(patch)}
		_, err := d.Patch(cur)
		got, ok := err.(*Denial) //nolint:errorlint // made as it is
		if !ok || got.Code != want.Code || got.Path != want.Path || strings.Contains(got.Text, "hunter2") && got.Code == InClear {
			t.Errorf("%s: %v", patch, err)
		}
	}
}

// TestLimitsOnlyLower: whatever a change states, what a charger is offered is
// never above what the board and the standard allow.
func TestLimitsOnlyLower(t *testing.T) {
	cur := complete(t)
	for _, ma := range []int64{5_999, 32_001, 40_000, 1 << 40, -1, 0} {
		for _, mode := range []string{Merge, DryRun} {
			d := Desired{Txn: "x", Mode: mode, Config: fmt.Appendf(nil, `{"chargers":{"1":{"max_current_ma":%d}}}`, ma)}
			got, err := d.Patch(cur)
			if ma == 0 && err == nil && got.Chargers[0].MaxCurrent <= cur.Chargers[0].MaxCurrent {
				continue // left out: the default, which is no more
			}
			if err == nil {
				t.Errorf("%d mA: %d mA is in force", ma, got.Chargers[0].MaxCurrent)
			} else if !strings.Contains(err.Error(), "chargers[0].max_current_ma") {
				t.Errorf("%d mA: %v", ma, err)
			}
		}
	}
	// A pin and a profile that carry less lower it further: see TestValidate.
}
