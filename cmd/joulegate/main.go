// Command joulegate is the gateway beside an EV charger or a solar inverter,
// and every tool around it.
//
// Flags and subcommands live here; what a gateway is made of is in
// gateway.go, which reads like a wiring diagram. Commands that talk to a
// running gateway are thin clients of control.sock; commands that can work on
// a stopped one open its store themselves.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/spf13/cobra"
)

// version is set by the linker in releases.
var version = "0.1.0-dev"

func main() {
	if os.Getenv("GOLOG_LOG_LEVEL") == "" {
		// libp2p writes to stderr by itself, even about listeners that we
		// have closed. What matters of it, p2p says.
		gologshim.SetDefaultHandler(slog.DiscardHandler)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line and returns the exit code: 0, 1 for an
// error, 2 for wrong usage.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRootCmd()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if errors.Is(err, errSilent) {
		return 1
	}
	fmt.Fprintf(errOut, "joulegate: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if isUsage(err) {
		return 2
	}
	return 1
}

// errSilent is returned by commands that have already printed why they fail,
// for example a verification report.
var errSilent = errors.New("failed")

// isUsage tells wrong usage from failure. Cobra reports unknown commands and
// missing arguments as plain errors, recognisable only by their words.
func isUsage(err error) bool {
	var u usageError
	if errors.As(err, &u) {
		return true
	}
	for _, p := range []string{"unknown command", "required flag(s)", "accepts ", "requires at least", "if any flags in the group", "at least one of the flags"} {
		if strings.HasPrefix(err.Error(), p) {
			return true
		}
	}
	return false
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "joulegate",
		Short: "Sell a neighbour's surplus to a nearby car, and prove it",
		Long: `joulegate runs on the gateway beside an EV charger or a solar inverter. It reads
meters over Modbus, switches chargers, and forms a microgrid with the gateways
next door on one shared ledger.

New here? Watch a neighbourhood on this machine, with nothing else installed:
  joulegate demo`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.String("config", env("CONFIG", "/etc/joulegate/joulegate.yaml"), "configuration `FILE` (JOULEGATE_CONFIG)")
	f.String("state", env("STATE", "/var/lib/joulegate"), "state `FOLDER` (JOULEGATE_STATE)")
	f.Bool("json", false, "print one JSON document instead of tables")
	f.String("log-level", env("LOG_LEVEL", "info"), "debug, info, warn or error (JOULEGATE_LOG_LEVEL)")

	root.AddCommand(
		newRunCmd(), newReflexCmd(), newSafeStateCmd(), newDemoCmd(), newSimCmd(), newInitCmd(), newSetupCmd(), newLabelCmd(), newDoctorCmd(), newBugreportCmd(), newVersionCmd(), newManCmd(),
		newGridCmd(), newPeerCmd(), newConfigCmd(), newBackupCmd(), newRestoreCmd(), newUpdateCmd(), newEraseCmd(),
		newBoardCmd(), newBusCmd(), newMeterCmd(), newChargerCmd(), newCommissionCmd(), newRelayCmd(), newSessionCmd(), newReceiptCmd(), newCardCmd(), newMandateCmd(), newCodeCmd(), newJournalCmd(),
		newLedgerCmd(), newAuditCmd(), newAccountCmd(), newDisputeCmd(), newInvoiceCmd(), newRemoteCmd(), newMarketCmd(), newFlowCmd(),
		newGuardCmd(),
	)
	for _, c := range root.Commands() {
		strictArgs(c)
	}
	return root
}

// strictArgs makes a command group refuse words it does not know instead of
// printing its help and succeeding.
func strictArgs(c *cobra.Command) {
	if c.HasSubCommands() && c.RunE == nil && c.Run == nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q; see %s --help", args[0], cmd.CommandPath(), cmd.CommandPath())}
			}
			_ = cmd.Help()
			return usageError{fmt.Errorf("%s needs a subcommand", cmd.CommandPath())}
		}
	}
	for _, sub := range c.Commands() {
		strictArgs(sub)
	}
}

func newVersionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return emit(cmd, map[string]string{"version": version}, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "joulegate", version)
				return err
			})
		},
	}
}

// env returns JOULEGATE_<name> or def.
func env(name, def string) string {
	if v := os.Getenv("JOULEGATE_" + name); v != "" {
		return v
	}
	return def
}

// newLogger writes to stderr, so that stdout carries results only.
func newLogger(cmd *cobra.Command) (*slog.Logger, error) {
	var level slog.Level
	s, _ := cmd.Flags().GetString("log-level")
	if err := level.UnmarshalText([]byte(s)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level %q: debug, info, warn or error", s)}
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level})), nil
}

// state is the layout of a gateway's state folder.
type state string

func stateOf(cmd *cobra.Command) state {
	s, _ := cmd.Flags().GetString("state")
	return state(s)
}

func (s state) path(elem ...string) string {
	return filepath.Join(append([]string{string(s)}, elem...)...)
}
func (s state) genesis() string   { return s.path("genesis.json") }
func (s state) psk() string       { return s.path("psk") }
func (s state) keys() string      { return s.path("keys") }
func (s state) wallets() string   { return s.path("wallets") }
func (s state) consensus() string { return s.path("consensus") }
func (s state) journal() string   { return s.path("journal") }
func (s state) receipts() string  { return s.path("receipts") }
func (s state) control() string   { return s.path("control.sock") }
func (s state) book() string      { return s.path("peers.json") }
