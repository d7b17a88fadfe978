package mqtt

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// echo is a Remote that remembers what reached it.
type echo struct {
	desired chan string
	names   chan string
}

func (e echo) Desired(_ context.Context, b []byte, _ bool) {
	select {
	case e.desired <- string(b):
	default:
	}
}

func (e echo) Command(_ context.Context, client, name string, args json.RawMessage) (any, error) {
	if name == "refuse" {
		return nil, &CommandError{"unavailable", "no"}
	}
	select {
	case e.names <- client + " " + name:
	default: // enough to count
	}
	return args, nil
}

func (echo) Slow(name string) bool { return name == "slow" }

func TestCommandsAreJudgedFirst(t *testing.T) {
	s, err := New(Config{Gateway: "house1", URL: "tcp://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	e := echo{names: make(chan string, 10)}
	s.remote = e
	now := time.Unix(1_800_000_000, 0)
	good := fmt.Sprintf(`{"txn":"a","exp":%d,"args":{"x":1}}`, now.Unix()+60)
	for _, c := range []struct {
		what, client, name, payload string
		retained                    bool
		want                        string
	}{
		{"retained", "anna", "diag", good, true, "retained"},
		{"good", "anna", "diag", good, false, ""},
		{"again", "anna", "diag", good, false, "replayed"},
		{"another's", "bert", "diag", good, false, ""},
		{"expired", "anna", "diag", fmt.Sprintf(`{"txn":"b","exp":%d}`, now.Unix()), false, "expired"},
		{"valid for ever", "anna", "diag", fmt.Sprintf(`{"txn":"c","exp":%d}`, now.Unix()+1e6), false, "invalid"},
		{"no expiry", "anna", "diag", `{"txn":"d"}`, false, "invalid"},
		{"no txn", "anna", "diag", fmt.Sprintf(`{"exp":%d}`, now.Unix()+60), false, "invalid"},
		{"unknown key", "anna", "diag", `{"txn":"e","exp":1,"now":true}`, false, "invalid"},
		{"refused", "anna", "refuse", fmt.Sprintf(`{"txn":"f","exp":%d}`, now.Unix()+60), false, "unavailable"},
	} {
		args, r := s.admit(c.client, inbound{payload: []byte(c.payload), retained: c.retained}, now)
		if r.Status == "" {
			r = s.execute(t.Context(), c.client, c.name, r.Txn, args)
		}
		if r.Code != c.want || (r.Status == "ok") != (c.want == "") {
			t.Errorf("%s: %+v, want %q", c.what, r, c.want)
		}
	}
	if len(e.names) != 2 {
		t.Errorf("%d commands were carried out, want 2", len(e.names))
	}
}

// TestCommandsOverTheBroker: a command is answered to whoever gave it, also
// after the connection was lost: the subscription is made anew.
func TestCommandsOverTheBroker(t *testing.T) {
	e := echo{desired: make(chan string, 10), names: make(chan string, 10)}
	s, err := New(Config{
		Gateway: "house1", Remote: e,
		Embedded: &BrokerConfig{Listen: "127.0.0.1:0", Users: []User{{Name: "anna", Hash: hash(t, "a"), Rules: InstallerRules("anna")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	p, err := dial(t, s.Addr(), "anna", "a")
	if err != nil {
		t.Fatal(err)
	}
	p.subscribe(t, Topic("house1", "rsp/anna/+"))
	for round := range 3 {
		waitFor(t, "the gateway's own connection", func() bool { return s.Stats().Connected })
		// A publish may precede the subscription: repeat until it is heard.
		rsp := Topic("house1", "rsp/anna/diag")
		n := 0
		waitFor(t, "an answer", func() bool {
			n++
			txn := fmt.Sprintf("r%d-%d", round, n)
			p.Publish(Topic("house1", "cmd/anna/diag"), 1, false, fmt.Sprintf(`{"txn":%q,"exp":%d}`, txn, time.Now().Unix()+60)).WaitTimeout(patience)
			time.Sleep(20 * time.Millisecond)
			p.mu.Lock()
			defer p.mu.Unlock()
			var r Reply
			return json.Unmarshal([]byte(p.payload(rsp)), &r) == nil && r.Status == "ok" && r.Txn >= fmt.Sprintf("r%d", round)
		})
		for _, cl := range s.broker.server.Clients.GetAll() {
			if string(cl.Properties.Username) == "house1" {
				cl.Stop(fmt.Errorf("test"))
			}
		}
	}
	waitFor(t, "the desired configuration", func() bool {
		p.Publish(Topic("house1", "config/desired"), 1, false, `{"txn":"x"}`).WaitTimeout(patience)
		select {
		case b := <-e.desired:
			return b == `{"txn":"x"}`
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
}

// slowly is a Remote with a command that takes until it is released.
type slowly struct {
	echo
	begun   chan struct{}
	release chan struct{}
}

func (s slowly) Command(ctx context.Context, client, name string, args json.RawMessage) (any, error) {
	if name == "slow" {
		s.begun <- struct{}{}
		<-s.release
	}
	return s.echo.Command(ctx, client, name, args)
}

// TestSlowCommandsKeepNobodyWaiting: what confirms a configuration in time
// must not wait for the scan of a bus, and a second scan is refused.
func TestSlowCommandsKeepNobodyWaiting(t *testing.T) {
	s, err := New(Config{Gateway: "house1", URL: "tcp://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	r := slowly{echo{names: make(chan string, 10)}, make(chan struct{}), make(chan struct{})}
	s.remote = r
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.obey(ctx) }()
	give := func(name, txn string) {
		s.inbox <- inbound{topic: "cmd/anna/" + name, payload: fmt.Appendf(nil, `{"txn":%q,"exp":%d}`, txn, time.Now().Unix()+60)}
	}
	answer := func() (topic string, v Reply) {
		waitFor(t, "an answer", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			m, ok := s.replies.pop()
			if ok {
				topic = m.topic
				if err := json.Unmarshal(m.payload, &v); err != nil {
					t.Error(err)
				}
			}
			return ok
		})
		return topic, v
	}
	give("slow", "one")
	<-r.begun
	give("diag", "two")
	if topic, v := answer(); topic != Topic("house1", "rsp/anna/diag") || v.Status != "ok" {
		t.Errorf("%s %+v", topic, v)
	}
	give("slow", "three")
	if _, v := answer(); v.Code != "busy" || v.Txn != "three" {
		t.Errorf("%+v", v)
	}
	close(r.release)
	if topic, v := answer(); topic != Topic("house1", "rsp/anna/slow") || v.Txn != "one" || v.Status != "ok" {
		t.Errorf("%s %+v", topic, v)
	}
	stop()
	<-ended
}

func FuzzCommand(f *testing.F) {
	f.Add([]byte(`{"txn":"a","exp":1800000000,"args":{}}`))
	f.Add([]byte(`{"txn":"a","exp":"2026-05-01T14:03:00Z"}`))
	f.Add([]byte(`{"exp":1e300}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, exp, err := parseRequest(b)
		if err == nil && (r.Txn == "" || exp.IsZero()) {
			t.Fatalf("%q was accepted: %+v %s", b, r, exp)
		}
	})
}
