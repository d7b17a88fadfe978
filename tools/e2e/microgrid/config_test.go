package microgrid

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
)

// TestChangesThatNobodyConfirmsEnd: the configuration of a running gateway is
// changed over MQTT and on the command line. What is confirmed stays, in force
// and in the file; a dead broker and a kill bring the former one back.
func TestChangesThatNobodyConfirmsEnd(t *testing.T) {
	t.Parallel()
	grid := newGrid(t, 1)
	grid.found()
	g := grid.gateways[0]
	stands := func(what string, f func(v panel.ConfigView) bool) panel.ConfigView {
		t.Helper()
		var v panel.ConfigView
		g.wait(2*patience, what, func(ctx context.Context) (bool, any) {
			var err error
			v, err = g.client.ConfigView(ctx)
			return err == nil && f(v), fmt.Sprintf("%v %+v %+v", err, v.Pending, v.Outcome)
		})
		return v
	}
	waits := func(v panel.ConfigView) bool { return v.Pending != nil && v.Pending.Phase == config.Checked }
	first := stands("a first revision", func(v panel.ConfigView) bool { return v.Rev > 0 && v.Pending == nil })
	g.wait(patience, "good meters", func(ctx context.Context) (bool, any) {
		all, err := g.client.Meters(ctx)
		ok := err == nil && len(all) > 0
		for _, m := range all {
			ok = ok && m.Quality == "good"
		}
		return ok, all
	})

	// Over MQTT: slower polling, confirmed over a connection made afterwards.
	password, err := os.ReadFile(filepath.Join(g.state, "wallets", "mqtt-installer.password"))
	if err != nil {
		t.Fatal(err)
	}
	send := func(topic, payload string) {
		t.Helper()
		o := paho.NewClientOptions().AddBroker("tcp://" + g.addr + ":1883").SetUsername("installer").
			SetPassword(strings.TrimSpace(string(password))).SetClientID("test-" + topic)
		c := paho.NewClient(o)
		if tok := c.Connect(); !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatalf("broker: %v", tok.Error())
		}
		defer c.Disconnect(100)
		if tok := c.Publish("joulegate/1/"+g.name+"/"+topic, 1, false, payload); !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatalf("publish: %v", tok.Error())
		}
	}
	c, err := config.Parse([]byte(first.Text))
	if err != nil {
		t.Fatal(err)
	}
	meter := c.Meters[0].ID
	send("config/desired", fmt.Sprintf(`{"txn":"slower","base_rev":%d,"mode":"merge","confirm_s":120,"config":{"meters":{%q:{"interval":"2s"}}}}`, first.Rev, meter))
	v := stands("the change to wait for a word", waits)
	if v.Rev != first.Rev+1 || v.Pending.Txn != "slower" {
		t.Fatalf("revision %d, %+v", v.Rev, v.Pending)
	}
	send("cmd/installer/config.confirm", fmt.Sprintf(`{"txn":"c1","exp":%d,"args":{"txn":"slower"}}`, time.Now().Add(time.Minute).Unix()))
	v = stands("the confirmation", func(v panel.ConfigView) bool { return v.Pending == nil && v.Rev == first.Rev+1 })
	b, err := os.ReadFile(g.config)
	if err != nil || string(b) != v.Text || !strings.Contains(v.Text, "interval: 2s") {
		t.Errorf("the file does not say what was confirmed: %v\n%s", err, b)
	}

	// A broker that is not there: nobody has to do anything.
	apply := func(old, now string, within string) {
		t.Helper()
		text := strings.Replace(v.Text, old, now, 1)
		if text == v.Text {
			t.Fatalf("%q is not in\n%s", old, v.Text)
		}
		file := filepath.Join(t.TempDir(), "new.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		// The gateway may be starting anew at this moment.
		g.wait(patience, "a change that is taken", func(context.Context) (bool, any) {
			_, errOut, code := g.try("config", "apply", file, "--confirm", within)
			return code == 0, errOut
		})
	}
	apply(`broker: ""`, "broker: tcp://127.0.0.1:1", "15s")
	back := stands("the end of the dead broker", func(v panel.ConfigView) bool {
		return v.Pending == nil && v.Outcome != nil && v.Outcome.State == config.RolledBack
	})
	if back.Rev != v.Rev || !strings.Contains(back.Outcome.Why, "broker") {
		t.Errorf("revision %d: %+v", back.Rev, back.Outcome)
	}

	// Killed before anybody confirmed.
	apply("interval: 2s", "interval: 3s", "5m")
	stands("the next change to wait", waits)
	g.kill()
	g.start()
	back = stands("the former revision", func(v panel.ConfigView) bool { return v.Pending == nil })
	if back.Rev != v.Rev || back.Text != v.Text || !strings.Contains(back.Outcome.Why, "anew") {
		t.Errorf("after a kill revision %d: %+v", back.Rev, back.Outcome)
	}

	// Whoever edits the file is at the machine: it counts at the next start.
	g.stop()
	if err := os.WriteFile(g.config, []byte(strings.Replace(v.Text, "interval: 2s", "interval: 4s", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	g.start()
	if v := stands("the edited file", func(v panel.ConfigView) bool { return v.Pending == nil }); !strings.Contains(v.Text, "interval: 4s") || v.By != "file" {
		t.Errorf("revision %d by %s is in force", v.Rev, v.By)
	}
}
