package panel

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/report"
	"github.com/joulegate/joulegate/meter"
)

// Backend is the gateway as the panel and the command line see it. Methods
// are safe for concurrent use. Errors made with NotFound, Refused, Invalid or
// Unavailable reach the caller as they are; any other error is the gateway's
// own trouble: it is logged, and its text is shown on the control socket only.
type Backend interface {
	Money

	Status(ctx context.Context) (Status, error)
	// Watch sends what changes until ctx ends, then closes the channel. The
	// first updates describe the present. A slow receiver loses older
	// updates, never the newest.
	Watch(ctx context.Context) (<-chan Update, error)

	LedgerStatus(ctx context.Context) (LedgerStatus, error)
	// LedgerVerify re-executes every block that is here and may take minutes. It calls
	// progress, from one goroutine, as often as it likes.
	LedgerVerify(ctx context.Context, progress func(VerifyProgress)) (VerifyReport, error)
	// Bundle writes what a third party needs to check the ledger offline. It
	// may take minutes. Control socket only.
	Bundle(ctx context.Context, q BundleQuery, w io.Writer) error
	// Stores writes journal and ledger as they are at one moment, for a
	// backup. Control socket only.
	Stores(ctx context.Context, w io.Writer) error
	// StateHash returns the hash after the block of that height; 0 means the
	// latest.
	StateHash(ctx context.Context, height int64) (StateHash, error)
	// Claim returns an entry of the ledger's state with all that another
	// microgrid checks it by (consensus.Claim). Only the control socket
	// offers it.
	Claim(ctx context.Context, key []byte) ([]byte, error)
	// Checkpoint returns the signed header of a block with its validators; 0
	// means the latest.
	Checkpoint(ctx context.Context, height int64) (chain.Checkpoint, error)
	// Genesis returns the exact bytes of the genesis file.
	Genesis(ctx context.Context) ([]byte, error)
	// Submit gives a signed envelope to the ledger and waits until a block
	// holds it or it is refused.
	Submit(ctx context.Context, envelope []byte) (TxResult, error)
	// Nonce returns the nonce that signer's next transaction must carry.
	Nonce(ctx context.Context, signer chain.Key) (uint64, error)

	Accounts(ctx context.Context) ([]Account, error)
	Account(ctx context.Context, id chain.Account) (Account, error)
	Members(ctx context.Context) ([]Member, error)
	Peers(ctx context.Context) ([]Peer, error)
	Meters(ctx context.Context) ([]board.Meter, error)
	// ConfirmMeter takes a person's word that another device, or registers
	// that begin anew, are in order: what the meter says counts again, from
	// its next reading on. It needs the control socket.
	ConfirmMeter(ctx context.Context, id string) error
	// Chargers returns this gateway's chargers.
	Chargers(ctx context.Context) ([]board.Charger, error)
	// OrderCharger does one thing to one charger and returns it as it is
	// then. It asks neither the ledger nor the network. It needs the control
	// socket.
	OrderCharger(ctx context.Context, id uint8, o ChargerOrder) (board.Charger, error)
	// Update tells how the gateway's program stands, after it was told to
	// look for a release, to apply one or to go back. What takes long goes on
	// afterwards. It needs the control socket.
	Update(ctx context.Context, o UpdateOrder) (board.Update, error)
	// Dim takes an order of the utility to all chargers. It only lowers. It
	// needs the control socket.
	Dim(ctx context.Context, o DimOrder) error
	// Events returns what this gateway put on record about itself, from the
	// time from up to but not at to, oldest first; zero times are open ends.
	// Of more than MaxEvents it returns the newest.
	Events(ctx context.Context, from, to time.Time) ([]Event, error)

	// Guard says what the guard sees and has found.
	Guard(ctx context.Context) (guard.Status, error)
	// ReloadNames has the name server read its lists anew, and returns the
	// number under which Guard tells how that goes.
	ReloadNames(ctx context.Context) (uint64, error)

	// GuardOrder tells the guard to release or to answer something.
	GuardOrder(ctx context.Context, o GuardOrder) error
	// GuardReport says what is on record, by the requirements of standards;
	// zero times are the last 30 days. It names nobody of the household.
	GuardReport(ctx context.Context, from, to time.Time) (report.Report, error)
	Market(ctx context.Context) (Market, error)
	Energy(ctx context.Context) (ledger.Energy, error)

	Sessions(ctx context.Context) ([]Session, error)
	Session(ctx context.Context, id chain.ID) (Session, error)
	// Quote makes an offer to a driver. It holds nothing.
	Quote(ctx context.Context, req QuoteRequest) (Quote, error)
	// SetPlan says by when the energy of a session of this gateway is wanted,
	// and at which price at most. It needs the control socket.
	SetPlan(ctx context.Context, id chain.ID, o PlanOrder) (Session, error)
	// StartSession submits the signed quote and returns once the ledger
	// holds the driver's money or has refused.
	StartSession(ctx context.Context, q chain.SignedQuote) (Session, error)
	// StopSession ends a session of this gateway. The order is checked by
	// the panel before it gets here; on the control socket it may be empty.
	StopSession(ctx context.Context, id chain.ID, order StopOrder) (Session, error)
	// Receipt returns a closed session's receipt: format "ocmf", "xml" or
	// "html", a page to print.
	Receipt(ctx context.Context, id chain.ID, format string) ([]byte, error)

	// Mandates returns what an account pays for: mandates and reserves.
	Mandates(ctx context.Context, payer chain.Account) (Mandates, error)
	// Failsafe returns what a charger's wallbox does when this gateway is
	// gone; with set, after it was told so. It needs the control socket.
	Failsafe(ctx context.Context, charger uint8, set *Failsafe) (Failsafe, error)

	// Invite makes a token for one new gateway. It needs an operator's key
	// on this gateway.
	Invite(ctx context.Context, req InviteRequest) (Invitation, error)

	CommissionBackend
	TradeBackend
}

