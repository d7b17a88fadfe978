// Package pipe is what the guard's own process and its gateway say to each
// other. The sensors parse whatever the network sends, so they run in a process
// of their own, and the gateway believes nothing that comes out of it before it
// has checked it:
//
//	sensors' process ── frame: length, JSON ──► Read ──► Check ──► policy
//	                 ◄── Setup, Order ─────────
//
// Whoever takes the sensors over can make findings up. He can neither fill the
// memory or the disk of the gateway, nor name a rule, a sensor or a level that
// does not exist, nor write control characters into a log.
package pipe

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/guard"
)

// Limits of what the sensors' process says. A message beyond one is refused,
// and with it the process: it is started anew.
const (
	MaxFrame    = 64 << 10 // bytes
	MaxKey      = 48       // bytes of an evidence's key
	MaxCoverage = 8        // sensors
	MaxReason   = 1024     // bytes
	MaxLearned  = 256      // addresses of one message
	MaxExempt   = 1024     // addresses of one order
	MaxRule     = 128      // bytes of a rule's name
	MaxListen   = 8        // addresses of the name server
	MaxLists    = 128      // of names
	MaxFile     = 200      // bytes of a list's path
)

// Message is one thing that the sensors' process says: exactly one field is
// set.
type Message struct {
	Finding *guard.Finding `json:"finding,omitempty"`
	Beat    *Beat          `json:"beat,omitempty"`
	Learned []netip.Addr   `json:"learned,omitempty"` // destinations that are ordinary here, new ones
}

// Beat says that the process lives and what it sees. It comes once a second.
type Beat struct {
	Coverage []guard.Coverage `json:"coverage"`
	Dropped  uint64           `json:"dropped"` // findings that did not fit into the pipe
	Names    *guard.Names     `json:"names,omitempty"`
	Rules    chain.Hash       `json:"rules"` // of the rules about programs in force
}

// Order is what the gateway tells while the process runs.
type Order struct {
	Charging bool   `json:"charging"` // the charger is at work: writes to devices are graver
	Reload   uint64 `json:"reload"`   // how often reading the lists of names anew was asked for
	Bypass   bool   `json:"bypass"`   // what goes past the name server is refused
	// Exempt are destinations that need no name: neighbours, the broker. nil:
	// those that were told last.
	Exempt []netip.Prefix `json:"exempt,omitempty"`
}

// Write writes one frame.
func Write(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > MaxFrame {
		return fmt.Errorf("frame of %d bytes, at most %d", len(b), MaxFrame)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...))
	return err
}

