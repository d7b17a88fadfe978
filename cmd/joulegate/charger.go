package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/circuit"
	"github.com/joulegate/joulegate/meter/setpoint"
	"github.com/spf13/cobra"
)

func (b backend) Chargers(context.Context) ([]board.Charger, error) {
	s, ok := b.live.Latest()
	if !ok {
		return nil, panel.Unavailable("the control loop has not said anything yet")
	}
	return s.Chargers, nil
}

func (b backend) OrderCharger(ctx context.Context, id uint8, o panel.ChargerOrder) (board.Charger, error) {
	var err error
	switch o.Do {
	case "stop":
		err = b.station.StopCharger(ctx, id, chain.StopOperator, "stopped by a person at the gateway")
	case "clear":
		err = b.station.ClearFault(ctx, id)
	case "start":
		err = b.station.StartNow(ctx, id)
	case "limit":
		err = b.station.SetLimit(ctx, id, o.Limit)
	case "mode":
		mode, bad := setpoint.ParseMode(o.Mode)
		if bad != nil {
			return board.Charger{}, panel.Invalid("%v", bad)
		}
		err = b.station.SetMode(ctx, id, mode)
	default:
		return board.Charger{}, panel.Invalid("a charger cannot be told to %q", o.Do)
	}
	if err != nil {
		return board.Charger{}, refused(err)
	}
	c, err := b.station.Charger(ctx, id)
	return c, refused(err)
}

func (b backend) Dim(ctx context.Context, o panel.DimOrder) error {
	return refused(b.station.Dim(ctx, circuit.Message, o.Limit, o.For))
}

func (b backend) Events(ctx context.Context, from, to time.Time) ([]panel.Event, error) {
	return eventsOf(ctx, b.journal, from, to)
}

// eventsOf reads the events of a gateway's own chain, from the time from up to
// but not at to; of more than panel.MaxEvents the newest.
func eventsOf(ctx context.Context, j *journal.Journal, from, to time.Time) ([]panel.Event, error) {
	out := []panel.Event{}
	err := ownRecords(ctx, j, chain.KindEvent, func(blk *chain.Signed, body []byte) error {
		var e chain.Event
		if err := chain.Unmarshal(body, &e); err != nil {
			return err
		}
		if when := time.UnixMilli(e.At); !when.Before(from) && (to.IsZero() || when.Before(to)) {
			out = append(out, panel.Event{Time: when, Code: e.Code, Severity: e.Severity, Subject: e.Subject, Text: e.Text, Detail: e.Detail, Block: blk.Position(), Hash: blk.Hash})
		}
		if n := len(out) - 2*panel.MaxEvents; n > 0 {
			out = slices.Delete(out, 0, panel.MaxEvents)
		}
		return nil
	})
	return out[max(0, len(out)-panel.MaxEvents):], err
}

// ownRecords walks through the records of one kind of a gateway's own chain.
func ownRecords(ctx context.Context, j *journal.Journal, kind chain.RecordKind, f func(blk *chain.Signed, body []byte) error) error {
	at := chain.Position{Epoch: 1}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		blocks, err := j.OwnAfter(at, submitBatch)
		if err != nil {
			return err
		}
		for _, blk := range blocks {
			at = blk.Position()
			for _, r := range blk.Records {
				if r.Kind != kind {
					continue
				}
				if err := f(blk, r.Body); err != nil {
					return fmt.Errorf("record of own block %s: %w", at, err)
				}
			}
		}
		if len(blocks) < submitBatch {
			return nil
		}
	}
}

// stoppedEvents is eventsOf for a gateway that does not run: an insurer asks
// when it has been unmounted, too.
func stoppedEvents(ctx context.Context, st state, from, to time.Time) (_ []panel.Event, err error) {
	lock, err := journal.LockDir(string(st))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	_, genesis, _, err := consensus.ReadGenesis(st.genesis())
	if err != nil {
		return nil, err
	}
	id, err := loadIdentity(st)
	if err != nil {
		return nil, err
	}
	j, err := journal.Open(st.journal(), journal.Config{ChainID: genesis.ChainID, Key: id.device})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	return eventsOf(ctx, j, from, to)
}

func newChargerCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "charger",
		Short: "Look after the chargers of this gateway",
		Long: `Shows why a charger charges or does not, stops it, lowers what it offers, and
takes a person's word that a latched fault is repaired. Nothing here needs the
ledger or the network. What a limit refuses is refused by name.`,
	}
	order := func(use, short, example string, args cobra.PositionalArgs, parse func(args []string) (panel.ChargerOrder, error)) *cobra.Command {
		return query(&cobra.Command{Use: use, Short: short, Example: example, Args: args},
			func(cmd *cobra.Command, g *panel.Client, args []string) (board.Charger, error) {
				id, err := strconv.ParseUint(args[0], 10, 8)
				if err != nil || id == 0 {
					return board.Charger{}, usageError{fmt.Errorf("charger %q: its number, as in: joulegate charger ls", args[0])}
				}
				o, err := parse(args[1:])
				if err != nil {
					return board.Charger{}, usageError{err}
				}
				return g.OrderCharger(cmd.Context(), uint8(id), o)
			}, printCharger)
	}
	plain := func(do string) func([]string) (panel.ChargerOrder, error) {
		return func([]string) (panel.ChargerOrder, error) { return panel.ChargerOrder{Do: do}, nil }
	}
	c.AddCommand(
		query(&cobra.Command{Use: "ls", Short: "List chargers: state, reason, faults", Args: cobra.NoArgs},
			func(cmd *cobra.Command, g *panel.Client, _ []string) ([]board.Charger, error) {
				return g.Chargers(cmd.Context())
			}, printChargers),
		order("stop ID", "End the session there: 0 A, wait, open", "  joulegate charger stop 1", cobra.ExactArgs(1), plain("stop")),
		order("clear ID", "Say that a latched fault is repaired", "  joulegate charger clear 1", cobra.ExactArgs(1), plain("clear")),
		order("start ID", "Do not wait for the spread of starts", "  joulegate charger start 1", cobra.ExactArgs(1), plain("start")),
		order("limit ID AMPERE", "Offer at most that many amperes per phase; 0 takes the limit away", "  joulegate charger limit 1 10", cobra.ExactArgs(2),
			func(args []string) (panel.ChargerOrder, error) {
				a, err := parseMoney(args[0]) // three decimals of an ampere are mA
				if err != nil || a < 0 || a%1e6 != 0 {
					return panel.ChargerOrder{}, fmt.Errorf("limit %q: write it like 10 or 7.5", args[0])
				}
				return panel.ChargerOrder{Do: "limit", Limit: meter.MilliAmpere(a / 1e6)}, nil
			}),
		order("mode ID MODE", "Charge with: off, now, surplus, market", "  joulegate charger mode 1 surplus", cobra.ExactArgs(2),
			func(args []string) (panel.ChargerOrder, error) {
				if _, err := setpoint.ParseMode(args[0]); err != nil {
					return panel.ChargerOrder{}, err
				}
				return panel.ChargerOrder{Do: "mode", Mode: args[0]}, nil
			}),
		newChargerFailsafeCmd(),
	)
	dim := &cobra.Command{
		Use:     "dim WATT",
		Short:   "Pass on an order of the utility: at most that much for each charger; 0 ends it",
		Long:    "Limits all chargers of this gateway as an order of the utility does: it only\nlowers, and never below dimming.per_device_w (4.2 kW by section 14a EnWG).\nAn operator orders for every gateway below a node with 'grid dim'.",
		Example: "  joulegate charger dim 4200 --for 1h\n  joulegate charger dim 0",
		Args:    cobra.ExactArgs(1),
	}
	dim.Flags().Duration("for", 0, "how long it stands; 0: until the next order")
	c.AddCommand(query(dim, func(cmd *cobra.Command, g *panel.Client, args []string) (panel.DimOrder, error) {
		w, err := strconv.ParseInt(args[0], 10, 32)
		if err != nil || w < 0 {
			return panel.DimOrder{}, usageError{fmt.Errorf("dim %q: write watts like 4200, or 0", args[0])}
		}
		o := panel.DimOrder{Limit: meter.Watt(w)}
		o.For, _ = cmd.Flags().GetDuration("for")
		return o, g.Dim(cmd.Context(), o)
	}, func(w io.Writer, o panel.DimOrder) error {
		_, err := fmt.Fprintf(w, "the utility's limit for each charger is %d W (0: none)\n", o.Limit)
		return err
	}))
	return c
}

