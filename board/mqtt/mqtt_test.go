package mqtt

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"pgregory.net/rapid"
)

// patience bounds every wait; nothing in a good run comes near it.
const patience = 30 * time.Second

func hash(t testing.TB, password string) string {
	t.Helper()
	h, err := HashPassword(password)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// start runs a service with an embedded broker until the test ends.
func start(t *testing.T, users ...User) *Service {
	t.Helper()
	s, err := New(Config{
		Gateway:  "house1",
		Embedded: &BrokerConfig{Listen: "127.0.0.1:0", Users: users},
		Info:     map[string]string{"version": "test"},
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	return s
}

// run runs s and returns a function that stops it and waits.
func run(t *testing.T, s *Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("Run did not return")
		}
	})
	t.Cleanup(stop)
	return stop
}

// peer is an independent client that remembers what it receives.
type peer struct {
	paho.Client
	mu   sync.Mutex
	last map[string]paho.Message
	all  []paho.Message
	more chan struct{}
}

func dial(t *testing.T, addr, user, password string, tune ...func(*paho.ClientOptions)) (*peer, error) {
	t.Helper()
	p := &peer{last: map[string]paho.Message{}, more: make(chan struct{}, 1)}
	o := paho.NewClientOptions().AddBroker("tcp://" + addr).SetUsername(user).SetPassword(password).
		SetClientID(user + "-" + t.Name()).SetAutoReconnect(false).SetProtocolVersion(4).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
			p.mu.Lock()
			p.last[m.Topic()] = m
			p.all = append(p.all, m)
			p.mu.Unlock()
			select {
			case p.more <- struct{}{}:
			default:
			}
		})
	for _, f := range tune {
		f(o)
	}
	p.Client = paho.NewClient(o)
	tok := p.Connect()
	if !tok.WaitTimeout(patience) {
		t.Fatal("no answer to CONNECT")
	}
	if tok.Error() == nil {
		t.Cleanup(func() { p.Disconnect(0) })
	}
	return p, tok.Error()
}

// subscribe reports whether the broker granted the filter.
func (p *peer) subscribe(t *testing.T, filter string) bool {
	t.Helper()
	tok := p.Subscribe(filter, 1, nil).(*paho.SubscribeToken)
	if !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("subscribe %s: %v", filter, tok.Error())
	}
	return tok.Result()[filter] < 0x80
}

// until waits until cond holds for the messages received.
func (p *peer) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		ok := cond()
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-p.more:
		case <-deadline:
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Fatalf("no %s; received %d messages on %d topics", what, len(p.all), len(p.last))
		}
	}
}

// payload returns the last message on a topic. The caller holds mu.
func (p *peer) payload(topic string) string {
	if m := p.last[topic]; m != nil {
		return string(m.Payload())
	}
	return ""
}

