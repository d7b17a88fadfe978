package ledger

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Rules are the genesis rules in force.
type Rules struct {
	ChainID      string          `cbor:"1,keyasint" json:"chain_id"`
	SlotSeconds  int64           `cbor:"2,keyasint" json:"slot_seconds"`
	GraceSeconds int64           `cbor:"3,keyasint" json:"grace_seconds"`
	Currency     string          `cbor:"4,keyasint" json:"currency"`
	MinorDigits  int             `cbor:"5,keyasint" json:"minor_digits"`
	Operators    []chain.Key     `cbor:"6,keyasint" json:"operators"`
	Retail       chain.NanoPerWh `cbor:"7,keyasint" json:"retail_nano_per_wh"`  // default tariff
	FeedIn       chain.NanoPerWh `cbor:"8,keyasint" json:"feed_in_nano_per_wh"` // default tariff
	EarnPPM      int64           `cbor:"9,keyasint" json:"earn_ppm"`
	RedeemPPM    int64           `cbor:"10,keyasint" json:"redeem_cap_ppm"`
	ExpirySlots  int64           `cbor:"11,keyasint" json:"expiry_slots"`
	Transfers    bool            `cbor:"12,keyasint" json:"transfers"`
	StartSeconds int64           `cbor:"13,keyasint" json:"start_limit_seconds"`
	Basis        string          `cbor:"14,keyasint" json:"basis"`
	GenesisMs    int64           `cbor:"15,keyasint" json:"genesis_time_ms"`

	Threshold    int64           `cbor:"30,keyasint,omitempty" json:"threshold"`
	Auditors     []chain.Key     `cbor:"31,keyasint,omitempty" json:"auditors"`
	DailyMintCap chain.Nano      `cbor:"32,keyasint,omitempty" json:"daily_mint_cap_nano"` // 0: none
	PayoutDays   int64           `cbor:"33,keyasint,omitempty" json:"payout_days"`
	DisputeDays  int64           `cbor:"34,keyasint,omitempty" json:"dispute_days"`
	AnswerDays   int64           `cbor:"35,keyasint,omitempty" json:"answer_days"`
	ResolveDays  int64           `cbor:"36,keyasint,omitempty" json:"resolve_days"`
	Tax          []chain.TaxRate `cbor:"37,keyasint,omitempty" json:"tax"`
	Version      uint32          `cbor:"38,keyasint,omitempty" json:"version"` // that a program must know to execute blocks
	RetainDays   int64           `cbor:"50,keyasint,omitempty" json:"retain_days"`
	Invoices     string          `cbor:"51,keyasint,omitempty" json:"invoices"`    // [InvoicesMonthly] or [InvoicesOff]
	StoragePPM   int64           `cbor:"52,keyasint,omitempty" json:"storage_ppm"` // of certified charging, certified on discharge
}

// Status summarises the ledger.
type Status struct {
	ChainID      string     `json:"chain_id"`
	Height       int64      `json:"height"`  // last block that changed the state
	TimeMs       int64      `json:"time_ms"` // and its block time
	Slot         chain.Slot `json:"slot"`    // next slot to clear
	LastCleared  chain.Slot `json:"last_cleared"`
	Members      int        `json:"members"` // active
	Validators   int        `json:"validators"`
	OpenSessions int        `json:"open_sessions"`
	Minted       chain.Nano `json:"minted_nano"`
	Burned       chain.Nano `json:"burned_nano"`
	Credits      chain.Nano `json:"credits_nano"` // outstanding = reserve

	Simulated      bool   `json:"simulated"`               // nobody has recorded a legal basis
	OpenPayouts    int    `json:"open_payouts"`            //
	OverduePayouts int    `json:"overdue_payouts"`         // of them
	OpenDisputes   int    `json:"open_disputes"`           //
	Quarantined    int    `json:"quarantined_meters"`      // that have jumped and bill nothing
	RulesVersion   uint32 `json:"rules_version"`           // in force
	UpdateHeight   int64  `json:"update_height,omitempty"` // from this block on this program is too old

	Attestations []AttestationView `json:"attestations"` // of third parties, in force; never nil
}

