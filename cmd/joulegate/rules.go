package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

func newGridRulesCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "rules",
		Short: "What everybody has agreed to, and how it changes",
		Long: `The rules begin with the genesis and change only by a statement that the threshold
of operators has signed, from a block on that is still to come. A change can need a
newer program: gateways with an older one say so beforehand and stop voting before
that block.`,
	}
	c.AddCommand(newRulesShowCmd(), newRulesProposeCmd())
	return c
}

func newRulesShowCmd() *cobra.Command {
	return ledgerQuery(atFlag(&cobra.Command{Use: "show", Short: "The rules in force, and changes to come", Args: cobra.NoArgs}),
		func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Rules, error) {
			return g.Rules(cmd.Context())
		}, func(l stoppedLedger, _ []string) (panel.Rules, error) { return rulesOf(l, l.height), nil }, func(w io.Writer, r panel.Rules) error {
			n := func(v int64) string { return strconv.FormatInt(v, 10) }
			rows := [][]string{
				{"chain", r.ChainID},
				{"rules version", fmt.Sprintf("%d, this program knows %d", r.Version, r.Knows)},
				{"legal basis", r.Basis},
				{"currency", fmt.Sprintf("%s with %d decimals, prices include tax", r.Currency, r.MinorDigits)},
				{"slot, grace, start limit", fmt.Sprintf("%d s, %d s, %d s", r.SlotSeconds, r.GraceSeconds, r.StartSeconds)},
				{"tariff", fmt.Sprintf("%s retail, %s feed-in", perKWh(r.Retail), perKWh(r.FeedIn))},
				{"discount credit", fmt.Sprintf("%s earned, at most %s of a bill, %s slots", percent(r.EarnPPM), percent(r.RedeemPPM), n(r.ExpirySlots))},
				{"transfers", map[bool]string{true: "allowed", false: "off"}[r.Transfers]},
				{"operators", fmt.Sprintf("%d, %d must agree", len(r.Operators), r.Threshold)},
			}
			for _, k := range r.Operators {
				rows = append(rows, []string{"", k.String()})
			}
			limit := "no daily cap on minting"
			if r.DailyMintCap > 0 {
				limit = "approve what is minted beyond " + money(r.DailyMintCap) + " a day"
			}
			rows = append(rows, []string{"auditors", fmt.Sprintf("%d, %s", len(r.Auditors), limit)})
			for _, k := range r.Auditors {
				rows = append(rows, []string{"", k.String()})
			}
			rows = append(rows,
				[]string{"state", "keeps slots and settled sessions for " + n(r.RetainDays) + " days"},
				[]string{"invoices", map[bool]string{true: "issued by themselves after every month, of UTC where no others are set: joulegate invoice periods ls", false: "only when an operator asks"}[r.Invoices == ledger.InvoicesMonthly]},
				[]string{"storage", percent(r.StoragePPM) + " of certified charging is certified on discharge"},
				[]string{"payouts", "due in " + n(r.PayoutDays) + " days"},
				[]string{"disputes", fmt.Sprintf("for %d days, answered in %d, decided in %d", r.DisputeDays, r.AnswerDays, r.ResolveDays)})
			for _, t := range r.Tax {
				rows = append(rows, []string{"tax", fmt.Sprintf("%s in prices, from %s", percent(t.PPM), time.UnixMilli(t.From).Format(time.DateTime))})
			}
			if len(r.Tax) == 0 {
				rows = append(rows, []string{"tax", "the operator is not subject to tax"})
			}
			for _, a := range r.Approvals {
				rows = append(rows, []string{"approved meter", fmt.Sprintf("%s connector %d, %q until %s", a.Device.Short(), a.Connector, a.Approval, date(a.Until))})
			}
			if err := table(w, rows); err != nil {
				return err
			}
			for _, c := range r.Pending {
				fmt.Fprintf(w, "from block %d (now %d): %s\n", c.Height, r.Height, strings.Join(changeWords(&c), ", "))
				if c.MinVersion > r.Knows {
					fmt.Fprintf(w, "UPDATE joulegate before block %d: this program is too old for it and will stop voting\n", c.Height)
				}
			}
			return nil
		})
}

func newRulesProposeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "propose",
		Short: "Change the rules from a coming block on (operators)",
		Long:  "Sets what is given and leaves the rest. Co-signed like everything that needs several operators: see --draft and account cosign.",
		Example: `  joulegate grid rules propose --height +1000 --retail 0.34 --feed-in 0.08
  joulegate grid rules propose --height +5000 --threshold 2 --operators 9f3c...,77ab... --draft rules.json
  joulegate grid rules propose --height +20000 --min-version 2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := dial(cmd)
			if err != nil {
				return err
			}
			r, err := cl.Rules(cmd.Context())
			if err != nil {
				return err
			}
			b, err := rulesChange(cmd, r.Height)
			if err != nil {
				return usageError{err}
			}
			return agree(cmd, chain.TxRules, b)
		},
	}
	f := c.Flags()
	f.String("height", "+100", "first `BLOCK` under the changed rules; +N counts from now")
	f.Uint32("min-version", 0, "least rules `VERSION` that a program must know to go on")
	f.Int64("grace", 0, "`SECONDS` that a slot waits for missing readings")
	f.Int64("start-limit", 0, "`SECONDS` after which a hold without energy is void")
	f.StringSlice("operators", nil, "public `KEYS` of all operators")
	f.Int64("threshold", 0, "operators that must agree")
	f.StringSlice("auditors", nil, "public `KEYS` of all auditors; \"\" for none")
	f.String("daily-mint-cap", "", "`AMOUNT` a day beyond which an auditor must approve; 0 for none")
	f.String("retail", "", "supplier's default retail `PRICE` per kWh")
	f.String("feed-in", "", "supplier's default feed-in `PRICE` per kWh")
	f.String("earn", "", "discount credit earned, `PERCENT` of cash paid")
	f.String("redeem-cap", "", "most `PERCENT` of a bill that credit pays")
	f.Int64("expiry-slots", 0, "life of discount credit in slots; 0: for ever")
	f.Bool("transfers", false, "allow transfers between people")
	f.String("basis", "", "legal basis of selling for money")
	f.Int64("payout-days", 0, "`DAYS` until a payout is overdue")
	f.Int64("dispute-days", 0, "`DAYS` in which a bill can be disputed")
	f.Int64("answer-days", 0, "`DAYS` for the answer to a dispute")
	f.Int64("resolve-days", 0, "`DAYS` for its resolution")
	f.Int64("retain-days", 0, "`DAYS` that slots and settled sessions stay in the state")
	f.String("invoices", "", "issue invoices by themselves: monthly (UTC) or off")
	f.String("storage", "", "`PERCENT` of certified charging that is certified on discharge, 10 to 100")
	f.String("tax", "", "tax contained in prices, `PERCENT` of the net amount, from --tax-from on")
	f.String("tax-from", "", "first `DAY` of that tax, UTC")
	return agreed(c, "operator")
}

// rulesChange reads the flags that were given.
func rulesChange(cmd *cobra.Command, height int64) (b chain.RulesChange, err error) {
	f := cmd.Flags()
	text := func(name string) string { s, _ := f.GetString(name); return s }
	fail := func(name string, e error) {
		if e != nil && err == nil {
			err = fmt.Errorf("--%s: %w", name, e)
		}
	}
	b.Height, err = heightFlag(text("height"), height)
	if err != nil {
		return b, err
	}
	b.MinVersion, _ = f.GetUint32("min-version")
	changed := b.MinVersion > 0
	given := func(name string) bool {
		changed = changed || f.Changed(name)
		return f.Changed(name)
	}
	for name, to := range map[string]**int64{
		"grace": &b.Grace, "start-limit": &b.Start, "threshold": &b.Threshold, "expiry-slots": &b.ExpirySlots, "payout-days": &b.PayoutDays,
		"dispute-days": &b.DisputeDays, "answer-days": &b.AnswerDays, "resolve-days": &b.ResolveDays, "retain-days": &b.RetainDays,
	} {
		if given(name) {
			n, _ := f.GetInt64(name)
			*to = &n
		}
	}
	for name, to := range map[string]**chain.NanoPerWh{"retail": &b.Retail, "feed-in": &b.FeedIn} {
		if given(name) {
			p, e := parsePrice(text(name))
			fail(name, e)
			*to = &p
		}
	}
	for name, to := range map[string]**int64{"earn": &b.EarnPPM, "redeem-cap": &b.RedeemPPM, "storage": &b.StoragePPM} {
		if given(name) {
			p, e := parsePercent(text(name))
			fail(name, e)
			*to = &p
		}
	}
	keys := func(name string) (all []chain.Key) {
		list, _ := f.GetStringSlice(name)
		for _, s := range list {
			var k chain.Key
			fail(name, k.UnmarshalText([]byte(s)))
			all = append(all, k)
		}
		return all
	}
	if given("operators") {
		b.Operators = keys("operators")
	}
	if given("auditors") {
		all := keys("auditors")
		b.Auditors = &all
	}
	if given("daily-mint-cap") {
		n, e := parseMoney(text("daily-mint-cap"))
		fail("daily-mint-cap", e)
		b.DailyMintCap = &n
	}
	if given("transfers") {
		v, _ := f.GetBool("transfers")
		b.Transfers = &v
	}
	if given("basis") {
		s := text("basis")
		b.Basis = &s
	}
	if given("invoices") {
		s := text("invoices")
		b.Invoices = &s
	}
	if given("tax") {
		ppm, e := parsePercent(text("tax"))
		fail("tax", e)
		t, e := time.Parse(time.DateOnly, text("tax-from"))
		fail("tax-from", e)
		b.Tax = &chain.TaxRate{From: t.UnixMilli(), PPM: ppm}
	}
	if err == nil && !changed {
		err = errors.New("nothing is changed: give at least one rule")
	}
	return b, err
}

func heightFlag(s string, now int64) (int64, error) {
	digits, ahead := strings.CutPrefix(s, "+")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("--height %q: a block, or +N from now", s)
	}
	if ahead {
		n += now
	}
	return n, nil
}