// Status says who this gateway is and whether it is well.
type Status struct {
	Gateway     string     `json:"gateway"`
	Version     string     `json:"version"`
	Device      chain.Key  `json:"device"`
	Chain       string     `json:"chain"`
	Currency    string     `json:"currency"` // ISO 4217
	SlotSeconds int64      `json:"slot_seconds"`
	Started     time.Time  `json:"started"`
	Height      int64      `json:"height"`
	StateHash   chain.Hash `json:"state_hash"`
	BlockTime   time.Time  `json:"block_time"`
	Peers       int        `json:"peers"` // connected now
	Members     int        `json:"members"`
	Broker      string     `json:"broker,omitempty"` // address of the embedded MQTT broker
	Basis       string     `json:"basis,omitempty"`  // legal basis of selling for money; "simulated" until recorded
}

// Mandates is what an account pays for.
type Mandates struct {
	Mandates []ledger.MandateView `json:"mandates"`
	Reserves []ledger.ReserveView `json:"reserves"`
}

// Failsafe is what a wallbox does when its gateway is gone.
type Failsafe struct {
	Charger   uint8             `json:"charger"`
	Profile   string            `json:"profile,omitempty"`
	Current   meter.MilliAmpere `json:"current_ma"`        // per phase; 0: pauses, or not told
	TimeoutMs int64             `json:"timeout_ms"`        // silence after which it counts as gone; 0: it does not watch
	BeatMs    int64             `json:"beat_ms,omitempty"` // how often this gateway shows that it is there
	Fixed     bool              `json:"fixed,omitempty"`   // the model does not let it be set
}

// Update is one thing that changed: one server-sent event.
type Update struct {
	Event string // "snapshot" (board.Snapshot), "block" (Block), "event" (anything)
	Data  any    // encoded as JSON
}

// Names of updates.
const (
	UpdateSnapshot = "snapshot"
	UpdateBlock    = "block"
	UpdateEvent    = "event"
)

// Block is a ledger block in one line.
type Block struct {
	Height    int64      `json:"height"`
	Time      time.Time  `json:"time"`
	Txs       int        `json:"txs"`
	Rejected  int        `json:"rejected"` // transactions in it that had no effect
	StateHash chain.Hash `json:"state_hash"`
	Proposer  string     `json:"proposer,omitempty"` // member's name
	What      []string   `json:"what,omitempty"`     // its records in words, at most 8
}

// LedgerStatus is the ledger's summary.
type LedgerStatus struct {
	ledger.Status
	StateHash  chain.Hash       `json:"state_hash"`
	First      int64            `json:"first_height"` // oldest block that is here
	Validator  bool             `json:"validator"`    // this gateway votes
	Waiting    int              `json:"waiting"`      // transactions not in a block yet
	CatchingUp bool             `json:"catching_up,omitempty"`
	NewKey     bool             `json:"new_key,omitempty"`  // the ledger counts another validator key of this gateway: it was restored
	Sync       string           `json:"sync,omitempty"`     // what is done to catch up without the blocks
	Halted     string           `json:"halted,omitempty"`   // why the ledger stopped for good
	Counters   map[string]int64 `json:"counters,omitempty"` // refusals by reason, since start
	Blocks     []Block          `json:"blocks"`             // the newest first, at most 32
}

// StateHash names the state after a block.
type StateHash struct {
	Height    int64      `json:"height"`
	StateHash chain.Hash `json:"state_hash"`
}

// VerifyProgress says how far a verification is.
type VerifyProgress struct {
	Height int64 `json:"height"`
	To     int64 `json:"to"`
}

