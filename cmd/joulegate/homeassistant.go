package main

import (
	"fmt"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/mqtt"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/joulegate/joulegate/meter/session"
)

// homeAssistant is the user of the embedded broker that Home Assistant logs in
// as, and under whose name it sends its one command.
const homeAssistant = "homeassistant"

// discovery is what Home Assistant is told of this gateway. Nothing that it
// can do energises anything: the only thing it can do is end a session.
func discovery(cfg config.Config, library *profile.Library, currency string) *mqtt.Discovery {
	d := &mqtt.Discovery{Version: version}
	if cfg.MQTT.Discovers() {
		d.Prefix = cfg.MQTT.DiscoveryPrefix
	}
	d.Things = append(d.Things, gatewayThing(cfg.Name, currency))
	for _, m := range cfg.Meters {
		p, _ := library.Get(m.Profile) // openDevices has found it
		d.Things = append(d.Things, meterThing(m, p))
	}
	for _, c := range cfg.Chargers {
		d.Things = append(d.Things, chargerThing(c))
	}
	return d
}

const diagnostic = "diagnostic"

func gatewayThing(name, currency string) mqtt.Thing {
	sensor := func(id, label, topic, template, unit, class string) mqtt.Component {
		return mqtt.Component{ID: id, Platform: "sensor", Name: label, StateTopic: topic, ValueTemplate: template, Unit: unit, StateClass: class, Category: diagnostic}
	}
	return mqtt.Thing{
		ID: mqtt.GatewayThing, Name: "joulegate " + name, Maker: "joulegate", Model: "energy gateway",
		Components: []mqtt.Component{
			sensor("price", "Local price", "market/state", "{{ value_json.price_nano_per_wh / 1000000 if value_json.price_nano_per_wh is defined else none }}", currency+"/kWh", "measurement"),
			sensor("height", "Ledger height", "ledger/state", "{{ value_json.height }}", "", "measurement"),
			sensor("guard", "Guard", "guard/state", "{{ value_json.mode }}", "", ""),
			sensor("reactions", "Guard reactions in force", "guard/state", "{{ (value_json.reactions or []) | count }}", "", "measurement"),
			{
				ID: "question", Platform: "binary_sensor", Name: "Guard asks", StateTopic: "guard/state", DeviceClass: "problem", Category: diagnostic,
				ValueTemplate: "{{ 'ON' if (value_json.questions or []) | count > 0 else 'OFF' }}",
			},
		},
	}
}

func meterThing(m config.Meter, p *profile.Profile) mqtt.Thing {
	state := "device/" + m.ID + "/state"
	available := "device/" + m.ID + "/availability"
	t := mqtt.Thing{ID: m.ID, Name: m.ID, Topics: []string{state, available}, Availability: []string{available}}
	if p != nil {
		t.Maker, t.Model = p.Vendor, p.Model
	}
	for _, c := range []struct {
		quantity                         meter.Quantity
		id, label, unit, class, statecls string
	}{
		{meter.Power, "power", "Power", "W", "power", "measurement"},
		{meter.Import, "import", "Energy imported", "Wh", "energy", "total_increasing"},
		{meter.Export, "export", "Energy exported", "Wh", "energy", "total_increasing"},
	} {
		if p != nil && !p.Has(c.quantity, 0) && !p.Has(c.quantity, 1) { // a total may be the sum of the lines
			continue
		}
		key := c.id + "_" + map[string]string{"W": "w", "Wh": "wh"}[c.unit]
		t.Components = append(t.Components, mqtt.Component{
			ID: c.id, Platform: "sensor", Name: c.label, StateTopic: state, Unit: c.unit, DeviceClass: c.class, StateClass: c.statecls,
			ValueTemplate: fmt.Sprintf("{{ value_json.%s if value_json.%s is defined else none }}", key, key),
		})
	}
	t.Components = append(t.Components, mqtt.Component{
		ID: "quality", Platform: "sensor", Name: "Quality", StateTopic: state, ValueTemplate: "{{ value_json.quality }}", Category: diagnostic,
	})
	return t
}

func chargerThing(c config.Charger) mqtt.Thing {
	state := fmt.Sprintf("charger/%d/session", c.ID)
	sensor := func(id, label, template string) mqtt.Component {
		return mqtt.Component{ID: id, Platform: "sensor", Name: label, StateTopic: state, ValueTemplate: template}
	}
	phase := sensor("state", "Session", "{{ value_json.state }}")
	phase.DeviceClass, phase.Options = "enum", session.PhaseNames()
	power := sensor("power", "Power", "{{ value_json.power_w }}")
	power.Unit, power.DeviceClass, power.StateClass = "W", "power", "measurement"
	energy := sensor("energy", "Energy of the session", "{{ value_json.session_wh }}")
	energy.Unit, energy.DeviceClass, energy.StateClass = "Wh", "energy", "total_increasing"
	limit := sensor("limit", "Current offered", "{{ value_json.limit_ma / 1000 }}")
	limit.Unit, limit.DeviceClass, limit.StateClass = "A", "current", "measurement"
	why := sensor("why", "Why", "{{ value_json.why[:255] }}") // a state of Home Assistant has 255 characters at most
	why.Category = diagnostic
	binary := func(id, label, class, template string) mqtt.Component {
		return mqtt.Component{ID: id, Platform: "binary_sensor", Name: label, StateTopic: state, ValueTemplate: template, DeviceClass: class, Category: diagnostic}
	}
	return mqtt.Thing{
		ID: fmt.Sprintf("charger-%d", c.ID), Name: fmt.Sprintf("Charger %d", c.ID), Topics: []string{state},
		Components: []mqtt.Component{
			phase, power, energy, limit, why,
			binary("energised", "Energised", "power", "{{ 'ON' if value_json.relay_closed else 'OFF' }}"),
			binary("fault", "Fault", "problem", "{{ 'ON' if value_json.fault | default('') else 'OFF' }}"),
			{
				ID: "stop", Platform: "button", Name: "End session", CommandTopic: "cmd/" + homeAssistant + "/session.stop", QoS: 1,
				CommandTemplate: fmt.Sprintf(`{"txn":"ha-{{ (as_timestamp(now()) * 1000) | int }}","exp":{{ as_timestamp(now()) | int + 60 }},"args":{"charger":%d}}`, c.ID),
			},
		},
	}
}
