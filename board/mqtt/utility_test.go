package mqtt

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestParseOrder(t *testing.T) {
	if o, err := parseOrder([]byte(`{"limit_w":4200,"for_s":3600}`)); err != nil || o != (LimitOrder{4200, 3600}) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, s := range []string{``, `4200`, `{"limit_w":-1}`, `{"limit_w":1,"for_s":604801}`, `{"limit":1}`, `{"limit_w":1}{}`, `{"limit_w":1.5}`, `{"limit_w":1` + strings.Repeat(" ", maxOrder) + `}`} {
		if o, err := parseOrder([]byte(s)); err == nil {
			t.Errorf("%.20q is order %+v", s, o)
		}
	}
}

func FuzzParseOrder(f *testing.F) {
	f.Add([]byte(`{"limit_w":4200,"for_s":3600}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := parseOrder(b); err == nil && (o.Limit < 0 || o.Seconds < 0) {
			t.Errorf("%+v", o)
		}
	})
}

func TestUtilityRules(t *testing.T) {
	r := UtilityRules()
	for topic, want := range map[string]bool{"utility/limit": true, "config/desired": false, "cmd/x/relay.test": false, "utility/other": false} {
		if allowed(r, Write, Topic("house1", topic)) != want {
			t.Errorf("%s may be written: %t", topic, !want)
		}
	}
}

// TestUtilityOverTheBroker sends orders as the utility's box would: they
// arrive, a retained one of long ago does not count, and a broken one is
// dropped.
func TestUtilityOverTheBroker(t *testing.T) {
	orders := make(chan LimitOrder, 16)
	s, err := New(Config{
		Gateway:  "house1",
		Embedded: &BrokerConfig{Listen: "127.0.0.1:0", Users: []User{{Name: "grid", Hash: hash(t, "g"), Rules: UtilityRules()}}},
		Utility:  func(o LimitOrder) error { orders <- o; return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	grid, err := dial(t, s.Addr(), "grid", "g")
	if err != nil {
		t.Fatal(err)
	}
	topic := Topic("house1", topicUtility)
	deadline := time.After(patience)
	for seconds := int64(1); ; seconds++ { // until the gateway has subscribed
		grid.Publish(topic, 1, false, fmt.Sprintf(`{"limit_w":4200,"for_s":%d}`, seconds)).WaitTimeout(patience)
		select {
		case o := <-orders:
			if o.Limit != 4200 || o.Seconds < 1 || o.Seconds > seconds {
				t.Fatalf("%+v", o)
			}
		case <-time.After(50 * time.Millisecond):
			continue
		case <-deadline:
			t.Fatal("no order arrives")
		}
		break
	}
	grid.Publish(topic, 1, false, "dim!").WaitTimeout(patience)
	grid.Publish(topic, 1, false, `{"limit_w":0}`).WaitTimeout(patience)
	for {
		select {
		case o := <-orders:
			if o.Limit == 4200 {
				continue // one of the first ones
			}
			if o != (LimitOrder{}) {
				t.Fatalf("%+v", o)
			}
			return
		case <-deadline:
			t.Fatal("the release does not arrive")
		}
	}
}
