package ledger

import (
	"fmt"
	"math"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
)

// What the meters of the houses and the meter at the grid connection do not
// agree on, and what turns out to have been wrong after a slot was cleared.

const (
	// LossAuditPPM: a slot that loses a larger part of what entered its
	// network is marked for an audit. Low-voltage networks lose a few percent.
	LossAuditPPM = 100_000
	// correctionMs is how long after a slot's end its readings can be
	// corrected.
	correctionMs      = 30 * 24 * 3600 * 1000
	maxCorrections    = 16      // of one site and slot
	maxAllCorrections = 1 << 12 // that wait for the operator, of one site
)

// loss sets money aside for what got lost in a slot: its value at the
// supplier's price goes from the network's fees to the loss account, and back
// when meters were only read a moment apart. Fees that do not suffice are the
// limit: nobody owes anybody for losses.
func (r *run) loss(st State, view *SlotView, sites []*site) error {
	e := view.Energy
	if e.Loss == 0 {
		return nil
	}
	wh := max(e.Loss, -e.Loss)
	from, to := chain.AccountNetwork, chain.AccountLoss
	if e.Loss < 0 {
		from, to = to, from
	}
	value, err := chain.Cost(view.Retail, wh)
	if err != nil { // a connection's meter can claim more than money can count
		value = math.MaxInt64
	}
	value = min(value, balance(st, from), math.MaxInt64-balance(st, to))
	because(st, "losses of slot", view.Slot)
	if err := move(st, from, to, value); err != nil {
		return err
	}
	if view.LossValue = value; e.Loss < 0 {
		view.LossValue = -value
	}
	entered := e.GridImport
	for _, at := range sites {
		entered += at.bucket.Export
	}
	// Every meter rounds, and is read within a moment of the others.
	noise := meter.WattHour(len(sites) + 1)
	if wh > noise+meter.WattHour(chain.PPM(chain.Nano(max(entered, 0)), LossAuditPPM)) {
		view.Audit = true
		r.event("slot.loss", fmt.Sprint(view.Slot), "%d Wh lost of %d that entered the network: audit", e.Loss, entered)
	}
	return nil
}

// CorrectionState is where a correction stands.
type CorrectionState uint8

// Correction states. Append only.
const (
	CorrectionBooked  CorrectionState = 1 + iota // in effect
	CorrectionWaits                              // in its own site's favour: an operator decides
	CorrectionRefused                            // without effect
)

var correctionStates = [...]string{CorrectionBooked: "booked", CorrectionWaits: "waits", CorrectionRefused: "refused"}

