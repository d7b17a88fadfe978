package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter/plan"
	"github.com/spf13/cobra"
)

// planFlags are those of a goal.
func planFlags(c *cobra.Command) {
	c.Flags().String("by", "", "departure: `TIME` of day like 07:00, or a date and time like 2026-05-01 07:00; the car charges when it is cheap until then")
	c.Flags().String("max-price", "", "charge at this `PRICE` per kWh at most, for example 0.25")
}

// planOrder reads them. A time of day is the next one after now.
func planOrder(cmd *cobra.Command, now time.Time) (o panel.PlanOrder, err error) {
	if s, _ := cmd.Flags().GetString("max-price"); s != "" {
		n, err := parseMoney(s)
		if err != nil || n <= 0 || n%1000 != 0 {
			return o, usageError{fmt.Errorf("--max-price %q: write a price per kWh like 0.25, at most six decimals", s)}
		}
		o.MaxPrice = chain.NanoPerWh(n / 1000)
	}
	s, _ := cmd.Flags().GetString("by")
	if s == "" {
		return o, nil
	}
	if o.By, err = departure(s, now); err != nil {
		return o, usageError{err}
	}
	return o, nil
}

func departure(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse("15:04", s); err == nil {
		y, m, d := now.Date()
		by := time.Date(y, m, d, t.Hour(), t.Minute(), 0, 0, now.Location())
		if !by.After(now) {
			by = time.Date(y, m, d+1, t.Hour(), t.Minute(), 0, 0, now.Location())
		}
		return by, nil
	}
	t, err := time.ParseInLocation("2006-01-02 15:04", s, now.Location())
	switch {
	case err != nil:
		return t, fmt.Errorf("--by %q: write a time like 07:00 or 2026-05-01 07:00", s)
	case !t.After(now):
		return t, fmt.Errorf("--by %s is over", s)
	case t.Sub(now) > 7*24*time.Hour:
		return t, fmt.Errorf("--by %s is more than a week ahead", s)
	}
	return t, nil
}

func newSessionPlanCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "plan ID",
		Short: "Say by when a running session's energy is wanted, and at which price",
		Long: `Plans a running session of a connector in mode market anew: by a departure, at a
price at most. Without either it charges at once. Needs the gateway itself.`,
		Example: "  joulegate session plan 6f1c... --by 07:00 --max-price 0.25\n  joulegate session plan 6f1c...",
		Args:    cobra.ExactArgs(1),
	}
	planFlags(c)
	return query(c, func(cmd *cobra.Command, g *panel.Client, args []string) (panel.Session, error) {
		id, err := sessionID(args[0])
		if err != nil {
			return panel.Session{}, err
		}
		o, err := planOrder(cmd, time.Now())
		if err != nil {
			return panel.Session{}, err
		}
		return g.SetPlan(cmd.Context(), id, o)
	}, printSession)
}

// goal turns an order into the station's words. The zero goal has no plan.
func goal(o panel.PlanOrder, q *chain.Quote) (g plan.Goal) {
	if o == (panel.PlanOrder{}) {
		return g
	}
	g = plan.Goal{Wh: q.MaxWh, MaxPrice: o.MaxPrice}
	if !o.By.IsZero() {
		g.By = o.By.UnixMilli()
	}
	return g
}

// planOf plans a quote and remembers its goal for the session that may follow.
func (b backend) planOf(ctx context.Context, req panel.QuoteRequest, q chain.Quote) (*board.Plan, []string, error) {
	if req.PlanOrder == (panel.PlanOrder{}) {
		return nil, nil, nil
	}
	if req.MaxPrice < 0 || (!req.By.IsZero() && !req.By.After(time.Now())) {
		return nil, nil, panel.Invalid("the departure is over, or the price is negative")
	}
	g := goal(req.PlanOrder, &q)
	if err := b.station.SetGoal(ctx, q.ID, g); err != nil {
		return nil, nil, refused(err)
	}
	p, err := b.station.Plan(ctx, req.Connector, g)
	if err != nil {
		return nil, nil, refused(err)
	}
	_, zone := time.Now().Zone()
	v := station.ShowPlan(p, zone/60)
	return v, planWords(v, b.genesis.Currency), nil
}

func planWords(p *board.Plan, currency string) []string {
	line := "as offers stand, " + kWh(p.Planned) + " would be charged for about " + money(p.Cost) + " " + currency
	if len(p.Shares) > 0 {
		line += ", " + strings.Join(shares(p), ", ")
	}
	words := []string{line + "; it is planned again as they change"}
	if p.Report != "" {
		words = append(words, p.Report)
	}
	return words
}

// shares tells stretches of time without a gap as one, at most four.
func shares(p *board.Plan) (out []string) {
	const most = 4
	for i := 0; i < len(p.Shares); {
		j := i + 1
		for j < len(p.Shares) && p.Shares[j].From.Equal(p.Shares[j-1].To) {
			j++
		}
		if len(out) == most {
			return append(out, "and later")
		}
		out = append(out, p.Shares[i].From.Local().Format("15:04")+" to "+p.Shares[j-1].To.Local().Format("15:04"))
		i = j
	}
	return out
}

func planRows(p *board.Plan) (rows [][]string) {
	if p == nil {
		return nil
	}
	line := kWh(p.Wh)
	if !p.By.IsZero() {
		line += " by " + p.By.Local().Format("Mon 15:04")
	}
	if p.MaxPrice > 0 {
		line += ", at most " + perKWh(p.MaxPrice)
	}
	rows = append(rows, []string{"plan", line})
	if len(p.Shares) > 0 {
		rows = append(rows, []string{"charges", strings.Join(shares(p), ", ")})
	}
	if p.Report != "" {
		rows = append(rows, []string{"missing", p.Report})
	}
	return rows
}

func (b backend) SetPlan(ctx context.Context, id chain.ID, o panel.PlanOrder) (panel.Session, error) {
	s, err := b.Session(ctx, id)
	switch {
	case err != nil:
		return s, err
	case s.Gateway != b.self:
		return s, panel.Refused("session %s is at gateway %s: plan it there", id, s.GatewayName)
	case o.MaxPrice < 0 || (!o.By.IsZero() && !o.By.After(time.Now())):
		return s, panel.Invalid("the departure is over, or the price is negative")
	}
	if err := b.station.SetGoal(ctx, id, goal(o, &chain.Quote{MaxWh: s.MaxWh})); err != nil {
		return s, refused(err)
	}
	return b.Session(ctx, id)
}
