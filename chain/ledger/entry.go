package ledger

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// Every entry's key starts with the byte of its table; the rest is of fixed
// width or comes last, so that ascending keys are ascending slots, accounts
// and numbers. Renaming a table forks the ledger.
const (
	tabAccount    = 'a' // account -> chain.Nano
	tabBucket     = 'b' // slot, device -> bucket: energy of a slot not cleared yet
	tabConnector  = 'c' // device, connector -> session id
	tabMeter      = 'd' // device, meter -> MeterView
	tabLoad       = 'e' // slot, session -> meter.WattHour: a car's energy of a slot not cleared yet
	tabFill       = 'f' // slot, order -> FillView
	tabHead       = 'h' // device -> Head
	tabInvitation = 'i' // one-time key -> InvitationView
	tabLimit      = 'l' // device, side -> standingLimit
	tabMember     = 'm' // device -> member
	tabNonce      = 'n' // signer -> last nonce
	tabNode       = 'o' // node -> node of the fee tree
	tabPast       = 'p' // device, epoch, number -> hash of a recent gateway block
	tabOpen       = 'q' // session id -> nothing: sessions with money held
	tabBankRef    = 'r' // SHA-256 of the reference -> bankRef
	tabSession    = 's' // session id -> SessionView
	tabTariff     = 't' // first slot -> chain.Tariff, none overlapping
	tabCounters   = 'u' // device -> counters
	tabValidator  = 'v' // consensus key -> validator
	tabLate       = 'w' // device -> lateSlot
	tabEnergy     = 'E' // -> Energy
	tabGrid       = 'G' // -> connection: the meter against the public grid
	tabClock      = 'K' // -> clock
	tabLot        = 'L' // account, number -> lot
	tabMoney      = 'M' // -> supply
	tabRules      = 'R' // -> Rules
	tabSlot       = 'S' // slot -> SlotView
	tabContract   = 'j' // slot, offer, number -> contract: firm energy of a slot not cleared yet
	tabFeature    = 'k' // feature -> FeatureView
	tabZoneNext   = 'y' // slot, node -> zone: a change of the fee tree that waits
	tabZonePast   = 'z' // node, 0, first slot -> zone: what held before the latest change
	tabCorrection = 'C' // device, slot, id -> CorrectionView
	tabSale       = 'D' // slot, session -> meter.WattHour: what a car has given in a slot not cleared yet
	tabFirm       = 'F' // 'v', id -> FirmView; 'o', first slot, id -> nothing: offers still open; 'x', last slot, id -> nothing: closed
	tabDelivery   = 'H' // slot, offer, number -> FirmDelivery
	tabDim        = 'Z' // node -> DimView
	tabExpiry     = 'X' // slot, account, number -> nothing: when a lot expires
	tabProposal   = 'g' // expiry, proposal id -> nothing: joint statements that have been executed
	tabDispute    = 'x' // number -> DisputeView
	tabAccrual    = 'A' // account, tax rate -> Accrual: house energy not billed yet
	tabBill       = 'B' // session -> bill: what became of a settled session's bill
	tabInvoice    = 'I' // series, account or zero, number -> InvoiceView
	tabSequence   = 'N' // series, account or zero -> last number
	tabPayout     = 'P' // number -> PayoutView
	tabTodo       = 'Q' // kind, what -> deadline or nothing: what is not done yet
	tabApproval   = 'T' // device, connector -> MeterApprovalView
	tabProfile    = 'U' // account -> chain.Profile
	tabPending    = 'V' // height, number -> chain.RulesChange
	tabLateEnergy = '7' // slot, device, session or zero -> lateEnergy: told after the slot was settled
	tabBilling    = '5' // -> billing: how far invoices have been issued by rule
	tabBilled     = '6' // account, series, number -> billed: documents that a correction can refer to
	tabBound      = '4' // slot -> nothing: where a billing period begins or the last one ends
)

// entryVersion is the format version of every value. A field added to an
// entry later is omitempty, so that older entries keep their one encoding.
const entryVersion = 1