// publishAll publishes one of everything.
func publishAll(t *testing.T, s *Service) {
	t.Helper()
	watt := int64(-1200)
	for _, err := range []error{
		s.PublishAvailability("meter1", true),
		s.PublishDevice("meter1", DeviceState{Time: time.Unix(1700000000, 0).UTC(), PowerW: &watt, Quality: "good"}),
		s.PublishSession(1, map[string]any{"state": "charging"}),
		s.PublishMarket(map[string]any{"slot": 7}),
		s.PublishLedger(map[string]any{"height": 9}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

var allStates = map[string]string{
	"status":                     "online",
	"info":                       `{"version":"test"}`,
	"device/meter1/availability": "online",
	"device/meter1/state":        `{"time":"2023-11-14T22:13:20Z","power_w":-1200,"quality":"good"}`,
	"charger/1/session":          `{"state":"charging"}`,
	"market/state":               `{"slot":7}`,
	"ledger/state":               `{"height":9}`,
}

func (p *peer) hasAllStates() bool {
	for name, want := range allStates {
		if p.payload(Topic("house1", name)) != want {
			return false
		}
	}
	return true
}

func TestStateReachesWhoComesLater(t *testing.T) {
	s := start(t, User{Name: "dash", Hash: hash(t, "pw"), Rules: ObserverRules()})
	publishAll(t, s)
	for range 2 { // also after everything has been sent: it is retained
		p, err := dial(t, s.Addr(), "dash", "pw")
		if err != nil {
			t.Fatal(err)
		}
		if !p.subscribe(t, "#") {
			t.Fatal("a dashboard may not subscribe to #")
		}
		p.until(t, "complete state", p.hasAllStates)
		p.mu.Lock()
		for topic, m := range p.last {
			if !strings.HasPrefix(topic, Root+"/house1/") {
				t.Errorf("received %s", topic)
			}
			if len(m.Payload()) == 0 {
				t.Errorf("%s is empty", topic)
			}
		}
		p.mu.Unlock()
		p.Disconnect(0)
	}
}

func TestEventsArriveInOrder(t *testing.T) {
	s := start(t, User{Name: "dash", Hash: hash(t, "pw"), Rules: ObserverRules()})
	p, err := dial(t, s.Addr(), "dash", "pw", func(o *paho.ClientOptions) { o.SetOrderMatters(true) })
	if err != nil {
		t.Fatal(err)
	}
	p.subscribe(t, Root+"/+/event/#")
	const n = 300
	for i := range n {
		if err := s.PublishEvent("session.closed", Info, time.Now(), i); err != nil {
			t.Fatal(err)
		}
	}
	p.until(t, "all events", func() bool { return len(p.all) >= n })
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, m := range p.all {
		var e struct {
			Seq      uint64
			Severity string
			Data     int
		}
		if err := json.Unmarshal(m.Payload(), &e); err != nil || e.Seq != uint64(i+1) || e.Data != i || e.Severity != "info" || m.Retained() {
			t.Fatalf("event %d: %s retained=%t err=%v", i, m.Payload(), m.Retained(), err)
		}
	}
}

func TestFullSpoolLosesTheOldestAndCounts(t *testing.T) {
	s, err := New(Config{Gateway: "house1", URL: "tcp://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range MaxEvents + 5 {
		if err := s.PublishEvent("x", Warning, time.Now(), i); err != nil {
			t.Fatal(err)
		}
	}
	if d := s.Stats().Dropped; d != 5 {
		t.Errorf("dropped %d, want 5", d)
	}
	e, _ := s.spool.oldest()
	if !strings.Contains(string(e.Payload), `"seq":6,`) {
		t.Errorf("oldest left is %s, want seq 6", e.Payload)
	}
	for i := range MaxTopics - 1 { // status is one already
		if err := s.PublishAvailability(fmt.Sprint("d", i), true); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PublishAvailability("one-too-many", true); err == nil {
		t.Error("the table of state topics is unbounded")
	}
	if err := s.PublishMarket(strings.Repeat("x", MaxPayload)); err == nil {
		t.Error("a payload above the limit was accepted")
	}
}

// TestRingModel compares the ring with a slice.
func TestRingModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r ring
		var model []string
		fill := rapid.SampledFrom([]int{0, 1, MaxReplies - 1, MaxReplies}).Draw(t, "fill")
		for i := range fill {
			r.push(message{topic: fmt.Sprint("f", i)})
			model = append(model, fmt.Sprint("f", i))
		}
		for i, op := range rapid.SliceOfN(rapid.IntRange(0, 2), 1, 50).Draw(t, "ops") {
			name := fmt.Sprint("m", i)
			switch op {
			case 0:
				lost := r.push(message{topic: name})
				if lost != (len(model) == MaxReplies) {
					t.Fatalf("lost %t with %d", lost, len(model))
				}
				if lost {
					model = model[1:]
				}
				model = append(model, name)
			case 1:
				m, ok := r.pop()
				if ok != (len(model) > 0) || (ok && m.topic != model[0]) {
					t.Fatalf("pop %q %t, want head of %d", m.topic, ok, len(model))
				}
				if ok {
					model = model[1:]
				}
			case 2:
				if ok := r.unpop(message{topic: name}); ok != (len(model) < MaxReplies) {
					t.Fatalf("unpop %t with %d", ok, len(model))
				} else if ok {
					model = append([]string{name}, model...)
				}
			}
		}
		for _, want := range model {
			if m, ok := r.pop(); !ok || m.topic != want {
				t.Fatalf("pop %q %t, want %q", m.topic, ok, want)
			}
		}
	})
}

func TestAccess(t *testing.T) {
	s := start(
		t,
		User{Name: "anna", Hash: hash(t, "a"), Rules: InstallerRules("anna")},
		User{Name: "bert", Hash: hash(t, "b"), Rules: InstallerRules("bert")},
		User{Name: "house2", Hash: hash(t, "h"), Rules: GatewayRules("house2", DefaultPrefix)},
		User{Name: "dash", Hash: hash(t, "d"), Rules: ObserverRules()},
	)
	for _, c := range []struct{ user, password string }{{"anna", "b"}, {"anna", ""}, {"nobody", "a"}, {"", ""}, {"house1", ""}} {
		if _, err := dial(t, s.Addr(), c.user, c.password); err == nil {
			t.Errorf("login as %q with password %q succeeded", c.user, c.password)
		}
	}
	if _, err := dial(t, s.Addr(), "dash", "d", func(o *paho.ClientOptions) { o.SetWill(Topic("house1", "status"), "offline", 1, true) }); err == nil {
		t.Error("a dashboard may speak for a gateway in its will")
	}
	anna, err := dial(t, s.Addr(), "anna", "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, s.Addr(), "bert", "b", func(o *paho.ClientOptions) { o.SetClientID("anna-" + t.Name()) }); err == nil {
		t.Error("a user takes over another one's session by its client id")
	}
	bert, err := dial(t, s.Addr(), "bert", "b")
	if err != nil {
		t.Fatal(err)
	}
	house2, err := dial(t, s.Addr(), "house2", "h")
	if err != nil {
		t.Fatal(err)
	}
	if !bert.subscribe(t, "#") || !house2.subscribe(t, Topic("house2", "#")) {
		t.Fatal("a lawful subscription was refused")
	}
	for _, c := range []struct {
		p      *peer
		filter string
	}{{bert, Topic("house2", "rsp/anna/diag")}, {bert, "other/#"}, {house2, Topic("house1", "#")}, {house2, Topic("house1", "status")}, {bert, "$SYS/#"}} {
		if c.p.subscribe(t, c.filter) {
			t.Errorf("subscription to %s was granted", c.filter)
		}
	}
	// QoS 0: a refused publish is dropped, and the connection stays.
	for _, c := range []struct {
		from *peer
		name string
	}{
		{anna, "cmd/bert/diag"}, {anna, "status"}, {anna, "rsp/bert/diag"}, // refused
		{anna, "cmd/anna/diag"}, {anna, "config/desired"}, // allowed
		{house2, "rsp/anna/diag"}, {house2, "event/x"}, // allowed
	} {
		c.from.Publish(Topic("house2", c.name), 0, false, c.name).WaitTimeout(patience)
	}
	house2.Publish(Topic("house2", "event/end"), 1, false, "end").WaitTimeout(patience)
	anna.Publish(Topic("house2", "cmd/anna/end"), 1, false, "end").WaitTimeout(patience)
	bert.until(t, "end", func() bool {
		return bert.payload(Topic("house2", "event/end")) != "" && bert.payload(Topic("house2", "config/desired")) != ""
	})
	house2.until(t, "end", func() bool { return house2.payload(Topic("house2", "cmd/anna/end")) != "" })
	got := func(p *peer) string {
		p.mu.Lock()
		defer p.mu.Unlock()
		var names []string
		for topic := range p.last {
			if name, ok := strings.CutPrefix(topic, Root+"/house2/"); ok && !strings.HasSuffix(name, "end") {
				names = append(names, name)
			}
		}
		return strings.Join(sorted(names), " ")
	}
	if g := got(house2); g != "cmd/anna/diag config/desired event/x rsp/anna/diag" {
		t.Errorf("house2 received %q", g)
	}
	if g := got(bert); g != "config/desired event/x" {
		t.Errorf("bert received %q: commands and replies of anna are hers", g)
	}
}

func sorted(s []string) []string {
	out := append([]string(nil), s...)
	for i := range out {
		for j := i; j > 0 && out[j] < out[j-1]; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

func TestOversizePayloadIsRefused(t *testing.T) {
	s := start(t, User{Name: "house2", Hash: hash(t, "h"), Rules: GatewayRules("house2", DefaultPrefix)},
		User{Name: "dash", Hash: hash(t, "d"), Rules: ObserverRules()})
	p, err := dial(t, s.Addr(), "house2", "h")
	if err != nil {
		t.Fatal(err)
	}
	p.Publish(Topic("house2", "event/big"), 1, true, bytes.Repeat([]byte("x"), MaxPayload)).WaitTimeout(patience)
	p.Publish(Topic("house2", "event/huge"), 1, true, bytes.Repeat([]byte("x"), 4*MaxPayload)).WaitTimeout(time.Second)
	d, err := dial(t, s.Addr(), "dash", "d")
	if err != nil {
		t.Fatal(err)
	}
	d.subscribe(t, "#")
	d.until(t, "largest payload", func() bool { return len(d.payload(Topic("house2", "event/big"))) == MaxPayload })
	d.until(t, "state of the broker's own gateway", func() bool { return d.payload(Topic("house1", "status")) == "online" })
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.payload(Topic("house2", "event/huge")) != "" {
		t.Error("a payload above the limit was distributed")
	}
}

func TestOfflineIsSaidAtTheEnd(t *testing.T) {
	broker, err := NewBroker(BrokerConfig{Listen: "127.0.0.1:0", Users: []User{
		{Name: "house1", Hash: hash(t, "h"), Rules: GatewayRules("house1", DefaultPrefix)},
		{Name: "dash", Hash: hash(t, "d"), Rules: ObserverRules()},
	}})
	if err != nil {
		t.Fatal(err)
	}
	runBroker(t, broker)
	s, err := New(Config{Gateway: "house1", URL: "tcp://" + broker.Addr(), Username: "house1", Password: "h"})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, s)
	d, err := dial(t, broker.Addr(), "dash", "d")
	if err != nil {
		t.Fatal(err)
	}
	d.subscribe(t, "#")
	d.until(t, "online", func() bool { return d.payload(Topic("house1", "status")) == "online" })
	stop()
	d.until(t, "offline", func() bool { return d.payload(Topic("house1", "status")) == "offline" })
}

func runBroker(t *testing.T, b *Broker) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

// TestForgetfulBrokerIsMadeWhole: a broker restarts without its memory.
func TestForgetfulBrokerIsMadeWhole(t *testing.T) {
	users := []User{
		{Name: "house1", Hash: hash(t, "h"), Rules: GatewayRules("house1", DefaultPrefix)},
		{Name: "dash", Hash: hash(t, "d"), Rules: ObserverRules()},
	}
	first, err := NewBroker(BrokerConfig{Listen: "127.0.0.1:0", Users: users})
	if err != nil {
		t.Fatal(err)
	}
	addr := first.Addr()
	stopFirst := runBroker(t, first)
	s, err := New(Config{Gateway: "house1", URL: "tcp://" + addr, Username: "house1", Password: "h", Info: map[string]string{"version": "test"}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	publishAll(t, s)
	waitFor(t, "all sent", func() bool { return s.Stats().Connected && s.Stats().Waiting == 0 })
	stopFirst()
	waitFor(t, "loss noticed", func() bool { return !s.Stats().Connected })
	if err := s.PublishEvent("while.away", Alarm, time.Now(), nil); err != nil {
		t.Fatal(err)
	}
	var second *Broker
	waitFor(t, "address free again", func() bool {
		second, err = NewBroker(BrokerConfig{Listen: addr, Users: users})
		return err == nil
	})
	runBroker(t, second)
	d, err := dial(t, addr, "dash", "d")
	if err != nil {
		t.Fatal(err)
	}
	d.subscribe(t, "#")
	d.until(t, "complete state", d.hasAllStates)
	d.until(t, "event from before", func() bool { return d.payload(Topic("house1", "event/while.away")) != "" })
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestBadBrokersDoNotBlock: absent, silent, and one that takes and never
// answers. Publishing stays immediate and Run ends when told.
func TestBadBrokersDoNotBlock(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	rude, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer rude.Close()
	go func() {
		for {
			c, err := rude.Accept()
			if err != nil {
				return
			}
			c.Write([]byte{0x20, 0x02, 0x00, 0x00}) // CONNACK, then nothing more
		}
	}()
	for name, addr := range map[string]string{"absent": "127.0.0.1:1", "silent": silent.Addr().String(), "never acknowledges": rude.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			s, err := New(Config{Gateway: "house1", URL: "tcp://" + addr})
			if err != nil {
				t.Fatal(err)
			}
			stop := run(t, s)
			for i := range MaxEvents + 1000 {
				if err := s.PublishLedger(i); err != nil {
					t.Fatal(err)
				}
				if err := s.PublishEvent("x", Info, time.Now(), i); err != nil {
					t.Fatal(err)
				}
			}
			if w := s.Stats().Waiting; w > MaxEvents+MaxTopics {
				t.Errorf("%d messages wait", w)
			}
			stop()
			waitFor(t, "goroutines ended", func() bool { return runtime.NumGoroutine() <= before+2 })
		})
	}
}

// TestBrokerThatCutsIsToldOfOnce: whoever has a wrong certificate, or comes from
// a wrong network, is cut off at one moment or another, each time on another
// port. That is one fault, or two, however often it is tried.
func TestBrokerThatCutsIsToldOfOnce(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var tries atomic.Int64
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if tries.Add(1)%2 == 0 { // once the gateway has said who it is, or before
				_, _ = c.Read(make([]byte, 100))
			}
			_ = c.(*net.TCPConn).SetLinger(0) // RST
			c.Close()
		}
	}()
	var log bytes.Buffer
	s, err := New(Config{
		Gateway: "house1", URL: "tcp://" + ln.Addr().String(), Log: slog.New(slog.NewTextHandler(&log, nil)), Backoff: Backoff{First: time.Millisecond, Most: 20 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, s)
	waitFor(t, "many tries", func() bool { return tries.Load() > 30 })
	stop()
	if n := strings.Count(log.String(), "level=WARN"); n == 0 || n > 6 { // dialled, read or written; reset or closed
		t.Errorf("%d tries are told of %d times:\n%s", tries.Load(), n, log.String())
	}
}

func TestConfigIsChecked(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	h := hash(t, "x")
	for _, c := range []struct {
		want string
		cfg  Config
	}{
		{"gateway", Config{Gateway: "a/b", URL: "tcp://h:1"}},
		{"neither", Config{Gateway: "a"}},
		{"choose one", Config{Gateway: "a", URL: "tcp://h:1", Embedded: &BrokerConfig{}}},
		{"scheme", Config{Gateway: "a", URL: "http://h:1"}},
		{"is not tcp://", Config{Gateway: "a", URL: "h"}},
		{"address already in use", Config{Gateway: "a", Embedded: &BrokerConfig{Listen: taken.Addr().String()}}},
		{"in the clear", Config{Gateway: "a", Embedded: &BrokerConfig{Listen: "0.0.0.0:0"}}},
		{"twice", Config{Gateway: "a", Embedded: &BrokerConfig{Listen: "127.0.0.1:0", Users: []User{{Name: "u", Hash: h}, {Name: "u", Hash: h}}}}},
		{"twice", Config{Gateway: "a", Embedded: &BrokerConfig{Listen: "127.0.0.1:0", Users: []User{{Name: "a", Hash: h}}}}},
		{"$7$", Config{Gateway: "a", Embedded: &BrokerConfig{Listen: "127.0.0.1:0", Users: []User{{Name: "u", Hash: "plain"}}}}},
		{"topic filter", Config{Gateway: "a", Embedded: &BrokerConfig{Listen: "127.0.0.1:0", Users: []User{{Name: "u", Hash: h, Rules: []Rule{{Access: Read, Filter: "a/#/b"}}}}}}},
	} {
		s, err := New(c.cfg)
		if err == nil {
			s.Close()
			t.Errorf("%+v was accepted", c.cfg)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %q does not say %q", err, c.want)
		}
	}
}

// TestMosquitto runs the line against the broker that installers have, with
// its own password tool, its own client and its own access list.
func TestMosquitto(t *testing.T) {
	mosquitto := find(t, "mosquitto")
	passwd := find(t, "mosquitto_passwd")
	sub := find(t, "mosquitto_sub")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { // mosquitto drops root
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	ln.Close()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pw := file("passwd", "")
	for _, u := range []string{"house1", "dash"} {
		if out, err := exec.Command(passwd, "-b", pw, u, "secret-"+u).CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_passwd: %v: %s", err, out)
		}
	}
	acl := file("acl", "user house1\ntopic readwrite joulegate/1/house1/#\nuser dash\ntopic read joulegate/#\n")
	conf := file("conf", "listener "+port+" 127.0.0.1\nallow_anonymous false\npassword_file "+pw+"\nacl_file "+acl+"\nuser root\n")
	var log bytes.Buffer
	cmd := exec.Command(mosquitto, "-c", conf)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()

	// Its password file is good for our broker, too.
	entries, err := os.ReadFile(pw)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(entries)) {
		name, entry, _ := strings.Cut(strings.TrimSpace(line), ":")
		if sec, err := parseSecret(entry); err != nil || !sec.check([]byte("secret-"+name)) || sec.check([]byte("x")) {
			t.Errorf("entry of %s by mosquitto_passwd: %v", name, err)
		}
	}

	s, err := New(Config{Gateway: "house1", URL: "tcp://" + addr, Username: "house1", Password: "secret-house1", Info: map[string]string{"version": "test"}})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, s)
	publishAll(t, s)
	if err := s.PublishEvent("session.closed", Info, time.Now(), "x"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "all sent", func() bool { return s.Stats().Connected && s.Stats().Waiting == 0 })
	args := []string{"-p", port, "-u", "dash", "-P", "secret-dash", "-t", "joulegate/#", "-v", "-W", "20"}
	out, err := exec.Command(sub, append(args, "-C", fmt.Sprint(len(allStates)))...).CombinedOutput()
	if err != nil {
		t.Fatalf("mosquitto_sub: %v: %s\n%s", err, out, log.String())
	}
	for name, want := range allStates {
		if line := Topic("house1", name) + " " + want + "\n"; !strings.Contains(string(out), line) {
			t.Errorf("mosquitto_sub did not print %q:\n%s", line, out)
		}
	}
	stop()
	out, err = exec.Command(sub, append(args[:6], "-t", Topic("house1", "status"), "-C", "1", "-W", "20")...).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "offline" {
		t.Errorf("after the end mosquitto says %q: %v", out, err)
	}
}

// TestMosquittoClientsOnOurBroker: the tools of the field talk to the
// embedded broker.
func TestMosquittoClientsOnOurBroker(t *testing.T) {
	sub, pub := find(t, "mosquitto_sub"), find(t, "mosquitto_pub")
	s := start(t, User{Name: "anna", Hash: hash(t, "a"), Rules: InstallerRules("anna")})
	publishAll(t, s)
	_, port, _ := net.SplitHostPort(s.Addr())
	for _, version := range []string{"mqttv311", "mqttv5"} {
		login := []string{"-p", port, "-u", "anna", "-P", "a", "-V", version}
		out, err := exec.Command(sub, append(login, "-t", "joulegate/#", "-v", "-W", "20", "-C", fmt.Sprint(len(allStates)))...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: mosquitto_sub: %v: %s", version, err, out)
		}
		for name, want := range allStates {
			if line := Topic("house1", name) + " " + want + "\n"; !strings.Contains(string(out), line) {
				t.Errorf("%s: mosquitto_sub did not print %q:\n%s", version, line, out)
			}
		}
		if out, err := exec.Command(pub, append(login, "-q", "1", "-t", Topic("house1", "cmd/anna/diag"), "-m", "{}")...).CombinedOutput(); err != nil {
			t.Errorf("%s: mosquitto_pub: %v: %s", version, err, out)
		}
	}
	if out, err := exec.Command(sub, "-p", port, "-t", "#", "-C", "1", "-W", "5").CombinedOutput(); err == nil {
		t.Errorf("anonymous login succeeded: %s", out)
	}
}

func find(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	t.Skipf("%s is not installed (make setup)", name)
	return ""
}

func TestFilters(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true},
		{"a/b", "a/b/c", false},
		{"a/b/c", "a/b", false},
		{"a/+", "a/b", true},
		{"a/+", "a/b/c", false},
		{"a/+", "a", false},
		{"a/+/c", "a/b/c", true},
		{"#", "a/b", true},
		{"a/#", "a", true},
		{"a/#", "a/b/c", true},
		{"a/#", "ab", false},
		{"+/+", "/x", true},
		{"#", "$SYS/x", false},
		{"+/x", "$SYS/x", false},
		{"$SYS/#", "$SYS/x", true},
	} {
		if got := matches(c.filter, c.topic); got != c.want {
			t.Errorf("matches(%q, %q) = %t", c.filter, c.topic, got)
		}
	}
}

