package commission

import (
	"time"

	"github.com/joulegate/joulegate/chain"
)

// Format opens every report, and keeps a signature over one from being taken
// for a signature over something else.
const Format = "joulegate/commissioning-report/1"

// MaxBytes bounds a report's file.
const MaxBytes = 2 << 20

// State is how a row ended.
type State string

// States. Fail and NotDone are red; a report with either is not complete.
const (
	OK      State = "ok"
	Note    State = "note" // works, and could be better
	Skip    State = "skip" // nothing to look at
	NotDone State = "not_done"
	Fail    State = "fail"
)

// Red reports whether something is left to do.
func (s State) Red() bool { return s == Fail || s == NotDone }

// Row is one thing that was looked at or tried.
type Row struct {
	ID     string    `json:"id"` // for scripts, for example charger.1.estop
	What   string    `json:"what"`
	State  State     `json:"state"`
	Seen   string    `json:"seen"`
	Remedy string    `json:"remedy,omitempty"`
	At     time.Time `json:"at,omitzero"` // when it was tried; zero: when the report was made
}

// Step is a table of them.
type Step struct {
	ID    string `json:"id"` // computer, wiring, meters, limits, failsafe, operation
	Title string `json:"title"`
	OK    bool   `json:"ok"`
	Rows  []Row  `json:"rows"`
}

// Gateway says whose report it is.
type Gateway struct {
	Name     string     `json:"name"`
	Device   chain.Key  `json:"device"` // signs
	Chain    string     `json:"chain"`
	Genesis  chain.Hash `json:"genesis"`
	Version  string     `json:"version"`
	Program  string     `json:"program"`  // SHA-256 of the executable
	Config   chain.Hash `json:"config"`   // of the configuration in force
	Revision uint64     `json:"revision"` // of it
	Board    string     `json:"board"`
	Model    string     `json:"model"`            // of the computer, as it says
	Serial   string     `json:"serial,omitempty"` // of the computer
}

// Report is what is signed.
type Report struct {
	Format    string    `json:"format"`
	Made      time.Time `json:"made"`
	Complete  bool      `json:"complete"`            // no row is red
	Open      int       `json:"open"`                // red rows
	Installer string    `json:"installer,omitempty"` // who says to have done it
	Gateway   Gateway   `json:"gateway"`
	Steps     []Step    `json:"steps"`
}

// Rows that are red, in order.
func (r *Report) Red() (rows []Row) {
	for _, s := range r.Steps {
		for _, row := range s.Rows {
			if row.State.Red() {
				rows = append(rows, row)
			}
		}
	}
	return rows
}

// finish counts.
func (r *Report) finish() {
	r.Open = 0
	for i := range r.Steps {
		s := &r.Steps[i]
		s.OK = true
		for _, row := range s.Rows {
			if row.State.Red() {
				s.OK = false
				r.Open++
			}
		}
	}
	r.Complete = r.Open == 0
}