func ampere(a meter.MilliAmpere) string { return fmt.Sprintf("%d.%d A", a/1000, a%1000/100) }

func printChargers(w io.Writer, all []board.Charger) error {
	rows := [][]string{{"CHARGER", "STATE", "MODE", "VEHICLE", "OFFERS", "FLOWS", "POWER", "WHY"}}
	for _, c := range all {
		why := c.Why
		if c.Fault != "" {
			why = "FAULT: " + c.Fault + " (joulegate charger clear " + strconv.Itoa(int(c.ID)) + " after the repair)"
		}
		rows = append(rows, []string{strconv.Itoa(int(c.ID)), c.State, c.Mode, c.Vehicle, ampere(c.Limit), ampere(c.Current), fmt.Sprintf("%d W", c.PowerW), why})
	}
	return table(w, rows)
}

func printCharger(w io.Writer, c board.Charger) error { return printChargers(w, []board.Charger{c}) }

func newJournalCmd() *cobra.Command {
	c := &cobra.Command{Use: "journal", Short: "Read what this gateway put on record about itself"}
	events := &cobra.Command{
		Use:   "events",
		Short: "Say what happened and why: switching, faults, trips, doubted meters",
		Long: `Prints what this gateway put on record: each switching of a charger with its
cause, faults and trips, doubted meters, jumps of the clock. Each line is in a
signed block of the gateway's own chain, which its neighbours hold as well; the
block's number is where an audit finds it. Times are RFC 3339, or a time ago
such as 2h.`,
		Example: "  joulegate journal events --from 2h\n  joulegate journal events --from 2026-05-01T14:00:00+02:00 --to 2026-05-01T14:10:00+02:00 --json",
		Args:    cobra.NoArgs,
	}
	events.Flags().String("from", "24h", "begin, a `TIME` or a time ago; empty: everything")
	events.Flags().String("to", "", "end, a `TIME` or a time ago")
	human := func(w io.Writer, all []panel.Event) error {
		rows := [][]string{{"TIME", "", "WHAT", "WHERE", "WHY", "BLOCK"}}
		for _, e := range all {
			level := [...]string{"", "", "warning", "ALARM"}[min(e.Severity, 3)]
			rows = append(rows, []string{e.Time.Format("2006-01-02 15:04:05.000"), level, e.Code, e.Subject, e.Text, e.Block.String()})
		}
		if len(all) == panel.MaxEvents {
			rows = append(rows, []string{fmt.Sprintf("only the newest %d: narrow --from and --to", panel.MaxEvents)})
		}
		return table(w, rows)
	}
	events.RunE = func(cmd *cobra.Command, _ []string) error {
		from, err1 := timeFlag(cmd, "from")
		to, err2 := timeFlag(cmd, "to")
		if err := errors.Join(err1, err2); err != nil {
			return usageError{err}
		}
		var all []panel.Event
		g, err := dial(cmd)
		switch {
		case err == nil:
			defer g.Close()
			all, err = g.Events(cmd.Context(), from, to)
		case errors.Is(err, errNotRunning):
			all, err = stoppedEvents(cmd.Context(), stateOf(cmd), from, to)
		}
		if err != nil {
			return err
		}
		return emit(cmd, all, func(w io.Writer) error { return human(w, all) })
	}
	c.AddCommand(events)
	return c
}

func timeFlag(cmd *cobra.Command, name string) (time.Time, error) {
	s, _ := cmd.Flags().GetString(name)
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("--%s %q: write 2026-05-01T14:00:00Z, or a time ago such as 2h", name, s)
	}
	return t, nil
}
