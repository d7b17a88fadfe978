package config

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Limits of changes from afar.
const (
	MinConfirm     = 10 * time.Second
	MaxConfirm     = time.Hour
	DefaultConfirm = 5 * time.Minute
	maxTxns        = 64  // transactions remembered; the oldest is forgotten
	MaxTxn         = 128 // bytes of a transaction's name
)

// Phase says how far a change is.
type Phase string

// Phases of a change, in this order. What is not confirmed ends rolled back.
const (
	Stored   Phase = "stored"          // on the disk, not in force
	Applying Phase = "applying"        // in force, and checking itself
	Checked  Phase = "pending_confirm" // in force and well; a person has to confirm
)

// Outcomes of a change.
const (
	Confirmed  = "confirmed"
	RolledBack = "rolled_back"
)

// Revision is a configuration with its number.
type Revision struct {
	Rev  uint64 `json:"rev"`
	Text string `json:"text"` // the whole document, as Parse reads it
	By   string `json:"by"`   // who proposed it, for example mqtt, command line, file
	Txn  string `json:"txn,omitempty"`
}

// Pending is a change under way.
type Pending struct {
	Revision
	Phase    Phase         `json:"phase"`
	Confirm  time.Duration `json:"confirm_ns"` // from the start of the program that applies it
	Deadline time.Time     `json:"deadline,omitzero"`
	Meters   []string      `json:"meters,omitempty"` // that answered before, and have to again
}

// Outcome is what became of the last change.
type Outcome struct {
	Txn   string `json:"txn"`
	Rev   uint64 `json:"rev"`
	State string `json:"state"` // Confirmed or RolledBack
	Why   string `json:"why,omitempty"`
}

// Commit is the state of commit-confirm: one configuration that somebody has
// confirmed, the one before it, and at most one change under way.
//
//	Propose          Start            Check             Confirm
//	───────► stored ───────► applying ─────► pending ───────────► current
//	            │               │  failed,      │ expired, cancelled,
//	            └───────────────┴─ crashed ─────┴ crashed ──► current, as before
//
// It is a value: Step returns the next one, which has to be on the disk before
// anything is done about it. A program that starts twice without an answer in
// between has crashed or lost power under the new configuration, and the old
// one is in force again: a change survives neither.
type Commit struct {
	Current  Revision  `json:"current"`
	Previous *Revision `json:"previous,omitempty"`
	Pending  *Pending  `json:"pending,omitempty"`
	Last     uint64    `json:"last"` // number given last
	Txns     []string  `json:"txns,omitempty"`
	Outcome  *Outcome  `json:"outcome,omitempty"`
}

// InForce returns what a program that runs now runs by.
func (c *Commit) InForce() Revision {
	if p := c.Pending; p != nil && p.Phase != Stored {
		return p.Revision
	}
	return c.Current
}

// Knows reports whether a transaction has been here already.
func (c *Commit) Knows(txn string) bool { return slices.Contains(c.Txns, txn) }

// Event is what can happen to a change.
type Event interface{ event() }

// Events.
type (
	// Propose stores a change. Base is the revision it was made for.
	Propose struct {
		Base    uint64
		Text    string
		By, Txn string
		Confirm time.Duration
		Meters  []string
	}
	// Start is the start of a program.
	Start struct{}
	// Check is the new configuration's verdict about itself.
	Check struct{ Err string }
	// Confirm is a person's word, over what was newly applied. An empty Txn
	// means whichever change is under way.
	Confirm struct{ Txn string }
	// Cancel ends a change at once.
	Cancel struct{ Txn, Why string }
	// Tick is time passing.
	Tick struct{}
	// Edited takes a configuration that somebody wrote into the file: he was
	// at the machine, so it needs no confirmation.
	Edited struct{ Text string }
)

func (Propose) event() {}
func (Start) event()   {}
func (Check) event()   {}
func (Confirm) event() {}
func (Cancel) event()  {}
func (Tick) event()    {}
func (Edited) event()  {}

// Denial is a change that is not accepted, with the path of what is wrong
// where there is one.
type Denial struct {
	Code string `json:"code"`
	Path string `json:"path,omitempty"`
	Text string `json:"message"`
}

func (d *Denial) Error() string { return d.Text }

// Codes of denials.
const (
	StaleRevision = "stale_revision"
	InFlight      = "in_flight"
	Replayed      = "replayed"
	NoChange      = "no_change"
	NothingToDo   = "nothing_pending"
	NotApplied    = "not_applied"
	OtherTxn      = "other_txn"
	BadRequest    = "invalid"
)

