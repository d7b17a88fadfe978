package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/joulegate/joulegate/chain"
)

// Limits. What exceeds one is refused with CodeLimit or CodeRange, except
// where a later block goes on with the rest.
const (
	MaxMembers    = 1000 // active
	MaxValidators = 13
	MaxTariffs    = 1024 // ranges not yet forgotten
	MaxOperators  = 16
	// MaxPrice bounds prices, fees and limits. With the energy that one slot
	// can hold, it keeps every product of price and energy within 63 bits.
	MaxPrice chain.NanoPerWh = 100_000_000_000

	// SilentSlots: a charging session without a record for longer, and for
	// longer than the start limit, is closed by rule on its last register.
	SilentSlots = 4

	maxInvitations      = 1000       // open ones
	maxMeters           = 32         // of one gateway
	maxMemberPower      = 10_000_000 // W at one connection
	maxDepth            = 16         // edges from the root of the fee tree to a house
	maxNodes            = 1024       // inner nodes; with the houses, the prices of a slot fit one entry
	maxAddrs            = 4          // of a member
	maxAddrBytes        = 128
	maxText             = 64      // bytes of a bank reference or a reason
	maxSlot             = 1 << 40 // keeps slot times within 63 bits
	maxSlotsPerBlock    = 32      // cleared; the next block goes on
	maxExpiriesPerBlock = 1024    // credit lots; the next block goes on
	pastBlocks          = 64      // of each gateway, remembered to tell a duplicate from equivocation
	tariffMemory        = 2880    // slots for which a past tariff is kept, for late readings

	votingPower         = 10  // of every validator
	defaultStartSeconds = 900 // when the genesis sets no start limit
	clockSlackMs        = 600_000
)

// BlockInput is one decided block of the agreed order.
type BlockInput struct {
	Height int64
	TimeMs int64 // block time, Unix ms: the ledger's only clock
	Txs    [][]byte
	Trace  bool // note movements

	bug func(st State, raw []byte) error // tests only: runs within each transaction
}

// BlockOutput is what a block did.
type BlockOutput struct {
	Results    []TxResult        // one per transaction, same order
	Validators []ValidatorUpdate // to be told to the consensus engine
	Events     []Event
	Violations []Violation // transactions refused because they would break an invariant
	Movements  []Movement  // of every account, if BlockInput.Trace
}

// TxResult is the outcome of one transaction. Anything but CodeOK left the
// state untouched.
type TxResult struct {
	Code    Code           `json:"code"`
	Info    string         `json:"info,omitempty"`
	Refused []RecordResult `json:"refused,omitempty"` // records of an accepted gateway block that had no effect
}

// RecordResult is the refusal of one record in a gateway block. The block
// stands and its position is used: otherwise one bad record would block its
// author's chain for ever.
type RecordResult struct {
	Index int              `json:"index"`
	Kind  chain.RecordKind `json:"kind"`
	Code  Code             `json:"code"`
	Info  string           `json:"info,omitempty"`
}

// ValidatorUpdate changes the power of a consensus key; 0 removes it.
type ValidatorUpdate struct {
	Key   chain.Key `json:"key"`
	Power int64     `json:"power"`
}

// Event tells people and logs what happened; no part of the state. Codes:
//
//	audit.attested  .withdrawn                               auditor's key
//	block.equivocation                                       subject: device key
//	charger.unauthorised                                     member name
//	credit.expired  money.minted  money.burned               account
//	payout.asked  .paid  .cancelled  .overdue                payout number
//	dispute.opened  .answered  .resolved  .defaulted         dispute number
//	invoice.issued  credit_note.issued                       document number
//	invoice.waits                                            account
//	billing.periods                                          first slot
//	session.refunded                                         session
//	rules.proposed  .changed  .dropped                       height
//	feature.switched                                         feature
//	firm.offered  .taken  .closed  .delivered                offer id
//	mandate.signed  .revoked                                 token
//	remote.believed  .followed  .forgotten                   chain id
//	reserve.added  .leaving  .returned                       account
//	ledger.violation                                         SHA-256 of the transaction
//	member.joined  member.revoked                            member name
//	meter.corrected  .correction_waits  .correction_refused  member name
//	meter.late  meter.rebased  meter.segment  meter.suspect  member name
//	meter.quarantined  meter.released                        member name
//	record.refused  supplier.owes                            member name
//	session.held  .charging  .metered  .closed  .expired  .interrupted  .refused
//	session.energy_after_end  .ended_by_rule  .excess  .late  .rebased  .sold_unpaid  .stop_conflict  .suspect
//	settlement.locked  .answered  .paid  .refunded           settlement
//	slot.cleared  slot.loss  zones.planned                   slot number
//	state.pruned                                             height
type Event struct {
	Code    string `json:"code"`    // dotted, e.g. "session.closed"
	Subject string `json:"subject"` // session id, member name, slot number or account
	Detail  string `json:"detail,omitempty"`
}