type entry[T any] struct {
	_       struct{} `cbor:",toarray"`
	Version uint8
	Value   T
}

func put[T any](st State, key []byte, v T) {
	st.Set(key, chain.Marshal(entry[T]{Version: entryVersion, Value: v}))
}

// get panics on a value that does not decode: the ledger wrote it.
func get[T any](st State, key []byte) (T, bool) {
	b := st.Get(key)
	if b == nil {
		var zero T
		return zero, false
	}
	return must[T](key, b), true
}

func must[T any](key, value []byte) T {
	v, err := parse[T](value)
	if err != nil {
		panic(fmt.Sprintf("ledger: entry %x holds %x: %v", key, value, err))
	}
	return v
}

func parse[T any](value []byte) (T, error) {
	var e entry[T]
	if n, ok := any(&e.Value).(*chain.Nano); ok && parseNano(value, n) {
		return e.Value, nil
	}
	if err := chain.Unmarshal(value, &e); err != nil {
		return e.Value, err
	}
	if e.Version != entryVersion {
		return e.Value, fmt.Errorf("entry version %d, this program knows %d", e.Version, entryVersion)
	}
	return e.Value, nil
}

// parseNano decodes an entry that is one integer: every block adds up all
// balances. It knows canonical entries of this version only, and leaves it to
// the general decoder to say what is wrong with others.
func parseNano(b []byte, n *chain.Nano) bool {
	if len(b) < 3 || b[0] != 0x82 || b[1] != entryVersion { // an array of two: the version, the value
		return false
	}
	head, rest := b[2], b[3:]
	var u, least uint64
	switch info := head & 0x1f; { // RFC 8949, section 3: the value, or how many bytes it has
	case info < 24 && len(rest) == 0:
		u = uint64(info)
	case info == 24 && len(rest) == 1:
		u, least = uint64(rest[0]), 24
	case info == 25 && len(rest) == 2:
		u, least = uint64(binary.BigEndian.Uint16(rest)), 1<<8
	case info == 26 && len(rest) == 4:
		u, least = uint64(binary.BigEndian.Uint32(rest)), 1<<16
	case info == 27 && len(rest) == 8:
		u, least = binary.BigEndian.Uint64(rest), 1<<32
	default:
		return false
	}
	if u < least || u > math.MaxInt64 {
		return false
	}
	switch head >> 5 {
	case 0:
		*n = chain.Nano(u)
	case 1:
		*n = -1 - chain.Nano(u)
	default:
		return false
	}
	return true
}

// each calls fn for the entries under prefix, ascending. fn gets the key
// without its table byte and must not change the state.
func each[T any](st State, prefix []byte, fn func(key []byte, v T) bool) {
	st.Iterate(prefix, func(key, value []byte) bool { return fn(key[1:], must[T](key, value)) })
}

// collect returns the values under prefix, ascending by key.
func collect[T any](st State, prefix []byte) []T {
	var all []T
	each(st, prefix, func(_ []byte, v T) bool {
		all = append(all, v)
		return true
	})
	return all
}

// key joins a table byte and parts.
func key(table byte, parts ...[]byte) []byte {
	k := []byte{table}
	for _, p := range parts {
		k = append(k, p...)
	}
	return k
}

func be64(n uint64) []byte          { return binary.BigEndian.AppendUint64(nil, n) }
func slotBytes(s chain.Slot) []byte { return be64(uint64(s)) }

// slotOf is the inverse of slotBytes, for the head of a key.
func slotOf(k []byte) chain.Slot { return chain.Slot(binary.BigEndian.Uint64(k)) }

// AccountKey, SessionKey, MemberKey, HeadKey, SlotKey and FillKey name single
// entries of the state, to prove them against an app hash.
func AccountKey(a chain.Account) []byte { return key(tabAccount, a[:]) }

// SessionKey is the key of a session.
func SessionKey(id chain.ID) []byte { return key(tabSession, id[:]) }

// MemberKey is the key of a member.
func MemberKey(device chain.Key) []byte { return key(tabMember, device[:]) }

