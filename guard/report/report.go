// Package report says what the guard has seen and put on record, for somebody
// who asks by a standard: which of its requirements the guard watches, by
// which sensor, and which records show it.
//
//	own chain: Records ─┐
//	Status: coverage ───┼─► Make ─► Report ─► JSON, or HTML to print
//	clauses ────────────┘
//
// It is a table of contents to evidence, not an assessment: every record that
// it names stands in a signed block of this gateway, and is verifiable by a
// third party with 'joulegate audit verify'. Silence counts only as far as the
// coverage goes, so that is told for every sensor, with the longest time
// between two of its heartbeats.
//
// It names nobody of a household: it is made of what is on the ledger anyway.
package report

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
)

// MaxEvidence is how many records a report lists, the newest; all are counted.
const MaxEvidence = 500

// Gateway says whose report it is.
type Gateway struct {
	Name    string     `json:"name"`
	Device  chain.Key  `json:"device"`
	Version string     `json:"version"`
	Program string     `json:"program_sha256"`
	Config  string     `json:"config"` // revision
	Chain   string     `json:"chain"`
	Genesis chain.Hash `json:"genesis"`
	Height  int64      `json:"height"` // of the ledger when the report was made
	State   chain.Hash `json:"state_hash"`
}

// Record is a guard's record and where it stands.
type Record struct {
	guard.Record
	Block chain.Position `json:"block"`
	Hash  chain.Hash     `json:"block_hash"`
}

// Input is what a report is made of.
type Input struct {
	Gateway  Gateway
	Made     time.Time
	From, To time.Time
	Status   guard.Status
	Records  []Record // of the period, oldest first
}

// Report is the document.
type Report struct {
	Format    string     `json:"format"`
	Made      time.Time  `json:"made"`
	From      time.Time  `json:"from"`
	To        time.Time  `json:"to"`
	Gateway   Gateway    `json:"gateway"`
	Statement []string   `json:"statement"`
	RuleSet   chain.Hash `json:"rule_set"`
	Coverage  []Coverage `json:"coverage"`
	Findings  []Count    `json:"findings"`
	Rules     []Mode     `json:"rules"` // that may do more than observe
	Clauses   []Clause   `json:"clauses"`
	Evidence  []Record   `json:"evidence"`
	Left      int        `json:"evidence_not_listed"`
	HeldBack  uint64     `json:"records_held_back"` // since the gateway started
	Check     []string   `json:"how_to_check"`
}

// Format is the version of the document.
const Format = "joulegate/guard-report/1"

// Coverage is what a sensor saw over the period.
type Coverage struct {
	Sensor     guard.Sensor `json:"sensor"`
	Level      string       `json:"level"` // now
	Reason     string       `json:"reason,omitempty"`
	Lost       uint64       `json:"lost"`       // events, since its process started
	Heartbeats int          `json:"heartbeats"` // in the period
	Blind      int          `json:"blind"`      // of them with level none
	LongestS   int64        `json:"longest_s"`  // seconds between two heartbeats, or from and to the ends of the period
	PromisedS  uint32       `json:"promised_s"` // by the newest heartbeat
	Gap        bool         `json:"gap"`        // the longest is more than twice of what was promised
}

// Count is how often a rule found something.
type Count struct {
	Rule     string         `json:"rule"`
	Title    string         `json:"title"`
	Severity guard.Severity `json:"severity"` // the gravest
	Records  int            `json:"records"`
	Events   uint64         `json:"events"`
}

// Mode is a rule that may do something.
type Mode struct {
	Rule    string       `json:"rule"`
	Action  guard.Action `json:"action"`
	Mode    guard.Mode   `json:"mode"`
	InForce guard.Mode   `json:"in_force"`
}

// State says how far a requirement is met by what the guard does.
type State string

// States of a requirement.
const (
	ByDesign State = "by_design" // a property of how records are kept
	Found    State = "found"     // watched, and there are records
	Watched  State = "watched"   // watched, and nothing was found
	Partly   State = "partly"    // some of the sensors see nothing
	Unseen   State = "unseen"    // the sensors see nothing: nothing can be said
)

// Clause is a requirement of a standard and what answers it.
type Clause struct {
	Standard string   `json:"standard"`
	Clause   string   `json:"clause"`
	About    string   `json:"about"`
	How      string   `json:"how"`
	Rules    []string `json:"rules,omitempty"`
	State    State    `json:"state"`
	Records  int      `json:"records"`
	Reason   string   `json:"reason,omitempty"` // what is not seen
}