func deny(code, path, format string, a ...any) error {
	return &Denial{code, path, fmt.Sprintf(format, a...)}
}

// Step returns what c becomes by e at the time now. An error changes nothing.
func Step(c Commit, e Event, now time.Time) (Commit, error) {
	p := c.Pending
	switch e := e.(type) {
	case Propose:
		switch {
		case c.Knows(e.Txn):
			return c, deny(Replayed, "txn", "transaction %q has been here already", e.Txn)
		case p != nil:
			return c, deny(InFlight, "", "change %q is under way: confirm or cancel it first", p.Txn)
		case e.Base != c.Current.Rev:
			return c, deny(StaleRevision, "base_rev", "made for revision %d, in force is %d: read it and make the change anew", e.Base, c.Current.Rev)
		case e.Txn == "" || len(e.Txn) > MaxTxn:
			return c, deny(BadRequest, "txn", "a name of 1 to %d bytes is required", MaxTxn)
		case e.Confirm < MinConfirm || e.Confirm > MaxConfirm:
			return c, deny(BadRequest, "confirm_s", "%s is outside %s..%s", e.Confirm, MinConfirm, MaxConfirm)
		case e.Text == c.Current.Text:
			return c, deny(NoChange, "config", "it is what is in force already")
		}
		c.Last++
		c.remember(e.Txn)
		c.Pending = &Pending{Revision: Revision{c.Last, e.Text, e.By, e.Txn}, Phase: Stored, Confirm: e.Confirm, Meters: e.Meters}
		return c, nil
	case Start:
		switch {
		case p == nil:
		case p.Phase == Stored:
			next := *p
			next.Phase, next.Deadline = Applying, now.Add(p.Confirm)
			c.Pending = &next
		default:
			c.rollBack("the gateway started anew before it was confirmed")
		}
		return c, nil
	case Check:
		if p == nil || p.Phase != Applying {
			return c, deny(NothingToDo, "", "no change is being checked")
		}
		if e.Err != "" {
			c.rollBack(e.Err)
			return c, nil
		}
		next := *p
		next.Phase = Checked
		c.Pending = &next
		return c, nil
	case Confirm:
		switch {
		case p == nil:
			return c, deny(NothingToDo, "", "no change waits to be confirmed")
		case e.Txn != "" && e.Txn != p.Txn:
			return c, deny(OtherTxn, "args.txn", "change %q waits, not %q", p.Txn, e.Txn)
		case p.Phase != Checked:
			return c, deny(NotApplied, "", "change %q is %s: it can be confirmed once it is in force and has checked itself", p.Txn, p.Phase)
		case !now.Before(p.Deadline):
			c.rollBack("nobody confirmed in time")
			return c, nil
		}
		old := c.Current
		c.Previous, c.Current, c.Pending = &old, p.Revision, nil
		c.Outcome = &Outcome{p.Txn, p.Rev, Confirmed, ""}
		return c, nil
	case Cancel:
		if p == nil {
			return c, deny(NothingToDo, "", "no change is under way")
		}
		if e.Txn != "" && e.Txn != p.Txn {
			return c, deny(OtherTxn, "args.txn", "change %q is under way, not %q", p.Txn, e.Txn)
		}
		c.rollBack(e.Why)
		return c, nil
	case Tick:
		if p != nil && p.Phase != Stored && !now.Before(p.Deadline) {
			c.rollBack("nobody confirmed in time")
		}
		return c, nil
	case Edited:
		if p != nil {
			c.rollBack("the file was edited")
		}
		c.Last++
		if c.Current.Rev > 0 {
			old := c.Current
			c.Previous = &old
		}
		c.Current = Revision{Rev: c.Last, Text: e.Text, By: "file"}
		return c, nil
	}
	panic(fmt.Sprintf("config: event %T", e))
}

func (c *Commit) rollBack(why string) {
	p := c.Pending
	c.Pending, c.Outcome = nil, &Outcome{p.Txn, p.Rev, RolledBack, why}
}

func (c *Commit) remember(txn string) {
	c.Txns = append(slices.Clone(c.Txns), txn)
	if n := len(c.Txns) - maxTxns; n > 0 {
		c.Txns = c.Txns[n:]
	}
}

// Check reports a damaged state.
func (c *Commit) Check() error {
	switch {
	case c.Current.Rev == 0 || c.Current.Text == "":
		return errors.New("no revision is in force")
	case c.Pending != nil && (c.Pending.Rev <= c.Current.Rev || c.Pending.Text == ""):
		return fmt.Errorf("pending revision %d after %d", c.Pending.Rev, c.Current.Rev)
	}
	return nil
}
