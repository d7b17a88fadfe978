package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/meter"
	"github.com/spf13/cobra"
)

func newQuarantineCmd() *cobra.Command {
	return ledgerQuery(atFlag(&cobra.Command{
		Use:   "quarantine",
		Short: "List meters that have jumped and bill nothing until they are released",
		Args:  cobra.NoArgs,
	}), func(cmd *cobra.Command, g *panel.Client, _ []string) ([]ledger.QuarantineView, error) {
		r, err := g.Rules(cmd.Context())
		return r.Quarantined, err
	}, func(l stoppedLedger, _ []string) ([]ledger.QuarantineView, error) {
		return append([]ledger.QuarantineView{}, ledger.Quarantines(l)...), nil
	}, func(w io.Writer, all []ledger.QuarantineView) error {
		rows := [][]string{{"GATEWAY", "METER", "SINCE", "BILLED", "IN DOUBT", "WAITING", "DISPUTE"}}
		pair := func(in, out meter.WattHour) string { return fmt.Sprintf("%d/%d Wh", in, out) }
		for _, q := range all {
			name, dispute := q.Meter, "-"
			if q.Connector != 0 {
				name = fmt.Sprintf("connector %d", q.Connector)
			}
			if q.Dispute != 0 {
				dispute = strconv.FormatUint(q.Dispute, 10)
			}
			rows = append(rows, []string{q.Device.Short(), name, date(q.SinceMs), pair(q.CapImport, q.CapExport), pair(q.ExcessImport, q.ExcessExport), pair(q.Import, q.Export), dispute})
		}
		return table(w, rows)
	})
}

func newReleaseCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "release MEMBER",
		Short: "Release a meter that has jumped, and say what of the jump was energy (operator, auditor)",
		Long: `A meter that jumps by more than its connection can have carried is billed up to
that and bills nothing more: what it goes on counting waits. Release it once it
has been looked at. --import and --export say how much of what is in doubt was
energy after all; a house's may be negative: then what was billed is given back.
What has waited is billed at the supplier's price, and the dispute about the jump
ends. Where there are auditors, one of them signs that the excess was energy.`,
		Example: `  joulegate dispute quarantine
  joulegate dispute release west --connector 1 --reason "meter replaced"
  joulegate dispute release west --meter site --import 1200 --reason "read on site"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := dial(cmd)
			if err != nil {
				return err
			}
			members, err := cl.Members(cmd.Context())
			if err != nil {
				return err
			}
			f := cmd.Flags()
			b := chain.MeterRelease{}
			b.Connector, _ = f.GetUint8("connector")
			b.Meter, _ = f.GetString("meter")
			b.Reason, _ = f.GetString("reason")
			imp, _ := f.GetInt64("import")
			exp, _ := f.GetInt64("export")
			b.Import, b.Export = meter.WattHour(imp), meter.WattHour(exp)
			if (b.Connector == 0) == (b.Meter == "") {
				return usageError{fmt.Errorf("say which meter: --connector N of a charging point, or --meter ID of the gateway")}
			}
			for _, m := range members {
				if m.Name == args[0] {
					b.Device = m.Device
					return agree(cmd, chain.TxMeterRelease, b)
				}
			}
			return fmt.Errorf("no member %q; see: joulegate grid members", args[0])
		},
	}
	f := c.Flags()
	f.Uint8("connector", 0, "charging point")
	f.String("meter", "", "`ID` of a meter of the gateway")
	f.Int64("import", 0, "`WH` of the jump that were imported after all")
	f.Int64("export", 0, "`WH` of the jump that were exported after all")
	f.String("reason", "", "a few words, no personal data")
	_ = c.MarkFlagRequired("reason")
	return agreed(c, "operator")
}
