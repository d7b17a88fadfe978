package microgrid

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/joulegate/joulegate/board/config"
)

// heard remembers what a client of a broker has received.
type heard struct {
	paho.Client
	mu     sync.Mutex
	last   map[string][]byte
	events []toldEvent
}

type toldEvent struct {
	topic    string
	Seq      uint64
	Time     time.Time
	Severity string
	Data     map[string]any
}

func listen(t *testing.T, broker, user, password string, topics ...string) *heard {
	t.Helper()
	h := &heard{last: map[string][]byte{}}
	h.Client = paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + broker).SetUsername(user).SetPassword(password).SetClientID(user + "-" + t.Name()).SetOrderMatters(true))
	if tok := h.Connect(); !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("broker: %v", tok.Error())
	}
	t.Cleanup(func() { h.Disconnect(100) })
	for _, topic := range topics {
		tok := h.Subscribe(topic, 1, func(_ paho.Client, m paho.Message) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.last[m.Topic()] = m.Payload()
			if strings.Contains(m.Topic(), "/event/") {
				e := toldEvent{topic: m.Topic()}
				if err := json.Unmarshal(m.Payload(), &e); err != nil || m.Retained() {
					t.Errorf("%s: %v, retained %t: %s", m.Topic(), err, m.Retained(), m.Payload())
				}
				h.events = append(h.events, e)
			}
		})
		if !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatalf("subscribe %s: %v", topic, tok.Error())
		}
	}
	return h
}

func (h *heard) payload(topic string) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last[topic]
}

