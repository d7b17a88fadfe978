package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/proof"
	"github.com/spf13/cobra"
)

func newRemoteCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "remote",
		Short: "Other microgrids: whom to believe, and settling with them",
		Long: `Each microgrid has its own ledger. To settle, the operators of two of them first
tell their ledgers whom to believe about the other. Then the one who owes locks
money at home, the other pays the counter-entry away, and each ledger lets the
money go only when the other's validators have signed that its half is there:

  home$ joulegate remote settle --with street-b --payee KEY --amount 12 --for 12 --out terms.json
  home$ joulegate ledger claim --settlement ID --with street-b --out locked.claim
  away$ joulegate remote answer terms.json --proof locked.claim
  away$ joulegate ledger claim --settlement ID --with street-a --out answered.claim
  home$ joulegate remote close ID --with street-b --proof answered.claim

Without an answer the money comes back: by a proof of that after the deadline
(the same command), or by itself when the settlement expires.`,
	}
	c.AddCommand(newRemoteTrustCmd(), newRemoteForgetCmd(), newRemoteFollowCmd(), newRemoteLsCmd(), newSettleCmd(), newSettleAnswerCmd(), newSettleCloseCmd())
	return c
}

func newRemoteTrustCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "trust GENESIS.json [--checkpoint FILE]",
		Short: "Say whom to believe about another microgrid (operator)",
		Long: `Tells the ledger to follow another microgrid from its genesis, or from a
checkpoint that you have from somebody you trust. What is older than the trusting
period of 10 days is refused: then give a newer checkpoint. Every proof and every
checkpoint that is shown in time carries trust further.`,
		Example: "  joulegate remote trust street-b.json --checkpoint street-b.checkpoint --wallet operator",
		Args:    cobra.ExactArgs(1),
	}
	checkpoint := c.Flags().String("checkpoint", "", "`FILE` with a checkpoint of it that is trusted")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		trust, err := remoteTrust(args[0], *checkpoint)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		return agree(cmd, chain.TxRemote, chain.Remote{Genesis: chain.Sum(b), Trust: trust})
	}
	return agreed(c, "operator")
}

func newRemoteForgetCmd() *cobra.Command {
	return agreed(&cobra.Command{
		Use:   "forget CHAIN",
		Short: "Believe another microgrid no longer (operator)",
		Long:  "What is locked for it comes back when it expires.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return agree(cmd, chain.TxRemote, chain.Remote{Trust: chain.Trust{Chain: args[0]}})
		},
	}, "operator")
}

func newRemoteFollowCmd() *cobra.Command {
	return walletFlag(&cobra.Command{
		Use:   "follow CHECKPOINT",
		Short: "Carry trust in another microgrid to a newer checkpoint of it (operator)",
		Long: `The ledger checks it as a light client does: more than a third of the validators
that it trusts, and more than two thirds of its own, must have signed it. Do it
at least every 10 days, or settle; otherwise trust ends.`,
		Example: "  joulegate ledger checkpoint --out b.checkpoint     # there\n  joulegate remote follow b.checkpoint               # here",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			p, err := chain.ParseCheckpoint(b)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return sign(cmd, chain.TxRemoteHead, chain.RemoteHead{Checkpoint: *p})
		},
	})
}

// walletFlag adds the wallet of an operator who signs alone.
func walletFlag(c *cobra.Command) *cobra.Command {
	c.Flags().String("wallet", "operator", "`WALLET` that signs: a file, or a name in the state folder")
	return c
}

