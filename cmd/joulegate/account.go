package main

import (
	"fmt"
	"io"
	"os"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/spf13/cobra"
)

func newAccountCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "account",
		Short: "Prepaid money: who holds what",
		Long: `Accounts hold prepaid money. An account is derived from a person's key and says
nothing about the person. Money is minted by the operator against a payment in
the real world, and is redeemable at par.`,
	}
	c.AddCommand(newAccountLsCmd(), newAccountNewCmd(), newAccountMintCmd(), newAccountBurnCmd(), newAccountTransferCmd(),
		newAccountPayoutCmd(), newAccountRefundCmd(), newAccountStatementCmd(), newAccountProfileCmd(), newAccountCosignCmd())
	return c
}

func newAccountLsCmd() *cobra.Command {
	return ledgerQuery(&cobra.Command{
		Use:     "ls",
		Short:   "List accounts with balances, holds and discount credit",
		Example: "  joulegate account ls\n  joulegate account ls --json",
		Args:    cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) ([]panel.Account, error) {
		return g.Accounts(cmd.Context())
	}, func(l stoppedLedger, _ []string) ([]panel.Account, error) { return accountsOf(l), nil }, func(w io.Writer, accounts []panel.Account) error {
		rows := [][]string{{"ACCOUNT", "NAME", "BALANCE", "HELD", "CREDIT", "PAYOUT"}}
		for _, a := range accounts {
			var asked chain.Nano
			payout := ""
			for _, p := range a.Payouts {
				asked += p.Amount
				payout = money(asked)
				if p.Overdue {
					payout += " OVERDUE"
				}
			}
			rows = append(rows, []string{a.Account.String(), a.Name, money(a.Balance), money(a.Held), money(a.Credits), payout})
		}
		return table(w, rows)
	})
}

func newAccountNewCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "new NAME",
		Short: "Make a wallet: a person's key, kept in a file",
		Long: `Makes a key in the wallets folder of the state folder and prints its account and
public key. Whoever has the file has the money: keep a copy somewhere safe.`,
		Example: "  joulegate account new anna",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pass, err := passphrase()
			if err != nil {
				return err
			}
			dir := stateOf(cmd).wallets()
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			w, created, err := keys.LoadOrCreateWallet(dir, args[0], pass)
			if err != nil {
				return err
			}
			if !created {
				return fmt.Errorf("wallet %q exists already in %s", args[0], dir)
			}
			path, _ := keys.WalletPath(dir, args[0])
			v := map[string]any{"name": w.Name, "file": path, "account": w.Account(), "key": w.Public()}
			return emit(cmd, v, func(out io.Writer) error {
				return table(out, [][]string{{"wallet", path}, {"account", w.Account().String()}, {"public key", w.Public().String()}})
			})
		},
	}
}

// moneyCmd is the common form of mint, burn and transfer.
func moneyCmd(use, short, example, signer string, flags func(c *cobra.Command), build func(cmd *cobra.Command, amount chain.Nano) (chain.TxKind, any, error)) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Example: example, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			amount, err := amountFlag(cmd)
			if err != nil {
				return err
			}
			kind, body, err := build(cmd, amount)
			if err != nil {
				return err
			}
			if cmd.Flags().Lookup("draft") != nil {
				return agree(cmd, kind, body)
			}
			return sign(cmd, kind, body)
		},
	}
	c.Flags().String("amount", "", "`AMOUNT` in currency units, for example 12.50")
	c.Flags().String("wallet", signer, "`WALLET` that signs: a file, or a name in the state folder")
	_ = c.MarkFlagRequired("amount")
	flags(c)
	return c
}

func newAccountMintCmd() *cobra.Command {
	return agreed(moneyCmd("mint", "Credit a payment that arrived in the real world (operator)",
		"  joulegate account mint --to anna --amount 50 --ref SEPA-2026-0017", "operator",
		func(c *cobra.Command) {
			c.Flags().String("to", "", "`ACCOUNT`, public key or wallet to credit; sys:grid, sys:promotion and sys:rounding fund feed-in, credits and rounding")
			c.Flags().String("ref", "", "bank `REFERENCE` of the payment; each can be used once")
			_ = c.MarkFlagRequired("to")
			_ = c.MarkFlagRequired("ref")
		},
		func(cmd *cobra.Command, amount chain.Nano) (chain.TxKind, any, error) {
			to, _ := cmd.Flags().GetString("to")
			ref, _ := cmd.Flags().GetString("ref")
			a, err := account(cmd, to)
			return chain.TxMint, chain.Mint{To: a, Amount: amount, BankRef: ref}, err
		}), "")
}

func newAccountBurnCmd() *cobra.Command {
	return agreed(moneyCmd("burn", "Take money out against a payout in the real world (operator)",
		"  joulegate account burn --from anna --amount 12.50 --ref SEPA-2026-0031", "operator",
		func(c *cobra.Command) {
			c.Flags().String("from", "", "`ACCOUNT`, public key or wallet to debit")
			c.Flags().String("ref", "", "bank `REFERENCE` of the payout; each can be used once")
			_ = c.MarkFlagRequired("from")
			_ = c.MarkFlagRequired("ref")
		},
		func(cmd *cobra.Command, amount chain.Nano) (chain.TxKind, any, error) {
			from, _ := cmd.Flags().GetString("from")
			ref, _ := cmd.Flags().GetString("ref")
			a, err := account(cmd, from)
			return chain.TxBurn, chain.Burn{From: a, Amount: amount, BankRef: ref}, err
		}), "")
}

func newAccountTransferCmd() *cobra.Command {
	c := moneyCmd("transfer", "Move money from your account to another, where the rules allow it",
		"  joulegate account transfer --wallet anna --to 9f3c... --amount 5", "",
		func(c *cobra.Command) {
			c.Flags().String("to", "", "`ACCOUNT`, public key or wallet to credit")
			_ = c.MarkFlagRequired("to")
		},
		func(cmd *cobra.Command, amount chain.Nano) (chain.TxKind, any, error) {
			to, _ := cmd.Flags().GetString("to")
			a, err := account(cmd, to)
			return chain.TxTransfer, chain.Transfer{To: a, Amount: amount}, err
		})
	_ = c.MarkFlagRequired("wallet")
	return c
}
