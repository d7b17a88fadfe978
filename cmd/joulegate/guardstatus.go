package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/guard"
	"github.com/joulegate/joulegate/guard/nft"
)

func newGuardStatusCmd() *cobra.Command {
	return query(&cobra.Command{
		Use:   "status",
		Short: "Say what the guard of the running gateway sees and has found",
		Long: `status tells how much every sensor of the running gateway sees, and why not more,
what may be done about findings and what is, and the newest findings.`,
		Example: "  joulegate guard status\n  joulegate guard status --json",
		Args:    cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (guard.Status, error) {
		return g.Guard(cmd.Context())
	}, printGuard)
}

func printGuard(w io.Writer, s guard.Status) error {
	if s.Mode == "off" {
		_, err := fmt.Fprintln(w, "the guard is off: guard.mode in the configuration")
		return err
	}
	state := fmt.Sprintf("process %d, %d MB of its own, %.2f %% of a core, started %s", s.Child.PID, s.Child.MemoryMB, s.Child.Percent, s.Child.Since.Local().Format(time.DateTime))
	if s.Child.PID == 0 {
		state = "no sensor runs: " + s.Child.Ended
	}
	if s.Child.Restarts > 0 {
		state += fmt.Sprintf(", restarted %d times", s.Child.Restarts)
	}
	fmt.Fprintf(w, "mode %s; %s\n\n", s.Mode, state)
	rows := [][]string{{"SENSOR", "LEVEL", "SEEN", "LOST", ""}}
	for _, c := range s.Coverage {
		rows = append(rows, []string{c.Sensor.String(), c.Level, strconv.FormatUint(c.Seen, 10), strconv.FormatUint(c.Lost, 10), c.Reason})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if s.Names != nil {
		fmt.Fprintln(w)
		if err := printNames(w, *s.Names); err != nil {
			return err
		}
	}
	for _, n := range s.Silent {
		fmt.Fprintf(w, "\nthe guard of %s is silent\n", n)
	}
	if err := printReactions(w, s); err != nil {
		return err
	}
	if s.HeldBack > 0 {
		fmt.Fprintf(w, "\n%d records were held back: too many for the ledger\n", s.HeldBack)
	}
	if len(s.Findings) == 0 {
		_, err := fmt.Fprintln(w, "\nnothing found")
		return err
	}
	fmt.Fprintln(w)
	rows = [][]string{{"LAST", "SEVERITY", "RULE", "SUBJECT", "COUNT"}}
	for _, f := range s.Findings {
		rows = append(rows, []string{f.Last.Local().Format(time.DateTime), f.Severity.String(), f.Rule, f.Subject.String(), strconv.FormatUint(f.Count, 10)})
	}
	return table(w, rows)
}

// printReactions says what may be done about findings, what is done, and what
// waits for an answer.
func printReactions(w io.Writer, s guard.Status) error {
	for _, what := range slices.Sorted(maps.Keys(s.Unable)) {
		fmt.Fprintf(w, "\n%s cannot be done here: %s\n", what, s.Unable[what])
	}
	rows := [][]string{{"RULE", "MODE", "", ""}}
	for _, r := range s.Rules {
		if r.Mode == guard.Observe {
			continue
		}
		rule, _ := guard.RuleOf(r.ID)
		left := ""
		if r.InForce != r.Mode {
			left = fmt.Sprintf("observes for another %s", (time.Duration(r.Left) * time.Second).Round(time.Minute))
		}
		rows = append(rows, []string{r.ID, r.Mode.String(), rule.Action.String(), left})
	}
	if len(rows) > 1 {
		fmt.Fprintln(w)
		if err := table(w, rows); err != nil {
			return err
		}
	}
	if !s.Suspended.IsZero() {
		fmt.Fprintf(w, "\neverything was released: nothing is done before %s; joulegate guard release --resume\n", s.Suspended.Local().Format(time.DateTime))
	}
	for _, part := range []struct {
		head, until string
		all         []guard.Standing
	}{{"IN FORCE", "UNTIL", s.Reactions}, {"QUESTION", "ANSWER BEFORE", s.Questions}} {
		if len(part.all) == 0 {
			continue
		}
		fmt.Fprintln(w)
		rows := [][]string{{part.head, "ACTION", "SUBJECT", "RULE", part.until}}
		for _, r := range part.all {
			rows = append(rows, []string{strconv.FormatUint(r.ID, 10), r.Action.String(), r.Subject.String(), r.Rule, r.Until.Local().Format(time.DateTime)})
		}
		if err := table(w, rows); err != nil {
			return err
		}
	}
	if len(s.Questions) > 0 {
		fmt.Fprintln(w, "\njoulegate guard answer ID yes|no")
	}
	return nil
}

// guardOrder makes a command that tells the running guard something and
// prints what is in force then.
func guardOrder(c *cobra.Command, order func(args []string) (panel.GuardOrder, error)) *cobra.Command {
	return query(c, func(cmd *cobra.Command, g *panel.Client, args []string) (guard.Status, error) {
		o, err := order(args)
		if err != nil {
			return guard.Status{}, err
		}
		if err := g.GuardOrder(cmd.Context(), o); err != nil {
			return guard.Status{}, err
		}
		return g.Guard(cmd.Context())
	}, func(w io.Writer, s guard.Status) error {
		if len(s.Reactions)+len(s.Questions) == 0 && s.Suspended.IsZero() {
			_, err := fmt.Fprintln(w, "nothing is in force, and nothing is asked")
			return err
		}
		return printReactions(w, s)
	})
}

func newGuardReleaseCmd() *cobra.Command {
	var all, resume bool
	c := guardOrder(&cobra.Command{
		Use:   "release [ID]",
		Short: "Undo what the guard does",
		Long: `release undoes one reaction, by its number in 'joulegate guard status', and leaves
whom it was about alone for a day. --all undoes everything, drops every question
and does nothing for a day; --resume ends that day. When no gateway runs, --all
removes what a killed one has left in the packet filter.`,
		Example: "  joulegate guard release 12\n  joulegate guard release --all",
		Args:    cobra.MaximumNArgs(1),
	}, func(args []string) (panel.GuardOrder, error) {
		switch {
		case all && !resume && len(args) == 0:
			return panel.GuardOrder{Do: "release_all"}, nil
		case resume && !all && len(args) == 0:
			return panel.GuardOrder{Do: "resume"}, nil
		case !all && !resume && len(args) == 1:
			id, err := reactionID(args[0])
			return panel.GuardOrder{Do: "release", ID: id}, err
		}
		return panel.GuardOrder{}, usageError{errors.New("say which: a number of 'joulegate guard status', --all or --resume")}
	})
	c.Flags().BoolVar(&all, "all", false, "undo everything, and do nothing for a day")
	c.Flags().BoolVar(&resume, "resume", false, "react again after --all")
	running := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		err := running(cmd, args)
		if !all || !errors.Is(err, errNotRunning) {
			return err
		}
		if err := nft.RemoveAll(); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "no gateway is running; its tables are gone from the packet filter")
		return err
	}
	return c
}