// Violation is a transaction that would have broken an invariant, with its
// bytes. It has been refused; its existence is a bug in the ledger.
type Violation struct {
	Tx   []byte `json:"tx"`
	Info string `json:"info"`
}

// run is the execution of one block, or of one admission check.
type run struct {
	rules   Rules
	height  int64
	time    int64      // block time, Unix ms
	slot    chain.Slot // that holds time
	clock   clock      // as read; written back once, if the block had an effect
	tariffs []chain.Tariff
	recent  SlotView // what recentB holds
	recentB []byte
	events  []Event
	broken  []Violation
	bug     func(st State, raw []byte) error // nil but in tests
}

func newRun(st State, height, timeMs int64) *run {
	rules := RulesOf(st)
	c, _ := get[clock](st, key(tabClock))
	return &run{rules: rules, height: height, time: timeMs, slot: chain.SlotAt(timeMs, rules.SlotSeconds), clock: c}
}

func (r *run) event(code, subject, format string, args ...any) {
	r.events = append(r.events, Event{Code: code, Subject: subject, Detail: fmt.Sprintf(format, args...)})
}

// skew is how far in ms a device's clock may run ahead of block time. Block
// time is the median of the votes for the block before, so on an idle chain
// it lags by the pause, which is a slot at most while anybody meters.
func (r *run) skew() int64 { return 2*r.rules.SlotSeconds*1000 + clockSlackMs }

// moment returns a time for starting a timer: what a device claims, within
// what block time allows.
func (r *run) moment(claimed int64) int64 { return min(max(claimed, r.time), r.time+r.skew()) }

// InitGenesis writes the state at height 0 and returns the first validators.
// genesisTimeMs is the time of the genesis document, Unix ms.
func InitGenesis(st State, g chain.Genesis, genesisTimeMs int64) ([]ValidatorUpdate, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	switch {
	case genesisTimeMs < 0 || chain.SlotAt(genesisTimeMs, g.SlotSeconds) > maxSlot:
		return nil, fmt.Errorf("genesis: time %d out of range", genesisTimeMs)
	case len(g.Nodes) > maxNodes:
		return nil, fmt.Errorf("genesis: %d nodes, at most %d", len(g.Nodes), maxNodes)
	}
	roots := 0
	scratch := NewOverlay(st)
	for _, n := range g.Nodes {
		if n.Parent == "" {
			roots++
		}
		if !goodName(n.ID) || scratch.Get(nodeKey(n.ID)) != nil {
			return nil, fmt.Errorf("genesis: node id %q is not a unique word", n.ID)
		}
		if err := checkPrice("fee", n.Fee); err != nil {
			return nil, fmt.Errorf("genesis: node %q: %w", n.ID, err)
		}
		put(scratch, nodeKey(n.ID), node{Parent: n.Parent, Fee: n.Fee})
	}
	if roots != 1 {
		return nil, fmt.Errorf("genesis: %d nodes without a parent, want one root", roots)
	}
	for _, n := range g.Nodes {
		if err := checkParent(scratch, n.ID); err != nil {
			return nil, fmt.Errorf("genesis: node %q: %w", n.ID, err)
		}
	}
	rules := Rules{
		ChainID: g.ChainID, SlotSeconds: g.SlotSeconds, GraceSeconds: g.GraceSeconds, Currency: g.Currency, MinorDigits: g.MinorDigits,
		Operators: g.Operators, Retail: g.Retail, FeedIn: g.FeedIn, EarnPPM: g.Credit.EarnPPM, RedeemPPM: g.Credit.RedeemPPM,
		ExpirySlots: min(g.Credit.ExpirySlots, maxSlot), Transfers: g.Transfers, StartSeconds: g.StartSeconds, Basis: g.Basis, GenesisMs: genesisTimeMs,
		Threshold: g.Money.Threshold, Auditors: g.Money.Auditors, DailyMintCap: g.Money.DailyMintCap, PayoutDays: g.Money.PayoutDays,
		RetainDays: g.RetainDays, DisputeDays: g.Money.DisputeDays, AnswerDays: g.Money.AnswerDays, ResolveDays: g.Money.ResolveDays, Tax: g.Money.Tax,
		Invoices: g.Money.Invoices, StoragePPM: g.StoragePPM,
	}
	rules.defaults()
	if err := rules.check(); err != nil {
		return nil, fmt.Errorf("genesis: %w", err)
	}
	put(scratch, key(tabRules), rules)
	put(scratch, key(tabClock), clock{TimeMs: genesisTimeMs, Next: chain.SlotAt(genesisTimeMs, g.SlotSeconds)})
	put(scratch, key(tabMoney), supply{})
	put(scratch, key(tabEnergy), Energy{})
	r := newRun(scratch, 0, genesisTimeMs)
	for _, f := range g.Members {
		if err := r.admit(scratch, f.Member, f.Node, f.Fee, true); err != nil {
			return nil, fmt.Errorf("genesis: member %q: %w", f.Name, err)
		}
	}
	updates := validatorUpdates(scratch)
	if len(updates) == 0 {
		return nil, errors.New("genesis: no member has a validator key")
	}
	scratch.Commit()
	return updates, nil
}

