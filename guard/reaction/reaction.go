package reaction

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/joulegate/joulegate/guard"
)

// Filter drops what comes from and goes to an address.
type Filter interface {
	// Block blocks an address for a while, counted from now also if it is
	// blocked already.
	Block(a netip.Addr, d time.Duration) error
	// Unblock ends it. An address that is not blocked is no error.
	Unblock(a netip.Addr) error
}

// Peers shuts neighbours out.
type Peers interface {
	// Quarantine stops talking to a neighbour, or begins anew.
	Quarantine(name string, on bool) error
}

// Chargers ends charging.
type Chargers interface {
	// SafeStop ends every session by the ordinary ramp-down, because of a
	// rule whose cause it has seen for itself.
	SafeStop(ctx context.Context, rule string) error
}

// Config is what reactions are carried out by. What is nil cannot be done.
type Config struct {
	Filter   Filter
	Peers    Peers
	Chargers Chargers
	Processes
}

// Reactor carries out reactions. Do is called by one goroutine at a time.
type Reactor struct{ c Config }

// New returns a Reactor.
func New(c Config) *Reactor { return &Reactor{c} }

var errCannot = errors.New("this gateway cannot do that")

// Do does or undoes one thing. Doing what is done already, and undoing what is
// undone, is no error.
func (r *Reactor) Do(ctx context.Context, a guard.Reaction) error {
	switch {
	case a.Ask:
		return fmt.Errorf("reaction %d is a question", a.ID)
	case a.Action == guard.Block && r.c.Filter != nil:
		addr, err := netip.ParseAddr(a.Subject.Value)
		switch {
		case err != nil || a.Subject.Kind != guard.Host:
			return fmt.Errorf("block %s: it is no address", a.Subject)
		case a.Undo:
			return r.c.Filter.Unblock(addr.Unmap())
		case a.For <= 0:
			return fmt.Errorf("block %s: without an end", a.Subject)
		}
		return r.c.Filter.Block(addr.Unmap(), a.For)
	case a.Action == guard.Quarantine && r.c.Peers != nil:
		return r.c.Peers.Quarantine(a.Subject.Value, !a.Undo)
	case a.Undo && (a.Action == guard.Kill || a.Action == guard.SafeStop):
		return nil // cannot be
	case a.Action == guard.Kill:
		return r.c.kill(ctx, a)
	case a.Action == guard.SafeStop && r.c.Chargers != nil:
		return r.c.Chargers.SafeStop(ctx, a.Rule)
	}
	return fmt.Errorf("%s %s: %w", a.Action, a.Subject, errCannot)
}
