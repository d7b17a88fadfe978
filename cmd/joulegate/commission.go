package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/joulegate/joulegate/board"
	"github.com/joulegate/joulegate/board/config"
	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/board/station"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/meter"
	"github.com/spf13/cobra"
)

func newCommissionCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "commission",
		Short: "Commission a gateway, and make the report of it",
		Long: `With --report it writes what was looked at, wired, tried and read: the computer,
each pin, relay and contact, each meter, limits, failsafe values and operation,
green or red, and for what is red what to do. The file is signed by the gateway;
'commission verify' checks it anywhere. What a person has to try (relays, the
emergency stop, which way round a transformer is) is remembered with its time
when it is done, and is red until then. Exit code 1 while something is red.

Some things a gateway does only on an installer's word: switching a charger
between one and three phases, and taking energy out of vehicles. A statement is
that word, signed, for one charger of one gateway and for a time. The gateway
names the keys that count under installers, and the file under the charger's
statement; its hash goes on record at every start.

Relays are tested and lines scanned only in commissioning mode, which somebody
at the gateway begins.`,
		Example: `  joulegate commission start
  joulegate bus scan --line rs485 && joulegate relay test 1   # press and release the emergency stop
  joulegate meter identify --load 2kW
  joulegate commission --report report.html --by "A. Installer"
  joulegate commission verify report.html`,
		Args: cobra.NoArgs,
	}
	report := c.Flags().String("report", "", "`FILE` to write: .html or .json")
	by := c.Flags().String("by", "", "`NAME` of who has commissioned it, for the report")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if asJSON, _ := cmd.Flags().GetBool("json"); *report == "" && !asJSON {
			_ = cmd.Help()
			return usageError{errors.New("say what to do: --report FILE.html, --json, or a subcommand")}
		}
		return commissionReport(cmd, *report, *by)
	}
	c.AddCommand(newCommissionSignCmd(), newCommissionCheckCmd(), newCommissionVerifyCmd())
	for _, o := range []struct{ do, short string }{
		{"start", "Begin commissioning mode: for 15 minutes relays may be tested and lines scanned, over MQTT too"},
		{"stop", "End commissioning mode"},
		{"status", "Say whether the gateway is in commissioning mode"},
	} {
		c.AddCommand(query(&cobra.Command{Use: o.do, Short: o.short, Args: cobra.NoArgs, Example: "  joulegate commission " + o.do},
			func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Commissioning, error) {
				do := o.do
				if do == "status" {
					do = ""
				}
				return g.Commissioning(cmd.Context(), panel.CommissioningOrder{Do: do})
			}, func(w io.Writer, v panel.Commissioning) error {
				text := "off"
				if v.On {
					text = fmt.Sprintf("on until %s", v.Until.Local().Format(time.TimeOnly))
				}
				fmt.Fprintln(w, "commissioning mode is", text)
				for _, d := range v.Done {
					fmt.Fprintln(w, " ", d)
				}
				return nil
			}))
	}
	return c
}

func newCommissionSignCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "sign",
		Short: "Sign a statement (installer)",
		Example: "  joulegate commission sign --wallet installer --gateway 6ebf...c1 --charger 1 --phase-switch > charger1.statement\n" +
			"  joulegate commission sign --wallet installer --gateway 6ebf...c1 --charger 1 --discharge --max-power 7000 \\\n    --grid-protection \"certificate 12-345\" --approval \"network operator, file 0815\"",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := cmd.Flags()
			name, _ := f.GetString("wallet")
			w, err := wallet(cmd, name)
			if err != nil {
				return err
			}
			s := board.Statement{Issued: time.Now()}
			text, _ := f.GetString("gateway")
			if err := s.Gateway.UnmarshalText([]byte(text)); err != nil {
				return usageError{fmt.Errorf("--gateway: %w; 'joulegate grid members' shows it", err)}
			}
			valid, _ := f.GetDuration("valid")
			s.Expires = s.Issued.Add(valid)
			s.Charger, _ = f.GetUint8("charger")
			s.PhaseSwitch, _ = f.GetBool("phase-switch")
			s.Discharge, _ = f.GetBool("discharge")
			power, _ := f.GetInt64("max-power")
			s.MaxPower = meter.Watt(power)
			s.GridProtection, _ = f.GetString("grid-protection")
			s.Approval, _ = f.GetString("approval")
			b, err := board.SignStatement(s, w.Key)
			if err != nil {
				return usageError{err}
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
	f := c.Flags()
	f.String("wallet", "", "installer's `WALLET`: a file, or a name in the state folder")
	f.String("gateway", "", "device `KEY` of the gateway")
	f.Uint8("charger", 1, "number of the charger")
	f.Bool("phase-switch", false, "its contactor and the vehicles bear a change of phases")
	f.Bool("discharge", false, "it may take energy out of vehicles")
	f.Int64("max-power", 0, "most power back into the network, in `WATTS`")
	f.String("grid-protection", "", "certificate of the grid protection")
	f.String("approval", "", "the network operator's approval")
	f.Duration("valid", 365*24*time.Hour, "how long, at most five years")
	_ = c.MarkFlagRequired("wallet")
	_ = c.MarkFlagRequired("gateway")
	return c
}

func newCommissionCheckCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check form and signature of a statement, and show it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			s, err := board.OpenStatement(b)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return emit(cmd, s, func(w io.Writer) error {
				rows := [][]string{
					{"gateway", s.Gateway.String()},
					{"charger", strconv.Itoa(int(s.Charger))},
					{"installer", s.Installer.String()},
					{"valid", s.Issued.Format(time.DateOnly) + " to " + s.Expires.Format(time.DateOnly)},
					{"phase switching", strconv.FormatBool(s.PhaseSwitch)},
					{"discharging", strconv.FormatBool(s.Discharge)},
					{"hash", s.Hash().String()},
				}
				if s.Discharge {
					rows = append(rows, []string{"at most", fmt.Sprintf("%d W", s.MaxPower)}, []string{"grid protection", s.GridProtection}, []string{"approval", s.Approval})
				}
				return table(w, rows)
			})
		},
	}
}

// vouched is what became of a charger's statement, for the record.
type vouched struct {
	charger, text string
	severity      uint8
}

// vouch gives chargers what their statements allow. One that does not count,
// because it has expired or was changed, allows nothing: the gateway goes on
// without, and says so.
func vouch(cfg config.Config, self chain.Key, now time.Time, chargers []station.Charger) (out []vouched) {
	var installers []chain.Key
	for _, s := range cfg.Installers {
		var k chain.Key
		if k.UnmarshalText([]byte(s)) == nil { // Validate has seen it
			installers = append(installers, k)
		}
	}
	for i, h := range cfg.Chargers {
		if h.Statement == "" {
			continue
		}
		v := vouched{charger: fmt.Sprintf("charger-%d", h.ID), severity: 1}
		s, err := vouchFor(h, self, now, installers)
		if err == nil {
			chargers[i].Switch.Allowed = h.PhaseSwitch
			if d := chargers[i].Discharge; d != nil {
				d.Rules.MaxPower = min(d.Rules.MaxPower, s.MaxPower)
				d.Rules.MinPower = min(d.Rules.MinPower, d.Rules.MaxPower)
				d.Permit = func(at time.Time) error { return s.Allows(self, h.ID, installers, at) }
			}
			v.text = fmt.Sprintf("statement %s of installer %s, valid until %s: phase switching %t, discharging %t", s.Hash(), s.Installer, s.Expires.Format(time.DateOnly), h.PhaseSwitch, h.Discharge.Enabled)
		} else {
			v.severity, v.text = 2, fmt.Sprintf("%s allows nothing: %v", h.Statement, err)
		}
		out = append(out, v)
	}
	return out
}

func vouchFor(h config.Charger, self chain.Key, now time.Time, installers []chain.Key) (board.Statement, error) {
	b, err := os.ReadFile(h.Statement)
	if err != nil {
		return board.Statement{}, err
	}
	s, err := board.OpenStatement(b)
	if err != nil {
		return s, err
	}
	if h.PhaseSwitch && !s.PhaseSwitch {
		return s, errors.New("the statement does not allow switching phases")
	}
	if h.Discharge.Enabled && !s.Discharge {
		return s, errors.New("the statement does not allow discharging")
	}
	return s, s.Allows(self, h.ID, installers, now)
}

func newRelayCmd() *cobra.Command {
	c := &cobra.Command{Use: "relay", Short: "Test relays while a charger is commissioned"}
	var seconds int
	test := query(&cobra.Command{
		Use:   "test CHARGER",
		Short: "Close the relay of a charger without a vehicle for a moment, and say what the contacts did",
		Long: `Closes the relay of an idle charger, opens it again, and says whether the output
and the contactor's auxiliary contact followed. It needs commissioning mode and
everything that charging needs, the emergency stop released and a fresh meter
among it; with a vehicle, or when something draws current, there is none.

The socket is live meanwhile: nothing may be plugged in and nobody may touch it.`,
		Example: "  joulegate commission start && joulegate relay test 1",
		Args:    cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, g *panel.Client, args []string) (board.RelayTest, error) {
		id, err := strconv.ParseUint(args[0], 10, 8)
		if err != nil || id == 0 {
			return board.RelayTest{}, usageError{fmt.Errorf("charger %q: its number, as in: joulegate charger ls", args[0])}
		}
		return g.TestRelay(cmd.Context(), panel.RelayOrder{Charger: uint8(id), Seconds: seconds})
	}, func(w io.Writer, v board.RelayTest) error {
		word := "in order"
		if !v.OK {
			word = "NOT in order"
		}
		fmt.Fprintf(w, "%s: closed for %s, auxiliary contact: %s, %d mA; %s\n", word, v.ClosedFor.Round(time.Millisecond), v.Contact, v.Current, v.Ended)
		if v.Fault != "" {
			fmt.Fprintf(w, "latched: %s (joulegate charger clear after the repair)\n", v.Fault)
		}
		return nil
	})
	test.Flags().IntVar(&seconds, "seconds", 2, "how long, 1 to 5")
	c.AddCommand(test)
	return c
}
