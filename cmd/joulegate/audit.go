package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/audit"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/journal"
	"github.com/joulegate/joulegate/chain/proof"
	"github.com/joulegate/joulegate/meter/profile"
	"github.com/spf13/cobra"
)

func newAuditCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "audit",
		Short: "Evidence that a third party checks offline",
	}
	c.AddCommand(newAuditBundleCmd(), newAuditVerifyCmd(), newAuditPageCmd(), newAttestCmd(), newAttestationsCmd(), newAuditReceiptCmd())
	return c
}

func newAuditBundleCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "bundle --out FILE",
		Short: "Write what somebody needs to check the ledger without a gateway",
		Long: `Writes one file with signed blocks, records, readings with their raw registers,
clearing certificates, evidence and the rules, and the proofs that hold them
together. Everything by default; one session, or a range of time, is smaller.
Works on a running or a stopped gateway. Raw readings and the profiles that decode
them are in it as far as this gateway has them; it says what is absent.

Whoever gets it checks it with: joulegate audit verify FILE --trust GENESIS.json,
or in a browser: joulegate audit page --out verify.html`,
		Example: `  joulegate audit bundle --out ledger.jgb
  joulegate audit bundle --out may.jgb --from 2026-05-01T00:00:00Z --to 2026-06-01T00:00:00Z
  joulegate audit bundle --out session.jgb --session 0123456789abcdef0123456789abcdef`,
		Args: cobra.NoArgs,
	}
	out := c.Flags().String("out", "", "`FILE` to write")
	session := c.Flags().String("session", "", "`ID` of the session to prove")
	c.Flags().String("from", "", "begin of a range of `TIME`, for example 2026-05-01T00:00:00Z")
	c.Flags().String("to", "", "end of the range")
	_ = c.MarkFlagRequired("out")
	c.MarkFlagsRequiredTogether("from", "to")
	c.MarkFlagsMutuallyExclusive("session", "from")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		var q panel.BundleQuery
		var err error
		if *session != "" {
			if err := q.Session.UnmarshalText([]byte(*session)); err != nil {
				return usageError{fmt.Errorf("--session: %w", err)}
			}
		}
		if q.From, err = timeFlag(cmd, "from"); err != nil {
			return err
		}
		if q.To, err = timeFlag(cmd, "to"); err != nil {
			return err
		}
		size, err := bundleFile(cmd, *out, q)
		if err != nil {
			return err
		}
		held, err := contents(*out)
		if err != nil {
			return err
		}
		return emit(cmd, map[string]any{"file": *out, "bytes": size, "contents": held}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s, %.1f MB\n%s", *out, float64(size)/1e6, held.String())
			return err
		})
	}
	return c
}

// contents reads back what was written.
func contents(path string) (proof.Contents, error) {
	f, err := os.Open(path)
	if err != nil {
		return proof.Contents{}, err
	}
	defer f.Close()
	return proof.Inspect(bufio.NewReaderSize(f, 1<<20))
}

// bundleFile writes a bundle beside its place and moves it there when it is
// whole.
func bundleFile(cmd *cobra.Command, path string, q panel.BundleQuery) (_ int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	progress := progressLine(cmd)
	buf := bufio.NewWriterSize(f, 1<<20)
	count := &counter{w: buf, tell: func(n int64) { progress(fmt.Sprintf("%.1f MB written", float64(n)/1e6)) }}
	err = writeBundle(cmd, q, count)
	progress("")
	err = errors.Join(err, buf.Flush(), f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return 0, err
	}
	return count.n, os.Rename(f.Name(), path)
}

type counter struct {
	w    io.Writer
	n    int64
	tell func(int64)
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.tell(c.n)
	return n, err
}

