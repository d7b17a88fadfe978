package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

// notAttested is what stands where an attestation would.
const notAttested = "no third party has attested this microgrid"

// attestedBy tells in words which third parties have looked.
func attestedBy(inForce []ledger.AttestationView) (lines []string) {
	for _, a := range inForce {
		lines = append(lines, fmt.Sprintf("%s from %s to %s, by auditor %s, until %s", a.Scope, date(a.From), date(a.To), a.Auditor.Short(), date(a.Expires)))
	}
	if len(lines) == 0 {
		lines = []string{notAttested}
	}
	return lines
}

func newAttestCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "attest --scope TEXT --from TIME --to TIME --expires TIME",
		Short: "Sign onto the ledger that a third party has examined it (auditor)",
		Long: `An auditor (see: joulegate grid rules) states what he has examined, over which
period, and until when he stands by it. Every receipt, the panel and 'ledger
status' show it; without any they say that no third party has attested the
microgrid. The same scope and period stated again replaces the statement;
--withdraw takes it back. Whoever owns a gateway here is no third party.`,
		Example: `  joulegate audit attest --scope "metering and settlement" --from 2026-01-01T00:00:00Z \
      --to 2026-07-01T00:00:00Z --expires 2027-07-01T00:00:00Z --report report.pdf --wallet vera.wallet`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := chain.Attestation{}
			b.Scope, _ = cmd.Flags().GetString("scope")
			withdraw, _ := cmd.Flags().GetBool("withdraw")
			if withdraw == cmd.Flags().Changed("expires") {
				return usageError{errors.New("say until when it holds with --expires, or --withdraw")}
			}
			for name, ms := range map[string]*int64{"from": &b.From, "to": &b.To, "expires": &b.Expires} {
				t, err := timeFlag(cmd, name)
				if err != nil {
					return usageError{err}
				}
				if !t.IsZero() {
					*ms = t.UnixMilli()
				}
			}
			if file, _ := cmd.Flags().GetString("report"); file != "" {
				report, err := os.ReadFile(file)
				if err != nil {
					return fmt.Errorf("--report: %w", err)
				}
				b.Report = chain.Sum(report)
			}
			return sign(cmd, chain.TxAttest, b)
		},
	}
	f := c.Flags()
	f.String("scope", "", "what was examined, at most 64 bytes, no personal data")
	f.String("from", "", "begin of the period, a `TIME` such as 2026-01-01T00:00:00Z")
	f.String("to", "", "end of the period, not in the future")
	f.String("expires", "", "`TIME` until which the statement holds, at most two years ahead")
	f.Bool("withdraw", false, "take back what was said about this scope and period")
	f.String("report", "", "`FILE` with the full report; only its SHA-256 goes on the ledger")
	f.String("wallet", "auditor", "auditor's `WALLET`: a file, or a name in the state folder")
	for _, name := range []string{"scope", "from", "to"} {
		_ = c.MarkFlagRequired(name)
	}
	return c
}

func newAttestationsCmd() *cobra.Command {
	return ledgerQuery(atFlag(&cobra.Command{
		Use:   "attestations",
		Short: "List what auditors have said of the microgrid",
		Args:  cobra.NoArgs,
	}), func(cmd *cobra.Command, g *panel.Client, _ []string) ([]ledger.AttestationView, error) {
		r, err := g.Rules(cmd.Context())
		return r.Attestations, err
	}, func(l stoppedLedger, _ []string) ([]ledger.AttestationView, error) {
		return ledger.Attestations(l), nil
	}, func(w io.Writer, all []ledger.AttestationView) error {
		if len(all) == 0 {
			_, err := fmt.Fprintln(w, notAttested)
			return err
		}
		rows := [][]string{{"AUDITOR", "SCOPE", "FROM", "TO", "EXPIRES", "IN FORCE", "REPORT SHA-256"}}
		for _, a := range all {
			report := "-"
			if a.Report != (chain.Hash{}) {
				report = a.Report.String()
			}
			rows = append(rows, []string{
				a.Auditor.Short(), a.Scope, date(a.From), date(a.To), time.UnixMilli(a.Expires).Format(time.DateTime),
				map[bool]string{true: "yes", false: "no"}[a.InForce], report,
			})
		}
		return table(w, rows)
	})
}
