package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/guard"
	"pgregory.net/rapid"
)

func finding(rule string, kind guard.Kind, value string) guard.Finding {
	r, _ := guard.RuleOf(rule)
	return guard.Finding{Rule: rule, Severity: r.Severity, Subject: guard.Subject{Kind: kind, Value: value}, Count: 1}
}

// learned returns a policy whose rules have all been learned.
func learned(t *testing.T, c Config, modes map[string]guard.Mode) *Policy {
	t.Helper()
	p, err := New(c, Saved{Modes: modes})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A flood makes a handful of records, and none of its packets is uncounted.
func TestFloodIsTenRecords(t *testing.T) {
	p := learned(t, Config{}, nil)
	told, counted := 0, uint64(0)
	count := func(o Output) {
		for _, f := range o.Tell {
			told++
			counted += f.Count
		}
	}
	for i := range 10_000 {
		now := time.Duration(i) * time.Second // 2.8 hours
		count(p.Find(finding(guard.DHCPFlood, guard.Link, "02:00:00:00:00:01"), now))
		count(p.Tick(now, nil))
	}
	count(p.Tick(24*time.Hour, nil))
	if told > 10 || counted != 10_000 {
		t.Errorf("%d records count %d packets", told, counted)
	}
	p.Tick(26*time.Hour, nil)
	if len(p.open) != 0 || len(p.order) != 0 {
		t.Errorf("%d windows stay open for ever", len(p.open))
	}
}

// An attacker who invents subjects fills no table, and is still counted.
func TestManySubjectsAreCountedTogether(t *testing.T) {
	p := learned(t, Config{}, nil)
	told := 0
	for i := range 20_000 {
		told += len(p.Find(finding(guard.TCPPortScan, guard.Host, fmt.Sprint(i)), 0).Tell)
	}
	if told > MaxOpen+1 || len(p.open) > MaxOpen+1 {
		t.Errorf("%d records, %d windows", told, len(p.open))
	}
	rest := p.Tick(2*time.Hour, nil).Tell
	if len(rest) != 1 || rest[0].Subject.Value != Others || rest[0].Count != 20_000-MaxOpen-1 {
		t.Errorf("the rest is told as %+v", rest)
	}
}

func TestEverythingStartsInObserve(t *testing.T) {
	p := learned(t, Config{}, nil)
	for _, r := range guard.Rules {
		if o := p.Find(finding(r.ID, guard.Host, "192.0.2.7"), 0); len(o.Do) > 0 || len(o.Tell) != 1 {
			t.Errorf("rule %s: %+v", r.ID, o)
		}
	}
}

func TestEnforceNeedsLearningAndConfirmation(t *testing.T) {
	rules := []string{guard.ARPSpoof}
	p := learned(t, Config{}, nil)
	p.Tick(0, rules)
	if err := p.SetMode(guard.ARPSpoof, guard.Enforce); err == nil || !strings.Contains(err.Error(), "168h") {
		t.Fatalf("enforced without learning: %v", err)
	}
	p.Tick(4*24*time.Hour, rules)
	// A restart goes on counting; the time it was off does not count.
	p, _ = New(Config{}, p.Save())
	p.Tick(0, rules)
	p.Tick(2*24*time.Hour, rules)
	if err := p.SetMode(guard.ARPSpoof, guard.Enforce); err == nil {
		t.Fatal("enforced after six days")
	}
	now := 3 * 24 * time.Hour
	p.Tick(now, rules)
	if err := p.SetMode(guard.ARPSpoof, guard.Enforce); err != nil {
		t.Fatal(err)
	}
	if again, _ := New(Config{}, p.Save()); again.Mode(guard.ARPSpoof) != guard.Observe {
		t.Error("a crash confirmed the change")
	}
	p.Tick(now+5*time.Minute, rules)
	if m := p.Mode(guard.ARPSpoof); m != guard.Observe {
		t.Errorf("not confirmed, and the mode is %s", m)
	}
	if err := p.SetMode(guard.ARPSpoof, guard.Enforce); err != nil {
		t.Fatal(err)
	}
	if err := p.Confirm(guard.ARPSpoof); err != nil {
		t.Fatal(err)
	}
	p.Tick(now+time.Hour, rules)
	if again, _ := New(Config{}, p.Save()); again.Mode(guard.ARPSpoof) != guard.Enforce {
		t.Error("a confirmed mode does not survive")
	}
	if err := p.SetMode(guard.DHCPFlood, guard.Enforce); err == nil {
		t.Error("a rule without reaction is enforced")
	}
	if err := p.SetMode("nonsense", guard.Ask); err == nil {
		t.Error("an unknown rule has a mode")
	}
}

func TestBlockExpiresAndIsReleased(t *testing.T) {
	p := learned(t, Config{Never: []guard.Subject{{Kind: guard.Host, Value: "192.0.2.1"}}}, map[string]guard.Mode{guard.ARPSpoof: guard.Enforce, guard.TCPPortScan: guard.Ask})
	if o := p.Find(finding(guard.ARPSpoof, guard.Host, "192.0.2.1"), 0); len(o.Do) > 0 {
		t.Error("the charger is blocked")
	}
	o := p.Find(finding(guard.ARPSpoof, guard.Host, "192.0.2.7"), 0)
	if len(o.Do) != 1 || o.Do[0].Action != guard.Block || o.Do[0].For != time.Hour || o.Do[0].Ask {
		t.Fatalf("%+v", o.Do)
	}
	if o := p.Find(finding(guard.ARPSpoof, guard.Host, "192.0.2.7"), time.Minute); len(o.Do) > 0 {
		t.Error("blocked twice")
	}
	if o := p.Find(finding(guard.TCPPortScan, guard.Host, "192.0.2.8"), time.Minute); len(o.Do) != 1 || !o.Do[0].Ask {
		t.Errorf("not asked: %+v", o.Do)
	}
	if len(p.Reactions()) != 1 {
		t.Errorf("in force: %+v", p.Reactions())
	}
	if o := p.Tick(time.Hour, nil); len(o.Do) != 1 || !o.Do[0].Undo || o.Do[0].Subject.Value != "192.0.2.7" {
		t.Errorf("not undone: %+v", o.Do)
	}
	p.Find(finding(guard.ARPSpoof, guard.Host, "192.0.2.9"), time.Hour)
	if o := p.Release(); len(o.Do) != 1 || !o.Do[0].Undo || p.Mode(guard.ARPSpoof) != guard.Observe || p.Mode(guard.TCPPortScan) != guard.Ask {
		t.Errorf("released: %+v", o.Do)
	}
}

func TestKillNeedsAProcessAndSparesTheListed(t *testing.T) {
	p := learned(t, Config{Never: []guard.Subject{{Kind: guard.Program, Value: "/usr/sbin/sshd"}}}, map[string]guard.Mode{guard.ProcessMemfd: guard.Enforce})
	f := finding(guard.ProcessMemfd, guard.PID, "4711@882301")
	f.Evidence = map[string]string{"image": "/usr/sbin/sshd"}
	if o := p.Find(f, 0); len(o.Do) > 0 {
		t.Error("sshd is killed")
	}
	f.Evidence = map[string]string{"image": "/memfd:x"}
	if o := p.Find(f, 0); len(o.Do) != 1 || o.Do[0].Action != guard.Kill {
		t.Errorf("%+v", o.Do)
	}
	if o := p.Find(finding(guard.ProcessMemfd, guard.Host, "192.0.2.7"), 0); len(o.Do) > 0 {
		t.Error("a host is killed")
	}
}

// Whatever arrives as packets or names, charging goes on; two local sources
// stop it, at most once an hour; reactions stay within their limits and are
// all taken back in the end.
func TestNoPacketStopsCharging(t *testing.T) {
	modes := map[string]guard.Mode{}
	var ids []string
	for _, r := range guard.Rules {
		modes[r.ID] = guard.Enforce
		ids = append(ids, r.ID)
	}
	never := guard.Subject{Kind: guard.Host, Value: "1"}
	rapid.Check(t, func(t *rapid.T) {
		p, err := New(Config{Never: []guard.Subject{never}}, Saved{Modes: modes})
		if err != nil {
			t.Fatal(err)
		}
		now, lastStop := time.Duration(0), -StopPause
		grave := map[guard.Sensor]time.Duration{}
		inForce := map[guard.Subject]int{}
		check := func(o Output) {
			for _, r := range o.Do {
				switch {
				case r.Action == guard.SafeStop:
					sources := 0
					for _, at := range grave {
						if now-at <= StopWindow {
							sources++
						}
					}
					if sources < 2 || now-lastStop < StopPause {
						t.Fatalf("charging is stopped at %s by %d local sources, last stop %s", now, sources, lastStop)
					}
					lastStop = now
				case r.Subject == never:
					t.Fatalf("%+v is on the never list", r)
				case r.Undo:
					inForce[r.Subject]--
				case r.For > 0:
					inForce[r.Subject]++
				}
			}
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 900).Draw(t, "seconds")) * time.Second
			if rapid.Bool().Draw(t, "tick") {
				check(p.Tick(now, ids))
				continue
			}
			f := finding(rapid.SampledFrom(ids).Draw(t, "rule"), rapid.SampledFrom([]guard.Kind{guard.Host, guard.PID, guard.Peer}).Draw(t, "kind"), fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "value")))
			if r, _ := guard.RuleOf(f.Rule); r.Sensor.Local() && f.Severity >= guard.High {
				grave[r.Sensor] = now
			}
			check(p.Find(f, now))
			if len(p.active) > MaxReactions || len(p.begun) > MaxPerHour {
				t.Fatalf("%d reactions in force, %d in an hour", len(p.active), len(p.begun))
			}
		}
		check(p.Release())
		for s, n := range inForce {
			if n != 0 {
				t.Fatalf("%s: %d reactions are never taken back", s, n)
			}
		}
	})
}

func TestTwoLocalSourcesStopInEitherOrder(t *testing.T) {
	for _, rules := range [][]string{{guard.LoadBinary, guard.ProcessMemfd}, {guard.ProcessMemfd, guard.LoadBinary}} {
		p := learned(t, Config{}, map[string]guard.Mode{guard.LoadBinary: guard.Enforce})
		first := p.Find(finding(rules[0], guard.Machine, ""), 0)
		second := p.Find(finding(rules[1], guard.Machine, ""), time.Minute)
		if len(first.Do) != 0 || len(second.Do) != 1 || second.Do[0].Action != guard.SafeStop || second.Do[0].Rule != guard.LoadBinary {
			t.Errorf("%v: %+v, then %+v", rules, first.Do, second.Do)
		}
		p = learned(t, Config{}, map[string]guard.Mode{guard.LoadBinary: guard.Enforce})
		p.Find(finding(rules[0], guard.Machine, ""), 0)
		if o := p.Find(finding(rules[1], guard.Machine, ""), StopWindow+1); len(o.Do) != 0 {
			t.Errorf("%v: an old finding counts", rules)
		}
	}
}
