package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
	"github.com/spf13/cobra"
)

// signedCmd makes a command that signs one transaction with --wallet and waits
// for the block that holds it.
func signedCmd(c *cobra.Command, build func(cmd *cobra.Command, g *panel.Client, args []string) (chain.TxKind, any, error)) *cobra.Command {
	c.RunE = func(cmd *cobra.Command, args []string) error {
		g, err := dial(cmd)
		if err != nil {
			return err
		}
		defer g.Close()
		kind, body, err := build(cmd, g, args)
		if err != nil {
			return err
		}
		name, _ := cmd.Flags().GetString("wallet")
		w, err := wallet(cmd, name)
		if err != nil {
			return err
		}
		r, err := submit(cmd, g, w, kind, body)
		if err != nil {
			return err
		}
		return emit(cmd, r, func(out io.Writer) error {
			if o, ok := body.(chain.FirmOffer); ok {
				fmt.Fprintln(out, "offer", o.ID)
			}
			_, err := fmt.Fprintf(out, "done in block %d\n", r.Height)
			return err
		})
	}
	return c
}

// energyFlag reads --kwh as Wh.
func energyFlag(cmd *cobra.Command) (meter.WattHour, error) {
	s, _ := cmd.Flags().GetString("kwh")
	n, err := parseMoney(s) // three decimals of a kWh are Wh
	if err != nil || n <= 0 || n%1e6 != 0 {
		return 0, usageError{fmt.Errorf("--kwh %q: write it like 7.5, at most three decimals", s)}
	}
	return meter.WattHour(n / 1e6), nil
}

// deviceFlag reads --gateway, a member's name; without it, this gateway.
func deviceFlag(cmd *cobra.Command, g *panel.Client) (chain.Key, error) {
	name, _ := cmd.Flags().GetString("gateway")
	members, err := g.Members(cmd.Context())
	if err != nil {
		return chain.Key{}, err
	}
	for _, m := range members {
		if name == "" && m.Self || m.Name == name {
			return m.Device, nil
		}
	}
	return chain.Key{}, usageError{fmt.Errorf("--gateway %q is no member", name)}
}

func sessionFlag(cmd *cobra.Command) (id chain.ID, err error) {
	if s, _ := cmd.Flags().GetString("session"); s != "" {
		if err := id.UnmarshalText([]byte(s)); err != nil {
			return id, usageError{fmt.Errorf("--session: %w", err)}
		}
	}
	return id, nil
}

func newMarketFirmCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "firm",
		Short: "Promises of energy, with collateral",
		Long: `A firm offer promises energy in slots to come, per slot, at a price. Both sides put
up collateral for the most that they can owe. Whoever falls short pays what the
other has to pay more, or gets less, at the supplier's prices; nobody gains from
it. Off until an operator records on which basis it is used:
joulegate market feature firm --on --basis TEXT`,
	}
	ls := termsQuery(&cobra.Command{Use: "ls", Short: "List the offers that can be taken", Args: cobra.NoArgs}, func(w io.Writer, t panel.Terms) error {
		rows := [][]string{{"OFFER", "SIDE", "AT", "FROM", "TO", "LEFT PER SLOT", "PRICE"}}
		for _, f := range t.Firm {
			rows = append(rows, []string{
				f.ID.String(), f.Side.String(), f.Maker.Node, slotTime(f.From, t.SlotSeconds, false), slotTime(f.To, t.SlotSeconds, true), kWh(f.Left), perKWh(f.Price),
			})
		}
		return table(w, rows)
	})
	party := func(c *cobra.Command) *cobra.Command {
		f := c.Flags()
		f.String("wallet", "", "`WALLET` of the house's owner, or of the driver with --session")
		f.String("gateway", "", "`NAME` of the house's gateway; without it, this one")
		f.String("session", "", "`ID` of a session whose car sells, or charges; without it, the house")
		f.String("kwh", "", "`ENERGY` per slot, in kWh")
		_ = c.MarkFlagRequired("wallet")
		_ = c.MarkFlagRequired("kwh")
		return c
	}
	offer := party(&cobra.Command{
		Use:     "offer",
		Short:   "Promise to deliver or to take energy",
		Example: "  joulegate market firm offer --side sell --wallet owner --kwh 0.5 --price 0.15 --from 2026-11-24T11:00 --to 2026-11-24T14:00",
		Args:    cobra.NoArgs,
	})
	offer.Flags().String("side", "sell", "sell or buy")
	offer.Flags().String("price", "", "`PRICE` per kWh at this house")
	periodFlags(offer)
	for _, f := range []string{"price", "from", "to"} {
		_ = offer.MarkFlagRequired(f)
	}
	signedCmd(offer, func(cmd *cobra.Command, g *panel.Client, _ []string) (chain.TxKind, any, error) {
		o := chain.FirmOffer{Side: chain.Sell}
		rand.Read(o.ID[:])
		switch side, _ := cmd.Flags().GetString("side"); side {
		case "sell":
		case "buy":
			o.Side = chain.Buy
		default:
			return 0, nil, usageError{fmt.Errorf("--side %q: sell or buy", side)}
		}
		s, err := g.Status(cmd.Context())
		if err != nil {
			return 0, nil, err
		}
		if o.From, o.To, err = period(cmd, s.SlotSeconds); err != nil {
			return 0, nil, err
		}
		if o.Wh, err = energyFlag(cmd); err != nil {
			return 0, nil, err
		}
		price, _ := cmd.Flags().GetString("price")
		if o.Price, err = parsePerKWh(price); err != nil {
			return 0, nil, usageError{err}
		}
		if o.Session, err = sessionFlag(cmd); err != nil {
			return 0, nil, err
		}
		o.Device, err = deviceFlag(cmd, g)
		return chain.TxFirmOffer, o, err
	})
	take := signedCmd(party(&cobra.Command{
		Use:     "take OFFER",
		Short:   "Accept an offer, in full or in part",
		Example: "  joulegate market firm take 5f0c... --wallet owner --kwh 0.2\n  joulegate market firm take 5f0c... --wallet ben --session 91d2... --kwh 0.2",
		Args:    cobra.ExactArgs(1),
	}), func(cmd *cobra.Command, g *panel.Client, args []string) (_ chain.TxKind, _ any, err error) {
		var t chain.FirmTake
		if err := t.Offer.UnmarshalText([]byte(args[0])); err != nil {
			return 0, nil, usageError{err}
		}
		if t.Wh, err = energyFlag(cmd); err != nil {
			return 0, nil, err
		}
		if t.Session, err = sessionFlag(cmd); err != nil {
			return 0, nil, err
		}
		t.Device, err = deviceFlag(cmd, g)
		return chain.TxFirmTake, t, err
	})
	cancel := signedCmd(&cobra.Command{
		Use:   "cancel OFFER",
		Short: "Withdraw what nobody has taken of an offer",
		Args:  cobra.ExactArgs(1),
	}, func(_ *cobra.Command, _ *panel.Client, args []string) (chain.TxKind, any, error) {
		var id chain.ID
		if err := id.UnmarshalText([]byte(args[0])); err != nil {
			return 0, nil, usageError{err}
		}
		return chain.TxFirmCancel, chain.FirmCancel{Offer: id}, nil
	})
	cancel.Flags().String("wallet", "", "`WALLET` of who offered")
	_ = cancel.MarkFlagRequired("wallet")
	c.AddCommand(ls, offer, take, cancel)
	return c
}