// BundleQuery says what a bundle is about; the zero value means everything.
type BundleQuery struct {
	Session chain.ID  // zero: none
	From    time.Time // with To a range of time; zero: none
	To      time.Time
}

// VerifyReport is the outcome of re-executing the ledger.
type VerifyReport struct {
	FromHeight int64      `json:"from_height"` // first block that was executed again
	Start      string     `json:"start"`       // what that began from, and who vouches for it
	Height     int64      `json:"height"`
	StateHash  chain.Hash `json:"state_hash"`
	Violations []string   `json:"violations"`
}

// TxResult is what became of a transaction.
type TxResult struct {
	Code   uint32     `json:"code"` // 0: it took effect
	Info   string     `json:"info"`
	Height int64      `json:"height,omitempty"` // of the block that holds it
	Hash   chain.Hash `json:"hash"`
}

// Account is a balance.
type Account struct {
	ledger.AccountView
	Name string `json:"name,omitempty"` // of the member whose owner holds it
}

// Member is a gateway of the microgrid.
type Member struct {
	ledger.MemberView
	Self      bool           `json:"self,omitempty"`
	Connected bool           `json:"connected"` // to this gateway, now
	Newest    chain.Position `json:"newest"`    // newest block of it that this gateway has
}

// Peer is a live connection.
type Peer struct {
	Device chain.Key `json:"device"`
	Name   string    `json:"name"` // of the member; empty: not a member
	Addr   string    `json:"addr"`
	Since  time.Time `json:"since"`
	// Direction is "in" when the peer dialled, "out" when this gateway did.
	Direction string `json:"direction"`
}

// ChargerOrder is what a person wants of a charger.
type ChargerOrder struct {
	Do    string            `json:"do"`                 // one of ChargerOrders
	Limit meter.MilliAmpere `json:"limit_ma,omitempty"` // of limit: per phase; 0: no limit of a person's
	Mode  string            `json:"mode,omitempty"`     // of mode: off, now, surplus, market
}

// DimOrder is an order of the utility.
type DimOrder struct {
	Limit meter.Watt    `json:"limit_w"` // for each charger; 0: no limit
	For   time.Duration `json:"for_ns"`  // 0: until the next order
}

// ChargerOrders are what can be done to a charger: an ordinary stop, clearing
// latched faults, starting without waiting for the spread of starts, a limit
// below the rating, a mode.
var ChargerOrders = []string{"stop", "clear", "start", "limit", "mode"}

// CommissioningOrder begins or ends commissioning mode; "" asks.
type CommissioningOrder struct {
	Do string `json:"do"` // start, stop or ""
}

// Commissioning is the mode of a gateway that a person stands before.
type Commissioning struct {
	On    bool      `json:"on"`
	Until time.Time `json:"until,omitzero"`
	Done  []string  `json:"done"` // what was tried, in words
}

// UpdateOrder is about the gateway's own program; "" asks.
type UpdateOrder struct {
	Do string `json:"do"` // check, apply, rollback or ""
}

// RelayOrder asks for a test of a charger's relay.
type RelayOrder struct {
	Charger uint8 `json:"charger"`
	Seconds int   `json:"seconds"` // 1..5
}

// MaxEvents is the most events of one answer.
const MaxEvents = 1000

// Event is something that a gateway put on record, with the block of its own
// chain that proves it.
type Event struct {
	Time     time.Time      `json:"time"` // by the gateway's clock
	Code     string         `json:"code"`
	Severity uint8          `json:"severity"` // 1 info, 2 warning, 3 alarm
	Subject  string         `json:"subject"`
	Text     string         `json:"text"`
	Detail   chain.Hash     `json:"detail"` // SHA-256 of the text
	Block    chain.Position `json:"block"`
	Hash     chain.Hash     `json:"block_hash"`
}

// Session is a charging session as the ledger knows it.
type Session struct {
	ledger.SessionView
	GatewayName string     `json:"gateway_name"`
	Refunded    chain.Nano `json:"refunded_nano,omitempty"` // of the bill
	Dispute     uint64     `json:"dispute,omitempty"`       // number
	Invoice     string     `json:"invoice,omitempty"`       // document that bills it
	NotBillable string     `json:"not_for_billing,omitempty"`
	// Plan is when it charges, told by its own gateway while it is open.
	Plan *board.Plan `json:"plan,omitempty"`
}

// QuoteRequest asks for a price.
type QuoteRequest struct {
	Connector uint8          `json:"connector"` // from 1
	Driver    chain.Key      `json:"driver"`
	MaxWh     meter.WattHour `json:"max_wh"`
	Redeem    bool           `json:"redeem"`
	PlanOrder                // a goal, for a connector in mode market

	// SellWh is the most that the vehicle may give, each Wh for SellLimit at
	// least. MaxWh may be 0 then.
	SellWh    meter.WattHour  `json:"sell_wh,omitempty"`
	SellLimit chain.NanoPerWh `json:"sell_limit_nano_per_wh,omitempty"`
}