// Energy holds the exact totals since genesis in Wh:
// produced + grid_import = consumed + grid_export + loss.
type Energy struct {
	Produced   meter.WattHour `cbor:"1,keyasint" json:"produced_wh"`
	Consumed   meter.WattHour `cbor:"2,keyasint" json:"consumed_wh"`
	Traded     meter.WattHour `cbor:"3,keyasint" json:"traded_wh"`
	GridImport meter.WattHour `cbor:"4,keyasint" json:"grid_import_wh"`
	GridExport meter.WattHour `cbor:"5,keyasint" json:"grid_export_wh"`
	Loss       meter.WattHour `cbor:"6,keyasint" json:"loss_wh"` // may be negative by meter timing
}

// Head is the ledger's position in a gateway's own chain.
type Head struct {
	Position chain.Position `cbor:"1,keyasint" json:"position"`
	Hash     chain.Hash     `cbor:"2,keyasint" json:"hash"`
	Height   int64          `cbor:"3,keyasint" json:"height"` // ledger height at which it was accepted
}

// MemberView is a member with its place and counters.
type MemberView struct {
	chain.Member
	Node           string          `json:"node"` // parent in the fee tree; the member's own node is its name
	Fee            chain.NanoPerWh `json:"fee"`
	Active         bool            `json:"active"`
	Power          int64           `json:"voting_power"` // 0: full node
	JoinedMs       int64           `json:"joined_ms"`
	Head           Head            `json:"head"`
	LastSlot       chain.Slot      `json:"last_slot"`               // newest slot its site meter reported; 0: none
	Import         meter.WattHour  `json:"import_wh"`               // site totals booked
	Export         meter.WattHour  `json:"export_wh"`               //
	Produced       meter.WattHour  `json:"produced_wh"`             //
	BoughtLocal    meter.WattHour  `json:"bought_local_wh"`         // by the house itself
	SoldLocal      meter.WattHour  `json:"sold_local_wh"`           //
	SupplierImport meter.WattHour  `json:"supplier_billed_wh"`      // import left to the supplier's own bill
	SupplierExport meter.WattHour  `json:"supplier_remunerated_wh"` // export left to the supplier's own bill

	Unauthorised meter.WattHour    `json:"unauthorised_wh,omitempty"` // through chargers without a session
	FirmBought   meter.WattHour    `json:"firm_bought_wh,omitempty"`  // of BoughtLocal, under contracts
	FirmSold     meter.WattHour    `json:"firm_sold_wh,omitempty"`
	Certificates CertificateTotals `json:"certificates,omitzero"`
}

// AccountView is one account.
type AccountView struct {
	Account chain.Account `json:"account"`
	Balance chain.Nano    `json:"balance_nano"`
	Held    chain.Nano    `json:"held_nano"`
	Credits chain.Nano    `json:"credits_nano"`
	Lots    []LotView     `json:"lots,omitempty"`
	Payouts []PayoutView  `json:"payouts,omitempty"` // that are not paid yet
	Profile chain.Profile `json:"profile"`
}

// LotView is one credit lot.
type LotView struct {
	Seq     uint64     `json:"seq"`
	Amount  chain.Nano `json:"amount_nano"` // left
	Expires chain.Slot `json:"expires_slot,omitempty"`
	Session chain.ID   `json:"session"` // that earned it
}

// SessionState is where a session stands.
type SessionState uint8

// Session states. Append only.
const (
	SessionHeld        SessionState = 1 + iota // money held, no energy yet
	SessionCharging                            // begin register known
	SessionMetered                             // last register known, waiting for its slots to clear
	SessionClosed                              // settled, rest released
	SessionExpired                             // no start within the limit: void, all released
	SessionInterrupted                         // closed by rule on the last signed value, settled
)

var sessionStates = [...]string{SessionHeld: "held", SessionCharging: "charging", SessionMetered: "metered", SessionClosed: "closed", SessionExpired: "expired", SessionInterrupted: "interrupted"}

