package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
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

// taught says that every rule has been learned.
func taught() map[string]time.Duration {
	m := map[string]time.Duration{}
	for _, r := range guard.Rules {
		m[r.ID] = 7 * 24 * time.Hour
	}
	return m
}

// learned returns a policy whose rules have all been learned.
func learned(t *testing.T, modes map[string]guard.Mode, never ...guard.Subject) *Policy {
	t.Helper()
	p, _, err := New(Config{Modes: modes}, Saved{Learned: taught(), Modes: modes}, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.SetNever(Never{Subjects: never, Quarantined: 1})
	return p
}

// A flood makes a handful of records, and none of its packets is uncounted.
func TestFloodIsTenRecords(t *testing.T) {
	p := learned(t, nil)
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
	p := learned(t, nil)
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
	p := learned(t, nil)
	for _, r := range guard.Rules {
		if o := p.Find(finding(r.ID, guard.Host, "192.0.2.7"), 0); len(o.Do) > 0 || len(o.Tell) != 1 {
			t.Errorf("rule %s: %+v", r.ID, o)
		}
	}
}

func TestEnforceNeedsLearning(t *testing.T) {
	rules := []string{guard.ARPSpoof}
	c := Config{Modes: map[string]guard.Mode{guard.ARPSpoof: guard.Enforce}}
	p, out, err := New(c, Saved{}, 0)
	if err != nil || len(out.Tell) != 1 || out.Tell[0].Evidence["mode"] != "enforce" || out.Tell[0].Evidence["was"] != "observe" {
		t.Fatalf("the change is not on record: %+v, %v", out.Tell, err)
	}
	p.Tick(0, rules)
	p.Tick(4*24*time.Hour, rules)
	// A restart goes on counting; the time it was off does not count.
	p, out, _ = New(c, p.Save(), 100*24*time.Hour)
	if len(out.Tell) != 0 {
		t.Errorf("nothing changed, and it tells %+v", out.Tell)
	}
	p.Tick(0, rules)
	p.Tick(2*24*time.Hour, rules)
	if err := p.MayEnforce(guard.ARPSpoof); err == nil || !strings.Contains(err.Error(), "24h") {
		t.Errorf("after six days: %v", err)
	}
	attack := finding(guard.ARPSpoof, guard.Host, "192.0.2.7")
	if o := p.Find(attack, 2*24*time.Hour); len(o.Do) != 0 || p.Mode(guard.ARPSpoof) != guard.Observe {
		t.Fatalf("enforced after six days: %+v", o.Do)
	}
	p.Tick(3*24*time.Hour, rules)
	if o := p.Find(attack, 3*24*time.Hour); len(o.Do) != 1 || p.MayEnforce(guard.ARPSpoof) != nil {
		t.Errorf("not enforced after seven days: %+v", o.Do)
	}
	for rule, m := range map[string]guard.Mode{guard.DHCPFlood: guard.Enforce, "nonsense": guard.Ask, guard.ARPSpoof: 9} {
		if _, _, err := New(Config{Modes: map[string]guard.Mode{rule: m}}, Saved{}, 0); err == nil {
			t.Errorf("rule %s has mode %d", rule, m)
		}
	}
}

// only returns the one reaction of a step.
func only(t *testing.T, o Output) guard.Reaction {
	t.Helper()
	if len(o.Do) != 1 {
		t.Fatalf("does %+v, want one thing", o.Do)
	}
	return o.Do[0]
}

func TestBlockExpiresAndIsReleased(t *testing.T) {
	charger := guard.Subject{Kind: guard.Host, Value: "192.0.2.1"}
	p := learned(t, map[string]guard.Mode{guard.ARPSpoof: guard.Enforce}, charger)
	if o := p.Find(finding(guard.ARPSpoof, guard.Host, "192.0.2.1"), 0); len(o.Do) > 0 || p.Spared()[SparedNever] != 1 {
		t.Error("the charger is blocked")
	}
	attack := finding(guard.ARPSpoof, guard.Host, "192.0.2.7")
	r := only(t, p.Find(attack, 0))
	if r.Action != guard.Block || r.For != time.Hour || r.Ask || r.ID != 1 || r.Why != Found {
		t.Fatalf("%+v", r)
	}
	if o := p.Find(attack, time.Minute); len(o.Do) > 0 {
		t.Error("blocked twice")
	}
	if len(p.Reactions()) != 1 {
		t.Errorf("in force: %+v", p.Reactions())
	}
	if r := only(t, p.Tick(time.Hour, nil)); !r.Undo || r.Subject.Value != "192.0.2.7" || r.Why != Expired {
		t.Errorf("not undone: %+v", r)
	}
	r = only(t, p.Find(attack, time.Hour))
	if _, err := p.Release(77); err == nil {
		t.Error("what is not in force is released")
	}
	o, err := p.Release(r.ID)
	if u := only(t, o); err != nil || !u.Undo || u.ID != r.ID || u.Why != Released {
		t.Errorf("released: %+v, %v", u, err)
	}
	// Whoever was released by a person is not blocked at the next packet.
	if o := p.Find(attack, 2*time.Hour); len(o.Do) > 0 || p.Spared()[SparedReleased] != 1 {
		t.Errorf("blocked again at once: %+v", o.Do)
	}
	p.Tick(26*time.Hour, nil)
	only(t, p.Find(attack, 26*time.Hour))
	only(t, p.ReleaseAll())
	if o := p.Find(finding(guard.ARPSpoof, guard.Host, "192.0.2.8"), 27*time.Hour); len(o.Do) > 0 || p.Suspended() != 23*time.Hour {
		t.Errorf("after everything was released: %+v, %s", o.Do, p.Suspended())
	}
	p.Resume()
	only(t, p.Find(finding(guard.ARPSpoof, guard.Host, "192.0.2.8"), 27*time.Hour))
}

func TestSomebodyOnTheNeverListIsLetGo(t *testing.T) {
	p := learned(t, map[string]guard.Mode{guard.ARPSpoof: guard.Enforce})
	only(t, p.Find(finding(guard.ARPSpoof, guard.Host, "192.0.2.7"), 0))
	r := only(t, p.SetNever(Never{Nets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}))
	if !r.Undo || len(p.Reactions()) != 0 {
		t.Errorf("%+v", r)
	}
}

// Addresses that are nobody's, everybody's or this machine's are never blocked.
func TestOnlySingleOthersAreBlocked(t *testing.T) {
	p := learned(t, map[string]guard.Mode{guard.ARPSpoof: guard.Enforce})
	for _, v := range []string{"", "127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "255.255.255.255", "224.0.0.251", "ff02::1", "::ffff:127.0.0.1", "192.0.2.0/24", "example.org", "192.0.2.7; flush"} {
		if o := p.Find(finding(guard.ARPSpoof, guard.Host, v), 0); len(o.Do) > 0 {
			t.Errorf("%q is blocked: %+v", v, o.Do)
		}
	}
}

func TestAQuestionIsAnsweredOrForgotten(t *testing.T) {
	p := learned(t, map[string]guard.Mode{guard.TCPPortScan: guard.Ask})
	scan := func(host string, at time.Duration) Output {
		return p.Find(finding(guard.TCPPortScan, guard.Host, host), at)
	}
	q := only(t, scan("192.0.2.8", 0))
	if !q.Ask || len(p.Reactions()) != 0 || len(p.Questions()) != 1 {
		t.Fatalf("not asked: %+v", q)
	}
	if o := scan("192.0.2.8", time.Minute); len(o.Do) > 0 {
		t.Error("asked twice")
	}
	o, err := p.Answer(q.ID, true)
	if r := only(t, o); err != nil || r.Ask || r.Undo || r.For != time.Hour || r.Why != Answered || len(p.Reactions()) != 1 || len(p.Questions()) != 0 {
		t.Errorf("answered yes: %+v, %v", r, err)
	}
	if _, err := p.Answer(q.ID, true); err == nil {
		t.Error("answered twice")
	}
	// What a person wanted stays through a restart, although the rule only asks.
	again, out, err := New(Config{Modes: map[string]guard.Mode{guard.TCPPortScan: guard.Ask}}, p.Save(), 10*time.Minute)
	if r := only(t, out); err != nil || r.Why != Restored || r.For != 50*time.Minute {
		t.Errorf("restored as %+v, %v", r, err)
	}
	p = again
	p.SetNever(Never{})
	q = only(t, scan("192.0.2.9", 2*time.Minute))
	o, err = p.Answer(q.ID, false)
	if r := only(t, o); err != nil || r.Why != Declined || len(p.Reactions()) != 1 {
		t.Errorf("answered no: %+v, %v", r, err)
	}
	if o := scan("192.0.2.9", time.Hour); len(o.Do) > 0 {
		t.Error("asked again after a no")
	}
	q = only(t, scan("192.0.2.10", time.Hour))
	p.Tick(2*time.Hour, nil)
	if r := only(t, p.Tick(13*time.Hour, nil)); r.ID != q.ID || r.Why != Unanswered || len(p.Questions()) != 0 {
		t.Errorf("not forgotten: %+v", r)
	}
}

func TestKillNeedsAProcessAndSparesTheListed(t *testing.T) {
	p := learned(t, map[string]guard.Mode{guard.ProcessMemfd: guard.Enforce}, guard.Subject{Kind: guard.Program, Value: "/usr/sbin/sshd"})
	f := finding(guard.ProcessMemfd, guard.PID, "4711@882301")
	for _, image := range []string{"/usr/sbin/sshd", "/usr/sbin/sshd (deleted)"} { // an update replaced it
		f.Evidence = map[string]string{"image": image}
		if o := p.Find(f, 0); len(o.Do) > 0 {
			t.Error("sshd is killed")
		}
	}
	f.Evidence = map[string]string{"image": "/memfd:x", "sha256": "ab"}
	if r := only(t, p.Find(f, 0)); r.Action != guard.Kill || r.Image != "/memfd:x" || r.SHA256 != "ab" {
		t.Errorf("%+v", r)
	}
	if o := p.Find(finding(guard.ProcessMemfd, guard.Host, "192.0.2.7"), 0); len(o.Do) > 0 {
		t.Error("a host is killed")
	}
}

// A third of those who vote would stop the ledger.
// What goes past the name server is refused without waiting for a finding,
// once, and as long as the rule enforces and nobody has released it.
func TestARefusalLastsAsItsRule(t *testing.T) {
	day := 24 * time.Hour
	modes := map[string]guard.Mode{guard.DomainBypass: guard.Enforce}
	p := learned(t, modes)
	r := only(t, p.Tick(0, nil))
	if r.Action != guard.Refuse || r.Why != Found || r.For != day || r.Subject.Kind != guard.Machine {
		t.Fatalf("begun: %+v", r)
	}
	past := finding(guard.DomainBypass, guard.Machine, "")
	if o := p.Find(past, time.Hour); len(o.Do) > 0 {
		t.Errorf("begun twice: %+v", o.Do)
	}
	if again := only(t, p.Tick(day, nil)); again.ID != r.ID || again.Undo || again.Why != Renewed || len(p.Reactions()) != 1 {
		t.Errorf("after a day: %+v", again)
	}
	o, err := p.Release(r.ID)
	if err != nil || !only(t, o).Undo || len(p.Tick(day+time.Hour, nil).Do) > 0 {
		t.Errorf("released: %+v %v", o, err)
	}
	if r = only(t, p.Tick(2*day, nil)); r.Undo {
		t.Errorf("a day later: %+v", r)
	}
	p.Failed(r.ID)
	if len(p.Tick(2*day+time.Second, nil).Do) > 0 || only(t, p.Tick(2*day+refuseAgain, nil)).Action != guard.Refuse {
		t.Error("what failed is not tried again after a while")
	}
	// A mode that was changed ends it.
	modes[guard.DomainBypass] = guard.Ask
	p, o, err = New(Config{Modes: modes}, p.Save(), 0)
	if err != nil || !only(t, o).Undo || o.Do[0].Why != NotWanted {
		t.Fatalf("%+v %v", o, err)
	}
	// Asked, it waits for a finding, and for a person.
	if len(p.Tick(0, nil).Do) > 0 {
		t.Error("asks without a finding")
	}
	q := only(t, p.Find(past, 0))
	if !q.Ask || q.Action != guard.Refuse {
		t.Fatalf("%+v", q)
	}
	if o, err = p.Answer(q.ID, true); err != nil || only(t, o).For != day {
		t.Errorf("answered: %+v %v", o, err)
	}
	if o := p.Tick(day, nil); !only(t, o).Undo || o.Do[0].Why != Expired {
		t.Errorf("an answer is for a day: %+v", o)
	}
}

func TestQuarantineLeavesTheLedgerItsMajority(t *testing.T) {
	p := learned(t, map[string]guard.Mode{guard.PeerInvalid: guard.Enforce})
	only(t, p.Find(finding(guard.PeerInvalid, guard.Peer, "aa"), 0))
	if o := p.Find(finding(guard.PeerInvalid, guard.Peer, "bb"), 0); len(o.Do) > 0 || p.Spared()[SparedFull] != 1 {
		t.Errorf("a second neighbour of four is shut out: %+v", o.Do)
	}
}

// A restart neither forgets what is in force nor what was stopped, and does
// not enforce what the configuration has taken back.
func TestARestartGoesOn(t *testing.T) {
	modes := map[string]guard.Mode{guard.ARPSpoof: guard.Enforce, guard.TCPPortScan: guard.Enforce, guard.LoadBinary: guard.Enforce}
	p := learned(t, modes)
	only(t, p.Find(finding(guard.ARPSpoof, guard.Host, "192.0.2.7"), 0))
	only(t, p.Find(finding(guard.TCPPortScan, guard.Host, "192.0.2.8"), 0))
	p.Find(finding(guard.LoadBinary, guard.Machine, ""), 0)
	if r := only(t, p.Find(finding(guard.ProcessMemfd, guard.PID, "1@2"), 0)); r.Action != guard.SafeStop {
		t.Fatalf("%+v", r)
	}
	delete(modes, guard.TCPPortScan)
	p, out, err := New(Config{Modes: modes}, p.Save(), 20*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range out.Do {
		got = append(got, fmt.Sprint(r.Subject.Value, " ", r.Undo, " ", r.Why, " ", r.For))
	}
	slices.Sort(got)
	if want := []string{"192.0.2.7 false restored 40m0s", "192.0.2.8 true mode 0s"}; !slices.Equal(got, want) {
		t.Errorf("goes on with %q, want %q", got, want)
	}
	stops := func(at time.Duration) int {
		return len(p.Find(finding(guard.LoadBinary, guard.Machine, ""), at).Do) + len(p.Find(finding(guard.ProcessMemfd, guard.PID, "1@2"), at).Do)
	}
	if stops(39*time.Minute) != 0 {
		t.Error("a restart lets it stop charging twice within an hour")
	}
	if stops(41*time.Minute) != 1 {
		t.Error("it does not stop charging an hour later")
	}
}

// A flood of packets leaves room for what happens on this device.
func TestPacketsDoNotUseUpTheLimits(t *testing.T) {
	p := learned(t, map[string]guard.Mode{guard.ARPSpoof: guard.Enforce, guard.TCPPortScan: guard.Ask, guard.ProcessMemfd: guard.Enforce, guard.LoadMiner: guard.Ask})
	for i := range 10_000 {
		now := time.Duration(i) * time.Second
		p.Find(finding(guard.ARPSpoof, guard.Host, fmt.Sprintf("10.0.%d.%d", i/200, i%200+1)), now)
		p.Find(finding(guard.TCPPortScan, guard.Host, fmt.Sprintf("10.1.%d.%d", i/200, i%200+1)), now)
		p.Tick(now, nil)
	}
	if r := only(t, p.Find(finding(guard.ProcessMemfd, guard.PID, "4@4"), 10_000*time.Second)); r.Action != guard.Kill {
		t.Errorf("%+v", r)
	}
	if r := only(t, p.Find(finding(guard.LoadMiner, guard.PID, "5@5"), 10_000*time.Second)); !r.Ask {
		t.Errorf("%+v", r)
	}
}

// Hostile packets, in any order and number, with every rule enforced: charging
// is never stopped, no process killed, and nobody who is needed is blocked.
// All other limits hold too, over restarts, and everything ends.
func TestWhatPacketsCannotDo(t *testing.T) {
	hold(t, func(s guard.Sensor) bool { return !s.Local() }, func(t *rapid.T, r guard.Reaction) {
		if r.Action == guard.SafeStop || r.Action == guard.Kill {
			t.Fatalf("packets alone lead to %+v", r)
		}
	})
}

// Two local sources stop charging, at most once an hour; reactions stay within
// their limits and are all taken back in the end.
func TestLimitsHold(t *testing.T) {
	hold(t, func(guard.Sensor) bool { return true }, func(*rapid.T, guard.Reaction) {})
}

func hold(t *testing.T, whose func(guard.Sensor) bool, check func(*rapid.T, guard.Reaction)) {
	modes := map[string]guard.Mode{}
	var ids []string
	for _, r := range guard.Rules {
		if r.Action != guard.Nothing {
			modes[r.ID] = guard.Enforce
		}
		if whose(r.Sensor) {
			ids = append(ids, r.ID)
		}
	}
	needed := Never{ // broker, DHCP, DNS, NTP, a meter, the neighbours' network; a neighbour
		Subjects: []guard.Subject{{Kind: guard.Host, Value: "192.0.2.1"}, {Kind: guard.Host, Value: "192.0.2.2"}, {Kind: guard.Peer, Value: "192.0.2.2"}},
		Nets:     []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Quarantined: 2,
	}
	values := []string{"192.0.2.1", "192.0.2.2", "198.51.100.9", "::ffff:198.51.100.9", "127.0.0.1", "224.0.0.1", "", "x", "4711@1", "192.0.2.50", "192.0.2.51", "192.0.2.52", "2001:db8::1"}
	rapid.Check(t, func(t *rapid.T) {
		m := maps.Clone(modes)
		for _, id := range rapid.SliceOfN(rapid.SampledFrom(slices.Sorted(maps.Keys(modes))), 0, 4).Draw(t, "asks") {
			m[id] = guard.Ask
		}
		p, _, err := New(Config{Modes: m}, Saved{Learned: taught(), Modes: m}, 0)
		if err != nil {
			t.Fatal(err)
		}
		p.SetNever(needed)
		now, base, lastStop := time.Duration(0), time.Duration(0), -StopPause
		grave := map[guard.Sensor]time.Duration{}
		var here, there []time.Duration
		inForce := map[uint64]guard.Reaction{}
		done := func(o Output) {
			for _, r := range o.Do {
				check(t, r)
				switch {
				case r.Why == Restored:
					if _, ok := inForce[r.ID]; !ok {
						t.Fatalf("%+v is restored and was not in force", r)
					}
					continue
				case r.Undo && !r.Ask:
					if _, ok := inForce[r.ID]; !ok {
						t.Fatalf("%+v is undone and was not in force", r)
					}
					delete(inForce, r.ID)
					continue
				case r.Undo:
					continue
				}
				if r.Action == guard.SafeStop {
					sources := 0
					for _, at := range grave {
						if now-at <= StopWindow {
							sources++
						}
					}
					if !r.Ask {
						if r.Why == Found && sources < 2 || now-lastStop < StopPause {
							t.Fatalf("charging is stopped at %s by %d local sources, last stop %s", now, sources, lastStop)
						}
						lastStop = now
					}
				}
				if a, err := netip.ParseAddr(r.Subject.Value); r.Action == guard.Block && (err != nil || a.IsLoopback() || a.IsMulticast() || needed.Nets[0].Contains(a.Unmap())) || slices.Contains(needed.Subjects, r.Subject) {
					t.Fatalf("%+v is needed", r)
				}
				if r.Why == Found && (r.Action != guard.Refuse || r.Ask) { // of the other there is but one
					begun := &there
					if r.Action == guard.Kill || r.Action == guard.SafeStop || r.Action == guard.Refuse {
						begun = &here
					}
					*begun = append(*begun, now)
					for span, most := range map[time.Duration]int{time.Minute: MaxPerMinute, time.Hour: MaxPerHour} {
						n := 0
						for _, at := range *begun {
							if now-at < span {
								n++
							}
						}
						if n > most {
							t.Fatalf("%d reactions within %s", n, span)
						}
					}
				}
				if !r.Ask && r.For > 0 {
					inForce[r.ID] = r
				}
			}
			if len(p.active) > MaxReactions || len(p.questions) > MaxQuestions || len(p.active) != len(inForce) || p.quarantined() > needed.Quarantined {
				t.Fatalf("%d reactions are in force, %d should be; %d questions, %d shut out", len(p.active), len(inForce), len(p.questions), p.quarantined())
			}
		}
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 900).Draw(t, "seconds")) * time.Second
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1:
				done(p.Tick(now-base, ids))
			case 2: // a restart: findings of before are forgotten, limits are not
				done(p.Tick(now-base, ids))
				off := time.Duration(rapid.IntRange(0, 900).Draw(t, "off")) * time.Second
				var o Output
				p, o, err = New(Config{Modes: m}, p.Save(), off)
				if err != nil {
					t.Fatal(err)
				}
				now += off
				base = now
				clear(grave)
				p.SetNever(needed)
				done(o)
			case 3:
				if q := p.Questions(); len(q) > 0 {
					if o, err := p.Answer(q[0].ID, rapid.Bool().Draw(t, "yes")); err == nil {
						done(o)
					}
				}
			default:
				f := finding(rapid.SampledFrom(ids).Draw(t, "rule"), rapid.SampledFrom([]guard.Kind{guard.Host, guard.PID, guard.Peer, guard.Link, guard.Name, guard.Machine}).Draw(t, "kind"), rapid.SampledFrom(values).Draw(t, "value"))
				f.Severity = rapid.SampledFrom([]guard.Severity{guard.Info, guard.High, guard.Critical}).Draw(t, "severity") // a sensor may judge it graver
				if r, _ := guard.RuleOf(f.Rule); r.Sensor.Local() && f.Severity >= guard.High {
					grave[r.Sensor] = now
				}
				done(p.Find(f, now-base))
			}
		}
		done(p.ReleaseAll())
		if len(inForce) != 0 {
			t.Fatalf("%v are never taken back", inForce)
		}
	})
}

func TestTwoLocalSourcesStopInEitherOrder(t *testing.T) {
	for _, rules := range [][]string{{guard.LoadBinary, guard.ProcessMemfd}, {guard.ProcessMemfd, guard.LoadBinary}} {
		p := learned(t, map[string]guard.Mode{guard.LoadBinary: guard.Enforce})
		first := p.Find(finding(rules[0], guard.Machine, ""), 0)
		second := p.Find(finding(rules[1], guard.Machine, ""), time.Minute)
		if len(first.Do) != 0 || len(second.Do) != 1 || second.Do[0].Action != guard.SafeStop || second.Do[0].Rule != guard.LoadBinary {
			t.Errorf("%v: %+v, then %+v", rules, first.Do, second.Do)
		}
		p = learned(t, map[string]guard.Mode{guard.LoadBinary: guard.Enforce})
		p.Find(finding(rules[0], guard.Machine, ""), 0)
		if o := p.Find(finding(rules[1], guard.Machine, ""), StopWindow+1); len(o.Do) != 0 {
			t.Errorf("%v: an old finding counts", rules)
		}
	}
}
