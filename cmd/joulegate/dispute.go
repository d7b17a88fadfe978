package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

func newDisputeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "dispute",
		Short: "Contest a bill: open, answer, resolve",
		Long: `A driver contests an amount of a settled bill. That amount, and no more, is frozen
out of the supplier's account until it is resolved: by the driver, who may accept
what is conceded or withdraw, by an auditor, or by the operators. What nobody
answers or decides in time is decided for the driver.

A meter that jumps is disputed by rule, and in quarantine until it is released.`,
	}
	c.AddCommand(newDisputeOpenCmd(), newDisputeAnswerCmd(), newDisputeResolveCmd(), newDisputeLsCmd(), newQuarantineCmd(), newReleaseCmd())
	return c
}

// detail hashes the file that says it all; it stays off the ledger.
func detail(cmd *cobra.Command) (chain.Hash, error) {
	file, _ := cmd.Flags().GetString("detail")
	if file == "" {
		return chain.Hash{}, nil
	}
	b, err := os.ReadFile(file)
	return chain.Sum(b), err
}

func disputeFlags(c *cobra.Command, amount, signer string) {
	c.Flags().String("amount", "", amount)
	c.Flags().String("reason", "", "a few words, no personal data")
	_ = c.MarkFlagRequired("amount")
	_ = c.MarkFlagRequired("reason")
	if signer != "" {
		c.Flags().String("wallet", signer, "`WALLET` that signs: a file, or a name in the state folder")
	}
}

func newDisputeOpenCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "open SESSION",
		Short:   "Contest an amount of a session's bill (driver)",
		Example: `  joulegate dispute open 6f1c... --wallet anna --amount 1.20 --reason "cable was pulled"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sessionID(args[0])
			if err != nil {
				return err
			}
			amount, err := amountFlag(cmd)
			if err != nil {
				return err
			}
			reason, _ := cmd.Flags().GetString("reason")
			h, err := detail(cmd)
			if err != nil {
				return err
			}
			return sign(cmd, chain.TxDispute, chain.Dispute{Session: id, Amount: amount, Reason: reason, Detail: h})
		},
	}
	disputeFlags(c, "disputed `AMOUNT` in currency units", "")
	c.Flags().String("wallet", "", "driver's `WALLET`: a file, or a name in the state folder")
	_ = c.MarkFlagRequired("wallet")
	c.Flags().String("detail", "", "`FILE` with the full text; only its SHA-256 goes on the ledger")
	return c
}

// partFlag reads --amount, which may be zero.
func partFlag(cmd *cobra.Command) (chain.Nano, error) {
	s, _ := cmd.Flags().GetString("amount")
	n, err := parseMoney(s)
	if err != nil {
		return 0, usageError{err}
	}
	return n, nil
}

func newDisputeAnswerCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "answer NUMBER",
		Short:   "Answer a dispute, and concede all, part or nothing (operator, charger's owner)",
		Example: `  joulegate dispute answer 3 --amount 0.60 --reason "half of it"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := number(args[0])
			if err != nil {
				return err
			}
			amount, err := partFlag(cmd)
			if err != nil {
				return err
			}
			reason, _ := cmd.Flags().GetString("reason")
			h, err := detail(cmd)
			if err != nil {
				return err
			}
			return sign(cmd, chain.TxAnswer, chain.Answer{Dispute: n, Concede: amount, Reason: reason, Detail: h})
		},
	}
	disputeFlags(c, "conceded `AMOUNT`, 0 for nothing", "operator")
	c.Flags().String("detail", "", "`FILE` with the full text; only its SHA-256 goes on the ledger")
	return c
}

func newDisputeResolveCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "resolve NUMBER",
		Short: "End a dispute with a refund of all, part or nothing",
		Long: `An auditor may decide anything. The driver may accept what has been conceded, or
withdraw with 0. Operators may give all that is asked for, and less only where
the microgrid has no auditor.`,
		Example: `  joulegate dispute resolve 3 --amount 0.60 --reason agreed --wallet anna`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := number(args[0])
			if err != nil {
				return err
			}
			amount, err := partFlag(cmd)
			if err != nil {
				return err
			}
			reason, _ := cmd.Flags().GetString("reason")
			return agree(cmd, chain.TxResolve, chain.Resolve{Dispute: n, Refund: amount, Reason: reason})
		},
	}
	disputeFlags(c, "`AMOUNT` to refund, 0 for nothing", "operator")
	return agreed(c, "operator")
}

func newDisputeLsCmd() *cobra.Command {
	return ledgerQuery(atFlag(&cobra.Command{
		Use:   "ls",
		Short: "List disputes",
		Args:  cobra.NoArgs,
	}), func(cmd *cobra.Command, g *panel.Client, _ []string) ([]ledger.DisputeView, error) {
		return g.Disputes(cmd.Context())
	}, func(l stoppedLedger, _ []string) ([]ledger.DisputeView, error) { return ledger.Disputes(l), nil }, func(w io.Writer, all []ledger.DisputeView) error {
		rows := [][]string{{"DISPUTE", "SESSION", "STATE", "DISPUTED", "FROZEN", "CONCEDED", "REFUNDED", "ANSWER BY", "DECIDE BY", "REASON"}}
		for _, d := range all {
			state := d.State.String()
			if d.ByRule {
				state += " by deadline"
			}
			rows = append(rows, []string{
				strconv.FormatUint(d.Number, 10), d.Session.String(), state, money(d.Amount), money(d.Frozen), money(d.Conceded), money(d.Refund),
				date(d.AnswerByMs), date(d.ResolveByMs), fmt.Sprintf("%q", d.Reason),
			})
		}
		return table(w, rows)
	})
}