// TestOverlapsHasAWitness: two filters overlap exactly when some topic of a
// small world is selected by both.
func TestOverlapsHasAWitness(t *testing.T) {
	var world []string
	var grow func(prefix string, depth int)
	grow = func(prefix string, depth int) {
		for _, l := range []string{"a", "b", "z"} {
			topic := prefix + l
			world = append(world, topic)
			if depth > 1 {
				grow(topic+"/", depth-1)
			}
		}
	}
	grow("", 4)
	level := rapid.SampledFrom([]string{"a", "b", "+"})
	filter := rapid.Custom(func(t *rapid.T) string {
		f := strings.Join(rapid.SliceOfN(level, 1, 3).Draw(t, "levels"), "/")
		if rapid.Bool().Draw(t, "tail") {
			f += "/#"
		}
		return f
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := filter.Draw(t, "a"), filter.Draw(t, "b")
		want := false
		for _, topic := range world {
			want = want || (matches(a, topic) && matches(b, topic))
		}
		if got := overlaps(a, b); got != want || overlaps(b, a) != got {
			t.Fatalf("overlaps(%q, %q) = %t, want %t", a, b, got, want)
		}
	})
}

// FuzzAccess: whatever a client names as a topic or filter, the decision is
// total, and what one installer may send is never another one's.
func FuzzAccess(f *testing.F) {
	for _, s := range []string{"#", "+/+", "joulegate/1/x/cmd/bert/diag", "$SYS/#", "", "/", "joulegate/1/+/cmd/anna/#", "a//b", "\x00"} {
		f.Add(s)
	}
	rules := InstallerRules("anna")
	f.Fuzz(func(t *testing.T, topic string) {
		subscribable(rules, topic)
		if allowed(rules, Write, topic) && !strings.Contains(topic, "/cmd/anna/") && !strings.HasSuffix(topic, "/config/desired") {
			t.Errorf("anna may write %q", topic)
		}
		if allowed(rules, Read, topic) && (strings.HasPrefix(topic, Root+"/x/cmd/") || strings.HasPrefix(topic, Root+"/x/rsp/bert/")) {
			t.Errorf("anna may read %q", topic)
		}
	})
}