// PlanOrder is what a driver wants by when. Empty, he charges at once.
type PlanOrder struct {
	By       time.Time       `json:"by,omitzero"`                     // the departure
	MaxPrice chain.NanoPerWh `json:"max_price_nano_per_wh,omitempty"` // of any Wh; 0: any price
}

// Quote is a price offered, with the exact bytes to sign.
type Quote struct {
	Bytes   []byte          `json:"quote"` // canonical encoding of chain.Quote; sign under chain.DomainQuote
	ID      chain.ID        `json:"id"`
	Gateway chain.Key       `json:"gateway"`
	Driver  chain.Key       `json:"driver"`
	Expires time.Time       `json:"expires"`
	MaxWh   meter.WattHour  `json:"max_wh"`
	Cap     chain.NanoPerWh `json:"cap_nano_per_wh"`
	Hold    chain.Nano      `json:"hold_nano"`
	Redeem  bool            `json:"redeem"`
	Plan    *board.Plan     `json:"plan,omitempty"` // as things stand; no promise
	Words   []string        `json:"words"`          // the same for a person, one fact per line
}

// Sign returns the quote as the driver authorises it.
func (q *Quote) Sign(driver ed25519.PrivateKey) chain.SignedQuote {
	return chain.SignedQuote{Quote: q.Bytes, Sig: chain.Sign(driver, chain.DomainQuote, q.Bytes)}
}

// signedQuote is chain.SignedQuote in JSON.
type signedQuote struct {
	Quote []byte `json:"quote"`
	Sig   []byte `json:"sig"`
}

// StopOrder is the driver's word that a session shall end. It needs no date:
// a session ends once.
type StopOrder struct {
	Driver chain.Key `json:"driver"`
	Sig    []byte    `json:"sig,omitempty"`
}

// domainStop separates stop orders from everything else a driver signs.
const domainStop = "joulegate/stop/1\x00"

// SignStop makes the order to stop session id.
func SignStop(id chain.ID, driver ed25519.PrivateKey) StopOrder {
	o := StopOrder{Sig: chain.Sign(driver, domainStop, id[:])}
	copy(o.Driver[:], driver.Public().(ed25519.PublicKey))
	return o
}

// Check reports whether the order is the driver's of that session.
func (o StopOrder) Check(id chain.ID, driver chain.Account) error {
	if chain.AccountOf(o.Driver) != driver || !chain.Verify(o.Driver, domainStop, id[:], o.Sig) {
		return &Error{http.StatusForbidden, "forbidden", "a session is stopped by an order that its driver signed"}
	}
	return nil
}

// InviteRequest asks for a token.
type InviteRequest struct {
	Node      string          `json:"node"` // under which the house appears
	Fee       chain.NanoPerWh `json:"fee"`
	Validator bool            `json:"validator"`
	Valid     time.Duration   `json:"valid_ns"`
}

// Invitation is the answer: one line to paste. It is a secret.
type Invitation struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// Error is a failure as the API tells it.
type Error struct {
	Status  int    `json:"-"`     // HTTP status
	Code    string `json:"code"`  // one word for programs
	Message string `json:"error"` // one line for people
}

func (e *Error) Error() string { return e.Message }

// NotFound says that what was asked for does not exist.
func NotFound(format string, a ...any) error {
	return &Error{http.StatusNotFound, "not_found", fmt.Sprintf(format, a...)}
}

// Invalid says that the request makes no sense.
func Invalid(format string, a ...any) error {
	return &Error{http.StatusBadRequest, "invalid", fmt.Sprintf(format, a...)}
}

// Refused says that the request makes sense and is not granted: no money, an
// occupied connector, an expired quote.
func Refused(format string, a ...any) error {
	return &Error{http.StatusConflict, "refused", fmt.Sprintf(format, a...)}
}

// Unavailable says that the gateway cannot answer now.
func Unavailable(format string, a ...any) error {
	return &Error{http.StatusServiceUnavailable, "unavailable", fmt.Sprintf(format, a...)}
}

// Filling says that statements can be told once their index has been filled,
// and how far that is.
func Filling(done, of int64) error {
	return &Error{http.StatusServiceUnavailable, CodeFilling, fmt.Sprintf("the index of statements is being filled: block %d of %d; ask again in a moment", done, of)}
}

// CodeFilling is the code of [Filling].
const CodeFilling = "filling"

// asError makes any error presentable; shown tells whether a stranger may see
// its text.
func asError(err error) (e *Error, shown bool) {
	if errors.As(err, &e) {
		return e, true
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{http.StatusGatewayTimeout, "timeout", "the gateway did not answer in time"}, true
	}
	return &Error{http.StatusInternalServerError, "internal", err.Error()}, false
}