// HeadKey is the key of the ledger's position in a gateway's chain.
func HeadKey(device chain.Key) []byte { return key(tabHead, device[:]) }

// SlotKey is the key of a cleared slot.
func SlotKey(s chain.Slot) []byte { return key(tabSlot, slotBytes(s)) }

// FillKey is the key of one participant's fill in a cleared slot.
func FillKey(s chain.Slot, order string) []byte { return key(tabFill, slotBytes(s), []byte(order)) }

// ParseSession decodes the value under SessionKey.
func ParseSession(value []byte) (SessionView, error) { return parse[SessionView](value) }

// ParseBalance decodes the value under AccountKey.
func ParseBalance(value []byte) (chain.Nano, error) { return parse[chain.Nano](value) }

// ParseHead decodes the value under HeadKey.
func ParseHead(value []byte) (Head, error) { return parse[Head](value) }

// ParseFill decodes the value under FillKey.
func ParseFill(value []byte) (FillView, error) { return parse[FillView](value) }

// ParseSlot decodes the value under SlotKey; its fills are entries of their
// own.
func ParseSlot(value []byte) (SlotView, error) { return parse[SlotView](value) }

func meterKey(device chain.Key, id string) []byte { return key(tabMeter, device[:], []byte(id)) }
func pastKey(device chain.Key, p chain.Position) []byte {
	return key(tabPast, device[:], binary.BigEndian.AppendUint32(nil, p.Epoch), be64(p.Number))
}

func connectorKey(device chain.Key, n uint8) []byte { return key(tabConnector, device[:], []byte{n}) }

func bucketKey(s chain.Slot, device chain.Key) []byte {
	return key(tabBucket, slotBytes(s), device[:])
}
func loadKey(s chain.Slot, id chain.ID) []byte     { return key(tabLoad, slotBytes(s), id[:]) }
func saleKey(s chain.Slot, id chain.ID) []byte     { return key(tabSale, slotBytes(s), id[:]) }
func lotKey(a chain.Account, n uint64) []byte      { return key(tabLot, a[:], be64(n)) }
func openKey(id chain.ID) []byte                   { return key(tabOpen, id[:]) }
func nodeKey(id string) []byte                     { return key(tabNode, []byte(id)) }
func limitKey(d chain.Key, side chain.Side) []byte { return key(tabLimit, d[:], []byte{byte(side)}) }

func expiryKey(s chain.Slot, a chain.Account, n uint64) []byte {
	return key(tabExpiry, slotBytes(s), a[:], be64(n))
}

// clock is the ledger's time and its place in the sequence of slots.
type clock struct {
	Height  int64      `cbor:"1,keyasint"` // last block that changed the state
	TimeMs  int64      `cbor:"2,keyasint"` // and its time
	Next    chain.Slot `cbor:"3,keyasint"` // first slot that is not cleared
	Cleared chain.Slot `cbor:"4,keyasint"` // newest slot that has a SlotView; 0: none
	Lots    uint64     `cbor:"5,keyasint"` // number of the newest credit lot
}

// supply is the money that came in and went out.
type supply struct {
	Minted chain.Nano `cbor:"1,keyasint"`
	Burned chain.Nano `cbor:"2,keyasint"`
	Day    int64      `cbor:"3,keyasint,omitempty"` // UTC day of block time of the newest minting
	Today  chain.Nano `cbor:"4,keyasint,omitempty"` // minted on it
}

// node is a node of the fee tree; a house's node belongs to its device.
type node struct {
	Parent string          `cbor:"1,keyasint"`
	Fee    chain.NanoPerWh `cbor:"2,keyasint"`
	Device chain.Key       `cbor:"3,keyasint"` // zero: inner node
	Since  chain.Slot      `cbor:"4,keyasint,omitempty"`
}

// member is one gateway, past or present.
type member struct {
	Member   chain.Member `cbor:"1,keyasint"`
	Active   bool         `cbor:"2,keyasint"`
	JoinedMs int64        `cbor:"3,keyasint"`
}

func (m *member) owner() chain.Account { return chain.AccountOf(m.Member.Owner) }