func slotTime(s chain.Slot, slotSeconds int64, end bool) string {
	ms := s.Start(slotSeconds)
	if end {
		ms = s.End(slotSeconds)
	}
	return time.UnixMilli(ms).Format(time.DateTime)
}

func newMarketZonesCmd() *cobra.Command {
	c := &cobra.Command{Use: "zones", Short: "The network: who is near whom, and what its use costs"}
	ls := termsQuery(&cobra.Command{Use: "ls", Short: "List the nodes of the fee tree and what is planned", Args: cobra.NoArgs}, func(w io.Writer, t panel.Terms) error {
		rows := [][]string{{"NODE", "UNDER", "FEE", "PLANNED"}}
		for _, z := range t.Zones {
			var next []string
			for _, n := range z.Next {
				next = append(next, fmt.Sprintf("%s: under %s for %s", slotTime(n.From, t.SlotSeconds, false), n.Parent, perKWh(n.Fee)))
			}
			rows = append(rows, []string{z.ID, z.Parent, perKWh(z.Fee), strings.Join(next, "; ")})
		}
		return table(w, rows)
	})
	set := signedCmd(&cobra.Command{
		Use:     "set NODE=PARENT:FEE...",
		Short:   "Plan fees and places in the network from a time on (operator)",
		Long:    "set changes where nodes hang and what their edge costs per kWh, from the first slot\nafter --from on. A name that is not known becomes a new feeder.",
		Example: "  joulegate market zones set feeder1=root:0.012 east=feeder1:0.004 --from 2027-01-01 --zone Europe/Berlin",
		Args:    cobra.MinimumNArgs(1),
	}, func(cmd *cobra.Command, g *panel.Client, args []string) (chain.TxKind, any, error) {
		s, err := g.Status(cmd.Context())
		if err != nil {
			return 0, nil, err
		}
		zone, _ := cmd.Flags().GetString("zone")
		loc, err := time.LoadLocation(zone)
		if err != nil {
			return 0, nil, usageError{fmt.Errorf("--zone %q: %w", zone, err)}
		}
		from, _ := cmd.Flags().GetString("from")
		start, _, err := parseWhen(from, loc)
		if err != nil {
			return 0, nil, usageError{err}
		}
		z := chain.Zones{From: chain.SlotAt(start.UnixMilli()+s.SlotSeconds*1000-1, s.SlotSeconds)}
		for _, a := range args {
			id, rest, ok := strings.Cut(a, "=")
			parent, fee, ok2 := strings.Cut(rest, ":")
			price, err := parsePerKWh(fee)
			if !ok || !ok2 || err != nil {
				return 0, nil, usageError{fmt.Errorf("%q: write it like feeder1=root:0.012", a)}
			}
			z.Nodes = append(z.Nodes, chain.Node{ID: id, Parent: parent, Fee: price})
		}
		return chain.TxZones, z, nil
	})
	set.Flags().String("from", "", "`DAY` or time from which it holds")
	set.Flags().String("zone", "Local", "time `ZONE` of --from, for example Europe/Berlin")
	_ = set.MarkFlagRequired("from")
	operatorFlag(set)
	c.AddCommand(ls, set)
	return c
}

