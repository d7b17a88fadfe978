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
	Money        Money     `json:"money,omitzero"`
	RetainDays   int64     `json:"retain_days,omitempty"` // slots and settled sessions stay in the state; 400, at least 40. Blocks go when each gateway likes
	StoragePPM   int64     `json:"storage_ppm,omitempty"` // certificates on discharge per certified charging, 100000..1000000; 850000
}

// Simulated is the basis of a microgrid in which nobody sells for money.
const Simulated = "simulated"

// Money holds the rules of minting, payouts, disputes and tax. What is zero
// has a default.
type Money struct {
	Threshold    int64     `json:"threshold,omitempty"`           // operators that must agree to mint, burn, pay out, refund, revoke and change rules; 1
	Auditors     []Key     `json:"auditors,omitempty"`            // none of them an operator
	DailyMintCap Nano      `json:"daily_mint_cap_nano,omitempty"` // an auditor approves what is minted beyond it in a UTC day; 0: no cap
	PayoutDays   int64     `json:"payout_days,omitempty"`         // until a payout is overdue; 10
	DisputeDays  int64     `json:"dispute_days,omitempty"`        // after a session's end in which it can be disputed; 30
	AnswerDays   int64     `json:"answer_days,omitempty"`         // for the answer to a dispute; 14
	ResolveDays  int64     `json:"resolve_days,omitempty"`        // for its resolution; 60
	Tax          []TaxRate `json:"tax,omitempty"`                 // contained in prices, ascending; none: the operator is not subject to tax
	Invoices     string    `json:"invoices,omitempty"`            // issued by themselves: "monthly" (the default; UTC) or "off"
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
	digits, known := MinorDigits(g.Currency)
	switch {
	case g.Version != Version:
		return fmt.Errorf("genesis version %d, this program knows %d", g.Version, Version)
	case g.ChainID == "" || len(g.ChainID) > MaxName:
		return fmt.Errorf("genesis: chain_id of %d bytes, 1..%d", len(g.ChainID), MaxName)
	case g.SlotSeconds < 1 || g.SlotSeconds > 3600:
		return fmt.Errorf("genesis: slot_seconds %d, 1..3600", g.SlotSeconds)
	case g.GraceSeconds < 1 || g.GraceSeconds > g.SlotSeconds:
		return fmt.Errorf("genesis: grace_seconds %d, 1..slot_seconds", g.GraceSeconds)
	case !known:
		return fmt.Errorf("genesis: currency %q is not an active one of ISO 4217", g.Currency)
	case g.MinorDigits != digits:
		return fmt.Errorf("genesis: minor_digits %d, but %s has %d", g.MinorDigits, g.Currency, digits)
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
