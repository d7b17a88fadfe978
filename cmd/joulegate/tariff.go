package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

// touTable is a time-of-use tariff as a supplier publishes it: in local time.
// The ledger knows no time zones; expand makes UTC slots of it.
type touTable struct {
	Zone  string    `yaml:"zone"`            // IANA name
	From  string    `yaml:"from"`            // first day
	To    string    `yaml:"to"`              // last day
	Other *touPrice `yaml:"other,omitempty"` // when no rule holds; without it the genesis tariff
	Rules []touRule `yaml:"rules"`           // the first that holds counts
}

type touPrice struct {
	Retail string `yaml:"retail"` // currency units per kWh
	FeedIn string `yaml:"feed_in"`
}

type touRule struct {
	Days   string `yaml:"days,omitempty"` // mon-fri, sat, 2026-12-25, separated by commas; empty: every day
	From   string `yaml:"from,omitempty"` // 06:00; empty: midnight
	To     string `yaml:"to,omitempty"`   // exclusive; before From: over midnight, of the day on which it begins
	Retail string `yaml:"retail"`
	FeedIn string `yaml:"feed_in"`
}

// rule is a touRule, parsed.
type rule struct {
	days           func(t time.Time) bool
	from, to       int // minutes of the day
	retail, feedIn chain.NanoPerWh
}

func parseTable(b []byte) (t touTable, err error) {
	return t, yaml.UnmarshalWithOptions(b, &t, yaml.Strict())
}

func (p touPrice) parse() (retail, feedIn chain.NanoPerWh, err error) {
	for _, x := range []struct {
		what, s string
		dst     *chain.NanoPerWh
	}{{"retail", p.Retail, &retail}, {"feed_in", p.FeedIn, &feedIn}} {
		if *x.dst, err = parsePerKWh(x.s); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", x.what, err)
		}
	}
	if retail < feedIn {
		return 0, 0, fmt.Errorf("retail %s is below feed_in %s", p.Retail, p.FeedIn)
	}
	return retail, feedIn, nil
}

// parsePerKWh reads a price per kWh in currency units, to the millionth.
func parsePerKWh(s string) (chain.NanoPerWh, error) {
	n, err := parseMoney(s)
	if err != nil || n%1000 != 0 {
		return 0, fmt.Errorf("price %q: write it like 0.3125, per kWh, at most six decimals", s)
	}
	return chain.NanoPerWh(n / 1000), nil
}