// FuzzSecret: a damaged entry is an error, never a password that matches.
func FuzzSecret(f *testing.F) {
	f.Add("$7$101$c2FsdA==$" + strings.Repeat("A", 86) + "==")
	f.Add("$7$0$$")
	f.Add("plain")
	f.Fuzz(func(t *testing.T, entry string) {
		if s, err := parseSecret(entry); err == nil && s.iterations <= 100 && s.check([]byte("guess")) {
			t.Errorf("%q accepts a guess", entry)
		}
	})
}

// FuzzBrokerBytes sends raw bytes to the broker; afterwards it still serves.
func FuzzBrokerBytes(f *testing.F) {
	connect := []byte("\x10\x18\x00\x04MQTT\x04\xc2\x00\x3c\x00\x02id\x00\x04anna\x00\x01a")
	f.Add(connect)
	f.Add(append(append([]byte{}, connect...), "\x82\x06\x00\x01\x00\x01#\x01"...))
	f.Add(append(append([]byte{}, connect...), "\x30\x07\x00\x03a/bxy"...))
	f.Add([]byte("\x10\xff\xff\xff\xff"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	h, err := HashPassword("a")
	if err != nil {
		f.Fatal(err)
	}
	b, err := NewBroker(BrokerConfig{Listen: "127.0.0.1:0", Users: []User{{Name: "anna", Hash: h, Rules: InstallerRules("anna")}}})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	f.Cleanup(func() { cancel(); <-done })
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		ended := make(chan struct{})
		go func() { b.server.EstablishConnection(listenerID, theirs); close(ended) }()
		go func() { // drain what it answers
			buf := make([]byte, 4096)
			for {
				if _, err := ours.Read(buf); err != nil {
					return
				}
			}
		}()
		ours.SetWriteDeadline(time.Now().Add(patience))
		ours.Write(data)
		ours.Close()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatal("the broker holds on to a connection that is gone")
		}
	})
}