// numbers returns the numbers of the events heard, each once.
func (h *heard) numbers() (all []uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		all = append(all, e.Seq)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// TestEveryTopicOverMosquitto: what docs/MQTT.md lists is there, at a broker
// of somebody else, read by mosquitto's own client; Home Assistant finds the
// devices, again when it begins, and loses those that leave; and events go on
// where they were when broker and gateway have been killed.
func TestEveryTopicOverMosquitto(t *testing.T) {
	t.Parallel()
	broker, password := mosquitto(t)
	grid := newGrid(t, 1)
	g := grid.gateways[0]
	g.install()
	edit := func(f func(c *config.Config)) {
		t.Helper()
		b, err := os.ReadFile(g.config)
		if err != nil {
			t.Fatal(err)
		}
		c, err := config.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		f(&c)
		if err := os.WriteFile(g.config, config.Render(c), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(t.TempDir(), "mqtt.password")
	if err := os.WriteFile(secret, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	edit(func(c *config.Config) {
		c.MQTT.Broker, c.MQTT.User, c.MQTT.PasswordFile = "tcp://"+broker, "gateway", secret
	})
	g.create()
	root := "joulegate/1/" + g.name + "/"
	ha := listen(t, broker, "installer", password, "homeassistant/+/+/config", root+"#")
	g.start()

	site := g.house.Devices[0].ID
	topics := []string{"status", "info", "schema/config", "schema/cmd/diag", "device/" + site + "/availability", "device/" + site + "/state", "charger/1/session", "market/state", "ledger/state", "guard/state", "config/reported", "config/result"}
	g.wait(2*patience, "every topic", func(context.Context) (bool, any) {
		for _, topic := range topics {
			if ha.payload(root+topic) == nil {
				return false, topic
			}
		}
		return true, nil
	})
	host, port, _ := strings.Cut(broker, ":")
	for _, topic := range topics {
		out, err := exec.Command("mosquitto_sub", "-h", host, "-p", port, "-u", "installer", "-P", password, "-t", root+topic, "-C", "1", "-W", "20", "-F", "%r %p").CombinedOutput()
		retained, text, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
		if err != nil || retained != "1" {
			t.Errorf("%s is not retained: %v %s", topic, err, out)
		}
		if plain := topic == "status" || strings.HasSuffix(topic, "/availability"); plain != (text == "online") || !plain && !json.Valid([]byte(text)) {
			t.Errorf("%s says %s", topic, text)
		}
	}
	doc, err := os.ReadFile("../../../docs/MQTT.md")
	if err != nil {
		t.Fatal(err)
	}
	ha.mu.Lock()
	for topic := range ha.last {
		name, ours := strings.CutPrefix(topic, root)
		first, _, _ := strings.Cut(name, "/")
		if ours && !bytes.Contains(doc, []byte("`"+first)) {
			t.Errorf("docs/MQTT.md does not tell of %s", name)
		}
	}
	ha.mu.Unlock()

	// Home Assistant.
	found := func(id string) string { return "homeassistant/device/joulegate_" + g.name + "_" + id + "/config" }
	for _, id := range []string{"gateway", site, "charger-1"} {
		var d struct {
			Dev, O map[string]any
			Avail  []struct{ Topic string } `json:"availability"`
			Parts  map[string]struct {
				P, Unique string
				State     string `json:"state_topic"`
				Command   string `json:"command_topic"`
				Class     string `json:"device_class"`
			} `json:"cmps"`
		}
		g.wait(patience, "the device "+id, func(context.Context) (bool, any) { return ha.payload(found(id)) != nil, nil })
		if err := json.Unmarshal(ha.payload(found(id)), &d); err != nil || d.Dev["ids"] == nil || d.O["name"] != "joulegate" || len(d.Parts) == 0 || len(d.Avail) == 0 {
			t.Fatalf("%s: %v %s", id, err, ha.payload(found(id)))
		}
		for name, p := range d.Parts { // what it names is there
			if p.State != "" && ha.payload(p.State) == nil {
				t.Errorf("%s of %s reads %s, where nothing is", name, id, p.State)
			}
			if p.P != "sensor" && p.P != "binary_sensor" && p.Command != root+"cmd/homeassistant/session.stop" {
				t.Errorf("%s of %s is a %s that writes %s", name, id, p.P, p.Command)
			}
		}
		for _, a := range d.Avail {
			if string(ha.payload(a.Topic)) != "online" {
				t.Errorf("%s: %s says %s", id, a.Topic, ha.payload(a.Topic))
			}
		}
	}
	clear := func() {
		ha.mu.Lock()
		defer ha.mu.Unlock()
		delete(ha.last, found(site))
	}
	clear()
	g.wait(patience, "the device again", func(context.Context) (bool, any) {
		ha.Publish("homeassistant/status", 1, false, "online").WaitTimeout(patience)
		time.Sleep(200 * time.Millisecond)
		return ha.payload(found(site)) != nil, nil
	})

	// Events, from before the kill and after it.
	g.wait(patience, "the start on record", func(context.Context) (bool, any) {
		ha.mu.Lock()
		defer ha.mu.Unlock()
		return slices.ContainsFunc(ha.events, func(e toldEvent) bool {
			return e.topic == root+"event/gateway.started" && e.Data["source"] == "own" && e.Severity == "info"
		}), len(ha.events)
	})
	before := ha.numbers()
	g.kill()
	for end := time.Now().Add(patience); string(ha.payload(root+"status")) != "offline"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the broker does not say that the gateway is gone")
		}
	}
	edit(func(c *config.Config) { // a charger less
		c.Chargers, c.Readers = nil, nil
		c.Meters = slices.DeleteFunc(c.Meters, func(m config.Meter) bool { return m.Role == "charger" })
	})
	g.start()
	g.wait(2*patience, "events that go on", func(context.Context) (bool, any) {
		all := ha.numbers()
		return len(all) > len(before), all
	})
	all := ha.numbers()
	for i, n := range all {
		if n != all[0]+uint64(i) {
			t.Errorf("event %d follows %d: %v", n, all[max(i, 1)-1], all)
			break
		}
	}
	g.wait(patience, "the end of the charger", func(context.Context) (bool, any) {
		gone := ha.payload(found("charger-1"))
		return gone != nil && len(gone) == 0 && len(ha.payload(root+"charger/1/session")) == 0, string(gone)
	})
}
