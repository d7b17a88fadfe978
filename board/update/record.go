package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
)

// Packaged is the place of the program that is installed outside the slots.
const Packaged = "packaged"

// MaxAttempts is how many starts a trial has. More than one, because a power
// cut ends a start too.
const MaxAttempts = 3

const maxFailed = 16 // programs remembered as not well; the oldest is forgotten

// Program is what lies in a place.
type Program struct {
	Version   string     `json:"version"`
	SHA256    chain.Hash `json:"sha256"` // of Size bytes; zero: not known, it is not hashed
	Size      int64      `json:"size"`
	RulesFrom uint32     `json:"rules_from"` // of the ledger, that it can execute
	Rules     uint32     `json:"rules"`
}

// Trial is a program that has to show that it is well.
type Trial struct {
	Place    string        `json:"place"`
	Attempts int           `json:"attempts"` // starts so far
	Patience time.Duration `json:"patience_ns"`
	Meters   []string      `json:"meters,omitempty"` // that answered before, and have to again
	Back     bool          `json:"back,omitempty"`   // a person wanted the former one back
}

// Record is what a gateway knows of its programs. It is a value: every method
// returns the next one, which has to be on the disk before anything is done
// about it.
//
//	Installed        Try              Start            Confirm
//	─────────► kept ─────► on trial ───────► attempt n ───────► current
//	                           │  MaxAttempts starts, not well │
//	                           └───────────────────────────────┴──► as before
type Record struct {
	Version int                  `json:"version"`
	Places  map[string]Program   `json:"places"`
	Current string               `json:"current"`          // started, unless there is a trial
	Former  string               `json:"former,omitempty"` // kept to go back to
	Trial   *Trial               `json:"trial,omitempty"`
	Outcome *board.UpdateOutcome `json:"outcome,omitempty"`
	Failed  []chain.Hash         `json:"failed,omitempty"` // not taken again without a person
}

// recordVersion is the format of boot.json.
const recordVersion = 1

func (r Record) with(place string, p Program) Record {
	r.Places = maps.Clone(r.Places)
	if r.Places == nil {
		r.Places = map[string]Program{}
	}
	r.Places[place] = p
	return r
}

// Spare returns which of the slots is written next: never the current one nor
// the one on trial, and rather one that nobody would go back to.
func (r Record) Spare(slots []string) string {
	free := ""
	for _, s := range slots {
		switch {
		case s == r.Current || r.Trial != nil && r.Trial.Place == s:
		case s != r.Former:
			return s
		default:
			free = s
		}
	}
	if free == "" {
		panic(fmt.Sprintf("update: no slot of %v is free: current %s, trial %+v", slots, r.Current, r.Trial))
	}
	return free
}

// Clear forgets what lies in a place that is about to be written.
func (r Record) Clear(place string) Record {
	r.Places = maps.Clone(r.Places)
	delete(r.Places, place)
	if r.Former == place {
		r.Former = ""
	}
	return r
}

// Try puts a place on trial.
func (r Record) Try(t Trial) (Record, error) {
	switch _, there := r.Places[t.Place]; {
	case r.Trial != nil:
		return r, errors.New("another trial is under way")
	case !there || t.Place == r.Current:
		return r, fmt.Errorf("nothing else to try lies in %s", t.Place)
	}
	t.Attempts = 0
	r.Trial = &t
	return r, nil
}

// Start is the start of a program; it returns the place to run. packaged is
// what is installed outside the slots.
func (r Record) Start(packaged Program, now time.Time) (Record, string) {
	was, known := r.Places[Packaged]
	if packaged.Version != was.Version || packaged.Rules != was.Rules || !known {
		r = r.with(Packaged, packaged)
		if known {
			r = r.superseded(packaged)
		}
	}
	if t := r.Trial; t != nil {
		if t.Attempts < MaxAttempts {
			next := *t
			next.Attempts++
			r.Trial = &next
			return r, next.Place
		}
		r = r.Fail(fmt.Sprintf("it was not well in %d starts", t.Attempts), now)
	}
	return r, r.Current
}

