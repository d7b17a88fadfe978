package chain

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/joulegate/joulegate/meter"
)

// Transaction kinds about money and rules. Append only.
const (
	TxJoint         TxKind = 30 // Joint: what several keys state together
	TxRules         TxKind = 31 // RulesChange, by operators
	TxPayout        TxKind = 32 // Payout, by the account's holder
	TxPayoutPaid    TxKind = 33 // PayoutPaid, by operators
	TxPayoutCancel  TxKind = 34 // PayoutCancel, by the account's holder
	TxRefund        TxKind = 35 // Refund, by operators
	TxDispute       TxKind = 36 // Dispute, by the session's driver
	TxAnswer        TxKind = 37 // Answer, by an operator or the charger's owner
	TxResolve       TxKind = 38 // Resolve, by the driver, operators or an auditor
	TxInvoice       TxKind = 39 // IssueInvoice, by an operator
	TxProfile       TxKind = 40 // Profile, by the account's holder
	TxMeterApproval TxKind = 41 // MeterApproval, by operators
	TxMeterRelease  TxKind = 42 // MeterRelease, by operators or an auditor
	TxAttest        TxKind = 43 // Attestation, by an auditor
	TxPeriods       TxKind = 44 // BillingPeriods, by an operator
)

// DomainApproval separates the approval of a proposal from everything else
// that a person's key signs.
const DomainApproval = "joulegate/approval/1\x00"

// Limits of joint statements.
const (
	MaxApprovals  = 32                       // signatures under one proposal
	MaxProposalMs = 30 * 24 * 60 * 60 * 1000 // how far ahead of block time a proposal may expire
)

// Proposal is what several people state together: a minting that an auditor
// has to see, a change of the rules that two of three operators agree to.
//
//	drafter ──Proposal bytes──► each signs the same bytes ──► Joint ──► ledger
//
// It carries no nonce of anybody, so that those who sign can go on with their
// work meanwhile; its random id and its expiry keep it from being used twice.
type Proposal struct {
	Version uint8           `cbor:"1,keyasint"`
	Chain   string          `cbor:"2,keyasint"`
	ID      ID              `cbor:"3,keyasint"` // random
	Expires int64           `cbor:"4,keyasint"` // Unix ms of block time; at most MaxProposalMs ahead when it is executed
	Kind    TxKind          `cbor:"5,keyasint"`
	Body    cbor.RawMessage `cbor:"6,keyasint"`
}

// Approval is one person's signature under the proposal's exact bytes.
type Approval struct {
	Key Key    `cbor:"1,keyasint" json:"key"`
	Sig []byte `cbor:"2,keyasint" json:"sig"` // Ed25519 under DomainApproval
}

// Joint submits a proposal with its approvals. Its transaction is signed by
// one of those who approved.
type Joint struct {
	Proposal  []byte     `cbor:"1,keyasint" json:"proposal"`  // canonical encoding of Proposal
	Approvals []Approval `cbor:"2,keyasint" json:"approvals"` // ascending by key, no key twice
}

// Open checks form and every signature and returns the proposal.
func (j *Joint) Open() (Proposal, error) {
	var p Proposal
	if len(j.Approvals) == 0 || len(j.Approvals) > MaxApprovals {
		return p, fmt.Errorf("proposal with %d approvals, 1..%d", len(j.Approvals), MaxApprovals)
	}
	if err := Unmarshal(j.Proposal, &p); err != nil {
		return p, fmt.Errorf("proposal: %w", err)
	}
	if p.Version != Version {
		return p, fmt.Errorf("proposal version %d, this program knows %d", p.Version, Version)
	}
	for i, a := range j.Approvals {
		if i > 0 && string(j.Approvals[i-1].Key[:]) >= string(a.Key[:]) {
			return p, errors.New("proposal: the approvals are not in ascending order of their keys")
		}
		if !Verify(a.Key, DomainApproval, j.Proposal, a.Sig) {
			return p, fmt.Errorf("proposal: approval of %s: %w", a.Key.Short(), ErrSignature)
		}
	}
	return p, nil
}

// Add puts an approval in its place. A second one of the same key replaces
// the first.
func (j *Joint) Add(a Approval) {
	i, found := slices.BinarySearchFunc(j.Approvals, a.Key, func(x Approval, k Key) int { return strings.Compare(string(x.Key[:]), string(k[:])) })
	if found {
		j.Approvals[i] = a
		return
	}
	j.Approvals = slices.Insert(j.Approvals, i, a)
}

// TaxRate is the tax contained in prices from a moment on.
type TaxRate struct {
	From int64 `cbor:"1,keyasint" json:"from_ms"` // Unix ms of the supply
	PPM  int64 `cbor:"2,keyasint" json:"ppm"`     // of the net amount: 190000 is 19 %; 0..1e6
}

