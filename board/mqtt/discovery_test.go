package mqtt

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// memory is a Store that outlives a service.
type memory struct {
	mu sync.Mutex
	m  map[string][]byte
	// fail, if not nil, is returned by the next updates; land says whether they
	// are carried out all the same.
	fail error
	land bool
	n    int // updates
}

func (m *memory) Saved(prefix string, f func(string, []byte) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.m)) {
		if strings.HasPrefix(name, prefix) {
			if err := f(name, m.m[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memory) Update(changes map[string][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n++
	if m.fail != nil && !m.land {
		return m.fail
	}
	if m.m == nil {
		m.m = map[string][]byte{}
	}
	for name, v := range changes {
		if v == nil {
			delete(m.m, name)
		} else {
			m.m[name] = slices.Clone(v)
		}
	}
	return m.fail
}

var (
	discoveryTopic = regexp.MustCompile(`^homeassistant/device/([a-zA-Z0-9_-]+)/config$`)
	// unitsOf are the units that Home Assistant takes for a device class of a
	// sensor (its documentation, "Sensor", available device classes), as far
	// as a gateway has them.
	unitsOf = map[string][]string{"power": {"mW", "W", "kW", "MW", "GW", "TW"}, "energy": {"mWh", "Wh", "kWh", "MWh", "GWh", "TWh"}, "current": {"A", "mA"}, "enum": {""}}
	// statesOf are the state classes that go with a device class.
	statesOf       = map[string][]string{"power": {"measurement"}, "energy": {"total", "total_increasing"}, "current": {"measurement"}, "enum": {""}}
	binaryClasses  = []string{"", "battery", "connectivity", "lock", "plug", "power", "problem", "running", "safety", "tamper", "update"}
	buttonClasses  = []string{"", "identify", "restart", "update"}
	abbreviated    = map[string]string{"dev": "device", "o": "origin", "cmps": "components", "avty": "availability", "p": "platform"}
	deviceKeys     = []string{"ids", "name", "mf", "mdl", "sw", "hw", "sn", "via_device", "sa", "cu"}
	originKeys     = []string{"name", "sw", "url"}
	componentKeys  = []string{"platform", "unique_id", "name", "state_topic", "value_template", "device_class", "state_class", "unit_of_measurement", "entity_category", "options", "command_topic", "command_template", "qos"}
	discoveryExtra = []string{"device", "origin", "components", "availability", "availability_mode"}
)

// checkDiscovery judges a message by the rules that Home Assistant documents
// for device discovery: its documentation of the MQTT integration, and of the
// MQTT sensor, binary sensor and button. It shares nothing with what makes the
// message.
func checkDiscovery(topic string, payload []byte) (wrong []string) {
	bad := func(format string, a ...any) { wrong = append(wrong, fmt.Sprintf(format, a...)) }
	if !discoveryTopic.MatchString(topic) {
		bad("topic %s", topic)
	}
	var doc map[string]any
	if err := json.Unmarshal(payload, &doc); err != nil {
		return append(wrong, err.Error())
	}
	long := func(m map[string]any) map[string]any {
		out := map[string]any{}
		for k, v := range m {
			if l := abbreviated[k]; l != "" {
				k = l
			}
			out[k] = v
		}
		return out
	}
	text := func(m map[string]any, k string) string {
		v, there := m[k]
		s, ok := v.(string)
		if there && (!ok || s == "") {
			bad("%s is %v", k, v)
		}
		return s
	}
	only := func(what string, m map[string]any, keys []string) {
		for k := range m {
			if !slices.Contains(keys, k) {
				bad("%s: unknown key %s", what, k)
			}
		}
	}
	heard := func(what, t string) { // a topic that is subscribed to
		if t == "" || strings.ContainsAny(t, "+#\x00") || len(t) > 65535 {
			bad("%s: topic %q", what, t)
		}
	}
	doc = long(doc)
	only("message", doc, discoveryExtra)
	dev, _ := doc["device"].(map[string]any)
	if ids, _ := dev["ids"].([]any); len(ids) == 0 {
		bad("device without identifiers")
	}
	if text(dev, "name") == "" {
		bad("device without name")
	}
	only("device", dev, deviceKeys)
	origin, _ := doc["origin"].(map[string]any)
	if text(origin, "name") == "" {
		bad("no origin, or one without name")
	}
	only("origin", origin, originKeys)
	if u, there := origin["url"]; there && !strings.HasPrefix(fmt.Sprint(u), "https://") {
		bad("origin url %v", u)
	}
	if mode := doc["availability_mode"]; mode != nil && !slices.Contains([]any{"all", "any", "latest"}, mode) {
		bad("availability_mode %v", mode)
	}
	avail, _ := doc["availability"].([]any)
	for _, a := range avail {
		m, _ := a.(map[string]any)
		heard("availability", fmt.Sprint(m["topic"]))
	}
	parts, _ := doc["components"].(map[string]any)
	if len(parts) == 0 {
		bad("no components")
	}
	unique := map[string]bool{}
	for name, v := range parts {
		m, _ := v.(map[string]any)
		c := long(m)
		only(name, c, componentKeys)
		id, platform, class := text(c, "unique_id"), text(c, "platform"), text(c, "device_class")
		if id == "" || unique[id] {
			bad("%s: unique_id %q missing or used twice", name, id)
		}
		unique[id] = true
		if cat := text(c, "entity_category"); cat != "" && cat != "diagnostic" && cat != "config" {
			bad("%s: entity_category %q", name, cat)
		}
		if tpl := text(c, "value_template"); strings.Count(tpl, "{{") != strings.Count(tpl, "}}") {
			bad("%s: template %q", name, tpl)
		}
		unit, state := text(c, "unit_of_measurement"), text(c, "state_class")
		options, _ := c["options"].([]any)
		switch platform {
		case "sensor":
			heard(name, text(c, "state_topic"))
			if class != "" && (!slices.Contains(unitsOf[class], unit) || !slices.Contains(statesOf[class], state)) {
				bad("%s: device_class %s with unit %q and state_class %q", name, class, unit, state)
			}
			if (len(options) > 0) != (class == "enum") {
				bad("%s: options belong to device_class enum", name)
			}
			if !slices.Contains([]string{"", "measurement", "total", "total_increasing"}, state) {
				bad("%s: state_class %s", name, state)
			}
			if text(c, "entity_category") == "config" {
				bad("%s: a sensor is no setting", name)
			}
		case "binary_sensor":
			heard(name, text(c, "state_topic"))
			if !slices.Contains(binaryClasses, class) || unit != "" || state != "" {
				bad("%s: device_class %q, unit %q, state_class %q of a binary sensor", name, class, unit, state)
			}
		case "button":
			heard(name, text(c, "command_topic"))
			if !slices.Contains(buttonClasses, class) || unit != "" || state != "" || c["state_topic"] != nil {
				bad("%s: not a button", name)
			}
		default:
			bad("%s: platform %q", name, platform)
		}
	}
	return wrong
}

func TestCheckDiscoveryFindsMistakes(t *testing.T) {
	good := `{"dev":{"ids":["a"],"name":"n"},"o":{"name":"joulegate"},"cmps":{"p":{"p":"sensor","unique_id":"u","name":"x","state_topic":"t","device_class":"energy","state_class":"total_increasing","unit_of_measurement":"Wh"}}}`
	const topic = "homeassistant/device/joulegate_a_b/config"
	if w := checkDiscovery(topic, []byte(good)); len(w) > 0 {
		t.Fatal(w)
	}
	for _, c := range []struct{ old, new string }{
		{`"o":{"name":"joulegate"},`, ``},
		{`"ids":["a"],`, ``},
		{`"p":"sensor"`, `"p":"meter"`},
		{`"unique_id":"u",`, ``},
		{`"total_increasing"`, `"measurement"`},
		{`"Wh"`, `"W"`},
		{`"state_topic":"t"`, `"state_topic":"t/#"`},
		{`"name":"n"`, `"name":""`},
	} {
		if w := checkDiscovery(topic, []byte(strings.Replace(good, c.old, c.new, 1))); len(w) == 0 {
			t.Errorf("%s instead of %s is taken", c.new, c.old)
		}
	}
	if w := checkDiscovery("homeassistant/device/joulegate.a/config", []byte(good)); len(w) == 0 {
		t.Error("a topic with a dot is taken")
	}
}

func things() []Thing {
	power := Component{ID: "power", Platform: "sensor", Name: "Power", StateTopic: "device/m/state", ValueTemplate: "{{ value_json.power_w }}", Unit: "W", DeviceClass: "power", StateClass: "measurement"}
	return []Thing{
		{ID: GatewayThing, Name: "g", Components: []Component{{ID: "height", Platform: "sensor", Name: "Height", StateTopic: "ledger/state"}}},
		{ID: "m", Name: "m", Topics: []string{"device/m/state", "device/m/availability"}, Availability: []string{"device/m/availability"}, Components: []Component{power}},
	}
}

// TestHomeAssistantFindsDevices: a broker of somebody else, Home Assistant as
// its ordinary user. Devices are told at once, again when it says that it has
// begun, and taken back when they leave the configuration, even if the gateway
// was off meanwhile.
func TestHomeAssistantFindsDevices(t *testing.T) {
	broker, err := NewBroker(BrokerConfig{Listen: "127.0.0.1:0", Users: []User{
		{Name: "house1", Hash: hash(t, "h"), Rules: GatewayRules("house1", DefaultPrefix)},
		{Name: "homeassistant", Hash: hash(t, "ha"), Rules: HomeAssistantRules("homeassistant", DefaultPrefix)},
		{Name: "house2", Hash: hash(t, "2"), Rules: GatewayRules("house2", DefaultPrefix)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	runBroker(t, broker)
	store := &memory{}
	begin := func(all []Thing, prefix string) (*Service, func()) {
		t.Helper()
		s, err := New(Config{
			Gateway: "house1", URL: "tcp://" + broker.Addr(), Username: "house1", Password: "h",
			Discovery: &Discovery{Prefix: prefix, Version: "1", Things: all, Store: store, Delay: time.Millisecond},
		})
		if err != nil {
			t.Fatal(err)
		}
		return s, run(t, s)
	}
	ha, err := dial(t, broker.Addr(), "homeassistant", "ha")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"homeassistant/+/+/config", "homeassistant/+/+/+/config", "homeassistant/status", Root + "/+/device/+/state", Root + "/+/status"} {
		if !ha.subscribe(t, f) {
			t.Errorf("Home Assistant may not hear %s", f)
		}
	}
	if ha.subscribe(t, Root+"/house1/config/reported") || ha.subscribe(t, Root+"/house1/cmd/anna/diag") {
		t.Error("Home Assistant reads what is none of its business")
	}
	const gateway, m = "homeassistant/device/joulegate_house1_gateway/config", "homeassistant/device/joulegate_house1_m/config"
	s, stop := begin(things(), DefaultPrefix)
	watt := int64(5)
	if err := s.PublishDevice("m", DeviceState{PowerW: &watt, Quality: "good"}); err != nil {
		t.Fatal(err)
	}
	ha.until(t, "both devices", func() bool { return ha.payload(gateway) != "" && ha.payload(m) != "" })
	ha.mu.Lock()
	for _, topic := range []string{gateway, m} {
		if w := checkDiscovery(topic, []byte(ha.payload(topic))); len(w) > 0 {
			t.Errorf("%s: %s\n%s", topic, strings.Join(w, "\n"), ha.payload(topic))
		}
	}
	ha.mu.Unlock()

	count := func(topic string) (n int) { // the caller holds mu
		for _, m := range ha.all {
			if m.Topic() == topic {
				n++
			}
		}
		return n
	}
	before := 1
	waitFor(t, "the gateway's subscription", func() bool {
		ha.Publish("homeassistant/status", 1, false, "online").WaitTimeout(patience)
		time.Sleep(20 * time.Millisecond)
		ha.mu.Lock()
		defer ha.mu.Unlock()
		return count(m) > before && count(gateway) > before
	})
	stop()

	// The meter leaves while the gateway is off.
	_, stop = begin(things()[:1], DefaultPrefix)
	state := Topic("house1", "device/m/state")
	ha.until(t, "the removal", func() bool { return ha.last[m] != nil && ha.payload(m) == "" && ha.payload(state) == "" })
	stop()
	late, err := dial(t, broker.Addr(), "house2", "2")
	if err != nil {
		t.Fatal(err)
	}
	if _, there := broker.server.Topics.Retained.Get(m); there {
		t.Error("the broker still has the device")
	}
	if _, there := broker.server.Topics.Retained.Get(gateway); !there {
		t.Error("the broker does not retain the gateway's devices")
	}
	// A neighbour cannot speak of this gateway's devices.
	late.Publish(gateway, 0, true, "{}").WaitTimeout(patience)
	late.Publish("homeassistant/device/joulegate_house2_x/config", 1, true, "{}").WaitTimeout(patience)
	ha.until(t, "the neighbour's device", func() bool { return ha.payload("homeassistant/device/joulegate_house2_x/config") == "{}" })
	ha.mu.Lock()
	if ha.payload(gateway) == "{}" {
		t.Error("a neighbour has changed this gateway's devices")
	}
	ha.mu.Unlock()

	// Switched off, everything is taken back.
	_, stop = begin(things()[:1], "")
	ha.until(t, "the removal of all", func() bool { return ha.payload(gateway) == "" })
	stop()
	n := store.n
	_, stop = begin(things()[:1], "") // nothing to do, nothing to write
	waitFor(t, "stop", func() bool { stop(); return true })
	if store.n != n {
		t.Errorf("%d writes by a start that changes nothing", store.n-n)
	}
}