// CheckTx judges a transaction for admission on st, an overlay that the
// caller keeps on the committed state and discards at every commit. An
// accepted transaction leaves its effect there (a gateway block only its
// chain position), so that the next one of the same signer passes too.
func CheckTx(st State, raw []byte) TxResult {
	c, _ := get[clock](st, key(tabClock))
	r := newRun(st, c.Height+1, c.TimeMs)
	scratch := NewOverlay(st)
	e, err := open(raw)
	if err == nil {
		if e.Type == chain.EnvelopeBlock {
			_, _, err = r.link(scratch, raw, e)
		} else {
			err = r.transaction(scratch, e)
		}
	}
	if err != nil {
		return result(err)
	}
	scratch.Commit()
	return TxResult{}
}

// Apply executes one block: its transactions in order, then everything that
// is due at block time. On an error nothing was written and the ledger must
// halt: no transaction is to blame. A block without any effect writes
// nothing, so that an idle chain's hash stands still.
func Apply(st State, b BlockInput) (BlockOutput, error) {
	block := NewOverlay(st)
	if b.Trace {
		block.trace = &trace{}
	}
	r := newRun(block, b.Height, b.TimeMs)
	r.bug = b.bug
	if b.Height <= r.clock.Height || b.TimeMs < r.clock.TimeMs || r.slot > maxSlot {
		return BlockOutput{}, fmt.Errorf("block %d at %d ms follows block %d at %d ms", b.Height, b.TimeMs, r.clock.Height, r.clock.TimeMs)
	}
	if err := r.activate(block); err != nil {
		return BlockOutput{}, fmt.Errorf("block %d: %w", b.Height, err)
	}
	out := BlockOutput{Results: make([]TxResult, len(b.Txs))}
	for i, raw := range b.Txs {
		out.Results[i] = r.execute(block, raw)
	}
	due := NewOverlay(block)
	if err := r.due(due); err != nil {
		return BlockOutput{}, fmt.Errorf("block %d: %w", b.Height, err)
	}
	due.Commit()
	out.Validators, out.Events, out.Violations = validatorUpdates(block), r.events, r.broken
	if b.Trace {
		out.Movements = block.trace.moves
	}

	if block.unchanged() {
		return out, nil
	}
	r.clock.Height, r.clock.TimeMs = b.Height, b.TimeMs
	put(block, key(tabClock), r.clock)
	if broken := checkBlock(block); len(broken) > 0 {
		return BlockOutput{}, fmt.Errorf("block %d breaks the ledger: %s", b.Height, strings.Join(broken, "; "))
	}
	block.Commit()
	return out, nil
}

