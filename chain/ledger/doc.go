// Package ledger is the deterministic state machine of a microgrid: it turns
// the agreed order of transactions into money, energy and membership.
//
//	people's transactions ─┐                 ┌─► results, events, validators
//	                       ├─► Apply(block) ─┤
//	gateways' blocks ──────┘        │        └─► violations
//	                             State
//	               (accounts, sessions, slots, members)
//
// It is pure. The only clock is block time, the only memory is a [State], and
// equal blocks give an equal state on every gateway. An edge gives it a Merkle
// tree, so that every entry can be proven alone; tests give it a map.
//
// # Execution
//
// A block runs on an [Overlay] of the state, each transaction on one of the
// block's, each record of a gateway block on one of the transaction's. What
// is refused leaves no trace but its [Code]. A record that is refused does not
// void its block: the author's chain goes on. What a transaction changed is
// added up before it counts: if money or credit were made or lost, it is
// refused and reported as a [Violation]. After the transactions comes what is
// due at block time; then the invariants of [CheckInvariants] must hold, or
// Apply fails, writes nothing, and the ledger halts.
//
// Empty blocks write nothing, so that a chain which makes blocks only when
// its hash changes can come to rest. Block time is then that of the last
// votes; device clocks may run ahead of it by two slots and ten minutes.
//
// # Energy
//
// Meters state cumulative registers; the difference to the last record is
// booked. It can trade in its slot if the meter reported the slot before too,
// and the slot has not been cleared. Otherwise it is late, and settles at the
// supplier's price of its slot. Registers that fall, jump further than the
// connection's power allows, or are not of good quality do not move energy;
// the next good record does. A slot is cleared when every site, the meter at
// the grid connection and every charging session have reported it, or when
// the grace after its end is over:
//
//	house buys    max(0, I - S) + max(0, V - E)   I, E: import and export of the site meter
//	house sells   max(0, E - V) + max(0, S - I)   S, V: energy into and out of cars behind it
//	car buys      its own energy, at the house's node, up to its cap
//	car sells     what it gives, at the house's node, from its limit up
//
// What is under firm contracts is settled first (see firm.go), so that a Wh is
// in one trade only. // Package chain/market matches neighbours exactly and proves it; what is left
// over the supplier takes or delivers. A house whose balance does not cover
// its import at retail is left to the supplier's own bill and counted there;
// so is surplus that the supplier's balance does not cover.
//
// Every block proves, for every slot that it has cleared, that no better
// clearing exists, from what it has written: [CertifySlot] does it again at any
// time, on the fee tree of that slot. [FlowOf] tells who supplied whom, with
// exact margins, what came late among it. Certificates of origin are issued for
// every Wh produced, go with the energy, and are cancelled where it is used;
// batteries get them back on discharge for what they charged, less losses;
// those that are issued late go to nobody else.
// A reading that was wrong is corrected within 30 days against the supplier;
// other people's trades are final.
//
// # Sessions
//
//	HELD ──begin──► CHARGING ──stop──► METERED ──slots cleared──► CLOSED
//	 │                  │                  ▲         (settled)   INTERRUPTED
//	 └─start limit──► EXPIRED   silence,───┘
//	                            revoked: by rule
//
// The driver's signed quote moves its whole price from balance to hold. Every
// slot captures what it cost; in the block in which the last one is captured,
// credit is redeemed and earned, the rest of the hold is released and the
// session closed. A connector is free again from METERED on.
//
// # Mandates and reserves
//
// A mandate lets a token's key (a card's, a printed code's) open sessions whose
// hold is taken from its payer, within caps per session, per day and in price.
// A reserve is money that a payer has set apart for one gateway. A session that
// the ledger hears of after its quote is over is paid from there, if its
// mandate allowed it when it began: the gateway could not ask. What is in
// reserves has left the balance, so no driver can owe more than he has, however
// many gateways are cut off; asked back, it returns after a notice that is
// longer than a gateway may charge blindly.
//
// # Credit
//
// Discount credit is a claim on the reserve account, nano for nano: earning
// moves promotion to reserve, redeeming reserve to the driver, expiry reserve
// to promotion. It is earned on the part of a bill that was paid in money, and
// pays at most a set part of the next.
//
// # Money that several people answer for
//
// Operators mint and burn against payments of a bank, each with a reference of
// its own. What moves other people's money needs the rules' number of them;
// see cosign.go for who may state what. Payouts (payout.go) lock money until a
// bank has paid it, refunds (refund.go) give back part of a settled bill,
// disputes (dispute.go) freeze what is contested and nothing else, documents
// (invoice.go) put it all on numbered paper, and the rules themselves change
// at a height (rules.go).
//
// # Order of gateway blocks
//
// A gateway's blocks are taken in the order of its own chain. Whoever submits
// them (the author, or a neighbour for it) submits a block again that was
// refused with [CodeGap], after the one before it.
package ledger