// counters sum up a member's energy.
type counters struct {
	Site           bool           `cbor:"1,keyasint"` // has a site meter
	Production     bool           `cbor:"2,keyasint"` // has a production meter
	LastSlot       chain.Slot     `cbor:"3,keyasint"`
	Import         meter.WattHour `cbor:"4,keyasint"`
	Export         meter.WattHour `cbor:"5,keyasint"`
	Produced       meter.WattHour `cbor:"6,keyasint"`
	BoughtLocal    meter.WattHour `cbor:"7,keyasint"`
	SoldLocal      meter.WattHour `cbor:"8,keyasint"`
	SupplierImport meter.WattHour `cbor:"9,keyasint"`
	SupplierExport meter.WattHour `cbor:"10,keyasint"`

	Storage      bool              `cbor:"20,keyasint,omitempty"` // has a battery meter
	Certificates CertificateTotals `cbor:"21,keyasint,omitzero"`
	FirmBought   meter.WattHour    `cbor:"22,keyasint,omitempty"` // of BoughtLocal, under contracts
	FirmSold     meter.WattHour    `cbor:"23,keyasint,omitempty"`
	SessionSlot  chain.Slot        `cbor:"40,keyasint,omitempty"` // in which the last session ended
	Unauthorised meter.WattHour    `cbor:"41,keyasint,omitempty"` // through chargers without a session
}

// bucket gathers a gateway's metered energy of one slot until it clears.
type bucket struct {
	Reported   bool           `cbor:"1,keyasint"` // the site meter has reported this slot
	Late       bool           `cbor:"2,keyasint"` // but some of its energy is of earlier slots and was booked apart
	Import     meter.WattHour `cbor:"3,keyasint"`
	Export     meter.WattHour `cbor:"4,keyasint"`
	Produced   meter.WattHour `cbor:"5,keyasint"`
	Connection bool           `cbor:"6,keyasint"` // the grid connection has reported this slot
	GridImport meter.WattHour `cbor:"7,keyasint"`
	GridExport meter.WattHour `cbor:"8,keyasint"`
	Charged    meter.WattHour `cbor:"9,keyasint,omitempty"` // by the battery
	Discharged meter.WattHour `cbor:"10,keyasint,omitempty"`
}

// lateSlot nets a house's import and its cars' energy of one slot that were
// both settled outside the market, in whichever order they arrive.
type lateSlot struct {
	Slot   chain.Slot     `cbor:"1,keyasint"` // newest such slot
	Import meter.WattHour `cbor:"2,keyasint"`
	Cars   meter.WattHour `cbor:"3,keyasint"`
}

// standingLimit is what an offer has set, and what stands until it begins.
type standingLimit struct {
	From   chain.Slot      `cbor:"1,keyasint"`
	Limit  chain.NanoPerWh `cbor:"2,keyasint"`
	Set    bool            `cbor:"3,keyasint"` // Before is set
	Before chain.NanoPerWh `cbor:"4,keyasint"`
}

// connection is the one meter against the public grid.
type connection struct {
	Device chain.Key  `cbor:"1,keyasint"`
	Meter  string     `cbor:"2,keyasint"`
	From   chain.Slot `cbor:"3,keyasint"` // first slot it measures; before it the sites' sums stand for it
}

// validator is a consensus key in use.
type validator struct {
	Device chain.Key `cbor:"1,keyasint"`
	Power  int64     `cbor:"2,keyasint"`
}

// bankRef remembers a payment in the real world.
type bankRef struct {
	Kind    chain.TxKind  `cbor:"1,keyasint"`
	Account chain.Account `cbor:"2,keyasint"`
	Amount  chain.Nano    `cbor:"3,keyasint"`
	Height  int64         `cbor:"4,keyasint"`
}

// lot is discount credit from one bill.
type lot struct {
	Amount  chain.Nano `cbor:"1,keyasint"` // left, > 0
	Expires chain.Slot `cbor:"2,keyasint"` // gone when this slot has passed; 0: never
	Session chain.ID   `cbor:"3,keyasint"`
}
