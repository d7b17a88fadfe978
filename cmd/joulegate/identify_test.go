package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/joulegate/joulegate/meter"
	"github.com/joulegate/joulegate/meter/identify"
	"github.com/joulegate/joulegate/tools/sim/slave"
)

// obedient is a person who does what the command says: it switches the load
// of a simulated meter when asked, and presses Enter.
type obedient struct {
	t     *testing.T
	unit  *slave.Unit
	line  uint8
	step  int64 // mW
	enter io.Writer
	said  bytes.Buffer
}

func (o *obedient) Write(p []byte) (int, error) {
	o.said.Write(p)
	text := string(p)
	on, off := strings.Contains(text, "switch it ON"), strings.Contains(text, "switch it OFF")
	if on || off {
		step := int64(0)
		if on {
			step = o.step
		}
		amps := max(step, -step) * 1000 / 230_000
		if err := o.unit.Set(
			meter.Point{Quantity: meter.Power, Phase: o.line, Value: 300_000 + step},
			meter.Point{Quantity: meter.Current, Phase: o.line, Value: 1_400 + amps},
			meter.Point{Quantity: meter.Power, Value: 900_000 + step}); err != nil {
			o.t.Error(err)
		}
		if o.enter != nil {
			go func() { _, _ = io.WriteString(o.enter, "\n") }() // the command reads it when it has asked
		}
	}
	return len(p), nil
}

// quick is a pace for machines.
var quick = pace{40 * time.Millisecond, 200 * time.Millisecond, 20 * time.Millisecond}

func runIdentify(t *testing.T, o *obedient, in io.Reader, args ...string) (identifyJSON, error) {
	t.Helper()
	root := &cobra.Command{Use: "joulegate", SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().Bool("json", false, "")
	root.PersistentFlags().String("state", t.TempDir(), "")
	root.AddCommand(identifyCmd(quick))
	root.SetArgs(append([]string{"identify", "--json"}, args...))
	var stdout bytes.Buffer
	root.SetOut(&stdout)
	root.SetErr(o)
	root.SetIn(in)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	err := root.ExecuteContext(ctx)
	var out identifyJSON
	if err == nil {
		if e := json.Unmarshal(stdout.Bytes(), &out); e != nil {
			t.Fatalf("%q: %v", stdout.String(), e)
		}
	}
	return out, err
}

// The command asks, a person switches, the meter's line is named; by Enter and
// by the clock, wired rightly and the wrong way round.
func TestMeterIdentify(t *testing.T) {
	for name, c := range map[string]struct {
		step int64
		args []string
		want identify.Wiring
	}{
		"by the clock":        {2_000_000, []string{"--load", "2kW", "--seconds", "700ms"}, identify.Right},
		"by Enter":            {2_000_000, []string{"--load", "2000W"}, identify.Right},
		"reversed":            {-2_000_000, []string{"--load", "2000", "--seconds", "700ms"}, identify.Reversed},
		"load not known":      {1_200_000, []string{"--seconds", "700ms"}, identify.Right},
		"nothing is switched": {0, []string{"--load", "2kW", "--seconds", "700ms"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := scanUnit(t, "eastron-sdm630")
			in, enter := io.Pipe()
			t.Cleanup(func() { _ = in.Close() })
			o := &obedient{t: t, unit: u, line: 2, step: c.step}
			if !strings.Contains(strings.Join(c.args, " "), "--seconds") {
				o.enter = enter
			}
			at := ptyBus(t, slave.Config{}, map[uint8]*slave.Unit{3: u})
			got, err := runIdentify(t, o, in, append([]string{"--profile", "eastron-sdm630", "--rtu", at, "--unit", "3"}, c.args...)...)
			if err != nil {
				t.Fatalf("%v\n%s", err, o.said.String())
			}
			if c.want == 0 {
				if len(got.Moved) != 0 || len(got.Still) != 1 {
					t.Fatalf("%+v", got)
				}
				return
			}
			if got.Switches != 4 || len(got.Moved) != 1 || len(got.Moved[0].Lines) != 1 {
				t.Fatalf("%+v", got)
			}
			if l := got.Moved[0].Lines[0]; l.Phase != 2 || int64(l.StepW) != c.step/1000 || l.Wiring != c.want {
				t.Errorf("%+v", l)
			}
		})
	}
}

func TestMeterIdentifyErrors(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"load":       {[]string{"--load", "much"}, "2000W"},
		"tiny load":  {[]string{"--load", "5W"}, "50W"},
		"one turn":   {[]string{"--turns", "1"}, "want 2"},
		"too fast":   {[]string{"--seconds", "10ms"}, "or more"},
		"no gateway": {nil, "no gateway is running"},
		"no enter":   {[]string{"--profile", "eastron-sdm630", "--rtu", ptyBus(t, slave.Config{}, map[uint8]*slave.Unit{1: scanUnit(t, "eastron-sdm630")})}, "use --seconds"},
	} {
		if _, err := runIdentify(t, &obedient{t: t, unit: scanUnit(t, "eastron-sdm630"), line: 1}, strings.NewReader(""), c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
