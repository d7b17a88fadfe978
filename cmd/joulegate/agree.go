package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

// agreed adds the flags of what several people may have to agree to.
func agreed(c *cobra.Command, signer string) *cobra.Command {
	if c.Flags().Lookup("wallet") == nil {
		c.Flags().String("wallet", signer, "`WALLET` that signs: a file, or a name in the state folder")
	}
	c.Flags().String("draft", "", "collect the approvals of several people in `FILE`; it is submitted when they are enough")
	c.Flags().Duration("valid", 7*24*time.Hour, "how long a draft can be submitted, at most 720h")
	return c
}

// agree submits a statement, or with --draft writes it down for others to
// approve.
func agree(cmd *cobra.Command, kind chain.TxKind, body any) error {
	w, cl, err := signer(cmd)
	if err != nil {
		return err
	}
	file, _ := cmd.Flags().GetString("draft")
	if file == "" {
		r, err := submit(cmd, cl, w, kind, body)
		if r.Code == uint32(ledger.CodeApproval) {
			return fmt.Errorf("%w; make a draft that the others co-sign: add --draft FILE, then: joulegate account cosign FILE", err)
		}
		if err != nil {
			return err
		}
		return done(cmd, r)
	}
	valid, _ := cmd.Flags().GetDuration("valid")
	if valid <= 0 || valid.Milliseconds() > chain.MaxProposalMs {
		return usageError{fmt.Errorf("--valid %s: up to 720h", valid)}
	}
	s, err := cl.Status(cmd.Context())
	if err != nil {
		return err
	}
	p := chain.Proposal{Version: chain.Version, Chain: s.Chain, Expires: time.Now().Add(valid).UnixMilli(), Kind: kind, Body: chain.Marshal(body)}
	rand.Read(p.ID[:])
	if _, err := os.Stat(file); err == nil {
		return fmt.Errorf("%s exists", file)
	}
	j := chain.Joint{Proposal: chain.Marshal(p)}
	j.Add(chain.Approval{Key: w.Public(), Sig: chain.Sign(w.Key, chain.DomainApproval, j.Proposal)})
	return sendJoint(cmd, cl, w, file, &j)
}

// sendJoint stores a draft and submits it if enough people have approved it.
func sendJoint(cmd *cobra.Command, cl *panel.Client, w keys.Wallet, file string, j *chain.Joint) error {
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(file, append(b, '\n'), 0o644); err != nil {
		return err
	}
	r, err := submit(cmd, cl, w, chain.TxJoint, *j)
	if r.Code != uint32(ledger.CodeApproval) {
		if err != nil {
			return err
		}
		return done(cmd, r)
	}
	v := map[string]any{"file": file, "approvals": len(j.Approvals), "complete": false, "info": r.Info}
	return emit(cmd, v, func(out io.Writer) error {
		_, err := fmt.Fprintf(out, "%s has %d approvals and is not complete: %s\npass it on: joulegate account cosign %s --wallet NAME\n", file, len(j.Approvals), r.Info, file)
		return err
	})
}

// done reports an accepted transaction.
func done(cmd *cobra.Command, r panel.TxResult) error {
	return emit(cmd, r, func(out io.Writer) error {
		_, err := fmt.Fprintf(out, "done in block %d\n", r.Height)
		return err
	})
}

func newAccountCosignCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "cosign FILE",
		Short: "Approve a draft of a minting, payout, refund or change of rules",
		Long: `Shows what the draft says, signs it with your wallet, and submits it as soon as
enough people have. What you sign is the statement itself, not the file: nobody
can change it afterwards, and it takes effect once.`,
		Example: "  joulegate account cosign mint.json --wallet operator2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, p, err := readDraft(args[0])
			if err != nil {
				return err
			}
			name, _ := cmd.Flags().GetString("wallet")
			if key, _ := cmd.Flags().GetString("key"); key != "" {
				name = key
			}
			w, err := wallet(cmd, name)
			if err != nil {
				return err
			}
			cl, err := dial(cmd)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), strings.Join(proposalWords(p), "\n"))
			if yes, _ := cmd.Flags().GetBool("yes"); !yes {
				fmt.Fprint(cmd.ErrOrStderr(), "Approve? [y/N] ")
				var answer string
				_, _ = fmt.Fscanln(cmd.InOrStdin(), &answer) // no answer is no
				if answer != "y" && answer != "Y" && answer != "yes" {
					return errors.New("not approved")
				}
			}
			j.Add(chain.Approval{Key: w.Public(), Sig: chain.Sign(w.Key, chain.DomainApproval, j.Proposal)})
			return sendJoint(cmd, cl, w, args[0], &j)
		},
	}
	c.Flags().String("wallet", "operator", "`WALLET` that approves: a file, or a name in the state folder")
	c.Flags().String("key", "", "the same as --wallet")
	c.Flags().Bool("yes", false, "approve without being asked")
	c.MarkFlagsMutuallyExclusive("wallet", "key")
	return c
}