func newRemoteLsCmd() *cobra.Command {
	return ledgerQuery(&cobra.Command{
		Use:   "ls",
		Short: "Microgrids that this one believes, and settlements with them",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, g *panel.Client, _ []string) (panel.Remotes, error) {
		return g.Remotes(cmd.Context())
	}, func(l stoppedLedger, _ []string) (panel.Remotes, error) { return remotesOf(l), nil }, func(w io.Writer, r panel.Remotes) error {
		rows := [][]string{{"MICROGRID", "TRUSTED BLOCK", "OF", "VALIDATORS", ""}}
		for _, m := range r.Remotes {
			note := "follow a newer checkpoint before " + time.Unix(0, m.Trust.Time).Add(chain.TrustingPeriod).Format(time.DateOnly)
			if !m.Fresh {
				note = "TRUST HAS ENDED: joulegate remote trust with a newer checkpoint"
			}
			rows = append(rows, []string{m.Trust.Chain, fmt.Sprint(m.Trust.Height), date(m.Trust.Time / 1e6), fmt.Sprint(len(m.Trust.Next)), note})
		}
		if err := table(w, rows); err != nil || len(r.Settlements) == 0 {
			return err
		}
		fmt.Fprintln(w)
		rows = [][]string{{"SETTLEMENT", "HOME", "AMOUNT", "AWAY", "AMOUNT", "STATE HERE", "ANSWER BY", "EXPIRES"}}
		for _, s := range r.Settlements {
			t := s.Terms
			rows = append(rows, []string{
				t.ID.String(), t.Home, money(t.Amount), t.Away, money(t.AwayAmount), s.State.String(),
				time.UnixMilli(t.Deadline).Format(time.DateTime), time.UnixMilli(t.Expires).Format(time.DateTime),
			})
		}
		return table(w, rows)
	})
}

func remotesOf(st ledger.State) panel.Remotes {
	return panel.Remotes{Remotes: ledger.Remotes(st), Settlements: ledger.Settlements(st)}
}

func newSettleCmd() *cobra.Command {
	c := walletFlag(&cobra.Command{
		Use:   "settle --with CHAIN --payee KEY --amount A --for B --out TERMS.json",
		Short: "Lock money for the operator of another microgrid (operator)",
		Long: `Locks --amount of your own account for --payee, the other operator's public key,
until his ledger shows that --for was paid to your key there. Write the terms to
a file and send it to him with a claim of the locked settlement.`,
		Example: "  joulegate remote settle --with street-b --payee 5f0c... --amount 12.50 --for 12.50 --out terms.json",
		Args:    cobra.NoArgs,
	})
	f := c.Flags()
	f.String("with", "", "`CHAIN` id of the other microgrid")
	f.String("payee", "", "public `KEY` of the other operator")
	f.String("amount", "", "`AMOUNT` that is locked here, in currency units")
	f.String("for", "", "`AMOUNT` that is to be paid there, in its currency units")
	f.Duration("within", 24*time.Hour, "how long the other side may answer")
	f.Duration("keep", 48*time.Hour, "how long after that the lock stays without a proof, at least 24h")
	f.String("out", "", "`FILE` for the terms")
	for _, name := range []string{"with", "payee", "amount", "for", "out"} {
		_ = c.MarkFlagRequired(name)
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		amount, err := amountFlag(cmd)
		if err != nil {
			return err
		}
		other, _ := f.GetString("for")
		awayAmount, err := parseMoney(other)
		if err != nil || awayAmount <= 0 {
			return usageError{fmt.Errorf("--for %q: more than zero, for example 12.50", other)}
		}
		var payee chain.Key
		key, _ := f.GetString("payee")
		if err := payee.UnmarshalText([]byte(key)); err != nil {
			return usageError{fmt.Errorf("--payee: %w", err)}
		}
		w, cl, err := signer(cmd)
		if err != nil {
			return err
		}
		status, err := cl.Status(cmd.Context())
		if err != nil {
			return err
		}
		within, _ := f.GetDuration("within")
		keep, _ := f.GetDuration("keep")
		s := chain.Settlement{
			Home: status.Chain, Payer: w.Account(), Payee: chain.AccountOf(payee), Amount: amount,
			AwayPayer: chain.AccountOf(payee), AwayPayee: w.Account(), AwayAmount: awayAmount,
			Deadline: time.Now().Add(within).UnixMilli(), Expires: time.Now().Add(within + keep).UnixMilli(),
		}
		s.Away, _ = f.GetString("with")
		rand.Read(s.ID[:])
		if err := s.Check(); err != nil {
			return usageError{err}
		}
		out, _ := f.GetString("out")
		if _, err := os.Stat(out); err == nil {
			return fmt.Errorf("%s exists", out)
		}
		if _, err := submit(cmd, cl, w, chain.TxSettle, s); err != nil {
			return err
		}
		doc, err := json.MarshalIndent(s, "", "  ")
		if err == nil {
			err = writeFile(out, append(doc, '\n'), 0o644)
		}
		if err != nil {
			return fmt.Errorf("the money is locked (see: joulegate remote ls), but the terms could not be written: %w", err)
		}
		return emit(cmd, s, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "locked %s for settlement %s; terms in %s\nnow: joulegate ledger claim --settlement %s --with %s --out locked.claim\n", money(s.Amount), s.ID, out, s.ID, s.Away)
			return err
		})
	}
	return c
}