func (s CorrectionState) String() string {
	if s == 0 || int(s) >= len(correctionStates) {
		return fmt.Sprintf("state(%d)", uint8(s))
	}
	return correctionStates[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s CorrectionState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *CorrectionState) UnmarshalText(b []byte) error {
	for i := CorrectionBooked; int(i) < len(correctionStates); i++ {
		if correctionStates[i] == string(b) {
			*s = i
			return nil
		}
	}
	return fmt.Errorf("unknown correction state %q", b)
}

// CorrectionView is a delta entry against the supplier. The slot, its trades
// and its certificates stay as they are.
type CorrectionView struct {
	Device chain.Key       `cbor:"1,keyasint" json:"device"`
	Slot   chain.Slot      `cbor:"2,keyasint" json:"slot"`
	ID     chain.ID        `cbor:"3,keyasint" json:"id"`
	Import meter.WattHour  `cbor:"4,keyasint" json:"import_wh"`
	Export meter.WattHour  `cbor:"5,keyasint" json:"export_wh"`
	Reason string          `cbor:"6,keyasint" json:"reason"`
	State  CorrectionState `cbor:"7,keyasint" json:"state"`
	Amount chain.Nano      `cbor:"8,keyasint" json:"amount_nano"`                  // from the owner to the supplier; negative: to the owner
	Bill   bool            `cbor:"9,keyasint,omitempty" json:"own_bill,omitempty"` // the balance did not cover it: on the supplier's own bill
	Height int64           `cbor:"10,keyasint" json:"height"`
}

func correctionKey(device chain.Key, s chain.Slot, id chain.ID) []byte {
	return key(tabCorrection, device[:], slotBytes(s), id[:])
}

// correction takes a gateway's word that it reported a slot wrongly. What
// costs its own site takes effect at once; what favours it waits for an
// operator, because the supplier pays.
func (r *run) correction(st State, m *member, c chain.MeterCorrection) error {
	device := m.Member.Device
	k := correctionKey(device, c.Slot, c.ID)
	v, ok := get[SlotView](st, SlotKey(c.Slot))
	switch {
	case st.Get(k) != nil:
		return refuse(CodeDuplicate, "correction %s of slot %d", c.ID, c.Slot)
	case c.Import == 0 && c.Export == 0 || len(c.Reason) == 0 || len(c.Reason) > maxText || c.ID == chain.ID{}:
		return refuse(CodeMalformed, "a correction needs an id, an amount and a reason of at most %d bytes", maxText)
	case !ok || c.Slot >= r.clock.Next:
		return refuse(CodeState, "slot %d has not been cleared with energy in it", c.Slot)
	case c.Slot.End(r.rules.SlotSeconds)+correctionMs < r.time:
		return refuse(CodeExpired, "slot %d is more than 30 days ago", c.Slot)
	}
	was, ok := priceOf(&v, m.Member.Name)
	if !ok {
		return refuse(CodeState, "%s was not in slot %d", m.Member.Name, c.Slot)
	}
	imp, exp := was.Import+c.Import, was.Export+c.Export
	count, waits := 0, 0
	each(st, key(tabCorrection, device[:]), func(_ []byte, o CorrectionView) bool {
		if o.Slot == c.Slot {
			count++
			if o.State != CorrectionRefused {
				imp += o.Import
				exp += o.Export
			}
		}
		if o.State == CorrectionWaits {
			waits++
		}
		return true
	})
	limit := plausible(m.Member.MaxPower, 0, 2*r.rules.SlotSeconds*1000)
	switch {
	case count >= maxCorrections || waits >= maxAllCorrections:
		return refuse(CodeLimit, "%d corrections of slot %d, %d wait", count, c.Slot, waits)
	case max(c.Import, -c.Import) > limit || max(c.Export, -c.Export) > limit || min(imp, exp) < 0 || max(imp, exp) > limit:
		return refuse(CodeRange, "slot %d would have %d Wh imported and %d Wh exported, 0..%d", c.Slot, imp, exp, limit)
	}
	view := CorrectionView{Device: device, Slot: c.Slot, ID: c.ID, Import: c.Import, Export: c.Export, Reason: c.Reason, Height: r.height}
	if view.Amount = correctionAmount(&v, &view); view.Amount <= 0 {
		view.State = CorrectionWaits
		put(st, k, view)
		r.event("meter.correction_waits", m.Member.Name, "slot %d: %d Wh import, %d Wh export, %d nano to the owner", c.Slot, c.Import, c.Export, -view.Amount)
		return nil
	}
	return r.bookCorrection(st, m, k, &view)
}

// correctionAmount is what the owner owes at the supplier's prices of the
// slot. Both factors are bounded, so it does not overflow.
func correctionAmount(v *SlotView, c *CorrectionView) chain.Nano {
	return chain.Nano(v.Retail)*chain.Nano(c.Import) - chain.Nano(v.FeedIn)*chain.Nano(c.Export)
}

// slotPrices are the supplier's prices at which a slot was cleared.
func slotPrices(st State, s chain.Slot) (retail, feedIn chain.NanoPerWh) {
	v, _ := get[SlotView](st, SlotKey(s))
	return v.Retail, v.FeedIn
}

func priceOf(v *SlotView, node string) (PriceView, bool) {
	for _, p := range v.Prices {
		if p.Node == node {
			return p, true
		}
	}
	return PriceView{}, false
}

func (r *run) ruleCorrection(st State, signer chain.Key, c chain.CorrectionRuling) error {
	if err := r.operator(signer); err != nil {
		return err
	}
	k := correctionKey(c.Device, c.Slot, c.ID)
	view, ok := get[CorrectionView](st, k)
	if !ok || view.State != CorrectionWaits {
		return refuse(CodeState, "no correction %s of slot %d waits", c.ID, c.Slot)
	}
	m, _ := get[member](st, MemberKey(c.Device))
	if !c.Accept {
		view.State = CorrectionRefused
		put(st, k, view)
		r.event("meter.correction_refused", m.Member.Name, "slot %d: %d Wh import, %d Wh export", c.Slot, view.Import, view.Export)
		return nil
	}
	return r.bookCorrection(st, &m, k, &view)
}

// bookCorrection moves the money of a correction between owner and supplier,
// and its energy in the totals.
func (r *run) bookCorrection(st State, m *member, k []byte, view *CorrectionView) error {
	retail, feedIn := slotPrices(st, view.Slot)
	because(st, "correction of slot", view.Slot)
	var err error
	if view.Bill, err = r.adjust(st, m, view.Slot, retail, feedIn, view.Import, view.Export, view.Reason); err != nil {
		return err
	}
	view.State = CorrectionBooked
	put(st, k, *view)
	r.event("meter.corrected", m.Member.Name, "slot %d: %d Wh import, %d Wh export, %d nano to the supplier", view.Slot, view.Import, view.Export, view.Amount)
	return nil
}

// adjust moves the money of a site's energy between owner and supplier, and
// the energy in the totals. Either may be negative: then it takes back what
// was booked before, with a credit note for reason if that has been billed.
// It tells whether it is left to the supplier's own bill,
// because the balance did not cover it.
func (r *run) adjust(st State, m *member, s chain.Slot, retail, feedIn chain.NanoPerWh, imp, exp meter.WattHour, reason string) (bill bool, err error) {
	bought, err := chain.Cost(retail, imp)
	if err != nil {
		return false, refuse(CodeOverflow, "%d Wh at %d nano/Wh", imp, retail)
	}
	fed, err := chain.Cost(feedIn, exp)
	if err != nil {
		return false, refuse(CodeOverflow, "%d Wh at %d nano/Wh", exp, feedIn)
	}
	from, to, amount := m.owner(), chain.AccountGrid, chain.Nano(0)
	if amount, err = chain.AddNano(bought, -fed); err != nil {
		return false, refuse(CodeOverflow, "%d and %d nano", bought, fed)
	}
	if amount < 0 {
		from, to, amount = to, from, -amount
	}
	c := countersOf(st, m.Member.Device)
	if bill = amount > balance(st, from); bill {
		c.SupplierImport = max(0, c.SupplierImport+imp)
		c.SupplierExport = max(0, c.SupplierExport+exp)
		put(st, key(tabCounters, m.Member.Device[:]), c)
	} else {
		if err := move(st, from, to, amount); err != nil {
			return false, err
		}
		r.accrue(st, m, s, Accrual{GridWh: max(imp, 0), Grid: max(bought, 0), FedWh: max(exp, 0), Fed: max(fed, 0)})
		if err := r.uncharge(st, m, s, Accrual{GridWh: max(-imp, 0), Grid: max(-bought, 0), FedWh: max(-exp, 0), Fed: max(-fed, 0)}, reason); err != nil {
			return false, err
		}
	}
	return bill, r.late(st, m, s, lateEnergy{FixImport: imp, FixExport: exp})
}

// CorrectionsOf returns the corrections of one gateway, or of all (zero key),
// ascending by device and slot.
func CorrectionsOf(st State, device chain.Key) []CorrectionView {
	if device == (chain.Key{}) {
		return collect[CorrectionView](st, key(tabCorrection))
	}
	return collect[CorrectionView](st, key(tabCorrection, device[:]))
}
