package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/joulegate/joulegate/chain/proof"
	"github.com/spf13/cobra"
)

// claimFlags are the entry that a claim is about.
func claimFlags(c *cobra.Command) *cobra.Command {
	c.Flags().String("session", "", "`ID` of a session")
	c.Flags().String("account", "", "an `ACCOUNT`, for its balance")
	c.MarkFlagsMutuallyExclusive("session", "account")
	c.MarkFlagsOneRequired("session", "account")
	return c
}

// claimed returns what the flags name; the account counts if the session is
// zero.
func claimed(cmd *cobra.Command) (id chain.ID, a chain.Account, err error) {
	if s, _ := cmd.Flags().GetString("session"); s != "" {
		id, err = sessionID(s)
		return id, a, err
	}
	s, _ := cmd.Flags().GetString("account")
	if err := a.UnmarshalText([]byte(s)); err != nil {
		return id, a, usageError{fmt.Errorf("--account: %w", err)}
	}
	return id, a, nil
}

func newLedgerClaimCmd() *cobra.Command {
	c := claimFlags(&cobra.Command{
		Use:   "claim --session ID --out FILE",
		Short: "Prove an entry of the ledger to another microgrid",
		Long: `Writes one entry of the newest signed state, a checkpoint of its block and the
proof that leads from one to the other. The other side checks it with:
joulegate ledger verify-remote FILE --trust GENESIS.json`,
		Example: "  joulegate ledger claim --session 6f1c... --out session.claim",
		Args:    cobra.NoArgs,
	})
	out := c.Flags().String("out", "", "`FILE` to write")
	_ = c.MarkFlagRequired("out")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		id, a, err := claimed(cmd)
		if err != nil {
			return err
		}
		cl, err := dial(cmd)
		if err != nil {
			return err
		}
		b, err := cl.Claim(cmd.Context(), id, a)
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

// remoteClaim is what ledger verify-remote tells.
type remoteClaim struct {
	Chain   string              `json:"chain_id"`
	Height  int64               `json:"height"` // whose state it is
	Time    time.Time           `json:"time"`   // of the signed block after it
	Unique  bool                `json:"proven_unique"`
	Session *ledger.SessionView `json:"session,omitempty"`
	Balance *chain.Nano         `json:"balance_nano,omitempty"`
	Absent  bool                `json:"absent,omitempty"` // proven: there is no such entry
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
		id, account, err := claimed(cmd)
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
		want := ledger.AccountKey(account)
		if id != (chain.ID{}) {
			want = ledger.SessionKey(id)
		}
		if !bytes.Equal(c.Key, want) {
			return fmt.Errorf("%s is signed, and about another entry than the one that was asked for", args[0])
		}
		rows := [][]string{
			{"chain", r.Chain},
			{"state", fmt.Sprintf("after block %d, signed %s", r.Height, r.Time.Format(time.DateTime+" MST"))},
			{"history", map[bool]string{true: "signed within the trusting period", false: "NOT PROVEN UNIQUE: trust is older than the trusting period, give a newer --checkpoint"}[r.Unique]},
		}
		switch {
		case r.Absent:
			rows = append(rows, []string{"entry", "there is none: its absence is proven"})
		case id != (chain.ID{}):
			s, err := ledger.ParseSession(c.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			s.ID = id
			r.Session = &s
			rows = append(rows, []string{"session", fmt.Sprintf("%s, %s, %s, captured %s", id, s.State, kWh(s.Wh), money(s.Captured))})
		default:
			n, err := ledger.ParseBalance(c.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			r.Balance = &n
			rows = append(rows, []string{"balance", fmt.Sprintf("%s holds %s", account, money(n))})
		}
		return emit(cmd, r, func(w io.Writer) error { return table(w, rows) })
	}
	return c
}

// remoteTrust is what follows from another microgrid's files.
func remoteTrust(genesis, checkpoint string) (chain.Trust, error) {
	b, err := os.ReadFile(genesis)
	if err != nil {
		return chain.Trust{}, fmt.Errorf("--trust: %w", err)
	}
	g, err := proof.ParseGenesis(b)
	if err != nil {
		return chain.Trust{}, fmt.Errorf("--trust %s: %w", genesis, err)
	}
	trust := chain.TrustGenesis(g.State, g.Time)
	if checkpoint == "" {
		return trust, nil
	}
	if b, err = os.ReadFile(checkpoint); err != nil {
		return trust, fmt.Errorf("--checkpoint: %w", err)
	}
	p, err := chain.ParseCheckpoint(b)
	if err == nil {
		err = p.Check()
	}
	if err == nil && p.Header.Chain != trust.Chain {
		err = errors.New("it is of another chain than the genesis")
	}
	if err != nil {
		return trust, fmt.Errorf("--checkpoint %s: %w", checkpoint, err)
	}
	return p.Trust(), nil
}