// proofFlag adds the claim by which the other ledger is believed.
func proofFlag(c *cobra.Command) *cobra.Command {
	c.Flags().String("proof", "", "`FILE` that 'ledger claim --settlement' of the other microgrid has written")
	_ = c.MarkFlagRequired("proof")
	return c
}

func remoteProof(cmd *cobra.Command) (chain.RemoteProof, error) {
	file, _ := cmd.Flags().GetString("proof")
	b, err := os.ReadFile(file)
	if err != nil {
		return chain.RemoteProof{}, fmt.Errorf("--proof: %w", err)
	}
	c, err := consensus.ParseClaim(b)
	if err != nil {
		return chain.RemoteProof{}, fmt.Errorf("--proof %s: %w", file, err)
	}
	p, err := c.RemoteProof()
	if err != nil {
		return p, fmt.Errorf("--proof %s: %w", file, err)
	}
	return p, nil
}

func newSettleAnswerCmd() *cobra.Command {
	return proofFlag(walletFlag(&cobra.Command{
		Use:   "answer TERMS.json --proof LOCKED.claim",
		Short: "Pay the counter-entry of what another microgrid has locked (operator)",
		Long: `Read the terms before you answer: your account pays away_amount_nano to the other
operator's at once. The ledger takes the answer only if the other's validators
have signed that exactly these terms are locked. Then claim the answer, and see
to it that it is shown there before the settlement expires.`,
		Example: "  joulegate remote answer terms.json --proof locked.claim",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s chain.Settlement
			b, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			d := json.NewDecoder(bytes.NewReader(b))
			d.DisallowUnknownFields()
			if err = d.Decode(&s); err == nil {
				err = s.Check()
			}
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			p, err := remoteProof(cmd)
			if err != nil {
				return err
			}
			return sign(cmd, chain.TxSettleAnswer, chain.SettleAnswer{Terms: s, Proof: p})
		},
	}))
}

func newSettleCloseCmd() *cobra.Command {
	c := proofFlag(walletFlag(&cobra.Command{
		Use:   "close ID --with CHAIN --proof FILE",
		Short: "End a locked settlement by what the other microgrid has signed (either side)",
		Long: `With a proof that it was answered the payee gets the money; with a proof that it
was not, signed after the deadline, the payer has it back.`,
		Example: "  joulegate remote close 6f1c... --with street-b --proof answered.claim",
		Args:    cobra.ExactArgs(1),
	}))
	c.Flags().String("with", "", "`CHAIN` id of the other microgrid")
	_ = c.MarkFlagRequired("with")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		b := chain.SettleClose{}
		if err := b.ID.UnmarshalText([]byte(args[0])); err != nil {
			return usageError{err}
		}
		b.Away, _ = cmd.Flags().GetString("with")
		var err error
		if b.Proof, err = remoteProof(cmd); err != nil {
			return err
		}
		return sign(cmd, chain.TxSettleClose, b)
	}
	return c
}

// remoteTrust is what follows from another microgrid's files.
func remoteTrust(genesis, checkpoint string) (chain.Trust, error) {
	b, err := os.ReadFile(genesis)
	if err != nil {
		return chain.Trust{}, fmt.Errorf("genesis: %w", err)
	}
	g, err := proof.ParseGenesis(b)
	if err != nil {
		return chain.Trust{}, fmt.Errorf("%s: %w", genesis, err)
	}
	trust := chain.TrustGenesis(g.State, g.Time)
	if checkpoint == "" {
		return trust, nil
	}
	if b, err = os.ReadFile(checkpoint); err != nil {
		return trust, fmt.Errorf("--checkpoint: %w", err)
	}
	p, err := chain.ParseCheckpoint(b)
	if err == nil && p.Header.Chain != trust.Chain {
		err = errors.New("it is of another chain than the genesis")
	}
	if err != nil {
		return trust, fmt.Errorf("--checkpoint %s: %w", checkpoint, err)
	}
	return p.Trust(), nil
}