// RulesChange changes the rules from a block on. What is nil stays.
type RulesChange struct {
	Height       int64      `cbor:"1,keyasint" json:"height"`                          // first block under the changed rules
	MinVersion   uint32     `cbor:"2,keyasint,omitempty" json:"min_version,omitempty"` // least rules version a program must know to go on; 0: as before
	Grace        *int64     `cbor:"3,keyasint,omitempty" json:"grace_seconds,omitempty"`
	Start        *int64     `cbor:"4,keyasint,omitempty" json:"start_limit_seconds,omitempty"`
	Operators    []Key      `cbor:"5,keyasint,omitempty" json:"operators,omitempty"` // replaces all
	Threshold    *int64     `cbor:"6,keyasint,omitempty" json:"threshold,omitempty"`
	Auditors     *[]Key     `cbor:"7,keyasint,omitempty" json:"auditors,omitempty"` // replaces all; may be empty
	DailyMintCap *Nano      `cbor:"8,keyasint,omitempty" json:"daily_mint_cap_nano,omitempty"`
	Retail       *NanoPerWh `cbor:"9,keyasint,omitempty" json:"retail_nano_per_wh,omitempty"`
	FeedIn       *NanoPerWh `cbor:"10,keyasint,omitempty" json:"feed_in_nano_per_wh,omitempty"`
	EarnPPM      *int64     `cbor:"11,keyasint,omitempty" json:"earn_ppm,omitempty"`
	RedeemPPM    *int64     `cbor:"12,keyasint,omitempty" json:"redeem_cap_ppm,omitempty"`
	ExpirySlots  *int64     `cbor:"13,keyasint,omitempty" json:"expiry_slots,omitempty"` // of lots earned from then on
	Transfers    *bool      `cbor:"14,keyasint,omitempty" json:"transfers,omitempty"`
	Basis        *string    `cbor:"15,keyasint,omitempty" json:"basis,omitempty"`
	PayoutDays   *int64     `cbor:"16,keyasint,omitempty" json:"payout_days,omitempty"`
	DisputeDays  *int64     `cbor:"17,keyasint,omitempty" json:"dispute_days,omitempty"`
	AnswerDays   *int64     `cbor:"18,keyasint,omitempty" json:"answer_days,omitempty"`
	ResolveDays  *int64     `cbor:"19,keyasint,omitempty" json:"resolve_days,omitempty"`
	Tax          *TaxRate   `cbor:"20,keyasint,omitempty" json:"tax,omitempty"` // added to the list; From not before block time
	RetainDays   *int64     `cbor:"21,keyasint,omitempty" json:"retain_days,omitempty"`
	Invoices     *string    `cbor:"22,keyasint,omitempty" json:"invoices,omitempty"`    // monthly or off
	StoragePPM   *int64     `cbor:"23,keyasint,omitempty" json:"storage_ppm,omitempty"` // for what is charged from then on
}

// Payout asks for prepaid money back. It leaves the balance at once.
type Payout struct {
	Amount Nano `cbor:"1,keyasint"` // > 0, whole minor units: a bank moves nothing smaller
}

// PayoutPaid states that a payout has been paid by a bank.
type PayoutPaid struct {
	Payout  uint64 `cbor:"1,keyasint"`
	BankRef string `cbor:"2,keyasint"` // unique, as of Mint and Burn
}

// PayoutCancel takes a payout back before it is paid.
type PayoutCancel struct {
	Payout uint64 `cbor:"1,keyasint"`
}

// Refund gives back part of a settled session's bill, out of the supplier's
// account.
type Refund struct {
	Session ID     `cbor:"1,keyasint"`
	Amount  Nano   `cbor:"2,keyasint"` // of the bill, credit and money together
	Reason  string `cbor:"3,keyasint"` // 1..64 bytes, no personal data
}

// Dispute says that a settled session's bill is wrong by an amount.
type Dispute struct {
	Session ID     `cbor:"1,keyasint"`
	Amount  Nano   `cbor:"2,keyasint"`
	Reason  string `cbor:"3,keyasint"` // 1..64 bytes, no personal data
	Detail  Hash   `cbor:"4,keyasint"` // SHA-256 of the full text, kept off the ledger; zero: none
}

// Answer is the other side's word on a dispute, and what it concedes.
type Answer struct {
	Dispute uint64 `cbor:"1,keyasint"`
	Concede Nano   `cbor:"2,keyasint"` // 0..disputed: the driver may accept it
	Reason  string `cbor:"3,keyasint"`
	Detail  Hash   `cbor:"4,keyasint"`
}

