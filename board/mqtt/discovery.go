package mqtt

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// DefaultPrefix is where Home Assistant looks for devices unless told
// otherwise.
const DefaultPrefix = "homeassistant"

// Discovery is what Home Assistant is told of a gateway: one message per
// device, with all of its entities, as its documentation of the MQTT
// integration, "Device discovery payload", wants it.
//
//	homeassistant/device/joulegate_<gateway>_<id>/config   retained
//	{"dev":{"ids":..},"o":{"name":"joulegate"},"availability":[..],
//	 "cmps":{"power":{"p":"sensor","unique_id":..,"state_topic":..}}}
//
// It is told at every connect, and again when homeassistant/status says that
// Home Assistant has begun. What was told of a device that is no longer in the
// configuration is taken back with an empty message, also when the gateway was
// off meanwhile: Store remembers what is retained.
type Discovery struct {
	Prefix  string // "": nothing is told, what was is taken back
	Version string // of this program
	Things  []Thing
	Store   Store         // nil: what was told by an earlier process stays
	Delay   time.Duration // most to wait after Home Assistant has begun, a random part of it; 0: 3 s

	mu    sync.Mutex
	told  []string            // topics of devices
	keep  []string            // topics that may be retained by the broker and shall be
	stale map[string]struct{} // topics that shall not be
	birth chan struct{}
}

// Thing is a device with its entities.
type Thing struct {
	ID           string // for example house or charger-1; the gateway itself: GatewayThing
	Name         string
	Maker, Model string   // "": not told
	Topics       []string // below the root, that are the thing's own and go with it
	Availability []string // likewise, beside status
	Components   []Component
}

// GatewayThing is the id of the gateway itself, of which all others are parts.
const GatewayThing = "gateway"

// Component is an entity of a thing. The fields are those of the discovery
// payload; topics are below the root.
type Component struct {
	ID              string   `json:"-"`
	Platform        string   `json:"p"` // sensor, binary_sensor, button
	UniqueID        string   `json:"unique_id"`
	Name            string   `json:"name"`
	StateTopic      string   `json:"state_topic,omitempty"`
	ValueTemplate   string   `json:"value_template,omitempty"`
	DeviceClass     string   `json:"device_class,omitempty"`
	StateClass      string   `json:"state_class,omitempty"`
	Unit            string   `json:"unit_of_measurement,omitempty"`
	Category        string   `json:"entity_category,omitempty"`
	Options         []string `json:"options,omitempty"`
	CommandTopic    string   `json:"command_topic,omitempty"`
	CommandTemplate string   `json:"command_template,omitempty"`
	QoS             int      `json:"qos,omitempty"`
}

type discoveryPayload struct {
	Device struct {
		IDs   []string `json:"ids"`
		Name  string   `json:"name"`
		Maker string   `json:"mf,omitempty"`
		Model string   `json:"mdl,omitempty"`
		Via   string   `json:"via_device,omitempty"`
		SW    string   `json:"sw,omitempty"`
	} `json:"dev"`
	Origin struct {
		Name string `json:"name"`
		SW   string `json:"sw,omitempty"`
		URL  string `json:"url"`
	} `json:"o"`
	Availability []availability       `json:"availability"`
	Mode         string               `json:"availability_mode"`
	Components   map[string]Component `json:"cmps"`
}

type availability struct {
	Topic string `json:"topic"` // online or offline, Home Assistant's default words
}

// payload is what is told of t. The node of a gateway is joulegate_<gateway>.
func (d *Discovery) payload(node, root string, t Thing) ([]byte, error) {
	var p discoveryPayload
	id := node + "_" + t.ID
	p.Device.IDs, p.Device.Name, p.Device.Maker, p.Device.Model = []string{id}, t.Name, t.Maker, t.Model
	if t.ID == GatewayThing {
		p.Device.SW = d.Version
	} else {
		p.Device.Via = node + "_" + GatewayThing
	}
	p.Origin.Name, p.Origin.SW, p.Origin.URL = "joulegate", d.Version, "https://github.com/joulegate/joulegate"
	p.Availability, p.Mode = []availability{{root + topicStatus}}, "all"
	for _, topic := range t.Availability {
		p.Availability = append(p.Availability, availability{root + topic})
	}
	p.Components = map[string]Component{}
	for _, c := range t.Components {
		c.UniqueID = id + "_" + c.ID
		if c.StateTopic != "" {
			c.StateTopic = root + c.StateTopic
		}
		if c.CommandTopic != "" {
			c.CommandTopic = root + c.CommandTopic
		}
		p.Components[c.ID] = c
	}
	b, err := json.Marshal(p)
	if err == nil && len(b) > MaxPayload {
		err = fmt.Errorf("%d bytes, at most %d", len(b), MaxPayload)
	}
	return b, err
}