// Make makes a report.
func Make(in Input) Report {
	r := Report{
		Format: Format, Made: in.Made.UTC(), From: in.From.UTC(), To: in.To.UTC(), Gateway: in.Gateway,
		RuleSet: in.Status.RuleSet, HeldBack: in.Status.HeldBack, Findings: []Count{}, Rules: []Mode{}, Coverage: []Coverage{}, Evidence: []Record{},
		Statement: []string{
			"What is on record here is verifiable by a third party: every record stands in a block that this gateway signed and linked to the one before, and its neighbours keep copies.",
			"It is no promise that nothing else happened. What a sensor does not see is not on record; how much each one saw is told below.",
			"The mapping to standards is the maker's own and neither a certificate nor an assessment of conformity.",
		},
		Check: []string{
			"joulegate audit bundle --out gateway.bundle",
			"joulegate audit verify gateway.bundle --trust genesis.json",
			"Each record below names the block of this gateway's own chain that holds it, and that block's hash. The genesis file's hash must be " + in.Gateway.Genesis.String() + ".",
		},
	}
	counts := map[string]*Count{}
	records := map[string]int{}
	for _, rec := range in.Records {
		if rec.Rule == guard.GuardHeartbeat {
			continue
		}
		records[rec.Rule]++
		c := counts[rec.Rule]
		if c == nil {
			rule, _ := guard.RuleOf(rec.Rule)
			c = &Count{Rule: rec.Rule, Title: rule.Title}
			counts[rec.Rule] = c
		}
		c.Records++
		c.Events += rec.Count
		c.Severity = max(c.Severity, rec.Severity)
		r.Evidence = append(r.Evidence, rec)
	}
	for _, c := range counts {
		r.Findings = append(r.Findings, *c)
	}
	slices.SortFunc(r.Findings, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.Rule, b.Rule))
	})
	if n := len(r.Evidence) - MaxEvidence; n > 0 {
		r.Evidence, r.Left = r.Evidence[n:], n
	}
	for _, c := range in.Status.Coverage {
		r.Coverage = append(r.Coverage, in.coverage(c))
	}
	for _, s := range in.Status.Rules {
		if s.Mode != guard.Observe {
			rule, _ := guard.RuleOf(s.ID)
			r.Rules = append(r.Rules, Mode{s.ID, rule.Action, s.Mode, s.InForce})
		}
	}
	for _, c := range clauses {
		r.Clauses = append(r.Clauses, c.judge(in.Status, records))
	}
	return r
}

// coverage counts a sensor's heartbeats, and how far apart they were.
func (in *Input) coverage(c guard.Coverage) Coverage {
	out := Coverage{Sensor: c.Sensor, Level: c.Level, Reason: c.Reason, Lost: c.Lost}
	last := in.From.UnixMilli()
	var longest int64
	for _, r := range in.Records {
		if r.Rule != guard.GuardHeartbeat || r.Sensor != c.Sensor {
			continue
		}
		out.Heartbeats++
		if r.Level == guard.None {
			out.Blind++
		}
		longest = max(longest, r.Last-last)
		last, out.PromisedS = r.Last, r.Every
	}
	out.LongestS = max(longest, in.To.UnixMilli()-last) / 1000
	out.Gap = out.Heartbeats == 0 || out.LongestS > 2*int64(out.PromisedS)+60
	return out
}

// judge says how far a requirement is answered, by what the sensors see now
// and by what is on record.
func (c clause) judge(s guard.Status, records map[string]int) Clause {
	out := Clause{Standard: c.standard, Clause: c.number, About: c.about, How: c.how, Rules: c.rules, State: ByDesign}
	if len(c.rules) == 0 {
		return out
	}
	wants := map[guard.Sensor]bool{}
	for _, id := range c.rules {
		rule, ok := guard.RuleOf(id)
		if !ok {
			panic(fmt.Sprintf("report: clause %s of %s names rule %q, which does not exist", c.number, c.standard, id))
		}
		wants[rule.Sensor] = true
		out.Records += records[id]
	}
	blind := 0
	for _, cov := range s.Coverage {
		if wants[cov.Sensor] && cov.Level == guard.None {
			blind++
			if out.Reason != "" {
				out.Reason += "; "
			}
			out.Reason += cov.Sensor.String() + ": " + cmp.Or(cov.Reason, "sees nothing")
		}
	}
	if len(s.Coverage) == 0 {
		blind, out.Reason = len(wants), "the guard is off"
	}
	switch {
	case out.Records > 0:
		out.State = Found
	case blind == len(wants):
		out.State = Unseen
	case blind > 0:
		out.State = Partly
	default:
		out.State = Watched
	}
	return out
}
