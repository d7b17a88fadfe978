package guard

import (
	"fmt"
	"time"

	"github.com/joulegate/joulegate/chain"
)

// Severity says how grave a finding is, in the words of Sigma's levels.
type Severity uint8

// Severities, ascending.
const (
	Info Severity = 1 + iota
	Low
	Medium
	High
	Critical
)

var severities = [...]string{Info: "info", Low: "low", Medium: "medium", High: "high", Critical: "critical"}

func (s Severity) String() string { return name(severities[:], int(s), "severity") }

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes Sigma's
// "informational" for "info".
func (s *Severity) UnmarshalText(b []byte) error {
	if string(b) == "informational" {
		*s = Info
		return nil
	}
	i, err := number(severities[:], string(b), "severity")
	*s = Severity(i)
	return err
}

// Sensor is a part of the guard that looks.
type Sensor uint8

// Sensors. Append only.
const (
	Domain  Sensor = 1 + iota // DNS questions and answers
	Packet                    // frames on an interface
	Process                   // programs that are started
	Load                      // CPU, memory, disk, clock, own binary
)

var sensors = [...]string{Domain: "domain", Packet: "packet", Process: "process", Load: "load"}

func (s Sensor) String() string { return name(sensors[:], int(s), "sensor") }

// Local reports whether what the sensor sees happens on this device, so that
// nobody can make it up by sending packets.
func (s Sensor) Local() bool { return s == Process || s == Load }

// MarshalText implements encoding.TextMarshaler.
func (s Sensor) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Sensor) UnmarshalText(b []byte) error {
	i, err := number(sensors[:], string(b), "sensor")
	*s = Sensor(i)
	return err
}

// Kind says what a subject is.
type Kind string

// Kinds of subjects.
const (
	Host    Kind = "host"    // IP address
	Link    Kind = "link"    // hardware address
	Name    Kind = "domain"  // DNS name
	Program Kind = "program" // path of an executable
	PID     Kind = "process" // number and start time: 4711@882301
	Peer    Kind = "peer"    // neighbour's device key
	Device  Kind = "device"  // device id of the configuration
	Machine Kind = "machine" // this gateway
)

// Subject is what a finding is about.
type Subject struct {
	Kind  Kind   `json:"kind" cbor:"1,keyasint"`
	Value string `json:"value" cbor:"2,keyasint"` // <= MaxSubject bytes
}

func (s Subject) String() string { return string(s.Kind) + " " + s.Value }

// Limits of a finding. What exceeds one is cut when the finding is made, so
// that a hostile name cannot fill a journal.
const (
	MaxSubject  = 255 // bytes
	MaxEvidence = 16  // entries
	MaxValue    = 512 // bytes of one entry's value
)

// Finding is one thing that a sensor found, or several equal ones coalesced.
type Finding struct {
	Rule     string            `json:"rule" cbor:"1,keyasint"` // dotted, for example arp.spoof
	Severity Severity          `json:"severity" cbor:"2,keyasint"`
	Subject  Subject           `json:"subject" cbor:"3,keyasint"`
	Count    uint64            `json:"count" cbor:"4,keyasint"`
	First    time.Time         `json:"first" cbor:"5,keyasint"`    // of what was seen: of the capture, or the wall clock
	Last     time.Time         `json:"last" cbor:"6,keyasint"`     //
	Evidence map[string]string `json:"evidence" cbor:"7,keyasint"` // redacted; never nil in JSON
}

// Cut shortens what exceeds the limits. Sensors call it on what they make.
func (f *Finding) Cut() {
	f.Subject.Value = cut(f.Subject.Value, MaxSubject)
	if f.Evidence == nil {
		f.Evidence = map[string]string{}
	}
	for k, v := range f.Evidence {
		f.Evidence[k] = cut(v, MaxValue)
	}
	for k := range f.Evidence {
		if len(f.Evidence) <= MaxEvidence {
			break
		}
		delete(f.Evidence, k)
	}
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && s[limit]&0xc0 == 0x80 { // not within a character
		limit--
	}
	return s[:limit]
}

// Coverage says how much a sensor sees at this moment.
type Coverage struct {
	Sensor Sensor    `json:"sensor"`
	Level  string    `json:"level"`            // the sensor's own word, "none" when it sees nothing
	Reason string    `json:"reason,omitempty"` // why it is not the best level, and what to do
	Lost   uint64    `json:"lost"`             // events known to have been missed since start
	Seen   uint64    `json:"seen"`             // events looked at since start
	Since  time.Time `json:"since"`            // of the level
}

// None is the level of a sensor that sees nothing.
const None = "none"

// Mode says what a rule may lead to.
type Mode uint8

// Modes. Everything starts in Observe.
const (
	Observe Mode = 1 + iota // findings are recorded
	Ask                     // and the operator is asked before anything is done
	Enforce                 // reactions happen by themselves
)

var modes = [...]string{Observe: "observe", Ask: "ask", Enforce: "enforce"}

func (m Mode) String() string { return name(modes[:], int(m), "mode") }

// MarshalText implements encoding.TextMarshaler.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Mode) UnmarshalText(b []byte) error {
	i, err := number(modes[:], string(b), "mode")
	*m = Mode(i)
	return err
}

// Action is what a reaction does.
type Action uint8

// Actions. The zero value does nothing.
const (
	Nothing    Action = iota
	Block             // drop traffic with a host, or answers for a domain
	Kill              // end a process whose executable is not listed
	Quarantine        // stop talking to a neighbour
	SafeStop          // end charging by the ordinary ramp-down
	Refuse            // refuse what goes past the name server
)

var actions = [...]string{Nothing: "nothing", Block: "block", Kill: "kill", Quarantine: "quarantine", SafeStop: "safe_stop", Refuse: "refuse"}