func newMarketFeatureCmd() *cobra.Command {
	c := signedCmd(&cobra.Command{
		Use:       "feature firm|v2v",
		Short:     "Switch firm orders or selling cars, and record the basis (operator)",
		Example:   "  joulegate market feature v2v --on --basis \"feed-in contract 2026-114\"\n  joulegate market feature v2v",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{chain.FeatureFirm, chain.FeatureV2V},
	}, func(cmd *cobra.Command, _ *panel.Client, args []string) (chain.TxKind, any, error) {
		on, _ := cmd.Flags().GetBool("on")
		basis, _ := cmd.Flags().GetString("basis")
		if on && basis == "" {
			return 0, nil, usageError{errors.New("--on needs --basis: on which legal basis is it used?")}
		}
		return chain.TxFeature, chain.FeatureBasis{Feature: args[0], On: on, Basis: basis}, nil
	})
	c.Flags().Bool("on", false, "switch it on; without it, off")
	c.Flags().String("basis", "", "`TEXT` that says on which basis, at most 64 bytes")
	operatorFlag(c)
	return c
}

func newMarketCorrectionCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "correction",
		Short: "Readings that were wrong",
		Long: `A gateway can correct what its site meter reported of a slot within 30 days. The
difference is settled with the supplier at the slot's prices; what neighbours have
traded stays. What favours the site itself waits until an operator accepts it.`,
	}
	ls := termsQuery(&cobra.Command{Use: "ls", Short: "List corrections", Args: cobra.NoArgs}, func(w io.Writer, t panel.Terms) error {
		rows := [][]string{{"CORRECTION", "GATEWAY", "SLOT", "IMPORT", "EXPORT", "TO SUPPLIER", "STATE", "REASON"}}
		for _, x := range t.Corrections {
			rows = append(rows, []string{x.ID.String(), x.Device.Short(), fmt.Sprint(x.Slot), kWh(x.Import), kWh(x.Export), money(x.Amount), x.State.String(), x.Reason})
		}
		return table(w, rows)
	})
	add := &cobra.Command{
		Use:     "add",
		Short:   "State that this gateway's site meter was wrong",
		Example: "  joulegate market correction add --slot 1983104 --import-wh 120 --reason \"transformer ratio\"",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := cmd.Flags()
			slot, _ := f.GetInt64("slot")
			imp, _ := f.GetInt64("import-wh")
			exp, _ := f.GetInt64("export-wh")
			reason, _ := f.GetString("reason")
			x := chain.MeterCorrection{Slot: chain.Slot(slot), Import: meter.WattHour(imp), Export: meter.WattHour(exp), Reason: reason}
			rand.Read(x.ID[:])
			g, err := dial(cmd)
			if err != nil {
				return err
			}
			defer g.Close()
			if err := g.Correct(cmd.Context(), x); err != nil {
				return err
			}
			return emit(cmd, map[string]any{"id": x.ID}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "correction %s is recorded; see joulegate market correction ls\n", x.ID)
				return err
			})
		},
	}
	add.Flags().Int64("slot", 0, "number of the `SLOT`")
	add.Flags().Int64("import-wh", 0, "`WH` imported beyond what was stated; negative: less")
	add.Flags().Int64("export-wh", 0, "`WH` exported beyond what was stated; negative: less")
	add.Flags().String("reason", "", "`TEXT` without personal data, at most 64 bytes")
	_ = add.MarkFlagRequired("slot")
	_ = add.MarkFlagRequired("reason")
	rule := signedCmd(&cobra.Command{
		Use:     "rule CORRECTION",
		Short:   "Accept or refuse a correction that waits (operator)",
		Example: "  joulegate market correction rule 5f0c... --accept",
		Args:    cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, g *panel.Client, args []string) (chain.TxKind, any, error) {
		t, err := g.Terms(cmd.Context())
		if err != nil {
			return 0, nil, err
		}
		accept, _ := cmd.Flags().GetBool("accept")
		for _, x := range t.Corrections {
			if x.ID.String() == args[0] && x.State == ledger.CorrectionWaits {
				return chain.TxCorrection, chain.CorrectionRuling{Device: x.Device, Slot: x.Slot, ID: x.ID, Accept: accept}, nil
			}
		}
		return 0, nil, fmt.Errorf("no correction %s waits", args[0])
	})
	rule.Flags().Bool("accept", false, "accept it; without it, refuse")
	operatorFlag(rule)
	c.AddCommand(ls, add, rule)
	return c
}