// readDraft reads a draft and checks every signature in it.
func readDraft(file string) (j chain.Joint, p chain.Proposal, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return j, p, err
	}
	if len(b) > 4*chain.MaxTxBytes || json.Unmarshal(b, &j) != nil {
		return j, p, fmt.Errorf("%s is no draft: make one with --draft", file)
	}
	if p, err = j.Open(); err != nil {
		return j, p, fmt.Errorf("%s: %w", file, err)
	}
	return j, p, nil
}

// proposalWords tells a person what he is asked to sign, from the bytes that
// he will sign.
func proposalWords(p chain.Proposal) []string {
	words := []string{fmt.Sprintf("%s, until %s:", p.Chain, time.UnixMilli(p.Expires).Format(time.DateTime))}
	say := func(format string, args ...any) { words = append(words, "  "+fmt.Sprintf(format, args...)) }
	switch p.Kind {
	case chain.TxMint:
		tell(p, func(b chain.Mint) { say("mint %s to %s for payment %q", money(b.Amount), b.To, b.BankRef) })
	case chain.TxBurn:
		tell(p, func(b chain.Burn) { say("burn %s of %s for payment %q", money(b.Amount), b.From, b.BankRef) })
	case chain.TxRevoke:
		tell(p, func(b chain.Revoke) { say("revoke gateway %s: %s", b.Device, b.Reason) })
	case chain.TxReplace:
		tell(p, func(b chain.Replace) {
			say("give the vote of gateway %s to validator key %s instead of %s", b.Device, b.New, b.Old.Short())
		})
	case chain.TxPayoutPaid:
		tell(p, func(b chain.PayoutPaid) { say("payout %d has been paid as %q", b.Payout, b.BankRef) })
	case chain.TxRefund:
		tell(p, func(b chain.Refund) { say("refund %s of session %s: %s", money(b.Amount), b.Session, b.Reason) })
	case chain.TxResolve:
		tell(p, func(b chain.Resolve) {
			say("resolve dispute %d with a refund of %s: %s", b.Dispute, money(b.Refund), b.Reason)
		})
	case chain.TxMeterApproval:
		tell(p, func(b chain.MeterApproval) {
			say("approve the meter of connector %d at gateway %s until %s: %q", b.Connector, b.Device, time.UnixMilli(b.Until).Format(time.DateOnly), b.Approval)
		})
	case chain.TxMeterRelease:
		tell(p, func(b chain.MeterRelease) {
			say("release the meter %q (connector %d) of gateway %s; %d Wh in and %d Wh out of its jump are billed: %s", b.Meter, b.Connector, b.Device, b.Import, b.Export, b.Reason)
		})
	case chain.TxRules:
		tell(p, func(b chain.RulesChange) {
			say("change the rules from block %d on", b.Height)
			for _, l := range changeWords(&b) {
				say("  %s", l)
			}
		})
	}
	if len(words) == 1 {
		say("a statement of kind %d that this program cannot show: do not sign it", p.Kind)
	}
	return words
}

func tell[T any](p chain.Proposal, fn func(T)) {
	var b T
	if chain.Unmarshal(p.Body, &b) == nil {
		fn(b)
	}
}

// changeWords lists what a change of the rules sets, a line each.
func changeWords(c *chain.RulesChange) []string {
	b, _ := json.Marshal(c) // plain values
	var all map[string]json.RawMessage
	_ = json.Unmarshal(b, &all)
	delete(all, "height")
	var out []string
	for _, k := range sortedKeys(all) {
		out = append(out, k+" = "+string(all[k]))
	}
	return out
}