func (a Action) String() string { return name(actions[:], int(a), "action") }

// MarshalText implements encoding.TextMarshaler.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Action) UnmarshalText(b []byte) error {
	i, err := number(actions[:], string(b), "action")
	*a = Action(i)
	return err
}

// Reaction is one thing to do, or to undo, about a subject.
type Reaction struct {
	ID      uint64        `json:"id"`
	Action  Action        `json:"action"`
	Subject Subject       `json:"subject"`
	Rule    string        `json:"rule"`
	For     time.Duration `json:"for_ns,omitempty"` // then it is undone; 0: it is done once. Of a question: how long it can be answered
	Undo    bool          `json:"undo,omitempty"`   // it is over
	Ask     bool          `json:"ask,omitempty"`    // only ask the operator
	Why     string        `json:"why,omitempty"`    // found, answered, expired, released, ...
	Image   string        `json:"image,omitempty"`  // of Kill: the program that the finding named
	SHA256  string        `json:"sha256,omitempty"` // of its file, if it was known
}

// Standing is a reaction that is in force, or a question about one.
type Standing struct {
	Reaction
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// RuleState is how far a rule is that may do something.
type RuleState struct {
	ID      string `json:"id"`
	Mode    Mode   `json:"mode"`      // of the configuration
	InForce Mode   `json:"in_force"`  // what it amounts to now
	Learned int64  `json:"learned_s"` // seconds that it has observed
	Left    int64  `json:"left_s"`    // until it may be enforced
}

// Status is what the guard of a running gateway says of itself.
type Status struct {
	Mode      string            `json:"mode"`     // off or observe
	Child     Child             `json:"process"`  // that holds the sensors
	Coverage  []Coverage        `json:"coverage"` // of every sensor
	RuleSet   chain.Hash        `json:"rule_set"` // SHA-256 of the rules in force
	Findings  []Finding         `json:"findings"` // the newest first, not all
	Told      map[string]uint64 `json:"told"`     // records on the ledger since start, by rule
	HeldBack  uint64            `json:"held_back"`
	Silent    []string          `json:"silent"` // neighbours whose guard is not heard
	Heartbeat time.Time         `json:"heartbeat"`
	Names     *Names            `json:"names,omitempty"`    // the name server; none: it is off, or not heard yet
	Rules     []RuleState       `json:"rules"`              // that may do something
	Reactions []Standing        `json:"reactions"`          // in force
	Questions []Standing        `json:"questions"`          // that wait for an answer
	Suspended time.Time         `json:"suspended,omitzero"` // until when nothing is done, because a person released everything
	Spared    map[string]uint64 `json:"spared,omitempty"`   // reactions that were not begun, by reason, since start
	Reacted   map[string]uint64 `json:"reacted,omitempty"`  // reactions begun since start, by action
	Unable    map[string]string `json:"unable,omitempty"`   // what cannot be done here, and why
}

// Child is the process that holds the sensors.
type Child struct {
	PID      int       `json:"pid"` // 0: it does not run
	Since    time.Time `json:"since"`
	MemoryMB uint64    `json:"memory_mb"`   // of its own, without the program's text
	CPU      float64   `json:"cpu_s"`       // seconds of a processor that it and those before it have used since the gateway's start
	Percent  float64   `json:"cpu_percent"` // of one core, in the last five minutes
	Restarts uint64    `json:"restarts"`
	Ended    string    `json:"ended,omitempty"` // how the last one ended
}

// Record is what the ledger carries of a finding: nothing in it names a
// household's devices, programs or destinations.
type Record struct {
	Rule     string     `cbor:"1,keyasint" json:"rule"`
	Severity Severity   `cbor:"2,keyasint" json:"severity"`
	Sensor   Sensor     `cbor:"3,keyasint" json:"sensor"`
	Count    uint64     `cbor:"4,keyasint" json:"count"`
	First    int64      `cbor:"5,keyasint" json:"first_ms"` // Unix ms
	Last     int64      `cbor:"6,keyasint" json:"last_ms"`
	RuleSet  chain.Hash `cbor:"7,keyasint" json:"rule_set"` // SHA-256 of the rules in force
	Level    string     `cbor:"8,keyasint" json:"coverage"`
	Lost     uint64     `cbor:"9,keyasint" json:"lost"`
	Detail   chain.Hash `cbor:"10,keyasint" json:"detail"` // see Sealed
	// Every is when the next heartbeat is due, in seconds; only a heartbeat
	// has it. Neighbours judge a gateway by what it has promised itself.
	Every uint32 `cbor:"11,keyasint,omitempty" json:"every_s,omitempty"`
}

// Sealed is a finding as the journal keeps it. Salt is random: without it
// nobody can find a name by trying.
type Sealed struct {
	Salt    [16]byte `cbor:"1,keyasint"`
	Finding Finding  `cbor:"2,keyasint"`
}

// Hash is the Detail of the finding's Record: SHA-256 of the canonical
// encoding, times in whole milliseconds UTC.
func (s Sealed) Hash() chain.Hash {
	s.Finding.First = s.Finding.First.UTC().Truncate(time.Millisecond)
	s.Finding.Last = s.Finding.Last.UTC().Truncate(time.Millisecond)
	return chain.Sum(chain.Marshal(s))
}

func name(names []string, i int, what string) string {
	if i >= len(names) || names[i] == "" {
		return fmt.Sprintf("%s(%d)", what, i)
	}
	return names[i]
}

func number(names []string, s, what string) (int, error) {
	for i, n := range names {
		if n != "" && n == s {
			return i, nil
		}
	}
	return 0, fmt.Errorf("unknown %s %q", what, s)
}