// Read reads one frame into v. A length beyond MaxFrame is refused before
// anything is allocated for it, and unknown fields are an error.
func Read(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxFrame {
		return fmt.Errorf("frame of %d bytes, 1..%d", n, MaxFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("frame of %d bytes ends early: %w", n, err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("frame: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("frame: more than one value")
	}
	return nil
}

// ReadMessage reads one message and checks it.
func ReadMessage(r io.Reader) (Message, error) {
	var m Message
	if err := Read(r, &m); err != nil {
		return Message{}, err
	}
	if err := m.Check(); err != nil {
		return Message{}, err
	}
	return m, nil
}

// Check says what is wrong with a message.
func (m *Message) Check() error {
	switch {
	case m.Finding != nil && m.Beat == nil && m.Learned == nil:
		return checkFinding(m.Finding)
	case m.Beat != nil && m.Finding == nil && m.Learned == nil:
		return m.Beat.check()
	case len(m.Learned) > 0 && m.Finding == nil && m.Beat == nil:
		if len(m.Learned) > MaxLearned {
			return fmt.Errorf("%d addresses learned at once, at most %d", len(m.Learned), MaxLearned)
		}
		for _, a := range m.Learned {
			if !a.IsValid() || a.Zone() != "" {
				return fmt.Errorf("learned %s, which is no address", a)
			}
		}
		return nil
	}
	return errors.New("want one of finding, beat and learned")
}

var kinds = map[guard.Kind]bool{
	guard.Host: true, guard.Link: true, guard.Name: true, guard.Program: true, guard.PID: true, guard.Machine: true,
}

func checkFinding(f *guard.Finding) error {
	if len(f.Rule) > MaxRule || !word(f.Rule) {
		return fmt.Errorf("finding of rule %.40q", f.Rule)
	}
	rule, ok := guard.RuleOf(f.Rule)
	switch {
	case !ok || rule.ID == guard.GuardCoverage || rule.ID == guard.GuardHeartbeat || rule.ID == guard.GuardReaction || rule.ID == guard.GuardSilent:
		return fmt.Errorf("finding of rule %.40q: sensors do not find that", f.Rule)
	case f.Severity < guard.Info || f.Severity > guard.Critical:
		return fmt.Errorf("finding of %s", f.Severity)
	case f.Count == 0 || f.Count > 1<<48:
		return fmt.Errorf("finding of count %d", f.Count)
	case !kinds[f.Subject.Kind]:
		return fmt.Errorf("subject of kind %.20q", f.Subject.Kind)
	case len(f.Subject.Value) > guard.MaxSubject || !printable(f.Subject.Value):
		return fmt.Errorf("subject of %d bytes, or not printable", len(f.Subject.Value))
	case len(f.Evidence) > guard.MaxEvidence:
		return fmt.Errorf("%d pieces of evidence, at most %d", len(f.Evidence), guard.MaxEvidence)
	case !plausible(f.First) || !plausible(f.Last):
		return errors.New("a time that nobody lives in")
	}
	for k, v := range f.Evidence {
		if len(k) > MaxKey || !word(k) || len(v) > guard.MaxValue || !printable(v) {
			return fmt.Errorf("evidence %.48q of %d bytes, or not printable", k, len(v))
		}
	}
	return nil
}

func (b *Beat) check() error {
	if len(b.Coverage) > MaxCoverage {
		return fmt.Errorf("%d sensors, at most %d", len(b.Coverage), MaxCoverage)
	}
	var seen [MaxCoverage + 1]bool
	for _, c := range b.Coverage {
		switch {
		case c.Sensor < guard.Domain || c.Sensor > guard.Load || seen[c.Sensor]:
			return fmt.Errorf("coverage of %s, unknown or told twice", c.Sensor)
		case len(c.Level) > 32 || !word(c.Level):
			return fmt.Errorf("coverage level %.40q", c.Level)
		case len(c.Reason) > MaxReason || !printable(c.Reason):
			return fmt.Errorf("reason of %d bytes, or not printable", len(c.Reason))
		case !plausible(c.Since):
			return errors.New("a time that nobody lives in")
		}
		seen[c.Sensor] = true
	}
	if b.Names != nil {
		return checkNames(b.Names)
	}
	return nil
}

func checkNames(n *guard.Names) error {
	if len(n.Listen) > MaxListen || len(n.Lists) > MaxLists || n.Rules < 0 || n.Entries < 0 || n.Reload.Read < 0 {
		return fmt.Errorf("a name server with %d addresses and %d lists", len(n.Listen), len(n.Lists))
	}
	words := append([]string{n.Reload.File, n.Reload.Error, n.Bypass.State}, n.Listen...)
	for _, l := range n.Lists {
		words = append(words, l.File)
	}
	for _, w := range words {
		if len(w) > MaxReason || !printable(w) {
			return fmt.Errorf("a word of %d bytes about the name server, or not printable", len(w))
		}
	}
	if !n.Reload.At.IsZero() && !plausible(n.Reload.At) {
		return errors.New("a time that nobody lives in")
	}
	return nil
}

// FitNames is Fit for what is said of the name server: a list may name
// itself, and its broken line, with anything.
func FitNames(n *guard.Names) {
	fit := func(s *string, most int) {
		if *s = clean(*s); len(*s) > most {
			*s = clean((*s)[:most-3]) + "..."
		}
	}
	fit(&n.Reload.File, MaxFile)
	fit(&n.Reload.Error, MaxReason)
	fit(&n.Bypass.State, MaxReason)
	n.Lists = n.Lists[:min(len(n.Lists), MaxLists)]
	for i := range n.Lists {
		fit(&n.Lists[i].File, MaxFile)
	}
}

// Fit makes a finding fit to be sent: what would be refused is cut or
// replaced.
func Fit(f *guard.Finding) {
	f.Cut()
	f.Subject.Value = clean(f.Subject.Value)
	for k, v := range f.Evidence {
		f.Evidence[k] = clean(v)
	}
}

// clean replaces what no terminal should be sent.
func clean(s string) string {
	if printable(s) {
		return s
	}
	b := make([]byte, 0, len(s))
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			r = '?'
		}
		b = utf8.AppendRune(b, r)
	}
	return string(b)
}

func plausible(t time.Time) bool { return t.Year() >= 1970 && t.Year() < 2200 }

// word is what rules, levels and keys are made of.
func word(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return s != ""
}

func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
