package config

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/chain"
)

func goodToken() string {
	return chain.Token{ChainID: "sunny", PSK: bytes.Repeat([]byte{1}, 32), Seed: bytes.Repeat([]byte{2}, 32), Addrs: []string{"/ip4/192.0.2.1/tcp/4470"}}.String()
}

func fullSetup() string {
	return `version: 1
name: north
board: raspberrypi-4
network: {address: 192.168.1.20/24, gateway: 192.168.1.1, dns: [192.168.1.1], ntp: [time.example]}
broker: {url: "tls://broker.example:8883", user: north, password: "s:e#c r'et", ca_file: ca.pem, cert_file: north.pem, key_file: north.key}
grid: {token: ` + goodToken() + `, advertise: [/ip4/192.168.1.20/tcp/4470], max_power_w: 30000}
installers: ["` + strings.Repeat("ab", 32) + `"]
panel: {listen: "0.0.0.0:8080"}
`
}

func TestSetup(t *testing.T) {
	s, err := ParseSetup([]byte(fullSetup()))
	if err != nil {
		t.Fatal(err)
	}
	c := s.Apply(nil, "raspberrypi-3")
	if c.Name != "north" || c.Board != "raspberrypi-4" || c.MQTT.Broker != "tls://broker.example:8883" || c.MQTT.User != "north" || len(c.Installers) != 1 {
		t.Errorf("%+v", c)
	}
	if c, err = Parse(Render(c)); err != nil {
		t.Error(err)
	}
	// On a gateway that is in service only what is named changes.
	only, err := ParseSetup([]byte("version: 1\nbroker: {url: tcp://192.0.2.5:1883}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range Diff(c, only.Apply(&c, "")) {
		if !strings.HasPrefix(d.Path, "mqtt.") {
			t.Errorf("%+v", d)
		}
	}
	// What is left of it says so, is no setup any more, and has no secret.
	public := s.Public("2026-05-01T12:00:00Z")
	again, err := ParseSetup(public)
	if err != nil || again.Applied == "" || again.Network.Address != s.Network.Address {
		t.Errorf("%v\n%s", err, public)
	}
	for _, secret := range []string{"s:e#c", goodToken()[8:40], "north.key"} {
		if bytes.Contains(public, []byte(secret)) {
			t.Errorf("%s holds %q", public, secret)
		}
	}
}

// TestSetupErrors: what is wrong is named with its line and field, and never
// with a value, which may be a secret.
func TestSetupErrors(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"empty":               {"", "one YAML document"},
		"no version":          {"name: north\n", "version: 0, this program reads 1"},
		"later version":       {"version: 2\n", "line 1: version"},
		"unknown field":       {"version: 1\nnaem: north\n", "line 2"},
		"name":                {"version: 1\nname: My House\n", "line 2: name"},
		"board":               {"version: 1\nname: north\nboard: toaster\n", "line 3: board"},
		"address":             {"version: 1\nnetwork:\n  address: 192.168.1.20\n", "line 3: network.address"},
		"gateway elsewhere":   {"version: 1\nnetwork:\n  address: 192.168.1.20/24\n  gateway: 10.0.0.1\n", "line 4: network.gateway: is no address of 192.168.1.0/24"},
		"gateway alone":       {"version: 1\nnetwork: {gateway: 10.0.0.1}\n", "goes with network.address"},
		"name server":         {"version: 1\nnetwork: {dns: [one.example]}\n", "network.dns[0]"},
		"url":                 {"version: 1\nbroker: {url: \"http://x:1\"}\n", "broker.url"},
		"password in url":     {"version: 1\nbroker: {url: \"tcp://u:SECRET@h:1883\"}\n", "broker.url"},
		"password alone":      {"version: 1\nbroker: {url: \"tcp://h:1883\", password: SECRET}\n", "broker.user"},
		"user without url":    {"version: 1\nbroker: {user: u, password: SECRET}\n", "broker.url"},
		"file elsewhere":      {"version: 1\nbroker: {url: \"tls://h:8883\", key_file: ../../etc/SECRET}\n", "broker.key_file"},
		"token":               {"version: 1\ngrid: {token: jg1.SECRET}\n", "line 2: grid.token: the invitation is"},
		"token and create":    {"version: 1\ngrid: {token: " + goodToken() + ", create: {retail: \"1\"}}\n", "grid.create"},
		"installer":           {"version: 1\ninstallers: [SECRET]\n", "installers[0]"},
		"list for a text":     {"version: 1\nname: [SECRET]\n", "line 2"},
		"text for a group":    {"version: 1\nbroker: SECRET\n", "line 2"},
		"unquoted colon":      {"version: 1\nbroker:\n  url: tcp://h:1883\n  user: u\n  password: SEC: RET\n", "line 5"},
		"unclosed quote":      {"version: 1\nbroker:\n  url: tcp://h:1883\n  user: u\n  password: \"SECRET\nname: x\n", "line "},
		"tab":                 {"version: 1\nbroker:\n\tpassword: SECRET\n", ""},
		"twice":               {"version: 1\nname: north\nname: SECRET\n", "line 3"},
		"alias":               {"version: 1\nname: &SECRET north\n", "anchors"},
		"two documents":       {"version: 1\n---\nversion: 1\n", "one YAML document"},
		"overwritten":         {"\x00\x00\x00\x00", "not a text"},
		"overwritten partly":  {"\x00\x00\x00\nversion: 1\nname: north\n", "not a text"},
		"too long":            {"version: 1\nname: " + strings.Repeat("x", MaxSetup), "at most"},
		"power out of range":  {"version: 1\ngrid: {token: " + goodToken() + ", max_power_w: -1}\n", "grid.max_power_w"},
		"panel without port":  {"version: 1\npanel: {listen: north}\n", "panel.listen"},
		"number out of range": {"version: 999999999999999999999\n", "line 1"},
	} {
		_, err := ParseSetup([]byte(c.text))
		var all Errors
		if err == nil || !errors.As(err, &all) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		} else if strings.Contains(err.Error(), "SEC") || strings.Contains(err.Error(), "RET") {
			t.Errorf("%s: the error tells a secret: %v", name, err)
		}
	}
}

func FuzzParseSetup(f *testing.F) {
	for _, s := range []string{fullSetup(), "", "version: 1\n", "version: 1\napplied: x\n", "version: 1\nnetwork: {address: 1.2.3.4/8}\n", "\x00", "version: 1\ngrid: {create: {}}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSetup(b)
		if err != nil {
			return
		}
		again, err := ParseSetup(s.Public("now"))
		if err != nil || again.Applied != "now" || again.Grid.Token != "" || again.Broker.Password != "" {
			t.Errorf("%q: %v, %+v", b, err, again)
		}
		c := s.Apply(nil, "")
		if _, err := Parse(Render(c)); err != nil && s.Broker == (SetupBroker{}) && s.Board == "" && s.Panel.Listen == "" {
			t.Errorf("%q gives a configuration that does not load: %v", b, err)
		}
	})
}