// superseded makes a package that somebody has installed since run: if it is
// newer than the slot, or if their versions say nothing about their order.
func (r Record) superseded(packaged Program) Record {
	older := func(place string) bool {
		v := r.Places[place].Version
		_, a := parse(v)
		_, b := parse(packaged.Version)
		return place != Packaged && (!a || !b || Compare(packaged.Version, v) > 0)
	}
	if t := r.Trial; t != nil && older(t.Place) {
		r.Trial = nil
	}
	if older(r.Current) {
		r.Former, r.Current = r.Current, Packaged
	}
	return r
}

// Broken drops a place whose bytes are not what the record says.
func (r Record) Broken(place string, why string, now time.Time) Record {
	if t := r.Trial; t != nil && t.Place == place {
		r = r.Fail(why, now)
	}
	if r.Current == place {
		if r.Current = r.Former; r.Current == "" {
			r.Current = Packaged
		}
		r.Former = ""
	}
	return r.Clear(place)
}

// Confirm keeps what is on trial.
func (r Record) Confirm(now time.Time) (Record, error) {
	t := r.Trial
	if t == nil {
		return r, errors.New("nothing is on trial")
	}
	if t.Back { // whoever goes back does not want the other one again
		r = r.failed(r.Places[r.Current].SHA256)
	}
	r.Former, r.Current, r.Trial = r.Current, t.Place, nil
	r.Outcome = &board.UpdateOutcome{Version: r.Places[t.Place].Version, State: board.UpdateConfirmed, Time: now.UTC()}
	return r, nil
}

// Fail ends a trial: what was current stays.
func (r Record) Fail(why string, now time.Time) Record {
	t := r.Trial
	if t == nil {
		return r
	}
	p := r.Places[t.Place]
	r.Trial = nil
	r.Outcome = &board.UpdateOutcome{Version: p.Version, State: board.UpdateRolledBack, Why: why, Time: now.UTC()}
	return r.failed(p.SHA256)
}

func (r Record) failed(h chain.Hash) Record {
	if h == (chain.Hash{}) || slices.Contains(r.Failed, h) {
		return r
	}
	r.Failed = append(slices.Clone(r.Failed), h)
	if n := len(r.Failed) - maxFailed; n > 0 {
		r.Failed = r.Failed[n:]
	}
	return r
}

// sealed is the record with its checksum: a card may give back anything.
type sealed struct {
	Sum chain.Hash      `json:"sum"`
	Doc json.RawMessage `json:"doc"`
}

// maxRecord bounds what is read as a record.
const maxRecord = 64 << 10

func (r Record) encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return json.Marshal(sealed{chain.Sum(b), b})
}

// errNewer is a record that a newer program wrote.
var errNewer = errors.New("written by a newer joulegate")

// decodeRecord reads what encode wrote.
func decodeRecord(b []byte) (r Record, err error) {
	if len(b) > maxRecord {
		return r, fmt.Errorf("%d bytes, at most %d", len(b), maxRecord)
	}
	var s sealed
	if err := json.Unmarshal(b, &s); err != nil {
		return r, err
	}
	if chain.Sum(s.Doc) != s.Sum {
		return r, errors.New("the checksum does not match")
	}
	if err := json.Unmarshal(s.Doc, &r); err != nil {
		return r, err
	}
	if r.Version > recordVersion {
		return r, fmt.Errorf("%w: format %d, this program knows %d", errNewer, r.Version, recordVersion)
	}
	points := func(place string) bool {
		_, there := r.Places[place]
		return there || place == Packaged
	}
	if r.Version < 1 || !points(r.Current) || r.Former != "" && !points(r.Former) || r.Trial != nil && (!points(r.Trial.Place) || r.Trial.Place == r.Current) {
		return r, errors.New("it points to what is not there")
	}
	return r, nil
}

// GiveUp ends a trial of place, if there is one.
func GiveUp(s Store, place, why string, now time.Time) (bool, error) {
	r, err := Load(s)
	if err != nil || r.Trial == nil || r.Trial.Place != place {
		return false, err
	}
	return true, save(s, r.Fail(why, now))
}
