//go:build hil

package hil

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/tools/hil/wire"
)

// TestPendingChange: the power fails while a change of the configuration waits
// for a person's word. Booted again, the gateway runs by the former one and
// says what became of the change. The change is one that is seen from outside:
// a pin that pulses.
func TestPendingChange(t *testing.T) {
	s, anna := solo(t, MachineConfig{}, nil)
	s.reads()
	first := call(s, s.client.ConfigView)
	if first.Pending != nil || first.Rev == 0 {
		t.Fatalf("to begin with: %+v", first)
	}
	file := string(s.do(wire.Request{Op: wire.Get, Name: cfgFile}).Out)
	next := s.yaml
	next.Watchdog.Heartbeat = lineNames[Heart1]
	s.do(wire.Request{Op: wire.Put, Name: "/data/next.yaml", Data: config.Render(next), Number: 0o644})
	s.run("config", "apply", "/data/next.yaml", "--confirm", "30m")
	s.hear(wire.Notify) // it has started anew
	s.until("the change to wait for a word", func(ctx context.Context) (bool, any) {
		v, err := s.client.ConfigView(ctx)
		return err == nil && v.Pending != nil && v.Pending.Phase == config.Checked, fmt.Sprintf("%+v %+v %v", v.Pending, v.Outcome, err)
	})
	for range 3 {
		s.moves(Heart1, true)
		s.moves(Heart1, false)
	}

	s.fail()
	pulses := s.count(Heart1)
	s.boot()
	s.start()
	v := call(s, s.client.ConfigView)
	if v.Pending != nil || v.Rev != first.Rev || v.Text != first.Text {
		t.Errorf("in force is revision %d, not %d; pending %+v", v.Rev, first.Rev, v.Pending)
	}
	if o := v.Outcome; o == nil || o.State != config.RolledBack || o.Rev != first.Rev+1 {
		t.Errorf("outcome %+v", o)
	}
	if out := s.run("config", "status"); !strings.Contains(out, config.RolledBack) {
		t.Errorf("a person is told: %s", out)
	}
	if b := s.do(wire.Request{Op: wire.Get, Name: cfgFile}).Out; string(b) != file {
		t.Errorf("the file has changed:\n%s", b)
	}
	s.requests(50, "by the former configuration", func() {
		if n := s.count(Heart1); n != pulses {
			t.Fatalf("%s has moved %d times since the boot", lineNames[Heart1], n-pulses)
		}
	})
	s.charge(anna)
}