func (r touRule) parse() (out rule, err error) {
	if out.retail, out.feedIn, err = (touPrice{r.Retail, r.FeedIn}).parse(); err != nil {
		return out, err
	}
	clock := func(s string, def int) (int, error) {
		if s == "" {
			return def, nil
		}
		if s == "24:00" {
			return 24 * 60, nil
		}
		t, err := time.Parse("15:04", s)
		return t.Hour()*60 + t.Minute(), err
	}
	if out.from, err = clock(r.From, 0); err == nil {
		out.to, err = clock(r.To, 24*60)
	}
	if err != nil {
		return out, fmt.Errorf("hours %q to %q: write them like 06:00", r.From, r.To)
	}
	if out.from == out.to {
		return out, fmt.Errorf("hours %q to %q are empty", r.From, r.To)
	}
	out.days, err = parseDays(r.Days)
	return out, err
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func parseDays(s string) (func(time.Time) bool, error) {
	if s == "" {
		return func(time.Time) bool { return true }, nil
	}
	var week [7]bool
	dates := map[string]bool{}
	for _, part := range strings.Split(strings.ReplaceAll(strings.ToLower(s), " ", ""), ",") {
		if _, err := time.Parse(time.DateOnly, part); err == nil {
			dates[part] = true
			continue
		}
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, to := -1, -1
		for i, d := range weekdays {
			if d == first {
				from = i
			}
			if d == last {
				to = i
			}
		}
		if from < 0 || to < 0 {
			return nil, fmt.Errorf("days %q: write mon-fri, sat or 2026-12-25, separated by commas", part)
		}
		for i := from; ; i = (i + 1) % 7 {
			week[i] = true
			if i == to {
				break
			}
		}
	}
	return func(t time.Time) bool { return week[t.Weekday()] || dates[t.Format(time.DateOnly)] }, nil
}

// holds reports whether the rule holds at a local time.
func (r *rule) holds(t time.Time) bool {
	m := t.Hour()*60 + t.Minute()
	if r.from < r.to {
		return r.days(t) && m >= r.from && m < r.to
	}
	return r.days(t) && m >= r.from || m < r.to && r.days(t.AddDate(0, 0, -1))
}

// expand turns the table into ascending ranges of slots from slot first on. A
// slot has the price of its first moment, on the clocks of the zone: a local
// hour that comes twice counts twice, one that is skipped not at all.
func (t *touTable) expand(slotSeconds int64, first chain.Slot) ([]chain.Tariff, error) {
	loc, err := time.LoadLocation(t.Zone)
	if err != nil || t.Zone == "" {
		return nil, fmt.Errorf("zone %q: write it like Europe/Berlin", t.Zone)
	}
	start, _, err := parseWhen(t.From, loc)
	if err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	_, end, err := parseWhen(t.To, loc)
	if err != nil {
		return nil, fmt.Errorf("to: %w", err)
	}
	var rules []rule
	for i, r := range t.Rules {
		p, err := r.parse()
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
		rules = append(rules, p)
	}
	if t.Other != nil {
		retail, feedIn, err := t.Other.parse()
		if err != nil {
			return nil, fmt.Errorf("other: %w", err)
		}
		rules = append(rules, rule{days: func(time.Time) bool { return true }, to: 24 * 60, retail: retail, feedIn: feedIn})
	}
	if len(rules) == 0 {
		return nil, errors.New("no rules and no other price")
	}
	from, to := max(first, chain.SlotAt(start.UnixMilli()+slotSeconds*1000-1, slotSeconds)), chain.SlotAt(end.UnixMilli()-1, slotSeconds)
	if to-from > 10*366*96 {
		return nil, fmt.Errorf("%d slots are too many", to-from+1)
	}
	var out []chain.Tariff
	for s := from; s <= to; s++ {
		at := time.UnixMilli(s.Start(slotSeconds)).In(loc)
		for i := range rules {
			r := &rules[i]
			if !r.holds(at) {
				continue
			}
			if n := len(out) - 1; n >= 0 && out[n].To == s-1 && out[n].Retail == r.retail && out[n].FeedIn == r.feedIn {
				out[n].To = s
			} else {
				out = append(out, chain.Tariff{From: s, To: s, Retail: r.retail, FeedIn: r.feedIn})
			}
			break
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the table covers no slot to come")
	}
	if len(out) > ledger.MaxTariffs {
		return nil, fmt.Errorf("the table makes %d ranges, the ledger keeps %d: set fewer days at a time", len(out), ledger.MaxTariffs)
	}
	return out, nil
}

func newMarketTariffCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "tariff",
		Short: "The supplier's prices by time of use",
	}
	set := &cobra.Command{
		Use:   "set FILE",
		Short: "Set prices from a table in local time (operator)",
		Long: `set reads a table like

  zone: Europe/Berlin
  from: 2026-11-01
  to: 2026-12-31
  other: {retail: 0.30, feed_in: 0.08}
  rules:
    - {days: mon-fri, from: "17:00", to: "20:00", retail: 0.38, feed_in: 0.10}
    - {from: "23:00", to: "05:00", retail: 0.22, feed_in: 0.06}

with prices in currency units per kWh, turns it into ranges of UTC slots and has
the operator sign them. The ledger itself knows no time zones: days of 23 and 25
hours are worked out here. Slots that have begun keep their price.`,
		Example: "  joulegate market tariff set winter.yaml --dry-run\n  joulegate market tariff set winter.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			t, err := parseTable(b)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			g, err := dial(cmd)
			if err != nil {
				return err
			}
			defer g.Close()
			s, err := g.Status(cmd.Context())
			if err != nil {
				return err
			}
			ranges, err := t.expand(s.SlotSeconds, chain.SlotAt(time.Now().UnixMilli(), s.SlotSeconds)+2)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if dry, _ := cmd.Flags().GetBool("dry-run"); !dry {
				name, _ := cmd.Flags().GetString("wallet")
				w, err := wallet(cmd, name)
				if err != nil {
					return err
				}
				for rest := ranges; len(rest) > 0; {
					n := min(len(rest), chain.MaxTableRanges)
					if _, err := submit(cmd, g, w, chain.TxTariffs, chain.Tariffs{Ranges: rest[:n]}); err != nil {
						return err
					}
					rest = rest[n:]
				}
			}
			return emit(cmd, ranges, func(out io.Writer) error { return printTariffs(out, ranges, s.SlotSeconds, t.Zone) })
		},
	}
	set.Flags().Bool("dry-run", false, "show the ranges, sign nothing")
	operatorFlag(set)
	ls := termsQuery(&cobra.Command{
		Use:   "ls",
		Short: "List the ranges of slots that have a price of their own",
		Args:  cobra.NoArgs,
	}, func(w io.Writer, t panel.Terms) error {
		fmt.Fprintf(w, "otherwise %s, feed-in %s\n", perKWh(t.Retail), perKWh(t.FeedIn))
		return printTariffs(w, t.Tariffs, t.SlotSeconds, "Local")
	})
	c.AddCommand(set, ls)
	return c
}

func operatorFlag(c *cobra.Command) {
	c.Flags().String("wallet", "operator", "`WALLET` that signs: a file, or a name in the state folder")
}

// termsQuery makes a command about what holds for trades.
func termsQuery(c *cobra.Command, human func(w io.Writer, t panel.Terms) error) *cobra.Command {
	return ledgerQuery(atFlag(c), func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Terms, error) {
		return g.Terms(cmd.Context())
	}, func(l stoppedLedger, _ []string) (panel.Terms, error) { return termsOf(l), nil }, human)
}

func printTariffs(w io.Writer, ranges []chain.Tariff, slotSeconds int64, zone string) error {
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return err
	}
	rows := [][]string{{"FROM", "TO", "SLOTS", "RETAIL", "FEED-IN"}}
	for _, t := range ranges {
		rows = append(rows, []string{
			time.UnixMilli(t.From.Start(slotSeconds)).In(loc).Format("Mon 2006-01-02 15:04 MST"), time.UnixMilli(t.To.End(slotSeconds)).In(loc).Format("Mon 2006-01-02 15:04 MST"),
			fmt.Sprintf("%d..%d", t.From, t.To), perKWh(t.Retail), perKWh(t.FeedIn),
		})
	}
	return table(w, rows)
}
