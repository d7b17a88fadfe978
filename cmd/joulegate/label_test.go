package main

import (
	"os"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/chain"
)

// TestNoDefaultPassword: two new gateways have one account each, whose
// passwords are long, different, and their owner's to read; a label has its
// own, and none at somebody else's broker.
func TestNoDefaultPassword(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		st := state(t.TempDir())
		if err := os.MkdirAll(st.wallets(), 0o700); err != nil {
			t.Fatal(err)
		}
		users, err := loadBrokerUsers(st, config.Default().MQTT)
		if err != nil || len(users) != 1 {
			t.Fatalf("%d accounts: %v", len(users), err)
		}
		c := config.Sample("north")
		l, err := labelOf(st, &c, chain.Key{1, 2, 3, 4})
		if err != nil || len(l.Password) < 26 || l.User != users[0].Name || seen[l.Password] || strings.Contains(users[0].Hash, l.Password) { // 26 letters of base32: 128 bits
			t.Errorf("%+v %v", l, err)
		}
		seen[l.Password] = true
		if fi, err := os.Stat(st.installerPassword()); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", fi.Mode(), err)
		}
		if l.Host != "joulegate-01020304.local" || l.Page != "" || l.Broker != "127.0.0.1:1883" {
			t.Errorf("it promises what nobody reaches: %+v", l)
		}
		c.Panel.Listen = "0.0.0.0:8080"
		c.MQTT.Broker = "tls://broker.example:8883"
		if l, err = labelOf(st, &c, chain.Key{1, 2, 3, 4}); err != nil || l.Password != "" || l.Broker != c.MQTT.Broker || l.Page != "http://joulegate-01020304.local:8080" {
			t.Errorf("%+v %v", l, err)
		}
	}
}
