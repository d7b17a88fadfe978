package microgrid

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/drivers"
)

// mosquitto runs a broker of somebody else and returns its address and the
// password of every user.
func mosquitto(t *testing.T) (addr, password string) {
	t.Helper()
	program := "/usr/sbin/mosquitto"
	if _, err := os.Stat(program); err != nil {
		t.Skip("needs mosquitto")
	}
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} { // mosquitto drops root
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	password = "e2e-only"
	users := filepath.Join(dir, "users")
	for i, name := range []string{"gateway", "installer"} {
		args := []string{"-b", users, name, password}
		if i == 0 {
			args = append([]string{"-c"}, args...)
		}
		if out, err := exec.Command("mosquitto_passwd", args...).CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_passwd: %v: %s", err, out)
		}
	}
	if err := os.Chmod(users, 0o644); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "listener %s 127.0.0.1\nallow_anonymous false\npassword_file %s\n", port, users), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(program, "-c", conf)
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("mosquitto: %s", log.String())
		}
	})
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return addr, password
		}
		if time.Now().After(end) {
			t.Fatalf("mosquitto does not listen: %v: %s", err, log.String())
		}
	}
}

// TestCommissioningOverMosquitto: an installer works over a broker that is not
// ours. Relay and lines are his only while somebody is at the gateway, and
// never with a vehicle.
func TestCommissioningOverMosquitto(t *testing.T) {
	t.Parallel()
	broker, password := mosquitto(t)
	grid := newGrid(t, 1)
	g := grid.gateways[0]
	g.install()
	b, err := os.ReadFile(g.config)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "mqtt.password")
	if err := os.WriteFile(secret, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.MQTT = config.MQTT{Broker: "tcp://" + broker, User: "gateway", PasswordFile: secret}
	if err := os.WriteFile(g.config, config.Render(cfg), 0o644); err != nil {
		t.Fatal(err)
	}
	g.create()
	g.start()

	answers := make(chan reply, 16)
	schemas := make(chan string, 64)
	client := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + broker).SetUsername("installer").SetPassword(password).SetClientID("installer"))
	if tok := client.Connect(); !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("broker: %v", tok.Error())
	}
	defer client.Disconnect(100)
	root := "joulegate/1/" + g.name + "/"
	for topic, f := range map[string]func(m paho.Message){
		root + "rsp/installer/+": func(m paho.Message) {
			var r reply
			if err := json.Unmarshal(m.Payload(), &r); err != nil {
				t.Errorf("%s: %v", m.Topic(), err)
			}
			answers <- r
		},
		root + "schema/cmd/+": func(m paho.Message) { schemas <- strings.TrimPrefix(m.Topic(), root+"schema/cmd/") },
	} {
		if tok := client.Subscribe(topic, 1, func(_ paho.Client, m paho.Message) { f(m) }); !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatalf("subscribe: %v", tok.Error())
		}
	}
	var n atomic.Int64
	ask := func(name, args string, limit time.Duration) (r reply, ok bool) {
		txn := fmt.Sprintf("t%d", n.Add(1))
		client.Publish(root+"cmd/installer/"+name, 1, false, fmt.Sprintf(`{"txn":%q,"exp":%d,"args":%s}`, txn, time.Now().Add(time.Minute).Unix(), args))
		for end := time.After(limit); ; {
			select {
			case r = <-answers:
				if r.Txn == txn {
					return r, true
				}
			case <-end:
				return r, false
			}
		}
	}
	command := func(name, args string) reply {
		t.Helper()
		r, ok := ask(name, args, 2*patience)
		if !ok {
			t.Fatalf("%s is not answered", name)
		}
		return r
	}
	g.wait(2*patience, "an answer", func(context.Context) (bool, any) { // a publish may be ahead of the gateway's subscription
		_, ok := ask("diag", "{}", time.Second)
		return ok, nil
	})

	if r := command("diag", "{}"); r.Status != "ok" {
		t.Fatalf("%+v", r)
	}
	for range 5 {
		select {
		case <-schemas:
		case <-time.After(patience):
			t.Fatal("commands without a schema")
		}
	}
	for name, args := range map[string]string{"relay.test": `{"charger":1}`, "bus.scan": `{"line":"rs485"}`, "meter.identify": `{"line":"rs485","unit":1}`} {
		if r := command(name, args); r.Code != "not_commissioning" {
			t.Errorf("%s with nobody there: %+v", name, r)
		}
	}
	g.run("commission", "start")

	// The relay is seen closing from outside, and is open again afterwards.
	moved := make(chan bool, 1)
	watch, stop := context.WithCancel(t.Context())
	go func() {
		seen := false
		for watch.Err() == nil && !seen {
			seen = grid.street.State(g.index).Relay
			time.Sleep(10 * time.Millisecond)
		}
		moved <- seen
	}()
	var r reply
	g.wait(patience, "a test of the relay", func(context.Context) (bool, any) { // the pilot has to be heard first
		r = command("relay.test", `{"charger":1,"seconds":1}`)
		return r.Status == "ok" || r.Code != "not_now", r
	})
	stop()
	if r.Status != "ok" || !bytes.Contains(r.Data, []byte(`"ok":true`)) || !<-moved || grid.street.State(g.index).Relay {
		t.Errorf("test of the relay: %+v %s", r, r.Data)
	}

	g.wait(2*patience, "every device in a scan", func(context.Context) (bool, any) { // likewise
		r = command("bus.scan", `{"line":"rs485","units":"1-12"}`)
		for _, d := range g.house.Devices {
			if !bytes.Contains(r.Data, fmt.Appendf(nil, `"unit":%d`, d.Unit)) || !bytes.Contains(r.Data, []byte(d.Profile)) {
				return false, fmt.Sprintf("no %s at unit %d: %+v %s", d.Profile, d.Unit, r, r.Data)
			}
		}
		return true, nil
	})
	site := g.house.Devices[0]
	g.wait(patience, "what the meter is", func(context.Context) (bool, any) { // a read that is lost on a busy computer leaves it ambiguous
		r = command("meter.identify", fmt.Sprintf(`{"line":"rs485","unit":%d}`, site.Unit))
		return bytes.Contains(r.Data, []byte(site.Profile)), string(r.Data)
	})
	if r = command("relay.test", `{"charger":1,"amps":32}`); r.Code != "invalid" {
		t.Errorf("an unknown argument: %+v", r)
	}
	if r = command("session.stop", `{"charger":1}`); r.Code != "no_session" {
		t.Errorf("a stop without a session: %+v", r)
	}

	// A backup stays at the gateway; the answer says how to know it again.
	var stored struct {
		Path   string
		Size   int64
		SHA256 string `json:"sha256"`
		Keys   bool
	}
	r = command("backup", `{"with_keys":true}`)
	if err := json.Unmarshal(r.Data, &stored); err != nil || r.Status != "ok" {
		t.Fatalf("backup: %+v %v", r, err)
	}
	raw, err := os.ReadFile(stored.Path)
	if err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(stored.Path); err != nil || i.Mode().Perm() != 0o600 || i.Size() != stored.Size || fmt.Sprintf("%x", sha256.Sum256(raw)) != stored.SHA256 || !stored.Keys {
		t.Errorf("backup %+v: %v", stored, err)
	}
	for range 3 {
		if r = command("backup", `{}`); r.Status != "ok" {
			t.Fatalf("another: %+v", r)
		}
		time.Sleep(1100 * time.Millisecond) // its name is the second
	}
	if left, err := os.ReadDir(filepath.Dir(stored.Path)); err != nil || len(left) != 3 {
		t.Errorf("%d backups stay: %v", len(left), err)
	}

	// Not with a vehicle.
	if err := grid.street.PlugIn(g.index, car("guest")); err != nil {
		t.Fatal(err)
	}
	g.wait(patience, "the vehicle", func(ctx context.Context) (bool, any) {
		all, err := g.client.Chargers(ctx)
		return err == nil && len(all) == 1 && all[0].Vehicle != drivers.StateA.String(), all
	})
	if r = command("relay.test", `{"charger":1}`); r.Code != "not_now" || grid.street.State(g.index).Relay {
		t.Errorf("with a vehicle: %+v", r)
	}
	g.run("commission", "stop")
	if r = command("bus.scan", `{"line":"rs485"}`); r.Code != "not_commissioning" {
		t.Errorf("after its end: %+v", r)
	}
}

// reply is an answer to a command over MQTT.
type reply struct {
	Txn, Status, Code, Error string
	Data                     json.RawMessage
}
