package panel

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
)

// Market is the last cleared slot, for a person: who bought and sold, at
// which price, and why.
type Market struct {
	Currency    string           `json:"currency"`
	SlotSeconds int64            `json:"slot_seconds"`
	Last        *ledger.SlotView `json:"last"` // nil: none cleared yet
	Houses      []House          `json:"houses"`
	Why         string           `json:"why"`
	History     []MarketPoint    `json:"history"` // oldest first, at most MaxHistory
}

// MaxHistory bounds Market.History.
const MaxHistory = 96

// House is one member in a cleared slot.
type House struct {
	Name    string          `json:"name"`
	Price   chain.NanoPerWh `json:"price_nano_per_wh"` // local price at its node
	Bought  meter.WattHour  `json:"bought_wh"`         // from neighbours, by house and car
	Sold    meter.WattHour  `json:"sold_wh"`           // to neighbours
	Charged meter.WattHour  `json:"charged_wh"`        // into cars, wherever it came from
	Import  meter.WattHour  `json:"import_wh"`         // from the grid
	Export  meter.WattHour  `json:"export_wh"`         // to the grid
}

// MarketPoint is a cleared slot in one line.
type MarketPoint struct {
	Slot   chain.Slot      `json:"slot"`
	Start  int64           `json:"start_ms"` // Unix
	Price  chain.NanoPerWh `json:"price_nano_per_wh"`
	Traded meter.WattHour  `json:"traded_wh"`
	Import meter.WattHour  `json:"import_wh"`
	Export meter.WattHour  `json:"export_wh"`
}

// NewMarket tells recent slots, in any order, as a Market. Only the newest
// needs its fills.
func NewMarket(rules ledger.Rules, members []ledger.MemberView, recent []ledger.SlotView) Market {
	m := Market{Currency: rules.Currency, SlotSeconds: rules.SlotSeconds, Houses: []House{}, History: []MarketPoint{}}
	recent = slices.SortedFunc(slices.Values(recent), func(a, b ledger.SlotView) int { return cmp.Compare(a.Slot, b.Slot) })
	for _, s := range recent[max(0, len(recent)-MaxHistory):] {
		m.History = append(m.History, MarketPoint{
			Slot: s.Slot, Start: s.Slot.Start(rules.SlotSeconds), Price: middle(s),
			Traded: s.Energy.Traded, Import: s.Energy.GridImport, Export: s.Energy.GridExport,
		})
	}
	if len(recent) == 0 {
		m.Why = "No slot has been cleared yet."
		return m
	}
	last := recent[len(recent)-1]
	m.Last = &last
	for _, mem := range members {
		if !mem.Active {
			continue
		}
		h := House{Name: mem.Name, Price: priceAt(last, mem.Name)}
		for _, f := range last.Fills {
			if f.Device != mem.Device {
				continue
			}
			if f.Session != (chain.ID{}) {
				h.Charged += f.Wh
			}
			if f.Side == chain.Buy {
				h.Bought += f.Local
				h.Import += f.Wh - f.Local
			} else {
				h.Sold += f.Local
				h.Export += f.Wh - f.Local
			}
		}
		m.Houses = append(m.Houses, h)
	}
	slices.SortFunc(m.Houses, func(a, b House) int { return cmp.Compare(a.Name, b.Name) })
	m.Why = why(last, m.Houses, buyers(last, members), rules.Currency)
	return m
}

// middle is the price in the middle of the fee tree: the root's, if the slot
// tells it, else the median of all nodes.
func middle(s ledger.SlotView) chain.NanoPerWh {
	if len(s.Prices) == 0 {
		return 0
	}
	var ps []chain.NanoPerWh
	for _, p := range s.Prices {
		if p.Node == "root" {
			return p.Price
		}
		ps = append(ps, p.Price)
	}
	slices.Sort(ps)
	return ps[len(ps)/2]
}

func priceAt(s ledger.SlotView, node string) chain.NanoPerWh {
	for _, p := range s.Prices {
		if p.Node == node {
			return p.Price
		}
	}
	return 0
}

// buyers names who bought from neighbours: houses first, then cars, which
// may stand at a house that sells.
func buyers(s ledger.SlotView, members []ledger.MemberView) []string {
	var houses, cars []string
	for _, m := range members {
		for _, f := range s.Fills {
			switch {
			case f.Device != m.Device || f.Side != chain.Buy || f.Local == 0:
			case f.Session != (chain.ID{}):
				cars = append(cars, "the car at "+m.Name)
			default:
				houses = append(houses, m.Name)
			}
		}
	}
	slices.Sort(houses)
	slices.Sort(cars)
	return append(houses, cars...)
}

// why explains the slot in one or two sentences.
func why(s ledger.SlotView, houses []House, buyers []string, currency string) string {
	var sold, imported, exported meter.WattHour
	var sellers []string
	for _, h := range houses {
		sold, imported, exported = sold+h.Sold, imported+h.Import, exported+h.Export
		if h.Sold > 0 {
			sellers = append(sellers, h.Name)
		}
	}
	retail, feedIn := PerKWh(s.Retail, currency), PerKWh(s.FeedIn, currency)
	switch {
	case sold == 0 && exported == 0 && imported == 0:
		return "Nobody used or produced energy at the connection in this slot."
	case sold == 0 && exported == 0:
		return fmt.Sprintf("No house had surplus, so everybody bought from the grid at %s.", retail)
	case sold == 0 && imported == 0:
		return fmt.Sprintf("Every house covered itself, so the surplus of %d Wh went to the grid for %s.", exported, feedIn)
	case sold == 0:
		return fmt.Sprintf("Surplus and demand did not meet: the fees between them are higher than the grid's margin (it pays %s and asks %s).", feedIn, retail)
	}
	text := fmt.Sprintf("%s sold %d Wh to %s.", join(sellers), sold, join(buyers))
	switch {
	case imported > 0 && exported == 0:
		text += fmt.Sprintf(" There was less surplus than demand, so the price rose towards what the grid asks (%s).", retail)
	case exported > 0 && imported == 0:
		text += fmt.Sprintf(" There was more surplus than demand, so the price fell towards what the grid pays (%s); buyers pay for the wires on top and still less than the grid asks (%s).", feedIn, retail)
	default:
		text += fmt.Sprintf(" The price lies between what the grid pays (%s) and what it asks (%s): both sides gain.", feedIn, retail)
	}
	return text
}

// PerKWh writes a price as people read it, for example "0.21 EUR/kWh".
func PerKWh(p chain.NanoPerWh, currency string) string {
	sign, v := "", int64(p) // nano per Wh are millionths of the unit per kWh
	if v < 0 {
		sign, v = "-", -v
	}
	frac := strings.TrimRight(fmt.Sprintf("%06d", v%1_000_000), "0")
	for len(frac) < 2 {
		frac += "0"
	}
	return fmt.Sprintf("%s%d.%s %s/kWh", sign, v/1_000_000, frac, currency)
}

func join(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
