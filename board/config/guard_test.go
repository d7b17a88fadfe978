package config

import (
	"strings"
	"testing"
)

// What would let strangers ask, filter a household without its consent, or
// leave nobody an answer, is refused with its path.
func TestNameServerSettings(t *testing.T) {
	good := DNS{Listen: []string{"127.0.0.1:53"}, Upstreams: []string{"udp://9.9.9.9"}}
	for what, tt := range map[string]struct {
		change func(*DNS)
		path   string // of the error; empty: it is valid
	}{
		"off":        {func(d *DNS) { *d = DNS{} }, ""},
		"for itself": {func(*DNS) {}, ""},
		"encrypted": {func(d *DNS) {
			d.Upstreams, d.Bootstrap = []string{"tls://dns.example", "https://dns.example/dns-query"}, []string{"9.9.9.9", "[2620:fe::fe]:53"}
		}, ""},
		"friends only": {func(d *DNS) { d.Only, d.Allow = true, []string{"/etc/friends"} }, ""},
		"the LAN, agreed": {func(d *DNS) {
			d.Listen, d.LAN, d.Clients = []string{"192.168.1.2:53"}, "consent of the household, 1 March 2026", []string{"192.168.1.0/24"}
		}, ""},
		"the LAN, not agreed":  {func(d *DNS) { d.Listen = []string{"192.168.1.2:53"} }, "guard.dns.listen[0]"},
		"anywhere, not agreed": {func(d *DNS) { d.Listen = []string{"[::]:53"} }, "guard.dns.listen[0]"},
		"clients, not agreed":  {func(d *DNS) { d.Clients = []string{"192.168.1.0/24"} }, "guard.dns.clients[0]"},
		"agreed to what":       {func(d *DNS) { d.LAN = "yes" }, "guard.dns.lan"},
		"no port":              {func(d *DNS) { d.Listen = []string{"127.0.0.1"} }, "guard.dns.listen[0]"},
		"nobody to ask":        {func(d *DNS) { d.Upstreams = nil }, "guard.dns.upstreams"},
		"an upstream's name":   {func(d *DNS) { d.Upstreams = []string{"tls://dns.example"} }, "guard.dns.upstreams[0]"},
		"a strange upstream":   {func(d *DNS) { d.Upstreams = []string{"ftp://192.0.2.1"} }, "guard.dns.upstreams[0]"},
		"no friends":           {func(d *DNS) { d.Only = true }, "guard.dns.allow"},
		"lists for nobody":     {func(d *DNS) { *d = DNS{Block: []string{"/etc/ads"}} }, "guard.dns.listen"},
		"an answer":            {func(d *DNS) { d.Answer = "refused" }, "guard.dns.answer"},
		"bypass of nothing":    {func(d *DNS) { *d = DNS{Bypass: "observe"} }, "guard.dns.bypass"},
	} {
		c := Sample("north")
		d := good
		tt.change(&d)
		c.Guard.DNS = d
		err := c.Validate()
		switch {
		case tt.path == "" && err != nil:
			t.Errorf("%s: %v", what, err)
		case tt.path != "" && (err == nil || !strings.Contains(err.Error(), tt.path)):
			t.Errorf("%s: %v, want an error at %s", what, err, tt.path)
		}
	}
}
