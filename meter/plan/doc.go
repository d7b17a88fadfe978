// Package plan chooses when a car charges: "20 kWh by 7 o'clock, at most 0.25
// per kWh". It is pure: Make solves one problem, Step keeps a plan while the
// world changes.
//
//	slot     22:00   22:15   22:30   22:45 ...  06:45
//	offers   ▒ 0.21  ▒ 0.21                             neighbours, so many Wh each
//	tariff   █ 0.30  █ 0.30  █ 0.18  █ 0.18      0.30   the supplier, without limit
//	room     ──────── what charger, fuse and utility let through ────────
//	plan     ▒▒      ▒▒      ████    ████
//
// # Exact
//
// A slot has room for so much energy and offers it in tiers, each at a price.
// Taking the cheapest Wh of all tiers of all slots first, as far as slot and
// tier have room, is optimal: no other choice delivers more by the deadline,
// and none that delivers as much costs less. (The sets that fit are the
// independent sets of a laminar matroid, for which greedy choice is exact.) Of
// equal prices the earlier slot goes first: what is in the battery is certain.
//
// # The deadline
//
// It is kept whenever physics and the driver's price allow. When they do not,
// the plan still delivers as much as it can, and says at once how much is
// missing and whether power or price is to blame: Plan.Report.
//
// # Within a slot
//
// Energy is traded per slot, so that its shape within does not matter. A
// charger gets the current that spreads the rest of the slot's energy over the
// rest of the slot, at least 6 A (IEC 61851-1), and nothing once it is done.
package plan
