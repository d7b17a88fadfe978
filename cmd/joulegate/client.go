package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/joulegate/joulegate/board/panel"
	"github.com/joulegate/joulegate/chain"
	"github.com/joulegate/joulegate/chain/consensus"
	"github.com/joulegate/joulegate/chain/keys"
	"github.com/joulegate/joulegate/chain/ledger"
	"github.com/spf13/cobra"
)

// errNotRunning is returned by dial when nobody serves the control socket.
var errNotRunning = errors.New("no gateway is running")

// dial connects to the running gateway's control socket, or with --at to a
// panel somewhere else.
func dial(cmd *cobra.Command) (*panel.Client, error) {
	if f := cmd.Flags().Lookup("at"); f != nil && f.Value.String() != "" {
		return panel.NewClient(strings.TrimRight(f.Value.String(), "/")), nil
	}
	st := stateOf(cmd)
	conn, err := net.DialTimeout("unix", st.control(), 2*time.Second)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%s: permission denied; run as the user of the gateway", st.control())
		}
		return nil, fmt.Errorf("%w with state folder %s; start it with: joulegate run --state %s", errNotRunning, st, st)
	}
	conn.Close()
	return panel.Dial(st.control()), nil
}

// query makes a command that asks the gateway one thing and prints the
// answer, as a document with --json and with human otherwise.
func query[T any](c *cobra.Command, ask func(cmd *cobra.Command, g *panel.Client, args []string) (T, error), human func(w io.Writer, v T) error) *cobra.Command {
	c.RunE = func(cmd *cobra.Command, args []string) error {
		g, err := dial(cmd)
		if err != nil {
			return err
		}
		defer g.Close()
		done := working(cmd, "the gateway is at it")
		v, err := ask(cmd, g, args)
		done()
		if err != nil {
			return err
		}
		return emit(cmd, v, func(w io.Writer) error { return human(w, v) })
	}
	return c
}

// working shows on a terminal, from the second second on, that what is waited
// for is under way and for how long, until the returned function is called.
func working(cmd *cobra.Command, what string) (done func()) {
	show, begun := progressLine(cmd), time.Now()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
			}
			if d := time.Since(begun); d >= 2*time.Second {
				show(fmt.Sprintf("%s, %.0f s", what, d.Seconds()))
			}
		}
	}()
	return func() {
		close(stop)
		<-ended
		if time.Since(begun) >= 2*time.Second {
			show("")
		}
	}
}

// ledgerQuery is query for what the ledger's state tells: with no gateway
// running it reads the stores of the state folder.
func ledgerQuery[T any](c *cobra.Command, ask func(cmd *cobra.Command, g *panel.Client, args []string) (T, error),
	stopped func(l stoppedLedger, args []string) (T, error), human func(w io.Writer, v T) error,
) *cobra.Command {
	query(c, ask, human)
	running := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		err := running(cmd, args)
		if !errors.Is(err, errNotRunning) {
			return err
		}
		st := stateOf(cmd)
		if _, missing := os.Stat(st.genesis()); missing != nil {
			return err
		}
		var v T
		var failed error
		done := working(cmd, "reading the stores of "+st.consensus())
		err = consensus.ViewHome(st.consensus(), st.genesis(), func(height int64, at time.Time, root chain.Hash, s ledger.State) {
			v, failed = stopped(stoppedLedger{s, height, at, root}, args)
		})
		done()
		if err != nil {
			return err
		}
		if failed != nil {
			return failed
		}
		return emit(cmd, v, func(w io.Writer) error { return human(w, v) })
	}
	return c
}

// stoppedLedger is the last committed state of a gateway that does not run.
type stoppedLedger struct {
	ledger.State
	height int64
	at     time.Time
	root   chain.Hash
}

// atFlag adds --at for what a driver or neighbour does over the network.
func atFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("at", "", "panel `ADDRESS` of another gateway, for example http://192.0.2.7:8080")
	return cmd
}

// passphrase reads the file named by JOULEGATE_PASSPHRASE_FILE; nil without.
func passphrase() ([]byte, error) {
	file := os.Getenv("JOULEGATE_PASSPHRASE_FILE")
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("JOULEGATE_PASSPHRASE_FILE: %w", err)
	}
	return []byte(strings.TrimRight(string(b), "\r\n")), nil
}

// signer opens --wallet and connects to the gateway.
func signer(cmd *cobra.Command) (w keys.Wallet, cl *panel.Client, err error) {
	name, _ := cmd.Flags().GetString("wallet")
	if w, err = wallet(cmd, name); err != nil {
		return w, nil, err
	}
	cl, err = dial(cmd)
	return w, cl, err
}

// wallet opens a wallet given as a file, or by its name in the state
// folder's wallets.
func wallet(cmd *cobra.Command, arg string) (keys.Wallet, error) {
	pass, err := passphrase()
	if err != nil {
		return keys.Wallet{}, err
	}
	path := arg
	if !strings.ContainsRune(arg, filepath.Separator) && filepath.Ext(arg) == "" {
		if path, err = keys.WalletPath(stateOf(cmd).wallets(), arg); err != nil {
			return keys.Wallet{}, err
		}
	}
	w, err := keys.LoadWallet(path, pass)
	if errors.Is(err, fs.ErrNotExist) {
		return w, fmt.Errorf("wallet %s does not exist; make one with: joulegate account new NAME", path)
	}
	return w, err
}

// account reads an account: 40 hex digits, a public key, sys:NAME, or a
// wallet.
func account(cmd *cobra.Command, arg string) (chain.Account, error) {
	var a chain.Account
	if a.UnmarshalText([]byte(arg)) == nil {
		return a, nil
	}
	var k chain.Key
	if k.UnmarshalText([]byte(arg)) == nil {
		return chain.AccountOf(k), nil
	}
	w, err := wallet(cmd, arg)
	if err != nil {
		return a, fmt.Errorf("%q is neither an account, a public key nor a wallet: %w", arg, err)
	}
	return w.Account(), nil
}

// submit signs a transaction with w, sends it and turns a refusal into an
// error.
func submit(cmd *cobra.Command, c *panel.Client, w keys.Wallet, kind chain.TxKind, body any) (panel.TxResult, error) {
	r, err := panel.Order(cmd.Context(), c, w.Key, kind, body)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("the ledger refused: %s (code %d)", r.Info, r.Code)
	}
	return r, err
}
