package chain

import (
	"fmt"

	"github.com/joulegate/joulegate/meter"
)

// Offer posts what a site expects and at which limit it trades. It binds the
// price, never the quantity: clearing is on metered energy. From the first
// slot on, the limit stands until the next offer of the same side.
type Offer struct {
	From  Slot           `cbor:"1,keyasint"`
	To    Slot           `cbor:"2,keyasint"` // last slot of the expectation, >= From
	Side  Side           `cbor:"3,keyasint"`
	Limit NanoPerWh      `cbor:"4,keyasint"`
	Wh    meter.WattHour `cbor:"5,keyasint"` // expected per slot, informative
}

// MeterRecord states the cumulative registers of one meter at the end of a
// slot, and commits to every raw reading of the slot by a Merkle root
// (RFC 6962 section 2.1 over the canonical encodings of meter.Reading), so
// that any single reading can be proven later without a new format.
//
// The ledger books the difference to the meter's previous record: energy is
// never lost between records, at worst it is booked to a later slot.
type MeterRecord struct {
	Slot    Slot           `cbor:"1,keyasint"`
	Meter   string         `cbor:"2,keyasint"` // device id, <= MaxName bytes
	Role    Role           `cbor:"3,keyasint"`
	Page    uint64         `cbor:"4,keyasint"` // +1 per record of this meter, from 1
	Import  meter.WattHour `cbor:"5,keyasint"` // register
	Export  meter.WattHour `cbor:"6,keyasint"` // register
	Quality meter.Quality  `cbor:"7,keyasint"`
	At      int64          `cbor:"8,keyasint"`            // wall clock of the register, Unix ms
	Count   uint32         `cbor:"9,keyasint"`            // readings under Root
	Root    Hash           `cbor:"10,keyasint"`           // Merkle root of the slot's readings
	Profile Hash           `cbor:"11,keyasint"`           // SHA-256 of the profile
	Segment uint32         `cbor:"12,keyasint,omitempty"` // +1 when the meter was swapped: a new register base
}

// Quote is a price offered to a driver before anything happens. The gateway
// makes it, the driver's key signs its exact bytes: that signature is the
// authorisation to charge and to hold money.
type Quote struct {
	Version   uint8          `cbor:"1,keyasint"`
	Chain     string         `cbor:"2,keyasint"`
	ID        ID             `cbor:"3,keyasint"` // becomes the session's id
	Gateway   Key            `cbor:"4,keyasint"`
	Connector uint8          `cbor:"5,keyasint"`
	Driver    Key            `cbor:"6,keyasint"`
	Created   int64          `cbor:"7,keyasint"`  // Unix ms
	Expires   int64          `cbor:"8,keyasint"`  // Unix ms; no hold is taken after it
	MaxWh     meter.WattHour `cbor:"9,keyasint"`  // most energy this hold pays for
	Cap       NanoPerWh      `cbor:"10,keyasint"` // no Wh costs more, whatever happens to tariffs
	Hold      Nano           `cbor:"11,keyasint"` // = Cap * MaxWh
	Redeem    bool           `cbor:"12,keyasint"` // spend discount credit on this bill

	// By and Want state what the driver needs when he leaves: Want Wh before
	// slot By begins. They bind the plan of charging, not the price.
	By   Slot           `cbor:"20,keyasint,omitempty"` // 0: as soon as possible
	Want meter.WattHour `cbor:"21,keyasint,omitempty"` // <= MaxWh

	// SellWh and SellLimit let the car sell: at most so much energy, for at
	// least that price. A car that only sells has MaxWh 0.
	SellWh    meter.WattHour `cbor:"22,keyasint,omitempty"`
	SellLimit NanoPerWh      `cbor:"23,keyasint,omitempty"`
}

// SignedQuote carries the exact bytes that the driver signed.
type SignedQuote struct {
	Quote []byte `cbor:"1,keyasint"` // canonical encoding of Quote
	Sig   []byte `cbor:"2,keyasint"` // driver's Ed25519 under DomainQuote
}

// Open checks form and signature and returns the quote.
func (s SignedQuote) Open() (Quote, error) {
	var q Quote
	if err := Unmarshal(s.Quote, &q); err != nil {
		return q, fmt.Errorf("quote: %w", err)
	}
	if err := q.Check(); err != nil {
		return q, err
	}
	if !Verify(q.Driver, DomainQuote, s.Quote, s.Sig) {
		return q, fmt.Errorf("quote %s: %w", q.ID, ErrSignature)
	}
	return q, nil
}

