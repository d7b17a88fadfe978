package session

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/drivers"
)

// transitions is the table of the package comment, each with a conversation
// that leads through it.
var transitions map[[2]Phase]func(g *rig)

func init() { // the conversations are checked against the table that they are in
	transitions = map[[2]Phase]func(g *rig){
		{Idle, Testing}:        func(g *rig) { g.test() },
		{Testing, Idle}:        func(g *rig) { g.test(); g.run(MaxTest + time.Second) },
		{Testing, Held}:        func(g *rig) { g.test(); g.do(Open{testID, 100, false}) },
		{Idle, Held}:           func(g *rig) { g.do(Open{testID, 100, false}) },
		{Idle, Suspended}:      func(g *rig) { g.do(Resume{Saved: Saved{ID: testID, MaxWh: 100, Begun: true}}) },
		{Idle, Stopping}:       func(g *rig) { g.do(Resume{Saved: Saved{ID: testID, MaxWh: 100, Stopping: chain.StopFull}}) },
		{Held, Authorised}:     func(g *rig) { g.do(Open{testID, 100, false}); g.do(Ledger{testID, true}) },
		{Held, Idle}:           func(g *rig) { g.do(Open{testID, 100, false}); g.do(Ledger{testID, false}) },
		{Held, Stopping}:       func(g *rig) { g.do(Open{testID, 100, false}); g.run(testRules.HoldLimit + time.Second) },
		{Authorised, Charging}: func(g *rig) { g.charge(1000) },
		{Authorised, Idle}: func(g *rig) {
			g.do(Open{testID, 100, false})
			g.do(Ledger{testID, true})
			g.do(Ledger{testID, false})
		},
		{Authorised, Stopping}: func(g *rig) {
			g.do(Open{testID, 100, false})
			g.do(Ledger{testID, true})
			g.do(Stop{Reason: chain.StopDriver})
		},
		{Charging, Suspended}: func(g *rig) { g.charge(1000); g.do(Setpoint{}); g.run(4 * time.Second) },
		{Charging, Stopping}:  func(g *rig) { g.charge(1000); g.do(Stop{Reason: chain.StopDriver}) },
		{Suspended, Charging}: func(g *rig) {
			g.charge(1000)
			g.do(Stalled{})
			g.run(15 * time.Second)
		},
		{Suspended, Stopping}: func(g *rig) {
			g.charge(1000)
			g.do(Setpoint{})
			g.run(4 * time.Second)
			g.vehicle = drivers.StateA
			g.run(2 * time.Second)
		},
		{Stopping, Metered}: func(g *rig) {
			g.charge(1000)
			g.do(Stop{Reason: chain.StopDriver})
			g.run(9 * time.Second)
		},
		{Stopping, Idle}: func(g *rig) {
			g.meterOff = true
			g.do(Open{testID, 100, false})
			g.do(Stop{Reason: chain.StopDriver})
			g.run(9 * time.Second)
		},
		{Metered, Idle}: func(g *rig) {
			g.charge(1000)
			g.do(Stop{Reason: chain.StopDriver})
			g.run(9 * time.Second)
			g.do(StopRecorded{})
		},
	}
}

func checkTransition(t interface{ Fatalf(string, ...any) }, from, to Phase) {
	if _, known := transitions[[2]Phase{from, to}]; from != to && !known {
		t.Fatalf("from %s to %s: no such transition", from, to)
	}
}

func TestEveryTransitionIsReached(t *testing.T) {
	for pair, script := range transitions {
		t.Run(pair[0].String()+" to "+pair[1].String(), func(t *testing.T) {
			g := newRig(t)
			script(g)
			if !g.went[pair] {
				t.Fatalf("not reached; it is %s: %s", g.s.Phase, g.s.Why)
			}
		})
	}
}

// The table that people read is the one that is tested.
func TestPackageCommentHasTheTable(t *testing.T) {
	b, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(b), "//\tfrom        to          when\n")
	table, _, end := strings.Cut(table, "\n//\n")
	if !ok || !end {
		t.Fatal("the package comment has no table")
	}
	title := func(p Phase) string { return strings.ToUpper(p.String()[:1]) + p.String()[1:] }
	written := map[[2]string]bool{}
	for line := range strings.Lines(table) {
		f := strings.Fields(strings.TrimPrefix(line, "//"))
		written[[2]string{f[0], f[1]}] = true
	}
	for pair := range transitions {
		row := [2]string{title(pair[0]), title(pair[1])}
		if !written[row] {
			t.Errorf("from %s to %s is not in the package comment", row[0], row[1])
		}
		delete(written, row)
	}
	for row := range written {
		t.Errorf("from %s to %s is in the package comment only", row[0], row[1])
	}
}
