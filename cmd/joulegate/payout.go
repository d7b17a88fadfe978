package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/invoice"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

func newAccountPayoutCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "payout",
		Short: "Ask for prepaid money back, at par",
		Long: `Locks the money at once. The operator pays it to your bank account and states the
bank's reference; then it leaves the ledger. Until then you can take it back with
--cancel. Money that you have paid in never expires.`,
		Example: "  joulegate account payout --wallet anna --amount 12.50\n  joulegate account payout --wallet anna --cancel 7\n" +
			"  joulegate account payout ls\n  joulegate account payout paid 7 --ref SEPA-2026-0031",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			kind, body := chain.TxPayout, any(nil)
			if n, _ := cmd.Flags().GetUint64("cancel"); n > 0 {
				kind, body = chain.TxPayoutCancel, chain.PayoutCancel{Payout: n}
			} else {
				amount, err := amountFlag(cmd)
				if err != nil {
					return err
				}
				body = chain.Payout{Amount: amount}
			}
			return sign(cmd, kind, body)
		},
	}
	c.Flags().String("amount", "", "`AMOUNT` in currency units, for example 12.50")
	c.Flags().Uint64("cancel", 0, "take payout `NUMBER` back instead")
	c.Flags().String("wallet", "", "holder's `WALLET`: a file, or a name in the state folder")
	c.MarkFlagsOneRequired("amount", "cancel")
	c.MarkFlagsMutuallyExclusive("amount", "cancel")
	_ = c.MarkFlagRequired("wallet")
	c.AddCommand(newPayoutLsCmd(), newPayoutPaidCmd())
	return c
}

// sign signs a transaction with --wallet, submits it and says so.
func sign(cmd *cobra.Command, kind chain.TxKind, body any) error {
	w, cl, err := signer(cmd)
	if err != nil {
		return err
	}
	r, err := submit(cmd, cl, w, kind, body)
	if err != nil {
		return err
	}
	return done(cmd, r)
}

// amountFlag reads --amount, which must be more than zero.
func amountFlag(cmd *cobra.Command) (chain.Nano, error) {
	n, err := partFlag(cmd)
	if err == nil && n <= 0 {
		err = usageError{errors.New("--amount must be more than zero")}
	}
	return n, err
}

func newPayoutLsCmd() *cobra.Command {
	c := atFlag(&cobra.Command{Use: "ls", Short: "List payouts that wait, with --all the others too", Args: cobra.NoArgs})
	all := c.Flags().Bool("all", false, "paid and cancelled ones too")
	return ledgerQuery(c, func(cmd *cobra.Command, g *panel.Client, _ []string) ([]ledger.PayoutView, error) {
		return g.Payouts(cmd.Context(), !*all)
	}, func(l stoppedLedger, _ []string) ([]ledger.PayoutView, error) { return payoutsOf(l, !*all), nil }, func(w io.Writer, payouts []ledger.PayoutView) error {
		rows := [][]string{{"PAYOUT", "ACCOUNT", "AMOUNT", "STATE", "ASKED", "DUE"}}
		for _, p := range payouts {
			rows = append(rows, []string{strconv.FormatUint(p.Number, 10), p.Account.String(), money(p.Amount), payoutState(p), date(p.AskedMs), date(p.DueMs)})
		}
		return table(w, rows)
	})
}

func payoutState(p ledger.PayoutView) string {
	s := p.State.String()
	if p.Overdue {
		s += ", OVERDUE"
	}
	return s
}

func date(ms int64) string { return time.UnixMilli(ms).Format(time.DateOnly) }

func newPayoutPaidCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "paid NUMBER",
		Short:   "State that a payout has been paid by the bank (operator)",
		Example: "  joulegate account payout paid 7 --ref SEPA-2026-0031",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := number(args[0])
			if err != nil {
				return err
			}
			ref, _ := cmd.Flags().GetString("ref")
			return agree(cmd, chain.TxPayoutPaid, chain.PayoutPaid{Payout: n, BankRef: ref})
		},
	}
	c.Flags().String("ref", "", "bank `REFERENCE` of the payment; each can be used once")
	_ = c.MarkFlagRequired("ref")
	return agreed(c, "operator")
}

func number(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, usageError{fmt.Errorf("%q is not a number", s)}
	}
	return n, nil
}

func newAccountRefundCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "refund SESSION",
		Short: "Give back part of a settled bill, with a credit note (operator)",
		Long: `Comes out of the supplier's account. Money and discount credit return in the
proportion in which they were paid, and the credit that the money earned is taken
back in proportion. The session itself is never changed.`,
		Example: `  joulegate account refund 6f1c... --amount 1.20 --reason "cable was pulled"`,
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
			return agree(cmd, chain.TxRefund, chain.Refund{Session: id, Amount: amount, Reason: reason})
		},
	}
	c.Flags().String("amount", "", "`AMOUNT` of the bill in currency units")
	c.Flags().String("reason", "", "a few words, no personal data")
	_ = c.MarkFlagRequired("amount")
	_ = c.MarkFlagRequired("reason")
	return agreed(c, "operator")
}

func newAccountProfileCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "profile",
		Short: "Tell the ledger how you stand to tax, and whether to spend discount credit by itself",
		Long: `Only the tax status, a salted hash of the VAT id and the preference go on the
ledger. Give the VAT id and the salt to the operator, who puts them on invoices.`,
		Example: "  joulegate account profile --wallet anna --redeem\n  joulegate account profile --wallet pv --tax business --vat-id DE123456789",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var p chain.Profile
			status, _ := cmd.Flags().GetString("tax")
			if err := p.Tax.UnmarshalText([]byte(status)); err != nil {
				return usageError{err}
			}
			p.Redeem, _ = cmd.Flags().GetBool("redeem")
			if id, _ := cmd.Flags().GetString("vat-id"); id != "" {
				salt := newSalt()
				p.VATHash = chain.VATHash(salt, id)
				fmt.Fprintf(cmd.ErrOrStderr(), "for the operator's parties file: vat_id: %s, vat_salt: %x\n", id, salt)
			}
			return sign(cmd, chain.TxProfile, p)
		},
	}
	c.Flags().String("tax", "private", "private, business or small (exempt as a small business)")
	c.Flags().String("vat-id", "", "VAT `ID` of a business; stays here")
	c.Flags().Bool("redeem", false, "spend discount credit on every bill unless told otherwise")
	c.Flags().String("wallet", "", "holder's `WALLET`: a file, or a name in the state folder")
	_ = c.MarkFlagRequired("wallet")
	return c
}

func newAccountStatementCmd() *cobra.Command {
	var from, to string
	c := &cobra.Command{
		Use:   "statement ACCOUNT",
		Short: "Every movement of an account, with its reason",
		Long: `Lists what happened to the account: money and discount credit, with the session,
slot or payment it was for, and the balance after it. Works on a running or a
stopped gateway. The gateway keeps an index of all movements for eleven years, also
when it has dropped the blocks; every statement is checked against the ledger's own
balance. What went before the index cannot be told, and is refused with its dates.`,
		Example: "  joulegate account statement anna --from 2026-10-01 --to 2026-11-01\n  joulegate account statement sys:rounding --csv > rounding.csv",
		Args:    cobra.ExactArgs(1),
	}
	asCSV := c.Flags().Bool("csv", false, "print CSV")
	c.Flags().StringVar(&from, "from", "", "first `DAY`, YYYY-MM-DD; default: the beginning")
	c.Flags().StringVar(&to, "to", "", "`DAY` after the last; default: now")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := account(cmd, args[0])
		if err != nil {
			return err
		}
		begin, end := int64(0), int64(1)<<62
		for _, d := range []struct {
			text string
			ms   *int64
		}{{from, &begin}, {to, &end}} {
			if d.text == "" {
				continue
			}
			t, err := time.ParseInLocation(time.DateOnly, d.text, time.Local)
			if err != nil {
				return usageError{fmt.Errorf("day %q: write it like 2026-10-01", d.text)}
			}
			*d.ms = t.UnixMilli()
		}
		s, err := statement(cmd, a, begin, end)
		if err != nil {
			return err
		}
		if *asCSV {
			_, err := cmd.OutOrStdout().Write(s.CSV())
			return err
		}
		return emit(cmd, s, func(w io.Writer) error { return printStatement(w, s) })
	}
	return c
}

func printStatement(w io.Writer, s invoice.Statement) error {
	if s.Simulated {
		fmt.Fprintln(w, "simulated money, not for billing")
	}
	rows := [][]string{{"TIME", "BLOCK", "MONEY", "BALANCE", "CREDIT", "CREDIT LEFT", "WHY"}}
	for _, r := range s.Rows {
		row := []string{time.UnixMilli(r.TimeMs).Format(time.DateTime), strconv.FormatInt(r.Height, 10), money(r.Amount), money(r.Balance), "", "", r.Cause + " " + r.Ref}
		if r.Credit {
			row[2], row[3], row[4], row[5] = "", "", money(r.Amount), money(r.Balance)
		}
		rows = append(rows, row)
	}
	if err := table(w, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s %s, from %s; discount credit %s, from %s\n", money(s.Closing), s.Currency, money(s.Opening), money(s.Credit), money(s.OpenCredit))
	return err
}