// Check reports what is wrong with the quote's numbers.
func (q *Quote) Check() error {
	hold, err := Cost(q.Cap, q.MaxWh)
	switch {
	case q.Version != Version:
		return fmt.Errorf("quote version %d, this program knows %d", q.Version, Version)
	case q.MaxWh < 0 || q.Cap <= 0 || (q.MaxWh == 0 && q.SellWh == 0):
		return fmt.Errorf("quote %s: energy %d Wh at %d nano/Wh", q.ID, q.MaxWh, q.Cap)
	case q.SellWh < 0 || q.SellLimit < 0 || (q.SellWh == 0 && q.SellLimit != 0):
		return fmt.Errorf("quote %s: sells %d Wh at %d nano/Wh", q.ID, q.SellWh, q.SellLimit)
	case q.By < 0 || q.Want < 0 || q.Want > q.MaxWh || (q.By == 0) != (q.Want == 0):
		return fmt.Errorf("quote %s: wants %d Wh by slot %d, of at most %d Wh", q.ID, q.Want, q.By, q.MaxWh)
	case err != nil:
		return fmt.Errorf("quote %s: %w", q.ID, err)
	case hold != q.Hold:
		return fmt.Errorf("quote %s: hold %d is not %d Wh at %d nano/Wh", q.ID, q.Hold, q.MaxWh, q.Cap)
	case q.Expires <= q.Created:
		return fmt.Errorf("quote %s: expires before it was made", q.ID)
	}
	return nil
}

// SessionOpen asks the ledger to hold the driver's money. Charging starts
// only after the ledger has agreed.
type SessionOpen struct {
	Quote SignedQuote `cbor:"1,keyasint"`
}

// SessionMeter states the session meter's register at the start of charging
// (Seq 1) and at each slot's end (Seq 2, 3, ...).
type SessionMeter struct {
	Session  ID             `cbor:"1,keyasint"`
	Seq      uint32         `cbor:"2,keyasint"`
	Slot     Slot           `cbor:"3,keyasint"` // slot in which the energy since Seq-1 is booked
	Register meter.WattHour `cbor:"4,keyasint"` // import register of the session meter
	Quality  meter.Quality  `cbor:"5,keyasint"`
	At       int64          `cbor:"6,keyasint"` // Unix ms

	Export meter.WattHour `cbor:"20,keyasint,omitempty"` // export register of the session meter, of a car that may sell
}

// SessionStop states the last register. The session settles when the slot is
// cleared.
type SessionStop struct {
	Session  ID             `cbor:"1,keyasint"`
	Seq      uint32         `cbor:"2,keyasint"`
	Slot     Slot           `cbor:"3,keyasint"`
	Register meter.WattHour `cbor:"4,keyasint"`
	Quality  meter.Quality  `cbor:"5,keyasint"`
	At       int64          `cbor:"6,keyasint"`
	Reason   StopReason     `cbor:"7,keyasint"`
	Receipt  Hash           `cbor:"8,keyasint"` // SHA-256 of the OCMF payload bytes

	Export meter.WattHour `cbor:"20,keyasint,omitempty"` // as in SessionMeter
}

// StopReason says why a session ended.
type StopReason uint8

// Stop reasons. Append only.
const (
	StopDriver    StopReason = 1 + iota // the driver or the panel asked
	StopHold                            // the hold is used up
	StopUnplugged                       // the car is gone
	StopMeter                           // no trustworthy meter
	StopSafety                          // an interlock opened
	StopRestart                         // the gateway restarted and closed it by rule
	StopNoEnergy                        // no energy within the time limit
	StopFull                            // the car has taken what it wants
	StopOperator                        // the operator or installer
)

var stopReasons = [...]string{StopDriver: "driver", StopHold: "hold_used", StopUnplugged: "unplugged", StopMeter: "meter", StopSafety: "safety", StopRestart: "restart", StopNoEnergy: "no_energy", StopFull: "full", StopOperator: "operator"}

func (r StopReason) String() string {
	if r == 0 || int(r) >= len(stopReasons) {
		return fmt.Sprintf("reason(%d)", uint8(r))
	}
	return stopReasons[r]
}

// MarshalText implements encoding.TextMarshaler.
func (r StopReason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *StopReason) UnmarshalText(b []byte) error {
	for i := range stopReasons {
		if v := StopReason(i); v.String() == string(b) {
			*r = v
			return nil
		}
	}
	return fmt.Errorf("unknown stop reason %q", b)
}

// Event is evidence: something happened on the device. No names, no
// addresses, no personal data.
type Event struct {
	Code     string `cbor:"1,keyasint"` // e.g. "charger.opened", "meter.suspect"
	Severity uint8  `cbor:"2,keyasint"` // 1 info, 2 warning, 3 alarm
	Subject  string `cbor:"3,keyasint"` // device or session id
	At       int64  `cbor:"4,keyasint"` // Unix ms
	Detail   Hash   `cbor:"5,keyasint"` // SHA-256 of the full text
	// Text is the full text where it is short: what was done and why, the
	// configuration and the program it was done by.
	Text string `cbor:"6,keyasint,omitempty"`
}

// MaxEventText is the most of a text that an event carries, in bytes.
const MaxEventText = 480
