package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/drivers"
	"github.com/joulegate/joulegate/meter"
	"github.com/spf13/cobra"
)

// Failsafe reads, or sets and reads back, what a wallbox does when this
// gateway is gone. What was set is put on record.
func (b backend) Failsafe(ctx context.Context, id uint8, set *panel.Failsafe) (panel.Failsafe, error) {
	box, ok := b.devices.boxes[id]
	if !ok {
		return panel.Failsafe{}, panel.NotFound("charger %d has no wallbox on a line (evse)", id)
	}
	out := panel.Failsafe{Charger: id, Profile: box.Profile(), Fixed: !box.FailsafeCanBeSet()}
	var got drivers.FailsafeSetting
	var err error
	if set == nil {
		got, err = box.Failsafe(ctx)
	} else {
		got, err = box.SetFailsafe(ctx, drivers.FailsafeSetting{Current: set.Current, Timeout: time.Duration(set.TimeoutMs) * time.Millisecond})
		if err == nil {
			b.station.Note("charger.failsafe_set", 2, strconv.Itoa(int(id)), fmt.Sprintf("%d mA after %s without a gateway", got.Current, got.Timeout))
		}
	}
	switch {
	case errors.Is(err, drivers.ErrNotFitted):
		return out, panel.Refused("%v", err)
	case err != nil && ctx.Err() == nil:
		return out, panel.Unavailable("%v", err)
	}
	out.Current, out.TimeoutMs, out.BeatMs = got.Current, got.Timeout.Milliseconds(), box.BeatEvery().Milliseconds()
	return out, err
}

func newChargerFailsafeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "failsafe ID",
		Short: "Say what a wallbox does when its gateway is gone, or set it",
		Long: `A wallbox that hears nothing of its gateway falls back to its failsafe current by
itself. Which current, and after how long, is the installer's to decide at
commissioning: 0 A stops charging, 6 A keeps cars and houses alive.

--set changes it. It asks first, reads the wallbox back afterwards, and puts the
change on record.`,
		Example: "  joulegate charger failsafe 1\n  joulegate charger failsafe 1 --set 6A --timeout 30s",
		Args:    cobra.ExactArgs(1),
	}
	c.Flags().String("set", "", "failsafe `CURRENT` per phase: 0A or 6A to 32A")
	c.Flags().Duration("timeout", 30*time.Second, "silence after which the gateway counts as gone")
	c.Flags().Bool("yes", false, "set it without being asked")
	return query(c, func(cmd *cobra.Command, g *panel.Client, args []string) (panel.Failsafe, error) {
		n, err := strconv.ParseUint(args[0], 10, 8)
		if err != nil || n == 0 {
			return panel.Failsafe{}, usageError{fmt.Errorf("charger %q: its number, as in: joulegate charger ls", args[0])}
		}
		id := uint8(n)
		s, _ := cmd.Flags().GetString("set")
		if s == "" {
			if cmd.Flags().Changed("timeout") {
				return panel.Failsafe{}, usageError{errors.New("--timeout goes with --set")}
			}
			return g.Failsafe(cmd.Context(), id, nil)
		}
		a, err := parseMoney(strings.TrimSuffix(strings.ToUpper(s), "A")) // three decimals of an ampere are mA
		if err != nil || a%1e6 != 0 || a != 0 && (a < 6e9 || a > 32e9) {
			return panel.Failsafe{}, usageError{fmt.Errorf("--set %q: 0A, or 6A to 32A", s)}
		}
		timeout, _ := cmd.Flags().GetDuration("timeout")
		if timeout < time.Second || timeout > 24*time.Hour {
			return panel.Failsafe{}, usageError{fmt.Errorf("--timeout %s: 1s to 24h", timeout)}
		}
		want := panel.Failsafe{Charger: id, Current: meter.MilliAmpere(a / 1e6), TimeoutMs: timeout.Milliseconds()}
		was, err := g.Failsafe(cmd.Context(), id, nil)
		if err != nil {
			return was, err
		}
		question := fmt.Sprintf("Charger %d (%s) falls back to %s after %s now. Set %s after %s?", id, was.Profile, ampere(was.Current), time.Duration(was.TimeoutMs)*time.Millisecond, ampere(want.Current), timeout)
		if err := confirmed(cmd, question); err != nil {
			return was, err
		}
		return g.Failsafe(cmd.Context(), id, &want)
	}, func(w io.Writer, f panel.Failsafe) error {
		watch := "never: it does not watch its gateway"
		if f.TimeoutMs > 0 {
			watch = "after " + (time.Duration(f.TimeoutMs) * time.Millisecond).String() + " of silence"
		}
		rows := [][]string{{"charger", strconv.Itoa(int(f.Charger))}, {"wallbox", f.Profile}, {"falls back to", ampere(f.Current)}, {"when", watch}}
		if f.BeatMs > 0 {
			rows = append(rows, []string{"heartbeat", "every " + (time.Duration(f.BeatMs) * time.Millisecond).String()})
		}
		if f.Fixed {
			rows = append(rows, []string{"note", "this model does not let it be set"})
		}
		return table(w, rows)
	})
}

// confirmed asks a person, unless --yes was given. No answer is no.
func confirmed(cmd *cobra.Command, question string) error {
	if yes, _ := cmd.Flags().GetBool("yes"); yes {
		return nil
	}
	fmt.Fprint(cmd.ErrOrStderr(), question+" [y/N] ")
	answer, _ := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64)).ReadString('\n')
	switch strings.TrimSpace(answer) {
	case "y", "Y", "yes":
		return nil
	}
	return errors.New("nothing was changed: it was not confirmed")
}