// Resolve ends a dispute.
type Resolve struct {
	Dispute uint64 `cbor:"1,keyasint"`
	Refund  Nano   `cbor:"2,keyasint"` // 0..disputed
	Reason  string `cbor:"3,keyasint"`
}

// IssueInvoice bills everything of an account that has not been billed: one
// invoice for what it bought and one self-billed invoice for what it sold.
type IssueInvoice struct {
	Account Account `cbor:"1,keyasint"`
}

// TaxStatus says how a person stands to value added tax.
type TaxStatus uint8

// Tax statuses.
const (
	TaxPrivate  TaxStatus = 0 // not a taxable person: sells without tax
	TaxBusiness TaxStatus = 1 // a taxable person with a VAT id
	TaxSmall    TaxStatus = 2 // a business that is exempt as a small one
)

var taxStatuses = [...]string{"private", "business", "small"}

func (s TaxStatus) String() string {
	if int(s) >= len(taxStatuses) {
		return fmt.Sprintf("tax_status(%d)", uint8(s))
	}
	return taxStatuses[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s TaxStatus) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *TaxStatus) UnmarshalText(b []byte) error {
	i := slices.Index(taxStatuses[:], string(b))
	if i < 0 {
		return fmt.Errorf("unknown tax status %q (private, business, small)", b)
	}
	*s = TaxStatus(i)
	return nil
}

// Profile is what an account's holder tells of himself. Names, addresses and
// the VAT id itself stay off the ledger.
type Profile struct {
	Tax     TaxStatus `cbor:"1,keyasint" json:"tax_status"`
	VATHash Hash      `cbor:"2,keyasint" json:"vat_hash"` // VATHash of the VAT id; zero: none
	Redeem  bool      `cbor:"3,keyasint" json:"redeem"`   // spend discount credit on every bill unless told otherwise
}

// VATHash hides a VAT id. There are few VAT ids, so the salt (16 random bytes
// that the operator's file keeps beside the name) is what hides it.
func VATHash(salt [16]byte, id string) Hash {
	return Sum(append(append([]byte("joulegate/vat/1\x00"), salt[:]...), strings.ToUpper(strings.ReplaceAll(id, " ", ""))...))
}

// MeterApproval records that what a charging point or a house's meter counts
// may be billed by the kilowatt-hour.
type MeterApproval struct {
	Device    Key    `cbor:"1,keyasint" json:"device"`
	Connector uint8  `cbor:"2,keyasint" json:"connector"` // charging point; 0: the site meter
	Approval  string `cbor:"3,keyasint" json:"approval"`  // type approval and verification mark, 1..64 bytes; empty: withdrawn
	Until     int64  `cbor:"4,keyasint" json:"until_ms"`  // Unix ms; end of the verification period
}

// MeterRelease ends the quarantine of a meter that has jumped, once somebody
// has looked at it, and says what of the jump was energy after all. Import and
// Export count from what was billed when it jumped: up to all of the excess,
// down to taking back what was billed. A charging point's excess is imported
// or not at all.
type MeterRelease struct {
	Device    Key            `cbor:"1,keyasint" json:"device"`
	Connector uint8          `cbor:"2,keyasint" json:"connector"` // charging point; 0: a meter of the gateway
	Meter     string         `cbor:"3,keyasint" json:"meter"`     // its id, with connector 0
	Import    meter.WattHour `cbor:"4,keyasint" json:"import_wh"`
	Export    meter.WattHour `cbor:"5,keyasint" json:"export_wh"`
	Reason    string         `cbor:"6,keyasint" json:"reason"` // 1..64 bytes, no personal data
}

// Attestation is what an auditor says of the microgrid: that he has examined
// the scope over the period, and stands by it until it expires. The same scope
// and period said again replaces what was said; expiry 0 withdraws it.
type Attestation struct {
	Scope   string `cbor:"1,keyasint" json:"scope"`         // 1..64 bytes, no personal data, for example "metering and settlement"
	From    int64  `cbor:"2,keyasint" json:"from_ms"`       // Unix ms; begin of the period
	To      int64  `cbor:"3,keyasint" json:"to_ms"`         // its end, without; not after block time
	Expires int64  `cbor:"4,keyasint" json:"expires_ms"`    // Unix ms of block time; 0: withdrawn
	Report  Hash   `cbor:"5,keyasint" json:"report_sha256"` // SHA-256 of the auditor's report; zero: none
}

// BillingPeriods says when invoices end, in slots: period i is the slots from
// Bounds[i] to before Bounds[i+1]. Whoever knows the operator's time zone
// makes them of local calendar months; the ledger knows no zones. They replace
// all bounds that are still to come. Where no period is set, months of UTC
// stand in.
type BillingPeriods struct {
	Bounds []Slot `cbor:"1,keyasint"` // ascending, all to come; 2..[MaxTableRanges]
}
