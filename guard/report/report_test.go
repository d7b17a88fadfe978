package report

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
)

var (
	from = time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	to   = from.Add(24 * time.Hour)
)

func record(rule string, at time.Duration, level string) Record {
	r, _ := guard.RuleOf(rule)
	rec := Record{Record: guard.Record{Rule: rule, Severity: r.Severity, Sensor: r.Sensor, Count: 3, First: from.Add(at).UnixMilli(), Last: from.Add(at).UnixMilli(), Level: level, Detail: chain.Hash{7}}}
	rec.Block, rec.Hash = chain.Position{Epoch: 2, Number: uint64(at / time.Minute)}, chain.Hash{9}
	return rec
}

func input() Input {
	in := Input{
		Gateway: Gateway{Name: "north<script>", Chain: "street", Version: "1"}, Made: to, From: from, To: to,
		Status: guard.Status{
			Coverage: []guard.Coverage{{Sensor: guard.Packet, Level: "ring"}, {Sensor: guard.Process, Level: guard.None, Reason: "no CAP_BPF"}, {Sensor: guard.Load, Level: "full"}},
			Rules:    []guard.RuleState{{ID: guard.ARPSpoof, Mode: guard.Enforce, InForce: guard.Observe}, {ID: guard.TCPPortScan, Mode: guard.Observe, InForce: guard.Observe}},
		},
	}
	for h := range 24 {
		for _, s := range []guard.Sensor{guard.Packet, guard.Load} {
			if s == guard.Packet && h >= 10 && h < 14 {
				continue // it was silent for four hours
			}
			r := record(guard.GuardHeartbeat, time.Duration(h)*time.Hour, "ring")
			r.Sensor, r.Every = s, 3600
			in.Records = append(in.Records, r)
		}
	}
	in.Records = append(in.Records, record(guard.ARPSpoof, 20*time.Hour, "ring"), record(guard.ARPSpoof, 21*time.Hour, "ring"))
	return in
}

func clauseOf(t *testing.T, r Report, standard, number string) Clause {
	t.Helper()
	for _, c := range r.Clauses {
		if c.Standard == standard && c.Clause == number {
			return c
		}
	}
	t.Fatalf("no clause %s of %s", number, standard)
	return Clause{}
}

func TestStatesFollowFromWhatWasSeen(t *testing.T) {
	r := Make(input())
	for _, want := range []struct {
		standard, number string
		state            State
	}{
		{iec, "CR 7.1", Found},     // ARP spoofing is on record
		{etsi, "5.6", Watched},     // the packet sensor sees, nothing was found
		{iec, "EDR 3.2", Partly},   // the process sensor is blind, load sees
		{iec, "CR 2.12", ByDesign}, //
	} {
		if c := clauseOf(t, r, want.standard, want.number); c.State != want.state {
			t.Errorf("%s %s is %+v, want %s", want.standard, want.number, c, want.state)
		}
	}
	if c := clauseOf(t, r, iec, "EDR 3.2"); !strings.Contains(c.Reason, "CAP_BPF") {
		t.Errorf("it does not say why: %q", c.Reason)
	}
	in := input()
	in.Status.Coverage, in.Records = nil, nil
	if c := clauseOf(t, Make(in), iec, "CR 7.1"); c.State != Unseen || c.Reason != "the guard is off" {
		t.Errorf("a guard that is off watches: %+v", c)
	}
	if len(r.Findings) != 1 || r.Findings[0].Records != 2 || r.Findings[0].Events != 6 || r.Findings[0].Severity != guard.High {
		t.Errorf("found %+v", r.Findings)
	}
	if len(r.Rules) != 1 || r.Rules[0].Action != guard.Block || r.Rules[0].InForce != guard.Observe {
		t.Errorf("rules %+v", r.Rules)
	}
}

// Silence counts as far as the heartbeats go.
func TestPausesOfHeartbeatsAreTold(t *testing.T) {
	r := Make(input())
	want := map[guard.Sensor]string{guard.Packet: "20 18000 true", guard.Process: "0 86400 true", guard.Load: "24 3600 false"}
	for _, c := range r.Coverage {
		if got := fmt.Sprint(c.Heartbeats, " ", c.LongestS, " ", c.Gap); got != want[c.Sensor] {
			t.Errorf("%s: %s, want %s", c.Sensor, got, want[c.Sensor])
		}
	}
}

func TestTheNewestRecordsAreListed(t *testing.T) {
	in := input()
	for i := range MaxEvidence {
		in.Records = append(in.Records, record(guard.TCPPortScan, 22*time.Hour+time.Duration(i)*time.Second, "ring"))
	}
	r := Make(in)
	if len(r.Evidence) != MaxEvidence || r.Left != 2 || r.Evidence[0].Rule != guard.TCPPortScan {
		t.Errorf("%d records, %d left out, first %s", len(r.Evidence), r.Left, r.Evidence[0].Rule)
	}
}

// The page is whole, escapes what others have written, and claims no more than
// can be shown.
func TestThePage(t *testing.T) {
	r := Make(input())
	page := string(r.HTML())
	if strings.Contains(page, "<script") || !strings.Contains(page, "north&lt;script&gt;") {
		t.Error("a name becomes markup")
	}
	for _, want := range []string{"verifiable by a third party", iec, etsi, en1, en2, en3, nist, "Cyber Resilience Act", "2/1200", chain.Hash{9}.String(), "no CAP_BPF"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	doc, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{page, string(doc)} {
		if regexp.MustCompile(`(?i)guarantee|certified`).MatchString(text) {
			t.Error("it promises what nobody can")
		}
	}
	stack := 0
	for _, tag := range regexp.MustCompile(`</?(table|tbody|thead|tr|td|th|ol|li|h1|h2|p|small|header|body|html)\b`).FindAllString(page, -1) {
		if strings.HasPrefix(tag, "</") {
			stack--
		} else {
			stack++
		}
		if stack < 0 {
			t.Fatal("an element is closed that was not opened")
		}
	}
	if stack != 0 {
		t.Errorf("%d elements stay open", stack)
	}
}
