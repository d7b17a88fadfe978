package ledger

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/joulegate/joulegate/chain"
)

// RulesVersion is the newest version of the ledger's rules that this program
// can execute. A change of the rules that needs more stops it before the
// block from which they hold.
const RulesVersion uint32 = 1

const (
	dayMs           = 86_400_000
	minNotice       = 2 // blocks between a change of the rules and its activation
	maxNotice       = 100_000_000
	maxPending      = 64 // changes not in force yet
	maxRulesDays    = 3650
	maxTaxRates     = 32
	maxBasis        = 4 * maxText
	defaultPayout   = 10 // days
	defaultDispute  = 30
	defaultAnswer   = 14
	defaultResolve  = 60
	defaultRulesVer = 1
)

// defaults fills in what a genesis may leave out.
func (g *Rules) defaults() {
	for _, d := range []struct {
		v   *int64
		def int64
	}{
		{&g.StartSeconds, defaultStartSeconds},
		{&g.Threshold, 1},
		{&g.PayoutDays, defaultPayout},
		{&g.DisputeDays, defaultDispute},
		{&g.AnswerDays, defaultAnswer},
		{&g.ResolveDays, defaultResolve},
		{&g.RetainDays, defaultRetain},
		{&g.StoragePPM, DefaultStoragePPM},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if g.Version == 0 {
		g.Version = defaultRulesVer
	}
	if g.Basis == "" {
		g.Basis = chain.Simulated
	}
	if g.Invoices == "" {
		g.Invoices = InvoicesMonthly
	}
}

// Simulated reports whether nobody has recorded a legal basis for selling
// energy for money here.
func (g *Rules) Simulated() bool { return g.Basis == chain.Simulated }

// storage is the storage efficiency in force.
func (g *Rules) storage() int64 { return cmp.Or(g.StoragePPM, DefaultStoragePPM) }

// check reports the first thing wrong with the rules that can change.
func (g *Rules) check() error {
	days := func(n int64) bool { return n < 1 || n > maxRulesDays }
	switch {
	case len(g.Operators) == 0 || len(g.Operators) > MaxOperators:
		return refuse(CodeRange, "%d operators, 1..%d", len(g.Operators), MaxOperators)
	case slices.Contains(g.Operators, chain.Key{}) || slices.Contains(g.Auditors, chain.Key{}):
		return refuse(CodeMalformed, "an operator or auditor key is zero")
	case repeats(slices.Concat(g.Operators, g.Auditors)):
		return refuse(CodeTaken, "a key is twice among operators and auditors")
	case len(g.Auditors) > MaxOperators:
		return refuse(CodeRange, "%d auditors, at most %d", len(g.Auditors), MaxOperators)
	case g.Threshold < 1 || g.Threshold > int64(len(g.Operators)):
		return refuse(CodeRange, "threshold %d of %d operators", g.Threshold, len(g.Operators))
	case g.DailyMintCap < 0:
		return refuse(CodeRange, "daily_mint_cap_nano %d", g.DailyMintCap)
	case g.DailyMintCap > 0 && len(g.Auditors) == 0:
		return refuse(CodeRange, "a daily mint cap without an auditor")
	case g.GraceSeconds < 1 || g.GraceSeconds > g.SlotSeconds:
		return refuse(CodeRange, "grace_seconds %d, 1..%d", g.GraceSeconds, g.SlotSeconds)
	case g.StartSeconds < 1 || g.StartSeconds > 86400:
		return refuse(CodeRange, "start_limit_seconds %d, 1..86400", g.StartSeconds)
	case g.FeedIn < 0 || g.Retail < g.FeedIn || g.Retail > MaxPrice:
		return refuse(CodeRange, "retail %d, feed-in %d", g.Retail, g.FeedIn)
	case g.EarnPPM < 0 || g.EarnPPM > 1e6 || g.RedeemPPM < 0 || g.RedeemPPM > 1e6 || g.ExpirySlots < 0 || g.ExpirySlots > maxSlot:
		return refuse(CodeRange, "credit: earn %d ppm, redeem %d ppm, %d slots", g.EarnPPM, g.RedeemPPM, g.ExpirySlots)
	case g.Invoices != "" && g.Invoices != InvoicesMonthly && g.Invoices != InvoicesOff:
		return refuse(CodeMalformed, "invoices %q: %s or %s", g.Invoices, InvoicesMonthly, InvoicesOff)
	case g.StoragePPM != 0 && (g.StoragePPM < MinStoragePPM || g.StoragePPM > MaxStoragePPM):
		return refuse(CodeRange, "storage_ppm %d, %d..%d", g.StoragePPM, MinStoragePPM, MaxStoragePPM)
	case len(g.Basis) > maxBasis:
		return refuse(CodeMalformed, "basis of %d bytes, at most %d", len(g.Basis), maxBasis)
	case days(g.PayoutDays) || days(g.DisputeDays) || days(g.AnswerDays) || days(g.ResolveDays):
		return refuse(CodeRange, "payout %d, dispute %d, answer %d, resolve %d days, 1..%d", g.PayoutDays, g.DisputeDays, g.AnswerDays, g.ResolveDays, maxRulesDays)
	case g.RetainDays < minRetain || g.RetainDays > maxRulesDays:
		return refuse(CodeRange, "retain_days %d, %d..%d", g.RetainDays, minRetain, maxRulesDays)
	case g.ResolveDays < g.AnswerDays:
		return refuse(CodeRange, "a dispute would have to be resolved in %d days and answered in %d", g.ResolveDays, g.AnswerDays)
	case len(g.Tax) > maxTaxRates:
		return refuse(CodeLimit, "%d tax rates, at most %d", len(g.Tax), maxTaxRates)
	}
	for i, t := range g.Tax {
		if t.PPM < 0 || t.PPM > 1e6 || (i > 0 && t.From <= g.Tax[i-1].From) {
			return refuse(CodeRange, "tax rate %d ppm from %d: 0..1000000, ascending", t.PPM, t.From)
		}
	}
	return nil
}

func repeats(keys []chain.Key) bool {
	for i, k := range keys {
		if slices.Contains(keys[:i], k) {
			return true
		}
	}
	return false
}

// TaxAt returns the rate in ppm of the net amount for a supply at a moment
// (Unix ms), and whether the operator is subject to tax then.
func (g *Rules) TaxAt(ms int64) (ppm int64, subject bool) {
	for _, t := range g.Tax {
		if t.From <= ms {
			ppm, subject = t.PPM, true
		}
	}
	return ppm, subject
}

// with returns the rules after a change.
func (g Rules) with(c *chain.RulesChange) Rules {
	set(&g.GraceSeconds, c.Grace)
	set(&g.StartSeconds, c.Start)
	set(&g.Threshold, c.Threshold)
	set(&g.Auditors, c.Auditors)
	set(&g.DailyMintCap, c.DailyMintCap)
	set(&g.Retail, c.Retail)
	set(&g.FeedIn, c.FeedIn)
	set(&g.EarnPPM, c.EarnPPM)
	set(&g.RedeemPPM, c.RedeemPPM)
	set(&g.ExpirySlots, c.ExpirySlots)
	set(&g.Transfers, c.Transfers)
	set(&g.Basis, c.Basis)
	set(&g.PayoutDays, c.PayoutDays)
	set(&g.DisputeDays, c.DisputeDays)
	set(&g.AnswerDays, c.AnswerDays)
	set(&g.ResolveDays, c.ResolveDays)
	set(&g.RetainDays, c.RetainDays)
	set(&g.Invoices, c.Invoices)
	set(&g.StoragePPM, c.StoragePPM)
	if len(c.Operators) > 0 {
		g.Operators = c.Operators
	}
	if c.Tax != nil {
		g.Tax = append(slices.Clip(g.Tax), *c.Tax)
	}
	g.Version = max(g.Version, c.MinVersion)
	return g
}

func set[T any](to *T, v *T) {
	if v != nil {
		*to = *v
	}
}

// lawful reports whether a change may turn these rules into next.
func (g *Rules) lawful(st State, next *Rules) error {
	if err := next.check(); err != nil {
		return err
	}
	if g.Simulated() && !next.Simulated() {
		// Play money would become a claim.
		if m, _ := get[supply](st, key(tabMoney)); m.Minted != m.Burned {
			return refuse(CodeRules, "%d nano of simulated money are in the ledger: found a microgrid with the legal basis in its genesis", m.Minted-m.Burned)
		}
	}
	return nil
}

// proposeRules notes a change of the rules for a later block. It must fit the
// rules that will be in force by then.
func (r *run) proposeRules(st State, by authority, c chain.RulesChange) error {
	if err := r.operators(by); err != nil {
		return err
	}
	if c.Height < r.height+minNotice || c.Height > r.height+maxNotice {
		return refuse(CodeRange, "from block %d; this is block %d, at least %d ahead", c.Height, r.height, minNotice)
	}
	if c.Tax != nil && c.Tax.From < r.time {
		return refuse(CodeRange, "a tax rate from %d, before block time %d", c.Tax.From, r.time)
	}
	pending := PendingRules(st)
	if len(pending) >= maxPending {
		return refuse(CodeLimit, "%d changes are pending", len(pending))
	}
	then := r.rules
	var number uint64
	for i, p := range pending {
		if p.Height <= c.Height {
			then = then.with(&pending[i])
		}
		if p.Height == c.Height {
			number++
		}
	}
	next := then.with(&c)
	if err := then.lawful(st, &next); err != nil {
		return err
	}
	put(st, key(tabPending, be64(uint64(c.Height)), be64(number)), c)
	r.event("rules.proposed", fmt.Sprint(c.Height), "rules version %d", next.Version)
	return nil
}

// activate puts the changes that are due in force, before the block's first
// transaction. One that no longer fits is dropped.
func (r *run) activate(st State) error {
	var due [][]byte
	st.Iterate([]byte{tabPending}, func(k, _ []byte) bool {
		if string(k[1:9]) > string(be64(uint64(r.height))) {
			return false
		}
		due = append(due, k)
		return true
	})
	for _, k := range due {
		c, _ := get[chain.RulesChange](st, k)
		st.Delete(k)
		next := r.rules.with(&c)
		if err := r.rules.lawful(st, &next); err != nil {
			r.event("rules.dropped", fmt.Sprint(c.Height), "%v", err)
			continue
		}
		if r.rules.Invoices != next.Invoices { // not for months in which nobody expected it
			put(st, key(tabBilling), billing{From: monthOf(r.time)})
		}
		if before := r.rules.storage(); before != next.storage() {
			rate(st, before)
		}
		r.rules = next
		put(st, key(tabRules), next)
		r.event("rules.changed", fmt.Sprint(c.Height), "rules version %d", next.Version)
	}
	if r.rules.Version > RulesVersion {
		return &OutdatedError{Height: r.height, Version: r.rules.Version}
	}
	return nil
}

// OutdatedError says that this program is too old for the rules of a block.
type OutdatedError struct {
	Height  int64  // first block that it cannot execute
	Version uint32 // rules version that is needed
}

func (e *OutdatedError) Error() string {
	return fmt.Sprintf("from block %d on the ledger has rules version %d, this program knows up to %d: update joulegate and start it again; until then this gateway meters and charges under local control and does not vote", e.Height, e.Version, RulesVersion)
}

// Outdated returns an *OutdatedError if this program cannot execute block
// height, from what the state before it says, and nil otherwise. A gateway
// asks before it votes.
func Outdated(st State, height int64) error {
	version, from := RulesOf(st).Version, height
	for _, c := range PendingRules(st) {
		if c.Height <= height {
			version = max(version, c.MinVersion)
		}
	}
	if version > RulesVersion {
		return &OutdatedError{Height: from, Version: version}
	}
	return nil
}

// PendingRules returns the changes that are not in force yet, in the order in
// which they will be.
func PendingRules(st State) []chain.RulesChange {
	return collect[chain.RulesChange](st, key(tabPending))
}
