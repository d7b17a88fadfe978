package chain

import "github.com/joulegate/joulegate/meter"

// Transactions of trade and of the network. Append only.
const (
	TxTariffs    TxKind = 20 // Tariffs, by an operator
	TxZones      TxKind = 21 // Zones, by an operator
	TxFeature    TxKind = 22 // FeatureBasis, by an operator
	TxFirmOffer  TxKind = 23 // FirmOffer, by a site's owner or a driver
	TxFirmTake   TxKind = 24 // FirmTake, by a site's owner or a driver
	TxFirmCancel TxKind = 25 // FirmCancel, by who offered
	TxCorrection TxKind = 26 // CorrectionRuling, by an operator
)

// MaxTableRanges bounds the ranges of one Tariffs and the nodes of one Zones.
const MaxTableRanges = 256

// Tariffs sets the supplier's prices for many ranges of slots at once: a
// time-of-use table, expanded to UTC slots by whoever knows the time zone.
// Ranges ascend and do not overlap.
type Tariffs struct {
	Ranges []Tariff `cbor:"1,keyasint"`
}

// Zones changes the fee tree from a slot on: fees, and under which node
// another one hangs. An unknown id becomes an inner node. From is not before
// that of any change which still waits.
type Zones struct {
	From  Slot   `cbor:"1,keyasint"`
	Nodes []Node `cbor:"2,keyasint"`
}

// Features that are off until an operator records on which legal basis they
// are used.
const (
	FeatureFirm = "firm" // firm orders with collateral
	FeatureV2V  = "v2v"  // cars that sell
)

// FeatureBasis switches a feature, and says on which basis it may be used.
type FeatureBasis struct {
	Feature string `cbor:"1,keyasint"`
	On      bool   `cbor:"2,keyasint"`
	Basis   string `cbor:"3,keyasint"` // 1..64 bytes when On
}

// FirmOffer promises a quantity of energy per slot at a price: the signer's
// house delivers (Sell) or takes (Buy) it, or a car of his that sells or
// charges, or makes the other side whole. Collateral is held at once.
type FirmOffer struct {
	ID      ID             `cbor:"1,keyasint"` // chosen by the signer, unique
	Device  Key            `cbor:"2,keyasint"` // gateway of the house, or where the car stands
	Session ID             `cbor:"3,keyasint"` // of the car; zero: the house
	Side    Side           `cbor:"4,keyasint"`
	From    Slot           `cbor:"5,keyasint"`
	To      Slot           `cbor:"6,keyasint"` // inclusive
	Wh      meter.WattHour `cbor:"7,keyasint"` // in every slot
	Price   NanoPerWh      `cbor:"8,keyasint"` // at the signer's node: what he gets or pays
}

// FirmTake accepts a firm offer, in full or in part. Who is nearer pays less
// for the network.
type FirmTake struct {
	Offer   ID             `cbor:"1,keyasint"`
	Device  Key            `cbor:"2,keyasint"`
	Session ID             `cbor:"3,keyasint"` // of a car that sells, or charges; zero: the house
	Wh      meter.WattHour `cbor:"4,keyasint"` // in every slot
}

// FirmCancel withdraws what nobody has taken of a firm offer.
type FirmCancel struct {
	Offer ID `cbor:"1,keyasint"`
}

// CorrectionRuling decides about a correction that favours its own site.
type CorrectionRuling struct {
	Device Key  `cbor:"1,keyasint"`
	Slot   Slot `cbor:"2,keyasint"`
	ID     ID   `cbor:"3,keyasint"`
	Accept bool `cbor:"4,keyasint"`
}

// KindMeterCorrection is the record kind of MeterCorrection.
const KindMeterCorrection RecordKind = 20

// MeterCorrection states by how much the energy that a gateway's site meter
// reported of a slot was wrong. It changes what the site owes the supplier,
// never what neighbours have traded.
type MeterCorrection struct {
	ID     ID             `cbor:"1,keyasint"` // chosen by the author, unique among those of the slot
	Slot   Slot           `cbor:"2,keyasint"` // cleared, within 30 days
	Import meter.WattHour `cbor:"3,keyasint"` // what the import was more than stated; negative: less
	Export meter.WattHour `cbor:"4,keyasint"`
	Reason string         `cbor:"5,keyasint"` // 1..64 bytes, no personal data
}
