// Package ledger is the deterministic state machine of a microgrid.
package ledger
