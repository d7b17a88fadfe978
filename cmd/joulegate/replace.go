package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/spf13/cobra"
)

func newGridReplaceCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "replace [REQUEST]",
		Short: "Give a restored gateway its vote back, with its new validator key",
		Long: `A gateway that was restored from a backup has a new validator key: the old one is
never in a backup, because beside it lay what it signed last, and a key without that
memory could sign two blocks of one height. The ledger still counts the old key.

Without REQUEST, on the restored gateway: prints the request of this gateway, one
line, no secret. With REQUEST, wherever an operator's wallet is: the operator agrees,
and two blocks later the new key votes instead of the old one.

More than two thirds of the voting power must be there to agree on any block, this
one too. Where that is no longer so, above all in a microgrid whose only validator
was lost, move the whole folder consensus from the old card, if it can be read, in
the place of the restored one: its key comes with what it signed last and with the
blocks since the backup. Never start the old card again. If it cannot be read the
ledger cannot go on. It can be read and verified from the backup: found the microgrid
anew and take over balances by hand from 'joulegate account ls'.`,
		Example: "  joulegate grid replace\n  joulegate grid replace jgv1.pAFY... --wallet operator",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := dial(cmd)
			if err != nil {
				return err
			}
			members, err := cl.Members(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return askForVote(cmd, cl, members)
			}
			v, err := chain.ParseReplace(args[0])
			if err != nil {
				return usageError{err}
			}
			for _, m := range members {
				if m.Device == v.Device && m.Active {
					fmt.Fprintf(cmd.ErrOrStderr(), "the vote of %s goes from key %s to %s\n", m.Name, v.Old.Short(), v.New.Short())
					return agree(cmd, chain.TxReplace, v)
				}
			}
			return fmt.Errorf("the request is of device %s, which is no active member here", v.Device.Short())
		},
	}
	return agreed(c, "operator")
}

// askForVote prints this gateway's request.
func askForVote(cmd *cobra.Command, cl *panel.Client, members []panel.Member) error {
	st := stateOf(cmd)
	id, err := loadIdentity(st)
	if err != nil {
		return err
	}
	s, err := cl.Status(cmd.Context())
	if err != nil {
		return err
	}
	for _, m := range members {
		switch {
		case !m.Self:
		case m.Validator == id.validator:
			return errors.New("the ledger knows this gateway's validator key already: there is nothing to replace")
		default:
			r := chain.SignReplace(s.Chain, m.Validator, id.validator, id.device)
			return emit(cmd, map[string]any{"request": r.String(), "name": m.Name, "old": r.Old, "new": r.New}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s\n\nan operator agrees to it, at any gateway:\njoulegate grid replace %s\n", r, r)
				return err
			})
		}
	}
	return errors.New("this gateway is no member as far as its ledger tells; if it is catching up, wait and ask again")
}