func reactionID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, usageError{fmt.Errorf("%q is no number of 'joulegate guard status'", s)}
	}
	return id, nil
}

func newGuardAnswerCmd() *cobra.Command {
	return guardOrder(&cobra.Command{
		Use:   "answer ID yes|no",
		Short: "Answer what the guard asks",
		Long: `A rule in mode ask does nothing by itself: it asks. yes does it now, no leaves
whom it is about alone for a day. A question that nobody answers is forgotten
after 12 hours.`,
		Example:   "  joulegate guard status\n  joulegate guard answer 12 yes",
		Args:      cobra.ExactArgs(2),
		ValidArgs: []string{"yes", "no"},
	}, func(args []string) (panel.GuardOrder, error) {
		id, err := reactionID(args[0])
		if args[1] != "yes" && args[1] != "no" {
			err = usageError{fmt.Errorf("%q is neither yes nor no", args[1])}
		}
		return panel.GuardOrder{Do: "answer", ID: id, Yes: args[1] == "yes"}, err
	})
}

func newGuardCodeCmd() *cobra.Command {
	return query(&cobra.Command{
		Use:   "code",
		Short: "Make a code that lets the page release or answer once",
		Long: `The page shows what the guard does and asks, to everybody who can open it. To
release or to answer there, it wants a code from here: it is valid for ten minutes,
once, and for three tries.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Code, error) {
		return g.GuardCode(cmd.Context())
	}, writeCode)
}

func writeCode(w io.Writer, c panel.Code) error {
	_, err := fmt.Fprintf(w, "%s, until %s\n", c.Code, c.Expires.Local().Format(time.TimeOnly))
	return err
}

// guardMetrics tells Prometheus what the guard counts and how much it sees.
type guardMetrics struct{ status func() guard.Status }

func guardDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("joulegate_guard_"+name, help, labels, nil)
}

var (
	guardSees      = guardDesc("sensor_up", "1 while the sensor sees something.", "sensor", "level")
	guardSeen      = guardDesc("events_total", "Events that the sensor has looked at.", "sensor")
	guardLost      = guardDesc("events_lost_total", "Events that the sensor is known to have missed.", "sensor")
	guardTold      = guardDesc("records_total", "Findings put on record.", "rule")
	guardHeld      = guardDesc("records_held_back_total", "Findings that were too many for the ledger.")
	guardRestarts  = guardDesc("process_restarts_total", "Times that the process of the sensors was started again.")
	guardMemory    = guardDesc("process_memory_bytes", "Memory of the process of the sensors that it shares with nobody.")
	guardCPU       = guardDesc("process_cpu_seconds_total", "Processor time that the process of the sensors has used, and those before it.")
	guardInForce   = guardDesc("reactions_in_force", "Reactions in force.", "action")
	guardReacted   = guardDesc("reactions_total", "Reactions begun.", "action")
	guardSpared    = guardDesc("reactions_spared_total", "Reactions that were not begun.", "reason")
	guardQuestions = guardDesc("questions", "Questions that wait for an answer.")
	guardSilent    = guardDesc("silent_neighbours", "Neighbours whose guard is not heard.")
)

// Describe implements prometheus.Collector.
func (guardMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{guardSees, guardSeen, guardLost, guardTold, guardHeld, guardRestarts, guardMemory, guardCPU, guardInForce, guardReacted, guardSpared, guardQuestions, guardSilent} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m guardMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.status()
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	counts := func(d *prometheus.Desc, all map[string]uint64) {
		for k, v := range all {
			send(d, prometheus.CounterValue, float64(v), k)
		}
	}
	for _, c := range s.Coverage {
		up := 0.0
		if c.Level != guard.None {
			up = 1
		}
		send(guardSees, prometheus.GaugeValue, up, c.Sensor.String(), c.Level)
		send(guardSeen, prometheus.CounterValue, float64(c.Seen), c.Sensor.String())
		send(guardLost, prometheus.CounterValue, float64(c.Lost), c.Sensor.String())
	}
	counts(guardTold, s.Told)
	counts(guardReacted, s.Reacted)
	counts(guardSpared, s.Spared)
	inForce := map[string]float64{}
	for _, r := range s.Reactions {
		inForce[r.Action.String()]++
	}
	for _, a := range []guard.Action{guard.Block, guard.Quarantine, guard.Refuse} {
		send(guardInForce, prometheus.GaugeValue, inForce[a.String()], a.String())
	}
	send(guardHeld, prometheus.CounterValue, float64(s.HeldBack))
	send(guardRestarts, prometheus.CounterValue, float64(s.Child.Restarts))
	send(guardMemory, prometheus.GaugeValue, float64(s.Child.MemoryMB<<20))
	send(guardCPU, prometheus.CounterValue, s.Child.CPU)
	send(guardQuestions, prometheus.GaugeValue, float64(len(s.Questions)))
	send(guardSilent, prometheus.GaugeValue, float64(len(s.Silent)))
}