// execute runs one transaction on its own overlay.
func (r *run) execute(block State, raw []byte) TxResult {
	var res TxResult
	err := r.attempt(block, raw, func(st State) error {
		e, err := open(raw)
		if err != nil {
			return err
		}
		if r.bug != nil {
			if err := r.bug(st, raw); err != nil {
				return err
			}
		}
		if e.Type == chain.EnvelopeBlock {
			res.Refused, err = r.gatewayBlock(st, raw, e)
			return err
		}
		return r.transaction(st, e)
	})
	if err == nil {
		return res
	}
	if e := (*equivocation)(nil); errors.As(err, &e) {
		r.event("block.equivocation", e.author.String(), "%s", e.info)
	}
	return result(err)
}

// attempt runs fn on an overlay and commits it if fn succeeds and keeps the
// invariants. Otherwise nothing remains of it but the error. An error that is
// no refusal, and a broken invariant, are reported with raw.
func (r *run) attempt(st State, raw []byte, fn func(State) error) error {
	clock, events := r.clock, len(r.events)
	scratch := NewOverlay(st)
	err := guarded(func() error { return fn(scratch) })
	if err == nil {
		if broken := checkDelta(scratch); len(broken) > 0 {
			err = errors.New(strings.Join(broken, "; "))
		}
	}
	if err == nil {
		scratch.Commit()
		return nil
	}
	r.clock, r.tariffs, r.events = clock, nil, r.events[:events]
	if refused := (*refusal)(nil); !errors.As(err, &refused) {
		r.broken = append(r.broken, Violation{Tx: raw, Info: err.Error()})
		r.event("ledger.violation", chain.Sum(raw).String(), "%v", err)
		err = refuse(CodeInvariant, "%v", err)
	}
	return err
}

// guarded turns a panic of the ledger's rules into an error: the transaction
// that made them meet an impossible state is to blame, and every gateway meets
// it alike. A State that fails panics with an error of its own, for which no
// transaction is to blame: that goes on.
func guarded(fn func() error) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case runtime.Error:
			err = fmt.Errorf("panic: %w", p)
		case error:
			panic(p)
		default:
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return fn()
}

func result(err error) TxResult {
	var refused *refusal
	if errors.As(err, &refused) {
		return TxResult{Code: refused.code, Info: refused.info}
	}
	return TxResult{Code: CodeInvariant, Info: err.Error()}
}

// open opens the outer container.
func open(raw []byte) (chain.Envelope, error) {
	if len(raw) > chain.MaxTxBytes {
		return chain.Envelope{}, refuse(CodeTooLarge, "%d bytes, at most %d", len(raw), chain.MaxTxBytes)
	}
	e, err := chain.OpenEnvelope(raw)
	switch {
	case err != nil:
		return e, refuse(CodeMalformed, "%v", err)
	case e.Type != chain.EnvelopeBlock && e.Type != chain.EnvelopeTx:
		return e, refuse(CodeKind, "envelope type %d", e.Type)
	}
	return e, nil
}

// due does what block time asks for: it settles sessions, voids holds that
// were not used, clears slots, issues invoices, lets credits expire and forgets what
// is old.
func (r *run) due(st State) error {
	if err := r.timers(st); err != nil {
		return err
	}
	if err := r.deadlines(st); err != nil {
		return err
	}
	if err := r.closeFirms(st); err != nil {
		return err
	}
	if err := r.settleDue(st); err != nil {
		return err
	}
	if err := r.clearSlots(st); err != nil {
		return err
	}
	if err := r.settleMetered(st); err != nil {
		return err
	}
	if err := r.invoices(st); err != nil {
		return err
	}
	if err := r.returnReserves(st); err != nil {
		return err
	}
	if err := r.expireLots(st); err != nil {
		return err
	}
	r.prune(st)
	return nil
}

// validators returns the entries of consensus keys in use, ascending.
func validators(st State) []validator { return collect[validator](st, key(tabValidator)) }

// validatorUpdates returns how the validator set differs from the parent's.
func validatorUpdates(o *Overlay) []ValidatorUpdate {
	var updates []ValidatorUpdate
	for _, s := range o.own.withPrefix(string([]byte{tabValidator})) {
		k, after := []byte(s), o.own.values[s]
		if bytes.Equal(o.parent.Get(k), after) {
			continue
		}
		u := ValidatorUpdate{Key: chain.Key(k[1:])}
		if after != nil {
			u.Power = must[validator](k, after).Power
		}
		updates = append(updates, u)
	}
	return updates
}