// writeBundle asks the running gateway, or reads the stores of a stopped one.
func writeBundle(cmd *cobra.Command, q panel.BundleQuery, w io.Writer) (err error) {
	g, err := dial(cmd)
	if err == nil {
		defer g.Close()
		return g.Bundle(cmd.Context(), q, w)
	}
	st := stateOf(cmd)
	if _, missing := os.Stat(st.genesis()); missing != nil || !errors.Is(err, errNotRunning) {
		return err
	}
	lock, err := journal.LockDir(string(st))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	_, genesis, hash, err := consensus.ReadGenesis(st.genesis())
	if err != nil {
		return err
	}
	src := audit.Source{Genesis: hash, Profiles: profiles{nil}}
	if id, err := loadIdentity(st); err == nil { // a validator without a device has no readings
		j, err := journal.Open(st.journal(), journal.Config{ChainID: genesis.ChainID, Key: id.device})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, j.Close()) }()
		src.Readings = j
	}
	return consensus.HistoryHome(st.consensus(), st.genesis(), func(h *consensus.History) error {
		return bundleOf(cmd.Context(), src, genesis, h, q, w)
	})
}

// Bundle implements panel.Backend.
func (b backend) Bundle(ctx context.Context, q panel.BundleQuery, w io.Writer) error {
	_, _, hash, err := consensus.ReadGenesis(b.state.genesis())
	if err != nil {
		return err
	}
	src := audit.Source{Genesis: hash, Profiles: profiles{b.devices.library}, Readings: b.journal}
	err = b.ledger.History(func(h *consensus.History) error { return bundleOf(ctx, src, b.genesis, h, q, w) })
	if errors.Is(err, audit.ErrNoSession) || errors.Is(err, audit.ErrDropped) {
		return panel.NotFound("%v", err)
	}
	return err
}

func bundleOf(ctx context.Context, src audit.Source, g chain.Genesis, h *consensus.History, q panel.BundleQuery, w io.Writer) error {
	src.Chain, src.SlotSeconds, src.History = g.ChainID, g.SlotSeconds, h
	a := audit.Query{Session: q.Session}
	if !q.To.IsZero() {
		a.FromMs, a.ToMs = q.From.UnixMilli(), q.To.UnixMilli()
	}
	_, err := audit.WriteBundle(ctx, w, src, a)
	return err
}

// profiles finds the files of profiles.
type profiles struct{ *profile.Library }

func (p profiles) Profile(id string) (proof.Profile, bool) {
	f, err := p.Get(id)
	if err != nil {
		return proof.Profile{}, false
	}
	var out proof.Profile
	out.Source, out.Reversed, out.Swapped = f.Source()
	return out, true
}

func newAuditVerifyCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "verify FILE --trust GENESIS.json",
		Short: "Check a bundle, offline, trusting nobody but the genesis",
		Long: `Checks every signature, link, proof and sum of a bundle and says what it looked
at. It needs no gateway and no network. Without a checkpoint that is younger
than the trusting period it says that the history is not proven to be the only
one. Exits 1 unless every check holds.`,
		Example: "  joulegate audit verify ledger.jgb --trust genesis.json --checkpoint newest.cbor",
		Args:    cobra.ExactArgs(1),
	}
	trust := c.Flags().String("trust", "", "genesis `FILE` that is trusted")
	checkpoint := c.Flags().String("checkpoint", "", "`FILE` with a checkpoint that is trusted")
	execute := c.Flags().Bool("execute", false, "execute every block again, however many there are")
	_ = c.MarkFlagRequired("trust")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		opt := proof.Options{Now: time.Now(), Execute: *execute}
		b, err := os.ReadFile(*trust)
		if err != nil {
			return fmt.Errorf("--trust: %w", err)
		}
		if opt.Genesis, err = proof.ParseGenesis(b); err != nil {
			return fmt.Errorf("--trust %s: %w", *trust, err)
		}
		if *checkpoint != "" {
			if b, err = os.ReadFile(*checkpoint); err != nil {
				return fmt.Errorf("--checkpoint: %w", err)
			}
			if opt.Checkpoint, err = chain.ParseCheckpoint(b); err != nil {
				return fmt.Errorf("--checkpoint %s: %w", *checkpoint, err)
			}
		}
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		progress := progressLine(cmd)
		opt.Progress = func(h, of int64) { progress(fmt.Sprintf("block %d of %d", h, of)) }
		r := proof.Verify(bufio.NewReaderSize(f, 1<<20), opt)
		progress("")
		if err := emit(cmd, r, r.WriteText); err != nil {
			return err
		}
		if !r.OK {
			return errSilent
		}
		return nil
	}
	return c
}