const retainedKey = "mqtt.retained"

// announce queues what Home Assistant is told, and the removal of what was
// told before and is not so any more.
func (s *Service) announce() error {
	d := s.discovery
	if d == nil {
		return nil
	}
	if d.Delay == 0 {
		d.Delay = 3 * time.Second
	}
	d.birth = make(chan struct{}, 1)
	node := "joulegate_" + s.gateway
	for _, t := range d.Things {
		if err := CheckLevel(t.ID); err != nil {
			return fmt.Errorf("mqtt: discovery: %w", err)
		}
		for _, topic := range t.Topics {
			d.keep = append(d.keep, s.root+topic)
		}
		if d.Prefix == "" {
			continue
		}
		b, err := d.payload(node, s.root, t)
		if err != nil {
			return fmt.Errorf("mqtt: discovery of %s: %w", t.ID, err)
		}
		topic := d.Prefix + "/device/" + node + "_" + t.ID + "/config"
		if err := s.put(topic, 1, b); err != nil {
			return err
		}
		d.told, d.keep = append(d.told, topic), append(d.keep, topic)
	}
	if d.Store == nil {
		return nil
	}
	var before []string
	err := d.Store.Saved(retainedKey, func(name string, value []byte) error { return json.Unmarshal(value, &before) })
	if err != nil {
		return fmt.Errorf("mqtt: discovery: %w", err)
	}
	d.stale = map[string]struct{}{}
	for _, topic := range before {
		if slices.Contains(d.keep, topic) {
			continue
		}
		d.stale[topic] = struct{}{}
		if err := s.put(topic, 1, nil); err != nil {
			return err
		}
	}
	return d.remember(before)
}

// remember saves which topics may be retained, unless that is known.
func (d *Discovery) remember(before []string) error {
	all := slices.Sorted(slices.Values(append(slices.Collect(maps.Keys(d.stale)), d.keep...)))
	if slices.Equal(all, before) {
		return nil
	}
	if err := d.Store.Update(map[string][]byte{retainedKey: mustJSON(all)}); err != nil {
		return fmt.Errorf("mqtt: discovery: %w", err)
	}
	return nil
}

// cleared notes that the broker no longer retains a topic.
func (s *Service) cleared(topic string) {
	d := s.discovery
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, was := d.stale[topic]; !was {
		return
	}
	delete(d.stale, topic)
	if len(d.stale) > 0 {
		return
	}
	if err := d.remember(nil); err != nil {
		s.log.Warn("removed topics will be removed again", "err", err)
	}
}

// heard takes what Home Assistant says of itself.
func (d *Discovery) heard(m paho.Message) {
	if m.Retained() || string(m.Payload()) != online {
		return
	}
	select {
	case d.birth <- struct{}{}:
	default:
	}
}

// welcome tells everything again when Home Assistant has begun, after a random
// while, because all who tell it something hear of it at once.
func (s *Service) welcome(ctx context.Context) {
	d := s.discovery
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.birth:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rand.N(d.Delay)):
		}
		s.mu.Lock()
		for _, topic := range d.told {
			if st := s.state[topic]; !st.queued {
				s.queue(topic)
			}
		}
		s.mu.Unlock()
		s.kick()
	}
}

// HomeAssistantRules lets Home Assistant find the devices, read their states,
// say that it is there, and end a session; nothing else.
func HomeAssistantRules(user, prefix string) []Rule {
	rules := []Rule{
		{Access: ReadWrite, Filter: prefix + "/status"},
		{Access: Read, Filter: prefix + "/#"},
		{Access: Write, Filter: Root + "/+/cmd/" + user + "/session.stop"},
		{Access: Read, Filter: Root + "/+/rsp/" + user + "/session.stop"},
		{Access: Read, Filter: Root + "/+/" + topicStatus},
		{Access: Read, Filter: Root + "/+/" + topicInfo},
	}
	for _, below := range []string{"device/#", "charger/#", topicMarket, topicLedger, topicGuard, "event/#"} {
		rules = append(rules, Rule{Access: Read, Filter: Root + "/+/" + below})
	}
	return rules
}
