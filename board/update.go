package board

import "time"

// Update is how a gateway's program stands: what runs, what is offered, and
// what became of the last change of it.
type Update struct {
	Version   string         `json:"version"`              // runs
	Runs      string         `json:"runs"`                 // where it lies: packaged, a or b
	Auto      string         `json:"auto"`                 // security, all or off
	Phase     string         `json:"phase"`                // see the words below
	Percent   int            `json:"percent,omitempty"`    // of a download
	Wait      string         `json:"wait,omitempty"`       // why it is not applied now, in words
	Offered   *Release       `json:"offered,omitempty"`    // newer than what runs, signed and not expired
	Former    string         `json:"former,omitempty"`     // version that rollback leads to
	Checked   time.Time      `json:"checked,omitzero"`     // last look at the source that succeeded
	Error     string         `json:"error,omitempty"`      // of the last check, download or application
	Outcome   *UpdateOutcome `json:"outcome,omitempty"`    // of the last trial
	TriedFrom string         `json:"tried_from,omitempty"` // in a trial: version that comes back unless it is confirmed
}

// Phases of an update.
const (
	UpdateIdle        = "idle"
	UpdateChecking    = "checking"
	UpdateDownloading = "downloading"
	UpdateWaiting     = "waiting" // installed; it starts when no car charges
	UpdateRestarting  = "restarting"
	UpdateTrial       = "trial" // runs, and is not confirmed yet
)

// Release is a version that somebody has signed.
type Release struct {
	Version  string    `json:"version"`
	Channel  string    `json:"channel"`
	Security bool      `json:"security"`
	Notes    string    `json:"notes,omitempty"` // address of the release notes
	Share    int       `json:"share"`           // percent of gateways that take it by themselves
	Mine     bool      `json:"mine"`            // this gateway is among them
	Expires  time.Time `json:"expires"`
	Refused  string    `json:"refused,omitempty"` // why this gateway does not take it
}

// UpdateOutcome is what became of a trial.
type UpdateOutcome struct {
	Version string    `json:"version"`
	State   string    `json:"state"` // confirmed or rolled_back
	Why     string    `json:"why,omitempty"`
	Time    time.Time `json:"time"`
}

// Outcomes of a trial.
const (
	UpdateConfirmed  = "confirmed"
	UpdateRolledBack = "rolled_back"
)
