package house

import (
	"testing"
	"time"

	"github.com/joulegate/joulegate/meter"
)

// TestBattery takes a house through noon and night: the battery fills from
// what would be exported, gives what would be imported, and the books are
// exact all the time.
func TestBattery(t *testing.T) {
	cfg := Config{Seed: 3, Start: 11 * time.Hour, Houses: []HouseConfig{{Name: "a", Phases: 3, PV: 8_000, Battery: BatteryConfig{Capacity: 5_000, Charge: 1_000, Power: 3_000}}}}
	n := mustNew(t, cfg)
	soc := func() int64 { return value(t, n.House(0).Battery(), meter.StateOfCharge, 0) }
	power := func() int64 { return value(t, n.House(0).Battery(), meter.BatteryPower, 0) }
	was, full, gave := soc(), false, false
	if was != 200 {
		t.Fatalf("%d permille at the start", was)
	}
	for range 24 * 60 {
		n.Step(time.Minute)
		if err := n.Balance().Check(); err != nil {
			t.Fatal(err)
		}
		p, net := power(), int64(n.House(0).Net())
		switch {
		case p > 3_000_000 || p < -3_000_000 || soc() < 0 || soc() > 1000:
			t.Fatalf("%d mW at %d permille", p, soc())
		case p > 0 && net > 0, p < 0 && net < 0:
			t.Fatalf("%d mW into the battery while the house draws %d", p, net)
		}
		full = full || soc() == 1000
		gave = gave || p < 0 && net == 0
	}
	if !full || !gave {
		t.Errorf("full at noon: %t, carried the house at night: %t", full, gave)
	}
	if n, err := New(Config{Houses: []HouseConfig{{Battery: BatteryConfig{Capacity: 1, Charge: 2, Power: 1}}}}); err == nil {
		t.Errorf("%v", n.House(0).Battery())
	}
	if mustNew(t, Config{Houses: []HouseConfig{{}}}).House(0).Battery() != nil {
		t.Error("a battery out of nothing")
	}
}