func (s SessionState) String() string {
	if s == 0 || int(s) >= len(sessionStates) {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return sessionStates[s]
}

// Open reports whether money is still held.
func (s SessionState) Open() bool { return s >= SessionHeld && s <= SessionMetered }

// MarshalText implements encoding.TextMarshaler.
func (s SessionState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *SessionState) UnmarshalText(b []byte) error {
	for i := SessionHeld; int(i) < len(sessionStates); i++ {
		if sessionStates[i] == string(b) {
			*s = i
			return nil
		}
	}
	return fmt.Errorf("unknown session state %q", b)
}

// SessionView is one charging session as the ledger knows it.
type SessionView struct {
	ID             chain.ID         `cbor:"1,keyasint" json:"id"`
	State          SessionState     `cbor:"2,keyasint" json:"state"`
	Driver         chain.Account    `cbor:"3,keyasint" json:"driver"`
	Gateway        chain.Key        `cbor:"4,keyasint" json:"gateway"`
	Connector      uint8            `cbor:"5,keyasint" json:"connector"`
	MaxWh          meter.WattHour   `cbor:"6,keyasint" json:"max_wh"`
	Cap            chain.NanoPerWh  `cbor:"7,keyasint" json:"cap_nano_per_wh"`
	Redeem         bool             `cbor:"8,keyasint" json:"redeem"`
	Hold           chain.Nano       `cbor:"9,keyasint" json:"hold_nano"`
	Captured       chain.Nano       `cbor:"10,keyasint" json:"captured_nano"`
	Released       chain.Nano       `cbor:"11,keyasint" json:"released_nano"`
	Wh             meter.WattHour   `cbor:"12,keyasint" json:"wh"`                   // billed or to be billed to the driver
	PendingWh      meter.WattHour   `cbor:"13,keyasint" json:"pending_wh"`           // of Wh, in slots not cleared yet
	LocalWh        meter.WattHour   `cbor:"14,keyasint" json:"local_wh"`             // of Wh, bought from neighbours
	ExcessWh       meter.WattHour   `cbor:"15,keyasint" json:"excess_wh"`            // delivered beyond the hold or after the end: the site owner's
	Paid           chain.Nano       `cbor:"16,keyasint" json:"paid_nano"`            // captured less redeemed, once settled
	CreditEarned   chain.Nano       `cbor:"17,keyasint" json:"credit_earned_nano"`   //
	CreditRedeemed chain.Nano       `cbor:"18,keyasint" json:"credit_redeemed_nano"` //
	Seq            uint32           `cbor:"19,keyasint" json:"seq"`                  // of the last accepted record
	Begin          meter.WattHour   `cbor:"20,keyasint" json:"begin_register_wh"`    //
	Register       meter.WattHour   `cbor:"21,keyasint" json:"register_wh"`          // last trusted register; the end register once metered
	RegisterMs     int64            `cbor:"22,keyasint" json:"register_ms"`          //
	Reported       chain.Slot       `cbor:"23,keyasint" json:"reported_slot"`        // slots up to it are fully reported
	OpenedHeight   int64            `cbor:"24,keyasint" json:"opened_height"`
	OpenedMs       int64            `cbor:"25,keyasint" json:"opened_ms"`
	LastMs         int64            `cbor:"26,keyasint" json:"last_ms"` // block time of the last record
	ClosedHeight   int64            `cbor:"27,keyasint" json:"closed_height"`
	ClosedMs       int64            `cbor:"28,keyasint" json:"closed_ms"`
	Reason         chain.StopReason `cbor:"29,keyasint" json:"stop_reason"`
	Receipt        chain.Hash       `cbor:"30,keyasint" json:"receipt"`    // SHA-256 of the OCMF payload
	ByRule         bool             `cbor:"31,keyasint" json:"by_rule"`    // closed by the ledger, not by its gateway
	QuoteHash      chain.Hash       `cbor:"32,keyasint" json:"quote_hash"` // SHA-256 of the signed quote bytes
	DriverKey      chain.Key        `cbor:"33,keyasint" json:"driver_key"`
	Based          bool             `cbor:"34,keyasint" json:"based"` // begin register is known

	By          chain.Slot      `cbor:"40,keyasint,omitempty" json:"by_slot,omitempty"` // the driver wants Want before it begins
	Want        meter.WattHour  `cbor:"41,keyasint,omitempty" json:"want_wh,omitempty"`
	SellWh      meter.WattHour  `cbor:"42,keyasint,omitempty" json:"sell_wh,omitempty"` // most that the car may sell
	SellLimit   chain.NanoPerWh `cbor:"43,keyasint,omitempty" json:"sell_limit_nano_per_wh,omitempty"`
	Sold        meter.WattHour  `cbor:"44,keyasint,omitempty" json:"sold_wh,omitempty"`         // given by the car
	PendingSold meter.WattHour  `cbor:"45,keyasint,omitempty" json:"pending_sold_wh,omitempty"` // of Sold, in slots not cleared yet
	Earned      chain.Nano      `cbor:"46,keyasint,omitempty" json:"earned_nano,omitempty"`     // for Sold, on the driver's account
	ExportBegin meter.WattHour  `cbor:"47,keyasint,omitempty" json:"export_begin_wh,omitempty"`
	Export      meter.WattHour  `cbor:"48,keyasint,omitempty" json:"export_register_wh,omitempty"`
	FirmWh      meter.WattHour  `cbor:"49,keyasint,omitempty" json:"firm_wh,omitempty"`        // of Wh, taken under firm contracts and paid from their collateral, not from the hold
	FirmPaid    chain.Nano      `cbor:"50,keyasint,omitempty" json:"firm_paid_nano,omitempty"` // under them, what was owed for energy not taken included

	Purse        chain.Account `cbor:"60,keyasint,omitzero" json:"purse,omitzero"`           // the reserve that pays instead of the driver's account; zero: none
	Jumped       bool          `cbor:"70,keyasint,omitempty" json:"jumped,omitempty"`        // its meter has, and was not listened to any more
	Disputed     chain.Nano    `cbor:"71,keyasint,omitempty" json:"disputed_nano,omitempty"` // of the hold, frozen for what the jump had too much
	MeterDispute uint64        `cbor:"72,keyasint,omitempty" json:"meter_dispute,omitempty"` // that decides about Disputed

	QuotedMs int64 `cbor:"61,keyasint,omitempty" json:"quoted_ms,omitempty"` // of a session that began without the ledger, by its gateway's clock
}

// FillView is one participant of a cleared slot.
type FillView struct {
	ID       string          `cbor:"1,keyasint" json:"id"` // market order: "buy/NAME", "sell/NAME", "car/SESSION"
	Device   chain.Key       `cbor:"2,keyasint" json:"device"`
	Session  chain.ID        `cbor:"3,keyasint" json:"session"` // of a car; else zero
	Account  chain.Account   `cbor:"4,keyasint" json:"account"`
	Side     chain.Side      `cbor:"5,keyasint" json:"side"`
	Node     string          `cbor:"6,keyasint" json:"node"`
	Limit    chain.NanoPerWh `cbor:"7,keyasint" json:"limit"`
	Wh       meter.WattHour  `cbor:"8,keyasint" json:"wh"`       // offered to the market
	Local    meter.WattHour  `cbor:"9,keyasint" json:"local_wh"` // traded with neighbours
	Price    chain.NanoPerWh `cbor:"10,keyasint" json:"price"`   // of the local part
	Grid     meter.WattHour  `cbor:"11,keyasint" json:"grid_wh"` // the supplier's, paid here
	GridAt   chain.NanoPerWh `cbor:"12,keyasint" json:"grid_price"`
	Supplier meter.WattHour  `cbor:"13,keyasint" json:"supplier_wh"` // left to the supplier's own bill
	Amount   chain.Nano      `cbor:"14,keyasint" json:"amount_nano"` // paid (buy) or received (sell) in this ledger, contracts apart

	Firm      meter.WattHour `cbor:"20,keyasint,omitempty" json:"firm_wh,omitempty"`      // traded under firm contracts
	FirmGrid  meter.WattHour `cbor:"21,keyasint,omitempty" json:"firm_grid_wh,omitempty"` // the supplier's, for a side that was short
	FirmOwn   meter.WattHour `cbor:"22,keyasint,omitempty" json:"firm_own_wh,omitempty"`  // as FirmGrid, on the supplier's own bill
	Certified meter.WattHour `cbor:"23,keyasint,omitempty" json:"certified_wh,omitempty"` // of Local and Firm: issued to the seller, cancelled by the buyer
	Stored    meter.WattHour `cbor:"24,keyasint,omitempty" json:"stored_wh,omitempty"`    // of a seller's Certified, from a battery
	Withdrawn meter.WattHour `cbor:"25,keyasint,omitempty" json:"withdrawn_wh,omitempty"` // certificates withdrawn with what the supplier took of a seller
}

// PriceView is the local price at a node and the local energy over the edge
// to its parent.
type PriceView struct {
	Node  string          `cbor:"1,keyasint" json:"node"`
	Price chain.NanoPerWh `cbor:"2,keyasint" json:"price"`
	Flow  meter.WattHour  `cbor:"3,keyasint" json:"flow_wh"` // from the parent into the node

	// What the house there metered.
	Import     meter.WattHour `cbor:"20,keyasint,omitempty" json:"import_wh,omitempty"`
	Export     meter.WattHour `cbor:"21,keyasint,omitempty" json:"export_wh,omitempty"`
	Produced   meter.WattHour `cbor:"22,keyasint,omitempty" json:"produced_wh,omitempty"`
	Charged    meter.WattHour `cbor:"23,keyasint,omitempty" json:"charged_wh,omitempty"`    // into its battery
	Discharged meter.WattHour `cbor:"24,keyasint,omitempty" json:"discharged_wh,omitempty"` // from its battery

	Own meter.WattHour `cbor:"25,keyasint,omitempty" json:"own_certificates_wh,omitempty"` // certificates that the house cancelled, its own and bought ones
}

// SlotView is a cleared slot.
type SlotView struct {
	Slot     chain.Slot      `cbor:"1,keyasint" json:"slot"`
	Previous chain.Slot      `cbor:"2,keyasint" json:"previous"` // cleared slot before it; 0: none
	Height   int64           `cbor:"3,keyasint" json:"height"`
	TimeMs   int64           `cbor:"4,keyasint" json:"time_ms"`
	Retail   chain.NanoPerWh `cbor:"5,keyasint" json:"retail"`
	FeedIn   chain.NanoPerWh `cbor:"6,keyasint" json:"feed_in"`
	Reported int             `cbor:"7,keyasint" json:"reported"`       // sites in the market
	Missing  int             `cbor:"8,keyasint" json:"missing"`        // active sites that were not
	Energy   Energy          `cbor:"9,keyasint" json:"energy"`         // of this slot; late energy stands beside it
	Paid     chain.Nano      `cbor:"10,keyasint" json:"paid_nano"`     // local trades only
	Received chain.Nano      `cbor:"11,keyasint" json:"received_nano"` //
	Fees     chain.Nano      `cbor:"12,keyasint" json:"fees_nano"`     // = paid - received
	Prices   []PriceView     `cbor:"13,keyasint" json:"prices"`

	FirmWh    meter.WattHour `cbor:"20,keyasint,omitempty" json:"firm_wh,omitempty"`         // of Traded, under contracts
	LossValue chain.Nano     `cbor:"21,keyasint,omitempty" json:"loss_value_nano,omitempty"` // moved from network fees to the loss account
	Audit     bool           `cbor:"22,keyasint,omitempty" json:"audit,omitempty"`           // the loss is beyond what wires lose
	Fills     []FillView     `cbor:"-" json:"fills"`                                         // stored one by one
}

// InvitationView is an invitation.
type InvitationView struct {
	chain.Invite
	Used   bool      `json:"used"`
	Device chain.Key `json:"device"` // that joined with it
}

// MeterView is the ledger's position in one meter's records.
type MeterView struct {
	Device  chain.Key      `cbor:"-" json:"device"`
	Meter   string         `cbor:"-" json:"meter"`
	Role    chain.Role     `cbor:"1,keyasint" json:"role"`
	Epoch   uint32         `cbor:"2,keyasint" json:"epoch"` // of the author's chain at Page
	Page    uint64         `cbor:"3,keyasint" json:"page"`
	Segment uint32         `cbor:"4,keyasint" json:"segment"`
	Slot    chain.Slot     `cbor:"5,keyasint" json:"slot"` // of the last trusted registers
	Import  meter.WattHour `cbor:"6,keyasint" json:"import_wh"`
	Export  meter.WattHour `cbor:"7,keyasint" json:"export_wh"`
	AtMs    int64          `cbor:"8,keyasint" json:"at_ms"`
	Based   bool           `cbor:"10,keyasint" json:"based"` // registers are known
	Profile chain.Hash     `cbor:"9,keyasint" json:"profile"`

	Released bool `cbor:"20,keyasint,omitempty" json:"released,omitempty"` // from quarantine, and not read since: its register may have been a slip
}

// RulesOf returns the rules in force.
func RulesOf(st State) Rules {
	r, _ := get[Rules](st, key(tabRules))
	r.defaults()
	return r
}

// StatusOf summarises the ledger.
func StatusOf(st State) Status {
	c, _ := get[clock](st, key(tabClock))
	m, _ := get[supply](st, key(tabMoney))
	s := Status{
		ChainID: RulesOf(st).ChainID, Height: c.Height, TimeMs: c.TimeMs, Slot: c.Next, LastCleared: c.Cleared,
		Validators: len(validators(st)), OpenSessions: len(openSessions(st)),
		Minted: m.Minted, Burned: m.Burned, Credits: balance(st, chain.AccountReserve),
	}
	each(st, key(tabMember), func(_ []byte, m member) bool {
		if m.Active {
			s.Members++
		}
		return true
	})
	for _, p := range OpenPayouts(st) {
		s.OpenPayouts++
		if p.Overdue {
			s.OverduePayouts++
		}
	}
	s.Quarantined = len(Quarantines(st))
	s.Attestations = InForce(Attestations(st))
	rules := RulesOf(st)
	s.Simulated, s.OpenDisputes, s.RulesVersion = rules.Simulated(), len(todo(st, todoDispute)), rules.Version
	for _, c := range PendingRules(st) {
		if c.MinVersion > RulesVersion && s.UpdateHeight == 0 {
			s.UpdateHeight = c.Height
		}
	}
	return s
}

// EnergyOf returns the energy totals.
func EnergyOf(st State) Energy {
	e, _ := get[Energy](st, key(tabEnergy))
	return e
}

// Members returns all members, past ones too, ascending by device key.
func Members(st State) []MemberView {
	var all []MemberView
	for _, m := range collect[member](st, key(tabMember)) {
		v, _ := MemberOf(st, m.Member.Device)
		all = append(all, v)
	}
	return all
}

// MemberOf returns one member.
func MemberOf(st State, device chain.Key) (MemberView, bool) {
	m, ok := get[member](st, MemberKey(device))
	if !ok {
		return MemberView{}, false
	}
	n, _ := get[node](st, nodeKey(m.Member.Name))
	c := countersOf(st, device)
	v := MemberView{
		Member: m.Member, Node: n.Parent, Fee: n.Fee, Active: m.Active, JoinedMs: m.JoinedMs, LastSlot: c.LastSlot,
		Import: c.Import, Export: c.Export, Produced: c.Produced, BoughtLocal: c.BoughtLocal, SoldLocal: c.SoldLocal,
		SupplierImport: c.SupplierImport, SupplierExport: c.SupplierExport,
		Unauthorised: c.Unauthorised, FirmBought: c.FirmBought, FirmSold: c.FirmSold, Certificates: c.Certificates,
	}
	v.Head, _ = HeadOf(st, device)
	if val, ok := get[validator](st, key(tabValidator, m.Member.Validator[:])); ok && val.Device == device {
		v.Power = val.Power
	}
	return v, true
}

// Accounts returns all accounts, system accounts first, then ascending.
func Accounts(st State) []AccountView {
	var all []AccountView
	held := heldMoney(st)
	each(st, key(tabAccount), func(k []byte, n chain.Nano) bool {
		if chain.Account(k) == chain.AccountCollateral {
			return true // it is told as what its owners hold
		}
		all = append(all, AccountView{Account: chain.Account(k), Balance: n})
		return true
	})
	for i := range all {
		a := &all[i]
		a.Held = held[a.Account]
		a.Lots = lots(st, a.Account)
		a.Credits = credits(st, a.Account)
		a.Profile = ProfileOf(st, a.Account)
		for _, p := range OpenPayouts(st) {
			if p.Account == a.Account {
				a.Payouts = append(a.Payouts, p)
			}
		}
	}
	return all
}

// Balances returns all accounts with no more than money and discount credit,
// ascending.
func Balances(st State) []AccountView {
	credit := map[chain.Account]chain.Nano{}
	each(st, key(tabLot), func(k []byte, l lot) bool {
		credit[chain.Account(k[:20])] += l.Amount
		return true
	})
	var all []AccountView
	each(st, key(tabAccount), func(k []byte, n chain.Nano) bool {
		a := chain.Account(k)
		all = append(all, AccountView{Account: a, Balance: n, Credits: credit[a]})
		return true
	})
	return all
}

// BalanceOf is the account's entry of [Balances].
func BalanceOf(st State, a chain.Account) AccountView {
	return AccountView{Account: a, Balance: balance(st, a), Credits: credits(st, a)}
}

// AccountOf returns one account; an unknown one is empty.
func AccountOf(st State, a chain.Account) AccountView {
	v := AccountView{Account: a, Balance: balance(st, a), Held: heldMoney(st)[a], Credits: credits(st, a), Lots: lots(st, a), Profile: ProfileOf(st, a)}
	for _, p := range OpenPayouts(st) {
		if p.Account == a {
			v.Payouts = append(v.Payouts, p)
		}
	}
	return v
}

func lots(st State, a chain.Account) []LotView {
	var all []LotView
	each(st, key(tabLot, a[:]), func(k []byte, l lot) bool {
		all = append(all, LotView{Seq: binary.BigEndian.Uint64(k[len(a):]), Amount: l.Amount, Expires: l.Expires, Session: l.Session})
		return true
	})
	return all
}

// heldMoney returns what open sessions and firm orders hold, by account.
func heldMoney(st State) map[chain.Account]chain.Nano {
	held := collateral(st)
	for _, id := range openSessions(st) {
		s := session(st, id)
		held[s.Driver] += s.remaining()
	}
	return held
}

// SessionOf returns one session.
func SessionOf(st State, id chain.ID) (SessionView, bool) {
	return get[SessionView](st, SessionKey(id))
}

// Sessions returns the sessions in one of the given states, or all, in the
// order in which they were opened.
func Sessions(st State, in ...SessionState) []SessionView {
	var all []SessionView
	keep := func(_ []byte, s SessionView) bool {
		if len(in) == 0 || slices.Contains(in, s.State) {
			all = append(all, s)
		}
		return true
	}
	if len(in) == 0 || slices.ContainsFunc(in, func(s SessionState) bool { return !s.Open() }) {
		each(st, key(tabSession), keep)
	} else { // few, whatever the history
		for _, id := range openSessions(st) {
			keep(nil, session(st, id))
		}
	}
	slices.SortStableFunc(all, func(a, b SessionView) int { return cmp.Compare(a.OpenedHeight, b.OpenedHeight) })
	return all
}

// OpenSession returns the session that occupies a connector: held or charging.
func OpenSession(st State, device chain.Key, connector uint8) (SessionView, bool) {
	id, ok := get[chain.ID](st, connectorKey(device, connector))
	if !ok {
		return SessionView{}, false
	}
	return SessionOf(st, id)
}

// SlotOf returns a cleared slot with its fills.
func SlotOf(st State, s chain.Slot) (SlotView, bool) {
	v, ok := get[SlotView](st, SlotKey(s))
	if ok {
		v.Fills = collect[FillView](st, FillKey(s, ""))
	}
	return v, ok
}

// RecentSlots returns the newest n cleared slots that had energy, newest
// first.
func RecentSlots(st State, n int) []SlotView {
	c, _ := get[clock](st, key(tabClock))
	var all []SlotView
	for at := c.Cleared; len(all) < n; {
		v, ok := SlotOf(st, at)
		if !ok {
			break
		}
		all = append(all, v)
		at = v.Previous
	}
	return all
}

// TariffAt returns the supplier's prices in a slot.
func TariffAt(st State, s chain.Slot) (retail, feedIn chain.NanoPerWh) {
	rules := RulesOf(st)
	return rules.at(Tariffs(st), s)
}

// Tariffs returns the ranges in which a tariff other than the genesis' holds,
// ascending, none overlapping.
func Tariffs(st State) []chain.Tariff { return collect[chain.Tariff](st, key(tabTariff)) }

// Invitations returns all invitations, ascending by key.
func Invitations(st State) []InvitationView { return collect[InvitationView](st, key(tabInvitation)) }

// InvitationOf returns the invitation of a one-time key.
func InvitationOf(st State, k chain.Key) (InvitationView, bool) {
	return get[InvitationView](st, key(tabInvitation, k[:]))
}

// NextNonce returns the nonce that the signer's next transaction must carry.
func NextNonce(st State, signer chain.Key) uint64 {
	n, _ := get[uint64](st, key(tabNonce, signer[:]))
	return n + 1
}

// HeadOf returns the ledger's position in a gateway's own chain.
func HeadOf(st State, device chain.Key) (Head, bool) { return get[Head](st, HeadKey(device)) }

// MeterOf returns the ledger's position in the records of one meter.
func MeterOf(st State, device chain.Key, id string) (MeterView, bool) {
	v, ok := get[MeterView](st, meterKey(device, id))
	v.Device, v.Meter = device, id
	return v, ok
}

// Meters returns a gateway's meters, ascending by id.
func Meters(st State, device chain.Key) []MeterView {
	var all []MeterView
	each(st, key(tabMeter, device[:]), func(k []byte, v MeterView) bool {
		v.Device, v.Meter = device, string(k[len(device):])
		all = append(all, v)
		return true
	})
	return all
}
