package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

// claimFlags are the entry that a claim is about.
func claimFlags(c *cobra.Command) *cobra.Command {
	c.Flags().String("session", "", "`ID` of a session")
	c.Flags().String("account", "", "an `ACCOUNT`, for its balance")
	c.Flags().String("settlement", "", "`ID` of a settlement; with --with")
	c.Flags().String("with", "", "`CHAIN` id of the microgrid with which the claiming one settles")
	c.MarkFlagsMutuallyExclusive("session", "account", "settlement")
	c.MarkFlagsOneRequired("session", "account", "settlement")
	c.MarkFlagsRequiredTogether("settlement", "with")
	return c
}

// subject is what a claim is about.
type subject struct {
	keys  [][]byte // under one of which it is in the state
	parse func(r *remoteClaim, value []byte) (row []string, err error)
}

// claimed returns what the flags name.
func claimed(cmd *cobra.Command) (s subject, err error) {
	flag := func(name string) string {
		v, _ := cmd.Flags().GetString(name)
		return v
	}
	if text := flag("session"); text != "" {
		id, err := sessionID(text)
		s.keys = [][]byte{ledger.SessionKey(id)}
		s.parse = func(r *remoteClaim, value []byte) ([]string, error) {
			v, err := ledger.ParseSession(value)
			v.ID, r.Session = id, &v
			return []string{"session", fmt.Sprintf("%s, %s, %s, captured %s", id, v.State, kWh(v.Wh), money(v.Captured))}, err
		}
		return s, err
	}
	if text := flag("settlement"); text != "" {
		var id chain.ID
		if err := id.UnmarshalText([]byte(text)); err != nil {
			return s, usageError{fmt.Errorf("--settlement: %w", err)}
		}
		// Only one of the two ledgers locks: the other answers.
		s.keys = [][]byte{ledger.SettlementKey(id, flag("with"), true), ledger.SettlementKey(id, flag("with"), false)}
		s.parse = func(r *remoteClaim, value []byte) ([]string, error) {
			v, err := ledger.ParseSettlement(value)
			r.Settlement = &v
			return []string{"settlement", fmt.Sprintf("%s, %s: %s on %s against %s on %s", id, v.State, money(v.Terms.Amount), v.Terms.Home, money(v.Terms.AwayAmount), v.Terms.Away)}, err
		}
		return s, nil
	}
	var a chain.Account
	if err := a.UnmarshalText([]byte(flag("account"))); err != nil {
		return s, usageError{fmt.Errorf("--account: %w", err)}
	}
	s.keys = [][]byte{ledger.AccountKey(a)}
	s.parse = func(r *remoteClaim, value []byte) ([]string, error) {
		n, err := ledger.ParseBalance(value)
		r.Balance = &n
		return []string{"balance", fmt.Sprintf("%s holds %s", a, money(n))}, err
	}
	return s, nil
}

func newLedgerClaimCmd() *cobra.Command {
	c := claimFlags(&cobra.Command{
		Use:   "claim --session ID --out FILE",
		Short: "Prove an entry of the ledger to another microgrid",
		Long: `Writes one entry of the newest signed state, a checkpoint of its block and the
proof that leads from one to the other. The other side checks it with:
joulegate ledger verify-remote FILE --trust GENESIS.json`,
		Example: "  joulegate ledger claim --session 6f1c... --out session.claim\n  joulegate ledger claim --settlement 6f1c... --with street-b --out locked.claim",
		Args:    cobra.NoArgs,
	})
	out := c.Flags().String("out", "", "`FILE` to write")
	_ = c.MarkFlagRequired("out")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		about, err := claimed(cmd)
		if err != nil {
			return err
		}
		cl, err := dial(cmd)
		if err != nil {
			return err
		}
		b, err := claimOf(cmd, cl, about)
		if err != nil {
			return err
		}
		if err := writeFile(*out, b, 0o644); err != nil {
			return err
		}
		return emit(cmd, map[string]any{"file": *out, "bytes": len(b)}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s, %d bytes\n", *out, len(b))
			return err
		})
	}
	return c
}

// claimOf claims the first of the subject's entries that there is, or else that
// the last is not there.
func claimOf(cmd *cobra.Command, cl *panel.Client, about subject) (b []byte, err error) {
	for _, k := range about.keys {
		if b, err = cl.Claim(cmd.Context(), k); err != nil {
			return nil, err
		}
		if c, err := consensus.ParseClaim(b); err != nil || len(c.Value) > 0 {
			return b, err
		}
	}
	return b, nil
}

// remoteClaim is what ledger verify-remote tells.
type remoteClaim struct {
	Chain      string                 `json:"chain_id"`
	Height     int64                  `json:"height"` // whose state it is
	Time       time.Time              `json:"time"`   // of the signed block after it
	Unique     bool                   `json:"proven_unique"`
	Session    *ledger.SessionView    `json:"session,omitempty"`
	Balance    *chain.Nano            `json:"balance_nano,omitempty"`
	Settlement *ledger.SettlementView `json:"settlement,omitempty"`
	Absent     bool                   `json:"absent,omitempty"` // proven: there is no such entry
}

func newVerifyRemoteCmd() *cobra.Command {
	c := claimFlags(&cobra.Command{
		Use:   "verify-remote FILE --trust GENESIS.json --session ID",
		Short: "Check what another microgrid claims of its ledger, offline",
		Long: `Checks a claim by light-client proof: from the other microgrid's genesis file, or
a checkpoint of it that is trusted, to a block that its validators have signed,
and from that block's app hash to the entry. It needs no gateway of the other
side. Say which entry the claim is to be about. If trust is older than the
trusting period the answer says that the history is not proven to be the only
one. Exits 1 if anything does not hold.`,
		Example: "  joulegate ledger verify-remote session.claim --trust their-genesis.json --session 6f1c...",
		Args:    cobra.ExactArgs(1),
	})
	genesis := c.Flags().String("trust", "", "the other microgrid's genesis `FILE`")
	checkpoint := c.Flags().String("checkpoint", "", "`FILE` with a checkpoint of it that is trusted")
	_ = c.MarkFlagRequired("trust")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		about, err := claimed(cmd)
		if err != nil {
			return err
		}
		trust, err := remoteTrust(*genesis, *checkpoint)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		c, err := consensus.ParseClaim(b)
		if err == nil {
			err = c.Verify(trust)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		p := &c.Checkpoint
		r := remoteClaim{Chain: p.Header.Chain, Height: p.StateHeight(), Time: p.Time(), Absent: len(c.Value) == 0, Unique: trust.VerifyAt(p, time.Now()) == nil}
		if !slices.ContainsFunc(about.keys, func(k []byte) bool { return bytes.Equal(c.Key, k) }) {
			return fmt.Errorf("%s is signed, and about another entry than the one that was asked for", args[0])
		}
		rows := [][]string{
			{"chain", r.Chain},
			{"state", fmt.Sprintf("after block %d, signed %s", r.Height, r.Time.Format(time.DateTime+" MST"))},
			{"history", map[bool]string{true: "signed within the trusting period", false: "NOT PROVEN UNIQUE: trust is older than the trusting period, give a newer --checkpoint"}[r.Unique]},
		}
		if r.Absent {
			rows = append(rows, []string{"entry", "there is none: its absence is proven"})
		} else {
			row, err := about.parse(&r, c.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			rows = append(rows, row)
		}
		return emit(cmd, r, func(w io.Writer) error { return table(w, rows) })
	}
	return c
}
