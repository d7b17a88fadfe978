package chain

import (
	"errors"
	"fmt"
)

// Genesis is the application state at height 0: the rules of the microgrid
// and its founding members. Its hash is what a token and an auditor trust.
type Genesis struct {
	Version      uint8     `json:"version"`
	ChainID      string    `json:"chain_id"`
	SlotSeconds  int64     `json:"slot_seconds"`  // 900; demonstrations use 10
	GraceSeconds int64     `json:"grace_seconds"` // after a slot's end before it clears without the missing
	Currency     string    `json:"currency"`      // ISO 4217
	MinorDigits  int       `json:"minor_digits"`
	Operators    []Key     `json:"operators"` // who may mint, invite, revoke, set tariffs
	Retail       NanoPerWh `json:"retail_nano_per_wh"`
	FeedIn       NanoPerWh `json:"feed_in_nano_per_wh"`
	Nodes        []Node    `json:"nodes"` // fee tree without the houses
	Members      []Founder `json:"members"`
	Credit       Credit    `json:"credit"`
	Transfers    bool      `json:"transfers"`           // person-to-person transfers allowed
	StartSeconds int64     `json:"start_limit_seconds"` // held without energy longer than this: void
	Basis        string    `json:"basis"`               // legal basis of selling for money; "simulated" until recorded
}

// Node is an inner node of the fee tree. The root has an empty parent.
type Node struct {
	ID     string    `json:"id" cbor:"1,keyasint"`
	Parent string    `json:"parent" cbor:"2,keyasint"`
	Fee    NanoPerWh `json:"fee" cbor:"3,keyasint"` // of the edge to the parent, either direction
}

// Founder is a member of the genesis and where it hangs in the fee tree.
type Founder struct {
	Member
	Node string    `json:"node"` // parent node
	Fee  NanoPerWh `json:"fee"`
}

// Credit holds the rules of the discount credit.
type Credit struct {
	EarnPPM     int64 `json:"earn_ppm"`       // of cash paid, 0..1e6
	RedeemPPM   int64 `json:"redeem_cap_ppm"` // most of a bill that credit pays, 0..1e6
	ExpirySlots int64 `json:"expiry_slots"`   // a lot's life; 0: never
}

// Check reports the first thing wrong with g.
func (g *Genesis) Check() error {
	switch {
	case g.Version != Version:
		return fmt.Errorf("genesis version %d, this program knows %d", g.Version, Version)
	case g.ChainID == "" || len(g.ChainID) > MaxName:
		return fmt.Errorf("genesis: chain_id of %d bytes, 1..%d", len(g.ChainID), MaxName)
	case g.SlotSeconds < 1 || g.SlotSeconds > 3600:
		return fmt.Errorf("genesis: slot_seconds %d, 1..3600", g.SlotSeconds)
	case g.GraceSeconds < 1 || g.GraceSeconds > g.SlotSeconds:
		return fmt.Errorf("genesis: grace_seconds %d, 1..slot_seconds", g.GraceSeconds)
	case len(g.Currency) != 3:
		return fmt.Errorf("genesis: currency %q is not an ISO 4217 code", g.Currency)
	case len(g.Operators) == 0:
		return errors.New("genesis: no operator key")
	case g.FeedIn < 0 || g.Retail < g.FeedIn:
		return fmt.Errorf("genesis: retail %d below feed-in %d", g.Retail, g.FeedIn)
	case g.Credit.EarnPPM < 0 || g.Credit.EarnPPM > 1e6 || g.Credit.RedeemPPM < 0 || g.Credit.RedeemPPM > 1e6 || g.Credit.ExpirySlots < 0:
		return fmt.Errorf("genesis: credit rules %+v out of range", g.Credit)
	case len(g.Members) == 0:
		return errors.New("genesis: no member")
	}
	return nil
}
